//! Superblocks of 256 weights whose scales are quantised too: they are multiplied with the scale of the scales once for all parts.

use super::super::lanes::{Bytes, Lanes};
use super::Format;

/// See [`crate::quant::BlockQ2_K`].
pub struct Q2_K;
/// See [`crate::quant::BlockQ3_K`].
pub struct Q3_K;
/// See [`crate::quant::BlockQ4_K`].
pub struct Q4_K;
/// See [`crate::quant::BlockQ5_K`].
pub struct Q5_K;
/// See [`crate::quant::BlockQ6_K`].
pub struct Q6_K;
/// See [`crate::quant::BlockQ8_K`].
pub struct Q8_K;

/// Scales of 16 or 8 groups, as f32.
pub type Scales = [f32; 16];

/// Scales, and minima with their signs turned so that they are added.
#[derive(Clone, Copy, Default)]
pub struct ScalesAndMinima {
    scales: Scales,
    minima: Scales,
}

/// 16 signed bytes times `d`.
#[inline(always)]
unsafe fn scales<L: Lanes>(bytes: &[u8; 16], d: L) -> Scales {
    let mut scales = [0.0; 16];
    // SAFETY: both arrays have the 16 elements; the caller vouches for the instructions.
    unsafe {
        let numbers = L::load_i8(bytes.as_ptr().cast());
        numbers.mul(d).store(scales.as_mut_ptr());
    }
    scales
}

/// 16 bytes less 32, times `d`.
#[inline(always)]
pub unsafe fn scales_about_32<L: Lanes>(bytes: &[u8; 16], d: L) -> Scales {
    let mut scales = [0.0; 16];
    // SAFETY: both arrays have the 16 elements; the caller vouches for the instructions.
    unsafe {
        let numbers = L::load_i8(bytes.as_ptr().cast()).sub(L::splat(32.0));
        numbers.mul(d).store(scales.as_mut_ptr());
    }
    scales
}

/// The half at `from` with its sign turned; a product with -1 turns that of zero too.
#[inline(always)]
unsafe fn negative_f16<L: Lanes>(from: *const u8) -> L {
    // SAFETY: the caller vouches for two readable bytes.
    unsafe { L::splat_f16(from).mul(L::splat(-1.0)) }
}

/// Three little-endian words.
#[inline(always)]
unsafe fn three_words(from: *const u8) -> [u32; 3] {
    // SAFETY: the caller vouches for 12 readable bytes.
    unsafe { from.cast::<[u32; 3]>().read_unaligned() }.map(u32::from_le)
}

/// The bytes of four little-endian words.
#[inline(always)]
fn bytes_of(words: [u32; 4]) -> [u8; 16] {
    bytemuck::cast(words.map(u32::to_le))
}

/// Q4_K's and Q5_K's scales and minima: 8 of six bits each, in 12 bytes after `d` and `dmin`.
#[inline(always)]
unsafe fn scales_and_minima<L: Lanes>(group: *const u8) -> ScalesAndMinima {
    // SAFETY: the caller vouches for 16 readable bytes.
    unsafe {
        let [s, m, low] = three_words(group.add(4));
        let bytes = bytes_of([
            s & 0x3f3f_3f3f,
            low & 0x0f0f_0f0f | s >> 2 & 0x3030_3030,
            m & 0x3f3f_3f3f,
            low >> 4 & 0x0f0f_0f0f | m >> 2 & 0x3030_3030,
        ]);
        ScalesAndMinima {
            scales: scales::<L>(&bytes, L::splat_f16(group)),
            minima: scales::<L>(&bytes, negative_f16(group.add(2))),
        }
    }
}

impl Format for Q2_K {
    const BYTES: usize = 84;
    const PARTS: usize = 8;
    type Shared = ScalesAndMinima;
    #[inline(always)]
    unsafe fn begin<L: Lanes>(group: *const u8) -> ScalesAndMinima {
        let mut shared = ScalesAndMinima::default();
        // SAFETY: 84 readable bytes by contract; the arrays take 16 numbers.
        unsafe {
            let scales = L::load_low_nibbles(group).mul(L::splat_f16(group.add(80)));
            scales.store(shared.scales.as_mut_ptr());
            let minima = L::load_high_nibbles(group).mul(negative_f16(group.add(82)));
            minima.store(shared.minima.as_mut_ptr());
        }
        shared
    }
    #[inline(always)]
    unsafe fn part<L: Lanes, const P: usize>(group: *const u8, shared: &ScalesAndMinima) -> (L, L) {
        // SAFETY: 84 readable bytes by contract.
        unsafe {
            let q = L::Bytes::load(group.add(16 + P / 4 * 32));
            let (low, high) = L::widen(q.field(P as u8 % 4 * 2, 0, 3));
            let (s, m) = (&shared.scales, &shared.minima);
            // q × s is exact (2 + 15 bits), so the fused form rounds as the format does
            (
                low.mul_add(L::splat(s[2 * P]), L::splat(m[2 * P])),
                high.mul_add(L::splat(s[2 * P + 1]), L::splat(m[2 * P + 1])),
            )
        }
    }
}

/// 32 small integers, each 16 of them times a scale of their own.
#[inline(always)]
unsafe fn scaled<L: Lanes, const P: usize>(q: L::Bytes, scales: &Scales) -> (L, L) {
    // SAFETY: the caller vouches for the instructions; no memory is touched but `scales`.
    unsafe {
        let (low, high) = L::widen(q);
        (
            low.mul(L::splat(scales[2 * P])),
            high.mul(L::splat(scales[2 * P + 1])),
        )
    }
}

