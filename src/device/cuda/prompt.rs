//! Products of matrices with many vectors: activations as f16 in panels, tiles on the tensor cores, weights decoded beforehand where many
//! tokens share them, experts' slots sorted and multiplied together.

use bytemuck::Zeroable;
use cudarc::driver::DriverError;

use super::args::{Address, Group, Matmul, NormRows, Router, epilogue};
use super::launch::Grid;
use super::project::{ActivationNumbers, Finish, Input, Part, activation, norm_numbers};
use super::sizes::{
    Area, EXPERT_TILE, HALF_COLS_STEP, PANEL, TILE_ROWS, expanded_tile_bytes, sorted_rows,
};
use super::{CudaDevice, Job, ROWS_MAX};
use crate::model::plan::{ExpertLinear, Hidden, Linear, Op};
use crate::quant::TensorType;

/// Tokens of a tile of `cuda/matmul_half.cu`.
const TILES: [usize; 2] = [128, 256];

/// What a tile of each takes, about, in the same unit: a narrow one waits for the second-level cache.
const TILE_COSTS: [usize; 2] = [5, 7];

/// From so many tokens on it pays to decode a matrix once for all of them.
const EXPAND_TOKENS_MIN: usize = 512;

/// What hidden values that go from one product to the next as halves are divided by: up to 1,048,064 they are themselves, and what is
/// less than a thousandth loses bits that are below those of larger ones.
const HIDDEN_SCALE: f32 = 16.0;

/// Panels that a block of `cuda/expand.cu` decodes, about.
const EXPAND_PANELS: usize = 8;

/// `Activation` of `cuda/common.cuh` that the products of warpgroups leave to `gate_rows`.
const GELU_ERF: u32 = 3;

/// Tokens that `cuda/router.cu` takes at once.
const ROUTER_TOKENS: usize = 4;

/// Kernels of many vectors, of a type.
pub(super) fn matmul_names(hopper: bool, kind: TensorType) -> Vec<String> {
    let of: &[&str] = if hopper {
        &["matmul_hopper", "expand"]
    } else {
        &["matmul"]
    };
    of.iter()
        .map(|of| format!("{of}_{}", kind.name()))
        .collect()
}

/// Kernels of many vectors, of any type.
pub(super) fn names(hopper: bool) -> &'static [&'static str] {
    if hopper {
        &["matmul_half_128", "matmul_half_256"]
    } else {
        &[]
    }
}

/// What a step's tokens and their experts are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slots {
    tokens: usize,
    /// Experts of a token.
    used: usize,
    experts: usize,
}

impl Slots {
    pub(super) fn of(tokens: usize, used: usize, expert: &ExpertLinear) -> Self {
        Self {
            tokens,
            used,
            experts: expert.n_experts,
        }
    }

    fn count(self) -> usize {
        self.tokens * self.used
    }

    /// At most so many rows, sorted.
    fn rows(self) -> usize {
        sorted_rows(self.count(), self.experts)
    }

    /// At most so many tiles of [`EXPERT_TILE`] rows.
    fn tiles(self) -> usize {
        self.count().div_ceil(EXPERT_TILE) + self.experts
    }
}

/// What the rows of f16 activations are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rows {
    /// The step's tokens, as `to_half` left them.
    Tokens,
    /// The step's tokens, as the operation before left them there: in panels, divided by `scale`.
    Left { at: Address, scale: f32 },
    /// Sorted slots that take their token's row of x; results are rows of theirs.
    Gathered(Slots),
    /// Sorted slots, each with a row of x; results go where the slot is.
    Sorted(Slots),
}

impl Rows {
    /// Rows at most, of so many tokens.
    fn at_most(self, n: usize) -> usize {
        match self {
            Self::Tokens | Self::Left { .. } => n,
            Self::Gathered(slots) | Self::Sorted(slots) => slots.rows(),
        }
    }

    /// Whether they are the step's tokens, in their order.
    fn are_tokens(self) -> bool {
        matches!(self, Self::Tokens | Self::Left { .. })
    }
}

