//! `orcd bench report`: the records as charts, for each machine that has any: tokens a second against depth and prompt, the share of the
//! memory's bandwidth, latency, and how decoding changed from commit to commit.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::Value;

use super::chart::{Bars, Lines, Scale, Series};
use super::record::{self, Figure, Record, short};
use crate::out;

/// Flags of `orcd bench report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// The folder with the records [default: harness/records of the project that one stands in, else bench-records]
    #[arg(long, value_name = "DIR")]
    pub records: Option<PathBuf>,

    /// The folder that the charts go to [default: charts in the folder of the records]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Runs `orcd bench report`.
///
/// # Errors
/// When there are no records, or the charts cannot be written.
pub fn run(args: &ReportArgs) -> Result<()> {
    let folder = args.records.clone().unwrap_or_else(record::default_folder);
    let records = record::read_folder(&folder)?;
    let right: Vec<&Record> = records.iter().filter(|r| is_worth_showing(r)).collect();
    ensure!(
        !right.is_empty(),
        "{} has no records of right answers: make some with orcd bench all",
        folder.display()
    );
    let to = args.out.clone().unwrap_or_else(|| folder.join("charts"));
    std::fs::create_dir_all(&to)
        .with_context(|| format!("cannot make the folder {}", to.display()))?;
    let mut places: Vec<(String, String)> = Vec::new();
    for record in &right {
        let place = place(record);
        if !places.contains(&place) {
            places.push(place);
        }
    }
    for (name, note) in places {
        let here: Vec<&Record> = right
            .iter()
            .copied()
            .filter(|record| place(record).0 == name)
            .collect();
        let sheet = Sheet {
            folder: &to,
            name,
            note,
            records: here,
        };
        sheet.draw()?;
    }
    Ok(())
}

fn is_worth_showing(record: &Record) -> bool {
    !record.check.starts_with("the answer is wrong") && !record.figures.is_empty()
}

/// Where a record was measured: as a file's name, and in words.
fn place(record: &Record) -> (String, String) {
    let s = &record.subject;
    let device = if s.device.starts_with("cuda") {
        ""
    } else {
        &s.device
    };
    let build = if s.build == "release" { "" } else { &s.build };
    let words = [s.machine.as_str(), device, build];
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let slug: String = words
        .join(" ")
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let parts: Vec<&str> = slug.split('-').filter(|part| !part.is_empty()).collect();
    let note = match build {
        "" => words.join(", "),
        _ => format!("{} build", words.join(", ")),
    };
    (parts.join("-"), note)
}

/// The charts of one place.
struct Sheet<'a> {
    folder: &'a Path,
    name: String,
    note: String,
    records: Vec<&'a Record>,
}

/// What a record says, and the model it says it of.
fn label(record: &Record) -> String {
    let s = &record.subject;
    let name = s.model.trim_start_matches("random weights as ");
    format!("{name} {} {}", s.quant, s.flags).trim().to_owned()
}

