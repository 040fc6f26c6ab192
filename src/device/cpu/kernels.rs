//! The inner loops, written once over [`Lanes`] and compiled for each instruction set; `naive.rs` holds their twins. Products of matrices
//! are in `integers.rs` and `matmul.rs`, the decoding of each tensor type in `formats/`.
//!
//! Order of summation in products of floats, the same for one row or many, decode or prefill: lane `l` of a dot product takes k = l, l + 16, l + 32, … in
//! turn, one fused multiply-add each; the lanes are then added as a tree. Weights are dequantised to the f32 value that the format
//! defines, so nothing is approximated and the type of a tensor changes no order.

use half::f16;

use super::integers::{self, Packed, Rounded};
use super::kv::{BLOCK, KvElement};
use super::lanes::{LANES, Lanes, exp, tanh};
use super::matmul;
use crate::device::PAGE_TOKENS;
use crate::quant::TensorType;

/// Columns are padded with zeros to a multiple of this in every activation buffer: two vectors.
pub const COLS_STEP: usize = 32;

/// Rounds a width up to [`COLS_STEP`].
pub const fn padded(cols: usize) -> usize {
    cols.next_multiple_of(COLS_STEP)
}

/// What a matrix product does with its results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// dst = result.
    Set,
    /// dst = dst + result.
    Add,
}

/// Some rows of a matrix times some tokens.
pub struct MatMul<'a> {
    /// Format of the weights.
    pub kind: TensorType,
    /// The rows' bytes, row-major, as stored.
    pub weights: &'a [u8],
    /// Inputs a row.
    pub cols: usize,
    /// Activations: (padded(cols), tokens), zero where padded.
    pub x: &'a [f32],
    /// How many tokens.
    pub tokens: usize,
    /// Set or add.
    pub store: Store,
    /// First output row in `dst`.
    pub first_row: usize,
    /// Distance between two tokens in `dst`.
    pub dst_stride: usize,
}

/// Attention of one token over one key-value head: `queries / head_dim` query heads share it.
pub struct Attend<'a, E> {
    /// (head_dim, group): the query heads of this key-value head.
    pub queries: &'a [f32],
    /// The KV pool.
    pub pool: &'a [E],
    /// Where each page's keys of this layer and head begin; `kv.rs` has the layout, as for the values.
    pub key_offsets: &'a dyn Fn(usize) -> usize,
    /// Where each page's values of this layer and head begin.
    pub value_offsets: &'a dyn Fn(usize) -> usize,
    /// Distance between two positions' values.
    pub value_stride: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// The first position to attend to.
    pub first: usize,
    /// Positions to attend to: first..positions.
    pub positions: usize,
    /// Factor on q·k.
    pub scale: f32,
    /// score = cap × tanh(score / cap).
    pub softcap: Option<f32>,
    /// One score for each query head that joins its softmax without a value; empty where there are none.
    pub sinks: &'a [f32],
}

/// out = x / √(mean(x²) + eps) × weight; all of them padded with zeros beyond `len`.
#[inline(always)]
unsafe fn rms_norm<L: Lanes>(x: &[f32], weight: &[f32], len: usize, eps: f32, out: &mut [f32]) {
    let width = padded(len);
    assert!(x.len() >= width && weight.len() >= width && out.len() >= width);
    // SAFETY: lengths checked; width is a multiple of 16.
    unsafe {
        let mut squares = L::splat(0.0);
        for k in (0..width).step_by(16) {
            let v = L::load(x.as_ptr().add(k));
            squares = v.mul_add(v, squares);
        }
        let scale = L::splat(1.0 / (squares.sum() / len as f32 + eps).sqrt());
        for k in (0..width).step_by(16) {
            let v = L::load(x.as_ptr().add(k)).mul(scale);
            v.mul(L::load(weight.as_ptr().add(k)))
                .store(out.as_mut_ptr().add(k));
        }
    }
}

