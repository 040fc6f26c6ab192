//! Text to token ids and back, by the vocabulary of the model's GGUF file or of a `tokenizer.json`.
//!
//! Both kinds end in the same three stages: special tokens are found in the text, what lies between
//! them is cut into pieces by the model's regular expression, and each piece is encoded by its
//! merges. The stages work from left to right and remember where they are, so a long text is encoded
//! in pieces of about a millisecond. Decoding is a table of bytes: a token may hold half a character,
//! so putting characters together is the business of [`TextDecoder`](super::TextDecoder).

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use tokenizers::models::bpe::Vocab;

use super::bpe::{self, ByteLevelBpe, PieceProgress};
use super::hf_json;
use super::pre_tokenizer::{BosDefault, PieceCursor, PreTokenizer, Splitter};
use super::special::{Found, SpecialKind, SpecialToken, SpecialTokens, Strip};
use crate::gguf::{GgufError, Metadata};

/// Largest number of tokens of a vocabulary, and one more than the largest id.
pub const VOCAB_TOKENS_MAX: usize = 4 * 1024 * 1024;

/// Characters of a name out of a file that an error repeats.
const SHOWN_CHARS_MAX: usize = 100;

/// Bytes that one [`Encoding::step`] encodes: about a millisecond's work.
const STEP_BYTES: usize = 8 * 1024;

/// What a piece costs besides its bytes, in the same unit.
const PIECE_COST: usize = 4;

/// How many bytes can be searched for special tokens in the time that encodes one.
const SEARCHED_PER_ENCODED: usize = 16;

/// What finding a special token costs besides, in bytes encoded.
const FOUND_COST: usize = 8;

