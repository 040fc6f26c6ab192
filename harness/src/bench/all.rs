//! `orcd bench all`: every bench for one model in one call, the records of all, and how far the targets are reached.

use anyhow::Result;
use clap::Args;

use super::device::{DeviceArgs, Runs};
use super::subject::Subjects;
use super::{end_to_end, latency, load, targets};
use crate::out;

/// Flags of `orcd bench all`.
#[derive(Clone, Debug, Args)]
pub struct AllArgs {
    /// Tokens of each generation through the pipe
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=100_000))]
    pub tokens: u32,

    /// `health` requests in each phase of the latency bench
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub healths: u32,

    /// `cancel` requests in each phase of the latency bench
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub cancels: u32,

    /// What all have.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Runs `orcd bench all`.
///
/// # Errors
/// When the worker or the peer fails, an answer is wrong, or anything is slower than before; that is told when all is measured.
pub fn run(args: &AllArgs) -> Result<()> {
    let device = &args.device;
    let mut subjects = Subjects::begin(&device.worker, &device.records)?;
    let runs = Runs::measure(
        &subjects,
        "decode,prefill,sampling,load",
        device.runs,
        device.peer.as_deref(),
    )?;
    let mut all = Vec::new();
    for bench in [
        "load",
        "decode",
        "prefill",
        "sampling",
        "end-to-end",
        "latency",
    ] {
        out::print_line(&format!("\n{bench}"))?;
        let measured = match bench {
            "load" => load::measure(&subjects, &runs, device.runs),
            "end-to-end" => end_to_end::measure(&subjects, args.tokens, device.runs),
            "latency" => latency::measure(&subjects, None, args.healths, args.cancels),
            _ => runs.tell(bench),
        };
        let figures = match measured {
            Ok(figures) => figures,
            // The others are worth having all the same.
            Err(error) if !error.is::<out::StdoutClosed>() => {
                subjects.fail(format!("{bench}: {error:#}"))?;
                continue;
            }
            Err(error) => return Err(error),
        };
        subjects.keep(bench, figures.clone())?;
        all.push((bench, figures));
    }
    let table = targets::table(&subjects.subject, &all)?;
    if !table.is_empty() {
        out::print_line(&format!("\n{table}"))?;
    }
    subjects.end()
}
