//! A draw from a part of a row against the draw from the whole row: the same token, and the same log-probabilities, bit for bit.

#[path = "common/row_part.rs"]
mod row_part;

use proptest::prelude::*;
use row_part::{Found, find};
use worker_orcd::sampling::{
    Decision, DryParams, Need, SampleStep, Sampled, Sampler, SamplingParams, TokenSet, Window,
    XtcParams, score, score_part, uniform, uniform_for_xtc,
};

/// What was asked for on the way to a token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Asked {
    mask: u32,
    touched: u32,
    range: u32,
    row: u32,
}

/// Lists the tokens that a step changes, too.
fn list_touched(found: &mut Found, row: &[f32], touched: &[u32]) {
    let named = touched
        .iter()
        .filter(|t| row[**t as usize] > f32::NEG_INFINITY);
    let mut all: Vec<u32> = found.tokens.iter().chain(named).copied().collect();
    all.sort_unstable();
    all.dedup();
    found.logits = all.iter().map(|t| row[*t as usize]).collect();
    found.tokens = all;
}

/// Draws from parts of the row as long as they decide; `None` where the row is needed.
fn draw(
    sampler: &mut Sampler,
    row: &[f32],
    step: &SampleStep<'_>,
    asked: &mut Asked,
) -> Option<Sampled> {
    let wants_one = step.logprobs.is_some();
    let mut found = find(row, None, step.params.temperature, wants_one);
    let mut least = found.part().least;
    let (mut lists_touched, mut range) = (false, None);
    for _ in 0..5 {
        let run = range.map(|range: usize| {
            let first = range * found.range_tokens;
            let end = (first + found.range_tokens).min(row.len());
            (first as u32, &row[first..end])
        });
        let mut part = found.part();
        part.least = least;
        (part.lists_touched, part.run) = (lists_touched, run);
        match sampler.sample_part(&part, step) {
            Decision::Drawn(sampled) => return Some(sampled),
            Decision::Undecided(Need::Mask) => {
                asked.mask += 1;
                found = find(row, step.allowed, step.params.temperature, wants_one);
                least = found.part().least;
            }
            Decision::Undecided(Need::Touched) => {
                asked.touched += 1;
                list_touched(&mut found, row, sampler.touched(step));
                lists_touched = true;
            }
            Decision::Undecided(Need::Range(which)) => {
                assert_eq!(range, None, "the same twice");
                asked.range += 1;
                range = Some(which);
            }
            Decision::Undecided(Need::Row) => {
                asked.row += 1;
                return None;
            }
        }
    }
    panic!("it asks and asks: {asked:?}");
}

/// Logits like a model's: most of them around 0, some far above.
fn model_like(seed: u64, vocab: usize, top: f64) -> Vec<f32> {
    let bell = |i: u64| (0..4).map(|k| uniform(seed + k, i) - 0.5).sum::<f64>() * 4.3;
    let mut row: Vec<f32> = (0..vocab as u64).map(|i| bell(i) as f32).collect();
    for rank in 0..300u64.min(vocab as u64 / 4) {
        let at = (uniform(seed + 9, rank) * vocab as f64) as usize;
        row[at] = (top - 1.4 * (rank as f64).sqrt() + uniform(seed + 10, rank)) as f32;
    }
    row
}

/// Rows of every temper: like a model's, flat, of few values, with much that is forbidden.
fn rows() -> impl Strategy<Value = Vec<f32>> {
    (any::<u32>(), 0..5u32, 1..4000usize, 0.0..24.0f64).prop_map(|(seed, kind, vocab, top)| {
        let seed = u64::from(seed) << 8;
        let mut row = model_like(seed, vocab, top);
        match kind {
            0 => row.iter_mut().for_each(|l| *l = l.round()),
            1 => row.iter_mut().for_each(|l| *l *= 0.02),
            2 => row
                .iter_mut()
                .enumerate()
                .filter(|(i, _)| uniform(seed + 20, *i as u64) < 0.9)
                .for_each(|(_, l)| *l = f32::NEG_INFINITY),
            _ => {}
        }
        row
    })
}

