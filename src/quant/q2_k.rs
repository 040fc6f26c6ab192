//! Q2_K: 256 weights `d * s * q - dmin * m` in 84 bytes, `q` from 0 to 3, `s` and `m` from 0 to 15 for each 16 weights.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::{Block, two_bits};

/// 256 weights. `d * s * q` and `dmin * m` are exact in f32 (11 + 4 + 2 bits), so a weight is rounded once, by the subtraction.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ2_K {
    /// Byte `g` belongs to weights `16 * g` and on: `s` in its low four bits, `m` in its high.
    pub scales: [u8; 16],
    /// Byte `32 * h + i` holds weights `128 * h + 32 * j + i`, `j` from 0 to 3, two bits each, the lowest first.
    pub qs: [u8; 64],
    /// The scale of the scales.
    pub d: f16,
    /// The scale of the minima.
    pub dmin: f16,
}

const _: () = assert!(size_of::<BlockQ2_K>() == 84);

impl Block for BlockQ2_K {
    type Weights = [f32; 256];
    const LEN: usize = 256;

    fn dequantize(&self) -> Self::Weights {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        let mut weights = two_bits(&self.qs).map(f32::from);
        for (group, scale) in weights.as_chunks_mut::<16>().0.iter_mut().zip(self.scales) {
            let (d, m) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
            *group = group.map(|q| d * q - m);
        }
        weights
    }
}
