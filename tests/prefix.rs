//! The prefix cache on a real device: what it saves, and that no answer depends on it, to the bit.

#[path = "common/byte_tokenizer.rs"]
mod byte_tokenizer;
#[path = "common/mod.rs"]
mod common;
#[path = "common/gguf_writer.rs"]
mod gguf_writer;
#[path = "common/tiny_llama.rs"]
mod tiny_llama;

use std::time::{Duration, Instant, SystemTime};

use byte_tokenizer::byte_tokenizer;
use serde_json::{Value, json};
use tiny_llama::TinyLlama;
use worker_orcd::device::cpu::isa::Isa;
use worker_orcd::device::cpu::{CpuOptions, KvType};
use worker_orcd::device::{Device, LoadProgress};
use worker_orcd::load::{Load, LoadError, LoadStep, Loaded, ModelFacts};
use worker_orcd::log::{Format, Level};
use worker_orcd::quant::TensorType;
use worker_orcd::sampling::uniform;
use worker_orcd::worker::{Clock, ClockMode, Config, Pressure, Worker};
use worker_orcd_protocol::codec::{Line, encode_line};

const CONTEXT: usize = 1000;
const VOCAB: usize = 257;

/// A worker with a tiny llama on the cpu, whose pool holds so many tokens.
struct Rig {
    worker: Worker,
    said: Vec<Value>,
}

struct Ready(Option<Box<Loaded>>);

impl Load for Ready {
    fn step(&mut self, _now: Instant, _until: Instant) -> Result<LoadStep, LoadError> {
        Ok(self
            .0
            .take()
            .map_or(LoadStep::Progress(LoadProgress::default()), LoadStep::Ready))
    }
}

fn loaded(pool_tokens: usize, kv: KvType) -> Loaded {
    let shape = TinyLlama {
        n_vocab: VOCAB,
        ..TinyLlama::new(TensorType::Q8_0)
    };
    let options = CpuOptions {
        context: pool_tokens,
        kv,
        isa: Isa::best(),
    };
    let device = Box::new(common::cpu_device(shape.file(), options));
    let device_name = device.name();
    Loaded {
        device: device as Box<dyn Device>,
        tokenizer: byte_tokenizer(&["<|end|>"]).into(),
        template: None,
        model: ModelFacts {
            name: "tiny".into(),
            architecture: "llama".into(),
            quant_kind: "Q8_0".into(),
            parameters: 0,
            size_bytes: 0,
            context_length_trained: CONTEXT,
            context_length: CONTEXT,
            vocab_size: VOCAB,
            device: device_name,
        },
    }
}

impl Rig {
    fn new(pool_tokens: usize) -> Self {
        Self::over(pool_tokens, KvType::F16)
    }

    fn over(pool_tokens: usize, kv: KvType) -> Self {
        let now = Instant::now();
        let config = Config {
            worker_id: None,
            pid: 1,
            model_name: "tiny".into(),
            device_name: "cpu".into(),
            queue_max: 4,
            max_tokens: None,
            timeout_ms: None,
            drain: Duration::from_secs(1),
            log_level: Level::Error,
            log_format: Format::Text,
            entropy: 1,
            clock: Clock {
                mode: ClockMode::Frozen,
                start: now,
                start_wall: SystemTime::UNIX_EPOCH,
            },
        };
        let load = Ready(Some(Box::new(loaded(pool_tokens, kv))));
        let worker = Worker::new(config, Box::new(load), now);
        let said = Vec::new();
        let mut rig = Self { worker, said };
        rig.turns(usize::MAX);
        rig
    }

    fn say(&mut self, line: &Value) {
        let text = line.to_string();
        let line = Line::Complete(text.as_bytes());
        self.worker.handle_line(Instant::now(), line);
    }

    /// At most so many turns, each of the shortest piece of work that there is.
    fn turns(&mut self, turns: usize) {
        for _ in 0..turns {
            if !self.worker.wants_work(Pressure::None) {
                break;
            }
            let now = Instant::now();
            self.worker.step(now, now);
        }
        while let Some(event) = self.worker.poll_event() {
            let mut line = Vec::new();
            encode_line(&event, &mut line);
            self.said.push(serde_json::from_slice(&line).unwrap());
        }
    }

    /// The tokens with their log-probabilities, and the cached tokens of the response.
    fn answer(&mut self, params: &Value) -> (Vec<Value>, u64) {
        self.said.clear();
        self.say(&json!({"id": 1, "method": "generate", "params": params}));
        self.turns(usize::MAX);
        let tokens = self.said.iter().filter(|m| m["method"] == "token");
        let tokens = tokens.map(|m| m["params"].clone()).collect();
        let response = self.said.last().expect("a response");
        let cached = &response["result"]["usage"]["prompt_tokens_details"]["cached_tokens"];
        (tokens, cached.as_u64().expect("a number"))
    }

