//! What the output may be: JSON under a schema, a regular expression, a grammar, one of several texts; over the `llguidance` crate.
//!
//! A [`Vocabulary`] is made once for a model, in stages. [`Compiling`] makes a [`Matcher`] of what a request asks for, which
//! says for each token what the next one may be. What a caller can get wrong is found here, with its place: the crate says no
//! place for a schema, and takes some that would keep it busy for minutes.

mod compile;
mod matcher;
mod schema;
mod text;
mod vocabulary;

pub use compile::{Compiled, Compiling};
pub use matcher::{Matcher, MatcherError};
pub use vocabulary::{Building, Built, Vocabulary};

use serde_json::{Map, Value};

use crate::limits;

/// What the output has to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A JSON object with any content.
    JsonObject,
    /// JSON that is valid under this schema.
    Schema(Map<String, Value>),
    /// A text that a regular expression matches from end to end.
    Regex(String),
    /// A sentence of a grammar in Lark's notation.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// Whether tokens are put into the output without the model where there is no other way to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forcing {
    /// They are.
    Forced,
    /// The model draws each of them.
    Drawn,
}

/// Where something is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A JSON pointer into the schema; "" for all of it.
    Pointer(String),
    /// Line and column of a text, from 1.
    Text {
        /// The line.
        line: usize,
        /// Characters of the line up to here, this one included.
        column: usize,
    },
    /// Which of the texts to choose from, from 0.
    Choice(usize),
}

/// Why something cannot be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Where.
    pub place: Place,
    /// Why.
    pub reason: String,
}

impl Refused {
    fn at(pointer: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            place: Place::Pointer(pointer.into()),
            reason: reason.into(),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Pointer(pointer) if pointer.is_empty() => f.write_str("the schema itself"),
            Place::Pointer(pointer) => f.write_str(pointer),
            Place::Text { line, column } => write!(f, "line {line}, column {column}"),
            Place::Choice(index) => write!(f, "choice {index}"),
        }
    }
}

/// The first line of what the crate says, of a length that fits in an error.
fn in_short(said: &str) -> String {
    let line = said.lines().next().unwrap_or_default().trim_end();
    // It overflows on some numbers and catches that itself.
    if line.starts_with("panic: ") {
        return "this is more than can be compiled; are its numbers too large?".to_owned();
    }
    line.chars()
        .take(limits::GRAMMAR_REASON_CHARS_MAX)
        .collect()
}
