//! The plan's operations as launches: one exhaustive match.
//!
//! Up to [`ROWS_MAX`] tokens an operation is one phase: `matvec` normalises, multiplies, activates and adds. More tokens are first
//! normalised into f16 (`norm_half`), then multiplied on the tensor cores (`matmul`).

use std::collections::BTreeSet;

use bytemuck::Zeroable;
use cudarc::driver::DriverError;

use super::launch::{
    ATTEND_GROUPS, ATTEND_MANY_WIDTHS, Address, Attend, AttendMany, Embed, Grid, Kernels, MATVEC_SHAPES, Matmul, Matvec,
    NormRows, Rope, SPLIT, Segment, TileSegment, epilogue, matvec_name, norm_kind,
};
use super::layout::PLANES_MAX;
use super::sizes::{Area, HALF_COLS_STEP, wide};
use super::{CudaDevice, KvType, ROWS_MAX, Rows, kv_name};
use crate::model::plan::{Matrix, NormOp, Op, Plan, RopeOp, Shape, TensorId};
use crate::model::spec::{Activation, Norm, RopeStyle};
use crate::model::weights::Weights;
use crate::quant::TensorType;

/// Multiplications that are enqueued before an event is recorded, about: some milliseconds of work.
const GROUP_MACS: u64 = 400_000_000_000;

/// Shared memory that the activations of a `matvec` may take.
const ACTIVATION_BYTES_MAX: usize = 200 * 1024;

/// Some rows of a matrix, and where their results go.
#[derive(Clone, Copy, Debug)]
struct Rows1 {
    matrix: Matrix,
    first_row: usize,
    rows: usize,
    bias: Option<TensorId>,
    out: Address,
    out_stride: usize,
}

/// Input of a projection.
#[derive(Clone, Copy, Debug)]
struct Input {
    x: Address,
    stride: usize,
    width: usize,
    norm: Option<NormOp>,
}

/// What is done with a projection's results.
#[derive(Clone, Copy, Debug)]
struct Finish {
    epilogue: u32,
    activation: (u32, f32, f32),
    scale: f32,
    softcap: f32,
}

impl Finish {
    const SET: Self = Self { epilogue: epilogue::SET, activation: (0, 0.0, 0.0), scale: 1.0, softcap: 0.0 };
    const ADD: Self = Self { epilogue: epilogue::ADD, ..Self::SET };
}

fn activation(a: Activation) -> (u32, f32, f32) {
    match a {
        Activation::SiluGated => (0, 0.0, 0.0),
    }
}

fn norm_numbers(norm: Norm) -> (u32, f32) {
    match norm {
        Norm::Rms { eps } => (norm_kind::RMS, eps),
    }
}

/// Finds every kernel that the plan will launch.
pub fn prepare(kernels: &mut Kernels, plan: &Plan, weights: &Weights, kv: KvType) -> Result<(), DriverError> {
    let of_matrices = plan.tensors.iter().enumerate().filter(|(_, t)| matches!(t.shape, Shape::Matrix(..)));
    let kinds: BTreeSet<&str> = of_matrices.map(|(i, _)| weights.get(TensorId(i)).kind.name()).collect();
    for kind in TensorType::ALL.into_iter().filter(|k| kinds.contains(k.name())) {
        for shape in MATVEC_SHAPES {
            kernels.prepare(&matvec_name(kind, shape))?;
        }
        kernels.prepare(&format!("matmul_{}", kind.name()))?;
        kernels.prepare(&format!("embed_{}", kind.name()))?;
    }
    let kv = kv_name(kv);
    for group in ATTEND_GROUPS {
        kernels.prepare(&format!("attend_{kv}_{group}"))?;
    }
    for width in ATTEND_MANY_WIDTHS {
        kernels.prepare(&format!("attend_many_{width}"))?;
    }
    kernels.prepare(&format!("rope_append_{kv}"))?;
    for name in ["attend_combine", "norm_rows", "norm_half", "gate_rows", "split", "choose_parts", "choose", "route", "combine"] {
        kernels.prepare(name)?;
    }
    Ok(())
}

impl CudaDevice {
    fn at(&self, area: Area) -> Address {
        self.scratch.at() + self.sizes.offset(area) as u64
    }

    fn tensor(&self, id: TensorId) -> Address {
        self.weights_buffer.at() + self.sizes.tensors_at[id.0] as u64
    }

    /// Where the frequencies of a rotary embedding lie.
    fn frequencies(&self, rope: &RopeOp) -> Address {
        let found = self.sizes.ropes.iter().find(|(r, _)| r == rope);
        found.map_or(0, |(_, at)| self.weights_buffer.at() + *at as u64)
    }

