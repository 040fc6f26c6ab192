//! Experts: which of them a token goes through, and the places of tokens in the buffers of experts.
//!
//! A place is a row of those buffers: one for each token and expert of it, those of an expert together, so that its weights are decoded once for
//! all of them. Which tokens share a step changes places and nothing else.

use super::CpuDevice;
use super::integers::{self, Packed};
use super::kernels::{MatMul, Store};
use super::program::{Buf, Choice};
use crate::model::plan::ExpertLinear;
use crate::model::spec::Gating;

/// The experts of a step's tokens.
pub struct Routing {
    /// Experts that a token goes through.
    n_used: usize,
    /// (n_used, tokens): experts, the largest logit first.
    chosen: Vec<usize>,
    /// (n_used, tokens): their shares.
    shares: Vec<f32>,
    /// (n_used, tokens): rows in the buffers of experts.
    places: Vec<usize>,
    /// (experts + 1): where each expert's places begin.
    begins: Vec<usize>,
    /// Experts that have any.
    active: Vec<usize>,
}

impl Routing {
    /// Room for steps of `tokens` tokens.
    pub fn new((experts, used): (usize, usize), tokens: usize) -> Self {
        Self {
            n_used: used,
            chosen: vec![0; used * tokens],
            shares: vec![0.0; used * tokens],
            places: vec![0; used * tokens],
            begins: vec![0; experts + 1],
            active: Vec::with_capacity(experts),
        }
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        size_of_val(self.chosen.as_slice())
            + size_of_val(self.shares.as_slice())
            + size_of_val(self.places.as_slice())
            + size_of_val(self.begins.as_slice())
            + self.active.capacity() * size_of::<usize>()
    }

    /// The `n_used` largest logits of a token and their shares; of equal ones the first is taken.
    pub fn choose(&mut self, token: usize, logits: &[f32], choice: Choice) {
        self.n_used = choice.n_used;
        let range = token * self.n_used..(token + 1) * self.n_used;
        let (chosen, shares) = (&mut self.chosen[range.clone()], &mut self.shares[range]);
        for slot in 0..chosen.len() {
            let left = (0..logits.len()).filter(|i| !chosen[..slot].contains(i));
            let best = left.reduce(|a, b| if logits[b] > logits[a] { b } else { a });
            chosen[slot] = best.unwrap_or(0);
        }
        let largest = f64::from(logits[chosen[0]]);
        let e = |expert: &usize| libm::exp(f64::from(logits[*expert]) - largest);
        let total: f64 = match choice.gating {
            Gating::SoftmaxOfAll => (0..logits.len()).map(|i| e(&i)).sum(),
            Gating::SoftmaxOfUsed => chosen.iter().map(e).sum(),
        };
        for (share, expert) in shares.iter_mut().zip(&*chosen) {
            *share = (e(expert) / total) as f32 * choice.scale;
        }
    }

    /// Gives each of so many tokens and each of its experts a place.
    pub fn group(&mut self, n_experts: usize, tokens: usize) {
        let entries = tokens * self.n_used;
        let begins = &mut self.begins[..=n_experts];
        begins.fill(0);
        for expert in &self.chosen[..entries] {
            begins[expert + 1] += 1;
        }
        self.active.clear();
        let busy = (0..n_experts).filter(|expert| begins[expert + 1] > 0);
        self.active.extend(busy);
        for expert in 0..n_experts {
            begins[expert + 1] += begins[expert];
        }
        for (place, expert) in self.places.iter_mut().zip(&self.chosen[..entries]) {
            *place = begins[*expert];
            begins[*expert] += 1;
        }
        // every beginning has moved to the next one's place
        begins.copy_within(..n_experts, 1);
        begins[0] = 0;
    }

    /// A token's experts in their order: which, its share, its place.
    pub fn of_token(&self, token: usize) -> impl Iterator<Item = (usize, f32, usize)> {
        let slots = token * self.n_used..(token + 1) * self.n_used;
        slots.map(|slot| (self.chosen[slot], self.shares[slot], self.places[slot]))
    }

    /// Places of an expert: the first, and how many.
    pub fn places_of(&self, expert: usize) -> (usize, usize) {
        let begin = self.begins[expert];
        (begin, self.begins[expert + 1] - begin)
    }

    /// Places of the busiest expert.
    fn most_places(&self) -> usize {
        let counts = self.active.iter().map(|expert| self.places_of(*expert).1);
        counts.max().unwrap_or(0)
    }
}

