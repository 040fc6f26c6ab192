//! The chain of stages, in its fixed order.

use super::{Candidate, SampleError, SampleStep, Sampled, TopLogprobs, check_row};
use super::{draw, dry, logit_bias, logprobs, mask, min_p, penalties, temperature};
use super::{top_k, top_n_sigma, top_p, typical_p, xtc};

/// Draws tokens from a vocabulary of fixed size; all scratch is allocated when it is made.
pub struct Sampler {
    /// The logits of the row as the stages change them.
    pub(super) logits: Vec<f32>, // (vocab)
    /// Whether they are all negative infinity, as a draw from a part of a row leaves them.
    pub(super) is_empty: bool,
    /// Candidates in the order of their ids; at most `vocab`.
    pub(super) candidates: Vec<Candidate>,
    /// Room for a stage that has to rearrange; at most `vocab`.
    pub(super) scratch: Vec<Candidate>,
    /// Room for a stage that counts tokens; all zero between two stages.
    pub(super) counts: Vec<u32>, // (vocab)
    /// Of a part of a row: its logits as the stages change them.
    pub(super) values: Vec<f32>,
    /// What it does not list weighs, a range of ids each.
    pub(super) rest: Vec<f64>,
    /// Tokens whose logits a step changes.
    pub(super) touched: Vec<u32>,
}

impl Sampler {
    /// A sampler for rows of `vocab` logits.
    pub fn new(vocab: usize) -> Self {
        Self {
            logits: vec![0.0; vocab],
            is_empty: false,
            candidates: Vec::with_capacity(vocab),
            scratch: Vec::with_capacity(vocab),
            counts: vec![0; vocab],
            values: Vec::new(),
            rest: Vec::new(),
            touched: Vec::new(),
        }
    }

    /// Draws one token. Never allocates and never panics; the cost is linear in the vocabulary and the history.
    ///
    /// # Errors
    ///
    /// A row of the wrong length, a logit that is NaN or positive infinity, a row of which nothing but negative infinity is
    /// left, a token in the history that the vocabulary does not have.
    pub fn sample(
        &mut self,
        logits: &[f32],
        step: &SampleStep<'_>,
    ) -> Result<Sampled, SampleError> {
        self.check(logits, step.history)?;
        self.is_empty = false;
        self.logits.copy_from_slice(logits);
        logit_bias::apply(&mut self.logits, step.bias);
        mask::apply(&mut self.logits, step.allowed, step.banned);
        penalties::apply(
            &mut self.logits,
            step.history,
            step.params,
            &mut self.counts,
        );
        dry::apply(&mut self.logits, step, &mut self.counts);
        let token = self.choose(step)?;
        let (logprob, top) = match step.logprobs {
            None => (None, TopLogprobs::default()),
            Some(n) => {
                let (logprob, top) = logprobs::of(logits, token, n);
                (Some(logprob), top)
            }
        };
        Ok(Sampled {
            token,
            logprob,
            top,
        })
    }

    fn choose(&mut self, step: &SampleStep<'_>) -> Result<u32, SampleError> {
        let (likeliest, largest) = draw::likeliest(&self.logits).ok_or(SampleError::NothingLeft)?;
        let temperature = step.params.temperature;
        if temperature.is_nan() || temperature <= 0.0 {
            return Ok(likeliest);
        }
        self.shape(largest, step);
        draw::draw(&self.candidates, step.uniform).ok_or(SampleError::NothingLeft)
    }

    /// From the temperature to xtc. Dividing by the temperature changes neither the order of the logits nor their relation to
    /// their deviation, so the two stages after it can be done first and the weights be computed of what they leave.
    fn shape(&mut self, largest: f32, step: &SampleStep<'_>) {
        let (params, logits) = (step.params, &self.logits);
        let (candidates, scratch) = (&mut self.candidates, &mut self.scratch);
        let least = top_n_sigma::least_kept(logits, largest, params.top_n_sigma);
        top_k::gather(logits, least, params.top_k, candidates, scratch);
        temperature::apply(candidates, f64::from(largest), params.temperature);
        self.narrow(step);
    }

    /// From typical_p to xtc.
    pub(super) fn narrow(&mut self, step: &SampleStep<'_>) {
        let params = step.params;
        let (candidates, scratch) = (&mut self.candidates, &mut self.scratch);
        typical_p::apply(candidates, scratch, params.typical_p);
        top_p::apply(candidates, scratch, params.top_p);
        min_p::apply(candidates, params.min_p);
        xtc::apply(candidates, params.xtc, step.xtc_uniform);
    }