    /// Begins a request and cancels it after so many turns.
    fn cancelled(&mut self, params: &Value, turns: usize) {
        self.say(&json!({"id": 2, "method": "generate", "params": params}));
        self.turns(turns);
        self.say(&json!({"method": "cancel", "params": {"request_id": 2}}));
        self.turns(usize::MAX);
    }
}

fn params(tokens: &[u32], max_tokens: usize) -> Value {
    json!({
        "prompt_token_ids": tokens, "max_tokens": max_tokens, "ignore_eos": true, "temperature": 0.8, "seed": 5, "logprobs": 2,
    })
}

fn token_ids(tokens: &[Value]) -> impl Iterator<Item = u32> {
    tokens
        .iter()
        .map(|t| t["token_id"].as_u64().unwrap() as u32)
}

/// Random choices from a seed.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 += 1;
        (uniform(11, self.0) * sides as f64) as usize
    }

    fn tokens(&mut self, len: usize) -> Vec<u32> {
        (0..len).map(|_| self.throw(256) as u32).collect()
    }
}

#[test]
fn no_answer_depends_on_the_cache() {
    // Room for two sequences of the longest kind, so that something is always thrown out.
    let mut cached = Rig::new(2 * CONTEXT);
    let mut plain = Rig::new(CONTEXT);
    let mut dice = Dice(0);
    let mut conversations: Vec<Vec<u32>> = (0..4).map(|_| dice.tokens(300)).collect();
    let mut saved = 0;
    for _ in 0..40 {
        let at = dice.throw(conversations.len());
        let mut tokens = conversations[at].clone();
        match dice.throw(5) {
            0 => tokens.truncate(1 + dice.throw(tokens.len())),
            1 => {
                let place = dice.throw(tokens.len());
                tokens[place] = dice.throw(256) as u32;
            }
            2 => tokens = conversations[dice.throw(4)].clone(),
            _ => tokens.extend(dice.tokens(20)),
        }
        tokens.truncate(900);
        let mut request = params(&tokens, 1 + dice.throw(12));
        if dice.throw(3) == 0 {
            cached.cancelled(&request, dice.throw(2000));
        }
        let (answer, cached_tokens) = cached.answer(&request);
        saved += cached_tokens;
        request["cache_prompt"] = json!(false);
        let (wanted, nothing) = plain.answer(&request);
        assert_eq!(nothing, 0);
        assert_eq!(
            answer,
            wanted,
            "{} tokens, {cached_tokens} of them cached",
            tokens.len()
        );
        tokens.extend(token_ids(&answer));
        conversations[at] = tokens;
    }
    assert!(saved > 5000, "{saved} tokens were not computed again");
}

#[test]
fn the_second_turn_of_a_chat_starts_where_the_first_has_ended() {
    let mut rig = Rig::new(CONTEXT);
    let mut tokens = Dice(1).tokens(600);
    let (answer, cached) = rig.answer(&params(&tokens, 10));
    assert_eq!(cached, 0);
    tokens.extend(token_ids(&answer));
    tokens.extend([1, 2, 3]);
    let (_, cached) = rig.answer(&params(&tokens, 1));
    assert_eq!(
        cached, 609,
        "all but the last token drawn, which nothing came after"
    );
    // The same again: only the last token of the prompt is computed.
    let (_, cached) = rig.answer(&params(&tokens, 1));
    assert_eq!(cached, 612);
}

#[test]
fn who_opts_out_neither_takes_nor_leaves_anything() {
    let mut rig = Rig::new(CONTEXT);
    let mut request = params(&[7; 50], 1);
    request["cache_prompt"] = json!(false);
    assert_eq!(rig.answer(&request).1, 0);
    assert_eq!(rig.answer(&params(&[7; 50], 1)).1, 0, "nothing was left");
    assert_eq!(rig.answer(&request).1, 0, "nothing is taken");
    assert_eq!(rig.answer(&params(&[7; 50], 1)).1, 49);
}

#[test]
fn several_conversations_stay_and_what_they_share_is_kept_once() {
    let mut rig = Rig::new(4 * CONTEXT);
    let system = Dice(2).tokens(520);
    let turn = |who: u32| [&system[..], &[who; 40]].concat();
    for who in 0..5 {
        let (_, cached) = rig.answer(&params(&turn(who), 4));
        assert_eq!(cached, if who == 0 { 0 } else { 520 });
    }
    for who in 0..5 {
        assert_eq!(
            rig.answer(&params(&turn(who), 4)).1,
            559,
            "{who} is still there"
        );
    }
}

