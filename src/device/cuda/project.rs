//! Products of matrices with a few vectors, one by one or slot by slot; `prompt.rs` has those with many.

use std::collections::BTreeSet;
use std::ops::Range;

use bytemuck::Zeroable;
use cudarc::driver::DriverError;

use super::args::{Address, Matvec, Segment, WeightRows, epilogue, norm_kind};
use super::launch::{
    ATTEND_GROUPS, ATTEND_MANY, Grid, Kernels, MATVEC_THREADS, MATVEC_TOKENS, matvec_name,
};
use super::prompt::Rows;
use super::sizes::Area;
use super::{CudaDevice, KvType, ROWS_MAX, kv_name, prompt};
use crate::model::plan::{ExpertLinear, Linear, NormOp, Plan, Shape, TensorId};
use crate::model::spec::{Activation, Norm};
use crate::model::weights::Weights;
use crate::quant::TensorType;

/// Shared memory that the activations of a `matvec` may take.
const ACTIVATION_BYTES_MAX: usize = 200 * 1024;

/// Most slots of experts in one launch: a grid's second dimension.
const SLOTS_MAX: usize = 32 * 1024;

/// Some rows of a matrix, and where their results go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) tensor: TensorId,
    pub(super) cols: usize,
    pub(super) first_row: usize,
    pub(super) rows: usize,
    pub(super) bias: Option<TensorId>,
    pub(super) out: Address,
    pub(super) out_stride: usize,
}

impl Part {
    /// All rows; `to` is (address, values from one token to the next).
    pub(super) fn whole(linear: &Linear, to: (Address, usize)) -> Self {
        Self::rows(linear, 0..linear.matrix.rows, to)
    }

    /// Some rows.
    pub(super) fn rows(
        linear: &Linear,
        rows: Range<usize>,
        (out, out_stride): (Address, usize),
    ) -> Self {
        Self {
            tensor: linear.matrix.tensor,
            cols: linear.matrix.cols,
            first_row: rows.start,
            rows: rows.len(),
            bias: linear.bias,
            out,
            out_stride,
        }
    }
}

/// Input of a projection: rows of f32.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input {
    pub(super) x: Address,
    /// Values from one token to the next.
    pub(super) stride: usize,
    pub(super) width: usize,
    pub(super) norm: Option<NormOp>,
}

/// An activation's number and parameters, as the kernels take them.
pub(super) type ActivationNumbers = (u32, f32, f32);

/// What is done with a projection's results.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finish {
    pub(super) epilogue: u32,
    pub(super) activation: ActivationNumbers,
    pub(super) scale: f32,
    pub(super) softcap: f32,
}

impl Finish {
    pub(super) const SET: Self = Self {
        epilogue: epilogue::SET,
        activation: (0, 0.0, 0.0),
        scale: 1.0,
        softcap: 0.0,
    };

    pub(super) fn add(scale: f32) -> Self {
        Self {
            epilogue: epilogue::ADD,
            scale,
            ..Self::SET
        }
    }

    pub(super) fn gated(activation: ActivationNumbers) -> Self {
        Self {
            epilogue: epilogue::GATED,
            activation,
            ..Self::SET
        }
    }

    pub(super) fn plain(activation: ActivationNumbers) -> Self {
        Self {
            epilogue: epilogue::PLAIN,
            activation,
            ..Self::SET
        }
    }
}

/// `Activation` of `cuda/common.cuh`.
pub(super) fn activation(a: Activation) -> ActivationNumbers {
    match a {
        Activation::Silu => (0, 0.0, 0.0),
        Activation::GeluTanh => (1, 0.0, 0.0),
        Activation::ClampedSwiglu { alpha, limit } => (2, alpha, limit),
        Activation::GeluErf => (3, 0.0, 0.0),
    }
}

/// `NormKind` of the kernels, and eps.
pub(super) fn norm_numbers(norm: Norm) -> (u32, f32) {
    match norm {
        Norm::Rms { eps } => (norm_kind::RMS, eps),
        Norm::Layer { eps } => (norm_kind::LAYER, eps),
    }
}