    /// Records a step of one token.
    pub(super) fn capture(&mut self) -> Result<(), DriverError> {
        // the first launches of a kernel may allocate, which a capture does not allow
        self.stream.wait()?;
        let all = 0..self.plan.ops.len();
        let graph = self.stream.capture(|| all.clone().try_for_each(|op| self.run_op(op, 1, Rows::Last)))?;
        self.graph = Some(graph);
        Ok(())
    }

    /// Enqueues operations from `first` on, some milliseconds' worth; the one that is next.
    pub(super) fn run_group(&self, first: usize, tokens: usize, rows: Rows) -> Result<usize, DriverError> {
        let mut macs = 0;
        let mut op = first;
        while op < self.plan.ops.len() && macs < GROUP_MACS {
            self.run_op(op, tokens, rows)?;
            macs += self.macs(&self.plan.ops[op]) * tokens as u64;
            op += 1;
        }
        Ok(op)
    }

    /// Multiplications of an operation for one token, about.
    fn macs(&self, op: &Op) -> u64 {
        let of = |m: &Matrix| (m.rows * m.cols) as u64;
        match op {
            Op::Embed { .. } | Op::Head { .. } => 0,
            Op::AttnIn { q, k, v, .. } => of(q) + of(k) + of(v),
            Op::Attend { n_heads, head_dim, .. } => (n_heads * head_dim * self.sizes.pages * 256) as u64,
            Op::AttnOut { proj } => of(proj),
            Op::FfnIn { gate, up, .. } => of(gate) + of(up),
            Op::FfnOut { down } => of(down),
        }
    }

    fn run_op(&self, op: usize, n: usize, rows: Rows) -> Result<(), DriverError> {
        let n_embd = self.plan.n_embd;
        let stream_in = |norm| Input { x: self.at(Area::X), stride: n_embd, width: n_embd, norm };
        match &self.plan.ops[op] {
            Op::Embed { table } => self.embed(*table, n),
            Op::AttnIn { layer, norm, q, k, v, head_dim, rope } => {
                let parts = [(q, Area::Q), (k, Area::K), (v, Area::V)]
                    .map(|(m, to)| self.whole(*m, None, self.at(to), m.rows));
                self.project(n, stream_in(Some(*norm)), &parts, Finish::SET)?;
                self.rope_append(*layer, (q.rows / head_dim, k.rows / head_dim, *head_dim), rope, n)
            }
            Op::Attend { layer, n_heads, n_kv_heads, head_dim, scale } => {
                self.attend(*layer, (*n_heads, *n_kv_heads, *head_dim), *scale, n)
            }
            Op::AttnOut { proj } => {
                let from = Input { x: self.at(Area::Heads), stride: proj.cols, width: proj.cols, norm: None };
                let part = self.whole(*proj, None, self.at(Area::X), n_embd);
                self.project(n, from, &[part], Finish::ADD)
            }
            Op::FfnIn { norm, gate, up, activation } => {
                let parts = [(gate, Area::Hidden), (up, Area::Up)]
                    .map(|(m, to)| self.whole(*m, None, self.at(to), m.rows));
                self.gated(n, stream_in(Some(*norm)), parts, self::activation(*activation))
            }
            Op::FfnOut { down } => {
                let from = Input { x: self.at(Area::Hidden), stride: down.cols, width: down.cols, norm: None };
                let part = self.whole(*down, None, self.at(Area::X), n_embd);
                self.project(n, from, &[part], Finish::ADD)
            }
            Op::Head { .. } => match rows {
                Rows::None => Ok(()),
                Rows::Last => self.head_rows(n - 1, 1),
                Rows::All if n <= ROWS_MAX => self.head_rows(0, n),
                Rows::All => Ok(()), // when they are asked for
            },
        }
    }

    /// Logits of some rows of the residual stream, at most [`ROWS_MAX`].
    pub(super) fn head_rows(&self, first: usize, n: usize) -> Result<(), DriverError> {
        let Some(Op::Head { norm, logits }) = self.plan.ops.last() else {
            return Ok(());
        };
        let n_embd = self.plan.n_embd;
        let x = self.at(Area::X) + (first * n_embd * 4) as u64;
        let part = self.whole(*logits, None, self.at(Area::Logits), logits.rows);
        self.project(n, Input { x, stride: n_embd, width: n_embd, norm: Some(*norm) }, &[part], Finish::SET)
    }

    fn whole(&self, matrix: Matrix, bias: Option<TensorId>, out: Address, out_stride: usize) -> Rows1 {
        Rows1 { matrix, first_row: 0, rows: matrix.rows, bias, out, out_stride }
    }

