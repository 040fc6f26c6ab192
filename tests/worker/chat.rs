//! Conversations: what of a request's messages, tools and template arrives in the prompt, and what is refused.

use serde_json::{Value, json};

use crate::support::{Rig, Setup, bytes};

/// Shows messages and tools as a template sees them.
const SHOW: &str =
    "{% for m in messages %}{{ m | tojson }}\n{% endfor %}{{ tools | tojson }} {{ tool_choice }}";

/// The answer to an `apply_template`.
fn applied(setup: Setup, params: Value) -> Value {
    let mut rig = Rig::ready(setup);
    rig.say(json!({"id": 1, "method": "apply_template", "params": params}));
    rig.finish();
    rig.response(1).clone()
}

fn shown(params: Value) -> String {
    let setup = Setup {
        template: Some(SHOW),
        ..Setup::default()
    };
    let answer = applied(setup, params);
    let prompt = answer["result"]["prompt"].as_str();
    prompt.unwrap_or_else(|| panic!("{answer}")).to_owned()
}

fn call(arguments: Value) -> Value {
    json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}})
}

#[test]
fn a_template_sees_what_a_message_carries_and_nothing_else() {
    let text = shown(json!({
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
            {"role": "assistant", "content": null, "reasoning_content": "r", "tool_calls": [call(json!({"z": 1, "a": 2}))]},
            {"role": "tool", "content": "4", "name": "f", "tool_call_id": "c1"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "a": 1}}],
        "tool_choice": "required",
    }));
    let wanted = [
        r#"{"role": "user", "content": "a\nb", "name": "Ann"}"#,
        r#"{"role": "assistant", "content": null, "reasoning_content": "r", "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"z": 1, "a": 2}}}]}"#,
        r#"{"role": "tool", "content": "4", "name": "f", "tool_call_id": "c1"}"#,
        r#"[{"type": "function", "function": {"name": "f", "a": 1}}] required"#,
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), wanted);
    // Without tools there are none, and no choice.
    let text = shown(json!({"messages": [{"role": "user", "content": "a"}]}));
    assert!(text.ends_with("\nnull "), "{text}");
}

#[test]
fn arguments_that_are_the_text_of_an_object_are_seen_as_the_object() {
    for (arguments, seen) in [
        (
            json!(r#"{"z": 1, "a": [2]}"#),
            r#""arguments": {"z": 1, "a": [2]}"#,
        ),
        (json!("{broken"), r#""arguments": "{broken""#),
        (json!("[1]"), r#""arguments": "[1]""#),
        (json!({}), r#""arguments": {}"#),
    ] {
        let message = json!({"role": "assistant", "content": "", "tool_calls": [call(arguments)]});
        let text = shown(json!({"messages": [message]}));
        assert!(text.contains(seen), "{text}");
    }
}

#[test]
fn fields_of_another_role_are_refused() {
    let calls = json!([call(json!({}))]);
    for (message, field) in [
        (json!({"role": "user", "content": null}), "content"),
        (json!({"role": "assistant", "content": null}), "content"),
        (
            json!({"role": "user", "content": "", "tool_calls": calls}),
            "tool_calls",
        ),
        (
            json!({"role": "user", "content": "", "reasoning_content": "r"}),
            "reasoning_content",
        ),
        (
            json!({"role": "assistant", "content": "", "tool_call_id": "c1"}),
            "tool_call_id",
        ),
    ] {
        let user = json!({"role": "user", "content": "a"});
        let answer = applied(Setup::default(), json!({"messages": [user, message]}));
        let data = &answer["error"]["data"];
        assert_eq!(data["code"], "INVALID_PARAMS", "{answer}");
        assert_eq!(data["param"], format!("messages[1].{field}"), "{answer}");
    }
}

#[test]
fn a_request_s_own_template_goes_before_the_model_s() {
    let own = "<{{ messages[0].content }}>{{ eos_token }}";
    let messages = json!([{"role": "user", "content": "hi"}]);
    for template in [Setup::default().template, None] {
        let setup = || Setup {
            template,
            ..Setup::default()
        };
        let answer = applied(setup(), json!({"messages": messages, "chat_template": own}));
        assert_eq!(answer["result"]["prompt"], "<hi><|end|>");
        let mut rig = Rig::ready(setup());
        let source = "<{{ messages[0].content }}>";
        rig.generate(
            1,
            json!({"messages": messages, "chat_template": source, "max_tokens": 1}),
        );
        rig.finish();
        let script = rig.script.borrow();
        let seen: Vec<u32> = script.forwards.iter().flat_map(|f| f.1.clone()).collect();
        assert_eq!(seen, bytes("<hi>"));
    }
}

#[test]
fn a_broken_template_of_a_request_is_refused_with_its_line_and_costs_that_request_alone() {
    let mut rig = Rig::ready(Setup::default());
    let messages = json!([{"role": "user", "content": "secret"}]);
    let endless =
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
    for (id, template, said) in [
        (1, "a\n{% if %}", "line 2"),
        (2, "\n\n{{ messages | nothing }}", "line 3"),
        (3, "{{ raise_exception('No tools here') }}", "No tools here"),
        (4, endless, "TEMPLATE_FUEL_MAX"),
    ] {
        rig.say(json!({"id": id, "method": "apply_template", "params": {"messages": messages, "chat_template": template}}));
        rig.finish();
        let error = &rig.response(id)["error"];
        assert_eq!(error["data"]["code"], "TEMPLATE_ERROR", "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(said), "{message}");
    }
    rig.say(json!({"id": 5, "method": "apply_template", "params": {"messages": messages}}));
    rig.finish();
    assert_eq!(rig.response(5)["result"]["prompt"], "[user]secret");
    assert!(!rig.log.contains("secret"));
}
