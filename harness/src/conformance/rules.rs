//! What holds for every worker at any time, whatever a transcript asks: held for each line as it comes.
//!
//! protocol/conformance/README.md lists the rules by the names that stand here.

mod generate;
mod lines;

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;
use worker_orcd_protocol::codec::{Line, LineReader};
use worker_orcd_protocol::limits::ID_BYTES_MAX;
use worker_orcd_protocol::method::Method;

use generate::Generate;
use lines::Lines;

/// What is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Each line is a JSON object in UTF-8 with `jsonrpc` and exactly one of `method`, `result` and `error`.
    Lines,
    /// Each line, and each result, is as protocol/schema.json says.
    Schema,
    /// Number, name and `retriable` of an error belong together; `param` is the first of `errors`.
    Errors,
    /// Each request gets exactly one response, and nothing is answered that was not asked.
    OneResponse,
    /// `ready` comes at most once, and before any `started`.
    ReadyOnce,
    /// `fatal` is the last line, before each exit code but 0 and before no other.
    FatalLast,
    /// `started`, `progress`, then tokens with `index` 0, 1, 2 …, then the response.
    StartedTokensResponse,
    /// No notification is about an id that waits for no response.
    NothingAfter,
    /// No generate starts before the one before it has its response.
    OneAtATime,
    /// Generates start in the order in which they were sent.
    FirstInFirstOut,
    /// `found` is true if, and only if, the target is still open, and then it ends with "cancelled".
    Cancel,
    /// A shutdown is answered when all that came before it is.
    ShutdownLast,
    /// Tokens come if, and only if, `stream` is not false; else `text` and `logprobs` come with the response.
    StreamOrText,
    /// `finish_reason` and `stop_reason` go together.
    Reasons,
    /// `usage` agrees with `started`, with the number of tokens, and with itself.
    Usage,
    /// The seed that is told is the seed that was asked for, at the start and at the end.
    Seed,
    /// A token is a line of less than 65536 bytes.
    ShortLines,
}

impl Rule {
    /// Every rule, in the order of the documentation.
    #[cfg(test)]
    pub const ALL: [Rule; 17] = [
        Rule::Lines,
        Rule::Schema,
        Rule::Errors,
        Rule::OneResponse,
        Rule::ReadyOnce,
        Rule::FatalLast,
        Rule::StartedTokensResponse,
        Rule::NothingAfter,
        Rule::OneAtATime,
        Rule::FirstInFirstOut,
        Rule::Cancel,
        Rule::ShutdownLast,
        Rule::StreamOrText,
        Rule::Reasons,
        Rule::Usage,
        Rule::Seed,
        Rule::ShortLines,
    ];

    /// What it is called in a report.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Lines => "lines",
            Rule::Schema => "schema",
            Rule::Errors => "errors",
            Rule::OneResponse => "one response",
            Rule::ReadyOnce => "ready once",
            Rule::FatalLast => "fatal is last",
            Rule::StartedTokensResponse => "started, tokens, response",
            Rule::NothingAfter => "nothing after the response",
            Rule::OneAtATime => "one at a time",
            Rule::FirstInFirstOut => "first in, first out",
            Rule::Cancel => "cancel",
            Rule::ShutdownLast => "shutdown is answered last",
            Rule::StreamOrText => "stream or text",
            Rule::Reasons => "reasons",
            Rule::Usage => "usage",
            Rule::Seed => "seed",
            Rule::ShortLines => "short lines",
        }
    }
}

/// A rule is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// Which.
    pub rule: Rule,
    /// By what.
    pub what: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule \"{}\": {}", self.rule.name(), self.what)
    }
}

/// An error for a rule that is broken, unless `holds`.
fn hold(holds: bool, rule: Rule, what: impl FnOnce() -> String) -> Result<(), Breach> {
    if holds {
        return Ok(());
    }
    Err(Breach { rule, what: what() })
}

/// A request that was sent.
#[derive(Debug)]
struct Asked {
    /// The number of the line that was sent.
    number: usize,
    method: Option<Method>,
    params: Value,
    answered: bool,
    /// Its id was that of another without a response when it was sent.
    is_second: bool,
    /// What came for it, if it is a `generate`.
    generate: Generate,
}

impl Asked {
    fn is_open_generate(&self) -> bool {
        self.method == Some(Method::Generate) && !self.answered
    }
}

