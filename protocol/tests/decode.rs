//! What the codec makes of lines, right and wrong: every class of fault, what is named, and what is never said.

use serde_json::{Map, Value, json};
use worker_orcd_protocol::codec::{Reject, decode_line, encode_line};
use worker_orcd_protocol::*;

fn accepted(line: &str) -> Call {
    decode_line(line.as_bytes())
        .unwrap_or_else(|reject| panic!("{line} is refused: {}", reject.error))
}

fn refused(line: impl AsRef<[u8]>) -> Reject {
    let line = line.as_ref();
    match decode_line(line) {
        Ok(call) => panic!("{} is taken: {call:?}", String::from_utf8_lossy(line)),
        Err(reject) => {
            assert_eq!(reject.error.code, reject.error.data.code.number());
            assert_eq!(
                reject.error.data.retriable,
                reject.error.data.code.retriable()
            );
            reject
        }
    }
}

/// The faults as (field, constraint).
fn faults(reject: &Reject) -> Vec<(&str, &str)> {
    reject
        .error
        .data
        .errors
        .iter()
        .map(|fault| (fault.field.as_str(), fault.constraint.as_str()))
        .collect()
}

fn generate(params: Value) -> String {
    json!({"id": 1, "method": "generate", "params": params}).to_string()
}

/// Asserts that `params` of `generate` are refused for these reasons, in this order.
fn generate_faults(params: Value, wanted: &[(&str, &str)]) {
    let reject = refused(generate(params));
    assert_eq!(reject.error.data.code, ErrorCode::InvalidParams);
    assert_eq!(reject.id, Some(Id::Number(1)));
    assert_eq!(faults(&reject), wanted);
    assert_eq!(
        reject.error.data.param.as_deref(),
        wanted.first().map(|(field, _)| *field)
    );
}

/// Asserts that a line is refused with -32600, id null, and a fault in this field with this constraint.
fn envelope_fault(line: &str, field: &str, constraint: &str) {
    let reject = refused(line);
    assert_eq!(reject.error.data.code, ErrorCode::InvalidRequest, "{line}");
    assert!(
        faults(&reject).contains(&(field, constraint)),
        "{line}: {:?}",
        faults(&reject)
    );
}

#[test]
fn states_are_understood() {
    let line = |method: &str, params: Value| {
        accepted(
            &json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string(),
        )
    };
    let save = SaveStateParams {
        path: "a".into(),
        request_id: Some(Id::Number(1)),
        token_ids: None,
    };
    assert_eq!(
        line("save_state", json!({"path": "a", "request_id": 1})).request,
        Request::SaveState(save)
    );
    let load = LoadStateParams { path: "a".into() };
    assert_eq!(
        line("load_state", json!({"path": "a"})).request,
        Request::LoadState(load)
    );
}

#[test]
fn every_method_is_understood() {
    let id = Some(Id::Number(1));
    let line = |method: &str, params: Value| {
        accepted(
            &json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string(),
        )
    };
    let call = line(
        "initialize",
        json!({"protocol_version": 1, "client_info": {"name": "me", "version": "2"}}),
    );
    let client_info = Some(ClientInfo {
        name: "me".into(),
        version: Some("2".into()),
    });
    assert_eq!(
        call,
        Call {
            id: id.clone(),
            request: Request::Initialize(InitializeParams {
                protocol_version: Some(1),
                client_info
            })
        }
    );
    let Request::Generate(params) = line("generate", json!({"prompt": "a"})).request else {
        panic!()
    };
    assert_eq!(
        *params,
        GenerateParams {
            prompt: Some("a".into()),
            ..Default::default()
        }
    );
    assert_eq!(line("health", json!({})).request, Request::Health);
    let tokenize = TokenizeParams {
        content: "a".into(),
        add_special: true,
        parse_special: false,
        with_pieces: false,
    };
    assert_eq!(
        line("tokenize", json!({"content": "a", "parse_special": false})).request,
        Request::Tokenize(tokenize)
    );
    let detokenize = DetokenizeParams {
        token_ids: vec![1, 2],
    };
    assert_eq!(
        line("detokenize", json!({"token_ids": [1, 2]})).request,
        Request::Detokenize(detokenize)
    );
    let Request::ApplyTemplate(params) = line(
        "apply_template",
        json!({"messages": [{"role": "tool", "content": "4"}]}),
    )
    .request
    else {
        panic!()
    };
    assert_eq!(params.messages, [Message::new(Role::Tool, "4")]);
    let metrics = |format| Request::Metrics(MetricsParams { format });
    assert_eq!(
        line("metrics", json!({})).request,
        metrics(MetricsFormat::Json)
    );
    assert_eq!(
        line("metrics", json!({"format": "prometheus"})).request,
        metrics(MetricsFormat::Prometheus)
    );
    let shutdown = |mode| Request::Shutdown(ShutdownParams { mode });
    assert_eq!(
        line("shutdown", json!({})).request,
        shutdown(ShutdownMode::Drain)
    );
    assert_eq!(
        line("shutdown", json!({"mode": "now"})).request,
        shutdown(ShutdownMode::Now)
    );
}

