//! The plan's operations as launches: one exhaustive match.
//!
//! Up to [`ROWS_MAX`] tokens an operation is one phase: `matvec` normalises, multiplies, activates and adds. More tokens are first
//! normalised into f16, then multiplied on the tensor cores; `project.rs` tells the two apart.

use std::time::Instant;

use bytemuck::Zeroable;
use cudarc::driver::DriverError;

use super::args::{Address, Combine, Embed, NormRows, Route};
use super::attention::{Heads, Scores};
use super::launch::Grid;
use super::project::{ActivationNumbers, Finish, Input, Part, activation, norm_numbers};
use super::prompt::{Rows as HalfRows, Slots};
use super::sizes::Area;
use super::{CudaDevice, ROWS_MAX, Rows};
use crate::model::plan::{ExpertLinear, Hidden, Join, Linear, Matrix, NormOp, Op, Qkv, TensorId};
use crate::model::spec::Gating;

/// Multiplications that are enqueued before an event is recorded, about: some milliseconds of work.
const GROUP_MACS: u64 = 400_000_000_000;

impl CudaDevice {
    pub(super) fn at(&self, area: Area) -> Address {
        self.scratch.at() + self.sizes.offset(area) as u64
    }

    pub(super) fn tensor(&self, id: TensorId) -> Address {
        self.weights_buffer.at() + self.sizes.tensors_at[id.0] as u64
    }

    pub(super) fn optional(&self, id: Option<TensorId>) -> Address {
        id.map_or(0, |id| self.tensor(id))
    }

    /// Records a step of one token.
    pub(super) fn capture(&mut self) -> Result<(), DriverError> {
        let begin = Instant::now();
        self.stream.wait()?;
        let mut all = 0..self.plan.ops.len();
        let graph = self
            .stream
            .capture(|| all.try_for_each(|op| self.run_op(op, 1, Rows::Last)))?;
        self.graph = Some(graph);
        self.load_parts.push(("capture", begin.elapsed()));
        Ok(())
    }

    /// Enqueues operations from `first` on, some milliseconds' worth; the one that is next.
    pub(super) fn run_group(
        &self,
        first: usize,
        tokens: usize,
        rows: Rows,
    ) -> Result<usize, DriverError> {
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
        let of = |l: &Linear| (l.matrix.rows * l.matrix.cols) as u64;
        let of_experts = |e: &ExpertLinear| (e.rows * e.cols) as u64;
        match op {
            Op::Embed { .. } | Op::Head { .. } => 0,
            Op::AttnIn {
                qkv: Qkv::Separate { q, k, v },
                ..
            } => of(q) + of(k) + of(v),
            Op::AttnIn {
                qkv: Qkv::Fused(all),
                ..
            } => of(all),
            Op::Attend {
                n_heads, head_dim, ..
            } => (n_heads * head_dim * self.sizes.pages * 256) as u64,
            Op::AttnOut { proj, .. } => of(proj),
            Op::FfnIn {
                hidden: Hidden::Gated { gate, up, .. },
                ..
            } => of(gate) + of(up),
            Op::FfnIn {
                hidden: Hidden::GatedFused { gate_up: l, .. } | Hidden::Plain { up: l, .. },
                ..
            } => of(l),
            Op::FfnOut { down, .. } => of(down),
            Op::Route { router, .. } => of(router),
            // a few of each expert's rows fill a tile
            Op::ExpertsIn { gate, up, .. } => 8 * (of_experts(gate) + of_experts(up)),
            Op::ExpertsOut { down, .. } => 8 * of_experts(down),
        }
    }

    /// The residual stream as input.
    fn stream(&self, norm: Option<NormOp>) -> Input {
        let n_embd = self.plan.n_embd;
        Input {
            x: self.at(Area::X),
            stride: n_embd,
            width: n_embd,
            norm,
        }
    }

