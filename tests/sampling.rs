//! Sampling against its definition: a chain that does every stage in the documented order, by sorting, in as few words as possible.

use worker_orcd::sampling::{
    DryParams, SampleStep, Sampler, SamplingParams, TokenSet, Window, XtcParams, score, uniform,
    uniform_for_xtc,
};

const NO: f32 = f32::NEG_INFINITY;

/// Draws whose distribution is compared.
const DRAWS: u64 = 100_000;

/// The exact probability of each token. It knows no penalties: those are computed by hand in their own files.
fn definition(logits: &[f32], step: &SampleStep<'_>) -> Vec<f64> {
    let params = step.params;
    let mut logits: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
    for (token, bias) in step.bias {
        logits[*token as usize] += f64::from(*bias);
    }
    for token in 0..logits.len() as u32 {
        let allowed = step.allowed.is_none_or(|set| set.contains(token));
        if !allowed || step.banned.contains(&token) {
            logits[token as usize] = f64::NEG_INFINITY;
        }
    }
    let scaled = logits.iter().map(|l| l / f64::from(params.temperature));
    let mut left: Vec<(usize, f64)> = scaled
        .enumerate()
        .filter(|c| c.1 > f64::NEG_INFINITY)
        .collect();
    left.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if let Some(n) = params.top_n_sigma {
        let count = left.len() as f64;
        let mean = left.iter().map(|c| c.1).sum::<f64>() / count;
        let variance = left.iter().map(|c| (c.1 - mean).powi(2)).sum::<f64>() / count;
        let least = left[0].1 - f64::from(n) * variance.sqrt();
        left.retain(|c| c.1 >= least);
    }
    if params.top_k > 0 {
        left.truncate(params.top_k as usize);
    }
    let largest = left[0].1;
    left.iter_mut().for_each(|c| c.1 = (c.1 - largest).exp());
    if params.typical_p < 1.0 {
        normalise(&mut left);
        let entropy: f64 = left.iter().map(|c| -c.1 * c.1.ln()).sum();
        left.sort_by(|a, b| {
            let distance = |c: &(usize, f64)| (-c.1.ln() - entropy).abs();
            distance(a).total_cmp(&distance(b))
        });
        reach(&mut left, params.typical_p);
        left.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    }
    reach(&mut left, params.top_p);
    let least = left[0].1 * f64::from(params.min_p);
    left.retain(|c| c.1 >= least);
    normalise(&mut left);
    if let Some(xtc) = params.xtc
        && step.xtc_uniform < f64::from(xtc.probability)
    {
        let top = left.iter().filter(|c| c.1 >= f64::from(xtc.threshold));
        let top = top.count();
        left.drain(..top.saturating_sub(1));
    }
    normalise(&mut left);
    let mut probabilities = vec![0.0; logits.len()];
    left.iter().for_each(|c| probabilities[c.0] = c.1);
    probabilities
}

fn normalise(left: &mut [(usize, f64)]) {
    let total: f64 = left.iter().map(|c| c.1).sum();
    left.iter_mut().for_each(|c| c.1 /= total);
}

/// Leaves the first ones that reach `p` in sum.
fn reach(left: &mut Vec<(usize, f64)>, p: f32) {
    if p >= 1.0 {
        return;
    }
    normalise(left);
    let mut sum = 0.0;
    let reached = left.iter().position(|c| {
        sum += c.1;
        sum >= f64::from(p)
    });
    left.truncate(reached.map_or(left.len(), |at| at + 1));
}

fn with(change: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
    let mut params = SamplingParams::NEUTRAL;
    change(&mut params);
    params
}

/// Each stage alone, and all of them together.
fn settings() -> Vec<SamplingParams> {
    let xtc = |probability| {
        Some(XtcParams {
            probability,
            threshold: 0.1,
        })
    };
    vec![
        SamplingParams::NEUTRAL,
        with(|p| p.temperature = 0.6),
        with(|p| p.temperature = 1.7),
        with(|p| p.top_n_sigma = Some(1.0)),
        with(|p| p.top_k = 6),
        with(|p| p.typical_p = 0.6),
        with(|p| p.top_p = 0.8),
        with(|p| p.min_p = 0.2),
        with(|p| p.xtc = xtc(1.0)),
        with(|p| {
            *p = SamplingParams {
                temperature: 0.9,
                top_n_sigma: Some(2.0),
                top_k: 9,
                typical_p: 0.95,
                top_p: 0.9,
                min_p: 0.05,
                xtc: xtc(1.0),
                ..*p
            }
        }),
    ]
}