    fn embed(&self, table: Matrix, n: usize) -> Result<(), DriverError> {
        let kind = self.weights.get(table.tensor).kind;
        let args = Embed {
            table: self.planes(table.tensor, 0),
            step: self.at(Area::Step),
            x: self.at(Area::X),
            cols: table.cols.next_multiple_of(32) as u32,
            width: table.cols as u32,
            scale: 1.0,
            add: 0,
        };
        let grid = Grid { blocks: (table.cols.div_ceil(8 * 64) as u32, n as u32, 1), threads: 64, shared_bytes: 0 };
        self.kernels.embed(kind, &self.stream, grid, &args)
    }

    /// Where a row begins in each plane of a matrix.
    fn planes(&self, id: TensorId, row: usize) -> [Address; PLANES_MAX] {
        let base = self.tensor(id);
        let mut at = [base; PLANES_MAX];
        if let Some(layout) = &self.layouts[id.0] {
            for (at, p) in at.iter_mut().zip(&layout.planes) {
                *at = base + (p.at + row * p.row_bytes) as u64;
            }
        }
        at
    }

    /// Multiplies; parts of the same type together.
    fn project(&self, n: usize, from: Input, parts: &[Rows1], finish: Finish) -> Result<(), DriverError> {
        if n > ROWS_MAX {
            self.to_half(n, from)?;
        }
        let kind = |part: &Rows1| self.weights.get(part.matrix.tensor).kind;
        let mut rest = parts;
        while let Some(first) = rest.first() {
            let same = rest.iter().take_while(|p| kind(p) == kind(first)).count();
            self.project_same(n, from, kind(first), &rest[..same], finish)?;
            rest = &rest[same..];
        }
        Ok(())
    }

    fn project_same(&self, n: usize, from: Input, kind: TensorType, parts: &[Rows1], finish: Finish) -> Result<(), DriverError> {
        if n > ROWS_MAX {
            return self.matmul(n, from, kind, parts, finish);
        }
        let stride_bytes = shared_stride_bytes(kind, parts[0].matrix.cols.next_multiple_of(32));
        let at_once = (ACTIVATION_BYTES_MAX / stride_bytes).clamp(1, n);
        let mut first = 0;
        while first < n {
            let now = at_once.min(n - first);
            let input = Input { x: from.x + (first * from.stride * 4) as u64, ..from };
            let moved = |p: &Rows1| Rows1 { out: p.out + (first * p.out_stride * 4) as u64, ..*p };
            let parts: Vec<Rows1> = parts.iter().map(moved).collect();
            self.matvec(now, input, kind, &parts, finish, now * stride_bytes)?;
            first += now;
        }
        Ok(())
    }

    /// activation(gate, up): at once where both have the same type, otherwise after both.
    fn gated(&self, n: usize, from: Input, parts: [Rows1; 2], activation: (u32, f32, f32)) -> Result<(), DriverError> {
        let [gate, up] = &parts;
        if self.weights.get(gate.matrix.tensor).kind == self.weights.get(up.matrix.tensor).kind {
            return self.project(n, from, &parts, Finish { epilogue: epilogue::GATED, activation, ..Finish::SET });
        }
        self.project(n, from, &parts, Finish::SET)?;
        self.kernels.gate_rows(&self.stream, (gate.out, up.out), (n * gate.rows) as u64, activation)
    }

    fn matvec(&self, n: usize, from: Input, kind: TensorType, parts: &[Rows1], finish: Finish, shared_bytes: usize) -> Result<(), DriverError> {
        let rows: usize = parts.iter().map(|p| p.rows).sum();
        let pairs = finish.epilogue == epilogue::GATED;
        let warps = self.multiprocessors * 16;
        let shape = match n {
            1 if rows >= 4 * warps => (1, 4),
            1 if pairs || rows >= 2 * warps => (1, 2),
            1 => (1, 1),
            2 => (2, 2),
            _ => (8, 2),
        };
        let mut args = Matvec::zeroed();
        for (segment, part) in args.segments.iter_mut().zip(parts) {
            *segment = self.segment(part);
        }
        args.n_segments = parts.len() as u32;
        (args.cols, args.width) = (parts[0].matrix.cols.next_multiple_of(32) as u32, from.width as u32);
        (args.x, args.x_stride, args.n_tokens) = (from.x, from.stride as u32, n as u32);
        if let Some(norm) = from.norm {
            (args.norm, args.eps) = norm_numbers(norm.norm);
            args.norm_weight = self.tensor(norm.weight);
        }
        (args.epilogue, args.scale, args.softcap) = (finish.epilogue, finish.scale, finish.softcap);
        (args.activation, args.alpha, args.limit) = finish.activation;
        let groups = rows.div_ceil(shape.1) + parts.len();
        let a_multiprocessor = match shape {
            (1, 1) => 4,
            (1, 2) => 3,
            _ => 2,
        };
        let resident = a_multiprocessor.min((220 * 1024 / shared_bytes).max(1));
        let blocks = groups.div_ceil(8).min(self.multiprocessors * resident);
        self.kernels.matvec(kind, shape, &self.stream, Grid::line(blocks, 256, shared_bytes), &args)
    }

