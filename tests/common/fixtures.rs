//! The tiny random models in `tests/data/fixtures/`, one or more of every architecture, with the logits of their prompts in double precision.
//! `harness/reference/README.md` has their format.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::PathBuf;

use serde_json::Value;

/// A model and what is right about it.
pub struct Fixture {
    pub name: String,
    pub architecture: String,
    /// The model's file.
    pub gguf: Vec<u8>,
    /// The context to load it with, where that matters.
    pub context: Option<usize>,
    pub prompts: Vec<Prompt>,
    /// The last logits of the last prompt where the reference keeps keys and values as halves, too.
    pub logits_kv_f16: Vec<Vec<f32>>,
    /// The same with keys and values in blocks of Q8_0.
    pub logits_kv_q8_0: Vec<Vec<f32>>,
}

/// Tokens from position 0 on, and the logits after each of them.
pub struct Prompt {
    pub tokens: Vec<u32>,
    pub logits: Vec<Vec<f32>>,
}

/// All of them, in the order of their names.
pub fn all() -> Vec<Fixture> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures");
    let entries = std::fs::read_dir(folder).expect("the fixtures");
    let mut folders: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    folders.sort();
    folders.into_iter().map(read).collect()
}

fn read(folder: PathBuf) -> Fixture {
    let bytes = |name: &str| std::fs::read(folder.join(name)).expect("a file of a fixture");
    let meta: Value = serde_json::from_slice(&bytes("meta.json")).expect("meta.json");
    let number = |value: &Value| value.as_u64().map(|n| usize::try_from(n).expect("small"));
    let text = |key: &str| meta[key].as_str().expect("text").to_owned();
    let n_vocab = number(&meta["n_vocab"]).expect("n_vocab");
    let logits = |name: &str| -> Vec<Vec<f32>> {
        let bytes = bytes(name);
        let values = bytes.as_chunks::<4>().0.iter();
        let values: Vec<f32> = values.map(|b| f32::from_le_bytes(*b)).collect();
        let rows = values.chunks_exact(n_vocab);
        rows.map(<[f32]>::to_vec).collect()
    };
    let rows = logits("logits.f32");
    let prompt = |prompt: &Value| {
        let tokens = prompt["tokens"].as_array().expect("tokens").iter();
        let tokens: Vec<u32> = tokens.map(|t| number(t).expect("an id") as u32).collect();
        let first = number(&prompt["first_row"]).expect("first_row");
        Prompt {
            logits: rows[first..][..tokens.len()].to_vec(),
            tokens,
        }
    };
    Fixture {
        name: text("name"),
        architecture: text("architecture"),
        gguf: bytes("model.gguf"),
        context: number(&meta["context"]),
        prompts: meta["prompts"]
            .as_array()
            .expect("prompts")
            .iter()
            .map(prompt)
            .collect(),
        logits_kv_f16: logits("logits-kv-f16.f32"),
        logits_kv_q8_0: logits("logits-kv-q8_0.f32"),
    }
}