/// Twelve tokens, of which one cannot occur.
const LOGITS: [f32; 12] = [0.3, 1.9, -0.4, 2.4, NO, 1.1, 0.9, -1.5, 2.0, 0.0, 1.4, -0.9];

/// Fails beyond the 0.01 % quantile of chi-square. The numbers are the same in every run, so it never flickers.
fn assert_distribution(counts: &[u64], want: &[f64], what: &str) {
    let (mut chi_square, mut cells) = (0.0, 0.0);
    for (count, want) in counts.iter().zip(want) {
        if *want == 0.0 {
            assert_eq!(*count, 0, "{what}: a token was drawn that cannot be");
            continue;
        }
        let expected = want * DRAWS as f64;
        chi_square += (*count as f64 - expected).powi(2) / expected;
        cells += 1.0;
    }
    // Wilson and Hilferty's approximation of the quantile.
    let freedom = f64::max(cells - 1.0, 1.0);
    let third = 2.0 / (9.0 * freedom);
    let bound = freedom * (1.0 - third + 3.72 * third.sqrt()).powi(3);
    assert!(chi_square <= bound, "{what}: {chi_square} above {bound}");
}

#[test]
fn a_hundred_thousand_draws_have_the_exact_distribution_of_every_stage() {
    let mut sampler = Sampler::new(LOGITS.len());
    for params in settings() {
        let mut counts = [0; LOGITS.len()];
        for index in 0..DRAWS {
            let step = SampleStep::new(&params, uniform(11, index), &[]);
            counts[sampler.sample(&LOGITS, &step).unwrap().token as usize] += 1;
        }
        let want = definition(&LOGITS, &SampleStep::new(&params, 0.0, &[]));
        assert_distribution(&counts, &want, &format!("{params:?}"));
    }
}

#[test]
fn xtc_acts_as_often_as_it_should_and_independently_of_the_draw() {
    let params = with(|p| {
        p.xtc = Some(XtcParams {
            probability: 0.3,
            threshold: 0.1,
        });
    });
    let mut sampler = Sampler::new(LOGITS.len());
    let mut counts = [0; LOGITS.len()];
    let step_of = |uniform, xtc_uniform| SampleStep {
        xtc_uniform,
        ..SampleStep::new(&params, uniform, &[])
    };
    for index in 0..DRAWS {
        let step = step_of(uniform(11, index), uniform_for_xtc(11, index));
        counts[sampler.sample(&LOGITS, &step).unwrap().token as usize] += 1;
    }
    let acts = definition(&LOGITS, &step_of(0.0, 0.0));
    let rests = definition(&LOGITS, &step_of(0.0, 0.9));
    let mixed = acts.iter().zip(&rests).map(|(a, b)| 0.3 * a + 0.7 * b);
    assert_distribution(&counts, &mixed.collect::<Vec<_>>(), "xtc");
}

#[test]
fn biased_and_masked_logits_are_drawn_from_as_they_are() {
    let params = SamplingParams::NEUTRAL;
    let step = SampleStep {
        bias: &[(0, 2.0), (3, NO), (8, -1.5)],
        allowed: Some(TokenSet(&[0b0111_1101_1111])),
        banned: &[6],
        ..SampleStep::new(&params, 0.0, &[])
    };
    let mut sampler = Sampler::new(LOGITS.len());
    let mut counts = [0; LOGITS.len()];
    for index in 0..DRAWS {
        let uniform = uniform(12, index);
        let drawn = sampler.sample(&LOGITS, &SampleStep { uniform, ..step });
        counts[drawn.unwrap().token as usize] += 1;
    }
    let want = definition(&LOGITS, &step);
    let forbidden = [3, 4, 5, 6, 11];
    assert!(forbidden.iter().all(|token| want[*token] == 0.0));
    assert_distribution(&counts, &want, "bias and masks");
}