    fn segment(&self, part: &Rows1) -> Segment {
        Segment {
            planes: self.planes(part.matrix.tensor, part.first_row),
            expert_bytes: [0; PLANES_MAX],
            out: part.out,
            bias: part.bias.map_or(0, |id| self.tensor(id) + (part.first_row * 4) as u64),
            rows: part.rows as u32,
            out_stride: part.out_stride as u32,
        }
    }

    /// Normalises rows into f16.
    fn to_half(&self, n: usize, from: Input) -> Result<(), DriverError> {
        let stride = from.width.next_multiple_of(HALF_COLS_STEP);
        let mut args = NormRows {
            x: from.x,
            half_out: self.at(Area::Half),
            scales: self.at(Area::HalfScales),
            width: from.width as u32,
            cols: stride as u32,
            x_stride: from.stride as u32,
            out_stride: stride as u32,
            ..NormRows::zeroed()
        };
        if let Some(norm) = from.norm {
            (args.norm, args.eps) = norm_numbers(norm.norm);
            args.weight = self.tensor(norm.weight);
        }
        self.kernels.norm_half(&self.stream, n, &args)
    }

    fn matmul(&self, n: usize, from: Input, kind: TensorType, parts: &[Rows1], finish: Finish) -> Result<(), DriverError> {
        let pairs = finish.epilogue == epilogue::GATED;
        let mut args = Matmul::zeroed();
        for (segment, p) in args.segments.iter_mut().zip(parts) {
            let Segment { planes, out, bias, rows, out_stride, .. } = self.segment(p);
            *segment = TileSegment { planes, out, bias, rows, out_stride };
        }
        args.n_segments = parts.len() as u32;
        args.cols = parts[0].matrix.cols.next_multiple_of(32) as u32;
        (args.x, args.scales) = (self.at(Area::Half), self.at(Area::HalfScales));
        args.x_stride = from.width.next_multiple_of(HALF_COLS_STEP) as u32;
        args.n_tokens = n as u32;
        (args.epilogue, args.scale, args.softcap) = (finish.epilogue, finish.scale, finish.softcap);
        (args.activation, args.alpha, args.limit) = finish.activation;
        let tiles: usize = match parts {
            [first, _] if pairs => first.rows.div_ceil(64),
            parts => parts.iter().map(|p| p.rows.div_ceil(128)).sum(),
        };
        let pass = if pad_columns(kind) == 128 { 128 } else { 64 };
        let shared_bytes = 2 * (128 + 128) * (pass + 8) * 2;
        let grid = Grid { blocks: (n.div_ceil(128) as u32, tiles as u32, 1), threads: 256, shared_bytes };
        self.kernels.matmul(kind, &self.stream, grid, &args)
    }

    fn rope_append(&self, layer: usize, (n_heads, n_kv_heads, head_dim): (usize, usize, usize), rope: &RopeOp, n: usize) -> Result<(), DriverError> {
        let args = Rope {
            step: self.at(Area::Step),
            q: self.at(Area::Q),
            k: self.at(Area::K),
            v: self.at(Area::V),
            pool: self.pool.at(),
            page_elements: self.sizes.page_elements as u64,
            layer_offset: self.sizes.layers_at[layer] as u64,
            q_norm: 0,
            k_norm: 0,
            frequencies: self.frequencies(rope),
            n_heads: n_heads as u32,
            n_kv_heads: n_kv_heads as u32,
            head_dim: head_dim as u32,
            wide: wide(head_dim) as u32,
            q_stride: (n_heads * head_dim) as u32,
            kv_stride: (n_kv_heads * head_dim) as u32,
            dims: rope.rope.dims as u32,
            halves: match rope.rope.style {
                RopeStyle::Interleaved => 0,
                RopeStyle::Halves => 1,
            },
            magnitude: 1.0,
            eps: 0.0,
        };
        let blocks = ((n_heads + 2 * n_kv_heads) as u32, n as u32, 1);
        let threads = (head_dim.div_ceil(2).next_multiple_of(32)).clamp(32, 256) as u32;
        let grid = Grid { blocks, threads, shared_bytes: head_dim * 4 };
        self.kernels.rope_append(kv_name(self.kv), &self.stream, grid, &args)
    }

