"""Makes tests/data/templates/expected*.jsonl: real chat templates over conversations, rendered by Jinja2 itself in the environment that the
transformers library builds for chat templates.

    python3 -m venv venv && venv/bin/pip install -r harness/reference/requirements.txt
    venv/bin/python harness/reference/chat_templates.py

The first lines are the conversations, each {"conversation": NAME, "messages": …, "tools": …, "add_generation_prompt": …, "kwargs": …}. Each
line after them is a case, {"template": NAME, "conversation": NAME} with what came of it: "text", or "raised" with the words that the template
gave raise_exception, or "failed" with the kind of any other exception. expected-snippets.jsonl has the same of the small templates in
snippets.txt, one a line, each over the conversation "user". The output is the same on every run.
"""

import json
from datetime import datetime, timezone
from pathlib import Path

import jinja2
from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

FOLDER = Path(__file__).resolve().parents[2] / "tests/data/templates"
NOW = datetime(2024, 12, 31, 23, 59, 59, tzinfo=timezone.utc)


class Raised(TemplateError):
    """What raise_exception throws, to tell it from the engine's own errors."""


class Generation(Extension):
    """{% generation %} … {% endgeneration %}: marks the assistant's words for training and leaves the text as it is."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller):
        return caller()


def raise_exception(message):
    raise Raised(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = NOW.strftime
    return made


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, id):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather \"now\" & <here>.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "A city, e.g. Zürich"},
                "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
                "days": {"type": "integer", "default": None, "minimum": 1},
                "at": {"type": "object", "properties": {"lat": {"type": "number", "default": 1e-05}}, "required": ["lat"]},
                "tags": {"type": "array", "items": {"type": "string"}, "default": []},
            },
            "required": ["place"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "description": "Tells the time.", "parameters": {"type": "object", "properties": {}}},
}
UNION = {
    "type": "function",
    "function": {
        "name": "union",
        "description": "Takes either.",
        "parameters": {"type": "object", "properties": {"x": {"type": ["integer", "null"]}}},
        "return": {"type": "string"},
    },
}
ASK = say("user", "How is the weather?")
ARGUMENTS = {"place": "Zürich", "days": 2, "at": {"lat": 47.0}, "tags": ["a", "b'c"], "strict": True, "unit": None}
ONE_CALL = [
    say("system", "Use tools."),
    ASK,
    say("assistant", None, tool_calls=[call("weather", ARGUMENTS, "call00001")]),
    say("tool", '{"sky": "blue"}', tool_call_id="call00001", name="weather"),
]
TWO_CALLS = [
    ASK,
    say("assistant", "", tool_calls=[call("weather", {"place": "Bern"}, "call00001"), call("clock", {}, "call00002")]),
    say("tool", "rain", tool_call_id="call00001", name="weather"),
    say("tool", "12:00", tool_call_id="call00002", name="clock"),
    say("assistant", "Rain at noon."),
    say("user", "Thanks"),
]
TEXT_CALL = [
    ASK,
    say("assistant", "I look.", tool_calls=[call("clock", '{"zone": "CET"}', "call00001")], reasoning_content="The clock?"),
    say("tool", "12:00", tool_call_id="call00001", name="clock"),
]
TALK = [
    say("system", "Be brief."),
    say("user", "1+1?"),
    say("assistant", "<think>\nadd\n</think>\n\nIt is 2."),
    say("user", "And 2+2?"),
]
REASONED = [
    say("user", "1+1?"),
    say("assistant", "It is 2.", reasoning_content="I add.\n"),
    say("user", "And 2+2?"),
]

# Name: (messages, whether the assistant's turn is opened, tools, further variables).
CONVERSATIONS = {
    "user": ([say("user", "Hi")], True, None, {}),
    "closed": ([say("user", "Hi")], False, None, {}),
    "system": ([say("system", "Be brief."), say("user", "Hi")], True, None, {}),
    "system-only": ([say("system", "Be brief.")], True, None, {}),
    "talk": (TALK, True, None, {}),
    "answered": (TALK[1:3], False, None, {}),
    "reasoned": (REASONED, True, None, {"enable_thinking": True, "thinking": True}),
    "not-thinking": (REASONED, True, None, {"enable_thinking": False, "thinking": False, "reasoning_effort": "high"}),
    "signs": ([say("user", "<b>\"Tom\" & 'Jerry'</b>\t{{ x }} \\n 日本語 😊 é")], True, None, {}),
    "spaces": ([say("user", " \n a \n\n"), say("assistant", "\n b "), say("user", "c\n")], True, None, {}),
    "empty": ([say("user", "")], True, None, {}),
    "parts": ([say("user", [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}])], True, None, {}),
    "dated": ([ASK], True, None, {"date_string": "1 Jan 2025", "datetime": "1 Jan", "functions": "[]"}),
    "user-twice": ([say("user", "a"), say("user", "b")], True, None, {}),
    "assistant-first": ([say("assistant", "a"), say("user", "b")], True, None, {}),
    "tools": ([ASK], True, [WEATHER, CLOCK], {"tool_choice": "required"}),
    "union-tool": ([ASK], True, [UNION], {}),
    "one-call": (ONE_CALL, True, [WEATHER], {}),
    "two-calls": (TWO_CALLS, True, [CLOCK], {}),
    "text-call": (TEXT_CALL, True, [CLOCK], {"tools_in_user_message": False}),
}


def outcome(source, conversation):
    messages, opened, tools, kwargs = conversation
    try:
        text = environment().from_string(source).render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=opened,
            **{"bos_token": "<s>", "eos_token": "</s>", **kwargs},
        )
    except Raised as raised:
        return {"raised": raised.message}
    except Exception as error:
        return {"failed": type(error).__name__}
    return {"text": text}


def write(name, lines):
    with open(FOLDER / name, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def main():
    assert jinja2.__version__ == "3.1.6", jinja2.__version__
    lines = [
        {"conversation": name, "messages": messages, "tools": tools, "add_generation_prompt": opened, "kwargs": kwargs}
        for name, (messages, opened, tools, kwargs) in CONVERSATIONS.items()
    ]
    for path in sorted(FOLDER.glob("*.jinja")):
        source = path.read_bytes().decode("utf-8")
        for name, conversation in CONVERSATIONS.items():
            lines.append({"template": path.stem, "conversation": name, **outcome(source, conversation)})
    write("expected.jsonl", lines)
    snippets = (FOLDER / "snippets.txt").read_text(encoding="utf-8").splitlines()
    write("expected-snippets.jsonl", [{"snippet": line, **outcome(line, CONVERSATIONS["user"])} for line in snippets])


main()
