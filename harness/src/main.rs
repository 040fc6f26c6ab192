//! `orcd`: fetches a model, chats with it, and holds a worker against recorded transcripts.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use worker_orcd_harness::talk::{Interrupted, WorkerEnded};
use worker_orcd_harness::{
    ask, bench, bundle, chat, conformance, fetch, golden, out, synth, trace,
};

/// Spawns worker-orcd the way an orchestrator does: one process, one model, a pipe on each side.
#[derive(Debug, Parser)]
#[command(name = "orcd", version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 it did not work (the message says why), 2 usage, 130 Ctrl-C. \
When the worker ends by itself, its exit code is passed on: 65 bad model file, 66 no such file, 69 no such device, \
70 bug, 74 pipe lost, 75 does not fit in memory, 76 device lost.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Talk with a model: at a terminal, or with a prompt per line on stdin
    Chat(chat::ChatArgs),
    /// Ask one question, print the answer, and exit
    Ask(ask::AskArgs),
    /// Get the default model with pip, check it, keep it in the cache folder, and print its path
    Fetch,
    /// Hold the worker against recorded transcripts (tests/goldens)
    #[command(subcommand)]
    Golden(golden::GoldenCommand),
    /// Hold any worker of this protocol against its promises (protocol/conformance)
    Conformance(conformance::ConformanceArgs),
    /// Record what every operation of a model gives, and compare two such traces
    #[command(subcommand)]
    Trace(trace::TraceCommand),
    /// Measure the worker by itself and through its pipe, and draw what was measured
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Pack tests, benches and both programs into one folder that runs where there is a card and no Rust
    Bundle(bundle::BundleArgs),
    /// Write a model of random weights in the shape of a well-known one, to measure speed with
    Synth(synth::SynthArgs),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(report(&error)),
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Chat(args) => chat::run(args),
        Command::Ask(args) => ask::run(args),
        Command::Golden(command) => golden::run(command),
        Command::Conformance(args) => conformance::run(args),
        Command::Trace(command) => trace::run(command),
        Command::Bench(command) => bench::run(command),
        Command::Bundle(args) => bundle::run(args),
        Command::Synth(args) => synth::run(args),
        Command::Fetch => out::print_line(&fetch::default_model()?.display().to_string()),
    }
}

/// Says what went wrong, where that is not plain; the exit code.
fn report(error: &anyhow::Error) -> u8 {
    if error.is::<out::StdoutClosed>() {
        return 0;
    }
    if error.is::<Interrupted>() {
        return 130;
    }
    out::note_line(&format!("orcd: {error:#}"));
    let ended = error
        .downcast_ref::<WorkerEnded>()
        .and_then(|ended| ended.exit_code);
    ended
        .and_then(|code| u8::try_from(code).ok())
        .filter(|&code| code != 0)
        .unwrap_or(1)
}
