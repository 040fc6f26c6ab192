//! What a model takes on a card, and where each part lies: computed from the plan before a card is touched, so that `--check` needs none.

use super::args::StepHeader;
use super::launch::{CHOOSE_BLOCKS, SEARCH_BLOCKS, SPLIT};
use super::layout::{ALIGNMENT, MatrixLayout};
use super::{KvType, Memory, PAGE_TOKENS, ROWS_MAX, STEP_TOKENS_MAX, positions};
use crate::model::plan::{Op, Plan, RopeOp, Shape, TensorId};
use crate::model::weights::Weights;
use crate::sampling::TokenSet;

/// Columns of f16 activations are padded with zeros to a multiple of this: a pass of `cuda/matmul.cu`.
pub const HALF_COLS_STEP: usize = 128;

/// Rows of f16 activations that a tile may read beyond the last one, and their scales: `cuda/products.cuh` works on whole tiles.
const HALF_ROWS_BEYOND: usize = 256;

/// Rows of sorted slots that are multiplied at once.
pub const EXPERT_TILE: usize = 128;

/// Columns of a panel: `cuda/matmul.cuh`.
pub const PANEL: usize = 64;

/// Rows of weights of a tile.
pub const TILE_ROWS: usize = 128;

/// Most bytes of decoded weights; of a larger matrix some rows are decoded and multiplied at a time.
const EXPANDED_BYTES_MAX: usize = 128 << 20;

/// Pieces of the file that are on their way to the card at once.
pub const UPLOAD_SLOTS: usize = 4;

/// Bytes of a piece. Smaller ones cost calls, larger ones wait for each other.
pub const PIECE_BYTES: usize = 16 << 20;

/// A part of the scratch memory. Activations are f32 (tokens, width).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// The step's header, pages and tokens.
    Step,
    /// Residual stream.
    X,
    /// Queries.
    Q,
    /// Keys of the step's tokens.
    K,
    /// Values of the step's tokens.
    V,
    /// Attention's output.
    Heads,
    /// Hidden layer.
    Hidden,
    /// Its second half, where the two cannot be joined at once.
    Up,
    /// A projection that is normalised before it is added.
    Added,
    /// Activations as f16 in panels, columns padded to [`HALF_COLS_STEP`].
    Half,
    /// Their rows' scales.
    HalfScales,
    /// Weights as f16, decoded for one product at a time.
    Expanded,
    /// The residual stream, normalised, for the experts.
    Normed,
    /// Logits of the router.
    Router,
    /// Which experts a token goes to.
    ExpertIds,
    /// How much each counts.
    ExpertShares,
    /// `Groups` of `cuda/matmul.cuh`.
    ExpertGroups,
    /// Tiles of sorted slots.
    ExpertTiles,
    /// Which slot a row of the sorted ones is.
    ExpertOrder,
    /// Hidden layers of the experts: (tokens × n_used, width), or (sorted rows, width).
    ExpertHidden,
    /// What the experts add: (tokens × n_used, n_embd); or the second half of their hidden layers.
    ExpertAdded,
    /// Partial results of attention.
    Partial,
    /// Blocks that have left theirs.
    Arrived,
    /// Logits of [`ROWS_MAX`] rows.
    Logits,
    /// Partial results of the choice of a token.
    Choose,
    /// Of a search of a row: the largest logits of its blocks, counts, and the mask of what is allowed.
    Search,
}

const AREAS: usize = Area::Search as usize + 1;

/// Bytes of the largest logits in [`Area::Search`]: a logit and an id each.
pub const SEARCH_LARGEST_BYTES: usize = SEARCH_BLOCKS * 8;

/// Bytes of the counts behind them: `BINS` of `cuda/candidates.cu`, and one.
pub const SEARCH_COUNTS_BYTES: usize = (1024 + 1) * 4;

/// Widths of the activations, the widest of all layers.
#[derive(Clone, Copy, Debug, Default)]
struct Widths {
    q: usize,
    kv: usize,
    hidden: usize,
    cols: usize,
    head: usize,
    heads: usize,
    experts: usize,
    experts_used: usize,
    expert_hidden: usize,
    expanded: usize,
}

