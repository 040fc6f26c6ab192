//! What is measured: a worker that was started once, told its model and device, and gave the right answers.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use worker_orcd_protocol::Ready;

use super::check;
use super::record::{self, Figure, RecordArgs, Subject};
use crate::args::{WorkerArgs, WorkerLine};
use crate::client::Client;
use crate::out;

/// How long a worker may take to load.
pub const LOAD_PATIENCE: Duration = Duration::from_secs(600);

/// A worker, its model, and what was found wrong so far.
#[derive(Debug)]
pub struct Subjects {
    /// How to start it.
    pub line: WorkerLine,
    /// What records say of it.
    pub subject: Subject,
    /// Entries in the vocabulary.
    pub vocab: u64,
    /// Tokens of context.
    pub context: u64,
    /// What the check of the answers said.
    pub check: String,
    records: RecordArgs,
    problems: Vec<String>,
}

impl Subjects {
    /// Starts the worker, looks who it is, and checks its answers.
    ///
    /// # Errors
    /// When the worker is not there or does not load. A wrong answer is told at the end, by [`Subjects::end`].
    pub fn begin(worker: &WorkerArgs, records: &RecordArgs) -> Result<Self> {
        let line = worker.find()?;
        let (mut client, ready) = start(&line)?;
        let mut problems = Vec::new();
        let check = check::check(&mut client, &ready).unwrap_or_else(|error| {
            problems.push(error.to_string());
            error.to_string()
        });
        let subject = subject(&line, worker, &ready);
        let model = ready.model.as_ref();
        let subjects = Subjects {
            vocab: model.map_or(1, |model| model.vocab_size),
            context: model.map_or(0, |model| model.context_length),
            line,
            subject,
            check,
            records: records.clone(),
            problems,
        };
        out::print_line(&subjects.heading())?;
        Ok(subjects)
    }

    fn heading(&self) -> String {
        let s = &self.subject;
        format!(
            "{} {} ({:.2} GB) on {}, {}, {} build\ncheck: {}",
            s.model,
            s.quant,
            s.size_bytes as f64 / 1e9,
            s.device,
            s.machine,
            s.build,
            self.check
        )
    }

    /// Writes a record.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&mut self, bench: &str, figures: Vec<Figure>) -> Result<()> {
        let slower = self
            .records
            .keep(bench, &self.subject, &self.check, figures)?;
        self.problems.extend(slower);
        Ok(())
    }

    /// Says that something was wrong, and goes on.
    ///
    /// # Errors
    /// When stdout is gone.
    pub fn fail(&mut self, problem: String) -> Result<()> {
        out::print_line(&problem)?;
        self.problems.push(problem);
        Ok(())
    }

    /// Says what was wrong.
    ///
    /// # Errors
    /// When anything was: a wrong answer, or figures that are slower than before.
    pub fn end(self) -> Result<()> {
        match self.problems.join("\n") {
            problems if problems.is_empty() => Ok(()),
            problems => Err(anyhow::anyhow!(problems)),
        }
    }
}

/// Starts a worker and waits until it has loaded.
///
/// # Errors
/// When it does not.
pub fn start(line: &WorkerLine) -> Result<(Client, Box<Ready>)> {
    let mut command = line.command();
    command.stderr(Stdio::null());
    let mut client = Client::spawn(command)?;
    let ready = client.wait_ready(Some(LOAD_PATIENCE), |_| {})?;
    Ok((client, ready))
}

/// What records say of a worker.
pub fn subject(line: &WorkerLine, worker: &WorkerArgs, ready: &Ready) -> Subject {
    let model = ready.model.as_ref();
    let flags: Vec<_> = worker
        .further
        .iter()
        .map(|flag| flag.to_string_lossy())
        .collect();
    Subject {
        machine: record::machine(model.map_or("", |model| &model.device)),
        worker: ready.server_info.version.clone(),
        build: build(line).unwrap_or_default(),
        model: model.map(|model| model.name.clone()).unwrap_or_default(),
        quant: model
            .map(|model| model.quant_kind.clone())
            .unwrap_or_default(),
        size_bytes: model.map_or(0, |model| model.size_bytes),
        device: model.map(|model| model.device.clone()).unwrap_or_default(),
        flags: flags.join(" "),
    }
}

/// "release" or "debug": what stands in brackets in the answer to `--version`.
fn build(line: &WorkerLine) -> Result<String> {
    let run = Command::new(line.program()).arg("--version").output()?;
    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    let (_, build) = said.split_once('(').context("no build is named")?;
    Ok(build
        .split([' ', ')'])
        .next()
        .unwrap_or_default()
        .to_owned())
}
