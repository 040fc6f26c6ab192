//! A worker and a person: loads it with a bar, sends what is asked, hands the answer on as it comes, and turns Ctrl-C
//! into a cancel. `chat` and `ask` are two ways to use it.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags};
use worker_orcd_protocol::{
    ErrorObject, GenerateParams, GenerateResult, HealthResult, Id, Notification, Progress, Request,
};

use crate::client::{Client, Event, Incoming, Response};
use crate::pipe::poll_until;
use crate::progress::Meter;

/// Bytes of the worker's log that are looked at for its last words.
const LOG_TAIL_BYTES: u64 = 4096;

/// Lines of the worker's log that are shown when it has failed.
const LOG_TAIL_LINES: usize = 10;

/// How long a worker may take to end once its stdout is closed, and to answer `health`.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the worker's log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// To our stderr.
    Shown,
    /// To a file without a name, whose end is shown when the worker fails.
    Kept,
}

/// A worker with its model loaded.
#[derive(Debug)]
pub struct Talk {
    client: Client,
    log: Option<File>,
    /// What its `fatal` said.
    fatal: Option<ErrorObject>,
}

/// How a request ended.
#[derive(Debug)]
pub enum Answer {
    /// With an answer; the text was handed on already, all of it.
    Done(Box<GenerateResult>),
    /// With an error; the worker goes on.
    Refused(ErrorObject),
}

/// The worker has ended, and not because it was asked to.
#[derive(Debug)]
pub struct WorkerEnded {
    /// Its exit code; `None` when a signal killed it.
    pub exit_code: Option<i32>,
    why: String,
}

impl fmt::Display for WorkerEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for WorkerEnded {}

/// The person pressed Ctrl-C and means the program.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Ctrl-C as something that poll(2) sees.
#[derive(Debug)]
pub struct Interrupts {
    stream: UnixStream,
}

impl Interrupts {
    /// From now on SIGINT ends nothing by itself.
    ///
    /// # Errors
    /// What the system says.
    pub fn catch() -> Result<Interrupts> {
        let (stream, sender) = UnixStream::pair().context("cannot make a socket pair")?;
        stream.set_nonblocking(true)?;
        let sender = OwnedFd::from(sender);
        signal_hook::low_level::pipe::register(signal_hook::consts::SIGINT, sender)
            .context("cannot catch SIGINT")?;
        Ok(Interrupts { stream })
    }

    /// Readable when Ctrl-C was pressed.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Waits; whether Ctrl-C was pressed before `until`.
    ///
    /// # Errors
    /// What the system says.
    pub fn pressed_before(&self, until: Instant) -> std::io::Result<bool> {
        poll_until(&mut [PollFd::new(&self.stream, PollFlags::IN)], Some(until))
    }

    /// Forgets the presses so far; whether there were any.
    pub fn take(&mut self) -> bool {
        let mut buffer = [0; 64];
        let mut any = false;
        while matches!(self.stream.read(&mut buffer), Ok(1..)) {
            any = true;
        }
        any
    }
}

impl Talk {
    /// Starts the worker and waits until the model is loaded, with a bar on a terminal.
    ///
    /// # Errors
    /// [`WorkerEnded`] with the worker's own words, [`Interrupted`] at Ctrl-C.
    pub fn start(mut command: Command, log: Log, interrupts: &mut Interrupts) -> Result<Talk> {
        let log = match log {
            Log::Shown => None,
            Log::Kept => {
                Some(tempfile::tempfile().context("cannot make a file for the worker's log")?)
            }
        };
        command.stderr(match &log {
            None => Stdio::inherit(),
            Some(file) => Stdio::from(file.try_clone()?),
        });
        let program = command.get_program().display().to_string();
        let client = Client::spawn(command).with_context(|| format!("cannot start {program}"))?;
        let mut talk = Talk {
            client,
            log,
            fatal: None,
        };
        talk.load(interrupts)?;
        Ok(talk)
    }

    fn load(&mut self, interrupts: &mut Interrupts) -> Result<()> {
        let mut meter = None;
        let mut show = |progress: &Progress| {
            let total = progress.total;
            meter
                .get_or_insert_with(|| Meter::on_terminal("loading the model", total))
                .set(progress.processed);
        };
        loop {
            match self.client.wait(&[interrupts.fd()], None)? {
                Event::Message(Incoming::Notification(Notification::Ready(_))) => break,
                Event::Message(Incoming::Notification(Notification::Progress(progress))) => {
                    show(&progress)
                }
                Event::Message(message) => self.remember(message),
                Event::Other(_) => return Err(Interrupted.into()),
                Event::TimedOut => {}
                Event::Closed => return Err(self.ended()),
            }
        }
        if let Some(meter) = meter {
            meter.end();
        }
        Ok(())
    }