impl Sheet<'_> {
    fn draw(&self) -> Result<()> {
        self.keep(
            "depth",
            self.by_number(
                "decode",
                "depth",
                "Decoding, by tokens of context",
                "tokens of context",
            ),
        )?;
        self.keep(
            "prefill",
            self.by_number(
                "prefill",
                "tokens",
                "Reading a prompt, by its length",
                "tokens of the prompt",
            ),
        )?;
        self.bandwidth()?;
        self.latency()?;
        self.history()
    }

    /// The newest record of each model.
    fn newest(&self, bench: &str) -> Vec<&Record> {
        let mut newest: Vec<&Record> = Vec::new();
        for record in self.records.iter().rev().filter(|r| r.bench == bench) {
            if !newest.iter().any(|seen| label(seen) == label(record)) {
                newest.push(record);
            }
        }
        newest.sort_by_key(|record| std::cmp::Reverse(record.subject.size_bytes));
        newest
    }

    fn dated(&self, records: &[&Record]) -> String {
        let newest = records.iter().max_by_key(|record| record.unix_time);
        let day = newest.and_then(|record| record.date.get(..10));
        format!("{}, {}", self.note, day.unwrap_or_default())
    }

    /// Tokens a second of each model over a number that the figures have.
    fn by_number(&self, bench: &str, key: &str, title: &str, x: &str) -> Option<Lines> {
        let records = self.newest(bench);
        let series = |record: &&Record| {
            let mut points: Vec<(f64, f64)> = (record.figures.iter())
                .filter_map(|figure| Some((figure.number(key)?, figure.value)))
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Series {
                name: label(record),
                points,
            }
        };
        let series: Vec<Series> = records.iter().map(series).collect();
        (!series.is_empty()).then(|| Lines {
            title: title.to_owned(),
            note: self.dated(&records),
            x: x.to_owned(),
            y: "tokens a second".to_owned(),
            x_scale: (Scale::Binary, Vec::new()),
            y_scale: Scale::Decimal,
            series,
            dots: true,
        })
    }

    fn keep(&self, chart: &str, lines: Option<Lines>) -> Result<()> {
        match lines {
            Some(lines) => self.write(chart, &lines.draw()),
            None => Ok(()),
        }
    }

    fn write(&self, chart: &str, drawing: &super::chart::Drawing) -> Result<()> {
        let base = self.folder.join(format!("{}-{chart}", self.name));
        for (ending, bytes) in [("svg", drawing.svg().into_bytes()), ("png", drawing.png()?)] {
            let path = base.with_extension(ending);
            std::fs::write(&path, bytes)
                .with_context(|| format!("cannot write {}", path.display()))?;
            out::print_line(&path.display().to_string())?;
        }
        Ok(())
    }

    fn bandwidth(&self) -> Result<()> {
        let records = self.newest("decode");
        let mut depths: Vec<u64> = records
            .iter()
            .flat_map(|r| &r.figures)
            .filter_map(|figure| figure.more.get("depth")?.as_u64())
            .collect();
        depths.sort_unstable();
        depths.dedup();
        let bar = |record: &Record, depth: u64| {
            let at = |f: &&Figure| f.more.get("depth").and_then(Value::as_u64) == Some(depth);
            let figure = record.figures.iter().find(at)?;
            let share = figure.number("share")? * 100.0;
            let rate = short(figure.number("gb_s")?);
            Some((share, format!("{share:.0} %, {rate} GB/s")))
        };
        let groups: Vec<_> = records
            .iter()
            .map(|record| {
                let bars = depths.iter().map(|depth| bar(record, *depth)).collect();
                (label(record), bars)
            })
            .filter(|(_, bars): &(_, Vec<_>)| bars.iter().any(Option::is_some))
            .collect();
        if groups.is_empty() {
            return Ok(());
        }
        let bars = Bars {
            title: "Bytes that decoding reads, as a share of the memory's bandwidth".to_owned(),
            note: self.dated(&records),
            x: "% of the read bandwidth that was measured in the same run".to_owned(),
            legend: depths.iter().map(|d| format!("after {d} tokens")).collect(),
            groups,
            most: 100.0,
        };
        self.write("bandwidth", &bars.draw())
    }

    /// How many requests are answered within a time; of the model that was measured last.
    fn latency(&self) -> Result<()> {
        let found = self.records.iter().rev().find(|r| r.bench == "latency");
        let Some(record) = found else { return Ok(()) };
        let curve = |figure: &Figure| {
            let times = figure.more.get("curve_ms")?.as_array()?;
            let step = 100.0 / times.len().max(1) as f64;
            let points = times.iter().enumerate();
            let points = points.filter_map(|(i, ms)| Some((ms.as_f64()?, step * (i + 1) as f64)));
            Some(Series {
                name: figure.what.clone(),
                points: points.collect(),
            })
        };
        let series: Vec<Series> = record.figures.iter().filter_map(curve).collect();
        if series.is_empty() {
            return Ok(());
        }
        let lines = Lines {
            title: format!("Answers to health and cancel, {}", label(record)),
            note: self.dated(&[record]),
            x: "milliseconds from the request to its answer".to_owned(),
            y: "% of the requests that are answered by then".to_owned(),
            x_scale: (Scale::Linear, Vec::new()),
            y_scale: Scale::Linear,
            series,
            dots: false,
        };
        self.write("latency", &lines.draw())
    }

    /// The first figure of every decode, commit by commit.
    fn history(&self) -> Result<()> {
        let decodes = self.records.iter().filter(|r| r.bench == "decode");
        let decodes: Vec<&Record> = decodes.copied().collect();
        let place = |record: &Record| {
            let commit = record.commit.as_deref().unwrap_or("no commit");
            let day = record.date.get(5..10).unwrap_or_default();
            format!("{day} {}", commit.get(..8).unwrap_or(commit))
        };
        let mut places: Vec<String> = Vec::new();
        for record in &decodes {
            if !places.contains(&place(record)) {
                places.push(place(record));
            }
        }
        let series = |newest: &&Record| {
            let mut points: Vec<(f64, f64)> = Vec::new();
            for record in decodes.iter().filter(|r| label(r) == label(newest)) {
                let x = places.iter().position(|p| *p == place(record));
                let point = x.zip(record.figures.first());
                let Some((x, figure)) = point else { continue };
                // Of several on one commit the newest counts.
                points.retain(|(old, _)| *old != x as f64);
                points.push((x as f64, figure.value));
            }
            Series {
                name: label(newest),
                points,
            }
        };
        let series: Vec<Series> = self.newest("decode").iter().map(series).collect();
        let lines = (!series.is_empty()).then(|| Lines {
            title: "Decoding with little context, commit by commit".to_owned(),
            note: self.note.clone(),
            x: "commit".to_owned(),
            y: "tokens a second".to_owned(),
            x_scale: (Scale::Named, places),
            y_scale: Scale::Decimal,
            series,
            dots: true,
        });
        self.keep("history", lines)
    }
}
