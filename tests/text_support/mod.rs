//! What the tests of text share: vocabularies and where to find those that are not committed.

#![allow(dead_code, reason = "each test file uses a part of this")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use worker_orcd::gguf::{self, Metadata};
use worker_orcd::text::{AddSpecial, EncodingStep, ParseSpecial, Tokenizer};

/// Separates the texts of a vector file.
const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

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

/// The ids of a text alone.
pub fn plain(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer
        .encode(text, AddSpecial::No, ParseSpecial::No)
        .unwrap()
}

/// The text that was encoded.
pub fn bytes(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u8> {
    let before = std::iter::once(None).chain(ids.iter().copied().map(Some));
    ids.iter()
        .zip(before)
        .flat_map(|(id, before)| tokenizer.text_bytes(*id, before).unwrap())
        .copied()
        .collect()
}

/// Encodes in steps and says how many it took.
pub fn in_steps(tokenizer: &Tokenizer, text: &str, parse: ParseSpecial) -> (Vec<u32>, usize) {
    let mut encoding = tokenizer.start_encoding(text.to_owned(), AddSpecial::No, parse);
    let mut steps = 0;
    loop {
        steps += 1;
        match encoding.step(tokenizer).unwrap() {
            EncodingStep::Working => {}
            EncodingStep::Done(ids) => {
                // A further step has nothing to give.
                assert_eq!(
                    encoding.step(tokenizer).unwrap(),
                    EncodingStep::Done(Vec::new())
                );
                return (ids, steps);
            }
        }
    }
}

/// Runs `encode` and asserts that it is quick enough for a megabyte.
pub fn timed(name: &str, encode: impl FnOnce() -> Vec<u32>) -> Vec<u32> {
    let begin = Instant::now();
    let ids = encode();
    let took = begin.elapsed();
    eprintln!("{name}: {} ids in {took:?}", ids.len());
    assert!(took < Duration::from_secs(4), "{name}: {took:?}");
    ids
}

/// Holds a tokenizer against the texts and ids of a vector file, both ways.
pub fn check_vectors(tokenizer: &Tokenizer, texts: &str, ids: &str) {
    let texts: Vec<&str> = texts.split(SEPARATOR).collect();
    // The last text is empty, and so is the last line, which no line end follows.
    let lines: Vec<&str> = ids.split('\n').collect();
    assert!(texts.len() >= 40, "{} texts", texts.len());
    assert_eq!(texts.len(), lines.len());
    for (text, line) in texts.iter().zip(lines) {
        let expected: Vec<u32> = line
            .split_whitespace()
            .map(|id| id.parse().unwrap())
            .collect();
        assert_eq!(plain(tokenizer, text), expected, "{text:?}");
        assert_eq!(bytes(tokenizer, &expected), text.as_bytes(), "{text:?}");
    }
}

/// Holds a vocabulary in `../shared/tokenizers` against its vectors.
pub fn check_shared_vectors(name: &str) {
    let Some(metadata) = shared_metadata(name) else {
        return;
    };
    let read = |suffix: &str| {
        let path = shared(&format!("ggml-vocab-{name}.gguf.{suffix}")).unwrap();
        std::fs::read_to_string(path).unwrap()
    };
    let begin = Instant::now();
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    eprintln!("{name}: built in {:?}", begin.elapsed());
    check_vectors(&tokenizer, &read("inp"), &read("out"));
    // A megabyte: prose, names, JSON and code, and in each part the texts of the vectors.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let parts = ["protocol/PROTOCOL.md", "ARCHITECTURE.md", "src/main.rs"]
        .map(|path| std::fs::read_to_string(root.join(path)).unwrap());
    let mut text = String::new();
    while text.len() < 1_000_000 {
        text.push_str(&parts.concat());
        text.push_str(&read("inp"));
    }
    let ids = timed(name, || plain(&tokenizer, &text));
    assert!(bytes(&tokenizer, &ids) == text.as_bytes());
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

/// The vocabulary of a small model that the Python package `sentencepiece` trained, as (piece, score, type): "prefix" or "bare".
pub fn sentencepiece_pieces(name: &str) -> Vec<(String, f32, i32)> {
    let json: serde_json::Value = serde_json::from_str(&data("small-sentencepiece.json")).unwrap();
    serde_json::from_value(json[name]["pieces"].clone()).unwrap()
}

/// Its metadata, which says whether a space is put before a text.
pub fn sentencepiece_metadata(pieces: &[(String, f32, i32)], adds_space: bool) -> Metadata {
    let tokens: Vec<String> = pieces.iter().map(|piece| piece.0.clone()).collect();
    let scores: Vec<f32> = pieces.iter().map(|piece| piece.1).collect();
    let types: Vec<i32> = pieces.iter().map(|piece| piece.2).collect();
    let mut metadata = Metadata::default();
    metadata.insert("tokenizer.ggml.model", "llama");
    metadata.insert("tokenizer.ggml.pre", "default");
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.scores", scores);
    metadata.insert("tokenizer.ggml.token_type", types);
    metadata.insert("tokenizer.ggml.bos_token_id", 1_u32);
    metadata.insert("tokenizer.ggml.eos_token_id", 2_u32);
    metadata.insert("tokenizer.ggml.add_space_prefix", adds_space);
    metadata
}