/// Asks, and gives the response.
fn ask(rig: &mut Rig, method: &str, params: Value) -> Value {
    rig.said.clear();
    rig.say(&json!({"id": 9, "method": method, "params": params}));
    rig.turns(usize::MAX);
    rig.said.last().expect("a response").clone()
}

#[test]
fn another_worker_goes_on_with_a_saved_conversation() {
    for kv in [KvType::F16, KvType::Q8_0] {
        goes_on(kv);
    }
}

#[track_caller]
fn goes_on(kv: KvType) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let mut first = Rig::over(CONTEXT, kv);
    let mut tokens = Dice(3).tokens(600);
    let (answer, _) = first.answer(&params(&tokens, 10));
    tokens.extend(token_ids(&answer));
    let by_id = ask(
        &mut first,
        "save_state",
        json!({"path": path, "request_id": 1}),
    );
    let size = std::fs::metadata(&path).unwrap().len();
    assert_eq!(by_id["result"], json!({"tokens": 609, "bytes": size}));

    let mut second = Rig::over(CONTEXT, kv);
    let loaded = ask(&mut second, "load_state", json!({"path": path}));
    assert_eq!(loaded["result"], by_id["result"]);
    let mut other = Rig::over(CONTEXT, KvType::F32);
    let refused = ask(&mut other, "load_state", json!({"path": path}));
    assert!(refused.get("error").is_some(), "{refused}");
    tokens.extend([4, 5]);
    let (wanted, _) = first.answer(&params(&tokens, 10));
    let (answer, cached) = second.answer(&params(&tokens, 10));
    assert_eq!((answer, cached), (wanted, 609));

    let by_tokens = json!({"path": path, "token_ids": &tokens[..100]});
    let saved = ask(&mut second, "save_state", by_tokens);
    assert_eq!(saved["result"]["tokens"], 100);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_state_that_is_damaged_cut_or_of_another_model_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let mut rig = Rig::new(CONTEXT);
    rig.answer(&params(&[7; 300], 1));
    ask(
        &mut rig,
        "save_state",
        json!({"path": path, "request_id": 1}),
    );
    let whole = std::fs::read(&path).unwrap();
    let mut fresh = Rig::new(CONTEXT);
    let mut refused = |bytes: &[u8], says: &str| {
        std::fs::write(&path, bytes).unwrap();
        let response = ask(&mut fresh, "load_state", json!({"path": path}));
        let error = &response["error"];
        assert_eq!(error["data"]["code"], "INVALID_PARAMS", "{response}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
    };
    for len in [0, 4, 11, 60, 300, 1500, whole.len() / 2, whole.len() - 1] {
        refused(
            &whole[..len],
            "ends too early|checksum"
                .split('|')
                .nth(usize::from(len == whole.len() - 1))
                .unwrap(),
        );
    }
    for at in [whole.len() / 3, whole.len() / 2, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        refused(&damaged, "damaged");
    }
    refused(&[&whole[..], b"x"].concat(), "checksum");
    refused(b"GGUF and then something", "no saved state");
    let text = String::from_utf8_lossy(&whole[..400]).into_owned();
    let begin = text.find("llama ").unwrap() + "llama ".len();
    let mut other = whole.clone();
    other[begin] = if other[begin] == b'0' { b'1' } else { b'0' };
    refused(&other, "this worker has");
    let (_, cached) = fresh.answer(&params(&[7; 300], 1));
    assert_eq!(cached, 0, "nothing of it is used");
    let (_, cached) = fresh.answer(&params(&[7; 300], 1));
    assert_eq!(cached, 299, "no page was lost");
}

#[test]
fn what_is_not_kept_cannot_be_saved_and_a_wrong_place_is_told() {
    let mut rig = Rig::new(CONTEXT);
    rig.answer(&params(&[7; 30], 1));
    for (params, param) in [
        (json!({"path": "/tmp/x", "request_id": "1"}), "request_id"),
        (json!({"path": "/tmp/x", "token_ids": [8]}), "token_ids"),
        (json!({"path": "/nowhere/x", "request_id": 1}), "path"),
        (json!({"path": "/", "request_id": 1}), "path"),
    ] {
        let response = ask(&mut rig, "save_state", params);
        assert_eq!(response["error"]["data"]["param"], param, "{response}");
    }
    for path in ["/nowhere/x", "/", "/dev/null"] {
        let response = ask(&mut rig, "load_state", json!({"path": path}));
        assert_eq!(response["error"]["data"]["param"], "path", "{response}");
    }
}
