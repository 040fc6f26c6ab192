//! Q4_K: 256 weights `d * s * q - dmin * m` in 144 bytes, `q` from 0 to 15, `s` and `m` from 0 to 63 for each 32 weights.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;

/// 256 weights. `d * s * q` and `dmin * m` are exact in f32 (11 + 6 + 4 bits), so a weight is rounded once, by the subtraction.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_K {
    /// The scale of the scales.
    pub d: f16,
    /// The scale of the minima.
    pub dmin: f16,
    /// `s` and `m` of 8 groups; see `scale_and_minimum`.
    pub scales: [u8; 12],
    /// Byte `32 * h + i` holds weight `64 * h + i` in its low and weight `64 * h + 32 + i` in its high four bits.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockQ4_K>() == 144);

/// Six bits of scale and six of minimum for a group of 32 weights, as Q4_K and Q5_K pack them: groups 0 to 3 have their scales in the
/// lower six bits of bytes 0 to 3 and their minima in those of bytes 4 to 7; groups 4 to 7 have the two upper bits of the same bytes,
/// and four lower bits each in bytes 8 to 11, the scale's in the low half.
pub(crate) fn scale_and_minimum(scales: &[u8; 12], group: usize) -> (u8, u8) {
    let (s, m) = (scales[group % 4], scales[group % 4 + 4]);
    if group < 4 {
        return (s & 63, m & 63);
    }
    let low = scales[group + 4];
    (low & 15 | s >> 6 << 4, low >> 4 | m >> 6 << 4)
}

impl Block for BlockQ4_K {
    type Weights = [f32; 256];
    const LEN: usize = 256;

    fn dequantize(&self) -> Self::Weights {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        std::array::from_fn(|k| {
            let q = self.qs[k / 64 * 32 + k % 32] >> (k / 32 % 2 * 4) & 15;
            let (s, m) = scale_and_minimum(&self.scales, k / 32);
            d * f32::from(s) * f32::from(q) - dmin * f32::from(m)
        })
    }
}
