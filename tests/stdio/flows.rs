//! Requests and answers over real pipes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Running, generate, with_model};

#[test]
fn a_file_of_requests_is_answered_in_order_and_the_end_drains() {
    let Some(command) = with_model(&[]) else {
        return;
    };
    let mut worker = Running::start(command);
    let question = json!([{"role": "user", "content": "What is the capital of France?"}]);
    worker.say(&generate(
        1,
        json!({"messages": question, "temperature": 0, "max_tokens": 20}),
    ));
    worker.say(&generate(
        "two",
        json!({"prompt": "Once upon a time", "seed": 7, "max_tokens": 12}),
    ));
    worker.say(&generate(
        3,
        json!({"prompt": "Once upon a time", "seed": 7, "max_tokens": 12}),
    ));
    drop(worker.stdin.take());
    let said = worker.rest();
    assert_eq!(worker.code(), Some(0));
    let texts = |id: Value| -> String {
        let of_id = said
            .iter()
            .filter(|m| m["method"] == "token" && m["params"]["request_id"] == id);
        of_id
            .map(|m| m["params"]["text"].as_str().expect("text"))
            .collect()
    };
    assert_eq!(texts(json!(1)), "The capital of France is Paris.");
    assert_eq!(
        texts(json!("two")),
        texts(json!(3)),
        "the same seed draws the same"
    );
    let methods: Vec<_> = said.iter().filter_map(|m| m["method"].as_str()).collect();
    let position = |method: &str| methods.iter().position(|m| *m == method).expect("said");
    assert!(position("progress") < position("ready") && position("ready") < position("started"));
    let responses: Vec<_> = said
        .iter()
        .filter(|m| m.get("method").is_none())
        .map(|m| m["id"].clone())
        .collect();
    assert_eq!(responses, [json!(1), json!("two"), json!(3)]);
}

#[test]
fn a_template_of_sixty_thousand_operators_leaves_the_worker_standing() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let source = format!("{{{{ {}1 }}}}", "-".repeat(60_000));
    std::fs::write(file.path(), source).expect("a file");
    let path = file.path().to_str().expect("a path in UTF-8");
    let Some(command) = with_model(&["--chat-template", path]) else {
        return;
    };
    let mut worker = Running::start(command);
    let messages = json!([{"role": "user", "content": "x"}]);
    worker.say(&json!({"id": 1, "method": "apply_template", "params": {"messages": messages}}));
    assert_eq!(worker.response(1)["result"]["prompt"], "1");
    drop(worker.stdin.take());
    worker.rest();
    assert_eq!(worker.code(), Some(0));
}

#[test]
fn health_and_cancel_are_answered_at_once_during_decode_and_prefill() {
    let Some(command) = with_model(&[]) else {
        return;
    };
    let mut worker = Running::start(command);
    worker.until_method("ready");
    worker.say(&generate(
        "decode",
        json!({"prompt": "Tell me a story.", "ignore_eos": true}),
    ));
    worker.until_method("token");
    let decoding = probe(&mut worker, "d");
    let stopped = cancel(&mut worker, "decode");
    let long = "All work and no play makes Jack a dull boy. ".repeat(150);
    worker.say(&generate(
        "prefill",
        json!({"prompt": long, "max_tokens": 1}),
    ));
    worker.until_method("started");
    let prefilling = probe(&mut worker, "p");
    let stopped_too = cancel(&mut worker, "prefill");
    eprintln!(
        "health while decoding {decoding:?}, while prefilling {prefilling:?}; cancel {stopped:?}, {stopped_too:?}"
    );
    // The median, since a busy machine may take its time now and then.
    assert!(decoding < Duration::from_millis(50), "{decoding:?}");
    assert!(prefilling < Duration::from_millis(50), "{prefilling:?}");
    assert!(stopped < Duration::from_millis(500) && stopped_too < Duration::from_millis(500));
}

/// The median time of a `health` over several, all while a generation runs.
fn probe(worker: &mut Running, prefix: &str) -> Duration {
    let mut times: Vec<Duration> = (0..9)
        .map(|n| {
            let id = format!("{prefix}{n}");
            let since = Instant::now();
            worker.say(&json!({"id": id, "method": "health"}));
            let health = worker.response(id);
            assert_eq!(
                health["result"]["status"], "busy",
                "the generation has ended too soon"
            );
            since.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

/// The time from a cancel to the end of its target.
fn cancel(worker: &mut Running, target: &str) -> Duration {
    let since = Instant::now();
    worker.say(&json!({"id": "c", "method": "cancel", "params": {"request_id": target}}));
    assert_eq!(worker.response("c")["result"], json!({"found": true}));
    let ended = worker.response(target);
    assert_eq!(ended["result"]["finish_reason"], "cancelled");
    since.elapsed()
}

#[test]
fn the_worker_has_one_thread() {
    let Some(command) = with_model(&[]) else {
        return;
    };
    let mut worker = Running::start(command);
    worker.say(&generate(1, json!({"prompt": "Hello", "max_tokens": 3})));
    worker.until_method("token");
    let tasks = std::fs::read_dir(format!("/proc/{}/task", worker.child.id()))
        .expect("tasks")
        .count();
    assert_eq!(tasks, 1);
}

#[test]
fn a_frozen_clock_makes_two_runs_alike() {
    let run = || {
        let command = with_model(&["--clock", "frozen"])?;
        let mut worker = Running::start(command);
        worker.say(&generate(1, json!({"prompt": "Once", "max_tokens": 8})));
        worker.say(&generate(
            2,
            json!({"prompt": "Once", "max_tokens": 8, "logprobs": 3}),
        ));
        drop(worker.stdin.take());
        Some(worker.rest())
    };
    let (Some(first), Some(second)) = (run(), run()) else {
        return;
    };
    assert_eq!(first, second);
}