/// Any parameters, any logits: the drawn token is the one in whose share of [0, 1) the uniform number lies.
#[test]
fn every_draw_is_the_one_that_the_definition_gives() {
    for case in 0..3000u64 {
        let throw = |i: u64| uniform(case, i);
        let maybe = |i: u64, value: f64, neutral: f64| {
            if throw(i) < 0.5 {
                neutral as f32
            } else {
                value as f32
            }
        };
        let n = 1 + (throw(0) * 400.0) as u64;
        let logits: Vec<f32> = (0..n).map(|i| (throw(100 + i) * 12.0) as f32).collect();
        let params = SamplingParams {
            temperature: maybe(1, 0.2 + 1.8 * throw(2), 1.0),
            top_n_sigma: (throw(3) < 0.3).then_some((throw(4) * 3.0) as f32 + 0.01),
            top_k: maybe(5, throw(6) * 50.0, 0.0) as u32,
            typical_p: maybe(7, throw(8) * 0.98 + 0.01, 1.0),
            top_p: maybe(9, throw(10) * 0.98 + 0.01, 1.0),
            min_p: maybe(11, throw(12), 0.0),
            xtc: (throw(13) < 0.3).then_some(XtcParams {
                probability: 0.5,
                threshold: throw(14) as f32 / 3.0,
            }),
            ..SamplingParams::NEUTRAL
        };
        let step = SampleStep {
            xtc_uniform: throw(15),
            ..SampleStep::new(&params, throw(16), &[])
        };
        let drawn = Sampler::new(logits.len()).sample(&logits, &step).unwrap();
        let want = definition(&logits, &step);
        let token = drawn.token as usize;
        let below: f64 = want[..token].iter().sum();
        let share = below - 1e-9..=below + want[token] + 1e-9;
        assert!(
            want[token] > 0.0 && share.contains(&step.uniform),
            "case {case}: {token} of {share:?} for {} with {params:?}",
            step.uniform
        );
    }
}

/// Seeds of one machine are good on every other: what is drawn is written down here.
#[test]
fn what_a_seed_draws_stays_what_it_is() {
    let logits: Vec<f32> = (0..152_064)
        .map(|i| (uniform(5, i) * 16.0) as f32)
        .collect();
    let params = with(|p| {
        p.temperature = 0.9;
        p.top_p = 0.9;
        p.typical_p = 0.98;
    });
    let mut sampler = Sampler::new(logits.len());
    let drawn: Vec<u32> = (0..8)
        .map(|index| {
            let step = SampleStep::new(&params, uniform(77, index), &[]);
            sampler.sample(&logits, &step).unwrap().token
        })
        .collect();
    let want = [5614, 65_240, 53_969, 117_774, 10_865, 45_195, 1369, 16_163];
    assert_eq!(drawn, want);
}

#[test]
fn neutral_values_are_the_identity() {
    let named = SamplingParams {
        top_k: LOGITS.len() as u32,
        top_n_sigma: Some(100.0),
        penalty_window: Window::Last(0),
        repetition_penalty: 2.0,
        presence_penalty: 2.0,
        frequency_penalty: 2.0,
        dry: Some(DryParams {
            multiplier: 0.0,
            base: 2.0,
            allowed_length: 1,
            window: Window::All,
        }),
        xtc: Some(XtcParams {
            probability: 0.0,
            threshold: 0.0,
        }),
        ..SamplingParams::NEUTRAL
    };
    let history = [1, 2, 3, 1, 2, 3, 1, 2];
    let mut sampler = Sampler::new(LOGITS.len());
    for index in 0..2000 {
        let mut draw = |params: &SamplingParams| {
            let step = SampleStep {
                bias: &[(1, 0.0)],
                allowed: Some(TokenSet(&[u32::MAX])),
                ..SampleStep::new(params, uniform(1, index), &history)
            };
            sampler.sample(&LOGITS, &step).unwrap().token
        };
        assert_eq!(draw(&named), draw(&SamplingParams::NEUTRAL));
    }
}

#[test]
fn a_score_is_of_the_unmodified_distribution() {
    let scored = score(&LOGITS, 3, 2).unwrap();
    let total: f64 = LOGITS.iter().map(|l| f64::from(*l).exp()).sum();
    assert!((f64::from(scored.logprob) - (2.4 - total.ln())).abs() < 1e-6);
    let top: Vec<u32> = scored.top.as_slice().iter().map(|entry| entry.0).collect();
    assert_eq!(top, [3, 8]);
    assert_eq!(score(&LOGITS, 4, 0).unwrap().logprob, NO);
    assert!(score(&LOGITS, 12, 0).is_err() && score(&[NO], 0, 0).is_err());
    assert!(score(&[0.0, f32::NAN], 0, 0).is_err());
}
