//! The vocabulary of a GGUF file: byte-level BPE (`tokenizer.ggml.model` is "gpt2") with the merges of the file, or SentencePiece
//! ("llama") with merges that follow from its scores.

use std::collections::{HashMap, HashSet};

use tokenizers::models::bpe::Vocab;

use super::bpe::{Bpe, check_merges};
use super::error::{TokenizerError, shown};
use super::normalizer::{AddedSpace, Normalizer};
use super::pre_tokenizer::{BosDefault, PreTokenizer, Splitter};
use super::sentencepiece;
use super::special::{SpecialKind, SpecialToken, Strip};
use super::tokenizer::{Parts, TokenClass, TokenEntry, TokenizerKind, VOCAB_TOKENS_MAX};
use crate::gguf::Metadata;

const BOS_KEY: &str = "tokenizer.ggml.bos_token_id";
const EOS_KEY: &str = "tokenizer.ggml.eos_token_id";
const EOT_KEY: &str = "tokenizer.ggml.eot_token_id";
const EOM_KEY: &str = "tokenizer.ggml.eom_token_id";
const ADD_BOS_KEY: &str = "tokenizer.ggml.add_bos_token";
const ADD_EOS_KEY: &str = "tokenizer.ggml.add_eos_token";
pub(super) const TOKENS_KEY: &str = "tokenizer.ggml.tokens";
const TYPES_KEY: &str = "tokenizer.ggml.token_type";
const SCORES_KEY: &str = "tokenizer.ggml.scores";
const PRE_KEY: &str = "tokenizer.ggml.pre";
pub(super) const MODEL_KEY: &str = "tokenizer.ggml.model";

/// The names of tokens that end an answer whatever the file says, as llama.cpp has them.
const END_NAMES: [&str; 15] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|eot|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
];

/// The special ids that a model file names.
pub(super) struct SpecialIds {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) eot: Option<u32>,
    pub(super) eom: Option<u32>,
}

impl SpecialIds {
    pub(super) fn read(metadata: &Metadata, tokens: usize) -> Result<Self, TokenizerError> {
        let read = |key: &'static str| match metadata.u32(key)? {
            Some(id) if id as usize >= tokens => {
                Err(TokenizerError::BadSpecialId { key, id, tokens })
            }
            id => Ok(id),
        };
        Ok(SpecialIds {
            bos: read(BOS_KEY)?,
            eos: read(EOS_KEY)?,
            eot: read(EOT_KEY)?,
            eom: read(EOM_KEY)?,
        })
    }

    pub(super) fn ends_of_generation(&self, tokens: &[TokenEntry<'_>]) -> HashSet<u32> {
        let mut named: HashMap<&str, u32> = HashMap::new();
        for (id, token) in (0_u32..).zip(tokens) {
            let is_special = matches!(token.class, TokenClass::Control | TokenClass::UserDefined);
            if is_special && END_NAMES.contains(&token.text) {
                named.insert(token.text, id);
            }
        }
        // In the format of gpt-oss `<|end|>` ends a message, not the answer.
        if named.contains_key("<|return|>") && named.contains_key("<|call|>") {
            named.remove("<|end|>");
        }
        let given = [self.eos, self.eot, self.eom].into_iter().flatten();
        given.chain(named.into_values()).collect()
    }
}

/// The ids before and after a prompt by the flags of the model file; a flag that is missing leaves
/// what is there.
pub(super) fn apply_add_flags(
    metadata: &Metadata,
    ids: &SpecialIds,
    prefix: &mut Vec<u32>,
    suffix: &mut Vec<u32>,
) -> Result<(), TokenizerError> {
    for (flag, key, id, list) in [
        (ADD_BOS_KEY, BOS_KEY, ids.bos, prefix),
        (ADD_EOS_KEY, EOS_KEY, ids.eos, suffix),
    ] {
        match (metadata.bool(flag)?, id) {
            (None, _) | (Some(false), None) => {}
            (Some(true), None) => return Err(TokenizerError::MissingSpecialId { flag, key }),
            (Some(true), Some(id)) if list.contains(&id) => {}
            (Some(true), Some(id)) if flag == ADD_BOS_KEY => list.insert(0, id),
            (Some(true), Some(id)) => list.push(id),
            (Some(false), Some(id)) => list.retain(|other| *other != id),
        }
    }
    Ok(())
}

/// What the file's vocabulary becomes.
pub(super) fn parts(metadata: &Metadata) -> Result<Parts<'_>, TokenizerError> {
    match metadata.require_string(MODEL_KEY)? {
        "gpt2" => byte_level_parts(metadata),
        "llama" => sentencepiece_parts(metadata),
        model => Err(TokenizerError::UnsupportedModel {
            model: shown(model),
        }),
    }
}

