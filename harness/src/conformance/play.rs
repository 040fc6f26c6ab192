//! Plays a transcript with a worker: does its steps, and holds what comes against them and against the rules.

use std::collections::VecDeque;
use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, kill_process};
use serde_json::{Value, json};

use super::pattern::{self, Saved, cut, matches};
use super::rules::Rules;
use super::transcript::{Action, Closed, Complete, Need, Signal, Start, Tokens, Transcript};
use crate::pipe::{Pipe, Wake};
use crate::talk::{Interrupted, Interrupts, log_end};

/// Lines that a report quotes, and how many bytes of each.
const LINES_QUOTED: usize = 6;
const LINE_BYTES_QUOTED: usize = 240;

/// What became of a transcript that was played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The worker keeps the promise.
    Kept,
    /// The worker has not what the transcript needs.
    Skipped(&'static str),
}

/// What a message is about. Within each of these the order of messages is promised, between them mostly not.
#[derive(Clone, Debug, PartialEq)]
enum About {
    /// A request, by its id.
    Request(Value),
    /// A line that could not be answered by id.
    NoId,
    /// The load: how far it is.
    Load,
    /// The worker: `ready`, `fatal`.
    Worker,
}

impl About {
    fn of(message: &Value) -> About {
        let id = if message.get("method").is_some() {
            message.pointer("/params/request_id")
        } else {
            message.get("id")
        };
        match id {
            Some(Value::Null) => About::NoId,
            Some(id) => About::Request(id.clone()),
            None if message["method"] == "progress" => About::Load,
            None => About::Worker,
        }
    }
}

struct Message {
    about: About,
    value: Value,
    claimed: bool,
}

struct Player<'a> {
    pipe: Pipe,
    interrupts: &'a Interrupts,
    rules: Rules,
    saved: Saved,
    messages: Vec<Message>,
    /// The last lines, as they came.
    last: VecDeque<String>,
    default_within: Duration,
    until: Instant,
    /// The exit code, once a step has asked for it.
    exited: Option<i32>,
}

/// Plays one transcript with a worker of this command line. `folder` is where its files are.
///
/// # Errors
/// What the worker did that it should not, with the step and the last lines; [`Interrupted`] at Ctrl-C.
pub fn play(
    transcript: &Transcript,
    mut command: Command,
    folder: &str,
    within: Duration,
    interrupts: &Interrupts,
) -> Result<Outcome> {
    let log = tempfile::tempfile().context("cannot make a file for the worker's log")?;
    command.stderr(Stdio::from(log.try_clone()?));
    let program = command.get_program().display().to_string();
    let pipe = Pipe::spawn(command).with_context(|| format!("cannot start {program}"))?;
    let mut player = Player {
        pipe,
        interrupts,
        rules: Rules::new()?,
        saved: Saved::from([("files".to_owned(), folder.into())]),
        messages: Vec::new(),
        last: VecDeque::new(),
        default_within: within,
        until: Instant::now() + within,
        exited: None,
    };
    match player.transcript(transcript) {
        Err(error) if !error.is::<Interrupted>() => {
            player.pipe.kill();
            bail!("{error:#}\n{}", player.last_words(log))
        }
        outcome => outcome,
    }
}

