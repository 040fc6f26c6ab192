//! How a worker ends: end of input, drain, signals, failures.

use std::time::Duration;

use serde_json::{Value, json};
use worker_orcd::device::DeviceError;
use worker_orcd::load::LoadError;
use worker_orcd::worker::{Connection, Flush, Pressure, Signal};

use crate::support::{Failure, Loading, Rig, Setup};

fn busy() -> Rig {
    let mut rig = Rig::ready(Setup::default());
    rig.generate(1, json!({"prompt": "p", "max_tokens": 50}));
    rig.generate(2, json!({"prompt": "p", "max_tokens": 50}));
    rig.step_until("token");
    rig.take();
    rig
}

#[test]
fn the_end_of_input_finishes_everything_without_a_time_limit() {
    let mut rig = busy();
    rig.say(json!({"id": 3, "method": "tokenize", "params": {"content": "abc"}}));
    rig.worker.end_of_input(rig.now);
    rig.sleep(Duration::from_secs(3600));
    assert_eq!(rig.exit_code(), None);
    rig.finish();
    for id in [1, 2] {
        assert_eq!(rig.response(id)["result"]["usage"]["completion_tokens"], 50);
    }
    rig.response(3);
    assert_eq!(rig.exit_code(), Some(0));
    assert_eq!(rig.ending().unwrap().flush, Flush::Complete);
    assert!(!rig.order().contains(&"fatal".to_owned()));
}

#[test]
fn the_end_of_input_during_the_load_finishes_the_load() {
    let mut rig = Rig::unloaded(Setup {
        loading: Loading::Works { steps: 5 },
        ..Setup::default()
    });
    rig.generate(1, json!({"prompt": "p", "max_tokens": 1}));
    rig.worker.end_of_input(rig.now);
    rig.finish();
    assert!(rig.order().contains(&"ready".to_owned()));
    assert_eq!(rig.response(1)["result"]["finish_reason"], "length");
    assert_eq!(rig.exit_code(), Some(0));
}

#[test]
fn a_drain_finishes_what_was_accepted_and_refuses_the_rest() {
    let mut rig = busy();
    rig.say(json!({"id": "bye", "method": "shutdown"}));
    rig.generate(3, json!({"prompt": "p"}));
    rig.say(json!({"id": 4, "method": "tokenize", "params": {"content": "abc"}}));
    rig.say(json!({"id": 5, "method": "health"}));
    assert_eq!(
        rig.order(),
        ["SHUTTING_DOWN 3", "SHUTTING_DOWN 4", "result 5"]
    );
    assert_eq!(rig.response(5)["result"]["status"], "draining");
    rig.finish();
    assert_eq!(rig.response(2)["result"]["usage"]["completion_tokens"], 50);
    assert_eq!(
        rig.said.last(),
        Some(&json!({"jsonrpc": "2.0", "id": "bye", "result": {}}))
    );
    assert_eq!(rig.exit_code(), Some(0));
}

#[test]
fn a_drain_has_a_time_limit() {
    let mut rig = busy();
    rig.worker.signal(rig.now, Signal::Terminate);
    rig.sleep(Duration::from_millis(29_999));
    assert_eq!(rig.exit_code(), None);
    assert!(rig.worker.deadline().is_some());
    rig.sleep(Duration::from_millis(1));
    assert_eq!(rig.exit_code(), Some(0));
    for id in [1, 2] {
        assert_eq!(rig.response(id)["result"]["finish_reason"], "cancelled");
    }
    assert_eq!(rig.script.borrow().aborts, 1);
}

#[test]
fn shutdown_now_cancels_and_then_answers() {
    let mut rig = busy();
    rig.say(json!({"id": 3, "method": "tokenize", "params": {"content": "abc"}}));
    rig.say(json!({"id": "soft", "method": "shutdown"}));
    rig.say(json!({"id": "bye", "method": "shutdown", "params": {"mode": "now"}}));
    assert_eq!(
        rig.order(),
        [
            "result 1",
            "result 2",
            "SHUTTING_DOWN 3",
            "result \"soft\"",
            "result \"bye\""
        ]
    );
    assert_eq!(rig.response(1)["result"]["finish_reason"], "cancelled");
    assert_eq!(rig.exit_code(), Some(0));
    // Nobody is listened to any more.
    rig.say(json!({"id": 9, "method": "health"}));
    assert_eq!(rig.said.len(), 5);
}

#[test]
fn a_drain_during_the_load_gives_it_up() {
    let mut rig = Rig::unloaded(Setup {
        loading: Loading::Works { steps: 5 },
        ..Setup::default()
    });
    rig.generate(1, json!({"prompt": "p"}));
    rig.step();
    rig.worker.signal(rig.now, Signal::Terminate);
    rig.listen();
    assert_eq!(rig.response(1)["result"]["finish_reason"], "cancelled");
    assert_eq!(rig.exit_code(), Some(0));
    assert!(!rig.worker.wants_work(Pressure::None));
}

#[test]
fn a_second_sigterm_ends_at_once() {
    let mut rig = busy();
    rig.worker.signal(rig.now, Signal::Terminate);
    assert_eq!(rig.exit_code(), None);
    rig.worker.signal(rig.now, Signal::Terminate);
    rig.listen();
    assert_eq!(rig.exit_code(), Some(143));
    assert_eq!(rig.order(), ["result 1", "result 2", "fatal"]);
    assert_eq!(
        rig.said[2]["params"]["error"]["data"]["code"],
        "SHUTTING_DOWN"
    );
}

