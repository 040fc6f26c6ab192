//! What the person or program before us sees: answers on stdout, everything else on stderr.
//!
//! `println!` and `eprintln!` panic when the other end is gone. Here a reader that has seen enough (`orcd … | head -1`)
//! ends the program quietly, and a closed stderr is nobody's problem.

use std::fmt;
use std::io::{self, IsTerminal, Write};

/// Whoever read our stdout has gone: not a failure, there is just nobody left to talk to.
#[derive(Debug)]
pub struct StdoutClosed;

impl fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stdout is closed")
    }
}

impl std::error::Error for StdoutClosed {}

/// Writes `text` to stdout as it is and flushes it, so that an answer is seen as it comes.
///
/// # Errors
/// [`StdoutClosed`] when the reader has gone, otherwise what the system says (a full disk).
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        Err(error) => Err(anyhow::Error::new(error).context("cannot write to stdout")),
    }
}

/// Writes `text` and a line end to stdout; errors as [`print()`].
pub fn print_line(text: &str) -> anyhow::Result<()> {
    print(&format!("{text}\n"))
}

/// Writes `text` to stderr as it is. A stderr that takes nothing is ignored.
pub fn note(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr
        .write_all(text.as_bytes())
        .and_then(|()| stderr.flush());
}

/// Writes `text` and a line end to stderr, as [`note`].
pub fn note_line(text: &str) {
    note(&format!("{text}\n"));
}

/// `text` in faint letters where stderr is a terminal that shows them; as it is otherwise.
pub fn dim(text: &str) -> String {
    let plain = !io::stderr().is_terminal()
        || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if plain {
        text.to_owned()
    } else {
        format!("\x1b[2m{text}\x1b[0m")
    }
}

/// What a model writes may hold escape sequences that would change the terminal; on a terminal they are shown as U+FFFD.
/// Line ends and tabs stay.
pub fn harmless(text: &str) -> String {
    let shown = |c: char| {
        if c.is_control() && c != '\n' && c != '\t' {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    text.chars().map(shown).collect()
}

/// `bytes` as a person reads it: "98.4 MB".
pub fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_cannot_move_the_cursor() {
        assert_eq!(
            harmless("a\x1b[2Jb\u{9b}c\r\n\tü"),
            "a\u{fffd}[2Jb\u{fffd}c\u{fffd}\n\tü"
        );
    }
}
