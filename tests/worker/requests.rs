//! Everything but `generate`, and lines that are no requests.

use serde_json::{Value, json};
use worker_orcd::worker::ClockMode;
use worker_orcd_protocol::codec::Line;

use crate::support::{END, Rig, Setup, bytes};

#[test]
fn junk_is_answered_and_changes_nothing() {
    let mut rig = Rig::ready(Setup::default());
    rig.generate(1, json!({"prompt": "p", "max_tokens": 2}));
    rig.step_until("started");
    rig.take();
    rig.say_bytes(b"not json");
    rig.say_bytes(b"\xff\xfe");
    rig.say_bytes(b"[]");
    rig.say_bytes(b"{\"id\":7,\"method\":\"dance\"}");
    rig.say_bytes(
        b"{\"id\":8,\"method\":\"generate\",\"params\":{\"prompt\":\"p\",\"temperature\":9}}",
    );
    rig.say_bytes(b"{\"method\":\"generate\",\"params\":{\"prompt\":\"p\"}}");
    rig.worker
        .handle_line(rig.now, Line::TooLong { bytes: 99_000_000 });
    rig.listen();
    assert_eq!(
        rig.order(),
        [
            "PARSE_ERROR null",
            "PARSE_ERROR null",
            "INVALID_REQUEST null",
            "METHOD_NOT_FOUND 7",
            "INVALID_PARAMS 8",
            "INVALID_REQUEST null",
            "INVALID_REQUEST null",
        ]
    );
    assert_eq!(
        rig.said[6]["error"]["data"]["details"]["line_bytes"],
        99_000_000
    );
    rig.finish();
    assert_eq!(rig.response(1)["result"]["finish_reason"], "length");
}

#[test]
fn health_is_answered_between_two_pieces_of_work() {
    let mut rig = Rig::ready(Setup::default());
    rig.script.borrow_mut().polls = 100;
    rig.generate("job", json!({"prompt": "p", "max_tokens": 2}));
    rig.generate("next", json!({"prompt": "p", "max_tokens": 2}));
    rig.step_until("started");
    rig.say(json!({"id": 1, "method": "health"}));
    let health = rig.response(1)["result"].clone();
    assert_eq!(health["status"], "busy");
    assert_eq!(health["active_request"], "job");
    assert_eq!(health["queue_depth"], 1);
    assert_eq!(health["model"], "scripted");
    assert_eq!(health["device"], "script");
    assert_eq!(
        health["memory"],
        json!({"weights_bytes": 1000, "kv_bytes": 768, "scratch_bytes": 24, "total_bytes": 1792})
    );
    assert_eq!(
        (&health["steps_total"], &health["last_step_ms"]),
        (&json!(0), &Value::Null)
    );
    rig.finish();
    rig.say(json!({"id": 2, "method": "health"}));
    let health = &rig.response(2)["result"];
    assert_eq!(
        (&health["status"], &health["active_request"]),
        (&json!("ready"), &Value::Null)
    );
    // Two requests: two forwards and two samples each.
    assert_eq!(health["steps_total"], 8);
    assert!(health["last_step_ms"].as_f64().unwrap() > 99.0);
    assert!(health["uptime_seconds"].as_f64().unwrap() > 0.8);
}

#[test]
fn initialize_tells_what_ready_tells_and_before_that_what_is_known() {
    let mut rig = Rig::unloaded(Setup::default());
    rig.say(json!({"id": 1, "method": "initialize", "params": {"protocol_version": 1, "client_info": {"name": "me"}}}));
    assert_eq!(rig.response(1)["result"].get("model"), None);
    assert_eq!(rig.response(1)["result"]["limits"]["queue"], 4);
    rig.finish();
    let ready = rig.said.last().unwrap()["params"].clone();
    rig.say(json!({"id": 2, "method": "initialize"}));
    assert_eq!(rig.response(2)["result"], ready);
    assert_eq!(ready["model"]["context_length"], 600);
    assert_eq!(ready["server_info"]["worker_id"], "w1");
    let fields = ready["capabilities"]["generate_fields"].as_array().unwrap();
    assert!(fields.contains(&json!("prompt")) && fields.contains(&json!("ignore_eos")));
    assert!(rig.log.contains("\"client\":\"me\""));
}