/// Every size.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Weights, split into planes.
    pub weights_bytes: usize,
    /// Where each tensor begins in the weights.
    pub tensors_at: Vec<usize>,
    /// Scratch, all areas.
    pub scratch_bytes: usize,
    /// The distinct rotary embeddings, and where their frequencies lie in the weights.
    pub ropes: Vec<(RopeOp, usize)>,
    /// Pages of the pool.
    pub pages: usize,
    /// Elements of a page, all layers together.
    pub page_elements: usize,
    /// Where each layer begins in a page, in elements.
    pub layers_at: Vec<usize>,
    element_bytes: usize,
    areas: [usize; AREAS],
    vocab: usize,
}

/// Elements along a head that share a scale, where there are scales.
const KV_BLOCK: usize = 32;

/// The widest head.
const HEAD_MAX: usize = 1024;

/// Rows of so many slots, sorted, each expert's filled up to a multiple of 8.
pub const fn sorted_rows(slots: usize, experts: usize) -> usize {
    slots.next_multiple_of(8) + 8 * experts
}

/// Bytes that a tile of rows takes as f16.
pub const fn expanded_tile_bytes(cols: usize) -> usize {
    TILE_ROWS * cols.next_multiple_of(PANEL) * 2
}

/// Bytes of decoded weights for a product of so many rows in all, of so many matrices.
fn expanded_bytes(rows: usize, matrices: usize, cols: usize) -> usize {
    let tiles = rows.div_ceil(TILE_ROWS) + matrices;
    let tile = expanded_tile_bytes(cols);
    (tiles * tile).min(EXPANDED_BYTES_MAX.max(tile))
}

/// Width of a head in a page.
pub const fn wide(head_dim: usize, kv: KvType) -> usize {
    head_dim.next_multiple_of(match kv {
        KvType::F16 | KvType::F32 => 8,
        KvType::Q8_0 => KV_BLOCK,
    })
}

/// Elements that a head of a position takes in a page, as a key or as a value: those of its width, and of Q8_0 the scales.
pub const fn head_elements(head_dim: usize, kv: KvType) -> usize {
    let wide = wide(head_dim, kv);
    match kv {
        KvType::F16 | KvType::F32 => wide,
        KvType::Q8_0 => wide + wide / KV_BLOCK * 2,
    }
}

/// Layouts of the plan's matrices; `None` for vectors.
pub fn layouts(plan: &Plan, weights: &Weights) -> Vec<Option<MatrixLayout>> {
    let of = |(i, decl): (usize, &crate::model::plan::TensorDecl)| match decl.shape {
        Shape::Vector(_) | Shape::Vectors(..) => None,
        Shape::Matrix(..) | Shape::Matrices(..) => {
            let (rows, cols) = decl.shape.rows();
            Some(MatrixLayout::new(weights.get(TensorId(i)).kind, rows, cols))
        }
    };
    plan.tensors.iter().enumerate().map(of).collect()
}

impl Sizes {
    /// Sizes for a pool of `context` tokens, or what these kernels cannot do.
    pub fn of(plan: &Plan, weights: &Weights, context: usize, kv: KvType) -> Result<Self, String> {
        let mut end = 0;
        let mut take = |bytes: usize| {
            let at = end;
            end = (end + bytes).next_multiple_of(ALIGNMENT);
            at
        };
        let layouts = layouts(plan, weights);
        let tensors_at = plan
            .tensors
            .iter()
            .zip(&layouts)
            .map(|(decl, layout)| match layout {
                Some(layout) => take(layout.bytes),
                None => {
                    let (rows, cols) = decl.shape.rows();
                    take(rows * cols * 4)
                }
            })
            .collect();
        let ropes = ropes(plan).into_iter().map(|rope| {
            let at = take(rope.rope.dims / 2 * 4);
            (rope, at)
        });
        let ropes = ropes.collect();
        let pages = context.div_ceil(PAGE_TOKENS);
        let (page_elements, layers_at) = page_layout(plan, kv);
        let widths = widths(plan)?;
        let (areas, scratch_bytes) = areas(plan, widths, pages);
        Ok(Self {
            weights_bytes: end,
            tensors_at,
            scratch_bytes,
            ropes,
            pages,
            page_elements,
            layers_at,
            element_bytes: kv.element_bytes(),
            areas,
            vocab: plan.n_vocab,
        })
    }

