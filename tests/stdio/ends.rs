//! How the process ends, and with which code.

use std::io::{BufRead, BufReader, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::say;
use crate::support::{Running, SOON, command, fake, generate};

fn fatal_of(command: Command) -> (Option<i32>, Value) {
    let mut worker = Running::start_with(command, &[generate(1, json!({"prompt": "p"}))]);
    let said = worker.rest();
    let last = said.last().expect("a line").clone();
    assert_eq!(last["method"], "fatal");
    assert_eq!(
        said[said.len() - 2]["id"],
        1,
        "what was asked is answered before the end"
    );
    assert_eq!(said[said.len() - 2]["error"], last["params"]["error"]);
    (worker.code(), last["params"]["error"].clone())
}

#[test]
fn a_model_that_is_not_there_or_damaged_and_a_device_that_is_not_there() {
    let (code, error) = fatal_of(command(&[
        "--model",
        "/nowhere/model.gguf",
        "--device",
        "cpu",
    ]));
    assert_eq!(code, Some(66));
    assert!(
        error["message"]
            .as_str()
            .expect("words")
            .contains("/nowhere/model.gguf")
    );

    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(b"GGUF but not really").expect("written");
    let path = file.path().to_str().expect("a path").to_owned();
    assert_eq!(
        fatal_of(command(&["--model", &path, "--device", "cpu"])).0,
        Some(65)
    );

    let (code, error) = fatal_of(command(&["--model", &path]));
    assert_eq!(code, Some(69));
    assert!(
        error["message"]
            .as_str()
            .expect("words")
            .contains("--device cpu")
    );
    assert_eq!(
        fatal_of(command(&["--model", &path, "--device", "cuda:7"])).0,
        Some(69)
    );
}

#[test]
fn a_wrong_command_line_is_told_on_stderr_alone() {
    for flags in [
        vec!["--device", "cpu"],
        vec!["--model", "x", "--device", "gpu"],
        vec!["--model", "x", "--queue", "0"],
        vec!["--model", "x", "--ctx", "0"],
        vec!["--model", "x", "--worker-id", ""],
        vec!["--model", "x", "--verbose"],
    ] {
        let output = command(&flags).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        assert!(
            output.stdout.is_empty() && !output.stderr.is_empty(),
            "{flags:?}"
        );
    }
    let help = command(&["--help"]).output().expect("it runs");
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("143"));
}

#[test]
fn shutdown_is_answered_last() {
    let mut worker = Running::start(fake("", &[]));
    worker.until_method("ready");
    worker.say(&generate(1, json!({"prompt": "Hello", "max_tokens": 3})));
    worker.say(&json!({"id": 2, "method": "shutdown"}));
    let said = worker.rest();
    assert_eq!(
        said.last().expect("a line"),
        &json!({"jsonrpc": "2.0", "id": 2, "result": {}})
    );
    assert_eq!(worker.code(), Some(0));
}

#[test]
fn a_load_that_fails_has_its_code_and_answers_what_was_asked() {
    for (code, name) in [
        (65, "MODEL_LOAD_FAILED"),
        (66, "MODEL_LOAD_FAILED"),
        (69, "MODEL_LOAD_FAILED"),
        (75, "INSUFFICIENT_VRAM"),
        (76, "CUDA_ERROR"),
    ] {
        let (exit, error) = fatal_of(fake(&format!("load_ms=30,load_exit={code}"), &[]));
        assert_eq!(exit, Some(code));
        assert_eq!(error["data"]["code"], name, "{error}");
    }
}

#[test]
fn a_device_that_is_lost_and_a_bug_end_the_worker_with_a_fatal() {
    let ask = |id: u32| generate(id, json!({"prompt": "p", "ignore_eos": true}));
    let mut worker = Running::start_with(fake("lose_at=3", &[]), &[ask(1), ask(2)]);
    let said = worker.rest();
    let [.., first, second, fatal] = &said[..] else {
        panic!("too little is said: {said:#?}");
    };
    assert_eq!((&first["id"], &second["id"]), (&json!(1), &json!(2)));
    assert_eq!(first["error"]["data"]["usage"]["completion_tokens"], 2);
    assert_eq!(fatal["method"], "fatal");
    assert_eq!(fatal["params"]["error"]["data"]["code"], "CUDA_ERROR");
    assert_eq!(worker.code(), Some(76));

    let mut worker = Running::start_with(fake("panic_at=3", &[]), &[ask(1)]);
    let said = worker.rest();
    assert_eq!(said.iter().filter(|m| m["method"] == "token").count(), 2);
    let last = said.last().expect("a line");
    assert_eq!(last["method"], "fatal");
    assert_eq!(last["params"]["error"]["data"]["code"], "INTERNAL");
    assert_eq!(worker.code(), Some(70));
}

#[test]
fn a_step_that_fails_costs_one_request() {
    let mut worker = Running::start(fake("fail_at=3", &[]));
    for id in 1..3 {
        let params = json!({"prompt": "p", "ignore_eos": true, "max_tokens": 5});
        worker.say(&generate(id, params));
    }
    let failed = worker.response(1);
    assert_eq!(failed["error"]["data"]["usage"]["completion_tokens"], 2);
    let done = worker.response(2);
    assert_eq!(done["result"]["usage"]["completion_tokens"], 5);
    drop(worker.stdin.take());
    assert_eq!(worker.code(), Some(0));
}

#[test]
fn when_nobody_reads_any_more_the_worker_ends() {
    let prompt = "p".repeat(2000);
    let long = json!({"prompt": prompt, "ignore_eos": true, "return_progress": true});
    for (phase, keys, wanted) in [
        ("load", "load_ms=60000", "\"progress\""),
        ("idle", "", "\"ready\""),
        ("prefill", "prompt_tokens_per_second=100", "\"started\""),
        ("decode", "tokens_per_second=50", "\"token\""),
    ] {
        let (mut worker, stdout) = Running::start_unread(fake(keys, &[]));
        if !matches!(phase, "load" | "idle") {
            worker.say(&generate(1, long.clone()));
        }
        let mut reader = BufReader::new(stdout);
        let mut line = String::new();
        while !line.contains(wanted) {
            line.clear();
            assert!(reader.read_line(&mut line).expect("a line") > 0, "{phase}");
        }
        drop(reader);
        let (status, took) = worker.wait();
        say(&format!("nobody reads during {phase}: gone in {took:?}"));
        assert_eq!(status.code(), Some(74), "{phase}");
        assert!(took < SOON, "{phase}: {took:?}");
    }
}

#[test]
fn nobody_reads_and_the_output_is_stuck_already() {
    let (mut worker, stdout) = Running::start_unread(fake("", &["--ctx", "65536"]));
    let params = json!({"prompt": "p", "ignore_eos": true, "max_tokens": 60000});
    worker.say(&generate(1, params));
    std::thread::sleep(Duration::from_millis(100));
    drop(stdout);
    let (status, took) = worker.wait();
    assert_eq!(status.code(), Some(74));
    assert!(took < SOON, "{took:?}");
}

#[test]
fn an_exit_does_not_wait_for_ever_for_a_reader() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 0)] {
        let flags = ["--ctx", "65536", "--drain-ms", "100"];
        let (mut worker, stdout) = Running::start_unread(fake("", &flags));
        let params = json!({"prompt": "p", "ignore_eos": true, "max_tokens": 60000});
        worker.say(&generate(1, params));
        std::thread::sleep(Duration::from_millis(100));
        let since = Instant::now();
        worker.signal(signal);
        assert_eq!(worker.code(), Some(code));
        assert!(since.elapsed() < Duration::from_secs(4));
        drop(stdout);
    }
}