/// What was sent and said so far.
#[derive(Debug)]
pub struct Rules {
    lines: Lines,
    input: LineReader,
    sent: usize,
    /// Requests by their id as JSON, so that 1 is not "1".
    asked: BTreeMap<String, Vec<Asked>>,
    ready: bool,
    fatal: bool,
    /// The number of the `generate` that started last.
    last_started: usize,
}

impl Rules {
    /// For a worker that has just been started.
    ///
    /// # Errors
    /// None in fact: the schema comes from our own types.
    pub fn new() -> anyhow::Result<Rules> {
        Ok(Rules {
            lines: Lines::new()?,
            input: LineReader::new(),
            sent: 0,
            asked: BTreeMap::new(),
            ready: false,
            fatal: false,
            last_started: 0,
        })
    }

    /// Takes note of bytes that the worker gets.
    pub fn sent(&mut self, bytes: &[u8]) {
        self.input.push(bytes);
        while let Some(line) = self.input.next() {
            self.sent += 1;
            if let Line::Complete(line) = line {
                let asked = asked(line, self.sent);
                self.asked_for(asked);
            }
        }
    }

    /// Takes note that the worker's stdin is closed: a last line without a line end counts.
    pub fn stdin_closed(&mut self) {
        self.sent += 1;
        if let Some(Line::Complete(line)) = self.input.finish() {
            let asked = asked(line, self.sent);
            self.asked_for(asked);
        }
    }

    fn asked_for(&mut self, asked: Option<(String, Asked)>) {
        if let Some((id, mut asked)) = asked {
            let list = self.asked.entry(id).or_default();
            asked.is_second = list.iter().any(|first| !first.answered);
            list.push(asked);
        }
    }