/// Finds every kernel that the plan will launch.
pub fn prepare(
    kernels: &mut Kernels,
    plan: &Plan,
    weights: &Weights,
    kv: KvType,
) -> Result<(), DriverError> {
    let is_matrix = |shape: Shape| matches!(shape, Shape::Matrix(..) | Shape::Matrices(..));
    let of_matrices = plan
        .tensors
        .iter()
        .enumerate()
        .filter(|(_, t)| is_matrix(t.shape));
    let kinds: BTreeSet<&str> = of_matrices
        .map(|(i, _)| weights.get(TensorId(i)).kind.name())
        .collect();
    for kind in TensorType::ALL
        .into_iter()
        .filter(|k| kinds.contains(k.name()))
    {
        for tokens in MATVEC_TOKENS {
            kernels.prepare(&matvec_name(kind, tokens))?;
        }
        for name in prompt::matmul_names(kernels.has_hopper(), kind) {
            kernels.prepare(&name)?;
        }
        kernels.prepare(&format!("router_{}", kind.name()))?;
        kernels.prepare(&format!("embed_{}", kind.name()))?;
    }
    let kv = kv_name(kv);
    for group in ATTEND_GROUPS {
        kernels.prepare(&format!("attend_{kv}_{group}"))?;
    }
    for (width, queries) in ATTEND_MANY {
        kernels.prepare(&format!("attend_many_{width}_{queries}"))?;
    }
    kernels.prepare(&format!("rope_append_{kv}"))?;
    for name in prompt::names(kernels.has_hopper()) {
        kernels.prepare(name)?;
    }
    for name in [
        "norm_rows",
        "norm_half",
        "share_rows",
        "gate_rows",
        "split",
        "choose_parts",
        "choose",
        "route",
        "group",
        "combine",
    ] {
        kernels.prepare(name)?;
    }
    Ok(())
}

impl CudaDevice {
    pub(super) fn kind(&self, part: &Part) -> TensorType {
        self.weights.get(part.tensor).kind
    }

    /// The rows of a matrix from one on.
    pub(super) fn rows_from(&self, id: TensorId, row: usize) -> WeightRows {
        let base = self.tensor(id);
        let mut rows = WeightRows::zeroed();
        if let Some(layout) = &self.layouts[id.0] {
            for (i, p) in layout.planes.iter().enumerate() {
                rows.planes[i] = base + (p.at + row * p.row_bytes) as u64;
                rows.row_bytes[i] = p.row_bytes as u32;
            }
        }
        rows
    }

    /// Multiplies; neighbouring parts of the same type together.
    pub(super) fn project(
        &self,
        n: usize,
        from: Input,
        parts: &[Part],
        finish: Finish,
    ) -> Result<(), DriverError> {
        if n > ROWS_MAX {
            self.to_half(n, from, Rows::Tokens)?;
        }
        let mut rest = parts;
        while let Some(first) = rest.first() {
            let same = rest
                .iter()
                .take_while(|p| self.kind(p) == self.kind(first))
                .count();
            self.project_same(n, from, &rest[..same], finish)?;
            rest = &rest[same..];
        }
        Ok(())
    }

    fn project_same(
        &self,
        n: usize,
        from: Input,
        parts: &[Part],
        finish: Finish,
    ) -> Result<(), DriverError> {
        if n > ROWS_MAX {
            return self.matmul(n, parts, finish, Rows::Tokens);
        }
        let a_token = shared_stride_bytes(self.kind(&parts[0]), parts[0].cols.next_multiple_of(32));
        let at_once = (ACTIVATION_BYTES_MAX / a_token).clamp(1, n);
        let mut first = 0;
        while first < n {
            let now = at_once.min(n - first);
            let input = Input {
                x: from.x + (first * from.stride * 4) as u64,
                ..from
            };
            let moved = |p: &Part| Part {
                out: p.out + (first * p.out_stride * 4) as u64,
                ..*p
            };
            let parts: Vec<Part> = parts.iter().map(moved).collect();
            self.matvec(now, input, &parts, finish)?;
            first += now;
        }
        Ok(())
    }

    /// activation(gate, up): at once where both have the same type, otherwise after both.
    pub(super) fn gated(
        &self,
        n: usize,
        from: Input,
        parts: [Part; 2],
        activation: ActivationNumbers,
    ) -> Result<(), DriverError> {
        let [gate, up] = &parts;
        if self.kind(gate) == self.kind(up) {
            return self.project(n, from, &parts, Finish::gated(activation));
        }
        self.project(n, from, &parts, Finish::SET)?;
        self.kernels.gate_rows(
            &self.stream,
            (gate.out, up.out),
            (n * gate.rows) as u64,
            activation,
        )
    }

    fn matvec(
        &self,
        n: usize,
        from: Input,
        parts: &[Part],
        finish: Finish,
    ) -> Result<(), DriverError> {
        let (args, grid) = self.matvec_args(n, from, parts, finish);
        let tokens = MATVEC_TOKENS
            .into_iter()
            .find(|t| *t >= n)
            .unwrap_or(ROWS_MAX);
        self.kernels
            .matvec(self.kind(&parts[0]), tokens, &self.stream, grid, &args)
    }

