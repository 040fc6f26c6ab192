//! One `generate` from its prompt to its response.

use serde_json::{Value, json};
use worker_orcd::device::Rows;
use worker_orcd::gguf::Metadata;
use worker_orcd::sampling::uniform;
use worker_orcd::text::Tokenizer;

use crate::support::{END, PAD, Rig, STEP_TOKENS_MAX, Setup, bytes};

#[test]
fn a_generation_is_told_in_order() {
    let mut rig = Rig::ready(Setup::default());
    rig.script.borrow_mut().tokens = bytes("hi!").into();
    rig.generate(1, json!({"prompt": "abc", "max_tokens": 3, "seed": 9}));
    rig.finish();
    assert_eq!(
        rig.order(),
        ["started 1", "token 1", "token 1", "token 1", "result 1"]
    );
    assert_eq!(rig.texts(1), ["h", "i", "!"]);
    let started = &rig.said[0]["params"];
    assert_eq!(
        (
            &started["prompt_tokens"],
            &started["cached_tokens"],
            &started["seed"]
        ),
        (&json!(3), &json!(0), &json!(9))
    );
    assert_eq!(rig.said[2]["params"]["index"], 1);
    assert_eq!(rig.said[2]["params"]["token_id"], u32::from(b'i'));
    let result = &rig.response(1)["result"];
    assert_eq!(result["finish_reason"], "length");
    assert_eq!(result["stop_reason"], "max_tokens");
    assert_eq!(
        result["usage"],
        json!({"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6, "prompt_tokens_details": {"cached_tokens": 0}})
    );
    assert_eq!((&result["seed"], &result["tail"]), (&json!(9), &json!("")));
    assert_eq!(result.get("text"), None);
}

#[test]
fn a_long_prompt_goes_to_the_device_in_chunks_and_each_token_alone() {
    let mut rig = Rig::ready(Setup::default());
    let prompt = "x".repeat(2 * STEP_TOKENS_MAX + 3);
    rig.generate(
        1,
        json!({"prompt": prompt, "max_tokens": 3, "return_progress": true}),
    );
    rig.finish();
    let forwards: Vec<_> = rig
        .script
        .borrow()
        .forwards
        .iter()
        .map(|f| (f.1.len(), f.2, f.3))
        .collect();
    let want = [
        (8, 0, Rows::None),
        (8, 8, Rows::None),
        (3, 16, Rows::Last),
        (1, 19, Rows::Last),
        (1, 20, Rows::Last),
    ];
    assert_eq!(forwards, want);
    let progress = rig.progress();
    let processed: Vec<_> = progress
        .iter()
        .map(|p| p["processed"].as_u64().unwrap())
        .collect();
    assert_eq!(processed, [0, 8, 16, 19]);
    assert!(
        progress
            .iter()
            .all(|p| p["total"] == 19 && p["phase"] == "prefill" && p["request_id"] == 1)
    );
}

#[test]
fn each_draw_uses_the_number_that_seed_and_index_say_and_the_whole_history() {
    let mut rig = Rig::ready(Setup::default());
    rig.generate(1, json!({"prompt": "abc", "max_tokens": 3, "seed": 77}));
    rig.finish();
    let want: Vec<_> = (0..3).map(|i| (uniform(77, i), 3 + i as usize)).collect();
    assert_eq!(rig.script.borrow().samples, want);
}

#[test]
fn a_seed_is_drawn_where_none_is_given_and_reported() {
    let mut rig = Rig::ready(Setup::default());
    rig.generate(1, json!({"prompt": "a", "max_tokens": 1}));
    rig.generate(2, json!({"prompt": "a", "max_tokens": 1}));
    rig.finish();
    let seeds = [1, 2].map(|id| rig.response(id)["result"]["seed"].as_u64().unwrap());
    assert_ne!(seeds[0], seeds[1]);
    assert!(seeds.iter().all(|seed| *seed < 1 << 53));
    assert_eq!(rig.said[0]["params"]["seed"], seeds[0]);
    assert_eq!(rig.script.borrow().samples[0].0, uniform(seeds[0], 0));
}

/// What a request gives with stream on and off: the texts of its tokens, its tail, its whole text, its stop_reason.
fn both_ways(text: &[u8], params: Value) -> (Vec<String>, String, String, Value) {
    let tokens: Vec<u32> = text.iter().map(|b| u32::from(*b)).collect();
    let mut params = params;
    params["prompt"] = json!("p");
    let mut streamed = Rig::ready(Setup::default());
    streamed.script.borrow_mut().tokens = tokens.clone().into();
    streamed.generate(1, params.clone());
    streamed.finish();
    params["stream"] = json!(false);
    let mut whole = Rig::ready(Setup::default());
    whole.script.borrow_mut().tokens = tokens.into();
    whole.generate(1, params);
    whole.finish();
    assert_eq!(whole.order(), ["started 1", "result 1"]);
    let (streamed_result, whole_result) = (
        &streamed.response(1)["result"],
        &whole.response(1)["result"],
    );
    assert_eq!(streamed_result["stop_reason"], whole_result["stop_reason"]);
    assert_eq!(streamed_result["usage"], whole_result["usage"]);
    assert_eq!(whole_result["tail"], "");
    let string = |v: &Value| v.as_str().unwrap().to_owned();
    let tail = string(&streamed_result["tail"]);
    let text = string(&whole_result["text"]);
    assert_eq!(streamed.texts(1).concat() + &tail, text);
    (
        streamed.texts(1),
        tail,
        text,
        streamed_result["stop_reason"].clone(),
    )
}

#[test]
fn a_stop_string_across_tokens_is_not_part_of_the_text() {
    let (texts, tail, text, stop_reason) = both_ways(
        b"so it ENDs here",
        json!({"stop": ["END", "xyz"], "max_tokens": 20}),
    );
    assert_eq!(texts, ["s", "o", " ", "i", "t", " ", "", "", ""]);
    assert_eq!(
        (tail.as_str(), text.as_str(), &stop_reason),
        ("", "so it ", &json!("END"))
    );
}

#[test]
fn what_only_began_like_a_stop_string_comes_later() {
    let (texts, tail, ..) = both_ways(b"ENE EN", json!({"stop": ["END"], "max_tokens": 6}));
    assert_eq!(texts, ["", "", "EN", "E ", "", ""]);
    assert_eq!(tail, "EN");
}

#[test]
fn characters_come_whole() {
    let (texts, tail, ..) = both_ways("é😊\u{65e5}".as_bytes(), json!({"max_tokens": 9}));
    assert_eq!(texts, ["", "é", "", "", "", "😊", "", "", "日"]);
    assert_eq!(tail, "");
    // Half a character at the end can never complete.
    let (texts, tail, ..) = both_ways(&"😊".as_bytes()[..3], json!({"max_tokens": 3}));
    assert_eq!((texts.concat().as_str(), tail.as_str()), ("", "\u{fffd}"));
}

#[test]
fn any_text_and_any_stop_strings_are_the_same_streamed_and_whole() {
    for seed in 0..60 {
        let random = |i: u64, n: usize| (uniform(seed, i) * n as f64) as usize;
        let alphabet = ["a", "b", "<", "é", "😊"];
        let text: String = (0..30).map(|i| alphabet[random(i, 5)]).collect();
        let stop: Vec<String> = (0..random(90, 4) as u64)
            .map(|s| {
                (0..1 + random(100 + s, 3) as u64)
                    .map(|i| alphabet[random(200 + 10 * s + i, 5)])
                    .collect()
            })
            .collect();
        let cut = 1 + random(91, text.len());
        let (.., got, _) = both_ways(text.as_bytes(), json!({"stop": stop, "max_tokens": cut}));
        let whole = String::from_utf8_lossy(&text.as_bytes()[..cut]).into_owned();
        assert!(
            whole.starts_with(&got),
            "{got:?} of {whole:?}, stop {stop:?}"
        );
        assert!(
            stop.iter().all(|s| !got.contains(s.as_str())),
            "{got:?}, stop {stop:?}"
        );
    }
}

#[test]
fn the_models_end_ends_it_unless_it_is_to_be_passed_over() {
    let tokens = [u32::from(b'a'), PAD, END, u32::from(b'b')];
    let mut rig = Rig::ready(Setup::default());
    rig.script.borrow_mut().tokens = tokens.into();
    rig.generate(1, json!({"prompt": "p", "max_tokens": 4}));
    rig.finish();
    assert_eq!(rig.texts(1), ["a", "", ""]);
    let result = &rig.response(1)["result"];
    assert_eq!(
        (&result["finish_reason"], &result["stop_reason"]),
        (&json!("stop"), &json!("eos"))
    );
    assert_eq!(result["usage"]["completion_tokens"], 3);

    rig.said.clear();
    rig.script.borrow_mut().tokens = tokens.into();
    rig.generate(
        2,
        json!({"prompt": "p", "max_tokens": 4, "ignore_eos": true}),
    );
    rig.finish();
    assert_eq!(rig.texts(2), ["a", "", "", "b"]);
    assert_eq!(rig.response(2)["result"]["stop_reason"], "max_tokens");
    assert_eq!(rig.response(2)["result"]["sampling"]["ignore_eos"], true);
}

#[test]
fn the_context_ends_it_and_a_prompt_that_does_not_fit_is_an_error() {
    let mut rig = Rig::ready(Setup {
        context_length: 10,
        queue_max: 5,
        ..Setup::default()
    });
    rig.generate(1, json!({"prompt": "12345678"}));
    rig.generate(2, json!({"prompt": "12345678", "max_tokens": 3}));
    rig.generate(3, json!({"prompt": "12345678", "max_tokens": 2}));
    rig.generate(4, json!({"prompt": "1234567890"}));
    rig.generate(5, json!({"prompt": "123456789"}));
    rig.finish();
    let ends = [1, 2, 3].map(|id| {
        let result = &rig.response(id)["result"];
        (
            result["stop_reason"].clone(),
            result["usage"]["completion_tokens"].clone(),
            result["sampling"]["max_tokens"].clone(),
        )
    });
    assert_eq!(
        ends,
        [
            (json!("context"), json!(2), json!(2)),
            (json!("context"), json!(2), json!(3)),
            (json!("max_tokens"), json!(2), json!(2)),
        ]
    );
    let error = &rig.response(4)["error"];
    assert_eq!(error["data"]["code"], "CONTEXT_OVERFLOW");
    assert_eq!(
        error["data"]["details"],
        json!({"prompt_tokens": 10, "context_length": 10})
    );
    assert_eq!(rig.response(5)["result"]["usage"]["completion_tokens"], 1);
    // Nobody was told that number 4 had started.
    assert!(!rig.order().contains(&"started 4".to_owned()));
}

#[test]
fn a_job_that_the_pool_has_no_pages_for_is_refused_when_it_is_admitted() {
    let mut rig = Rig::ready(Setup {
        pages: 2,
        context_length: 600,
        ..Setup::default()
    });
    rig.generate(1, json!({"prompt": "abc", "max_tokens": 510}));
    rig.generate(2, json!({"prompt": "abc", "max_tokens": 4}));
    rig.finish();
    let error = &rig.response(1)["error"];
    assert_eq!(
        (&error["data"]["code"], &error["data"]["retriable"]),
        (&json!("VRAM_OOM"), &json!(true))
    );
    assert_eq!(
        error["data"]["details"],
        json!({"required_bytes": 768, "available_bytes": 512})
    );
    assert_eq!(rig.response(2)["result"]["stop_reason"], "max_tokens");
}

#[test]
fn pages_come_back_after_every_end() {
    let mut rig = Rig::ready(Setup {
        pages: 1,
        context_length: 200,
        ..Setup::default()
    });
    for id in 0..5 {
        rig.generate(id, json!({"prompt": "abc", "max_tokens": 5}));
        rig.step_until("token");
        rig.say(json!({"method": "cancel", "params": {"request_id": id}}));
        rig.finish();
        assert_eq!(rig.response(id)["result"]["finish_reason"], "cancelled");
    }
}

#[test]
fn messages_become_a_prompt_by_the_template() {
    let mut rig = Rig::ready(Setup::default());
    rig.generate(
        1,
        json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}),
    );
    rig.finish();
    let seen: Vec<u32> = rig
        .script
        .borrow()
        .forwards
        .iter()
        .flat_map(|f| f.1.clone())
        .collect();
    assert_eq!(seen, bytes("[user]hi"));
}