    /// A line of the worker, and what it says; `None`: a notification that this version of the protocol does not know. It is passed
    /// over, as clients are told to.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn said(&mut self, line: &[u8]) -> Result<Option<Value>, Breach> {
        let message = self.lines.read(line)?;
        hold(!self.fatal, Rule::FatalLast, || {
            format!("a line after fatal: {message}")
        })?;
        match message["method"].as_str() {
            Some(method) => self.notified(method, &message["params"], line.len())?,
            None if message.get("error").is_some() => {
                lines::error_is_consistent(&message["error"])?;
                self.responded(&message)?;
            }
            None => self.responded(&message)?,
        }
        Ok(Some(message).filter(|message| self.lines.is_known(message)))
    }

    fn notified(&mut self, method: &str, params: &Value, bytes: usize) -> Result<(), Breach> {
        match method {
            "ready" => {
                hold(!self.ready, Rule::ReadyOnce, || {
                    "ready came twice".to_owned()
                })?;
                self.ready = true;
            }
            "fatal" => {
                self.fatal = true;
                lines::error_is_consistent(&params["error"])?;
            }
            "started" => self.started(params)?,
            "prompt_logprobs" => self.running(params)?.prompt_logprobs(params, bytes)?,
            "token" => self.running(params)?.token(params, bytes)?,
            "progress" if params["phase"] == "prefill" => {
                self.running(params)?.progress(params)?;
            }
            // Others may be added to the protocol; a client passes over them.
            _ => {}
        }
        Ok(())
    }

    fn started(&mut self, params: &Value) -> Result<(), Breach> {
        hold(self.ready, Rule::ReadyOnce, || {
            "started came before ready".to_owned()
        })?;
        let id = &params["request_id"];
        let running = self
            .all()
            .find(|(_, asked)| asked.is_open_generate() && asked.generate.is_started());
        hold(running.is_none(), Rule::OneAtATime, || {
            let other = running.map_or("another", |(other, _)| other.as_str());
            format!("{id} started before the response to {other}")
        })?;
        let last = self.last_started;
        let asked = self.open_generate(id)?;
        let number = asked.number;
        hold(number > last, Rule::FirstInFirstOut, || {
            format!("{id} started after a generate that was sent later")
        })?;
        asked.generate.started(params, &asked.params)?;
        self.last_started = number;
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = (&String, &Asked)> {
        let each = self.asked.iter();
        each.flat_map(|(id, list)| list.iter().map(move |asked| (id, asked)))
    }

    fn open_generate(&mut self, id: &Value) -> Result<&mut Asked, Breach> {
        let list = self.asked.get_mut(&id.to_string()).into_iter().flatten();
        list.into_iter()
            .find(|asked| asked.is_open_generate())
            .ok_or_else(|| Breach {
                rule: Rule::NothingAfter,
                what: format!(
                    "a notification about {id}, and no generate with this id waits for its response"
                ),
            })
    }

    fn running(&mut self, params: &Value) -> Result<&mut Generate, Breach> {
        let id = &params["request_id"];
        Ok(&mut self.open_generate(id)?.generate)
    }

    fn responded(&mut self, message: &Value) -> Result<(), Breach> {
        let id = &message["id"];
        if id.is_null() {
            self.refused_without_id(&message["error"]["data"]);
            return Ok(());
        }
        let list = self.asked.entry(id.to_string()).or_default();
        let Some(at) = list.iter().position(|asked| !asked.answered) else {
            return Err(Breach {
                rule: Rule::OneResponse,
                what: format!(
                    "a response to {id}, which was not asked or has its response already"
                ),
            });
        };
        let asked = &mut list[at];
        asked.answered = true;
        let (method, number) = (asked.method, asked.number);
        let result = message.get("result");
        if let (Some(method), Some(result)) = (method, result) {
            self.lines.result(method, result)?;
        }
        if method == Some(Method::Generate) {
            asked.generate.responded(message, &asked.params)?;
        }
        let target = method.and_then(|method| target(method, &asked.params));
        match (method, target.cloned(), result) {
            (None, _, Some(_)) => Err(Breach {
                rule: Rule::OneResponse,
                what: format!("a result for {id}, whose method there is not"),
            }),
            (Some(_), Some(target), Some(result)) => self.cancelled(&target, number, result),
            (Some(Method::Shutdown), None, Some(_)) => self.drained(number),
            (_, _, _) => Ok(()),
        }
    }

    /// A second request with an id that is taken is answered with id null, whatever is wrong with it.
    fn refused_without_id(&mut self, data: &Value) {
        let taken = data.pointer("/details/id").map(Value::to_string);
        let lists = self.asked.iter_mut();
        let of_this_id = lists.filter(|(id, _)| taken.as_ref().is_none_or(|taken| taken == *id));
        let all = of_this_id.flat_map(|(_, list)| list);
        let seconds = all.filter(|asked| asked.is_second && !asked.answered);
        if let Some(second) = seconds.min_by_key(|asked| asked.number) {
            second.answered = true;
        }
    }

    /// `found` tells the truth about the target that was sent before the cancel.
    fn cancelled(&mut self, id: &Value, number: usize, result: &Value) -> Result<(), Breach> {
        let found = result["found"] == true;
        let list = self.asked.get_mut(&id.to_string()).into_iter().flatten();
        let target = list
            .into_iter()
            .find(|asked| asked.is_open_generate() && asked.number < number);
        match target {
            Some(target) if found => target.generate.is_cancelled = true,
            Some(target) => hold(target.generate.is_cancelled, Rule::Cancel, || {
                format!("found is false, but {id} has not had its response")
            })?,
            None => hold(!found, Rule::Cancel, || {
                format!(
                    "found is true, but {id} is not open: its response has come before the answer to the cancel, or it was never sent"
                )
            })?,
        }
        Ok(())
    }

    fn drained(&self, number: usize) -> Result<(), Breach> {
        let open = self
            .all()
            .find(|(_, asked)| asked.is_open_generate() && asked.number < number);
        hold(open.is_none(), Rule::ShutdownLast, || {
            format!(
                "shutdown was answered before {}",
                open.map_or("", |(id, _)| id)
            )
        })
    }

    /// The worker has exited; `None`: by a signal.
    ///
    /// # Errors
    /// The rule that its end breaks.
    pub fn ended(&self, code: Option<i32>) -> Result<(), Breach> {
        if code != Some(0) {
            return hold(self.fatal, Rule::FatalLast, || {
                "the worker ended without exit code 0 and without saying fatal".to_owned()
            });
        }
        hold(!self.fatal, Rule::FatalLast, || {
            "fatal was said, but the exit code is 0".to_owned()
        })?;
        let open = self.all().find(|(_, asked)| !asked.answered);
        hold(open.is_none(), Rule::OneResponse, || {
            format!(
                "the worker ended, and {} has no response",
                open.map_or("", |(id, _)| id)
            )
        })
    }
}

