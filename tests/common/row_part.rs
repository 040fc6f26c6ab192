//! What `cuda/candidates.cu` finds in a row, as plainly as possible.
#![allow(dead_code, reason = "each test file uses its own part")]

use worker_orcd::sampling::{PART_TOKENS_MAX, RowPart, TokenSet};

/// Blocks and threads of the kernels: a block's tokens lie together, and are a range.
const BLOCKS: usize = 128;
const THREADS: usize = 256;

/// Bins that a logit's distance from the largest is counted in, and how many of them are 1.
const BINS: usize = 1024;
const BINS_PER_ONE: f32 = 32.0;

/// What a search finds.
pub struct Found {
    pub tokens: Vec<u32>,
    pub logits: Vec<f32>,
    pub is_whole: bool,
    pub rest: Vec<f64>,
    pub range_tokens: usize,
    pub temperature: f32,
    pub rest_at_one: Option<f64>,
    pub is_masked: bool,
}

fn bin(logit: f32, largest: f32) -> usize {
    (((largest - logit) * BINS_PER_ONE) as usize).min(BINS - 1)
}

/// Searches a row without NaN or positive infinity. `allowed` leaves out what it does not hold; `temperature` 0 sums nothing.
pub fn find(
    row: &[f32],
    allowed: Option<TokenSet<'_>>,
    temperature: f32,
    wants_one: bool,
) -> Found {
    let is_left = |(token, logit): &(u32, f32)| {
        *logit > f32::NEG_INFINITY && allowed.is_none_or(|set| set.contains(*token))
    };
    let left: Vec<(u32, f32)> = (0u32..).zip(row.iter().copied()).filter(is_left).collect();
    let largest = left.iter().fold(f32::NEG_INFINITY, |m, c| m.max(c.1));
    let mut counts = [0; BINS];
    left.iter().for_each(|c| counts[bin(c.1, largest)] += 1);
    let mut sum = 0;
    let fits = counts.iter().take_while(|count| {
        sum += **count;
        sum <= PART_TOKENS_MAX
    });
    let cut = fits.count();
    let (listed, others): (Vec<_>, Vec<_>) = left.iter().partition(|c| bin(c.1, largest) < cut);
    let range_tokens = row.len().div_ceil(BLOCKS * THREADS) * THREADS;
    let mut rest = vec![0.0; row.len().div_ceil(range_tokens)];
    let mut at_one = 0.0;
    for (token, logit) in others.iter().copied() {
        let below = f64::from(logit) - f64::from(largest);
        if temperature > 0.0 {
            rest[token as usize / range_tokens] += (below / f64::from(temperature)).exp();
        }
        at_one += below.exp();
    }
    Found {
        tokens: listed.iter().map(|c| c.0).collect(),
        logits: listed.iter().map(|c| c.1).collect(),
        is_whole: others.is_empty(),
        rest,
        range_tokens,
        temperature,
        rest_at_one: wants_one.then_some(at_one),
        is_masked: allowed.is_some(),
    }
}

impl Found {
    pub fn part(&self) -> RowPart<'_> {
        RowPart {
            tokens: &self.tokens,
            logits: &self.logits,
            least: self.logits.iter().copied().fold(f32::INFINITY, f32::min),
            is_whole: self.is_whole,
            rest: &self.rest,
            range_tokens: self.range_tokens,
            temperature: self.temperature,
            rest_at_one: self.rest_at_one,
            lists_touched: false,
            is_masked: self.is_masked,
            run: None,
        }
    }
}
