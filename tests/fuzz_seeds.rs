//! The fuzz targets without a fuzzer: every input of the committed corpus, and some thousand mutations of them from a fixed seed.
//! `tests/fuzz/README.md` says how to fuzz for longer.

use std::any::Any;
use std::path::Path;

use fuzz::{TARGETS, Target};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use worker_orcd::limits::STACK_BYTES;

#[path = "fuzz/src/lib.rs"]
mod fuzz;

/// Mutations of each target's corpus that are run.
const MUTATIONS: usize = 2000;

/// Longest mutation.
const MUTATION_BYTES_MAX: usize = 4096;

/// Bytes of all committed inputs together.
const CORPUS_BYTES_MAX: usize = 200 * 1024;

/// The committed inputs of a target with their names, in the order of the names.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let entries = std::fs::read_dir(folder.join(target)).expect("a folder of inputs");
    let mut inputs: Vec<(String, Vec<u8>)> = entries
        .map(|entry| {
            let path = entry.expect("an input").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            (name.into_owned(), std::fs::read(&path).expect("an input"))
        })
        .collect();
    inputs.sort();
    inputs
}

/// Runs one input; a panic is told with what the input was.
fn run((name, body): Target, input: &[u8], what: &str) {
    let result = std::panic::catch_unwind(|| body(input));
    if let Err(panic) = result {
        report(name, input, what);
        let again: Box<dyn Any + Send> = panic;
        std::panic::resume_unwind(again);
    }
}

fn report(target: &str, input: &[u8], what: &str) {
    let path = std::env::temp_dir().join(format!("worker-orcd-fuzz-{target}"));
    let kept = std::fs::write(&path, input);
    eprintln!("{target} fails on {what}; the input is in {path:?} ({kept:?})");
}

/// An input like another: some bits turned, bytes changed, cut off, or the end of a third input in place of its own.
fn mutate(rng: &mut ChaCha8Rng, inputs: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut below = |n: usize| rng.next_u64() as usize % n.max(1);
    let mut bytes = inputs[below(inputs.len())].1.clone();
    for _ in 0..=below(4) {
        let at = below(bytes.len());
        match below(5) {
            0 => bytes.truncate(at),
            1 => {
                let tail = &inputs[below(inputs.len())].1;
                bytes.truncate(at);
                bytes.extend(&tail[below(tail.len())..]);
            }
            2 if at < bytes.len() => bytes[at] ^= 1 << below(8),
            3 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'"', b' '][below(7)],
            _ => bytes.insert(at, below(256) as u8),
        }
    }
    bytes.truncate(MUTATION_BYTES_MAX);
    bytes
}

/// The corpus of a target and its mutations.
fn run_target(name: &str) {
    let target = *TARGETS.iter().find(|t| t.0 == name).expect("a target");
    let inputs = corpus(name);
    let work = move || {
        for (file, input) in &inputs {
            run(target, input, file);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for number in 0..MUTATIONS {
            let input = mutate(&mut rng, &inputs);
            run(target, &input, &format!("mutation {number}"));
        }
    };
    // a thread of a test has a smaller stack than the worker
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
    let ended = thread.spawn(work).expect("a thread").join();
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn model_files_of_any_bytes() {
    run_target("gguf");
}

#[test]
fn request_lines_of_any_bytes() {
    run_target("request_line");
}

#[test]
fn templates_of_any_text() {
    run_target("template");
}

#[test]
fn texts_of_any_kind() {
    run_target("tokenizer");
}

#[test]
fn lives_of_a_worker_of_any_course() {
    run_target("worker");
}

#[test]
fn the_corpus_is_there_and_small() {
    let sizes = TARGETS.map(|(name, _)| {
        let inputs = corpus(name);
        assert!(!inputs.is_empty(), "{name}");
        inputs.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    });
    let all: usize = sizes.iter().sum();
    assert!(all <= CORPUS_BYTES_MAX, "{sizes:?}");
}
