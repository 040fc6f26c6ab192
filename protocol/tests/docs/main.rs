//! The page, the schema and the examples are what the types say. `UPDATE_DOCS=1` writes them anew.

mod examples;
mod page;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use worker_orcd_protocol::codec::{Incoming, decode_line, decode_output, encode_call};
use worker_orcd_protocol::{ErrorCode, Method, schema};

use crate::examples::{Example, Kind};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every generated file with its text, by its path in this crate.
fn generated() -> BTreeMap<PathBuf, String> {
    let examples = examples::all();
    let mut files = BTreeMap::new();
    let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap() + "\n";
    files.insert("schema.json".into(), pretty(&schema::document()));
    let read = |name| std::fs::read_to_string(root().join("doc").join(name)).unwrap();
    let page = page::render(
        &read("PROTOCOL.template.md"),
        &read("client.py"),
        &schema::document(),
        &examples,
    );
    files.insert("PROTOCOL.md".into(), page);
    for example in &examples {
        let path = format!("examples/{}/{}.json", example.type_name, example.name);
        let before = files.insert(path.clone().into(), pretty(&example.value));
        assert!(before.is_none(), "{path} is made twice");
    }
    files
}

/// Every file below `examples`, by its path in this crate.
fn present() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in std::fs::read_dir(root().join("examples"))
        .into_iter()
        .flatten()
    {
        for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            found.push(
                file.unwrap()
                    .path()
                    .strip_prefix(root())
                    .unwrap()
                    .to_owned(),
            );
        }
    }
    found
}

#[test]
fn generated_files_are_fresh() {
    let files = generated();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        for path in present().iter().filter(|path| !files.contains_key(*path)) {
            std::fs::remove_file(root().join(path)).unwrap();
        }
        for (path, text) in &files {
            let path = root().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }
    for (path, text) in &files {
        let found = std::fs::read_to_string(root().join(path)).unwrap_or_default();
        assert!(
            found == *text,
            "{} is stale: run UPDATE_DOCS=1 cargo test -p worker-orcd-protocol",
            path.display()
        );
    }
    for path in present() {
        assert!(
            files.contains_key(&path),
            "{} is not generated any more: run with UPDATE_DOCS=1",
            path.display()
        );
    }
}

#[test]
fn every_example_goes_through_the_codec_and_comes_back_the_same() {
    for example in examples::all() {
        let line = example.line();
        match &example.kind {
            Kind::Params(method, _) => {
                let call = decode_line(line.as_bytes())
                    .unwrap_or_else(|reject| panic!("{line}: {}", reject.error));
                let mut again = Vec::new();
                encode_call(&call, &mut again);
                let again: Value = serde_json::from_slice(&again).unwrap();
                if again["method"] == method.name() {
                    assert_eq!(again["params"], example.value, "{line}");
                }
            }
            Kind::Result(..) => {
                let Incoming::Response {
                    outcome: Ok(value), ..
                } = decode_output(line.as_bytes()).unwrap()
                else {
                    panic!("{line}")
                };
                assert_eq!(value, example.value);
            }
            Kind::Notification(name) => {
                let Incoming::Notification(notification) = decode_output(line.as_bytes()).unwrap()
                else {
                    panic!("{line}")
                };
                assert_eq!(notification.method(), *name);
            }
            Kind::Error(_) => {
                let Incoming::Response {
                    outcome: Err(error),
                    ..
                } = decode_output(line.as_bytes()).unwrap()
                else {
                    panic!("{line}")
                };
                assert_eq!(serde_json::to_value(error).unwrap(), example.value);
            }
        }
    }
}

#[test]
fn every_example_holds_against_the_schema() {
    for example in examples::all() {
        schema::check(example.type_name, &example.value.to_string())
            .unwrap_or_else(|faults| panic!("{}/{}: {faults:?}", example.type_name, example.name));
        let root = if matches!(example.kind, Kind::Params(..)) {
            "InputLine"
        } else {
            "OutputLine"
        };
        schema::check(root, &example.line())
            .unwrap_or_else(|faults| panic!("{}: {faults:?}", example.line()));
    }
}

