//! After its load the cpu device allocates nothing: not in a step, not in a poll, not in drawing a token.

mod common;
#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/gguf_writer.rs"]
mod gguf_writer;
#[path = "common/tiny_llama.rs"]
mod tiny_llama;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use tiny_llama::TinyLlama;
use worker_orcd::device::cpu::isa::Isa;
use worker_orcd::device::cpu::{CpuDevice, CpuOptions, KvType};
use worker_orcd::device::{Device, Output, PAGE_TOKENS, PageId, Rows, Step};
use worker_orcd::quant::TensorType;
use worker_orcd::sampling::{
    DryParams, SampleStep, SamplingParams, TOP_LOGPROBS_MAX, TokenSet, Window, XtcParams,
};

/// Counts how often each thread asks for memory or gives it back.
struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    CALLS.set(CALLS.get() + 1);
}

// SAFETY: every call goes to the system's allocator unchanged; the counter is a plain cell that allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Fails if `work` touches the heap.
#[track_caller]
fn assert_no_allocation<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let before = CALLS.get();
    let result = work();
    let calls = CALLS.get() - before;
    assert_eq!(calls, 0, "{what} calls the allocator {calls} times");
    result
}

/// Starts a step and polls it in the smallest slices, then in one.
fn forward(device: &mut CpuDevice, step: Step<'_>) {
    device.forward(step).expect("a step");
    let (past, far) = (Instant::now(), Instant::now() + Duration::from_secs(60));
    let early = (0..10).any(|_| device.poll(past).expect("a step").is_some());
    assert!(!early, "a step of ten tiles has nothing to interrupt");
    assert_eq!(device.poll(far).expect("a step"), Some(Output::Forwarded));
}

fn draw(device: &mut CpuDevice, step: SampleStep<'_>) -> u32 {
    let drawn = assert_no_allocation("drawing a token", || {
        device.sample(step).expect("a draw");
        device
            .poll(Instant::now() + Duration::from_secs(60))
            .expect("a draw")
    });
    match drawn {
        Some(Output::Sampled(sampled)) => sampled.token,
        other => panic!("{other:?} instead of a token"),
    }
}

/// Prompts in pieces of every kind, then tokens one by one into the second page, as long as the pool reaches.
fn generate(device: &mut CpuDevice, params: &SamplingParams) {
    let pages = [PageId(1), PageId(0)];
    let mut history = [3u32; 2 * PAGE_TOKENS];
    let mut position = 0;
    for (tokens, rows) in [
        (64, Rows::None),
        (64, Rows::All),
        (1, Rows::None),
        (64, Rows::None),
        (2, Rows::Last),
    ] {
        let tokens = &history[position..][..tokens];
        assert_no_allocation("a piece of a prompt", || {
            forward(
                device,
                Step {
                    pages: &pages,
                    tokens,
                    position,
                    rows,
                },
            )
        });
        position += tokens.len();
    }
    while position < 2 * PAGE_TOKENS {
        let uniform = f64::from(position as u32 * 37 % 101) / 101.0;
        let step = SampleStep {
            bias: &[(5, 1.0), (6, f32::NEG_INFINITY)],
            allowed: Some(TokenSet(&[u32::MAX; 3])),
            banned: &[7],
            breakers: TokenSet(&[1 << 9]),
            logprobs: Some(TOP_LOGPROBS_MAX),
            ..SampleStep::new(params, uniform, &history[..position])
        };
        let token = draw(device, step);
        history[position] = token;
        let tokens = &history[position..][..1];
        assert_no_allocation("a score", || {
            device.score(0, token, 20).expect("a score");
            device.poll(Instant::now()).expect("a score")
        });
        assert_no_allocation("a token", || {
            forward(
                device,
                Step {
                    pages: &pages,
                    tokens,
                    position,
                    rows: Rows::Last,
                },
            )
        });
        position += 1;
    }
}

#[test]
fn a_counted_allocation_is_seen() {
    let before = CALLS.get();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(CALLS.get() - before, 2);
}

#[test]
fn steps_allocate_nothing() {
    let all_stages = SamplingParams {
        repetition_penalty: 1.2,
        presence_penalty: 0.1,
        frequency_penalty: 0.1,
        penalty_window: Window::Last(100),
        dry: Some(DryParams {
            multiplier: 0.8,
            base: 1.75,
            allowed_length: 2,
            window: Window::All,
        }),
        temperature: 0.8,
        top_n_sigma: Some(2.0),
        top_k: 40,
        typical_p: 0.95,
        top_p: 0.9,
        min_p: 0.02,
        xtc: Some(XtcParams {
            probability: 0.5,
            threshold: 0.1,
        }),
    };
    let greedy = SamplingParams::GREEDY;
    for kind in TensorType::ALL {
        for (kv, params) in [(KvType::F16, &all_stages), (KvType::F32, &greedy)] {
            let options = CpuOptions {
                context: 2 * PAGE_TOKENS,
                kv,
                isa: Isa::best(),
            };
            let mut device = common::cpu_device(TinyLlama::new(kind).file(), options);
            generate(&mut device, params);
        }
    }
}

#[test]
fn steps_of_every_architecture_allocate_nothing() {
    for fixture in fixtures::all() {
        let options = CpuOptions {
            context: fixture.context.unwrap_or(PAGE_TOKENS),
            kv: KvType::F16,
            isa: Isa::best(),
        };
        let longest = fixture.prompts.iter().max_by_key(|p| p.tokens.len());
        let tokens = &longest.expect("a prompt").tokens;
        let mut device = common::cpu_device(fixture.gguf, options);
        let (prompt, rest) = tokens.split_at(tokens.len() - 3);
        assert_no_allocation(&fixture.name, || {
            let steps = prompt.chunks(5).chain(rest.chunks(1));
            let mut position = 0;
            for tokens in steps {
                let step = Step {
                    pages: &[PageId(0)],
                    tokens,
                    position,
                    rows: Rows::Last,
                };
                forward(&mut device, step);
                position += tokens.len();
            }
        });
    }
}

#[test]
fn an_aborted_step_allocates_nothing() {
    let options = CpuOptions {
        context: PAGE_TOKENS,
        kv: KvType::F16,
        isa: Isa::best(),
    };
    let mut device = common::cpu_device(TinyLlama::new(TensorType::Q4_1).file(), options);
    let step = Step {
        pages: &[PageId(0)],
        tokens: &[1, 2, 3],
        position: 0,
        rows: Rows::Last,
    };
    assert_no_allocation("an aborted step", || {
        device.forward(step).expect("a step");
        assert_eq!(device.poll(Instant::now()).expect("a step"), None);
        device.abort();
        forward(&mut device, step);
    });
}
