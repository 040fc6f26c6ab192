//! SIGTERM and SIGINT as bytes in a socket each, which the poll sees like any other input. No thread, nothing done in a handler
//! but one write. SIGPIPE is ignored by the Rust runtime from the start.
//!
//! Whether a signal is blocked or ignored is inherited. A parent that blocks SIGTERM to read it from a signalfd has not asked its
//! children to be deaf: they listen and unblock, whatever they were given.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use nix::sys::signal::{SigSet, Signal as Number};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use crate::worker::Signal;

/// The reading ends.
pub(super) struct Signals {
    terminate: UnixStream,
    interrupt: UnixStream,
}

impl Signals {
    /// Begins to listen.
    pub(super) fn listen() -> io::Result<Self> {
        let signals = Self {
            terminate: register(SIGTERM)?,
            interrupt: register(SIGINT)?,
        };
        // Only now: one that waits already would end the process.
        SigSet::from_iter([Number::SIGTERM, Number::SIGINT]).thread_unblock()?;
        Ok(signals)
    }

    pub(super) fn terminate(&self) -> &UnixStream {
        &self.terminate
    }

    pub(super) fn interrupt(&self) -> &UnixStream {
        &self.interrupt
    }

    /// Appends the signals that have come, one entry each.
    pub(super) fn take(&mut self, signals: &mut Vec<Signal>) {
        for (stream, signal) in [
            (&mut self.terminate, Signal::Terminate),
            (&mut self.interrupt, Signal::Interrupt),
        ] {
            let mut bytes = [0u8; 16];
            let came = stream.read(&mut bytes).unwrap_or(0);
            signals.extend(std::iter::repeat_n(signal, came));
        }
    }
}

fn register(signal: i32) -> io::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    // Ours alone, so the flag is nobody else's business.
    reader.set_nonblocking(true)?;
    pipe::register(signal, writer)?;
    Ok(reader)
}