prop_compose! {
    /// Any parameters; each stage off about half the time.
    fn params()(
        repetition in prop_oneof![3 => Just(1.0f32), 2 => 1.0..2.0f32, 1 => 0.2..2.0f32],
        presence in prop_oneof![3 => Just(0.0f32), 1 => -2.0..2.0f32, 1 => 0.0..1.0f32],
        frequency in prop_oneof![3 => Just(0.0f32), 1 => -2.0..2.0f32, 1 => 0.0..1.0f32],
        dry in prop::option::weighted(0.2, (0.1..2.0f32, 1.0..2.0f32, 1..4u32)),
        temperature in prop_oneof![1 => Just(0.0f32), 2 => Just(1.0f32), 4 => 0.05..2.0f32],
        top_n_sigma in prop::option::weighted(0.1, 0.1..5.0f32),
        top_k in prop_oneof![4 => Just(0u32), 2 => 1..64u32, 1 => 1..3000u32],
        typical_p in prop_oneof![6 => Just(1.0f32), 1 => 0.05..1.0f32],
        top_p in prop_oneof![1 => Just(1.0f32), 2 => 0.05..1.0f32, 1 => 0.9..1.0f32],
        min_p in prop_oneof![2 => Just(0.0f32), 1 => 0.0..0.5f32],
        xtc in prop::option::weighted(0.2, (0.0..1.0f32, 0.0..0.4f32)),
    ) -> SamplingParams {
        SamplingParams {
            repetition_penalty: repetition,
            presence_penalty: presence,
            frequency_penalty: frequency,
            penalty_window: Window::Last(64),
            dry: dry.map(|(multiplier, base, allowed_length)| DryParams {
                multiplier, base, allowed_length, window: Window::All,
            }),
            temperature, top_n_sigma, top_k, typical_p, top_p, min_p,
            xtc: xtc.map(|(probability, threshold)| XtcParams { probability, threshold }),
        }
    }
}

/// Some tokens of a vocabulary.
fn some(seed: u64, vocab: usize, n: u64) -> Vec<u32> {
    (0..n)
        .map(|i| (uniform(seed, i).powi(2) * vocab as f64) as u32)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_part_gives_what_the_row_gives(
        row in rows(),
        params in params(),
        seed in any::<u32>(),
        masked in prop::option::weighted(0.3, 0.0..1.0f64),
        biased in prop::option::weighted(0.2, -3.0..3.0f32),
        banned in prop::bool::weighted(0.2),
        logprobs in prop::option::weighted(0.4, 0..21usize),
        history in 0..200u64,
    ) {
        let (seed, vocab) = (u64::from(seed), row.len());
        let history = some(seed, vocab, history);
        let bias: Vec<(u32, f32)> = match biased {
            None => Vec::new(),
            Some(bias) => some(seed + 1, vocab, 4).into_iter().zip([bias, -bias, bias, f32::NEG_INFINITY]).collect(),
        };
        let mask = masked.map(|share| {
            let mut words = vec![0; TokenSet::words(vocab)];
            (0..vocab as u32).filter(|t| uniform(seed + 2, u64::from(*t)) < share.powi(3)).for_each(|t| TokenSet::insert(&mut words, t));
            words
        });
        let banned = if banned { some(seed + 3, vocab, 2) } else { Vec::new() };
        let step = SampleStep {
            xtc_uniform: uniform_for_xtc(seed, 0),
            bias: &bias,
            allowed: mask.as_deref().map(TokenSet),
            banned: &banned,
            breakers: TokenSet(&[1]),
            logprobs,
            ..SampleStep::new(&params, uniform(seed, 0), &history)
        };
        let mut sampler = Sampler::new(vocab);
        let mut whole = Sampler::new(vocab);
        for index in 0..3 {
            let step = SampleStep { uniform: uniform(seed, index), ..step };
            let want = whole.sample(&row, &step);
            if let Some(drawn) = draw(&mut sampler, &row, &step, &mut Asked::default()) {
                prop_assert_eq!(Ok(drawn), want);
            }
        }
        // Whatever a part has left behind, the next row is drawn from as ever.
        prop_assert_eq!(sampler.sample(&row, &step), whole.sample(&row, &step));
    }

    #[test]
    fn a_part_says_of_a_token_what_the_row_says(row in rows(), n in 0..21usize, at in any::<prop::sample::Index>()) {
        let token = at.index(row.len());
        let found = find(&row, None, 0.0, true);
        if let Some(scored) = score_part(&found.part(), row[token], n, row.len()) {
            prop_assert_eq!(score(&row, token as u32, n), Ok(scored));
        }
    }
}

const VOCAB: usize = 20_000;