#[test]
fn cancel_and_its_aliases_are_one_request_with_and_without_id() {
    let wanted = |id| Call {
        id,
        request: Request::Cancel(CancelParams {
            request_id: Id::String("x".into()),
        }),
    };
    for (method, field) in [
        ("cancel", "request_id"),
        ("$/cancelRequest", "id"),
        ("notifications/cancelled", "requestId"),
    ] {
        let params = json!({field: "x"});
        assert_eq!(
            accepted(&json!({"method": method, "params": params}).to_string()),
            wanted(None)
        );
        let with_id = json!({"id": "c", "method": method, "params": params}).to_string();
        assert_eq!(accepted(&with_id), wanted(Some(Id::String("c".into()))));
        let reject = refused(json!({"method": method, "params": {}}).to_string());
        assert_eq!(faults(&reject), [(field, "required")]);
    }
}

#[test]
fn every_field_of_generate_arrives() {
    let all = json!({
        "messages": [
            {"role": "system", "content": "a"},
            {"role": "assistant", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": ""}], "reasoning_content": "r"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"type": "function", "function": {"name": "g", "arguments": {"x": [1, null]}}},
            ]},
            {"role": "tool", "content": "d", "name": "f", "tool_call_id": "c1"},
        ],
        "tools": [{"type": "function", "function": {"z": 1, "a": [2.5, null]}}], "tool_choice": {"name": "z"}, "chat_template": "{{ 1 }}",
        "add_generation_prompt": false, "chat_template_kwargs": {"deep": {"er": [1, 2.5, null, {"x": -1}]}},
        "stream": false, "max_tokens": 7, "temperature": 0.5, "top_k": 40, "top_p": 0.9, "min_p": 0.05,
        "min_tokens": 3, "top_n_sigma": 1.5, "typical_p": 0.75, "xtc": {"probability": 0.5, "threshold": 0.25},
        "repetition_penalty": 1.1, "presence_penalty": -2.0, "frequency_penalty": 2.0, "penalty_last_n": 64,
        "dry": {"multiplier": 0.5, "base": 2.0, "allowed_length": 3, "last_n": 0, "sequence_breakers": ["x"]},
        "logit_bias": {"17": -100.0, " a": false}, "stop_token_ids": [0, 5], "prompt_logprobs": 0, "return_token_ids": true,
        "seed": u64::MAX, "stop": ["\n", "é"], "ignore_eos": true, "logprobs": 20,
        "timeout_ms": 1000, "return_progress": true, "cache_prompt": false, "speculation": 32,
    });
    let Request::Generate(params) = accepted(&generate(all.clone())).request else {
        panic!()
    };
    assert_eq!(params.temperature, 0.5);
    assert_eq!(params.top_p, 0.9);
    assert_eq!(params.seed, Some(u64::MAX));
    assert_eq!(params.stop, ["\n", "é"]);
    assert_eq!(
        Value::Object(params.chat_template_kwargs.clone()),
        all["chat_template_kwargs"]
    );
    // Seen from the wire nothing is lost; 32-bit numbers have to be compared as text.
    let again: Value = serde_json::from_str(&serde_json::to_string(&params).unwrap()).unwrap();
    assert_eq!(again, all);
}

#[test]
fn defaults_told_by_the_schema_are_those_that_serde_fills_in() {
    for (method, least) in [
        (Method::Generate, json!({"prompt": "a"})),
        (
            Method::Generate,
            json!({"messages": [{"role": "user", "content": "a"}]}),
        ),
        (Method::Tokenize, json!({"content": "a"})),
        (
            Method::ApplyTemplate,
            json!({"messages": [{"role": "user", "content": "a"}]}),
        ),
        (Method::Metrics, json!({})),
        (Method::Shutdown, json!({})),
    ] {
        let schema = schema::params(method);
        let name = schema["$ref"]
            .as_str()
            .unwrap()
            .trim_start_matches('#')
            .to_owned();
        let definition = schema.pointer(&name).unwrap();
        let companions = definition["dependentRequired"]
            .as_object()
            .cloned()
            .unwrap_or_default();
        let mut full = least.clone();
        for (field, schema) in definition["properties"].as_object().unwrap() {
            let fits = companions
                .get(field)
                .is_none_or(|others| least.get(others[0].as_str().unwrap()).is_some());
            if let (Some(default), true) = (schema.get("default"), fits) {
                full[field] = default.clone();
            }
        }
        let line = |params| json!({"id": 1, "method": method.name(), "params": params}).to_string();
        assert_eq!(
            accepted(&line(full)),
            accepted(&line(least)),
            "{}",
            method.name()
        );
    }
}

#[test]
fn take_input_gives_the_one_that_was_sent() {
    let input = |params| {
        let Request::Generate(mut params) = accepted(&generate(params)).request else {
            panic!()
        };
        params.take_input()
    };
    assert_eq!(
        input(json!({"prompt": "a", "add_special": false})),
        Some(GenerateInput::Prompt {
            text: "a".into(),
            add_special: false,
            parse_special: true
        })
    );
    assert_eq!(
        input(json!({"prompt_token_ids": [3]})),
        Some(GenerateInput::TokenIds(vec![3]))
    );
    let Some(GenerateInput::Messages(conversation)) = input(
        json!({"messages": [{"role": "user", "content": "a"}], "tools": [{}], "chat_template": "t"}),
    ) else {
        panic!()
    };
    assert_eq!(conversation.messages, [Message::new(Role::User, "a")]);
    assert!(conversation.add_generation_prompt);
    assert_eq!(conversation.tools, Some(vec![Map::new()]));
    assert_eq!(conversation.chat_template.as_deref(), Some("t"));
    assert_eq!(GenerateParams::default().take_input(), None);
}

