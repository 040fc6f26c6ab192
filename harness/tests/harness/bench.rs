//! `orcd bench` against the real worker, with a fake model and with the default one.

use std::path::Path;

use serde_json::Value;

use crate::{orcd, real_worker, run_with};

/// Runs `orcd bench …` with records in this folder: stdout, stderr, exit code.
fn bench(arguments: &str, records: &Path) -> (String, String, Option<i32>) {
    let mut command = orcd(&["bench"]);
    command.args(arguments.split(' '));
    command
        .arg("--records")
        .arg(records)
        .args(["--commit", "c"]);
    run_with(command, "")
}

/// The last record of a bench.
fn record(bench: &str, records: &Path) -> Value {
    let text = std::fs::read_to_string(records.join(format!("{bench}.jsonl"))).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn numbers<'a>(record: &'a Value, key: &str) -> Vec<&'a Value> {
    let figures = record["figures"].as_array().unwrap();
    figures.iter().map(|figure| &figure[key]).collect()
}

#[test]
fn latency_measures_every_phase_and_leaves_a_record() {
    let folder = tempfile::tempdir().unwrap();
    let (stdout, stderr, code) = bench(
        "latency --model fake:tokens_per_second=100,prompt_tokens_per_second=500 --healths=5 --cancels=2 --prompt-tokens=400",
        folder.path(),
    );
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    assert_eq!(stdout.lines().count(), 7, "{stdout}");
    let record = record("latency", folder.path());
    assert_eq!(record["bench"], "latency");
    assert_eq!(record["model"], "fake");
    assert_eq!(record["commit"], "c");
    assert_eq!(
        numbers(&record, "request"),
        ["health", "cancel", "health", "cancel"]
    );
    assert_eq!(
        numbers(&record, "during"),
        ["decode", "decode", "prefill", "prefill"]
    );
    assert_eq!(numbers(&record, "count"), [5, 2, 5, 2]);
    let p99 = numbers(&record, "p99_ms");
    assert!(p99.iter().all(|ms| ms.as_f64().unwrap() > 0.0));
}

#[test]
fn a_device_that_reads_prompts_at_once_is_measured_too() {
    let folder = tempfile::tempdir().unwrap();
    let fast = "latency --model fake:tokens_per_second=500,prompt_tokens_per_second=400000 --healths=30 --cancels=5";
    let (stdout, stderr, code) = bench(fast, folder.path());
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    let counts = record("latency", folder.path());
    assert_eq!(numbers(&counts, "during").len(), 4, "{stdout}");
    // As fast as it can: the prompt is over before anything can meet it.
    let at_once =
        "latency --model fake:tokens_per_second=500 --healths=5 --cancels=2 --prompt-tokens=20";
    // Records of its own: it is another subject, and not to be held against the one before.
    let folder = tempfile::tempdir().unwrap();
    let (stdout, stderr, code) = bench(at_once, folder.path());
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    assert!(
        stdout.contains("too short") && stdout.contains("--ctx"),
        "{stdout}"
    );
}

#[test]
fn a_prompt_that_does_not_fit_is_told_before_anything_is_measured() {
    let flags = [
        "bench",
        "latency",
        "--model",
        "fake:",
        "--no-record",
        "--prompt-tokens",
        "4096",
        "--",
        "--ctx",
        "1000",
    ];
    let (_, stderr, code) = run_with(orcd(&flags), "");
    assert_eq!(code, Some(1));
    assert!(stderr.contains("--prompt-tokens"), "{stderr}");
}

#[test]
fn a_slower_worker_is_told_unless_it_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let decode = |speed: u32, flags: &str| {
        let model = format!("--model fake:tokens_per_second={speed}");
        bench(
            &format!("decode --depths 16 --runs 1 {model}{flags}"),
            folder.path(),
        )
    };
    // The peer's words must not be cut at spaces here.
    let peer = r#" --peer printf${IFS}'{"tok_s":10}'"#;
    let (stdout, stderr, code) = decode(400, peer);
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    assert!(stdout.contains("times"), "{stdout}");
    let first = record("decode", folder.path());
    assert_eq!(first["figures"][0]["peer_tok_s"], 10.0);
    assert!(
        first["figures"][0]["ratio"].as_f64().unwrap() > 20.0,
        "{first}"
    );
    let (_, stderr, code) = decode(200, "");
    assert_eq!(code, Some(1));
    assert!(stderr.contains("% slower than on"), "{stderr}");
    assert_eq!(record("decode", folder.path())["regressed"], true);
    assert_eq!(decode(200, " --accept").2, Some(0));
    assert_eq!(decode(200, "").2, Some(0));
}

#[test]
fn all_benches_leave_records_that_become_charts() {
    let folder = tempfile::tempdir().unwrap();
    let model = "fake:tokens_per_second=2000,prompt_tokens_per_second=100000";
    let (stdout, stderr, code) = bench(
        &format!("all --model {model} --runs 1 --tokens 32 --healths 10 --cancels 2"),
        folder.path(),
    );
    assert_eq!((stderr.as_str(), code), ("", Some(0)), "{stdout}");
    assert!(stdout.contains("twice the same"), "{stdout}");
    for (bench, figures) in [
        ("load", 3),
        ("decode", 2),
        ("prefill", 3),
        ("sampling", 6),
        ("end-to-end", 9),
        ("latency", 4),
    ] {
        let record = record(bench, folder.path());
        assert_eq!(
            record["figures"].as_array().unwrap().len(),
            figures,
            "{bench}"
        );
    }
    let charts = folder.path().join("charts");
    let mut report = orcd(&["bench", "report", "--records"]);
    report.arg(folder.path()).arg("--out").arg(&charts);
    let (stdout, stderr, code) = run_with(report, "");
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    // Depth, prefill, latency, history; a fake model reads no bytes.
    assert_eq!(stdout.lines().count(), 8, "{stdout}");
    for file in stdout.lines() {
        let bytes = std::fs::read(file).unwrap();
        let begins: &[u8] = if file.ends_with(".png") {
            b"\x89PNG"
        } else {
            b"<svg"
        };
        assert!(bytes.starts_with(begins), "{file}");
    }
}

#[test]
fn the_default_model_says_what_the_reference_says_and_how_fast() {
    let Some((worker, model)) = real_worker("bench decode") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let flags = format!(
        "decode --depths 16 --runs 1 --model {} --worker {}",
        model.display(),
        worker.display()
    );
    let (stdout, stderr, code) = bench(&flags, folder.path());
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    assert!(stdout.contains("as the reference has it"), "{stdout}");
    let figure = &record("decode", folder.path())["figures"][0];
    // Of Q4_1 all weights are read for a token, the embedding being the head too, and a few bytes of keys and values.
    let bytes = figure["bytes_a_token"].as_f64().unwrap();
    assert!((96.5e6..97.5e6).contains(&bytes), "{bytes}");
    let share = figure["share"].as_f64().unwrap();
    assert!((0.001..1.5).contains(&share), "{share}");
}

#[test]
fn records_that_are_not_there_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut report = orcd(&["bench", "report", "--records"]);
    report.arg(folder.path());
    let (_, stderr, code) = run_with(report, "");
    assert_eq!(code, Some(1));
    assert!(stderr.contains("orcd bench all"), "{stderr}");
}