    fn check(&self, logits: &[f32], history: &[u32]) -> Result<(), SampleError> {
        let vocab = self.logits.len();
        if logits.len() != vocab {
            return Err(SampleError::WrongLength {
                got: logits.len(),
                want: vocab,
            });
        }
        check_row(logits)?;
        match history.iter().find(|&&t| t as usize >= vocab) {
            Some(&token) => Err(SampleError::UnknownToken { token, vocab }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DryParams, SamplingParams, TokenSet, XtcParams, uniform};
    use super::*;

    const NEUTRAL: SamplingParams = SamplingParams::NEUTRAL;

    fn step<'a>(params: &'a SamplingParams, uniform: f64, history: &'a [u32]) -> SampleStep<'a> {
        SampleStep::new(params, uniform, history)
    }

    #[test]
    fn the_penalty_comes_before_everything() {
        let mut sampler = Sampler::new(3);
        let greedy = SamplingParams {
            temperature: 0.0,
            repetition_penalty: 2.0,
            ..NEUTRAL
        };
        let drawn = sampler
            .sample(&[3.0, 2.0, 1.0], &step(&greedy, 0.0, &[0, 0, 0]))
            .unwrap();
        assert_eq!(drawn.token, 1);
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equal_ones_and_reports_the_unmodified_logprob() {
        let mut sampler = Sampler::new(4);
        let greedy = SamplingParams {
            temperature: 0.0,
            repetition_penalty: 1.5,
            ..NEUTRAL
        };
        let logits = [0.0, 0.0, 0.0, 0.0];
        let drawn = sampler
            .sample(
                &logits,
                &SampleStep {
                    logprobs: Some(2),
                    ..step(&greedy, 0.9, &[0])
                },
            )
            .unwrap();
        assert_eq!(drawn.token, 0);
        let quarter = 0.25f32.ln();
        assert_eq!(drawn.logprob, Some(quarter));
        assert_eq!(drawn.top.as_slice(), [(0, quarter), (1, quarter)]);
    }

    #[test]
    fn damaged_rows_are_errors() {
        let mut sampler = Sampler::new(3);
        let s = step(&NEUTRAL, 0.5, &[]);
        let nan = sampler.sample(&[0.0, f32::NAN, 0.0], &s).unwrap_err();
        assert!(nan.to_string().contains("token 1 is NaN"), "{nan}");
        assert!(sampler.sample(&[0.0, f32::INFINITY, 0.0], &s).is_err());
        assert_eq!(
            sampler.sample(&[f32::NEG_INFINITY; 3], &s),
            Err(SampleError::NothingLeft)
        );
        assert_eq!(
            sampler.sample(&[0.0; 2], &s),
            Err(SampleError::WrongLength { got: 2, want: 3 })
        );
        let history = step(&NEUTRAL, 0.5, &[1, 3]);
        assert_eq!(
            sampler.sample(&[0.0; 3], &history),
            Err(SampleError::UnknownToken { token: 3, vocab: 3 })
        );
        assert_eq!(
            sampler
                .sample(&[f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY], &s)
                .unwrap()
                .token,
            1
        );
    }

    #[test]
    fn parameters_that_the_wire_refuses_still_do_not_panic() {
        let mut sampler = Sampler::new(3);
        for value in [f32::NAN, -1.0, f32::INFINITY, 0.0] {
            for temperature in [value, 1.0] {
                let odd = SamplingParams {
                    temperature,
                    top_n_sigma: Some(value),
                    top_k: 2,
                    typical_p: value,
                    top_p: value,
                    min_p: value,
                    repetition_penalty: value,
                    presence_penalty: value,
                    frequency_penalty: value,
                    dry: Some(DryParams {
                        multiplier: value,
                        base: value,
                        allowed_length: 0,
                        window: super::super::Window::All,
                    }),
                    xtc: Some(XtcParams {
                        probability: value,
                        threshold: value,
                    }),
                    ..NEUTRAL
                };
                let _ = sampler.sample(&[0.0, 1.0, 2.0], &step(&odd, 0.5, &[1, 1, 1]));
            }
        }
    }

    #[test]
    fn when_everything_is_forbidden_the_error_says_by_what() {
        let mut sampler = Sampler::new(2);
        let nothing = SampleStep {
            bias: &[(0, f32::NEG_INFINITY)],
            banned: &[1],
            ..step(&NEUTRAL, 0.5, &[])
        };
        let error = sampler.sample(&[1.0, 2.0], &nothing).unwrap_err();
        assert_eq!(error, SampleError::NothingLeft);
        assert!(error.to_string().contains("logit_bias"), "{error}");
        let none_allowed = SampleStep {
            allowed: Some(TokenSet::EMPTY),
            ..step(&NEUTRAL, 0.5, &[])
        };
        assert!(sampler.sample(&[1.0, 2.0], &none_allowed).is_err());
    }

    #[test]
    fn probabilities_of_a_large_vocabulary_sum_to_one_after_every_stage() {
        let logits: Vec<f32> = (0..200_000)
            .map(|i| (uniform(3, i) * 24.0 - 12.0) as f32)
            .collect();
        let largest = draw::likeliest(&logits).unwrap().1;
        let mut sampler = Sampler::new(logits.len());
        sampler.logits.copy_from_slice(&logits);
        for params in one_of_each() {
            sampler.shape(largest, &step(&params, 0.5, &[]));
            let weights: Vec<f64> = sampler.candidates.iter().map(|c| c.score).collect();
            // The total that the draw uses, against one that is summed in another order.
            let total = super::super::sum(&sampler.candidates, |c| c.score);
            let mut sorted = weights.clone();
            sorted.sort_by(f64::total_cmp);
            let probabilities: f64 = sorted.iter().map(|w| w / total).sum();
            assert!(
                (probabilities - 1.0).abs() < 1e-6,
                "{params:?}: {probabilities}"
            );
            assert!(sampler.candidates.is_sorted_by_key(|c| c.token));
        }
    }

    /// Each stage that removes candidates, alone.
    fn one_of_each() -> [SamplingParams; 8] {
        let set = |change: fn(&mut SamplingParams)| {
            let mut params = NEUTRAL;
            change(&mut params);
            params
        };
        [
            NEUTRAL,
            set(|p| p.temperature = 0.3),
            set(|p| p.top_n_sigma = Some(1.0)),
            set(|p| p.top_k = 100_000),
            set(|p| p.typical_p = 0.7),
            set(|p| p.top_p = 0.9),
            set(|p| p.min_p = 0.01),
            set(|p| {
                p.xtc = Some(XtcParams {
                    probability: 1.0,
                    threshold: 1e-5,
                })
            }),
        ]
    }
}
