//! Products of matrices of floats, and of types that have no form in `packed.rs`: rows decoded in registers for a token or two, rows expanded
//! to f32 once for many tokens. Both sum in the order that `kernels.rs` states.

use super::formats::{self, Format, each_part, with_float_format, with_format};
use super::kernels::{MatMul, Store, padded};
use super::lanes::Lanes;
use super::packed::Form;
use crate::quant::TensorType;

/// Most bytes of a group that a row can end within: 32 of the widest floats.
const PARTIAL_MAX: usize = 128;

/// Whether rows can end within a group: those of floats can, blocks are always whole.
const fn can_end_within<F: Format>() -> bool {
    F::PARTS == 1 && F::BYTES <= PARTIAL_MAX
}

/// The last group of a row that ends within it, padded with zero bytes.
#[inline(always)]
unsafe fn last_group<F: Format>(
    row: *const u8,
    row_bytes: usize,
    group: usize,
) -> [u8; PARTIAL_MAX] {
    let mut bytes = [0u8; PARTIAL_MAX];
    let start = group * F::BYTES;
    // SAFETY: `start < row_bytes`, and fewer than F::BYTES ≤ PARTIAL_MAX bytes are left of the row.
    unsafe { std::ptr::copy_nonoverlapping(row.add(start), bytes.as_mut_ptr(), row_bytes - start) };
    bytes
}

/// 32 weights times 32 activations, lane by lane, added to `acc`.
#[inline(always)]
unsafe fn add_part<L: Lanes>(acc: &mut L, w: (L, L), x: (L, L)) {
    // SAFETY: the caller vouches for the instructions.
    unsafe { *acc = w.1.mul_add(x.1, w.0.mul_add(x.0, *acc)) }
}

/// How far ahead weights are asked for, in bytes. Rows that are multiplied side by side are several streams, which no machine follows
/// well by itself; asked for in the order in which they lie they are one.
const AHEAD: usize = 4096;

/// Groups whose scales are decoded before the first of them is multiplied: then a scale is a number in memory, which is spread over the
/// lanes as it is loaded. Parts of a superblock share scales in the same way.
const fn groups_at_once<F: Format>() -> usize {
    if F::PARTS == 1 { 16 } else { 1 }
}

/// Asks for what is `AHEAD` of the given bytes of rows.
#[inline(always)]
unsafe fn ask_ahead<L: Lanes>(from: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        // SAFETY: nothing is read; any address may be asked for.
        unsafe { L::prefetch(from.wrapping_add(AHEAD + line)) };
    }
}

/// R rows times one token, their accumulators side by side so that additions overlap; G is `groups_at_once`.
#[inline(always)]
unsafe fn dot_rows<F: Format, L: Lanes, const R: usize, const G: usize>(
    rows: *const u8,
    row_bytes: usize,
    x: &[f32],
) -> [f32; R] {
    // SAFETY: the caller hands R rows of row_bytes each; x is padded to a multiple of 32 and covers every group of a row.
    unsafe {
        let mut acc = [L::splat(0.0); R];
        let groups = row_bytes / F::BYTES;
        let mut x = x.as_ptr();
        let mut shared = [[F::Shared::default(); R]; G];
        for first in (0..groups).step_by(G) {
            let n = G.min(groups - first);
            for (g, shared) in shared.iter_mut().take(n).enumerate() {
                for (r, shared) in shared.iter_mut().enumerate() {
                    *shared = F::begin::<L>(rows.add((first + g) * F::BYTES + r * row_bytes));
                }
            }
            for (g, shared) in shared.iter().take(n).enumerate() {
                let group = first + g;
                ask_ahead::<L>(rows.wrapping_add(group * R * F::BYTES), R * F::BYTES);
                let from = rows.add(group * F::BYTES);
                each_part!(F, PART => {
                    let xs = (L::load(x), L::load(x.add(16)));
                    for (r, acc) in acc.iter_mut().enumerate() {
                        let w = F::part::<L, PART>(from.add(r * row_bytes), &shared[r]);
                        add_part(acc, w, xs);
                    }
                    x = x.add(32);
                });
            }
        }
        if can_end_within::<F>() && groups * F::BYTES < row_bytes {
            let xs = (L::load(x), L::load(x.add(16)));
            for (r, acc) in acc.iter_mut().enumerate() {
                let last = last_group::<F>(rows.add(r * row_bytes), row_bytes, groups);
                let shared = F::begin::<L>(last.as_ptr());
                add_part(acc, F::part::<L, 0>(last.as_ptr(), &shared), xs);
            }
        }
        let mut sums = [0.0; R];
        for (sum, acc) in sums.iter_mut().zip(acc) {
            *sum = acc.sum();
        }
        sums
    }
}

