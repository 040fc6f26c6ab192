//! `orcd bench decode`, `prefill` and `sampling`: the device's own rate, which the worker measures without a pipe (`--bench`), in turns with
//! a peer where one is named.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::peer::{self, Task};
use super::record::{Figure, RecordArgs, short};
use super::subject::Subjects;
use crate::args::{WorkerArgs, WorkerLine};
use crate::out;

/// Steps that a peer decodes.
const PEER_STEPS: u64 = 64;

/// Flags of all benches of the device.
#[derive(Clone, Debug, Args)]
pub struct DeviceArgs {
    /// Times that worker and peer are run in turns; medians count
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub runs: u32,

    /// Another engine to be measured in turns: a command that prints {"tok_s": NUMBER}. It finds ORCD_BENCH (decode or prefill), ORCD_MODEL,
    /// ORCD_TOKENS, ORCD_DEPTH and ORCD_IDS in its environment; harness/reference/peer_llama_cpp.py is one
    #[arg(long, value_name = "CMD")]
    pub peer: Option<String>,

    /// Where records go.
    #[command(flatten)]
    pub records: RecordArgs,

    /// Which worker.
    #[command(flatten)]
    pub worker: WorkerArgs,
}

/// Flags of `orcd bench decode`.
#[derive(Clone, Debug, Args)]
pub struct DecodeArgs {
    /// Tokens that stand before what is decoded [default: 16 and 4096, where the context has room]
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..=16_000_000))]
    pub depths: Vec<u64>,

    /// What all have.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Flags of `orcd bench prefill`.
#[derive(Clone, Debug, Args)]
pub struct PrefillArgs {
    /// Tokens of the prompts [default: 512, 2048 and 8192, where the context has room and it takes less than 40 s]
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..=16_000_000))]
    pub lengths: Vec<u64>,

    /// What all have.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// What a run of `worker-orcd --bench` says; times in seconds.
#[derive(Clone, Debug, Deserialize)]
pub struct Told {
    read_bytes_s: Option<f64>,
    /// Parts of the load as they follow each other.
    pub load: Vec<Part>,
    /// What the device says of its share of them.
    pub load_device: Vec<Part>,
    decode: Vec<Decode>,
    prefill: Vec<Prefill>,
    left_out: Vec<String>,
    sampling: Vec<Draw>,
}

/// A part of the load.
#[derive(Clone, Debug, Deserialize)]
pub struct Part {
    /// What it is called.
    pub part: String,
    /// How long it took.
    pub seconds: f64,
}

#[derive(Clone, Debug, Deserialize)]
struct Decode {
    depth: u64,
    step_s: f64,
    drawn_s: f64,
    bytes: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
struct Prefill {
    tokens: u64,
    seconds: f64,
}

#[derive(Clone, Debug, Deserialize)]
struct Draw {
    draw: String,
    seconds: f64,
}

/// Runs of the worker, and what the peer did between them.
#[derive(Debug, Default)]
pub struct Runs {
    told: Vec<Told>,
    peer: Vec<(Task, f64)>,
}

/// Runs `orcd bench decode`.
///
/// # Errors
/// When the worker or the peer fails, an answer is wrong, or it is slower than before.
pub fn decode(args: &DecodeArgs) -> Result<()> {
    alone("decode", list("decode", &args.depths), &args.device)
}

/// Runs `orcd bench prefill`; errors as [`decode`].
pub fn prefill(args: &PrefillArgs) -> Result<()> {
    alone("prefill", list("prefill", &args.lengths), &args.device)
}

/// Runs `orcd bench sampling`; errors as [`decode`].
pub fn sampling(args: &DeviceArgs) -> Result<()> {
    alone("sampling", "sampling".to_owned(), args)
}

/// "decode:16,decode:4096".
fn list(name: &str, numbers: &[u64]) -> String {
    if numbers.is_empty() {
        return name.to_owned();
    }
    let named: Vec<String> = numbers.iter().map(|n| format!("{name}:{n}")).collect();
    named.join(",")
}

fn alone(bench: &str, list: String, args: &DeviceArgs) -> Result<()> {
    let mut subjects = Subjects::begin(&args.worker, &args.records)?;
    let runs = Runs::measure(&subjects, &list, args.runs, args.peer.as_deref())?;
    let figures = runs.tell(bench)?;
    subjects.keep(bench, figures)?;
    subjects.end()
}

impl Runs {
    /// Runs the worker with `--bench LIST` and the peer in turns.
    ///
    /// # Errors
    /// When one of them fails.
    pub fn measure(
        subjects: &Subjects,
        list: &str,
        count: u32,
        peer: Option<&str>,
    ) -> Result<Self> {
        let mut runs = Runs::default();
        let model = subjects.line.model().to_string_lossy();
        for _ in 0..count {
            let told = tell(&subjects.line, list)?;
            for task in peer.iter().flat_map(|_| tasks(&told)) {
                let rate = peer::run(peer.unwrap_or_default(), &model, subjects.vocab, task)?;
                runs.peer.push((task, rate));
            }
            runs.told.push(told);
        }
        Ok(runs)
    }

