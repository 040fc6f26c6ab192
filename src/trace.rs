//! A trace: what every operation of the plan gives at every position for tokens that are given, as lines of JSON.
//!
//! It asks the device through [`Device::trace`] and knows none of them, so that two devices, two builds, or a device and another
//! program's file can be compared line by line. The format is told in `harness/TRACE.md`.

use std::io;

use serde::Serialize;

use crate::device::{Device, DeviceError, PAGE_TOKENS, PageId, Rows, Shown, Step};

/// Version of the format.
const VERSION: u32 = 1;

/// Samples of a row at most.
const SAMPLES_MAX: usize = 16;

/// Largest logits that are told.
const TOP: usize = 8;

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// Nothing to look at.
    #[error("there are no tokens to trace; give a text or ids")]
    NoTokens,
    /// They do not fit.
    #[error("{tokens} tokens are to be traced, the pool holds {room}; a larger --ctx makes room")]
    TooLong {
        /// How many there are.
        tokens: usize,
        /// How many fit.
        room: usize,
    },
    /// The device failed, or cannot show its operations.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A number that no JSON holds.
    #[error("a line of the trace cannot be written: {0}")]
    Line(#[from] io::Error),
}

/// The first line.
#[derive(Serialize)]
struct Header<'a> {
    trace: u32,
    model: &'a str,
    device: &'a str,
    tokens: &'a [u32],
}

/// What one operation gives at one position.
#[derive(Serialize)]
struct Record<'a> {
    op: &'a str,
    position: usize,
    width: usize,
    l2: f64,
    min: f32,
    max: f32,
    hash: String,
    stride: usize,
    samples: Vec<f32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top: Vec<(u32, f32)>,
}

/// What is traced.
#[derive(Clone, Copy, Debug)]
pub struct Traced<'a> {
    /// The model's name.
    pub model: &'a str,
    /// The device's name.
    pub device: &'a str,
    /// What each operation of the plan is called.
    pub op_names: &'a [String],
    /// The tokens; each is given, whatever the model would have drawn.
    pub tokens: &'a [u32],
}

/// Runs the tokens through the model and records everything; the lines are the whole trace.
///
/// # Errors
///
/// No tokens or too many, a token that the vocabulary does not have, a device that fails or shows nothing.
pub fn record(device: &mut dyn Device, traced: Traced<'_>) -> Result<Vec<u8>, TraceError> {
    let Traced { tokens, .. } = traced;
    let capacity = device.capacity();
    let room = capacity.pages.saturating_mul(PAGE_TOKENS);
    if tokens.is_empty() {
        return Err(TraceError::NoTokens);
    }
    if tokens.len() > room {
        let tokens = tokens.len();
        return Err(TraceError::TooLong { tokens, room });
    }
    let pages = u32::try_from(tokens.len().div_ceil(PAGE_TOKENS)).unwrap_or(u32::MAX);
    let pages: Vec<PageId> = (0..pages).map(PageId).collect();
    let mut lines = Vec::new();
    let header = Header {
        trace: VERSION,
        model: traced.model,
        device: traced.device,
        tokens,
    };
    write_line(&mut lines, &header)?;
    let mut written = Ok(());
    let mut position = 0;
    for tokens in tokens.chunks(capacity.step_tokens_max.max(1)) {
        let step = Step {
            pages: &pages,
            tokens,
            position,
            rows: Rows::All,
        };
        device.trace(step, &mut |shown| {
            if written.is_ok() {
                written = write_shown(&mut lines, traced.op_names, position, shown);
            }
        })?;
        position += tokens.len();
    }
    written?;
    Ok(lines)
}

fn write_shown(
    lines: &mut Vec<u8>,
    op_names: &[String],
    position: usize,
    shown: Shown<'_>,
) -> Result<(), io::Error> {
    let name = op_names.get(shown.op).map_or("?", String::as_str);
    let op = match shown.part {
        "" => name.to_owned(),
        part => format!("{name}.{part}"),
    };
    let has_top = name == "head";
    for (row, values) in shown.values.chunks(shown.stride.max(1)).enumerate() {
        let values = values.get(..shown.width).unwrap_or(values);
        let mut record = summary(&op, position + row, values);
        if has_top {
            record.top = top(values);
        }
        write_line(lines, &record)?;
    }
    Ok(())
}

fn summary<'a>(op: &'a str, position: usize, values: &[f32]) -> Record<'a> {
    let stride = values.len().div_ceil(SAMPLES_MAX).max(1);
    let squares: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
    Record {
        op,
        position,
        width: values.len(),
        l2: squares.sqrt(),
        min: values.iter().copied().fold(f32::INFINITY, f32::min),
        max: values.iter().copied().fold(f32::NEG_INFINITY, f32::max),
        hash: format!("{:016x}", hash(values)),
        stride,
        samples: values.iter().step_by(stride).copied().collect(),
        top: Vec::new(),
    }
}

/// FNV-1a over the bytes of the values, the least significant byte of each first.
fn hash(values: &[f32]) -> u64 {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The largest values with their places, largest first; of equal ones the lower place first.
fn top(values: &[f32]) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(TOP + 1);
    for (place, value) in (0u32..).zip(values) {
        let at = top.partition_point(|(_, larger)| larger >= value);
        if at < TOP {
            top.insert(at, (place, *value));
            top.truncate(TOP);
        }
    }
    top
}

fn write_line(lines: &mut Vec<u8>, line: &impl Serialize) -> Result<(), io::Error> {
    serde_json::to_writer(&mut *lines, line)?;
    lines.push(b'\n');
    Ok(())
}
