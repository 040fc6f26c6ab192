//! Reading a `tokenizer.json`: byte-level BPE, or BPE with byte fallback as it is made of a
//! SentencePiece model, with the parts that such tokenizers have.
//!
//! The file describes a pipeline of parts. The ones of these tokenizers are read and become the
//! same three stages that a GGUF vocabulary becomes; any other is an error that names it. The
//! library's own reader is not used, since its pipeline drops the errors of its regular expressions,
//! stops at nothing, and panics on a merge that is longer than every token.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use tokenizers::PostProcessor;
use tokenizers::processors::PostProcessorWrapper;

use super::bpe::{Alphabet, Bpe, check_merges};
use super::error::{TokenizerError, shown};
use super::gguf_vocab::{
    MODEL_KEY, SpecialIds, TOKENS_KEY, apply_add_flags, bpe_vocab, merge_pair,
};
use super::hf_steps::{NormalizerJson, PreTokenizerJson, cutting, unsupported};
use super::normalizer::{Normalizer, SPACE_MARK_TEXT};
use super::pre_tokenizer::WholePiece;
use super::sentencepiece;
use super::special::{SpecialKind, SpecialToken, Strip};
use super::tokenizer::{Parts, TokenClass, TokenEntry, TokenizerKind, VOCAB_TOKENS_MAX};
use crate::gguf::Metadata;

/// The file. What only training and batches need (`truncation`, `padding`, `decoder`) is left out.
#[derive(Deserialize)]
pub(super) struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<AddedTokenJson>,
    normalizer: Option<NormalizerJson>,
    pre_tokenizer: Option<PreTokenizerJson>,
    post_processor: Option<PostProcessorWrapper>,
    model: ModelJson,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AddedTokenJson {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelJson {
    r#type: Option<String>,
    #[serde(default)]
    dropout: Option<f32>,
    /// Every byte has a token, so nothing is unknown; a missing byte is an error when it is met.
    #[serde(default, rename = "unk_token")]
    _unk_token: Option<String>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default, rename = "fuse_unk")]
    _fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: VocabJson,
    merges: MergesJson,
}

/// The vocabulary in the order of the file, so that nothing that stands there twice goes unseen.
struct VocabJson(Vec<(String, u32)>);

#[derive(Deserialize)]
#[serde(untagged)]
enum MergesJson {
    Pairs(Vec<(String, String)>),
    Lines(Vec<String>),
}

impl<'de> Deserialize<'de> for VocabJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = VocabJson;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tokens and their ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VocabJson, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(VocabJson(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Reads the file.
pub(super) fn read(json: &[u8]) -> Result<TokenizerJson, TokenizerError> {
    serde_json::from_slice(json).map_err(|error| TokenizerError::Json {
        reason: error.to_string(),
    })
}

/// Makes the stages of the file's parts and compares its tokens with those of the model file.
pub(super) fn parts<'a>(
    json: &'a TokenizerJson,
    metadata: &Metadata,
) -> Result<Parts<'a>, TokenizerError> {
    check_model(&json.model)?;
    let alphabet = match json.model.byte_fallback {
        true => Alphabet::Spaces,
        false => Alphabet::Bytes,
    };
    let tokens = tokens(&json.model.vocab.0, &json.added_tokens, alphabet)?;
    compare_with_gguf(&tokens, metadata)?;
    let (normalizer, splitters) = cutting(
        json.normalizer.as_ref(),
        json.pre_tokenizer.as_ref(),
        alphabet,
        &tokens,
    )?;
    let merges = merge_pairs(&json.model.merges)?;
    let vocab = bpe_vocab(&tokens)?;
    check_merges(&vocab, &merges)?;
    let bpe = match (alphabet, json.model.ignore_merges) {
        (Alphabet::Bytes, true) => Bpe::byte_level(vocab, &merges, WholePiece::First)?,
        (Alphabet::Bytes, false) => Bpe::byte_level(vocab, &merges, WholePiece::ByMerges)?,
        (Alphabet::Spaces, false) => Bpe::sentencepiece(vocab, &merges)?,
        (Alphabet::Spaces, true) => {
            return Err(unsupported("the model's byte_fallback with ignore_merges"));
        }
    };
    let (mut prefix, mut suffix) = around(json.post_processor.as_ref(), tokens.len())?;
    let ids = SpecialIds::read(metadata, tokens.len())?;
    apply_add_flags(metadata, &ids, &mut prefix, &mut suffix)?;
    Ok(Parts {
        kind: TokenizerKind::HfJson,
        tokens,
        special: special_tokens(&json.added_tokens, normalizer)?,
        splitters,
        normalizer,
        bpe,
        prefix,
        suffix,
    })
}

fn check_model(model: &ModelJson) -> Result<(), TokenizerError> {
    let name = model.r#type.as_deref().unwrap_or("BPE");
    if name != "BPE" {
        return Err(unsupported(format!("the model {:?}", shown(name))));
    }
    let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    for (is_used, part) in [
        (
            model.dropout.is_some_and(|dropout| dropout != 0.0),
            "dropout",
        ),
        (
            is_set(&model.continuing_subword_prefix),
            "continuing_subword_prefix",
        ),
        (is_set(&model.end_of_word_suffix), "end_of_word_suffix"),
    ] {
        if is_used {
            return Err(unsupported(format!("the model's {part}")));
        }
    }
    Ok(())
}

