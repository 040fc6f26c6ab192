//! Two traces side by side: operation by operation in the order of the first, and within one position by position, so that what is
//! found first is where the two begin to differ and not what follows from it.

use std::collections::HashMap;
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// The version of the format that is read.
const VERSION: u32 = 1;

/// The first line.
#[derive(Debug, Deserialize)]
struct Header {
    trace: u32,
    tokens: Vec<u32>,
}

/// What an operation gives at a position. What a program cannot tell it leaves out.
#[derive(Debug, Deserialize)]
struct Record {
    op: String,
    position: usize,
    width: usize,
    l2: f64,
    min: f64,
    max: f64,
    #[serde(default)]
    hash: Option<String>,
    stride: usize,
    samples: Vec<f64>,
    #[serde(default)]
    top: Vec<(u32, f64)>,
}

/// A trace, read.
#[derive(Debug)]
pub struct Trace {
    tokens: Vec<u32>,
    /// Operations in the order of their first line.
    ops: Vec<String>,
    records: HashMap<String, Vec<Record>>,
}

impl Trace {
    /// Reads the lines of a trace.
    ///
    /// # Errors
    /// A line that is none of a trace, by its number; a version that is not known; the same place twice.
    pub fn parse(text: &str) -> Result<Trace> {
        let mut lines = (1..).zip(text.lines());
        let (_, first) = lines.next().context("it is empty")?;
        let header: Header = serde_json::from_str(first).context("line 1 is no header")?;
        ensure!(
            header.trace == VERSION,
            "it is of version {}; version {VERSION} is known",
            header.trace
        );
        let mut trace = Trace {
            tokens: header.tokens,
            ops: Vec::new(),
            records: HashMap::new(),
        };
        for (number, line) in lines {
            let record: Record = serde_json::from_str(line)
                .with_context(|| format!("line {number} is no record"))?;
            ensure!(
                record.position < trace.tokens.len(),
                "line {number} is of position {}, there are {} tokens",
                record.position,
                trace.tokens.len()
            );
            if !trace.records.contains_key(&record.op) {
                trace.ops.push(record.op.clone());
            }
            let records = trace.records.entry(record.op.clone()).or_default();
            // Positions come in order, from whoever writes them.
            ensure!(
                records
                    .last()
                    .is_none_or(|last| last.position < record.position),
                "line {number} is of {} at position {}, which does not follow the one before it",
                record.op,
                record.position
            );
            records.push(record);
        }
        Ok(trace)
    }
}

/// What two traces that agree have in common.
#[derive(Debug)]
pub struct Agreement {
    /// Operations that both have.
    pub ops: usize,
    /// Places that were compared: an operation at a position each.
    pub places: usize,
    /// Operations that only one of them has.
    pub alone: usize,
    /// The largest difference found, as a share of the root mean square of its row, and where.
    pub largest: Option<(f64, String, usize)>,
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ops, places, .. } = self;
        write!(f, "the traces agree: {ops} operations, {places} places")?;
        if let Some((difference, op, position)) = &self.largest {
            write!(
                f,
                "; the largest difference is {difference:.2e} of a row, of {op} at position {position}"
            )?;
        }
        match self.alone {
            0 => Ok(()),
            alone => write!(f, "; {alone} operations stand in one of them only"),
        }
    }
}

/// Holds `b` against `a`.
///
/// # Errors
/// The first place where they differ by more than `tolerance`, a share of the root mean square of the row; or traces that cannot be
/// compared: of other tokens, or without a common operation.
pub fn compare(a: &Trace, b: &Trace, tolerance: f64) -> Result<Agreement> {
    ensure!(a.tokens == b.tokens, "the traces are of different tokens");
    let alone = |one: &Trace, other: &Trace| {
        let ops = one.ops.iter();
        ops.filter(|op| !other.records.contains_key(*op)).count()
    };
    let mut agreement = Agreement {
        ops: 0,
        places: 0,
        alone: alone(a, b) + alone(b, a),
        largest: None,
    };
    for op in &a.ops {
        let (Some(ours), Some(theirs)) = (a.records.get(op), b.records.get(op)) else {
            continue;
        };
        agreement.ops += 1;
        let by_position: HashMap<usize, &Record> = theirs
            .iter()
            .map(|record| (record.position, record))
            .collect();
        for record in ours {
            if let Some(other) = by_position.get(&record.position) {
                let difference = compare_records(record, other, tolerance)?;
                agreement.places += 1;
                let largest = agreement.largest.as_ref();
                if largest.is_none_or(|(largest, ..)| difference > *largest) {
                    agreement.largest = Some((difference, op.clone(), record.position));
                }
            }
        }
    }
    ensure!(
        agreement.places > 0,
        "the traces have no operation at a position in common"
    );
    Ok(agreement)
}

