//! The loop: one poll of all descriptors, then at most so much input, then at most one piece of work.

use std::time::{Duration, Instant};

use worker_orcd::io::{Found, Io, Read, Want};
use worker_orcd::limits;
use worker_orcd::worker::{Connection, Ending, Flush, Pressure, Worker};
use worker_orcd_protocol::codec::{LineReader, encode_line};
use worker_orcd_protocol::{ErrorCode, ErrorObject, Exit, Fatal, Notification, Outgoing};

/// The process: its descriptors, its worker, and the input between them.
pub struct Process {
    /// The descriptors.
    pub io: Io,
    /// The state machine.
    pub worker: Worker,
    lines: LineReader,
    input: Input,
    buffer: Vec<u8>,
}

/// How it stands with stdin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    /// All whole lines are taken; more bytes are needed.
    NeedsBytes,
    /// There may be whole lines that are not taken yet.
    HasLines,
    /// As above, and stdin has ended.
    HasLastLines,
    /// The worker knows that nothing more comes.
    Ended,
}

impl Process {
    /// A process that is about to run.
    pub fn new(io: Io, worker: Worker) -> Self {
        let buffer = vec![0; limits::READ_BYTES_MAX];
        Self {
            io,
            worker,
            lines: LineReader::new(),
            input: Input::NeedsBytes,
            buffer,
        }
    }

    /// Takes these lines for all the input there is, instead of stdin.
    pub fn hear_only(&mut self, lines: Vec<u8>) {
        self.lines.push(&lines);
        self.input = Input::HasLastLines;
    }

    /// Runs until the worker has come to its end, and says which.
    pub fn run(&mut self) -> Exit {
        loop {
            if let Some(ending) = self.worker.ending()
                && self.is_flushed(ending)
            {
                self.flush_log(ending);
                return ending.exit;
            }
            let found = match self.io.poll(self.want(), self.timeout()) {
                Ok(found) => found,
                Err(_) => Found {
                    stdout_lost: true,
                    ..Found::default()
                },
            };
            let now = Instant::now();
            self.hear(now, &found);
            self.take_input(now, &found);
            self.worker.tick(now);
            self.write(now);
            if self.worker.wants_work(self.pressure()) {
                self.work();
            }
        }
    }

    /// One piece of work, and what follows from it at once: what the device has done is looked at, and it gets its next piece, before
    /// anything is written.
    fn work(&mut self) {
        loop {
            let now = Instant::now();
            self.worker.step(now, now + limits::SLICE);
            if !self.worker.has_landed() {
                return self.write(now);
            }
        }
    }

    /// Says what can still be said after a panic. The worker's state is not to be trusted any more, so nobody asks it.
    pub fn after_panic(&mut self, place: String) -> Exit {
        let error = ErrorObject::new(
            ErrorCode::Internal,
            format!("a bug at {place}; please report it"),
        );
        let event = Outgoing::Notification(Notification::Fatal(Fatal { error }));
        encode_line(&event, self.io.stdout.buffer());
        if let Some(lines) = self.worker.take_log_after_panic(Instant::now(), &place) {
            self.io.stderr.push_or_drop(&lines);
        }
        let ending = Ending {
            exit: Exit::Bug,
            flush: Flush::Until(Instant::now() + limits::EXIT_FLUSH),
        };
        loop {
            self.io.stdout.write_some();
            self.io.stderr.write_some();
            let waits = Some(ending.flush).and_then(|flush| time_left(flush, Instant::now()));
            let is_written = self.io.stdout.pending() == 0 && self.io.stderr.pending() == 0;
            if is_written
                || waits == Some(Duration::ZERO)
                || self.io.poll(Want::NoInput, waits).is_err()
            {
                return ending.exit;
            }
        }
    }

    /// Tells the worker of signals, and of who is gone.
    fn hear(&mut self, now: Instant, found: &Found) {
        for signal in &found.signals {
            self.worker.signal(now, *signal);
        }
        if found.stdout_lost {
            self.lose(now, Connection::Stdout);
        }
        if found.parent_lost {
            self.lose(now, Connection::Parent);
        }
    }

