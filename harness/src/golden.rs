//! `orcd golden`: whole conversations with the real binary, recorded and compared.
//!
//! A golden is a pair of files. `NAME.in.jsonl` is what goes in: lines that are sent to the worker as they stand, byte
//! for byte, so that a broken line is a line like any other. `NAME.out.jsonl` is what must come out: the worker's lines
//! in their order, with what changes from run to run replaced by words in angle brackets, and at last
//! `{"golden":{"exit":0}}`. stdin is closed after the last line, and the worker is expected to end by itself.
//!
//! Lines that are an object with the one key `golden` are not sent but obeyed:
//!
//! - `{"golden":{"about":"…","args":["--ctx","256"],"send":"at_once"}}`, as the first line, all fields optional: what the
//!   file shows; further flags for the worker; whether lines are sent `when_ready` (the default: answers to broken lines
//!   would otherwise stand before or after `ready` as chance has it) or `at_once`.
//! - `{"golden":{"await":"token","request_id":1,"count":5}}`: the lines after it are sent when that many (default 1)
//!   messages of this kind have come for this request: `started`, `token` or `response`. `generate` requests are served
//!   in turn, but anything else may be answered in the middle of them; where it must not be, await the response.
//!
//! What is made equal in the output (see `normal`): times and rates, byte counts of memory, the process id,
//! versions, the device's name, seeds that no request named, the number of `progress` lines of the load, and of `ready`
//! the fields that are promised elsewhere. A cancelled request keeps the tokens that were awaited before its cancel;
//! how many follow is a matter of time, so they become one line `{"golden":{"more_tokens_of":1}}` and its counts are
//! left out.
//!
//! `orcd golden record`, or `UPDATE_GOLDENS=1 orcd golden run`, writes the `.out.jsonl` files.

mod compare;
mod normal;
mod script;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};

use crate::args::WorkerArgs;
use crate::locate::{TEST_MODEL_VARIABLE, variable};
use crate::out;
use crate::pipe::{Pipe, Wake};
use script::{Script, Send, Step};

pub use compare::difference;

/// Set to anything but nothing, it turns a comparison into a recording.
pub const UPDATE_VARIABLE: &str = "UPDATE_GOLDENS";

/// Lines of the worker that an error quotes.
const LINES_QUOTED: usize = 5;

const IN_SUFFIX: &str = ".in.jsonl";
const OUT_SUFFIX: &str = ".out.jsonl";

/// `orcd golden`.
#[derive(Clone, Debug, Subcommand)]
pub enum GoldenCommand {
    /// Compare what the worker says with the recorded transcripts
    Run(GoldenArgs),
    /// Record what the worker says as the transcripts to compare with
    Record(GoldenArgs),
}

/// Flags of `orcd golden run` and `record`.
#[derive(Clone, Debug, Args)]
pub struct GoldenArgs {
    /// NAME.in.jsonl, or a folder of such files
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Give up on a file after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub timeout: u64,

    /// Which worker; without --model, $WORKER_ORCD_TEST_MODEL comes before the default model.
    #[command(flatten)]
    pub worker: WorkerArgs,
}

/// What became of a golden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is as recorded.
    Same,
    /// It is not; with the difference for a person to read.
    Different(String),
    /// It is recorded now.
    Recorded,
}

/// Whether transcripts are compared or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Compare.
    Run,
    /// Write.
    Record,
}

/// Runs `orcd golden`.
///
/// # Errors
/// When a transcript differs, or a file or the worker cannot be used.
pub fn run(command: &GoldenCommand) -> Result<()> {
    let (args, mode) = match command {
        GoldenCommand::Run(args) if variable(UPDATE_VARIABLE).is_none() => (args, Mode::Run),
        GoldenCommand::Run(args) | GoldenCommand::Record(args) => (args, Mode::Record),
    };
    let files = inputs(&args.files)?;
    let model = args
        .worker
        .model
        .clone()
        .or_else(|| variable(TEST_MODEL_VARIABLE));
    let worker = WorkerArgs {
        model,
        ..args.worker.clone()
    }
    .find()?;
    let mut failures = 0;
    for file in &files {
        let begin = Instant::now();
        let outcome = golden(
            file,
            worker.command(),
            Duration::from_secs(args.timeout),
            mode,
        );
        let name = format!(
            "{} ({:.1} s)",
            file.display(),
            begin.elapsed().as_secs_f64()
        );
        match outcome {
            Ok(Outcome::Same) => out::print_line(&format!("same      {name}"))?,
            Ok(Outcome::Recorded) => out::print_line(&format!("recorded  {name}"))?,
            Ok(Outcome::Different(difference)) => {
                failures += 1;
                out::print(&format!("DIFFERS   {name}\n{difference}"))?;
            }
            Err(error) => {
                failures += 1;
                out::print_line(&format!("FAILED    {name}\n{error:#}"))?;
            }
        }
    }
    match failures {
        0 => Ok(()),
        _ => bail!(
            "{failures} of {} failed; where what the worker says now is right: orcd golden record",
            files.len()
        ),
    }
}

