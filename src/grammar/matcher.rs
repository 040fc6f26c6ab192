//! Where an output stands in its grammar: what the next token may be.

use std::collections::VecDeque;

use llguidance::TokenParser;
use llguidance::toktrie::{SimpleVob, TokenId};

use super::{Forcing, in_short};

/// Why a grammar cannot be followed any further: it costs more than a token may, or the crate has met a bug.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the grammar cannot be followed any further: {0}")]
pub struct MatcherError(String);

/// The place of an output in its grammar.
pub struct Matcher {
    inner: Box<llguidance::Matcher>,
    forcing: Forcing,
    ends: Vec<TokenId>,
    /// What the next token may be, once that was computed.
    mask: Option<SimpleVob>,
    /// Tokens that have to come next and are not taken yet.
    forced: VecDeque<TokenId>,
    /// Whether `forced` was asked for since the last token was taken.
    asked: bool,
    /// Nothing can follow but the end.
    over: bool,
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matcher").finish_non_exhaustive()
    }
}

impl Matcher {
    pub(super) fn new(parser: TokenParser, ends: &[TokenId], forcing: Forcing) -> Self {
        let inner = Box::new(llguidance::Matcher::new(Ok(parser)));
        Self {
            over: inner.is_stopped(),
            inner,
            forcing,
            ends: ends.to_vec(),
            mask: None,
            forced: VecDeque::new(),
            asked: false,
        }
    }

    /// Notes a token that was drawn.
    ///
    /// # Errors
    ///
    /// A grammar that is too costly, or a token that it does not allow.
    pub fn take(&mut self, token: u32) -> Result<(), MatcherError> {
        self.forced.clear();
        self.advance(token)
    }

    /// How many of these tokens could come next, one after the other. Nothing is taken.
    ///
    /// # Errors
    ///
    /// As [`Matcher::take`].
    pub fn possible(&mut self, tokens: &[u32]) -> Result<usize, MatcherError> {
        let possible = self.inner.validate_tokens(tokens);
        possible.map_err(|error| MatcherError(in_short(&error.to_string())))
    }

    /// Up to `most` tokens without which there is no way on. They count as taken.
    ///
    /// # Errors
    ///
    /// As [`Matcher::take`].
    pub fn force(&mut self, most: usize) -> Result<Vec<u32>, MatcherError> {
        if self.over || self.forcing == Forcing::Drawn {
            return Ok(Vec::new());
        }
        if self.forced.is_empty() && !self.asked {
            self.forced = self.inner.compute_ff_tokens().into();
            self.check()?;
        }
        let tokens: Vec<u32> = self.forced.drain(..most.min(self.forced.len())).collect();
        for token in &tokens {
            self.advance(*token)?;
        }
        // What comes after all of them is no longer forced.
        self.asked = self.forced.is_empty();
        Ok(tokens)
    }

    /// Finds out what the next token may be, unless that is known.
    ///
    /// # Errors
    ///
    /// A grammar that is too costly.
    pub fn prepare(&mut self) -> Result<(), MatcherError> {
        if self.over || self.mask.is_some() || !self.forced.is_empty() {
            return Ok(());
        }
        let mask = self.inner.compute_mask();
        let mask = mask.map_err(|error| MatcherError(in_short(&error.to_string())))?;
        let ends = self.ends.iter().filter(|end| mask.is_allowed(**end));
        self.over = mask.num_set() == ends.count();
        self.mask = Some(mask);
        Ok(())
    }

    /// The set of tokens of which the next one has to be, 32 of them a word; after [`Matcher::prepare`].
    pub fn allowed(&self) -> &[u32] {
        self.mask.as_ref().map_or(&[], SimpleVob::as_slice)
    }

    /// Whether nothing more can come.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Whether the output may end here.
    pub fn is_complete(&mut self) -> bool {
        self.over || self.inner.is_accepting().unwrap_or(false)
    }

    fn advance(&mut self, token: u32) -> Result<(), MatcherError> {
        self.mask = None;
        self.asked = false;
        self.inner
            .consume_token(token)
            .map_err(|error| MatcherError(in_short(&error.to_string())))?;
        self.over = self.inner.is_stopped();
        Ok(())
    }

    fn check(&self) -> Result<(), MatcherError> {
        match self.inner.get_error() {
            None => Ok(()),
            Some(error) => Err(MatcherError(in_short(&error))),
        }
    }
}
