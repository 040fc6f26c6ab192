//! `orcd chat`: a conversation with a model, at a terminal or through a pipe.
//!
//! The conversation lives here, not in the worker, so it survives a worker that has to be started again.

use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use worker_orcd_protocol::{ErrorCode, ErrorObject, FinishReason, Message, Role};

use crate::args::{AnswerArgs, WorkerArgs, WorkerLine};
use crate::ask::{Printer, refused, statistics};
use crate::lines::StdinLines;
use crate::out;
use crate::restart::restart_delay;
use crate::talk::{Answer, Interrupted, Interrupts, Log, Talk, WorkerEnded};

/// Flags of `orcd chat`.
#[derive(Clone, Debug, Args)]
pub struct ChatArgs {
    /// How to answer.
    #[command(flatten)]
    pub answer: AnswerArgs,

    /// Which worker.
    #[command(flatten)]
    pub worker: WorkerArgs,
}

const HELP: &str = "\
/health  how the worker is
/reset   begin a new conversation
/quit    leave (also Ctrl-D, or Ctrl-C twice)
/help    this list
Everything else is said to the model; Ctrl-C cancels its answer.";

/// Workers that end one after the other, with no answer in between, before the conversation is given up.
const FAILURES_MAX: u32 = 5;

/// What a line of the person asks for.
enum Input {
    Say(String),
    Health,
    Reset,
    Quit,
    Help,
    /// A command that there is not.
    Unknown(String),
}

struct Chat<'a> {
    args: &'a ChatArgs,
    worker: WorkerLine,
    log: Log,
    talk: Talk,
    interrupts: Interrupts,
    stdin: StdinLines,
    messages: Vec<Message>,
    /// Workers that ended since the last answer.
    failures: u32,
    /// Whether an answer could not be had; a pipe's reader is told at the end.
    failed: bool,
}

/// Runs `orcd chat`.
///
/// # Errors
/// When the worker cannot be had or ends for good; through a pipe also when a prompt got no answer.
pub fn run(args: &ChatArgs) -> Result<()> {
    // Until here Ctrl-C ends everything at once, a download too.
    let worker = args.worker.find()?;
    let mut interrupts = Interrupts::catch()?;
    let stdin = StdinLines::new();
    let log = if args.answer.verbose {
        Log::Shown
    } else {
        Log::Kept
    };
    let talk = Talk::start(worker.command(), log, &mut interrupts)?;
    let messages = args.answer.beginning();
    let mut chat = Chat {
        args,
        worker,
        log,
        talk,
        interrupts,
        stdin,
        messages,
        failures: 0,
        failed: false,
    };
    if chat.stdin.is_terminal() {
        out::note_line(&out::dim(
            "Ctrl-C cancels an answer, Ctrl-D leaves, /help lists the commands.",
        ));
    }
    while let Some(line) = chat.line()? {
        if !chat.obey(line)? {
            break;
        }
    }
    chat.talk.close()?;
    if chat.failed && !chat.stdin.is_terminal() {
        anyhow::bail!("not every prompt got an answer");
    }
    Ok(())
}

