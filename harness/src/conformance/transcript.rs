//! A transcript file: its head, and the steps that are played.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::pattern::{self, Saved};

/// The version of the format, which stands in each head.
pub const FORMAT: u32 = 1;

/// A transcript.
#[derive(Debug)]
pub struct Transcript {
    /// What it is called: the file's name without its ending.
    pub name: String,
    /// Its first line.
    pub head: Head,
    /// What is done, in order.
    pub steps: Vec<Step>,
}

/// The first line of a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The version of the format.
    pub conformance: u32,
    /// What is promised, in a sentence.
    pub promise: String,
    /// The heading of protocol/PROTOCOL.md under which it is promised.
    pub section: String,
    /// Flags that the worker gets besides those of its command line, or instead of them.
    #[serde(default)]
    pub flags: BTreeMap<String, String>,
    /// Files for the worker, by name; `{files}` in a flag is the folder that they are written to.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// What the worker must have; the transcript is skipped otherwise.
    #[serde(default)]
    pub needs: Vec<Need>,
    /// When the first step is done.
    #[serde(default)]
    pub start: Start,
}

/// What not every worker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// A model with a chat template.
    ChatTemplate,
    /// `--model fake:…` in the command line: a worker that can be told to fail.
    Fake,
}

/// When the first step is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// When `ready` has come, which then needs no step of its own.
    #[default]
    WhenReady,
    /// As soon as the process runs.
    AtOnce,
}

/// A line of a file after its head.
#[derive(Debug)]
pub struct Step {
    /// Its number in the file, from 1.
    pub line: usize,
    /// What is done.
    pub action: Action,
    /// How long it may take; `None`: the default.
    pub within: Option<Duration>,
}

/// What a step does.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Writes this as one line.
    Send(Value),
    /// Writes these bytes in one go and nothing else.
    Raw(Vec<Piece>),
    /// Goes on after so many milliseconds.
    PauseMs(u64),
    /// The next message about what the pattern is about is like this.
    Expect(Value),
    /// So many further tokens of a request come.
    Tokens(Tokens),
    /// A request comes to its response, and all that was said about it is like this.
    Complete(Complete),
    /// Nothing comes for so many milliseconds.
    SilentMs(u64),
    /// Messages like these have come, in this order.
    Order(Vec<Value>),
    /// Closes stdin.
    Close(Closed),
    /// Sends the process a signal.
    Signal(Signal),
    /// stdout ends, and the process exits with this code.
    Exit(i32),
}

/// `{"of": 1, "count": 5}`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    /// The request.
    pub of: Value,
    /// How many.
    pub count: usize,
}

/// `{"of": 1, "is": PATTERN}`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Complete {
    /// The request.
    pub of: Value,
    /// Of its summary.
    pub is: Value,
}

/// What can be closed.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Closed {
    /// The worker's input.
    Stdin,
}

/// The signals there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Signal {
    /// SIGTERM
    Term,
    /// SIGINT
    Int,
}

/// Some of the bytes of `raw`.
#[derive(Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Piece {
    /// A text as it stands.
    Text(String),
    /// Bytes that are no UTF-8.
    Hex {
        /// Two digits a byte.
        hex: String,
    },
    /// A text many times.
    Repeat {
        /// The text.
        repeat: String,
        /// How often.
        times: usize,
    },
    /// A value on one line, without a line end.
    Json {
        /// The value.
        json: Value,
    },
}

impl Piece {
    /// Its bytes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn bytes(&self, saved: &Saved) -> Result<Vec<u8>, String> {
        match self {
            Piece::Text(text) => Ok(text.clone().into_bytes()),
            Piece::Repeat { repeat, times } => Ok(repeat.repeat(*times).into_bytes()),
            Piece::Json { json } => Ok(pattern::resolve(json, saved)?.to_string().into_bytes()),
            Piece::Hex { hex } => {
                let digits = hex.as_bytes().chunks(2);
                let byte = |pair: &[u8]| {
                    let pair = std::str::from_utf8(pair).ok()?;
                    u8::from_str_radix(pair, 16).ok()
                };
                let bytes: Option<Vec<u8>> = digits.map(byte).collect();
                bytes.ok_or_else(|| format!("hex {hex:?} is not two digits a byte"))
            }
        }
    }
}

impl Transcript {
    /// Reads a file.
    ///
    /// # Errors
    /// Names the line that is wrong, and how.
    pub fn parse(name: &str, text: &str) -> Result<Transcript> {
        let mut lines = text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line))
            .filter(|(_, line)| !line.trim().is_empty());
        let in_file = |line: usize| format!("{name}, line {line}");
        let (number, first) = lines.next().with_context(|| format!("{name} is empty"))?;
        let head: Head = serde_json::from_str(first).with_context(|| in_file(number))?;
        ensure!(
            head.conformance == FORMAT,
            "{name} has format {}; this program reads {FORMAT}",
            head.conformance
        );
        let steps = lines.map(|(number, line)| step(number, line).with_context(|| in_file(number)));
        let transcript = Transcript {
            name: name.to_owned(),
            head,
            steps: steps.collect::<Result<_>>()?,
        };
        ensure!(!transcript.steps.is_empty(), "{name} has no steps");
        Ok(transcript)
    }
}

fn step(line: usize, text: &str) -> Result<Step> {
    let mut value: Value = serde_json::from_str(text)?;
    pattern::check_words(&value).map_err(anyhow::Error::msg)?;
    let Some(object) = value.as_object_mut() else {
        bail!("a step is an object");
    };
    object.remove("note");
    let within = match object.remove("within_ms") {
        None => None,
        Some(within) => Some(Duration::from_millis(
            within
                .as_u64()
                .context("within_ms takes a number of milliseconds")?,
        )),
    };
    Ok(Step {
        line,
        action: serde_json::from_value(value)?,
        within,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = r#"{"conformance":1,"promise":"p","section":"s"}"#;

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (step, words) in [
            (r#"{"sned":{}}"#, "sned"),
            (r#"{"expect":{"$sring":{}}}"#, "$sring"),
            (r#"{"tokens":{"of":1}}"#, "count"),
            (r#"{"signal":"KILL"}"#, "KILL"),
            (r#"{"close":"stdin","within_ms":"soon"}"#, "within_ms"),
            ("[]", "object"),
        ] {
            let text = format!("{HEAD}\n\n{step}\n");
            let error = format!("{:#}", Transcript::parse("t", &text).unwrap_err());
            assert!(
                error.contains("t, line 3") && error.contains(words),
                "{error}"
            );
        }
        let other = HEAD.replace(":1,", ":2,");
        assert!(Transcript::parse("t", &format!("{other}\n{{\"exit\":0}}")).is_err());
        assert!(Transcript::parse("t", HEAD).is_err(), "no steps");
    }

    #[test]
    fn bytes_are_written_as_they_stand() {
        let step = format!(
            r#"{HEAD}
{{"note":"n","within_ms":5,"raw":["a\r\n",{{"hex":"ff00"}},{{"repeat":"xy","times":2}},{{"json":{{"b":1.0,"a":[]}}}}]}}"#
        );
        let transcript = Transcript::parse("t", &step).unwrap();
        let Action::Raw(pieces) = &transcript.steps[0].action else {
            panic!("{transcript:?}")
        };
        let bytes: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| piece.bytes(&Saved::new()).unwrap())
            .collect();
        assert_eq!(bytes, b"a\r\n\xff\0xyxy{\"b\":1.0,\"a\":[]}");
        let odd = Piece::Hex { hex: "zz".into() };
        assert!(odd.bytes(&Saved::new()).is_err());
    }
}