#[test]
fn all_faults_are_told_at_once() {
    generate_faults(
        json!({
            "temperature": 2.5, "top_p": 0, "stop": ["", 1, "x".repeat(257)], "foo": 1, "max_tokens": 0,
            "messages": [{"role": "robot", "content": 1}, {"role": "user"}],
        }),
        &[
            ("temperature", "maximum 2"),
            ("top_p", "above 0"),
            ("stop[0]", "minLength 1"),
            ("stop[1]", "type string"),
            ("stop[2]", "bytes 256"),
            ("foo", "unknown"),
            ("max_tokens", "minimum 1"),
            (
                "messages[0].role",
                "one of \"system\", \"user\", \"assistant\", \"tool\"",
            ),
            ("messages[0].content", "type string or array or null"),
            ("messages[1].content", "required"),
        ],
    );
}

#[test]
fn the_message_says_the_first_fault_and_how_many_there_are() {
    let reject = refused(generate(
        json!({"prompt": "a", "temperature": 3, "top_k": -1}),
    ));
    assert_eq!(
        reject.error.message,
        "temperature is 3; at most 2 is allowed (and 1 more fault, see errors)"
    );
    let stop: Vec<Value> = (0..100).map(|_| json!("")).collect();
    let reject = refused(generate(json!({"prompt": "a", "stop": stop})));
    assert_eq!(reject.error.data.errors.len(), limits::FAULTS_MAX);
    assert_eq!(
        reject.error.message,
        "stop has 100 entries; at most 16 are allowed (and 100 more faults; the first 32 are listed in errors)"
    );
}

