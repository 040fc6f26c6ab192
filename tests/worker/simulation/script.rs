//! What a client, a parent, a reader and the clock do to a worker: random acts, each with what it has to lead to.

use std::fmt::Write as _;
use std::time::Duration;

use worker_orcd::worker::{Connection, Signal};
use worker_orcd_protocol::{
    ApplyTemplateResult, DetokenizeResult, ErrorCode, Id, MethodResult, MetricsFormat,
    ShutdownMode, TokenizeResult,
};

use super::dice::Dice;
use crate::support::{END, PAD};

/// Stands in every text that a client sends and must come up in no log line and no error.
pub const SECRET: &str = "secret";

pub const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}";
pub const TEMPLATE_THAT_REFUSES: &str = "{{ raise_exception('never') }}";

pub enum Act {
    Say(Saying),
    EndOfInput,
    Signal(Signal),
    Lost(Connection),
    Sleep(Duration),
    Reader(Reader),
    Turns(usize),
}

/// How fast stdout is read.
#[derive(Clone, Copy, Debug)]
pub enum Reader {
    TakesAll,
    /// So many bytes a turn.
    Takes(usize),
}

/// A line, its id, and what it asks.
pub struct Saying {
    pub line: Spoken,
    pub id: Option<Id>,
    pub ask: Ask,
}

pub enum Spoken {
    Line(Vec<u8>),
    TooLong(u64),
}

pub enum Ask {
    Generate(Box<Wish>),
    Cancel(Id),
    Health,
    Metrics(MetricsFormat),
    Initialize,
    Side(Answer),
    Shutdown(ShutdownMode),
    /// Not a request that can be taken.
    Wrong(ErrorCode),
    /// As above, and it is a `generate`.
    WrongGenerate(ErrorCode),
}

#[derive(Clone, Debug)]
pub enum Answer {
    Result(MethodResult),
    Error(ErrorCode),
}

/// What a `generate` asks for, as far as its answer depends on it.
pub struct Wish {
    pub prompt: Result<Vec<u32>, ErrorCode>,
    pub stream: bool,
    pub max_tokens: Option<u32>,
    pub stop: Vec<&'static str>,
    pub ignore_eos: bool,
    pub logprobs: Option<u32>,
    pub timeout_ms: Option<u64>,
    pub return_progress: bool,
    pub seed: Option<u64>,
}

/// Makes up acts.
pub struct Author {
    pub dice: Dice,
    /// Ids so far.
    ids: usize,
    template: Option<&'static str>,
    /// Spaces in front of some lines; many in a few scripts, to fill the memory.
    padding: usize,
}

impl Author {
    pub fn new(mut dice: Dice, template: Option<&'static str>) -> Self {
        let padding = if dice.one_in(4000) {
            15 * 1024 * 1024
        } else {
            0
        };
        Self {
            dice,
            ids: 0,
            template,
            padding,
        }
    }

    pub fn act(&mut self) -> Act {
        match self.dice.throw(64) {
            0..=15 => Act::Say(self.generate()),
            16..=21 => Act::Say(self.cancel()),
            22..=33 => Act::Say(self.question()),
            34..=35 => Act::Say(self.nonsense()),
            36..=37 => Act::Sleep(self.pause()),
            38..=39 => Act::Reader(self.reader()),
            40 if self.dice.one_in(3) => Act::Say(self.shutdown()),
            41 if self.dice.one_in(6) => Act::Signal(Signal::Terminate),
            42 if self.dice.one_in(12) => Act::Signal(Signal::Interrupt),
            43 if self.dice.one_in(6) => Act::Lost(self.dice.pick(&[
                Connection::Stdout,
                Connection::Parent,
                Connection::Stdin,
            ])),
            44 if self.dice.one_in(6) => Act::EndOfInput,
            _ => Act::Turns(1 + self.dice.throw(20)),
        }
    }

    /// Mostly milliseconds, seldom hours.
    fn pause(&mut self) -> Duration {
        let ms = match self.dice.throw(8) {
            0 => self.dice.throw(5 * 3600 * 1000),
            1 => 29_990 + self.dice.throw(20),
            _ => self.dice.throw(300),
        };
        Duration::from_millis(ms as u64)
    }

    fn reader(&mut self) -> Reader {
        match self.dice.throw(3) {
            0 => Reader::Takes(0),
            1 => Reader::Takes(self.dice.throw(200)),
            _ => Reader::TakesAll,
        }
    }

    /// Every fourth id is a string; 1 and "1" differ.
    fn id(number: usize) -> Id {
        match number % 4 {
            3 => Id::String((number / 2).to_string()),
            _ => Id::Number(number as i64),
        }
    }

    fn known_id(&mut self) -> Id {
        Self::id(self.dice.throw(self.ids + 2))
    }

    /// An id that is new; seldom one that was used before, which may be taken.
    fn fresh_id(&mut self) -> Id {
        if self.dice.one_in(24) {
            return self.known_id();
        }
        self.ids += 1;
        Self::id(self.ids - 1)
    }

    fn request(&mut self, method: &str, params: &str, ask: Ask) -> Saying {
        let id = self.fresh_id();
        self.call(Some(id), method, params, ask)
    }