    /// Where an area begins in the scratch memory.
    pub fn offset(&self, area: Area) -> usize {
        self.areas[area as usize]
    }

    /// Bytes of an area, at least; more where the next one begins later.
    pub fn bytes(&self, area: Area) -> usize {
        let next = self.areas.iter().filter(|at| **at > self.offset(area));
        next.min().unwrap_or(&self.scratch_bytes) - self.offset(area)
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.page_elements * self.element_bytes
    }

    /// Bytes of the pool.
    pub fn pool_bytes(&self) -> usize {
        self.pages * self.page_bytes()
    }

    /// Bytes of page-locked memory on the host: a step's description, or a row of logits.
    pub fn staging_bytes(&self) -> usize {
        let step = size_of::<StepHeader>() + (self.pages + STEP_TOKENS_MAX) * 4;
        step.max(self.vocab * 4)
    }

    /// Splits of the longest context.
    pub fn splits(&self) -> usize {
        positions(self.pages).div_ceil(SPLIT)
    }

    /// By kind.
    pub fn memory(&self) -> Memory {
        Memory {
            weights_bytes: self.weights_bytes as u64,
            kv_bytes: self.pool_bytes() as u64,
            scratch_bytes: self.scratch_bytes as u64,
        }
    }
}

/// Distinct rotary embeddings, in the order of their first use.
fn ropes(plan: &Plan) -> Vec<RopeOp> {
    let mut all: Vec<RopeOp> = Vec::new();
    for op in &plan.ops {
        if let Op::AttnIn {
            rope: Some(rope), ..
        } = op
            && !all.contains(rope)
        {
            all.push(*rope);
        }
    }
    all
}

/// Bytes that [`PAGE_TOKENS`] positions take in all layers of a model.
pub fn page_bytes(plan: &Plan, kv: KvType) -> usize {
    page_layout(plan, kv).0 * kv.element_bytes()
}

fn page_layout(plan: &Plan, kv: KvType) -> (usize, Vec<usize>) {
    let mut end = 0;
    let at = plan.kv.iter().map(|layer| {
        let begin = end;
        end += layer.n_kv_heads * PAGE_TOKENS * 2 * head_elements(layer.head_dim, kv);
        begin
    });
    let at = at.collect();
    (end, at)
}

/// Bytes of the partial results of attention: of each head and split its values, its largest score and its sum, and two for alignment.
fn partial_bytes(w: Widths, pages: usize) -> usize {
    let splits = positions(pages).div_ceil(SPLIT);
    ROWS_MAX * w.heads * splits * (w.head.next_multiple_of(KV_BLOCK) + 4) * 4
}

/// Where the areas begin, and where the last one ends.
fn areas(plan: &Plan, w: Widths, pages: usize) -> ([usize; AREAS], usize) {
    let mut at = [0; AREAS];
    let mut end = 0;
    let mut area = |area: Area, bytes: usize| {
        at[area as usize] = end;
        end = (end + bytes).next_multiple_of(ALIGNMENT);
    };
    let tokens = STEP_TOKENS_MAX;
    area(Area::Step, size_of::<StepHeader>() + (pages + tokens) * 4);
    area(Area::X, tokens * plan.n_embd * 4);
    area(Area::Q, tokens * w.q * 4);
    area(Area::K, tokens * w.kv * 4);
    area(Area::V, tokens * w.kv * 4);
    area(Area::Heads, tokens * w.q * 4);
    area(Area::Hidden, tokens * w.hidden * 4);
    area(Area::Up, tokens * w.hidden * 4);
    area(Area::Added, tokens * plan.n_embd * 4);
    let slots = tokens * w.experts_used;
    let sorted = sorted_rows(slots, w.experts);
    let (half_bytes, half_rows) = half(plan, w, sorted);
    area(Area::Half, half_bytes);
    area(Area::HalfScales, half_rows * 4);
    area(Area::Expanded, w.expanded);
    area(Area::Partial, partial_bytes(w, pages));
    area(Area::Arrived, ROWS_MAX * w.heads * 4);
    if w.experts > 0 {
        area(Area::Normed, tokens * plan.n_embd * 4);
        area(Area::Router, tokens * w.experts * 4);
        area(Area::ExpertIds, slots * 4);
        area(Area::ExpertShares, slots * 4);
        area(Area::ExpertGroups, 8);
        area(
            Area::ExpertTiles,
            (slots.div_ceil(EXPERT_TILE) + w.experts) * 16,
        );
        area(Area::ExpertOrder, (sorted + HALF_ROWS_BEYOND) * 4);
        area(Area::ExpertHidden, sorted * w.expert_hidden * 4);
        area(
            Area::ExpertAdded,
            (slots * plan.n_embd).max(sorted * w.expert_hidden) * 4,
        );
    }
    area(Area::Logits, ROWS_MAX * plan.n_vocab * 4);
    area(Area::Choose, CHOOSE_BLOCKS as usize * 12);
    area(
        Area::Search,
        SEARCH_LARGEST_BYTES + SEARCH_COUNTS_BYTES + TokenSet::words(plan.n_vocab) * 4,
    );
    // while the model is brought in, pieces of the file lie where the activations will be
    (at, end.max(UPLOAD_SLOTS * PIECE_BYTES))
}

