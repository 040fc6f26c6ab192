//! Plain floats: widened, never rounded.

use half::f16;

use super::super::lanes::Lanes;
use super::Alone;

/// See [`crate::quant::TensorType::F32`].
pub struct F32;
/// See [`crate::quant::TensorType::F16`].
pub struct F16;
/// See [`crate::quant::TensorType::BF16`].
pub struct BF16;

impl Alone for F32 {
    const BYTES: usize = 128;
    #[inline(always)]
    unsafe fn scales<L: Lanes>(_: *const u8) -> [f32; 2] {
        [0.0; 2]
    }
    #[inline(always)]
    unsafe fn decode<L: Lanes>(from: *const u8, _: &[f32; 2]) -> (L, L) {
        // SAFETY: 128 readable bytes by contract; loads are unaligned.
        unsafe { (L::load(from.cast()), L::load(from.cast::<f32>().add(16))) }
    }
}

impl Alone for F16 {
    const BYTES: usize = 64;
    #[inline(always)]
    unsafe fn scales<L: Lanes>(_: *const u8) -> [f32; 2] {
        [0.0; 2]
    }
    #[inline(always)]
    unsafe fn decode<L: Lanes>(from: *const u8, _: &[f32; 2]) -> (L, L) {
        let from = from.cast::<f16>();
        // SAFETY: 64 readable bytes by contract; loads are unaligned.
        unsafe { (L::load_f16(from), L::load_f16(from.add(16))) }
    }
}

impl Alone for BF16 {
    const BYTES: usize = 64;
    #[inline(always)]
    unsafe fn scales<L: Lanes>(_: *const u8) -> [f32; 2] {
        [0.0; 2]
    }
    #[inline(always)]
    unsafe fn decode<L: Lanes>(from: *const u8, _: &[f32; 2]) -> (L, L) {
        let from = from.cast::<u16>();
        // SAFETY: 64 readable bytes by contract; loads are unaligned.
        unsafe { (L::load_bf16(from), L::load_bf16(from.add(16))) }
    }
}
