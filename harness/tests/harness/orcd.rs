//! The program `orcd` against the scripted worker: through pipes, and on a terminal.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{fake_worker, orcd, run_with};

/// `orcd COMMAND` with the scripted worker.
fn with_fake(arguments: &[&str]) -> Command {
    let worker = fake_worker();
    let mut all = vec![
        arguments[0],
        "--worker",
        worker.to_str().unwrap(),
        "--model",
        "fake.gguf",
    ];
    all.extend(&arguments[1..]);
    orcd(&all)
}

/// `orcd COMMAND` with a scripted worker that has these faults.
fn with_faults(faults: &str, arguments: &[&str]) -> Command {
    let mut command = with_fake(arguments);
    command.env("FAKE_WORKER", faults);
    command
}

#[test]
fn ask_answers_once() {
    let (stdout, stderr, code) = run_with(with_fake(&["ask", "hello", "big", "world"]), "");
    assert_eq!(
        (stdout.as_str(), stderr.as_str(), code),
        ("You said: hello big world (1 messages) \n", "", Some(0))
    );
    let (stdout, _, code) = run_with(
        with_fake(&["ask", "--system", "be kind", "-"]),
        "from stdin",
    );
    assert_eq!(
        (stdout.as_str(), code),
        ("You said: from stdin (2 messages) \n", Some(0))
    );
}

#[test]
fn ask_json_prints_the_response_and_nothing_else() {
    let (stdout, stderr, code) =
        run_with(with_fake(&["ask", "--json", "--seed", "7", "hello"]), "");
    assert_eq!(
        (stderr.as_str(), code, stdout.lines().count()),
        ("", Some(0), 1)
    );
    let response: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(response["result"]["text"], "You said: hello (1 messages) ");
    assert_eq!(response["result"]["seed"], 7);
    let (stdout, stderr, code) = run_with(with_fake(&["ask", "--json", "too long"]), "");
    let response: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (&response["error"]["code"], code),
        (&Value::from(1003), Some(1))
    );
    assert!(stderr.contains("shorten the prompt"), "{stderr}");
}

#[test]
fn a_worker_that_fails_gives_its_words_and_its_exit_code() {
    let (stdout, stderr, code) =
        run_with(with_faults(r#"{"load_exit":65}"#, &["ask", "hello"]), "");
    assert_eq!((stdout.as_str(), code), ("", Some(65)));
    assert!(stderr.contains("the fake ends with 65"), "{stderr}");
    let (_, stderr, code) = run_with(
        orcd(&["ask", "--worker", "/nowhere/worker-orcd", "hello"]),
        "",
    );
    assert!(
        stderr.contains("/nowhere/worker-orcd") && code == Some(1),
        "{stderr}"
    );
}

#[test]
fn the_workers_log_is_shown_only_when_it_is_asked_for() {
    let faults = r#"{"log":"a line of the log"}"#;
    let (_, stderr, _) = run_with(with_faults(faults, &["ask", "hello"]), "");
    assert_eq!(stderr, "");
    let (_, stderr, _) = run_with(with_faults(faults, &["ask", "--verbose", "hello"]), "");
    assert_eq!(stderr, "a line of the log\n");
}

#[test]
fn chat_reads_prompts_from_a_pipe_and_keeps_the_conversation() {
    let (stdout, stderr, code) = run_with(with_fake(&["chat"]), "one\n\n/health\nlast");
    let answers = "You said: one (1 messages) \nYou said: /health (3 messages) \nYou said: last (5 messages) \n";
    assert_eq!(
        (stdout.as_str(), stderr.as_str(), code),
        (answers, "", Some(0))
    );
}

#[test]
fn a_refused_prompt_is_told_and_the_chat_goes_on() {
    let (stdout, stderr, code) = run_with(with_fake(&["chat"]), "one\ntoo long\ntwo\n");
    assert_eq!(
        stdout,
        "You said: one (1 messages) \nYou said: two (3 messages) \n"
    );
    assert!(stderr.contains("shorten the prompt"), "{stderr}");
    assert_eq!(code, Some(1));
}

#[test]
fn a_lost_device_gets_another_worker_and_a_bad_model_does_not() {
    let (stdout, stderr, code) = run_with(
        with_faults(r#"{"exit":76}"#, &["chat"]),
        "one\ncrash\ntwo\n",
    );
    assert_eq!(
        stdout,
        "You said: one (1 messages) \nYou \nYou said: two (3 messages) \n"
    );
    assert!(stderr.contains("starting another worker"), "{stderr}");
    assert_eq!(code, Some(1));
    let (stdout, stderr, code) = run_with(with_faults(r#"{"exit":65}"#, &["chat"]), "crash\ntwo\n");
    assert_eq!((stdout.as_str(), code), ("You \n", Some(65)));
    assert!(!stderr.contains("starting another"), "{stderr}");
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let mut child = with_fake(&["ask", "long"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 6]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap().as_str()
        ),
        (Some(0), "")
    );
}

#[test]
fn ctrl_c_cancels_an_answer_that_was_asked_for_once() {
    let mut child = with_fake(&["ask", "long"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 6]).unwrap();
    let begin = Instant::now();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(
        rest.ends_with('\n') && rest.len() < 20_000 && begin.elapsed() < Duration::from_secs(5),
        "{}",
        rest.len()
    );
}

/// Types at a pseudo terminal; the script says what it expects.
#[test]
fn chat_on_a_terminal() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chat_terminal.py");
    let mut command = Command::new("python3");
    command
        .arg(script)
        .arg(env!("CARGO_BIN_EXE_orcd"))
        .arg(fake_worker());
    let (stdout, stderr, code) = run_with(command, "");
    assert_eq!(code, Some(0), "{stdout}{stderr}");
}

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let (stdout, _, code) = run_with(orcd(&["--help"]), "");
    for word in ["chat", "ask", "fetch", "golden", "130", "76 device lost"] {
        assert!(stdout.contains(word), "{word} is missing in\n{stdout}");
    }
    assert_eq!(code, Some(0));
    assert_eq!(run_with(orcd(&["sing"]), "").2, Some(2));
}
