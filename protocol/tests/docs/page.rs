//! Puts tables and examples into the hand-written page.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use worker_orcd_protocol::{ErrorCode, Exit, IdRule, Method, limits};

use crate::examples::{Example, Kind};

/// The page: the template with everything that stands in double braces filled in.
pub fn render(template: &str, client: &str, document: &Value, examples: &[Example]) -> String {
    let page = Page {
        definitions: document["$defs"].as_object().unwrap(),
        document,
        examples,
        client,
    };
    let shown = shown(template);
    let mut out = String::from(
        "<!-- Generated from doc/PROTOCOL.template.md and the types: UPDATE_DOCS=1 cargo test -p worker-orcd-protocol -->\n\n",
    );
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (word, after) = after.split_once("}}").expect("braces are closed");
        out.push_str(before);
        out.push_str(page.fill(word, &shown).trim_end());
        rest = after;
    }
    out.push_str(rest);
    out
}

/// The types that the template shows in their own place.
fn shown(template: &str) -> BTreeSet<&str> {
    let words = template
        .split("{{")
        .skip(1)
        .filter_map(|piece| piece.split_once("}}").map(|(word, _)| word));
    words
        .filter_map(|word| {
            word.strip_prefix("fields:")
                .or(word.strip_prefix("values:"))
        })
        .collect()
}

struct Page<'a> {
    document: &'a Value,
    definitions: &'a Map<String, Value>,
    examples: &'a [Example],
    client: &'a str,
}

