//! A draw from a part of a row: its largest logits, and what all others weigh together. On a card that is two thousand times less to move.
//!
//! The token is the one that the whole row gives, bit for bit, whichever way it came: every stage is the chain's own, run over what is
//! listed, and a part only decides where the rest cannot change what is drawn. Sums of the rest come in another order than the chain's;
//! [`margin`] bounds what that can do, and whatever lies within it is undecided. What is undecided says what it needs: see [`Need`].
//!
//! - `top_k`: decided when the `k` likeliest are all listed; everything after it looks at those alone.
//! - `top_p`, `min_p`: decided when what they keep is listed, and its last member is the same for every sum that the row may have.
//! - Neither: decided when the draw falls on a listed token whatever the order of the rest within a range of ids; otherwise the logits of
//!   that range decide.
//! - Penalties, `dry`, `logit_bias`, banned tokens: only tokens that the request or the history names change. What is not listed can
//!   only have become less likely, or its logits are asked for.
//! - A form's mask: what is listed and allowed decides, or the card looks again with the mask.
//! - `top_n_sigma`, `typical_p` and `xtc` without anything before them that keeps a few: they look at every token, so the row is needed.

use super::chain::Sampler;
use super::exp::exp;
use super::{Candidate, SampleStep, Sampled, SamplingParams, Scored, TopLogprobs};
use super::{draw, dry, logit_bias, logprobs, mask, min_p, penalties, sum};
use super::{temperature, top_k, top_p, xtc};

/// Tokens that a part lists, at most, apart from those that were asked for.
pub const PART_TOKENS_MAX: usize = 512;

/// The largest logits of a row, and what the others come to.
#[derive(Clone, Copy, Debug)]
pub struct RowPart<'a> {
    /// Tokens that are listed, in the order of their ids: those with the largest logits, and others that were asked for.
    pub tokens: &'a [u32],
    /// Their logits as the model gave them: no NaN, no infinity.
    pub logits: &'a [f32],
    /// Every token with at least this logit is listed.
    pub least: f32,
    /// No token that is not listed can be drawn.
    pub is_whole: bool,
    /// What tokens with smaller logits weigh, those of a range of ids together: e^((logit − largest) / temperature), summed.
    pub rest: &'a [f64],
    /// Ids in a range.
    pub range_tokens: usize,
    /// The temperature of `rest`; not above 0 where it was not computed.
    pub temperature: f32,
    /// The sum of `rest` at temperature 1, where log-probabilities are wanted.
    pub rest_at_one: Option<f64>,
    /// The tokens that [`Sampler::touched`] named are listed, too.
    pub lists_touched: bool,
    /// What the step does not allow has been left out of everything.
    pub is_masked: bool,
    /// All logits of a range of ids, from this token on.
    pub run: Option<(u32, &'a [f32])>,
}

/// What came of a part.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// The token that the whole row gives.
    Drawn(Sampled),
    /// It cannot be said yet.
    Undecided(Need),
}

/// What would decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A part of the row with what is not allowed left out.
    Mask,
    /// The logits of the tokens that [`Sampler::touched`] names.
    Touched,
    /// All logits of this range of ids.
    Range(usize),
    /// The whole row. It also says what is wrong with it.
    Row,
}

/// By which share of itself a sum over a row may differ from the same sum in another order.
fn margin(vocab: usize) -> f64 {
    (vocab as f64 * f64::EPSILON / 4.0).max(1e-12)
}

impl RowPart<'_> {
    /// What would decide where this part does not.
    fn need(&self, step: &SampleStep<'_>) -> Need {
        if step.allowed.is_some() && !self.is_masked {
            Need::Mask
        } else if touches(step) && !self.lists_touched {
            Need::Touched
        } else {
            Need::Row
        }
    }

    /// The logit of a token, where it is known.
    fn logit(&self, token: u32) -> Option<f32> {
        if let Ok(at) = self.tokens.binary_search(&token) {
            return self.logits.get(at).copied();
        }
        let (first, run) = self.run?;
        run.get(token.checked_sub(first)? as usize).copied()
    }

    /// No token that is not listed has so large a logit.
    fn bound(&self) -> f32 {
        if self.is_whole {
            f32::NEG_INFINITY
        } else {
            self.least
        }
    }
}

