//! How many bytes a step of one token has to read at least: the floor that a decode's speed is held against.

use super::plan::{ExpertLinear, Op, Plan, TensorId};
use super::weights::Weights;

/// What one token reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Reads {
    /// Bytes of weights: everything but the rows of other tokens in the embedding and the experts that a token does not go through.
    pub weights_bytes: u64,
    /// Each layer's keys and values of one position, in numbers, and how far back it looks.
    layers: Vec<(u64, Option<usize>)>,
}

impl Reads {
    /// Of the plan's operations, with the sizes of its tensors in the file.
    pub fn of(plan: &Plan, weights: &Weights) -> Self {
        let mut shares = vec![1.0f64; plan.tensors.len()];
        let mut layers = Vec::new();
        let mut n_used = 0;
        for op in &plan.ops {
            match op {
                Op::Embed {
                    table, positions, ..
                } => {
                    let rows = [Some(table), positions.as_ref()].into_iter().flatten();
                    rows.for_each(|m| shares[m.tensor.0] = 1.0 / m.rows.max(1) as f64);
                }
                Op::Route { n_used: used, .. } => n_used = *used,
                Op::ExpertsIn { gate, up, .. } => {
                    share_experts(&mut shares, gate, n_used);
                    share_experts(&mut shares, up, n_used);
                }
                Op::ExpertsOut { down, .. } => share_experts(&mut shares, down, n_used),
                Op::Attend {
                    n_kv_heads,
                    head_dim,
                    window,
                    ..
                } => layers.push((2 * (n_kv_heads * head_dim) as u64, *window)),
                // It comes last: a table that is the embedding too is read whole after all.
                Op::Head { logits, .. } => shares[logits.matrix.tensor.0] = 1.0,
                Op::AttnIn { .. } | Op::AttnOut { .. } | Op::FfnIn { .. } | Op::FfnOut { .. } => {}
            }
        }
        let bytes = |(i, share): (usize, &f64)| weights.get(TensorId(i)).bytes as f64 * share;
        Self {
            weights_bytes: shares.iter().enumerate().map(bytes).sum::<f64>() as u64,
            layers,
        }
    }

    /// Numbers of the KV cache that a token at `position` reads, all layers together.
    pub fn kv_numbers(&self, position: usize) -> u64 {
        let seen = |window: Option<usize>| window.unwrap_or(position).min(position) as u64;
        let layers = self.layers.iter();
        layers
            .map(|(numbers, window)| numbers * seen(*window))
            .sum()
    }
}

fn share_experts(shares: &mut [f64], experts: &ExpertLinear, n_used: usize) {
    let share = n_used as f64 / experts.n_experts.max(1) as f64;
    for id in [Some(experts.tensor), experts.bias].into_iter().flatten() {
        shares[id.0] = share;
    }
}