impl Page<'_> {
    fn fill(&self, word: &str, shown: &BTreeSet<&str>) -> String {
        match word.split_once(':') {
            Some(("fields", name)) => format!("{}{}", target(name), self.fields(name)),
            Some(("values", name)) => format!("{}{}", target(name), self.values(name)),
            Some(("example", path)) => self.example(path),
            Some(("limit", name)) => {
                let limit = limits::ALL.iter().find(|limit| limit.name == name);
                plain(&limit.unwrap().value.clone().into())
            }
            _ => match word {
                "session" => self.session(),
                "methods" => self.methods(),
                "errors" => self.errors(),
                "error_examples" => self.error_examples(),
                "limits" => limits_table(),
                "exits" => exits(),
                "types" => self.types(shown),
                "client" => self.client.to_owned(),
                other => panic!("the template asks for {other}"),
            },
        }
    }

    fn definition(&self, name: &str) -> &Value {
        self.definitions
            .get(name)
            .unwrap_or_else(|| panic!("there is no type {name}"))
    }

    /// A table of an object's fields.
    fn fields(&self, name: &str) -> String {
        let definition = self.definition(name);
        let is_params = definition["additionalProperties"] == false;
        let Some(properties) = definition["properties"]
            .as_object()
            .filter(|fields| !fields.is_empty())
        else {
            return format!("`{name}` is an empty object.\n");
        };
        let required: Vec<&str> = definition["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let third = if is_params { "default" } else { "present" };
        let mut table =
            format!("| field of `{name}` | type | {third} | meaning |\n|---|---|---|---|\n");
        for (field, schema) in properties {
            let is_required = required.contains(&field.as_str());
            let third = match (is_params, is_required, schema.get("default")) {
                (true, true, _) => "required".to_owned(),
                (true, false, Some(default)) => format!("`{}`", plain(default)),
                (true, false, None) => "–".to_owned(),
                (false, true, _) => "always".to_owned(),
                (false, false, _) => "optional".to_owned(),
            };
            let kind = with_range(self.kind(schema), &range(schema));
            let kind = if is_params {
                kind
            } else {
                kind.replace(", 0 to 2^64 - 1", "")
                    .replace(", 0 to 2^32 - 1", "")
            };
            let meaning = schema["description"]
                .as_str()
                .unwrap()
                .replace('|', "\\|")
                .replace('\n', " ");
            table.push_str(&format!("| `{field}` | {kind} | {third} | {meaning} |\n"));
        }
        table
    }

    /// The kind of a value in words.
    fn kind(&self, schema: &Value) -> String {
        if let Some(reference) = schema["$ref"].as_str() {
            return self.reference(reference.trim_start_matches("#/$defs/"));
        }
        if let Some(constant) = schema.get("const") {
            return format!("`{constant}`");
        }
        if let Some(branches) = schema["anyOf"].as_array() {
            return branches
                .iter()
                .map(|branch| with_range(self.kind(branch), &range(branch)))
                .collect::<Vec<_>>()
                .join(" or ");
        }
        let kinds: Vec<&str> = match &schema["type"] {
            Value::String(kind) => vec![kind],
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
            _ => vec!["any value"],
        };
        let word = |kind: &&str| match *kind {
            "object" if schema["additionalProperties"].is_object() => {
                format!("object of {}", self.kind(&schema["additionalProperties"]))
            }
            "array" => {
                let items = &schema["items"];
                let each = with_range(self.kind(items), &range(items));
                format!("array of {each}")
            }
            other => other.to_owned(),
        };
        kinds.iter().map(word).collect::<Vec<_>>().join(" or ")
    }

    fn reference(&self, name: &str) -> String {
        let definition = self.definition(name);
        match name {
            "Id" => return "integer or string".to_owned(),
            "ErrorCode" => return "[word](#errors)".to_owned(),
            _ => {}
        }
        let words: Vec<String> = variants(definition)
            .map(|(word, _)| format!("`\"{word}\"`"))
            .collect();
        if words.is_empty() && definition["properties"].is_object() {
            format!("[{name}](#type-{})", anchor(name))
        } else if words.is_empty() {
            self.kind(definition)
        } else {
            words.join(", ")
        }
    }

    /// A table of the words of an enumeration.
    fn values(&self, name: &str) -> String {
        let mut table = format!("| `{name}` | meaning |\n|---|---|\n");
        for (word, meaning) in variants(self.definition(name)) {
            table.push_str(&format!("| `\"{word}\"` | {meaning} |\n"));
        }
        table
    }

    fn example(&self, path: &str) -> String {
        let (type_name, name) = path.split_once('/').unwrap();
        let wanted = |example: &&Example| example.type_name == type_name && example.name == name;
        let example = self
            .examples
            .iter()
            .find(wanted)
            .unwrap_or_else(|| panic!("there is no example {path}"));
        format!("```json\n{}\n```\n", example.line())
    }

    fn error_examples(&self) -> String {
        let errors = self
            .examples
            .iter()
            .filter(|example| matches!(example.kind, Kind::Error(_)));
        errors
            .map(|example| format!("```json\n{}\n```\n\n", example.line()))
            .collect()
    }

    /// A first conversation, of examples.
    fn session(&self) -> String {
        let mut text = String::new();
        for (arrow, path) in [
            ("←", "Progress/load"),
            ("←", "Ready/notification"),
            ("→", "GenerateParams/prompt"),
            ("←", "Started/queued"),
            ("←", "Token/plain"),
            ("→", "NoParams/none"),
            ("←", "HealthResult/busy"),
            ("←", "GenerateResult/streamed"),
        ] {
            let (type_name, name) = path.split_once('/').unwrap();
            let example = self
                .examples
                .iter()
                .find(|other| other.type_name == type_name && other.name == name)
                .unwrap();
            let line = example.line();
            let short: String = line.chars().take(150).collect();
            let more = if short.len() < line.len() { "…" } else { "" };
            text.push_str(&format!("{arrow} {short}{more}\n"));
        }
        text
    }

    fn methods(&self) -> String {
        let mut table = String::from("| method | params | result | id |\n|---|---|---|---|\n");
        let last = |schema: &Value| {
            schema["$ref"]
                .as_str()
                .unwrap()
                .rsplit('/')
                .next()
                .unwrap()
                .to_owned()
        };
        for method in Method::ALL {
            let name = method.name();
            let entry = &self.document["methods"][name];
            let id = match method.id_rule() {
                IdRule::Needed => "needed",
                IdRule::MayBeLeftOut => "may be left out: then nothing is answered",
            };
            let (params, result) = (last(&entry["params"]), last(&entry["result"]));
            table.push_str(&format!(
                "| [`{name}`](#{}) | {params} | {result} | {id} |\n",
                anchor(name)
            ));
        }
        table
    }

    fn errors(&self) -> String {
        let mut table =
            String::from("| code | data.code | retriable | when |\n|---|---|---|---|\n");
        for code in ErrorCode::ALL {
            let mut meanings = variants(self.definition("ErrorCode"));
            let (_, meaning) = meanings.find(|(word, _)| *word == code.name()).unwrap();
            let retriable = if code.retriable() { "yes" } else { "no" };
            table.push_str(&format!(
                "| {} | {} | {retriable} | {meaning} |\n",
                code.number(),
                code.name()
            ));
        }
        table
    }

    /// Tables of all types that have no place of their own.
    fn types(&self, shown: &BTreeSet<&str>) -> String {
        let elsewhere = [
            "Arguments",
            "Content",
            "ErrorCode",
            "GrammarValue",
            "Id",
            "InputLine",
            "LogitBias",
            "NoParams",
            "OutputLine",
            "Speculation",
            "StopReason",
            "ToolChoice",
        ];
        let mut text = String::new();
        for (name, definition) in self.definitions {
            if shown.contains(name.as_str()) || elsewhere.contains(&name.as_str()) {
                continue;
            }
            let target = target(name);
            let description = definition["description"].as_str().unwrap();
            let table = if variants(definition).next().is_some() {
                self.values(name)
            } else {
                self.fields(name)
            };
            text.push_str(&format!("### {name}\n\n{target}{description}\n\n{table}\n"));
        }
        text
    }
}

