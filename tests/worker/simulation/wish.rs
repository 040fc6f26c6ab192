//! Random `generate` requests: their inputs with the tokens that they come to, and all their fields.

use std::fmt::Write as _;

use worker_orcd_protocol::{ErrorCode, Id};

use super::dice::Dice;
use super::script::{Ask, Author, SECRET, Saying, TEMPLATE};
use crate::support::{END, PAD};

/// Fields that ask for a form that there is not.
const WRONG_FORMS: [&str; 4] = [
    r#","grammar":{"type":"regex","value":"a("}"#,
    r#","grammar":{"type":"lark","value":"start: a"}"#,
    r#","grammar":{"type":"choice","value":["a","a"]}"#,
    r#","response_format":{"type":"json_schema","json_schema":{"schema":{"not":{}}}}"#,
];

/// What a `generate` asks for, as far as its answer depends on it.
pub struct Wish {
    pub prompt: Result<Vec<u32>, ErrorCode>,
    pub stream: bool,
    pub max_tokens: Option<u32>,
    pub stop: Vec<&'static str>,
    pub ignore_eos: bool,
    pub logprobs: Option<u32>,
    pub prompt_logprobs: Option<u32>,
    pub timeout_ms: Option<u64>,
    pub return_progress: bool,
    pub seed: Option<u64>,
}

