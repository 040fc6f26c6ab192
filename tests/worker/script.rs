//! A life of a worker that dice decide: requests, cancels, junk, time, device failures and ends; and what holds whatever happens.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::{Value, json};
use worker_orcd::worker::{Connection, Signal};

use super::support::{END, Failure, Loading, PAD, Rig, Setup};

/// What decides: a seed, or a fuzzer's bytes.
pub trait Dice {
    /// A number below `sides`.
    fn throw(&mut self, sides: usize) -> usize;
}

/// Lets a worker live and fails if a rule is broken.
pub fn run(dice: &mut impl Dice) {
    let mut rig = Rig::unloaded(setup(dice));
    prepare_device(dice, &rig);
    let mut asked: Vec<Value> = Vec::new();
    for _ in 0..dice.throw(60) + 5 {
        act(dice, &mut rig, &mut asked);
        for _ in 0..dice.throw(12) {
            rig.step();
        }
    }
    rig.worker.end_of_input(rig.now);
    for _ in 0..dice.throw(4) {
        act_after_input(dice, &mut rig);
    }
    rig.finish();
    rig.sleep(Duration::from_secs(100));
    assert!(rig.ending().is_some(), "the worker never ends");
    check(&rig, &asked);
}

fn setup(dice: &mut impl Dice) -> Setup {
    let steps = dice.throw(6) as u64;
    let loading = match dice.throw(12) {
        0 => Loading::Fails {
            steps,
            error: || worker_orcd::load::LoadError::BadModel("bad".into()),
        },
        _ => Loading::Works { steps },
    };
    Setup {
        loading,
        pages: 1 + dice.throw(3),
        context_length: 20 + dice.throw(600),
        ..Setup::default()
    }
}

fn prepare_device(dice: &mut impl Dice, rig: &Rig) {
    let mut script = rig.script.borrow_mut();
    script.polls = dice.throw(4);
    script.tokens = (0..dice.throw(300))
        .map(|_| match dice.throw(20) {
            0 => END,
            1 => PAD,
            n => [0xc3, 0xa9, u32::from(b'a'), u32::from(b'b')][n % 4],
        })
        .collect();
    if dice.throw(3) == 0 {
        let failure = if dice.throw(3) == 0 {
            Failure::Lost
        } else {
            Failure::Step
        };
        script.failures.push((dice.throw(200), failure));
    }
}

/// Does one thing that a client, a parent or the clock could do. Notes the id of a request that wants an answer.
fn act(dice: &mut impl Dice, rig: &mut Rig, asked: &mut Vec<Value>) {
    let fresh = json!(asked.len());
    let known = json!(dice.throw(asked.len() + 2));
    let (id, method, params) = match dice.throw(40) {
        0..=13 => (Some(fresh), "generate", generate_params(dice)),
        14..=19 => (Some(fresh), "cancel", json!({"request_id": known})),
        20 => (None, "cancel", json!({"request_id": known})),
        21..=23 => (Some(fresh), "health", json!({})),
        24 => (Some(fresh), "metrics", json!({})),
        25..=26 => (Some(fresh), "tokenize", json!({"content": "abé"})),
        27 => (Some(fresh), "detokenize", json!({"token_ids": [97, 300]})),
        28 => (
            Some(fresh),
            "apply_template",
            json!({"messages": [{"role": "user", "content": "x"}]}),
        ),
        29 => (Some(fresh), "initialize", json!({})),
        30 => return rig.say_bytes(&junk(dice)),
        31 => return rig.sleep(Duration::from_millis(dice.throw(400) as u64)),
        32 => return rig.sleep(Duration::from_millis(100 * dice.throw(400) as u64)),
        33 if dice.throw(4) == 0 => (
            Some(fresh),
            "shutdown",
            json!({"mode": if dice.throw(2) == 0 { "now" } else { "drain" }}),
        ),
        34 if dice.throw(8) == 0 => return rig.worker.signal(rig.now, Signal::Terminate),
        35 if dice.throw(16) == 0 => return rig.worker.signal(rig.now, Signal::Interrupt),
        36 if dice.throw(16) == 0 => {
            return rig.worker.connection_lost(rig.now, Connection::Parent);
        }
        _ => return rig.step(),
    };
    // After the end nobody is listened to, and nobody is answered.
    let heard = rig.ending().is_none();
    let mut line = json!({"method": method, "params": params});
    if let Some(id) = id {
        line["id"] = id.clone();
        if heard {
            asked.push(json!({"id": id, "method": method}));
        }
    }
    rig.say(line);
}

