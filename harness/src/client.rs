//! A worker as a Rust program holds it: typed, synchronous, without threads.
//!
//! ```no_run
//! use std::time::Duration;
//! use worker_orcd_harness::client::{Client, Incoming, command};
//! use worker_orcd_protocol::{GenerateParams, GenerateResult, Notification, Request};
//!
//! # fn main() -> Result<(), worker_orcd_harness::client::ClientError> {
//! let mut worker = Client::spawn(command("worker-orcd", "model.gguf", "cpu"))?;
//! worker.wait_ready(Some(Duration::from_secs(60)), |_progress| {})?;
//! let params = GenerateParams { prompt: Some("Once".into()), max_tokens: Some(16), ..Default::default() };
//! let id = worker.request(Request::Generate(Box::new(params)))?;
//! loop {
//!     match worker.next(None)? {
//!         Some(Incoming::Notification(Notification::Token(token))) => print!("{}", token.text),
//!         Some(Incoming::Response(response)) if response.id == Some(id.clone()) => {
//!             let result: GenerateResult = response.result()?;
//!             print!("{}", result.tail);
//!             break;
//!         }
//!         Some(_) | None => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! When a worker ends, [`crate::restart::restart_delay`] says whether to start another.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::Value;
use worker_orcd_protocol::codec::{self as wire, decode_output, encode_call};
use worker_orcd_protocol::{
    Call, CancelParams, ErrorObject, Id, Notification, Progress, Ready, Request,
};

use crate::pipe::{self, Pipe};

/// A worker process and the conversation with it. The process is killed when this is dropped; end it well with
/// [`Client::close`].
#[derive(Debug)]
pub struct Client {
    pipe: Pipe,
    next_id: i64,
    /// What came while something else was waited for.
    backlog: VecDeque<Incoming>,
}

/// Something that the worker said.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// A notification.
    Notification(Notification),
    /// A notification that this client does not know; a newer worker may send such.
    Unknown {
        /// Its method.
        method: String,
    },
    /// The answer to a request.
    Response(Response),
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// The request's id; `None` where the worker could not tell.
    pub id: Option<Id>,
    /// Its result, or why there is none.
    pub outcome: Result<Value, ErrorObject>,
    /// The whole line as it came.
    pub line: String,
}

/// What [`Client::wait`] came back for.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The worker said something.
    Message(Incoming),
    /// The descriptor with this index among the `others` is readable.
    Other(usize),
    /// The time is over.
    TimedOut,
    /// The worker's stdout is closed: it ends or has ended.
    Closed,
}

/// Why something with a worker failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The worker answered with an error.
    #[error("{0}")]
    Refused(ErrorObject),
    /// The worker has ended; with `fatal`'s words where it could say them.
    #[error("the worker ended{}", .fatal.as_ref().map(|error| format!(": {error}")).unwrap_or_default())]
    Ended {
        /// What its `fatal` notification said.
        fatal: Option<ErrorObject>,
    },
    /// The time is over.
    #[error("the worker did not answer in time")]
    TimedOut,
    /// The worker said something that is not of its protocol.
    #[error("the worker broke its protocol: {reason}: {line}")]
    Protocol {
        /// What was wrong.
        reason: String,
        /// The line.
        line: String,
    },
    /// The system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A result, or a [`ClientError`].
pub type Result<T, E = ClientError> = std::result::Result<T, E>;

/// The command line of a worker; add further flags, the environment and where stderr goes.
pub fn command(program: impl AsRef<OsStr>, model: impl AsRef<OsStr>, device: &str) -> Command {
    let mut command = Command::new(program);
    command.arg("--model").arg(model).args(["--device", device]);
    command
}

impl Client {
    /// Starts a worker in a process group of its own, so that a terminal's Ctrl-C does not reach it.
    ///
    /// # Errors
    /// [`ClientError::Io`] when it cannot be started.
    pub fn spawn(command: Command) -> Result<Client> {
        Ok(Client {
            pipe: Pipe::spawn(command)?,
            next_id: 1,
            backlog: VecDeque::new(),
        })
    }

    /// The worker's process id.
    pub fn pid(&self) -> u32 {
        self.pipe.pid()
    }

    /// Sends a request under the next free number, which is returned. Does not wait.
    ///
    /// # Errors
    /// [`ClientError::Io`] with `BrokenPipe` when the worker no longer listens.
    pub fn request(&mut self, request: Request) -> Result<Id> {
        let id = Id::Number(self.next_id);
        self.next_id += 1;
        self.request_as(id.clone(), request)?;
        Ok(id)
    }

