//! The log as whoever collects it sees it: whole lines of JSON whatever happens, what belongs into each, and no word of a prompt.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Running, fake, generate};

/// A word that no prompt may leave in the log.
const SECRET: &str = "xylophone";

/// A worker with the log in a file, as JSON, in all detail.
fn logged(keys: &str, log: &Path) -> Command {
    let flags = ["--log-format", "json", "--log-level", "debug"];
    let mut command = fake(keys, &flags);
    command.args(["--worker-id", "w-1"]);
    command.stderr(File::create(log).expect("a file"));
    command
}

/// The records of a log, each of which has what every record has.
fn records(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).expect("UTF-8");
    assert!(text.ends_with('\n'), "half a line at the end: {text}");
    text.lines().map(record).collect()
}

fn record(line: &str) -> Value {
    let record: Value =
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
    for field in ["time", "level", "event", "worker_id", "model", "device"] {
        assert!(record[field].is_string(), "no {field}: {record}");
    }
    assert_eq!(record["worker_id"], "w-1");
    record
}

/// The first record of an event.
fn of<'a>(records: &'a [Value], event: &str) -> &'a Value {
    let mut found = records.iter().filter(|record| record["event"] == event);
    found
        .next()
        .unwrap_or_else(|| panic!("no {event} in {records:#?}"))
}

#[test]
fn every_event_is_there_with_its_fields() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let mut worker = Running::start(logged("load_ms=50,fail_at=3", &log));
    let params = |max: u32| json!({"prompt": SECRET, "max_tokens": max, "ignore_eos": true});
    worker.say(&generate("good", params(2)));
    worker.say(&generate(2, params(2)));
    drop(worker.stdin.take());
    worker.rest();
    assert_eq!(worker.code(), Some(0));
    let records = records(&log);
    let order: Vec<&str> = records
        .iter()
        .map(|record| record["event"].as_str().expect("a word"))
        .filter(|event| *event != "model_load_progress")
        .collect();
    assert_eq!(
        order,
        [
            "startup",
            "model_load_start",
            "model_load_complete",
            "ready",
            "execute_start",
            "execute_end",
            "execute_start",
            "error",
            "shutdown"
        ]
    );
    let quarters = records
        .iter()
        .filter(|r| r["event"] == "model_load_progress");
    let told: Vec<_> = quarters.map(|r| r["processed"] == r["total"]).collect();
    assert!(told.len() >= 5 && told.ends_with(&[true]), "{told:?}");
    assert_eq!(of(&records, "model_load_complete")["model"], "fake");
    assert_eq!(of(&records, "ready")["device"], "fake");
    let start = of(&records, "execute_start");
    assert_eq!(start["request_id"], "good");
    assert_eq!(start["prompt_bytes"], SECRET.len());
    assert_eq!(start["prompt_sha256"].as_str().expect("a hash").len(), 64);
    let end = of(&records, "execute_end");
    assert_eq!(end["request_id"], "good");
    assert_eq!(end["completion_tokens"], 2);
    let error = of(&records, "error");
    assert_eq!(error["request_id"], 2);
    assert_eq!(error["level"], "error");
    assert_eq!(of(&records, "shutdown")["exit_code"], 0);
}

#[test]
fn an_end_that_is_none_of_the_workers_doing_leaves_whole_lines() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    for (keys, event, code) in [
        ("panic_at=4", "panic", 70),
        ("lose_at=4", "shutdown", 76),
        ("load_exit=65", "shutdown", 65),
        ("load_exit=75", "shutdown", 75),
    ] {
        let params = json!({"prompt": SECRET, "max_tokens": 2, "ignore_eos": true});
        let asked = [0, 1, 2].map(|id| generate(id, params.clone()));
        let mut worker = Running::start_with(logged(keys, &log), &asked);
        worker.rest();
        assert_eq!(worker.code(), Some(code));
        let records = records(&log);
        assert_eq!(records.last().expect("a record")["event"], event, "{keys}");
        let place = of(&records, event);
        if event == "panic" {
            assert!(place["place"].as_str().expect("a place").contains(".rs:"));
        } else {
            assert_eq!(place["exit_code"], code);
            assert_eq!(of(&records, "error")["level"], "error");
        }
    }
}