#[test]
fn text_to_tokens_and_back() {
    let mut rig = Rig::ready(Setup::default());
    rig.say(json!({"id": 1, "method": "tokenize", "params": {"content": "a<|end|>é", "with_pieces": true}}));
    rig.say(json!({"id": 2, "method": "tokenize", "params": {"content": "<|end|>", "parse_special": false}}));
    rig.say(json!({"id": 3, "method": "detokenize", "params": {"token_ids": [97, END, 0xc3, 0xa9, 0xc3]}}));
    rig.say(json!({"id": 4, "method": "detokenize", "params": {"token_ids": [97, 9999]}}));
    rig.say(json!({"id": 5, "method": "apply_template", "params": {"messages": [{"role": "user", "content": "é"}]}}));
    rig.finish();
    assert_eq!(
        rig.response(1)["result"],
        json!({"token_ids": [97, END, 0xc3, 0xa9], "pieces": ["a", "<|end|>", "\u{fffd}", "\u{fffd}"]})
    );
    assert_eq!(
        rig.response(2)["result"],
        json!({"token_ids": bytes("<|end|>")})
    );
    assert_eq!(
        rig.response(3)["result"],
        json!({"content": "a<|end|>é\u{fffd}"})
    );
    assert_eq!(rig.response(4)["error"]["data"]["param"], "token_ids[1]");
    assert_eq!(rig.response(5)["result"], json!({"prompt": "[user]é"}));
}

#[test]
fn a_long_text_is_tokenized_beside_a_generation_and_neither_waits_for_the_other() {
    let mut rig = Rig::ready(Setup::default());
    rig.generate(1, json!({"prompt": "p", "max_tokens": 500}));
    rig.step_until("token");
    rig.take();
    let text = "some words ".repeat(20_000);
    rig.say(json!({"id": 2, "method": "tokenize", "params": {"content": text}}));
    rig.say(json!({"id": 3, "method": "detokenize", "params": {"token_ids": vec![97; 100_000]}}));
    let mut tokens_meanwhile = 0;
    while !rig.order().contains(&"result 3".to_owned()) {
        rig.step();
        assert!(
            rig.worker.wants_work(worker_orcd::worker::Pressure::None),
            "the generation has ended first"
        );
    }
    for what in rig.order() {
        tokens_meanwhile += usize::from(what == "token 1");
    }
    assert!(tokens_meanwhile > 5, "{tokens_meanwhile}");
    assert_eq!(
        rig.response(2)["result"]["token_ids"]
            .as_array()
            .unwrap()
            .len(),
        220_000
    );
    assert_eq!(
        rig.response(3)["result"]["content"].as_str().unwrap().len(),
        100_000
    );
    rig.finish();
    assert_eq!(rig.response(1)["result"]["usage"]["completion_tokens"], 500);
}

#[test]
fn a_generate_with_wrong_params_counts_as_rejected() {
    let mut rig = Rig::ready(Setup::default());
    rig.generate(1, json!({"prompt": "abc", "temperature": 3}));
    rig.say(json!({"method": "generate", "params": {"prompt": "nobody could be answered"}}));
    rig.say(json!({"id": 2, "method": "tokenize", "params": {}}));
    rig.say(json!({"id": 3, "method": "metrics"}));
    let metrics = &rig.response(3)["result"]["metrics"];
    assert_eq!(metrics["requests"]["rejected"], 2);
}

#[test]
fn an_error_never_carries_the_id_of_a_request_that_goes_on() {
    let mut rig = Rig::ready(Setup::default());
    rig.generate(1, json!({"prompt": "abc", "max_tokens": 2}));
    rig.say(json!({"id": 1, "method": "nope"}));
    rig.say(json!({"id": 1, "method": "tokenize", "params": {}}));
    assert_eq!(
        rig.order(),
        ["METHOD_NOT_FOUND null", "INVALID_PARAMS null"]
    );
    rig.finish();
    assert_eq!(rig.response(1)["result"]["finish_reason"], "length");
}

