//! Q5_K: 256 weights `d * s * q - dmin * m` in 176 bytes, `q` from 0 to 31, `s` and `m` from 0 to 63 for each 32 weights.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use super::q4_k::scale_and_minimum;

/// 256 weights. `d * s * q` and `dmin * m` are exact in f32 (11 + 6 + 5 bits), so a weight is rounded once, by the subtraction.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_K {
    /// The scale of the scales.
    pub d: f16,
    /// The scale of the minima.
    pub dmin: f16,
    /// `s` and `m` of 8 groups, packed as in Q4_K.
    pub scales: [u8; 12],
    /// Bit `p` of byte `i` is the fifth bit of weight `32 * p + i`.
    pub qh: [u8; 32],
    /// Byte `32 * h + i` holds four bits of weight `64 * h + i` in its low and of weight `64 * h + 32 + i` in its high half.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockQ5_K>() == 176);

impl Block for BlockQ5_K {
    type Weights = [f32; 256];
    const LEN: usize = 256;

    fn dequantize(&self) -> Self::Weights {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        std::array::from_fn(|k| {
            let low = self.qs[k / 64 * 32 + k % 32] >> (k / 32 % 2 * 4) & 15;
            let high = self.qh[k % 32] >> (k / 32) & 1;
            let (s, m) = scale_and_minimum(&self.scales, k / 32);
            d * f32::from(s) * f32::from(low | high << 4) - dmin * f32::from(m)
        })
    }
}
