//! Every field that says how tokens are drawn, end to end: each test fails if its field is passed over. The fake model's logits are real
//! enough for that, and a byte of text is a token.

use serde_json::{Value, json};

use crate::support::{Running, fake, generate};

/// "e", the letter that comes up most.
const E: u32 = b'e' as u32;

/// The token with which the model ends.
const END: u32 = 256;

/// Entries in the vocabulary.
const VOCAB: u32 = 262;

/// Asks for these fields beside a prompt, without streaming, and gives the responses in order.
fn ask(requests: &[Value]) -> Vec<Value> {
    let mut worker = Running::start(fake("", &[]));
    for (id, fields) in requests.iter().enumerate() {
        let mut params = json!({"prompt": "hello", "add_special": false, "stream": false, "max_tokens": 60, "ignore_eos": true, "seed": 5});
        for (name, value) in fields.as_object().expect("fields") {
            params[name] = value.clone();
        }
        worker.say(&generate(id, params));
    }
    drop(worker.stdin.take());
    let said = worker.rest();
    let responses = said.into_iter().filter(|m| m.get("method").is_none());
    let responses: Vec<Value> = responses.collect();
    assert_eq!(responses.len(), requests.len());
    responses
}

/// The texts of what [`ask`] is told.
fn texts(requests: &[Value]) -> Vec<String> {
    let responses = ask(requests);
    let text = |r: &Value| r["result"]["text"].as_str().map(str::to_owned);
    let texts = responses
        .iter()
        .map(|r| text(r).unwrap_or_else(|| panic!("{r}")));
    texts.collect()
}

#[test]
fn what_leaves_only_the_likeliest_token_is_greedy() {
    let texts = texts(&[
        json!({"temperature": 0}),
        json!({"top_k": 1}),
        json!({"top_p": 1e-6}),
        json!({"min_p": 1.0}),
        json!({"top_n_sigma": 1e-6}),
        json!({}),
    ]);
    assert!(texts[1..5].iter().all(|text| *text == texts[0]));
    assert_ne!(texts[5], texts[0]);
}

#[test]
fn every_stage_changes_what_is_drawn_and_its_neutral_value_does_not() {
    let neutral = json!({
        "top_k": 0, "top_p": 1.0, "min_p": 0, "typical_p": 1, "min_tokens": 0, "presence_penalty": 0, "frequency_penalty": 0.0,
        "repetition_penalty": 1, "penalty_last_n": -1, "logit_bias": {}, "stop_token_ids": [], "top_n_sigma": 100,
        "dry": {"multiplier": 0}, "xtc": {"probability": 0},
    });
    let texts = texts(&[
        json!({}),
        neutral,
        json!({"typical_p": 0.1}),
        json!({"xtc": {"probability": 1}}),
        json!({"top_n_sigma": 0.2}),
        json!({"seed": 6}),
        json!({"temperature": 0.2}),
    ]);
    assert_eq!(texts[1], texts[0]);
    for (changed, text) in texts.iter().enumerate().skip(2) {
        assert_ne!(*text, texts[0], "request {changed}");
    }
}

#[test]
fn xtc_leaves_out_what_greedy_would_take() {
    let likeliest = ask(&[
        json!({"max_tokens": 1, "temperature": 0, "return_token_ids": true}),
        json!({"max_tokens": 1, "xtc": {"probability": 1, "threshold": 0.01}, "return_token_ids": true}),
        json!({"max_tokens": 1, "xtc": {"probability": 1, "threshold": 0.01}, "top_k": 1, "return_token_ids": true}),
    ]);
    let ids = [0, 1, 2].map(|at| likeliest[at]["result"]["token_ids"].clone());
    assert_ne!(ids[0], ids[1]);
    assert_eq!(ids[0], ids[2], "one alone stays");
}

#[test]
fn penalties_act_on_their_window() {
    let texts = texts(&[
        json!({"temperature": 0}),
        json!({"temperature": 0, "repetition_penalty": 1.5}),
        json!({"temperature": 0, "presence_penalty": 1.5}),
        json!({"temperature": 0, "frequency_penalty": 1.5}),
        json!({"temperature": 0, "frequency_penalty": -2}),
        json!({"temperature": 0, "frequency_penalty": 1.5, "penalty_last_n": 5}),
        json!({"temperature": 0, "repetition_penalty": 1.5, "presence_penalty": 2, "frequency_penalty": 2, "penalty_last_n": 0}),
    ]);
    for at in 1..6 {
        assert_ne!(texts[at], texts[0], "request {at}");
    }
    assert_ne!(texts[5], texts[3]);
    assert_eq!(texts[6], texts[0]);
}