impl Sampler {
    /// Draws one token from a part of a row: the one that [`Sampler::sample`] draws from the row. Never panics; the cost is that of what is
    /// listed and of the history.
    pub fn sample_part(&mut self, part: &RowPart<'_>, step: &SampleStep<'_>) -> Decision {
        let drawn = self.choose_part(part, step).and_then(|token| {
            let told = match step.logprobs {
                None => Some((None, TopLogprobs::default())),
                Some(n) => part
                    .logit(token)
                    .and_then(|logit| logprobs::of_part(part, logit, n, margin(self.counts.len())))
                    .map(|(logprob, top)| (Some(logprob), top)),
            };
            let (logprob, top) = told.ok_or(Need::Row)?;
            Ok(Sampled {
                token,
                logprob,
                top,
            })
        });
        match drawn {
            Ok(sampled) => Decision::Drawn(sampled),
            Err(need) => Decision::Undecided(need),
        }
    }

    /// The tokens whose logits the step may change, apart from its mask: each once, in the order of their ids.
    pub fn touched(&mut self, step: &SampleStep<'_>) -> &[u32] {
        let vocab = self.counts.len();
        let biased = step.bias.iter().map(|(token, _)| *token);
        let named = biased.chain(step.banned.iter().copied());
        self.touched.clear();
        let all = named.chain(looked_back(step).iter().copied());
        for token in all.filter(|token| (*token as usize) < vocab) {
            if std::mem::replace(&mut self.counts[token as usize], 1) == 0 {
                self.touched.push(token);
            }
        }
        for token in &self.touched {
            self.counts[*token as usize] = 0;
        }
        self.touched.sort_unstable();
        &self.touched
    }

    fn choose_part(&mut self, part: &RowPart<'_>, step: &SampleStep<'_>) -> Result<u32, Need> {
        let (params, vocab) = (step.params, self.counts.len());
        let is_known = |token: &u32| (*token as usize) < vocab;
        let sound = part.tokens.len() == part.logits.len() && part.tokens.iter().all(is_known);
        if part.tokens.is_empty() || !sound || !step.history.iter().all(is_known) {
            return Err(Need::Row);
        }
        let need = part.need(step);
        if !part.lists_touched && may_raise(part, step) {
            return Err(need);
        }
        self.change(part, step);
        let (at, largest) = draw::likeliest(&self.values).ok_or(need)?;
        let bound = part.bound();
        if largest < bound {
            return Err(need);
        }
        if params.temperature.is_nan() || params.temperature <= 0.0 {
            return part.tokens.get(at as usize).copied().ok_or(need);
        }
        if params.top_n_sigma.is_some_and(|n| n > 0.0) {
            return Err(Need::Row);
        }
        let k = if params.top_k as usize >= vocab {
            0
        } else {
            params.top_k
        };
        let (candidates, scratch) = (&mut self.candidates, &mut self.scratch);
        top_k::gather(&self.values, f32::NEG_INFINITY, k, candidates, scratch);
        let likely = |c: &Candidate| c.score >= f64::from(bound);
        let is_all = part.is_whole
            || k > 0 && candidates.len() == k as usize && candidates.iter().all(likely);
        for candidate in candidates.iter_mut() {
            candidate.token = part.tokens[candidate.token as usize];
        }
        temperature::apply(candidates, f64::from(largest), params.temperature);
        if is_all {
            self.narrow(step);
            return draw::draw(&self.candidates, step.uniform).ok_or(need);
        }
        if k > 0 {
            return Err(need);
        }
        self.draw_beside_rest(part, step, largest)
    }

    /// The logits that are listed, as the stages before the temperature change them: `values`. They are the chain's, over a row in which
    /// everything else is forbidden.
    fn change(&mut self, part: &RowPart<'_>, step: &SampleStep<'_>) {
        if !std::mem::replace(&mut self.is_empty, true) {
            self.logits.fill(f32::NEG_INFINITY);
        }
        for (token, logit) in part.tokens.iter().zip(part.logits) {
            self.logits[*token as usize] = *logit;
        }
        logit_bias::apply(&mut self.logits, step.bias);
        mask::apply(&mut self.logits, None, step.banned);
        penalties::apply(
            &mut self.logits,
            step.history,
            step.params,
            &mut self.counts,
        );
        dry::apply(&mut self.logits, step, &mut self.counts);
        self.values.clear();
        for token in part.tokens {
            let logit = std::mem::replace(&mut self.logits[*token as usize], f32::NEG_INFINITY);
            let is_allowed = step.allowed.is_none_or(|set| set.contains(*token));
            self.values
                .push(if is_allowed { logit } else { f32::NEG_INFINITY });
        }
    }

