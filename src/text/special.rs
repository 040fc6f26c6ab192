//! Tokens that are found in the text before anything else looks at it: control tokens such as
//! `<|im_end|>` where the caller wants them read, and user-defined tokens always.
//!
//! Of several tokens that match, the one that begins first wins, and of those the longest, which is
//! how the Hugging Face tokenizers do it. (llama.cpp goes through the tokens by length; the two
//! differ only where two tokens' texts overlap.)

use std::ops::Range;

use aho_corasick::{AhoCorasick, Input, MatchKind};

use super::error::TokenizerError;
use super::tokenizer::ParseSpecial;

/// Bytes that one [`SpecialTokens::find`] looks at: well under a millisecond.
const WINDOW_BYTES: usize = 64 * 1024;

/// Whether white space beside a token belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strip {
    /// It belongs to the token and vanishes.
    Yes,
    /// It is text.
    No,
}

/// A token that is matched in the text.
#[derive(Debug, Clone)]
pub(super) struct SpecialToken {
    pub(super) id: u32,
    pub(super) text: String,
    pub(super) kind: SpecialKind,
    /// White space to the left.
    pub(super) left: Strip,
    /// White space to the right.
    pub(super) right: Strip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpecialKind {
    /// Matched only with [`ParseSpecial::Yes`].
    Control,
    /// Always matched.
    UserDefined,
}

/// What a search found.
pub(super) enum Found {
    /// No token begins before this offset; search on from there.
    NothingBefore(usize),
    /// The next token.
    Token {
        /// Its id.
        id: u32,
        /// What it stands for in the text, stripped white space included.
        range: Range<usize>,
    },
    /// There is none in the rest of the text.
    End,
}

/// All such tokens of a vocabulary.
pub(super) struct SpecialTokens {
    /// Control and user-defined tokens; `None` if there are none.
    all: Option<Matcher>,
    /// User-defined tokens alone.
    user_defined: Option<Matcher>,
}

impl SpecialTokens {
    pub(super) fn new(tokens: Vec<SpecialToken>) -> Result<Self, TokenizerError> {
        let user_defined = tokens
            .iter()
            .filter(|token| token.kind == SpecialKind::UserDefined)
            .cloned()
            .collect();
        Ok(SpecialTokens {
            user_defined: Matcher::new(user_defined)?,
            all: Matcher::new(tokens)?,
        })
    }

    /// The first token in `text[at..]`, given that none begins in `text[at..scanned]`. Looks at a
    /// bounded part of the text only.
    pub(super) fn find(
        &self,
        text: &str,
        at: usize,
        scanned: usize,
        parse_special: ParseSpecial,
    ) -> Found {
        let matcher = match parse_special {
            ParseSpecial::Yes => &self.all,
            ParseSpecial::No => &self.user_defined,
        };
        matcher
            .as_ref()
            .map_or(Found::End, |matcher| matcher.find(text, at, scanned))
    }
}

struct Matcher {
    automaton: AhoCorasick,
    tokens: Vec<SpecialToken>,
    /// Bytes of the longest token.
    longest: usize,
}

impl Matcher {
    fn new(tokens: Vec<SpecialToken>) -> Result<Option<Self>, TokenizerError> {
        if tokens.is_empty() {
            return Ok(None);
        }
        if let Some(empty) = tokens.iter().find(|token| token.text.is_empty()) {
            return Err(TokenizerError::EmptySpecialToken { id: empty.id });
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|token| token.text.as_bytes()))
            .map_err(|error| TokenizerError::SpecialTokens {
                reason: error.to_string(),
            })?;
        let longest = tokens
            .iter()
            .map(|token| token.text.len())
            .max()
            .unwrap_or(0);
        Ok(Some(Matcher {
            automaton,
            tokens,
            longest,
        }))
    }

    /// Searches one window. A token that begins in the window is seen whole, since the search reads
    /// on by the longest token; so the window's first and longest match is that of the whole text.
    fn find(&self, text: &str, at: usize, scanned: usize) -> Found {
        let window_end = scanned.saturating_add(WINDOW_BYTES);
        let search_end = window_end.saturating_add(self.longest).min(text.len());
        let input = Input::new(text.as_bytes()).range(scanned..search_end);
        let found = self
            .automaton
            .find(input)
            .filter(|found| found.start() < window_end);
        let Some(found) = found else {
            return match search_end == text.len() {
                true => Found::End,
                false => Found::NothingBefore(window_end),
            };
        };
        let token = &self.tokens[found.pattern().as_usize()];
        let mut range = found.range();
        if token.left == Strip::Yes {
            range.start = at + text[at..range.start].trim_end().len();
        }
        if token.right == Strip::Yes {
            range.end = text.len() - text[range.end..].trim_start().len();
        }
        Found::Token {
            id: token.id,
            range,
        }
    }
}
