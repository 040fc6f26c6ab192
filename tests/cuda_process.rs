//! The worker's process on a card: what is answered while it works, what it refuses, what it leaves behind. Times are printed and only held to
//! ten times what is promised. Without a card, or without models (`tests/common/large_models.rs`), every test says SKIP.
#![cfg(feature = "cuda")]

mod common;
#[path = "common/large_models.rs"]
mod large_models;
#[allow(dead_code, reason = "the tests without a card use the rest")]
#[path = "stdio/support.rs"]
mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use common::say;
use large_models::{FirstCard, large_model};
use support::{PATIENCE, Running, command, generate};

/// The model whose prompts take long enough to be interrupted.
const LARGE: &str = "llama3-8b";

/// The model for everything else.
const SMALL: &str = "llama3-1b";

/// Tokens of a long prompt.
const LONG: usize = 8000;

/// `health` on a card, as PROTOCOL.md promises it for 99 of 100.
const HEALTH: Duration = Duration::from_millis(10);

/// `cancel`, as PROTOCOL.md promises it.
const CANCEL: Duration = Duration::from_millis(100);

/// How much longer a busy machine may take.
const SANE: u32 = 10;

/// What comes and goes on a card without being anybody's.
const ROOM: u64 = 64 << 20;

fn on_card(model: &Path, flags: &[&str]) -> Command {
    let mut command = command(&["--device", "cuda:0", "--model"]);
    command.arg(model).args(flags);
    command
}

/// A worker that is ready, and how long that took.
fn started(command: Command) -> (Running, Duration) {
    let since = Instant::now();
    let mut worker = Running::start(command);
    worker.until_method("ready");
    (worker, since.elapsed())
}

/// A request with a prompt of so many tokens, which no other has begun with, and so many to be drawn.
fn long_prompt(id: &str, n: usize, max_tokens: usize, salt: usize) -> Value {
    let tokens: Vec<usize> = (0..n).map(|i| 100 + (i * 37 + salt) % 1000).collect();
    generate(
        id,
        json!({"prompt_token_ids": tokens, "ignore_eos": true, "max_tokens": max_tokens, "temperature": 0, "cache_prompt": false}),
    )
}

fn shown(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort();
    let ms = |i: usize| times[i].as_secs_f64() * 1e3;
    let last = times.len() - 1;
    say(&format!(
        "{what}, {} times: p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, most {:.2} ms",
        times.len(),
        ms(times.len() / 2),
        ms(times.len() * 9 / 10),
        ms(times.len() * 99 / 100),
        ms(last)
    ));
    times[last]
}

/// How long it takes until a `health` is answered, which must not come after the first token.
fn health(worker: &mut Running, id: usize) -> Option<Duration> {
    let since = Instant::now();
    worker.say(&json!({"id": id, "method": "health"}));
    let said = worker.until(|line| line["id"] == id);
    let took = since.elapsed();
    let is_reading = said.iter().all(|line| line["method"] != "token");
    is_reading.then_some(took)
}

#[test]
fn health_is_answered_while_a_long_prompt_is_read() {
    let Some(_card) = FirstCard::open() else {
        return;
    };
    let Some(model) = large_model(LARGE) else {
        return;
    };
    let (mut worker, took) = started(on_card(&model, &["--ctx", "8448"]));
    say(&format!("{LARGE}: ready after {took:?}"));
    let mut times = Vec::new();
    for round in 0..3 {
        worker.say(&long_prompt("long", LONG, 400, round));
        worker.until_method("started");
        while let Some(time) = health(&mut worker, times.len()) {
            times.push(time);
            std::thread::sleep(Duration::from_millis(3));
        }
        worker.say(&json!({"id": "c", "method": "cancel", "params": {"request_id": "long"}}));
        worker.response("long");
    }
    assert!(
        !times.is_empty(),
        "the prompt was read before anybody asked"
    );
    let most = shown("health while a prompt of 8,000 tokens is read", times);
    assert!(most < HEALTH * SANE);
}

/// Cancels `long`, and says how long its end took.
fn cancel(worker: &mut Running) -> (Duration, Value) {
    let since = Instant::now();
    worker.say(&json!({"id": "c", "method": "cancel", "params": {"request_id": "long"}}));
    let result = worker.response("long")["result"].take();
    (since.elapsed(), result)
}

