//! `orcd bench load`: from the start of the process to `ready` and to the first token, as its parent sees them, and what the load consists of.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use worker_orcd_protocol::{GenerateParams, Request};

use super::device::{DeviceArgs, Runs, median, row};
use super::peer;
use super::record::{Figure, short};
use super::subject::{Subjects, start};
use crate::client::Event;
use crate::out;

/// How long an ending worker may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `orcd bench load`.
///
/// # Errors
/// When the worker fails, an answer is wrong, or it is slower than before.
pub fn run(args: &DeviceArgs) -> Result<()> {
    let mut subjects = Subjects::begin(&args.worker, &args.records)?;
    let runs = Runs::measure(&subjects, "load", args.runs, None)?;
    let figures = measure(&subjects, &runs, args.runs)?;
    subjects.keep("load", figures)?;
    subjects.end()
}

/// Starts the worker `count` times; prints and returns the figures. `runs` know the parts.
///
/// # Errors
/// When the worker fails.
pub fn measure(subjects: &Subjects, runs: &Runs, count: u32) -> Result<Vec<Figure>> {
    let mut times: [Vec<f64>; 3] = Default::default();
    for _ in 0..count {
        let seen = once(subjects)?;
        for (all, time) in times.iter_mut().zip(seen) {
            all.push(time.as_secs_f64() * 1e3);
        }
    }
    let parts = runs.load_parts();
    let object = |parts: &[(String, f64)]| -> Map<String, Value> {
        let ms = |(name, seconds): &(String, f64)| (name.clone(), json!(seconds * 1e3));
        parts.iter().map(ms).collect()
    };
    let [load, of_device] = [object(&parts[0]), object(&parts[1])];
    let [ready, token, exit] = times.map(median);
    let figures = vec![
        Figure::new(
            "start to ready",
            ready,
            "ms",
            json!({"parts": load, "device": of_device}),
        ),
        Figure::new("start to first token", token, "ms", json!({})),
        Figure::new("start, a token, exit", exit, "ms", json!({})),
    ];
    for figure in &figures {
        out::print_line(&row(figure))?;
    }
    for (title, parts) in ["the load", "of it, on the device"].iter().zip(&parts) {
        if !parts.is_empty() {
            out::print_line(&format!("{title}: {}", sentence(parts)))?;
        }
    }
    Ok(figures)
}

fn sentence(parts: &[(String, f64)]) -> String {
    let parts = parts
        .iter()
        .map(|(name, seconds)| format!("{name} {} ms", short(seconds * 1e3)));
    parts.collect::<Vec<_>>().join(", ")
}

/// From the start to `ready`, to the first token, and to the end.
fn once(subjects: &Subjects) -> Result<[Duration; 3]> {
    let begin = Instant::now();
    let (mut client, _) = start(&subjects.line)?;
    let ready = begin.elapsed();
    let params = GenerateParams {
        prompt_token_ids: Some((0..16).map(|i| peer::id(i, subjects.vocab)).collect()),
        max_tokens: Some(1),
        ignore_eos: true,
        temperature: 0.0,
        stream: false,
        ..GenerateParams::default()
    };
    client.call::<Value>(Request::Generate(Box::new(params)), Some(PATIENCE))?;
    let token = begin.elapsed();
    client.close()?;
    while client.wait(&[], None)? != Event::Closed {}
    match client.wait_exit(Some(PATIENCE))? {
        Some(status) if status.success() => Ok([ready, token, begin.elapsed()]),
        Some(status) => bail!("the worker ended with {status}"),
        None => bail!("the worker does not end when its stdin is closed"),
    }
}
