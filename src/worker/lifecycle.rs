//! From the load to the exit: loading, the end of input, draining, signals, and what ends the process.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use worker_orcd_protocol::{
    ErrorCode, ErrorDetails, ErrorObject, Exit, Fatal, MethodResult, Notification, ShutdownResult,
};

use super::Worker;
use super::loading::Loading;
use crate::device::{Device, DeviceError, PAGE_TOKENS};
use crate::grammar::Vocabulary;
use crate::limits;
use crate::load::ModelFacts;
use crate::log::Level;
use crate::pages::PagePool;
use crate::prefix::PrefixCache;
use crate::text::{ChatTemplate, Tokenizer};

/// How far the worker's life is.
pub(super) enum Stage {
    Loading(Loading),
    Serving(Box<Serving>),
    /// The load or the device has failed; only the exit is left.
    Gone,
}

/// A model in place.
pub(super) struct Serving {
    pub(super) device: Box<dyn Device>,
    pub(super) tokenizer: Arc<Tokenizer>,
    /// What grammars are compiled for; made when the first one comes.
    pub(super) vocabulary: Option<Vocabulary>,
    pub(super) template: Option<Rc<ChatTemplate>>,
    pub(super) model: ModelFacts,
    pub(super) pool: PagePool,
    pub(super) prefixes: PrefixCache,
    /// When it was last looked whether the model lies where it belongs.
    pub(super) resident_at: Instant,
    /// Whether the load has left something behind that the device still has to put away.
    pub(super) is_untidy: bool,
}

impl Serving {
    /// Tokens that a sequence can come to which has at least `least`: the context, or what the pool holds where that is less.
    pub(super) fn fits(&self, least: usize) -> usize {
        let pool = self.pool.total().saturating_mul(PAGE_TOKENS);
        self.model.context_length.min(pool.max(least))
    }
}

/// Whether more input can come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    Open,
    Ended,
}

/// The worker takes nothing new.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    /// When what still runs is cancelled; `None` beyond what the clock can tell.
    pub(super) deadline: Option<Instant>,
}

/// What somebody told the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: drain; the second one: exit at once.
    Terminate,
    /// SIGINT: cancel everything and exit.
    Interrupt,
}

/// Who is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Nobody reads stdout any more.
    Stdout,
    /// The process that is watched has ended.
    Parent,
    /// Stdin cannot be read.
    Stdin,
}

/// How the process is to end, once what was said has been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// What the exit code says.
    pub exit: Exit,
    /// How long to wait for a reader.
    pub flush: Flush,
}

/// How long to wait for a reader before the exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Until everything is written or nobody reads any more.
    Complete,
    /// Until then.
    Until(Instant),
}

impl Flush {
    /// The shorter patience of two.
    fn at_most(self, until: Instant) -> Self {
        match self {
            Flush::Complete => Flush::Until(until),
            Flush::Until(other) => Flush::Until(other.min(until)),
        }
    }
}

impl Worker {
    /// The device can do nothing more: everything ends with the same error.
    pub(super) fn device_lost(&mut self, now: Instant, reason: &str) {
        self.fatal(
            now,
            Exit::DeviceLost,
            device_error(reason, &self.config.device_name),
        );
    }

    /// Looks now and then whether the model still lies in the device's own memory; without it there is nothing to serve.
    pub(super) fn check_residency(&mut self, now: Instant) {
        let Stage::Serving(serving) = &mut self.stage else {
            return;
        };
        if now.saturating_duration_since(serving.resident_at) < limits::RESIDENCY_INTERVAL {
            return;
        }
        serving.resident_at = now;
        match serving.device.is_resident() {
            Ok(true) => {}
            Ok(false) => self.device_lost(now, "the model is no longer in the device's own memory"),
            Err(DeviceError::Step(reason) | DeviceError::Lost(reason)) => {
                self.device_lost(now, &reason)
            }
        }
    }

    /// Everything that runs or waits is answered with the error, and then the worker ends.
    pub(super) fn fatal(&mut self, now: Instant, exit: Exit, error: ErrorObject) {
        self.fail_everything(now, &error);
        self.stage = Stage::Gone;
        self.exit_with_fatal(now, exit, error, limits::EXIT_FLUSH);
    }

    fn exit_with_fatal(&mut self, now: Instant, exit: Exit, error: ErrorObject, flush: Duration) {
        self.log_error(now, None, &error);
        self.notify(Notification::Fatal(Fatal { error }));
        self.exit_now(now, exit, Flush::Until(now + flush));
    }

    fn exit_now(&mut self, now: Instant, exit: Exit, flush: Flush) {
        self.ending = Some(Ending { exit, flush });
        self.record(
            now,
            Level::Info,
            "shutdown",
            &[("exit_code", exit.code().into())],
        );
        self.log.flush();
    }

