//! Signals, with the dispositions and masks that a parent may hand down.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Running, SOON, cpu_time, fake, generate};

/// A generation that goes on for minutes, at twenty tokens a second.
const SLOW: &str = "tokens_per_second=20";

fn endless() -> Value {
    json!({"prompt": "Hello", "ignore_eos": true, "max_tokens": 5000})
}

/// The worker behind a shell that does something first, and then becomes the worker.
fn behind_shell(first: &str, worker: &Command) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{first}; exec \"$0\" \"$@\"")]);
    command.arg(worker.get_program()).args(worker.get_args());
    command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null());
    command
}

/// Signals that the kernel holds back, or leaves to a handler, or drops: a line of /proc/PID/status.
fn signals_of(worker: &Running, line: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.child.id()));
    let status = status.expect("status");
    let mask = status.lines().find_map(|l| l.strip_prefix(line));
    u64::from_str_radix(mask.expect("a mask").trim(), 16).expect("hexadecimal")
}

#[test]
fn sigterm_drains() {
    let mut worker = Running::start(fake("tokens_per_second=100", &[]));
    let params = json!({"prompt": "Hello", "max_tokens": 10, "ignore_eos": true});
    worker.say(&generate(1, params.clone()));
    worker.say(&generate(2, params));
    worker.until_method("token");
    worker.signal(Signal::TERM);
    let said = worker.rest();
    let done: Vec<_> = said.iter().filter_map(|m| m.get("result")).collect();
    assert_eq!(done.len(), 2);
    for result in done {
        assert_eq!(result["usage"]["completion_tokens"], 10);
    }
    assert_eq!(worker.code(), Some(0));
}

#[test]
fn a_drain_has_its_time_and_takes_nothing_new() {
    let mut worker = Running::start(fake(SLOW, &["--drain-ms", "200"]));
    worker.say(&generate(1, endless()));
    worker.say(&generate(2, endless()));
    worker.until_method("token");
    worker.signal(Signal::TERM);
    worker.say(&json!({"id": "h", "method": "health"}));
    worker.until(|line| line["id"] == "h" && line["result"]["status"] == "draining");
    worker.say(&generate(3, endless()));
    assert_eq!(worker.response(3)["error"]["data"]["code"], "SHUTTING_DOWN");
    for id in 1..3 {
        assert_eq!(worker.response(id)["result"]["finish_reason"], "cancelled");
    }
    assert_eq!(worker.code(), Some(0));
}

#[test]
fn a_second_sigterm_does_not_wait() {
    let mut worker = Running::start(fake(SLOW, &[]));
    worker.say(&generate(1, endless()));
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
fn signals_during_the_load() {
    for (signal, code) in [(Signal::TERM, 0), (Signal::INT, 130)] {
        let mut worker = Running::start(fake("load_ms=60000", &[]));
        worker.say(&generate(1, endless()));
        worker.until_method("progress");
        worker.say(&json!({"id": "h", "method": "health"}));
        assert_eq!(worker.response("h")["result"]["status"], "starting");
        worker.signal(signal);
        let (status, took) = worker.wait();
        assert_eq!(status.code(), Some(code));
        assert!(took < SOON, "{took:?}");
        let said = worker.rest();
        let ended = said.iter().find(|line| line["id"] == 1).expect("answered");
        assert_eq!(ended["result"]["finish_reason"], "cancelled");
    }
}

#[test]
fn sigint_cancels_and_says_so() {
    for (keys, wanted) in [
        (SLOW, "token"),
        ("prompt_tokens_per_second=1", "started"),
        ("", "ready"),
    ] {
        let mut worker = Running::start(fake(keys, &[]));
        if wanted != "ready" {
            worker.say(&generate(1, endless()));
        }
        worker.until_method(wanted);
        worker.signal(Signal::INT);
        let said = worker.rest();
        let ended = said.iter().filter(|m| m.get("result").is_some());
        assert!(ended.clone().count() == usize::from(wanted != "ready"));
        for line in ended {
            assert_eq!(line["result"]["finish_reason"], "cancelled");
        }
        assert_eq!(said.last().expect("a line")["method"], "fatal");
        assert_eq!(worker.code(), Some(130));
    }
}

#[test]
fn what_a_parent_ignores_or_blocks_is_heard_all_the_same() {
    for (signal, code) in [(Signal::TERM, 0), (Signal::INT, 130)] {
        let ignored = behind_shell("trap '' TERM INT PIPE", &fake(SLOW, &[]));
        let mut blocked = fake(SLOW, &[]);
        let block = || {
            use nix::sys::signal::{SigSet, Signal};
            SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]).thread_block()?;
            Ok(())
        };
        // SAFETY: between fork and exec it changes the mask of signals and does nothing else.
        unsafe { blocked.pre_exec(block) };
        for command in [ignored, blocked] {
            let mut worker = Running::start(command);
            worker.until_method("ready");
            let listens = 1 << (signal.as_raw() - 1);
            assert_eq!(signals_of(&worker, "SigBlk:") & listens, 0);
            assert_eq!(signals_of(&worker, "SigIgn:") & listens, 0);
            worker.say(&generate(1, json!({"prompt": "Hello", "max_tokens": 3})));
            worker.until_method("token");
            worker.signal(signal);
            let (status, took) = worker.wait();
            assert_eq!(status.code(), Some(code));
            assert!(took < SOON, "{took:?}");
        }
    }
}

#[test]
fn sigpipe_is_ignored_whatever_was_inherited() {
    let plain = fake("", &[]);
    for first in ["trap - PIPE", "trap '' PIPE"] {
        let mut command = behind_shell(first, &plain);
        command.stderr(std::process::Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        // Nobody reads the log: the first line of it meets a broken pipe.
        drop(child.stderr.take());
        drop(child.stdin.take());
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(0), "{first}");
        assert!(!output.stdout.is_empty());
    }
}

#[test]
fn a_stop_in_the_middle_is_a_pause() {
    let mut worker = Running::start(fake("tokens_per_second=100", &[]));
    let params = json!({"prompt": "Hello", "ignore_eos": true, "max_tokens": 40});
    worker.say(&generate(1, params));
    worker.until_method("token");
    for _ in 0..3 {
        worker.signal(Signal::STOP);
        std::thread::sleep(Duration::from_millis(50));
        let before = cpu_time(worker.child.id());
        // What is said meanwhile waits.
        worker.say(&json!({"id": "h", "method": "health"}));
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(cpu_time(worker.child.id()), before);
        worker.signal(Signal::CONT);
        assert_eq!(worker.response("h")["result"]["status"], "busy");
    }
    let done = worker.response(1);
    assert_eq!(done["result"]["usage"]["completion_tokens"], 40);
    drop(worker.stdin.take());
    assert_eq!(worker.code(), Some(0));
}
