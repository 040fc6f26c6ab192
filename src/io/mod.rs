//! The process's descriptors: the only code that touches fds 0 and 1. One poll(2) covers stdin, stdout, stderr, the signals and the
//! watched parent; nothing here ever blocks but that poll.
//!
//! O_NONBLOCK is never set on an inherited descriptor, since the flag is shared with whoever else holds it. What that takes for
//! each kind of descriptor stands in `sink.rs` and `source.rs`.

mod kind;
mod signals;
mod sink;
mod source;
mod watch;

pub use sink::Sink;
pub use source::{Read, Source};
pub use watch::{ParentWatch, WatchError};

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::worker::Signal;
use signals::Signals;

/// Where what others print to fd 1 goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrayOutput {
    /// Nowhere.
    Discard,
    /// To stderr.
    Stderr,
}

/// Whether stdin is to be read when something has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Nothing but the ends of things.
    NoInput,
    /// Input too.
    Input,
}

/// What a poll found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Stdin has something to read, or its end.
    pub input: bool,
    /// Nobody reads stdout any more.
    pub stdout_lost: bool,
    /// The watched process has ended.
    pub parent_lost: bool,
    /// Signals that came.
    pub signals: Vec<Signal>,
}

/// Whether somebody at the other end of fd 0 feeds the process, who may die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feeder {
    Peer,
    Nobody,
}

/// Why the process cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// One of the descriptors cannot be examined or duplicated, or signals cannot be listened to.
    #[error("stdin, stdout and stderr cannot be used: {0}")]
    Descriptors(#[from] io::Error),
    /// The file that stands in for stdin cannot be read.
    #[error("{} cannot be read: {error}", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

/// Prints a text to stdout and waits until all of it is written: for what is told instead of a worker's life.
///
/// # Errors
///
/// Nobody reads it.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// All descriptors of the process.
pub struct Io {
    /// Requests come in here: stdin, or the file that stands in for it.
    pub stdin: Source,
    feeder: Feeder,
    /// Events go out here.
    pub stdout: Sink,
    /// The log goes out here.
    pub stderr: Sink,
    signals: Signals,
    parent: Option<ParentWatch>,
}

impl Io {
    /// Takes the process's three descriptors and begins to listen to signals. From here on nobody else's output can get into
    /// stdout: fd 1 is a private descriptor now, and what is printed to number 1 goes where `stray` says. `input` stands in for stdin.
    ///
    /// What stdio still holds in its buffer from before goes that way too. What cannot be caught: a library that has flushed before
    /// `main` (a constructor, by LD_PRELOAD), and one that looks for the other number.
    ///
    /// # Errors
    ///
    /// See [`TakeError`].
    pub fn take(stray: StrayOutput, input: Option<&Path>) -> Result<Self, TakeError> {
        let signals = Signals::listen()?;
        let duplicate =
            |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(io::Error::from);
        let stdout = Sink::new(duplicate(io::stdout().as_fd())?)?;
        let stderr = Sink::new(duplicate(io::stderr().as_fd())?)?;
        match stray {
            StrayOutput::Discard => {
                rustix::stdio::dup2_stdout(File::options().write(true).open("/dev/null")?)
                    .map_err(io::Error::from)?
            }
            StrayOutput::Stderr => {
                rustix::stdio::dup2_stdout(io::stderr().as_fd()).map_err(io::Error::from)?
            }
        }
        let mut stdin = Source::new(duplicate(io::stdin().as_fd())?)?;
        let feeder = if stdin.has_peer() {
            Feeder::Peer
        } else {
            Feeder::Nobody
        };
        if let Some(path) = input {
            let path_of = |error| TakeError::Input {
                path: path.to_owned(),
                error,
            };
            let file = File::open(path).map_err(path_of)?;
            if file.metadata().map_err(path_of)?.is_dir() {
                return Err(path_of(io::ErrorKind::IsADirectory.into()));
            }
            stdin = Source::new(file.into()).map_err(path_of)?;
        }
        Ok(Self {
            stdin,
            feeder,
            stdout,
            stderr,
            signals,
            parent: None,
        })
    }

    /// Whether somebody at the other end of fd 0 feeds the process, who may die.
    pub fn has_peer(&self) -> bool {
        self.feeder == Feeder::Peer
    }

    /// Watches a process from now on.
    pub fn watch(&mut self, parent: ParentWatch) {
        self.parent = Some(parent);
    }

    /// Waits until something has come, output can go on, or `timeout` is over (`None`: as long as it takes).
    ///
    /// # Errors
    ///
    /// poll(2) itself failed.
    pub fn poll(&mut self, want: Want, timeout: Option<Duration>) -> io::Result<Found> {
        let timeout = timeout.map(|t| {
            Timespec::try_from(t).unwrap_or(Timespec {
                tv_sec: i64::MAX,
                tv_nsec: 0,
            })
        });
        let mut fds = Vec::with_capacity(6);
        // Errors and hang-ups are reported for all of them, whatever is asked for.
        fds.push(PollFd::new(&self.stdout, self.stdout.poll_flags()));
        fds.push(PollFd::new(self.signals.terminate(), PollFlags::IN));
        fds.push(PollFd::new(self.signals.interrupt(), PollFlags::IN));
        let parent = self.parent.as_ref().map(|parent| {
            fds.push(PollFd::new(parent, PollFlags::IN));
            fds.len() - 1
        });
        let stdin = (want == Want::Input).then(|| {
            fds.push(PollFd::new(&self.stdin, PollFlags::IN));
            fds.len() - 1
        });
        if !self.stderr.is_lost() && self.stderr.pending() > 0 {
            fds.push(PollFd::new(&self.stderr, self.stderr.poll_flags()));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            // A signal; the next poll finds it in its pipe.
            Err(rustix::io::Errno::INTR) => return Ok(Found::default()),
            Err(error) => return Err(error.into()),
        }
        let happened = |at: Option<usize>| {
            at.and_then(|at| fds.get(at))
                .is_some_and(|fd| !fd.revents().is_empty())
        };
        let lost = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        let mut found = Found {
            input: happened(stdin),
            stdout_lost: fds.first().is_some_and(|fd| fd.revents().intersects(lost)),
            parent_lost: happened(parent),
            signals: Vec::new(),
        };
        if happened(Some(1)) || happened(Some(2)) {
            self.signals.take(&mut found.signals);
        }
        if found.parent_lost {
            // Once is enough: the descriptor would end every further poll at once.
            self.parent = None;
        }
        Ok(found)
    }
}
