//! What a JSON schema may be: its keywords, and how much of it there may be. Compiling has no bound of its own: three hundred
//! patterns in one `allOf` take minutes.

use regex_syntax::Parser;
use serde_json::{Map, Value};
use worker_orcd_protocol::limits as wire;

use super::Refused;

/// What a keyword holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    /// No schema.
    None,
    /// A schema, or in old drafts a list of them.
    Schema,
    /// A list of schemas.
    List,
    /// Schemas by name.
    Named,
}

/// Every keyword that is taken.
const KEYWORDS: &[(&str, Holds)] = &[
    ("anyOf", Holds::List),
    ("oneOf", Holds::List),
    ("allOf", Holds::List),
    ("prefixItems", Holds::List),
    ("items", Holds::Schema),
    ("additionalItems", Holds::Schema),
    ("additionalProperties", Holds::Schema),
    ("properties", Holds::Named),
    ("patternProperties", Holds::Named),
    ("$defs", Holds::Named),
    ("definitions", Holds::Named),
    ("$ref", Holds::None),
    ("const", Holds::None),
    ("enum", Holds::None),
    ("type", Holds::None),
    ("minItems", Holds::None),
    ("maxItems", Holds::None),
    ("required", Holds::None),
    ("minProperties", Holds::None),
    ("maxProperties", Holds::None),
    ("minLength", Holds::None),
    ("maxLength", Holds::None),
    ("pattern", Holds::None),
    ("format", Holds::None),
    ("minimum", Holds::None),
    ("maximum", Holds::None),
    ("exclusiveMinimum", Holds::None),
    ("exclusiveMaximum", Holds::None),
    ("multipleOf", Holds::None),
    ("$anchor", Holds::None),
    ("$schema", Holds::None),
    ("$id", Holds::None),
    ("$comment", Holds::None),
    ("title", Holds::None),
    ("description", Holds::None),
    ("default", Holds::None),
    ("readOnly", Holds::None),
    ("writeOnly", Holds::None),
    ("examples", Holds::None),
    ("contentMediaType", Holds::None),
    ("contentEncoding", Holds::None),
];

/// How much of everything there is so far.
#[derive(Default)]
struct Counts {
    schemas: usize,
    all_of: usize,
    pattern_properties: usize,
    patterns: usize,
    values: usize,
}

/// Refuses what is not taken, at the first place of it.
pub(super) fn check(root: &Map<String, Value>) -> Result<(), Refused> {
    let whole = Value::Object(root.clone());
    let bytes = whole.to_string().len();
    at_most("", "bytes of the schema", bytes, wire::SCHEMA_BYTES_MAX)?;
    let mut counts = Counts::default();
    let mut open = vec![(String::new(), 1)];
    while let Some((pointer, depth)) = open.pop() {
        at_most(&pointer, "depth", depth, wire::SCHEMA_DEPTH_MAX)?;
        counts.schemas += 1;
        at_most(&pointer, "schemas", counts.schemas, wire::SUBSCHEMAS_MAX)?;
        match whole.pointer(&pointer) {
            Some(Value::Object(schema)) => counts.look_at(schema, &pointer, &whole)?,
            Some(Value::Bool(_)) => {}
            Some(_) | None => {
                return Err(Refused::at(pointer, "a schema is an object, true or false"));
            }
        }
        let part = whole.pointer(&pointer).unwrap_or(&Value::Null);
        let inside = parts(part, &pointer).into_iter();
        open.extend(inside.map(|pointer| (pointer, depth + 1)));
    }
    Ok(())
}