fn special_tokens(
    added: &[AddedTokenJson],
    normalizer: Normalizer,
) -> Result<Vec<SpecialToken>, TokenizerError> {
    let strip = |is_stripped| if is_stripped { Strip::Yes } else { Strip::No };
    added
        .iter()
        .map(|token| {
            let name = shown(&token.content);
            if token.single_word {
                return Err(unsupported(format!(
                    "single_word of the added token {name:?}"
                )));
            }
            if token.normalized && normalizer != Normalizer::None {
                return Err(unsupported(format!(
                    "normalized of the added token {name:?}"
                )));
            }
            Ok(SpecialToken {
                id: token.id,
                text: token.content.clone(),
                kind: match token.special {
                    true => SpecialKind::Control,
                    false => SpecialKind::UserDefined,
                },
                left: strip(token.lstrip),
                right: strip(token.rstrip),
            })
        })
        .collect()
}

/// All tokens by id. An added token may stand in the model's vocabulary too, with the same id.
fn tokens<'a>(
    vocab: &'a [(String, u32)],
    added: &'a [AddedTokenJson],
    alphabet: Alphabet,
) -> Result<Vec<TokenEntry<'a>>, TokenizerError> {
    let class = |text| match (alphabet, sentencepiece::byte_of(text)) {
        (Alphabet::Spaces, Some(byte)) => TokenClass::Byte(byte),
        (Alphabet::Spaces, None) | (Alphabet::Bytes, _) => TokenClass::Normal,
    };
    let normal = vocab
        .iter()
        .map(|(text, id)| (text.as_str(), *id, class(text.as_str())));
    let added = added.iter().map(|token| {
        let class = match token.special {
            true => TokenClass::Control,
            false => TokenClass::UserDefined,
        };
        (token.content.as_str(), token.id, class)
    });
    const HOLE: TokenEntry<'static> = TokenEntry {
        text: "",
        class: TokenClass::Hole,
    };
    let mut tokens: Vec<TokenEntry<'a>> = Vec::with_capacity(vocab.len());
    for (text, id, class) in normal.chain(added) {
        let index = id as usize;
        if index >= VOCAB_TOKENS_MAX {
            return Err(TokenizerError::TooManyTokens {
                id: index,
                max: VOCAB_TOKENS_MAX,
            });
        }
        if tokens.len() <= index {
            tokens.resize(index + 1, HOLE);
        }
        let entry = &mut tokens[index];
        let is_new = entry.class == TokenClass::Hole;
        let is_again = entry.class == TokenClass::Normal && class != TokenClass::Normal;
        if !(is_new || is_again && entry.text == text) {
            return Err(TokenizerError::DuplicateId {
                id,
                first: shown(entry.text),
                second: shown(text),
            });
        }
        *entry = TokenEntry { text, class };
    }
    match tokens.is_empty() {
        true => Err(TokenizerError::Empty),
        false => Ok(tokens),
    }
}

/// A `tokenizer.json` of another model would give ids that mean something else to this one. Added
/// tokens are not compared: reserved ones are renamed between versions of a file.
fn compare_with_gguf(tokens: &[TokenEntry<'_>], metadata: &Metadata) -> Result<(), TokenizerError> {
    if !matches!(metadata.string(MODEL_KEY)?, Some("gpt2" | "llama")) {
        return Ok(());
    }
    let Some(gguf) = metadata.strings(TOKENS_KEY)? else {
        return Ok(());
    };
    if tokens.len() > gguf.len() {
        return Err(TokenizerError::WrongLength {
            key: "tokenizer.json",
            found: tokens.len(),
            wanted: gguf.len(),
        });
    }
    // Converters write the spaces of some tokens as spaces.
    let marked = |text: &str| text.replace(' ', SPACE_MARK_TEXT);
    for ((id, token), gguf) in (0_u32..).zip(tokens).zip(gguf) {
        let is_other = token.class == TokenClass::Normal && token.text != *gguf;
        if is_other && marked(token.text) != marked(gguf) {
            return Err(TokenizerError::ForeignJson {
                id,
                json: shown(token.text),
                gguf: shown(gguf),
            });
        }
    }
    Ok(())
}

fn merge_pairs(merges: &MergesJson) -> Result<Vec<(&str, &str)>, TokenizerError> {
    match merges {
        MergesJson::Pairs(pairs) => Ok(pairs
            .iter()
            .map(|(left, right)| (left.as_str(), right.as_str()))
            .collect()),
        // Old files begin with a comment that is no merge.
        MergesJson::Lines(lines) => lines
            .iter()
            .filter(|line| !line.starts_with("#version"))
            .enumerate()
            .map(|(rank, line)| merge_pair(rank, line))
            .collect(),
    }
}

/// The ids that the post-processor puts before and after a text.
fn around(
    processor: Option<&PostProcessorWrapper>,
    tokens: usize,
) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
    /// Stands for the text; no token can have this id.
    const TEXT: u32 = u32::MAX;
    let Some(processor) = processor else {
        return Ok((Vec::new(), Vec::new()));
    };
    let token = tokenizers::Token::new(TEXT, String::new(), (0, 0));
    let encoding = tokenizers::Encoding::from_tokens(vec![token], 0);
    let processed =
        processor
            .process(encoding, None, true)
            .map_err(|error| TokenizerError::Json {
                reason: format!("post_processor: {error}"),
            })?;
    let ids = processed.get_ids();
    let Some(position) = ids.iter().position(|id| *id == TEXT) else {
        return Err(unsupported("a post_processor that drops the text"));
    };
    let (prefix, suffix) = (&ids[..position], &ids[position + 1..]);
    if let Some(id) = prefix
        .iter()
        .chain(suffix)
        .find(|id| **id as usize >= tokens)
    {
        return Err(TokenizerError::BadSpecialId {
            key: "post_processor of tokenizer.json",
            id: *id,
            tokens,
        });
    }
    Ok((prefix.to_vec(), suffix.to_vec()))
}
