//! The cuda device on models of real size: its logits beside the cpu device's, and the memory that it takes. Without a card, or without
//! models (`tests/common/large_models.rs` says where they come from), every test says SKIP.
#![cfg(feature = "cuda")]

mod common;
#[path = "common/large_models.rs"]
mod large_models;

use std::fs::File;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use memmap2::Mmap;

use common::{forward, say};
use large_models::{FirstCard, large_model};
use worker_orcd::device::cpu::isa::Isa;
use worker_orcd::device::cpu::{CpuDevice, CpuOptions};
use worker_orcd::device::cuda::{CudaDevice, CudaOptions};
use worker_orcd::device::{Device, KvType, Rows};
use worker_orcd::model::plan::Plan;
use worker_orcd::model::weights::{Files, Weights};
use worker_orcd::model::{arch, lower};
use worker_orcd::sampling::{SampleStep, SamplingParams};

const CONTEXT: usize = 2048;

/// Tokens whose logits are compared.
const TOKENS: u32 = 40;

/// A mapped model.
#[derive(Clone)]
struct Model(Rc<Mmap>);

impl Files for Model {
    fn file(&self, number: usize) -> &[u8] {
        match number {
            0 => &self.0,
            1.. => &[],
        }
    }
}

impl Model {
    fn open(path: &Path) -> Self {
        let file = File::open(path).expect("the model's file");
        // SAFETY: nobody writes to the models that tests use.
        Self(Rc::new(unsafe { Mmap::map(&file) }.expect("mapped")))
    }

    fn parts(&self) -> (Plan, Weights) {
        let gguf = worker_orcd::gguf::parse(&self.0).expect("a GGUF file");
        let plan = lower::lower(&arch::spec(&gguf).expect("a known architecture"), CONTEXT);
        let weights = Weights::claim(&plan, &gguf).expect("every tensor");
        (plan, weights)
    }

    fn on_the_card(&self) -> CudaDevice {
        let (plan, weights) = self.parts();
        let options = CudaOptions {
            ordinal: 0,
            context: CONTEXT,
            kv: KvType::F16,
        };
        let files = Box::new(self.clone());
        loaded(CudaDevice::new(plan, weights, files, options).expect("a device"))
    }

    fn on_the_cpu(&self) -> CpuDevice {
        let (plan, weights) = self.parts();
        let options = CpuOptions {
            context: CONTEXT,
            kv: KvType::F16,
            isa: Isa::best(),
        };
        loaded(CpuDevice::new(plan, weights, Box::new(self.clone()), options).expect("memory"))
    }
}

fn loaded<D: Device>(mut device: D) -> D {
    while {
        let until = Instant::now() + Duration::from_secs(60);
        let progress = device.load_some(until).expect("a load");
        progress.processed < progress.total
    } {}
    device
}

fn tokens(vocab: usize) -> Vec<u32> {
    let spread = |i: u32| (i * i * 7919 + i * 104_729 + 5) % vocab as u32;
    (0..TOKENS).map(spread).collect()
}

/// How rows of logits lie beside others.
struct Beside {
    /// The largest difference, as a share of the largest logit.
    most: f32,
    /// The mean difference, as a share of the largest logit.
    mean: f32,
    /// Rows with the same likeliest token.
    same: usize,
    /// Rows with another one, though the reference's is ahead by more than `CLEAR` of the largest logit.
    wrong: usize,
}

/// How far ahead a reference's likeliest token must be to bind the other device.
const CLEAR: f32 = 0.01;

fn likeliest(row: &[f32]) -> (usize, f32) {
    let by_logit = |(_, a): &(usize, &f32), (_, b): &(usize, &f32)| a.total_cmp(b);
    let (first, top) = row.iter().enumerate().max_by(by_logit).expect("a token");
    let others = row.iter().enumerate().filter(|(i, _)| *i != first);
    let (_, second) = others.max_by(by_logit).expect("another token");
    (first, top - second)
}

