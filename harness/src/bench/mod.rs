//! `orcd bench`: how fast a worker is, by itself and through its pipe. Every bench checks the answers first, warms up, takes medians, prints a
//! table, and leaves a record.

pub mod all;
pub mod chart;
pub mod check;
pub mod device;
pub mod end_to_end;
pub mod latency;
pub mod load;
pub mod peer;
pub mod record;
pub mod report;
pub mod subject;
pub mod targets;

use anyhow::Result;
use clap::Subcommand;

/// The benches.
#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    /// Everything below for one model, and how far the targets are reached
    All(all::AllArgs),
    /// Tokens a second that the device decodes, and the share of the memory's bandwidth that is
    Decode(device::DecodeArgs),
    /// Tokens of a prompt a second that the device reads
    Prefill(device::PrefillArgs),
    /// From the start of the process to `ready` and to the first token, and what the load consists of
    Load(device::DeviceArgs),
    /// What drawing a token costs the device
    Sampling(device::DeviceArgs),
    /// Tokens a second through the pipe, and the time to the first token
    EndToEnd(end_to_end::EndToEndArgs),
    /// How fast `health` is answered and how fast a `cancel` stops, while the worker decodes and while it reads a long prompt
    Latency(latency::LatencyArgs),
    /// Draw the records as charts, SVG and PNG
    Report(report::ReportArgs),
}

/// Runs `orcd bench`.
///
/// # Errors
/// When there is nothing to measure, the worker does not do what it should, or it is slower than before.
pub fn run(command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::All(args) => all::run(args),
        BenchCommand::Decode(args) => device::decode(args),
        BenchCommand::Prefill(args) => device::prefill(args),
        BenchCommand::Load(args) => load::run(args),
        BenchCommand::Sampling(args) => device::sampling(args),
        BenchCommand::EndToEnd(args) => end_to_end::run(args),
        BenchCommand::Latency(args) => latency::run(args),
        BenchCommand::Report(args) => report::run(args),
    }
}