/// What 2,000 draws over model-like rows asked for.
fn asked(params: &SamplingParams, change: impl Fn(&mut SampleStep<'_>)) -> Asked {
    let mut sampler = Sampler::new(VOCAB);
    let mut whole = Sampler::new(VOCAB);
    let mut asked = Asked::default();
    let history = some(1, VOCAB, 400);
    for case in 0..20 {
        let row = model_like(case << 8, VOCAB, 12.0 + case as f64 / 2.0);
        for index in 0..100 {
            let mut step = SampleStep::new(params, uniform(case, index), &history);
            change(&mut step);
            let want = whole.sample(&row, &step).unwrap();
            if let Some(drawn) = draw(&mut sampler, &row, &step, &mut asked) {
                assert_eq!(drawn, want);
            }
        }
    }
    asked
}

/// The row is needed where the documentation says so, and nowhere else.
#[test]
fn what_usual_requests_need() {
    let neutral = SamplingParams::NEUTRAL;
    let usual = SamplingParams {
        temperature: 0.8,
        top_p: 0.95,
        ..neutral
    };
    let nothing = Asked::default();
    let of = |params: SamplingParams| asked(&params, |_| {});
    assert_eq!(of(SamplingParams::GREEDY), nothing);
    assert_eq!(of(usual), nothing);
    assert_eq!(of(SamplingParams { top_k: 40, ..usual }), nothing);
    let (top_k, typical_p) = (40, 0.9);
    assert_eq!(
        of(SamplingParams {
            top_k,
            typical_p,
            ..usual
        }),
        nothing
    );
    assert_eq!(
        of(SamplingParams {
            min_p: 0.05,
            top_p: 1.0,
            ..usual
        }),
        nothing
    );
    let of_all = of(SamplingParams {
        temperature: 0.7,
        ..neutral
    });
    assert!(of_all.row == 0 && of_all.range < 200, "{of_all:?}");
    let penalised = of(SamplingParams {
        repetition_penalty: 1.1,
        ..usual
    });
    assert_eq!(penalised.row, 0, "{penalised:?}");
    let with_logprobs = asked(&usual, |step| step.logprobs = Some(20));
    assert!(with_logprobs.row <= 4, "{with_logprobs:?}");
    let biased = asked(&usual, |step| {
        step.bias = &[(3, 5.0), (19_999, f32::NEG_INFINITY)]
    });
    assert_eq!(biased.row, 0, "{biased:?}");
    let thirds: Vec<u32> = vec![0x4924_9249; TokenSet::words(VOCAB)];
    let thirds: &'static [u32] = thirds.leak();
    let formed = asked(&usual, |step| step.allowed = Some(TokenSet(thirds)));
    assert_eq!(formed.row, 0, "{formed:?}");
    let few: &'static [u32] = vec![3; TokenSet::words(VOCAB)].leak();
    let typical = SamplingParams {
        typical_p,
        top_p: 1.0,
        ..usual
    };
    let narrow = asked(&typical, |step| step.allowed = Some(TokenSet(&few[..16])));
    assert_eq!(narrow.row, 0, "{narrow:?}");
    assert_eq!(of(typical).row, 2000);
}

/// 100,000 draws from parts, against the exact probabilities.
#[test]
fn draws_from_a_part_have_the_exact_distribution() {
    const DRAWS: u64 = 100_000;
    let row = model_like(5 << 8, 3000, 10.0);
    let params = SamplingParams {
        temperature: 0.9,
        ..SamplingParams::NEUTRAL
    };
    let mut sampler = Sampler::new(row.len());
    let found = find(&row, None, 0.9, false);
    let mut counts = vec![0.0f64; row.len()];
    for index in 0..DRAWS {
        let step = SampleStep::new(&params, uniform(21, index), &[]);
        let token = match sampler.sample_part(&found.part(), &step) {
            Decision::Drawn(sampled) => sampled.token,
            Decision::Undecided(_) => {
                draw(&mut sampler, &row, &step, &mut Asked::default())
                    .expect("a range decides")
                    .token
            }
        };
        counts[token as usize] += 1.0;
    }
    let weights: Vec<f64> = row.iter().map(|l| (f64::from(*l) / 0.9).exp()).collect();
    let total: f64 = weights.iter().sum();
    // Tokens that come less than ten times are one cell.
    let (mut chi_square, mut cells, mut rare) = (0.0, 0.0, (0.0, 0.0));
    for (count, weight) in counts.iter().zip(&weights) {
        let expected = weight / total * DRAWS as f64;
        if expected < 10.0 {
            rare = (rare.0 + count, rare.1 + expected);
        } else {
            chi_square += (count - expected).powi(2) / expected;
            cells += 1.0;
        }
    }
    chi_square += (rare.0 - rare.1).powi(2) / rare.1;
    let third = 2.0 / (9.0 * cells);
    let bound: f64 = cells * (1.0 - third + 3.72 * f64::sqrt(third)).powi(3);
    assert!(
        chi_square <= bound,
        "{chi_square} above {bound} with {cells} cells"
    );
}
