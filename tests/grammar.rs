//! Forms of the output on the real model and the fake one, through the real process: whatever is drawn, what comes out is what was asked for.
//!
//! Everything is asked at temperature 1.5, where the model alone would write nothing that parses. All requests of a test go to one
//! worker as its input.

mod common;

use std::collections::HashMap;
use std::fs::File;
use std::process::Command;

use serde_json::{Value, json};

/// The tokens that a request of these tests may have unless it names a number.
const MAX_TOKENS: u64 = 160;

/// What a worker with these flags answers to requests with these params, in their order.
fn answers(flags: &[&str], requests: &[Value]) -> Vec<Value> {
    let folder = tempfile::tempdir().expect("a folder");
    let input = folder.path().join("requests.jsonl");
    let lines = requests.iter().enumerate().map(|(id, params)| {
        let mut params = params.clone();
        let defaults = [
            ("stream", json!(false)),
            ("max_tokens", json!(MAX_TOKENS)),
            ("temperature", json!(1.5)),
            ("seed", json!(id)),
        ];
        for (name, value) in defaults {
            let fields = params.as_object_mut().expect("params");
            fields.entry(name).or_insert(value);
        }
        json!({"id": id, "method": "generate", "params": params}).to_string() + "\n"
    });
    std::fs::write(&input, lines.collect::<String>()).expect("the requests");
    let output = Command::new(env!("CARGO_BIN_EXE_worker-orcd"))
        .args(flags)
        .args(["--log-level", "error"])
        .stdin(File::open(&input).expect("the requests"))
        .output()
        .expect("the worker runs");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    let mut results: HashMap<u64, Value> = HashMap::new();
    for line in said.lines() {
        let message: Value = serde_json::from_str(line).expect("a line of JSON");
        if let Some(id) = message["id"].as_u64() {
            results.insert(id, message);
        }
    }
    let answer = |id| results.remove(&id).expect("an answer");
    (0..requests.len() as u64).map(answer).collect()
}

/// The same of the real model; nothing where there is none.
fn real(requests: &[Value]) -> Option<Vec<Value>> {
    let model = common::model_path()?;
    let model = model.to_str().expect("a path in UTF-8");
    let flags = ["--device", "cpu", "--ctx", "1024", "--model", model];
    Some(answers(&flags, requests))
}

fn fake(requests: &[Value]) -> Vec<Value> {
    answers(&["--model", "fake:"], requests)
}

/// The same of a tiny model of random weights whose vocabulary is of SentencePiece's kind: a space stands before a text that is encoded.
fn sentencepiece(requests: &[Value]) -> Vec<Value> {
    let model = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/data/fixtures/llama-sentencepiece/model.gguf"
    );
    answers(&["--device", "cpu", "--model", model], requests)
}

