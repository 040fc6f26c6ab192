//! What is aimed at, and how far it is reached: `harness/targets.json` names figures by the machine and the model.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::record::{Figure, Subject, short};

const TARGETS: &str = include_str!("../../targets.json");

#[derive(Debug, Deserialize)]
struct Targets {
    /// A part of the machine's name, and what it is to reach.
    machines: BTreeMap<String, Vec<Target>>,
}

/// A figure that is aimed at.
#[derive(Clone, Debug, Deserialize)]
struct Target {
    /// A part of the model's name, in small letters.
    model: String,
    bench: String,
    what: String,
    /// Which number of the figure; without it the figure itself.
    key: Option<String>,
    at_least: Option<f64>,
    at_most: Option<f64>,
    unit: String,
}

/// The table "target, reached, share of floor" for all figures; "" where nothing is aimed at.
///
/// # Errors
/// When the file of targets cannot be read.
pub fn table(subject: &Subject, all: &[(&str, Vec<Figure>)]) -> Result<String> {
    let targets: Targets = serde_json::from_str(TARGETS).context("harness/targets.json")?;
    let model = subject.model.to_lowercase();
    let here = |machine: &str| subject.machine.contains(machine);
    let wanted = targets
        .machines
        .into_iter()
        .filter(|(machine, _)| here(machine));
    let wanted = wanted.flat_map(|(_, targets)| targets);
    let mut lines: Vec<String> = wanted
        .filter(|target| model.contains(&target.model))
        .filter_map(|target| line(&target, all))
        .collect();
    if !lines.is_empty() {
        let head = format!(
            "{:30} {:>10} {:>10}   {:14} {:>7} {:>14}",
            "", "target", "reached", "", "", "share of floor"
        );
        lines.insert(0, head);
    }
    Ok(lines.join("\n"))
}

fn line(target: &Target, all: &[(&str, Vec<Figure>)]) -> Option<String> {
    let (_, figures) = all.iter().find(|(bench, _)| *bench == target.bench)?;
    let figure = figures.iter().find(|figure| figure.what == target.what)?;
    let reached = match &target.key {
        Some(key) => figure.number(key)?,
        None => figure.value,
    };
    let (wanted, is_reached) = match (target.at_least, target.at_most) {
        (Some(least), _) => (least, reached >= least),
        (None, Some(most)) => (most, reached <= most),
        (None, None) => return None,
    };
    let floor = figure.number("share");
    let floor = floor.map_or_else(|| "–".to_owned(), |share| format!("{:.1} %", share * 100.0));
    Some(format!(
        "{:30} {:>10} {:>10}   {:14} {:>7} {floor:>14}",
        target.what,
        short(wanted),
        short(reached),
        target.unit,
        if is_reached { "yes" } else { "no" },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn figures_meet_their_targets() {
        let subject = Subject {
            machine: "NVIDIA H100 80GB HBM3".to_owned(),
            model: "random weights as llama3-8b".to_owned(),
            ..Subject::default()
        };
        let all = [
            (
                "decode",
                vec![Figure::new(
                    "decode at 16",
                    530.0,
                    "tok/s",
                    json!({"share": 0.79}),
                )],
            ),
            (
                "load",
                vec![Figure::new("start to ready", 900.0, "ms", json!({}))],
            ),
        ];
        let table = table(&subject, &all).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3, "{table}");
        assert!(
            lines[1].contains("yes") && lines[1].contains("79.0 %"),
            "{table}"
        );
        assert!(lines[2].contains(" no "), "{table}");
        let other = Subject::default();
        assert_eq!(super::table(&other, &all).unwrap(), "");
    }
}