fn byte_level_parts(metadata: &Metadata) -> Result<Parts<'_>, TokenizerError> {
    let pre = pre_tokenizer(metadata)?;
    let tokens = tokens(metadata, byte_level_class)?;
    let merges = metadata.require_strings("tokenizer.ggml.merges")?;
    let pairs = merges
        .iter()
        .enumerate()
        .map(|(rank, merge)| merge_pair(rank, merge))
        .collect::<Result<Vec<_>, _>>()?;
    let vocab = bpe_vocab(&tokens)?;
    check_merges(&vocab, &pairs)?;
    let (prefix, suffix) = around(metadata, tokens.len(), pre.bos)?;
    Ok(Parts {
        kind: TokenizerKind::GgufBpe,
        special: special_tokens(&tokens),
        splitters: pre
            .expressions
            .iter()
            .map(|expression| Splitter::new(expression))
            .collect::<Result<_, _>>()?,
        normalizer: Normalizer::None,
        bpe: Bpe::byte_level(vocab, &pairs, pre.whole_piece)?,
        prefix,
        suffix,
        tokens,
    })
}

fn sentencepiece_parts(metadata: &Metadata) -> Result<Parts<'_>, TokenizerError> {
    check_sentencepiece_steps(metadata)?;
    let tokens = tokens(metadata, sentencepiece_class)?;
    metadata.require_i32s(TYPES_KEY)?; // without it nothing tells bytes and control tokens from text
    let scores = metadata.require_f32s(SCORES_KEY)?;
    if scores.len() != tokens.len() {
        return Err(TokenizerError::WrongLength {
            key: SCORES_KEY,
            found: scores.len(),
            wanted: tokens.len(),
        });
    }
    if let Some(id) = scores.iter().position(|score| score.is_nan()) {
        return Err(TokenizerError::BadScore { id });
    }
    let vocab = bpe_vocab(&tokens)?;
    let pairs = sentencepiece::merges(&tokens, scores, &vocab);
    let added = match metadata.bool("tokenizer.ggml.add_space_prefix")? {
        Some(true) | None => AddedSpace::Always,
        Some(false) => AddedSpace::Never,
    };
    let (prefix, suffix) = around(metadata, tokens.len(), BosDefault::Add)?;
    let mut special = special_tokens(&tokens);
    sentencepiece::unmark_spaces(&mut special);
    if metadata.string("general.architecture")? == Some("phi3") {
        strip_as_phi3(&mut special);
    }
    Ok(Parts {
        kind: TokenizerKind::GgufBpe,
        special,
        splitters: sentencepiece::splitter(&tokens)?.into_iter().collect(),
        normalizer: Normalizer::Spaces(added),
        bpe: Bpe::sentencepiece(vocab, &pairs)?,
        prefix,
        suffix,
        tokens,
    })
}

/// What a file may ask for that no file of this kind is known to need.
fn check_sentencepiece_steps(metadata: &Metadata) -> Result<(), TokenizerError> {
    if let Some(pre) = metadata.string(PRE_KEY)?
        && pre != "default"
    {
        return Err(TokenizerError::UnknownPreTokenizer { pre: shown(pre) });
    }
    for key in [
        "tokenizer.ggml.remove_extra_whitespaces",
        "tokenizer.ggml.escape_whitespaces",
    ] {
        let usual = key.ends_with("escape_whitespaces");
        if metadata.bool(key)?.is_some_and(|value| value != usual) {
            return Err(TokenizerError::UnsupportedStep { key });
        }
    }
    let key = "tokenizer.ggml.precompiled_charsmap";
    match metadata.get(key) {
        Some(_) => Err(TokenizerError::UnsupportedStep { key }),
        None => Ok(()),
    }
}

/// The tokens of Phi-3 take the white space after them, which its template writes and the model was not trained with. A GGUF file
/// cannot say so; what is said here is what the model's own tokenizer files say.
fn strip_as_phi3(special: &mut [SpecialToken]) {
    for token in special {
        let is_bare = matches!(token.text.as_str(), "<unk>" | "<s>" | "<|endoftext|>");
        if !is_bare {
            token.right = Strip::Yes;
        }
    }
}

/// The ids before and after a prompt.
fn around(
    metadata: &Metadata,
    tokens: usize,
    bos: BosDefault,
) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
    let ids = SpecialIds::read(metadata, tokens)?;
    let mut prefix = Vec::new();
    if bos == BosDefault::Add && metadata.bool(ADD_BOS_KEY)?.is_none() {
        prefix.push(ids.bos.ok_or(TokenizerError::MissingSpecialId {
            flag: "the default of the pre-tokenizer for tokenizer.ggml.add_bos_token",
            key: BOS_KEY,
        })?);
    }
    let mut suffix = Vec::new();
    apply_add_flags(metadata, &ids, &mut prefix, &mut suffix)?;
    Ok((prefix, suffix))
}