    /// Prints what one bench found; its figures.
    ///
    /// # Errors
    /// When stdout is gone.
    pub fn tell(&self, bench: &str) -> Result<Vec<Figure>> {
        let figures = match bench {
            "decode" => self.decodes(),
            "prefill" => self.prefills(),
            _ => self.draws(),
        };
        let rows: Vec<String> = figures.iter().map(row).collect();
        let left_out = self.told.first().map_or(&[][..], |told| &told.left_out);
        let left_out = left_out
            .iter()
            .filter(|why| why.starts_with(bench))
            .map(|why| format!("left out: {why}"));
        let lines: Vec<String> = rows.into_iter().chain(left_out).collect();
        out::print_line(&lines.join("\n"))?;
        Ok(figures)
    }

    /// The parts of the load, median by median: those in order, and what the device says of its share.
    pub fn load_parts(&self) -> [Vec<(String, f64)>; 2] {
        let medians = |parts: fn(&Told) -> &Vec<Part>| {
            let first = self.told.first().map(parts).into_iter().flatten();
            let of = |name: &str| {
                let all = self.told.iter().flat_map(parts);
                median(all.filter(|p| p.part == name).map(|p| p.seconds).collect())
            };
            first.map(|p| (p.part.clone(), of(&p.part))).collect()
        };
        [
            medians(|told| &told.load),
            medians(|told| &told.load_device),
        ]
    }

    fn of<T>(&self, pick: impl Fn(&Told) -> Vec<T>) -> Vec<T> {
        self.told.iter().flat_map(pick).collect()
    }

    fn peer_rate(&self, wanted: impl Fn(Task) -> bool) -> Option<f64> {
        let rates = self.peer.iter().filter(|(task, _)| wanted(*task));
        let rates: Vec<f64> = rates.map(|(_, rate)| *rate).collect();
        (!rates.is_empty()).then(|| median(rates))
    }

    fn decodes(&self) -> Vec<Figure> {
        let bandwidth = median(self.of(|told| told.read_bytes_s.into_iter().collect()));
        let first = self.told.first().map_or(&[][..], |told| &told.decode);
        let figure = |decode: &Decode| {
            let depth = decode.depth;
            let of = |pick: fn(&Decode) -> f64| {
                self.of(|told| {
                    let here = told.decode.iter().filter(|d| d.depth == depth);
                    here.map(pick).collect()
                })
            };
            let tok_s = 1.0 / median(of(|d| d.step_s));
            let bytes_s = decode.bytes.map(|bytes| bytes * tok_s);
            let peer = self.peer_rate(|t| matches!(t, Task::Decode { depth: d, .. } if d == depth));
            let more = json!({
                "depth": depth,
                "drawn_tok_s": 1.0 / median(of(|d| d.drawn_s)),
                "bytes_a_token": decode.bytes,
                "gb_s": bytes_s.map(|b| b / 1e9),
                "bandwidth_gb_s": bandwidth / 1e9,
                "share": bytes_s.map(|b| b / bandwidth),
                "peer_tok_s": peer,
                "ratio": peer.map(|peer| tok_s / peer),
                "runs": of(|d| 1.0 / d.step_s),
            });
            Figure::new(format!("decode at {depth}"), tok_s, "tok/s", more)
        };
        first.iter().map(figure).collect()
    }

