//! A step for a trace: operation by operation, each shown when it is done.

use super::sizes::Area;
use super::{CudaDevice, ROWS_MAX, Rows};
use crate::device::{DeviceError, Shown, Step};
use crate::model::plan::Op;

/// What an operation leaves: the name of a part, where it lies and the values of a token. As on the cpu: the hidden layers of experts are
/// rows of an expert and of no position, so that what they come to is shown.
fn parts(op: &Op) -> Vec<(&'static str, Area, usize)> {
    match op {
        Op::Embed { table, .. } => vec![("", Area::X, table.cols)],
        Op::AttnIn {
            n_heads,
            n_kv_heads,
            head_dim,
            ..
        } => vec![
            ("q", Area::Q, n_heads * head_dim),
            ("k", Area::K, n_kv_heads * head_dim),
            ("v", Area::V, n_kv_heads * head_dim),
        ],
        Op::Attend {
            n_heads, head_dim, ..
        } => vec![("", Area::Heads, n_heads * head_dim)],
        Op::AttnOut { proj, .. } => vec![("", Area::X, proj.matrix.rows)],
        Op::FfnIn { hidden, .. } => vec![("", Area::Hidden, hidden.n_ff())],
        Op::FfnOut { down, .. } => vec![("", Area::X, down.matrix.rows)],
        Op::Route { router, .. } => vec![("", Area::Router, router.matrix.rows)],
        Op::ExpertsIn { .. } => Vec::new(),
        Op::ExpertsOut { down, .. } => vec![("", Area::X, down.rows)],
        Op::Head { logits, .. } => vec![("", Area::Logits, logits.matrix.rows)],
    }
}

impl CudaDevice {
    /// Runs a step at once and shows what every operation leaves.
    pub(super) fn trace_step(
        &mut self,
        step: Step<'_>,
        show: &mut dyn FnMut(Shown<'_>),
    ) -> Result<(), DeviceError> {
        step.check(&self.capacity)?;
        self.stream.wait()?;
        self.forget_logits();
        self.describe(&step)?;
        let (tokens, rows) = (step.tokens.len(), step.rows);
        for op in 0..self.plan.ops.len() {
            self.traced = true;
            let run = self.run_op(op, tokens, rows);
            self.traced = false;
            run?;
            for (part, area, width) in parts(&self.plan.ops[op]) {
                let values = match area {
                    Area::Logits => self.logits_of(tokens, rows)?,
                    area => self.values(area, 0, tokens * width)?,
                };
                show(Shown {
                    op,
                    part,
                    width,
                    stride: width,
                    values: &values,
                });
            }
        }
        self.logits = self.logits_after(tokens, rows);
        Ok(())
    }

    /// Some values of an area, once everything before is done.
    fn values(&self, area: Area, first: usize, count: usize) -> Result<Vec<f32>, DeviceError> {
        self.stream.wait()?;
        let mut values = vec![0.0f32; count];
        let at = self.sizes.offset(area) + first * 4;
        self.scratch
            .read(at, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// The logits that a step asks for; those of many rows are computed a few at a time.
    fn logits_of(&self, tokens: usize, rows: Rows) -> Result<Vec<f32>, DeviceError> {
        let vocab = self.capacity.vocab;
        match rows {
            Rows::None => Ok(Vec::new()),
            Rows::Last => self.values(Area::Logits, 0, vocab),
            Rows::All => {
                let mut all = Vec::with_capacity(tokens * vocab);
                for first in (0..tokens).step_by(ROWS_MAX) {
                    let n = ROWS_MAX.min(tokens - first);
                    self.head_rows(first, n)?;
                    all.extend(self.values(Area::Logits, 0, n * vocab)?);
                }
                Ok(all)
            }
        }
    }
}
