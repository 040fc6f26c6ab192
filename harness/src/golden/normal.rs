//! Makes equal what may differ from run to run, and nothing else.

use std::collections::{HashMap, HashSet};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use worker_orcd_protocol::Id;

use super::script::Script;

/// Fields that are different on another machine, in another build or at another time.
const VOLATILE: [(&str, &str); 9] = [
    ("pid", "<pid>"),
    ("version", "<version>"),
    ("worker_id", "<worker_id>"),
    ("device", "<device>"),
    ("uptime_seconds", "<seconds>"),
    ("steps_total", "<n>"),
    ("compute_capability", "<version>"),
    ("driver_version", "<version>"),
    ("vram_bytes_used", "<bytes>"),
];

/// Fields of `ready` that an `initialize` golden promises, so that not every file changes with them.
const READY_ELSEWHERE: [&str; 4] = ["capabilities", "memory", "defaults", "limits"];

/// The transcript, line by line.
///
/// # Errors
/// When a line is no JSON; a worker that writes such is broken in every run.
pub fn normalise(script: &Script, heard: &[Vec<u8>], status: ExitStatus) -> Result<Vec<String>> {
    let parse = |line: &Vec<u8>| {
        let text = String::from_utf8_lossy(line);
        serde_json::from_slice::<Value>(line)
            .with_context(|| format!("the worker wrote a line that is no JSON: {text}"))
    };
    let mut lines = heard.iter().map(parse).collect::<Result<Vec<_>>>()?;
    collapse_load(&mut lines);
    collapse_cancelled(script, &mut lines);
    let mut seeds = Seeds::new(script);
    for line in &mut lines {
        seeds.hide(line);
        if line["method"] == "ready" {
            hide_fields(&mut line["params"], &READY_ELSEWHERE);
        }
        hide_volatile(line);
    }
    lines.push(match (status.code(), status.signal()) {
        (Some(code), _) => json!({"golden": {"exit": code}}),
        (None, signal) => json!({"golden": {"signal": signal}}),
    });
    Ok(lines.iter().map(Value::to_string).collect())
}

/// The load's progress becomes one line, which says whether it grew to its total.
fn collapse_load(lines: &mut Vec<Value>) {
    let is_load = |line: &Value| line["method"] == "progress" && line["params"]["phase"] == "load";
    let Some(first) = lines.iter().position(is_load) else {
        return;
    };
    let reports: Vec<Value> = lines
        .iter()
        .filter(|line| is_load(line))
        .map(|line| line["params"].clone())
        .collect();
    let processed: Vec<u64> = reports
        .iter()
        .map(|report| report["processed"].as_u64().unwrap_or(0))
        .collect();
    let total = reports[0]["total"].as_u64();
    let complete = processed.is_sorted()
        && processed.first() == Some(&0)
        && processed.last().copied() == total;
    lines[first] = json!({"golden": {"progress": "load", "complete": complete}});
    lines.retain(|line| !is_load(line));
}

/// Of a cancelled request stay the tokens that were awaited; the rest is a matter of time.
fn collapse_cancelled(script: &Script, lines: &mut Vec<Value>) {
    let cancelled: Vec<Value> = lines
        .iter()
        .filter(|line| line["result"]["finish_reason"] == "cancelled")
        .map(|line| line["id"].clone())
        .collect();
    for id in cancelled {
        let awaited =
            serde_json::from_value::<Id>(id.clone()).map_or(0, |id| script.tokens_awaited(&id));
        let is_token =
            |line: &Value| line["method"] == "token" && line["params"]["request_id"] == id;
        let mut count = 0;
        lines.retain(|line| {
            count += usize::from(is_token(line));
            !is_token(line) || count <= awaited
        });
        let is_before = |line: &Value| {
            is_token(line) || (line["method"] == "started" && line["params"]["request_id"] == id)
        };
        let Some(last) = lines.iter().rposition(is_before) else {
            continue;
        };
        lines.insert(last + 1, json!({"golden": {"more_tokens_of": id}}));
        if let Some(response) = lines
            .iter_mut()
            .find(|line| line["id"] == id && line["result"]["finish_reason"] == "cancelled")
        {
            let result = &mut response["result"];
            hide_fields(&mut result["usage"], &["completion_tokens", "total_tokens"]);
            hide_fields(&mut result["timings"], &["drafted", "accepted"]);
            hide_fields(result, &["tail", "text", "logprobs"]);
        }
    }
}

/// Seeds that the worker drew. One request has one seed, so a second one that differs is left to be seen.
struct Seeds {
    /// Requests that name their seed, by id as JSON.
    named: HashSet<String>,
    drawn: HashMap<String, Value>,
}

impl Seeds {
    fn new(script: &Script) -> Self {
        let named = script
            .requests()
            .filter(|request| !request["params"]["seed"].is_null());
        Seeds {
            named: named.map(|request| request["id"].to_string()).collect(),
            drawn: HashMap::new(),
        }
    }