/// Pairs of neighbours among the tokens of a response that come up more than once.
fn repeated_pairs(response: &Value) -> usize {
    let ids = |name: &str| response["result"][name].as_array().expect("ids").clone();
    let whole = [ids("prompt_token_ids"), ids("token_ids")].concat();
    let mut pairs: Vec<String> = whole.windows(2).map(|two| format!("{two:?}")).collect();
    pairs.sort_unstable();
    pairs.windows(2).filter(|two| two[0] == two[1]).count()
}

#[test]
fn dry_lets_no_pair_come_again_but_at_a_breaker() {
    let dry = |more: Value| {
        let mut dry = json!({"multiplier": 100, "base": 1, "allowed_length": 1});
        for (name, value) in more.as_object().expect("fields") {
            dry[name] = value.clone();
        }
        json!({"temperature": 0, "dry": dry, "return_token_ids": true})
    };
    let letters: Vec<String> = ('a'..='p').map(|letter| letter.to_string()).collect();
    let responses = ask(&[
        json!({"temperature": 0, "return_token_ids": true}),
        dry(json!({})),
        dry(json!({"allowed_length": 2})),
        dry(json!({"last_n": 0})),
        dry(json!({"sequence_breakers": letters})),
        dry(json!({"sequence_breakers": ["hello wor", "r"]})),
        dry(json!({"sequence_breakers": ["r"]})),
    ]);
    let text = |at: usize| &responses[at]["result"]["text"];
    assert!(repeated_pairs(&responses[0]) > 0);
    assert_eq!(repeated_pairs(&responses[1]), 0, "{}", text(1));
    assert!(repeated_pairs(&responses[2]) > 0);
    assert_eq!(text(3), text(0));
    assert!(repeated_pairs(&responses[4]) > 0);
    // Of a text that no token contains, the last token breaks a sequence.
    assert_eq!(text(5), text(6));
}

#[test]
fn logit_bias_forbids_and_favours_by_id_and_by_text() {
    let responses = ask(&[
        json!({"logit_bias": {"101": false, " ": false}}),
        json!({"logit_bias": {"xyz": 100}}),
        json!({"logit_bias": {"xyz": 50, "122": 100, "z": -100}}),
        json!({"temperature": 0, "logit_bias": {"é": 60}}),
    ]);
    let result = |at: usize| &responses[at]["result"];
    let text = |at: usize| result(at)["text"].as_str().expect("a text");
    assert!(
        !text(0).contains(['e', ' ']) && text(0).len() > 30,
        "{}",
        text(0)
    );
    assert_eq!(result(0)["sampling"]["logit_bias_tokens"], 2);
    assert!(text(1).chars().all(|c| "xyz".contains(c)), "{}", text(1));
    assert_eq!(result(1)["sampling"]["logit_bias_tokens"], 3);
    assert!(
        ["x", "y", "z"].iter().all(|c| text(2).contains(c)),
        "they add up: {}",
        text(2)
    );
    assert!(text(3).contains("éé"), "{}", text(3));
}

#[test]
fn a_stop_token_ends_it_and_is_no_part_of_the_text() {
    let mut worker = Running::start(fake("", &[]));
    let params = json!({"prompt": "hello", "temperature": 0, "ignore_eos": true, "stop_token_ids": [7, E], "max_tokens": 500});
    worker.say(&generate(1, params));
    let mut said = worker.until(|m| m.get("method").is_none() && m["id"] == 1);
    let result = said.pop().expect("a response")["result"].clone();
    assert_eq!(result["finish_reason"], "stop");
    assert_eq!(result["stop_reason"], E);
    let tokens: Vec<&Value> = said.iter().filter(|m| m["method"] == "token").collect();
    let last = &tokens.last().expect("tokens")["params"];
    assert_eq!((&last["token_id"], &last["text"]), (&json!(E), &json!("")));
    let others = &tokens[..tokens.len() - 1];
    assert!(others.iter().all(|t| t["params"]["token_id"] != E));
    assert_eq!(result["usage"]["completion_tokens"], tokens.len());
}