#[test]
fn a_model_without_template_takes_no_messages() {
    let mut rig = Rig::ready(Setup {
        template: None,
        ..Setup::default()
    });
    rig.generate(
        1,
        json!({"messages": [{"role": "user", "content": "secret"}]}),
    );
    rig.finish();
    let error = &rig.response(1)["error"];
    assert_eq!(error["data"]["code"], "TEMPLATE_ERROR");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("--chat-template")
    );
    assert!(!rig.log.contains("secret"));
}

#[test]
fn token_ids_are_taken_as_they_are_if_the_vocabulary_has_them() {
    let mut rig = Rig::ready(Setup::default());
    rig.generate(1, json!({"prompt_token_ids": [5, PAD, 7], "max_tokens": 1}));
    rig.generate(2, json!({"prompt_token_ids": [5, 258], "max_tokens": 1}));
    rig.finish();
    assert_eq!(rig.script.borrow().forwards[0].1, [5, PAD, 7]);
    let error = &rig.response(2)["error"];
    assert_eq!(error["data"]["code"], "INVALID_PARAMS");
    assert_eq!(error["data"]["param"], "prompt_token_ids[1]");
}

#[test]
fn logprobs_come_with_each_token_or_with_the_response() {
    let mut rig = Rig::ready(Setup::default());
    rig.generate(1, json!({"prompt": "p", "max_tokens": 2, "logprobs": 2}));
    rig.generate(
        2,
        json!({"prompt": "p", "max_tokens": 2, "logprobs": 0, "stream": false}),
    );
    rig.generate(3, json!({"prompt": "p", "max_tokens": 1}));
    rig.finish();
    let token = &rig.said.iter().find(|m| m["method"] == "token").unwrap()["params"];
    assert_eq!(token["logprob"], -0.5);
    let top = json!([
        {"token_id": 97, "text": "a", "logprob": -0.5},
        {"token_id": 98, "text": "b", "logprob": -1.5}
    ]);
    assert_eq!(token["top_logprobs"], top);
    assert_eq!(rig.response(1)["result"].get("logprobs"), None);
    let entries = rig.response(2)["result"]["logprobs"].clone();
    assert_eq!(
        entries,
        json!([{"token_id": 97, "text": "a", "logprob": -0.5}, {"token_id": 97, "text": "a", "logprob": -0.5}])
    );
    let plain = rig
        .said
        .iter()
        .find(|m| m["method"] == "token" && m["params"]["request_id"] == 3)
        .unwrap();
    assert_eq!(plain["params"].get("logprob"), None);
}