    pub(super) fn run_op(&self, op: usize, n: usize, rows: Rows) -> Result<(), DriverError> {
        let this = &self.plan.ops[op];
        match this {
            Op::Embed {
                table,
                scale,
                positions,
            } => self.embed(*table, *scale, *positions, n),
            Op::AttnIn {
                layer,
                norm,
                qkv,
                n_heads,
                n_kv_heads,
                head_dim,
                q_norm,
                k_norm,
                rope,
            } => {
                let heads = Heads::new(*layer, (*n_heads, *n_kv_heads), *head_dim);
                self.project(n, self.stream(*norm), &self.qkv(qkv, heads), Finish::SET)?;
                self.rope_append(heads, (*q_norm, *k_norm), rope.as_ref(), n)
            }
            Op::Attend {
                layer,
                n_heads,
                n_kv_heads,
                head_dim,
                scale,
                window,
                sinks,
                softcap,
            } => {
                let heads = Heads::new(*layer, (*n_heads, *n_kv_heads), *head_dim);
                let scores = Scores::new(*scale, *window, *sinks, *softcap);
                self.attend(heads, scores, n, self.halves_of(this, n).is_some())
            }
            Op::AttnOut { proj, join } => self.join((op, n), Area::Heads, proj, join),
            Op::FfnIn {
                norm,
                hidden,
                share,
            } => self.ffn_in(n, *norm, (hidden, self.halves_of(this, n)), *share),
            Op::FfnOut { down, join } => self.join((op, n), Area::Hidden, down, join),
            Op::Route {
                norm,
                router,
                n_used,
                gating,
                scale,
            } => self.route(n, *norm, router, (*n_used, *gating, *scale)),
            Op::ExpertsIn {
                gate,
                up,
                activation: a,
            } => self.experts_in(n, gate, up, activation(*a), self.used(op)),
            Op::ExpertsOut { down, join } => self.experts_out(n, down, join, self.used(op)),
            Op::Head { .. } => self.head(n, rows),
        }
    }

    /// Logits of the rows that are asked for; of many rows they are computed when somebody reads them.
    fn head(&self, n: usize, rows: Rows) -> Result<(), DriverError> {
        match rows {
            Rows::Last => self.head_rows(n - 1, 1),
            Rows::All if n <= ROWS_MAX => self.head_rows(0, n),
            Rows::None | Rows::All => Ok(()),
        }
    }

    fn embed(
        &self,
        table: Matrix,
        scale: f32,
        positions: Option<Matrix>,
        n: usize,
    ) -> Result<(), DriverError> {
        let one = |table: Matrix, scale: f32, add: u32| {
            let args = Embed {
                table: self.rows_from(table.tensor, 0),
                step: self.at(Area::Step),
                x: self.at(Area::X),
                cols: table.cols.next_multiple_of(32) as u32,
                width: table.cols as u32,
                scale,
                add,
            };
            let kind = self.weights.get(table.tensor).kind;
            let blocks = (table.cols.div_ceil(8 * 64) as u32, n as u32, 1);
            self.kernels.embed(
                kind,
                &self.stream,
                Grid {
                    blocks,
                    threads: 64,
                    shared_bytes: 0,
                },
                &args,
            )
        };
        one(table, scale, 0)?;
        positions.map_or(Ok(()), |positions| one(positions, 1.0, 1))
    }

    /// The rows of queries, keys and values, in three tensors or one.
    fn qkv(&self, qkv: &Qkv, heads: Heads) -> [Part; 3] {
        let (q, kv) = (heads.n * heads.dim, heads.n_kv * heads.dim);
        let to = |area, width| (self.at(area), width);
        match qkv {
            Qkv::Separate { q: a, k: b, v: c } => [
                (a, to(Area::Q, q)),
                (b, to(Area::K, kv)),
                (c, to(Area::V, kv)),
            ]
            .map(|(l, to)| Part::whole(l, to)),
            Qkv::Fused(all) => [
                Part::rows(all, 0..q, to(Area::Q, q)),
                Part::rows(all, q..q + kv, to(Area::K, kv)),
                Part::rows(all, q + kv..q + 2 * kv, to(Area::V, kv)),
            ],
        }
    }

    /// What the halves are divided by that this operation's input was left as, if it was.
    fn left_to(&self, op: usize, n: usize) -> Option<f32> {
        let joins_heads = matches!(self.plan.ops[op], Op::AttnOut { .. });
        let made_it = |before: &&Op| match before {
            Op::Attend { .. } => joins_heads,
            Op::FfnIn { .. } => !joins_heads,
            _ => false,
        };
        let before = self.plan.ops[..op].iter().rev().find(made_it)?;
        self.halves_of(before, n)
    }

