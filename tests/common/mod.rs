//! What several test files share: where the real model is, and a cpu device over it.
#![allow(dead_code, reason = "each test file uses its own part")]

#[cfg(feature = "cuda")]
pub mod card;
pub mod reference;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use worker_orcd::device::cpu::isa::Isa;
use worker_orcd::device::cpu::{CpuDevice, CpuOptions, KvType};
use worker_orcd::device::{Device, Output, PAGE_TOKENS, PageId, Rows, Step};
use worker_orcd::model::{arch, lower, weights::Weights};

/// The default model's file name, as `orcd fetch` stores it.
pub const MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// Says something whether a test passes or not: test runners hold back what the print macros write.
pub fn say(what: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "{what}").ok();
}

/// The card for one test at a time: what others do on it while one records its graph spoils the record.
pub fn alone() -> MutexGuard<'static, ()> {
    static CARD: Mutex<()> = Mutex::new(());
    // a test that failed left nothing behind
    CARD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The real model: `WORKER_ORCD_TEST_MODEL`, or where `orcd fetch` puts it. `None`, loudly, where there is none.
pub fn model_path() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|h| h.join(".cache")));
    let path = match std::env::var_os("WORKER_ORCD_TEST_MODEL") {
        Some(path) => PathBuf::from(path),
        None => cache?.join("worker-orcd/models").join(MODEL),
    };
    if path.is_file() {
        return Some(path);
    }
    say(&format!(
        "SKIP: no model at {}; `orcd fetch` gets it, or name one in WORKER_ORCD_TEST_MODEL",
        path.display()
    ));
    None
}

/// A cpu device over a file, loaded.
pub fn cpu_device(bytes: Vec<u8>, options: CpuOptions) -> CpuDevice {
    let gguf = worker_orcd::gguf::parse(&bytes).expect("a GGUF file");
    let plan = lower::lower(
        &arch::spec(&gguf).expect("a known architecture"),
        options.context,
    );
    let weights = Weights::claim(&plan, &gguf).expect("every tensor");
    let mut device = CpuDevice::new(plan, weights, Box::new(bytes), options).expect("memory");
    let far = Instant::now() + Duration::from_secs(60);
    let progress = device.load_some(far).expect("a load");
    assert_eq!(progress.processed, progress.total);
    device
}

/// The real model on the cpu.
pub fn real_device(path: &Path, context: usize, kv: KvType, isa: Isa) -> CpuDevice {
    cpu_device(
        std::fs::read(path).expect("the model's file"),
        CpuOptions { context, kv, isa },
    )
}

/// Runs `tokens` from `position` on in pieces of at most `piece`, and returns the logits of every row that `rows` asks of each piece.
pub fn forward(
    device: &mut dyn Device,
    tokens: &[u32],
    position: usize,
    piece: usize,
    rows: Rows,
) -> Vec<Vec<f32>> {
    let pages: Vec<PageId> = (0..(position + tokens.len()).div_ceil(PAGE_TOKENS) as u32)
        .map(PageId)
        .collect();
    let mut logits = Vec::new();
    for (i, piece_tokens) in tokens.chunks(piece).enumerate() {
        device
            .forward(Step {
                pages: &pages,
                tokens: piece_tokens,
                position: position + i * piece,
                rows,
            })
            .expect("a step");
        while device
            .poll(Instant::now() + Duration::from_secs(60))
            .expect("a step")
            != Some(Output::Forwarded)
        {}
        let n = match rows {
            Rows::None => 0,
            Rows::Last => 1,
            Rows::All => piece_tokens.len(),
        };
        for row in 0..n {
            let mut out = vec![0.0; device.capacity().vocab];
            device.read_logits(row, &mut out);
            logits.push(out);
        }
    }
    logits
}
