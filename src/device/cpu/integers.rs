//! Products of matrices of integers: activations are rounded to 24 bits under a scale for each 32 columns, and what is multiplied are
//! whole numbers.
//!
//! A rounded activation is 65536 high + 256 middle + low, each a signed byte, so three sums of products of bytes make a block's sum, all of
//! them exact. A block's sum is brought to f32 (65536 × high in one rounding with the rest), multiplied by the row's scale times that of the
//! activations, and added, block by block; then the minimum times the activations' sum. Sixteen rows are sixteen lanes, see `packed.rs`:
//! a result depends on its row and its token alone. `naive.rs` has the twin.

use super::kernels::{Store, padded};
use super::lanes::{Lanes, Scalar};
use super::moe::add;
use super::packed::{BLOCK, Form, GROUP};
use crate::quant::TensorType;

/// The largest rounded activation: its three bytes stay signed bytes.
pub const TOP: f32 = 8_323_072.0; // 127 × 65536

/// Activations below this are zero: the quotient of `TOP` and a smaller one is infinite.
pub const LEAST: f32 = 1e-30;

/// Thirty-two rounded activations.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct Rounded {
    /// Upper, middle and lower bytes.
    pub bytes: [[i8; BLOCK]; 3],
    /// What an integer is worth.
    pub scale: f32,
    /// The sum of what all are worth.
    pub sum: f32,
    /// For columns 0 to 15 and 16 to 31: the negative sum of each kind of bytes.
    pub sums: [[i32; 3]; 2],
}

/// Rounds 32 activations. One that is infinite or no number makes the scale so. Plain loops, which the compiler turns into vectors.
#[inline(always)]
pub fn round(x: &[f32; BLOCK], to: &mut Rounded) {
    let mut largest = 0u32;
    for v in x {
        largest = largest.max(v.to_bits() & 0x7fff_ffff);
    }
    let largest = f32::from_bits(largest);
    let (factor, scale) = if largest < LEAST {
        (0.0, 0.0)
    } else {
        (TOP / largest, largest / TOP)
    };
    let mut digits = [0u32; BLOCK];
    let mut sum = 0i32;
    for (digits, v) in digits.iter_mut().zip(x) {
        let value = (v * factor).round_ties_even();
        // what is infinite or no number has spoilt the scale
        let value = if value.abs() <= 2.0 * TOP { value } else { 0.0 };
        // SAFETY: it is a whole number that fits. A cast that looks at it once more is no vector instruction.
        let whole = unsafe { value.to_int_unchecked::<i32>() };
        sum += whole;
        // 128 more for each byte, so that the signed digits are those of an unsigned number
        *digits = (whole + 0x80_8080).cast_unsigned();
    }
    for (plane, shift) in to.bytes.iter_mut().zip([16, 8, 0]) {
        for (byte, digits) in plane.iter_mut().zip(&digits) {
            *byte = ((digits >> shift) as u8 ^ 0x80).cast_signed();
        }
    }
    for (half, sums) in to.sums.iter_mut().enumerate() {
        for (sum, plane) in sums.iter_mut().zip(&to.bytes) {
            let mut bytes = 0i32;
            for byte in &plane[half * 16..][..16] {
                bytes += i32::from(*byte);
            }
            *sum = -bytes;
        }
    }
    to.scale = scale;
    to.sum = sum as f32 * scale;
}

/// Rounds one row: block b goes to `to[b × stride]`.
#[inline(always)]
pub fn round_row(x: &[f32], to: &mut [Rounded], stride: usize) {
    for (x, to) in x.as_chunks().0.iter().zip(to.iter_mut().step_by(stride)) {
        round(x, to);
    }
}

/// Some rows of a packed matrix times some tokens.
pub struct Packed<'a> {
    /// Type of the weights, one that has a [`Form`].
    pub kind: TensorType,
    /// Whole groups.
    pub groups: &'a [u8],
    /// Inputs a row.
    pub cols: usize,
    /// Rows of the groups before the first that is wanted.
    pub skip: usize,
    /// How many are wanted.
    pub rows: usize,
    /// Rounded activations: block b of token t is at b × x_stride + t.
    pub x: &'a [Rounded],
    /// Distance between two blocks in `x`.
    pub x_stride: usize,
    /// How many tokens.
    pub tokens: usize,
    /// Set or add.
    pub store: Store,
    /// First output row in `dst`.
    pub first_row: usize,
    /// Distance between two tokens in `dst`.
    pub dst_stride: usize,
}

