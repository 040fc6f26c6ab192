//! Running tiles: one exhaustive match over the stages.
//!
//! A page of the KV pool holds, layer by layer, for each key-value head its keys as (PAGE_TOKENS, head_dim), positions innermost, so that
//! scores of sixteen positions are one vector, then for each head its values as (head_dim rounded up to 16, PAGE_TOKENS).

use std::time::Instant;

use super::kernels::{Attend, KvElement, MatMul, Store, padded};
use super::program::{Buf, Of, Stage};
use super::{CpuDevice, Pool, Rows};
use crate::device::PAGE_TOKENS;
use crate::model::plan::{KvShape, Matrix, NormOp};
use crate::model::spec::{Activation, Norm};

/// Where one head's keys and values lie inside a page.
fn head_offsets(kv: KvShape, layer_offset: usize, head: usize) -> (usize, usize) {
    let (key, value) = (
        kv.head_dim * PAGE_TOKENS,
        kv.head_dim.next_multiple_of(16) * PAGE_TOKENS,
    );
    (
        layer_offset + head * key,
        layer_offset + kv.n_kv_heads * key + head * value,
    )
}

impl CpuDevice {
    /// Runs tiles until the step is done (`true`) or the time is up.
    pub(super) fn run_until(&mut self, until: Instant) -> bool {
        loop {
            let Some(stage) = self.program.stages.get(self.current.stage) else {
                return true;
            };
            let stage = stage.clone();
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
        let stage = self.program.stages[stage].clone();
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
            Stage::Embed(_) | Stage::Angles(_) | Stage::Append { .. } | Stage::Activate(..) => n,
            Stage::Norm(_, of) => self.span(*of).1,
            Stage::MatMul { matrix, of, .. } => match self.span(*of).1 {
                0 => 0,
                tokens => matrix.rows.div_ceil(self.rows_a_tile(*matrix, tokens)),
            },
            Stage::Attend {
                n_heads,
                n_kv_heads,
                head_dim,
                ..
            } => n * n_heads / self.heads_a_tile(n_heads / n_kv_heads, *head_dim),
        }
    }

    /// As many rows as keep a tile short and its expanded weights in cache; a multiple of 8 where that is possible.
    fn rows_a_tile(&self, matrix: Matrix, tokens: usize) -> usize {
        let by_time = self.isa.tile_macs_max() / (matrix.cols * tokens);
        let rows = by_time.min(self.expanded.len() / padded(matrix.cols));
        if rows >= 8 {
            rows - rows % 8
        } else {
            rows.max(1)
        }
    }

    /// All query heads of a key-value head together, unless the context is so long that a tile would take too long.
    fn heads_a_tile(&self, group: usize, head_dim: usize) -> usize {
        let positions = self.current.position + self.current.tokens.len();
        if positions * head_dim * group * 2 > self.isa.tile_macs_max() {
            1
        } else {
            group
        }
    }

    fn run_tile(&mut self, stage: &Stage, tile: usize) {
        match stage {
            Stage::Embed(table) => self.embed(*table, tile),
            Stage::Angles(rope) => self.ropes[*rope].set(tile, self.current.position + tile),
            Stage::Norm(norm, of) => self.norm(*norm, self.span(*of).0 + tile, tile),
            Stage::MatMul {
                matrix,
                from,
                to,
                store,
                of,
            } => self.matmul(*matrix, (*from, *to, *store), self.span(*of).1, tile),
            Stage::Append {
                layer,
                head_dim,
                n_heads,
                rope,
            } => self.append(*layer, *head_dim, *n_heads, *rope, tile),
            Stage::Attend {
                layer,
                n_heads,
                n_kv_heads,
                scale,
                head_dim,
            } => {
                let heads = self.heads_a_tile(n_heads / n_kv_heads, *head_dim);
                let (token, first) = (tile / (n_heads / heads), tile % (n_heads / heads) * heads);
                self.attend(
                    *layer,
                    token,
                    first..first + heads,
                    n_heads / n_kv_heads,
                    *scale,
                );
            }
            Stage::Activate(activation, width) => self.activate(*activation, *width, tile),
        }
    }

    fn embed(&mut self, table: Matrix, token: usize) {
        let weight = self.weights.get(table.tensor);
        let row_bytes = weight.kind.row_bytes(table.cols);
        let row = self.current.tokens[token] as usize;
        let bytes = &(*self.file).as_ref()[weight.offset + row * row_bytes..][..row_bytes];
        let stride = self.strides[Buf::X as usize];
        let out = &mut self.bufs[Buf::X as usize][token * stride..][..stride];
        // SAFETY: the kernels were chosen for this CPU in `new`; slices carry their lengths.
        unsafe { (self.kernels.expand_row)(weight.kind, bytes, out) }
    }

    fn norm(&mut self, op: NormOp, from: usize, to: usize) {
        let (n, stride) = (self.plan.n_embd, self.strides[Buf::X as usize]);
        let mut xn = std::mem::take(&mut self.bufs[Buf::Xn as usize]);
        let x = &self.bufs[Buf::X as usize][from * stride..][..stride];
        match op.norm {
            // SAFETY: as in `embed`.
            Norm::Rms { eps } => unsafe {
                (self.kernels.rms_norm)(
                    x,
                    self.vector(op.weight),
                    n,
                    eps,
                    &mut xn[to * stride..][..stride],
                )
            },
        }
        self.bufs[Buf::Xn as usize] = xn;
    }