impl CudaDevice {
    /// What an operation on so many tokens leaves as halves in panels, for the product that comes next, is divided by; `None` where it
    /// leaves f32, as for a trace.
    pub(super) fn halves_of(&self, op: &Op, n: usize) -> Option<f32> {
        if n <= ROWS_MAX || matches!(self.job, Job::Trace) || !self.kernels.has_hopper() {
            return None;
        }
        let (width, scale) = match op {
            Op::Attend {
                n_heads, head_dim, ..
            } if self.attends_by_warpgroups(*head_dim) => (n_heads * head_dim, 1.0),
            Op::FfnIn {
                hidden,
                share: None,
                ..
            } if self.gates_together(hidden) => (hidden.n_ff(), HIDDEN_SCALE),
            _ => return None,
        };
        width.is_multiple_of(HALF_COLS_STEP).then_some(scale)
    }

    /// Whether one product makes gate and up, and what becomes of them.
    fn gates_together(&self, hidden: &Hidden) -> bool {
        let (same, a) = match hidden {
            Hidden::Gated {
                gate,
                up,
                activation: a,
            } => {
                let kind = |l: &Linear| self.weights.get(l.matrix.tensor).kind;
                (kind(gate) == kind(up), *a)
            }
            Hidden::GatedFused { activation: a, .. } => (true, *a),
            Hidden::Plain { .. } => return false,
        };
        same && self.is_fused(Finish::gated(activation(a)))
    }

    /// Normalises rows into f16.
    pub(super) fn to_half(&self, n: usize, from: Input, rows: Rows) -> Result<(), DriverError> {
        let n_rows = rows.at_most(n);
        let mut args = NormRows {
            x: from.x,
            half_out: self.at(Area::Half),
            scales: self.at(Area::HalfScales),
            width: from.width as u32,
            cols: from.width.next_multiple_of(HALF_COLS_STEP) as u32,
            x_stride: from.stride as u32,
            panel_rows: n_rows.next_multiple_of(8) as u32,
            ..NormRows::zeroed()
        };
        if let Some(norm) = from.norm {
            (args.norm, args.eps) = norm_numbers(norm.norm);
            (args.weight, args.bias) = (self.tensor(norm.weight), self.optional(norm.bias));
        }
        if !rows.are_tokens() {
            args.groups = self.at(Area::ExpertGroups);
        }
        if let Rows::Gathered(slots) = rows {
            (args.order, args.n_used) = (self.at(Area::ExpertOrder), slots.used as u32);
        }
        self.kernels.norm_half(&self.stream, n_rows, &args)
    }

    /// Whether a product does that with its sums; otherwise they are stored first.
    fn is_fused(&self, finish: Finish) -> bool {
        let gelu_erf = finish.epilogue == epilogue::GATED && finish.activation.0 == GELU_ERF;
        !self.kernels.has_hopper() || !(gelu_erf || finish.epilogue == epilogue::PLAIN)
    }

    /// Multiplies what `to_half` left; the parts have one type.
    pub(super) fn matmul(
        &self,
        n: usize,
        parts: &[Part],
        finish: Finish,
        rows: Rows,
    ) -> Result<(), DriverError> {
        if self.is_fused(finish) {
            return self.multiply(n, parts, finish, rows);
        }
        self.multiply(n, parts, Finish::SET, rows)?;
        let up = match finish.epilogue {
            epilogue::GATED => parts[1].out,
            _ => 0,
        };
        let values = (rows.at_most(n) * parts[0].rows) as u64;
        let gate = parts[0].out;
        self.kernels
            .gate_rows(&self.stream, (gate, up), values, finish.activation)
    }

    fn multiply(
        &self,
        n: usize,
        parts: &[Part],
        finish: Finish,
        rows: Rows,
    ) -> Result<(), DriverError> {
        self.launch_products(n, parts, finish, rows, None)
    }