/// out = (x - mean(x)) / √(variance(x) + eps) × weight; all of them padded with zeros beyond `len`.
#[inline(always)]
unsafe fn layer_norm<L: Lanes>(x: &[f32], weight: &[f32], len: usize, eps: f32, out: &mut [f32]) {
    let width = padded(len);
    assert!(x.len() >= width && weight.len() >= width && out.len() >= width);
    // SAFETY: lengths checked; width is a multiple of 16.
    unsafe {
        let mut sum = L::splat(0.0);
        for k in (0..width).step_by(16) {
            sum = sum.add(L::load(x.as_ptr().add(k)));
        }
        let mean = L::splat(sum.sum() / len as f32);
        for k in (0..width).step_by(16) {
            let v = L::load(x.as_ptr().add(k)).sub(mean);
            v.store(out.as_mut_ptr().add(k));
        }
        out[len..width].fill(0.0);
        let mut squares = L::splat(0.0);
        for k in (0..width).step_by(16) {
            let v = L::load(out.as_ptr().add(k));
            squares = v.mul_add(v, squares);
        }
        let scale = L::splat(1.0 / (squares.sum() / len as f32 + eps).sqrt());
        for k in (0..width).step_by(16) {
            let v = L::load(out.as_ptr().add(k)).mul(scale);
            v.mul(L::load(weight.as_ptr().add(k)))
                .store(out.as_mut_ptr().add(k));
        }
    }
}

/// x / (1 + e^-y).
#[inline(always)]
unsafe fn times_sigmoid<L: Lanes>(x: L, y: L) -> L {
    // SAFETY: the caller vouches for the instructions.
    unsafe { x.div(exp(L::splat(0.0).sub(y)).add(L::splat(1.0))) }
}

/// x = x / (1 + e^-x).
#[inline(always)]
unsafe fn silu<L: Lanes>(x: &mut [f32]) {
    for x in x.as_chunks_mut::<LANES>().0 {
        // SAFETY: a chunk holds 16 values.
        unsafe {
            let v = L::load(x.as_ptr());
            times_sigmoid(v, v).store(x.as_mut_ptr());
        }
    }
}

/// x = x/2 × (1 + tanh(√(2/π) × (x + 0.044715 x³))), which is x / (1 + e^(-2√(2/π) × (x + 0.044715 x³))).
#[inline(always)]
unsafe fn gelu_tanh<L: Lanes>(x: &mut [f32]) {
    const FACTOR: f32 = 1.595_769; // 2√(2/π)
    for x in x.as_chunks_mut::<LANES>().0 {
        // SAFETY: a chunk holds 16 values.
        unsafe {
            let v = L::load(x.as_ptr());
            let inner = v.mul(v).mul_add(L::splat(0.044_715), L::splat(1.0));
            let y = v.mul(inner).mul(L::splat(FACTOR));
            times_sigmoid(v, y).store(x.as_mut_ptr());
        }
    }
}

/// gate = g / (1 + e^(-alpha g)) × (u + 1) with g = min(gate, limit) and u = up within ±limit.
#[inline(always)]
unsafe fn clamped_swiglu<L: Lanes>(gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
    assert!(gate.len() == up.len());
    for (gate, up) in gate
        .as_chunks_mut::<LANES>()
        .0
        .iter_mut()
        .zip(up.as_chunks::<LANES>().0)
    {
        // SAFETY: chunks hold 16 values.
        unsafe {
            let g = L::load(gate.as_ptr()).min(L::splat(limit));
            let u = L::load(up.as_ptr())
                .min(L::splat(limit))
                .max(L::splat(-limit));
            times_sigmoid(g, g.mul(L::splat(alpha)))
                .mul(u.add(L::splat(1.0)))
                .store(gate.as_mut_ptr());
        }
    }
}

/// Sixteen values x become cap × tanh(x / cap).
#[inline(always)]
unsafe fn cap_lanes<L: Lanes>(x: &mut [f32; LANES], cap: f32) {
    // SAFETY: the array holds 16 values; the caller vouches for the instructions.
    unsafe {
        let cap = L::splat(cap);
        tanh(L::load(x.as_ptr()).div(cap))
            .mul(cap)
            .store(x.as_mut_ptr());
    }
}

