//! Formats whose four bits are a place in a table of sixteen numbers.

use super::super::lanes::Lanes;
use super::k_quants::{Scales, scales_about_32};
use super::{Alone, Format};
use crate::quant::{iq4_nl, mxfp4};

/// See [`crate::quant::BlockIQ4_NL`].
pub struct IQ4_NL;
/// See [`crate::quant::BlockIQ4_XS`].
pub struct IQ4_XS;
/// See [`crate::quant::BlockMXFP4`].
pub struct MXFP4;

/// 32 numbers of a table times a scale; their places are the nibbles of 16 bytes.
#[inline(always)]
unsafe fn looked_up<L: Lanes>(from: *const u8, table: &[i8; 16], d: L) -> (L, L) {
    // SAFETY: the caller hands 16 readable bytes.
    unsafe { L::look_up_nibbles(from, table, d) }
}

impl Alone for IQ4_NL {
    const BYTES: usize = 18;
    #[inline(always)]
    unsafe fn scales<L: Lanes>(from: *const u8) -> [f32; 2] {
        // SAFETY: 18 readable bytes by contract.
        unsafe { L::two_halves(from) }
    }
    #[inline(always)]
    unsafe fn decode<L: Lanes>(from: *const u8, scales: &[f32; 2]) -> (L, L) {
        // SAFETY: 18 readable bytes by contract.
        unsafe { looked_up(from.add(2), &iq4_nl::VALUES, L::splat(scales[0])) }
    }
}

impl Alone for MXFP4 {
    const BYTES: usize = 17;
    #[inline(always)]
    unsafe fn scales<L: Lanes>(from: *const u8) -> [f32; 2] {
        // SAFETY: 17 readable bytes by contract.
        unsafe { [mxfp4::scale(*from), 0.0] }
    }
    #[inline(always)]
    unsafe fn decode<L: Lanes>(from: *const u8, scales: &[f32; 2]) -> (L, L) {
        // SAFETY: 17 readable bytes by contract.
        unsafe {
            let d = L::splat(scales[0]);
            looked_up(from.add(1), &mxfp4::VALUES, d)
        }
    }
}

/// Spreads eight pairs of bits over eight bytes.
#[inline(always)]
fn spread_pairs(pairs: u16) -> u64 {
    let x = u64::from(pairs);
    let x = (x | x << 24) & 0x0000_00ff_0000_00ff;
    let x = (x | x << 12) & 0x000f_000f_000f_000f;
    (x | x << 6) & 0x0303_0303_0303_0303
}

/// Spreads eight nibbles over eight bytes.
#[inline(always)]
fn spread_nibbles(nibbles: u32) -> u64 {
    let x = u64::from(nibbles);
    let x = (x | x << 16) & 0x0000_ffff_0000_ffff;
    let x = (x | x << 8) & 0x00ff_00ff_00ff_00ff;
    (x | x << 4) & 0x0f0f_0f0f_0f0f_0f0f
}

impl Format for IQ4_XS {
    const BYTES: usize = 136;
    const PARTS: usize = 8;
    type Shared = Scales;
    #[inline(always)]
    unsafe fn begin<L: Lanes>(group: *const u8) -> Scales {
        // SAFETY: 136 readable bytes by contract.
        unsafe {
            let high = u16::from_le(group.add(2).cast::<u16>().read_unaligned());
            let low = u32::from_le(group.add(4).cast::<u32>().read_unaligned());
            let scales = spread_nibbles(low) | spread_pairs(high) << 4;
            let bytes = u128::from(scales).to_le_bytes();
            scales_about_32::<L>(&bytes, L::splat_f16(group))
        }
    }
    #[inline(always)]
    unsafe fn part<L: Lanes, const P: usize>(group: *const u8, scales: &Scales) -> (L, L) {
        // SAFETY: 136 readable bytes by contract.
        unsafe { looked_up(group.add(8 + 16 * P), &iq4_nl::VALUES, L::splat(scales[P])) }
    }
}
