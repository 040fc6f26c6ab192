//! Running tiles: one exhaustive match over the stages. All calls of kernels are here.

use std::time::Instant;

use half::f16;

use super::integers::{self, Packed};
use super::kernels::{Attend, MatMul, padded};
use super::moe::add;
use super::packed::{GROUP, expand_row};
use super::program::{Activate, Buf, Of, Product, Stage};
use super::{CpuDevice, Rows, naive};
use crate::model::plan::{Join, Matrix, NormOp, TensorId};
use crate::model::spec::{Activation, Norm};
use crate::quant::TensorType;

impl CpuDevice {
    /// Runs tiles until the step is done (`true`) or the time is up.
    pub(super) fn run_until(&mut self, until: Instant) -> bool {
        loop {
            let Some(stage) = self.program.stages.get(self.current.stage).copied() else {
                return true;
            };
            if self.current.tile >= self.tiles(&stage) {
                self.current.stage += 1;
                self.current.tile = 0;
                continue;
            }
            self.run_tile(&stage, self.current.tile);
            self.current.tile += 1;
            if Instant::now() >= until {
                return self.current.stage + 1 == self.program.stages.len()
                    && self.current.tile >= self.tiles(&stage);
            }
        }
    }

    /// Runs a whole stage of the step.
    pub(super) fn run_stage(&mut self, stage: usize) {
        let stage = self.program.stages[stage];
        for tile in 0..self.tiles(&stage) {
            self.run_tile(&stage, tile);
        }
    }

    /// First token and number of tokens that a stage works on.
    fn span(&self, of: Of) -> (usize, usize) {
        let n = self.current.tokens.len();
        match (of, self.current.rows) {
            (Of::Tokens, _) | (Of::Rows, Rows::All) => (0, n),
            (Of::Rows, Rows::Last) => (n - 1, 1),
            (Of::Rows, Rows::None) => (0, 0),
        }
    }

    fn tiles(&self, stage: &Stage) -> usize {
        let n = self.current.tokens.len();
        match stage {
            Stage::Embed(..) | Stage::Angles(_) | Stage::Append(_) | Stage::Activate(..) => n,
            Stage::Share(..) | Stage::Join(_) | Stage::Choose(_) => n,
            Stage::Gather(_) | Stage::Combine => n,
            Stage::Norm(_, of) => self.span(*of).1,
            Stage::Logits(..) => self.span(Of::Rows).1,
            Stage::MatMul(p) => match self.span(p.of).1 {
                0 => 0,
                tokens => p.rows.div_ceil(self.rows_a_tile(p.tensor, p.cols, tokens)),
            },
            Stage::Attend(a) => n * a.n_heads / self.heads_a_tile(a),
            Stage::Group(_) => 1,
            Stage::Experts(e, ..) => self.tiles_of_experts(e),
            Stage::ActivateExperts(..) => self.places(),
        }
    }

    /// As many rows as keep a tile short and its expanded weights in cache; a multiple of 8 where that is possible, or of a group.
    pub(super) fn rows_a_tile(&self, tensor: TensorId, cols: usize, tokens: usize) -> usize {
        let by_time = self.isa.tile_macs_max() / (cols * tokens);
        if self.stored.has(tensor) {
            return (by_time - by_time % GROUP).max(GROUP);
        }
        let rows = by_time.min(self.expanded.len() / padded(cols));
        if rows >= 8 {
            rows - rows % 8
        } else {
            rows.max(1)
        }
    }

    fn run_tile(&mut self, stage: &Stage, tile: usize) {
        match stage {
            Stage::Embed(table, scale, positions) => self.embed(*table, *scale, *positions, tile),
            Stage::Angles(rope) => self.ropes[*rope].set(tile, self.current.position + tile),
            Stage::Norm(norm, of) => self.norm(norm, self.span(*of).0 + tile, tile),
            Stage::MatMul(product) => self.matmul(product, tile),
            Stage::Append(append) => self.append(append, tile),
            Stage::Attend(attention) => self.attend(attention, tile),
            Stage::Activate(activate, width) => {
                self.activate((Buf::Gate, Buf::Up), *activate, *width, tile);
            }
            Stage::Share(vector, from) => self.share(*vector, *from, tile),
            Stage::Join(join) => self.join(join, tile),
            Stage::Choose(choice) => self.choose(*choice, tile),
            Stage::Group(n_experts) => self.group(*n_experts),
            Stage::Gather(from) => self.gather(*from, tile),
            Stage::Experts(experts, from, to) => self.experts(experts, *from, *to, tile),
            Stage::ActivateExperts(activate, width) => {
                self.activate((Buf::ExpertGate, Buf::ExpertUp), *activate, *width, tile);
            }
            Stage::Combine => self.combine(tile),
            Stage::Logits(scale, softcap) => self.finish_logits(*scale, *softcap, tile),
        }
    }

    /// Some rows of a tensor as they are stored.
    pub(super) fn weight_rows(
        &self,
        tensor: TensorId,
        cols: usize,
        first: usize,
        rows: usize,
    ) -> (TensorType, &[u8]) {
        let weight = self.weights.get(tensor);
        let row_bytes = weight.kind.row_bytes(cols);
        let bytes = self.files.bytes(&weight);
        (weight.kind, &bytes[first * row_bytes..][..rows * row_bytes])
    }