#[test]
fn a_cancel_stops_the_card() {
    let Some(_card) = FirstCard::open() else {
        return;
    };
    let Some(model) = large_model(LARGE) else {
        return;
    };
    let (mut worker, _) = started(on_card(&model, &["--ctx", "8448"]));
    let (mut reading, mut drawing) = (Vec::new(), Vec::new());
    for i in 0..10 {
        worker.say(&long_prompt("long", LONG, 400, i));
        worker.until_method("started");
        std::thread::sleep(Duration::from_millis(7 * i as u64));
        let (took, result) = cancel(&mut worker);
        assert_eq!(result["finish_reason"], "cancelled");
        assert_eq!(result["usage"]["completion_tokens"], 0);
        reading.push(took);
        worker.say(&long_prompt("long", 100, 400, i));
        worker.until_method("token");
        let (took, result) = cancel(&mut worker);
        assert_eq!(result["finish_reason"], "cancelled");
        drawing.push(took);
    }
    let most = shown("cancel while a prompt of 8,000 tokens is read", reading);
    let most = most.max(shown("cancel while tokens are drawn", drawing));
    assert!(most < CANCEL * SANE);
}

/// The error of the `fatal` that a worker ends with, and its exit code.
fn fatal(command: Command) -> (Value, Option<i32>) {
    let mut worker = Running::start(command);
    let mut said = worker.until(|line| line["method"] == "fatal" || line["method"] == "ready");
    let mut last = said.pop().expect("a line");
    assert_eq!(last["method"], "fatal", "it is ready: {last}");
    (last["params"]["error"].take(), worker.code())
}

fn bytes(error: &Value, which: &str) -> u64 {
    let number = error["data"]["details"][which].as_u64();
    number.unwrap_or_else(|| panic!("no {which} in {error}"))
}

/// What a pool of so many bytes, which does not fit, is refused with: bytes required and available.
fn refused(model: &Path, kv_bytes: u64) -> (u64, u64) {
    let (error, code) = fatal(on_card(model, &["--kv-bytes", &kv_bytes.to_string()]));
    assert_eq!(code, Some(75), "{error}");
    assert_eq!(error["data"]["code"], "INSUFFICIENT_VRAM", "{error}");
    let (required, available) = (
        bytes(&error, "required_bytes"),
        bytes(&error, "available_bytes"),
    );
    assert!(available > 0, "{error}");
    (required, available)
}

#[test]
fn a_pool_that_does_not_fit_is_refused_with_both_numbers() {
    let Some(card) = FirstCard::open() else {
        return;
    };
    let Some(model) = large_model(SMALL) else {
        return;
    };
    let (less, more) = (card.free_bytes(), card.free_bytes() / 4 * 5);
    let (for_less, available) = refused(&model, less);
    let (for_more, _) = refused(&model, more);
    assert!(for_more > for_less && for_less > available);

    // What is needed grows evenly with the pool: this one takes all that is free, and nothing is left for the kernels. So the memory is found
    // to be enough, and then is not.
    let each = (for_more - for_less) as f64 / (more - less) as f64;
    let all = less - ((for_less - available) as f64 / each) as u64;
    let (error, code) = fatal(on_card(&model, &["--kv-bytes", &all.to_string()]));
    say(&format!("a pool of all that is free: {}", error["message"]));
    assert_eq!(code, Some(75), "{error}");
    assert_eq!(error["data"]["code"], "INSUFFICIENT_VRAM");
}

#[test]
fn a_request_that_the_pool_cannot_hold_is_refused_and_the_worker_lives() {
    let Some(_card) = FirstCard::open() else {
        return;
    };
    let Some(model) = large_model(SMALL) else {
        return;
    };
    let (mut worker, _) = started(on_card(
        &model,
        &["--ctx", "8192", "--kv-bytes", "40000000"],
    ));
    worker.say(&long_prompt("much", 2000, 400, 0));
    let refused = worker.response("much");
    assert_eq!(refused["error"]["data"]["code"], "VRAM_OOM", "{refused}");
    let error = &refused["error"];
    assert!(bytes(error, "required_bytes") > bytes(error, "available_bytes"));
    worker.say(&long_prompt("little", 20, 40, 0));
    let done = worker.response("little");
    assert_eq!(done["result"]["usage"]["completion_tokens"], 40, "{done}");
}

#[test]
fn there_is_no_tenth_card() {
    let Some(_card) = FirstCard::open() else {
        return;
    };
    let Some(model) = large_model(SMALL) else {
        return;
    };
    let mut command = command(&["--device", "cuda:9", "--model"]);
    command.arg(&model);
    let (error, code) = fatal(command);
    assert_eq!(code, Some(69), "{error}");
    assert!(
        error["message"]
            .as_str()
            .expect("a message")
            .contains("card number 9"),
        "{error}"
    );
}

