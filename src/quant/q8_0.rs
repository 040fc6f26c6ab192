//! Q8_0: 32 weights `d * q` in 34 bytes, `q` from -128 to 127.

use bytemuck::{Pod, Zeroable};
use half::f16;

/// 32 weights. `d * q` is exact in f32: 11 significant bits times 8.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// The scale.
    pub d: f16,
    /// Byte `i` holds weight `i`.
    pub qs: [i8; BlockQ8_0::LEN],
}

const _: () = assert!(size_of::<BlockQ8_0>() == 34);

impl BlockQ8_0 {
    /// Weights in a block.
    pub const LEN: usize = 32;

    /// The weights that the block stands for.
    pub fn dequantize(&self) -> [f32; Self::LEN] {
        let d = self.d.to_f32();
        self.qs.map(|q| d * f32::from(q))
    }
}

/// Decodes `bytes` (34 a block) into `out` (32 a block).
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<{ size_of::<BlockQ8_0>() }>().0;
    for (weights, block) in out.as_chunks_mut().0.iter_mut().zip(blocks) {
        *weights = bytemuck::pod_read_unaligned::<BlockQ8_0>(block).dequantize();
    }
}