#[test]
fn exactly_one_input_is_wanted() {
    let constraint = "exactly one of prompt, prompt_token_ids, messages";
    generate_faults(json!({}), &[("prompt", constraint)]);
    generate_faults(
        json!({"prompt_token_ids": [1], "prompt": "a"}),
        &[("prompt", constraint)],
    );
    generate_faults(
        json!({"prompt_token_ids": [1], "messages": []}),
        &[("messages", "minItems 1"), ("prompt_token_ids", constraint)],
    );
    let reject = refused(r#"{"id":1,"method":"generate"}"#);
    assert_eq!(faults(&reject), [("prompt", constraint)]);
    assert_eq!(
        reject.error.message,
        format!("{constraint} has to be given; none is")
    );
}

#[test]
fn fields_that_belong_to_another_input_are_refused_and_not_ignored() {
    generate_faults(
        json!({"prompt_token_ids": [1], "add_special": true, "parse_special": false}),
        &[
            ("add_special", "only with prompt"),
            ("parse_special", "only with prompt"),
        ],
    );
    generate_faults(
        json!({"prompt": "a", "tools": [{}], "chat_template": ""}),
        &[
            ("tools", "only with messages"),
            ("chat_template", "only with messages"),
        ],
    );
    generate_faults(
        json!({"messages": [{"role": "user", "content": "a"}], "tool_choice": "auto"}),
        &[("tool_choice", "only with tools")],
    );
    generate_faults(
        json!({"prompt": "a", "add_generation_prompt": true, "chat_template_kwargs": {}}),
        &[
            ("add_generation_prompt", "only with messages"),
            ("chat_template_kwargs", "only with messages"),
        ],
    );
}

#[test]
fn a_field_in_another_spelling_is_unknown() {
    generate_faults(
        json!({"prompt": "a", "Prompt": 1}),
        &[("Prompt", "unknown")],
    );
}

#[test]
fn forms_of_the_output_are_checked_field_by_field() {
    let format = |value: Value| json!({"prompt": "a", "response_format": value});
    let grammar = |value: Value| json!({"prompt": "a", "grammar": value});
    let words = "one of \"text\", \"json_object\", \"json_schema\"";
    generate_faults(
        format(json!({"type": "xml"})),
        &[("response_format.type", words)],
    );
    generate_faults(format(json!({})), &[("response_format.type", "required")]);
    generate_faults(
        format(json!({"type": "json_schema", "json_schema": {"name": "n"}})),
        &[("response_format.json_schema.schema", "required")],
    );
    generate_faults(
        format(json!({"type": "json_schema", "json_schema": {"schema": true}})),
        &[("response_format.json_schema.schema", "type object")],
    );
    generate_faults(
        grammar(json!({"type": "regex", "value": ""})),
        &[("grammar.value", "minLength 1")],
    );
    generate_faults(
        grammar(json!({"type": "choice", "value": ["a", ""]})),
        &[("grammar.value[1]", "minLength 1")],
    );
    generate_faults(
        grammar(json!({"type": "choice", "value": []})),
        &[("grammar.value", "minItems 1")],
    );
    generate_faults(
        grammar(json!({"type": "lark", "value": "a".repeat(65_537)})),
        &[("grammar.value", "bytes 65536")],
    );
    let text = json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": {"b": 1, "a": [2.5]}}});
    let line = json!({"id": 1, "method": "generate", "params": format(text.clone())}).to_string();
    let Ok(Call {
        request: Request::Generate(params),
        ..
    }) = decode_line(line.as_bytes())
    else {
        panic!("{line}");
    };
    assert_eq!(serde_json::to_value(params.response_format).unwrap(), text);
}

#[test]
fn integers_are_integers() {
    for (text, constraint) in [
        ("1.0", "type integer"),
        ("1.5", "type integer"),
        ("1e3", "type integer"),
        ("-0", "type integer"),
        ("18446744073709551616", "type integer"),
        ("-9223372036854775809", "type integer"),
        ("-1", "minimum 0"),
        ("\"1\"", "type integer"),
        ("true", "type integer"),
        ("null", "type integer"),
        ("[1]", "type integer"),
        ("{}", "type integer"),
    ] {
        let reject = refused(format!(
            r#"{{"id":1,"method":"generate","params":{{"prompt":"a","seed":{text}}}}}"#
        ));
        assert_eq!(faults(&reject), [("seed", constraint)], "{text}");
    }
    generate_faults(
        json!({"prompt": "a", "top_k": 4294967296u64}),
        &[("top_k", "maximum 4294967295")],
    );
    generate_faults(
        json!({"prompt": "a", "timeout_ms": 604800001}),
        &[("timeout_ms", "maximum 604800000")],
    );
    generate_faults(
        json!({"prompt": "a", "max_tokens": 1048577}),
        &[("max_tokens", "maximum 1048576")],
    );
    generate_faults(
        json!({"prompt_token_ids": [0, -1, 4294967296u64]}),
        &[
            ("prompt_token_ids[1]", "minimum 0"),
            ("prompt_token_ids[2]", "maximum 4294967295"),
        ],
    );
}

/// A field of `generate` takes the good values and finds one fault with each of the bad ones.
fn takes_and_refuses(field: &str, good: &[&str], bad: &[&str]) {
    let line = |value: &str| {
        format!(r#"{{"id":1,"method":"generate","params":{{"prompt":"a","{field}":{value}}}}}"#)
    };
    for value in good {
        accepted(&line(value));
    }
    for value in bad {
        assert_eq!(faults(&refused(line(value))).len(), 1, "{field} {value}");
    }
}

#[test]
fn fields_of_objects_stay_in_their_ranges() {
    for (field, good, bad) in [
        (
            "xtc",
            vec![r#"{"probability":0}"#, r#"{"probability":1,"threshold":1}"#],
            vec!["{}", r#"{"probability":1.1}"#, r#"{"probability":1,"p":1}"#],
        ),
        (
            "dry",
            vec![
                r#"{"multiplier":0}"#,
                r#"{"multiplier":1,"base":1,"allowed_length":1,"last_n":-1,"sequence_breakers":[]}"#,
            ],
            vec![
                "{}",
                r#"{"multiplier":-1}"#,
                r#"{"multiplier":1,"base":0.9}"#,
                r#"{"multiplier":1,"allowed_length":0}"#,
                r#"{"multiplier":1,"last_n":-2}"#,
                r#"{"multiplier":1,"sequence_breakers":[""]}"#,
            ],
        ),
        (
            "logit_bias",
            vec!["{}", r#"{"5":100,"a":-100.0,"é":false}"#],
            vec![
                "[]",
                r#"{"5":101}"#,
                r#"{"5":-100.5}"#,
                r#"{"5":true}"#,
                r#"{"5":null}"#,
            ],
        ),
    ] {
        takes_and_refuses(field, &good, &bad);
    }
}

#[test]
fn numbers_stay_in_their_ranges_and_their_ends_are_in() {
    for (field, good, bad) in [
        (
            "temperature",
            vec!["0", "2", "2.0", "1e-30", "-0.0"],
            vec!["-0.1", "2.1", "1e38"],
        ),
        (
            "top_p",
            vec!["1", "1.0", "1e-9"],
            vec!["0", "0.0", "1e-60", "-1", "1.001"],
        ),
        ("min_p", vec!["0", "1", "0.5"], vec!["-1e-9", "1.1"]),
        (
            "repetition_penalty",
            vec!["2", "0.1"],
            vec!["0", "2.01", "-1"],
        ),
        ("min_tokens", vec!["0", "1048576"], vec!["-1", "1048577"]),
        ("top_n_sigma", vec!["1e-9", "100"], vec!["0", "-1", "100.1"]),
        ("typical_p", vec!["1", "1e-9"], vec!["0", "1.001"]),
        (
            "presence_penalty",
            vec!["-2", "2.0"],
            vec!["-2.001", "2.001"],
        ),
        ("frequency_penalty", vec!["-2.0", "2"], vec!["-3", "3"]),
        (
            "penalty_last_n",
            vec!["-1", "0", "1048576"],
            vec!["-2", "1048577", "1.5"],
        ),
        (
            "stop_token_ids",
            vec!["[]", "[0]"],
            vec!["[-1]", r#"["a"]"#],
        ),
        ("prompt_logprobs", vec!["0", "20"], vec!["21", "true"]),
        ("return_token_ids", vec!["true", "false"], vec!["1"]),
        ("logprobs", vec!["0", "20"], vec!["21", "-1"]),
        ("max_tokens", vec!["1", "1048576"], vec!["0"]),
        ("timeout_ms", vec!["1"], vec!["0"]),
    ] {
        takes_and_refuses(field, &good, &bad);
    }
}

#[test]
fn fields_of_sampling_are_named_by_their_paths_and_counted() {
    let key = "k".repeat(257);
    generate_faults(
        json!({
            "prompt": "a", "dry": {"multiplier": 1, "base": 11, "sequence_breakers": ["a", "x".repeat(65)]}, "xtc": {"threshold": 2},
            "logit_bias": {"7": true, " b": 200, key.clone(): 1},
        }),
        &[
            ("dry.base", "maximum 10"),
            ("dry.sequence_breakers[1]", "bytes 64"),
            ("xtc.threshold", "maximum 1"),
            ("xtc.probability", "required"),
            ("logit_bias.7", "const false"),
            ("logit_bias[\" b\"]", "maximum 100"),
            (&format!("logit_bias[\"{}…\"]", &key[..64]), "bytes 256"),
        ],
    );
    let many: serde_json::Map<_, _> = (0..1025).map(|id| (id.to_string(), json!(1))).collect();
    generate_faults(
        json!({"prompt": "a", "logit_bias": many, "stop_token_ids": vec![0; 65]}),
        &[
            ("logit_bias", "maxProperties 1024"),
            ("stop_token_ids", "maxItems 64"),
        ],
    );
}

#[test]
fn what_is_no_number_is_no_json() {
    for value in [
        "NaN",
        "Infinity",
        "-Infinity",
        "nan",
        "1e999",
        "-1e999",
        "0x1",
        "1.",
        ".5",
        "+1",
        "01",
        "1_0",
    ] {
        let reject = refused(format!(
            r#"{{"id":1,"method":"generate","params":{{"prompt":"a","temperature":{value}}}}}"#
        ));
        assert_eq!(reject.error.data.code, ErrorCode::ParseError, "{value}");
        assert_eq!(reject.id, None);
    }
    generate_faults(
        json!({"prompt": "a", "temperature": "NaN"}),
        &[("temperature", "type number")],
    );
}

#[test]
fn what_is_no_json_is_a_parse_error_with_a_position_and_no_content() {
    for line in [
        "tru",
        "{",
        "}",
        "\u{feff}{}",
        "{\"id\":1,}",
        "{'id':1}",
        "{\"id\":1} x",
        "{}{}",
        "\"\u{1}\"",
        "\0",
        "{\"a\":\"\0\"}",
        r#"{"id":1,"method":"health","x":"\ud800"}"#,
        "nothing of this secret",
        "\"unfinished secret",
    ] {
        let reject = refused(line);
        assert_eq!((reject.error.code, reject.id), (-32700, None), "{line:?}");
        assert!(
            reject.error.message.contains(" at byte "),
            "{}",
            reject.error.message
        );
        assert!(
            !reject.error.message.contains("secret"),
            "{}",
            reject.error.message
        );
    }
}

#[test]
fn invalid_utf8_is_named_by_position() {
    let mut line = br#"{"id":1,"method":"tokenize","params":{"content":""#.to_vec();
    let position = line.len();
    line.extend_from_slice(b"\xff\"}}");
    let reject = refused(&line);
    assert_eq!(reject.error.code, -32700);
    assert!(
        reject.error.message.contains(&format!("byte {position}")),
        "{}",
        reject.error.message
    );
}

#[test]
fn nul_characters_in_a_string_are_characters() {
    let Request::Tokenize(params) =
        accepted(r#"{"id":1,"method":"tokenize","params":{"content":"a\u0000b"}}"#).request
    else {
        panic!()
    };
    assert_eq!(params.content, "a\0b");
}

#[test]
fn ids_are_integers_or_strings() {
    for (text, id) in [
        ("0", Id::Number(0)),
        ("-9223372036854775808", Id::Number(i64::MIN)),
        ("9223372036854775807", Id::Number(i64::MAX)),
        ("\"\"", Id::String(String::new())),
        ("\"1\"", Id::String("1".into())),
        (r#""\u00e9""#, Id::String("é".into())),
    ] {
        assert_eq!(
            accepted(&format!(r#"{{"id":{text},"method":"health"}}"#)).id,
            Some(id)
        );
    }
    let longest = "x".repeat(limits::ID_BYTES_MAX);
    assert_eq!(
        accepted(&json!({"id": longest, "method": "health"}).to_string()).id,
        Some(Id::String(longest.clone()))
    );
    for (text, constraint) in [
        ("null", "type integer or string"),
        ("true", "type integer or string"),
        ("1.0", "type integer or string"),
        ("1e2", "type integer or string"),
        ("[1]", "type integer or string"),
        ("{}", "type integer or string"),
        ("-9223372036854775809", "type integer or string"),
        ("9223372036854775808", "maximum 9223372036854775807"),
        ("18446744073709551616", "type integer or string"),
    ] {
        let line = format!(r#"{{"id":{text},"method":"health"}}"#);
        let reject = refused(&line);
        assert_eq!(
            (reject.id.clone(), reject.error.code),
            (None, -32600),
            "{text}"
        );
        assert_eq!(faults(&reject), [("id", constraint)], "{text}");
    }
    let line = json!({"id": format!("{longest}x"), "method": "health"}).to_string();
    let reject = refused(line);
    assert_eq!(
        (reject.id.clone(), faults(&reject)),
        (None, vec![("id", "bytes 256")])
    );
    // The same kinds inside params.
    let reject = refused(r#"{"id":1,"method":"cancel","params":{"request_id":null}}"#);
    assert_eq!(faults(&reject), [("request_id", "type integer or string")]);
    let reject = refused(
        json!({"id": 1, "method": "cancel", "params": {"request_id": format!("{longest}x")}})
            .to_string(),
    );
    assert_eq!(faults(&reject), [("request_id", "bytes 256")]);
}

#[test]
fn a_request_that_wants_an_answer_needs_an_id() {
    for method in Method::ALL
        .into_iter()
        .filter(|method| method.id_rule() == IdRule::Needed)
    {
        let line = json!({"method": method.name(), "params": {}}).to_string();
        let reject = refused(&line);
        assert_eq!(
            (reject.id.clone(), reject.error.code),
            (None, -32600),
            "{line}"
        );
        assert!(faults(&reject).contains(&("id", "required")), "{line}");
    }
}

#[test]
fn the_frame_is_strict() {
    envelope_fault(
        r#"{"jsonrpc":"1.0","id":1,"method":"health"}"#,
        "jsonrpc",
        "const \"2.0\"",
    );
    envelope_fault(
        r#"{"jsonrpc":2.0,"id":1,"method":"health"}"#,
        "jsonrpc",
        "const \"2.0\"",
    );
    envelope_fault(
        r#"{"jsonrpc":null,"id":1,"method":"health"}"#,
        "jsonrpc",
        "const \"2.0\"",
    );
    envelope_fault(r#"{"id":1}"#, "method", "required");
    envelope_fault(r#"{"id":1,"method":7}"#, "method", "type string");
    envelope_fault(
        r#"{"id":1,"method":"health","params":null}"#,
        "params",
        "type object",
    );
    envelope_fault(
        r#"{"id":1,"method":"health","params":[]}"#,
        "params",
        "type object",
    );
    envelope_fault(
        r#"{"id":1,"method":"health","params":[{}]}"#,
        "params",
        "type object",
    );
    envelope_fault(
        r#"{"id":1,"method":"health","prompt":"a"}"#,
        "prompt",
        "unknown",
    );
    envelope_fault(
        r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
        "result",
        "unknown",
    );
    for line in [
        "[]",
        "[1]",
        r#"[{"id":1,"method":"health"}]"#,
        "1",
        "-1",
        "\"health\"",
        "null",
        "true",
        "1.5",
    ] {
        let reject = refused(line);
        assert_eq!(
            (reject.id.clone(), reject.error.code),
            (None, -32600),
            "{line}"
        );
        assert_eq!(faults(&reject), [("", "type object")]);
        assert_eq!(
            reject.error.message.contains("batch"),
            line.starts_with('[')
        );
    }
}

#[test]
fn faults_of_the_frame_and_the_params_come_together_and_the_id_comes_back() {
    let reject =
        refused(r#"{"jsonrpc":"1.0","id":"q","method":"tokenize","params":{"contents":"a"}}"#);
    assert_eq!(reject.id, Some(Id::String("q".into())));
    assert_eq!(reject.error.code, -32600);
    assert_eq!(
        faults(&reject),
        [
            ("jsonrpc", "const \"2.0\""),
            ("contents", "unknown"),
            ("content", "required")
        ]
    );
}

#[test]
fn methods_without_params_take_none() {
    for line in [
        r#"{"id":1,"method":"health"}"#,
        r#"{"id":1,"method":"health","params":{}}"#,
    ] {
        assert_eq!(accepted(line).request, Request::Health);
    }
    let reject = refused(r#"{"id":1,"method":"health","params":{"verbose":true}}"#);
    assert_eq!(
        (reject.error.code, faults(&reject)),
        (-32602, vec![("verbose", "unknown")])
    );
}

#[test]
fn an_unknown_method_is_named_and_the_known_ones_are_listed() {
    let reject = refused(r#"{"id":5,"method":"Generate","params":{"a":1}}"#);
    assert_eq!(
        (reject.id, reject.error.code),
        (Some(Id::Number(5)), -32601)
    );
    let details = reject.error.data.details.unwrap();
    assert_eq!(details.method.as_deref(), Some("Generate"));
    let methods = details.methods.unwrap();
    assert_eq!(methods, Method::ALL.map(|method| method.name().to_owned()));
    for name in methods.iter().map(String::as_str).chain(["Generate"]) {
        assert!(
            reject.error.message.contains(name),
            "{name}: {}",
            reject.error.message
        );
    }
    assert_eq!(
        refused(r#"{"method":"notifications/initialized"}"#)
            .error
            .code,
        -32601
    );
}

#[test]
fn a_key_given_twice_is_refused_wherever_it_stands() {
    let twice = |line: &str, code: i32, id: Option<Id>, field: &str| {
        let reject = refused(line);
        assert_eq!((reject.error.code, reject.id.clone()), (code, id), "{line}");
        assert_eq!(faults(&reject), [(field, "unique key")], "{line}");
    };
    let one = Some(Id::Number(1));
    twice(
        r#"{"id":1,"method":"health","method":"health"}"#,
        -32600,
        one.clone(),
        "method",
    );
    twice(r#"{"id":1,"id":1,"method":"health"}"#, -32600, None, "id");
    twice(
        r#"{"id":1,"method":"health","params":{},"params":{}}"#,
        -32600,
        one.clone(),
        "params",
    );
    let generate = |params: &str| format!(r#"{{"id":1,"method":"generate","params":{params}}}"#);
    twice(
        &generate(r#"{"prompt":"a","temperature":1,"temperature":1}"#),
        -32602,
        one.clone(),
        "temperature",
    );
    twice(
        &generate(r#"{"prompt":"a","se\u0065d":1,"seed":1}"#),
        -32602,
        one.clone(),
        "seed",
    );
    twice(
        &generate(r#"{"messages":[{"role":"user","content":"a","role":"user"}]}"#),
        -32602,
        one.clone(),
        "messages[0].role",
    );
    let kwargs = r#"{"messages":[{"role":"user","content":"a"}],"chat_template_kwargs":{"a":{"b c":1,"b c":2}}}"#;
    twice(
        &generate(kwargs),
        -32602,
        one.clone(),
        "chat_template_kwargs.a[\"b c\"]",
    );
    // Many keys are looked up another way than few.
    let many: String = (0..1000).map(|n| format!("\"k{n}\":1,")).collect();
    let kwargs = format!(
        r#"{{"messages":[{{"role":"user","content":"a"}}],"chat_template_kwargs":{{{many}"k500":2}}}}"#
    );
    twice(&generate(&kwargs), -32602, one, "chat_template_kwargs.k500");
}

#[test]
fn nesting_is_bounded() {
    let nested = |levels: usize| {
        let value = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        format!(
            r#"{{"id":1,"method":"generate","params":{{"messages":[{{"role":"user","content":"a"}}],"chat_template_kwargs":{{"x":{value}}}}}}}"#
        )
    };
    // The request, its params and the arguments are three levels.
    accepted(&nested(limits::DEPTH_MAX - 3));
    let reject = refused(nested(limits::DEPTH_MAX - 2));
    assert_eq!(
        (reject.error.code, reject.id.clone()),
        (-32602, Some(Id::Number(1)))
    );
    assert_eq!(reject.error.data.errors[0].constraint, "depth 64");
    let reject = refused(nested(1_000_000));
    assert_eq!(
        (reject.error.code, reject.error.data.errors.len()),
        (-32602, 1)
    );
    assert!(serde_json::to_string(&reject.error).unwrap().len() < 2000);
    // Never closed: no JSON, and no stack is overrun in finding that out.
    assert_eq!(refused("[".repeat(10_000_000)).error.code, -32700);
    assert_eq!(refused("{\"a\":".repeat(1_000_000)).error.code, -32700);
}

#[test]
fn the_number_of_values_is_bounded_but_token_ids_are_many() {
    let ids = vec![49_151u32; limits::TOKEN_IDS_MAX];
    let Request::Generate(params) = accepted(&generate(json!({"prompt_token_ids": ids}))).request
    else {
        panic!()
    };
    assert_eq!(
        params.prompt_token_ids.unwrap().len(),
        limits::TOKEN_IDS_MAX
    );
    generate_faults(
        json!({"prompt_token_ids": vec![1; limits::TOKEN_IDS_MAX + 1]}),
        &[("prompt_token_ids", "maxItems 1048576")],
    );

    let many = |value: &str| {
        let values = vec![value; limits::VALUES_MAX + 1].join(",");
        format!(r#"{{"id":1,"method":"tokenize","params":{{"content":[{values}]}}}}"#)
    };
    for value in ["\"a\"", "[]", "{}", "1.5", "-1"] {
        let reject = refused(many(value));
        assert_eq!(
            (reject.error.code, faults(&reject)),
            (-32602, vec![("content", "values 262144")]),
            "{value}"
        );
    }
    let keys: String = (0..limits::VALUES_MAX + 100)
        .map(|n| format!("\"{n}\":1,"))
        .collect();
    let reject = refused(format!(
        r#"{{"id":1,"method":"tokenize","params":{{{keys}"x":1}}}}"#
    ));
    assert_eq!(
        (reject.error.code, faults(&reject)),
        (-32602, vec![("", "values 262144")])
    );
    let reject = refused(format!(r#"{{"id":1,"method":"tokenize",{keys}"x":1}}"#));
    assert_eq!((reject.error.code, reject.id.clone()), (-32600, None));
}

#[test]
fn byte_limits_count_bytes_and_their_ends_are_in() {
    let tokenize = |content: String| {
        json!({"id": 1, "method": "tokenize", "params": {"content": content}}).to_string()
    };
    accepted(&tokenize("é".repeat(limits::TOKENIZE_BYTES_MAX / 2)));
    let reject = refused(tokenize("é".repeat(limits::TOKENIZE_BYTES_MAX / 2) + "x"));
    assert_eq!(faults(&reject), [("content", "bytes 1048576")]);
    assert_eq!(
        reject.error.message,
        "content is 1048577 bytes long; at most 1048576 are allowed"
    );
    accepted(&generate(
        json!({"prompt": "a", "stop": vec!["é".repeat(128); 16]}),
    ));
    generate_faults(
        json!({"prompt": "a", "stop": ["é".repeat(128) + "x"]}),
        &[("stop[0]", "bytes 256")],
    );
    generate_faults(
        json!({"prompt": "a", "stop": vec!["a"; 17]}),
        &[("stop", "maxItems 16")],
    );
    generate_faults(
        json!({"prompt": "a", "stop": "a"}),
        &[("stop", "type array")],
    );
}

#[test]
fn the_limits_of_messages_hold() {
    let message = json!({"role": "user", "content": "a"});
    accepted(&generate(
        json!({"messages": vec![message.clone(); limits::MESSAGES_MAX]}),
    ));
    generate_faults(
        json!({"messages": vec![message; limits::MESSAGES_MAX + 1]}),
        &[("messages", "maxItems 4096")],
    );
    let part = json!({"type": "text", "text": "a"});
    let parts =
        |count| json!({"messages": [{"role": "user", "content": vec![part.clone(); count]}]});
    accepted(&generate(parts(limits::CONTENT_PARTS_MAX)));
    generate_faults(
        parts(limits::CONTENT_PARTS_MAX + 1),
        &[("messages[0].content", "maxItems 256")],
    );
    generate_faults(
        json!({"messages": [{"role": "user", "content": [{"type": "image", "text": "a"}, {"type": "text"}, 1]}]}),
        &[
            ("messages[0].content[0].type", "one of \"text\""),
            ("messages[0].content[1].text", "required"),
            ("messages[0].content[2]", "type object"),
        ],
    );
}

#[test]
fn nothing_of_a_prompt_is_ever_said_and_errors_stay_small() {
    let secret = "SECRET".repeat(100_000);
    for params in [
        json!({"prompt": secret, "temperature": 9}),
        json!({"prompt": [secret]}),
        json!({"prompt_token_ids": secret}),
        json!({"prompt_token_ids": [secret]}),
        json!({"messages": secret}),
        json!({"messages": [secret]}),
        json!({"messages": [{"role": "user", "content": {"text": secret}}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": [secret]}]}]}),
        json!({"prompt": "a", "stop": [secret]}),
        json!({"prompt": "a", "stop": secret}),
        json!({"prompt": "a", "seed": secret}),
    ] {
        let mut line = Vec::new();
        encode_line(&refused(generate(params)).into(), &mut line);
        let line = String::from_utf8(line).unwrap();
        assert!(!line.contains("SECRET"), "{line}");
        assert!(line.len() < 4096, "{line}");
    }
}

#[test]
fn names_that_are_quoted_are_cut() {
    let long = "é\n\"".repeat(10_000);
    for line in [
        json!({"id": 1, "method": long}),
        json!({"id": 1, "method": "health", long.clone(): 1}),
        json!({"id": 1, "method": "health", "params": {long.clone(): 1}}),
        json!({"id": 1, "method": "metrics", "params": {"format": long.clone()}}),
    ] {
        let mut out = Vec::new();
        encode_line(&refused(line.to_string()).into(), &mut out);
        assert!(out.len() < 2048, "{}", String::from_utf8_lossy(&out));
        assert_eq!(out.iter().filter(|&&byte| byte == b'\n').count(), 1);
    }
    // As many and as long names as there can be.
    let keys: serde_json::Map<String, Value> = (0..100)
        .map(|n| (format!("{n}{}", &long[..10_000]), json!(1)))
        .collect();
    let mut out = Vec::new();
    encode_line(
        &refused(json!({"id": 1, "method": "health", "params": keys}).to_string()).into(),
        &mut out,
    );
    assert!(out.len() < limits::STREAM_LINE_BYTES_MAX, "{}", out.len());
}

#[test]
fn another_version_of_the_wire_is_refused() {
    let reject = refused(r#"{"id":1,"method":"initialize","params":{"protocol_version":2}}"#);
    assert_eq!(faults(&reject), [("protocol_version", "maximum 1")]);
    let reject = refused(r#"{"id":1,"method":"initialize","params":{"client_info":{}}}"#);
    assert_eq!(faults(&reject), [("client_info.name", "required")]);
    let reject = refused(r#"{"id":1,"method":"initialize","params":{"client_info":null}}"#);
    assert_eq!(faults(&reject), [("client_info", "type object")]);
}

#[test]
fn a_line_that_is_too_long_is_answered_with_both_numbers() {
    let reject = Reject::line_too_long(20_000_000);
    assert_eq!((reject.id, reject.error.code), (None, -32600));
    let details = reject.error.data.details.unwrap();
    assert_eq!(
        (details.line_bytes, details.line_bytes_max),
        (Some(20_000_000), Some(16_777_216))
    );
}