impl Format for Q3_K {
    const BYTES: usize = 110;
    const PARTS: usize = 8;
    type Shared = Scales;
    #[inline(always)]
    unsafe fn begin<L: Lanes>(group: *const u8) -> Scales {
        // SAFETY: 110 readable bytes by contract.
        unsafe {
            let [a, b, high] = three_words(group.add(96));
            let bytes = bytes_of([
                a & 0x0f0f_0f0f | high << 4 & 0x3030_3030,
                b & 0x0f0f_0f0f | high << 2 & 0x3030_3030,
                a >> 4 & 0x0f0f_0f0f | high & 0x3030_3030,
                b >> 4 & 0x0f0f_0f0f | high >> 2 & 0x3030_3030,
            ]);
            scales_about_32::<L>(&bytes, L::splat_f16(group.add(108)))
        }
    }
    #[inline(always)]
    unsafe fn part<L: Lanes, const P: usize>(group: *const u8, scales: &Scales) -> (L, L) {
        // SAFETY: 110 readable bytes by contract.
        unsafe {
            let low = L::Bytes::load(group.add(32 + P / 4 * 32)).field(P as u8 % 4 * 2, 0, 3);
            let high = L::Bytes::load(group).field(P as u8, 2, 4);
            scaled::<L, P>(low.or(high).sub(L::Bytes::splat(4)), scales)
        }
    }
}

impl Format for Q4_K {
    const BYTES: usize = 144;
    const PARTS: usize = 8;
    type Shared = ScalesAndMinima;
    #[inline(always)]
    unsafe fn begin<L: Lanes>(group: *const u8) -> ScalesAndMinima {
        // SAFETY: 144 readable bytes by contract.
        unsafe { scales_and_minima::<L>(group) }
    }
    #[inline(always)]
    unsafe fn part<L: Lanes, const P: usize>(group: *const u8, shared: &ScalesAndMinima) -> (L, L) {
        // SAFETY: 144 readable bytes by contract.
        unsafe {
            let from = group.add(16 + P / 2 * 32);
            let (low, high) = if P.is_multiple_of(2) {
                (L::load_low_nibbles(from), L::load_low_nibbles(from.add(16)))
            } else {
                (
                    L::load_high_nibbles(from),
                    L::load_high_nibbles(from.add(16)),
                )
            };
            // minima are the second half; q × s is exact (4 + 17 bits), so the fused form rounds as the format does
            let (s, m) = (L::splat(shared.scales[P]), L::splat(shared.minima[8 + P]));
            (low.mul_add(s, m), high.mul_add(s, m))
        }
    }
}

impl Format for Q5_K {
    const BYTES: usize = 176;
    const PARTS: usize = 8;
    type Shared = ScalesAndMinima;
    #[inline(always)]
    unsafe fn begin<L: Lanes>(group: *const u8) -> ScalesAndMinima {
        // SAFETY: 176 readable bytes by contract.
        unsafe { scales_and_minima::<L>(group) }
    }
    #[inline(always)]
    unsafe fn part<L: Lanes, const P: usize>(group: *const u8, shared: &ScalesAndMinima) -> (L, L) {
        // SAFETY: 176 readable bytes by contract.
        unsafe {
            let q = L::Bytes::load(group.add(48 + P / 2 * 32)).field(P as u8 % 2 * 4, 0, 15);
            let fifth = L::Bytes::load(group.add(16)).field(P as u8, 4, 16);
            let (low, high) = L::widen(q.or(fifth));
            // as for Q4_K, with 5 + 17 bits
            let (s, m) = (L::splat(shared.scales[P]), L::splat(shared.minima[8 + P]));
            (low.mul_add(s, m), high.mul_add(s, m))
        }
    }
}

impl Format for Q6_K {
    const BYTES: usize = 210;
    const PARTS: usize = 8;
    type Shared = Scales;
    #[inline(always)]
    unsafe fn begin<L: Lanes>(group: *const u8) -> Scales {
        // SAFETY: 210 readable bytes by contract.
        unsafe {
            let bytes = group.add(192).cast::<[u8; 16]>().read_unaligned();
            scales::<L>(&bytes, L::splat_f16(group.add(208)))
        }
    }
    #[inline(always)]
    unsafe fn part<L: Lanes, const P: usize>(group: *const u8, scales: &Scales) -> (L, L) {
        // SAFETY: 210 readable bytes by contract.
        unsafe {
            let low = L::Bytes::load(group.add(P / 4 * 64 + P % 2 * 32));
            let low = low.field(P as u8 % 4 / 2 * 4, 0, 15);
            let high = L::Bytes::load(group.add(128 + P / 4 * 32));
            let high = high.field(P as u8 % 4 * 2, 4, 48);
            scaled::<L, P>(low.or(high).sub(L::Bytes::splat(32)), scales)
        }
    }
}

impl Format for Q8_K {
    const BYTES: usize = 292;
    const PARTS: usize = 8;
    type Shared = f32;
    #[inline(always)]
    unsafe fn begin<L: Lanes>(group: *const u8) -> f32 {
        // SAFETY: 292 readable bytes by contract.
        f32::from_bits(u32::from_le(unsafe {
            group.cast::<u32>().read_unaligned()
        }))
    }
    #[inline(always)]
    unsafe fn part<L: Lanes, const P: usize>(group: *const u8, d: &f32) -> (L, L) {
        // SAFETY: 292 readable bytes by contract.
        unsafe {
            let (d, from) = (L::splat(*d), group.add(4 + 32 * P).cast::<i8>());
            (L::load_i8(from).mul(d), L::load_i8(from.add(16)).mul(d))
        }
    }
}