    fn matvec_args(&self, n: usize, from: Input, parts: &[Part], finish: Finish) -> (Matvec, Grid) {
        let mut args = Matvec::zeroed();
        for (segment, part) in args.segments.iter_mut().zip(parts) {
            *segment = self.segment(part);
        }
        let cols = parts[0].cols.next_multiple_of(32);
        (args.n_segments, args.n_tokens) = (parts.len() as u32, n as u32);
        (args.cols, args.width) = (cols as u32, from.width as u32);
        (args.x, args.x_stride) = (from.x, from.stride as u32);
        if let Some(norm) = from.norm {
            (args.norm, args.eps) = norm_numbers(norm.norm);
            (args.norm_weight, args.norm_bias) =
                (self.tensor(norm.weight), self.optional(norm.bias));
        }
        (args.epilogue, args.scale, args.softcap) = (finish.epilogue, finish.scale, finish.softcap);
        (args.activation, args.alpha, args.limit) = finish.activation;
        let items: usize = match finish.epilogue {
            epilogue::GATED => parts[0].rows,
            _ => parts.iter().map(|p| p.rows).sum(),
        };
        let shared_bytes = n * shared_stride_bytes(self.kind(&parts[0]), cols);
        let a_block = MATVEC_THREADS / 32;
        // two blocks a multiprocessor where there is work for them and room
        let few = items <= self.multiprocessors * a_block;
        let resident = if few || n > 1 || shared_bytes > 100 * 1024 {
            1
        } else {
            2
        };
        let blocks = items.min(self.multiprocessors * resident);
        (
            args,
            Grid::line(blocks, MATVEC_THREADS as u32, shared_bytes),
        )
    }

    pub(super) fn segment(&self, part: &Part) -> Segment {
        Segment {
            weights: self.rows_from(part.tensor, part.first_row),
            out: part.out,
            bias: part
                .bias
                .map_or(0, |id| self.tensor(id) + (part.first_row * 4) as u64),
            rows: part.rows as u32,
            out_stride: part.out_stride as u32,
        }
    }

    /// A projection of each expert; its results lie slot by slot.
    pub(super) fn expert_part(&self, e: &ExpertLinear, out: Address) -> Part {
        Part {
            tensor: e.tensor,
            cols: e.cols,
            first_row: 0,
            rows: e.rows,
            bias: e.bias,
            out,
            out_stride: e.rows,
        }
    }

    /// Every token through its experts: slot s is of token s / n_used.
    pub(super) fn experts(
        &self,
        n: usize,
        from: Input,
        parts: &[Part; 2],
        finish: Finish,
        n_used: usize,
    ) -> Result<(), DriverError> {
        if self.kind(&parts[0]) == self.kind(&parts[1]) {
            return self.slots(n * n_used, n_used, from, parts, finish);
        }
        let [gate, up] = *parts;
        let up = Part {
            out: self.at(Area::ExpertAdded),
            ..up
        };
        self.slots(n * n_used, n_used, from, &[gate], Finish::SET)?;
        self.slots(n * n_used, n_used, from, &[up], Finish::SET)?;
        self.kernels.gate_rows(
            &self.stream,
            (gate.out, up.out),
            (n * n_used * gate.rows) as u64,
            finish.activation,
        )
    }

    /// Every slot's own row through its expert.
    pub(super) fn experts_of_slots(
        &self,
        slots: usize,
        from: Input,
        part: &Part,
    ) -> Result<(), DriverError> {
        self.slots(slots, 1, from, &[*part], Finish::SET)
    }

    fn slots(
        &self,
        slots: usize,
        slots_a_token: usize,
        from: Input,
        parts: &[Part],
        finish: Finish,
    ) -> Result<(), DriverError> {
        let a_launch = SLOTS_MAX - SLOTS_MAX % slots_a_token;
        for first in (0..slots).step_by(a_launch) {
            let input = Input {
                x: from.x + (first / slots_a_token * from.stride * 4) as u64,
                ..from
            };
            let (mut args, mut grid) = self.matvec_args(1, input, parts, finish);
            for (segment, part) in args.segments.iter_mut().zip(parts) {
                segment.out += (first * part.out_stride * 4) as u64;
            }
            args.experts = self.at(Area::ExpertIds) + (first * 4) as u64;
            args.slots_a_token = slots_a_token as u32;
            let now = a_launch.min(slots - first);
            // the slots share the multiprocessors
            grid.blocks = (
                (grid.blocks.0 as usize).min((2 * self.multiprocessors).div_ceil(now).max(8))
                    as u32,
                now as u32,
                1,
            );
            self.kernels
                .matvec(self.kind(&parts[0]), 1, &self.stream, grid, &args)?;
        }
        Ok(())
    }
}

/// Shared memory that one token's activations take in `matvec`: `shared_stride` of `cuda/matvec.cu`, or a little more.
fn shared_stride_bytes(kind: TensorType, cols: usize) -> usize {
    match kind {
        TensorType::F32 | TensorType::F16 | TensorType::BF16 => (cols + cols / 32 * 4 + 8) * 4,
        _ => cols.div_ceil(128) * 4 * 80,
    }
}
