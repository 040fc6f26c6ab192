//! What a bench leaves behind: a line of JSON with the figures, and what they were measured on.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use worker_orcd_protocol::Ready;

/// Appends one record to a file of JSON lines.
///
/// # Errors
/// When the file cannot be written.
pub fn append(file: &Path, bench: &str, ready: &Ready, figures: Value) -> Result<()> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let record = json!({
        "bench": bench,
        "unix_time": since.map_or(0, |since| since.as_secs()),
        "machine": machine(),
        "worker": ready.server_info.version,
        "model": ready.model.as_ref().map(|model| &model.name),
        "device": ready.model.as_ref().map(|model| &model.device),
        "figures": figures,
    });
    let mut out = OpenOptions::new()
        .append(true)
        .create(true)
        .open(file)
        .with_context(|| format!("cannot write to {}", file.display()))?;
    writeln!(out, "{record}").with_context(|| format!("cannot write to {}", file.display()))
}

/// "Intel(R) Xeon(R) Processor, 2 cores": what the system says of its processor.
pub fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|rest| rest.split_once(':'))
        .map_or("an unknown processor", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{name}, {cores} cores")
}
