//! The objects among the fields of `generate` that say how a token is drawn.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::limits;

/// "Don't repeat yourself": makes a token less likely that would make a repetition longer. Where the last n tokens stand earlier in the window too, followed by this token, its logit loses multiplier × base^(n − allowed_length) from n = allowed_length on; of several such places the longest counts, and more than 256 tokens count as 256.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dry {
    /// What a repetition costs that has just become longer than `allowed_length`; 0 changes nothing.
    #[schemars(range(min = 0.0, max = limits::DRY_MULTIPLIER_MAX))]
    pub multiplier: f32,
    /// By what the cost grows with each further token.
    #[serde(default = "base")]
    #[schemars(extend("default" = 1.75))]
    #[schemars(range(min = 1.0, max = limits::DRY_BASE_MAX))]
    pub base: f32,
    /// Tokens of a sequence that may come again for nothing.
    #[serde(default = "allowed_length")]
    #[schemars(extend("default" = 2))]
    #[schemars(range(min = 1, max = limits::DRY_ALLOWED_LENGTH_MAX))]
    pub allowed_length: u32,
    /// Tokens that are looked at, the last ones of prompt and output; -1: all, 0: none.
    #[serde(default = "last_n")]
    #[schemars(extend("default" = -1))]
    #[schemars(range(min = -1, max = limits::LAST_N_MAX))]
    pub last_n: i32,
    /// Texts at which a sequence ends: a token whose own text contains one of them is never part of a repetition and costs nothing. Of a text that no single token contains, the last token of its tokens counts. At most 16, each of 1 to 64 bytes.
    #[serde(default = "sequence_breakers")]
    #[schemars(length(max = limits::SEQUENCE_BREAKERS_MAX), extend("items" = {"type": "string", "minLength": 1, "x-max-bytes": limits::SEQUENCE_BREAKER_BYTES_MAX}, "default" = ["\n", ":", "\"", "*"]))]
    pub sequence_breakers: Vec<String>,
}

fn base() -> f32 {
    1.75
}

fn allowed_length() -> u32 {
    2
}

fn last_n() -> i32 {
    -1
}

fn sequence_breakers() -> Vec<String> {
    ["\n", ":", "\"", "*"].map(str::to_owned).into()
}

/// "Exclude top choices": now and then leaves out all tokens whose probability is at least `threshold`, but for the least likely of them, where there are two or more. Probabilities are those after all stages before it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Xtc {
    /// How often it acts, by a number that is a pure function of seed and index of the token; 0: never, 1: for every token.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub probability: f32,
    /// From which probability on tokens are left out; above 0.5 there are never two.
    #[serde(default = "threshold")]
    #[schemars(extend("default" = 0.1))]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub threshold: f32,
}

fn threshold() -> f32 {
    0.1
}

/// What is done to the logit of a token: a number of [-100, 100] is added, `false` forbids the token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LogitBias {
    /// Added to the logit.
    Add(f32),
    /// The token is not drawn: `false`.
    Forbid,
}

impl Serialize for LogitBias {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            LogitBias::Add(bias) => serializer.serialize_f32(*bias),
            LogitBias::Forbid => serializer.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for LogitBias {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BiasVisitor)
    }
}

struct BiasVisitor;

impl Visitor<'_> for BiasVisitor {
    type Value = LogitBias;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, or false")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<LogitBias, E> {
        if value {
            return Err(E::custom("true means nothing here"));
        }
        Ok(LogitBias::Forbid)
    }

    fn visit_u64<E>(self, value: u64) -> Result<LogitBias, E> {
        Ok(LogitBias::Add(value as f32))
    }

    fn visit_i64<E>(self, value: i64) -> Result<LogitBias, E> {
        Ok(LogitBias::Add(value as f32))
    }

    fn visit_f64<E>(self, value: f64) -> Result<LogitBias, E> {
        Ok(LogitBias::Add(value as f32))
    }
}

impl JsonSchema for LogitBias {
    fn schema_name() -> Cow<'static, str> {
        "LogitBias".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let max = limits::LOGIT_BIAS_VALUE_MAX;
        json_schema!({
            "description": "What is done to the logit of a token: a number is added, `false` forbids the token.",
            "anyOf": [
                {"type": "number", "format": "float", "minimum": -max, "maximum": max},
                {"type": "boolean", "const": false},
            ],
        })
    }
}
