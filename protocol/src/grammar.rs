//! The objects among the fields of `generate` that say what form its output has.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::limits;

/// What form the output has: JSON, or any text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponseFormat {
    /// Which form.
    #[serde(rename = "type")]
    pub kind: ResponseFormatKind,
    /// The schema. With type "json_schema", and only there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json_schema: Option<SchemaFormat>,
}

/// Which form the output has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResponseFormatKind {
    /// Any text, as if the field were left out.
    Text,
    /// A JSON object with any content.
    JsonObject,
    /// JSON that is valid under a schema.
    JsonSchema,
}

/// A JSON schema for the output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SchemaFormat {
    /// A name for it, which changes nothing; clients of other APIs send one. At most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-max-bytes" = limits::SCHEMA_NAME_BYTES_MAX))]
    pub name: Option<String>,
    /// Taken for the sake of clients of other APIs; a schema is always kept to the letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
    /// The schema, an object.
    pub schema: Map<String, Value>,
}

/// What text the output may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Grammar {
    /// How `value` says it.
    #[serde(rename = "type")]
    pub kind: GrammarKind,
    /// A regular expression or a Lark grammar, of 1 byte to 64 KiB; or the texts to choose from: 1 to 1024 of them, each of 1 to 1024 bytes.
    pub value: GrammarValue,
}

/// How a grammar says what the output may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GrammarKind {
    /// The whole output matches a regular expression.
    Regex,
    /// The output is a sentence of a grammar in Lark's notation.
    Lark,
    /// The output is one of several texts.
    Choice,
}

/// What a grammar is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum GrammarValue {
    /// A regular expression, or a grammar.
    Text(#[schemars(length(min = 1), extend("x-max-bytes" = limits::GRAMMAR_BYTES_MAX))] String),
    /// Texts to choose from.
    Choices(
        #[schemars(length(min = 1, max = limits::CHOICES_MAX), extend("items" = {"type": "string", "minLength": 1, "x-max-bytes": limits::CHOICE_BYTES_MAX}))]
         Vec<String>,
    ),
}