    /// Where no `top_k` has left a few: `candidates` are what is listed, weighed, and the rest is known in sum.
    fn draw_beside_rest(
        &mut self,
        part: &RowPart<'_>,
        step: &SampleStep<'_>,
        largest: f32,
    ) -> Result<u32, Need> {
        let (params, need) = (step.params, part.need(step));
        // What looks at every token can do with a part only if that is whole.
        let whole = match need {
            Need::Mask => Need::Mask,
            Need::Touched | Need::Range(_) | Need::Row => Need::Row,
        };
        if params.typical_p < 1.0 {
            return Err(whole);
        }
        let rest = self.weigh_rest(part, step, largest).ok_or(need)?;
        if params.top_p < 1.0 {
            let (candidates, scratch) = (&mut self.candidates, &mut self.scratch);
            if !top_p::apply_beside(candidates, scratch, params.top_p, rest.total, rest.heaviest) {
                return Err(need);
            }
        } else if !(params.min_p > 0.0
            && rest.heaviest < f64::from(params.min_p.min(1.0)) * (1.0 - 1e-9))
        {
            let acts = params
                .xtc
                .is_some_and(|xtc| step.xtc_uniform < f64::from(xtc.probability));
            return match (params.min_p > 0.0, acts) {
                (false, false) => self.walk(part, step, largest, &rest),
                (true, _) | (_, true) => Err(whole),
            };
        }
        min_p::apply(&mut self.candidates, params.min_p);
        xtc::apply(&mut self.candidates, params.xtc, step.xtc_uniform);
        draw::draw(&self.candidates, step.uniform).ok_or(need)
    }

    /// What is not listed, weighed as the candidates are: `self.rest`, a range each, and what is known of its sum. `None` where the part
    /// has no such sums.
    fn weigh_rest(
        &mut self,
        part: &RowPart<'_>,
        step: &SampleStep<'_>,
        largest: f32,
    ) -> Option<Rest> {
        let temperature = step.params.temperature;
        if part.temperature != temperature || part.range_tokens == 0 {
            return None;
        }
        let degrees = f64::from(temperature);
        let was = part.logits.iter().copied().fold(f32::MIN, f32::max);
        let factor = libm::exp((f64::from(was) - f64::from(largest)) / degrees);
        let weight = |logit: f32| exp((f64::from(logit) - f64::from(largest)).min(0.0) / degrees);
        self.rest.clear();
        self.rest.extend(part.rest.iter().map(|rest| rest * factor));
        let asked = part.tokens.iter().zip(part.logits);
        for (token, logit) in asked.filter(|(_, logit)| **logit < part.least) {
            let left_out = part.is_masked && !step.allowed.is_none_or(|set| set.contains(*token));
            let range = self.rest.get_mut(*token as usize / part.range_tokens)?;
            if !left_out {
                *range = (*range - weight(*logit)).max(0.0);
            }
        }
        let others = self.rest.iter().sum::<f64>();
        let heaviest = weight(part.least);
        // By how much the rest may weigh less than that, since the step makes tokens of it less likely.
        let slack = match part.need(step) {
            Need::Mask => others,
            Need::Touched => {
                let named = step.bias.len() + step.banned.len() + looked_back(step).len();
                others.min(named as f64 * heaviest)
            }
            Need::Range(_) | Need::Row => 0.0,
        };
        let all = sum(&self.candidates, |c| c.score) + others;
        let margin = all * margin(self.counts.len());
        all.is_finite().then_some(Rest {
            total: (all - slack - margin, all + margin),
            heaviest,
            slack,
            margin,
        })
    }

    /// A draw from all tokens: the listed one in whose share the uniform number falls wherever the rest of its range lies, or the one
    /// that the logits of the range say.
    fn walk(
        &self,
        part: &RowPart<'_>,
        step: &SampleStep<'_>,
        largest: f32,
        rest: &Rest,
    ) -> Result<u32, Need> {
        let target = (step.uniform * rest.total.0, step.uniform * rest.total.1);
        let is_before = |sum: f64| sum + rest.margin <= target.0;
        let is_after = |sum: f64| sum - rest.margin > target.1;
        let mut left = self.candidates.as_slice();
        let mut sum = 0.0;
        for (range, others) in self.rest.iter().enumerate() {
            let end = (range + 1) * part.range_tokens;
            let listed = left.partition_point(|c| (c.token as usize) < end);
            let (here, further) = left.split_at(listed);
            let first = sum;
            for candidate in here {
                let after = sum + candidate.score;
                if is_before(sum + others) && is_after(after - rest.slack) {
                    return Ok(candidate.token);
                }
                sum = after;
            }
            sum += others;
            if rest.slack == 0.0 && is_before(first) && is_after(sum) {
                return match part.run {
                    None => Err(Need::Range(range)),
                    Some(run) => {
                        let among = Run { run, here, first };
                        let weigh = |logit: f32| {
                            let below = f64::from(logit) - f64::from(largest);
                            exp(below.min(0.0) / f64::from(step.params.temperature))
                        };
                        among
                            .find(part, step, weigh, is_before, is_after)
                            .ok_or(Need::Row)
                    }
                };
            }
            left = further;
        }
        Err(part.need(step))
    }
}