#[test]
fn a_sigterm_while_the_last_output_waits_ends_the_waiting() {
    let mut rig = Rig::ready(Setup::default());
    rig.worker.end_of_input(rig.now);
    assert_eq!(rig.ending().unwrap().flush, Flush::Complete);
    rig.worker.signal(rig.now, Signal::Terminate);
    assert!(matches!(rig.ending().unwrap().flush, Flush::Until(_)));
    assert_eq!(rig.exit_code(), Some(0));
    rig.worker.signal(rig.now, Signal::Terminate);
    assert_eq!(rig.exit_code(), Some(143));
}

#[test]
fn sigint_cancels_everything() {
    let mut rig = busy();
    rig.worker.signal(rig.now, Signal::Interrupt);
    rig.listen();
    assert_eq!(rig.exit_code(), Some(130));
    assert_eq!(rig.order(), ["result 1", "result 2", "fatal"]);
    assert_eq!(rig.response(2)["result"]["finish_reason"], "cancelled");
}

#[test]
fn who_is_gone_ends_it() {
    for connection in [Connection::Stdout, Connection::Parent, Connection::Stdin] {
        let mut rig = busy();
        rig.worker.connection_lost(rig.now, connection);
        rig.listen();
        assert_eq!(rig.exit_code(), Some(74));
        assert_eq!(rig.order().last().unwrap(), "fatal");
        // The first cause stays the cause.
        rig.worker.signal(rig.now, Signal::Interrupt);
        rig.listen();
        assert_eq!(rig.exit_code(), Some(74));
        assert_eq!(rig.order().iter().filter(|o| *o == "fatal").count(), 1);
    }
}

#[test]
fn a_lost_device_ends_everything_with_the_same_error() {
    for at in 0..8 {
        let mut rig = Rig::ready(Setup::default());
        rig.script.borrow_mut().failures = vec![(at, Failure::Lost)];
        rig.generate(1, json!({"prompt": "p", "max_tokens": 5}));
        rig.generate(2, json!({"prompt": "p", "max_tokens": 5}));
        rig.say(json!({"id": "bye", "method": "shutdown"}));
        rig.finish();
        assert_eq!(rig.exit_code(), Some(76));
        let order = rig.order();
        assert_eq!(
            order[order.len() - 4..],
            [
                "CUDA_ERROR 1",
                "CUDA_ERROR 2",
                "CUDA_ERROR \"bye\"",
                "fatal"
            ]
        );
        let fatal = &rig.said.last().unwrap()["params"]["error"];
        assert_eq!(fatal, &rig.response(2)["error"]);
        assert_eq!(fatal["data"]["retriable"], true);
        assert!(rig.response(1)["error"]["data"]["usage"].is_object());
        assert!(matches!(rig.ending().unwrap().flush, Flush::Until(_)));
    }
}

/// Makes the error that a load ends with, its exit code, and its name on the wire.
type FailedLoad = (fn() -> LoadError, u8, &'static str);

#[test]
fn a_failed_load_has_its_code() {
    let cases: [FailedLoad; 6] = [
        (
            || LoadError::NoInput("no such file".into()),
            66,
            "MODEL_LOAD_FAILED",
        ),
        (
            || LoadError::BadModel("bad magic".into()),
            65,
            "MODEL_LOAD_FAILED",
        ),
        (
            || LoadError::NoDevice("use --device cpu".into()),
            69,
            "MODEL_LOAD_FAILED",
        ),
        (
            || LoadError::NoMemory {
                message: "too large".into(),
                required_bytes: 7,
                available_bytes: 3,
            },
            75,
            "INSUFFICIENT_VRAM",
        ),
        (
            || LoadError::Device(DeviceError::Lost("gone".into())),
            76,
            "CUDA_ERROR",
        ),
        (
            || LoadError::Device(DeviceError::Step("failed".into())),
            76,
            "CUDA_ERROR",
        ),
    ];
    for (error, code, name) in cases {
        let mut rig = Rig::unloaded(Setup {
            loading: Loading::Fails { steps: 2, error },
            ..Setup::default()
        });
        rig.generate(1, json!({"prompt": "p"}));
        rig.say(json!({"id": 2, "method": "tokenize", "params": {"content": "p"}}));
        rig.finish();
        assert_eq!(rig.exit_code(), Some(code));
        let order = rig.order();
        assert_eq!(
            order[order.len() - 3..],
            [format!("{name} 1"), format!("{name} 2"), "fatal".to_owned()]
        );
        let fatal: &Value = &rig.said.last().unwrap()["params"]["error"];
        assert_eq!(fatal, &rig.response(1)["error"]);
        assert_eq!(
            fatal["data"]["details"]["model"],
            if code == 76 {
                Value::Null
            } else {
                json!("file")
            }
        );
        if code == 75 {
            assert_eq!(fatal["data"]["details"]["required_bytes"], 7);
            assert_eq!(fatal["data"]["details"]["available_bytes"], 3);
        }
    }
}
