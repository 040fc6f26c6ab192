//! What is different between two transcripts, for a person.

use std::fmt::Write;

use serde_json::Value;
use similar::{DiffOp, TextDiff};

/// Lines around a difference that are shown too.
const CONTEXT_LINES: usize = 2;

/// Fields that are named; a transcript that differs everywhere is not read to its end.
const FIELDS_MAX: usize = 20;

/// The difference, `None` where there is none: a unified diff, and for lines that changed the fields that did.
pub fn difference(expected: &str, actual: &str) -> Option<String> {
    if expected == actual {
        return None;
    }
    let diff = TextDiff::from_lines(expected, actual);
    let mut text = diff
        .unified_diff()
        .context_radius(CONTEXT_LINES)
        .header("recorded", "now")
        .to_string();
    let fields = changed_fields(&diff);
    for field in fields.iter().take(FIELDS_MAX) {
        let _ = writeln!(text, "{field}");
    }
    if fields.len() > FIELDS_MAX {
        let _ = writeln!(text, "… and {} more fields", fields.len() - FIELDS_MAX);
    }
    Some(text)
}

/// "line 7: result.tail: "a" → "b"" for lines that stand in for each other.
fn changed_fields(diff: &TextDiff<'_, '_, str>) -> Vec<String> {
    let mut found = Vec::new();
    for op in diff.ops() {
        let DiffOp::Replace {
            old_index,
            old_len,
            new_index,
            new_len,
        } = *op
        else {
            continue;
        };
        for offset in 0..old_len.min(new_len) {
            let (old, new) = (
                diff.old_slice(old_index + offset),
                diff.new_slice(new_index + offset),
            );
            let parse =
                |line: Option<&str>| line.and_then(|line| serde_json::from_str::<Value>(line).ok());
            if let (Some(old), Some(new)) = (parse(old), parse(new)) {
                let line = format!("line {}", old_index + offset + 1);
                changed(&line, "", Some(&old), Some(&new), &mut found);
            }
        }
    }
    found
}

fn changed(
    line: &str,
    path: &str,
    old: Option<&Value>,
    new: Option<&Value>,
    found: &mut Vec<String>,
) {
    match (old, new) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let added = new.keys().filter(|key| !old.contains_key(*key));
            for key in old.keys().chain(added) {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                changed(line, &path, old.get(key), new.get(key), found);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            for index in 0..old.len().max(new.len()) {
                changed(
                    line,
                    &format!("{path}[{index}]"),
                    old.get(index),
                    new.get(index),
                    found,
                );
            }
        }
        (old, new) if old == new => {}
        (old, new) => {
            let shown =
                |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
            found.push(format!("{line}: {path}: {} → {}", shown(old), shown(new)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_changed_field_is_named() {
        let old = "{\"a\":1}\n{\"p\":{\"t\":[\"x\",\"y\"]}}\n";
        assert_eq!(difference(old, old), None);
        let text =
            difference(old, "{\"a\":1}\n{\"p\":{\"t\":[\"x\",\"z\"],\"n\":null}}\n").unwrap();
        assert!(
            text.contains("-{\"p\"") && text.contains("+{\"p\""),
            "{text}"
        );
        assert!(text.contains("line 2: p.t[1]: \"y\" → \"z\""), "{text}");
        assert!(text.contains("line 2: p.n: nothing → null"), "{text}");
    }
}
