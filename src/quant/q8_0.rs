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

impl BlockQ8_0 {
    /// The block nearest to `values` as GGUF's tools round: the largest becomes ±127, halves go away from 0. Where one is not a number, all
    /// become none; where the scale leaves the range of halves (values beyond 8.3e6), they become infinite or not a number.
    pub fn quantize(values: &[f32; 32]) -> Self {
        let larger = |a: f32, v: &f32| {
            if v.abs() > a || v.is_nan() {
                v.abs()
            } else {
                a
            }
        };
        let scale = values.iter().fold(0.0, larger) / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        Self {
            d: f16::from_f32(scale),
            qs: values.map(|v| (v * inverse).round() as i8),
        }
    }
}

impl Block for BlockQ8_0 {
    type Weights = [f32; 32];
    const LEN: usize = 32;

    fn dequantize(&self) -> Self::Weights {
        let d = self.d.to_f32();
        self.qs.map(|q| d * f32::from(q))
    }
}
