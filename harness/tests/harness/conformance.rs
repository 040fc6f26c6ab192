//! `orcd conformance`: the real worker keeps every promise, and a worker that breaks one is caught.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::{orcd, real_worker, run_with};

/// Kinds of tests/broken_worker.py, and the transcript that catches each.
const BROKEN: &[(&str, &str)] = &[
    ("AnswersCancelLate", "cancel_running"),
    ("AnswersHealthLate", "health_busy"),
    ("AnswersTwice", "generate_stream"),
    ("Chatters", "ready"),
    ("CutsCharacters", "generate_characters"),
    ("DropsQueueAtSigterm", "sigterm"),
    ("DropsResponse", "early_requests"),
    ("ExitsWithOne", "stdin_ends_idle"),
    ("IgnoresSeed", "seed"),
    ("Interleaves", "first_in_first_out"),
    ("LeavesOutLimits", "ready"),
    ("LeavesOutResultField", "generate_whole"),
    ("ListsOneFault", "faults_at_once"),
    ("MakesIdsNumbers", "ids_taken"),
    ("NamesTakenId", "id_taken"),
    ("PassesOverUnknownFields", "unknown_fields"),
    ("SkipsIndex", "generate_stream"),
    ("StopStringInText", "stop_string"),
    ("TakesNull", "values_of_another_kind"),
    ("TextIsNotTheStream", "generate_whole"),
    ("TokenAfterResponse", "generate_stream"),
    ("WrongCode", "unknown_fields"),
];

/// A transcript that a worker without fault keeps through the same script as the broken ones.
const HONEST: &[&str] = &[
    "cancel_running",
    "generate_stream",
    "ids_taken",
    "stop_string",
];

/// `orcd conformance` with a worker behind tests/broken_worker.py, for one transcript.
fn behind_script(kind: &str, transcript: &str) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken_worker.py");
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("../protocol/conformance/{transcript}.jsonl"));
    let built = Path::new(env!("CARGO_BIN_EXE_orcd")).with_file_name("worker-orcd");
    let worker = format!(
        "python3 '{}' {kind} '{}' --model fake:seed=1,tokens_per_second=4000",
        script.display(),
        built.display()
    );
    let file = file.to_str().unwrap();
    orcd(&["conformance", "--worker", &worker, "--timeout", "30", file])
}

fn spawned(mut command: Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn ended(child: Child) -> (String, Option<i32>) {
    let output = child.wait_with_output().unwrap();
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        output.status.code(),
    )
}

#[test]
fn our_worker_keeps_every_promise() {
    let (stdout, stderr, code) = run_with(orcd(&["conformance"]), "");
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    assert!(!stdout.contains("skipped "), "{stdout}");
    assert!(stdout.ends_with(" ok, 0 broken, 0 skipped\n"), "{stdout}");
}

#[test]
fn every_kind_of_broken_worker_is_caught() {
    let started: Vec<_> = BROKEN
        .iter()
        .map(|(kind, transcript)| spawned(behind_script(kind, transcript)))
        .collect();
    for ((kind, transcript), child) in BROKEN.iter().zip(started) {
        let (stdout, code) = ended(child);
        assert!(
            stdout.starts_with(&format!("BROKEN  {transcript} ")) && code == Some(1),
            "{kind} was not caught: {stdout}"
        );
        assert!(!stdout.contains("out of time"), "{kind}: {stdout}");
    }
    let started: Vec<_> = HONEST
        .iter()
        .map(|transcript| spawned(behind_script("Honest", transcript)))
        .collect();
    for child in started {
        let (stdout, code) = ended(child);
        assert_eq!(
            code,
            Some(0),
            "the script breaks what it should not: {stdout}"
        );
    }
}

#[test]
fn a_report_says_what_was_wrong_and_where() {
    let (stdout, stderr, _) = run_with(behind_script("SkipsIndex", "generate_stream"), "");
    for words in [
        "line 4: rule \"started, tokens, response\": token 3 of 1 has index 4",
        "the last lines of the worker:",
        "\"index\":4",
        "the promise (generate): A generate gets started",
        "0 ok, 1 broken, 0 skipped",
    ] {
        assert!(stdout.contains(words), "{words} is missing:\n{stdout}");
    }
    assert_eq!(stderr, "orcd: 1 of 1 promises are broken\n");
    let (stdout, _, _) = run_with(behind_script("WrongCode", "unknown_fields"), "");
    assert!(stdout.contains("line 3: rule \"errors\""), "{stdout}");
}

#[test]
fn transcripts_are_chosen_and_listed() {
    let list = ["conformance", "--list", "--filter", "sigterm"];
    let (stdout, _, code) = run_with(orcd(&list), "");
    let names: Vec<_> = stdout
        .lines()
        .filter_map(|line| line.split(':').next())
        .collect();
    assert_eq!(
        (names, code),
        (vec!["sigterm", "sigterm_idle", "sigterm_twice"], Some(0))
    );
    let (_, stderr, code) = run_with(orcd(&["conformance", "--filter", "nothing"]), "");
    assert!(stderr.contains("--list") && code == Some(1), "{stderr}");
    let (stdout, stderr, code) = run_with(
        orcd(&[
            "conformance",
            "--worker",
            "/nowhere/worker x",
            "--filter",
            "sigterm_idle",
        ]),
        "",
    );
    assert!(
        stdout.contains("cannot start /nowhere/worker") && code == Some(1),
        "{stdout}{stderr}"
    );
}

/// Ctrl-C ends the suite and the worker that it runs.
#[test]
fn an_interrupt_ends_the_worker_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("long.jsonl");
    let text =
        "{\"conformance\":1,\"promise\":\"p.\",\"section\":\"Life\"}\n{\"pause_ms\":60000}\n";
    std::fs::write(&file, text).unwrap();
    let child = spawned(orcd(&["conformance", file.to_str().unwrap()]));
    let pid = rustix::process::Pid::from_child(&child);
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let worker = loop {
        let text = std::fs::read_to_string(&children).unwrap();
        if let Some(worker) = text.split_whitespace().next() {
            break worker.to_owned();
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    };
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(ended(child).1, Some(130));
    assert!(
        !Path::new("/proc").join(worker).exists(),
        "the worker is gone"
    );
}

/// The promises that lie in the model's own numbers and words hold for a real model too.
#[test]
fn the_default_model_keeps_its_promises() {
    let Some((worker, model)) = real_worker("conformance") else {
        return;
    };
    let worker = format!(
        "'{}' --model '{}' --device cpu --ctx 512",
        worker.display(),
        model.display()
    );
    let mut arguments = vec!["conformance", "--worker", &worker];
    for name in [
        "generate_messages",
        "logprobs",
        "tokenize",
        "context_overflow",
    ] {
        arguments.extend(["--filter", name]);
    }
    let (stdout, _, code) = run_with(orcd(&arguments), "");
    assert!(
        stdout.ends_with(" 0 broken, 0 skipped\n") && code == Some(0),
        "{stdout}"
    );
}