    /// Says that no more input comes: what was read is finished, without a time limit, and the process ends.
    pub fn end_of_input(&mut self, now: Instant) {
        self.input = Input::Ended;
        self.settle(now);
    }

    /// Takes a signal.
    pub fn signal(&mut self, now: Instant, signal: Signal) {
        match signal {
            Signal::Terminate => {
                self.terminate_signals = self.terminate_signals.saturating_add(1);
                if self.terminate_signals > 1 {
                    let error = shutting_down("a second SIGTERM ended the worker at once");
                    self.end_at_once(now, Exit::Terminated, error, limits::KILLED_FLUSH);
                } else if let Some(ending) = &mut self.ending {
                    ending.flush = ending.flush.at_most(now + limits::EXIT_FLUSH);
                } else {
                    self.begin_drain(now);
                    self.settle(now);
                }
            }
            Signal::Interrupt => {
                let error = shutting_down("SIGINT ended the worker");
                self.end_at_once(now, Exit::Interrupted, error, limits::EXIT_FLUSH);
            }
        }
    }

    /// Notes that somebody is gone without whom there is nothing to do.
    pub fn connection_lost(&mut self, now: Instant, connection: Connection) {
        let (message, flush) = match connection {
            Connection::Stdout => ("nobody reads stdout any more", Duration::ZERO),
            Connection::Parent => ("the parent process is gone", limits::KILLED_FLUSH),
            Connection::Stdin => ("stdin cannot be read", limits::EXIT_FLUSH),
        };
        self.end_at_once(now, Exit::PipeLost, shutting_down(message), flush);
    }

    /// Cancels everything and exits, though the exit may have been decided already.
    fn end_at_once(&mut self, now: Instant, exit: Exit, error: ErrorObject, flush: Duration) {
        if let Some(ending) = self
            .ending
            .as_mut()
            .filter(|ending| ending.exit != Exit::Done)
        {
            // There is a fatal already, and nothing may follow it; only the patience gets shorter.
            ending.flush = ending.flush.at_most(now + flush);
            return;
        }
        self.cancel_everything(now);
        self.answer_shutdowns();
        self.exit_with_fatal(now, exit, error, flush);
    }

    /// Takes nothing new from now on. A load is given up.
    pub(super) fn begin_drain(&mut self, now: Instant) {
        if self.drain.is_none() {
            self.drain = Some(Drain {
                deadline: now.checked_add(self.config.drain),
            });
            self.record(
                now,
                Level::Info,
                "drain",
                &[("queue_depth", self.queue.len().into())],
            );
        }
        if let Stage::Loading(_) = self.stage {
            self.cancel_everything(now);
        }
    }

    /// A drain that takes too long ends as if everything had been cancelled.
    pub(super) fn end_late_drain(&mut self, now: Instant) {
        let deadline = self.drain.as_ref().and_then(|drain| drain.deadline);
        if deadline.is_some_and(|deadline| deadline <= now) {
            self.cancel_everything(now);
        }
    }

    /// Decides the exit when nothing is left to do and nothing more can come.
    pub(super) fn settle(&mut self, now: Instant) {
        let is_idle = self.active.is_none() && self.queue.is_empty() && self.side.is_empty();
        if self.ending.is_some() || !is_idle {
            return;
        }
        let ends = match (&self.stage, &self.drain, self.input) {
            (Stage::Loading(_) | Stage::Serving(_), Some(_), _) => true,
            // The load is finished first: whether a model loads is worth an exit code.
            (Stage::Serving(_), None, Input::Ended) => true,
            (Stage::Loading(_), None, Input::Ended | Input::Open) => false,
            (Stage::Serving(_), None, Input::Open) => false,
            (Stage::Gone, _, _) => false,
        };
        if !ends {
            return;
        }
        self.answer_shutdowns();
        let flush = match self.drain {
            None => Flush::Complete,
            Some(Drain { deadline }) => {
                let least = now + limits::EXIT_FLUSH;
                Flush::Until(deadline.map_or(least, |deadline| deadline.max(least)))
            }
        };
        self.exit_now(now, Exit::Done, flush);
    }

    fn answer_shutdowns(&mut self) {
        for id in std::mem::take(&mut self.shutdowns) {
            self.answer(id, MethodResult::Shutdown(ShutdownResult {}));
        }
    }
}

/// Milliseconds as the log writes them.
pub(super) fn rounded(ms: f64) -> serde_json::Value {
    ((ms * 1000.0).round() / 1000.0).into()
}

fn shutting_down(message: &str) -> ErrorObject {
    ErrorObject::new(ErrorCode::ShuttingDown, message)
}

/// What a device's end is called on the wire.
pub(super) fn device_error(reason: &str, device: &str) -> ErrorObject {
    ErrorObject::new(ErrorCode::CudaError, reason).with_details(ErrorDetails {
        device: Some(device.to_owned()),
        ..Default::default()
    })
}
