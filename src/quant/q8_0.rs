//! Q8_0: 32 weights `d * q` in 34 bytes, `q` from -128 to 127.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;

/// 32 weights. `d * q` is exact in f32: 11 significant bits times 8.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// The scale.
    pub d: f16,
    /// Byte `i` holds weight `i`.
    pub qs: [i8; 32],
}

const _: () = assert!(size_of::<BlockQ8_0>() == 34);

impl Block for BlockQ8_0 {
    type Weights = [f32; 32];
    const LEN: usize = 32;

    fn dequantize(&self) -> Self::Weights {
        let d = self.d.to_f32();
        self.qs.map(|q| d * f32::from(q))
    }
}