/// Why a tokenizer could not be made, or a text not be encoded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TokenizerError {
    /// A metadata value of the model file is missing or of a wrong type.
    #[error("tokenizer: {0}")]
    Metadata(#[from] GgufError),
    /// The vocabulary is of a kind that is not read.
    #[error(
        "tokenizer.ggml.model is {model:?}: this version reads byte-level BPE (\"gpt2\") only; give a byte-level tokenizer.json with --tokenizer or another model"
    )]
    UnsupportedModel {
        /// The kind.
        model: String,
    },
    /// The model file does not say how text is cut before encoding.
    #[error(
        "tokenizer.ggml.pre is {pre}: how text is cut before encoding can't be guessed; convert the model again or give its tokenizer.json with --tokenizer"
    )]
    UnnamedPreTokenizer {
        /// What it says.
        pre: &'static str,
    },
    /// The model file names a way of cutting that is not known.
    #[error(
        "tokenizer.ggml.pre {pre:?} is not known to this version; give the model's tokenizer.json with --tokenizer"
    )]
    UnknownPreTokenizer {
        /// The name.
        pre: String,
    },
    /// A regular expression that can't be run exactly.
    #[error("the pre-tokenizer's expression {expression:?} is not supported: {reason}")]
    UnsupportedExpression {
        /// The expression.
        expression: String,
        /// What about it.
        reason: String,
    },
    /// There are no tokens.
    #[error("the vocabulary is empty")]
    Empty,
    /// There are too many tokens, or an id is too large.
    #[error("the vocabulary has the id {id}, the limit is {max} (VOCAB_TOKENS_MAX)")]
    TooManyTokens {
        /// The largest id.
        id: usize,
        /// The limit.
        max: usize,
    },
    /// Two ids have the same text.
    #[error("the tokens {first} and {second} are both {token:?}")]
    DuplicateToken {
        /// The token's text.
        token: String,
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
    },
    /// Two tokens have the same id.
    #[error("the id {id} belongs to two tokens, {first:?} and {second:?}")]
    DuplicateId {
        /// The id.
        id: u32,
        /// One text.
        first: String,
        /// The other.
        second: String,
    },
    /// An array of the vocabulary is as long as it must not be.
    #[error("{key} has {found} entries, the vocabulary has {wanted} tokens")]
    WrongLength {
        /// The metadata key.
        key: &'static str,
        /// Its length.
        found: usize,
        /// The number of tokens.
        wanted: usize,
    },
    /// A token type that is not defined.
    #[error("tokenizer.ggml.token_type of token {id} is {found}: only 1 to 6 are defined")]
    UnknownTokenType {
        /// The token.
        id: usize,
        /// Its type.
        found: i32,
    },
    /// A merge is not two tokens.
    #[error("merge {rank} is {merge:?}: not two tokens with a space between them")]
    MalformedMerge {
        /// Its place in the list, from 0.
        rank: usize,
        /// Its text.
        merge: String,
    },
    /// A merge names or makes a token that is not in the vocabulary.
    #[error(
        "merge {rank} ({merge:?}) needs the token {missing:?}, which the vocabulary does not have"
    )]
    MergeOutOfVocabulary {
        /// Its place in the list, from 0.
        rank: usize,
        /// Its text.
        merge: String,
        /// The token.
        missing: String,
    },
    /// A merge stands twice in the list, so its rank is not certain.
    #[error("merge {rank} ({merge:?}) stands in the list twice")]
    DuplicateMerge {
        /// The place of the second one, from 0.
        rank: usize,
        /// Its text.
        merge: String,
    },
    /// The id of a special token is not in the vocabulary.
    #[error("{key} is {id}, the vocabulary has {tokens} tokens")]
    BadSpecialId {
        /// The metadata key.
        key: &'static str,
        /// The id.
        id: u32,
        /// The number of tokens.
        tokens: usize,
    },
    /// A token is to be added to every prompt, and the file does not say which it is.
    #[error("{flag} is set, but {key} is missing")]
    MissingSpecialId {
        /// The flag's key, or what stands for it.
        flag: &'static str,
        /// The key of the id.
        key: &'static str,
    },
    /// A special token without text would match everywhere.
    #[error("the special token {id} is empty")]
    EmptySpecialToken {
        /// The token.
        id: u32,
    },
    /// The special tokens can't be searched for.
    #[error("the special tokens can't be searched for: {reason}")]
    SpecialTokens {
        /// Why.
        reason: String,
    },
    /// The vocabulary is refused by the tokenizer library.
    #[error("the vocabulary can't be used: {reason}")]
    Vocabulary {
        /// Why.
        reason: String,
    },
    /// A `tokenizer.json` that is not one.
    #[error("tokenizer.json: {reason}")]
    Json {
        /// What and where.
        reason: String,
    },
    /// A `tokenizer.json` with a part that is not supported.
    #[error(
        "tokenizer.json: {part} is not supported by this version, which reads byte-level BPE only"
    )]
    UnsupportedJson {
        /// The part.
        part: String,
    },
    /// The `tokenizer.json` is that of another model.
    #[error(
        "tokenizer.json does not belong to this model: token {id} is {json:?} there and {gguf:?} in the model file"
    )]
    ForeignJson {
        /// The token.
        id: u32,
        /// Its text in the `tokenizer.json`.
        json: String,
        /// Its text in the model file.
        gguf: String,
    },
    /// A byte of the text has no token.
    #[error("the vocabulary has no token for the byte 0x{byte:02x} of the text")]
    MissingByte {
        /// The byte.
        byte: u8,
    },
    /// A piece of the text that the pre-tokenizer leaves whole can't be encoded in parts.
    #[error(
        "a word of {bytes} bytes can't be encoded in parts of {max} bytes with this vocabulary; break it up"
    )]
    PieceTooLong {
        /// Its length.
        bytes: usize,
        /// Bytes that are encoded at once.
        max: usize,
    },
}

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
    pub(super) bpe: ByteLevelBpe,
    /// Ids around a prompt with [`AddSpecial::Yes`].
    pub(super) prefix: Vec<u32>,
    pub(super) suffix: Vec<u32>,
}