    fn prefills(&self) -> Vec<Figure> {
        let first = self.told.first().map_or(&[][..], |told| &told.prefill);
        let figure = |prefill: &Prefill| {
            let tokens = prefill.tokens;
            let rates = self.of(|told| {
                let here = told.prefill.iter().filter(|p| p.tokens == tokens);
                here.map(|p| p.tokens as f64 / p.seconds).collect()
            });
            let peer = self.peer_rate(|t| t == Task::Prefill { tokens });
            let tok_s = median(rates.clone());
            let more = json!({
                "tokens": tokens,
                "peer_tok_s": peer,
                "ratio": peer.map(|peer| tok_s / peer),
                "runs": rates,
            });
            Figure::new(format!("prefill of {tokens}"), tok_s, "tok/s", more)
        };
        first.iter().map(figure).collect()
    }

    fn draws(&self) -> Vec<Figure> {
        let first = self.told.first().map_or(&[][..], |told| &told.sampling);
        let figure = |draw: &Draw| {
            let times = self.of(|told| {
                let here = told.sampling.iter().filter(|d| d.draw == draw.draw);
                here.map(|d| d.seconds * 1e6).collect()
            });
            Figure::new(&draw.draw, median(times), "µs", json!({}))
        };
        first.iter().map(figure).collect()
    }
}

/// What a peer is to do after this run.
fn tasks(told: &Told) -> Vec<Task> {
    let decodes = told.decode.iter().map(|d| Task::Decode {
        depth: d.depth,
        tokens: PEER_STEPS,
    });
    let prefills = told
        .prefill
        .iter()
        .map(|p| Task::Prefill { tokens: p.tokens });
    decodes.chain(prefills).collect()
}

/// A figure as a line of a table.
pub fn row(figure: &Figure) -> String {
    let mut line = format!(
        "{:30} {:>9} {}",
        figure.what,
        short(figure.value),
        figure.unit
    );
    let number = |key| figure.number(key);
    if let Some(drawn) = number("drawn_tok_s") {
        line += &format!("   {:>8} with draws", short(drawn));
    }
    if let (Some(rate), Some(all), Some(share)) =
        (number("gb_s"), number("bandwidth_gb_s"), number("share"))
    {
        let share = share * 100.0;
        line += &format!("   {} of {} GB/s, {share:.1} %", short(rate), short(all));
    }
    if let (Some(peer), Some(ratio)) = (number("peer_tok_s"), number("ratio")) {
        line += &format!("   peer {}, {ratio:.2} times", short(peer));
    }
    if let Some(share) = number("of_device") {
        line += &format!("   {:.1} % of the device's own rate", share * 100.0);
    }
    line
}

/// Runs the worker with `--bench LIST`.
///
/// # Errors
/// When it fails; with what it said.
pub fn tell(line: &WorkerLine, list: &str) -> Result<Told> {
    let mut command = line.command();
    command.args(["--bench", list]).stdin(Stdio::null());
    let run = command.output().context("the worker cannot be started")?;
    let said = String::from_utf8_lossy(&run.stdout);
    if !run.status.success() {
        let error = String::from_utf8_lossy(&run.stderr);
        bail!(
            "the worker measured nothing ({}): {}{}",
            run.status,
            error.trim(),
            said.trim()
        );
    }
    serde_json::from_str(said.trim()).context("the worker's figures cannot be read")
}

/// The middle one; of an even number the upper of the two in the middle. NaN where there is none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Runs {
    /// Tokens a second of steps and draws at a depth.
    pub fn rate_at(&self, depth: u64) -> f64 {
        let at = |told: &Told| {
            let here = told.decode.iter().filter(|d| d.depth == depth);
            here.map(|d| 1.0 / d.step_s).collect()
        };
        median(self.of(at))
    }
}
