//! From logits to a token: one file per stage. Randomness is handed in.
//!
//! The order of the stages is fixed: logit_bias → mask (what a grammar allows, what min_tokens forbids) → penalties → dry →
//! temperature → top_n_sigma → top_k → typical_p → top_p → min_p → xtc → draw. The first four change logits; those after
//! the temperature remove candidates and leave the rest in the order of token ids. So what is drawn depends on the logits,
//! the parameters and the uniform numbers, and on nothing else. Log-probabilities are those of the logits as the model
//! gave them.

mod chain;
mod draw;
mod dry;
mod exp;
mod logit_bias;
mod logprobs;
mod mask;
mod min_p;
mod part;
mod penalties;
mod select;
mod temperature;
mod top_k;
mod top_n_sigma;
mod top_p;
mod typical_p;
mod uniform;
mod xtc;

pub use chain::Sampler;
pub use dry::DRY_MATCH_MAX;
pub use logprobs::score;
pub use mask::TokenSet;
pub use part::{Decision, Need, PART_TOKENS_MAX, RowPart, score_part};
pub use uniform::{uniform, uniform_for_xtc};

use std::cmp::Ordering;

/// How a token is drawn. Fields carry the wire's names, ranges and neutral values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides positive and multiplies negative logits of tokens in the window; (0, 2], 1 changes nothing.
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens in the window; [-2, 2], 0 changes nothing.
    pub presence_penalty: f32,
    /// Taken from the logit of a token for each time that it stands in the window; [-2, 2], 0 changes nothing.
    pub frequency_penalty: f32,
    /// The window of the three penalties.
    pub penalty_window: Window,
    /// `None` is off.
    pub dry: Option<DryParams>,
    /// 0 to 2; 0 takes the most likely token.
    pub temperature: f32,
    /// Keep tokens whose logit is at most so many standard deviations below the largest; above 0, `None` keeps all.
    pub top_n_sigma: Option<f32>,
    /// Keep the `top_k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of the most typical tokens whose probabilities reach `typical_p`; (0, 1], 1 keeps all.
    pub typical_p: f32,
    /// Keep the smallest set of tokens whose probabilities reach `top_p`; (0, 1], 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least `min_p` times as likely as the likeliest; [0, 1], 0 keeps all.
    pub min_p: f32,
    /// `None` is off.
    pub xtc: Option<XtcParams>,
}

impl SamplingParams {
    /// Draws from the model's own distribution.
    pub const NEUTRAL: Self = Self {
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        penalty_window: Window::All,
        dry: None,
        temperature: 1.0,
        top_n_sigma: None,
        top_k: 0,
        typical_p: 1.0,
        top_p: 1.0,
        min_p: 0.0,
        xtc: None,
    };

    /// Takes the likeliest token.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        ..Self::NEUTRAL
    };
}

/// How far back a stage looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Over prompt and output.
    All,
    /// Over so many tokens, the last ones.
    Last(usize),
}

impl Window {
    /// The part of `history` that is looked at.
    fn of(self, history: &[u32]) -> &[u32] {
        match self {
            Window::All => history,
            Window::Last(tokens) => history
                .get(history.len().saturating_sub(tokens)..)
                .unwrap_or_default(),
        }
    }
}

/// How sequences are kept from coming again; which tokens break them stands in [`SampleStep::breakers`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DryParams {
    /// Taken from the logit of a token that would continue a repetition of `allowed_length` tokens; 0 is off.
    pub multiplier: f32,
    /// By what that grows with each further token; at least 1.
    pub base: f32,
    /// Tokens that may be repeated; at least 1.
    pub allowed_length: u32,
    /// How far back repetitions are looked for.
    pub window: Window,
}

/// How the likeliest tokens are left out now and then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct XtcParams {
    /// How often; [0, 1], 0 is off.
    pub probability: f32,
    /// Tokens at least so probable are left out, but for the least likely of them; [0, 1].
    pub threshold: f32,
}

