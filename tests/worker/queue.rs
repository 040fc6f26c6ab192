//! Requests that wait: order, cancelling, time limits, ids, bounds.

use std::time::Duration;

use serde_json::json;
use worker_orcd::worker::Pressure;

use crate::support::{Loading, Rig, Setup};

#[test]
fn first_in_first_out_one_at_a_time() {
    let mut rig = Rig::ready(Setup::default());
    for id in ["a", "b", "c"] {
        rig.generate(id, json!({"prompt": "p", "max_tokens": 1}));
    }
    rig.finish();
    let order = rig.order();
    let want = ["a", "b", "c"].map(|id| {
        [
            format!("started \"{id}\""),
            format!("token \"{id}\""),
            format!("result \"{id}\""),
        ]
    });
    assert_eq!(order, want.concat());
}

#[test]
fn requests_before_ready_wait_and_health_and_cancel_do_not() {
    let mut rig = Rig::unloaded(Setup {
        loading: Loading::Works { steps: 8 },
        ..Setup::default()
    });
    rig.generate(1, json!({"prompt": "p", "max_tokens": 1}));
    rig.generate(2, json!({"prompt": "p", "max_tokens": 1}));
    rig.say(json!({"id": 3, "method": "tokenize", "params": {"content": "ab"}}));
    rig.step();
    rig.say(json!({"id": 4, "method": "health"}));
    rig.say(json!({"id": 5, "method": "cancel", "params": {"request_id": 1}}));
    assert_eq!(rig.response(4)["result"]["status"], "starting");
    assert_eq!(rig.response(4)["result"]["queue_depth"], 2);
    assert_eq!(rig.response(5)["result"], json!({"found": true}));
    assert_eq!(rig.response(1)["result"]["finish_reason"], "cancelled");
    rig.finish();
    let order = rig.order();
    let at = |what: &str| {
        order
            .iter()
            .position(|o| o == what)
            .unwrap_or_else(|| panic!("{what}: {order:?}"))
    };
    assert!(at("ready") < at("started 2") && at("ready") < at("result 3"));
    assert_eq!(rig.response(3)["result"], json!({"token_ids": [97, 98]}));
    assert_eq!(rig.response(2)["result"]["finish_reason"], "length");
}

#[test]
fn a_load_is_told_at_every_quarter() {
    for steps in [1, 3, 4, 7, 100] {
        let mut rig = Rig::unloaded(Setup {
            loading: Loading::Works { steps },
            ..Setup::default()
        });
        rig.finish();
        let progress = rig.progress();
        let processed: Vec<_> = progress
            .iter()
            .map(|p| p["processed"].as_u64().unwrap())
            .collect();
        assert_eq!(processed, [0, 250, 500, 750, 1000], "{steps} steps");
        assert!(
            progress
                .iter()
                .all(|p| p["total"] == 1000 && p["phase"] == "load")
        );
        assert_eq!(rig.order().last().unwrap(), "ready");
    }
}

#[test]
fn a_cancel_is_answered_before_its_target() {
    let mut rig = Rig::ready(Setup::default());
    rig.generate(1, json!({"prompt": "p"}));
    rig.generate(2, json!({"prompt": "p"}));
    rig.step_until("token");
    rig.take();
    rig.say(json!({"id": 9, "method": "cancel", "params": {"request_id": 2}}));
    rig.say(json!({"id": 10, "method": "$/cancelRequest", "params": {"id": 1}}));
    assert_eq!(
        rig.order(),
        ["result 9", "result 2", "result 10", "result 1"]
    );
    let waiting = &rig.response(2)["result"];
    assert_eq!(waiting["finish_reason"], "cancelled");
    assert_eq!(waiting["stop_reason"], json!(null));
    assert_eq!(waiting["usage"]["total_tokens"], 0);
    let running = &rig.response(1)["result"];
    assert_eq!(running["finish_reason"], "cancelled");
    assert_eq!(running["usage"]["completion_tokens"], 1);
    rig.finish();
    assert_eq!(rig.said.len(), 4, "nothing follows the end");
}

