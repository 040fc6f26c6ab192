//! Attention as launches: rotation and append, splits for a few tokens, tiles for many.

use bytemuck::Zeroable;
use cudarc::driver::DriverError;

use super::args::{Address, Attend, AttendMany, Rope};
use super::launch::{ATTEND_HOPPER, ATTEND_MANY, Grid, SPLIT};
use super::sizes::{Area, head_elements, wide};
use super::{CudaDevice, Job, KvType, PAGE_TOKENS, ROWS_MAX};
use crate::model::plan::{NormOp, Op, RopeOp, TensorId};
use crate::model::spec::{Norm, RopeStyle};

/// The heads of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) layer: usize,
    pub(super) n: usize,
    pub(super) n_kv: usize,
    pub(super) dim: usize,
}

/// Which scores attention keeps and how it changes them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scores {
    pub(super) scale: f32,
    pub(super) window: Option<usize>,
    pub(super) sinks: Option<TensorId>,
    pub(super) softcap: Option<f32>,
}

/// Heads of a layer that one launch of `attend` works on.
#[derive(Clone, Copy, Debug)]
struct Portion {
    /// The first query head, and how many.
    head: usize,
    n: usize,
    /// The first key head, and how many.
    kv_head: usize,
    n_kv: usize,
}

/// The kernel that attends many tokens: `attend_hopper` or `attend_many`, for heads of a width.
#[derive(Clone, Copy, Debug)]
enum Tiles {
    /// 128 queries a block, by two warpgroups.
    Warpgroups { width: usize },
    /// So many queries a block, by warps.
    Warps { width: usize, queries: usize },
}

impl Tiles {
    fn name(self) -> String {
        match self {
            Self::Warpgroups { width } => format!("attend_hopper_{width}"),
            Self::Warps { width, queries } => format!("attend_many_{width}_{queries}"),
        }
    }

    /// Shared memory of a block: its queries, and two tiles of keys and values; rows of `attend_many` are padded by 16 bytes.
    const fn shared_bytes(self) -> usize {
        match self {
            Self::Warpgroups { width } => {
                let keys = if width > 128 { 64 } else { 128 };
                (128 + 4 * keys) * width * 2
            }
            Self::Warps { width, queries } => (queries + 4 * 64) * (width + 8) * 2,
        }
    }
}

/// The kernels that attend many tokens.
pub(super) fn many_names(hopper: bool) -> impl Iterator<Item = String> {
    let warpgroups = ATTEND_HOPPER
        .into_iter()
        .map(|width| Tiles::Warpgroups { width })
        .filter(move |_| hopper);
    let warps = ATTEND_MANY
        .into_iter()
        .map(|(width, queries)| Tiles::Warps { width, queries });
    warpgroups.chain(warps).map(Tiles::name)
}

/// Query heads that share a key head, for which `attend` was built, and teams of [`SPLIT`] threads that they are dealt out among.
const ATTEND_GROUPS: [(usize, usize); 4] = [(1, 1), (4, 2), (8, 2), (16, 4)];

/// Widths of a head that instances of `attend` know; they have all others, too. Of f32 there is none.
const ATTEND_WIDTHS: [usize; 2] = [64, 128];

/// Threads of a block of `rope_append`: a warp a head.
const ROPE_THREADS: u32 = 128;

/// Most slots of the ring of `cuda/attend.cu`.
const SLOTS_MAX: usize = 4;

/// Bytes of a slot of it.
const PIECE_BYTES: usize = 16 * 1024;

/// Most query heads of a key head in one launch.
const GROUP_MAX: usize = ATTEND_GROUPS[ATTEND_GROUPS.len() - 1].0;

/// An instance of `attend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AttendInstance {
    /// Most query heads of a key head.
    group: usize,
    /// Of a head; 0 for any.
    width: usize,
}

impl AttendInstance {
    /// All that there are for pages of such numbers.
    pub(super) fn all(kv: KvType) -> impl Iterator<Item = Self> {
        let known = match kv {
            KvType::F16 | KvType::Q8_0 => ATTEND_WIDTHS.as_slice(),
            KvType::F32 => &[],
        };
        let widths = known.iter().copied().chain([0]);
        widths.flat_map(|width| ATTEND_GROUPS.map(|(group, _)| Self { group, width }))
    }

    /// Teams of [`SPLIT`] threads of a block.
    fn teams(self) -> usize {
        let of = ATTEND_GROUPS.iter().find(|(group, _)| *group == self.group);
        of.map_or(1, |(_, teams)| *teams)
    }

