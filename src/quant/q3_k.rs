//! Q3_K: 256 weights `d * s * q` in 110 bytes, `q` from -4 to 3, `s` from -32 to 31 for each 16 weights.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::{Block, two_bits};

/// 256 weights. `d * s * q` is exact in f32: 11 significant bits times 6 times 3.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ3_K {
    /// Bit `p` of byte `i` is the third bit of weight `32 * p + i`; where it is not set, 4 is taken off.
    pub hmask: [u8; 32],
    /// Byte `32 * h + i` holds weights `128 * h + 32 * j + i`, `j` from 0 to 3, two bits each, the lowest first.
    pub qs: [u8; 64],
    /// `s + 32` of 16 groups in six bits: four are in the low halves of bytes 0 to 7, then in their high halves; two are in bytes 8 to 11
    /// (groups 0 to 3 have the lowest two bits of each, groups 4 to 7 the next, and so on).
    pub scales: [u8; 12],
    /// The scale of the scales.
    pub d: f16,
}

const _: () = assert!(size_of::<BlockQ3_K>() == 110);

impl BlockQ3_K {
    /// The six bits of a group of 16 weights.
    fn scale(&self, group: usize) -> u8 {
        let low = self.scales[group % 8] >> (group / 8 * 4) & 15;
        let high = self.scales[8 + group % 4] >> (group / 4 * 2) & 3;
        low | high << 4
    }
}

impl Block for BlockQ3_K {
    type Weights = [f32; 256];
    const LEN: usize = 256;

    fn dequantize(&self) -> Self::Weights {
        let d = self.d.to_f32();
        let low = two_bits(&self.qs);
        std::array::from_fn(|k| {
            let high = self.hmask[k % 32] >> (k / 32) & 1;
            let q = f32::from(low[k] | high << 2) - 4.0;
            d * (f32::from(self.scale(k / 16)) - 32.0) * q
        })
    }
}