#[test]
fn a_kill_leaves_whole_lines_but_for_the_last() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    for (kill, signal) in [Signal::KILL, Signal::ABORT, Signal::KILL, Signal::ABORT]
        .into_iter()
        .enumerate()
    {
        let mut worker = Running::start(logged("", &log));
        for id in 0..60 {
            worker.say(&generate(id, json!({"prompt": SECRET, "max_tokens": 30})));
        }
        worker.response(5);
        std::thread::sleep(Duration::from_millis(kill as u64));
        worker.signal(signal);
        assert_eq!(worker.code(), None);
        let text = std::fs::read_to_string(&log).expect("UTF-8");
        let (whole, _) = text.rsplit_once('\n').expect("a line");
        let records: Vec<Value> = whole.lines().map(record).collect();
        of(&records, "execute_end");
        assert!(!text.contains(SECRET));
    }
}

#[test]
fn a_slow_reader_of_the_log_gets_its_end() {
    let mut command = fake("", &["--log-format", "json", "--worker-id", "w-1"]);
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    command.stderr(writer);
    let mut worker = Running::start(command);
    // Some 500 bytes of log each: more than a pipe holds.
    let jobs = 400;
    for id in 0..jobs {
        worker.say(&generate(id, json!({"prompt": "p", "max_tokens": 1})));
        worker.response(id);
    }
    drop(worker.stdin.take());
    std::thread::sleep(Duration::from_millis(50));
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("UTF-8");
    assert_eq!(worker.code(), Some(0));
    assert!(text.ends_with('\n'), "half a line at the end");
    let records: Vec<Value> = text.lines().map(record).collect();
    let ended = records.iter().filter(|r| r["event"] == "execute_end");
    assert_eq!(ended.count(), jobs);
    assert_eq!(records.last().expect("a record")["event"], "shutdown");
}

#[test]
fn no_text_of_a_request_is_in_the_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let long = format!("{SECRET} ").repeat(2000);
    let messages = json!([{"role": "user", "content": SECRET}]);
    let role = json!([{"role": SECRET, "content": "p"}]);
    for format in ["json", "text"] {
        let mut command = fake(
            "panic_at=40",
            &["--log-level", "debug", "--log-format", format],
        );
        command.stderr(File::create(&log).expect("a file"));
        let mut worker = Running::start(command);
        for (id, params) in [
            json!({"prompt": SECRET, "max_tokens": 3}),
            json!({"messages": messages, "max_tokens": 3}),
            json!({"messages": role, "max_tokens": 3}),
            json!({"prompt": "p", "stop": [SECRET], "max_tokens": 3}),
            // Refused: too long for the context, of the wrong type, with a field that is not known, for a method that is none.
            json!({"prompt": long}),
            json!({"prompt": [SECRET]}),
            json!({"prompt": "p", SECRET: SECRET}),
        ]
        .into_iter()
        .enumerate()
        {
            worker.say(&generate(id, params));
        }
        for (method, field) in [("tokenize", "content"), (SECRET, SECRET)] {
            let params = json!({field: SECRET});
            worker.say(&json!({"id": method, "method": method, "params": params}));
        }
        let stdin = worker.stdin.as_mut().expect("stdin");
        writeln!(stdin, "{SECRET}").expect("written");
        // The last one meets a bug.
        worker.say(&generate(
            "last",
            json!({"prompt": long[..100], "ignore_eos": true}),
        ));
        worker.rest();
        assert_eq!(worker.code(), Some(70));
        let text = std::fs::read_to_string(&log).expect("UTF-8");
        assert!(
            text.contains("panic") && text.contains("CONTEXT_OVERFLOW"),
            "{text}"
        );
        assert!(!text.contains(SECRET), "{text}");
    }
}
