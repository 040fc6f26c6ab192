//! The harness's own tests: against a scripted worker, and against the real one where it is built and a model is there.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

mod bench;
mod client;
mod clients;
mod conformance;
mod fetch;
mod golden;
mod orcd;
mod synth;
mod trace;

/// The scripted worker.
fn fake_worker() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_worker.py")
}

/// The scripted worker's command line with these faults.
fn fake_command(faults: &str) -> Command {
    let mut command = worker_orcd_harness::client::command(fake_worker(), "fake.gguf", "cpu");
    command.env("FAKE_WORKER", faults);
    command
}

/// `orcd` with these arguments, and nothing of the user's environment that it looks at.
fn orcd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orcd"));
    for variable in [
        "WORKER_ORCD_BIN",
        "WORKER_ORCD_TEST_MODEL",
        "UPDATE_GOLDENS",
        "FAKE_WORKER",
    ] {
        command.env_remove(variable);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs a command to its end with this stdin: stdout, stderr, exit code.
fn run_with(mut command: Command, stdin: &str) -> (String, String, Option<i32>) {
    let mut input = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut input, stdin.as_bytes()).unwrap();
    std::io::Seek::rewind(&mut input).unwrap();
    let Output {
        status,
        stdout,
        stderr,
    } = command.stdin(input).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(stdout), text(stderr), status.code())
}

/// The real worker and a model, or `None` after a loud line that says what is missing.
fn real_worker(test: &str) -> Option<(PathBuf, PathBuf)> {
    use worker_orcd_harness::{fetch::DEFAULT_MODEL, locate};
    let skip = |missing: String| {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "SKIP {test}: {missing}");
    };
    // The binary beside the tests belongs to this build; one from $PATH would be some other.
    let built = Path::new(env!("CARGO_BIN_EXE_orcd")).with_file_name("worker-orcd");
    let worker = locate::variable(locate::WORKER_VARIABLE).unwrap_or(built);
    if !worker.is_file() {
        skip(format!("no worker at {} (cargo build)", worker.display()));
        return None;
    }
    let cached = locate::cache_folder()
        .ok()
        .map(|folder| folder.join("models").join(DEFAULT_MODEL.file));
    let model = locate::variable(locate::TEST_MODEL_VARIABLE)
        .or(cached)
        .filter(|model| model.is_file());
    if model.is_none() {
        skip(format!(
            "no model (orcd fetch, or {})",
            locate::TEST_MODEL_VARIABLE
        ));
    }
    Some((worker, model?))
}
