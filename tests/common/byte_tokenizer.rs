//! A tokenizer that tests can count with: every byte is a token.

use worker_orcd::gguf::Metadata;
use worker_orcd::text::{Tokenizer, byte_level_alphabet};

/// Byte-level BPE without merges: tokens 0 to 255 are bytes, the control tokens come after them, and the first of those ends a generation.
pub fn byte_tokenizer(control: &[&str]) -> Tokenizer {
    let bytes = byte_level_alphabet().map(String::from);
    let tokens: Vec<String> = bytes
        .into_iter()
        .chain(control.iter().map(|token| (*token).to_owned()))
        .collect();
    let mut types = vec![1i32; 256];
    types.resize(tokens.len(), 3);
    let mut metadata = Metadata::default();
    metadata.insert("tokenizer.ggml.model", "gpt2".to_owned());
    metadata.insert("tokenizer.ggml.pre", "gpt-2".to_owned());
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", types);
    metadata.insert("tokenizer.ggml.merges", Vec::<String>::new());
    metadata.insert("tokenizer.ggml.eos_token_id", 256u32);
    Tokenizer::from_gguf(&metadata).expect("the test's tokenizer")
}