impl Chat<'_> {
    /// The next line; `None` when there is none or the person leaves.
    fn line(&mut self) -> Result<Option<String>> {
        let mut pressed = false;
        self.interrupts.take();
        self.prompt();
        loop {
            match self.stdin.next() {
                Some(Ok(line)) => return Ok(Some(line)),
                Some(Err(error)) => {
                    self.trouble(&error);
                    self.prompt();
                    continue;
                }
                None if self.stdin.ended() => {
                    // The shell's prompt begins on a line of its own.
                    self.note_on_terminal("\n");
                    return Ok(None);
                }
                None => {}
            }
            match self.talk.idle(&[self.interrupts.fd(), self.stdin.fd()]) {
                Ok(0) if !self.stdin.is_terminal() => return Err(Interrupted.into()),
                Ok(0) if pressed => {
                    self.note_on_terminal("\n");
                    return Ok(None);
                }
                Ok(0) => {
                    pressed = self.interrupts.take();
                    out::note_line(&out::dim("\nCtrl-C again, or Ctrl-D, leaves"));
                    self.prompt();
                }
                Ok(_) => self.stdin.read()?,
                Err(error) => {
                    self.restart(error)?;
                    self.prompt();
                }
            }
        }
    }

    /// Does what a line says; whether to go on.
    fn obey(&mut self, line: String) -> Result<bool> {
        match input(line, self.stdin.is_terminal()) {
            Input::Say(text) => self.say(&text)?,
            Input::Health => match self.talk.health() {
                Ok(health) => out::print_line(&serde_json::to_string_pretty(&health)?)?,
                Err(error) => self.restart(error)?,
            },
            Input::Reset => {
                self.messages = self.args.answer.beginning();
                out::note_line(&out::dim("a new conversation"));
            }
            Input::Quit => return Ok(false),
            Input::Help => out::print_line(HELP)?,
            Input::Unknown(command) => out::note_line(&format!(
                "there is no command {command}; /help lists them. To say it to the model, put a space before it"
            )),
        }
        Ok(true)
    }

    /// Says something to the model and prints what it answers.
    fn say(&mut self, text: &str) -> Result<()> {
        self.messages.push(Message::new(Role::User, text));
        let params = self.args.answer.request(&self.messages);
        let mut answer = String::new();
        let mut printer = Printer::default();
        let ended = self.talk.ask(params, &mut self.interrupts, |text| {
            answer.push_str(text);
            printer.print(text)
        });
        printer.end_line()?;
        // A question without an answer would only confuse the next one.
        let question = self.messages.pop();
        match ended {
            Ok(Answer::Done(result)) => {
                self.failures = 0;
                self.note_on_terminal(&format!("{}\n", out::dim(&statistics(&result))));
                if !answer.is_empty() {
                    self.messages.extend(question);
                    self.messages.push(Message::new(Role::Assistant, &answer));
                }
                // Whoever stops a pipe means all of it.
                if result.finish_reason == FinishReason::Cancelled && !self.stdin.is_terminal() {
                    return Err(Interrupted.into());
                }
                Ok(())
            }
            Ok(Answer::Refused(error)) => {
                self.refused(&error);
                Ok(())
            }
            Err(error) => self.restart(error),
        }
    }

    fn refused(&mut self, error: &ErrorObject) {
        self.trouble(&refused(error));
        if error.data.code == ErrorCode::ContextOverflow && self.stdin.is_terminal() {
            out::note_line(
                "the conversation has grown too long for this model; /reset begins a new one",
            );
        }
    }

    fn trouble(&mut self, error: &anyhow::Error) {
        self.failed = true;
        out::note_line(&format!("orcd: {error:#}"));
    }

    /// After a worker's end: starts another where that may help, otherwise gives `error` back.
    fn restart(&mut self, error: anyhow::Error) -> Result<()> {
        let Some(ended) = error.downcast_ref::<WorkerEnded>() else {
            return Err(error);
        };
        let Some(wait) = restart_delay(ended.exit_code, self.failures) else {
            return Err(error);
        };
        if self.failures >= FAILURES_MAX {
            return Err(error.context(format!("{FAILURES_MAX} workers have ended in a row")));
        }
        self.trouble(&error);
        out::note_line(
            "starting another worker; the conversation is kept, the last question has to be asked again",
        );
        self.failures += 1;
        self.pause(Instant::now() + wait)?;
        match Talk::start(self.worker.command(), self.log, &mut self.interrupts) {
            Ok(talk) => {
                self.talk = talk;
                Ok(())
            }
            Err(error) => self.restart(error),
        }
    }

    /// Waits; Ctrl-C ends the wait and the program.
    fn pause(&mut self, until: Instant) -> Result<()> {
        match self
            .interrupts
            .pressed_before(until)
            .context("cannot wait")?
        {
            true => Err(Interrupted.into()),
            false => Ok(()),
        }
    }

    fn prompt(&self) {
        self.note_on_terminal("> ");
    }

    fn note_on_terminal(&self, text: &str) {
        if self.stdin.is_terminal() {
            out::note(text);
        }
    }
}

/// What a line asks for. Only a person gives commands: a pipe's lines are all said to the model.
fn input(line: String, terminal: bool) -> Input {
    if !terminal || !line.starts_with('/') {
        return Input::Say(line);
    }
    match line.trim_end() {
        "/health" => Input::Health,
        "/reset" => Input::Reset,
        "/quit" => Input::Quit,
        "/help" => Input::Help,
        other => Input::Unknown(other.to_owned()),
    }
}
