//! `NAME.in.jsonl`: what is sent, and what is waited for in between.

use std::fmt;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;
use worker_orcd_protocol::Id;

/// An input file.
#[derive(Debug)]
pub struct Script {
    /// Further flags for the worker.
    pub args: Vec<String>,
    /// When sending begins.
    pub send: Send,
    /// What to do, in order.
    pub steps: Vec<Step>,
}

/// When sending begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Send {
    /// After `ready`.
    #[default]
    WhenReady,
    /// Before the model is loaded.
    AtOnce,
}

/// One line of the input.
#[derive(Debug)]
pub enum Step {
    /// Send it, line end and all.
    Send(Vec<u8>),
    /// Wait.
    Await(Await),
}

/// Messages to wait for.
#[derive(Clone, Debug)]
pub struct Await {
    kind: Awaited,
    request_id: Id,
    count: usize,
}

/// The messages that can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Awaited {
    Started,
    Token,
    Response,
}

/// The object under `golden`.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Directive {
    Await {
        #[serde(rename = "await")]
        kind: Awaited,
        request_id: Id,
        #[serde(default = "one")]
        count: usize,
    },
    Head {
        /// For whoever reads the file.
        #[serde(default, rename = "about")]
        _about: String,
        #[serde(default)]
        args: Vec<String>,
        #[serde(default)]
        send: Send,
    },
}

fn one() -> usize {
    1
}

impl Script {
    /// Reads an input file.
    ///
    /// # Errors
    /// Names the line whose directive is wrong.
    pub fn parse(text: &[u8]) -> Result<Script> {
        let mut script = Script {
            args: Vec::new(),
            send: Send::default(),
            steps: Vec::new(),
        };
        for (index, line) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
            let number = index + 1;
            match directive(line).with_context(|| format!("line {number}"))? {
                None => script.steps.push(Step::Send(line.to_vec())),
                Some(Directive::Await {
                    kind,
                    request_id,
                    count,
                }) => {
                    script.steps.push(Step::Await(Await {
                        kind,
                        request_id,
                        count,
                    }));
                }
                Some(Directive::Head { args, send, .. }) if index == 0 => {
                    script.args = args;
                    script.send = send;
                }
                Some(Directive::Head { .. }) => {
                    bail!("line {number}: about, args and send belong into the first line")
                }
            }
        }
        Ok(script)
    }

    /// The requests among the lines, as far as they are JSON objects.
    pub fn requests(&self) -> impl Iterator<Item = Value> {
        self.steps.iter().filter_map(|step| match step {
            Step::Send(line) => serde_json::from_slice(line).ok().filter(Value::is_object),
            Step::Await(_) => None,
        })
    }

    /// How many tokens of this request are waited for; these come for sure, even if it is cancelled then.
    pub fn tokens_awaited(&self, request_id: &Id) -> usize {
        let count = |step: &Step| match step {
            Step::Await(Await {
                kind: Awaited::Token,
                request_id: id,
                count,
            }) if id == request_id => Some(*count),
            Step::Await(_) | Step::Send(_) => None,
        };
        self.steps.iter().filter_map(count).max().unwrap_or(0)
    }
}

fn directive(line: &[u8]) -> Result<Option<Directive>> {
    let Ok(Value::Object(mut object)) = serde_json::from_slice(line) else {
        return Ok(None);
    };
    if object.len() != 1 {
        return Ok(None);
    }
    let Some(golden) = object.remove("golden") else {
        return Ok(None);
    };
    let directive = serde_json::from_value(golden);
    directive
        .map(Some)
        .context("golden takes either await, request_id and count, or about, args and send")
}

impl Await {
    /// Whether these lines hold enough of what is waited for.
    pub fn is_met_by(&self, lines: &[Vec<u8>]) -> bool {
        lines.iter().filter(|line| self.counts(line)).count() >= self.count
    }

    /// Whether it can no longer be met: the request has its response, after which nothing comes for it.
    pub fn is_hopeless(&self, lines: &[Vec<u8>]) -> bool {
        let response = Await {
            kind: Awaited::Response,
            count: 1,
            ..self.clone()
        };
        response.is_met_by(lines) && !self.is_met_by(lines)
    }

    fn counts(&self, line: &[u8]) -> bool {
        let Ok(value) = serde_json::from_slice::<Value>(line) else {
            return false;
        };
        let (kind, id) = match value["method"].as_str() {
            Some("started") => (Awaited::Started, &value["params"]["request_id"]),
            Some("token") => (Awaited::Token, &value["params"]["request_id"]),
            Some(_) => return false,
            None => (Awaited::Response, &value["id"]),
        };
        kind == self.kind
            && serde_json::from_value(id.clone()).ok().as_ref() == Some(&self.request_id)
    }
}

impl fmt::Display for Await {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Awaited::Started => "started",
            Awaited::Token => "token",
            Awaited::Response => "response",
        };
        write!(
            f,
            "{kind} number {} of request {}",
            self.count, self.request_id
        )
    }
}

/// Whether a line says that the model is loaded.
pub fn is_ready(line: &[u8]) -> bool {
    serde_json::from_slice::<Value>(line).is_ok_and(|value| value["method"] == "ready")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_sent_as_they_stand_and_directives_are_obeyed() {
        let text = b"{\"golden\":{\"about\":\"x\",\"args\":[\"--ctx\",\"9\"],\"send\":\"at_once\"}}\n\n{broken\xff\n{\"golden\":{\"await\":\"token\",\"request_id\":1,\"count\":2}}\n{\"golden\":{},\"id\":1}";
        let script = Script::parse(text).unwrap();
        assert_eq!((script.args.len(), script.send), (2, Send::AtOnce));
        let [
            Step::Send(blank),
            Step::Send(broken),
            Step::Await(awaited),
            Step::Send(request),
        ] = &script.steps[..]
        else {
            panic!("{script:?}")
        };
        assert_eq!(
            (&blank[..], &broken[..]),
            (&b"\n"[..], &b"{broken\xff\n"[..])
        );
        assert_eq!(request, br#"{"golden":{},"id":1}"#);
        assert_eq!(script.tokens_awaited(&Id::Number(1)), 2);
        assert_eq!(script.tokens_awaited(&Id::String("1".into())), 0);
        let token = br#"{"method":"token","params":{"request_id":1}}"#.to_vec();
        let other = br#"{"method":"token","params":{"request_id":"1"}}"#.to_vec();
        assert!(!awaited.is_met_by(&[token.clone(), other.clone()]));
        assert!(awaited.is_met_by(&[token.clone(), other, token]));
    }

    #[test]
    fn a_wrong_directive_names_its_line() {
        for wrong in [
            "{\"golden\":{\"wait\":1}}",
            "{\"golden\":{\"await\":\"soup\",\"request_id\":1}}",
            "{\"golden\":{\"about\":\"late\"}}",
        ] {
            let error = Script::parse(format!("{{}}\n{wrong}").as_bytes()).unwrap_err();
            assert!(format!("{error:#}").contains("line 2"), "{error:#}");
        }
    }
}
