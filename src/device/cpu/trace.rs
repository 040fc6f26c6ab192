//! A step for a trace: operation by operation, each shown when it is done. The stages are those of any step, in the same order.

use super::program::{Buf, compile};
use super::{CpuDevice, Job, Logits};
use crate::device::{DeviceError, Rows, Shown, Step};
use crate::model::plan::{Op, Plan};

/// The buffers that an operation leaves its results in, each with the name of the part; "" where there is one.
fn parts(op: &Op) -> &'static [(&'static str, Buf)] {
    match op {
        Op::Embed { .. } | Op::AttnOut { .. } | Op::FfnOut { .. } => &[("", Buf::X)],
        Op::AttnIn { .. } => &[("q", Buf::Q), ("k", Buf::K), ("v", Buf::V)],
        Op::Attend { .. } => &[("", Buf::Heads)],
        Op::FfnIn { .. } => &[("", Buf::Gate)],
        Op::Head { .. } => &[("", Buf::Logits)],
    }
}

/// For each operation where its stages end: as many as the plan has that ends with it.
fn ends(plan: &Plan) -> Vec<usize> {
    let mut beginning = Plan {
        ops: Vec::with_capacity(plan.ops.len()),
        ..plan.clone()
    };
    let end = |op: &Op| {
        beginning.ops.push(op.clone());
        compile(&beginning).stages.len()
    };
    plan.ops.iter().map(end).collect()
}

/// Runs a step at once and shows what every operation leaves.
pub(super) fn trace(
    device: &mut CpuDevice,
    step: Step<'_>,
    show: &mut dyn FnMut(Shown<'_>),
) -> Result<(), DeviceError> {
    use crate::device::Device;
    let (tokens, rows) = (step.tokens.len(), step.rows);
    device.forward(step)?;
    // Nothing is left for `poll`.
    device.job = Job::Idle;
    let mut stage = 0;
    for (op, end) in ends(&device.plan).into_iter().enumerate() {
        for stage in std::mem::replace(&mut stage, end)..end {
            device.run_stage(stage);
        }
        for (part, buf) in parts(&device.plan.ops[op]) {
            let (width, stride) = (device.width_after(op, *buf), device.strides[*buf as usize]);
            let shown = match (buf, rows) {
                (Buf::Logits, Rows::None) => 0,
                (Buf::Logits, Rows::Last) => 1,
                (_, Rows::None | Rows::Last | Rows::All) => tokens,
            };
            let values = &device.bufs[*buf as usize][..shown * stride];
            show(Shown {
                op,
                part,
                width,
                stride,
                values,
            });
        }
    }
    if rows != Rows::None {
        device.logits = Logits::Ready;
    }
    Ok(())
}

impl CpuDevice {
    /// Values of a row of a buffer after an operation, padding left out.
    fn width_after(&self, op: usize, buf: Buf) -> usize {
        if let (Op::AttnIn { layer, .. }, Buf::K | Buf::V) = (&self.plan.ops[op], buf) {
            return self.plan.kv[*layer].n_kv_heads * self.plan.kv[*layer].head_dim;
        }
        self.program.width(buf)
    }
}
