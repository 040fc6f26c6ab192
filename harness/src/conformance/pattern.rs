//! The small language of transcripts: values that are made when they are needed, and patterns that a message is held against.
//!
//! protocol/conformance/README.md is its documentation. Anything in JSON stands for itself, but an object whose only key begins with
//! `$` is a word of this language.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

/// What a transcript has saved so far, by name.
pub type Saved = BTreeMap<String, Value>;

/// The words that make a value, to be sent or compared with.
pub const VALUES: &[&str] = &["$get", "$repeat", "$join", "$before", "$concat"];

/// The words that only a pattern can use.
pub const TESTS: &[&str] = &[
    "$any", "$absent", "$boolean", "$integer", "$number", "$string", "$array", "$object", "$not",
    "$one_of", "$all", "$save",
];

/// Where a message is not as the pattern wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// "result.usage", "" for the message itself.
    path: String,
    wanted: String,
    found: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.path.is_empty() {
            "it"
        } else {
            &self.path
        };
        write!(
            f,
            "{place} should be {}, but is {}",
            self.wanted, self.found
        )
    }
}

/// A word of the language and what stands behind it.
fn word(value: &Value) -> Option<(&str, &Value)> {
    let object = value.as_object().filter(|object| object.len() == 1)?;
    let (name, argument) = object.iter().next()?;
    name.starts_with('$').then_some((name, argument))
}