/// The input files among `paths`; a folder stands for those in it, by name.
///
/// # Errors
/// When a file has another name, or there is none.
pub fn inputs(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries =
            fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
        let all: Vec<_> = entries
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        let mut found: Vec<_> = all
            .into_iter()
            .filter(|file| output(file).is_ok())
            .collect();
        if found.is_empty() {
            bail!(
                "{} holds no file whose name ends with {IN_SUFFIX}",
                path.display()
            );
        }
        found.sort();
        files.append(&mut found);
    }
    for file in &files {
        output(file)?;
    }
    Ok(files)
}

/// Where the output for this input stands.
fn output(input: &Path) -> Result<PathBuf> {
    let name = input.to_str().and_then(|path| path.strip_suffix(IN_SUFFIX));
    let name =
        name.with_context(|| format!("{}: the name has to end with {IN_SUFFIX}", input.display()))?;
    Ok(PathBuf::from(format!("{name}{OUT_SUFFIX}")))
}

/// Runs one golden with a worker of this command line.
///
/// # Errors
/// When the input is wrong, the worker cannot be started, ends before it has heard everything, or takes too long.
pub fn golden(input: &Path, command: Command, timeout: Duration, mode: Mode) -> Result<Outcome> {
    let named = || format!("golden {}", input.display());
    let text = fs::read(input).with_context(named)?;
    let script = Script::parse(&text).with_context(named)?;
    let actual = transcript(&script, command, timeout).with_context(named)?;
    let output = output(input)?;
    if mode == Mode::Record {
        fs::write(&output, actual).with_context(|| format!("cannot write {}", output.display()))?;
        return Ok(Outcome::Recorded);
    }
    let expected = fs::read_to_string(&output).with_context(|| {
        format!(
            "cannot read {}; orcd golden record writes it",
            output.display()
        )
    })?;
    Ok(match difference(&expected, &actual) {
        None => Outcome::Same,
        Some(difference) => Outcome::Different(difference),
    })
}

/// What a worker says to a script, made equal where it may differ from run to run.
fn transcript(script: &Script, mut command: Command, timeout: Duration) -> Result<String> {
    command.args(&script.args);
    let log = tempfile::tempfile().context("cannot make a file for the worker's log")?;
    command.stderr(Stdio::from(log));
    let program = command.get_program().display().to_string();
    let mut pipe = Pipe::spawn(command).with_context(|| format!("cannot start {program}"))?;
    let until = Instant::now().checked_add(timeout);
    let mut player = Player {
        script,
        next: 0,
        heard: Vec::new(),
        ready: script.send == Send::AtOnce,
    };
    let status = player.play(&mut pipe, until)?;
    let lines = normal::normalise(script, &player.heard, status)?;
    Ok(lines.iter().map(|line| format!("{line}\n")).collect())
}

/// Sends what is due and notes what comes.
struct Player<'a> {
    script: &'a Script,
    /// The next step of the script.
    next: usize,
    heard: Vec<Vec<u8>>,
    ready: bool,
}

impl Player<'_> {
    fn play(&mut self, pipe: &mut Pipe, until: Option<Instant>) -> Result<ExitStatus> {
        loop {
            self.send(pipe)?;
            match pipe.wait(&[], until)? {
                Wake::Line(line) => {
                    self.ready |= script::is_ready(&line);
                    self.heard.push(line);
                }
                Wake::Closed => break,
                Wake::Other(_) | Wake::TimedOut => return Err(self.stuck("out of time")),
            }
        }
        if self.next < self.script.steps.len() {
            return Err(self.stuck("the worker ended too early"));
        }
        pipe.wait_exit(until)?
            .context("the worker closed its stdout and does not exit")
    }

    /// Sends lines up to the next one that has to wait; closes stdin after the last.
    fn send(&mut self, pipe: &mut Pipe) -> Result<()> {
        while self.ready {
            match self.script.steps.get(self.next) {
                // A worker that has gone is heard of when its output ends.
                Some(Step::Send(line)) => drop(pipe.send_bytes(line)),
                Some(Step::Await(awaited)) if awaited.is_hopeless(&self.heard) => {
                    return Err(self.stuck("the request has been answered"));
                }
                Some(Step::Await(awaited)) if !awaited.is_met_by(&self.heard) => return Ok(()),
                Some(Step::Await(_)) => {}
                None => return Ok(pipe.close_stdin()?),
            }
            self.next += 1;
        }
        Ok(())
    }

    /// Why the script cannot go on, with the last that was heard.
    fn stuck(&self, why: &str) -> anyhow::Error {
        let waiting = match self.script.steps.get(self.next) {
            _ if !self.ready => "it has not said ready".to_owned(),
            Some(Step::Await(awaited)) => format!("it has not come to {awaited}"),
            Some(Step::Send(_)) | None => "it has not ended".to_owned(),
        };
        let last = &self.heard[self.heard.len().saturating_sub(LINES_QUOTED)..];
        let last: String = last
            .iter()
            .map(|line| format!("\n  {}", String::from_utf8_lossy(line)))
            .collect();
        anyhow!(
            "{why}, and {waiting}; the last of {} lines:{last}",
            self.heard.len()
        )
    }
}