#[test]
fn metrics_count_what_has_happened() {
    let mut rig = Rig::ready(Setup {
        queue_max: 1,
        ..Setup::default()
    });
    rig.generate(1, json!({"prompt": "abc", "max_tokens": 3}));
    rig.generate(2, json!({"prompt": "abc", "max_tokens": 3}));
    rig.finish();
    rig.generate(3, json!({"prompt": "abc"}));
    rig.say(json!({"method": "cancel", "params": {"request_id": 3}}));
    rig.script.borrow_mut().tokens = [END].into();
    rig.generate(4, json!({"prompt": "x"}));
    rig.finish();
    rig.generate(5, json!({"prompt": "x".repeat(700)}));
    rig.finish();
    rig.say(json!({"id": 6, "method": "metrics"}));
    let metrics = &rig.response(6)["result"]["metrics"];
    assert_eq!(
        metrics["requests"],
        json!({"stop": 1, "length": 1, "cancelled": 1, "timeout": 0, "error": 1, "rejected": 1})
    );
    assert_eq!(
        metrics["tokens"],
        json!({"prompt": 4, "cached": 0, "completion": 4})
    );
    assert_eq!(metrics["time_to_first_token_ms"]["count"], 2);
    assert_eq!(metrics["inter_token_ms"]["count"], 2);
    assert_eq!(metrics["request_duration_ms"]["count"], 4);
    assert_eq!(
        metrics["labels"],
        json!({"worker_id": "w1", "model": "scripted", "quant_kind": "F32", "device": "script"})
    );
    rig.say(json!({"id": 7, "method": "metrics", "params": {"format": "prometheus"}}));
    let text = rig.response(7)["result"]["text"].as_str().unwrap();
    assert!(text.contains("quant_kind=\"F32\""), "{text}");
}

#[test]
fn the_log_tells_a_prompt_by_length_and_hash_only() {
    let mut rig = Rig::ready(Setup::default());
    rig.generate(1, json!({"prompt": "my secret", "max_tokens": 1}));
    rig.generate(
        2,
        json!({"messages": [{"role": "user", "content": "my secret"}], "max_tokens": 1}),
    );
    rig.generate(3, json!({"prompt": "my secret".repeat(100)}));
    rig.say_bytes(
        b"{\"id\":4,\"method\":\"generate\",\"params\":{\"prompt\":\"my secret\",\"top_p\":7}}",
    );
    rig.finish();
    assert!(!rig.log.contains("secret"), "{}", rig.log);
    let records: Vec<Value> = rig
        .log
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let start = records
        .iter()
        .find(|r| r["event"] == "execute_start")
        .unwrap();
    assert_eq!(start["prompt_bytes"], 9);
    assert_eq!(
        start["prompt_sha256"],
        "b9d1d013f600ec1bf16bae6a3634cad15dcc490c9f2835764201a41a1d70de44"
    );
    assert_eq!(
        (&start["request_id"], &start["worker_id"]),
        (&json!(1), &json!("w1"))
    );
    let events: Vec<_> = records
        .iter()
        .map(|r| r["event"].as_str().unwrap())
        .collect();
    for event in [
        "startup",
        "model_load_start",
        "model_load_complete",
        "ready",
        "execute_end",
        "error",
    ] {
        assert!(events.contains(&event), "{event} is missing in {events:?}");
    }
}

#[test]
fn a_frozen_clock_tells_no_time() {
    let run = || {
        let mut rig = Rig::unloaded(Setup {
            clock: ClockMode::Frozen,
            ..Setup::default()
        });
        rig.finish();
        rig.generate(1, json!({"prompt": "p", "max_tokens": 2}));
        rig.finish();
        rig.say(json!({"id": 2, "method": "health"}));
        rig.say(json!({"id": 3, "method": "metrics"}));
        (rig.said, rig.log)
    };
    let (first, second) = (run(), run());
    assert_eq!(first, second);
    let text = serde_json::to_string(&first.0).unwrap();
    for field in [
        "time_ms",
        "queue_ms",
        "ttft_ms",
        "decode_ms",
        "prefill_ms",
        "last_step_ms",
        "uptime_seconds",
        "pid",
    ] {
        let zero = [
            format!("\"{field}\":0.0"),
            format!("\"{field}\":0,"),
            format!("\"{field}\":0}}"),
        ];
        let told = text.matches(&format!("\"{field}\":")).count();
        let zeros: usize = zero.iter().map(|z| text.matches(z.as_str()).count()).sum();
        assert!(
            told > 0 && told == zeros,
            "{field}: {told} told, {zeros} are 0"
        );
    }
}
