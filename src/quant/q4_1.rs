//! Q4_1: 32 weights `d * q + m` in 20 bytes, `q` from 0 to 15.

use bytemuck::{Pod, Zeroable};
use half::f16;

/// 32 weights. `d * q` is exact in f32 (11 significant bits times 4), so a weight is rounded once, by the addition.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_1 {
    /// The scale.
    pub d: f16,
    /// What a weight with `q = 0` is.
    pub m: f16,
    /// Byte `i` holds weight `i` in its low and weight `i + 16` in its high four bits.
    pub qs: [u8; BlockQ4_1::LEN / 2],
}

const _: () = assert!(size_of::<BlockQ4_1>() == 20);

impl BlockQ4_1 {
    /// Weights in a block.
    pub const LEN: usize = 32;

    /// The weights that the block stands for.
    pub fn dequantize(&self) -> [f32; Self::LEN] {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        let mut weights = [0.0; Self::LEN];
        let (low, high) = weights.split_at_mut(Self::LEN / 2);
        for ((low, high), &q) in low.iter_mut().zip(high).zip(&self.qs) {
            *low = d * f32::from(q & 0x0f) + m;
            *high = d * f32::from(q >> 4) + m;
        }
        weights
    }
}

/// Decodes `bytes` (20 a block) into `out` (32 a block).
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<{ size_of::<BlockQ4_1>() }>().0;
    for (weights, block) in out.as_chunks_mut().0.iter_mut().zip(blocks) {
        *weights = bytemuck::pod_read_unaligned::<BlockQ4_1>(block).dequantize();
    }
}