/// Holds every word in `value` against those there are; the error names one that is not.
pub fn check_words(value: &Value) -> Result<(), String> {
    if let Some((name, _)) = word(value)
        && !VALUES.contains(&name)
        && !TESTS.contains(&name)
    {
        return Err(format!(
            "there is no word {name}; there are {}, {}",
            VALUES.join(", "),
            TESTS.join(", ")
        ));
    }
    match value {
        Value::Array(values) => values.iter().try_for_each(check_words),
        Value::Object(object) => object.values().try_for_each(check_words),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

/// The value that a template stands for.
///
/// # Errors
/// Says what is wrong with the template, or which name is not saved.
pub fn resolve(template: &Value, saved: &Saved) -> Result<Value, String> {
    if let Some((name, argument)) = word(template) {
        return make(name, argument, saved);
    }
    Ok(match template {
        Value::Array(values) => {
            let values: Result<_, _> = values.iter().map(|value| resolve(value, saved)).collect();
            Value::Array(values?)
        }
        Value::Object(object) => {
            let mut made = Map::new();
            for (name, value) in object {
                made.insert(name.clone(), resolve(value, saved)?);
            }
            Value::Object(made)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => template.clone(),
    })
}

fn make(name: &str, argument: &Value, saved: &Saved) -> Result<Value, String> {
    let wrong = |wanted: &str| format!("{name} takes {wanted}, not {}", shown(argument));
    let arguments = argument.as_array().map_or(&[][..], Vec::as_slice);
    match (name, arguments) {
        ("$get", _) => get(argument, saved),
        ("$repeat", [what, times]) => {
            let times = size(times).ok_or_else(|| wrong("a value and how often"))?;
            Ok(match resolve(what, saved)? {
                Value::String(text) => text.repeat(times).into(),
                value => Value::Array(vec![value; times]),
            })
        }
        ("$join", [texts, from, to]) => {
            let range = size(from)
                .zip(size(to))
                .ok_or_else(|| wrong("texts, from and to"))?;
            let texts = resolve(texts, saved)?;
            let texts = texts
                .as_array()
                .and_then(|texts| texts.get(range.0..range.1));
            let texts = texts.ok_or("$join: there are not so many texts")?;
            Ok(texts
                .iter()
                .filter_map(Value::as_str)
                .collect::<String>()
                .into())
        }
        ("$before", [text, stop]) => {
            let (text, stop) = (resolve(text, saved)?, resolve(stop, saved)?);
            let both = text.as_str().zip(stop.as_str());
            let (text, stop) = both.ok_or_else(|| wrong("two texts"))?;
            let found = text.split_once(stop);
            Ok(found
                .ok_or_else(|| format!("$before: {stop:?} is not in {text:?}"))?
                .0
                .into())
        }
        ("$concat", texts) => {
            let mut whole = String::new();
            for text in texts {
                let text = resolve(text, saved)?;
                whole += text.as_str().ok_or_else(|| wrong("texts"))?;
            }
            Ok(whole.into())
        }
        _ => Err(format!("{name} {} makes no value", shown(argument))),
    }
}

/// `"name"`, or `["name", "field", 0]`.
fn get(argument: &Value, saved: &Saved) -> Result<Value, String> {
    let path = match argument {
        Value::Array(path) => path.as_slice(),
        name => std::slice::from_ref(name),
    };
    let (name, path) = path.split_first().ok_or("$get takes a name")?;
    let name = name.as_str().ok_or("$get takes a name")?;
    let mut value = saved
        .get(name)
        .ok_or_else(|| format!("nothing is saved as {name}"))?;
    for step in path {
        let inner = match step {
            Value::String(field) => value.get(field),
            step => size(step).and_then(|index| value.get(index)),
        };
        value = inner.ok_or_else(|| format!("{name} has no {step}"))?;
    }
    Ok(value.clone())
}

fn size(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

/// Holds `found` against `pattern`; what the pattern saves is in the result.
///
/// # Errors
/// The first place where it is not as wanted.
pub fn matches(pattern: &Value, found: &Value, saved: &Saved) -> Result<Saved, Mismatch> {
    let mut matcher = Matcher {
        saved,
        path: Vec::new(),
        new: Saved::new(),
    };
    matcher.run(pattern, Some(found))?;
    Ok(matcher.new)
}

struct Matcher<'a> {
    saved: &'a Saved,
    path: Vec<String>,
    new: Saved,
}

impl Matcher<'_> {
    /// `None`: there is no such field.
    fn run(&mut self, pattern: &Value, found: Option<&Value>) -> Result<(), Mismatch> {
        if let Some((name, argument)) = word(pattern) {
            return if VALUES.contains(&name) {
                let wanted = resolve(pattern, self.saved);
                let wanted = wanted.map_err(|error| self.mismatch(error, found))?;
                self.equal(&wanted, found)
            } else {
                self.test(name, argument, found)
            };
        }
        match (pattern, found) {
            (Value::Object(fields), Some(Value::Object(_))) => {
                for (name, pattern) in fields {
                    let inner = found.and_then(|found| found.get(name));
                    self.at(name, |matcher| matcher.run(pattern, inner))?;
                }
                Ok(())
            }
            (Value::Array(patterns), Some(Value::Array(values)))
                if patterns.len() == values.len() =>
            {
                for (index, (pattern, value)) in patterns.iter().zip(values).enumerate() {
                    self.at(&format!("[{index}]"), |matcher| {
                        matcher.run(pattern, Some(value))
                    })?;
                }
                Ok(())
            }
            _ => self.equal(pattern, found),
        }
    }

    fn equal(&self, wanted: &Value, found: Option<&Value>) -> Result<(), Mismatch> {
        if found.is_some_and(|found| same(wanted, found)) {
            return Ok(());
        }
        Err(self.mismatch(shown(wanted), found))
    }

    fn test(
        &mut self,
        name: &str,
        argument: &Value,
        found: Option<&Value>,
    ) -> Result<(), Mismatch> {
        if let "$integer" | "$number" | "$string" = name {
            let limits = resolve(argument, self.saved);
            let limits = limits.map_err(|error| self.mismatch(error, found))?;
            return self.scalar(name, &limits, found);
        }
        let is = |holds: fn(&Value) -> bool| found.is_some_and(holds);
        let holds = match name {
            "$absent" => found.is_none(),
            "$any" => found.is_some(),
            "$boolean" => is(Value::is_boolean),
            "$object" => is(Value::is_object),
            "$array" => return self.array(argument, found),
            "$save" => return self.save(argument, found),
            "$not" => self.clone_run(argument, found).is_err(),
            "$one_of" => alternatives(argument)
                .iter()
                .any(|p| self.clone_run(p, found).is_ok()),
            "$all" => {
                let all = alternatives(argument);
                return all.iter().try_for_each(|pattern| self.run(pattern, found));
            }
            _ => false,
        };
        self.held(holds, name, argument, found)
    }

    fn scalar(&self, name: &str, limits: &Value, found: Option<&Value>) -> Result<(), Mismatch> {
        let holds = match (name, found) {
            ("$string", Some(Value::String(text))) => text_fits(limits, text),
            ("$number", Some(Value::Number(_))) => in_range(limits, found),
            ("$integer", Some(Value::Number(number))) => {
                (number.is_i64() || number.is_u64()) && in_range(limits, found)
            }
            _ => false,
        };
        self.held(holds, name, limits, found)
    }

    fn held(
        &self,
        holds: bool,
        name: &str,
        argument: &Value,
        found: Option<&Value>,
    ) -> Result<(), Mismatch> {
        if holds {
            return Ok(());
        }
        let argument = Some(shown(argument)).filter(|argument| argument != "{}");
        Err(self.mismatch(
            [name.to_owned()]
                .into_iter()
                .chain(argument)
                .collect::<Vec<_>>()
                .join(" "),
            found,
        ))
    }

    /// Tries a pattern; what it saves is forgotten.
    fn clone_run(&self, pattern: &Value, found: Option<&Value>) -> Result<(), Mismatch> {
        let mut matcher = Matcher {
            saved: self.saved,
            path: self.path.clone(),
            new: Saved::new(),
        };
        matcher.run(pattern, found)
    }

    fn save(&mut self, argument: &Value, found: Option<&Value>) -> Result<(), Mismatch> {
        let (name, pattern) = match argument.as_array().map(Vec::as_slice) {
            Some([Value::String(name), pattern]) => (name, pattern),
            _ => return Err(self.mismatch("$save with a name and a pattern".to_owned(), found)),
        };
        self.run(pattern, found)?;
        if let Some(found) = found {
            self.new.insert(name.clone(), found.clone());
        }
        Ok(())
    }

    fn array(&mut self, rules: &Value, found: Option<&Value>) -> Result<(), Mismatch> {
        let Some(values) = found.and_then(Value::as_array) else {
            return Err(self.mismatch("an array".to_owned(), found));
        };
        if let Some(length) = rules.get("length") {
            let count = Value::from(values.len());
            self.at("length", |matcher| matcher.run(length, Some(&count)))?;
        }
        if let Some(pattern) = rules.get("each") {
            for (index, value) in values.iter().enumerate() {
                self.at(&format!("[{index}]"), |matcher| {
                    matcher.run(pattern, Some(value))
                })?;
            }
        }
        // In any order; each pattern has an entry of its own.
        let mut left: Vec<&Value> = values.iter().collect();
        for pattern in rules.get("includes").map_or(&[][..], alternatives) {
            let at = left
                .iter()
                .position(|value| self.clone_run(pattern, Some(value)).is_ok());
            match at {
                Some(at) => drop(left.remove(at)),
                None => {
                    return Err(self.mismatch(format!("with {} in it", shown(pattern)), found));
                }
            }
        }
        Ok(())
    }

    fn at(
        &mut self,
        step: &str,
        run: impl FnOnce(&mut Self) -> Result<(), Mismatch>,
    ) -> Result<(), Mismatch> {
        self.path.push(step.to_owned());
        let result = run(self);
        self.path.pop();
        result
    }

    fn mismatch(&self, wanted: String, found: Option<&Value>) -> Mismatch {
        Mismatch {
            path: self.path.join(".").replace(".[", "["),
            wanted,
            found: found.map_or_else(|| "not there".to_owned(), shown),
        }
    }
}

fn alternatives(argument: &Value) -> &[Value] {
    argument.as_array().map_or(&[], Vec::as_slice)
}

/// `{"min": 0, "max": 5}`, both optional.
fn in_range(rules: &Value, found: Option<&Value>) -> bool {
    let number = |value: &Value| value.as_f64();
    let Some(found) = found.and_then(number) else {
        return false;
    };
    let min = rules.get("min").and_then(number);
    let max = rules.get("max").and_then(number);
    min.is_none_or(|min| found >= min) && max.is_none_or(|max| found <= max)
}

/// `{"starts_with": "", "ends_with": "", "contains": "", "min_bytes": 1}`, all optional; `contains` may list several.
fn text_fits(rules: &Value, text: &str) -> bool {
    let texts = |name: &str| -> Vec<&str> {
        match rules.get(name) {
            Some(Value::Array(texts)) => texts.iter().filter_map(Value::as_str).collect(),
            Some(Value::String(one)) => vec![one],
            _ => Vec::new(),
        }
    };
    texts("starts_with")
        .iter()
        .all(|part| text.starts_with(part))
        && texts("ends_with").iter().all(|part| text.ends_with(part))
        && texts("contains").iter().all(|part| text.contains(part))
        && rules
            .get("min_bytes")
            .and_then(size)
            .is_none_or(|min| text.len() >= min)
}

/// Equal; numbers by value, so that 0 is 0.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => {
            x == y || (x.is_f64() || y.is_f64()) && x.as_f64() == y.as_f64()
        }
        (Value::Array(x), Value::Array(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y))
        }
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len()
                && x.iter()
                    .all(|(name, x)| y.get(name).is_some_and(|y| same(x, y)))
        }
        _ => a == b,
    }
}