/// x = cap × tanh(x / cap), any number of them.
#[inline(always)]
unsafe fn softcap<L: Lanes>(x: &mut [f32], cap: f32) {
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    let mut last = [0.0; LANES];
    last[..rest.len()].copy_from_slice(rest);
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        for x in whole {
            cap_lanes::<L>(x, cap);
        }
        cap_lanes::<L>(&mut last, cap);
    }
    rest.copy_from_slice(&last[..rest.len()]);
}

/// H query heads times P × 16 positions of one page, from `first` on.
#[inline(always)]
unsafe fn scores_block<L: Lanes, E: KvElement, const H: usize, const P: usize>(
    q: *const f32,
    head_dim: usize,
    keys: *const E,
    first: usize,
) -> [[L; P]; H] {
    // SAFETY: q holds H heads of head_dim; keys are a head's of a page, and first + P × 16 ≤ PAGE_TOKENS.
    unsafe {
        let mut acc = [[L::splat(0.0); P]; H];
        for begin in (0..head_dim).step_by(BLOCK) {
            let mut scales = [L::splat(1.0); P];
            for (p, scale) in scales.iter_mut().enumerate() {
                *scale = E::key_scales::<L>(keys, head_dim, begin, first + p * 16);
            }
            for d in begin..head_dim.min(begin + BLOCK) {
                let mut k = [L::splat(0.0); P];
                for (p, kv) in k.iter_mut().enumerate() {
                    *kv = E::load::<L>(keys.add(d * PAGE_TOKENS + first + p * 16), scales[p]);
                }
                for (h, row) in acc.iter_mut().enumerate() {
                    let qv = L::splat(*q.add(h * head_dim + d));
                    for (a, kv) in row.iter_mut().zip(k) {
                        *a = qv.mul_add(kv, *a);
                    }
                }
            }
        }
        acc
    }
}

/// Scores of H heads over all positions: `scores[h × stride + position]`, scaled.
#[inline(always)]
unsafe fn scores<L: Lanes, E: KvElement, const H: usize, const P: usize>(
    job: &Attend<'_, E>,
    q: &[f32],
    out: &mut [f32],
    stride: usize,
) {
    let scale = job.scale;
    for page in job.first / PAGE_TOKENS..job.positions.div_ceil(PAGE_TOKENS) {
        let keys = &job.pool[(job.key_offsets)(page)..][..E::layout(job.head_dim).keys];
        let in_page = (job.positions - page * PAGE_TOKENS).min(PAGE_TOKENS);
        let begin = job.first.saturating_sub(page * PAGE_TOKENS);
        for first in (begin - begin % (16 * P)..in_page).step_by(16 * P) {
            // SAFETY: P divides the 16 vectors of a page, so the block stays inside the page and inside `out`, which holds whole pages.
            unsafe {
                let block =
                    scores_block::<L, E, H, P>(q.as_ptr(), job.head_dim, keys.as_ptr(), first);
                for (h, row) in block.into_iter().enumerate() {
                    for (p, v) in row.into_iter().enumerate() {
                        let at = h * stride + page * PAGE_TOKENS + first + p * 16;
                        v.mul(L::splat(scale)).store(out[at..][..16].as_mut_ptr());
                    }
                }
            }
        }
    }
}

/// In place: the scores of positions first..len become e^(s - max); returns their sum. Lanes around them are set so that they count nothing.
/// A sink counts in the maximum and the sum.
#[inline(always)]
unsafe fn softmax_numerators<L: Lanes>(
    scores: &mut [f32],
    (first, len): (usize, usize),
    sink: Option<f32>,
) -> f32 {
    let (begin, end) = (first - first % 16, len.next_multiple_of(16));
    scores[begin..first].fill(f32::NEG_INFINITY);
    scores[len..end].fill(f32::NEG_INFINITY);
    // SAFETY: values up to `end` are inside the slice, as indexing above has shown.
    unsafe {
        let mut largest = L::splat(sink.unwrap_or(f32::NEG_INFINITY));
        for k in (begin..end).step_by(16) {
            largest = L::load(scores.as_ptr().add(k)).max(largest);
        }
        let largest = L::splat(largest.largest());
        let mut sum = L::splat(0.0);
        for k in (begin..end).step_by(16) {
            let e = exp(L::load(scores.as_ptr().add(k)).sub(largest));
            sum = sum.add(e);
            e.store(scores.as_mut_ptr().add(k));
        }
        let sum = sum.sum();
        match sink {
            None => sum,
            Some(sink) => {
                let mut e = [0.0; LANES];
                exp(L::splat(sink).sub(largest)).store(e.as_mut_ptr());
                sum + e[0]
            }
        }
    }
}

