//! Products of matrices with a few vectors, one by one or slot by slot; `prompt.rs` has those with many.

use std::collections::BTreeSet;
use std::ops::Range;

use bytemuck::Zeroable;
use cudarc::driver::DriverError;

use super::args::{Address, Matvec, Segment, WeightRows, epilogue, norm_kind};
use super::attention::AttendInstance;
use super::launch::{
    Grid, Kernels, MATVEC_PAIRS, MATVEC_THREADS, MATVEC_TOKENS, TILE_THREADS, is_float, matvec_name,
};
use super::prompt::Rows;
use super::sizes::Area;
use super::{CudaDevice, CudaError, KvType, ROWS_MAX, attention, prompt, tiles};
use crate::model::plan::{ExpertLinear, Linear, NormOp, Plan, Shape, TensorId};
use crate::model::spec::{Activation, Norm};
use crate::model::weights::Weights;
use crate::quant::TensorType;

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

/// Tokens that go through experts.
#[derive(Clone, Copy, Debug)]
struct Slots {
    /// Of all tokens together.
    count: usize,
    /// Experts of a token.
    n_used: usize,
    /// Slots that share a row of x.
    a_token: usize,
}

impl Slots {
    fn of_tokens(n: usize, n_used: usize) -> Self {
        Self {
            count: n * n_used,
            n_used,
            a_token: n_used,
        }
    }
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
            kernels.prepare(&matvec_name(&[kind], tokens))?;
            for pair in MATVEC_PAIRS.iter().filter(|pair| pair[0] == kind) {
                kernels.prepare(&matvec_name(pair, tokens))?;
            }
        }
        for name in prompt::matmul_names(kernels.has_hopper(), kind) {
            kernels.prepare(&name)?;
        }
        kernels.prepare(&format!("router_{}", kind.name()))?;
        kernels.prepare(&format!("embed_{}", kind.name()))?;
    }
    for instance in AttendInstance::all(kv) {
        kernels.prepare(&instance.name(kv))?;
    }
    for name in attention::many_names(kernels.has_hopper()) {
        kernels.prepare(&name)?;
    }
    kernels.prepare(&format!("rope_append_{}", kv.name()))?;
    if kv != KvType::Q8_0 {
        kernels.prepare(&format!("rope_many_{}", kv.name()))?;
    }
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

    /// Multiplies; neighbouring parts of the same type together, and few tokens with parts of two types that go together.
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
        while !rest.is_empty() {
            let (together, after) = rest.split_at(self.together(n, rest));
            match n > ROWS_MAX {
                true => self.matmul(n, together, finish, Rows::Tokens)?,
                false => self.project_few(n, from, together, finish)?,
            }
            rest = after;
        }
        Ok(())
    }

    /// How many of the parts one launch takes.
    fn together(&self, n: usize, parts: &[Part]) -> usize {
        let first = self.kind(&parts[0]);
        let count = |from: &[Part], kind| from.iter().take_while(|p| self.kind(p) == kind).count();
        let same = count(parts, first);
        match parts.get(same).map(|p| self.kind(p)) {
            Some(second) if n <= ROWS_MAX && MATVEC_PAIRS.contains(&[first, second]) => {
                let both = same + count(&parts[same..], second);
                // x is there twice, once as each type wants it
                match self.tokens_at_once(1, &parts[..both], Finish::SET) {
                    0 => same,
                    _ => both,
                }
            }
            _ => same,
        }
    }

    /// Refuses rows of which not one token's activations fit in a block's shared memory.
    pub(super) fn check_widths(&self) -> Result<(), CudaError> {
        for (i, tensor) in self.plan.tensors.iter().enumerate() {
            let (Shape::Matrix(rows, cols) | Shape::Matrices(_, rows, cols)) = tensor.shape else {
                continue;
            };
            let kinds = [self.weights.get(TensorId(i)).kind];
            if self.tokens_that_fit(&kinds, cols, (&[rows], false), 1) == 0 {
                return Err(CudaError::Unsupported(format!(
                    "a row of {} has {cols} columns of {}, for which a block's shared memory on this card, {} bytes, is too small",
                    tensor.name,
                    kinds[0].name(),
                    self.kernels.shared_max(),
                )));
            }
        }
        Ok(())
    }

    /// At most [`ROWS_MAX`] tokens, as many at once as fit.
    fn project_few(
        &self,
        n: usize,
        from: Input,
        parts: &[Part],
        finish: Finish,
    ) -> Result<(), DriverError> {
        let at_once = self.tokens_at_once(n, parts, finish).clamp(1, n);
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
        let args = self.matvec_args(n, from, parts, finish);
        self.cut(args, parts, 1, 1)
    }

    /// Launches `matvec` for `slots` experts at once, of which a token has `n_used`; both 1 for what is no expert.
    fn cut(
        &self,
        mut args: Matvec,
        parts: &[Part],
        slots: usize,
        n_used: usize,
    ) -> Result<(), DriverError> {
        let n = args.n_tokens as usize;
        let kinds = self.kinds(parts);
        let gated = args.epilogue == epilogue::GATED;
        let rows: Vec<usize> = parts.iter().map(|p| p.rows).collect();
        let mut grid = if is_float(kinds[0]) {
            self.grid_of_floats(n, parts, args.epilogue)
        } else {
            let work = tiles::Work {
                multiprocessors: self.multiprocessors.div_ceil(n_used),
                ..self.work(&kinds, parts[0].cols, (&rows, gated), n)
            };
            let tiling = work.tiling(n);
            args.warps_a_tile = tiling.warps_a_tile as u32;
            args.tiles_a_pass = tiling.tiles_a_pass as u32;
            (args.n_tiles, args.stages) = (tiling.n_tiles as u32, tiling.stages as u32);
            let second = |p: &Part| self.kind(p) != kinds[0];
            args.second_from = parts.iter().position(second).unwrap_or(parts.len()) as u32;
            Grid::line(tiling.blocks, TILE_THREADS as u32, tiling.shared_bytes)
        };
        if slots > 1 {
            // the slots share the multiprocessors
            let each = self.multiprocessors.div_ceil(slots).max(1) as u32;
            grid.blocks = (grid.blocks.0.min(each), slots as u32, 1);
        }
        self.kernels
            .matvec(&kinds, instance(n), &self.stream, grid, &args)
    }

    /// The types of the parts, each once.
    fn kinds(&self, parts: &[Part]) -> Vec<TensorType> {
        let mut kinds: Vec<TensorType> = parts.iter().map(|p| self.kind(p)).collect();
        kinds.dedup();
        kinds
    }

    fn work<'a>(
        &self,
        kinds: &'a [TensorType],
        cols: usize,
        (rows, gated): (&'a [usize], bool),
        n: usize,
    ) -> tiles::Work<'a> {
        tiles::Work {
            kinds,
            cols,
            rows,
            gated,
            tokens: instance(n),
            multiprocessors: self.multiprocessors,
            shared_max: self.kernels.shared_max(),
        }
    }

    /// Tokens whose activations fit in shared memory together.
    fn tokens_at_once(&self, n: usize, parts: &[Part], finish: Finish) -> usize {
        let rows: Vec<usize> = parts.iter().map(|p| p.rows).collect();
        let gated = finish.epilogue == epilogue::GATED;
        self.tokens_that_fit(&self.kinds(parts), parts[0].cols, (&rows, gated), n)
    }

    fn tokens_that_fit(
        &self,
        kinds: &[TensorType],
        cols: usize,
        (rows, gated): (&[usize], bool),
        n: usize,
    ) -> usize {
        if is_float(kinds[0]) {
            return self.kernels.shared_max() / floats_a_token(cols);
        }
        self.work(kinds, cols, (rows, gated), n).tokens_max()
    }

    /// Blocks of `matvec_floats`: two a multiprocessor where there is work for them and room.
    fn grid_of_floats(&self, n: usize, parts: &[Part], epilogue: u32) -> Grid {
        let items: usize = match epilogue {
            epilogue::GATED => parts[0].rows,
            _ => parts.iter().map(|p| p.rows).sum(),
        };
        let shared_bytes = n * floats_a_token(parts[0].cols);
        let few = items <= self.multiprocessors * MATVEC_THREADS / 32;
        let alone = few || n > 1 || shared_bytes > self.kernels.shared_max() / 2;
        let blocks = items.min(self.multiprocessors * if alone { 1 } else { 2 });
        Grid::line(blocks, MATVEC_THREADS as u32, shared_bytes)
    }

    fn matvec_args(&self, n: usize, from: Input, parts: &[Part], finish: Finish) -> Matvec {
        let mut args = Matvec::zeroed();
        for (segment, part) in args.segments.iter_mut().zip(parts) {
            *segment = self.segment(part);
        }
        (args.n_segments, args.n_tokens) = (parts.len() as u32, n as u32);
        args.cols = parts[0].cols.next_multiple_of(32) as u32;
        (args.width, args.x, args.x_stride) = (from.width as u32, from.x, from.stride as u32);
        if let Some(norm) = from.norm {
            (args.norm, args.eps) = norm_numbers(norm.norm);
            (args.norm_weight, args.norm_bias) =
                (self.tensor(norm.weight), self.optional(norm.bias));
        }
        (args.epilogue, args.scale, args.softcap) = (finish.epilogue, finish.scale, finish.softcap);
        (args.activation, args.alpha, args.limit) = finish.activation;
        args
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
            return self.slots(Slots::of_tokens(n, n_used), from, parts, finish);
        }
        let [gate, up] = *parts;
        let up = Part {
            out: self.at(Area::ExpertAdded),
            ..up
        };
        self.slots(Slots::of_tokens(n, n_used), from, &[gate], Finish::SET)?;
        self.slots(Slots::of_tokens(n, n_used), from, &[up], Finish::SET)?;
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
        (n, n_used): (usize, usize),
        from: Input,
        part: &Part,
    ) -> Result<(), DriverError> {
        let slots = Slots {
            a_token: 1,
            ..Slots::of_tokens(n, n_used)
        };
        self.slots(slots, from, &[*part], Finish::SET)
    }

    fn slots(
        &self,
        slots: Slots,
        from: Input,
        parts: &[Part],
        finish: Finish,
    ) -> Result<(), DriverError> {
        let a_launch = SLOTS_MAX - SLOTS_MAX % slots.a_token;
        for first in (0..slots.count).step_by(a_launch) {
            let input = Input {
                x: from.x + (first / slots.a_token * from.stride * 4) as u64,
                ..from
            };
            let mut args = self.matvec_args(1, input, parts, finish);
            for (segment, part) in args.segments.iter_mut().zip(parts) {
                segment.out += (first * part.out_stride * 4) as u64;
            }
            args.experts = self.at(Area::ExpertIds) + (first * 4) as u64;
            args.slots_a_token = slots.a_token as u32;
            let now = a_launch.min(slots.count - first);
            self.cut(args, parts, now, slots.n_used)?;
        }
        Ok(())
    }
}

/// The instance of `matvec` for so many tokens: one of [`MATVEC_TOKENS`].
fn instance(n: usize) -> usize {
    let of = MATVEC_TOKENS.into_iter().find(|t| *t >= n);
    of.unwrap_or(ROWS_MAX)
}

/// Shared memory that one token's activations take in `matvec_floats`: `shared_stride` of `cuda/matvec_floats.cu`, or a little more.
fn floats_a_token(cols: usize) -> usize {
    let cols = cols.next_multiple_of(32);
    (cols + cols / 32 * 4 + 8) * 4
}
