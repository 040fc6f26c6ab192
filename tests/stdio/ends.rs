//! How the process ends, and with which code.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Running, command, generate, model, with_model};

/// A second is what an orchestrator is promised; a busy machine gets a little more.
const SOON: Duration = Duration::from_secs(2);

fn fatal_of(mut command: Command) -> (Option<i32>, Value) {
    // The request is there before the worker is: one that fails at once may be gone before it could be written.
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writeln!(writer, "{}", generate(1, json!({"prompt": "p"}))).expect("written");
    command.stdin(reader);
    let mut worker = Running::start(command);
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
fn sigterm_drains_and_a_second_one_does_not_wait() {
    let Some(command) = with_model(&[]) else {
        return;
    };
    let mut worker = Running::start(command);
    worker.say(&generate(
        1,
        json!({"prompt": "Hello", "max_tokens": 10, "ignore_eos": true}),
    ));
    worker.until_method("token");
    worker.signal(Signal::TERM);
    let said = worker.rest();
    assert_eq!(
        said.last().expect("a line")["result"]["usage"]["completion_tokens"],
        10
    );
    assert_eq!(worker.code(), Some(0));

    let Some(command) = with_model(&[]) else {
        return;
    };
    let mut worker = Running::start(command);
    worker.say(&generate(
        1,
        json!({"prompt": "Hello", "max_tokens": 1000, "ignore_eos": true}),
    ));
    worker.until_method("token");
    worker.signal(Signal::TERM);
    worker.say(&generate(2, json!({"prompt": "Hello"})));
    assert_eq!(worker.response(2)["error"]["data"]["code"], "SHUTTING_DOWN");
    worker.signal(Signal::TERM);
    let (status, took) = worker.wait();
    assert_eq!(status.code(), Some(143));
    assert!(took < SOON, "{took:?}");
    assert_eq!(worker.rest().last().expect("a line")["method"], "fatal");
}

#[test]
fn sigint_cancels_and_says_so() {
    let Some(command) = with_model(&[]) else {
        return;
    };
    let mut worker = Running::start(command);
    worker.say(&generate(1, json!({"prompt": "Hello", "ignore_eos": true})));
    worker.until_method("token");
    worker.signal(Signal::INT);
    let said = worker.rest();
    assert_eq!(said[said.len() - 2]["result"]["finish_reason"], "cancelled");
    assert_eq!(said[said.len() - 1]["method"], "fatal");
    assert_eq!(worker.code(), Some(130));
}

#[test]
fn when_nobody_reads_any_more_the_worker_ends() {
    for busy in [true, false] {
        let Some(command) = with_model(&[]) else {
            return;
        };
        let (mut worker, stdout) = Running::start_unread(command);
        let mut reader = BufReader::new(stdout);
        if busy {
            worker.say(&generate(1, json!({"prompt": "Hello", "ignore_eos": true})));
        }
        let wanted = if busy { "\"token\"" } else { "\"ready\"" };
        let mut line = String::new();
        while !line.contains(wanted) {
            line.clear();
            assert!(reader.read_line(&mut line).expect("a line") > 0);
        }
        drop(reader);
        let (status, took) = worker.wait();
        assert_eq!(status.code(), Some(74), "busy: {busy}");
        assert!(took < SOON, "{took:?}");
    }
}

#[test]
fn when_the_parent_is_killed_the_worker_ends_though_others_hold_its_stdin() {
    let Some(model) = model() else { return };
    // In all phases: idle, with a generation, and at once.
    for request in [
        "",
        "{\"id\":1,\"method\":\"generate\",\"params\":{\"prompt\":\"Hello\",\"ignore_eos\":true}}\n",
    ] {
        for wanted in [
            "progress",
            if request.is_empty() { "ready" } else { "token" },
        ] {
            // The shell is the parent; this test holds the other end of stdin, as a sibling would.
            let script = "exec 3<&0; \"$0\" --model \"$1\" --device cpu <&3 3<&- & wait";
            let mut parent = Command::new("sh");
            parent
                .args(["-c", script, env!("CARGO_BIN_EXE_worker-orcd")])
                .arg(&model);
            parent
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null());
            let (mut parent, stdout) = Running::start_unread(parent);
            parent
                .stdin
                .as_mut()
                .expect("stdin")
                .write_all(request.as_bytes())
                .expect("written");
            let mut reader = BufReader::new(stdout);
            let mut line = String::new();
            while !line.contains(&format!("\"{wanted}\"")) {
                line.clear();
                assert!(
                    reader.read_line(&mut line).expect("a line") > 0,
                    "{wanted} never comes"
                );
            }
            parent.child.kill().expect("killed");
            let since = Instant::now();
            let mut last = String::new();
            for line in reader.lines().map_while(Result::ok) {
                last = line;
            }
            assert!(
                since.elapsed() < SOON,
                "{:?} after {wanted}",
                since.elapsed()
            );
            assert!(
                last.contains("\"fatal\"") && last.contains("parent"),
                "{last}"
            );
        }
    }
}

#[test]
fn another_process_can_be_watched_and_none() {
    let Some(command) = with_model(&["--parent-pid", "0"]) else {
        return;
    };
    let mut unwatched = Running::start(command);
    unwatched.until_method("ready");

    let mut watched = Command::new("sleep").arg("1000").spawn().expect("sleep");
    let command = with_model(&["--parent-pid", &watched.id().to_string()]);
    let mut worker = Running::start(command.expect("the model of a moment ago"));
    worker.until_method("ready");
    watched.kill().expect("killed");
    watched.wait().expect("waited");
    assert_eq!(worker.code(), Some(74));

    // A process that is gone already.
    let Some(command) = with_model(&["--parent-pid", &watched.id().to_string()]) else {
        return;
    };
    assert_eq!(Running::start(command).code(), Some(74));
}

#[test]
fn shutdown_is_answered_last() {
    let Some(command) = with_model(&[]) else {
        return;
    };
    let mut worker = Running::start(command);
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
