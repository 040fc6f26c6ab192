//! Lines from stdin for a program that also listens to a worker: read when poll(2) says so, never before.
//!
//! stdin is shared with whoever started us, so its flags are left alone and it is only read when there is something.

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, bail};
use worker_orcd_protocol::codec::{Line, LineReader};

/// A terminal gives a line of at most this many bytes and drops the rest in silence.
const TERMINAL_LINE_BYTES: usize = 4095;

/// stdin, line by line. Blank lines are left out.
#[derive(Debug)]
pub struct StdinLines {
    stdin: io::Stdin,
    terminal: bool,
    reader: LineReader,
    lines: VecDeque<Result<String>>,
    ended: bool,
}

impl StdinLines {
    /// Reads nothing yet.
    pub fn new() -> Self {
        let stdin = io::stdin();
        let terminal = stdin.is_terminal();
        StdinLines {
            stdin,
            terminal,
            reader: LineReader::new(),
            lines: VecDeque::new(),
            ended: false,
        }
    }

    /// Whether a person types.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// To be polled while [`StdinLines::next`] has nothing and stdin has not [ended](StdinLines::ended).
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stdin.as_fd()
    }

    /// A line that has been read. A line that cannot be taken as it is is an error, and the next one is fine again.
    #[allow(clippy::should_implement_trait, reason = "None says: read more")]
    pub fn next(&mut self) -> Option<Result<String>> {
        self.lines.pop_front()
    }

    /// Whether all is read.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Reads once; to be called when the descriptor is readable.
    ///
    /// # Errors
    /// What the system says.
    pub fn read(&mut self) -> Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        let count = match rustix::io::read(self.stdin.as_fd(), &mut buffer) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return Ok(()),
            // What a terminal says that is gone.
            Err(rustix::io::Errno::IO) if self.terminal => 0,
            Err(error) => return Err(error).context("cannot read stdin"),
        };
        self.reader.push(&buffer[..count]);
        while let Some(line) = self.reader.next() {
            self.lines.push_back(text(line, self.terminal));
        }
        if count == 0 {
            self.ended = true;
            self.lines
                .extend(self.reader.finish().map(|line| text(line, self.terminal)));
        }
        Ok(())
    }
}

impl Default for StdinLines {
    fn default() -> Self {
        Self::new()
    }
}

fn text(line: Line<'_>, terminal: bool) -> Result<String> {
    let bytes = match line {
        Line::Complete(bytes) => bytes,
        Line::TooLong { bytes } => {
            bail!("a line of {bytes} bytes is longer than a request may be; it was not sent")
        }
    };
    if terminal && bytes.len() >= TERMINAL_LINE_BYTES {
        bail!(
            "a terminal cuts lines at {TERMINAL_LINE_BYTES} bytes, so this one was not sent; put it in a file: orcd ask - < FILE"
        );
    }
    let text = std::str::from_utf8(bytes).context("a line is not UTF-8, so it was not sent")?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_line_is_refused_on_a_terminal_only() {
        let cut = vec![b'x'; TERMINAL_LINE_BYTES];
        assert!(text(Line::Complete(&cut), true).is_err());
        assert_eq!(
            text(Line::Complete(&cut), false).unwrap().len(),
            TERMINAL_LINE_BYTES
        );
        assert!(text(Line::Complete(b"\xff"), false).is_err());
    }
}