/// The two tokens of a merge: `rank` is its place in the list, `merge` its text.
pub(super) fn merge_pair(rank: usize, merge: &str) -> Result<(&str, &str), TokenizerError> {
    match merge.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
            Ok((left, right))
        }
        Some(_) | None => Err(TokenizerError::MalformedMerge {
            rank,
            merge: shown(merge),
        }),
    }
}

fn pre_tokenizer(metadata: &Metadata) -> Result<PreTokenizer, TokenizerError> {
    match metadata.string(PRE_KEY)? {
        None => Err(TokenizerError::UnnamedPreTokenizer { pre: "missing" }),
        Some("default") => Err(TokenizerError::UnnamedPreTokenizer { pre: "\"default\"" }),
        Some(name) => PreTokenizer::by_name(name)
            .ok_or_else(|| TokenizerError::UnknownPreTokenizer { pre: shown(name) }),
    }
}

fn tokens(
    metadata: &Metadata,
    class: impl Fn(usize, &str, i32) -> Result<TokenClass, TokenizerError>,
) -> Result<Vec<TokenEntry<'_>>, TokenizerError> {
    let texts = metadata.require_strings(TOKENS_KEY)?;
    if texts.is_empty() {
        return Err(TokenizerError::Empty);
    }
    if texts.len() > VOCAB_TOKENS_MAX {
        return Err(TokenizerError::TooManyTokens {
            id: texts.len(),
            max: VOCAB_TOKENS_MAX,
        });
    }
    let types = metadata.i32s(TYPES_KEY)?;
    if let Some(types) = types.as_ref().filter(|types| types.len() != texts.len()) {
        return Err(TokenizerError::WrongLength {
            key: TYPES_KEY,
            found: types.len(),
            wanted: texts.len(),
        });
    }
    texts
        .iter()
        .enumerate()
        .map(|(id, text)| {
            let class = match &types {
                Some(types) => class(id, text, types[id])?,
                None => TokenClass::Normal,
            };
            Ok(TokenEntry { text, class })
        })
        .collect()
}

/// The numbers of `tokenizer.ggml.token_type` in a byte-level vocabulary.
fn byte_level_class(id: usize, _text: &str, number: i32) -> Result<TokenClass, TokenizerError> {
    match number {
        // Normal, unused, and byte, which byte-level vocabularies have no use for.
        1 | 5 | 6 => Ok(TokenClass::Normal),
        // Unknown and control: both are no text.
        2 | 3 => Ok(TokenClass::Control),
        4 => Ok(TokenClass::UserDefined),
        found => Err(TokenizerError::UnknownTokenType { id, found }),
    }
}

/// The same numbers in a SentencePiece vocabulary.
fn sentencepiece_class(id: usize, text: &str, number: i32) -> Result<TokenClass, TokenizerError> {
    match (number, sentencepiece::byte_of(text)) {
        (5, _) => Ok(TokenClass::Unused),
        (6, Some(byte)) => Ok(TokenClass::Byte(byte)),
        (6, None) => Err(TokenizerError::MalformedByte {
            id,
            token: shown(text),
        }),
        (number, _) => byte_level_class(id, text, number),
    }
}

/// The tokens that text may become by merges: all but control tokens, which none may become by accident, and unused ones.
/// Two tokens with one text are an error.
pub(super) fn bpe_vocab(tokens: &[TokenEntry<'_>]) -> Result<Vocab, TokenizerError> {
    let mut vocab = Vocab::with_capacity(tokens.len());
    let ids = || (0_u32..).zip(tokens);
    for (id, token) in ids().filter(|(_, token)| token.class != TokenClass::Hole) {
        if let Some(first) = vocab.insert(token.text.to_owned(), id) {
            return Err(TokenizerError::DuplicateToken {
                token: shown(token.text),
                first,
                second: id,
            });
        }
    }
    let is_none = |class| matches!(class, TokenClass::Control | TokenClass::Unused);
    for (_, token) in ids().filter(|(_, token)| is_none(token.class)) {
        vocab.remove(token.text);
    }
    Ok(vocab)
}

fn special_tokens(tokens: &[TokenEntry<'_>]) -> Vec<SpecialToken> {
    let kind = |class| match class {
        TokenClass::Control => Some(SpecialKind::Control),
        TokenClass::UserDefined => Some(SpecialKind::UserDefined),
        TokenClass::Normal | TokenClass::Byte(_) | TokenClass::Unused | TokenClass::Hole => None,
    };
    (0_u32..)
        .zip(tokens)
        .filter_map(|(id, token)| {
            Some(SpecialToken {
                id,
                text: token.text.to_owned(),
                kind: kind(token.class)?,
                left: Strip::No,
                right: Strip::No,
            })
        })
        .collect()
}