    fn attend(&self, layer: usize, (n_heads, n_kv_heads, head_dim): (usize, usize, usize), scale: f32, n: usize) -> Result<(), DriverError> {
        let many = ATTEND_MANY_WIDTHS.contains(&head_dim) && self.kv == KvType::F16;
        if n > ROWS_MAX && many {
            let args = AttendMany {
                step: self.at(Area::Step),
                q: self.at(Area::Q),
                pool: self.pool.at(),
                out: self.at(Area::Heads),
                sinks: 0,
                page_elements: self.sizes.page_elements as u64,
                layer_offset: self.sizes.layers_at[layer] as u64,
                n_heads: n_heads as u32,
                n_kv_heads: n_kv_heads as u32,
                q_stride: (n_heads * head_dim) as u32,
                out_stride: (n_heads * head_dim) as u32,
                window: 0,
                scale,
                softcap: 0.0,
                end: 0,
            };
            let shared_bytes = 3 * 64 * (head_dim + 8) * 2;
            let grid = Grid { blocks: (n.div_ceil(64) as u32, n_heads as u32, 1), threads: 128, shared_bytes };
            return self.kernels.attend_many(head_dim, &self.stream, grid, &args);
        }
        (0..n).step_by(ROWS_MAX).try_for_each(|first| {
            let rows = ROWS_MAX.min(n - first);
            self.attend_few(layer, (n_heads, n_kv_heads, head_dim), scale, first, rows)
        })
    }

    fn attend_few(&self, layer: usize, (n_heads, n_kv_heads, head_dim): (usize, usize, usize), scale: f32, first: usize, n: usize) -> Result<(), DriverError> {
        let stride = n_heads * head_dim;
        let moved = (first * stride * 4) as u64;
        let args = Attend {
            step: self.at(Area::Step),
            q: self.at(Area::Q) + moved,
            pool: self.pool.at(),
            partial: self.at(Area::Partial),
            out: self.at(Area::Heads) + moved,
            sinks: 0,
            page_elements: self.sizes.page_elements as u64,
            layer_offset: self.sizes.layers_at[layer] as u64,
            n_heads: n_heads as u32,
            n_kv_heads: n_kv_heads as u32,
            head_dim: head_dim as u32,
            wide: wide(head_dim) as u32,
            q_stride: stride as u32,
            out_stride: stride as u32,
            max_splits: self.sizes.splits() as u32,
            window: 0,
            scale,
            softcap: 0.0,
            first_token: first as u32,
            end: 0,
        };
        let group = n_heads / n_kv_heads;
        let built_for = ATTEND_GROUPS.into_iter().find(|g| *g >= group).unwrap_or(group);
        let splits = self.sizes.splits().min((2 * self.multiprocessors).div_ceil(n_kv_heads));
        let shared_bytes = (group * wide(head_dim) + group * SPLIT + 32 + 1024 + wide(head_dim)) * 4;
        let grid = Grid { blocks: (n_kv_heads as u32, splits as u32, n as u32), threads: SPLIT as u32, shared_bytes };
        self.kernels.attend(kv_name(self.kv), built_for, &self.stream, grid, &args)?;
        let grid = Grid { blocks: (n_heads as u32, n as u32, 1), threads: 128, shared_bytes: 0 };
        self.kernels.attend_combine(&self.stream, grid, &args)
    }
}

/// Shared memory that one token's activations take in `matvec`: `shared_stride` of `cuda/matvec.cu`, or a little more.
fn shared_stride_bytes(kind: TensorType, cols: usize) -> usize {
    match kind {
        TensorType::F32 | TensorType::F16 | TensorType::BF16 => (cols + cols / 32 * 4 + 8) * 4,
        _ => cols.div_ceil(128) * 4 * 80,
    }
}

/// Columns after which activations in shared memory are padded: 2^PAD of `cuda/quant.cuh`.
const fn pad_columns(kind: TensorType) -> usize {
    match kind {
        TensorType::Q2_K | TensorType::Q3_K | TensorType::Q6_K => 128,
        TensorType::Q4_K | TensorType::Q5_K => 64,
        TensorType::F32 | TensorType::F16 | TensorType::BF16 | TensorType::Q8_K => 32,
        TensorType::Q4_0 | TensorType::Q4_1 | TensorType::Q5_0 | TensorType::Q5_1 => 32,
        TensorType::Q8_0 | TensorType::IQ4_NL | TensorType::IQ4_XS | TensorType::MXFP4 => 32,
    }
}
