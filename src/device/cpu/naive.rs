//! The naive twins: every kernel once more, as plainly as it can be said, in the same order of summation. The oracle that fast paths
//! (and other devices) are compared with; nothing here is called in a step.

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

/// (rows, cols) weights of a format times x (cols) → (rows).
pub fn matvec(
    kind: TensorType,
    weights: &[u8],
    cols: usize,
    x: &[f32],
) -> Result<Vec<f32>, LengthMismatch> {
    let mut row = vec![0.0; cols];
    let of_row = |bytes| kind.dequantize(bytes, &mut row).map(|()| dot(&row, x));
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

/// silu(gate) × up.
pub fn silu_gated(gate: &[f32], up: &[f32]) -> Vec<f32> {
    gate.iter()
        .zip(up)
        .map(|(g, u)| g / (1.0 + exp(-g)) * u)
        .collect()
}

/// softmax(scale × q·kᵀ) · v for one query head; keys and values are (head_dim) rows, one a position. In double precision.
pub fn attend(q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>], scale: f32) -> Vec<f32> {
    let wide = |a: f32, b: f32| f64::from(a) * f64::from(b);
    let scores: Vec<f64> = keys
        .iter()
        .map(|k| k.iter().zip(q).map(|(k, q)| wide(*k, *q)).sum::<f64>() * f64::from(scale))
        .collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| libm::exp(s - largest)).collect();
    let total: f64 = weights.iter().sum();
    (0..q.len())
        .map(|d| {
            (values
                .iter()
                .zip(&weights)
                .map(|(v, w)| f64::from(v[d]) * w)
                .sum::<f64>()
                / total) as f32
        })
        .collect()
}