/// All rows times one token.
#[inline(always)]
unsafe fn dot_matrix<F: Format, L: Lanes, const R: usize, const G: usize>(
    weights: &[u8],
    row_bytes: usize,
    x: &[f32],
    mut write: impl FnMut(usize, f32),
) {
    let rows = weights.len() / row_bytes;
    let weights = weights.as_ptr();
    let mut row = 0;
    // SAFETY: rows are whole, and x covers them: the caller's contract is the same.
    unsafe {
        while row + R <= rows {
            let sums = dot_rows::<F, L, R, G>(weights.add(row * row_bytes), row_bytes, x);
            (0..R).for_each(|r| write(row + r, sums[r]));
            row += R;
        }
        while row < rows {
            let [sum] = dot_rows::<F, L, 1, G>(weights.add(row * row_bytes), row_bytes, x);
            write(row, sum);
            row += 1;
        }
    }
}

/// Writes 32 weights.
#[inline(always)]
unsafe fn store_part<L: Lanes>(to: *mut f32, w: (L, L)) {
    // SAFETY: the caller hands room for 32 values.
    unsafe {
        w.0.store(to);
        w.1.store(to.add(16));
    }
}

/// Writes one row as f32, padded with zeros to a multiple of 32.
#[inline(always)]
unsafe fn expand_row<F: Format, L: Lanes>(row: *const u8, row_bytes: usize, out: &mut [f32]) {
    // SAFETY: the row has row_bytes; out holds 32 values for each part, the last one included.
    unsafe {
        let groups = row_bytes / F::BYTES;
        let mut out = out.as_mut_ptr();
        for group in 0..groups {
            let from = row.add(group * F::BYTES);
            let shared = F::begin::<L>(from);
            each_part!(F, PART => {
                store_part(out, F::part::<L, PART>(from, &shared));
                out = out.add(32);
            });
        }
        if can_end_within::<F>() && groups * F::BYTES < row_bytes {
            let last = last_group::<F>(row, row_bytes, groups);
            let shared = F::begin::<L>(last.as_ptr());
            store_part(out, F::part::<L, 0>(last.as_ptr(), &shared));
        }
    }
}

/// Writes one row of any type as f32, padded with zeros to a multiple of 32.
///
/// # Safety
///
/// As [`Lanes`].
#[inline(always)]
pub unsafe fn expand<L: Lanes>(kind: TensorType, row: &[u8], out: &mut [f32]) {
    assert!(out.len() >= padded(row.len() / kind.block_bytes() * kind.block_len()));
    // SAFETY: the output's length was checked; the row's is its own.
    unsafe { with_format!(kind, F => expand_row::<F, L>(row.as_ptr(), row.len(), out)) }
}

/// M expanded rows times N tokens.
#[inline(always)]
unsafe fn dot_block<L: Lanes, const M: usize, const N: usize>(
    w: *const f32,
    x: *const f32,
    width: usize,
) -> [[f32; N]; M] {
    // SAFETY: w holds M and x holds N rows of `width` values, a multiple of 16.
    unsafe {
        let mut acc = [[L::splat(0.0); N]; M];
        let mut k = 0;
        while k < width {
            let mut xs = [L::splat(0.0); N];
            for (n, xv) in xs.iter_mut().enumerate() {
                *xv = L::load(x.add(n * width + k));
            }
            for (m, row) in acc.iter_mut().enumerate() {
                let wv = L::load(w.add(m * width + k));
                for (a, xv) in row.iter_mut().zip(xs) {
                    *a = wv.mul_add(xv, *a);
                }
            }
            k += 16;
        }
        let mut sums = [[0.0; N]; M];
        for (sums, acc) in sums.as_flattened_mut().iter_mut().zip(acc.as_flattened()) {
            *sums = acc.sum();
        }
        sums
    }
}