    /// Multiplies what `to_half` left by gate and up; the gated values are left at the first part's place as halves, divided by `scale`.
    pub(super) fn gate_to_halves(
        &self,
        n: usize,
        from: Input,
        parts: &[Part; 2],
        (activation, scale): (ActivationNumbers, f32),
    ) -> Result<(), DriverError> {
        self.to_half(n, from, Rows::Tokens)?;
        self.launch_products(
            n,
            parts,
            Finish::gated(activation),
            Rows::Tokens,
            Some(scale),
        )
    }

    /// `half_scale`: what gated values are divided by that go out as halves.
    fn launch_products(
        &self,
        n: usize,
        parts: &[Part],
        finish: Finish,
        rows: Rows,
        half_scale: Option<f32>,
    ) -> Result<(), DriverError> {
        let mut args = Matmul::zeroed();
        for (segment, part) in args.segments.iter_mut().zip(parts) {
            *segment = self.segment(part);
        }
        (args.n_segments, args.n_tokens) = (parts.len() as u32, n as u32);
        args.cols = parts[0].cols.next_multiple_of(32) as u32;
        (args.x, args.scales) = (self.at(Area::Half), self.at(Area::HalfScales));
        if let Rows::Left { at, scale } = rows {
            (args.x, args.scales, args.x_scale) = (at, 0, scale);
        }
        if let Some(scale) = half_scale {
            (args.half_out, args.half_scale) = (parts[0].out, scale);
            args.half_rows = n.next_multiple_of(8) as u32;
        }
        args.x_rows = rows.at_most(n).next_multiple_of(8) as u32;
        (args.epilogue, args.scale, args.softcap) = (finish.epilogue, finish.scale, finish.softcap);
        (args.activation, args.alpha, args.limit) = finish.activation;
        if !rows.are_tokens() {
            (args.groups, args.tiles) = (self.at(Area::ExpertGroups), self.at(Area::ExpertTiles));
        }
        if matches!(rows, Rows::Sorted(_)) {
            args.order = self.at(Area::ExpertOrder);
        }
        let row_tiles: usize = match finish.epilogue {
            epilogue::GATED => parts[0].rows.div_ceil(TILE_ROWS / 2),
            _ => parts.iter().map(|p| p.rows.div_ceil(TILE_ROWS)).sum(),
        };
        args.row_tiles = row_tiles as u32;
        let kind = self.kind(&parts[0]);
        if self.kernels.has_hopper() && rows.are_tokens() && n >= EXPAND_TOKENS_MIN {
            return self.multiply_expanded(kind, args);
        }
        let tiles = row_tiles
            * match rows {
                Rows::Tokens | Rows::Left { .. } => n.div_ceil(TILES[0]),
                Rows::Gathered(slots) | Rows::Sorted(slots) => slots.tiles(),
            };
        let grid = if self.kernels.has_hopper() {
            let blocks = tiles.min(self.multiprocessors);
            Grid::line(blocks, 256 + 256, stages_bytes(TILES[0]))
        } else {
            Grid::line(tiles, 256, 2 * (128 + 128) * (pass_columns(kind) + 8) * 2)
        };
        self.kernels.matmul(kind, &self.stream, grid, &args)
    }

    /// Decodes the rows, or as many as there is room for, and multiplies.
    fn multiply_expanded(&self, kind: TensorType, mut args: Matmul) -> Result<(), DriverError> {
        let (n, all, cols) = (
            args.n_tokens as usize,
            args.row_tiles as usize,
            args.cols as usize,
        );
        args.w = self.at(Area::Expanded);
        let at_most = self.sizes.bytes(Area::Expanded) / expanded_tile_bytes(cols);
        let step = all.div_ceil(all.div_ceil(at_most.max(1)));
        for first in (0..all).step_by(step) {
            let now = step.min(all - first);
            (args.first_tile, args.row_tiles) = (first as u32, now as u32);
            args.w_rows = (now * TILE_ROWS) as u32;
            let grid = Grid {
                blocks: (now as u32, cols.div_ceil(PANEL * EXPAND_PANELS) as u32, 1),
                threads: 256,
                shared_bytes: pass_columns(kind) * TILE_ROWS * 2,
            };
            self.kernels.expand(kind, &self.stream, grid, &args)?;
            let cost = |i: usize| {
                (now * n.div_ceil(TILES[i])).div_ceil(self.multiprocessors) * TILE_COSTS[i]
            };
            let tokens = TILES[usize::from(cost(1) <= cost(0))];
            let blocks = (now * n.div_ceil(tokens)).min(self.multiprocessors);
            let grid = Grid::line(blocks, 256 + 32, stages_bytes(tokens));
            self.kernels
                .matmul_half(tokens, &self.stream, grid, &args)?;
        }
        Ok(())
    }