/// Sixteen rows of integers.
///
/// # Safety
///
/// As [`Lanes`].
#[allow(
    clippy::missing_safety_doc,
    reason = "the trait's own Safety section holds for all of its methods"
)]
pub trait Integers: Lanes {
    /// Four unsigned bytes a row.
    type Quad: Copy;
    /// A sum a row.
    type Sum: Copy;
    /// The quants of a block, of 4, 5, 6 or 8 bits: 64 × bits readable bytes.
    unsafe fn unpack(from: *const u8, bits: usize) -> [Self::Quad; 8];
    /// For each kind of bytes, start × 2^shift + Σ w × bytes over quads `first` to `first + n - 1` of a block.
    unsafe fn dot(
        w: &[Self::Quad; 8],
        x: &[[i8; BLOCK]; 3],
        quads: (usize, usize),
        start: ([i32; 3], u32),
        bits: usize,
    ) -> [Self::Sum; 3];
    /// 65536 × high + (256 × middle + low), the sum in brackets rounded, then the whole.
    unsafe fn join(sums: [Self::Sum; 3]) -> Self;
}

/// Scales and minima of a block: of columns 0 to 15, of 16 to 31 where they are others, and the minima.
#[derive(Clone, Copy)]
struct Scales<L> {
    low: L,
    high: L,
    minima: L,
}

/// A block's scales and minima from its bytes and its superblock's halves.
#[inline(always)]
unsafe fn scales<L: Lanes>(form: Form, from: *const u8, shared: (L, L)) -> Scales<L> {
    // SAFETY: the caller hands a block's scales.
    unsafe {
        let second = from.add(form.scales_bytes() / 2);
        if !form.supers {
            let low = L::load_f16(from.cast());
            let minima = if form.minimum {
                L::load_f16(second.cast())
            } else {
                low
            };
            return Scales {
                low,
                high: low,
                minima,
            };
        }
        let low = L::load_i8(from.cast()).mul(shared.0);
        let other = L::load_i8(second.cast());
        if form.halves {
            Scales {
                low,
                high: other.mul(shared.0),
                minima: low,
            }
        } else {
            Scales {
                low,
                high: low,
                minima: other.mul(shared.1),
            }
        }
    }
}

/// One block of sixteen rows times one token, added to `acc`.
#[inline(always)]
unsafe fn add_block<L: Integers>(
    form: Form,
    w: &[L::Quad; 8],
    s: &Scales<L>,
    x: &Rounded,
    acc: L,
) -> L {
    let mut acc = acc;
    // SAFETY: planes of a `Rounded` hold 32 bytes; the caller vouches for the instructions.
    unsafe {
        let scale = L::splat(x.scale);
        let (parts, quads) = if form.halves { (2, 4) } else { (1, 8) };
        for part in 0..parts {
            let [low, high] = x.sums;
            let start = match form.zero {
                None => ([0; 3], 0),
                Some(bits) if form.halves => (x.sums[part], bits),
                Some(bits) => ([low[0] + high[0], low[1] + high[1], low[2] + high[2]], bits),
            };
            let sums = L::dot(w, &x.bytes, (part * quads, quads), start, form.bits);
            let d = if part == 0 { s.low } else { s.high };
            acc = d.mul(scale).mul_add(L::join(sums), acc);
        }
        if form.minimum {
            acc = s.minima.mul_add(L::splat(x.sum), acc);
        }
    }
    acc
}

/// One group times all tokens: sums of sixteen rows for each token in `sums`.
#[inline(always)]
unsafe fn multiply_group<L: Integers>(
    form: Form,
    job: &Packed<'_>,
    group: *const u8,
    sums: &mut [f32],
) {
    sums.fill(0.0);
    // SAFETY: the group has all blocks of its rows, and `x` all blocks of all tokens: asserted by `multiply`.
    unsafe {
        let mut at = group;
        let mut shared = (L::splat(0.0), L::splat(0.0));
        for block in 0..job.cols / BLOCK {
            if form.supers && block.is_multiple_of(8) {
                shared.0 = L::load_f16(at.cast());
                if form.minimum {
                    shared.1 = L::load_f16(at.add(2 * GROUP).cast()).mul(L::splat(-1.0));
                }
                at = at.add(form.halves_bytes());
            }
            let s = scales::<L>(form, at, shared);
            let w = L::unpack(at.add(form.scales_bytes()), form.bits);
            at = at.add(form.block_bytes());
            let x = job.x.as_ptr().add(block * job.x_stride);
            for (token, sum) in sums.chunks_exact_mut(GROUP).enumerate() {
                let acc = L::load(sum.as_ptr());
                add_block::<L>(form, &w, &s, &*x.add(token), acc).store(sum.as_mut_ptr());
            }
        }
    }
}