#[inline(always)]
fn put(dst: &mut f32, value: f32, store: Store) {
    match store {
        Store::Set => *dst = value,
        Store::Add => *dst += value,
    }
}

/// Tokens from which expanding a row once and using it for all of them pays.
const EXPAND_FROM: usize = 3;

/// All rows times all tokens in blocks of M × N; the edges in blocks of one. Any blocking gives the same bits.
#[inline(always)]
unsafe fn multiply_expanded<L: Lanes, const M: usize, const N: usize>(
    w: &[f32],
    rows: usize,
    x: &[f32],
    tokens: usize,
    width: usize,
    mut write: impl FnMut(usize, usize, f32),
) {
    // SAFETY: w holds `rows` and x holds `tokens` rows of `width` values: asserted by the caller.
    unsafe {
        let (w, x) = (w.as_ptr(), x.as_ptr());
        let mut token = 0;
        while token < tokens {
            let many = token + N <= tokens;
            let mut row = 0;
            while row < rows {
                if many && row + M <= rows {
                    let block =
                        dot_block::<L, M, N>(w.add(row * width), x.add(token * width), width);
                    for (m, sums) in block.iter().enumerate() {
                        (0..N).for_each(|n| write(row + m, token + n, sums[n]));
                    }
                    row += M;
                } else if many {
                    let [sums] =
                        dot_block::<L, 1, N>(w.add(row * width), x.add(token * width), width);
                    (0..N).for_each(|n| write(row, token + n, sums[n]));
                    row += 1;
                } else {
                    write(
                        row,
                        token,
                        dot_block::<L, 1, 1>(w.add(row * width), x.add(token * width), width)[0][0],
                    );
                    row += 1;
                }
            }
            token += if many { N } else { 1 };
        }
    }
}

/// Some rows of a matrix times some tokens. `scratch` holds expanded rows.
///
/// # Safety
///
/// As [`Lanes`].
#[inline(always)]
pub unsafe fn matmul<L: Lanes, const R: usize, const M: usize, const N: usize>(
    job: &MatMul<'_>,
    dst: &mut [f32],
    scratch: &mut [f32],
) {
    let row_bytes = job.kind.row_bytes(job.cols);
    let rows = job.weights.len() / row_bytes;
    let width = padded(job.cols);
    assert!(job.x.len() >= job.tokens * width && job.weights.len() == rows * row_bytes);
    assert!(dst.len() >= (job.tokens - 1) * job.dst_stride + job.first_row + rows);
    let mut write = |row: usize, token: usize, value: f32| {
        put(
            &mut dst[token * job.dst_stride + job.first_row + row],
            value,
            job.store,
        )
    };
    // SAFETY: the lengths were checked just above; kernels get whole rows only.
    unsafe {
        if job.tokens < EXPAND_FROM && Form::of(job.kind).is_none() {
            for token in 0..job.tokens {
                let x = &job.x[token * width..][..width];
                let write = |row, value| write(row, token, value);
                with_float_format!(job.kind, F => if groups_at_once::<F>() == 1 {
                    dot_matrix::<F, L, R, 1>(job.weights, row_bytes, x, write);
                } else {
                    dot_matrix::<F, L, R, 16>(job.weights, row_bytes, x, write);
                });
            }
        } else {
            assert!(scratch.len() >= rows * width);
            for (row, out) in job
                .weights
                .chunks_exact(row_bytes)
                .zip(scratch.chunks_exact_mut(width))
            {
                expand::<L>(job.kind, row, out);
            }
            multiply_expanded::<L, M, N>(scratch, rows, job.x, job.tokens, width, write);
        }
    }
}
