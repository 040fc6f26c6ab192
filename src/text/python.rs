//! Where the engine's filters, tests and printing differ from Jinja2's on Python, and chat templates notice.

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, escape_formatter};

use minijinja_contrib::pycompat::unknown_method_callback;

use super::json::write_float;

/// Bytes of text that one unit of a template's fuel pays for, as in the engine.
const BYTES_PER_FUEL: usize = 64;

/// Puts Python's ways into an environment.
pub(super) fn install(environment: &mut Environment<'_>) {
    environment.set_formatter(print);
    environment.add_filter("indent", indent);
    environment.add_filter("string", string);
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment.set_unknown_method_callback(method);
}

/// What `{{ value }}` writes: floats are the engine's only values that it prints in another way than Python.
fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match python_float(value) {
        Some(text) => out.write_str(&text).map_err(Error::from),
        None => escape_formatter(out, state, value),
    }
}

/// The text of a float as Python's `str` gives it; `None` for anything else.
fn python_float(value: &Value) -> Option<String> {
    if value.kind() != ValueKind::Number || value.is_integer() {
        return None;
    }
    let mut text = String::new();
    match f64::try_from(value.clone()).ok()? {
        // `str` and JSON differ in these names alone.
        number if number.is_nan() => text.push_str("nan"),
        number if number.is_infinite() => text.push_str(if number < 0.0 { "-inf" } else { "inf" }),
        number => write_float(&mut text, number),
    }
    Some(text)
}

/// The filter `string`: `str(value)`.
fn string(state: &State, value: &Value) -> Result<Value, Error> {
    if value.kind() == ValueKind::String {
        return Ok(value.clone());
    }
    let text = python_float(value).unwrap_or_else(|| value.to_string());
    pay(state, text.len())?;
    Ok(Value::from(text))
}

/// The test `iterable`: Python iterates over no None. An undefined value is an empty iterable there.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// The test `sequence`: Python counts strings and dictionaries, since they have a length and items.
fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map
    )
}

/// Methods of Python's types: those that the engine's own collection lacks or has in another way, and that collection.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return unknown_method_callback(state, value, name, args);
    };
    match name {
        "title" => {
            let () = from_args(args)?;
            Ok(Value::from(title(text)))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "rsplit" => {
            let (separator, most): (&str, Option<usize>) = from_args(args)?;
            check_separator(separator)?;
            let most = most.map_or(usize::MAX, |most| most.saturating_add(1));
            let mut parts: Vec<Value> = text.rsplitn(most, separator).map(Value::from).collect();
            parts.reverse();
            Ok(Value::from(parts))
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            check_separator(separator)?;
            let parts = text.split_once(separator);
            let (before, after) = parts.unwrap_or((text, ""));
            let found = parts.map_or("", |_| separator);
            Ok(Value::from(Tuple::from(
                [before, found, after].map(Value::from),
            )))
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            check_separator(separator)?;
            let parts = text.rsplit_once(separator);
            let (before, after) = parts.unwrap_or(("", text));
            let found = parts.map_or("", |_| separator);
            Ok(Value::from(Tuple::from(
                [before, found, after].map(Value::from),
            )))
        }
        _ => unknown_method_callback(state, value, name, args),
    }
}

fn check_separator(separator: &str) -> Result<(), Error> {
    match separator {
        "" => Err(Error::new(
            ErrorKind::InvalidOperation,
            "an empty separator",
        )),
        _ => Ok(()),
    }
}

/// `str.title`: a letter is large where none stands before it, and small elsewhere.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_inside = false;
    for character in text.chars() {
        match is_inside {
            true => out.extend(character.to_lowercase()),
            false => out.extend(character.to_uppercase()),
        }
        is_inside = character.is_alphabetic();
    }
    out
}

/// The filter `indent(width=4, first=False, *, blank=False)`: a last line end stays, where the engine drops it.
fn indent(
    state: &State,
    text: &str,
    width: Option<Value>,
    first: Option<bool>,
    args: Kwargs,
) -> Result<Value, Error> {
    let first = match first {
        Some(first) => first,
        None => args.get::<Option<bool>>("first")?.unwrap_or(false),
    };
    let blank = args.get::<Option<bool>>("blank")?.unwrap_or(false);
    let width = match width {
        Some(width) => Some(width),
        None => args.get::<Option<Value>>("width")?,
    };
    args.assert_all_used()?;
    let lines = text.split('\n').count();
    let indention = indention(state, width, lines)?;
    let mut out = String::new();
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let is_indented = match index {
            0 => first,
            _ => blank || !line.is_empty(),
        };
        if is_indented {
            out.push_str(&indention);
        }
        out.push_str(line);
    }
    pay(state, out.len())?;
    Ok(Value::from(out))
}

/// What stands before a line: as many spaces as a number says, or a string itself. What all lines take is paid for before it is made.
fn indention(state: &State, width: Option<Value>, lines: usize) -> Result<String, Error> {
    let Some(width) = width.filter(|width| !width.is_none()) else {
        return Ok("    ".to_owned());
    };
    if let Some(text) = width.as_str() {
        pay(state, text.len().saturating_mul(lines))?;
        return Ok(text.to_owned());
    }
    let spaces = usize::try_from(width)
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, "indent: the width is no count"))?;
    pay(state, spaces.saturating_mul(lines))?;
    Ok(" ".repeat(spaces))
}

fn pay(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel((bytes / BYTES_PER_FUEL + 1) as u64)
}
