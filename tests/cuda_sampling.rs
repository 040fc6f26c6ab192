//! Drawing on a card: what its kernels find against the plain twin, and the tokens against those of the whole row. Without a card every test
//! says SKIP.
#![cfg(feature = "cuda")]

#[path = "common/mod.rs"]
mod common;
#[path = "common/gguf_writer.rs"]
mod gguf_writer;
#[path = "common/row_part.rs"]
mod row_part;
#[path = "common/tiny_llama.rs"]
mod tiny_llama;

use std::time::{Duration, Instant};

use bytemuck::Zeroable;
use common::card::device;
use row_part::find;
use tiny_llama::{Head, TinyLlama};
use worker_orcd::device::cuda::CudaDevice;
use worker_orcd::device::cuda::args::{FoundBlock, FoundEntry, FoundHead, Search};
use worker_orcd::device::cuda::driver::{Buffer, Context, Pinned, Stream};
use worker_orcd::device::cuda::launch::{CANDIDATES, Kernels};
use worker_orcd::device::{Device, KvType, Output, PageId, Rows, Step};
use worker_orcd::quant::TensorType;
use worker_orcd::sampling::{
    DryParams, PART_TOKENS_MAX, SampleStep, Sampled, Sampler, SamplingParams, TokenSet, Window,
    XtcParams, score, uniform, uniform_for_xtc,
};

/// A number on a bell curve with a deviation of about `deviation`.
fn bell(seed: u64, i: u64, deviation: f64) -> f32 {
    ((0..4).map(|k| uniform(seed + k, i) - 0.5).sum::<f64>() * 1.73 * deviation) as f32
}

/// Runs the kernels over a row: the head, the blocks and the entries, those of each block in the blocks' order.
fn search(
    kernels: &Kernels,
    row: &[f32],
    mask: Option<&[u32]>,
    temperature: f32,
) -> (FoundHead, Vec<FoundBlock>, Vec<FoundEntry>) {
    let stream = Stream::new().expect("a stream");
    let logits = Buffer::zeroed(row.len() * 4).expect("memory");
    logits
        .send(&stream, 0, bytemuck::cast_slice(row))
        .expect("a copy");
    let words = mask.unwrap_or(&[]);
    let allowed = Buffer::zeroed(words.len() * 4).expect("memory");
    allowed
        .send(&stream, 0, bytemuck::cast_slice(words))
        .expect("a copy");
    let scratch = Buffer::zeroed(16_384).expect("memory");
    let results = Pinned::zeroed(16_384).expect("memory");
    let run = row.len().div_ceil(128 * 256);
    let blocks = row.len().div_ceil(run * 256);
    let args = Search {
        logits: logits.at(),
        allowed: if mask.is_some() { allowed.at() } else { 0 },
        largest: scratch.at(),
        counts: scratch.at() + 2048,
        head: results.at(),
        blocks: results.at() + 64,
        entries: results.at() + 8192,
        n_vocab: row.len() as u32,
        n_words: words.len() as u32,
        run: run as u32,
        temperature,
        wants_one: 1,
        ..Search::zeroed()
    };
    // Twice: the second time finds what the first one has left behind.
    for _ in 0..2 {
        kernels
            .candidates(&stream, blocks, &args)
            .expect("launches");
    }
    stream.wait().expect("the results");
    let bytes = results.as_slice();
    let head: FoundHead = *bytemuck::from_bytes(&bytes[..size_of::<FoundHead>()]);
    let found: &[FoundBlock] =
        bytemuck::cast_slice(&bytes[64..64 + blocks * size_of::<FoundBlock>()]);
    let all: &[FoundEntry] = bytemuck::cast_slice(&bytes[8192..8192 + PART_TOKENS_MAX * 8]);
    let entries = found
        .iter()
        .flat_map(|b| all[b.first as usize..(b.first + b.entries) as usize].to_vec());
    (head, found.to_vec(), entries.collect())
}