    /// Sends a request under an id of the caller's choice; errors as [`Client::request`].
    pub fn request_as(&mut self, id: Id, request: Request) -> Result<()> {
        self.send(Some(id), request)
    }

    /// Sends a request that nobody answers. The worker takes only `cancel` so. Errors as [`Client::request`].
    pub fn notify(&mut self, request: Request) -> Result<()> {
        self.send(None, request)
    }

    fn send(&mut self, id: Option<Id>, request: Request) -> Result<()> {
        let mut line = Vec::new();
        encode_call(&Call { id, request }, &mut line);
        Ok(self.pipe.send_bytes(&line)?)
    }

    /// Asks that a `generate` ends. Its response tells when it has; it may have ended by itself before.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn cancel(&mut self, request_id: &Id) -> Result<()> {
        self.notify(Request::Cancel(CancelParams {
            request_id: request_id.clone(),
        }))
    }

    /// The next message, if one is at hand.
    ///
    /// # Errors
    /// [`ClientError::Ended`] when no more will come, [`ClientError::Protocol`], [`ClientError::Io`].
    pub fn try_next(&mut self) -> Result<Option<Incoming>> {
        self.next(Some(Duration::ZERO))
    }

    /// The next message; `None` when none came within `timeout` (`None`: wait without end). Errors as [`Client::try_next`].
    #[allow(clippy::should_implement_trait, reason = "it can time out and fail")]
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Option<Incoming>> {
        match self.wait(&[], deadline(timeout))? {
            Event::Message(message) => Ok(Some(message)),
            Event::Other(_) | Event::TimedOut => Ok(None),
            Event::Closed => Err(ClientError::Ended { fatal: None }),
        }
    }

    /// Waits for a message, for one of `others` to be readable, or until `until`. `others` come first, so that a flood
    /// of messages cannot drown a key that was pressed.
    ///
    /// # Errors
    /// [`ClientError::Protocol`], [`ClientError::Io`].
    pub fn wait(&mut self, others: &[BorrowedFd<'_>], until: Option<Instant>) -> Result<Event> {
        if let Some(message) = self.backlog.pop_front() {
            return Ok(Event::Message(message));
        }
        self.wait_pipe(others, until)
    }

    fn wait_pipe(&mut self, others: &[BorrowedFd<'_>], until: Option<Instant>) -> Result<Event> {
        Ok(match self.pipe.wait(others, until)? {
            pipe::Wake::Line(line) => Event::Message(decode(&line)?),
            pipe::Wake::Other(index) => Event::Other(index),
            pipe::Wake::TimedOut => Event::TimedOut,
            pipe::Wake::Closed => Event::Closed,
        })
    }

    /// Sends a request and waits for its result. Other messages that come meanwhile are kept for [`Client::next`].
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the worker answers with an error, [`ClientError::TimedOut`], and as [`Client::next`].
    pub fn call<T: DeserializeOwned>(
        &mut self,
        request: Request,
        timeout: Option<Duration>,
    ) -> Result<T> {
        let until = deadline(timeout);
        let id = self.request(request)?;
        loop {
            match self.wait_pipe(&[], until)? {
                Event::Message(Incoming::Response(response))
                    if response.id.as_ref() == Some(&id) =>
                {
                    return response.result();
                }
                Event::Message(message) => self.backlog.push_back(message),
                Event::Other(_) => {}
                Event::TimedOut => return Err(ClientError::TimedOut),
                Event::Closed => {
                    return Err(ClientError::Ended {
                        fatal: self.fatal(),
                    });
                }
            }
        }
    }

    /// Waits until the model is loaded; `on_progress` sees how far it is.
    ///
    /// # Errors
    /// [`ClientError::Ended`] with the worker's own words when it cannot load, [`ClientError::TimedOut`], and as [`Client::next`].
    pub fn wait_ready(
        &mut self,
        timeout: Option<Duration>,
        mut on_progress: impl FnMut(&Progress),
    ) -> Result<Box<Ready>> {
        let until = deadline(timeout);
        loop {
            match self.wait_pipe(&[], until)? {
                Event::Message(Incoming::Notification(Notification::Ready(ready))) => {
                    return Ok(ready);
                }
                Event::Message(Incoming::Notification(Notification::Progress(progress))) => {
                    on_progress(&progress)
                }
                Event::Message(message) => self.backlog.push_back(message),
                Event::Other(_) => {}
                Event::TimedOut => return Err(ClientError::TimedOut),
                Event::Closed => {
                    return Err(ClientError::Ended {
                        fatal: self.fatal(),
                    });
                }
            }
        }
    }

    /// Closes the worker's stdin: it finishes what was sent, and exits. Go on reading until [`Event::Closed`].
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn close(&mut self) -> Result<()> {
        Ok(self.pipe.close_stdin()?)
    }

    /// Waits for the worker's exit; `None` when it is still there after `timeout`. Output is not read meanwhile.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn wait_exit(&mut self, timeout: Option<Duration>) -> Result<Option<ExitStatus>> {
        Ok(self.pipe.wait_exit(deadline(timeout))?)
    }

    /// Kills the worker.
    pub fn kill(&mut self) {
        self.pipe.kill();
    }

    /// What a `fatal` among the messages kept said.
    fn fatal(&self) -> Option<ErrorObject> {
        self.backlog.iter().find_map(|message| match message {
            Incoming::Notification(Notification::Fatal(fatal)) => Some(fatal.error.clone()),
            Incoming::Notification(_) | Incoming::Unknown { .. } | Incoming::Response(_) => None,
        })
    }
}

