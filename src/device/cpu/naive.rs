//! The naive twins: every kernel once more, as plainly as it can be said, in the same order of summation. The oracle that fast paths
//! (and other devices) are compared with; of all that is here only what has no faster twin is called in a step.

use std::cmp::Ordering;

use half::f16;

use super::integers::{LEAST, TOP};
use super::packed::{BLOCK, Form, RowBlock};
use crate::model::spec::Gating;
use crate::quant::{LengthMismatch, TensorType};

/// The lanes of a sum: element k goes to lane k % 16, in order; then a tree.
pub fn sum_lanes(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

/// `Σ w[k] × x[k]`.
pub fn dot(w: &[f32], x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for (k, (w, x)) in w.iter().zip(x).enumerate() {
        lanes[k % 16] = w.mul_add(*x, lanes[k % 16]);
    }
    sum_lanes(lanes)
}

/// 32 activations as integers of 24 bits, and what one is worth.
pub fn round(x: &[f32]) -> (Vec<i32>, f32) {
    let sizes = x.iter().map(|v| v.to_bits() & 0x7fff_ffff);
    let largest = f32::from_bits(sizes.max().unwrap_or(0));
    if largest < LEAST {
        return (vec![0; x.len()], 0.0);
    }
    let factor = TOP / largest;
    let rounded = x.iter().map(|v| (v * factor).round_ties_even() as i32);
    (rounded.collect(), largest / TOP)
}

/// Σ (q - zero) × v, exact, brought to f32 as the kernels do: what is above the lower two bytes of each v, then the rest.
fn sum_of_block(quants: &[u8], zero: i32, rounded: &[i32]) -> f32 {
    let (mut upper, mut rest) = (0i32, 0i32);
    for (q, v) in quants.iter().zip(rounded) {
        let q = i32::from(*q) - zero;
        // the lower two bytes, each signed
        let low = i32::from(*v as i8);
        let middle = i32::from(((v - low) >> 8) as i8);
        upper += q * ((v - low - 256 * middle) >> 16);
        rest += q * (256 * middle + low);
    }
    (upper as f32).mul_add(65536.0, rest as f32)
}

/// A row of integers times x, block by block.
fn dot_integers(kind: TensorType, form: Form, row: &[u8], x: &[f32]) -> f32 {
    let mut sum = 0.0f32;
    for (block, x) in x.chunks_exact(BLOCK).enumerate() {
        let Some(b) = RowBlock::of(kind, row, block) else {
            continue;
        };
        let (rounded, worth) = round(x);
        let [d, m] = b.halves.map(f16::to_f32);
        let [s, t] = b.scales.map(f32::from);
        let scales = match (form.supers, form.halves) {
            (false, _) => [d, d],
            (true, false) => [s * d, s * d],
            (true, true) => [s * d, t * d],
        };
        let width = if form.halves { BLOCK / 2 } else { BLOCK };
        let parts = b.quants.chunks(width).zip(rounded.chunks(width));
        for ((quants, rounded), scale) in parts.zip(scales) {
            let of_block = sum_of_block(quants, form.zero(), rounded);
            sum = (scale * worth).mul_add(of_block, sum);
        }
        if form.minimum {
            let minimum = if form.supers { t * -m } else { m };
            let of_all = rounded.iter().sum::<i32>() as f32 * worth;
            sum = minimum.mul_add(of_all, sum);
        }
    }
    sum
}

/// (rows, cols) weights of a format times x (cols) → (rows).
pub fn matvec(
    kind: TensorType,
    weights: &[u8],
    cols: usize,
    x: &[f32],
) -> Result<Vec<f32>, LengthMismatch> {
    let mut row = vec![0.0; cols];
    let form = Form::of(kind);
    let of_row = |bytes| {
        kind.dequantize(bytes, &mut row)?;
        Ok(match form {
            Some(form) => dot_integers(kind, form, bytes, x),
            None => dot(&row, x),
        })
    };
    weights
        .chunks_exact(kind.row_bytes(cols))
        .map(of_row)
        .collect()
}

/// x / √(mean(x²) + eps) × weight.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
}

/// e^x in double precision, rounded once; the kernel's `exp` stays within 2 units in the last place of it.
pub fn exp(x: f32) -> f32 {
    libm::exp(f64::from(x)) as f32
}

