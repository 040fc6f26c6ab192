//! IQ4_XS: 256 weights `d * s * VALUES[q]` in 136 bytes, `q` from 0 to 15, `s` from -32 to 31 for each 32 weights.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use super::iq4_nl::VALUES;

/// 256 weights. `d * s * VALUES[q]` is exact in f32: 11 significant bits times 5 times 7, or powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ4_XS {
    /// The scale of the scales.
    pub d: f16,
    /// Bits `2 * g` and `2 * g + 1` of these 16 are the two upper bits of `s + 32` of group `g`.
    pub scales_h: [u8; 2],
    /// Byte `g` holds the four lower bits of group `2 * g` in its low and of group `2 * g + 1` in its high half.
    pub scales_l: [u8; 4],
    /// Byte `16 * g + i` holds weight `32 * g + i` in its low and weight `32 * g + 16 + i` in its high four bits.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockIQ4_XS>() == 136);

impl Block for BlockIQ4_XS {
    type Weights = [f32; 256];
    const LEN: usize = 256;

    fn dequantize(&self) -> Self::Weights {
        let d = self.d.to_f32();
        let high = u16::from_le_bytes(self.scales_h);
        std::array::from_fn(|k| {
            let group = k / 32;
            let low = self.scales_l[group / 2] >> (group % 2 * 4) & 15;
            let s = low | ((high >> (2 * group) & 3) as u8) << 4;
            let q = self.qs[group * 16 + k % 16] >> (k / 16 % 2 * 4) & 15;
            d * (f32::from(s) - 32.0) * f32::from(VALUES[usize::from(q)])
        })
    }
}