/// All groups of one form.
#[inline(always)]
unsafe fn multiply_form<L: Integers>(
    form: Form,
    job: &Packed<'_>,
    dst: &mut [f32],
    sums: &mut [f32],
) {
    let bytes = form.group_bytes(job.cols);
    let groups = (job.skip + job.rows).div_ceil(GROUP);
    assert!(job.groups.len() >= groups * bytes && job.skip < GROUP);
    assert!(job.x.len() >= (job.cols / BLOCK - 1) * job.x_stride + job.tokens);
    let sums = &mut sums[..job.tokens * GROUP];
    for group in 0..groups {
        // SAFETY: the group and the activations are whole, as was asserted.
        unsafe { multiply_group::<L>(form, job, job.groups.as_ptr().add(group * bytes), sums) };
        let begin = (group * GROUP).max(job.skip);
        let end = ((group + 1) * GROUP).min(job.skip + job.rows);
        for (token, sums) in sums.chunks_exact(GROUP).enumerate() {
            let row = token * job.dst_stride + job.first_row + begin - job.skip;
            let to = &mut dst[row..][..end - begin];
            let sums = &sums[begin - group * GROUP..];
            match (job.store, to.as_chunks_mut::<GROUP>().0) {
                // a whole group, whose length the compiler knows
                (Store::Set, [to]) => to.copy_from_slice(&sums[..GROUP]),
                (Store::Set, _) => to.copy_from_slice(&sums[..end - begin]),
                (Store::Add, _) => add(to, sums),
            }
        }
    }
}

/// Some rows of a packed matrix times some tokens; nothing for types without a form. `sums` has room for sixteen values a token.
///
/// # Safety
///
/// As [`Lanes`].
#[inline(always)]
pub unsafe fn multiply<L: Integers>(job: &Packed<'_>, dst: &mut [f32], sums: &mut [f32]) {
    macro_rules! with_form {
        ($($kind:ident)*) => {
            match job.kind {
                $(TensorType::$kind => {
                    // a constant, so that everything that is asked of it is known to the compiler
                    const FORM: Form = Form::of(TensorType::$kind).expect("a form");
                    // SAFETY: the contract is the same.
                    unsafe { multiply_form::<L>(FORM, job, dst, sums) }
                })*
                _ => {}
            }
        };
    }
    with_form!(Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K)
}

impl Integers for Scalar {
    type Quad = [u8; 64];
    type Sum = [i32; 16];
    #[inline(always)]
    unsafe fn unpack(from: *const u8, bits: usize) -> [[u8; 64]; 8] {
        let mut w = [[0; 64]; 8];
        // SAFETY: the caller vouches for 64 × bits readable bytes.
        let from = unsafe { std::slice::from_raw_parts(from, 64 * bits) };
        let (quads, planes) = from.split_at(if bits == 8 { 512 } else { 256 });
        for (c, w) in w.iter_mut().enumerate() {
            for (i, w) in w.iter_mut().enumerate() {
                *w = match bits {
                    8 => quads[64 * c + i],
                    4 => quads[64 * (c % 4) + i] >> (c / 4 * 4) & 15,
                    _ => {
                        let (low, width) = (quads[64 * (c % 4) + i] >> (c / 4 * 4) & 15, bits - 4);
                        let (plane, field) = (c / (8 / width), c % (8 / width));
                        let above = planes[64 * plane + i] >> (field * width);
                        low | (above & ((1 << width) - 1)) << 4
                    }
                };
            }
        }
        w
    }
    #[inline(always)]
    unsafe fn dot(
        w: &[[u8; 64]; 8],
        x: &[[i8; BLOCK]; 3],
        (first, n): (usize, usize),
        (start, shift): ([i32; 3], u32),
        _: usize,
    ) -> [[i32; 16]; 3] {
        let mut sums = start.map(|start| [start << shift; 16]);
        for (sums, x) in sums.iter_mut().zip(x) {
            for quad in first..first + n {
                for (r, sum) in sums.iter_mut().enumerate() {
                    for j in 0..4 {
                        *sum += i32::from(w[quad][4 * r + j]) * i32::from(x[4 * quad + j]);
                    }
                }
            }
        }
        sums
    }
    #[inline(always)]
    unsafe fn join([high, middle, low]: [[i32; 16]; 3]) -> Self {
        let mut joined = [0.0; 16];
        for (i, joined) in joined.iter_mut().enumerate() {
            let rest = ((middle[i] << 8) + low[i]) as f32;
            *joined = (high[i] as f32).mul_add(65536.0, rest);
        }
        // SAFETY: sixteen values.
        unsafe { Self::load(joined.as_ptr()) }
    }
}

/// Distance between two blocks of so many rounded rows: odd, since lines at multiples of a power of two push each other out of the cache.
pub const fn stride(rows: usize) -> usize {
    rows | 1
}

/// Blocks that a row of so many values is rounded to.
pub const fn blocks(cols: usize) -> usize {
    padded(cols) / BLOCK
}
