//! Rotary position embedding: angles of a step's positions, and the rotation of a head.
//!
//! Frequencies and angles are f32 as the models were trained with; sine and cosine come from `libm`, which gives the same bits everywhere.

use crate::model::plan::RopeOp;
use crate::model::spec::{RopeScaling, RopeStyle};

/// Cosines and sines of one rotary embedding for the tokens of a step.
pub struct Angles {
    style: RopeStyle,
    dims: usize,
    /// Radians a position, one a pair.
    frequencies: Vec<f32>,
    /// (dims, tokens): a token's dims / 2 cosines, then its sines.
    table: Vec<f32>,
}

impl Angles {
    /// Frequencies base^(-2i/dims), scaled as the spec says; room for `tokens` tokens.
    pub fn new(op: &RopeOp, vectors: &[Vec<f32>], tokens: usize) -> Self {
        let dims = op.rope.dims;
        let frequency = |i: usize| {
            let plain = libm::pow(f64::from(op.rope.base), -((2 * i) as f64) / dims as f64) as f32;
            match (op.rope.scaling, op.factors) {
                (RopeScaling::None, _) | (RopeScaling::Factors, None) => plain,
                (RopeScaling::Linear { factor }, _) => plain / factor,
                (RopeScaling::Factors, Some(id)) => plain / vectors[id.0][i],
            }
        };
        Self {
            style: op.rope.style,
            dims,
            frequencies: (0..dims / 2).map(frequency).collect(),
            table: vec![0.0; dims * tokens],
        }
    }

    /// Computes the angles of one token of the step.
    pub fn set(&mut self, token: usize, position: usize) {
        let (cos, sin) = self.table[token * self.dims..][..self.dims].split_at_mut(self.dims / 2);
        for ((f, cos), sin) in self.frequencies.iter().zip(cos).zip(sin) {
            let angle = f64::from(position as f32 * f);
            (*cos, *sin) = (libm::cos(angle) as f32, libm::sin(angle) as f32);
        }
    }

    /// Rotates one head of that token in place: (a, b) → (a cos - b sin, a sin + b cos).
    pub fn rotate(&self, token: usize, head: &mut [f32]) {
        let half = self.dims / 2;
        let (cos, sin) = self.table[token * self.dims..][..self.dims].split_at(half);
        for i in 0..half {
            let (a, b) = match self.style {
                RopeStyle::Interleaved => (2 * i, 2 * i + 1),
                RopeStyle::Halves => (i, i + half),
            };
            let (x, y) = (head[a], head[b]);
            head[a] = x * cos[i] - y * sin[i];
            head[b] = x * sin[i] + y * cos[i];
        }
    }
}
