//! The rotary embedding of an operation, and what every backend computes from it on the host: a frequency for each pair and one magnitude.

use super::TensorId;
use crate::model::spec::{Rope, RopeScaling, RopeStyle, Yarn, YarnBounds};

/// A rotary embedding with the tensor of its factors, where it has one.
///
/// Pair i of a head at position p turns by `p × inverse_frequencies()[i]` radians, and its sine and cosine are multiplied by `magnitude()`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeOp {
    /// Style, width, base and scaling.
    pub rope: Rope,
    /// (dims / 2) divisors of the frequencies.
    pub factors: Option<TensorId>,
}

impl RopeOp {
    /// Which elements form a pair.
    pub fn style(&self) -> RopeStyle {
        self.rope.style
    }

    /// Radians a position, one a pair: base^(-2i/dims), scaled. `factors` are the values of the tensor [`RopeOp::factors`].
    pub fn inverse_frequencies(&self, factors: Option<&[f32]>) -> Vec<f32> {
        let dims = self.rope.dims as f64;
        let plain = |i: usize| libm::pow(f64::from(self.rope.base), -((2 * i) as f64) / dims);
        let scaled = |i: usize| match self.rope.scaling {
            RopeScaling::None => plain(i) as f32,
            RopeScaling::Linear { factor } => plain(i) as f32 / factor,
            RopeScaling::Factors | RopeScaling::LongShort { .. } => {
                plain(i) as f32 / factors.map_or(1.0, |factors| factors[i])
            }
            RopeScaling::Yarn(yarn) => {
                let kept = self.share_kept(&yarn, i);
                let divided = plain(i) / f64::from(yarn.factor);
                (divided * (1.0 - kept) + plain(i) * kept) as f32
            }
        };
        (0..self.rope.dims / 2).map(scaled).collect()
    }

    /// Factor on every sine and cosine.
    pub fn magnitude(&self) -> f32 {
        match self.rope.scaling {
            RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Factors => 1.0,
            RopeScaling::LongShort { magnitude, .. } => magnitude,
            RopeScaling::Yarn(yarn) => yarn.magnitude,
        }
    }

    /// How much of pair i's own frequency YaRN keeps: 1 for those that turn often, 0 for those that hardly turn.
    fn share_kept(&self, yarn: &Yarn, pair: usize) -> f64 {
        let (dims, base) = (self.rope.dims as f64, f64::from(self.rope.base));
        // the pair, not whole, that turns so many times within the original context
        let pair_of = |turns: f32| {
            let positions = yarn.original_context as f64;
            let radians = f64::from(turns) * std::f64::consts::TAU;
            dims * libm::log(positions / radians) / (2.0 * libm::log(base))
        };
        let (low, high) = (pair_of(yarn.beta_fast), pair_of(yarn.beta_slow));
        let (low, high) = match yarn.bounds {
            YarnBounds::Whole => (low.floor(), high.ceil()),
            YarnBounds::Exact => (low, high),
        };
        let (low, high) = (low.max(0.0), high.min(dims - 1.0));
        let width = if high == low { 0.001 } else { high - low };
        1.0 - ((pair as f64 - low) / width).clamp(0.0, 1.0)
    }
}