/// Pointers to the schemas right inside a schema, the first one last.
pub(super) fn parts(schema: &Value, pointer: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (keyword, value) in schema.as_object().into_iter().flatten() {
        let at = format!("{pointer}/{}", escaped(keyword));
        match (holds(keyword), value) {
            (Some(Holds::Schema | Holds::List), Value::Array(list)) => {
                found.extend((0..list.len()).map(|index| format!("{at}/{index}")));
            }
            (Some(Holds::Schema), _) => found.push(at),
            (Some(Holds::Named), Value::Object(named)) => {
                found.extend(named.keys().map(|name| format!("{at}/{}", escaped(name))));
            }
            (Some(Holds::None | Holds::List | Holds::Named) | None, _) => {}
        }
    }
    found.reverse();
    found
}

fn holds(keyword: &str) -> Option<Holds> {
    let found = KEYWORDS.iter().find(|(name, _)| *name == keyword);
    found.map(|(_, holds)| *holds)
}

/// A key as a JSON pointer has it.
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

fn at_most(pointer: &str, what: &str, count: usize, most: usize) -> Result<(), Refused> {
    if count <= most {
        return Ok(());
    }
    Err(Refused::at(
        pointer,
        format!("there are too many here ({what}): {count}, and at most {most} are taken"),
    ))
}

impl Counts {
    fn look_at(
        &mut self,
        schema: &Map<String, Value>,
        pointer: &str,
        root: &Value,
    ) -> Result<(), Refused> {
        for (keyword, value) in schema {
            let at = format!("{pointer}/{}", escaped(keyword));
            match holds(keyword) {
                Some(Holds::None | Holds::Schema) => {}
                Some(Holds::List) if value.is_array() => {}
                Some(Holds::Named) if value.is_object() => {}
                Some(Holds::List) => return Err(Refused::at(at, "this is a list of schemas")),
                Some(Holds::Named) => {
                    return Err(Refused::at(at, "this is an object of schemas"));
                }
                None => {
                    return Err(Refused::at(
                        at,
                        format!("the keyword {keyword:.64?} is not taken"),
                    ));
                }
            }
            self.count(keyword, value, &at, root)?;
        }
        Ok(())
    }

    fn count(
        &mut self,
        keyword: &str,
        value: &Value,
        at: &str,
        root: &Value,
    ) -> Result<(), Refused> {
        let list = value.as_array().map_or(0, Vec::len);
        match keyword {
            "allOf" => {
                self.all_of += list;
                at_most(at, "members of allOf", self.all_of, wire::ALL_OF_MAX)
            }
            "enum" => {
                self.values += list;
                at_most(at, "values of enum", self.values, wire::ENUM_VALUES_MAX)
            }
            "pattern" => self.pattern(value.as_str(), at),
            "patternProperties" => {
                let patterns = value.as_object().into_iter().flat_map(Map::keys);
                for pattern in patterns {
                    self.pattern_properties += 1;
                    let (count, most) = (self.pattern_properties, wire::PATTERN_PROPERTIES_MAX);
                    at_most(at, "entries of patternProperties", count, most)?;
                    self.pattern(Some(pattern), &format!("{at}/{}", escaped(pattern)))?;
                }
                Ok(())
            }
            "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties"
            | "maxProperties" => size(value, at),
            "$ref" => reference(value.as_str(), at, root),
            _ => Ok(()),
        }
    }

    fn pattern(&mut self, pattern: Option<&str>, at: &str) -> Result<(), Refused> {
        let Some(pattern) = pattern else {
            return Err(Refused::at(at, "a pattern is a string"));
        };
        self.patterns += 1;
        at_most(at, "patterns", self.patterns, wire::PATTERNS_MAX)?;
        at_most(
            at,
            "bytes of a pattern",
            pattern.len(),
            wire::PATTERN_BYTES_MAX,
        )?;
        match Parser::new().parse(pattern) {
            Ok(_) => Ok(()),
            Err(regex_syntax::Error::Parse(error)) => {
                Err(Refused::at(at, error.kind().to_string()))
            }
            Err(regex_syntax::Error::Translate(error)) => {
                Err(Refused::at(at, error.kind().to_string()))
            }
            Err(_) => Err(Refused::at(at, "this is no regular expression")),
        }
    }
}