/// What is done to text before it is cut. GGUF files have no normalizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Normalizer {
    None,
    /// Canonical composition.
    Nfc,
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
    special: SpecialTokens,
    splitters: Vec<Splitter>,
    normalizer: Normalizer,
    bpe: ByteLevelBpe,
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
    /// `tokenizer.ggml.model`, `.pre`, `.tokens`, `.merges`, `.token_type` and the special ids.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, TokenizerError> {
        Self::new(gguf_parts(metadata)?, metadata)
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
            match token.class {
                TokenClass::Normal => bpe::push_token_bytes(token.text, &mut bytes),
                TokenClass::Control | TokenClass::UserDefined => {
                    bytes.extend_from_slice(token.text.as_bytes());
                }
                TokenClass::Hole => {}
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
        Encoding {
            text,
            parse_special,
            ids,
            suffix,
            at: 0,
            stage: Stage::Searching { scanned: 0 },
        }
    }
}

/// What a step of an [`Encoding`] achieved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EncodingStep {
    /// There is more to do.
    Working,
    /// All ids. The encoding is used up: a further step gives an empty list.
    Done(Vec<u32>),
}

/// A text that is being encoded, in pieces of work of about a millisecond.
///
/// Nothing is cut that the whole text would not cut: special tokens are searched for from where the
/// last one ended, the expression goes on where its last match ended, with the whole rest of the text
/// before its eyes, and a piece that is too long is encoded in windows whose seams are proved. So the
/// ids are those of the text encoded at once, wherever the steps end. What a step can't interrupt is
/// the search for the end of one piece, which takes about a millisecond per megabyte.
#[derive(Debug)]
pub struct Encoding {
    text: String,
    parse_special: ParseSpecial,
    ids: Vec<u32>,
    suffix: Vec<u32>,
    /// Bytes of the text that are done, or that the current segment covers.
    at: usize,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Looking for the next special token, which none of the bytes before `scanned` begins.
    Searching { scanned: usize },
    /// Normalizing the text before a special token or the end.
    Normalizing {
        source: Range<usize>,
        done: String,
        then: Option<u32>,
    },
    /// Encoding that text.
    Encoding { segment: Segment, then: Option<u32> },
    /// There is nothing left.
    Finished,
}

/// Text without special tokens.
#[derive(Debug)]
struct Segment {
    text: SegmentText,
    cursor: PieceCursor,
    piece: Option<(Range<usize>, PieceProgress)>,
}

#[derive(Debug)]
enum SegmentText {
    /// A part of the encoding's text.
    Part(Range<usize>),
    /// Normalized text.
    Own(String),
}

impl Encoding {
    /// How many ids there are so far; the last few may still change.
    pub fn ids_so_far(&self) -> usize {
        self.ids.len()
    }

    /// Works on for about a millisecond. After an error the encoding is of no use.
    pub fn step(&mut self, tokenizer: &Tokenizer) -> Result<EncodingStep, TokenizerError> {
        let mut budget = STEP_BYTES;
        while budget > 0 {
            let stage = std::mem::replace(&mut self.stage, Stage::Finished);
            let (stage, cost) = match stage {
                Stage::Searching { scanned } => self.search(tokenizer, scanned),
                Stage::Normalizing { source, done, then } => self.normalize(source, done, then)?,
                Stage::Encoding { segment, then } => {
                    self.encode(tokenizer, segment, then, budget)?
                }
                Stage::Finished => {
                    self.ids.append(&mut self.suffix);
                    return Ok(EncodingStep::Done(std::mem::take(&mut self.ids)));
                }
            };
            self.stage = stage;
            budget = budget.saturating_sub(cost);
        }
        Ok(EncodingStep::Working)
    }