#[test]
fn nothing_ends_it_before_min_tokens() {
    let plain = ask(&[
        json!({"ignore_eos": false, "max_tokens": 2000, "return_token_ids": true}),
        json!({"temperature": 0, "stop": ["e"], "max_tokens": 2000, "logit_bias": {"256": false}}),
        json!({"temperature": 0, "stop_token_ids": [E], "max_tokens": 2000}),
    ]);
    let tokens = |r: &Value| r["result"]["usage"]["completion_tokens"].as_u64();
    let [ended, stopped, token] = [0, 1, 2].map(|at| tokens(&plain[at]).expect("a count"));
    assert_eq!(plain[0]["result"]["stop_reason"], "eos");
    let ids = plain[0]["result"]["token_ids"].as_array().expect("ids");
    assert_eq!(ids.last(), Some(&json!(END)));
    let longer = ask(&[
        json!({"ignore_eos": false, "max_tokens": 2000, "min_tokens": ended + 9}),
        json!({"temperature": 0, "stop": ["e"], "max_tokens": 2000, "logit_bias": {"256": false}, "min_tokens": stopped}),
        json!({"temperature": 0, "stop_token_ids": [E], "max_tokens": 2000, "min_tokens": token}),
        // The end may come as the token after them.
        json!({"ignore_eos": false, "min_tokens": 7, "logit_bias": {"256": 100}}),
    ]);
    for (response, more) in longer.iter().zip([ended + 9, stopped, token]) {
        assert_eq!(response["result"]["finish_reason"], "stop");
        assert!(tokens(response).expect("a count") > more, "{response}");
    }
    assert!(
        longer[1]["result"]["text"]
            .as_str()
            .expect("a text")
            .contains('e')
    );
    assert!(
        !longer[2]["result"]["text"]
            .as_str()
            .expect("a text")
            .contains('e')
    );
    assert_eq!(tokens(&longer[3]), Some(8));
}

#[test]
fn a_prompts_log_probabilities_are_those_that_its_tokens_had_when_they_were_drawn() {
    let drawn = ask(&[
        json!({"logprobs": 3, "max_tokens": 300, "return_token_ids": true, "prompt": "hello world"}),
    ]);
    let result = &drawn[0]["result"];
    let ids = |name: &str| result[name].as_array().expect("ids").clone();
    let whole = [ids("prompt_token_ids"), ids("token_ids")].concat();
    assert_eq!(ids("prompt_token_ids").len(), "hello world".len());
    // Twice: what the cache holds of the prompt has to be scored again.
    let params =
        json!({"prompt_token_ids": whole, "prompt_logprobs": 3, "max_tokens": 1, "stream": false});
    let mut worker = Running::start(fake("", &[]));
    for id in 0..2 {
        worker.say(&generate(id, params.clone()));
        let response = worker.response(id);
        let entries = response["result"]["prompt_logprobs"]
            .as_array()
            .expect("entries")
            .clone();
        assert_eq!(entries.len(), whole.len());
        assert_eq!(entries[0], json!({"token_id": whole[0], "text": "h"}));
        let before = "hello world".len();
        for (entry, drawn) in entries[before..]
            .iter()
            .zip(result["logprobs"].as_array().expect("entries"))
        {
            for field in ["token_id", "logprob", "top_logprobs"] {
                assert_eq!(entry[field], drawn[field]);
            }
        }
        assert!(entries[1]["logprob"].is_number() && entries[1]["text"] == "e");
    }
}