    /// "attend_f16_4_128".
    pub(super) fn name(self, kv: KvType) -> String {
        format!("attend_{}_{}_{}", kv.name(), self.group, self.width)
    }
}

impl Heads {
    /// `n` query heads over `n_kv` key heads of width `dim`.
    pub(super) const fn new(layer: usize, (n, n_kv): (usize, usize), dim: usize) -> Self {
        Self {
            layer,
            n,
            n_kv,
            dim,
        }
    }
}

impl Scores {
    /// `scale` × q·k, of the last `window` positions, capped at `softcap`, beside a logit a head in `sinks`.
    pub(super) const fn new(
        scale: f32,
        window: Option<usize>,
        sinks: Option<TensorId>,
        softcap: Option<f32>,
    ) -> Self {
        Self {
            scale,
            window,
            sinks,
            softcap,
        }
    }
}

impl CudaDevice {
    /// Where the frequencies of a rotary embedding lie.
    fn frequencies(&self, rope: &RopeOp) -> Address {
        let found = self.sizes.ropes.iter().find(|(r, _)| r == rope);
        found.map_or(0, |(_, at)| self.weights_buffer.at() + *at as u64)
    }

    /// A norm of each head goes with the rotation: its weight and eps.
    fn norm_of_head(&self, norm: Option<NormOp>, dim: usize) -> Option<(Address, f32)> {
        match norm? {
            NormOp {
                norm: Norm::Rms { eps },
                weight,
                bias: None,
                len,
            } if len == dim => Some((self.tensor(weight), eps)),
            _ => None,
        }
    }

