//! What a client, a parent, a reader and the clock do to a worker: random acts, each with what it has to lead to.

use std::fmt::Write as _;
use std::time::Duration;

use worker_orcd::worker::{Connection, Signal};
use worker_orcd_protocol::{
    ApplyTemplateResult, DetokenizeResult, ErrorCode, Id, MethodResult, MetricsFormat,
    ShutdownMode, TokenizeResult,
};

use super::dice::Dice;
use super::wish::{Wish, quoted, tokens};

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
    /// What a state comes to: whether it is kept, readable and has room depends on all that was before.
    State,
}

/// Makes up acts.
pub struct Author {
    pub dice: Dice,
    /// Ids so far.
    ids: usize,
    pub template: Option<&'static str>,
    /// Spaces in front of some lines; many in a few scripts, to fill the memory.
    padding: usize,
}

impl Author {
    pub fn new(mut dice: Dice, template: Option<&'static str>) -> Self {
        let padding = if dice.one_in(2000) {
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

    pub fn request(&mut self, method: &str, params: &str, ask: Ask) -> Saying {
        let id = self.fresh_id();
        self.call(Some(id), method, params, ask)
    }

    pub fn call(&mut self, id: Option<Id>, method: &str, params: &str, ask: Ask) -> Saying {
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
        line.push_str(&" ".repeat(padding));
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
        match self.dice.throw(11) {
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
            8 | 9 => self.state(),
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

    /// Saves or loads what an earlier request has left.
    fn state(&mut self) -> Saying {
        let path = self.dice.pick(&["a", "b"]);
        let id = self.dice.throw(self.ids + 1);
        let of = match self.dice.throw(2) {
            0 => format!(r#""request_id":{id}"#),
            _ => r#""token_ids":[112,97]"#.to_owned(),
        };
        let ask = Ask::Side(Answer::State);
        match self.dice.throw(2) {
            0 => self.request("load_state", &format!(r#"{{"path":"{path}"}}"#), ask),
            _ => self.request("save_state", &format!(r#"{{"path":"{path}",{of}}}"#), ask),
        }
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