fn beside(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> Beside {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().flatten().fold(0.0f32, |m, v| m.max(v.abs()));
    let mut found = Beside {
        most: 0.0,
        mean: 0.0,
        same: 0,
        wrong: 0,
    };
    for (a, b) in ours.iter().zip(theirs) {
        assert!(a.iter().all(|v| v.is_finite()), "a logit is no number");
        let off: Vec<f32> = a
            .iter()
            .zip(b)
            .map(|(a, b)| (a - b).abs() / largest)
            .collect();
        found.most = off.iter().fold(found.most, |m, v| m.max(*v));
        found.mean += off.iter().sum::<f32>() / (off.len() * ours.len()) as f32;
        let (token, ahead) = likeliest(b);
        match likeliest(a).0 == token {
            true => found.same += 1,
            false if ahead > CLEAR * largest => found.wrong += 1,
            false => {}
        }
    }
    found
}

/// A shape, and how far its rows may be from the cpu's.
struct Bound {
    shape: &'static str,
    /// Share of the largest logit.
    most: f32,
    mean: f32,
    /// Rows with another likeliest token in spite of a clear one.
    wrong: usize,
}

/// Where a router has a near tie, as with random weights it often has, it may take another expert, and its row is another one from there on.
/// So only the mean of all rows and their number are held where there are experts.
const BOUNDS: [Bound; 3] = [
    bound("llama3-8b", 8e-3, 1e-3, 0),
    bound("phi3-mini", 8e-3, 1e-3, 0),
    bound("gpt-oss-20b", 1.0, 1e-2, 4),
];

const fn bound(shape: &'static str, most: f32, mean: f32, wrong: usize) -> Bound {
    Bound {
        shape,
        most,
        mean,
        wrong,
    }
}

#[test]
fn large_models_say_what_they_say_on_the_cpu() {
    let _alone = common::alone();
    let Some(_card) = FirstCard::open() else {
        return;
    };
    let mut wrong = Vec::new();
    for bound in BOUNDS {
        let shape = bound.shape;
        let Some(path) = large_model(shape) else {
            continue;
        };
        let model = Model::open(&path);
        let mut ours = model.on_the_card();
        let tokens = tokens(ours.capacity().vocab);
        let since = Instant::now();
        let theirs = forward(&mut model.on_the_cpu(), &tokens, 0, tokens.len(), Rows::All);
        say(&format!("{shape}: the cpu took {:?}", since.elapsed()));
        for piece in [1, 5, tokens.len()] {
            let found = beside(&forward(&mut ours, &tokens, 0, piece, Rows::All), &theirs);
            let figures = format!(
                "{shape}, {TOKENS} tokens in pieces of {piece}: off by {:.1e} of the largest logit, {:.1e} in the mean; \
                 the same likeliest token in {} rows, another in spite of a clear one in {}",
                found.most, found.mean, found.same, found.wrong
            );
            say(&figures);
            let is_near = found.most <= bound.most && found.mean <= bound.mean;
            if !is_near || found.wrong > bound.wrong {
                wrong.push(figures);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// One request: a prompt, and some tokens that are drawn.
fn request(device: &mut CudaDevice, prompt: &[u32]) {
    forward(device, prompt, 0, 512, Rows::Last);
    let greedy = SamplingParams::GREEDY;
    for position in prompt.len()..prompt.len() + 4 {
        device
            .sample(SampleStep::new(&greedy, 0.5, prompt))
            .expect("a draw");
        device.poll(Instant::now()).expect("a draw");
        forward(device, &prompt[..1], position, 1, Rows::Last);
    }
}

#[test]
fn memory_is_what_was_said_and_stays_so() {
    let _alone = common::alone();
    let Some(card) = FirstCard::open() else {
        return;
    };
    for shape in ["llama3-8b", "phi3-mini", "gpt-oss-20b"] {
        let Some(path) = large_model(shape) else {
            continue;
        };
        let before = card.free_bytes();
        let model = Model::open(&path);
        let mut device = model.on_the_card();
        let prompt: Vec<u32> = tokens(device.capacity().vocab).repeat(2);
        request(&mut device, &prompt);
        let used = before - card.free_bytes();
        let said = device.memory().total_bytes();
        let of_card = device.card().expect("a card").used_bytes;
        for i in 0..100 {
            request(&mut device, &prompt[i % 40..]);
        }
        let after = before - card.free_bytes();
        drop(device);
        let left = before.saturating_sub(card.free_bytes());
        say(&format!(
            "{shape}: {said} bytes said, {of_card} allocated, {used} gone by the driver's word, {after} after 100 requests, \
             {left} after the end"
        ));
        assert!(
            used.abs_diff(said) * 5 <= said,
            "{shape}: {used} bytes, and {said} were said"
        );
        assert_eq!(used, after, "{shape}: requests leave memory behind");
    }
}
