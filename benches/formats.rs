//! What each tensor type costs: `cargo bench --bench formats -- [ISA]` prints picoseconds a weight for one token and for sixteen, and how
//! that compares with Q4_1. The weights stay in cache, so that it is the decoding that is measured.

use std::time::{Duration, Instant};

use worker_orcd::device::cpu::integers::{Packed, blocks};
use worker_orcd::device::cpu::isa::Isa;
use worker_orcd::device::cpu::kernels::{Kernels, MatMul, Store};
use worker_orcd::device::cpu::packed::{Form, GROUP, pack};
use worker_orcd::quant::TensorType;

const ROWS: usize = 64;
const COLS: usize = 4096;

/// The least of many durations, each long enough for the clock.
fn least(mut product: impl FnMut()) -> f64 {
    let mut least = Duration::MAX;
    for _ in 0..200 {
        let begin = Instant::now();
        product();
        least = least.min(begin.elapsed());
    }
    least.as_secs_f64()
}

/// Seconds that one product takes in the way that its type has: dealt out to groups, or as it is stored.
fn seconds(kernels: &Kernels, kind: TensorType, tokens: usize) -> f64 {
    // every byte the same small number: finite scales in every format
    let weights = vec![0x11; kind.row_bytes(COLS) * ROWS];
    let x = vec![0.5; COLS * tokens];
    let mut dst = vec![0.0; ROWS * tokens];
    let mut scratch = vec![0.0; ROWS * COLS];
    let Some(form) = Form::of(kind) else {
        let job = MatMul {
            kind,
            weights: &weights,
            cols: COLS,
            x: &x,
            tokens,
            store: Store::Set,
            first_row: 0,
            dst_stride: ROWS,
        };
        // SAFETY: the kernels are of an instruction set that this machine has.
        return least(|| unsafe {
            (kernels.matmul)(std::hint::black_box(&job), &mut dst, &mut scratch);
        });
    };
    let mut groups = vec![0; ROWS / GROUP * form.group_bytes(COLS)];
    let rows = weights.chunks_exact(GROUP * kind.row_bytes(COLS));
    for (rows, group) in rows.zip(groups.chunks_exact_mut(form.group_bytes(COLS))) {
        pack(kind, COLS, rows, group);
    }
    let mut rounded = vec![bytemuck::Zeroable::zeroed(); blocks(COLS) * tokens];
    for (token, x) in x.chunks_exact(COLS).enumerate() {
        // SAFETY: as above.
        unsafe { (kernels.round)(x, &mut rounded[token..], tokens) };
    }
    let job = Packed {
        kind,
        groups: &groups,
        cols: COLS,
        skip: 0,
        rows: ROWS,
        x: &rounded,
        x_stride: tokens,
        tokens,
        store: Store::Set,
        first_row: 0,
        dst_stride: ROWS,
    };
    // SAFETY: as above.
    least(|| unsafe {
        (kernels.multiply)(std::hint::black_box(&job), &mut dst, &mut scratch);
    })
}

fn main() -> anyhow::Result<()> {
    let wanted = std::env::args().skip(1).find(|a| a != "--bench");
    let isa = Isa::available()
        .into_iter()
        .rev()
        .find(|i| wanted.as_ref().is_none_or(|w| w == i.name()));
    let kernels = isa.and_then(Isa::kernels);
    let kernels = kernels.ok_or_else(|| anyhow::anyhow!("this machine has no {wanted:?}"))?;
    let weights = (ROWS * COLS) as f64;
    let base = [1, 16].map(|tokens| seconds(&kernels, TensorType::Q4_1, tokens));
    eprintln!("{:8} {:>24} {:>24}", "", "1 token", "16 tokens");
    for kind in TensorType::ALL {
        let both = [1, 16].map(|tokens| seconds(&kernels, kind, tokens));
        eprintln!(
            "{:8} {:7.1} ps/weight ({:4.2}x) {:7.1} ps/weight ({:4.2}x)",
            kind.name(),
            both[0] / weights * 1e12,
            both[0] / base[0],
            both[1] / weights * 1e12,
            both[1] / base[1],
        );
    }
    Ok(())
}
