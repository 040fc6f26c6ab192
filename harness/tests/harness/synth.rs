//! `orcd synth`: files as large and as mixed as those that they stand for, and models that the worker runs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use worker_orcd_harness::synth::{Plan, SHAPES, Shape};

use crate::{orcd, run_with};

/// A published file: whose shape, its bytes, and how many tensors of each type it has.
struct Published(&'static str, u64, &'static [(&'static str, usize)]);

const PUBLISHED: &[Published] = &[
    Published(
        "llama3-8b",
        4_920_739_232,
        &[("F32", 66), ("Q4_K", 193), ("Q6_K", 33)],
    ),
    Published(
        "llama3-1b",
        807_694_464,
        &[("F32", 34), ("Q4_K", 96), ("Q6_K", 17)],
    ),
    Published(
        "qwen2.5-0.5b",
        397_807_936,
        &[
            ("F32", 121),
            ("Q4_K", 12),
            ("Q5_0", 132),
            ("Q6_K", 12),
            ("Q8_0", 13),
        ],
    ),
    Published(
        "qwen3-4b",
        2_497_280_256,
        &[("F32", 145), ("Q4_K", 216), ("Q6_K", 37)],
    ),
    Published(
        "phi3-mini",
        2_393_231_072,
        &[("F32", 65), ("Q4_K", 81), ("Q5_K", 32), ("Q6_K", 17)],
    ),
    Published(
        "gpt-oss-20b",
        12_109_565_632,
        &[("F32", 289), ("MXFP4", 72), ("Q8_0", 98)],
    ),
    Published(
        "smollm2-135m",
        98_362_432,
        &[("F32", 61), ("Q4_1", 210), ("Q8_0", 1)],
    ),
];

fn shape(name: &str) -> &'static Shape {
    Shape::by_name(name).expect("a shape of this name")
}

#[test]
fn every_file_has_the_size_and_the_types_of_the_published_one() {
    assert_eq!(PUBLISHED.len(), SHAPES.len());
    for &Published(name, bytes, types) in PUBLISHED {
        let plan = Plan::new(shape(name), shape(name).layers);
        // Tokens have other texts, and some published files hold more merges.
        let off = plan.bytes() as f64 / bytes as f64 - 1.0;
        assert!(
            off.abs() < 0.01,
            "{name}: {} bytes, {off:+.4}",
            plan.bytes()
        );
        let kinds: BTreeMap<_, _> = plan
            .kinds()
            .into_iter()
            .map(|(k, n)| (k.name(), n))
            .collect();
        assert_eq!(kinds, types.iter().copied().collect(), "{name}");
    }
}

/// The worker that was built with these tests; `None` after a loud line where it was not.
fn worker(arguments: &[&str], model: &Path) -> Option<Command> {
    let worker = Path::new(env!("CARGO_BIN_EXE_orcd")).with_file_name("worker-orcd");
    if !worker.is_file() {
        let _ = writeln!(
            std::io::stderr(),
            "SKIP synth: no worker at {} (cargo build)",
            worker.display()
        );
        return None;
    }
    let mut command = Command::new(worker);
    command.args(["--device", "cpu", "--ctx", "512", "--model"]);
    command.arg(model).args(arguments);
    Some(command)
}

/// The checks need no weights: a file with a hole in the place of them will do.
#[test]
fn the_worker_claims_every_tensor() {
    let folder = tempfile::tempdir().unwrap();
    for shape in SHAPES {
        let plan = Plan::new(shape, shape.layers);
        let path = folder.path().join(format!("{}.gguf", shape.name));
        let mut file = File::create(&path).unwrap();
        file.write_all(plan.header()).unwrap();
        file.set_len(plan.bytes()).unwrap();
        let Some(check) = worker(&["--check"], &path) else {
            return;
        };
        let (stdout, stderr, _) = run_with(check, "");
        let said: Value = serde_json::from_str(&stdout)
            .unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
        assert_eq!(said["loads"], true, "{}: {said:#}", shape.name);
        let types = said["tensor_types"].as_array().unwrap().iter();
        let found: BTreeMap<_, _> = types
            .map(|t| {
                (
                    t["type"].as_str().unwrap(),
                    t["tensors"].as_u64().unwrap() as usize,
                )
            })
            .collect();
        let planned = plan
            .kinds()
            .into_iter()
            .map(|(kind, count)| (kind.name(), count))
            .collect();
        assert_eq!(found, planned, "{}", shape.name);
        assert_eq!(said["chat_template"], true, "{}", shape.name);
    }
}

/// `orcd synth smollm2-135m FILE --layers 1` with further flags: stderr and the exit code.
fn synth(file: &Path, further: &[&str]) -> (String, Option<i32>) {
    let mut command = orcd(&["synth", "smollm2-135m", "--layers", "1"]);
    command.arg(file).args(further);
    let (stdout, stderr, code) = run_with(command, "");
    if code == Some(0) {
        assert_eq!(stdout, format!("{}\n", file.display()));
    }
    (stderr, code)
}

#[test]
fn a_seed_gives_one_file_whole_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a.gguf", "b.gguf"].map(|name| folder.path().join(name));
    assert_eq!(synth(&a, &[]).1, Some(0));
    assert_eq!(synth(&b, &["--seed", "1"]).1, Some(0));
    let first = fs::read(&a).unwrap();
    assert!(
        first == fs::read(&b).unwrap(),
        "the same seed gives the same file"
    );
    let (stderr, code) = synth(&a, &["--seed", "2"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("--force"), "{stderr}");
    assert!(first == fs::read(&a).unwrap(), "what is there stays");
    assert_eq!(synth(&a, &["--seed", "2", "--force"]).1, Some(0));
    assert!(
        first != fs::read(&a).unwrap(),
        "another seed gives another file"
    );
    let names = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    let mut left: Vec<_> = fs::read_dir(&folder).unwrap().map(names).collect();
    left.sort();
    assert_eq!(left, ["a.gguf", "b.gguf"]);
    let (stderr, code) = synth(&folder.path().join("missing/c.gguf"), &[]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("missing/c.gguf"), "{stderr}");
}

#[test]
fn an_unknown_shape_is_told_which_there_are() {
    let (_, stderr, code) = run_with(orcd(&["synth", "llama3-9b", "x.gguf"]), "");
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("llama3-8b") && stderr.contains("gpt-oss-20b"),
        "{stderr}"
    );
}

/// Logits that deviate by about 1 give the likeliest of 49,152 tokens a probability of about 1 in 1000: neither all the same, as of
/// weights that are too small, nor all on one, as of weights that blow up.
#[test]
fn the_worker_talks_with_random_weights() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    assert_eq!(synth(&model, &[]).1, Some(0));
    let Some(worker) = worker(&[], &model) else {
        return;
    };
    let request = r#"{"id":1,"method":"generate","params":{"prompt":"hello there","temperature":0,"max_tokens":4,"stream":false,"logprobs":0}}"#;
    let (stdout, stderr, code) = run_with(worker, &format!("{request}\n"));
    assert_eq!(code, Some(0), "{stderr}");
    let response: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    let logprobs = response["result"]["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), 4, "{stdout}");
    for token in logprobs {
        let logprob = token["logprob"].as_f64().unwrap();
        assert!((-10.0..-3.0).contains(&logprob), "{stdout}");
    }
}
