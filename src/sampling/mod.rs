//! From logits to a token: one file per stage. Randomness is handed in.
//!
//! The order of the stages is fixed: repetition penalty → temperature → top_k → top_p → min_p → draw. Every stage only
//! changes or removes candidates and leaves the rest in the order of token ids, so that what is drawn depends on the
//! logits, the parameters and the uniform number, and on nothing else. Log-probabilities are those of the logits as the
//! model gave them.

mod chain;
mod draw;
mod logprobs;
mod min_p;
mod penalty;
mod temperature;
mod top_k;
mod top_p;
mod uniform;

pub use chain::Sampler;
pub use uniform::uniform;

use std::cmp::Ordering;

/// How a token is drawn. Fields carry the wire's names, ranges and neutral values.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 to 2; 0 takes the most likely token.
    pub temperature: f32,
    /// Keep the `top_k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of tokens whose probabilities reach `top_p`; (0, 1], 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least `min_p` times as likely as the likeliest; [0, 1], 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens already seen; (0, 2], 1 changes nothing.
    pub repetition_penalty: f32,
}

/// What a device needs to draw one token.
#[derive(Clone, Copy, Debug)]
pub struct SampleStep<'a> {
    /// How to draw.
    pub params: &'a SamplingParams,
    /// A number in [0, 1), a pure function of the request's seed and the token's index.
    pub uniform: f64,
    /// Tokens of the prompt and the output so far, for penalties.
    pub history: &'a [u32],
    /// `Some(n)`: also the log-probabilities of the drawn token and of the `n` likeliest, `n` ≤ [`TOP_LOGPROBS_MAX`].
    pub logprobs: Option<usize>,
}

/// Most alternatives whose log-probabilities may be asked for.
pub const TOP_LOGPROBS_MAX: usize = 20;

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// Natural logarithm of its probability in the unmodified distribution, where it was asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens of the unmodified distribution, likeliest first: (id, log-probability).
    pub top: TopLogprobs,
}

/// A short list of (token id, log-probability) that needs no heap.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TopLogprobs {
    entries: [(u32, f32); TOP_LOGPROBS_MAX],
    len: usize,
}

impl TopLogprobs {
    /// Appends an entry; more than [`TOP_LOGPROBS_MAX`] are not kept.
    pub fn push(&mut self, token: u32, logprob: f32) {
        if let Some(slot) = self.entries.get_mut(self.len) {
            *slot = (token, logprob);
            self.len += 1;
        }
    }

    /// The entries, likeliest first.
    pub fn as_slice(&self) -> &[(u32, f32)] {
        &self.entries[..self.len]
    }
}

/// A token that may still be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    /// Its id.
    token: u32,
    /// Before the temperature stage the logit, from there on exp((logit − largest logit) / temperature): the
    /// probability up to a factor that all candidates share.
    score: f64,
}

impl Candidate {
    /// Likelier first; of equally likely ones the lower id first. A total order, so that no stage depends on how a
    /// selection happens to arrange ties.
    fn rank(&self, other: &Self) -> Ordering {
        other
            .score
            .total_cmp(&self.score)
            .then(self.token.cmp(&other.token))
    }
}

/// Why no token can be drawn.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// The device computed garbage.
    #[error("the logit of token {token} is {value}, which is not a finite number")]
    NotFinite {
        /// The first such token.
        token: u32,
        /// NaN or positive infinity.
        value: f32,
    },
    /// Every logit is negative infinity.
    #[error("no token has a logit above negative infinity")]
    NothingLeft,
    /// The row has the wrong length.
    #[error("{got} logits were given, the vocabulary has {want} tokens")]
    WrongLength {
        /// Logits given.
        got: usize,
        /// The vocabulary's size.
        want: usize,
    },
    /// The history names a token that does not exist.
    #[error("token {token} in the history is not below the vocabulary's size {vocab}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// The vocabulary's size.
        vocab: usize,
    },
}
