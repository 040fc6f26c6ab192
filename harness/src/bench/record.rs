//! What a bench leaves behind: a line of JSON with the figures and what they were measured on; and what an earlier line of the same machine,
//! model and device says about a new one.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How much slower than before is a regression: 5 %.
const SLOWER: f64 = 0.05;

/// Where the project keeps its records.
const FOLDER: &str = "harness/records";

/// Flags that say where records go.
#[derive(Clone, Debug, Args)]
pub struct RecordArgs {
    /// The folder that records are kept in, a file for each bench [default: harness/records of the project that one stands in, else bench-records]
    #[arg(long, value_name = "DIR")]
    pub records: Option<PathBuf>,

    /// Write no record and compare with none
    #[arg(long, conflicts_with_all = ["records", "accept"])]
    pub no_record: bool,

    /// Take these figures as the measure from now on, even where they are slower
    #[arg(long)]
    pub accept: bool,

    /// The commit that is measured [default: what git says of the folder that one stands in]
    #[arg(long, value_name = "HASH")]
    pub commit: Option<String>,
}

/// The figures of one bench.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Which bench: "decode".
    pub bench: String,
    /// When: "2026-11-25T18:00:00Z".
    pub date: String,
    /// The same in seconds since 1970.
    pub unix_time: u64,
    /// The commit, where there is a repository.
    pub commit: Option<String>,
    /// What was measured on.
    #[serde(flatten)]
    pub subject: Subject,
    /// What the check of the answers said; "" where it was not made.
    #[serde(default)]
    pub check: String,
    /// Whether it is slower than the record before, and was not accepted: later records are not held against it.
    #[serde(default)]
    pub regressed: bool,
    /// The figures.
    pub figures: Vec<Figure>,
}

/// What is measured; records are compared where all of it is equal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// The processor and its cores, or the card.
    pub machine: String,
    /// The worker's version.
    pub worker: String,
    /// "release" or "debug".
    #[serde(default)]
    pub build: String,
    /// The model's name.
    pub model: String,
    /// What most of its weights are stored as.
    #[serde(default)]
    pub quant: String,
    /// Bytes of its weights.
    #[serde(default)]
    pub size_bytes: u64,
    /// What computes: "cpu (avx512)".
    pub device: String,
    /// Further flags of the worker.
    #[serde(default)]
    pub flags: String,
}

/// A number that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Of what: "decode at 4096".
    pub what: String,
    /// The number.
    pub value: f64,
    /// Its unit: "tok/s" is better when it is more; "ms" and "µs" when it is less.
    pub unit: String,
    /// What else is known of it.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl Figure {
    /// A figure; `more` is an object.
    pub fn new(what: impl Into<String>, value: f64, unit: &str, more: Value) -> Self {
        let more = match more {
            Value::Object(more) => more,
            _ => Map::new(),
        };
        Figure {
            what: what.into(),
            value,
            unit: unit.to_owned(),
            more,
        }
    }

    /// A number among what else is known.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.more.get(key)?.as_f64()
    }

    /// How much slower it is than `before`, as a share; `None` where it is not, or where the difference is too small to be told from none.
    fn slower_than(&self, before: &Figure) -> Option<f64> {
        let (least, share) = match self.unit.as_str() {
            "tok/s" => (0.0, 1.0 - self.value / before.value),
            "ms" => (0.1, self.value / before.value - 1.0),
            "µs" => (2.0, self.value / before.value - 1.0),
            _ => return None,
        };
        let told = (self.value - before.value).abs() > least;
        (told && share > SLOWER).then_some(share)
    }
}

impl Subject {
    fn is_as(&self, other: &Subject) -> bool {
        let same = |s: &Subject| Subject {
            worker: String::new(),
            ..s.clone()
        };
        same(self) == same(other)
    }
}

impl RecordArgs {
    /// The folder; `None` where nothing is to be written.
    pub fn folder(&self) -> Option<PathBuf> {
        match &self.records {
            _ if self.no_record => None,
            Some(folder) => Some(folder.clone()),
            None => Some(default_folder()),
        }
    }

    /// Appends a record and says in a sentence where it is slower than the newest of its kind.
    ///
    /// # Errors
    /// When the folder cannot be written or read.
    pub fn keep(
        &self,
        bench: &str,
        subject: &Subject,
        check: &str,
        figures: Vec<Figure>,
    ) -> Result<Vec<String>> {
        let Some(folder) = self.folder() else {
            return Ok(Vec::new());
        };
        let file = folder.join(format!("{bench}.jsonl"));
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let unix_time = since.map_or(0, |since| since.as_secs());
        let mut record = Record {
            bench: bench.to_owned(),
            date: date(unix_time),
            unix_time,
            commit: self.commit.clone().or_else(commit),
            subject: subject.clone(),
            check: check.to_owned(),
            regressed: false,
            figures,
        };
        let slower = match newest(&read_file(&file)?, &record) {
            Some(before) if !self.accept => regressions(before, &record),
            Some(_) | None => Vec::new(),
        };
        record.regressed = !slower.is_empty();
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        append(&file, &record)?;
        Ok(slower)
    }
}

/// Appends one record to a file of JSON lines.
///
/// # Errors
/// When the file cannot be written.
pub fn append(file: &Path, record: &Record) -> Result<()> {
    let say = || format!("cannot write to {}", file.display());
    let mut out = OpenOptions::new()
        .append(true)
        .create(true)
        .open(file)
        .with_context(say)?;
    writeln!(out, "{}", serde_json::to_string(record)?).with_context(say)
}

