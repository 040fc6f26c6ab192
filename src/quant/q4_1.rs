//! Q4_1: 32 weights `d * q + m` in 20 bytes, `q` from 0 to 15.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::{Block, nibbles};

/// 32 weights. `d * q` is exact in f32 (11 significant bits times 4), so a weight is rounded once, by the addition.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_1 {
    /// The scale.
    pub d: f16,
    /// What a weight with `q = 0` is.
    pub m: f16,
    /// Byte `i` holds weight `i` in its low and weight `i + 16` in its high four bits.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ4_1>() == 20);

impl Block for BlockQ4_1 {
    type Weights = [f32; 32];
    const LEN: usize = 32;

    fn dequantize(&self) -> Self::Weights {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        nibbles(&self.qs).map(|q| d * f32::from(q) + m)
    }
}