#[test]
fn the_kernels_find_what_the_twin_finds() {
    let _alone = common::alone();
    let _context = match Context::open(0) {
        Ok(context) => context,
        Err(e) => return common::say(&format!("SKIP: {e}")),
    };
    let mut kernels = Kernels::load(100_000).expect("kernels");
    for name in CANDIDATES {
        kernels.prepare(name).expect("a kernel");
    }
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-11 * b.abs();
    for (case, vocab) in [1, 77, 256, 4097, 32_000, 49_152, 152_064, 262_144]
        .into_iter()
        .enumerate()
    {
        for kind in 0..4 {
            let seed = (case as u64 * 8 + kind) << 8;
            let row: Vec<f32> = (0..vocab as u64)
                .map(|i| match kind {
                    0 => bell(seed, i, 3.0),
                    1 => bell(seed, i, 3.0).round(),
                    2 if uniform(seed + 9, i) < 0.99 => f32::NEG_INFINITY,
                    _ => bell(seed, i, 0.01),
                })
                .collect();
            let mask: Vec<u32> = (0..TokenSet::words(vocab) as u64)
                .map(|i| (uniform(seed + 10, i) * 4e9) as u32)
                .collect();
            for mask in [None, Some(mask.as_slice())] {
                let want = find(&row, mask.map(TokenSet), 0.7, true);
                let (head, blocks, entries) = search(&kernels, &row, mask, 0.7);
                let tokens: Vec<u32> = entries.iter().map(|e| e.id).collect();
                let logits: Vec<f32> = entries.iter().map(|e| e.logit).collect();
                assert_eq!(tokens, want.tokens, "{vocab}, {kind}");
                assert_eq!(logits, want.logits);
                assert_eq!((head.whole != 0, head.bad), (want.is_whole, u32::MAX));
                assert_eq!(blocks.len(), want.rest.len());
                let rest = blocks.iter().zip(&want.rest);
                assert!(
                    rest.clone().all(|(b, want)| close(b.rest, *want)),
                    "{vocab}, {kind}"
                );
                let at_one: f64 = blocks.iter().map(|b| b.rest_at_one).sum();
                assert!(close(at_one, want.rest_at_one.expect("asked for")));
            }
            for bad in [f32::NAN, f32::INFINITY] {
                let mut row = row.clone();
                let at = vocab / 2;
                (row[at], row[vocab - 1]) = (bad, bad);
                assert_eq!(search(&kernels, &row, None, 0.7).0.bad, at as u32);
            }
        }
    }
}

fn forward(device: &mut CudaDevice, tokens: &[u32], position: usize, rows: Rows) {
    let pages = [PageId(0), PageId(1)];
    let step = Step {
        pages: &pages,
        tokens,
        position,
        rows,
    };
    device.forward(step).expect("a step");
    let far = Instant::now() + Duration::from_secs(9);
    while device.poll(far).expect("a step") != Some(Output::Forwarded) {}
}

fn draw(device: &mut CudaDevice, step: &SampleStep<'_>) -> Sampled {
    device.sample(*step).expect("a draw");
    match device.poll(Instant::now()).expect("a draw") {
        Some(Output::Sampled(sampled)) => sampled,
        other => panic!("{other:?} instead of a token"),
    }
}

/// A small model with a large vocabulary.
fn model(n_vocab: usize) -> Vec<u8> {
    let shape = TinyLlama {
        n_vocab,
        head: Head::Separate,
        ..TinyLlama::new(TensorType::Q8_0)
    };
    shape.file()
}

fn settings() -> Vec<SamplingParams> {
    let with = |change: fn(&mut SamplingParams)| {
        let mut usual = SamplingParams {
            temperature: 0.1,
            top_p: 0.95,
            ..SamplingParams::NEUTRAL
        };
        change(&mut usual);
        usual
    };
    vec![
        SamplingParams::GREEDY,
        SamplingParams::NEUTRAL,
        with(|_| {}),
        with(|p| p.top_p = 1.0),
        with(|p| p.top_k = 40),
        with(|p| {
            (p.top_k, p.typical_p) = (40, 0.9);
            p.xtc = Some(XtcParams {
                probability: 0.5,
                threshold: 0.05,
            });
        }),
        with(|p| (p.min_p, p.top_p) = (0.05, 1.0)),
        with(|p| (p.repetition_penalty, p.frequency_penalty) = (1.2, 0.2)),
        with(|p| p.presence_penalty = -1.0),
        with(|p| (p.repetition_penalty, p.temperature, p.top_p) = (1.2, 0.0, 1.0)),
        with(|p| {
            p.dry = Some(DryParams {
                multiplier: 0.8,
                base: 1.75,
                allowed_length: 1,
                window: Window::All,
            });
        }),
        with(|p| p.top_n_sigma = Some(2.0)),
        with(|p| p.typical_p = 0.9),
    ]
}

/// A mask that allows every third token.
fn thirds(n_vocab: usize) -> Vec<u32> {
    let mut mask = vec![0; TokenSet::words(n_vocab)];
    (0..n_vocab as u32)
        .step_by(3)
        .for_each(|t| TokenSet::insert(&mut mask, t));
    mask
}