/// (x - mean(x)) / √(variance(x) + eps) × weight.
pub fn layer_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut lanes = [0.0f32; 16];
    for (k, x) in x.iter().enumerate() {
        lanes[k % 16] += x;
    }
    let mean = sum_lanes(lanes) / x.len() as f32;
    let x: Vec<f32> = x.iter().map(|x| x - mean).collect();
    rms_norm(&x, weight, eps)
}

/// x / (1 + e^-x), in double precision as those that follow.
pub fn silu(x: f32) -> f32 {
    (f64::from(x) * sigmoid(f64::from(x))) as f32
}

/// x/2 × (1 + tanh(√(2/π) × (x + 0.044715 x³))).
pub fn gelu_tanh(x: f32) -> f32 {
    let x = f64::from(x);
    let inner = libm::sqrt(std::f64::consts::FRAC_2_PI) * (x + 0.044_715 * x * x * x);
    (0.5 * x * (1.0 + libm::tanh(inner))) as f32
}

/// x/2 × (1 + erf(x/√2)). There is no other: the device calls this one.
pub fn gelu_erf(x: f32) -> f32 {
    0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// g / (1 + e^(-alpha g)) × (u + 1) with g = min(gate, limit) and u = up within ±limit.
pub fn clamped_swiglu(gate: f32, up: f32, alpha: f32, limit: f32) -> f32 {
    let g = f64::from(gate.min(limit));
    let u = f64::from(up.clamp(-limit, limit));
    (g * sigmoid(f64::from(alpha) * g) * (u + 1.0)) as f32
}

/// cap × tanh(x / cap).
pub fn softcap(x: f32, cap: f32) -> f32 {
    (f64::from(cap) * libm::tanh(f64::from(x) / f64::from(cap))) as f32
}

/// 1 / (1 + e^-x).
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// What an attention does beside the plain one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extras {
    /// The first position that is seen.
    pub first: usize,
    /// score = cap × tanh(score / cap).
    pub softcap: Option<f32>,
    /// A score without a value.
    pub sink: Option<f32>,
}

/// softmax(scale × q·kᵀ) · v for one query head; keys and values are (head_dim) rows, one a position. In double precision.
pub fn attend(
    q: &[f32],
    keys: &[Vec<f32>],
    values: &[Vec<f32>],
    scale: f32,
    extras: Extras,
) -> Vec<f32> {
    let wide = |a: f32, b: f32| f64::from(a) * f64::from(b);
    let score = |k: &Vec<f32>| {
        let score = k.iter().zip(q).map(|(k, q)| wide(*k, *q)).sum::<f64>() * f64::from(scale);
        extras.softcap.map_or(score, |cap| {
            f64::from(cap) * libm::tanh(score / f64::from(cap))
        })
    };
    let scores: Vec<f64> = keys[extras.first..].iter().map(score).collect();
    let sink = extras.sink.map(f64::from);
    let largest = scores.iter().copied().chain(sink);
    let largest = largest.fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| libm::exp(s - largest)).collect();
    let total = weights.iter().sum::<f64>() + sink.map_or(0.0, |s| libm::exp(s - largest));
    let weighed = |d: usize| {
        let values = values[extras.first..].iter().zip(&weights);
        values.map(|(v, w)| f64::from(v[d]) * w).sum::<f64>() / total
    };
    (0..q.len()).map(|d| weighed(d) as f32).collect()
}

/// The `n_used` largest of the router's logits, the largest first and of equal ones the lower index, with their shares.
pub fn route(logits: &[f32], n_used: usize, gating: Gating, scale: f32) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let falling = |a: &usize, b: &usize| logits[*b].partial_cmp(&logits[*a]);
    order.sort_by(|a, b| falling(a, b).unwrap_or(Ordering::Equal));
    let e = |i: &usize| libm::exp(f64::from(logits[*i]) - f64::from(logits[order[0]]));
    let total: f64 = match gating {
        Gating::SoftmaxOfAll => order.iter().map(e).sum(),
        Gating::SoftmaxOfUsed => order[..n_used].iter().map(e).sum(),
    };
    let share = |i: &usize| (*i, (e(i) / total) as f32 * scale);
    order[..n_used].iter().map(share).collect()
}
