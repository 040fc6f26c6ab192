//! What drawing a token costs: `cargo bench --bench sampling` prints microseconds a token over a vocabulary of 152,064, on one core.

#[path = "../tests/common/row_part.rs"]
mod row_part;

use std::hint::black_box;
use std::time::Instant;

use worker_orcd::sampling::{
    Decision, DryParams, SampleStep, Sampler, SamplingParams, TokenSet, Window, XtcParams, uniform,
};

const VOCAB: usize = 152_064;

/// Draws that are timed; the median counts.
const DRAWS: u64 = 201;

/// Logits like a model's: most of them around 0 with a deviation of about 2.5, a few far above.
fn logits() -> Vec<f32> {
    let bell = |i: u64| (0..4).map(|k| uniform(k, i) - 0.5).sum::<f64>() * 4.3;
    let mut logits: Vec<f32> = (0..VOCAB as u64).map(|i| bell(i) as f32).collect();
    for (rank, at) in (0..300u32).zip((7..VOCAB).step_by(499)) {
        logits[at] = 20.0 - 0.7 * (rank as f32).sqrt() * 2.0;
    }
    logits
}

/// The median of the microseconds that a draw takes.
fn micros(logits: &[f32], step: SampleStep<'_>) -> f64 {
    let mut sampler = Sampler::new(VOCAB);
    let mut times: Vec<f64> = (0..DRAWS)
        .map(|index| {
            let step = SampleStep {
                uniform: uniform(1, index),
                ..step
            };
            let begin = Instant::now();
            black_box(sampler.sample(black_box(logits), &step)).ok();
            begin.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The same for draws from what a card finds in the row.
fn micros_of_part(logits: &[f32], step: SampleStep<'_>) -> String {
    let found = row_part::find(logits, None, step.params.temperature, true);
    let mut sampler = Sampler::new(VOCAB);
    let mut undecided = 0;
    let mut times: Vec<f64> = (0..DRAWS)
        .map(|index| {
            let step = SampleStep {
                uniform: uniform(1, index),
                ..step
            };
            let begin = Instant::now();
            let decision = sampler.sample_part(black_box(&found.part()), &step);
            let took = begin.elapsed().as_secs_f64() * 1e6;
            undecided += u64::from(matches!(decision, Decision::Undecided(_)));
            took
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    format!("{median:.1} µs, undecided {undecided} of {DRAWS}")
}

/// Every stage at work.
fn full(usual: SamplingParams) -> SamplingParams {
    SamplingParams {
        repetition_penalty: 1.1,
        presence_penalty: 0.1,
        frequency_penalty: 0.1,
        penalty_window: Window::All,
        dry: Some(DryParams {
            multiplier: 0.8,
            base: 1.75,
            allowed_length: 2,
            window: Window::All,
        }),
        temperature: 0.8,
        top_n_sigma: Some(8.0),
        typical_p: 0.98,
        min_p: 0.01,
        xtc: Some(XtcParams {
            probability: 0.5,
            threshold: 0.1,
        }),
        ..usual
    }
}

fn main() {
    let neutral = SamplingParams::NEUTRAL;
    let usual = SamplingParams {
        top_k: 40,
        top_p: 0.95,
        ..neutral
    };
    let full = full(usual);
    let with = |change: fn(&mut SamplingParams)| {
        let mut params = neutral;
        change(&mut params);
        params
    };
    let cases = [
        ("greedy", SamplingParams::GREEDY),
        ("neutral", neutral),
        ("top_k 40 + top_p 0.95", usual),
        ("top_p 0.95", with(|p| p.top_p = 0.95)),
        ("min_p 0.05", with(|p| p.min_p = 0.05)),
        ("typical_p 0.95", with(|p| p.typical_p = 0.95)),
        ("full chain", full),
    ];
    let logits = logits();
    let history: Vec<u32> = (0..8192u32).map(|i| i * 7919 % 5000).collect();
    let allowed = vec![u32::MAX ^ 1; VOCAB.div_ceil(32)];
    for (name, params) in &cases {
        let plain = SampleStep::new(params, 0.0, &history);
        let step = match *name {
            "full chain" => SampleStep {
                bias: &[(7, 1.0), (8, f32::NEG_INFINITY)],
                allowed: Some(TokenSet(&allowed)),
                banned: &[0, 1],
                breakers: TokenSet(&[1 << 9]),
                ..plain
            },
            _ => plain,
        };
        eprintln!(
            "{name}: {:.0} µs; from a part of the row {}",
            micros(&logits, step),
            micros_of_part(&logits, step)
        );
    }
    let step = SampleStep {
        logprobs: Some(20),
        ..SampleStep::new(&usual, 0.0, &history)
    };
    eprintln!(
        "top_k 40 + top_p 0.95 with 20 logprobs: {:.0} µs",
        micros(&logits, step)
    );
}