    fn search(&mut self, tokenizer: &Tokenizer, scanned: usize) -> (Stage, usize) {
        let found = tokenizer
            .special
            .find(&self.text, self.at, scanned, self.parse_special);
        let (source, then, looked_at) = match found {
            Found::NothingBefore(offset) => {
                let cost = (offset - scanned) / SEARCHED_PER_ENCODED + 1;
                return (Stage::Searching { scanned: offset }, cost);
            }
            Found::Token { id, range } => {
                let source = self.at..range.start.max(self.at);
                self.at = range.end;
                (source, Some(id), range.start.saturating_sub(scanned))
            }
            Found::End => {
                let source = self.at..self.text.len();
                self.at = self.text.len();
                let looked_at = self.text.len() - scanned;
                (source, None, looked_at)
            }
        };
        let stage = match tokenizer.normalizer {
            Normalizer::None => self.encoding_stage(SegmentText::Part(source), then),
            Normalizer::Nfc => Stage::Normalizing {
                source,
                done: String::new(),
                then,
            },
        };
        (stage, looked_at / SEARCHED_PER_ENCODED + FOUND_COST)
    }

    fn encoding_stage(&self, text: SegmentText, then: Option<u32>) -> Stage {
        let cursor = PieceCursor::new(text.resolve(&self.text));
        let segment = Segment {
            text,
            cursor,
            piece: None,
        };
        Stage::Encoding { segment, then }
    }

    fn normalize(
        &mut self,
        source: Range<usize>,
        mut done: String,
        then: Option<u32>,
    ) -> Result<(Stage, usize), TokenizerError> {
        let part = hf_json::first_normalizable(&self.text[source.clone()]);
        let cost = hf_json::push_nfc(part, &mut done)?;
        let rest = source.start + part.len()..source.end;
        let stage = match rest.is_empty() {
            true => self.encoding_stage(SegmentText::Own(done), then),
            false => Stage::Normalizing {
                source: rest,
                done,
                then,
            },
        };
        Ok((stage, cost))
    }

    /// Encodes pieces of the segment until it ends or the budget is spent.
    fn encode(
        &mut self,
        tokenizer: &Tokenizer,
        mut segment: Segment,
        then: Option<u32>,
        budget: usize,
    ) -> Result<(Stage, usize), TokenizerError> {
        let mut cost = 1;
        while cost < budget {
            let text = segment.text.resolve(&self.text);
            let (piece, mut progress) = match segment.piece.take() {
                Some(piece) => piece,
                None => match segment.cursor.next(&tokenizer.splitters, text) {
                    Some(piece) => (piece, PieceProgress::new(self.ids.len())),
                    None => {
                        self.ids.extend(then);
                        return Ok((self.after_segment(then), cost));
                    }
                },
            };
            let bytes = &text.as_bytes()[piece.clone()];
            let encoded = tokenizer
                .bpe
                .encode_some(bytes, &mut progress, &mut self.ids)?;
            cost += encoded.cost + PIECE_COST;
            if !encoded.is_done {
                segment.piece = Some((piece, progress));
            }
        }
        Ok((Stage::Encoding { segment, then }, cost))
    }

    fn after_segment(&self, then: Option<u32>) -> Stage {
        match then {
            Some(_) => Stage::Searching { scanned: self.at },
            None => Stage::Finished,
        }
    }
}

impl SegmentText {
    fn resolve<'a>(&'a self, text: &'a str) -> &'a str {
        match self {
            SegmentText::Part(range) => &text[range.clone()],
            SegmentText::Own(own) => own,
        }
    }
}

