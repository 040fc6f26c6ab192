//! Chat templates against what Jinja2 renders of them, and against templates that want to break out.
//! The incremental decoder, too.

mod text_support;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};
use text_support::{data, model_metadata};
use worker_orcd::limits::STACK_BYTES;
use worker_orcd::text::template::{TEMPLATE_JOINS_MAX, TEMPLATE_SOURCE_BYTES_MAX};
use worker_orcd::text::{
    ChatTemplate, GenerationPrompt, RenderOptions, TemplateError, TextDecoder,
};

/// 31 December 2024, 23:59:59 UTC.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_735_689_599)
}

fn options() -> RenderOptions {
    RenderOptions {
        generation_prompt: GenerationPrompt::Add,
        tools: None,
        tool_choice: None,
        kwargs: Map::new(),
        now: now(),
    }
}

fn render(source: &str, messages: &Json) -> Result<String, TemplateError> {
    ChatTemplate::new(source, Some("<s>"), Some("</s>"))?.render(messages, &options())
}

#[test]
fn texts_are_those_of_jinja2() {
    let cases = data("template-cases.jsonl");
    let cases: Vec<Json> = cases
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(cases.len(), 28);
    let options = RenderOptions {
        tools: Some(cases[0]["tools"].clone()),
        ..options()
    };
    let mut different = Vec::new();
    for case in &cases {
        let source = case["template"].as_str().unwrap();
        let template = ChatTemplate::new(source, Some("<s>"), Some("</s>")).unwrap();
        let text = template.render(&cases[0]["messages"], &options);
        if text.as_deref() != Ok(case["text"].as_str().unwrap()) {
            different.push(format!(
                "{source}\n  wanted {}\n  got {text:?}",
                case["text"]
            ));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n\n"));
}

#[test]
fn the_default_model_s_template_gives_the_reference_prompts() {
    let Some(metadata) = model_metadata() else {
        return;
    };
    let source = metadata.require_string("tokenizer.chat_template").unwrap();
    let template = ChatTemplate::new(source, Some("<|im_start|>"), Some("<|im_end|>")).unwrap();
    let prompts: Vec<Json> = data("smollm2-prompts.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let mut checked = 0;
    for (id, words) in [
        ("haiku", "Write a haiku about GPU computing"),
        ("capital", "What is the capital of France?"),
        ("list", "List three fruits."),
        ("emoji", "Reply with a smiling emoji 😊 and one word."),
        ("math", "What is 12 + 30? Answer with the number."),
    ] {
        let expected = prompts.iter().find(|case| case["id"] == id).unwrap();
        let messages = json!([{"role": "user", "content": words}]);
        let text = template.render(&messages, &options()).unwrap();
        assert_eq!(text, expected["prompt"].as_str().unwrap(), "{id}");
        checked += 1;
    }
    assert_eq!(checked, 5);
    // A system message replaces the default one, and the assistant's turn opens only if asked for.
    let messages = json!([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]);
    let omit = RenderOptions {
        generation_prompt: GenerationPrompt::Omit,
        ..options()
    };
    assert_eq!(
        template.render(&messages, &omit).unwrap(),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
    );
}

#[test]
fn keys_stay_in_the_order_of_the_request() {
    let messages: Json = serde_json::from_str(r#"[{"z": 1, "a": {"y": 2, "b": 3}}]"#).unwrap();
    assert_eq!(
        render("{{ messages[0] | tojson }}", &messages).unwrap(),
        r#"{"z": 1, "a": {"y": 2, "b": 3}}"#
    );
}

#[test]
fn generation_blocks_leave_the_text_and_its_white_space() {
    let source = "{% for m in messages %}\n{% generation %}\n{{ m.content }}\n{%- endgeneration %}\n\n{% endfor %}";
    let plain = source
        .replace("endgeneration", "endif")
        .replace("generation", "if true");
    let messages = json!([{"content": "a"}, {"content": "b"}]);
    let text = render(source, &messages).unwrap();
    assert_eq!(text, render(&plain, &messages).unwrap());
    assert_eq!(text, "a\nb\n");
}

#[test]
fn arguments_are_variables_and_cannot_replace_the_worker_s() {
    let template = ChatTemplate::new(
        "{{ enable_thinking }} {{ deep.er[1] }}{{ tools }}",
        None,
        None,
    )
    .unwrap();
    let mut options = options();
    options
        .kwargs
        .insert("enable_thinking".into(), false.into());
    options
        .kwargs
        .insert("deep".into(), json!({"er": [1, "two"]}));
    assert_eq!(
        template.render(&json!([]), &options).unwrap(),
        "False twoNone"
    );
    for name in ["messages", "bos_token", "raise_exception"] {
        let mut options = options.clone();
        options.kwargs.insert(name.into(), Json::Null);
        let error = template.render(&json!([]), &options).unwrap_err();
        assert_eq!(error, TemplateError::ReservedArgument { name });
    }
}

#[test]
fn a_template_refuses_with_its_own_words() {
    let source = "{% macro check(m) %}{% if m.role != 'user' %}\
        {{ raise_exception('Only users, not ' + m.role + '!') }}{% endif %}{% endmacro %}\
        {% for m in messages %}{{ check(m) }}{% endfor %}";
    assert_eq!(render(source, &json!([{"role": "user"}])).unwrap(), "");
    let error = render(source, &json!([{"role": "tool"}])).unwrap_err();
    let message = "Only users, not tool!".to_owned();
    assert_eq!(error, TemplateError::Raised { message });
    assert!(error.to_string().contains("Only users, not tool!"));
    let long = "{{ raise_exception('é' * 1000) }}";
    let Err(TemplateError::Raised { message }) = render(long, &json!([])) else {
        panic!("no exception");
    };
    assert_eq!(message, "é".repeat(256));
}

#[test]
fn errors_do_not_repeat_what_the_messages_say() {
    let messages = json!([{"role": "user", "content": "SECRET"}]);
    for source in [
        "{{ messages[0].content + 1 }}",
        "{{ messages[0].content * messages[0].content }}",
        "{{ messages[0].content.nothing() }}",
        "{{ (messages[0].content | int) + [] }}",
        "{{ messages[0].content() }}",
        "{{ messages[0][messages[0].content]() }}",
        "{{ messages[0].content.x.y }}",
        "{{ {messages[0].content: 1} - 1 }}",
        "{% include messages[0].content %}",
        "{% set a, b = messages[0].content %}",
        "{{ range(messages[0].content) }}",
        "{{ messages[0].content | batch('x') }}",
        "{{ dict(**messages[0].content) }}",
        "{{ strftime_now(messages[0].content ~ '%Q') }}",
        "{{ '%d' | format(messages[0].content) }}",
        "{{ messages | tojson(indent=messages[0].content) }}",
        "{{ messages[0].content.format(a) }}{{ '{x}'.format(messages[0].content) }}",
        "{{ -messages[0].content }}",
        "{{ self[messages[0].content]() }}",
        "{{ messages[0].content | replace(1) }}",
    ] {
        let Err(error) = render(source, &messages) else {
            panic!("{source} renders");
        };
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("SECRET"), "{source}: {shown}");
        assert!(
            matches!(error, TemplateError::Failed { .. }),
            "{source}: {shown}"
        );
    }
}

#[test]
fn templates_that_are_none_are_errors_with_the_line() {
    for source in [
        "{% if %}",
        "\n\n{{ a",
        "{% endfor %}",
        "{{ 'a }}",
        "{% for %}{% endfor %}",
        "{% unknown %}",
    ] {
        let Err(TemplateError::Syntax { detail }) = render(source, &json!([])) else {
            panic!("{source} compiles");
        };
        assert!(detail.contains("line"), "{source}: {detail}");
    }
    let error = render("a\nb {{ 'x' | nothing }}", &json!([]))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("nothing") && error.contains("line 2"),
        "{error}"
    );
    let long = " ".repeat(TEMPLATE_SOURCE_BYTES_MAX + 1);
    let error = render(&long, &json!([])).unwrap_err();
    assert_eq!(
        error,
        TemplateError::TooLong {
            bytes: TEMPLATE_SOURCE_BYTES_MAX + 1,
            max: TEMPLATE_SOURCE_BYTES_MAX
        }
    );
    assert!(render(&long[1..], &json!([])).is_ok());
}

#[test]
fn templates_that_never_end_run_out_of_fuel() {
    for source in [
        "{% for i in range(100000) %}{% for j in range(100000) %}{{ i * j }}{% endfor %}{% endfor %}",
        "{% for i in range(10000) %}{% for j in range(10000) %}{% set a = [i] * 1000 %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{{ 'x' * 100000000000 }}",
        "{{ ('x' * 1000000) | replace('x', 'x' * 1000000) }}",
        "{{ (['x' * 1000000] * 1000) | tojson }}",
    ] {
        let begin = Instant::now();
        let error = render(source, &json!([])).unwrap_err();
        let took = begin.elapsed();
        eprintln!("{took:?} {source}");
        assert!(
            matches!(error, TemplateError::OutOfFuel { .. }),
            "{source}: {error}"
        );
        assert!(took < Duration::from_secs(5), "{source}: {took:?}");
    }
}

#[test]
fn output_recursion_and_depth_have_limits() {
    let source = "{% for i in range(17) %}{{ messages }}{% endfor %}";
    let error = render(source, &json!("x".repeat(1 << 20))).unwrap_err();
    assert!(
        matches!(error, TemplateError::OutputTooLong { .. }),
        "{error}"
    );
    let source = "{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}";
    let error = render(source, &json!([])).unwrap_err();
    assert!(matches!(error, TemplateError::Failed { .. }), "{error}");

    let deep = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
    assert!(render("{{ messages | tojson }}", &deep(100)).is_ok());
    let error = render("{{ messages }}", &deep(200)).unwrap_err();
    assert_eq!(
        error,
        TemplateError::TooDeep {
            what: "messages",
            max: 128
        }
    );
    // A template nests a list deeper than any request can.
    let nest =
        "{% set ns = namespace(l=[]) %}{% for i in range(N) %}{% set ns.l = [ns.l] %}{% endfor %}";
    let error = render(
        &format!("{}{{{{ ns.l | tojson }}}}", nest.replace('N', "1000")),
        &json!([]),
    );
    assert!(
        matches!(error, Err(TemplateError::Failed { .. })),
        "{error:?}"
    );
}

#[test]
fn long_chains_of_joins_do_not_compile_for_long() {
    for part in ["~a", "+'a'", "~'a'"] {
        let chain = |parts| render(&format!("{{{{ 'a'{} }}}}", part.repeat(parts)), &json!([]));
        let begin = Instant::now();
        let text = chain(TEMPLATE_JOINS_MAX);
        let took = begin.elapsed();
        assert!(text.is_ok_and(|text| text.starts_with('a')), "{part}");
        assert!(took < Duration::from_secs(5), "{part}: {took:?}");
        assert_eq!(
            chain(TEMPLATE_JOINS_MAX + 1),
            Err(TemplateError::TooManyJoins {
                found: TEMPLATE_JOINS_MAX + 1,
                max: TEMPLATE_JOINS_MAX
            })
        );
    }
}

#[test]
fn the_stack_holds_whatever_source_and_fuel_allow() {
    let fill = |before: &str, part: &str, after: &str| {
        let parts = (TEMPLATE_SOURCE_BYTES_MAX - before.len() - after.len()) / part.len();
        format!("{before}{}{after}", part.repeat(parts))
    };
    let nest = "{% set ns = namespace(l=[], m=[]) %}{% for i in range(N) %}{% set ns.l = [ns.l] %}{% set ns.m = {'a': ns.m} %}{% endfor %}";
    let sources = [
        fill("{{ ", "-", "1 }}"),
        fill("{{ ", "not ", "1 }}"),
        fill("{{ 1", "|e", " }}"),
        fill("{{ a", "()", " }}"),
        fill("{{ a", ".a", " }}"),
        fill("{{ 1", "**1", " }}"),
        fill("{% if 0 %}", "{%elif 0%}", "{% endif %}"),
        format!("{}{{{{ ns.l }}}}", nest.replace('N', "25000")),
        format!("{}{{{{ ns.l == ns.m }}}}", nest.replace('N', "30000")),
        nest.replace('N', "100000"),
    ];
    // a thread of a test has a smaller stack than the worker
    let render_all = move || {
        for source in &sources {
            let _ = render(source, &json!([])); // an end is all that is wanted: it could be any
        }
    };
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
    thread.spawn(render_all).unwrap().join().unwrap();
}

#[test]
fn nothing_outside_of_the_template_can_be_reached() {
    for source in [
        "{% include '/etc/passwd' %}",
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
        "{{ open('/etc/passwd') }}",
        "{{ debug() }}",
        "{{ messages | pprint }}",
    ] {
        assert!(render(source, &json!([])).is_err(), "{source}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn decoded_parts_joined_are_the_lossy_text(
        parts in prop::collection::vec(
            prop_oneof![
                any::<Vec<u8>>(),
                any::<String>().prop_map(String::into_bytes),
                prop::collection::vec(prop::sample::select(vec![
                    0x41, 0x80, 0x9f, 0xbf, 0xc2, 0xe0, 0xa0, 0xed, 0xf0, 0x90, 0xf4, 0x8f, 0xff,
                ]), 0..6),
            ],
            0..8,
        ),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let bytes = parts.concat();
        let mut offsets: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        offsets.push(bytes.len());
        offsets.sort_unstable();
        let mut decoder = TextDecoder::new();
        let mut text = String::new();
        let mut begin = 0;
        for end in offsets {
            text.push_str(&decoder.push(&bytes[begin..end]));
            begin = end;
        }
        text.push_str(&decoder.finish());
        prop_assert_eq!(&text, &String::from_utf8_lossy(&bytes));
        prop_assert!(!decoder.is_pending());
    }

    #[test]
    fn no_template_panics(source in "(\\{\\{|\\}\\}|\\{%|%\\}|[a-z ]|'|for i in |if |endif|endfor|set x=|[0-9|.()+*-]|\\PC){0,24}") {
        let _ = render(&source, &json!([{"role": "user", "content": "x"}]));
    }
}