/// What a device needs to draw one token.
#[derive(Clone, Copy, Debug)]
pub struct SampleStep<'a> {
    /// The row of the last forward whose logits are drawn from; 0 where it has the logits of its last token alone.
    pub row: usize,
    /// How to draw.
    pub params: &'a SamplingParams,
    /// A number in [0, 1), a pure function of the request's seed and the token's index: [`uniform()`].
    pub uniform: f64,
    /// Another one, which says whether xtc acts: [`uniform_for_xtc`].
    pub xtc_uniform: f64,
    /// Tokens of the prompt and the output so far, for penalties and dry.
    pub history: &'a [u32],
    /// What is added to logits, by token; negative infinity forbids it.
    pub bias: &'a [(u32, f32)],
    /// The tokens that a grammar allows; `None` for all.
    pub allowed: Option<TokenSet<'a>>,
    /// Tokens that must not be drawn: what ends a generation, before `min_tokens`.
    pub banned: &'a [u32],
    /// Tokens that end a sequence for dry.
    pub breakers: TokenSet<'a>,
    /// `Some(n)`: also the log-probabilities of the drawn token and of the `n` likeliest, `n` ≤ [`TOP_LOGPROBS_MAX`].
    pub logprobs: Option<usize>,
}

impl<'a> SampleStep<'a> {
    /// A step in which nothing is forbidden, biased or reported.
    pub fn new(params: &'a SamplingParams, uniform: f64, history: &'a [u32]) -> Self {
        Self {
            row: 0,
            params,
            uniform,
            xtc_uniform: 0.0,
            history,
            bias: &[],
            allowed: None,
            banned: &[],
            breakers: TokenSet::EMPTY,
            logprobs: None,
        }
    }
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

/// What a model says of a token that is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// Natural logarithm of its probability in the unmodified distribution.
    pub logprob: f32,
    /// The likeliest tokens, likeliest first.
    pub top: TopLogprobs,
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
    /// Every logit is negative infinity, or became it.
    #[error(
        "no token is left to draw: the model rules out every one, or logit_bias, a grammar and min_tokens do so together"
    )]
    NothingLeft,
    /// The row has the wrong length.
    #[error("{got} logits were given, the vocabulary has {want} tokens")]
    WrongLength {
        /// Logits given.
        got: usize,
        /// The vocabulary's size.
        want: usize,
    },
    /// The history, or the token to be scored, does not exist.
    #[error("token {token} is not below the vocabulary's size {vocab}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// The vocabulary's size.
        vocab: usize,
    },
}

/// A change of a logit, rounded to what f32 holds: what was forbidden stays so, and nothing else becomes forbidden or
/// infinite by it.
fn change(logit: &mut f32, by: impl FnOnce(f32) -> f32) {
    if *logit > f32::NEG_INFINITY {
        *logit = by(*logit).clamp(f32::MIN, f32::MAX);
    }
}

/// Sums with eight partial sums, the same on every machine: one chain of additions would be as slow as everything else together.
fn sum<T: Copy>(of: &[T], value: impl Fn(T) -> f64) -> f64 {
    let mut lanes = [0.0; 8];
    let (chunks, rest) = of.as_chunks::<8>();
    for chunk in chunks {
        for (lane, item) in lanes.iter_mut().zip(chunk) {
            *lane += value(*item);
        }
    }
    for (lane, item) in lanes.iter_mut().zip(rest) {
        *lane += value(*item);
    }
    lanes.iter().sum()
}

/// Refuses a row with a logit that is no number or infinite.
fn check_row(logits: &[f32]) -> Result<(), SampleError> {
    let is_wrong = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
    if !logits
        .iter()
        .fold(false, |any, logit| any | is_wrong(logit))
    {
        return Ok(());
    }
    match (0u32..).zip(logits).find(|(_, logit)| is_wrong(logit)) {
        Some((token, &value)) => Err(SampleError::NotFinite { token, value }),
        None => Ok(()),
    }
}

/// Candidates with these scores, their ids from 0, for tests of stages.
#[cfg(test)]
fn candidates(scores: &[f64]) -> Vec<Candidate> {
    (0u32..)
        .zip(scores)
        .map(|(token, &score)| Candidate { token, score })
        .collect()
}

/// Which candidates a stage keeps, by their ids.
#[cfg(test)]
fn kept(scores: &[f64], stage: impl FnOnce(&mut Vec<Candidate>)) -> Vec<u32> {
    let mut all = candidates(scores);
    stage(&mut all);
    all.iter().map(|c| c.token).collect()
}
