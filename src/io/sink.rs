//! Output that never blocks and never drops what it was given, unless it is told to.
//!
//! A pipe or a terminal was opened anew without blocking. Where that was not possible, a poll comes before each write: a pipe that polls
//! writable takes [`limits::PIPE_WRITE_BYTES_MAX`] bytes without blocking, unless somebody else fills it in between, so it gets no more
//! at once. A socket is written with MSG_DONTWAIT. Files do not block.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::kind::{Kind, examine};
use crate::limits;

/// A descriptor to write to, and what waits to be written.
pub struct Sink {
    fd: OwnedFd,
    kind: Kind,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are written.
    written: usize,
    state: State,
    dropped_lines: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Lost,
}

/// A buffer that a burst has left behind is given back down to this.
const BUFFER_KEPT_BYTES: usize = 64 * 1024;

impl Sink {
    /// A sink that writes to `fd`.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let (fd, kind) = examine(fd, OFlags::WRONLY)?;
        Ok(Self {
            fd,
            kind,
            buffer: Vec::new(),
            written: 0,
            state: State::Open,
            dropped_lines: 0,
        })
    }

    /// What is appended here is written.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Bytes that wait to be written.
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.written
    }

    /// Whether nobody can read any more.
    pub fn is_lost(&self) -> bool {
        self.state == State::Lost
    }

    /// Appends whole lines, or drops and counts them when more than [`limits::LOG_UNREAD_BYTES_MAX`] bytes would wait.
    pub fn push_or_drop(&mut self, lines: &[u8]) {
        if self.is_lost() || self.pending() + lines.len() > limits::LOG_UNREAD_BYTES_MAX {
            self.dropped_lines += lines.iter().filter(|byte| **byte == b'\n').count() as u64;
        } else {
            self.buffer.extend_from_slice(lines);
        }
    }

    /// Lines that [`Sink::push_or_drop`] has dropped.
    pub fn dropped_lines(&self) -> u64 {
        self.dropped_lines
    }

    /// What a poll is to wait for.
    pub(super) fn poll_flags(&self) -> PollFlags {
        if self.pending() > 0 {
            PollFlags::OUT
        } else {
            PollFlags::empty()
        }
    }

    /// Writes what can be written without blocking, within a bound. When nobody can read any more the sink is lost, and what waits
    /// is forgotten.
    pub fn write_some(&mut self) {
        for _ in 0..limits::WRITES_PER_TURN_MAX {
            let rest = self.buffer.get(self.written..).unwrap_or_default();
            if rest.is_empty() || self.is_lost() {
                break;
            }
            match write(self.fd.as_fd(), self.kind, rest) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(written) => self.written += written,
                Err(Errno::INTR) => {}
                Err(_) => self.state = State::Lost,
            }
        }
        if self.is_lost() || self.pending() == 0 {
            self.buffer.clear();
            self.buffer.shrink_to(BUFFER_KEPT_BYTES);
            self.written = 0;
        } else if self.written > self.buffer.len() / 2 {
            self.buffer.drain(..self.written);
            self.written = 0;
        }
    }

    /// Writes what waits, and waits for its reader until then.
    pub fn write_until(&mut self, until: Instant) {
        loop {
            self.write_some();
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).ok();
            if self.pending() == 0 || left.is_zero() {
                return;
            }
            let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}

impl AsFd for Sink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One write that does not block; AGAIN where it would.
fn write(fd: BorrowedFd<'_>, kind: Kind, bytes: &[u8]) -> Result<usize, Errno> {
    let upto = |max: usize| bytes.get(..bytes.len().min(max)).unwrap_or_default();
    match kind {
        Kind::Pipe => {
            let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
            poll(
                &mut fds,
                Some(&Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                }),
            )?;
            // An error is found by the write.
            if fds.iter().all(|fd| fd.revents().is_empty()) {
                return Err(Errno::AGAIN);
            }
            rustix::io::write(fd, upto(limits::PIPE_WRITE_BYTES_MAX))
        }
        Kind::Socket => rustix::net::send(
            fd,
            upto(limits::WRITE_BYTES_MAX),
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        ),
        Kind::Terminal | Kind::File | Kind::Other => {
            rustix::io::write(fd, upto(limits::WRITE_BYTES_MAX))
        }
    }
}
