//! `orcd ask`: one question, one answer.

use std::io::{IsTerminal, Read};

use anyhow::{Context, Result, bail};
use clap::Args;
use worker_orcd_protocol::{ErrorObject, FinishReason, GenerateResult, Message, Role};

use crate::args::{AnswerArgs, WorkerArgs};
use crate::client::Response;
use crate::out;
use crate::talk::{Answer, Interrupted, Interrupts, Log, Talk};

/// Flags of `orcd ask`.
#[derive(Clone, Debug, Args)]
pub struct AskArgs {
    /// What to ask; several words are joined by spaces, and - reads all of stdin
    #[arg(required = true, value_name = "TEXT")]
    pub text: Vec<String>,

    /// Print the worker's response object, whole and on one line, instead of the answer's text
    #[arg(long)]
    pub json: bool,

    /// How to answer.
    #[command(flatten)]
    pub answer: AnswerArgs,

    /// Which worker.
    #[command(flatten)]
    pub worker: WorkerArgs,
}

/// Runs `orcd ask`.
///
/// # Errors
/// When there is no answer.
pub fn run(args: &AskArgs) -> Result<()> {
    let mut messages = args.answer.beginning();
    messages.push(Message::new(Role::User, question(&args.text)?));
    let worker = args.worker.find()?;
    // Until here Ctrl-C ends everything at once, a download too.
    let mut interrupts = Interrupts::catch()?;
    let mut params = args.answer.request(&messages);
    params.stream = !args.json;
    let log = if args.answer.verbose {
        Log::Shown
    } else {
        Log::Kept
    };
    let mut talk = Talk::start(worker.command(), log, &mut interrupts)?;
    let mut printer = Printer::default();
    if args.json {
        let response = talk.exchange(params, &mut interrupts, &mut |_| Ok(()))?;
        out::print_line(&response.line)?;
        return finished(response);
    }
    match talk.ask(params, &mut interrupts, |text| printer.print(text))? {
        Answer::Done(result) => {
            printer.end_line()?;
            if std::io::stderr().is_terminal() {
                out::note_line(&out::dim(&statistics(&result)));
            }
            talk.close()?;
            ended_well(result.finish_reason)
        }
        Answer::Refused(error) => Err(refused(&error)),
    }
}

/// Hands text on to stdout, without control characters where that is a terminal.
#[derive(Debug, Default)]
pub struct Printer {
    /// Whether text stands on the last line.
    open: bool,
}

impl Printer {
    /// Prints a piece of an answer; errors as [`out::print()`].
    pub fn print(&mut self, text: &str) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.open = !text.ends_with('\n');
        if std::io::stdout().is_terminal() {
            out::print(&out::harmless(text))
        } else {
            out::print(text)
        }
    }

    /// Ends a line that has begun; errors as [`out::print()`].
    pub fn end_line(&mut self) -> Result<()> {
        if std::mem::take(&mut self.open) {
            out::print("\n")
        } else {
            Ok(())
        }
    }
}

/// An error of the worker as ours.
pub fn refused(error: &ErrorObject) -> anyhow::Error {
    anyhow::anyhow!("the worker refuses: {error}")
}

/// What an answer cost: "31 tokens in, 8 out, 46.1 tokens/s".
pub fn statistics(result: &GenerateResult) -> String {
    let usage = result.usage;
    let why = match result.finish_reason {
        FinishReason::Stop => "",
        FinishReason::Length => ", cut at the most tokens it may have",
        FinishReason::Cancelled => ", cancelled",
        FinishReason::Timeout => ", out of time",
    };
    let rate = result.timings.predicted_per_second;
    format!(
        "{} tokens in, {} out, {rate:.1} tokens/s{why}",
        usage.prompt_tokens, usage.completion_tokens
    )
}

fn question(words: &[String]) -> Result<String> {
    if words != ["-"] {
        return Ok(words.join(" "));
    }
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .context("cannot read the question from stdin")?;
    if text.trim().is_empty() {
        bail!("stdin holds no question");
    }
    Ok(text)
}

fn finished(response: Response) -> Result<()> {
    match response.outcome {
        Ok(_) => ended_well(response.result::<GenerateResult>()?.finish_reason),
        Err(error) => Err(refused(&error)),
    }
}

fn ended_well(reason: FinishReason) -> Result<()> {
    match reason {
        FinishReason::Stop | FinishReason::Length => Ok(()),
        FinishReason::Cancelled => Err(Interrupted.into()),
        FinishReason::Timeout => bail!("the worker ran out of time"),
    }
}
