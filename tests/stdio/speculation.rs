//! Speculation changes how fast tokens come and nothing else: the same events, bit for bit, with it and without.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Running, fake, generate, with_model};

/// The ways to ask for it; the first is without.
const WAYS: [&str; 5] = ["\"off\"", "\"auto\"", "1", "4", "32"];

/// What a request comes to: its tokens with texts and log-probabilities, the ends of its response, and how many tokens were drafted and accepted.
fn told(worker: &mut Running, id: usize, params: &Value, way: &str) -> (Value, u64, u64) {
    let mut params = params.clone();
    params["speculation"] = serde_json::from_str(way).expect("JSON");
    // What is in the pages must come from nothing but this request.
    params["cache_prompt"] = json!(false);
    worker.say(&generate(id, params));
    let said = worker.until(|line| line.get("method").is_none() && line["id"] == id);
    let result = &said.last().expect("a response")["result"];
    let tokens: Vec<Value> = said
        .iter()
        .filter(|line| line["method"] == "token")
        .map(|line| {
            let mut token = line["params"].clone();
            token["request_id"].take();
            token
        })
        .collect();
    let ends = [
        "finish_reason",
        "stop_reason",
        "usage",
        "tail",
        "text",
        "logprobs",
        "token_ids",
    ];
    let ends: Vec<&Value> = ends.iter().map(|name| &result[name]).collect();
    let count = |name: &str| result["timings"][name].as_u64().expect("a number");
    (json!([tokens, ends]), count("drafted"), count("accepted"))
}

/// Holds every way against the one without, and gives how many tokens were accepted in all.
fn compare(command: Command, requests: &[Value]) -> u64 {
    let mut worker = Running::start(command);
    let (mut id, mut accepted_in_all) = (0, 0);
    for params in requests {
        let mut without = None;
        for way in WAYS {
            id += 1;
            let (told, drafted, accepted) = told(&mut worker, id, params, way);
            assert!(accepted <= drafted && (way != WAYS[0] || drafted == 0));
            accepted_in_all += accepted;
            let without = without.get_or_insert_with(|| told.clone());
            assert_eq!(told, *without, "speculation {way} of {params}");
        }
    }
    accepted_in_all
}

#[test]
fn every_way_of_drawing_gives_the_same_tokens_with_it() {
    let every_stage = json!({
        "temperature": 0.8, "seed": 11, "top_n_sigma": 3, "top_k": 60, "typical_p": 0.95, "top_p": 0.95, "min_p": 0.01,
        "xtc": {"probability": 0.3}, "repetition_penalty": 1.05, "presence_penalty": 0.1, "frequency_penalty": 0.1, "penalty_last_n": 40,
        "dry": {"multiplier": 0.4}, "logit_bias": {"e": 1.0, "122": false}, "min_tokens": 5, "stop_token_ids": [122], "logprobs": 3,
    });
    let ways = [
        json!({"temperature": 0}),
        json!({"temperature": 0.8, "seed": 5, "logprobs": 2}),
        every_stage,
        json!({"temperature": 0.3, "seed": 8, "stop": ["an", "é"], "min_tokens": 20}),
        json!({"temperature": 0, "stream": false, "logprobs": 1, "return_token_ids": true}),
        json!({"temperature": 0, "prompt_logprobs": 1, "repetition_penalty": 0.5}),
        json!({"seed": 3, "ignore_eos": false}),
    ];
    let requests = ways.map(|fields| {
        let mut params =
            json!({"prompt": "la la la éé la la", "max_tokens": 120, "ignore_eos": true});
        for (name, value) in fields.as_object().expect("fields") {
            params[name] = value.clone();
        }
        params
    });
    let accepted = compare(fake("", &[]), &requests);
    assert!(accepted > 40, "{accepted} accepted");
}

#[test]
fn a_full_context_is_full_at_the_same_token() {
    let requests = [
        json!({"prompt": "ab ".repeat(20), "temperature": 0, "repetition_penalty": 0.5, "ignore_eos": true}),
    ];
    compare(fake("", &["--ctx", "100"]), &requests);
}

#[test]
fn the_real_model_says_the_same_with_it_to_the_last_bit() {
    let Some(command) = with_model(&[]) else {
        return;
    };
    let text = "The quick brown fox jumps over the lazy dog near the river bank. ";
    let prompt = format!("{}The quick brown", text.repeat(3));
    let params = |fields: Value| {
        let mut params =
            json!({"prompt": prompt, "max_tokens": 24, "ignore_eos": true, "logprobs": 2});
        for (name, value) in fields.as_object().expect("fields") {
            params[name] = value.clone();
        }
        params
    };
    let requests = [
        params(json!({"temperature": 0})),
        params(
            json!({"temperature": 0.8, "seed": 4, "top_k": 50, "top_p": 0.9, "dry": {"multiplier": 0.05}, "repetition_penalty": 1.01}),
        ),
    ];
    let accepted = compare(command, &requests);
    assert!(accepted > 40, "{accepted} accepted");
}