#[test]
fn a_cancel_stops_the_device_in_the_middle_of_a_prefill() {
    let mut rig = Rig::ready(Setup::default());
    rig.script.borrow_mut().polls = 50;
    rig.generate(1, json!({"prompt": "a long prompt, longer than one chunk"}));
    rig.step_until("started");
    for _ in 0..60 {
        rig.step();
    }
    rig.take();
    rig.say(json!({"method": "notifications/cancelled", "params": {"requestId": 1}}));
    assert_eq!(rig.order(), ["result 1"]);
    assert_eq!(rig.script.borrow().aborts, 1);
    let usage = &rig.response(1)["result"]["usage"];
    assert_eq!(
        (&usage["prompt_tokens"], &usage["completion_tokens"]),
        (&json!(36), &json!(0))
    );
    // The device takes the next one.
    rig.script.borrow_mut().polls = 0;
    rig.generate(2, json!({"prompt": "p", "max_tokens": 1}));
    rig.finish();
    assert_eq!(rig.response(2)["result"]["finish_reason"], "length");
}

#[test]
fn a_cancel_while_the_prompt_is_made_uses_nothing() {
    let mut rig = Rig::ready(Setup::default());
    rig.generate(1, json!({"prompt": "x".repeat(3_000_000)}));
    rig.step();
    rig.step();
    rig.say(json!({"id": 2, "method": "cancel", "params": {"request_id": 1}}));
    assert_eq!(rig.order(), ["result 2", "result 1"]);
    assert_eq!(rig.response(1)["result"]["usage"]["total_tokens"], 0);
    assert!(rig.script.borrow().forwards.is_empty());
}

#[test]
fn nothing_to_cancel_is_no_error() {
    let mut rig = Rig::ready(Setup::default());
    rig.generate(1, json!({"prompt": "p", "max_tokens": 1}));
    rig.finish();
    rig.take();
    rig.say(json!({"id": 2, "method": "cancel", "params": {"request_id": 1}}));
    rig.say(json!({"id": 3, "method": "cancel", "params": {"request_id": "1"}}));
    rig.say(json!({"method": "cancel", "params": {"request_id": 7}}));
    assert_eq!(rig.order(), ["result 2", "result 3"]);
    assert!(
        rig.said
            .iter()
            .all(|m| m["result"] == json!({"found": false}))
    );
}

#[test]
fn a_time_limit_counts_the_queue() {
    let mut rig = Rig::ready(Setup::default());
    rig.generate(1, json!({"prompt": "p", "timeout_ms": 1000}));
    rig.generate(2, json!({"prompt": "p", "timeout_ms": 600}));
    rig.step_until("token");
    assert_eq!(rig.worker.deadline(), Some(rig.worker.deadline().unwrap()));
    rig.sleep(Duration::from_millis(600));
    assert_eq!(rig.response(2)["result"]["finish_reason"], "timeout");
    assert_eq!(rig.response(2)["result"]["stop_reason"], json!(null));
    assert_eq!(rig.response(2)["result"]["usage"]["total_tokens"], 0);
    assert!(
        rig.response(2)["result"]["timings"]["queue_ms"]
            .as_f64()
            .unwrap()
            >= 600.0
    );
    rig.sleep(Duration::from_millis(400));
    assert_eq!(rig.response(1)["result"]["finish_reason"], "timeout");
    assert_eq!(rig.response(1)["result"]["usage"]["completion_tokens"], 1);
    assert_eq!(rig.worker.deadline(), None);
    rig.finish();
    assert!(!rig.order().contains(&"started 2".to_owned()));
}

#[test]
fn defaults_of_the_worker_fill_what_a_request_leaves_out() {
    let mut rig = Rig::ready(Setup {
        max_tokens: Some(2),
        timeout_ms: Some(50),
        ..Setup::default()
    });
    rig.generate(1, json!({"prompt": "p"}));
    rig.finish();
    assert_eq!(rig.response(1)["result"]["stop_reason"], "max_tokens");
    assert_eq!(rig.response(1)["result"]["sampling"]["max_tokens"], 2);
    rig.generate(2, json!({"prompt": "p"}));
    rig.sleep(Duration::from_millis(50));
    assert_eq!(rig.response(2)["result"]["finish_reason"], "timeout");
}

