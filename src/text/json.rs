//! `tojson` as chat templates know it: the text that Python's `json.dumps` writes.
//!
//! Chat templates were written for a `tojson` that is `json.dumps(x, ensure_ascii=False)`. The
//! filter of the same name in Jinja engines escapes for HTML, which would put `\u003c` into prompts
//! where the model has seen `<`; so the layout and the escapes are done here.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// How deep a value may be nested that `tojson` writes. Python stops near 1000, JSON requests at 128.
pub const JSON_DEPTH_MAX: usize = 128;

/// How many spaces one level of indentation may have.
pub const JSON_INDENT_MAX: usize = 16;

/// Bytes of output that one unit of a template's fuel pays for: fewer than for copied text, since
/// writing JSON is slower.
const BYTES_PER_FUEL: usize = 16;

/// The arguments of `json.dumps` that templates use.
struct Layout {
    /// Spaces per level; `None` writes one line.
    indent: Option<usize>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
    ensure_ascii: bool,
}

impl Layout {
    fn from_args(indent: Option<Value>, args: &Kwargs) -> Result<Self, Error> {
        let indent = match indent {
            Some(indent) => Some(indent),
            None => args.get("indent")?,
        };
        let indent = match indent.filter(|value: &Value| !value.is_none()) {
            Some(value) => Some(usize::try_from(value)?),
            None => None,
        };
        if indent.is_some_and(|spaces| spaces > JSON_INDENT_MAX) {
            return Err(invalid(format!(
                "tojson: indent is more than {JSON_INDENT_MAX}"
            )));
        }
        let (item_separator, key_separator) = separators(indent, args)?;
        let layout = Layout {
            indent,
            item_separator,
            key_separator,
            sort_keys: args.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
            ensure_ascii: args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        };
        args.assert_all_used()?;
        Ok(layout)
    }
}

/// `separators=(item, key)`, with Python's defaults.
fn separators(indent: Option<usize>, args: &Kwargs) -> Result<(String, String), Error> {
    let given: Option<Value> = args.get("separators")?;
    let Some(given) = given.filter(|value| !value.is_none()) else {
        let item = if indent.is_some() { "," } else { ", " };
        return Ok((item.to_owned(), ": ".to_owned()));
    };
    let parts: Vec<Value> = given.try_iter()?.collect();
    match parts.as_slice() {
        [item, key] => match (item.as_str(), key.as_str()) {
            (Some(item), Some(key)) => Ok((item.to_owned(), key.to_owned())),
            (None, _) | (_, None) => Err(invalid("tojson: separators are not two strings".into())),
        },
        [] | [_] | [_, _, ..] => Err(invalid("tojson: separators are not two strings".into())),
    }
}

/// The `tojson` filter.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    indent: Option<Value>,
    args: Kwargs,
) -> Result<Value, Error> {
    let layout = Layout::from_args(indent, &args)?;
    let mut writer = Writer {
        state,
        layout,
        out: String::new(),
        paid: 0,
    };
    writer.value(value, 0)?;
    writer.pay()?;
    Ok(Value::from(writer.out))
}

struct Writer<'a, 'state, 'env> {
    state: &'a State<'state, 'env>,
    layout: Layout,
    out: String,
    /// Bytes of `out` that fuel has been taken for.
    paid: usize,
}