#[test]
fn times_are_measured_from_the_request_on() {
    let mut rig = Rig::ready(Setup::default());
    rig.script.borrow_mut().polls = 9;
    rig.generate(1, json!({"prompt": "0123456789", "max_tokens": 3}));
    rig.finish();
    let timings = rig.response(1)["result"]["timings"].clone();
    let ms = |name: &str| timings[name].as_f64().unwrap();
    // Every turn takes a millisecond; every piece of the device ten polls and a look at what came of it.
    assert!(
        ms("prefill_ms") >= 20.0 && ms("decode_ms") >= 40.0,
        "{timings}"
    );
    assert!(
        (ms("ttft_ms") - ms("queue_ms") - ms("prefill_ms") - 11.0).abs() <= 1.0,
        "{timings}"
    );
    let per_second = 10.0 / ms("prefill_ms") * 1000.0;
    assert!(
        (ms("prompt_per_second") - per_second).abs() < 0.1,
        "{timings}"
    );
    let per_second = 2.0 / ms("decode_ms") * 1000.0;
    assert!(
        (ms("predicted_per_second") - per_second).abs() < 0.1,
        "{timings}"
    );
}

#[test]
fn a_failed_step_is_an_error_with_what_was_used_and_the_worker_goes_on() {
    use crate::support::Failure;
    // Operations: forward, poll, sample, poll, forward, poll, …
    for at in 0..12 {
        let mut rig = Rig::ready(Setup::default());
        rig.script.borrow_mut().failures = vec![(at, Failure::Step)];
        rig.generate(1, json!({"prompt": "abc", "max_tokens": 3}));
        rig.generate(2, json!({"prompt": "abc", "max_tokens": 1}));
        rig.finish();
        let error = &rig.response(1)["error"];
        assert_eq!(
            (&error["code"], &error["data"]["code"]),
            (&json!(-32603), &json!("INTERNAL")),
            "at {at}"
        );
        let tokens = rig.texts(1).len();
        assert_eq!(error["data"]["usage"]["prompt_tokens"], 3);
        assert_eq!(error["data"]["usage"]["completion_tokens"], tokens);
        assert_eq!(tokens, at / 4);
        assert_eq!(rig.response(2)["result"]["finish_reason"], "length");
        assert!(rig.log.contains("the step failed"));
    }
}