/// Bytes of activations as f16, and how many rows have a scale: of tokens, or of so many sorted slots.
fn half(plan: &Plan, w: Widths, sorted: usize) -> (usize, usize) {
    let padded = |cols: usize| cols.next_multiple_of(HALF_COLS_STEP);
    let of_tokens = STEP_TOKENS_MAX.next_multiple_of(8) * padded(w.cols);
    let of_experts = sorted * padded(plan.n_embd.max(w.expert_hidden));
    let bytes = (of_tokens.max(of_experts) + HALF_ROWS_BEYOND * PANEL) * 2;
    (bytes, STEP_TOKENS_MAX.max(sorted) + HALF_ROWS_BEYOND)
}

fn widths(plan: &Plan) -> Result<Widths, String> {
    let mut w = Widths {
        cols: plan.n_embd,
        ..Widths::default()
    };
    for op in &plan.ops {
        match op {
            Op::AttnIn {
                n_heads,
                n_kv_heads,
                head_dim,
                ..
            } => {
                w.q = w.q.max(n_heads * head_dim);
                w.kv = w.kv.max(n_kv_heads * head_dim);
                w.cols = w.cols.max(n_heads * head_dim);
                let (q, kv) = (n_heads * head_dim, n_kv_heads * head_dim);
                let here = expanded_bytes(q + 2 * kv, 3, plan.n_embd);
                w.expanded = w.expanded.max(here);
            }
            Op::Attend {
                n_heads, head_dim, ..
            } => {
                w.head = w.head.max(*head_dim);
                w.heads = w.heads.max(*n_heads);
                if *head_dim > HEAD_MAX {
                    return Err(format!(
                        "heads of width {head_dim}; at most {HEAD_MAX} is possible"
                    ));
                }
            }
            Op::FfnIn { hidden, .. } => {
                w.hidden = w.hidden.max(hidden.n_ff());
                w.cols = w.cols.max(hidden.n_ff());
                let here = expanded_bytes(2 * hidden.n_ff(), 2, plan.n_embd);
                w.expanded = w.expanded.max(here);
            }
            Op::Route { router, n_used, .. } => {
                w.experts = w.experts.max(router.matrix.rows);
                w.experts_used = w.experts_used.max(*n_used);
            }
            Op::ExpertsIn { up, .. } => w.expert_hidden = w.expert_hidden.max(up.rows),
            Op::ExpertsOut { join, .. } if join.norm.is_some() => {
                return Err("a norm of what the experts add".to_owned());
            }
            Op::AttnOut { proj, .. } | Op::FfnOut { down: proj, .. } => {
                let here = expanded_bytes(proj.matrix.rows, 1, proj.matrix.cols);
                w.expanded = w.expanded.max(here);
            }
            Op::Embed { .. } | Op::ExpertsOut { .. } | Op::Head { .. } => {}
        }
    }
    Ok(w)
}