/// For H heads, D × 16 elements of Σ_position weight × value, positions in order; `weights[h × stride + position]`.
#[inline(always)]
unsafe fn values_block<L: Lanes, E: KvElement, const H: usize, const D: usize>(
    job: &Attend<'_, E>,
    weights: &[f32],
    stride: usize,
    from: usize,
) -> [[L; D]; H] {
    assert!(weights.len() >= (H - 1) * stride + job.positions);
    // SAFETY: every page's values hold PAGE_TOKENS rows of value_stride elements, and from + D × 16 ≤ value_stride; weights as asserted.
    unsafe {
        let mut acc = [[L::splat(0.0); D]; H];
        for page in job.first / PAGE_TOKENS..job.positions.div_ceil(PAGE_TOKENS) {
            let values = &job.pool[(job.value_offsets)(page)..][..E::layout(job.head_dim).values];
            let in_page = (job.positions - page * PAGE_TOKENS).min(PAGE_TOKENS);
            let begin = job.first.saturating_sub(page * PAGE_TOKENS);
            for i in begin..in_page {
                let row = values.as_ptr().add(i * job.value_stride + from);
                let mut v = [L::splat(0.0); D];
                for (d, v) in v.iter_mut().enumerate() {
                    let at = from + d * 16;
                    let scale = E::value_scale::<L>(values.as_ptr(), job.value_stride, at, i);
                    *v = E::load::<L>(row.add(d * 16), scale);
                }
                for (h, acc) in acc.iter_mut().enumerate() {
                    let w = L::splat(*weights.as_ptr().add(h * stride + page * PAGE_TOKENS + i));
                    for (a, v) in acc.iter_mut().zip(v) {
                        *a = w.mul_add(v, *a);
                    }
                }
            }
        }
        acc
    }
}

/// Writes `values × factor` to `out[from..]`, cut at the head's width.
#[inline(always)]
unsafe fn write_head<L: Lanes, const D: usize>(
    values: [L; D],
    factor: f32,
    from: usize,
    out: &mut [f32],
) {
    for (d, v) in values.into_iter().enumerate() {
        let mut lanes = [0.0f32; 16];
        // SAFETY: `lanes` holds 16 values.
        unsafe { v.mul(L::splat(factor)).store(lanes.as_mut_ptr()) };
        // padding may begin before the vector
        let start = (from + d * 16).min(out.len());
        let n = out.len().saturating_sub(start).min(16);
        out[start..start + n].copy_from_slice(&lanes[..n]);
    }
}

/// H heads: `factor` × Σ_position weight × value of each; values are widened once for all of them.
#[inline(always)]
unsafe fn weigh_values<L: Lanes, E: KvElement, const H: usize, const D: usize>(
    job: &Attend<'_, E>,
    (weights, stride): (&[f32], usize),
    factors: &[f32],
    out: &mut [f32],
) {
    // SAFETY: the caller vouches for the instructions; blocks end within value_stride.
    unsafe {
        let mut from = 0;
        while from < job.head_dim {
            let heads = factors.iter().zip(out.chunks_exact_mut(job.head_dim));
            if from + D * 16 <= job.value_stride {
                let values = values_block::<L, E, H, D>(job, weights, stride, from);
                for ((factor, out), values) in heads.zip(values) {
                    write_head(values, *factor, from, out);
                }
                from += D * 16;
            } else {
                let values = values_block::<L, E, H, 1>(job, weights, stride, from);
                for ((factor, out), values) in heads.zip(values) {
                    write_head(values, *factor, from, out);
                }
                from += 16;
            }
        }
    }
}

