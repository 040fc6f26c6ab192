//! What a worker is told at its start, and how it tells the time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::log::{Format, Level};

/// What a worker is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--worker-id`.
    pub worker_id: Option<String>,
    /// The process, for `ready`.
    pub pid: u32,
    /// What the model is called until it is loaded: the file's name.
    pub model_name: String,
    /// What the device is called until the model is loaded: `--device`.
    pub device_name: String,
    /// `generate` requests that may wait.
    pub queue_max: usize,
    /// `max_tokens` of a request that names none; `None` for what fits.
    pub max_tokens: Option<u32>,
    /// `timeout_ms` of a request that names none; `None` for no end.
    pub timeout_ms: Option<u64>,
    /// How long a drain may take.
    pub drain: Duration,
    /// Least important level of the log.
    pub log_level: Level,
    /// Form of the log.
    pub log_format: Format,
    /// Where the seeds of requests that name none come from.
    pub entropy: u64,
    /// How times are told.
    pub clock: Clock,
}

/// Whether the times that are told are the real ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ClockMode {
    /// Times are told as they are.
    Real,
    /// Every time and the process number are told as 0, the date is 1970-01-01, and seeds are drawn the same in every run. Deadlines are kept.
    Frozen,
}

/// Tells times. It is handed in and never asks anybody: `now` is always a parameter.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Whether the times are real.
    pub mode: ClockMode,
    /// When the process started.
    pub start: Instant,
    /// The same moment by the calendar.
    pub start_wall: SystemTime,
}

impl Clock {
    /// The calendar's time at `now`.
    pub fn wall(&self, now: Instant) -> SystemTime {
        match self.mode {
            ClockMode::Real => self.start_wall + now.saturating_duration_since(self.start),
            ClockMode::Frozen => UNIX_EPOCH,
        }
    }

    /// Milliseconds from `from` to `to`.
    pub fn ms(&self, from: Instant, to: Instant) -> f64 {
        match self.mode {
            ClockMode::Real => to.saturating_duration_since(from).as_secs_f64() * 1000.0,
            ClockMode::Frozen => 0.0,
        }
    }

    /// Things per second; 0 where there is nothing to measure.
    pub fn per_second(&self, things: usize, from: Instant, to: Instant) -> f64 {
        let seconds = self.ms(from, to) / 1000.0;
        if seconds > 0.0 {
            things as f64 / seconds
        } else {
            0.0
        }
    }

    /// Seconds since the start.
    pub fn uptime_seconds(&self, now: Instant) -> f64 {
        self.ms(self.start, now) / 1000.0
    }
}
