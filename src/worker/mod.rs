//! The worker as a state machine: lines and time go in, events come out. It reads no clock, no descriptor and no environment.
//!
//! Whoever drives it calls [`Worker::handle_line`] for each line, [`Worker::tick`] when time has passed, [`Worker::step`] for one
//! bounded piece of work while [`Worker::wants_work`], and takes the events with [`Worker::poll_event`] in between. `generate`
//! requests run one at a time, first in, first out; everything else is answered between the pieces of their work.

mod chat;
mod config;
mod controls;
mod counters;
mod form;
mod generate;
mod lifecycle;
mod loading;
mod outcome;
mod prompt;
mod prompt_scores;
mod queue;
mod report;
mod requests;
mod run;
mod side;
mod state;

pub use config::{Clock, ClockMode, Config};
pub use lifecycle::{Connection, Ending, Flush, Signal};
pub use loading::load_error;

use std::collections::VecDeque;
use std::time::Instant;

use worker_orcd_protocol::{ErrorObject, Id, MethodResult, Notification, Outgoing, limits as wire};

use crate::load::Load;
use crate::log::Log;
use crate::state::{DiskStates, StateStore};
use counters::Counters;
use generate::Active;
use lifecycle::{Drain, Input, Stage};
use queue::Job;
use side::SideJob;

/// One worker: one model, one device, one request at a time.
pub struct Worker {
    config: Config,
    states: Box<dyn StateStore>,
    log: Log,
    stage: Stage,
    /// `generate` requests that wait.
    queue: VecDeque<Job>,
    /// The `generate` that runs. Never `Some` before the model is loaded.
    active: Option<Active>,
    /// Requests that the host alone answers, piece by piece, beside the `generate` that runs.
    side: VecDeque<SideJob>,
    /// Who works next when both have work.
    turn: Turn,
    /// Bytes of the lines of all requests that wait.
    queued_bytes: usize,
    seeds_drawn: u64,
    input: Input,
    drain: Option<Drain>,
    /// `shutdown` requests to be answered when all is drained.
    shutdowns: Vec<Id>,
    terminate_signals: u32,
    ending: Option<Ending>,
    counters: Counters,
    events: VecDeque<Outgoing>,
}

/// Who works next when both have work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Generate,
    Side,
}

/// How much output waits for its reader, and what that stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Nothing.
    None,
    /// No more output is made but answers: the work pauses.
    PauseWork,
    /// No more input is read.
    PauseInput,
}

impl Pressure {
    /// The pressure of `unread` bytes of output.
    pub fn of(unread: usize) -> Self {
        if unread >= wire::OUTPUT_PAUSE_INPUT_BYTES {
            Pressure::PauseInput
        } else if unread >= wire::OUTPUT_PAUSE_DECODE_BYTES {
            Pressure::PauseWork
        } else {
            Pressure::None
        }
    }
}

impl Worker {
    /// A worker that is about to load its model.
    pub fn new(config: Config, load: Box<dyn Load>, now: Instant) -> Self {
        let log = Log::new(config.log_level, config.log_format);
        let mut worker = Self {
            config,
            states: Box::new(DiskStates),
            log,
            stage: Stage::loading(load, now),
            queue: VecDeque::new(),
            active: None,
            side: VecDeque::new(),
            turn: Turn::Generate,
            queued_bytes: 0,
            seeds_drawn: 0,
            input: Input::Open,
            drain: None,
            shutdowns: Vec::new(),
            terminate_signals: 0,
            ending: None,
            counters: Counters::default(),
            events: VecDeque::new(),
        };
        worker.log_startup(now);
        worker
    }

    /// Puts saved states somewhere else than on the disk.
    pub fn with_states(mut self, states: Box<dyn StateStore>) -> Self {
        self.states = states;
        self
    }

    /// Puts away some of what the load has left, when there is nothing else to do.
    fn tidy(&mut self) {
        if let Stage::Serving(serving) = &mut self.stage {
            serving.is_untidy = serving.is_untidy && serving.device.tidy();
        }
    }

    /// Does one piece of work, which ends at about `until`. What the device has done is told by the next call, which then
    /// comes with the time of its end.
    pub fn step(&mut self, now: Instant, until: Instant) {
        if self.ending.is_some() {
            return;
        }
        match (&self.stage, self.turn) {
            (Stage::Loading(_), _) => self.load_piece(now, until),
            (Stage::Serving(_), turn) => {
                let side = !self.side.is_empty();
                let generate = self.active.is_some() || !self.queue.is_empty();
                if side && (turn == Turn::Side || !generate || self.has_state_work()) {
                    self.turn = Turn::Generate;
                    self.side_piece(now);
                } else if generate {
                    self.turn = Turn::Side;
                    self.generate_piece(now, until);
                } else {
                    self.tidy();
                }
            }
            (Stage::Gone, _) => {}
        }
        self.settle(now);
    }

    /// Whether the device has done something that only waits for the time of its end, and nothing else waits for its turn: then the next
    /// call of [`Worker::step`] is short, and whoever drives it need not look at anything else before.
    pub fn has_landed(&self) -> bool {
        let landed = self.active.as_ref().is_some_and(Active::has_landed);
        landed && self.side.is_empty() && self.events.is_empty() && self.ending.is_none()
    }

    /// Ends what is out of time. To be called whenever time may have passed, at the latest at [`Worker::deadline`].
    pub fn tick(&mut self, now: Instant) {
        if self.ending.is_some() {
            return;
        }
        self.end_what_is_late(now);
        self.end_late_drain(now);
        self.check_residency(now);
        self.settle(now);
    }

    /// When [`Worker::tick`] has something to do at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let jobs = self
            .queue
            .iter()
            .chain(self.active.as_ref().map(|active| &active.job));
        let drain = self.drain.as_ref().and_then(|drain| drain.deadline);
        jobs.filter_map(|job| job.deadline).chain(drain).min()
    }

    /// The next event for stdout.
    pub fn poll_event(&mut self) -> Option<Outgoing> {
        self.events.pop_front()
    }

    /// Whether [`Worker::step`] has something to do under this pressure. A load goes on under any.
    pub fn wants_work(&self, pressure: Pressure) -> bool {
        if self.ending.is_some() {
            return false;
        }
        match self.stage {
            Stage::Loading(_) => true,
            Stage::Serving(ref serving) => {
                let work = self.active.is_some() || !self.queue.is_empty() || !self.side.is_empty();
                (work || serving.is_untidy) && pressure == Pressure::None
            }
            Stage::Gone => false,
        }
    }

    /// `Some` when nothing more is to be done but to write what is left and exit.
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// Log lines that are to be written now.
    pub fn take_log(&mut self) -> Option<Vec<u8>> {
        self.log.take()
    }

    /// Notes that log lines were dropped since nobody read them; the number since the start.
    pub fn note_dropped_log_lines(&mut self, lines: u64) {
        self.counters.log_lines_dropped = lines;
    }

    fn answer(&mut self, id: Id, result: MethodResult) {
        self.events.push_back(Outgoing::Result { id, result });
    }

    fn answer_error(&mut self, id: Option<Id>, error: ErrorObject) {
        self.events.push_back(Outgoing::Error { id, error });
    }

    fn notify(&mut self, notification: Notification) {
        self.events.push_back(Outgoing::Notification(notification));
    }
}