impl CpuDevice {
    pub(super) fn choose(&mut self, choice: Choice, token: usize) {
        let stride = self.strides[Buf::Router as usize];
        let row = &self.bufs[Buf::Router as usize][token * stride..][..choice.n_experts];
        self.routing.choose(token, row, choice);
    }

    pub(super) fn group(&mut self, n_experts: usize) {
        self.routing.group(n_experts, self.current.tokens.len());
    }

    /// Places that the step's tokens have.
    pub(super) fn places(&self) -> usize {
        self.current.tokens.len() * self.routing.n_used
    }

    pub(super) fn gather(&mut self, from: Buf, token: usize) {
        let stride = self.strides[Buf::ExpertX as usize];
        let mut to = std::mem::take(&mut self.bufs[Buf::ExpertX as usize]);
        let row = &self.bufs[from as usize][token * stride..][..stride];
        for (_, _, place) in self.routing.of_token(token) {
            to[place * stride..][..stride].copy_from_slice(row);
        }
        self.bufs[Buf::ExpertX as usize] = to;
    }

    /// Rows of one expert in a tile, and tiles of an expert.
    fn expert_tiles(&self, e: &ExpertLinear) -> (usize, usize) {
        let rows = self.rows_a_tile(e.tensor, e.cols, self.routing.most_places().max(1));
        (rows, e.rows.div_ceil(rows))
    }

    pub(super) fn tiles_of_experts(&self, e: &ExpertLinear) -> usize {
        self.routing.active.len() * self.expert_tiles(e).1
    }

    pub(super) fn experts(&mut self, e: &ExpertLinear, from: Buf, to: Buf, tile: usize) {
        let (rows, tiles) = self.expert_tiles(e);
        let expert = self.routing.active[tile / tiles];
        let first_row = tile % tiles * rows;
        let rows = rows.min(e.rows - first_row);
        let (place, places) = self.routing.places_of(expert);
        if tile == 0 && self.stored.has(e.tensor) {
            self.round(from, e.cols, self.places());
        }
        let stride = self.strides[to as usize];
        let mut expanded = std::mem::take(&mut self.expanded);
        let mut dst = std::mem::take(&mut self.bufs[to as usize]);
        let out = &mut dst[place * stride..];
        let in_tensor = expert * e.rows + first_row;
        if let Some(groups) = self.stored.groups(e.tensor, in_tensor, rows) {
            let job = Packed {
                kind: groups.kind,
                groups: groups.bytes,
                cols: e.cols,
                skip: groups.skip,
                rows,
                x: &self.rounded[place..],
                x_stride: integers::stride(self.places()),
                tokens: places,
                store: Store::Set,
                first_row,
                dst_stride: stride,
            };
            self.multiply_packed(&job, out, &mut expanded);
        } else {
            let (kind, weights) = self.weight_rows(e.tensor, e.cols, in_tensor, rows);
            let job = MatMul {
                kind,
                weights,
                cols: e.cols,
                x: &self.bufs[from as usize][place * self.strides[from as usize]..],
                tokens: places,
                store: Store::Set,
                first_row,
                dst_stride: stride,
            };
            self.multiply(&job, out, &mut expanded);
        }
        if let Some(id) = e.bias {
            let bias = &self.vector(id)[expert * e.rows + first_row..][..rows];
            for row in out.chunks_mut(stride).take(places) {
                add(&mut row[first_row..][..rows], bias);
            }
        }
        self.bufs[to as usize] = dst;
        self.expanded = expanded;
    }

    pub(super) fn combine(&mut self, token: usize) {
        let stride = self.strides[Buf::ExpertOut as usize];
        let mut out = std::mem::take(&mut self.bufs[Buf::Out as usize]);
        let row = &mut out[token * stride..][..stride];
        row.fill(0.0);
        for (_, share, place) in self.routing.of_token(token) {
            let result = &self.bufs[Buf::ExpertOut as usize][place * stride..][..stride];
            for (to, value) in row.iter_mut().zip(result) {
                *to += share * value;
            }
        }
        self.bufs[Buf::Out as usize] = out;
    }
}

/// to += values.
pub fn add(to: &mut [f32], values: &[f32]) {
    for (to, value) in to.iter_mut().zip(values) {
        *to += value;
    }
}
