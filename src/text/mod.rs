//! Text on both sides of a token: tokenizer, incremental UTF-8 decoder and chat template.
//!
//! Nothing here knows a device or the wire. Everything is a pure function of its arguments: the
//! clock that a chat template may ask for is handed in, and work that could take long is cut into
//! pieces by [`Encoding`].

mod bpe;
mod calendar;
pub mod decoder;
mod encoding;
mod error;
mod gguf_vocab;
mod hf_json;
mod hf_steps;
mod json;
mod normalizer;
mod pre_tokenizer;
mod python;
mod sentencepiece;
mod special;
pub mod template;
pub mod tokenizer;

pub use bpe::byte_level_alphabet;
pub use decoder::TextDecoder;
pub use encoding::{Encoding, EncodingStep};
pub use error::TokenizerError;
pub use template::{ChatTemplate, GenerationPrompt, RenderOptions, TemplateError};
pub use tokenizer::{AddSpecial, ParseSpecial, Tokenizer, TokenizerKind};
