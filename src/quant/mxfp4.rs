//! MXFP4: 32 weights `2^(e - 128) * VALUES[q]` in 17 bytes: four-bit floats (E2M1) under a power of two (E8M0).

use bytemuck::{Pod, Zeroable};

use super::{Block, nibbles};

/// What four bits stand for: a sign, two bits of exponent, one of mantissa; doubled, so that they are whole. Minus zero is zero.
pub const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// 2^(e - 128): half of what E8M0 says, since [`VALUES`] are doubled.
pub const fn scale(e: u8) -> f32 {
    match e {
        0 => f32::from_bits(0x0020_0000),
        1 => f32::from_bits(0x0040_0000),
        _ => f32::from_bits((e as u32 - 1) << 23),
    }
}

/// 32 weights. All are exact in f32, subnormal ones under the smallest exponents; those too large for it, from exponent 253 up, are
/// infinite.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockMXFP4 {
    /// The exponent. 255, which OCP calls not a number, is 2^127 here, as in ggml.
    pub e: u8,
    /// Byte `i` holds weight `i` in its low and weight `i + 16` in its high four bits.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockMXFP4>() == 17);

impl Block for BlockMXFP4 {
    type Weights = [f32; 32];
    const LEN: usize = 32;

    fn dequantize(&self) -> Self::Weights {
        let d = scale(self.e);
        nibbles(&self.qs).map(|q| d * f32::from(VALUES[usize::from(q)]))
    }
}