    /// Asks, and hands the text to `on_text` as it comes. Ctrl-C cancels; a second one, while the worker still does not
    /// end, means the program.
    ///
    /// # Errors
    /// [`WorkerEnded`], [`Interrupted`], and what `on_text` says.
    pub fn ask(
        &mut self,
        params: GenerateParams,
        interrupts: &mut Interrupts,
        mut on_text: impl FnMut(&str) -> Result<()>,
    ) -> Result<Answer> {
        let response = self.exchange(params, interrupts, &mut on_text)?;
        if let Err(error) = response.outcome {
            return Ok(Answer::Refused(error));
        }
        let result: GenerateResult = response.result()?;
        on_text(&result.tail)?;
        Ok(Answer::Done(Box::new(result)))
    }

    /// Asks and returns the response as it came; otherwise as [`Talk::ask`].
    pub fn exchange(
        &mut self,
        params: GenerateParams,
        interrupts: &mut Interrupts,
        on_text: &mut impl FnMut(&str) -> Result<()>,
    ) -> Result<Response> {
        interrupts.take();
        let id = self.send(Request::Generate(Box::new(params)))?;
        let mut cancelled = false;
        loop {
            match self.client.wait(&[interrupts.fd()], None)? {
                Event::Message(Incoming::Response(response))
                    if response.id.as_ref() == Some(&id) =>
                {
                    return Ok(response);
                }
                Event::Message(Incoming::Notification(Notification::Token(token)))
                    if token.request_id == id =>
                {
                    on_text(&token.text)?;
                }
                Event::Message(message) => self.remember(message),
                Event::Other(_) if cancelled => return Err(Interrupted.into()),
                Event::Other(_) => {
                    cancelled = interrupts.take();
                    // A worker that no longer listens has closed its stdout too, which is heard next.
                    let _ = self.client.cancel(&id);
                }
                Event::TimedOut => {}
                Event::Closed => return Err(self.ended()),
            }
        }
    }

    /// How the worker is.
    ///
    /// # Errors
    /// [`WorkerEnded`], or that it does not answer.
    pub fn health(&mut self) -> Result<HealthResult> {
        match self.client.call(Request::Health, Some(PATIENCE)) {
            Ok(health) => Ok(health),
            Err(crate::client::ClientError::Ended { fatal }) => {
                self.fatal = self.fatal.take().or(fatal);
                Err(self.ended())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for one of `others` to be readable.
    ///
    /// # Errors
    /// [`WorkerEnded`] when the worker ends before.
    pub fn idle(&mut self, others: &[BorrowedFd<'_>]) -> Result<usize> {
        loop {
            match self.client.wait(others, None)? {
                Event::Other(index) => return Ok(index),
                Event::Message(message) => self.remember(message),
                Event::TimedOut => {}
                Event::Closed => return Err(self.ended()),
            }
        }
    }

    /// Lets the worker end, as it should when nobody asks any more.
    ///
    /// # Errors
    /// [`WorkerEnded`] when it ends with another exit code than 0 or not at all.
    pub fn close(mut self) -> Result<()> {
        self.client.close()?;
        loop {
            match self.client.wait(&[], Some(Instant::now() + PATIENCE))? {
                Event::Message(message) => self.remember(message),
                Event::Other(_) => {}
                Event::TimedOut | Event::Closed => break,
            }
        }
        match self.client.wait_exit(Some(PATIENCE))? {
            Some(status) if status.success() => Ok(()),
            _ => Err(self.ended()),
        }
    }

    fn send(&mut self, request: Request) -> Result<Id> {
        match self.client.request(request) {
            Ok(id) => Ok(id),
            Err(crate::client::ClientError::Io(error))
                if error.kind() == std::io::ErrorKind::BrokenPipe =>
            {
                Err(self.ended())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Of what nobody waits for, only last words matter.
    fn remember(&mut self, message: Incoming) {
        if let Incoming::Notification(Notification::Fatal(fatal)) = message {
            self.fatal = Some(fatal.error);
        }
    }

    /// Why the worker is no more; kills it where it hangs.
    fn ended(&mut self) -> anyhow::Error {
        while let Ok(Some(message)) = self.client.next(Some(PATIENCE)) {
            self.remember(message);
        }
        let status = self.client.wait_exit(Some(PATIENCE)).ok().flatten();
        self.client.kill();
        let how = match status {
            Some(status) => format!("the worker ended ({status})"),
            None => "the worker closed its stdout and hung; it was killed".to_owned(),
        };
        let words = self.log.as_mut().and_then(log_end);
        let why = match (&self.fatal, words) {
            (Some(error), _) => format!("{how}: {}", error.message),
            (None, Some(words)) => format!("{how}; the end of its log:\n{words}"),
            (None, None) => how,
        };
        WorkerEnded {
            exit_code: status.and_then(|status| status.code()),
            why,
        }
        .into()
    }
}

/// The last lines of a log that was written to a file; `None` where there are none.
pub fn log_end(log: &mut File) -> Option<String> {
    let length = log.seek(SeekFrom::End(0)).ok()?;
    log.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))
        .ok()?;
    let mut bytes = Vec::new();
    log.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().map(|line| format!("  {line}")).collect();
    let last = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
    (!last.is_empty()).then_some(last)
}