    /// A row of a matrix as numbers, padded with zeros.
    fn expand(&self, table: Matrix, row: usize, out: &mut [f32]) {
        if let Some(group) = self.stored.groups(table.tensor, row, 1) {
            let (values, padding) = out.split_at_mut(table.cols);
            expand_row(group.kind, group.bytes, group.skip, values);
            padding.fill(0.0);
            return;
        }
        let (kind, bytes) = self.weight_rows(table.tensor, table.cols, row, 1);
        // SAFETY: the kernels were chosen for this CPU in `new`; slices carry their lengths.
        unsafe { (self.kernels.expand_row)(kind, bytes, out) }
    }

    pub(super) fn multiply(&self, job: &MatMul<'_>, dst: &mut [f32], expanded: &mut [f32]) {
        // SAFETY: as in `expand`.
        unsafe { (self.kernels.matmul)(job, dst, expanded) }
    }

    /// Rounds so many rows of a buffer, for products of integers.
    pub(super) fn round(&mut self, from: Buf, cols: usize, rows: usize) {
        let stride = self.strides[from as usize];
        let mut rounded = std::mem::take(&mut self.rounded);
        for (row, x) in self.bufs[from as usize]
            .chunks_exact(stride)
            .take(rows)
            .enumerate()
        {
            let to = &mut rounded[row..];
            // SAFETY: as in `expand`.
            unsafe { (self.kernels.round)(&x[..padded(cols)], to, integers::stride(rows)) }
        }
        self.rounded = rounded;
    }

    pub(super) fn multiply_packed(&self, job: &Packed<'_>, dst: &mut [f32], sums: &mut [f32]) {
        // SAFETY: as in `expand`.
        unsafe { (self.kernels.multiply)(job, dst, sums) }
    }

    /// Whether the stage before this one has rounded the same activations.
    fn is_rounded(&self, p: &Product) -> bool {
        let before = self.current.stage.checked_sub(1);
        match before.map(|stage| &self.program.stages[stage]) {
            Some(Stage::MatMul(q)) => {
                (q.from, q.of, q.to == q.from) == (p.from, p.of, false) && self.stored.has(q.tensor)
            }
            _ => false,
        }
    }

    pub(super) fn attend_f16(&self, job: &Attend<'_, f16>, scores: &mut [f32], to: &mut [f32]) {
        // SAFETY: as in `expand`.
        unsafe { (self.kernels.attend_f16)(job, scores, to) }
    }

    pub(super) fn attend_f32(&self, job: &Attend<'_, f32>, scores: &mut [f32], to: &mut [f32]) {
        // SAFETY: as in `expand`.
        unsafe { (self.kernels.attend_f32)(job, scores, to) }
    }

    pub(super) fn attend_q8_0(&self, job: &Attend<'_, i8>, scores: &mut [f32], to: &mut [f32]) {
        // SAFETY: as in `expand`.
        unsafe { (self.kernels.attend_q8_0)(job, scores, to) }
    }

    /// out = norm(x); both are padded.
    pub(super) fn normalise(&self, op: &NormOp, x: &[f32], out: &mut [f32]) {
        let weight = self.vector(op.weight);
        // SAFETY: as in `expand`.
        unsafe {
            match op.norm {
                Norm::Rms { eps } => (self.kernels.rms_norm)(x, weight, op.len, eps, out),
                Norm::Layer { eps } => (self.kernels.layer_norm)(x, weight, op.len, eps, out),
            }
        }
        if let Some(bias) = op.bias {
            add(out, self.vector(bias));
        }
    }

    fn embed(&mut self, table: Matrix, scale: f32, positions: Option<Matrix>, token: usize) {
        let stride = self.strides[Buf::X as usize];
        let mut x = std::mem::take(&mut self.bufs[Buf::X as usize]);
        let out = &mut x[token * stride..][..stride];
        self.expand(table, self.current.tokens[token] as usize, out);
        if scale != 1.0 {
            out.iter_mut().for_each(|v| *v *= scale);
        }
        if let Some(positions) = positions {
            let mut row = std::mem::take(&mut self.expanded);
            let row_of = &mut row[..stride];
            self.expand(positions, self.current.position + token, row_of);
            add(out, row_of);
            self.expanded = row;
        }
        self.bufs[Buf::X as usize] = x;
    }

    fn norm(&mut self, op: &NormOp, from: usize, to: usize) {
        let stride = self.strides[Buf::X as usize];
        let mut xn = std::mem::take(&mut self.bufs[Buf::Xn as usize]);
        let x = &self.bufs[Buf::X as usize][from * stride..][..stride];
        self.normalise(op, x, &mut xn[to * stride..][..stride]);
        self.bufs[Buf::Xn as usize] = xn;
    }

