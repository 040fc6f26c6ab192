//! What the tests of text share: vocabularies and where to find those that are not committed.

#![allow(dead_code, reason = "each test file uses a part of this")]

use std::path::{Path, PathBuf};

use worker_orcd::gguf::{self, Metadata};

/// A file of the committed test data.
pub fn data(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/tokenizers")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A file of the folder `../shared/tokenizers`, which a fresh clone does not have.
pub fn shared(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("WORKER_ORCD_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let path = root.join("tokenizers").join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIP: {} is not there", path.display());
    None
}

/// The metadata of a vocabulary in `../shared/tokenizers`.
pub fn shared_metadata(name: &str) -> Option<Metadata> {
    let bytes = std::fs::read(shared(&format!("ggml-vocab-{name}.gguf"))?).unwrap();
    Some(gguf::parse(&bytes).unwrap().metadata)
}

/// The metadata of the default model.
pub fn model_metadata() -> Option<Metadata> {
    let path = std::env::var_os("WORKER_ORCD_TEST_MODEL").map_or_else(
        || {
            let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
                || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
                PathBuf::from,
            );
            cache.join("worker-orcd/models/SmolLM2-135M-Instruct.Q4_1.gguf")
        },
        PathBuf::from,
    );
    let Ok(bytes) = std::fs::read(&path) else {
        eprintln!("SKIP: the default model is not at {}", path.display());
        return None;
    };
    Some(gguf::parse(&bytes).unwrap().metadata)
}

/// The 256 byte characters in the order in which GPT-2 numbers them.
pub fn byte_characters() -> Vec<String> {
    let printable = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    printable
        .chain('\u{100}'..'\u{144}')
        .map(String::from)
        .collect()
}

/// The vocabulary of GPT-2, which its merges determine: bytes first, then what each merge makes,
/// then the one control token.
pub fn gpt2_metadata() -> Metadata {
    let merges: Vec<String> = include_str!("../data/tokenizers/gpt-2.merges.txt")
        .lines()
        .map(String::from)
        .collect();
    let mut tokens = byte_characters();
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    tokens.push("<|endoftext|>".to_owned());
    metadata("gpt-2", tokens, merges, &[(50256, 3)])
}

/// GPT-2 in the tokenizer's library alone, without anything of ours.
pub fn gpt2_library() -> tokenizers::Tokenizer {
    use tokenizers::models::bpe::{BPE, Vocab};
    let metadata = gpt2_metadata();
    let tokens = metadata.require_strings("tokenizer.ggml.tokens").unwrap();
    let merges = metadata.require_strings("tokenizer.ggml.merges").unwrap();
    let vocab: Vocab = tokens.iter().cloned().zip(0..).collect();
    let pairs = merges
        .iter()
        .map(|merge| {
            let (left, right) = merge.split_once(' ').unwrap();
            (left.to_owned(), right.to_owned())
        })
        .collect();
    let model = BPE::builder()
        .vocab_and_merges(vocab, pairs)
        .build()
        .unwrap();
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let byte_level = tokenizers::pre_tokenizers::byte_level::ByteLevel::new(false, false, true);
    tokenizer.with_pre_tokenizer(Some(byte_level));
    tokenizer
}

/// A vocabulary of bytes, some merges and some special tokens with their types, numbered in this
/// order.
pub fn small_metadata(pre: &str, merges: &[&str], special: &[(&str, i32)]) -> Metadata {
    let mut tokens = byte_characters();
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let first = tokens.len();
    tokens.extend(special.iter().map(|(text, _)| (*text).to_owned()));
    let types: Vec<(usize, i32)> = (first..)
        .zip(special)
        .map(|(id, (_, class))| (id, *class))
        .collect();
    let merges = merges.iter().map(|merge| (*merge).to_owned()).collect();
    metadata(pre, tokens, merges, &types)
}

fn metadata(
    pre: &str,
    tokens: Vec<String>,
    merges: Vec<String>,
    special: &[(usize, i32)],
) -> Metadata {
    let mut types = vec![1_i32; tokens.len()];
    for (id, class) in special {
        types[*id] = *class;
    }
    let mut metadata = Metadata::default();
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", pre);
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.merges", merges);
    metadata.insert("tokenizer.ggml.token_type", types);
    metadata
}
