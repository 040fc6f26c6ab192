//! Attention as launches: rotation and append, splits for a few tokens, tiles for many.

use cudarc::driver::DriverError;

use super::args::{Address, Attend, AttendMany, Rope};
use super::launch::{ATTEND_GROUPS, ATTEND_HOPPER, ATTEND_MANY, Grid, SPLIT};
use super::sizes::{Area, wide};
use super::{CudaDevice, KvType, PAGE_TOKENS, ROWS_MAX, kv_name};
use crate::model::plan::{NormOp, RopeOp, TensorId};
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

/// Most query heads of a key head in one launch.
const GROUP_MAX: usize = ATTEND_GROUPS[ATTEND_GROUPS.len() - 1];

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

    /// A norm of each of `count` heads goes with the rotation: its weight and eps. One of all heads together is done now.
    fn head_norm(
        &self,
        norm: Option<NormOp>,
        x: Address,
        count: usize,
        dim: usize,
    ) -> Result<(Address, f32), DriverError> {
        match norm {
            Some(NormOp {
                norm: Norm::Rms { eps },
                weight,
                bias: None,
                len,
            }) if len == dim => Ok((self.tensor(weight), eps)),
            Some(norm) => {
                let args = self.norm_args(x, x, &norm);
                self.kernels
                    .norm_rows(&self.stream, count * dim / norm.len, &args)?;
                Ok((0, 0.0))
            }
            None => Ok((0, 0.0)),
        }
    }

    pub(super) fn rope_append(
        &self,
        heads: Heads,
        norms: (Option<NormOp>, Option<NormOp>),
        rope: Option<&RopeOp>,
        n: usize,
    ) -> Result<(), DriverError> {
        let Heads {
            layer,
            n: n_heads,
            n_kv,
            dim,
        } = heads;
        let (q, k) = (self.at(Area::Q), self.at(Area::K));
        let (q_norm, q_eps) = self.head_norm(norms.0, q, n * n_heads, dim)?;
        let (k_norm, k_eps) = self.head_norm(norms.1, k, n * n_kv, dim)?;
        let args = Rope {
            step: self.at(Area::Step),
            q,
            k,
            v: self.at(Area::V),
            pool: self.pool.at(),
            page_elements: self.sizes.page_elements as u64,
            layer_offset: self.sizes.layers_at[layer] as u64,
            q_norm,
            k_norm,
            frequencies: rope.map_or(0, |rope| self.frequencies(rope)),
            n_heads: n_heads as u32,
            n_kv_heads: n_kv as u32,
            head_dim: dim as u32,
            wide: wide(dim) as u32,
            q_stride: (n_heads * dim) as u32,
            kv_stride: (n_kv * dim) as u32,
            dims: rope.map_or(0, |rope| rope.rope.dims as u32),
            halves: rope.map_or(0, |rope| match rope.style() {
                RopeStyle::Interleaved => 0,
                RopeStyle::Halves => 1,
            }),
            magnitude: rope.map_or(1.0, RopeOp::magnitude),
            eps: q_eps.max(k_eps),
        };
        if n > ROWS_MAX && has_quads(dim, &args) {
            return self
                .kernels
                .rope_many(kv_name(self.kv), &self.stream, n, &args);
        }
        let threads = (dim.div_ceil(2).next_multiple_of(32)).clamp(32, 256) as u32;
        let grid = Grid {
            blocks: ((n_heads + 2 * n_kv) as u32, n as u32, 1),
            threads,
            shared_bytes: dim * 4,
        };
        self.kernels
            .rope_append(kv_name(self.kv), &self.stream, grid, &args)
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
        let kv_offset = portion.kv_head * 2 * wide(heads.dim) * PAGE_TOKENS;
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
            wide: wide(heads.dim) as u32,
            q_stride: stride as u32,
            out_stride: stride as u32,
            max_splits: self.sizes.splits() as u32,
            window: scores.window.unwrap_or(0) as u32,
            scale: scores.scale,
            softcap: scores.softcap.unwrap_or(0.0),
            first_token: first as u32,
            end: 0,
        };
        let built_for = ATTEND_GROUPS
            .into_iter()
            .find(|g| *g >= group)
            .unwrap_or(group);
        let splits = self
            .sizes
            .splits()
            .min((2 * self.multiprocessors).div_ceil(portion.n_kv));
        let shared_bytes =
            (group * wide(heads.dim) + group * SPLIT + 8 * built_for + group * 8 * SPLIT) * 4;
        let grid = Grid {
            blocks: (portion.n_kv as u32, splits as u32, n as u32),
            threads: SPLIT as u32,
            shared_bytes,
        };
        self.kernels
            .attend(kv_name(self.kv), built_for, &self.stream, grid, &args)
    }
}

/// Whether `rope_many` takes such heads: four values at a time, a pair's halves in fours of their own.
fn has_quads(dim: usize, args: &Rope) -> bool {
    let quads = if args.halves == 1 { 8 } else { 4 };
    dim <= 256 && dim.is_multiple_of(4) && args.dims.is_multiple_of(quads)
}