    fn call(&mut self, id: Option<Id>, method: &str, params: &str, ask: Ask) -> Saying {
        let version = self.dice.pick(&["", r#""jsonrpc":"2.0","#]);
        let id_field = id.as_ref().map(|id| format!(r#""id":{id},"#));
        let mut line = format!(
            r#"{{{version}{}"method":"{method}""#,
            id_field.unwrap_or_default()
        );
        if !params.is_empty() {
            let _ = write!(line, r#","params":{params}"#);
        }
        let padding = self.padding * self.dice.throw(2);
        line.extend(std::iter::repeat_n(' ', padding));
        line.push('}');
        Saying {
            line: Spoken::Line(line.into_bytes()),
            id,
            ask,
        }
    }

    fn cancel(&mut self) -> Saying {
        let target = self.known_id();
        let (method, field) = self.dice.pick(&[
            ("cancel", "request_id"),
            ("$/cancelRequest", "id"),
            ("notifications/cancelled", "requestId"),
        ]);
        let id = self.dice.one_in(2).then(|| self.fresh_id());
        let params = format!(r#"{{"{field}":{target}}}"#);
        self.call(id, method, &params, Ask::Cancel(target))
    }

    fn shutdown(&mut self) -> Saying {
        let (params, mode) = self.dice.pick(&[
            ("", ShutdownMode::Drain),
            (r#"{"mode":"drain"}"#, ShutdownMode::Drain),
            (r#"{"mode":"now"}"#, ShutdownMode::Now),
        ]);
        self.request("shutdown", params, Ask::Shutdown(mode))
    }

    fn question(&mut self) -> Saying {
        match self.dice.throw(9) {
            0 | 1 => self.request("health", "", Ask::Health),
            2 => self.request("metrics", "{}", Ask::Metrics(MetricsFormat::Json)),
            3 => {
                let ask = Ask::Metrics(MetricsFormat::Prometheus);
                self.request("metrics", r#"{"format":"prometheus"}"#, ask)
            }
            4 => {
                let params = r#"{"protocol_version":1,"client_info":{"name":"sim"}}"#;
                self.request("initialize", params, Ask::Initialize)
            }
            5 | 6 => self.tokenize(),
            7 => self.detokenize(),
            _ => self.apply_template(),
        }
    }

    fn tokenize(&mut self) -> Saying {
        let (text, parse_special) = (self.text(), self.dice.one_in(2));
        let token_ids = tokens(&text, parse_special);
        let params = format!(
            r#"{{"content":{},"parse_special":{parse_special}}}"#,
            quoted(&text)
        );
        let result = MethodResult::Tokenize(TokenizeResult {
            token_ids,
            pieces: None,
        });
        self.request("tokenize", &params, Ask::Side(Answer::Result(result)))
    }

    fn detokenize(&mut self) -> Saying {
        let text = self.text();
        let mut token_ids = tokens(&text, false);
        let content = text;
        let mut answer = Answer::Result(MethodResult::Detokenize(DetokenizeResult { content }));
        if self.dice.one_in(8) {
            token_ids.push(300);
            answer = Answer::Error(ErrorCode::InvalidParams);
        }
        let params = format!(r#"{{"token_ids":{token_ids:?}}}"#);
        self.request("detokenize", &params, Ask::Side(answer))
    }

    fn apply_template(&mut self) -> Saying {
        let (fields, rendered) = self.messages();
        let answer = match rendered {
            Ok(prompt) => {
                Answer::Result(MethodResult::ApplyTemplate(ApplyTemplateResult { prompt }))
            }
            Err(code) => Answer::Error(code),
        };
        self.request(
            "apply_template",
            &format!("{{{fields}}}"),
            Ask::Side(answer),
        )
    }

    /// Fields of a conversation, and what the template makes of it.
    fn messages(&mut self) -> (String, Result<String, ErrorCode>) {
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
    fn text(&mut self) -> String {
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
        let (input, prompt) = self.prompt();
        let dice = &mut self.dice;
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

    /// A line that is no request.
    fn nonsense(&mut self) -> Saying {
        let wrong: [(&[u8], ErrorCode); 7] = [
            (b"{]", ErrorCode::ParseError),
            (b"\xff\xfe", ErrorCode::ParseError),
            (b"[]", ErrorCode::InvalidRequest),
            (
                br#"{"id":1,"id":2,"method":"health"}"#,
                ErrorCode::InvalidRequest,
            ),
            (
                br#"{"id":null,"method":"health"}"#,
                ErrorCode::InvalidRequest,
            ),
            (br#"{"method":"health"}"#, ErrorCode::InvalidRequest),
            (
                br#"{"method":"cancel","params":{}}"#,
                ErrorCode::InvalidParams,
            ),
        ];
        match self.dice.throw(4) {
            0 => {
                let (line, code) = self.dice.pick(&wrong);
                Saying {
                    line: Spoken::Line(line.to_vec()),
                    id: None,
                    ask: Ask::Wrong(code),
                }
            }
            1 => Saying {
                line: Spoken::TooLong(20_000_000),
                id: None,
                ask: Ask::Wrong(ErrorCode::InvalidRequest),
            },
            2 => match self.dice.throw(3) {
                0 => self.request("nope", "", Ask::Wrong(ErrorCode::MethodNotFound)),
                1 => self.request("health", "[]", Ask::Wrong(ErrorCode::InvalidRequest)),
                _ => self.request("tokenize", "{}", Ask::Wrong(ErrorCode::InvalidParams)),
            },
            _ => {
                let invalid = Ask::WrongGenerate(ErrorCode::InvalidParams);
                match self.dice.throw(3) {
                    0 => self.request(
                        "generate",
                        r#"{"prompt":"secret","temperature":3}"#,
                        invalid,
                    ),
                    1 => self.request("generate", r#"{"prompt":"a","prompt":"secret"}"#, invalid),
                    _ => {
                        let ask = Ask::WrongGenerate(ErrorCode::InvalidRequest);
                        self.call(None, "generate", r#"{"prompt":"secret"}"#, ask)
                    }
                }
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

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string")
}

/// The tokens of a text: its bytes, and special tokens where their names are read.
fn tokens(text: &str, parse_special: bool) -> Vec<u32> {
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