/// A SentencePiece vocabulary of two words and a space.
fn two_words() -> Tokenizer {
    let tokens = ["<s>", "</s>", "▁", "a", "▁a"].map(str::to_owned);
    let mut metadata = Metadata::default();
    metadata.insert("tokenizer.ggml.model", "llama");
    metadata.insert("tokenizer.ggml.tokens", tokens.to_vec());
    metadata.insert(
        "tokenizer.ggml.scores",
        vec![0.0_f32, 0.0, -2.0, -3.0, -1.0],
    );
    metadata.insert("tokenizer.ggml.token_type", vec![3_i32, 3, 1, 1, 1]);
    metadata.insert("tokenizer.ggml.bos_token_id", 0_u32);
    metadata.insert("tokenizer.ggml.eos_token_id", 1_u32);
    Tokenizer::from_gguf(&metadata).expect("a vocabulary")
}

#[test]
fn the_space_that_encoding_puts_before_a_text_is_in_no_text_that_comes_out() {
    let rig = |tokens: [u32; 3]| {
        let rig = Rig::ready(Setup {
            tokenizer: Some(two_words()),
            ..Setup::default()
        });
        rig.script.borrow_mut().tokens = tokens.into();
        rig
    };
    // After a control token a text begins, after another one it goes on.
    for (prompt, wanted) in [("<s>", ["a", " a", "a"]), ("a", [" a", " a", "a"])] {
        let mut rig = rig([4, 4, 3]);
        rig.generate(
            1,
            json!({"prompt": prompt, "parse_special": true, "add_special": false, "max_tokens": 3}),
        );
        rig.finish();
        assert_eq!(rig.texts(1), wanted, "{prompt}");
    }
    let mut rig = rig([4, 4, 4]);
    rig.say(json!({"id": 1, "method": "tokenize", "params": {"content": "a a", "add_special": true, "with_pieces": true}}));
    rig.say(json!({"id": 2, "method": "detokenize", "params": {"token_ids": [0, 4, 4, 1, 4]}}));
    rig.finish();
    let told = &rig.response(1)["result"];
    assert_eq!(
        told,
        &json!({"token_ids": [0, 4, 4], "pieces": ["<s>", " a", " a"]})
    );
    assert_eq!(rig.response(2)["result"]["content"], "<s>a a</s>a");
}