    /// A norm of all heads together is done now.
    fn norm_together(
        &self,
        norm: Option<NormOp>,
        x: Address,
        (count, dim): (usize, usize),
    ) -> Result<(), DriverError> {
        match norm {
            Some(norm) if self.norm_of_head(Some(norm), dim).is_none() => {
                let args = self.norm_args(x, x, &norm);
                self.kernels
                    .norm_rows(&self.stream, count * dim / norm.len, &args)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether `attend` turns queries and keys itself: for one token, and where one launch has all heads of a group.
    fn turns_itself(&self, heads: Heads, n: usize) -> bool {
        n == 1 && !matches!(self.job, Job::Trace) && heads.n / heads.n_kv <= GROUP_MAX
    }

    /// Norms, rotation and append; what `attend` does itself is left to it.
    pub(super) fn rope_append(
        &self,
        heads: Heads,
        norms: (Option<NormOp>, Option<NormOp>),
        rope: Option<&RopeOp>,
        n: usize,
    ) -> Result<(), DriverError> {
        self.norm_together(norms.0, self.at(Area::Q), (n * heads.n, heads.dim))?;
        self.norm_together(norms.1, self.at(Area::K), (n * heads.n_kv, heads.dim))?;
        if self.turns_itself(heads, n) {
            return Ok(());
        }
        let args = self.rope_args(heads, norms, rope);
        if n > ROWS_MAX && self.kv != KvType::Q8_0 && has_quads(heads.dim, &args) {
            return self
                .kernels
                .rope_many(self.kv.name(), &self.stream, n, &args);
        }
        let warps = ROPE_THREADS as usize / 32;
        let blocks = (heads.n + 2 * heads.n_kv).div_ceil(warps);
        let grid = Grid {
            blocks: (blocks as u32, n as u32, 1),
            threads: ROPE_THREADS,
            shared_bytes: (args.dims as usize + warps * heads.dim) * 4,
        };
        self.kernels
            .rope_append(self.kv.name(), &self.stream, grid, &args)
    }

    fn rope_args(
        &self,
        heads: Heads,
        norms: (Option<NormOp>, Option<NormOp>),
        rope: Option<&RopeOp>,
    ) -> Rope {
        let Heads {
            layer,
            n,
            n_kv,
            dim,
        } = heads;
        let (q_norm, q_eps) = self.norm_of_head(norms.0, dim).unwrap_or_default();
        let (k_norm, k_eps) = self.norm_of_head(norms.1, dim).unwrap_or_default();
        Rope {
            step: self.at(Area::Step),
            q: self.at(Area::Q),
            k: self.at(Area::K),
            v: self.at(Area::V),
            pool: self.pool.at(),
            page_elements: self.sizes.page_elements as u64,
            layer_offset: self.sizes.layers_at[layer] as u64,
            q_norm,
            k_norm,
            frequencies: rope.map_or(0, |rope| self.frequencies(rope)),
            n_heads: n as u32,
            n_kv_heads: n_kv as u32,
            head_dim: dim as u32,
            wide: wide(dim, self.kv) as u32,
            q_stride: (n * dim) as u32,
            kv_stride: (n_kv * dim) as u32,
            dims: rope.map_or(0, |rope| rope.rope.dims as u32),
            halves: rope.map_or(0, |rope| match rope.style() {
                RopeStyle::Interleaved => 0,
                RopeStyle::Halves => 1,
            }),
            magnitude: rope.map_or(1.0, RopeOp::magnitude),
            eps: q_eps.max(k_eps),
        }
    }

    /// What becomes of the heads of a layer before attention, as its `AttnIn` says.
    fn turn_of(&self, heads: Heads) -> Rope {
        let of = |op: &Op| match op {
            Op::AttnIn {
                layer,
                q_norm,
                k_norm,
                rope,
                ..
            } if *layer == heads.layer => {
                Some(self.rope_args(heads, (*q_norm, *k_norm), rope.as_ref()))
            }
            _ => None,
        };
        self.plan
            .ops
            .iter()
            .find_map(of)
            .unwrap_or_else(Rope::zeroed)
    }

    /// Attends; `as_halves`: where warpgroups do it, they leave halves in panels.
    pub(super) fn attend(
        &self,
        heads: Heads,
        scores: Scores,
        n: usize,
        as_halves: bool,
    ) -> Result<(), DriverError> {
        if n > ROWS_MAX
            && let Some(tiles) = self.tiles(heads.dim)
        {
            return self.attend_many(heads, scores, (n, as_halves), tiles);
        }
        (0..n)
            .step_by(ROWS_MAX)
            .try_for_each(|first| self.attend_few(heads, scores, first, ROWS_MAX.min(n - first)))
    }

    /// The kernel of many tokens, where there is one for such heads and this card.
    fn tiles(&self, head_dim: usize) -> Option<Tiles> {
        if self.kv != KvType::F16 {
            return None;
        }
        let warpgroups = Tiles::Warpgroups { width: head_dim };
        let warps = ATTEND_MANY
            .into_iter()
            .filter(|(width, _)| *width == head_dim)
            .map(|(width, queries)| Tiles::Warps { width, queries });
        (self.kernels.has_hopper() && ATTEND_HOPPER.contains(&head_dim))
            .then_some(warpgroups)
            .into_iter()
            .chain(warps)
            .find(|tiles| self.kernels.has_shared(tiles.shared_bytes()))
    }

    /// Whether warpgroups attend such heads of many tokens.
    pub(super) fn attends_by_warpgroups(&self, head_dim: usize) -> bool {
        matches!(self.tiles(head_dim), Some(Tiles::Warpgroups { .. }))
    }

    fn attend_many(
        &self,
        heads: Heads,
        scores: Scores,
        (n, as_halves): (usize, bool),
        tiles: Tiles,
    ) -> Result<(), DriverError> {
        let out = self.at(Area::Heads);
        let stride = (heads.n * heads.dim) as u32;
        let args = AttendMany {
            step: self.at(Area::Step),
            q: self.at(Area::Q),
            pool: self.pool.at(),
            out,
            sinks: self.optional(scores.sinks),
            page_elements: self.sizes.page_elements as u64,
            layer_offset: self.sizes.layers_at[heads.layer] as u64,
            n_heads: heads.n as u32,
            n_kv_heads: heads.n_kv as u32,
            q_stride: stride,
            out_stride: stride,
            window: scores.window.unwrap_or(0) as u32,
            scale: scores.scale,
            softcap: scores.softcap.unwrap_or(0.0),
            half_rows: n.next_multiple_of(8) as u32,
            half_out: if as_halves { out } else { 0 },
        };
        let (queries, threads) = match tiles {
            Tiles::Warpgroups { .. } => (128, 384),
            Tiles::Warps { queries, .. } => (queries, 128),
        };
        let grid = Grid {
            blocks: (n.div_ceil(queries) as u32, heads.n as u32, 1),
            threads,
            shared_bytes: tiles.shared_bytes(),
        };
        self.kernels
            .attend_many(&tiles.name(), &self.stream, grid, &args)
    }

    /// A launch has room for [`GROUP_MAX`] query heads of each key head. Where there are more, each key head has launches of its own.
    fn attend_few(
        &self,
        heads: Heads,
        scores: Scores,
        first: usize,
        n: usize,
    ) -> Result<(), DriverError> {
        let group = heads.n / heads.n_kv;
        if group <= GROUP_MAX {
            let all = Portion {
                head: 0,
                n: heads.n,
                kv_head: 0,
                n_kv: heads.n_kv,
            };
            return self.attend_portion(heads, all, scores, (first, n));
        }
        for kv_head in 0..heads.n_kv {
            for begin in (0..group).step_by(GROUP_MAX) {
                let portion = Portion {
                    head: kv_head * group + begin,
                    n: GROUP_MAX.min(group - begin),
                    kv_head,
                    n_kv: 1,
                };
                self.attend_portion(heads, portion, scores, (first, n))?;
            }
        }
        Ok(())
    }

    /// Attention of `n` tokens from `first` on, of some of the heads.
    fn attend_portion(
        &self,
        heads: Heads,
        portion: Portion,
        scores: Scores,
        (first, n): (usize, usize),
    ) -> Result<(), DriverError> {
        let (group, stride) = (portion.n / portion.n_kv, heads.n * heads.dim);
        let moved = ((first * stride + portion.head * heads.dim) * 4) as u64;
        let kv_offset = portion.kv_head * 2 * head_elements(heads.dim, self.kv) * PAGE_TOKENS;
        let instance = attend_instance(group, heads.dim, self.kv);
        let (slots, shared_bytes) = self.attend_shared(heads.dim, instance);
        let turns = self.turns_itself(heads, n) && first == 0;
        let args = Attend {
            step: self.at(Area::Step),
            q: self.at(Area::Q) + moved,
            pool: self.pool.at(),
            partial: self.at(Area::Partial),
            out: self.at(Area::Heads) + moved,
            sinks: match scores.sinks {
                Some(sinks) => self.tensor(sinks) + (portion.head * 4) as u64,
                None => 0,
            },
            arrived: self.at(Area::Arrived),
            page_elements: self.sizes.page_elements as u64,
            layer_offset: (self.sizes.layers_at[heads.layer] + kv_offset) as u64,
            n_heads: portion.n as u32,
            n_kv_heads: portion.n_kv as u32,
            head_dim: heads.dim as u32,
            wide: wide(heads.dim, self.kv) as u32,
            q_stride: stride as u32,
            out_stride: stride as u32,
            max_splits: self.sizes.splits() as u32,
            window: scores.window.unwrap_or(0) as u32,
            scale: scores.scale,
            softcap: scores.softcap.unwrap_or(0.0),
            first_token: first as u32,
            slots: slots as u32,
            turns: u32::from(turns),
            group: group as u32,
            turn: match turns {
                true => self.turn_of(heads),
                false => Rope::zeroed(),
            },
        };
        let splits = self
            .sizes
            .splits()
            .min((2 * self.multiprocessors).div_ceil(portion.n_kv));
        let grid = Grid {
            blocks: (portion.n_kv as u32, splits as u32, n as u32),
            threads: (instance.teams() * SPLIT) as u32,
            shared_bytes,
        };
        self.kernels
            .attend(&instance.name(self.kv), &self.stream, grid, &args)
    }

    /// Slots of the ring of a block of `attend`, and its shared memory: as many as leave room for a second block; two at least.
    fn attend_shared(&self, head_dim: usize, instance: AttendInstance) -> (usize, usize) {
        let (built_for, teams) = (instance.group, instance.teams());
        let wide = wide(head_dim, self.kv);
        let slot = match self.kv {
            KvType::F16 | KvType::F32 => PIECE_BYTES,
            KvType::Q8_0 => PIECE_BYTES + PIECE_BYTES / 16,
        };
        let own = (head_elements(head_dim, self.kv) * self.kv.element_bytes()).next_multiple_of(16);
        let shares = teams * (built_for / teams).min(2) * (SPLIT / (wide / 8)) * wide;
        let heads = (built_for + 2) * wide + (SPLIT + 8) * built_for + 3 * wide;
        let fixed = (shares + heads) * 4 + 2 * own;
        let half = self.kernels.shared_max() / 2;
        let slots = (half.saturating_sub(fixed) / slot).clamp(2, SLOTS_MAX);
        (slots, fixed + slots * slot)
    }
}

/// The instance for such groups and heads.
fn attend_instance(group: usize, head_dim: usize, kv: KvType) -> AttendInstance {
    let fits = |of: &AttendInstance| of.group >= group && [0, head_dim].contains(&of.width);
    let all = AttendInstance::all(kv).filter(fits);
    all.min_by_key(|of| (of.group, usize::MAX - of.width))
        .unwrap_or(AttendInstance { group, width: 0 })
}

/// Whether `rope_many` takes such heads: four values at a time, a pair's halves in fours of their own.
fn has_quads(dim: usize, args: &Rope) -> bool {
    let quads = if args.halves == 1 { 8 } else { 4 };
    dim <= 256 && dim.is_multiple_of(4) && args.dims.is_multiple_of(quads)
}
