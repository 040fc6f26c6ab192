//! Q8_K: 256 weights `d * q` in 292 bytes, `q` from -128 to 127. It is made for products and rarely written to files.

use bytemuck::{Pod, Zeroable};

use super::Block;

/// 256 weights. The scale has all its 24 bits, so a weight is rounded once, by the product.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ8_K {
    /// The scale.
    pub d: f32,
    /// Byte `i` holds weight `i`.
    pub qs: [i8; 256],
    /// Sums of each 16 `q`, which products of integers use and decoding does not.
    pub bsums: [i16; 16],
}

const _: () = assert!(size_of::<BlockQ8_K>() == 292);

impl Block for BlockQ8_K {
    type Weights = [f32; 256];
    const LEN: usize = 256;

    fn dequantize(&self) -> Self::Weights {
        self.qs.map(|q| self.d * f32::from(q))
    }
}
