//! Attention: keys and values to their pages, and heads from them; `kv.rs` has the layout of a page.

use super::CpuDevice;
use super::kernels::{Attend, padded};
use super::kv::{KvElement, Pool};
use super::program::{Append, Attention, Buf};
use crate::device::PAGE_TOKENS;
use crate::model::plan::{KvShape, NormOp};

impl CpuDevice {
    /// All query heads of a key-value head together, unless so much is seen that a tile would take too long.
    pub(super) fn heads_a_tile(&self, a: &Attention) -> usize {
        let positions = self.current.position + self.current.tokens.len();
        let seen = a.window.map_or(positions, |window| positions.min(window));
        if seen * a.head_dim * a.group * 2 > self.isa.tile_macs_max() {
            1
        } else {
            a.group
        }
    }

    /// Normalises and rotates a token's heads in a buffer.
    fn prepare(&mut self, buf: Buf, heads: usize, norm: Option<&NormOp>, a: &Append, token: usize) {
        let stride = self.strides[buf as usize];
        let mut rows = std::mem::take(&mut self.bufs[buf as usize]);
        let row = &mut rows[token * stride..][..heads * a.head_dim];
        if let Some(op) = norm {
            let width = padded(op.len);
            let mut scratch = std::mem::take(&mut self.expanded);
            let (x, out) = scratch[..2 * width].split_at_mut(width);
            for part in row.chunks_exact_mut(op.len) {
                x[..op.len].copy_from_slice(part);
                x[op.len..].fill(0.0);
                self.normalise(op, x, out);
                part.copy_from_slice(&out[..op.len]);
            }
            self.expanded = scratch;
        }
        if let Some(rope) = a.rope {
            row.chunks_exact_mut(a.head_dim)
                .for_each(|head| self.ropes[rope].rotate(token, head));
        }
        self.bufs[buf as usize] = rows;
    }

    pub(super) fn append(&mut self, a: &Append, token: usize) {
        let kv = self.plan.kv[a.layer];
        let [q_norm, k_norm] = &a.norms;
        self.prepare(Buf::Q, a.n_heads, q_norm.as_ref(), a, token);
        self.prepare(Buf::K, kv.n_kv_heads, k_norm.as_ref(), a, token);
        let position = self.current.position + token;
        let page = self.current.pages[position / PAGE_TOKENS].0 as usize * self.page_elements;
        let at = (page + self.layer_offsets[a.layer], position % PAGE_TOKENS);
        let k = &self.bufs[Buf::K as usize][token * self.strides[Buf::K as usize]..];
        let v = &self.bufs[Buf::V as usize][token * self.strides[Buf::V as usize]..];
        match &mut self.pool {
            Pool::F16(pool) => write_kv(pool, kv, at, k, v),
            Pool::F32(pool) => write_kv(pool, kv, at, k, v),
            Pool::Q8_0(pool) => write_kv(pool, kv, at, k, v),
        }
    }

    pub(super) fn attend(&mut self, a: &Attention, tile: usize) {
        let kv = self.plan.kv[a.layer];
        let (d, heads) = (kv.head_dim, self.heads_a_tile(a));
        let tiles = a.n_heads / heads;
        let (token, first_head) = (tile / tiles, tile % tiles * heads);
        let layer = self.layer_offsets[a.layer];
        let layout = self.pool.head_layout(d);
        let (key, value) = layout.head(kv, layer, first_head / a.group);
        let mut out = std::mem::take(&mut self.bufs[Buf::Heads as usize]);
        let mut scores = std::mem::take(&mut self.scores);
        let pages = &self.current.pages;
        let page_elements = self.page_elements;
        let key_offsets = |page: usize| pages[page].0 as usize * page_elements + key;
        let value_offsets = |page: usize| pages[page].0 as usize * page_elements + value;
        let at = |buf: Buf| token * self.strides[buf as usize] + first_head * d;
        let to = &mut out[at(Buf::Heads)..][..heads * d];
        let positions = self.current.position + token + 1;
        macro_rules! job {
            ($pool:expr) => {
                Attend {
                    queries: &self.bufs[Buf::Q as usize][at(Buf::Q)..][..heads * d],
                    pool: $pool,
                    key_offsets: &key_offsets,
                    value_offsets: &value_offsets,
                    value_stride: layout.value_stride,
                    head_dim: d,
                    first: a
                        .window
                        .map_or(0, |window| positions.saturating_sub(window)),
                    positions,
                    scale: a.scale,
                    softcap: a.softcap,
                    sinks: a
                        .sinks
                        .map_or(&[], |id| &self.vector(id)[first_head..][..heads]),
                }
            };
        }
        match &self.pool {
            Pool::F16(pool) => self.attend_f16(&job!(pool), &mut scores, to),
            Pool::F32(pool) => self.attend_f32(&job!(pool), &mut scores, to),
            Pool::Q8_0(pool) => self.attend_q8_0(&job!(pool), &mut scores, to),
        }
        self.scores = scores;
        self.bufs[Buf::Heads as usize] = out;
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
    let layout = E::layout(d);
    for head in 0..kv.n_kv_heads {
        let (keys, values) = layout.head(kv, page_layer, head);
        E::write_key(
            &mut pool[keys..][..layout.keys],
            position,
            &k[head * d..][..d],
        );
        E::write_value(
            &mut pool[values..][..layout.values],
            position,
            &v[head * d..][..d],
        );
    }
}
