//! Q6_K: 256 weights `d * s * q` in 210 bytes, `q` from -32 to 31, `s` from -128 to 127 for each 16 weights.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::{Block, two_bits};

/// 256 weights. `d * s * q` is exact in f32: 11 significant bits times 7 times 5, or powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ6_K {
    /// Byte `64 * h + 32 * j + i` holds four bits of weight `128 * h + 32 * j + i` in its low and of the weight 64 on in its high half,
    /// `j` 0 or 1.
    pub ql: [u8; 128],
    /// Byte `32 * h + i` holds two upper bits of weights `128 * h + 32 * j + i`, `j` from 0 to 3, the lowest first.
    pub qh: [u8; 64],
    /// Byte `g` is `s` of weights `16 * g` and on.
    pub scales: [i8; 16],
    /// The scale of the scales.
    pub d: f16,
}

const _: () = assert!(size_of::<BlockQ6_K>() == 210);

impl Block for BlockQ6_K {
    type Weights = [f32; 256];
    const LEN: usize = 256;

    fn dequantize(&self) -> Self::Weights {
        let d = self.d.to_f32();
        let high = two_bits(&self.qh);
        std::array::from_fn(|k| {
            let low = self.ql[k / 128 * 64 + k % 64] >> (k / 64 % 2 * 4) & 15;
            let q = f32::from(low | high[k] << 4) - 32.0;
            d * f32::from(self.scales[k / 16]) * q
        })
    }
}