/// The words of an enumeration with their meanings.
fn variants(definition: &Value) -> impl Iterator<Item = (&str, &str)> {
    let branches = definition["oneOf"].as_array().into_iter().flatten();
    branches.filter_map(|branch| Some((branch["const"].as_str()?, branch["description"].as_str()?)))
}

/// What a link to a type leads to; headings of methods have the same names as some types.
fn target(name: &str) -> String {
    format!("<a id=\"type-{}\"></a>\n\n", anchor(name))
}

/// The anchor that a heading gets.
pub fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter(|char| char.is_alphanumeric() || matches!(char, '_' | '-'))
        .collect()
}

fn with_range(kind: String, range: &str) -> String {
    if range.is_empty() {
        kind
    } else {
        format!("{kind}, {range}")
    }
}

/// The bounds of a value in words.
fn range(schema: &Value) -> String {
    let mut words = Vec::new();
    let number = |keyword: &str| schema.get(keyword).map(plain);
    match (
        number("minimum"),
        number("exclusiveMinimum"),
        number("maximum"),
    ) {
        (Some(min), _, Some(max)) if min == max => words.push(min),
        (Some(min), _, Some(max)) => words.push(format!("{min} to {max}")),
        (None, Some(above), Some(max)) => words.push(format!("above {above}, up to {max}")),
        (Some(min), _, None) => words.push(format!("{min} and above")),
        (None, None, Some(max)) => words.push(format!("up to {max}")),
        (None, _, None) => {}
    }
    match (number("minLength"), number("x-max-bytes")) {
        (Some(min), Some(max)) => words.push(format!("{min} to {max} bytes")),
        (None, Some(max)) => words.push(format!("at most {max} bytes")),
        _ => {}
    }
    match (number("minItems"), number("maxItems")) {
        (Some(min), Some(max)) => words.push(format!("{min} to {max} entries")),
        (None, Some(max)) => words.push(format!("at most {max} entries")),
        _ => {}
    }
    words.join(", ")
}

/// A number as people write it.
fn plain(value: &Value) -> String {
    match value.as_u64() {
        Some(max) if max == u64::MAX => return "2^64 - 1".to_owned(),
        Some(max) if max == u64::from(u32::MAX) => return "2^32 - 1".to_owned(),
        _ => {}
    }
    match value.as_i64() {
        Some(i64::MAX) => return "2^63 - 1".to_owned(),
        Some(i64::MIN) => return "-2^63".to_owned(),
        _ => {}
    }
    if value.as_i64() == Some(i64::from(i32::MAX)) {
        return "2^31 - 1".to_owned();
    }
    if value.as_i64() == Some(i64::from(i32::MIN)) {
        return "-2^31".to_owned();
    }
    match value.as_f64() {
        Some(float) if value.is_f64() => float.to_string(),
        _ => value.to_string(),
    }
}

fn limits_table() -> String {
    let mut table = String::from("| limit | value | meaning |\n|---|---|---|\n");
    for limit in limits::ALL
        .iter()
        .filter(|limit| !matches!(limit.name, "PROTOCOL_VERSION" | "LOGPROB_FLOOR"))
    {
        let value = plain(&limit.value.clone().into());
        table.push_str(&format!(
            "| {} | {value} | {} |\n",
            limit.name, limit.meaning
        ));
    }
    table
}

fn exits() -> String {
    let mut table = String::from("| code | meaning | start again? |\n|---|---|---|\n");
    for exit in Exit::ALL {
        table.push_str(&format!(
            "| {} | {} | {} |\n",
            exit.code(),
            exit.meaning(),
            exit.restart().words()
        ));
    }
    table
}