    /// x += scale × norm(proj · from + bias).
    fn join(
        &self,
        (op, n): (usize, usize),
        from: Area,
        proj: &Linear,
        join: &Join,
    ) -> Result<(), DriverError> {
        let left = self.left_to(op, n);
        let (width, n_embd) = (proj.matrix.cols, self.plan.n_embd);
        let at = self.at(from);
        let from = Input {
            x: at,
            stride: width,
            width,
            norm: None,
        };
        let project = |part: Part, finish: Finish| match left {
            Some(scale) => self.matmul(n, &[part], finish, HalfRows::Left { at, scale }),
            None => self.project(n, from, &[part], finish),
        };
        let Some(norm) = join.norm else {
            let part = Part::whole(proj, (self.at(Area::X), n_embd));
            return project(part, Finish::add(join.scale));
        };
        let added = self.at(Area::Added);
        project(Part::whole(proj, (added, n_embd)), Finish::SET)?;
        let args = NormRows {
            scale: join.scale,
            add: 1,
            ..self.norm_args(added, self.at(Area::X), &norm)
        };
        self.kernels.norm_rows(&self.stream, n, &args)
    }

    /// Rows of `norm.len` values, one after another.
    pub(super) fn norm_args(&self, x: Address, out: Address, norm: &NormOp) -> NormRows {
        let (kind, eps) = norm_numbers(norm.norm);
        NormRows {
            x,
            out,
            weight: self.tensor(norm.weight),
            bias: self.optional(norm.bias),
            width: norm.len as u32,
            cols: norm.len as u32,
            x_stride: norm.len as u32,
            out_stride: norm.len as u32,
            norm: kind,
            eps,
            scale: 1.0,
            ..NormRows::zeroed()
        }
    }

    fn ffn_in(
        &self,
        n: usize,
        norm: Option<NormOp>,
        (hidden, halves): (&Hidden, Option<f32>),
        share: Option<TensorId>,
    ) -> Result<(), DriverError> {
        let width = hidden.n_ff();
        let (to, second) = ((self.at(Area::Hidden), width), (self.at(Area::Up), width));
        let from = self.stream(norm);
        match hidden {
            Hidden::Gated {
                gate,
                up,
                activation: a,
            } => {
                let parts = [Part::whole(gate, to), Part::whole(up, second)];
                self.gated_or_halves(n, from, parts, (activation(*a), halves))?;
            }
            Hidden::GatedFused {
                gate_up,
                activation: a,
            } => {
                let parts = [
                    Part::rows(gate_up, 0..width, to),
                    Part::rows(gate_up, width..2 * width, second),
                ];
                self.gated_or_halves(n, from, parts, (activation(*a), halves))?;
            }
            Hidden::Plain { up, activation: a } => {
                self.project(
                    n,
                    from,
                    &[Part::whole(up, to)],
                    Finish::plain(activation(*a)),
                )?;
            }
        }
        let Some(share) = share else {
            return Ok(());
        };
        let mut args = NormRows {
            out_stride: width as u32,
            out: to.0,
            x: from.x,
            ..NormRows::zeroed()
        };
        (args.width, args.x_stride) = (from.width as u32, from.stride as u32);
        if let Some(norm) = norm {
            (args.norm, args.eps) = norm_numbers(norm.norm);
            (args.weight, args.bias) = (self.tensor(norm.weight), self.optional(norm.bias));
        }
        self.kernels
            .share_rows(&self.stream, n, &args, self.tensor(share))
    }

    /// activation(gate, up), as halves divided by so much, or f32.
    fn gated_or_halves(
        &self,
        n: usize,
        from: Input,
        parts: [Part; 2],
        (activation, halves): (ActivationNumbers, Option<f32>),
    ) -> Result<(), DriverError> {
        match halves {
            Some(scale) => self.gate_to_halves(n, from, &parts, (activation, scale)),
            None => self.gated(n, from, parts, activation),
        }
    }