    fn lose(&mut self, now: Instant, connection: Connection) {
        self.worker.connection_lost(now, connection);
    }

    /// Reads once where something has come, and gives lines to the worker.
    fn take_input(&mut self, now: Instant, found: &Found) {
        if found.input && self.want() == Want::Input {
            match self.io.stdin.read(&mut self.buffer) {
                Ok(Read::Bytes(read)) => {
                    self.lines.push(self.buffer.get(..read).unwrap_or_default());
                    self.input = Input::HasLines;
                }
                Ok(Read::Nothing) => {}
                Ok(Read::End) => self.input = Input::HasLastLines,
                Err(_) => self.lose(now, Connection::Stdin),
            }
        }
        for _ in 0..limits::LINES_PER_TURN_MAX {
            if !self.takes_lines() {
                break;
            }
            self.take_line(now);
        }
    }

    fn take_line(&mut self, now: Instant) {
        match (self.lines.next(), self.input) {
            (Some(line), _) => self.worker.handle_line(now, line),
            (None, Input::HasLines) => self.input = Input::NeedsBytes,
            (None, Input::HasLastLines) => {
                if let Some(line) = self.lines.finish() {
                    self.worker.handle_line(now, line);
                }
                self.worker.end_of_input(now);
                self.input = Input::Ended;
            }
            (None, Input::NeedsBytes | Input::Ended) => {}
        }
        self.take_events();
    }

    /// Whether a line that is there is given to the worker now. What comes from a file waits until there is room for it.
    fn takes_lines(&self) -> bool {
        let has_lines = matches!(self.input, Input::HasLines | Input::HasLastLines);
        let has_room = !self.io.stdin.is_file() || self.worker.has_room();
        has_lines
            && has_room
            && self.worker.ending().is_none()
            && self.pressure() < Pressure::PauseInput
    }

    fn want(&self) -> Want {
        let open = self.worker.ending().is_none() && self.pressure() < Pressure::PauseInput;
        if open && self.input == Input::NeedsBytes {
            Want::Input
        } else {
            Want::NoInput
        }
    }

    fn pressure(&self) -> Pressure {
        Pressure::of(self.io.stdout.pending())
    }

    /// How long the poll may wait.
    fn timeout(&self) -> Option<Duration> {
        if let Some(ending) = self.worker.ending() {
            let waits = time_left(ending.flush, Instant::now());
            return if self.is_flushed(ending) {
                Some(Duration::ZERO)
            } else {
                waits
            };
        }
        if self.takes_lines() || self.worker.wants_work(self.pressure()) {
            return Some(Duration::ZERO);
        }
        let deadline = self.worker.deadline()?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// Writes what can be written at once.
    fn write(&mut self, now: Instant) {
        self.take_events();
        self.io.stdout.write_some();
        if self.io.stdout.is_lost() {
            self.lose(now, Connection::Stdout);
        }
        if let Some(lines) = self.worker.take_log() {
            self.io.stderr.push_or_drop(&lines);
        }
        self.io.stderr.write_some();
        self.worker
            .note_dropped_log_lines(self.io.stderr.dropped_lines());
    }

    fn take_events(&mut self) {
        while let Some(event) = self.worker.poll_event() {
            encode_line(&event, self.io.stdout.buffer());
        }
    }

    /// Gives a slow reader of the log a last chance, within the time that there is for the reader of stdout.
    fn flush_log(&mut self, ending: Ending) {
        let patience = Instant::now() + limits::EXIT_FLUSH;
        self.io.stderr.write_until(match ending.flush {
            Flush::Complete => patience,
            Flush::Until(until) => until.min(patience),
        });
    }

    /// Whether there is nothing left to wait for.
    fn is_flushed(&self, ending: Ending) -> bool {
        self.io.stdout.pending() == 0
            || time_left(ending.flush, Instant::now()) == Some(Duration::ZERO)
    }
}

/// How long a reader is waited for; `None` without end.
fn time_left(flush: Flush, now: Instant) -> Option<Duration> {
    match flush {
        Flush::Complete => None,
        Flush::Until(until) => Some(until.saturating_duration_since(now)),
    }
}
