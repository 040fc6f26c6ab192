//! Text to token ids and back, by the vocabulary of the model's GGUF file or of a `tokenizer.json`.
//!
//! Both kinds end in the same three stages: special tokens are found in the text, what lies between
//! them is cut into pieces by the model's regular expression, and each piece is encoded by its
//! merges. The stages work from left to right and remember where they are, so a long text is encoded
//! in pieces of about a millisecond. Decoding is a table of bytes: a token may hold half a character,
//! so putting characters together is the business of [`TextDecoder`](super::TextDecoder).

use std::collections::HashSet;

use super::bpe::{Alphabet, Bpe};
use super::encoding::{Encoding, EncodingStep, Spelling};
use super::error::TokenizerError;
use super::gguf_vocab::{self, SpecialIds};
use super::hf_json;
use super::normalizer::{AddedSpace, Normalizer};
use super::pre_tokenizer::Splitter;
use super::special::{SpecialToken, SpecialTokens};
use crate::gguf::Metadata;

/// Largest number of tokens of a vocabulary, and one more than the largest id.
pub const VOCAB_TOKENS_MAX: usize = 4 * 1024 * 1024;

/// Where a tokenizer's vocabulary comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenizerKind {
    /// From the model's GGUF file.
    GgufBpe,
    /// From a `tokenizer.json`.
    HfJson,
}

impl TokenizerKind {
    /// The name that `health` reports.
    pub fn as_str(self) -> &'static str {
        match self {
            TokenizerKind::GgufBpe => "gguf-bpe",
            TokenizerKind::HfJson => "hf-json",
        }
    }
}

/// Whether the tokens are added that the model wants around a prompt (BOS, seldom EOS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddSpecial {
    /// They are, where the model wants them.
    Yes,
    /// The text alone.
    No,
}

/// Whether the names of control tokens in the text are those tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParseSpecial {
    /// They are.
    Yes,
    /// They are text like any other. User-defined tokens are found all the same.
    No,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenClass {
    /// Text.
    Normal,
    /// It steers the model and is no text.
    Control,
    /// A word that was added to the vocabulary and is found before the text is cut.
    UserDefined,
    /// One byte of a character that has no token of its own.
    Byte(u8),
    /// A token that no text becomes.
    Unused,
    /// The id has no token.
    Hole,
}

/// One token, as the two readers hand it over.
#[derive(Debug, Clone, Copy)]
pub(super) struct TokenEntry<'a> {
    /// Its text as the vocabulary writes it.
    pub(super) text: &'a str,
    pub(super) class: TokenClass,
}

/// What a reader found in a file.
pub(super) struct Parts<'a> {
    pub(super) kind: TokenizerKind,
    /// By id.
    pub(super) tokens: Vec<TokenEntry<'a>>,
    pub(super) special: Vec<SpecialToken>,
    pub(super) splitters: Vec<Splitter>,
    pub(super) normalizer: Normalizer,
    pub(super) bpe: Bpe,
    /// Ids around a prompt with [`AddSpecial::Yes`].
    pub(super) prefix: Vec<u32>,
    pub(super) suffix: Vec<u32>,
}

