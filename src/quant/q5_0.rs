//! Q5_0: 32 weights `d * (q - 16)` in 22 bytes, `q` from 0 to 31.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::{Block, five_bits};

/// 32 weights. `d * (q - 16)` is exact in f32: 11 significant bits times 5.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_0 {
    /// The scale.
    pub d: f16,
    /// Bit `i` of these 32, counted from the first byte's lowest, is the fifth bit of weight `i`.
    pub qh: [u8; 4],
    /// Byte `i` holds four bits of weight `i` in its low and of weight `i + 16` in its high half.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ5_0>() == 22);

impl Block for BlockQ5_0 {
    type Weights = [f32; 32];
    const LEN: usize = 32;

    fn dequantize(&self) -> Self::Weights {
        let d = self.d.to_f32();
        five_bits(&self.qs, self.qh).map(|q| d * (f32::from(q) - 16.0))
    }
}