/// softmax(scale × q·kᵀ) · v for one token and one key-value head; `out` is (head_dim, group), `buffer` holds whole pages for each query head.
#[inline(always)]
unsafe fn attend<L: Lanes, E: KvElement>(job: &Attend<'_, E>, buffer: &mut [f32], out: &mut [f32]) {
    let group = job.queries.len() / job.head_dim;
    let stride = job.positions.next_multiple_of(PAGE_TOKENS);
    assert!(job.first < job.positions && buffer.len() >= group * stride);
    assert!(out.len() == job.queries.len());
    assert!(job.value_stride == E::layout(job.head_dim).value_stride);
    let seen = job.first - job.first % LANES..job.positions.next_multiple_of(LANES);
    // SAFETY: the caller vouches for the instructions; slices below carry their lengths.
    unsafe {
        let mut head = 0;
        while head < group {
            let q = &job.queries[head * job.head_dim..];
            let to = &mut buffer[head * stride..];
            head += match group - head {
                1 => {
                    scores::<L, E, 1, 4>(job, q, to, stride);
                    1
                }
                2 => {
                    scores::<L, E, 2, 2>(job, q, to, stride);
                    2
                }
                3 => {
                    scores::<L, E, 3, 2>(job, q, to, stride);
                    3
                }
                _ => {
                    scores::<L, E, 4, 1>(job, q, to, stride);
                    4
                }
            };
        }
        let mut head = 0;
        while head < group {
            let heads = (group - head).min(3);
            let mut factors = [0.0; 3];
            for (h, factor) in factors[..heads].iter_mut().enumerate() {
                let weights = &mut buffer[(head + h) * stride..][..stride];
                if let Some(cap) = job.softcap {
                    softcap::<L>(&mut weights[seen.clone()], cap);
                }
                let sink = job.sinks.get(head + h).copied();
                let seen = (job.first, job.positions);
                *factor = 1.0 / softmax_numerators::<L>(weights, seen, sink);
            }
            let weights = (&buffer[head * stride..], stride);
            let out = &mut out[head * job.head_dim..];
            match heads {
                1 => weigh_values::<L, E, 1, 4>(job, weights, &factors[..1], out),
                2 => weigh_values::<L, E, 2, 2>(job, weights, &factors[..2], out),
                _ => weigh_values::<L, E, 3, 2>(job, weights, &factors, out),
            }
            head += heads;
        }
    }
}

