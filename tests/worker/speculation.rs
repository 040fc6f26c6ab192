//! Tokens that are proposed: what the device is asked for, and that nothing a client is told depends on it.

use serde_json::{Value, json};
use worker_orcd::device::Rows;
use worker_orcd::sampling::uniform;

use crate::support::{END, Rig, STEP_TOKENS_MAX, Setup, bytes};

/// A worker that draws this text, and has answered one `generate` with these params.
fn answered(text: &str, params: Value) -> Rig {
    let mut rig = Rig::ready(Setup::default());
    rig.script.borrow_mut().tokens = bytes(text).into();
    rig.generate(1, params);
    rig.finish();
    rig
}

/// Steps of the device: tokens as text, position, rows.
fn steps(rig: &Rig) -> Vec<(String, usize, Rows)> {
    let text = |tokens: &[u32]| tokens.iter().map(|t| char::from(*t as u8)).collect();
    let script = rig.script.borrow();
    let steps = script.forwards.iter();
    steps.map(|f| (text(&f.1), f.2, f.3)).collect()
}

fn counts(rig: &Rig) -> (u64, u64) {
    let timings = &rig.response(1)["result"]["timings"];
    let count = |name: &str| timings[name].as_u64().expect("a number");
    (count("drafted"), count("accepted"))
}

#[test]
fn what_is_proposed_goes_with_the_last_token_and_what_is_wrong_is_thrown_away() {
    let rig = answered(
        "abcdXYZ",
        json!({"prompt": "abcdef.", "max_tokens": 7, "speculation": 4, "seed": 9}),
    );
    let step = |text: &str, position, rows| (text.to_owned(), position, rows);
    let want = [
        step("abcdef.", 0, Rows::Last),
        step("a", 7, Rows::Last),
        // "ab" stood before "cdef": two of them come, and the place of the third is written again.
        step("bcdef", 8, Rows::All),
        step("X", 11, Rows::Last),
    ];
    assert_eq!(steps(&rig)[..4], want);
    let draws: Vec<_> = (0..7).map(|i| (uniform(9, i), 7 + i as usize)).collect();
    assert_eq!(rig.script.borrow().samples, draws);
    assert_eq!(counts(&rig), (4, 2));
    assert_eq!(rig.texts(1).concat(), "abcdXYZ");
}

#[test]
fn what_the_form_of_the_output_rules_out_is_not_proposed() {
    // Log-probabilities are wanted, so that nothing is put into the output without a draw.
    let form = |value: &str| json!({"prompt": "abcdef.", "speculation": 4, "logprobs": 0, "grammar": {"type": "regex", "value": value}});
    let rig = answered("abcc", form("[a-c]{4}"));
    let step = |text: &str, position, rows| (text.to_owned(), position, rows);
    let want = [
        step("abcdef.", 0, Rows::Last),
        step("a", 7, Rows::Last),
        step("bc", 8, Rows::All),
    ];
    assert_eq!(steps(&rig)[..3], want);
    assert_eq!(counts(&rig), (1, 1));
    assert_eq!(rig.response(1)["result"]["stop_reason"], "grammar");
    // Where nothing of it can come, the step is one of a token.
    let rig = answered("abab", form("[ab]{4}"));
    assert!(steps(&rig)[1..].iter().all(|s| s.0.len() == 1));
}

#[test]
fn without_the_field_nothing_is_proposed() {
    for speculation in [json!({}), json!({"speculation": "off"})] {
        let mut params = json!({"prompt": "aaaa", "max_tokens": 20});
        for (name, value) in speculation.as_object().expect("fields") {
            params[name] = value.clone();
        }
        let rig = answered("", params);
        assert!(steps(&rig).iter().skip(1).all(|s| s.0.len() == 1));
        assert_eq!(counts(&rig), (0, 0));
    }
}

#[test]
fn a_step_never_holds_more_than_the_device_takes_or_than_is_still_to_be_drawn() {
    let rig = answered(
        "",
        json!({"prompt": "aaaa", "max_tokens": 12, "speculation": 32}),
    );
    let lengths: Vec<usize> = steps(&rig).iter().map(|s| s.0.len()).collect();
    // One token is drawn after the prompt, eight in the full step, and three are left.
    assert_eq!(lengths, [4, STEP_TOKENS_MAX, 3]);
    assert_eq!(counts(&rig), (9, 9));
    assert_eq!(rig.response(1)["result"]["usage"]["completion_tokens"], 12);
}

#[test]
fn an_end_among_what_was_foreseen_is_the_end() {
    let prompt = "abcdefgh.";
    let ends = [
        (json!({"stop": ["de"]}), json!("de"), 5),
        (json!({"stop_token_ids": [101]}), json!(101), 5),
        (json!({"max_tokens": 4}), json!("max_tokens"), 4),
    ];
    for (fields, stop_reason, tokens) in ends {
        let mut params = json!({"prompt": prompt, "max_tokens": 20, "speculation": 7});
        for (name, value) in fields.as_object().expect("fields") {
            params[name] = value.clone();
        }
        let mut rig = answered("abcdefgh", params);
        let result = &rig.response(1)["result"];
        assert_eq!(result["stop_reason"], stop_reason);
        assert_eq!(result["usage"]["completion_tokens"], tokens);
        // The scripted device compares what its pages hold with the sequence whenever it draws: what was too much is not in the cache.
        rig.script.borrow_mut().tokens.clear();
        rig.generate(2, json!({"prompt": "abcdefgh.abcQ", "max_tokens": 2}));
        rig.finish();
        let usage = &rig.response(2)["result"]["usage"];
        assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 12);
    }
    let mut rig = Rig::ready(Setup::default());
    let mut tokens = bytes("abc");
    tokens.push(END);
    rig.script.borrow_mut().tokens = tokens.into();
    let ids: Vec<u32> = [bytes("abc"), vec![END], bytes("x")].concat();
    rig.generate(1, json!({"prompt_token_ids": ids, "speculation": 4}));
    rig.finish();
    assert_eq!(rig.response(1)["result"]["stop_reason"], "eos");
}

#[test]
fn cancelled_between_two_tokens_of_a_step_it_leaves_what_was_drawn() {
    for after in 1..9 {
        let mut rig = Rig::ready(Setup::default());
        rig.script.borrow_mut().tokens = bytes("abcdefgh").into();
        rig.generate(1, json!({"prompt": "abcdefgh.", "speculation": 7}));
        for _ in 0..after {
            rig.take();
            rig.step_until("token");
        }
        rig.say(json!({"method": "cancel", "params": {"request_id": 1}}));
        rig.finish();
        let result = &rig.response(1)["result"];
        assert_eq!(result["usage"]["completion_tokens"], after);
        // What is kept is a beginning of the sequence: what goes on from it is checked by the device.
        rig.script.borrow_mut().tokens.clear();
        rig.generate(2, json!({"prompt": "abcdefgh.abcdefgh!", "max_tokens": 2}));
        rig.finish();
        let usage = &rig.response(2)["result"]["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
        assert!(cached >= Some(9) && cached <= Some(9 + after), "{usage}");
    }
}

#[test]
fn what_does_not_go_on_the_same_is_not_proposed_for_long() {
    // Each pair comes again and again, with another token behind it each time.
    let text: String = ('0'..='z').map(|c| format!("ab{c}")).collect();
    let rig = answered(
        &text,
        json!({"prompt": "ab.", "max_tokens": text.len(), "speculation": "auto"}),
    );
    let (drafted, accepted) = counts(&rig);
    assert!(
        accepted <= 2 && (3..=12).contains(&drafted),
        "{drafted}, {accepted}"
    );
}