    /// Sorts the step's slots by expert and multiplies each expert's together: hidden rows, sorted, in `ExpertHidden`.
    pub(super) fn experts_in_of_many(
        &self,
        slots: Slots,
        from: Input,
        parts: [Part; 2],
        activation: ActivationNumbers,
    ) -> Result<(), DriverError> {
        let group = Group {
            ids: self.at(Area::ExpertIds),
            groups: self.at(Area::ExpertGroups),
            tiles: self.at(Area::ExpertTiles),
            order: self.at(Area::ExpertOrder),
            n_slots: slots.count() as u32,
            n_experts: slots.experts as u32,
            tile: EXPERT_TILE as u32,
            end: 0,
        };
        self.kernels.group(&self.stream, &group)?;
        let rows = Rows::Gathered(slots);
        self.to_half(slots.tokens, from, rows)?;
        let [gate, up] = parts;
        let finish = Finish::gated(activation);
        if self.kind(&gate) == self.kind(&up) && self.is_fused(finish) {
            return self.matmul(slots.tokens, &parts, finish, rows);
        }
        let up = Part {
            out: self.at(Area::ExpertAdded),
            ..up
        };
        self.matmul(slots.tokens, &[gate], Finish::SET, rows)?;
        self.matmul(slots.tokens, &[up], Finish::SET, rows)?;
        self.kernels.gate_rows(
            &self.stream,
            (gate.out, up.out),
            (slots.rows() * gate.rows) as u64,
            activation,
        )
    }

    /// The sorted hidden rows, each through its expert's second matrix, to the place of its slot.
    pub(super) fn experts_out_of_many(
        &self,
        slots: Slots,
        from: Input,
        part: Part,
    ) -> Result<(), DriverError> {
        let rows = Rows::Sorted(slots);
        self.to_half(slots.tokens, from, rows)?;
        self.matmul(slots.tokens, &[part], Finish::SET, rows)
    }

    /// Logits of a router, in f32.
    pub(super) fn router_of_many(
        &self,
        n: usize,
        from: Input,
        part: &Part,
    ) -> Result<(), DriverError> {
        let cols = part.cols.next_multiple_of(32);
        let args = Router {
            segment: self.segment(part),
            x: from.x,
            cols: cols as u32,
            width: from.width as u32,
            x_stride: from.stride as u32,
            n_tokens: n as u32,
        };
        // padded by four floats every 32 columns at most
        let shared_bytes = ROUTER_TOKENS * (cols + cols / 32 * 4 + 8) * 4;
        let grid = Grid::line(n.div_ceil(ROUTER_TOKENS), 256, shared_bytes);
        self.kernels
            .router(self.kind(part), &self.stream, grid, &args)
    }
}

/// Shared memory of `cuda/products.cuh`: stages of a panel of weights and of x, and what the alignment may take.
const fn stages_bytes(tokens: usize) -> usize {
    let stages = if tokens == 256 { 4 } else { 6 };
    stages * (TILE_ROWS + tokens) * PANEL * 2 + 1024
}

/// Columns that `cuda/matmul.cu` and `cuda/expand.cu` take at once: whole blocks or halves of one.
const fn pass_columns(kind: TensorType) -> usize {
    match kind {
        TensorType::Q2_K | TensorType::Q3_K | TensorType::Q6_K => 128,
        _ => 64,
    }
}
