//! A model's vocabulary as the crate wants it: a tree of all tokens, and which of them are plain pieces of a JSON string.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::api::ParserLimits;
use llguidance::toktrie::{
    InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv,
};

use crate::limits;
use crate::text::{AddSpecial, ParseSpecial, Tokenizer};

/// Text that means nothing in particular inside a JSON string: the mask of such tokens is computed once and not for each token.
const STRING_PIECE: &str = r#"[^"\\\x00-\x1F\x7F]{1,30}"#;

/// A vocabulary, ready to compile grammars for it.
pub struct Vocabulary {
    pub(super) factory: ParserFactory,
}

/// Makes it, in stages.
pub struct Building(Stage);

enum Stage {
    /// The bytes of each token.
    Words(Vec<Vec<u8>>),
    /// The tree: 20 ms for 49,000 tokens, 185 ms for 152,000.
    Tree(Vec<Vec<u8>>),
    /// The masks of plain text: 35 and 300 ms.
    Slices(TokEnv),
}

/// What a stage came to.
pub enum Built {
    /// There is another one.
    GoesOn(Building),
    /// It is made.
    Done(Vocabulary),
}

/// What the crate asks a tokenizer for.
struct Env {
    tree: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.tree
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let by_tokenizer = |text: &str| {
            let tokens = self.within(text);
            tokens.unwrap_or_else(|| self.tree.greedy_tokenize(text.as_bytes()))
        };
        self.tree.tokenize_with_greedy_fallback(bytes, by_tokenizer)
    }
}

impl Env {
    /// The tokens of a text within an output. Some tokenizers put a space before a text; what stands behind a line feed has none.
    fn within(&self, text: &str) -> Option<Vec<TokenId>> {
        ["", "\n"].iter().find_map(|before| {
            let text_before = format!("{before}{text}");
            let encoding = self
                .tokenizer
                .encode(&text_before, AddSpecial::No, ParseSpecial::No);
            self.last_of(&encoding.ok()?, text.as_bytes())
        })
    }

    /// Those of the tokens, from the last one back, that stand for all of `bytes` and for nothing else.
    fn last_of(&self, tokens: &[TokenId], bytes: &[u8]) -> Option<Vec<TokenId>> {
        let mut rest = bytes;
        let mut first = tokens.len();
        while !rest.is_empty() {
            first = first.checked_sub(1)?;
            let token = self.tokenizer.token_bytes(*tokens.get(first)?)?;
            rest = rest.strip_suffix(token)?;
        }
        tokens.get(first..).map(<[TokenId]>::to_vec)
    }
}

impl Default for Building {
    fn default() -> Self {
        Self(Stage::Words(Vec::new()))
    }
}

impl Building {
    /// One stage; that of the words in pieces, the others as a whole.
    ///
    /// # Errors
    ///
    /// What the crate says, where it cannot take the vocabulary.
    pub fn step(self, tokenizer: &Arc<Tokenizer>) -> Result<Built, String> {
        let next = match self.0 {
            Stage::Words(mut words) => {
                let end = words.len() + limits::VOCABULARY_PIECE_TOKENS;
                let end = end.min(tokenizer.vocab_size());
                words.extend((words.len()..end).map(|token| word(tokenizer, token)));
                match end < tokenizer.vocab_size() {
                    true => Stage::Words(words),
                    false => Stage::Tree(words),
                }
            }
            Stage::Tree(words) => Stage::Slices(Arc::new(Env {
                tree: tree(tokenizer, words)?,
                tokenizer: tokenizer.clone(),
            })),
            Stage::Slices(env) => {
                let slices = [STRING_PIECE.to_owned()];
                let factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
                    .map_err(|error| error.to_string())?;
                return Ok(Built::Done(Vocabulary { factory }));
            }
        };
        Ok(Built::GoesOn(Building(next)))
    }
}

/// A token's bytes. What is no text begins with a byte that no text has.
fn word(tokenizer: &Tokenizer, token: usize) -> Vec<u8> {
    let id = token.try_into().unwrap_or(u32::MAX);
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    if tokenizer.is_control(id) || tokenizer.is_end_of_generation(id) {
        return [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat();
    }
    bytes.to_vec()
}

fn tree(tokenizer: &Tokenizer, mut words: Vec<Vec<u8>>) -> Result<TokTrie, String> {
    let too_long = |_| "the vocabulary is too long".to_owned();
    let vocab = u32::try_from(words.len()).map_err(too_long)?;
    let mut ends: Vec<u32> = (0..vocab)
        .filter(|token| tokenizer.is_end_of_generation(*token))
        .collect();
    if ends.is_empty() {
        // The crate wants one; this one is beyond what a device draws.
        ends.push(vocab);
        words.push([&[TokTrie::SPECIAL_TOKEN_MARKER], b"end".as_slice()].concat());
    }
    let length = u32::try_from(words.len()).map_err(too_long)?;
    let info = TokRxInfo::new(length, ends.first().copied().unwrap_or_default());
    Ok(TokTrie::from(&info, &words).with_eos_tokens(&ends))
}

/// What a grammar may cost. The crate's own limits allow a step of 20 ms and half a gigabyte of states.
pub(super) fn parser_limits() -> ParserLimits {
    ParserLimits {
        max_grammar_size: limits::GRAMMAR_SYMBOLS_MAX,
        max_lexer_states: limits::LEXER_STATES_MAX,
        precompute_large_lexemes: false,
        // Its errors would quote all that was written so far.
        verbose_errors: false,
        ..ParserLimits::default()
    }
}