#[test]
fn a_seed_gives_the_same_haiku_in_two_processes() {
    let Some(_card) = FirstCard::open() else {
        return;
    };
    // words that mean something, where the real model is
    let Some(model) = common::model_path().or_else(|| large_model(SMALL)) else {
        return;
    };
    let haiku = json!({
        "messages": [{"role": "user", "content": "Write a haiku about GPU computing."}],
        "temperature": 0.7, "seed": 42, "max_tokens": 60, "return_token_ids": true, "stream": false,
    });
    let written = || {
        let (mut worker, _) = started(on_card(&model, &[]));
        worker.say(&generate("h", haiku.clone()));
        let written = worker.response("h")["result"].take();
        worker.say(&json!({"id": "health", "method": "health"}));
        let health = worker.response("health")["result"].take();
        assert_eq!(health["resident"], true, "{health}");
        written
    };
    let (first, second) = (written(), written());
    say(&format!("{}", first["text"]));
    assert!(
        first["token_ids"]
            .as_array()
            .is_some_and(|ids| !ids.is_empty()),
        "{first}"
    );
    assert_eq!(first["token_ids"], second["token_ids"]);
    assert_eq!(first["text"], second["text"]);
}

#[test]
fn a_process_takes_what_check_says_and_requests_leave_nothing() {
    let Some(card) = FirstCard::open() else {
        return;
    };
    let Some(model) = large_model(LARGE) else {
        return;
    };
    let check = on_card(&model, &["--check"])
        .output()
        .expect("the worker runs");
    let check: Value = serde_json::from_slice(&check.stdout).expect("JSON");
    let said = check["memory"]["total_bytes"].as_u64().expect("a number");
    let before = card.free_bytes();
    let (mut worker, _) = started(on_card(&model, &[]));
    let mut ask = |i: usize| {
        worker.say(&long_prompt("r", 20 + i, 3, i));
        assert!(worker.response("r")["error"].is_null());
    };
    ask(2000);
    std::thread::sleep(Duration::from_millis(500)); // it lets go of the model's file when it has nothing else to do
    let used = before - card.free_bytes();
    for i in 0..100 {
        ask(i);
    }
    let after = before - card.free_bytes();
    say(&format!(
        "{LARGE}: --check says {said} bytes; {used} are gone by the driver's word, context and kernels included, {after} after 100 requests"
    ));
    assert!(
        used.abs_diff(said) * 5 <= said,
        "{used} bytes, and {said} were said"
    );
    assert!(
        after <= used,
        "{after} bytes after 100 requests, {used} before"
    );
    drop(worker);
    gone(&card, before, "a worker that was killed");
}

/// Waits until the card's memory is free again.
fn gone(card: &FirstCard, before: u64, what: &str) {
    let since = Instant::now();
    while card.free_bytes() + ROOM < before {
        assert!(since.elapsed() < PATIENCE, "{what} keeps the card's memory");
        std::thread::sleep(Duration::from_millis(2));
    }
    say(&format!(
        "{what}: the memory was free after {:?}",
        since.elapsed()
    ));
}

#[test]
fn nothing_is_left_of_a_worker_whose_end_comes_while_the_card_works() {
    let Some(card) = FirstCard::open() else {
        return;
    };
    let Some(model) = large_model(LARGE) else {
        return;
    };
    let before = card.free_bytes();
    for (prompt, until) in [(LONG, "started"), (100, "token")] {
        let mut parent = Command::new("sleep").arg("1000").spawn().expect("sleep");
        let number = parent.id().to_string();
        let (mut worker, _) = started(on_card(&model, &["--ctx", "8448", "--parent-pid", &number]));
        worker.say(&long_prompt("long", prompt, 400, 0));
        worker.until_method(until);
        parent.kill().expect("killed");
        parent.wait().expect("waited");
        let (status, took) = worker.wait();
        say(&format!(
            "the parent killed after {until:?}: gone in {took:?}"
        ));
        assert_eq!(status.code(), Some(74));
        gone(&card, before, "a worker without its parent");

        for (signals, code) in [(1, 0), (2, 143)] {
            let (mut worker, _) = started(on_card(&model, &["--ctx", "8448", "--drain-ms", "100"]));
            worker.say(&long_prompt("long", prompt, 400, 0));
            worker.until_method(until);
            for _ in 0..signals {
                worker.signal(Signal::TERM);
                std::thread::sleep(Duration::from_millis(20));
            }
            let (status, took) = worker.wait();
            say(&format!(
                "{signals} SIGTERM after {until:?}: gone in {took:?}"
            ));
            assert_eq!(status.code(), Some(code));
            gone(&card, before, "a worker after SIGTERM");
        }
    }
}
