//! How fast the cpu device is, without a pipe: `cargo bench --bench forward -- MODEL [ISA]` prints decode and prefill tok/s and bytes a second.

use std::time::{Duration, Instant};

use worker_orcd::device::cpu::isa::Isa;
use worker_orcd::device::cpu::{CpuDevice, CpuOptions, KvType};
use worker_orcd::device::{Device, Output, PageId, Rows, Step};
use worker_orcd::model::{arch, lower, weights::Weights};

/// Runs one step to its end.
fn step(device: &mut CpuDevice, tokens: &[u32], position: usize, rows: Rows) -> anyhow::Result<()> {
    let pages: Vec<PageId> = (0..device.capacity().pages as u32).map(PageId).collect();
    device.forward(Step {
        pages: &pages,
        tokens,
        position,
        rows,
    })?;
    while device.poll(Instant::now() + Duration::from_secs(1))? != Some(Output::Forwarded) {}
    Ok(())
}

/// The median of some durations.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Tokens that the device holds.
const CONTEXT: usize = 2048;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let Some(path) = arguments.first() else {
        eprintln!("usage: cargo bench --bench forward -- MODEL [scalar|avx2|avx512]");
        return Ok(());
    };
    let wanted = arguments.get(1);
    let isa = Isa::available()
        .into_iter()
        .rev()
        .find(|i| wanted.is_none_or(|w| w == i.name()));
    let isa = isa.ok_or_else(|| anyhow::anyhow!("this machine has no {wanted:?}"))?;
    let bytes = std::fs::read(path)?;
    let gguf = worker_orcd::gguf::parse(&bytes)?;
    let plan = lower::lower(&arch::spec(&gguf)?, CONTEXT);
    let weights = Weights::claim(&plan, &gguf)?;
    let size = weights.total_bytes();
    let mut device = CpuDevice::new(
        plan,
        weights,
        Box::new(bytes),
        CpuOptions {
            context: CONTEXT,
            kv: KvType::F16,
            isa,
        },
    )?;
    while device.load_some(Instant::now() + Duration::from_secs(1))?
        != (worker_orcd::device::LoadProgress {
            processed: size,
            total: size,
        })
    {}
    let tokens: Vec<u32> = (0..512u32).map(|i| 100 + i * 37 % 1000).collect();
    let chunk = device.capacity().step_tokens_max;
    let mut prefill = Vec::new();
    for _ in 0..3 {
        let begin = Instant::now();
        for (i, piece) in tokens.chunks(chunk).enumerate() {
            step(&mut device, piece, i * chunk, Rows::None)?;
        }
        prefill.push(begin.elapsed());
    }
    let mut decode = Vec::new();
    for i in 0..64 {
        let begin = Instant::now();
        step(&mut device, &tokens[i..i + 1], 16 + i, Rows::Last)?;
        decode.push(begin.elapsed());
    }
    let (prefill, decode) = (median(prefill).as_secs_f64(), median(decode).as_secs_f64());
    eprintln!(
        "{}: decode {:.1} tok/s ({:.2} GB/s), prefill 512: {:.1} tok/s",
        device.name(),
        1.0 / decode,
        size as f64 / decode / 1e9,
        tokens.len() as f64 / prefill
    );
    Ok(())
}