    fn matmul(
        &mut self,
        matrix: Matrix,
        (from, to, store): (Buf, Buf, Store),
        tokens: usize,
        tile: usize,
    ) {
        let weight = self.weights.get(matrix.tensor);
        let row_bytes = weight.kind.row_bytes(matrix.cols);
        let rows = self.rows_a_tile(matrix, tokens);
        let first_row = tile * rows;
        let rows = rows.min(matrix.rows - first_row);
        let mut dst = std::mem::take(&mut self.bufs[to as usize]);
        let job = MatMul {
            kind: weight.kind,
            weights: &(*self.file).as_ref()[weight.offset + first_row * row_bytes..]
                [..rows * row_bytes],
            cols: matrix.cols,
            x: &self.bufs[from as usize],
            tokens,
            store,
            first_row,
            dst_stride: self.strides[to as usize],
        };
        // SAFETY: as in `embed`.
        unsafe { (self.kernels.matmul)(&job, &mut dst, &mut self.expanded) }
        self.bufs[to as usize] = dst;
    }

    fn append(&mut self, layer: usize, head_dim: usize, n_heads: usize, rope: usize, token: usize) {
        let rope = &self.ropes[rope];
        let kv = self.plan.kv[layer];
        let q = &mut self.bufs[Buf::Q as usize][token * self.strides[Buf::Q as usize]..]
            [..n_heads * head_dim];
        q.chunks_exact_mut(head_dim)
            .for_each(|head| rope.rotate(token, head));
        let k = &mut self.bufs[Buf::K as usize][token * self.strides[Buf::K as usize]..]
            [..kv.n_kv_heads * head_dim];
        k.chunks_exact_mut(head_dim)
            .for_each(|head| rope.rotate(token, head));
        let position = self.current.position + token;
        let page = self.current.pages[position / PAGE_TOKENS].0 as usize * self.page_elements;
        let at = (page + self.layer_offsets[layer], position % PAGE_TOKENS);
        let k = &self.bufs[Buf::K as usize][token * self.strides[Buf::K as usize]..];
        let v = &self.bufs[Buf::V as usize][token * self.strides[Buf::V as usize]..];
        match &mut self.pool {
            Pool::F16(pool) => write_kv(pool, kv, at, k, v),
            Pool::F32(pool) => write_kv(pool, kv, at, k, v),
        }
    }

    fn attend(
        &mut self,
        layer: usize,
        token: usize,
        heads: std::ops::Range<usize>,
        group: usize,
        scale: f32,
    ) {
        let kv = self.plan.kv[layer];
        let d = kv.head_dim;
        let (key, value) = head_offsets(kv, self.layer_offsets[layer], heads.start / group);
        let pages = &self.current.pages;
        let page_elements = self.page_elements;
        let key_offsets = |page: usize| pages[page].0 as usize * page_elements + key;
        let value_offsets = |page: usize| pages[page].0 as usize * page_elements + value;
        let mut out = std::mem::take(&mut self.bufs[Buf::Heads as usize]);
        let to = &mut out[token * self.strides[Buf::Heads as usize] + heads.start * d..]
            [..heads.len() * d];
        let queries = &self.bufs[Buf::Q as usize]
            [token * self.strides[Buf::Q as usize] + heads.start * d..][..heads.len() * d];
        let positions = self.current.position + token + 1;
        macro_rules! job {
            ($pool:expr) => {
                Attend {
                    queries,
                    pool: $pool,
                    key_offsets: &key_offsets,
                    value_offsets: &value_offsets,
                    value_stride: d.next_multiple_of(16),
                    head_dim: d,
                    positions,
                    scale,
                }
            };
        }
        // SAFETY: as in `embed`.
        unsafe {
            match &self.pool {
                Pool::F16(pool) => (self.kernels.attend_f16)(&job!(pool), &mut self.scores, to),
                Pool::F32(pool) => (self.kernels.attend_f32)(&job!(pool), &mut self.scores, to),
            }
        }
        self.bufs[Buf::Heads as usize] = out;
    }

    fn activate(&mut self, activation: Activation, width: usize, token: usize) {
        let stride = self.strides[Buf::Gate as usize];
        let range = token * stride..token * stride + padded(width);
        let mut gate = std::mem::take(&mut self.bufs[Buf::Gate as usize]);
        match activation {
            // SAFETY: as in `embed`.
            Activation::SiluGated => unsafe {
                (self.kernels.silu_gated)(
                    &mut gate[range.clone()],
                    &self.bufs[Buf::Up as usize][range],
                )
            },
        }
        self.bufs[Buf::Gate as usize] = gate;
    }
}

/// Writes one position's keys and values (n_kv_heads × head_dim each) into its page.
fn write_kv<E: KvElement>(
    pool: &mut [E],
    kv: KvShape,
    (page_layer, position): (usize, usize),
    k: &[f32],
    v: &[f32],
) {
    let d = kv.head_dim;
    for head in 0..kv.n_kv_heads {
        let (key, value) = head_offsets(kv, page_layer, head);
        for (i, k) in k[head * d..][..d].iter().enumerate() {
            pool[key + i * PAGE_TOKENS + position] = E::from_f32(*k);
        }
        let row = &mut pool[value + position * d.next_multiple_of(16)..][..d];
        for (to, v) in row.iter_mut().zip(&v[head * d..]) {
            *to = E::from_f32(*v);
        }
    }
}