/// The kernels of one instruction set.
#[derive(Clone, Copy)]
pub struct Kernels {
    /// Rows of a matrix times tokens: (job, destination, scratch for expanded rows).
    pub matmul: unsafe fn(&MatMul<'_>, &mut [f32], &mut [f32]),
    /// Rounds activations for `multiply`: (one row, blocks, distance between two blocks).
    pub round: unsafe fn(&[f32], &mut [Rounded], usize),
    /// Rows of a packed matrix times tokens: (job, destination, room for sixteen values a token).
    pub multiply: unsafe fn(&Packed<'_>, &mut [f32], &mut [f32]),
    /// (x, weight, len, eps, out).
    pub rms_norm: unsafe fn(&[f32], &[f32], usize, f32, &mut [f32]),
    /// (x, weight, len, eps, out).
    pub layer_norm: unsafe fn(&[f32], &[f32], usize, f32, &mut [f32]),
    /// (x), a multiple of 16 long, as the next two.
    pub silu: unsafe fn(&mut [f32]),
    /// (x).
    pub gelu_tanh: unsafe fn(&mut [f32]),
    /// (gate, up, alpha, limit).
    pub clamped_swiglu: unsafe fn(&mut [f32], &[f32], f32, f32),
    /// (x, cap), of any length.
    pub softcap: unsafe fn(&mut [f32], f32),
    /// Attention over an f16 cache: (job, buffer, out).
    pub attend_f16: unsafe fn(&Attend<'_, f16>, &mut [f32], &mut [f32]),
    /// Attention over an f32 cache: (job, buffer, out).
    pub attend_f32: unsafe fn(&Attend<'_, f32>, &mut [f32], &mut [f32]),
    /// Attention over a Q8_0 cache: (job, buffer, out).
    pub attend_q8_0: unsafe fn(&Attend<'_, i8>, &mut [f32], &mut [f32]),
    /// Rows of a matrix, expanded to f32 with zero padding: (kind, bytes of one row, out).
    pub expand_row: unsafe fn(TensorType, &[u8], &mut [f32]),
}

/// Compiles every kernel for one instruction set: rows at once in decode, then the block of rows × tokens in prefill.
macro_rules! compile {
    ($name:ident, $doc:literal, $lanes:ty, $rows:literal, $m:literal x $n:literal $(, $feature:literal)?) => {
        #[doc = $doc]
        pub mod $name {
            use super::*;

            $(#[target_feature(enable = $feature)])?
            unsafe fn matmul(job: &MatMul<'_>, dst: &mut [f32], scratch: &mut [f32]) {
                // SAFETY: this function is only reached through KERNELS, chosen after the CPU was asked.
                unsafe { matmul::matmul::<$lanes, $rows, $m, $n>(job, dst, scratch) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn round(x: &[f32], to: &mut [Rounded], stride: usize) {
                integers::round_row(x, to, stride)
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn multiply(job: &Packed<'_>, dst: &mut [f32], sums: &mut [f32]) {
                // SAFETY: as for matmul.
                unsafe { integers::multiply::<$lanes>(job, dst, sums) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn rms_norm(x: &[f32], weight: &[f32], len: usize, eps: f32, out: &mut [f32]) {
                // SAFETY: as for matmul.
                unsafe { super::rms_norm::<$lanes>(x, weight, len, eps, out) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn layer_norm(x: &[f32], weight: &[f32], len: usize, eps: f32, out: &mut [f32]) {
                // SAFETY: as for matmul.
                unsafe { super::layer_norm::<$lanes>(x, weight, len, eps, out) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn silu(x: &mut [f32]) {
                // SAFETY: as for matmul.
                unsafe { super::silu::<$lanes>(x) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn gelu_tanh(x: &mut [f32]) {
                // SAFETY: as for matmul.
                unsafe { super::gelu_tanh::<$lanes>(x) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn clamped_swiglu(gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
                // SAFETY: as for matmul.
                unsafe { super::clamped_swiglu::<$lanes>(gate, up, alpha, limit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn softcap(x: &mut [f32], cap: f32) {
                // SAFETY: as for matmul.
                unsafe { super::softcap::<$lanes>(x, cap) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn attend_f16(job: &Attend<'_, f16>, buffer: &mut [f32], out: &mut [f32]) {
                // SAFETY: as for matmul.
                unsafe { super::attend::<$lanes, f16>(job, buffer, out) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn attend_f32(job: &Attend<'_, f32>, buffer: &mut [f32], out: &mut [f32]) {
                // SAFETY: as for matmul.
                unsafe { super::attend::<$lanes, f32>(job, buffer, out) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn attend_q8_0(job: &Attend<'_, i8>, buffer: &mut [f32], out: &mut [f32]) {
                // SAFETY: as for matmul.
                unsafe { super::attend::<$lanes, i8>(job, buffer, out) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn expand_row(kind: TensorType, row: &[u8], out: &mut [f32]) {
                // SAFETY: as for matmul.
                unsafe { matmul::expand::<$lanes>(kind, row, out) }
            }
            /// This instruction set's kernels; calling them needs a CPU that has it.
            pub const KERNELS: Kernels = Kernels {
                matmul, round, multiply, rms_norm, layer_norm, silu, gelu_tanh, clamped_swiglu, softcap, attend_f16, attend_f32, attend_q8_0,
                expand_row,
            };
        }
    };
}

compile!(scalar, "Plain Rust.", super::super::lanes::Scalar, 1, 1 x 1);
#[cfg(target_arch = "x86_64")]
compile!(avx2, "AVX2, FMA and F16C.", super::super::lanes_x86::Avx2, 2, 2 x 3, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
compile!(avx512, "AVX-512 F, BW, VL and VNNI.", super::super::lanes_x86::Avx512, 4, 4 x 6, "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c");
