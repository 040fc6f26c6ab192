//! `orcd trace compare` between the real worker and a reference's file.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::{orcd, real_worker, run_with};

/// The trace that the reference makes of a fixture's last prompt, and the tokens of it as the worker's flag takes them.
fn reference(root: &Path, fixture: &Path) -> (String, String) {
    let mut command = Command::new("python3");
    command
        .arg(root.join("harness/reference/trace.py"))
        .args([fixture.as_os_str(), "2".as_ref()]);
    let (trace, stderr, code) = run_with(command, "");
    assert_eq!(code, Some(0), "{stderr}");
    let header: Value = serde_json::from_str(trace.lines().next().unwrap()).unwrap();
    let ids = header["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(Value::to_string);
    (trace.clone(), ids.collect::<Vec<_>>().join(","))
}

#[test]
fn the_worker_agrees_with_a_reference_and_a_difference_is_found() {
    let Some((worker, _)) = real_worker("trace") else {
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let fixture = root.join("tests/data/fixtures/qwen3");
    let (trace, ids) = reference(&root, &fixture);
    let folder = TempDir::new().unwrap();
    let (theirs, ours) = (folder.path().join("theirs"), folder.path().join("ours"));
    fs::write(&theirs, trace).unwrap();
    let mut command = Command::new(worker);
    command.arg("--model").arg(fixture.join("model.gguf"));
    command.args(["--device", "cpu", "--kv-type", "f32", "--trace-ids", &ids]);
    let (traced, stderr, code) = run_with(command, "");
    assert_eq!(code, Some(0), "{stderr}");
    fs::write(&ours, traced).unwrap();
    let (theirs, ours) = (theirs.to_str().unwrap(), ours.to_str().unwrap());
    let compare = |tolerance| {
        run_with(
            orcd(&["trace", "compare", theirs, ours, "--tolerance", tolerance]),
            "",
        )
    };
    let (stdout, stderr, code) = compare("0.0001");
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    let (stdout, stderr, code) = compare("0.0000001");
    assert!(
        code == Some(1) && stderr.contains("head at position"),
        "{stdout}{stderr}"
    );
}