    fn hide(&mut self, line: &mut Value) {
        let id = if line["method"].is_null() {
            &line["id"]
        } else {
            &line["params"]["request_id"]
        };
        let id = id.to_string();
        let place = if line["method"].is_null() {
            "result"
        } else {
            "params"
        };
        let Some(seed) = line
            .get_mut(place)
            .and_then(|object| object.get_mut("seed"))
        else {
            return;
        };
        if !self.named.contains(&id) && self.drawn.entry(id).or_insert_with(|| seed.clone()) == seed
        {
            *seed = "<drawn>".into();
        }
    }
}

/// Replaces these fields of an object, where it has them.
fn hide_fields(object: &mut Value, fields: &[&str]) {
    for field in fields {
        if let Some(value) = object.get_mut(field) {
            *value = format!("<{field}>").into();
        }
    }
}

/// Replaces volatile fields at any depth. null stays: it says that there is nothing.
fn hide_volatile(value: &mut Value) {
    match value {
        Value::Object(object) => hide_volatile_fields(object),
        Value::Array(values) => values.iter_mut().for_each(hide_volatile),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn hide_volatile_fields(object: &mut Map<String, Value>) {
    let is_memory = object.contains_key("weights_bytes");
    for (name, value) in object.iter_mut() {
        let word = match name.as_str() {
            name if name.ends_with("_ms") && value.is_number() => Some("<ms>"),
            name if name.ends_with("_per_second") => Some("<rate>"),
            name if is_memory && name.ends_with("_bytes") => Some("<bytes>"),
            name => VOLATILE
                .iter()
                .find(|(volatile, _)| *volatile == name)
                .map(|(_, word)| *word),
        };
        match word {
            Some(word) if !value.is_null() => *value = word.into(),
            _ => hide_volatile(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(input: &str, output: &[&str]) -> Vec<String> {
        let script = Script::parse(input.as_bytes()).unwrap();
        let heard: Vec<Vec<u8>> = output.iter().map(|line| line.as_bytes().to_vec()).collect();
        normalise(&script, &heard, ExitStatus::from_raw(0)).unwrap()
    }

    #[test]
    fn the_load_is_one_line_whatever_its_pieces() {
        let progress = |n| {
            format!(
                r#"{{"method":"progress","params":{{"phase":"load","processed":{n},"total":8,"time_ms":1}}}}"#
            )
        };
        let one = normal("", &[&progress(0), &progress(8)]);
        assert_eq!(one, normal("", &[&progress(0), &progress(3), &progress(8)]));
        assert_ne!(one, normal("", &[&progress(0), &progress(3)]));
        assert_ne!(one, normal("", &[&progress(0), &progress(9), &progress(8)]));
    }

    #[test]
    fn a_cancelled_request_keeps_what_was_awaited() {
        let input = "{\"id\":1}\n{\"golden\":{\"await\":\"token\",\"request_id\":1,\"count\":1}}\n{\"id\":2}";
        let token = |n| {
            format!(r#"{{"method":"token","params":{{"request_id":1,"index":{n},"text":"t{n}"}}}}"#)
        };
        let end = |n| {
            format!(
                r#"{{"id":1,"result":{{"finish_reason":"cancelled","usage":{{"completion_tokens":{n}}},"tail":"{n}"}}}}"#
            )
        };
        let found = r#"{"id":2,"result":{"found":true}}"#;
        let (t0, t1, t2) = (token(0), token(1), token(2));
        let few = normal(input, &[&t0, found, &end(1)]);
        assert_eq!(few, normal(input, &[&t0, &t1, &t2, found, &end(3)]));
        assert_eq!(few.len(), 5, "{few:#?}");
        assert!(few[0].contains("t0") && few[1].contains("more_tokens_of"));
        assert_ne!(
            few,
            normal(input, &[&t1, found, &end(1)]),
            "an awaited token is compared"
        );
    }

    #[test]
    fn only_a_drawn_seed_is_hidden() {
        let input = "{\"id\":1,\"params\":{\"seed\":7}}\n{\"id\":2,\"params\":{}}";
        let lines = normal(
            input,
            &[
                r#"{"method":"started","params":{"request_id":1,"seed":7,"queue_ms":0.5}}"#,
                r#"{"id":2,"result":{"seed":99,"timings":{"prompt_per_second":3.5}}}"#,
                r#"{"id":2,"result":{"seed":98,"logprob":-0.5}}"#,
            ],
        );
        assert_eq!(
            lines[0],
            r#"{"method":"started","params":{"request_id":1,"seed":7,"queue_ms":"<ms>"}}"#
        );
        assert_eq!(
            lines[1],
            r#"{"id":2,"result":{"seed":"<drawn>","timings":{"prompt_per_second":"<rate>"}}}"#
        );
        assert_eq!(lines[2], r#"{"id":2,"result":{"seed":98,"logprob":-0.5}}"#);
        assert_eq!(lines[3], r#"{"golden":{"exit":0}}"#);
    }
}