/// Every kind of request, one after the other and so with what the last one has looked for: the token and the log-probabilities are those
/// of the whole row.
#[test]
fn draws_are_those_of_the_whole_row() {
    let _alone = common::alone();
    for n_vocab in [300, 5000, 49_152] {
        let Some(mut device) = device(model(n_vocab), 512, KvType::F16) else {
            return;
        };
        let mut sampler = Sampler::new(n_vocab);
        let mut row = vec![0.0; n_vocab];
        let history: Vec<u32> = (0..60).map(|i| (i * i * 7 + 3) % n_vocab as u32).collect();
        let mask = thirds(n_vocab);
        let few = [1 << 5 | 1 << 9];
        let mut index = 0;
        for (params, asks) in settings().iter().flat_map(|p| (0..7).map(move |a| (p, a))) {
            let plain = SampleStep::new(params, 0.0, &history);
            let step = match asks {
                1 => SampleStep {
                    logprobs: Some(5),
                    ..plain
                },
                2 => SampleStep {
                    allowed: Some(TokenSet(&mask)),
                    ..plain
                },
                3 => SampleStep {
                    allowed: Some(TokenSet(&few)),
                    logprobs: Some(2),
                    ..plain
                },
                4 => SampleStep {
                    bias: &[(7, 9.0), (8, f32::NEG_INFINITY)],
                    ..plain
                },
                5 => SampleStep {
                    banned: &[0, 1, 299],
                    breakers: TokenSet(&[8]),
                    ..plain
                },
                _ => plain,
            };
            let at = index as usize % 200;
            forward(&mut device, &[history[at % 60]], at, Rows::Last);
            device.read_logits(0, &mut row);
            for _ in 0..3 {
                index += 1;
                let step = SampleStep {
                    uniform: uniform(3, index),
                    xtc_uniform: uniform_for_xtc(3, index),
                    ..step
                };
                let want = sampler.sample(&row, &step).expect("a token");
                assert_eq!(
                    draw(&mut device, &step),
                    want,
                    "{n_vocab}: {params:?}, {asks}"
                );
            }
        }
    }
}

/// Rows of one step, drawn from in any order, and what they say of a token.
#[test]
fn every_row_of_a_step_is_drawn_from_and_scored() {
    let _alone = common::alone();
    let n_vocab = 5000;
    let Some(mut device) = device(model(n_vocab), 512, KvType::F16) else {
        return;
    };
    let mut sampler = Sampler::new(n_vocab);
    let mut row = vec![0.0; n_vocab];
    let params = SamplingParams {
        temperature: 0.1,
        ..SamplingParams::NEUTRAL
    };
    let tokens: Vec<u32> = (0..40).map(|i| i * 97 % 5000).collect();
    for n in [5, 40] {
        forward(&mut device, &tokens[..n], 0, Rows::All);
        for at in [0, n - 1, 2, n / 2, n - 1] {
            device.read_logits(at, &mut row);
            let step = SampleStep {
                row: at,
                ..SampleStep::new(&params, uniform(1, at as u64), &[])
            };
            assert_eq!(
                draw(&mut device, &step),
                sampler.sample(&row, &step).expect("a token")
            );
            for token in [0, 4999] {
                device.score(at, token, 20).expect("a score");
                let scored = device.poll(Instant::now()).expect("a score");
                let want = score(&row, token, 20).expect("a score");
                assert_eq!(scored, Some(Output::Scored(want)));
            }
        }
        assert!(device.score(n, 0, 0).is_err() && device.score(0, 5000, 0).is_err());
    }
}

/// 50,000 draws on the card, against the exact probabilities.
#[test]
fn draws_have_the_exact_distribution() {
    let _alone = common::alone();
    const DRAWS: u64 = 50_000;
    let n_vocab = 5000;
    let Some(mut device) = device(model(n_vocab), 512, KvType::F16) else {
        return;
    };
    forward(&mut device, &[5], 0, Rows::Last);
    let mut row = vec![0.0; n_vocab];
    device.read_logits(0, &mut row);
    let params = SamplingParams {
        temperature: 0.15,
        ..SamplingParams::NEUTRAL
    };
    let mut counts = vec![0.0f64; n_vocab];
    for index in 0..DRAWS {
        let step = SampleStep::new(&params, uniform(31, index), &[]);
        counts[draw(&mut device, &step).token as usize] += 1.0;
    }
    let largest = f64::from(row.iter().copied().fold(f32::MIN, f32::max));
    let weight = |l: &f32| ((f64::from(*l) - largest) / f64::from(params.temperature)).exp();
    let total: f64 = row.iter().map(weight).sum();
    // Tokens that come less than ten times are one cell.
    let (mut chi_square, mut cells, mut rare) = (0.0, 0.0, (0.0, 0.0));
    for (count, logit) in counts.iter().zip(&row) {
        let expected = weight(logit) / total * DRAWS as f64;
        if expected < 10.0 {
            rare = (rare.0 + count, rare.1 + expected);
        } else {
            chi_square += (count - expected).powi(2) / expected;
            cells += 1.0;
        }
    }
    chi_square += (rare.0 - rare.1).powi(2) / rare.1.max(1e-9);
    let third = 2.0 / (9.0 * cells);
    let bound: f64 = cells * (1.0 - third + 3.72 * f64::sqrt(third)).powi(3);
    common::say(&format!(
        "chi-square {chi_square:.1} of {cells} cells, at most {bound:.1}"
    ));
    assert!(chi_square <= bound);
}