#[test]
fn a_long_prompts_log_probabilities_come_in_short_lines_and_in_order() {
    let mut worker = Running::start(fake("", &[]));
    let prompt = "abcdefghij".repeat(200);
    worker.say(&generate(
        "x",
        json!({"prompt": prompt, "add_special": false, "prompt_logprobs": 20, "max_tokens": 2}),
    ));
    let said = worker.until(|m| m.get("method").is_none() && m["id"] == "x");
    let mut next = 0;
    for line in said.iter().filter(|m| m["method"] == "prompt_logprobs") {
        assert!(line.to_string().len() < 64 * 1024);
        assert_eq!(line["params"]["from"], next);
        for entry in line["params"]["entries"].as_array().expect("entries") {
            assert_eq!(entry["token_id"], prompt.as_bytes()[next]);
            let alternatives = entry["top_logprobs"].as_array().map_or(0, Vec::len);
            assert_eq!(alternatives, if next == 0 { 0 } else { 20 });
            next += 1;
        }
    }
    assert_eq!(next, prompt.len());
    let methods: Vec<&str> = said.iter().filter_map(|m| m["method"].as_str()).collect();
    let first_token = methods.iter().position(|m| *m == "token").expect("a token");
    assert!(!methods[first_token..].contains(&"prompt_logprobs"));
    assert_eq!(
        said.last().expect("a response")["result"].get("prompt_logprobs"),
        None
    );
}

#[test]
fn token_ids_come_back_and_a_streamed_line_stays_short() {
    let mut worker = Running::start(fake("", &[]));
    let params = json!({"prompt": "hi", "add_special": false, "max_tokens": 3, "return_token_ids": true, "ignore_eos": true});
    worker.say(&generate(1, params));
    let said = worker.until(|m| m.get("method").is_none() && m["id"] == 1);
    let result = &said.last().expect("a response")["result"];
    assert_eq!(result["prompt_token_ids"], json!([104, 105]));
    let told = said.iter().filter(|m| m["method"] == "token");
    let told: Vec<Value> = told.map(|m| m["params"]["token_id"].clone()).collect();
    assert_eq!(result["token_ids"], json!(told));
    worker.say(&generate(
        2,
        json!({"prompt": "hi", "add_special": false, "max_tokens": 3}),
    ));
    assert_eq!(worker.response(2)["result"].get("token_ids"), None);
    worker.say(&generate(
        3,
        json!({"prompt": "hi", "add_special": false, "max_tokens": 7167, "return_token_ids": true}),
    ));
    let error = worker.response(3)["error"].clone();
    assert_eq!(error["data"]["param"], "return_token_ids");
    assert!(
        error["message"]
            .as_str()
            .expect("words")
            .contains("7169 tokens")
    );
}

#[test]
fn effective_values_are_told_with_all_defaults() {
    let responses = ask(&[json!({
        "min_tokens": 2, "typical_p": 0.5, "top_n_sigma": 2.5, "presence_penalty": 0.5, "frequency_penalty": -0.5,
        "penalty_last_n": 9, "dry": {"multiplier": 0.5}, "xtc": {"probability": 0.5},
    })]);
    let sampling = &responses[0]["result"]["sampling"];
    let want = json!({
        "max_tokens": 60, "min_tokens": 2, "temperature": 1.0, "top_n_sigma": 2.5, "top_k": 0, "typical_p": 0.5, "top_p": 1.0,
        "min_p": 0.0, "xtc": {"probability": 0.5, "threshold": 0.1}, "repetition_penalty": 1.0, "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "penalty_last_n": 9, "logit_bias_tokens": 0, "ignore_eos": true,
        "dry": {"multiplier": 0.5, "base": 1.75, "allowed_length": 2, "last_n": -1, "sequence_breakers": ["\n", ":", "\"", "*"]},
    });
    assert_eq!(*sampling, want);
}

#[test]
fn what_only_the_vocabulary_can_tell_is_wrong_is_told_at_once() {
    let too_large = VOCAB.to_string();
    let responses = ask(&[json!({
        "stop_token_ids": [1, VOCAB, 99_999], "min_tokens": 61,
        "logit_bias": {too_large: 1, "99999999999999999999": 1, "": 1, "a": false, "261": 1},
    })]);
    let error = &responses[0]["error"]["data"];
    assert_eq!(error["code"], "INVALID_PARAMS");
    let errors = error["errors"].as_array().expect("faults");
    let mut fields: Vec<&str> = errors.iter().filter_map(|e| e["field"].as_str()).collect();
    fields.sort_unstable();
    let want = [
        "logit_bias.262",
        "logit_bias.99999999999999999999",
        "logit_bias[\"\"]",
        "min_tokens",
        "stop_token_ids[1]",
        "stop_token_ids[2]",
    ];
    assert_eq!(fields, want);
}