/// A number of characters, items or properties.
fn size(value: &Value, at: &str) -> Result<(), Refused> {
    let most = wire::SCHEMA_COUNT_MAX;
    match value.as_u64() {
        Some(count) if count <= most => Ok(()),
        Some(count) => Err(Refused::at(
            at,
            format!("this is {count}, and at most {most} is taken"),
        )),
        None => Err(Refused::at(at, "this is a whole number from 0 on")),
    }
}

/// A reference leads into the schema itself: nothing is fetched.
fn reference(value: Option<&str>, at: &str, root: &Value) -> Result<(), Refused> {
    let Some(pointer) = value.and_then(|reference| reference.strip_prefix('#')) else {
        let reason = "a reference begins with #: only what is in this schema can be referred to";
        return Err(Refused::at(at, reason));
    };
    // Signs that are written as %XX and names of `$anchor` are looked up by the compiler.
    let is_plain = pointer.is_empty() || pointer.starts_with('/') && !pointer.contains('%');
    if is_plain && root.pointer(pointer).is_none() {
        return Err(Refused::at(at, "there is nothing there in this schema"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refusal(schema: Value) -> Option<(String, String)> {
        let Value::Object(root) = schema else {
            panic!("a schema is an object");
        };
        let refused = check(&root).err()?;
        Some((refused.place.to_string(), refused.reason))
    }

    #[test]
    fn what_is_not_taken_is_named_with_its_place() {
        for (schema, place) in [
            (json!({"unevaluatedItems": true}), "/unevaluatedItems"),
            (
                json!({"properties": {"a/b~": {"not": {}}}}),
                "/properties/a~1b~0/not",
            ),
            (json!({"anyOf": {}}), "/anyOf"),
            (json!({"items": {"properties": []}}), "/items/properties"),
            (json!({"items": 7}), "/items"),
            (
                json!({"oneOf": [true, {"pattern": "("}]}),
                "/oneOf/1/pattern",
            ),
            (
                json!({"patternProperties": {"[": true}}),
                "/patternProperties/[",
            ),
            (json!({"$ref": "http://example.com/a"}), "/$ref"),
            (json!({"$ref": "#/$defs/a"}), "/$ref"),
            (json!({"maxItems": -1}), "/maxItems"),
            (json!({"maxLength": 10001}), "/maxLength"),
            (json!({"x-guidance": {"lenient": true}}), "/x-guidance"),
        ] {
            let found = refusal(schema.clone()).map(|refused| refused.0);
            assert_eq!(found.as_deref(), Some(place), "{schema}");
        }
        let good =
            json!({"$defs": {"a": {"enum": [1]}}, "items": {"$ref": "#/$defs/a"}, "type": "array"});
        assert_eq!(refusal(good), None);
    }

    #[test]
    fn what_there_is_too_much_of_is_said_with_the_limit() {
        let members = |count: usize| vec![json!({"pattern": "a"}); count];
        let mut deep = json!({});
        for _ in 0..wire::SCHEMA_DEPTH_MAX {
            deep = json!({"items": deep});
        }
        let wide: Map<String, Value> = (0..wire::SUBSCHEMAS_MAX)
            .map(|index| (format!("p{index}"), json!(true)))
            .collect();
        for (schema, limit) in [
            (json!({"allOf": members(17)}), "16"),
            (json!({"anyOf": members(65)}), "64"),
            (json!({"enum": vec![1; 2049]}), "2048"),
            (json!({"pattern": "a".repeat(1025)}), "1024"),
            (deep, "24"),
            (json!({"properties": wide}), "512"),
            (json!({"title": "a".repeat(200_000)}), "131072"),
        ] {
            let reason = refusal(schema).expect("too much").1;
            assert!(reason.contains(&format!("at most {limit} ")), "{reason}");
        }
    }
}
