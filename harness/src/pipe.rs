//! A child process that speaks in lines: what is sent, what comes, and how it ends, all from one poll(2).
//!
//! Both ends of a pipe can fill up at once, and a client that then writes without reading never returns. Here nothing
//! blocks but [`Pipe::wait`], which writes what waits to be written whenever it reads.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use worker_orcd_protocol::codec::{Line, LineReader};

/// Bytes read at a time.
const READ_BYTES: usize = 64 * 1024;

/// A child with a pipe to its stdin and one from its stdout. It is killed when this is dropped.
#[derive(Debug)]
pub struct Pipe {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    reader: LineReader,
    /// What was sent and is not yet written.
    outbox: Vec<u8>,
    /// Whether stdin is closed once the outbox is empty.
    closing: bool,
    /// Whether the child's stdout has come to its end.
    ended: bool,
    exit: Option<ExitStatus>,
}

/// What [`Pipe::wait`] came back for.
#[derive(Debug, PartialEq, Eq)]
pub enum Wake {
    /// The child said a line; without its line end.
    Line(Vec<u8>),
    /// The descriptor with this index among the `others` has something to read, or has come to its end.
    Other(usize),
    /// The time is over.
    TimedOut,
    /// The child's stdout has come to its end: nothing more follows.
    Closed,
}

impl Pipe {
    /// Starts the command with pipes for stdin and stdout, in a process group of its own: a Ctrl-C in the terminal is
    /// for the program that owns the conversation, and it decides what the child hears of it.
    ///
    /// # Errors
    /// What the system says, of which "no such file" is likeliest.
    pub fn spawn(mut command: Command) -> io::Result<Pipe> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn()?;
        let taken = child.stdin.take().zip(child.stdout.take());
        let (stdin, stdout) = taken.ok_or_else(|| io::Error::other("the child has no pipes"))?;
        // These are our own ends of the pipes; the child's ends have flags of their own.
        set_nonblocking(stdin.as_fd())?;
        set_nonblocking(stdout.as_fd())?;
        Ok(Pipe {
            child,
            stdin: Some(stdin),
            stdout,
            reader: LineReader::new(),
            outbox: Vec::new(),
            closing: false,
            ended: false,
            exit: None,
        })
    }

    /// The child's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a line (given without its line end). What the child does not take at once is kept and written by
    /// [`Pipe::wait`].
    ///
    /// # Errors
    /// `BrokenPipe` when stdin is closed, by whichever side.
    pub fn send(&mut self, line: &[u8]) -> io::Result<()> {
        self.send_bytes(&[line, b"\n"].concat())
    }

    /// Sends bytes as they are; otherwise as [`Pipe::send`].
    ///
    /// # Errors
    /// As [`Pipe::send`].
    pub fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.stdin.is_none() || self.closing {
            return Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the worker's stdin is closed",
            ));
        }
        self.outbox.extend_from_slice(bytes);
        self.flush()
    }

    /// Closes the child's stdin when all that was sent is written.
    ///
    /// # Errors
    /// What the system says of the write.
    pub fn close_stdin(&mut self) -> io::Result<()> {
        self.closing = true;
        self.flush()
    }

    /// Waits for a line, for one of `others` to be readable, or until `until` (`None`: without end). `others` come first.
    ///
    /// # Errors
    /// What the system says, and `InvalidData` for a line longer than the protocol allows.
    pub fn wait(&mut self, others: &[BorrowedFd<'_>], until: Option<Instant>) -> io::Result<Wake> {
        loop {
            if let Some(index) = first_readable(others)? {
                return Ok(Wake::Other(index));
            }
            if let Some(line) = self.next_line()? {
                return Ok(Wake::Line(line));
            }
            if self.ended {
                return Ok(Wake::Closed);
            }
            if !self.poll(others, until)? {
                return Ok(Wake::TimedOut);
            }
            self.flush()?;
            self.read()?;
        }
    }

    /// Waits for the child to end, at most until `until` (`None`: without end). What it says meanwhile is not read.
    ///
    /// # Errors
    /// What the system says.
    pub fn wait_exit(&mut self, until: Option<Instant>) -> io::Result<Option<ExitStatus>> {
        while self.exit.is_none() {
            self.exit = self.child.try_wait()?;
            if self.exit.is_some() {
                break;
            }
            let handle = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
            if !poll_until(&mut [PollFd::new(&handle, PollFlags::IN)], until)? {
                return Ok(None);
            }
        }
        Ok(self.exit)
    }

    /// Kills the child with SIGKILL and waits for its end. A child that has ended is left in peace.
    pub fn kill(&mut self) {
        if self.exit.is_none() {
            // Both fail when it has ended, which is what is wanted.
            let _ = self.child.kill();
            self.exit = self.child.wait().ok();
        }
    }

    /// The next whole line that has been read; at the end of output also one without a line end.
    fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = match self.reader.next() {
            Some(line) => Some(owned(line)),
            None if self.ended => self.reader.finish().map(owned),
            None => None,
        };
        line.transpose()
    }

    /// Whether anything happened before `until`.
    fn poll(&self, others: &[BorrowedFd<'_>], until: Option<Instant>) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(&self.stdout, PollFlags::IN)];
        if let Some(stdin) = self.stdin.as_ref().filter(|_| !self.outbox.is_empty()) {
            fds.push(PollFd::new(stdin, PollFlags::OUT));
        }
        fds.extend(others.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        poll_until(&mut fds, until)
    }

    /// Reads what is there, at most [`READ_BYTES`].
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        match self.stdout.read(&mut buffer) {
            Ok(0) => self.ended = true,
            Ok(count) => self.reader.push(&buffer[..count]),
            Err(error) if is_later(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Writes what the pipe takes.
    fn flush(&mut self) -> io::Result<()> {
        while let Some(stdin) = self.stdin.as_mut().filter(|_| !self.outbox.is_empty()) {
            match stdin.write(&self.outbox) {
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(error) if is_later(&error) => return Ok(()),
                // The child no longer listens. What it still has to say, its last words among them, is read as usual.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    self.outbox.clear();
                    self.closing = true;
                }
                Err(error) => return Err(error),
            }
        }
        if self.closing {
            self.stdin = None;
        }
        Ok(())
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.kill();
    }
}

fn owned(line: Line<'_>) -> io::Result<Vec<u8>> {
    match line {
        Line::Complete(bytes) => Ok(bytes.to_vec()),
        Line::TooLong { bytes } => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "the worker sent a line of {bytes} bytes, which is longer than its protocol allows"
            ),
        )),
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?)
}

/// The first of these that has something to read or has come to its end.
fn first_readable(fds: &[BorrowedFd<'_>]) -> io::Result<Option<usize>> {
    let mut polled: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::new(fd, PollFlags::IN))
        .collect();
    poll_until(&mut polled, Some(Instant::now()))?;
    Ok(polled.iter().position(|fd| !fd.revents().is_empty()))
}

/// poll(2) with a point in time (`None`: without end); whether anything happened. A signal does not end it.
///
/// # Errors
/// What the system says.
pub fn poll_until(fds: &mut [PollFd<'_>], until: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // A wait that no timespec can hold is one without end.
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(fds, left.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