/// What can still happen when nobody says anything more.
fn act_after_input(dice: &mut impl Dice, rig: &mut Rig) {
    match dice.throw(8) {
        0 => rig.sleep(Duration::from_millis(100 * dice.throw(400) as u64)),
        1 => rig.worker.signal(rig.now, Signal::Terminate),
        2 => rig.worker.signal(rig.now, Signal::Interrupt),
        3 => rig.worker.connection_lost(rig.now, Connection::Stdout),
        _ => rig.step(),
    }
}

/// A line that is no request. It is shorter than `{"id":1}`, which would be answered under the id of another.
fn junk(dice: &mut impl Dice) -> Vec<u8> {
    let bytes = (0..dice.throw(8)).map(|_| dice.throw(256) as u8);
    std::iter::once(b'{').chain(bytes).take(7).collect()
}

fn generate_params(dice: &mut impl Dice) -> Value {
    let mut params = json!({"max_tokens": 1 + dice.throw(30), "stream": dice.throw(3) > 0});
    match dice.throw(6) {
        0 => params["prompt_token_ids"] = json!([1, 2, dice.throw(300)]),
        1 => params["messages"] = json!([{"role": "user", "content": "hello"}]),
        _ => params["prompt"] = json!("p".repeat(1 + dice.throw(40))),
    }
    match dice.throw(8) {
        0 => params["timeout_ms"] = json!(1 + dice.throw(200)),
        1 => params["stop"] = json!(["ab", "aa", "é"]),
        2 => params["temperature"] = json!(3),
        3 => params["logprobs"] = json!(dice.throw(4)),
        _ => {}
    }
    params
}

fn check(rig: &Rig, asked: &[Value]) {
    let order = rig.order();
    let mut responses: HashMap<String, usize> = HashMap::new();
    let mut started: Vec<String> = Vec::new();
    let mut ended: HashSet<String> = HashSet::new();
    let mut indices: HashMap<String, u64> = HashMap::new();
    for message in &rig.said {
        match message.get("method").and_then(Value::as_str) {
            Some("started") => {
                let id = message["params"]["request_id"].to_string();
                assert!(
                    started.iter().all(|other| ended.contains(other)),
                    "two run at once: {order:?}"
                );
                assert!(!ended.contains(&id), "{id} starts after its end");
                started.push(id);
            }
            Some("token") => {
                let id = message["params"]["request_id"].to_string();
                assert_eq!(
                    started.last(),
                    Some(&id),
                    "a token of who does not run: {order:?}"
                );
                assert!(!ended.contains(&id), "a token after the end: {order:?}");
                let index = indices.entry(id).or_default();
                assert_eq!(message["params"]["index"], *index);
                *index += 1;
            }
            Some("fatal") => assert!(
                std::ptr::eq(message, rig.said.last().unwrap()),
                "something follows fatal: {order:?}"
            ),
            Some(_) => {}
            None if message["id"].is_null() => {}
            None => {
                let id = message["id"].to_string();
                *responses.entry(id.clone()).or_default() += 1;
                ended.insert(id);
            }
        }
    }
    for request in asked {
        let id = request["id"].to_string();
        assert_eq!(
            responses.get(&id),
            Some(&1),
            "{request} is not answered exactly once: {order:?}"
        );
    }
    let in_order: Vec<u64> = started.iter().map(|id| id.parse().unwrap()).collect();
    assert!(in_order.is_sorted(), "not first in, first out: {order:?}");
    let fatal = order.last().is_some_and(|last| last == "fatal");
    assert_eq!(fatal, rig.exit_code() != Some(0), "{order:?}");
    assert!(
        rig.log
            .lines()
            .all(|line| serde_json::from_str::<Value>(line).is_ok())
    );
}
