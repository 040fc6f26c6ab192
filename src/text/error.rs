//! Why a tokenizer cannot be made, or a text not be encoded, in words that say what about the file or the text.

use crate::gguf::GgufError;

/// Characters of a name out of a file that an error repeats.
const SHOWN_CHARS_MAX: usize = 100;

/// Why a tokenizer could not be made, or a text not be encoded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TokenizerError {
    /// A metadata value of the model file is missing or of a wrong type.
    #[error("tokenizer: {0}")]
    Metadata(#[from] GgufError),
    /// The vocabulary is of a kind that is not read.
    #[error(
        "tokenizer.ggml.model is {model:?}: this version reads \"gpt2\" (byte-level BPE) and \"llama\" (SentencePiece BPE); give a BPE tokenizer.json with --tokenizer or another model"
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
    /// A score that orders nothing.
    #[error("tokenizer.ggml.scores of token {id} is not a number")]
    BadScore {
        /// The token.
        id: usize,
    },
    /// The model file asks for a step that is not known for its kind of vocabulary.
    #[error(
        "{key} is set, which this version does not do to a vocabulary of the model \"llama\"; give the model's tokenizer.json with --tokenizer"
    )]
    UnsupportedStep {
        /// The metadata key.
        key: &'static str,
    },
    /// A token that is said to be a byte and is not written like one.
    #[error("token {id} is of the type byte, but it is {token:?} and not like \"<0x0A>\"")]
    MalformedByte {
        /// The token.
        id: usize,
        /// Its text.
        token: String,
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
        "tokenizer.json: {part} is not supported by this version, which reads byte-level BPE and BPE with byte_fallback"
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

/// The beginning of a text out of a file, for an error.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect()
}