const BOS_KEY: &str = "tokenizer.ggml.bos_token_id";
const EOS_KEY: &str = "tokenizer.ggml.eos_token_id";
const EOT_KEY: &str = "tokenizer.ggml.eot_token_id";
const EOM_KEY: &str = "tokenizer.ggml.eom_token_id";
const ADD_BOS_KEY: &str = "tokenizer.ggml.add_bos_token";
const ADD_EOS_KEY: &str = "tokenizer.ggml.add_eos_token";
pub(super) const TOKENS_KEY: &str = "tokenizer.ggml.tokens";
const TYPES_KEY: &str = "tokenizer.ggml.token_type";

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
    eot: Option<u32>,
    eom: Option<u32>,
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

    fn ends_of_generation(&self, tokens: &[TokenEntry<'_>]) -> HashSet<u32> {
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

/// The beginning of a text out of a file, for an error.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect()
}

fn gguf_parts(metadata: &Metadata) -> Result<Parts<'_>, TokenizerError> {
    let model = metadata.require_string("tokenizer.ggml.model")?;
    if model != "gpt2" {
        return Err(TokenizerError::UnsupportedModel {
            model: shown(model),
        });
    }
    let pre = gguf_pre_tokenizer(metadata)?;
    let tokens = gguf_tokens(metadata)?;
    let merges = metadata.require_strings("tokenizer.ggml.merges")?;
    let pairs = merges
        .iter()
        .enumerate()
        .map(|(rank, merge)| merge_pair(rank, merge))
        .collect::<Result<Vec<_>, _>>()?;
    let ids = SpecialIds::read(metadata, tokens.len())?;
    let mut prefix = Vec::new();
    if pre.bos == BosDefault::Add && metadata.bool(ADD_BOS_KEY)?.is_none() {
        prefix.push(ids.bos.ok_or(TokenizerError::MissingSpecialId {
            flag: "the default of the pre-tokenizer for tokenizer.ggml.add_bos_token",
            key: BOS_KEY,
        })?);
    }
    let mut suffix = Vec::new();
    apply_add_flags(metadata, &ids, &mut prefix, &mut suffix)?;
    let bpe = ByteLevelBpe::new(bpe_vocab(&tokens)?, pairs.iter().copied(), pre.whole_piece)?;
    Ok(Parts {
        kind: TokenizerKind::GgufBpe,
        special: gguf_special(&tokens),
        splitters: pre
            .expressions
            .iter()
            .map(|expression| Splitter::new(expression))
            .collect::<Result<_, _>>()?,
        normalizer: Normalizer::None,
        bpe,
        prefix,
        suffix,
        tokens,
    })
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

fn gguf_pre_tokenizer(metadata: &Metadata) -> Result<PreTokenizer, TokenizerError> {
    match metadata.string("tokenizer.ggml.pre")? {
        None => Err(TokenizerError::UnnamedPreTokenizer { pre: "missing" }),
        Some("default") => Err(TokenizerError::UnnamedPreTokenizer { pre: "\"default\"" }),
        Some(name) => PreTokenizer::by_name(name)
            .ok_or_else(|| TokenizerError::UnknownPreTokenizer { pre: shown(name) }),
    }
}

fn gguf_tokens(metadata: &Metadata) -> Result<Vec<TokenEntry<'_>>, TokenizerError> {
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
    let class = |id: usize| match &types {
        Some(types) => token_class(id, types[id]),
        None => Ok(TokenClass::Normal),
    };
    texts
        .iter()
        .enumerate()
        .map(|(id, text)| {
            let class = class(id)?;
            Ok(TokenEntry { text, class })
        })
        .collect()
}

/// The numbers of `tokenizer.ggml.token_type`.
fn token_class(id: usize, number: i32) -> Result<TokenClass, TokenizerError> {
    match number {
        // Normal, unused, and byte, which byte-level vocabularies have no use for.
        1 | 5 | 6 => Ok(TokenClass::Normal),
        // Unknown and control: both are no text.
        2 | 3 => Ok(TokenClass::Control),
        4 => Ok(TokenClass::UserDefined),
        found => Err(TokenizerError::UnknownTokenType { id, found }),
    }
}

/// The tokens that merges may make: all but control tokens, which no text may become by accident.
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
    for (_, token) in ids().filter(|(_, token)| token.class == TokenClass::Control) {
        vocab.remove(token.text);
    }
    Ok(vocab)
}

fn gguf_special(tokens: &[TokenEntry<'_>]) -> Vec<SpecialToken> {
    let kind = |class| match class {
        TokenClass::Control => Some(SpecialKind::Control),
        TokenClass::UserDefined => Some(SpecialKind::UserDefined),
        TokenClass::Normal | TokenClass::Hole => None,
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