/// The largest difference of two records as a share of the root mean square of the row.
fn compare_records(a: &Record, b: &Record, tolerance: f64) -> Result<f64> {
    let place = format!("{} at position {}", a.op, a.position);
    ensure!(
        (a.width, a.stride, a.samples.len()) == (b.width, b.stride, b.samples.len()),
        "{place}: {} values with a sample every {} against {} with one every {}",
        a.width,
        a.stride,
        b.width,
        b.stride
    );
    let root = (a.width.max(1) as f64).sqrt();
    let scale = a.l2 / root;
    let scale = if scale > 0.0 { scale } else { 1.0 };
    let mut values = vec![
        ("the root mean square".to_owned(), a.l2 / root, b.l2 / root),
        ("the least value".to_owned(), a.min, b.min),
        ("the largest value".to_owned(), a.max, b.max),
    ];
    for (at, (a_sample, b_sample)) in a.samples.iter().zip(&b.samples).enumerate() {
        values.push((format!("value {}", at * a.stride), *a_sample, *b_sample));
    }
    for (token, a_logit) in &a.top {
        let other = b.top.iter().find(|(other, _)| other == token);
        values.extend(
            other.map(|(_, b_logit)| (format!("the logit of {token}"), *a_logit, *b_logit)),
        );
    }
    let mut largest = 0.0;
    for (what, a_value, b_value) in values {
        let difference = (a_value - b_value).abs() / scale;
        // What is no number is no agreement.
        if difference.is_nan() || difference > tolerance {
            bail!(
                "{place} differs: {what} is {a_value} and {b_value}, {difference:.2e} of the row's root mean square apart"
            );
        }
        largest = difference.max(largest);
    }
    if let (true, Some(a_hash), Some(b_hash)) = (tolerance == 0.0, &a.hash, &b.hash) {
        ensure!(
            a_hash == b_hash,
            "{place} differs: the hashes are {a_hash} and {b_hash}"
        );
    }
    Ok(largest)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn record(op: &str, position: usize, sample: f64) -> Value {
        json!({
            "op": op, "position": position, "width": 4, "l2": 2.0, "min": -1.0, "max": 1.0, "stride": 2, "hash": format!("{sample}"),
            "samples": [sample, 0.5],
        })
    }

    fn trace(records: &[Value]) -> Trace {
        let header = json!({"trace": 1, "model": "m", "device": "d", "tokens": [5, 6]});
        let lines: Vec<String> = [&[header], records]
            .concat()
            .iter()
            .map(Value::to_string)
            .collect();
        Trace::parse(&lines.join("\n")).expect("a trace")
    }

    #[test]
    fn the_same_agrees_and_what_only_one_has_is_counted() {
        let a = trace(&[
            record("embed", 0, 1.0),
            record("embed", 1, 1.0),
            record("0.attn_in.q", 0, 1.0),
        ]);
        let b = trace(&[
            record("head", 0, 3.0),
            record("embed", 0, 1.0005),
            record("embed", 1, 1.0),
        ]);
        let agreement = compare(&a, &a, 0.0).expect("the same");
        assert_eq!(
            (agreement.ops, agreement.places, agreement.alone),
            (2, 3, 0)
        );
        let agreement = compare(&a, &b, 1e-3).expect("nearly the same");
        assert_eq!(
            (agreement.ops, agreement.places, agreement.alone),
            (1, 2, 2)
        );
        assert!(
            agreement.to_string().contains("of embed at position 0"),
            "{agreement}"
        );
    }

    #[test]
    fn the_first_operation_that_differs_is_named_although_a_line_before_it_differs_too() {
        // In chunks the later operation of the first position stands before the first operation of the second.
        let a = trace(&[
            record("embed", 0, 1.0),
            record("head", 0, 1.0),
            record("embed", 1, 1.0),
        ]);
        let b = trace(&[
            record("embed", 0, 1.0),
            record("head", 0, 2.0),
            record("embed", 1, 2.0),
        ]);
        let error = compare(&a, &b, 1e-3).expect_err("they differ").to_string();
        assert!(
            error.starts_with("embed at position 1 differs: value 0 is 1 and 2"),
            "{error}"
        );
    }

    #[test]
    fn without_tolerance_a_hash_counts_and_what_is_no_number_never_agrees() {
        let mut other = record("embed", 0, 1.0);
        other["hash"] = json!("else");
        let (a, b) = (trace(&[record("embed", 0, 1.0)]), trace(&[other.clone()]));
        assert!(compare(&a, &b, 1e-9).is_ok());
        assert!(compare(&a, &b, 0.0).is_err());
        other.as_object_mut().expect("an object").remove("hash");
        assert!(
            compare(&a, &trace(&[other]), 0.0).is_ok(),
            "a reference has none"
        );
    }

    #[test]
    fn what_cannot_be_compared_is_said() {
        let a = trace(&[record("embed", 0, 1.0)]);
        let said = |b: Result<Trace>| {
            let result = b.and_then(|b| compare(&a, &b, 1.0));
            format!("{:#}", result.expect_err("an error"))
        };
        assert!(said(Ok(trace(&[record("head", 0, 1.0)]))).contains("no operation"));
        let mut wide = record("embed", 0, 1.0);
        wide["width"] = json!(5);
        assert!(said(Ok(trace(&[wide]))).contains("5 with one every 2"));
        let header = r#"{"trace":1,"model":"","device":"","tokens":[5]}"#;
        assert!(said(Trace::parse(header)).contains("different tokens"));
        assert!(said(Trace::parse("")).contains("empty"));
        assert!(said(Trace::parse(r#"{"trace":2,"tokens":[]}"#)).contains("version 2"));
        assert!(said(Trace::parse(&format!("{header}\nx"))).contains("line 2"));
        let twice = format!("{header}\n{0}\n{0}", record("embed", 0, 1.0));
        assert!(said(Trace::parse(&twice)).contains("line 3"));
    }
}
