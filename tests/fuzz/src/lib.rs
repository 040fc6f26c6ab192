//! What is done with the bytes of each fuzz target. `cargo fuzz` runs these functions through `fuzz_targets/`, and `cargo test` runs
//! them on the committed corpus and on mutations of it (`tests/fuzz_seeds.rs`).

pub mod gguf;
pub mod meter;
pub mod request_line;
pub mod template;
pub mod tokenizer;
pub mod worker;

/// A target: its name and what it does with some bytes.
pub type Target = (&'static str, fn(&[u8]));

/// Every target. A run panics if something is wrong.
pub const TARGETS: [Target; 5] = [
    ("gguf", gguf::run),
    ("request_line", request_line::run),
    ("template", template::run),
    ("tokenizer", tokenizer::run),
    ("worker", worker::run),
];
