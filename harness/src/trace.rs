//! `orcd trace`: what every operation of a model gives, recorded from a worker and compared with another trace: of another device, another
//! build, or of a reference in another language. `harness/TRACE.md` tells the format.

mod compare;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Args, Subcommand};

use crate::args::WorkerArgs;
use crate::out;

pub use compare::{Agreement, Trace, compare};

/// `orcd trace`.
#[derive(Clone, Debug, Subcommand)]
pub enum TraceCommand {
    /// Run a text or token ids through a model and record what every operation gives at every position
    Record(RecordArgs),
    /// Compare two traces and stop at the first operation that differs
    Compare(CompareArgs),
}

/// `orcd trace record`.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("input").required(true))]
pub struct RecordArgs {
    /// The text, as `generate` would take it
    #[arg(long, value_name = "TEXT", group = "input")]
    pub prompt: Option<String>,

    /// Token ids, separated by commas: each is given to the model, whatever it would have said itself
    #[arg(long, value_name = "IDS", value_delimiter = ',', group = "input")]
    pub ids: Vec<u32>,

    /// Where the trace goes [default: stdout]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    #[command(flatten)]
    worker: WorkerArgs,
}

/// `orcd trace compare`.
#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// The trace that is taken to be right
    pub a: PathBuf,

    /// The trace that is held against it
    pub b: PathBuf,

    /// How far values may be apart, as a share of the root mean square of their row; 0: not by a bit
    #[arg(long, value_name = "NUMBER", default_value_t = 0.001, value_parser = tolerance)]
    pub tolerance: f64,
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number >= 0.0 && number.is_finite() => Ok(number),
        Ok(_) | Err(_) => Err("a number from 0 on".to_owned()),
    }
}

/// Runs `orcd trace`.
///
/// # Errors
/// When there is no trace to be had or to be read, and when two differ.
pub fn run(command: &TraceCommand) -> Result<()> {
    match command {
        TraceCommand::Record(args) => record(args),
        TraceCommand::Compare(args) => {
            let agreement = compare(&read(&args.a)?, &read(&args.b)?, args.tolerance)?;
            out::print_line(&agreement.to_string())
        }
    }
}

fn record(args: &RecordArgs) -> Result<()> {
    let mut command = args.worker.find()?.command();
    match &args.prompt {
        Some(text) => command.arg("--trace").arg(text),
        None => {
            let ids: Vec<String> = args.ids.iter().map(u32::to_string).collect();
            command.arg("--trace-ids").arg(ids.join(","))
        }
    };
    if let Some(path) = &args.out {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        command.stdout(Stdio::from(file));
    }
    let status = command
        .stdin(Stdio::null())
        .status()
        .context("the worker cannot be started")?;
    if !status.success() {
        bail!("the worker gave no trace: {status}");
    }
    Ok(())
}

fn read(path: &Path) -> Result<Trace> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Trace::parse(&text).with_context(|| format!("{} is no trace", path.display()))
}
