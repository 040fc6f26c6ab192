//! Q4_0: 32 weights `d * (q - 8)` in 18 bytes, `q` from 0 to 15.

use bytemuck::{Pod, Zeroable};
use half::f16;

/// 32 weights. `d * (q - 8)` is exact in f32: 11 significant bits times 4.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_0 {
    /// The scale.
    pub d: f16,
    /// Byte `i` holds weight `i` in its low and weight `i + 16` in its high four bits.
    pub qs: [u8; BlockQ4_0::LEN / 2],
}

const _: () = assert!(size_of::<BlockQ4_0>() == 18);

impl BlockQ4_0 {
    /// Weights in a block.
    pub const LEN: usize = 32;

    /// The weights that the block stands for.
    pub fn dequantize(&self) -> [f32; Self::LEN] {
        let d = self.d.to_f32();
        let mut weights = [0.0; Self::LEN];
        let (low, high) = weights.split_at_mut(Self::LEN / 2);
        for ((low, high), &q) in low.iter_mut().zip(high).zip(&self.qs) {
            *low = d * (f32::from(q & 0x0f) - 8.0);
            *high = d * (f32::from(q >> 4) - 8.0);
        }
        weights
    }
}

/// Decodes `bytes` (18 a block) into `out` (32 a block).
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<{ size_of::<BlockQ4_0>() }>().0;
    for (weights, block) in out.as_chunks_mut().0.iter_mut().zip(blocks) {
        *weights = bytemuck::pod_read_unaligned::<BlockQ4_0>(block).dequantize();
    }
}
