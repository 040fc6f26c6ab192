//! Blocks of 32 weights: one scale, perhaps a minimum, and integers.

use super::super::lanes::{Bytes, Lanes};
use super::Alone;

/// See [`crate::quant::BlockQ4_0`].
pub struct Q4_0;
/// See [`crate::quant::BlockQ4_1`].
pub struct Q4_1;
/// See [`crate::quant::BlockQ5_0`].
pub struct Q5_0;
/// See [`crate::quant::BlockQ5_1`].
pub struct Q5_1;
/// See [`crate::quant::BlockQ8_0`].
pub struct Q8_0;

impl Alone for Q4_0 {
    const BYTES: usize = 18;
    #[inline(always)]
    unsafe fn scales<L: Lanes>(from: *const u8) -> [f32; 2] {
        // SAFETY: 18 readable bytes by contract.
        unsafe { L::two_halves(from) }
    }
    #[inline(always)]
    unsafe fn decode<L: Lanes>(from: *const u8, scales: &[f32; 2]) -> (L, L) {
        // SAFETY: 18 readable bytes by contract.
        unsafe {
            let d = L::splat(scales[0]);
            L::nibbles_about(from.add(2), 8.0, d)
        }
    }
}

impl Alone for Q4_1 {
    const BYTES: usize = 20;
    #[inline(always)]
    unsafe fn scales<L: Lanes>(from: *const u8) -> [f32; 2] {
        // SAFETY: 20 readable bytes by contract.
        unsafe { L::two_halves(from) }
    }
    #[inline(always)]
    unsafe fn decode<L: Lanes>(from: *const u8, scales: &[f32; 2]) -> (L, L) {
        // SAFETY: 20 readable bytes by contract.
        unsafe {
            let d = L::splat(scales[0]);
            let m = L::splat(scales[1]);
            // q × d is exact (4 + 11 bits), so the fused form rounds as the format's `d × q + m` does
            L::nibbles_mul_add(from.add(4), d, m)
        }
    }
}

/// Five bits of 32 weights: the fifth ones are the 32 bits at `high`.
#[inline(always)]
unsafe fn five_bits<B: Bytes>(low: *const u8, high: *const u8) -> B {
    // SAFETY: the caller hands 16 readable bytes and 4.
    unsafe { B::load_nibbles(low).or(B::load_bits(high).and(B::splat(16))) }
}

impl Alone for Q5_0 {
    const BYTES: usize = 22;
    #[inline(always)]
    unsafe fn scales<L: Lanes>(from: *const u8) -> [f32; 2] {
        // SAFETY: 22 readable bytes by contract.
        unsafe { L::two_halves(from) }
    }
    #[inline(always)]
    unsafe fn decode<L: Lanes>(from: *const u8, scales: &[f32; 2]) -> (L, L) {
        // SAFETY: 22 readable bytes by contract.
        unsafe {
            let d = L::splat(scales[0]);
            let q: L::Bytes = five_bits(from.add(6), from.add(2));
            let (low, high) = L::widen(q.sub(L::Bytes::splat(16)));
            (low.mul(d), high.mul(d))
        }
    }
}

impl Alone for Q5_1 {
    const BYTES: usize = 24;
    #[inline(always)]
    unsafe fn scales<L: Lanes>(from: *const u8) -> [f32; 2] {
        // SAFETY: 24 readable bytes by contract.
        unsafe { L::two_halves(from) }
    }
    #[inline(always)]
    unsafe fn decode<L: Lanes>(from: *const u8, scales: &[f32; 2]) -> (L, L) {
        // SAFETY: 24 readable bytes by contract.
        unsafe {
            let d = L::splat(scales[0]);
            let m = L::splat(scales[1]);
            let (low, high) = L::widen(five_bits(from.add(8), from.add(4)));
            // as for Q4_1
            (low.mul_add(d, m), high.mul_add(d, m))
        }
    }
}

impl Alone for Q8_0 {
    const BYTES: usize = 34;
    #[inline(always)]
    unsafe fn scales<L: Lanes>(from: *const u8) -> [f32; 2] {
        // SAFETY: 34 readable bytes by contract.
        unsafe { L::two_halves(from) }
    }
    #[inline(always)]
    unsafe fn decode<L: Lanes>(from: *const u8, scales: &[f32; 2]) -> (L, L) {
        // SAFETY: 34 readable bytes by contract.
        unsafe {
            let d = L::splat(scales[0]);
            (
                L::load_i8(from.add(2).cast()).mul(d),
                L::load_i8(from.add(18).cast()).mul(d),
            )
        }
    }
}