/// A sent line that has a valid id, by this id as JSON. Of a broken line the transcript says what is answered.
fn asked(line: &[u8], number: usize) -> Option<(String, Asked)> {
    let mut line: Value = serde_json::from_slice(line).ok()?;
    let is_valid = |id: &Value| match id {
        Value::String(text) => text.len() <= ID_BYTES_MAX,
        other => other.is_i64(),
    };
    let id = line.get("id").filter(|id| is_valid(id))?;
    let id = id.to_string();
    let method = line["method"].as_str().and_then(Method::from_name);
    Some((
        id,
        Asked {
            number,
            method,
            params: line["params"].take(),
            answered: false,
            is_second: false,
            generate: Generate::default(),
        },
    ))
}

/// The id that a cancel names.
fn target(method: Method, params: &Value) -> Option<&Value> {
    let field = match method {
        Method::Cancel => "request_id",
        Method::CancelRequest => "id",
        Method::Cancelled => "requestId",
        Method::Initialize
        | Method::Generate
        | Method::Health
        | Method::Tokenize
        | Method::Detokenize
        | Method::ApplyTemplate
        | Method::SaveState
        | Method::LoadState
        | Method::Metrics
        | Method::Shutdown => return None,
    };
    params.get(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &[&str] = &[
        r#"{"jsonrpc":"2.0","method":"started","params":{"request_id":1,"prompt_tokens":1,"cached_tokens":0,"seed":7,"queue_ms":0.1}}"#,
    ];

    fn rules(sent: &str) -> Rules {
        let mut rules = Rules::new().unwrap();
        rules.ready = true;
        rules.sent(sent.as_bytes());
        rules
    }

    fn breach(rules: &mut Rules, line: &str) -> Rule {
        rules.said(line.as_bytes()).unwrap_err().rule
    }

    #[test]
    fn what_was_not_asked_is_not_answered() {
        let found = r#"{"jsonrpc":"2.0","id":2,"result":{"found":false}}"#;
        assert_eq!(breach(&mut rules(""), found), Rule::OneResponse);
        let cancel = "{\"id\":2,\"method\":\"cancel\",\"params\":{\"request_id\":1}}\n";
        let mut heard = rules(cancel);
        assert_eq!(heard.ended(Some(0)).unwrap_err().rule, Rule::OneResponse);
        heard.said(found.as_bytes()).unwrap();
        assert!(heard.ended(Some(0)).is_ok());
        assert_eq!(breach(&mut heard, found), Rule::OneResponse);
        assert_eq!(
            breach(&mut rules(cancel), &found.replace("2,", "\"2\",")),
            Rule::OneResponse
        );
        assert_eq!(
            breach(&mut rules(cancel), &found.replace("false", "true")),
            Rule::Cancel
        );
    }

    #[test]
    fn a_generate_starts_in_its_turn() {
        let sent = "{\"id\":0,\"method\":\"generate\",\"params\":{}}\n{\"id\":1,\"method\":\"generate\",\"params\":{}}\n";
        let mut heard = rules(sent);
        heard.said(START[0].as_bytes()).unwrap();
        let other = START[0].replace(":1,\"p", ":0,\"p");
        assert_eq!(breach(&mut heard, &other), Rule::OneAtATime);
        let unknown = START[0].replace(":1,\"p", ":9,\"p");
        assert_eq!(breach(&mut rules(sent), &unknown), Rule::NothingAfter);
        let mut heard = rules(sent);
        heard.ready = false;
        assert_eq!(breach(&mut heard, START[0]), Rule::ReadyOnce);
    }

    #[test]
    fn a_bad_end_is_explained() {
        let fatal = r#"{"jsonrpc":"2.0","method":"fatal","params":{"error":{"code":-32603,"message":"m","data":{"code":"INTERNAL","retriable":false}}}}"#;
        let mut heard = rules("");
        assert_eq!(heard.ended(Some(70)).unwrap_err().rule, Rule::FatalLast);
        heard.said(fatal.as_bytes()).unwrap();
        assert!(heard.ended(Some(70)).is_ok() && heard.ended(Some(0)).is_err());
        assert_eq!(breach(&mut heard, fatal), Rule::FatalLast);
        let wrong = fatal.replace("-32603", "1006");
        assert_eq!(breach(&mut rules(""), &wrong), Rule::Errors);
    }
}