#[test]
fn a_wrong_value_does_not_hold_against_the_schema() {
    for (name, text) in [
        (
            "Token",
            r#"{"request_id":1,"index":-1,"token_id":2,"text":""}"#,
        ),
        ("Token", r#"{"request_id":1,"index":0,"token_id":2}"#),
        (
            "Token",
            r#"{"request_id":1,"index":0,"token_id":2,"text":"","logprob":null}"#,
        ),
        ("HealthResult", r#"{"status":"fine"}"#),
        (
            "GenerateResult",
            r#"{"finish_reason":"stop","stop_reason":[]}"#,
        ),
        (
            "OutputLine",
            r#"{"jsonrpc":"2.0","method":"tokens","params":{}}"#,
        ),
        (
            "OutputLine",
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":1}}"#,
        ),
        ("Nothing", "{}"),
        ("Token", "{"),
    ] {
        assert!(schema::check(name, text).is_err(), "{name} {text}");
    }
}

#[test]
fn there_is_an_example_of_everything() {
    let examples = examples::all();
    let has = |wanted: &dyn Fn(&Kind) -> bool| examples.iter().any(|example| wanted(&example.kind));
    for method in Method::ALL {
        assert!(
            has(&|kind| matches!(kind, Kind::Params(other, _) if *other == method)),
            "{}",
            method.name()
        );
        let answered = !matches!(method, Method::CancelRequest | Method::Cancelled);
        assert!(
            !answered || has(&|kind| matches!(kind, Kind::Result(other, _) if *other == method)),
            "{}",
            method.name()
        );
    }
    for name in schema::document()["notifications"]
        .as_object()
        .unwrap()
        .keys()
    {
        assert!(
            has(&|kind| matches!(kind, Kind::Notification(other) if other == name)),
            "{name}"
        );
    }
    for code in ErrorCode::ALL {
        assert!(
            examples
                .iter()
                .any(|example| example.value["data"]["code"] == code.name()),
            "{}",
            code.name()
        );
    }
}

#[test]
fn every_field_is_described_for_people() {
    let document = schema::document();
    for (name, definition) in document["$defs"].as_object().unwrap() {
        assert!(
            definition["description"].is_string() || name == "StopReason",
            "{name}"
        );
        for (field, schema) in definition["properties"].as_object().into_iter().flatten() {
            assert!(schema["description"].is_string(), "{name}.{field}");
        }
    }
    // Links of the Rust documentation mean nothing elsewhere.
    assert!(!document.to_string().contains("[`"));
}

#[test]
fn every_link_of_the_page_leads_somewhere() {
    let page = &generated()[Path::new("PROTOCOL.md")];
    // Types are reached by their own targets, not by their headings.
    let no_type =
        |line: &&str| !line.starts_with("### ") || !line[4..].starts_with(char::is_uppercase);
    let headings = page
        .lines()
        .filter(|line| line.starts_with('#'))
        .filter(no_type);
    let headings =
        headings.map(|line| page::anchor(&line.trim_start_matches('#').trim().replace(' ', "-")));
    let targets = page
        .split("<a id=\"")
        .skip(1)
        .filter_map(|rest| rest.split_once('"'))
        .map(|(id, _)| id.to_owned());
    let mut known: Vec<String> = headings.chain(targets).collect();
    for link in page
        .split("](#")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(link, _)| link)
    {
        assert!(
            known.iter().any(|anchor| anchor == link),
            "nothing is called {link}"
        );
    }
    let count = known.len();
    known.sort();
    known.dedup();
    assert_eq!(count, known.len(), "two places have the same name");
}

impl Example {
    /// The whole line in which the example stands.
    pub fn line(&self) -> String {
        serde_json::to_string(&self.message()).unwrap()
    }
}
