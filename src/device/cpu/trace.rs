//! A step for a trace: operation by operation, each shown when it is done. The stages are those of any step, in the same order.

use super::program::{Buf, compile};
use super::{CpuDevice, Job, Logits};
use crate::device::{DeviceError, Rows, Shown, Step};
use crate::model::plan::{Op, Plan};

/// One of the results that an operation leaves for each token.
struct Part {
    /// "" where there is one.
    name: &'static str,
    buf: Buf,
    /// Values of a token, padding left out.
    width: usize,
}

/// What an operation leaves. The hidden layers of experts are rows of an expert and of no position: what they come to is shown.
fn parts(op: &Op) -> Vec<Part> {
    let part = |name, buf, width| Part { name, buf, width };
    let one = |buf, width| vec![part("", buf, width)];
    match op {
        Op::Embed { table, .. } => one(Buf::X, table.cols),
        Op::AttnIn {
            n_heads,
            n_kv_heads,
            head_dim,
            ..
        } => vec![
            part("q", Buf::Q, n_heads * head_dim),
            part("k", Buf::K, n_kv_heads * head_dim),
            part("v", Buf::V, n_kv_heads * head_dim),
        ],
        Op::Attend {
            n_heads, head_dim, ..
        } => one(Buf::Heads, n_heads * head_dim),
        Op::AttnOut { proj, .. } => one(Buf::X, proj.matrix.rows),
        Op::FfnIn { hidden, .. } => one(Buf::Gate, hidden.n_ff()),
        Op::FfnOut { down, .. } => one(Buf::X, down.matrix.rows),
        Op::Route { router, .. } => one(Buf::Router, router.matrix.rows),
        Op::ExpertsIn { .. } => Vec::new(),
        Op::ExpertsOut { down, .. } => one(Buf::X, down.rows),
        Op::Head { logits, .. } => one(Buf::Logits, logits.matrix.rows),
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
        for Part { name, buf, width } in parts(&device.plan.ops[op]) {
            let stride = device.strides[buf as usize];
            let shown = match (buf, rows) {
                (Buf::Logits, Rows::None) => 0,
                (Buf::Logits, Rows::Last) => 1,
                (_, Rows::None | Rows::Last | Rows::All) => tokens,
            };
            let values = &device.bufs[buf as usize][..shown * stride];
            show(Shown {
                op,
                part: name,
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