/// A vocabulary that text is encoded and decoded with.
pub struct Tokenizer {
    kind: TokenizerKind,
    /// The bytes of all tokens, one after the other.
    bytes: Vec<u8>,
    /// By id: where its bytes end.
    ends: Vec<usize>,
    /// By id.
    classes: Vec<TokenClass>,
    longest_token_bytes: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    ends_of_generation: HashSet<u32>,
    pub(super) special: SpecialTokens,
    pub(super) splitters: Vec<Splitter>,
    pub(super) normalizer: Normalizer,
    pub(super) bpe: Bpe,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("kind", &self.kind)
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads the vocabulary of a model file. Its names are those of the format:
    /// `tokenizer.ggml.model`, `.pre`, `.tokens`, `.merges` or `.scores`, `.token_type` and the special
    /// ids.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, TokenizerError> {
        Self::new(gguf_vocab::parts(metadata)?, metadata)
    }

    /// Reads a `tokenizer.json`. Which tokens begin and end a text, and which end a generation, is
    /// taken from the model file, whose tokens have to be the same.
    pub fn from_hf_json(json: &[u8], metadata: &Metadata) -> Result<Self, TokenizerError> {
        let json = hf_json::read(json)?;
        Self::new(hf_json::parts(&json, metadata)?, metadata)
    }

    fn new(parts: Parts, metadata: &Metadata) -> Result<Self, TokenizerError> {
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(parts.tokens.len());
        for token in &parts.tokens {
            match (token.class, parts.bpe.alphabet()) {
                (TokenClass::Hole, _) => {}
                (TokenClass::Byte(byte), _) => bytes.push(byte),
                (TokenClass::Normal | TokenClass::Unused, alphabet)
                | (TokenClass::UserDefined, alphabet @ Alphabet::Spaces) => {
                    alphabet.push_token_bytes(token.text, &mut bytes);
                }
                (TokenClass::Control, _) | (TokenClass::UserDefined, Alphabet::Bytes) => {
                    bytes.extend_from_slice(token.text.as_bytes());
                }
            }
            ends.push(bytes.len());
        }
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let longest = starts.zip(&ends).map(|(start, end)| end - start).max();
        let ids = SpecialIds::read(metadata, parts.tokens.len())?;
        Ok(Tokenizer {
            kind: parts.kind,
            ends_of_generation: ids.ends_of_generation(&parts.tokens),
            longest_token_bytes: longest.unwrap_or(0),
            bytes,
            ends,
            classes: parts.tokens.iter().map(|token| token.class).collect(),
            bos: ids.bos,
            eos: ids.eos,
            special: SpecialTokens::new(parts.special)?,
            splitters: parts.splitters,
            normalizer: parts.normalizer,
            bpe: parts.bpe,
            prefix: parts.prefix,
            suffix: parts.suffix,
        })
    }

    /// Makes ids without a token of those from the vocabulary's end to `size`: a model may have more rows
    /// than a `tokenizer.json` has tokens.
    pub fn add_holes(&mut self, size: usize) {
        if size > self.ends.len() {
            self.ends.resize(size, self.bytes.len());
            self.classes.resize(size, TokenClass::Hole);
        }
    }

    /// Where the vocabulary comes from.
    pub fn kind(&self) -> TokenizerKind {
        self.kind
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of the longest token's text: `n` bytes of text become at least `n` divided by this many
    /// tokens, so a text that can't fit a context needs no encoding to be refused.
    pub fn longest_token_bytes(&self) -> usize {
        self.longest_token_bytes
    }

    /// The token that begins a text, if the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text, if the model has one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether the model says with this token that its answer is complete: EOS, the end of a turn
    /// or of a message, and tokens whose name is known for it.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.ends_of_generation.contains(&id)
    }

    /// Whether the token steers the model and is no text.
    pub fn is_control(&self, id: u32) -> bool {
        self.class(id) == Some(TokenClass::Control)
    }

    /// The bytes that a token stands for: part of a text in UTF-8, perhaps half a character. Control
    /// tokens give their name, as `b"<|im_end|>"`. `None` if the id has no token.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        if self.class(id)? == TokenClass::Hole {
            return None;
        }
        let index = usize::try_from(id).ok()?;
        let start = match index.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.bytes.get(start..*self.ends.get(index)?)
    }

    /// The bytes that a token of an encoded text stands for, given the token before it: as
    /// [`token_bytes`](Self::token_bytes), but without the space that encoding adds in front of a
    /// text. So a text comes back as it was.
    pub fn text_bytes(&self, id: u32, before: Option<u32>) -> Option<&[u8]> {
        let bytes = self.token_bytes(id)?;
        let Normalizer::Spaces(added) = self.normalizer else {
            return Some(bytes);
        };
        let is_special = |id| {
            matches!(
                self.class(id),
                Some(TokenClass::Control | TokenClass::UserDefined)
            )
        };
        let begins = match added {
            AddedSpace::Never => false,
            AddedSpace::Always | AddedSpace::WhereMissing => before.is_none_or(is_special),
            AddedSpace::AtStartWhereMissing => before.is_none() || before == self.bos,
        };
        match begins && !is_special(id) {
            true => Some(bytes.strip_prefix(b" ").unwrap_or(bytes)),
            false => Some(bytes),
        }
    }

    fn class(&self, id: u32) -> Option<TokenClass> {
        self.classes.get(usize::try_from(id).ok()?).copied()
    }

    /// Encodes a whole text at once. A long one blocks for as long as it takes: where that matters,
    /// [`start_encoding`](Self::start_encoding) gives the same ids in steps.
    pub fn encode(
        &self,
        text: &str,
        add_special: AddSpecial,
        parse_special: ParseSpecial,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut encoding = self.start_encoding(text.to_owned(), add_special, parse_special);
        loop {
            match encoding.step(self)? {
                EncodingStep::Working => {}
                EncodingStep::Done(ids) => return Ok(ids),
            }
        }
    }

    /// Begins to encode a text; nothing is done until [`Encoding::step`].
    pub fn start_encoding(
        &self,
        text: String,
        add_special: AddSpecial,
        parse_special: ParseSpecial,
    ) -> Encoding {
        let (ids, suffix) = match add_special {
            AddSpecial::Yes => (self.prefix.clone(), self.suffix.clone()),
            AddSpecial::No => (Vec::new(), Vec::new()),
        };
        let spelling = match (self.kind, self.normalizer) {
            (TokenizerKind::GgufBpe, Normalizer::Spaces(_)) => Spelling::Unmarked,
            (TokenizerKind::GgufBpe, Normalizer::None | Normalizer::Nfc)
            | (TokenizerKind::HfJson, _) => Spelling::AsGiven,
        };
        Encoding::new(text, spelling, parse_special, ids, suffix)
    }
}
