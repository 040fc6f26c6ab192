//! Cuts bytes into lines, however they come.

use crate::limits;

/// A line as the [`LineReader`] found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A line without its line end; not blank.
    Complete(&'a [u8]),
    /// A line longer than [`limits::LINE_BYTES_MAX`]; it was not kept.
    TooLong {
        /// Its length without its line end.
        bytes: u64,
    },
}

/// Cuts bytes into lines. After each `push`, `next` is called until it says `None`; the reader then holds one
/// unfinished line of at most [`limits::LINE_BYTES_MAX`] bytes. A CR before the LF and blank lines are ignored.
#[derive(Debug, Default)]
pub struct LineReader {
    /// What was pushed and not yet given out.
    buffer: Vec<u8>,
    /// Where the next line begins.
    start: usize,
    /// Where the search for its LF goes on.
    scanned: usize,
    /// Bytes dropped of a line that is too long.
    dropped: u64,
}

/// A buffer that a long line has left behind is given back down to this.
const BUFFER_KEPT_BYTES: usize = 256 * 1024;

impl LineReader {
    /// An empty reader.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes, cut anywhere.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.buffer.shrink_to(BUFFER_KEPT_BYTES);
            self.scanned -= self.start;
            self.start = 0;
        } else if self.start > self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next line that has come to its end.
    #[allow(
        clippy::should_implement_trait,
        reason = "an Iterator cannot lend its lines"
    )]
    pub fn next(&mut self) -> Option<Line<'_>> {
        loop {
            let found = self.buffer[self.scanned..]
                .iter()
                .position(|&byte| byte == b'\n');
            let Some(length) = found else {
                self.scanned = self.buffer.len();
                self.drop_overlong();
                return None;
            };
            let end = self.scanned + length;
            let range = self.start..without_cr(&self.buffer, self.start, end);
            self.start = end + 1;
            self.scanned = self.start;
            let dropped = std::mem::take(&mut self.dropped);
            if dropped > 0 || range.len() > limits::LINE_BYTES_MAX {
                return Some(Line::TooLong {
                    bytes: dropped + range.len() as u64,
                });
            }
            if !is_blank(&self.buffer[range.clone()]) {
                return Some(Line::Complete(&self.buffer[range]));
            }
        }
    }

    /// At the end of input, after `next` has said `None`: a last line without LF.
    pub fn finish(&mut self) -> Option<Line<'_>> {
        let range = self.start..without_cr(&self.buffer, self.start, self.buffer.len());
        self.start = self.buffer.len();
        self.scanned = self.start;
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 || range.len() > limits::LINE_BYTES_MAX {
            return Some(Line::TooLong {
                bytes: dropped + range.len() as u64,
            });
        }
        (!is_blank(&self.buffer[range.clone()])).then(|| Line::Complete(&self.buffer[range]))
    }

    /// Bytes held that were not given out yet.
    pub fn pending_bytes(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Bytes of memory held.
    pub fn capacity_bytes(&self) -> usize {
        self.buffer.capacity()
    }

    /// Drops what has come of a line that can only be too long. Its last byte is kept, since it may be the CR of its end.
    fn drop_overlong(&mut self) {
        let kept = self.buffer.len() - self.start;
        let limit = if self.dropped > 0 {
            1
        } else {
            limits::LINE_BYTES_MAX + 1
        };
        if kept > limit {
            let last = self.buffer[self.buffer.len() - 1];
            self.dropped += kept as u64 - 1;
            self.buffer.clear();
            self.buffer.push(last);
            self.start = 0;
            self.scanned = 1;
        }
    }
}

fn without_cr(buffer: &[u8], start: usize, end: usize) -> usize {
    if end > start && buffer[end - 1] == b'\r' {
        end - 1
    } else {
        end
    }
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r'))
}
