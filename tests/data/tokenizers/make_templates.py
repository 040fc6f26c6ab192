"""Makes template-cases.jsonl: chat templates and what Jinja2 renders of them, in the environment that
the transformers library sets up for chat templates.

    pip install jinja2==3.1.6 && python make_templates.py
"""

import json
from datetime import datetime, timezone

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = 1_735_689_599  # 2024-12-31 23:59:59 UTC


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def strftime_now(format):
    return datetime.fromtimestamp(NOW, timezone.utc).strftime(format)


environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
)
environment.filters["tojson"] = tojson
environment.globals["strftime_now"] = strftime_now

MESSAGES = [
    {"role": "system", "content": "  Be brief & <polite>.  "},
    {"role": "user", "content": "What's 1 + 1? 日本語 😊"},
    {"role": "assistant", "content": "<think>\nadd\n</think>\n\nIt is 2."},
    {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "text", "text": " 2 + 2?"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "type": "function",
                "function": {"name": "add", "arguments": {"b": 2.5, "a": [1, True, None, "é\"\\/\u0007"]}},
            }
        ],
    },
    {"role": "tool", "content": "4"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds <two> numbers & \"more\"",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "number"}, "b": {"type": "number", "default": 1e-05}},
                "required": ["b", "a"],
            },
        },
    }
]

