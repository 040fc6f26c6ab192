//! `orcd golden` against the scripted worker, and the recorded transcripts against the real one.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use worker_orcd_harness::client;
use worker_orcd_harness::golden::{Mode, Outcome, golden, inputs};

use crate::{fake_worker, orcd, real_worker, run_with};

const INPUT: &str = r#"{"golden":{"about":"for the scripted worker"}}
{"id":1,"method":"generate","params":{"prompt":"long"}}
{"golden":{"await":"token","request_id":1,"count":3}}
{"id":2,"method":"cancel","params":{"request_id":1}}
{"golden":{"await":"response","request_id":1}}
{"id":3,"method":"generate","params":{"prompt":"ünï code","seed":5}}
{"golden":{"await":"response","request_id":3}}
{"id":4,"method":"generate","params":{"prompt":"x","typo":1}}"#;

fn orcd_golden(verb: &str, file: &Path) -> Command {
    let (file, worker) = (file.to_str().unwrap(), fake_worker());
    orcd(&[
        "golden",
        verb,
        file,
        "--timeout",
        "20",
        "--worker",
        worker.to_str().unwrap(),
        "--model",
        "fake.gguf",
    ])
}

#[test]
fn a_recording_is_compared_and_a_difference_is_shown() {
    let folder = TempDir::new().unwrap();
    let input = folder.path().join("fake.in.jsonl");
    let output = folder.path().join("fake.out.jsonl");
    fs::write(&input, INPUT).unwrap();
    let (stdout, stderr, code) = run_with(orcd_golden("run", folder.path()), "");
    assert!(
        stdout.contains("orcd golden record") && code == Some(1),
        "{stdout}{stderr}"
    );
    let (_, stderr, code) = run_with(orcd_golden("record", &input), "");
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    let recorded = fs::read_to_string(&output).unwrap();
    let tokens = recorded
        .lines()
        .filter(|line| line.contains(r#""method":"token""#))
        .count();
    assert_eq!(
        tokens,
        3 + 4,
        "those awaited before the cancel, and those of the second request:\n{recorded}"
    );
    assert!(
        recorded.ends_with("{\"golden\":{\"exit\":0}}\n") && recorded.contains("ünï"),
        "{recorded}"
    );
    let (stdout, _, code) = run_with(orcd_golden("run", folder.path()), "");
    assert!(stdout.starts_with("same") && code == Some(0), "{stdout}");
    fs::write(&output, recorded.replace("ünï", "other")).unwrap();
    let (stdout, _, code) = run_with(orcd_golden("run", &input), "");
    assert!(
        stdout.contains(r#"params.text: "other " → "ünï ""#) && code == Some(1),
        "{stdout}"
    );
    let mut update = orcd_golden("run", &input);
    update.env("UPDATE_GOLDENS", "1");
    assert_eq!(run_with(update, "").2, Some(0));
    assert_eq!(fs::read_to_string(&output).unwrap(), recorded);
}

#[test]
fn a_script_that_cannot_go_on_says_so_at_once() {
    let folder = TempDir::new().unwrap();
    let input = folder.path().join("stuck.in.jsonl");
    fs::write(
        &input,
        "{\"id\":1,\"method\":\"generate\",\"params\":{\"prompt\":\"x\"}}\n{\"golden\":{\"await\":\"token\",\"request_id\":1,\"count\":99}}\n{}",
    )
    .unwrap();
    let (stdout, _, code) = run_with(orcd_golden("record", &input), "");
    assert!(
        stdout.contains("token number 99 of request 1") && code == Some(1),
        "{stdout}"
    );
    assert!(!folder.path().join("stuck.out.jsonl").exists());
}

/// The transcripts in tests/goldens hold for the real worker with the default model.
#[test]
fn the_real_worker_says_what_is_recorded() {
    let Some((worker, model)) = real_worker("goldens") else {
        return;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens");
    let update = std::env::var_os("UPDATE_GOLDENS").is_some_and(|value| !value.is_empty());
    let mut failures = String::new();
    for input in inputs(&[folder]).unwrap() {
        let command = client::command(&worker, &model, "cpu");
        let mode = if update { Mode::Record } else { Mode::Run };
        let difference = match golden(&input, command, Duration::from_secs(120), mode) {
            Ok(Outcome::Same | Outcome::Recorded) => continue,
            Ok(Outcome::Different(difference)) => difference,
            Err(error) => format!("{error:#}\n"),
        };
        failures += &format!("{}:\n{difference}\n", input.display());
    }
    assert!(
        failures.is_empty(),
        "{failures}UPDATE_GOLDENS=1 rewrites them, if they are right now"
    );
}

/// What of a result says nothing of the field.
const LEFT_OUT: [&str; 3] = ["timings", "seed", "sampling"];

/// A line of the worker as the page shows it.
fn shown(line: &str) -> String {
    let mut value: Value = serde_json::from_str(line).unwrap();
    if let Some(result) = value.get_mut("result").and_then(Value::as_object_mut) {
        LEFT_OUT.iter().for_each(|key| drop(result.remove(*key)));
    }
    value.to_string()
}

/// protocol/FIELDS.md: each request of the golden `fields` with what the worker answered.
fn page_of_fields(goldens: &Path) -> (String, Vec<String>) {
    let read = |name: &str| fs::read_to_string(goldens.join(name)).unwrap();
    let (asked, answered) = (read("fields.in.jsonl"), read("fields.out.jsonl"));
    let mut page = "<!-- Made of tests/goldens/fields.*.jsonl: UPDATE_GOLDENS=1 cargo test -p worker-orcd-harness golden -->\n\n\
        # Every field of `generate`, with what a worker answers\n\n\
        SmolLM2-135M-Instruct on the processor, `--clock frozen`; the tests run these requests and compare every line. Of results the timings, the seed and the \
        echo of the sampling parameters are left out here. [PROTOCOL.md](PROTOCOL.md) says what each field means.\n"
        .to_owned();
    let mut fields = Vec::new();
    for line in asked.lines() {
        let request: Value = serde_json::from_str(line).unwrap();
        let Some(field) = request["id"].as_str() else {
            continue;
        };
        page += &format!("\n## {field}\n\n```text\n→ {line}\n");
        let of_it = |line: &&str| {
            let value: Value = serde_json::from_str(line).unwrap();
            value["id"] == field || value["params"]["request_id"] == field
        };
        for line in answered.lines().filter(of_it) {
            page += &format!("← {}\n", shown(line));
        }
        page += "```\n";
        fields.push(field.to_owned());
    }
    (page, fields)
}

#[test]
fn the_page_of_fields_shows_each_with_its_golden() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (page, fields) = page_of_fields(&root.join("tests/goldens"));
    // what the worker says that it knows, as another golden has it in full
    let life = fs::read_to_string(root.join("tests/goldens/life.out.jsonl")).unwrap();
    let told = life.lines().find(|line| line.contains("generate_fields"));
    let told: Value = serde_json::from_str(told.unwrap()).unwrap();
    let known = told["result"]["capabilities"]["generate_fields"]
        .as_array()
        .unwrap();
    for field in known {
        let name = field.as_str().unwrap();
        assert!(
            fields.iter().any(|f| f == name),
            "tests/goldens/fields.in.jsonl has no request for {name}"
        );
    }
    let path = root.join("protocol/FIELDS.md");
    if std::env::var_os("UPDATE_GOLDENS").is_some_and(|value| !value.is_empty()) {
        fs::write(&path, &page).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == page,
        "protocol/FIELDS.md is stale: UPDATE_GOLDENS=1 writes it"
    );
}