impl Player<'_> {
    fn transcript(&mut self, transcript: &Transcript) -> Result<Outcome> {
        if transcript.head.start == Start::WhenReady {
            let ready = self
                .next_about(&About::Worker)
                .context("before the first step")?;
            ensure!(
                ready["method"] == "ready",
                "before the first step: not ready, but {ready}"
            );
            let has_template = ready.pointer("/params/model/has_chat_template");
            if transcript.head.needs.contains(&Need::ChatTemplate)
                && has_template != Some(&true.into())
            {
                return Ok(Outcome::Skipped("the model has no chat template"));
            }
        }
        for step in &transcript.steps {
            self.within(step.within);
            self.step(&step.action)
                .with_context(|| format!("line {}", step.line))?;
        }
        self.within(None);
        if self.exited.is_none() {
            self.close_stdin()
                .and_then(|()| self.exit(0))
                .context("after the last step")?;
        }
        self.nothing_is_left()?;
        Ok(Outcome::Kept)
    }

    fn within(&mut self, within: Option<Duration>) {
        self.until = Instant::now() + within.unwrap_or(self.default_within);
    }

    fn step(&mut self, action: &Action) -> Result<()> {
        match action {
            Action::Send(template) => {
                let value = pattern::resolve(template, &self.saved).map_err(anyhow::Error::msg)?;
                self.send(format!("{value}\n").as_bytes())
            }
            Action::Raw(pieces) => {
                let mut bytes = Vec::new();
                for piece in pieces {
                    bytes.extend(piece.bytes(&self.saved).map_err(anyhow::Error::msg)?);
                }
                self.send(&bytes)
            }
            Action::PauseMs(ms) => self.listen_for(Duration::from_millis(*ms)),
            Action::SilentMs(ms) => self.silent(Duration::from_millis(*ms)),
            Action::Expect(pattern) => self.expect(pattern),
            Action::Tokens(tokens) => self.tokens(tokens),
            Action::Complete(complete) => self.complete(complete),
            Action::Order(patterns) => self.order(patterns),
            Action::Close(Closed::Stdin) => self.close_stdin(),
            Action::Signal(signal) => self.signal(*signal),
            Action::Exit(code) => self.exit(*code),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.rules.sent(bytes);
        self.pipe
            .send_bytes(bytes)
            .context("cannot write to the worker")
    }

    fn close_stdin(&mut self) -> Result<()> {
        self.rules.stdin_closed();
        Ok(self.pipe.close_stdin()?)
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pipe.pid()).ok().and_then(Pid::from_raw);
        let signal = match signal {
            Signal::Term => rustix::process::Signal::TERM,
            Signal::Int => rustix::process::Signal::INT,
        };
        kill_process(pid.context("the worker has no process id")?, signal)
            .context("cannot send the signal")
    }

    /// Reads one more message, until `until`; false when the time is over or nothing more follows.
    fn read(&mut self, until: Instant) -> Result<bool> {
        match self.pipe.wait(&[self.interrupts.fd()], Some(until))? {
            Wake::Other(_) => Err(Interrupted.into()),
            Wake::TimedOut | Wake::Closed => Ok(false),
            Wake::Line(line) => {
                if self.last.len() == LINES_QUOTED {
                    self.last.pop_front();
                }
                let text = String::from_utf8_lossy(&line);
                self.last.push_back(cut(&text, LINE_BYTES_QUOTED));
                let said = self.rules.said(&line);
                let said = said.map_err(|breach| anyhow!(shortened(&breach.to_string())))?;
                self.messages.extend(said.map(|value| Message {
                    about: About::of(&value),
                    value,
                    claimed: false,
                }));
                Ok(true)
            }
        }
    }

    /// As [`Player::read`] with the step's time, and an error when that does not help.
    fn read_on(&mut self, wanted: &str) -> Result<()> {
        if self.read(self.until)? {
            return Ok(());
        }
        if Instant::now() < self.until {
            bail!("the worker's output has ended; {wanted} has not come");
        }
        bail!("out of time; {wanted} has not come")
    }

    fn listen_for(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        while self.read(until)? {}
        Ok(())
    }

    fn silent(&mut self, time: Duration) -> Result<()> {
        let before = self.messages.len();
        self.listen_for(time)?;
        let said = self.messages[before..]
            .iter()
            .find(|message| message.about != About::Load);
        match said {
            None => Ok(()),
            Some(said) => bail!("nothing was to come, but this did: {}", said.value),
        }
    }

    /// Claims the next message about something.
    fn next_about(&mut self, about: &About) -> Result<Value> {
        let mut from = 0;
        loop {
            let is_next = |message: &&mut Message| !message.claimed && message.about == *about;
            if let Some(message) = self.messages[from..].iter_mut().find(is_next) {
                message.claimed = true;
                return Ok(message.value.clone());
            }
            from = self.messages.len();
            self.read_on(&match about {
                About::Request(id) => format!("a message about {id}"),
                About::NoId => "a response with id null".to_owned(),
                About::Load => "progress of the load".to_owned(),
                About::Worker => "ready or fatal".to_owned(),
            })?;
        }
    }

    fn expect(&mut self, pattern: &Value) -> Result<()> {
        let about = self.about(pattern)?;
        let message = self.next_about(&about)?;
        self.hold(pattern, &message)
    }

    /// What a pattern is about; its id may be a saved one.
    fn about(&self, pattern: &Value) -> Result<About> {
        let resolved = |id: &Value| pattern::resolve(id, &self.saved).map_err(anyhow::Error::msg);
        Ok(match About::of(pattern) {
            About::Request(id) => About::Request(resolved(&id)?),
            other @ (About::NoId | About::Load | About::Worker) => other,
        })
    }

    /// Holds a message against a pattern, and saves what that saves.
    fn hold(&mut self, pattern: &Value, message: &Value) -> Result<()> {
        let new = matches(pattern, message, &self.saved)
            .map_err(|mismatch| anyhow!("{mismatch}, in {}", shortened(&message.to_string())))?;
        self.saved.extend(new);
        Ok(())
    }

    fn tokens(&mut self, tokens: &Tokens) -> Result<()> {
        let about =
            About::Request(pattern::resolve(&tokens.of, &self.saved).map_err(anyhow::Error::msg)?);
        let mut count = 0;
        while count < tokens.count {
            let message = self.next_about(&about)?;
            count += usize::from(message["method"] == "token");
            ensure!(
                message.get("id").is_none(),
                "the response came after {count} tokens: {message}"
            );
        }
        Ok(())
    }

    /// Claims everything about a request up to its response, and holds the summary against the pattern.
    fn complete(&mut self, complete: &Complete) -> Result<()> {
        let id = pattern::resolve(&complete.of, &self.saved).map_err(anyhow::Error::msg)?;
        let about = About::Request(id);
        while self.next_about(&about)?.get("id").is_none() {}
        let summary = summary(
            self.messages
                .iter()
                .filter(|message| message.claimed && message.about == about),
        );
        if complete.is.get("error").is_none() {
            ensure!(
                summary.get("error").is_none(),
                "an error came: {}",
                summary["error"]
            );
        }
        self.hold(&complete.is, &summary)
    }

    fn order(&mut self, patterns: &[Value]) -> Result<()> {
        let mut places = Vec::new();
        for pattern in patterns {
            let mut at = 0;
            loop {
                match self.messages.get(at) {
                    Some(message) if matches(pattern, &message.value, &self.saved).is_ok() => break,
                    Some(_) => at += 1,
                    None => self.read_on(&format!("a message like {pattern}"))?,
                }
            }
            places.push(at);
        }
        match places.windows(2).position(|pair| pair[0] >= pair[1]) {
            None => Ok(()),
            Some(first) => bail!(
                "{} came before {}",
                self.messages[places[first + 1]].value,
                self.messages[places[first]].value
            ),
        }
    }

    fn exit(&mut self, wanted: i32) -> Result<()> {
        while self.read(self.until)? {}
        ensure!(
            Instant::now() < self.until,
            "out of time; the worker's output has not ended"
        );
        let status = self.pipe.wait_exit(Some(self.until))?;
        let status = status.context("the worker closed its stdout and does not exit")?;
        self.exited = status.code();
        ensure!(
            status.code() == Some(wanted),
            "the exit code should be {wanted}, but the worker ended with {status}"
        );
        self.rules
            .ended(status.code())
            .map_err(|breach| anyhow::Error::msg(breach.to_string()))
    }

    /// A line that no step was about is one too many; but a worker that fails may leave requests at any point.
    fn nothing_is_left(&self) -> Result<()> {
        let failed = self.exited.is_some_and(|code| code != 0);
        let left = self.messages.iter().find(|message| match message.about {
            _ if message.claimed => false,
            About::Request(_) => !failed,
            About::NoId | About::Worker => true,
            About::Load => false,
        });
        match left {
            None => Ok(()),
            Some(left) => bail!("no step was about this: {}", left.value),
        }
    }

    /// What it said last, and the end of its log.
    fn last_words(&self, mut log: File) -> String {
        let lines = self.last.iter().map(|line| format!("\n  ← {line}"));
        let mut words = format!(
            "  the last lines of the worker:{}",
            lines.collect::<String>()
        );
        if let Some(end) = log_end(&mut log) {
            words += &format!("\n  the end of its log:\n{end}");
        }
        words
    }
}