/// Most bytes of a value that a report shows.
const SHOWN_BYTES_MAX: usize = 200;

/// A value as a report shows it.
fn shown(value: &Value) -> String {
    cut(&value.to_string(), SHOWN_BYTES_MAX)
}

/// At most `max` bytes of a text, and a sign where that is not all.
pub fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let end = (0..=max).rev().find(|&end| text.is_char_boundary(end));
    format!("{}…", &text[..end.unwrap_or(0)])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fits(pattern: &Value, found: &Value) -> bool {
        let saved = Saved::from([("a".to_owned(), json!({"texts": ["x", "y", "z"]}))]);
        matches(pattern, found, &saved).is_ok()
    }

    #[test]
    fn objects_are_open_and_arrays_are_not() {
        assert!(fits(&json!({"a": 1}), &json!({"a": 1.0, "b": 2})));
        assert!(!fits(
            &json!({"a": 1, "b": {"$absent": {}}}),
            &json!({"a": 1, "b": 2})
        ));
        assert!(fits(&json!([1, {"$any": {}}]), &json!([1, null])));
        assert!(!fits(&json!([1]), &json!([1, 2])));
        assert!(!fits(&json!({"id": 1}), &json!({"id": "1"})));
    }

    /// A pattern, what it matches and what it does not.
    fn assert_all(cases: &[(Value, Value, Value)]) {
        for (pattern, yes, no) in cases {
            assert!(fits(pattern, yes), "{pattern} {yes}");
            assert!(!fits(pattern, no), "{pattern} {no}");
            assert!(check_words(pattern).is_ok());
        }
    }

    #[test]
    fn every_test_says_yes_and_no() {
        assert_all(&[
            (json!({"$boolean": {}}), json!(true), json!(0)),
            (
                json!({"$integer": {"min": 1, "max": 2}}),
                json!(2),
                json!(3),
            ),
            (json!({"$integer": {}}), json!(-1), json!(1.5)),
            (json!({"$number": {"max": 0}}), json!(-0.5), json!(0.5)),
            (
                json!({"$string": {"contains": ["a", "b"]}}),
                json!("ab"),
                json!("a"),
            ),
            (
                json!({"$string": {"starts_with": "a", "min_bytes": 2}}),
                json!("ab"),
                json!("a"),
            ),
            (json!({"$object": {}}), json!({}), json!([])),
            (
                json!({"$array": {"length": 2, "each": {"$integer": {}}}}),
                json!([1, 2]),
                json!([1, "2"]),
            ),
            (
                json!({"$array": {"includes": [2, 1]}}),
                json!([1, 3, 2]),
                json!([1, 3]),
            ),
            (
                json!({"$array": {"includes": [1, 1]}}),
                json!([1, 1]),
                json!([1, 2]),
            ),
            (json!({"$not": {"$string": {}}}), json!(1), json!("1")),
            (json!({"$one_of": [1, 2]}), json!(2), json!(3)),
            (
                json!({"$all": [{"$integer": {}}, {"$not": 3}]}),
                json!(2),
                json!(3),
            ),
        ]);
    }

    #[test]
    fn every_value_is_made() {
        assert_all(&[
            (json!({"$get": ["a", "texts", 1]}), json!("y"), json!("x")),
            (
                json!({"$join": [{"$get": ["a", "texts"]}, 1, 3]}),
                json!("yz"),
                json!("xyz"),
            ),
            (
                json!({"$before": ["abc", {"$concat": ["b", "c"]}]}),
                json!("a"),
                json!("ab"),
            ),
            (json!({"$repeat": ["ab", 2]}), json!("abab"), json!("ab")),
            (json!({"$repeat": [5, 2]}), json!([5, 5]), json!([5])),
        ]);
        assert!(check_words(&json!({"a": [{"$some": {}}]})).is_err());
    }

    #[test]
    fn a_mismatch_names_its_place_and_saves_nothing() {
        let pattern =
            json!({"result": {"texts": [{"$save": ["t", {"$string": {}}]}, {"$integer": {}}]}});
        let found = json!({"result": {"texts": ["x", 7]}});
        let new = matches(&pattern, &found, &Saved::new()).unwrap();
        assert_eq!(new, Saved::from([("t".to_owned(), json!("x"))]));
        let found = json!({"result": {"texts": ["x", "y"]}});
        let error = matches(&pattern, &found, &Saved::new()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "result.texts[1] should be $integer, but is \"y\""
        );
        let error = matches(&json!({"a": 1}), &json!({}), &Saved::new()).unwrap_err();
        assert_eq!(error.to_string(), "a should be 1, but is not there");
    }
}