#[test]
fn a_full_queue_refuses_and_goes_on() {
    let mut rig = Rig::ready(Setup {
        queue_max: 2,
        ..Setup::default()
    });
    for id in 1..=4 {
        rig.generate(id, json!({"prompt": "p", "max_tokens": 1}));
    }
    for id in [3, 4] {
        let error = &rig.response(id)["error"];
        assert_eq!(
            (&error["data"]["code"], &error["data"]["retriable"]),
            (&json!("QUEUE_FULL"), &json!(true))
        );
        assert_eq!(error["data"]["details"]["queue_max"], 2);
    }
    assert!(!rig.worker.has_room());
    rig.step();
    assert!(rig.worker.has_room());
    rig.generate(5, json!({"prompt": "p", "max_tokens": 1}));
    rig.finish();
    for id in [1, 2, 5] {
        assert_eq!(rig.response(id)["result"]["finish_reason"], "length");
    }
}

#[test]
fn what_waits_is_bounded_in_bytes_too() {
    let mut rig = Rig::unloaded(Setup {
        queue_max: 64,
        ..Setup::default()
    });
    let prompt = "x".repeat(15 * 1024 * 1024);
    for id in 1..=5 {
        rig.generate(id, json!({"prompt": prompt}));
    }
    assert_eq!(rig.order(), ["QUEUE_FULL 5"]);
    assert!(!rig.worker.has_room());
}

#[test]
fn an_id_that_is_taken_is_refused_for_every_method() {
    let mut rig = Rig::ready(Setup::default());
    rig.generate(1, json!({"prompt": "p", "max_tokens": 1}));
    rig.generate(2, json!({"prompt": "p", "max_tokens": 1}));
    rig.step_until("started");
    rig.take();
    rig.generate(1, json!({"prompt": "p"}));
    rig.say(json!({"id": 2, "method": "health"}));
    rig.say(json!({"id": 1, "method": "cancel", "params": {"request_id": 1}}));
    rig.say(json!({"id": 2, "method": "shutdown"}));
    assert_eq!(rig.order(), ["DUPLICATE_ID null"; 4]);
    assert_eq!(rig.said[0]["error"]["data"]["details"]["id"], 1);
    // 1 and "1" differ.
    rig.say(json!({"id": "1", "method": "health"}));
    rig.finish();
    assert_eq!(rig.response(1)["result"]["finish_reason"], "length");
    // An id is free again after its response.
    rig.take();
    rig.say(json!({"id": 1, "method": "health"}));
    assert_eq!(rig.response(1)["result"]["status"], "ready");
}

#[test]
fn unread_output_pauses_the_work_and_then_the_input() {
    assert_eq!(Pressure::of(0), Pressure::None);
    assert_eq!(Pressure::of(1024 * 1024 - 1), Pressure::None);
    assert_eq!(Pressure::of(1024 * 1024), Pressure::PauseWork);
    assert_eq!(Pressure::of(4 * 1024 * 1024), Pressure::PauseInput);
    let mut rig = Rig::unloaded(Setup::default());
    assert!(
        rig.worker.wants_work(Pressure::PauseInput),
        "a load goes on under any pressure"
    );
    rig.finish();
    assert!(!rig.worker.wants_work(Pressure::None));
    rig.generate(1, json!({"prompt": "p"}));
    assert!(rig.worker.wants_work(Pressure::None));
    assert!(!rig.worker.wants_work(Pressure::PauseWork));
    // What is paused can still be cancelled and still runs out of time.
    rig.say(json!({"id": 2, "method": "cancel", "params": {"request_id": 1}}));
    assert_eq!(rig.response(1)["result"]["finish_reason"], "cancelled");
}