fn shortened(text: &str) -> String {
    cut(text, 4 * LINE_BYTES_QUOTED)
}

/// All that was said about a request whose last message is its response; where its id was used before, of the last use.
fn summary<'a>(messages: impl Iterator<Item = &'a Message>) -> Value {
    let mut summary = json!({"progress": [], "tokens": []});
    for message in messages.map(|message| &message.value) {
        if summary.get("result").is_some() || summary.get("error").is_some() {
            summary = json!({"progress": [], "tokens": []});
        }
        let params = &message["params"];
        match message["method"].as_str() {
            Some(list @ ("progress" | "token")) => {
                let list = if list == "token" { "tokens" } else { list };
                if let Some(list) = summary[list].as_array_mut() {
                    list.push(params.clone());
                }
            }
            Some(method) => summary[method] = params.clone(),
            None => {
                for part in ["result", "error"] {
                    if let Some(value) = message.get(part) {
                        summary[part] = value.clone();
                    }
                }
            }
        }
    }
    let tokens = summary["tokens"].as_array().cloned().unwrap_or_default();
    let texts: Vec<Value> = tokens.iter().map(|token| token["text"].clone()).collect();
    let joined: String = texts.iter().filter_map(Value::as_str).collect();
    let tail = summary["result"]["tail"].as_str().unwrap_or_default();
    let text = match &summary["result"]["text"] {
        Value::String(text) => text.clone(),
        _ => joined + tail,
    };
    summary["token_ids"] = tokens
        .iter()
        .map(|token| token["token_id"].clone())
        .collect();
    summary["count"] = tokens.len().into();
    summary["text"] = text.into();
    summary["texts"] = texts.into();
    summary
}
