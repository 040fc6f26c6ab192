//! Rotary position embedding: angles of a step's positions, and the rotation of a head.
//!
//! Frequencies and angles are f32 as the models were trained with; sine and cosine come from `libm`, which gives the same bits everywhere.

use crate::model::plan::RopeOp;
use crate::model::spec::RopeStyle;

/// Cosines and sines of one rotary embedding for the tokens of a step.
pub struct Angles {
    style: RopeStyle,
    dims: usize,
    /// Radians a position, one a pair.
    frequencies: Vec<f32>,
    magnitude: f32,
    /// (dims, tokens): a token's dims / 2 cosines, then its sines.
    table: Vec<f32>,
}

impl Angles {
    /// Room for `tokens` tokens; `vectors` are those of the plan.
    pub fn new(op: &RopeOp, vectors: &[Vec<f32>], tokens: usize) -> Self {
        let dims = op.rope.dims;
        let factors = op.factors.map(|id| vectors[id.0].as_slice());
        Self {
            style: op.style(),
            dims,
            frequencies: op.inverse_frequencies(factors),
            magnitude: op.magnitude(),
            table: vec![0.0; dims * tokens],
        }
    }

    /// Computes the angles of one token of the step.
    pub fn set(&mut self, token: usize, position: usize) {
        let (cos, sin) = self.table[token * self.dims..][..self.dims].split_at_mut(self.dims / 2);
        for ((f, cos), sin) in self.frequencies.iter().zip(cos).zip(sin) {
            let angle = f64::from(position as f32 * f);
            *cos = libm::cos(angle) as f32 * self.magnitude;
            *sin = libm::sin(angle) as f32 * self.magnitude;
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