/// What is known of the tokens that are not listed.
struct Rest {
    /// Between what the weight of all tokens lies, the listed ones included.
    total: (f64, f64),
    /// No token of the rest weighs more.
    heaviest: f64,
    /// By how much the rest may weigh less than it was found to.
    slack: f64,
    /// By how much a sum may be off.
    margin: f64,
}

/// All tokens of a range.
struct Run<'a> {
    run: (u32, &'a [f32]),
    /// Those that are listed.
    here: &'a [Candidate],
    /// What everything before the range weighs.
    first: f64,
}

impl Run<'_> {
    /// The token that begins before the target and ends after it.
    fn find(
        &self,
        part: &RowPart<'_>,
        step: &SampleStep<'_>,
        weigh: impl Fn(f32) -> f64,
        is_before: impl Fn(f64) -> bool,
        is_after: impl Fn(f64) -> bool,
    ) -> Option<u32> {
        let mut sum = self.first;
        let mut here = self.here;
        for (token, logit) in (self.run.0..).zip(self.run.1) {
            let weight = match here.split_first() {
                Some((candidate, rest)) if candidate.token == token => {
                    here = rest;
                    candidate.score
                }
                // Listed, and forbidden by the step.
                _ if part.tokens.binary_search(&token).is_ok() => 0.0,
                _ if !step.allowed.is_none_or(|set| set.contains(token)) => 0.0,
                _ => weigh(*logit),
            };
            if is_before(sum) && is_after(sum + weight) {
                return Some(token);
            }
            sum += weight;
        }
        None
    }
}

/// What [`super::score`] says of a token with this logit in a row of `vocab`; `None` where the row has to be asked.
pub fn score_part(part: &RowPart<'_>, logit: f32, n: usize, vocab: usize) -> Option<Scored> {
    if part.tokens.is_empty() {
        return None;
    }
    let (logprob, top) = logprobs::of_part(part, logit, n, margin(vocab))?;
    Some(Scored { logprob, top })
}

/// The part of the history that penalties or dry look at.
fn looked_back<'a>(step: &SampleStep<'a>) -> &'a [u32] {
    let params = step.params;
    let penalties = match has_penalties(params) {
        true => params.penalty_window.of(step.history),
        false => &[],
    };
    let dry = match params.dry.filter(|dry| dry.multiplier > 0.0) {
        Some(dry) => dry.window.of(step.history),
        None => &[],
    };
    // Both end with the history, so that the longer one holds the other.
    if dry.len() > penalties.len() {
        dry
    } else {
        penalties
    }
}

fn has_penalties(params: &SamplingParams) -> bool {
    params.repetition_penalty != 1.0
        || params.presence_penalty != 0.0
        || params.frequency_penalty != 0.0
}

/// Whether the step changes logits of single tokens.
fn touches(step: &SampleStep<'_>) -> bool {
    !step.bias.is_empty() || !step.banned.is_empty() || !looked_back(step).is_empty()
}

/// Whether a token that is not listed may become likelier than it was.
fn may_raise(part: &RowPart<'_>, step: &SampleStep<'_>) -> bool {
    let params = step.params;
    let lowers = params.repetition_penalty >= 1.0
        && params.presence_penalty >= 0.0
        && params.frequency_penalty >= 0.0;
    let base = params
        .dry
        .is_none_or(|dry| dry.multiplier >= 0.0 && dry.base >= 0.0);
    let is_listed = |token: u32| part.tokens.binary_search(&token).is_ok();
    let raised = |&(token, bias): &(u32, f32)| !(bias <= 0.0 || is_listed(token));
    let keeps = looked_back(step).is_empty() || lowers && base;
    !keeps || step.bias.iter().any(raised)
}