fn schema(schema: Value) -> Value {
    json!({"prompt": "JSON:", "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}})
}

fn grammar(kind: &str, value: impl Into<Value>) -> Value {
    json!({"prompt": "Answer:", "grammar": {"type": kind, "value": value.into()}})
}

/// More fields of a request.
fn with(mut params: Value, more: Value) -> Value {
    let more = more.as_object().expect("fields").clone();
    params.as_object_mut().expect("params").extend(more);
    params
}

fn text(answer: &Value) -> &str {
    answer["result"]["text"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"))
}

/// Schemas of which every value is short.
fn schemas() -> Vec<Value> {
    let short = json!({"type": "string", "maxLength": 8});
    let point = json!({"type": "object", "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 9}, "y": {"type": "boolean"}}, "required": ["x", "y"], "additionalProperties": false});
    let closed = |properties: Value, required: Value| json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
    vec![
        // Plain values, with their bounds.
        json!({"type": "null"}),
        json!({"type": "boolean"}),
        json!({"type": "integer", "minimum": 10, "maximum": 20}),
        json!({"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 3}),
        json!({"type": "number", "minimum": 0.25, "maximum": 0.75}),
        json!({"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100}),
        json!({"type": "string", "minLength": 2, "maxLength": 6}),
        json!({"type": ["boolean", "null"]}),
        // Words and constants.
        json!({"enum": ["red", "green", "blue"]}),
        json!({"enum": [1, "one", null, true, [1], {"a": 1}]}),
        json!({"const": {"kind": "fixed", "list": [1, 2, {"deep": null}]}}),
        json!({"enum": ["Straße", "日本", "naïve", "😀"]}),
        // Patterns and formats.
        json!({"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}),
        json!({"type": "string", "pattern": "^(ab|cd){1,3}$"}),
        json!({"type": "string", "pattern": "^[é日😀]{4}$"}),
        json!({"type": "string", "format": "date"}),
        json!({"type": "string", "format": "uuid"}),
        // Arrays.
        json!({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}),
        json!({"type": "array", "items": point, "minItems": 1, "maxItems": 2}),
        json!({"type": "array", "prefixItems": [{"type": "boolean"}, {"enum": ["a", "b"]}], "items": false, "minItems": 2}),
        json!({"type": "array", "items": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 2}, "maxItems": 2}),
        json!({"type": "array", "maxItems": 0}),
        // Objects.
        point.clone(),
        closed(json!({"a": short, "b": {"type": "boolean"}}), json!(["b"])),
        closed(
            json!({"outer": closed(json!({"inner": closed(json!({"leaf": {"type": "boolean"}}), json!(["leaf"]))}), json!(["inner"]))}),
            json!(["outer"]),
        ),
        closed(
            json!({"größe": {"type": "integer", "minimum": 1, "maximum": 3}, "名前": short, "a\"b\\c": {"type": "null"}}),
            json!(["größe", "名前", "a\"b\\c"]),
        ),
        json!({"type": "object", "patternProperties": {"^k[0-9]$": {"type": "boolean"}}, "additionalProperties": false, "maxProperties": 2}),
        json!({"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1, "maxProperties": 1, "properties": {"on": {"type": "boolean"}}, "required": ["on"]}),
        // Alternatives and references.
        json!({"anyOf": [{"type": "boolean"}, {"enum": ["unknown"]}]}),
        json!({"oneOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 9}]}),
        json!({"oneOf": [closed(json!({"kind": {"const": "a"}, "n": {"enum": [1, 2]}}), json!(["kind", "n"])), closed(json!({"kind": {"const": "b"}, "t": {"type": "boolean"}}), json!(["kind", "t"]))]}),
        json!({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 7}]}),
        json!({"$defs": {"flag": {"type": "boolean"}}, "type": "array", "items": {"$ref": "#/$defs/flag"}, "minItems": 1, "maxItems": 2}),
        json!({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {"leaf": {"type": "boolean"}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/last"}]}}, "required": ["leaf", "next"], "additionalProperties": false}, "last": {"enum": ["end"]}}}),
    ]
}

fn is_number(schema: &Value) -> bool {
    schema["type"] == "number"
}

/// A request for each of these schemas.
fn requests_of(schemas: &[Value]) -> Vec<Value> {
    let request = |of: &Value| {
        let max_tokens = if is_number(of) { 12 } else { MAX_TOKENS };
        with(schema(of.clone()), json!({"max_tokens": max_tokens}))
    };
    schemas.iter().map(request).collect()
}

/// Fails unless it is whole, parses and is valid.
fn assert_valid(schema: &Value, answer: &Value) {
    let result = &answer["result"];
    assert_eq!(result["grammar_complete"], true, "{schema}: {answer}");
    // A number may have any number of digits.
    let ends = is_number(schema) || result["finish_reason"] == "stop";
    assert!(ends, "{schema}: {answer}");
    let value: Value = serde_json::from_str(text(answer))
        .unwrap_or_else(|e| panic!("{schema}: {e}: {}", text(answer)));
    let validator = jsonschema::options()
        .should_validate_formats(true)
        .build(schema)
        .expect("a schema");
    if let Err(error) = validator.validate(&value) {
        panic!("{schema}: {error}: {value}");
    }
}

#[test]
fn what_the_real_model_says_is_valid_under_every_schema() {
    let schemas = schemas();
    assert!(schemas.len() >= 30);
    let Some(answers) = real(&requests_of(&schemas)) else {
        return;
    };
    for (schema, answer) in schemas.iter().zip(&answers) {
        assert_valid(schema, answer);
    }
}

#[test]
fn what_the_fake_model_says_is_valid_whether_tokens_are_forced_or_drawn() {
    let schemas = schemas();
    let forced = requests_of(&schemas);
    let more = [
        json!({"logprobs": 0}),
        json!({"logit_bias": {"e": -1}}),
        json!({"min_tokens": 3}),
    ];
    for more in [json!({})].iter().chain(&more) {
        let requests: Vec<Value> = forced
            .iter()
            .map(|params| with(params.clone(), more.clone()))
            .collect();
        for (schema, answer) in schemas.iter().zip(&fake(&requests)) {
            assert_valid(schema, answer);
        }
    }
}

#[test]
fn no_space_is_added_to_a_form_or_taken_from_it_where_the_vocabulary_is_of_sentencepiece() {
    let fixed = json!({"const": {"kind": "fixed", "list": [1, 2, {"deep": null}]}});
    let schemas = [
        fixed,
        schemas()[22].clone(),
        json!({"enum": ["Straße", "日本"]}),
    ];
    for more in [json!({}), json!({"logprobs": 0})] {
        let of = |schema: &Value| {
            with(
                requests_of(std::slice::from_ref(schema)).remove(0),
                more.clone(),
            )
        };
        let mut requests: Vec<Value> = schemas.iter().map(of).collect();
        for words in ["the same words again", " so it is"] {
            let choice = with(grammar("choice", json!([words])), more.clone());
            requests.push(choice.clone());
            // Right behind the token that begins a text.
            let mut begun = with(choice, json!({"prompt_token_ids": [1]}));
            begun.as_object_mut().expect("params").remove("prompt");
            requests.push(begun);
        }
        let answers = sentencepiece(&requests);
        for (schema, answer) in schemas.iter().zip(&answers) {
            assert_valid(schema, answer);
        }
        let texts: Vec<&str> = answers[3..].iter().map(text).collect();
        let (one, other) = ("the same words again", " so it is");
        assert_eq!(texts, [one, one, other, other]);
    }
}

#[test]
fn a_json_object_parses_or_says_that_it_is_cut() {
    let requests: Vec<Value> = (0..20)
        .map(|seed| json!({"prompt": "{", "response_format": {"type": "json_object"}, "seed": seed, "max_tokens": 40}))
        .collect();
    let mut answers = fake(&requests);
    answers.extend(real(&requests[..4]).unwrap_or_default());
    for answer in &answers {
        let result = &answer["result"];
        let whole = serde_json::from_str::<serde_json::Map<String, Value>>(text(answer)).is_ok();
        assert_eq!(result["grammar_complete"], whole, "{answer}");
        let reason = if whole { "stop" } else { "length" };
        assert_eq!(result["finish_reason"], reason, "{answer}");
    }
}

#[test]
fn expressions_grammars_and_choices_are_kept_to() {
    let list =
        "start: item (\", \" item){0,2} \".\"\nitem: /[a-z]{1,5}/ | NUMBER\nNUMBER: /[0-9]{1,3}/\n";
    let choices = ["yes", "no", "ja, ça va", "日本", "a\nb", ""];
    let requests = [
        grammar("regex", "[0-9]{4}-[0-9]{2}-[0-9]{2}"),
        grammar("regex", "^(é|😀){3}$"),
        grammar("lark", list),
        grammar("choice", json!(choices[..5])),
    ];
    let fits = |at: usize, text: &str| match at {
        0 => {
            let shape: String = text
                .chars()
                .map(|c| if c.is_ascii_digit() { '0' } else { c })
                .collect();
            shape == "0000-00-00"
        }
        1 => text.chars().count() == 3 && text.chars().all(|c| "é😀".contains(c)),
        2 => text.strip_suffix('.').is_some_and(|items| {
            let word = |item: &str| {
                item.chars().all(|c| c.is_ascii_lowercase()) && (1..6).contains(&item.len())
                    || item.chars().all(|c| c.is_ascii_digit()) && (1..4).contains(&item.len())
            };
            items.split(", ").count() < 4 && items.split(", ").all(word)
        }),
        _ => choices.contains(&text),
    };
    let mut runs = vec![fake(&requests)];
    runs.extend(real(&requests));
    for answers in &runs {
        for (at, answer) in answers.iter().enumerate() {
            assert!(fits(at, text(answer)), "{answer}");
            assert_eq!(answer["result"]["finish_reason"], "stop", "{answer}");
        }
    }
}

#[test]
fn a_limit_or_a_stop_inside_a_form_says_so() {
    let object = json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}, "required": ["name"], "additionalProperties": false});
    let requests = [
        with(schema(object.clone()), json!({"max_tokens": 3})),
        with(schema(object.clone()), json!({"stop": ["me\""]})),
        with(grammar("choice", json!(["one"])), json!({"stop": ["e"]})),
        with(
            grammar("regex", "[a-z]{4}"),
            json!({"max_tokens": 4, "stop": ["never"]}),
        ),
    ];
    let mut runs = vec![fake(&requests)];
    runs.extend(real(&requests));
    for (model, answers) in runs.iter().enumerate() {
        let ends: Vec<_> = answers
            .iter()
            .map(|answer| {
                let result = &answer["result"];
                (
                    &result["finish_reason"],
                    &result["stop_reason"],
                    &result["grammar_complete"],
                )
            })
            .collect();
        let cut = |reason: &str| (json!("length"), json!(reason), json!(false));
        let wanted = [cut("max_tokens"), cut("me\""), cut("e")];
        for (end, wanted) in ends.iter().zip(&wanted) {
            assert_eq!(*end, (&wanted.0, &wanted.1, &wanted.2), "{answers:?}");
        }
        assert!(!text(&answers[1]).contains("me\""));
        assert_eq!(text(&answers[2]), "on");
        // The last token that there may be was the last that was wanted.
        if model == 0 {
            assert_eq!(ends[3], (&json!("stop"), &json!("grammar"), &json!(true)));
        }
    }
}

#[test]
fn the_same_seed_says_the_same_and_forms_leave_no_trace_on_others() {
    let form = with(
        grammar("regex", "[a-z]{3} and then [a-z]{3}"),
        json!({"seed": 3, "return_token_ids": true}),
    );
    let free = json!({"prompt": "Answer:", "seed": 3, "max_tokens": 12, "return_token_ids": true});
    let alone = with(form.clone(), json!({"cache_prompt": false}));
    let requests = [free.clone(), form.clone(), free, alone, form];
    let mut runs = vec![fake(&requests)];
    runs.extend(real(&requests));
    for answers in &runs {
        let ids = |at: usize| &answers[at]["result"]["token_ids"];
        assert_eq!(ids(0), ids(2));
        assert_eq!(ids(1), ids(3));
        assert_eq!(ids(1), ids(4));
        assert!(text(&answers[1]).contains(" and then "), "{answers:?}");
    }
}

/// Every draw is held to the form at its own place, whatever was proposed for it.
#[test]
fn speculation_changes_nothing_of_a_form() {
    let point = schemas()[22].clone();
    let points = json!({"type": "array", "items": point, "minItems": 3, "maxItems": 6});
    let said = r#"[{"x": 1, "y": true}, {"x": 2, "y": true}, {"x": 1, "y": true}]"#;
    let forms = [
        with(schema(points), json!({"prompt": said})),
        with(
            grammar("regex", "(ab|ac){20}(, | and )(ab|ac){20}"),
            json!({"prompt": "abacabacab, acab"}),
        ),
        with(
            grammar("choice", json!(["the cat sat on the mat", "the cat ate"])),
            json!({"prompt": "the cat sat on the mat. the cat sat on the mat."}),
        ),
    ];
    let more = [
        json!({}),
        json!({"temperature": 0}),
        json!({"logprobs": 1}),
        json!({"min_tokens": 30, "stop": ["acac"]}),
        json!({"max_tokens": 25}),
    ];
    let paces = [json!("off"), json!("auto"), json!(1), json!(7), json!(32)];
    let mut requests = Vec::new();
    for form in &forms {
        for more in &more {
            let asked = with(form.clone(), more.clone());
            let seeded = with(asked, json!({"seed": 5, "return_token_ids": true}));
            requests.extend(
                paces
                    .iter()
                    .map(|pace| with(seeded.clone(), json!({"speculation": pace}))),
            );
        }
    }
    let mut runs = vec![fake(&requests)];
    runs.extend(real(&requests[..more.len() * paces.len()]));
    for mut answers in runs {
        let mut accepted = 0;
        for answer in &mut answers {
            let result = answer["result"].as_object_mut().expect("a result");
            let timings = result.remove("timings").expect("timings");
            accepted += timings["accepted"].as_u64().expect("a number");
            result.remove("usage");
            answer.as_object_mut().expect("an answer").remove("id");
        }
        for (same, asked) in answers
            .chunks(paces.len())
            .zip(requests.chunks(paces.len()))
        {
            for (answer, asked) in same.iter().zip(asked) {
                assert_eq!(answer, &same[0], "{asked}");
            }
        }
        assert!(accepted > 20, "{accepted} proposed tokens came");
    }
}

#[test]
fn what_is_refused_says_where() {
    let place = |answer: &Value| answer["error"]["data"]["details"].clone();
    let one_of = json!({"type": "array", "items": {"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}});
    let requests = [
        schema(json!({"properties": {"a": one_of}})),
        schema(json!({"$defs": {"bad": {"type": "strng"}}, "items": {"$ref": "#/$defs/bad"}})),
        schema(json!({"anyOf": [{"type": "null"}, {"minimum": "1"}]})),
        grammar("regex", "abc\n(d"),
        grammar("regex", "a\\bc"),
        grammar("lark", "start: foo\nfoo: bar\n"),
        grammar("lark", "start: \"a\"\n  ?? \n"),
        grammar("lark", "start: %json {}\n"),
        grammar("choice", json!(["a", "a"])),
        json!({"prompt": "Answer:", "max_tokens": 1}),
    ];
    let wanted = [
        json!({"pointer": "/properties/a/items"}),
        json!({"pointer": "/$defs/bad"}),
        json!({"pointer": "/anyOf/1"}),
        json!({"line": 2, "column": 1}),
        json!({"line": 1, "column": 2}),
        json!({"line": 2, "column": 6}),
        json!({"line": 2, "column": 3}),
        json!({"line": 1, "column": 8}),
        json!({"index": 1}),
    ];
    let answers = fake(&requests);
    for (answer, wanted) in answers.iter().zip(&wanted) {
        assert_eq!(
            answer["error"]["data"]["code"], "INVALID_GRAMMAR",
            "{answer}"
        );
        assert_eq!(place(answer), *wanted, "{answer}");
    }
    assert!(answers[9].get("result").is_some());
}

#[test]
fn a_form_that_cannot_be_followed_ends_its_request_alone() {
    let requests = [
        grammar("lark", "start: \"x\" start"),
        with(
            grammar("choice", json!(["yes"])),
            json!({"logit_bias": {"y": false}}),
        ),
        grammar("choice", json!(["yes"])),
    ];
    let answers = fake(&requests);
    for answer in &answers[..2] {
        assert_eq!(answer["error"]["data"]["code"], "INTERNAL", "{answer}");
    }
    assert_eq!(text(&answers[2]), "yes");
}
