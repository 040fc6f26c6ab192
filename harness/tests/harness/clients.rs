//! The examples and the Python client, as others would use them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{fake_worker, real_worker, run_with};

fn in_harness(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The example as cargo builds it beside the tests; `None` after a loud line where only this test was built.
fn rust_example() -> Option<Command> {
    let built = Path::new(env!("CARGO_BIN_EXE_orcd"))
        .with_file_name("examples")
        .join("spawn");
    if built.is_file() {
        return Some(Command::new(built));
    }
    use std::io::Write;
    let _ = writeln!(
        std::io::stderr(),
        "SKIP examples/spawn.rs: it is not built (cargo test without --test does)"
    );
    None
}

fn python_example() -> Option<Command> {
    let mut command = Command::new("python3");
    command.arg(in_harness("examples/spawn.py"));
    Some(command)
}

fn asks_the_scripted_worker(example: Option<Command>) {
    let Some(mut example) = example else { return };
    example
        .arg("fake.gguf")
        .env("WORKER_ORCD_BIN", fake_worker())
        .env_remove("FAKE_WORKER");
    let (stdout, stderr, code) = run_with(example, "");
    assert!(
        stdout.starts_with("You said: What is the capital of France? (1 messages) \n("),
        "{stdout}"
    );
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
}

fn tells_of_a_failure(example: Option<Command>) {
    let Some(mut example) = example else { return };
    example
        .arg("fake.gguf")
        .env("WORKER_ORCD_BIN", fake_worker())
        .env("FAKE_WORKER", r#"{"load_exit":65}"#);
    let (_, stderr, code) = run_with(example, "");
    assert!(
        stderr.contains("the fake ends with 65") && code == Some(1),
        "{code:?} {stderr}"
    );
}

fn asks_the_real_worker(name: &str, example: Option<Command>) {
    let (Some(mut example), Some((worker, model))) = (example, real_worker(name)) else {
        return;
    };
    example.arg(model).env("WORKER_ORCD_BIN", worker);
    let (stdout, stderr, code) = run_with(example, "");
    assert!(
        stdout.contains("Paris") && code == Some(0),
        "{stdout}{stderr}"
    );
}

#[test]
fn the_rust_example_works() {
    asks_the_scripted_worker(rust_example());
    tells_of_a_failure(rust_example());
    asks_the_real_worker("examples/spawn.rs", rust_example());
}

#[test]
fn the_python_example_works() {
    asks_the_scripted_worker(python_example());
    tells_of_a_failure(python_example());
    asks_the_real_worker("examples/spawn.py", python_example());
}

#[test]
fn the_python_client_works() {
    let mut command = Command::new("python3");
    command
        .args(["-W", "error::ResourceWarning"])
        .arg(in_harness("tests/test_worker_orcd.py"));
    let (stdout, stderr, code) = run_with(command, "");
    assert_eq!(code, Some(0), "{stdout}{stderr}");
}
