//! `orcd bench`: what can be measured from outside, through the pipe, the way an orchestrator sees it.

pub mod latency;
pub mod record;

use anyhow::Result;
use clap::Subcommand;

/// The benches.
#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    /// How fast `health` is answered and how fast a `cancel` stops, while the worker decodes and while it reads a long prompt
    Latency(latency::LatencyArgs),
}

/// Runs `orcd bench`.
///
/// # Errors
/// When there is nothing to measure, or the worker does not do what it should.
pub fn run(command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Latency(args) => latency::run(args),
    }
}
