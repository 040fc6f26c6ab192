//! The chain of stages, in its fixed order.

use super::{Candidate, SampleError, SampleStep, Sampled, TopLogprobs};
use super::{draw, logprobs, min_p, penalty, temperature, top_k, top_p};

/// Draws tokens from a vocabulary of fixed size; all scratch is allocated when it is made.
pub struct Sampler {
    vocab: usize,
    /// Candidates in the order of their ids; at most `vocab`.
    candidates: Vec<Candidate>,
    /// Room for a stage that has to rearrange; at most `vocab`.
    scratch: Vec<Candidate>,
    seen: penalty::Seen,
}

impl Sampler {
    /// A sampler for rows of `vocab` logits.
    pub fn new(vocab: usize) -> Self {
        Self {
            vocab,
            candidates: Vec::with_capacity(vocab),
            scratch: Vec::with_capacity(vocab),
            seen: penalty::Seen::new(vocab),
        }
    }

    /// Draws one token. Never allocates and never panics; the cost is linear in the vocabulary.
    ///
    /// # Errors
    ///
    /// A row of the wrong length, a logit that is NaN or positive infinity, a row of nothing but negative infinity, a
    /// token in the history that the vocabulary does not have.
    pub fn sample(
        &mut self,
        logits: &[f32],
        step: &SampleStep<'_>,
    ) -> Result<Sampled, SampleError> {
        self.check(logits, step.history)?;
        self.fill(logits);
        penalty::apply(
            &mut self.candidates,
            step.history,
            step.params.repetition_penalty,
            &mut self.seen,
        );
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
        let params = step.params;
        let best = draw::likeliest(&self.candidates).ok_or(SampleError::NothingLeft)?;
        if best.score == f64::NEG_INFINITY {
            return Err(SampleError::NothingLeft);
        }
        if params.temperature.is_nan() || params.temperature <= 0.0 {
            return Ok(best.token);
        }
        temperature::apply(&mut self.candidates, best.score, params.temperature);
        top_k::apply(&mut self.candidates, &mut self.scratch, params.top_k);
        top_p::apply(&mut self.candidates, &mut self.scratch, params.top_p);
        min_p::apply(&mut self.candidates, params.min_p);
        draw::draw(&self.candidates, step.uniform).ok_or(SampleError::NothingLeft)
    }

    fn check(&self, logits: &[f32], history: &[u32]) -> Result<(), SampleError> {
        if logits.len() != self.vocab {
            return Err(SampleError::WrongLength {
                got: logits.len(),
                want: self.vocab,
            });
        }
        if let Some((token, &value)) = logits
            .iter()
            .enumerate()
            .find(|(_, l)| l.is_nan() || **l == f32::INFINITY)
        {
            return Err(SampleError::NotFinite {
                token: token as u32,
                value,
            });
        }
        match history.iter().find(|&&t| t as usize >= self.vocab) {
            Some(&token) => Err(SampleError::UnknownToken {
                token,
                vocab: self.vocab,
            }),
            None => Ok(()),
        }
    }

    fn fill(&mut self, logits: &[f32]) {
        self.candidates.clear();
        let all = (0u32..).zip(logits).map(|(token, &logit)| Candidate {
            token,
            score: f64::from(logit),
        });
        self.candidates.extend(all);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{SamplingParams, uniform};
    use super::*;

    const NEUTRAL: SamplingParams = SamplingParams {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
    };

    fn step<'a>(params: &'a SamplingParams, uniform: f64, history: &'a [u32]) -> SampleStep<'a> {
        SampleStep {
            params,
            uniform,
            history,
            logprobs: None,
        }
    }

    /// Fails beyond the 0.1 % quantile of chi-square, so a wrong distribution is caught; seeds are fixed, so it never flickers.
    fn assert_distribution(logits: &[f32], params: &SamplingParams, want: &[f64]) {
        const DRAWS: u64 = 40_000;
        let mut sampler = Sampler::new(logits.len());
        let mut counts = vec![0u32; logits.len()];
        for index in 0..DRAWS {
            let drawn = sampler
                .sample(logits, &step(params, uniform(9, index), &[]))
                .unwrap();
            counts[drawn.token as usize] += 1;
        }
        let mut chi_square = 0.0;
        let mut cells = 0;
        for (count, want) in counts.iter().zip(want) {
            if *want == 0.0 {
                assert_eq!(*count, 0, "a token that was cut off was drawn");
                continue;
            }
            cells += 1;
            let expected = want * DRAWS as f64;
            chi_square += (f64::from(*count) - expected).powi(2) / expected;
        }
        let bound = [0.0, 10.8, 13.8, 16.3, 18.5, 20.5][cells - 1];
        assert!(chi_square <= bound, "chi-square {chi_square}, {counts:?}");
    }

    /// Logits of the probabilities 0.4, 0.3, 0.15, 0.1, 0.05, shuffled.
    fn five() -> [f32; 5] {
        [
            0.15f32.ln(),
            0.4f32.ln(),
            0.05f32.ln(),
            0.3f32.ln(),
            0.1f32.ln(),
        ]
    }

    #[test]
    fn neutral_parameters_draw_from_the_models_distribution() {
        assert_distribution(&five(), &NEUTRAL, &[0.15, 0.4, 0.05, 0.3, 0.1]);
    }

    #[test]
    fn stages_shape_the_distribution() {
        let squares = [0.0225, 0.16, 0.0025, 0.09, 0.01].map(|s| s / 0.285);
        assert_distribution(
            &five(),
            &SamplingParams {
                temperature: 0.5,
                ..NEUTRAL
            },
            &squares,
        );
        let two = [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0, 0.0];
        assert_distribution(
            &five(),
            &SamplingParams {
                top_k: 2,
                ..NEUTRAL
            },
            &two,
        );
        assert_distribution(
            &five(),
            &SamplingParams {
                top_p: 0.6,
                ..NEUTRAL
            },
            &two,
        );
        assert_distribution(
            &five(),
            &SamplingParams {
                min_p: 0.5,
                ..NEUTRAL
            },
            &two,
        );
        // top_p acts on what top_k left: of three, 0.4/0.85 and 0.3/0.85 reach 0.8.
        assert_distribution(
            &five(),
            &SamplingParams {
                top_k: 3,
                top_p: 0.8,
                ..NEUTRAL
            },
            &two,
        );
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
            let odd = SamplingParams {
                temperature: value,
                top_k: 2,
                top_p: value,
                min_p: value,
                repetition_penalty: 1.0,
            };
            let _ = sampler.sample(&[0.0, 1.0, 2.0], &step(&odd, 0.5, &[]));
        }
    }

    #[test]
    fn sampling_allocates_nothing() {
        let mut sampler = Sampler::new(1000);
        let logits: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.7).cos() * 5.0).collect();
        let params = SamplingParams {
            temperature: 0.8,
            top_k: 500,
            top_p: 0.95,
            min_p: 0.01,
            repetition_penalty: 1.1,
        };
        let before = (sampler.candidates.as_ptr(), sampler.scratch.as_ptr());
        for index in 0..50 {
            sampler
                .sample(&logits, &step(&params, uniform(1, index), &[1, 2, 3]))
                .unwrap();
        }
        assert_eq!(
            before,
            (sampler.candidates.as_ptr(), sampler.scratch.as_ptr())
        );
        assert_eq!(
            (sampler.candidates.capacity(), sampler.scratch.capacity()),
            (1000, 1000)
        );
    }
}