TEMPLATES = [
    # The shape of ChatML, with all its white space control.
    "{% for message in messages %}\n{{ '<|im_start|>' + message['role'] + '\\n' }}\n"
    "{%- if message.content is string -%}\n  {{ message.content }}\n{%- endif -%}\n"
    "{{ '<|im_end|>\\n' }}\n{% endfor %}\n{% if add_generation_prompt %}\n"
    "{{- '<|im_start|>assistant\\n' }}\n{% endif %}\n",
    # Methods of Python.
    "{% for m in messages if m.content is string %}[{{ m.content.strip() }}|{{ m.role.upper() }}|"
    "{{ m.content.split()[0] }}|{{ m.content.split('\\n')[-1] }}|{{ m.role.startswith('us') }}|"
    "{{ m.role.endswith('er') }}|{{ m.content.replace('&', 'and') }}|{{ m.role.title() }}|"
    "{{ m.content.lstrip() }}|{{ m.content.rstrip('. ') }}|{{ m.role.find('s') }}|"
    "{{ m.role.capitalize() }}|{{ m.content.count('2') }}]\n{% endfor %}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}"
    "{{ messages[0].keys() | list }}{{ messages[0].values() | list }}"
    "{{ messages[0].get('role') }}{{ messages[0].get('none') }}{{ messages[0].get('x', 'y') }}",
    # JSON as Python writes it.
    "{{ tools | tojson }}\n{{ tools | tojson(indent=4) }}\n{{ messages[4].tool_calls | tojson }}",
    "{{ tools[0] | tojson(indent=2) }}\n{{ [] | tojson(indent=2) }}{{ {} | tojson(indent=2) }}"
    "{{ {'a': [], 'b': {}} | tojson(indent=1) }}",
    "{{ {'b': 1, 'a': 1.0, 'c': 1e20, 'd': -0.00001} | tojson(sort_keys=true) }}"
    "{{ [1, [2, {'x': none}]] | tojson(separators=(',', ':')) }}{{ 'é日😊' | tojson(ensure_ascii=true) }}",
    # Namespaces, scopes, loop variables, loop controls.
    "{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.found = true %}{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}{{ ns.found }} {{ ns.n }}",
    "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}"
    "{% if loop.index > 4 %}{% break %}{% endif %}{{ loop.index }}{{ m.role }}{{ loop.first }}"
    "{{ loop.last }}{{ loop.revindex }}/{{ loop.length }} {% endfor %}",
    "{% set x = 1 %}{% for i in range(3) %}{% set x = i %}{{ x }}{% endfor %}{{ x }}",
    "{% macro say(who, what='hi') -%}\n  {{ who }}: {{ what }}\n{%- endmacro %}"
    "{{ say('a') }}\n{{ say(what='b', who=messages[1].role) }}",
    "{% macro args() %}{{ caller() }}{% endmacro %}{% call args() %}in{% endcall %}",
    # Undefined names, none, booleans, numbers.
    "{{ nothing }}|{{ nothing is defined }}|{{ messages[0].nothing }}|{{ none }}|{{ true }}|{{ 1.0 }}|"
    "{{ 7 // 2 }}|{{ 7 / 2 }}|{{ 7 % 3 }}|{{ 2 ** 3 }}|{{ nothing | default('d') }}|"
    "{{ '' or 'e' }}|{{ 'a' ~ 1 ~ none ~ true }}",
    "{% if tools is not none and tools %}T{% endif %}{% if nothing is undefined %}U{% endif %}"
    "{% if messages[4].content is none %}N{% endif %}{% if not nothing %}F{% endif %}"
    "{% if messages[3].content is iterable and messages[3].content is not mapping %}I{% endif %}"
    "{% if messages[0] is mapping %}M{% endif %}{% if 1 is number and 's' is string %}S{% endif %}",
    # Slices, filters, tests, comparisons, joins.
    "{{ messages[1:] | length }} {{ messages[-1].role }} {{ messages[::-1][0].role }} "
    "{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} "
    "{{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='role') | list }} "
    "{{ 'abc'[1:] }} {{ 'abc'[::-1] }} {{ [3, 1, 2] | sort | first }} {{ [1, 2] | last }} "
    "{{ ' x ' | trim }} {{ 'a' | upper }} {{ ['a', 'b'] | join('-') }} {{ 'x' in ['x'] }} {{ 'ole' in messages[0] }}",
    "{{ messages[2].content.split('</think>')[-1].lstrip('\\n') }}|"
    "{% if '</think>' in messages[2].content %}{{ messages[2].content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') }}{% endif %}",
    "{%- for part in messages[3]['content'] -%}{{- part['text'] -}}{%- endfor -%}",
    "{{ messages[4].tool_calls[0].function.arguments }} {{ [1, 'a', none, true, 1.5] }} {{ {'k': ['v']} }} {{ ('t', 1) }}",
    "{{ 'yes' if add_generation_prompt else 'no' }}{{ bos_token }}{{ eos_token }}"
    "{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y-%m-%d %H:%M:%S %A %B %j') | length }}",
    # White space: lstrip_blocks, trim_blocks, comments, raw.
    "a\n   {% if true %}\n   b\n   {% endif %}\nc {# comment #}\n  {# line #}\nd\n{% raw %}{{ x }}{% endraw %}\n\n",
    "  {%+ if true %} kept {%+ endif %}\n{{ 1 }}\n  {{- 2 -}}  \n  3  {%- set a = 1 -%}  4\n",
    "{% set s %}captured {{ messages[0].role }}{% endset %}{{ s }}{{ s | length }}",
    "{% filter upper %}up {{ messages[0].role }}{% endfilter %}",
    "{% for a in [] %}x{% else %}empty{% endfor %}{% for a, b in [[1, 2], [3, 4]] %}{{ a }}{{ b }}{% endfor %}",
    "{{ messages | length > 3 and 'x' == \"x\" }} {{ not false }} {{ 1 < 2 < 3 }} {{ 'b' > 'a' }}",
    "{{ messages | tojson | length }} {{ dict(a=1, b=2) }} {{ 'a,b'.split(',') | last }} {{ '%s-%d' | format('x', 3) }}",
    "{{ messages[0]['content'] | e }} {{ '<&>' }} {{ 'q' * 3 }} {{ [1] + [2] }} {{ 'x'.join(['1', '2']) }}",
    "{% set items = messages | map(attribute='role') | unique | list %}{{ items }}{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{{ '  indent\\nme' | indent(2) }}{{ 'a b'.title() }}{{ 5 | string + '!' }}{{ '5' | int + 1 }}{{ 3.7 | int }}{{ messages | first is mapping }}",
]


def main():
    with open("template-cases.jsonl", "w", encoding="utf-8") as file:
        for template in TEMPLATES:
            text = environment.from_string(template).render(
                messages=MESSAGES,
                tools=TOOLS,
                add_generation_prompt=True,
                bos_token="<s>",
                eos_token="</s>",
            )
            case = {"template": template, "messages": MESSAGES, "tools": TOOLS, "text": text}
            if file.tell():
                del case["messages"], case["tools"]
            file.write(json.dumps(case) + "\n")


main()
