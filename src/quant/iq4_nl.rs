//! IQ4_NL: 32 weights `d * VALUES[q]` in 18 bytes, `q` from 0 to 15: four bits that choose from a table instead of a line.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::{Block, nibbles};

/// What four bits stand for: denser about zero, as weights are.
pub const VALUES: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// 32 weights. `d * VALUES[q]` is exact in f32: 11 significant bits times 7.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ4_NL {
    /// The scale.
    pub d: f16,
    /// Byte `i` holds weight `i` in its low and weight `i + 16` in its high four bits.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockIQ4_NL>() == 18);

impl Block for BlockIQ4_NL {
    type Weights = [f32; 32];
    const LEN: usize = 32;

    fn dequantize(&self) -> Self::Weights {
        let d = self.d.to_f32();
        nibbles(&self.qs).map(|q| d * f32::from(VALUES[usize::from(q)]))
    }
}