/// The records of a file; none where there is no such file. Lines of other forms are passed over.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn read_file(file: &Path) -> Result<Vec<Record>> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// All records of a folder, oldest first.
///
/// # Errors
/// When the folder or a file in it cannot be read.
pub fn read_folder(folder: &Path) -> Result<Vec<Record>> {
    let entries = std::fs::read_dir(folder)
        .with_context(|| format!("cannot read the folder {}", folder.display()))?;
    let mut records = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "jsonl") {
            records.extend(read_file(&path)?);
        }
    }
    records.sort_by_key(|record| record.unix_time);
    Ok(records)
}

/// The newest record that a new one is held against.
fn newest<'a>(records: &'a [Record], new: &Record) -> Option<&'a Record> {
    records
        .iter()
        .rev()
        .find(|old| old.bench == new.bench && !old.regressed && old.subject.is_as(&new.subject))
}

/// A sentence for each figure that is slower.
fn regressions(before: &Record, new: &Record) -> Vec<String> {
    let slower = |figure: &Figure| {
        let old = before
            .figures
            .iter()
            .find(|old| (&old.what, &old.unit) == (&figure.what, &figure.unit))?;
        let share = figure.slower_than(old)?;
        let commit = before.commit.as_deref().unwrap_or("no commit");
        Some(format!(
            "{} is {:.1} % slower than on {} ({commit}): {} instead of {} {}",
            figure.what,
            share * 100.0,
            before.date,
            short(figure.value),
            short(old.value),
            figure.unit,
        ))
    };
    new.figures.iter().filter_map(slower).collect()
}

/// A number with about four digits.
pub fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The records' folder of the project that the current folder lies in.
pub fn default_folder() -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    let found = here.ancestors().map(|folder| folder.join(FOLDER));
    found
        .into_iter()
        .find(|folder| folder.is_dir())
        .unwrap_or_else(|| PathBuf::from("bench-records"))
}

/// What git calls the commit of the current folder; with "+" where files have changed since.
pub fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let run = Command::new("git").args(arguments).output().ok()?;
        let said = String::from_utf8(run.stdout).ok()?;
        run.status.success().then(|| said.trim().to_owned())
    };
    let hash = git(&["rev-parse", "--short=12", "HEAD"])?;
    let is_clean = git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some(if is_clean { hash } else { format!("{hash}+") })
}

/// "AMD EPYC, 2 cores": what the system says of its processor; of a worker's card, its name.
pub fn machine(device: &str) -> String {
    let card = device
        .strip_prefix("cuda:")
        .and_then(|rest| rest.split_once('('));
    if let Some((_, name)) = card {
        return name.trim_end_matches(')').to_owned();
    }
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|rest| rest.split_once(':'))
        .map_or("an unknown processor", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{name}, {cores} cores")
}

/// Seconds since 1970 as "2026-11-25T18:00:00Z".
pub fn date(unix_time: u64) -> String {
    let (days, second) = (unix_time / 86_400, unix_time % 86_400);
    // Years from March on, in eras of 400: every leap day is then the last of its year.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..=9 => (era * 400 + year, month + 3),
        _ => (era * 400 + year + 1, month - 9),
    };
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!(
        "{year:04}-{month:02}-{of_month:02}T{hour:02}:{minute:02}:{:02}Z",
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let known = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_581_686, "2026-11-25T04:41:26Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, text) in known {
            assert_eq!(date(seconds), text);
        }
    }

    #[test]
    fn a_card_is_the_machine_of_what_runs_on_it() {
        assert_eq!(
            machine("cuda:0 (NVIDIA H100 80GB HBM3)"),
            "NVIDIA H100 80GB HBM3"
        );
        assert!(machine("cpu (avx2)").ends_with("cores"));
    }

    #[test]
    fn slower_by_more_than_five_percent_is_a_regression() {
        let slower = |unit: &str, before: f64, now: f64| {
            let figure = |value| Figure::new("x", value, unit, json!({}));
            figure(now).slower_than(&figure(before)).is_some()
        };
        assert!(slower("tok/s", 100.0, 94.9));
        assert!(!slower("tok/s", 100.0, 95.1));
        assert!(!slower("tok/s", 100.0, 200.0));
        assert!(slower("ms", 10.0, 10.6));
        assert!(!slower("ms", 10.0, 9.0));
        assert!(!slower("ms", 0.2, 0.25), "too small to be told");
        assert!(!slower("GB/s", 10.0, 5.0), "nobody can help the machine");
    }

    #[test]
    fn a_record_is_held_against_the_newest_of_its_kind() {
        let folder = tempfile::tempdir().unwrap();
        let args = |accept| RecordArgs {
            records: Some(folder.path().to_owned()),
            no_record: false,
            accept,
            commit: Some("c".to_owned()),
        };
        let subject = |device: &str| Subject {
            device: device.to_owned(),
            ..Subject::default()
        };
        let keep = |accept, device: &str, tok_s| {
            let figures = vec![Figure::new("decode", tok_s, "tok/s", json!({"depth": 16}))];
            let args = args(accept);
            args.keep("decode", &subject(device), "", figures)
                .unwrap()
                .len()
        };
        assert_eq!(keep(false, "cpu", 100.0), 0);
        assert_eq!(keep(false, "other", 50.0), 0, "another device");
        assert_eq!(keep(false, "cpu", 80.0), 1);
        assert_eq!(keep(false, "cpu", 80.0), 1, "a regression is no measure");
        assert_eq!(keep(true, "cpu", 80.0), 0, "but where it is accepted");
        assert_eq!(keep(false, "cpu", 79.0), 0);
        let records = read_folder(folder.path()).unwrap();
        assert_eq!(records.len(), 6);
        assert_eq!(records.iter().filter(|r| r.regressed).count(), 2);
        assert_eq!(records[0].figures[0].number("depth"), Some(16.0));
    }
}
