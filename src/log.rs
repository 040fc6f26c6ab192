//! The log: records are appended to memory as whole lines and taken from there when a job ends, on an error, at exit, or when
//! they have become many. A prompt is logged by its length and SHA-256, never by its text.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use crate::limits;

/// How important a record is. `--log-level` names the least important level that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Level {
    /// Nothing works as it should.
    Error,
    /// Somebody should have a look.
    Warn,
    /// What a run consists of.
    Info,
    /// What helps to find a fault.
    Debug,
}

impl Level {
    /// As it stands in a record.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
        }
    }
}

/// How a record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people: `time LEVEL event key=value …`.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// Collects records.
#[derive(Debug)]
pub struct Log {
    level: Level,
    format: Format,
    /// Fields that every record carries: worker_id, model, device.
    common: Vec<(&'static str, Value)>,
    held: Vec<u8>,
    due: Due,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Later,
    Now,
}

impl Log {
    /// An empty log that keeps records of `level` and above.
    pub fn new(level: Level, format: Format) -> Self {
        Self {
            level,
            format,
            common: Vec::new(),
            held: Vec::new(),
            due: Due::Later,
        }
    }

    /// Sets a field that every record carries from now on.
    pub fn set_common(&mut self, key: &'static str, value: impl Into<Value>) {
        let value = value.into();
        match self.common.iter_mut().find(|(k, _)| *k == key) {
            Some(entry) => entry.1 = value,
            None => self.common.push((key, value)),
        }
    }

    /// Whether a record of this level would be kept: asked before something costly is computed for it.
    pub fn keeps(&self, level: Level) -> bool {
        level <= self.level
    }

    /// Appends a record. An error is due at once, everything else when somebody calls [`Log::flush`].
    pub fn record(&mut self, at: SystemTime, level: Level, event: &str, fields: &[(&str, Value)]) {
        if !self.keeps(level) {
            return;
        }
        match self.format {
            Format::Text => self.write_text(at, level, event, fields),
            Format::Json => self.write_json(at, level, event, fields),
        }
        if level == Level::Error || self.held.len() >= limits::LOG_HELD_BYTES_MAX {
            self.flush();
        }
    }

    /// Says that what is held is to be written now.
    pub fn flush(&mut self) {
        self.due = Due::Now;
    }

    /// What is to be written now, whole lines; `None` where nothing is.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        match std::mem::replace(&mut self.due, Due::Later) {
            Due::Now if !self.held.is_empty() => Some(std::mem::take(&mut self.held)),
            Due::Now | Due::Later => None,
        }
    }

    fn write_text(&mut self, at: SystemTime, level: Level, event: &str, fields: &[(&str, Value)]) {
        let mut line = format!(
            "{} {:5} {event}",
            timestamp(at),
            level.as_str().to_uppercase()
        );
        // People see on every line what tells two workers apart, and not what is the same all day.
        let own = self
            .common
            .iter()
            .filter(|(key, _)| *key == "worker_id")
            .map(|(k, v)| (*k, v));
        for (key, value) in own.chain(fields.iter().map(|(k, v)| (*k, v))) {
            let _ = match value {
                Value::String(s) if is_plain(s) => write!(line, " {key}={s}"),
                other => write!(line, " {key}={other}"),
            };
        }
        line.push('\n');
        self.held.extend_from_slice(line.as_bytes());
    }

    fn write_json(&mut self, at: SystemTime, level: Level, event: &str, fields: &[(&str, Value)]) {
        let mut object = Map::new();
        object.insert("time".into(), timestamp(at).into());
        object.insert("level".into(), level.as_str().into());
        object.insert("event".into(), event.into());
        for (key, value) in &self.common {
            object.insert((*key).into(), value.clone());
        }
        for (key, value) in fields {
            object.insert((*key).into(), value.clone());
        }
        self.held
            .extend_from_slice(Value::Object(object).to_string().as_bytes());
        self.held.push(b'\n');
    }
}

/// Whether a value can stand in a text record without quotes.
fn is_plain(s: &str) -> bool {
    !s.is_empty()
        && s.chars()
            .all(|c| !c.is_whitespace() && !c.is_control() && c != '"' && c != '=')
}

/// `2026-01-31T23:59:59.999Z`. A time before 1970 is written as 1970.
fn timestamp(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let millis = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// The Gregorian date of a day counted from 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, so that the leap day is the last of its year; 400 years have 146,097 days.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 7)
    }

    #[test]
    fn dates() {
        assert_eq!(timestamp(UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(at(951_782_399)), "2000-02-28T23:59:59.007Z");
        assert_eq!(timestamp(at(951_782_400)), "2000-02-29T00:00:00.007Z");
        assert_eq!(timestamp(at(1_709_251_199)), "2024-02-29T23:59:59.007Z");
        assert_eq!(timestamp(at(4_107_542_400)), "2100-03-01T00:00:00.007Z");
    }

    #[test]
    fn json_lines_are_whole_and_valid() {
        let mut log = Log::new(Level::Info, Format::Json);
        log.set_common("worker_id", "w\"1\n");
        log.record(
            at(0),
            Level::Info,
            "ready",
            &[("request_id", 7.into()), ("text", "a\nb".into())],
        );
        log.record(at(0), Level::Debug, "left out", &[]);
        assert_eq!(log.take(), None);
        log.flush();
        let bytes = log.take().unwrap();
        let lines: Vec<&[u8]> = bytes
            .strip_suffix(b"\n")
            .unwrap()
            .split(|b| *b == b'\n')
            .collect();
        assert_eq!(lines.len(), 1);
        let value: Value = serde_json::from_slice(lines[0]).unwrap();
        assert_eq!(value["worker_id"], "w\"1\n");
        assert_eq!(value["request_id"], 7);
        assert_eq!(value["level"], "info");
        assert_eq!(log.take(), None);
    }

    #[test]
    fn text_lines_stay_lines() {
        let mut log = Log::new(Level::Info, Format::Text);
        log.record(
            at(0),
            Level::Error,
            "error",
            &[("message", "two\nlines".into()), ("code", "X".into())],
        );
        let text = String::from_utf8(log.take().unwrap()).unwrap();
        assert_eq!(
            text,
            "1970-01-01T00:00:00.007Z ERROR error message=\"two\\nlines\" code=X\n"
        );
    }

    #[test]
    fn many_records_are_due_without_being_asked_for() {
        let mut log = Log::new(Level::Info, Format::Text);
        for _ in 0..limits::LOG_HELD_BYTES_MAX / 20 {
            log.record(at(0), Level::Info, "event", &[]);
        }
        assert!(log.take().is_some());
    }
}
