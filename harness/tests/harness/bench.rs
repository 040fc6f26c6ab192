//! `orcd bench` against the real worker with a fake model.

use serde_json::Value;

use crate::{orcd, run_with};

#[test]
fn latency_measures_every_phase_and_leaves_a_record() {
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("records.jsonl");
    let flags = [
        "bench",
        "latency",
        "--model",
        "fake:tokens_per_second=100,prompt_tokens_per_second=500",
        "--healths=5",
        "--cancels=2",
        "--prompt-tokens=400",
        "--record",
        record.to_str().unwrap(),
    ];
    let (stdout, stderr, code) = run_with(orcd(&flags), "");
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    assert_eq!(stdout.lines().count(), 6, "{stdout}");
    let text = std::fs::read_to_string(record).unwrap();
    let record: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(record["bench"], "latency");
    assert_eq!(record["model"], "fake");
    let figures = record["figures"].as_array().unwrap();
    let seen: Vec<_> = figures
        .iter()
        .map(|f| {
            (
                f["request"].as_str().unwrap(),
                f["during"].as_str().unwrap(),
            )
        })
        .collect();
    let wanted = [
        ("health", "decode"),
        ("cancel", "decode"),
        ("health", "prefill"),
        ("cancel", "prefill"),
    ];
    assert_eq!(seen, wanted);
    assert!(figures.iter().all(|f| f["p99_ms"].as_f64().unwrap() > 0.0));
    assert_eq!(figures[0]["count"], 5);
}

#[test]
fn a_prompt_that_does_not_fit_is_told_before_anything_is_measured() {
    let flags = [
        "bench", "latency", "--model", "fake:", "--", "--ctx", "1000",
    ];
    let (_, stderr, code) = run_with(orcd(&flags), "");
    assert_eq!(code, Some(1));
    assert!(stderr.contains("--prompt-tokens"), "{stderr}");
}
