//! Flags that let a person ask without writing a line of JSON by hand, and flags that tell something and exit.

use std::io::Write;

use serde_json::{Value, json};

use crate::support::{Running, command, generate, model, resident_bytes};

/// Exit code and what was printed.
fn output(flags: &[&str]) -> (Option<i32>, String) {
    let output = command(flags).output().expect("it runs");
    (
        output.status.code(),
        String::from_utf8(output.stdout).expect("UTF-8"),
    )
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

#[test]
fn a_prompt_on_the_command_line_is_answered_and_nothing_else_is_read() {
    let (code, text) = output(&[
        "--model",
        "fake:seed=1",
        "--max-tokens",
        "5",
        "--prompt",
        "hello",
    ]);
    let said = lines(&text);
    assert_eq!(code, Some(0));
    let last = said.last().expect("a line");
    assert_eq!(last["id"], 1);
    assert_eq!(
        last["result"]["usage"]["prompt_tokens"], 6,
        "BOS and five bytes"
    );
    assert_eq!(last["result"]["sampling"]["max_tokens"], 5);
}

#[test]
fn requests_come_from_a_file_where_one_is_named() {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    // Longer than what a terminal lets a person type.
    let prompt = "p".repeat(6000);
    for id in 0..3 {
        let request = generate(id, json!({"prompt": prompt, "max_tokens": 1}));
        writeln!(file, "{request}").expect("written");
    }
    let path = file.path().to_str().expect("a path");
    let (code, text) = output(&["--model", "fake:", "--queue", "1", "--input", path]);
    let ended = lines(&text)
        .iter()
        .filter(|m| m["result"]["usage"]["prompt_tokens"] == 6001)
        .count();
    assert_eq!((code, ended), (Some(0), 3));
    let (code, text) = output(&["--model", "fake:", "--input", "/nowhere/requests"]);
    assert_eq!((code, text.as_str()), (Some(66), ""));
}

#[test]
fn the_schema_needs_no_model() {
    let (code, text) = output(&["--print-schema"]);
    let schema: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(code, Some(0));
    assert!(schema["$defs"]["GenerateParams"].is_object());
}

#[test]
fn a_trace_is_of_the_text_or_the_ids_and_needs_a_model_that_can_be_looked_into() {
    let (code, text) = output(&["--model", "fake:", "--trace", "hello"]);
    assert_eq!((code, text.as_str()), (Some(2), ""));
    let (code, text) = output(&["--model", "/nowhere/model.gguf", "--trace-ids", "1,2"]);
    assert_eq!(code, Some(66));
    assert_eq!(lines_of_one(&text)["loads"], false);
    let Some(model) = model() else {
        return;
    };
    let model = model.to_str().expect("a path").to_owned();
    let trace = |flag: &str, value: &str| {
        let (code, text) = output(&["--model", &model, "--ctx", "256", flag, value]);
        assert_eq!(code, Some(0));
        lines(&text)
    };
    let by_ids = trace("--trace-ids", "504,3575");
    assert_eq!(by_ids[0]["tokens"], json!([504, 3575]));
    assert_eq!(by_ids.last().expect("a line")["op"], "head");
    assert_eq!(by_ids, trace("--trace", "The capital"));
    let (code, text) = output(&["--model", &model, "--ctx", "256", "--trace-ids", "99999999"]);
    assert_eq!((code, text.as_str()), (Some(2), ""));
}

/// What was printed as one value over several lines.
fn lines_of_one(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn a_file_that_does_not_load_is_told_with_the_code_that_a_load_would_end_with() {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(b"GGUF but not really").expect("written");
    let damaged = file.path().to_str().expect("a path");
    for (path, wanted) in [("/nowhere/model.gguf", 66), (damaged, 65)] {
        for flag in ["--check", "--print-plan"] {
            let (code, text) = output(&["--model", path, flag]);
            let told: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(code, Some(wanted), "{flag} {path}");
            assert_eq!(told["loads"], false);
            assert_eq!(told["error"]["data"]["code"], "MODEL_LOAD_FAILED");
        }
    }
}

#[test]
fn the_check_tells_the_memory_that_a_worker_then_reports() {
    let Some(model) = model() else { return };
    let model = model.to_str().expect("a path");
    let (code, text) = output(&[
        "--model", model, "--device", "cpu", "--ctx", "512", "--check",
    ]);
    assert_eq!(code, Some(0), "{text}");
    let told: Value = serde_json::from_str(&text).expect("JSON");
    let request = json!({"id": 1, "method": "health"}).to_string();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), request).expect("written");
    let path = file.path().to_str().expect("a path");
    // The answer comes during the load; `ready` has the same numbers.
    let (_, text) = output(&[
        "--model", model, "--device", "cpu", "--ctx", "512", "--input", path,
    ]);
    let said = lines(&text);
    let ready = said.iter().find(|m| m["method"] == "ready").expect("ready");
    assert_eq!(told["memory"], ready["params"]["memory"]);
    assert_eq!(told["parameters"], ready["params"]["model"]["parameters"]);
    assert_eq!(told["loads"], true);
    let files = told["files"].as_array().expect("a list");
    assert_eq!(files.len(), 1);
    assert_eq!(
        (&files[0]["path"], &files[0]["tensors"]),
        (&json!(model), &json!(272))
    );

    let (code, text) = output(&["--model", model, "--print-plan"]);
    assert_eq!(code, Some(0));
    assert!(
        text.starts_with("llama: 30 layers") && text.lines().count() == 153,
        "{text}"
    );
}

#[test]
fn the_check_tells_what_the_process_then_takes() {
    let Some(model) = model() else { return };
    let flags = ["--device", "cpu", "--ctx", "512", "--model"];
    let flags = [&flags[..], &[model.to_str().expect("a path")]].concat();
    let (_, text) = output(&[&flags[..], &["--check"]].concat());
    let told: Value = serde_json::from_str(&text).expect("JSON");
    // Weights are in memory once: what is packed is no longer there as it lies in the file.
    let weights = told["memory"]["weights_bytes"].as_u64();
    let file = std::fs::metadata(&model).expect("a file").len();
    let weights = weights.expect("a number of bytes");
    assert!(
        weights <= file,
        "{weights} bytes of weights, {file} in the file"
    );
    let told = told["resident_bytes"].as_u64().expect("a number of bytes");
    let mut worker = Running::start(command(&flags));
    worker.until_method("ready");
    // All pages of the KV pool, and the logits of a whole piece of the prompt.
    let prompt = vec![28; 504];
    worker.say(&generate(
        1,
        json!({"prompt_token_ids": prompt, "max_tokens": 8, "prompt_logprobs": 0, "ignore_eos": true}),
    ));
    let response = worker.response(1);
    assert_eq!(
        response["result"]["usage"]["total_tokens"], 512,
        "{response}"
    );
    let taken = resident_bytes(worker.child.id());
    assert!(
        told.abs_diff(taken) * 50 <= taken,
        "{told} bytes were told, {taken} are taken"
    );
    // A state names its model by samples of all tensors, which bring some of the file in.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state");
    worker
        .say(&json!({"id": 2, "method": "save_state", "params": {"path": path, "request_id": 1}}));
    let response = worker.response(2);
    assert!(response["result"]["bytes"].is_u64(), "{response}");
    let saved = resident_bytes(worker.child.id());
    assert!(
        saved <= taken + taken / 50,
        "{taken} bytes before a state was saved, {saved} after"
    );
}