impl Writer<'_, '_, '_> {
    /// Takes fuel for what has been written since the last call, so that a template can't build a
    /// text beyond its budget within one filter.
    fn pay(&mut self) -> Result<(), Error> {
        let fuel = (self.out.len() - self.paid) / BYTES_PER_FUEL + 1;
        self.paid = self.out.len();
        self.state.consume_fuel(fuel as u64)
    }

    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > JSON_DEPTH_MAX {
            return Err(invalid(format!(
                "tojson: the value is nested deeper than {JSON_DEPTH_MAX}"
            )));
        }
        self.pay()?;
        match value.kind() {
            // Python has no JSON for an undefined value: it raises a TypeError.
            ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
            ValueKind::None => self.push("null"),
            ValueKind::Bool => self.push(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => {
                write_string(
                    &mut self.out,
                    value.as_str().unwrap_or_default(),
                    self.layout.ensure_ascii,
                );
                Ok(())
            }
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth),
            ValueKind::Map => self.map(value, depth),
            // A kind that this engine adds later is as unknown to JSON as these are.
            ValueKind::Bytes | ValueKind::Plain | ValueKind::Invalid | _ => Err(invalid(format!(
                "tojson: a value of kind {} has no JSON form",
                value.kind()
            ))),
        }
    }

    fn push(&mut self, text: &str) -> Result<(), Error> {
        self.out.push_str(text);
        Ok(())
    }

    fn number(&mut self, value: &Value) -> Result<(), Error> {
        if value.is_integer() {
            self.out.push_str(&value.to_string());
        } else {
            write_float(&mut self.out, f64::try_from(value.clone())?);
        }
        Ok(())
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.out.push('[');
        let mut is_empty = true;
        for item in value.try_iter()?.checked() {
            self.begin_item(is_empty, depth + 1);
            is_empty = false;
            self.value(&item?, depth + 1)?;
        }
        self.end_container(']', is_empty, depth);
        Ok(())
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.out.push('{');
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.layout.sort_keys {
            keys.sort();
        }
        let is_empty = keys.is_empty();
        for (index, key) in keys.iter().enumerate() {
            self.begin_item(index == 0, depth + 1);
            self.key(key)?;
            self.out.push_str(&self.layout.key_separator);
            self.value(&value.get_item(key)?, depth + 1)?;
        }
        self.end_container('}', is_empty, depth);
        Ok(())
    }

    /// A key is a string in JSON; Python writes numbers, booleans and None as one.
    fn key(&mut self, key: &Value) -> Result<(), Error> {
        if let Some(text) = key.as_str() {
            write_string(&mut self.out, text, self.layout.ensure_ascii);
            return Ok(());
        }
        match key.kind() {
            ValueKind::Number | ValueKind::Bool | ValueKind::None => {
                self.out.push('"');
                self.value(key, 0)?;
                self.out.push('"');
                Ok(())
            }
            other => Err(invalid(format!("tojson: a key of kind {other}"))),
        }
    }

    fn begin_item(&mut self, is_first: bool, depth: usize) {
        if !is_first {
            self.out.push_str(&self.layout.item_separator);
        }
        self.line(depth);
    }

    fn end_container(&mut self, close: char, is_empty: bool, depth: usize) {
        if !is_empty {
            self.line(depth);
        }
        self.out.push(close);
    }

    fn line(&mut self, depth: usize) {
        if let Some(spaces) = self.layout.indent {
            self.out.push('\n');
            self.out.push_str(&" ".repeat(spaces * depth));
        }
    }
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

/// A JSON string with Python's escapes.
fn write_string(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            other if other < ' ' || (ensure_ascii && !other.is_ascii()) => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            // With ensure_ascii Python leaves DEL alone too.
            other => out.push(other),
        }
    }
    out.push('"');
}

/// A float as Python's `repr` writes it: the shortest digits that read back, with an exponent from
/// 1e16 on and below 1e-4.
pub(super) fn write_float(out: &mut String, value: f64) {
    if value.is_nan() {
        out.push_str("NaN");
        return;
    }
    if value.is_infinite() {
        out.push_str(if value < 0.0 { "-Infinity" } else { "Infinity" });
        return;
    }
    let scientific = format!("{value:e}");
    let exponent = scientific
        .split_once('e')
        .and_then(|(_, exponent)| exponent.parse::<i32>().ok())
        .unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        out.push_str(&plain);
        if !plain.contains('.') {
            out.push_str(".0");
        }
        return;
    }
    let mantissa = scientific.split('e').next().unwrap_or_default();
    let sign = if exponent < 0 { '-' } else { '+' };
    out.push_str(&format!("{mantissa}e{sign}{:02}", exponent.abs()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        // Left: value; right: repr() of CPython.
        for (value, expected) in [
            (1.0, "1.0"),
            (-0.5, "-0.5"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (1e16, "1e+16"),
            (1e100, "1e+100"),
            (f64::INFINITY, "Infinity"),
        ] {
            let mut text = String::new();
            write_float(&mut text, value);
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn strings_are_escaped_as_python_escapes_them() {
        let text = "<&'\"\\\n\t\u{1}\u{7f}é日😊";
        let mut plain = String::new();
        write_string(&mut plain, text, false);
        assert_eq!(plain, "\"<&'\\\"\\\\\\n\\t\\u0001\u{7f}é日😊\"");
        let mut ascii = String::new();
        write_string(&mut ascii, "é日😊", true);
        assert_eq!(ascii, "\"\\u00e9\\u65e5\\ud83d\\ude0a\"");
    }
}