    fn matmul(&mut self, p: &Product, tile: usize) {
        let tokens = self.span(p.of).1;
        let rows = self.rows_a_tile(p.tensor, p.cols, tokens);
        let first_row = tile * rows;
        let rows = rows.min(p.rows - first_row);
        if tile == 0 && self.stored.has(p.tensor) && !self.is_rounded(p) {
            self.round(p.from, p.cols, tokens);
        }
        let stride = self.strides[p.to as usize];
        let mut expanded = std::mem::take(&mut self.expanded);
        let mut dst = std::mem::take(&mut self.bufs[p.to as usize]);
        let in_tensor = p.first_row + first_row;
        if let Some(groups) = self.stored.groups(p.tensor, in_tensor, rows) {
            let job = Packed {
                kind: groups.kind,
                groups: groups.bytes,
                cols: p.cols,
                skip: groups.skip,
                rows,
                x: &self.rounded,
                x_stride: integers::stride(tokens),
                tokens,
                store: p.store,
                first_row,
                dst_stride: stride,
            };
            self.multiply_packed(&job, &mut dst, &mut expanded);
        } else {
            let (kind, weights) = self.weight_rows(p.tensor, p.cols, in_tensor, rows);
            let job = MatMul {
                kind,
                weights,
                cols: p.cols,
                x: &self.bufs[p.from as usize],
                tokens,
                store: p.store,
                first_row,
                dst_stride: stride,
            };
            self.multiply(&job, &mut dst, &mut expanded);
        }
        if let Some(id) = p.bias {
            let bias = &self.vector(id)[in_tensor..][..rows];
            for row in dst.chunks_mut(stride).take(tokens) {
                add(&mut row[first_row..][..rows], bias);
            }
        }
        self.bufs[p.to as usize] = dst;
        self.expanded = expanded;
    }

    fn activate(&mut self, (gate, up): (Buf, Buf), activate: Activate, width: usize, row: usize) {
        let stride = self.strides[gate as usize];
        let range = row * stride..row * stride + padded(width);
        let mut hidden = std::mem::take(&mut self.bufs[gate as usize]);
        let values = &mut hidden[range.clone()];
        match activate {
            Activate::Plain(activation) => self.apply(activation, values, None),
            Activate::Gated(activation) => {
                self.apply(activation, values, Some(&self.bufs[up as usize][range]));
            }
        }
        self.bufs[gate as usize] = hidden;
    }

    /// x = activation(x), times `up` where there is one.
    fn apply(&self, activation: Activation, x: &mut [f32], up: Option<&[f32]>) {
        // SAFETY: as in `expand`.
        unsafe {
            match activation {
                Activation::Silu => (self.kernels.silu)(x),
                Activation::GeluTanh => (self.kernels.gelu_tanh)(x),
                Activation::GeluErf => x.iter_mut().for_each(|v| *v = naive::gelu_erf(*v)),
                Activation::ClampedSwiglu { alpha, limit } => {
                    return (self.kernels.clamped_swiglu)(x, up.unwrap_or_default(), alpha, limit);
                }
            }
        }
        for (x, up) in x.iter_mut().zip(up.unwrap_or_default()) {
            *x *= up;
        }
    }

    fn share(&mut self, vector: TensorId, from: Buf, token: usize) {
        let (stride, cols) = (self.strides[from as usize], self.plan.n_embd);
        let mut share = [0.0];
        let job = MatMul {
            kind: TensorType::F32,
            weights: bytemuck::cast_slice(&self.vector(vector)[..cols]),
            cols,
            x: &self.bufs[from as usize][token * stride..],
            tokens: 1,
            store: super::kernels::Store::Set,
            first_row: 0,
            dst_stride: 1,
        };
        self.multiply(&job, &mut share, &mut []);
        let share = naive::sigmoid(f64::from(share[0])) as f32;
        let stride = self.strides[Buf::Gate as usize];
        let hidden = &mut self.bufs[Buf::Gate as usize][token * stride..][..stride];
        hidden.iter_mut().for_each(|v| *v *= share);
    }

    fn join(&mut self, join: &Join, token: usize) {
        let stride = self.strides[Buf::X as usize];
        let range = token * stride..(token + 1) * stride;
        let mut x = std::mem::take(&mut self.bufs[Buf::X as usize]);
        let mut normed = std::mem::take(&mut self.expanded);
        let mut out = &self.bufs[Buf::Out as usize][range.clone()];
        if let Some(norm) = &join.norm {
            self.normalise(norm, out, &mut normed[..stride]);
            out = &normed[..stride];
        }
        for (x, y) in x[range].iter_mut().zip(out) {
            *x += join.scale * y;
        }
        self.expanded = normed;
        self.bufs[Buf::X as usize] = x;
    }

    fn finish_logits(&mut self, scale: f32, softcap: Option<f32>, row: usize) {
        let vocab = self.capacity.vocab;
        let logits = &mut self.bufs[Buf::Logits as usize][row * vocab..][..vocab];
        if scale != 1.0 {
            logits.iter_mut().for_each(|v| *v *= scale);
        }
        if let Some(cap) = softcap {
            // SAFETY: as in `expand`.
            unsafe { (self.kernels.softcap)(logits, cap) }
        }
    }
}