    /// Logits of some rows of the residual stream, at most [`ROWS_MAX`].
    pub(super) fn head_rows(&self, first: usize, n: usize) -> Result<(), DriverError> {
        let Some(Op::Head {
            norm,
            logits,
            scale,
            softcap,
        }) = self.plan.ops.last()
        else {
            return Ok(());
        };
        let mut from = self.stream(Some(*norm));
        from.x += (first * self.plan.n_embd * 4) as u64;
        let part = Part::whole(logits, (self.at(Area::Logits), logits.matrix.rows));
        self.project(
            n,
            from,
            &[part],
            Finish {
                scale: *scale,
                softcap: softcap.unwrap_or(0.0),
                ..Finish::SET
            },
        )
    }

    /// Experts that a token goes through, as the layer's `Route` before says.
    fn used(&self, op: usize) -> usize {
        let before = self.plan.ops[..op].iter().rev();
        let used = |op: &Op| {
            if let Op::Route { n_used, .. } = op {
                Some(*n_used)
            } else {
                None
            }
        };
        before.into_iter().find_map(used).unwrap_or(1)
    }

    /// Which experts each token goes to, and norm(x) for them. The router is always multiplied in f32: a choice has no tolerance.
    fn route(
        &self,
        n: usize,
        norm: Option<NormOp>,
        router: &Linear,
        (n_used, gating, scale): (usize, Gating, f32),
    ) -> Result<(), DriverError> {
        let (n_embd, n_experts) = (self.plan.n_embd, router.matrix.rows);
        let (x, normed) = (self.at(Area::X), self.at(Area::Normed));
        let args = match norm {
            Some(norm) => self.norm_args(x, normed, &norm),
            None => {
                let width = n_embd as u32;
                NormRows {
                    x,
                    out: normed,
                    width,
                    x_stride: width,
                    out_stride: width,
                    scale: 1.0,
                    ..NormRows::zeroed()
                }
            }
        };
        self.kernels.norm_rows(&self.stream, n, &args)?;
        let from = Input {
            x: normed,
            ..self.stream(None)
        };
        let part = Part::whole(router, (self.at(Area::Router), n_experts));
        if n > ROWS_MAX {
            self.router_of_many(n, from, &part)?;
        } else {
            self.project(n, from, &[part], Finish::SET)?;
        }
        let args = Route {
            logits: self.at(Area::Router),
            bias: 0,
            ids: self.at(Area::ExpertIds),
            weights: self.at(Area::ExpertShares),
            n_experts: n_experts as u32,
            n_used: n_used as u32,
            n_tokens: n as u32,
            gating: match gating {
                Gating::SoftmaxOfUsed => 0,
                Gating::SoftmaxOfAll => 1,
            },
            scale,
            end: 0,
        };
        self.kernels.route(&self.stream, &args)
    }

    fn experts_in(
        &self,
        n: usize,
        gate: &ExpertLinear,
        up: &ExpertLinear,
        activation: ActivationNumbers,
        n_used: usize,
    ) -> Result<(), DriverError> {
        let from = Input {
            x: self.at(Area::Normed),
            ..self.stream(None)
        };
        let parts = [gate, up].map(|e| self.expert_part(e, self.at(Area::ExpertHidden)));
        if n > ROWS_MAX {
            let slots = Slots::of(n, n_used, gate);
            return self.experts_in_of_many(slots, from, parts, activation);
        }
        self.experts(n, from, &parts, Finish::gated(activation), n_used)
    }

    fn experts_out(
        &self,
        n: usize,
        down: &ExpertLinear,
        join: &Join,
        n_used: usize,
    ) -> Result<(), DriverError> {
        let from = Input {
            x: self.at(Area::ExpertHidden),
            stride: down.cols,
            width: down.cols,
            norm: None,
        };
        let part = self.expert_part(down, self.at(Area::ExpertAdded));
        if n > ROWS_MAX {
            self.experts_out_of_many(Slots::of(n, n_used, down), from, part)?;
        } else {
            self.experts_of_slots((n, n_used), from, &part)?;
        }
        let args = Combine {
            x: self.at(Area::X),
            y: self.at(Area::ExpertAdded),
            weights: self.at(Area::ExpertShares),
            width: self.plan.n_embd as u32,
            n_used: n_used as u32,
            factor: join.scale,
        };
        self.kernels.combine(&self.stream, n, args)
    }
}