impl Author {
    /// Fields of a conversation, and what the template makes of it.
    pub fn messages(&mut self) -> (String, Result<String, ErrorCode>) {
        let text = self.text();
        let content = match self.dice.throw(2) {
            0 => quoted(&text),
            _ => format!(r#"[{{"type":"text","text":{}}}]"#, quoted(&text)),
        };
        let (extra, is_reserved) = self.dice.pick(&[
            ("", false),
            (r#","add_generation_prompt":false"#, false),
            (r#","chat_template_kwargs":{"deep":[1,{"a":null}]}"#, false),
            (r#","chat_template_kwargs":{"tools":1}"#, true),
        ]);
        let fields = format!(r#""messages":[{{"role":"user","content":{content}}}]{extra}"#);
        let rendered = match self.template {
            Some(TEMPLATE) if !is_reserved => Ok(format!("[user]{text}")),
            Some(_) | None => Err(ErrorCode::TemplateError),
        };
        (fields, rendered)
    }

    /// A text with the secret, characters of two bytes and names of special tokens.
    pub fn text(&mut self) -> String {
        let mut text = SECRET.to_owned();
        for _ in 0..self.dice.throw(12) {
            text.push_str(
                self.dice
                    .pick(&["a", "é", " ", "\n", "b", "<|pad|>", "<|end|>"]),
            );
        }
        text
    }

    pub fn generate(&mut self) -> Saying {
        let (mut input, mut prompt) = self.prompt();
        let dice = &mut self.dice;
        // What form the output has is looked at before the prompt.
        if dice.one_in(24) {
            input.push_str(dice.pick(&WRONG_FORMS));
            prompt = Err(ErrorCode::InvalidGrammar);
        }
        let stops: [&[&'static str]; 5] = [
            &["ab", "aa"],
            &["é"],
            &["aba", "ba", "b"],
            &["\u{fffd}"],
            &["bbb", "a\u{fffd}"],
        ];
        let wish = Wish {
            prompt,
            stream: !dice.one_in(3),
            max_tokens: (!dice.one_in(12)).then(|| 1 + dice.throw(24) as u32),
            stop: dice
                .seldom(3, |d| d.pick(&stops).to_vec())
                .unwrap_or_default(),
            ignore_eos: dice.one_in(4),
            logprobs: dice.seldom(6, |d| d.pick(&[0, 1, 3, 20])),
            prompt_logprobs: dice.seldom(8, |d| d.pick(&[0, 2])),
            timeout_ms: dice.seldom(5, |d| [1 + d.throw(200), 3_600_000][d.throw(2)] as u64),
            return_progress: dice.one_in(6),
            seed: dice.seldom(4, |d| d.throw(1 << 50) as u64),
        };
        let params = wish.params(&input, dice);
        self.request("generate", &params, Ask::Generate(Box::new(wish)))
    }

    /// A `generate` that needs this many positions, which is more than a worker has that has lost a page.
    pub fn generate_whole(&mut self, positions: usize) -> Saying {
        let wish = Wish {
            prompt: Ok(vec![7]),
            stream: true,
            max_tokens: u32::try_from(positions - 1).ok(),
            stop: Vec::new(),
            ignore_eos: true,
            logprobs: None,
            prompt_logprobs: None,
            timeout_ms: None,
            return_progress: false,
            seed: None,
        };
        let params = wish.params(r#""prompt_token_ids":[7]"#, &mut self.dice);
        let id = Some(Id::String("whole".into()));
        self.call(id, "generate", &params, Ask::Generate(Box::new(wish)))
    }

    /// A request to cancel it.
    pub fn cancel_whole(&mut self) -> Saying {
        let target = Id::String("whole".into());
        self.call(
            None,
            "cancel",
            r#"{"request_id":"whole"}"#,
            Ask::Cancel(target),
        )
    }

    /// Fields of the input, and its tokens.
    fn prompt(&mut self) -> (String, Result<Vec<u32>, ErrorCode>) {
        match self.dice.throw(8) {
            0 => {
                let (fields, rendered) = self.messages();
                (fields, rendered.map(|text| tokens(&text, true)))
            }
            1 => (r#""prompt":"""#.into(), Ok(Vec::new())),
            2 | 3 => {
                let len = [1, 2, 9, 300][self.dice.throw(4)];
                let mut ids: Vec<u32> = (0..len).map(|_| self.dice.throw(258) as u32).collect();
                let prompt = if self.dice.one_in(10) {
                    ids.push(258);
                    Err(ErrorCode::InvalidParams)
                } else {
                    Ok(ids.clone())
                };
                (format!(r#""prompt_token_ids":{ids:?}"#), prompt)
            }
            _ => {
                let (text, parse) = (self.text(), self.dice.one_in(2));
                let special = self.dice.pick(&["", r#","add_special":false"#]);
                let fields = format!(
                    r#""prompt":{},"parse_special":{parse}{special}"#,
                    quoted(&text)
                );
                (fields, Ok(tokens(&text, parse)))
            }
        }
    }
}

impl Wish {
    /// As JSON, beside the fields of its input.
    fn params(&self, input: &str, dice: &mut Dice) -> String {
        let mut params = format!("{{{input}");
        let mut field = |name: &str, value: String| {
            let _ = write!(params, r#","{name}":{value}"#);
        };
        let numbers = [
            ("max_tokens", self.max_tokens.map(u64::from)),
            ("logprobs", self.logprobs.map(u64::from)),
            ("prompt_logprobs", self.prompt_logprobs.map(u64::from)),
            ("timeout_ms", self.timeout_ms),
            ("seed", self.seed),
        ];
        for (name, value) in numbers {
            if let Some(value) = value {
                field(name, value.to_string());
            }
        }
        let switches = [
            ("stream", self.stream, true),
            ("ignore_eos", self.ignore_eos, false),
            ("return_progress", self.return_progress, false),
        ];
        for (name, value, default) in switches {
            if value != default || dice.one_in(4) {
                field(name, value.to_string());
            }
        }
        if dice.one_in(8) {
            field("cache_prompt", "false".into());
        }
        // What is guessed changes nothing that a client is told.
        if let Some(guess) = dice.seldom(2, |d| d.pick(&[r#""auto""#, "1", "3", "32"])) {
            field("speculation", guess.into());
        }
        if !self.stop.is_empty() {
            field("stop", serde_json::to_string(&self.stop).expect("strings"));
        }
        if dice.one_in(8) {
            let sampling = [("temperature", "0"), ("top_k", "40"), ("top_p", "0.5")];
            for (name, value) in sampling {
                field(name, value.into());
            }
            field("min_p", "0.1".into());
            field("repetition_penalty", "1.5".into());
        }
        params.push('}');
        params
    }
}

pub fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string")
}

/// The tokens of a text: its bytes, and special tokens where their names are read.
pub fn tokens(text: &str, parse_special: bool) -> Vec<u32> {
    let mut tokens = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.bytes().next() {
        let named = [("<|end|>", END), ("<|pad|>", PAD)];
        let special = named
            .iter()
            .find(|(name, _)| parse_special && rest.starts_with(name));
        if let Some((name, token)) = special {
            tokens.push(*token);
            rest = &rest[name.len()..];
        } else {
            tokens.push(u32::from(first));
            // A character has to stay whole for the slice of the next turn.
            let character = rest.chars().next().map_or(1, char::len_utf8);
            tokens.extend(rest.bytes().take(character).skip(1).map(u32::from));
            rest = &rest[character..];
        }
    }
    tokens
}