impl Response {
    /// The typed result.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the answer is an error, [`ClientError::Protocol`] when it is of another type.
    pub fn result<T: DeserializeOwned>(self) -> Result<T> {
        let value = self.outcome.map_err(ClientError::Refused)?;
        serde_json::from_value(value).map_err(|e| ClientError::Protocol {
            reason: e.to_string(),
            line: self.line,
        })
    }
}

fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// What a line of the worker says.
fn decode(line: &[u8]) -> Result<Incoming> {
    let text = || String::from_utf8_lossy(line).into_owned();
    match decode_output(line) {
        Ok(wire::Incoming::Notification(notification)) => Ok(Incoming::Notification(notification)),
        Ok(wire::Incoming::UnknownNotification { method }) => Ok(Incoming::Unknown { method }),
        Ok(wire::Incoming::Response { id, outcome }) => Ok(Incoming::Response(Response {
            id,
            outcome,
            line: text(),
        })),
        Err(wire::NotOurs(reason)) => Err(ClientError::Protocol {
            reason,
            line: text(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use worker_orcd_protocol::codec::encode_line;
    use worker_orcd_protocol::*;

    #[test]
    fn the_client_reads_what_the_worker_writes() {
        let token = Token {
            request_id: Id::Number(1),
            index: 3,
            token_id: 9,
            text: "ü".into(),
            logprob: None,
            top_logprobs: vec![],
        };
        let said = [
            Outgoing::Notification(Notification::Token(token.clone())),
            Outgoing::Result {
                id: Id::String("1".into()),
                result: MethodResult::Cancel(CancelResult { found: true }),
            },
            Outgoing::Error {
                id: None,
                error: ErrorObject::new(ErrorCode::ParseError, "no"),
            },
        ];
        let heard: Vec<Incoming> = said
            .iter()
            .map(|outgoing| {
                let mut line = Vec::new();
                encode_line(outgoing, &mut line);
                decode(line.strip_suffix(b"\n").unwrap()).unwrap()
            })
            .collect();
        assert_eq!(heard[0], Incoming::Notification(Notification::Token(token)));
        let Incoming::Response(found) = heard[1].clone() else {
            panic!("{:?}", heard[1])
        };
        assert_eq!(found.id, Some(Id::String("1".into())));
        assert_eq!(
            found.result::<CancelResult>().unwrap(),
            CancelResult { found: true }
        );
        let Incoming::Response(refused) = heard[2].clone() else {
            panic!("{:?}", heard[2])
        };
        assert!(
            matches!(refused.result::<Value>(), Err(ClientError::Refused(e)) if e.data.code == ErrorCode::ParseError)
        );
    }

    #[test]
    fn a_newer_workers_notification_is_no_error_and_a_broken_line_is() {
        let heard = decode(br#"{"jsonrpc":"2.0","method":"later","params":{"from":0}}"#);
        assert!(matches!(heard, Ok(Incoming::Unknown { method }) if method == "later"));
        let broken = decode(b"printf was here");
        assert!(
            matches!(broken, Err(ClientError::Protocol { line, .. }) if line == "printf was here")
        );
    }
}
