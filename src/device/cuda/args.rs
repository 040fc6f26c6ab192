//! What kernels are given, laid out as their `.cu` declare it.

use bytemuck::Zeroable;

use super::layout::PLANES_MAX;

/// A device address, 0 for none.
pub type Address = u64;

/// `Step` of `cuda/common.cuh`, as it lies in device memory.
#[derive(Clone, Copy, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct StepHeader {
    /// Of the first token.
    pub position: u32,
    /// Of the step.
    pub n_tokens: u32,
    /// (n_tokens) u32.
    pub tokens: Address,
    /// u32.
    pub pages: Address,
}

/// `NormKind` of the kernels.
pub mod norm_kind {
    /// The values as they are.
    pub const NONE: u32 = 0;
    /// Root mean square.
    pub const RMS: u32 = 1;
    /// Mean and variance.
    pub const LAYER: u32 = 2;
}

/// `Epilogue` of the kernels.
pub mod epilogue {
    /// y is set.
    pub const SET: u32 = 0;
    /// y is added to.
    pub const ADD: u32 = 1;
    /// y = activation(segment 0, segment 1).
    pub const GATED: u32 = 2;
    /// y = activation(y).
    pub const PLAIN: u32 = 3;
}

/// `Rows` of `cuda/quant.cuh`.
#[derive(Clone, Copy, Debug, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct WeightRows {
    /// Where the planes of the first row begin.
    pub planes: [Address; PLANES_MAX],
    /// Bytes of a row in each.
    pub row_bytes: [u32; PLANES_MAX],
}

/// `Segment` of `cuda/matvec.cu`, `TileSegment` of `cuda/matmul.cu`.
#[derive(Clone, Copy, Debug, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct Segment {
    /// The weights; of experts one after another.
    pub weights: WeightRows,
    /// (n_tokens, out_stride) f32.
    pub out: Address,
    /// (rows) f32, or 0.
    pub bias: Address,
    /// Rows.
    pub rows: u32,
    /// From one token's results to the next one's.
    pub out_stride: u32,
}

/// `Matvec` of `cuda/matvec.cuh`.
#[allow(
    missing_docs,
    reason = "the fields are those of the kernel\'s structure, which are told there"
)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct Matvec {
    pub segments: [Segment; 3],
    pub n_segments: u32,
    pub cols: u32,
    pub width: u32,
    pub x_stride: u32,
    pub x: Address,
    pub norm_weight: Address,
    pub norm_bias: Address,
    pub norm: u32,
    pub eps: f32,
    pub epilogue: u32,
    pub activation: u32,
    pub alpha: f32,
    pub limit: f32,
    pub scale: f32,
    pub softcap: f32,
    pub n_tokens: u32,
    pub padding: u32,
    pub experts: Address,
    pub slots_a_token: u32,
    pub warps_a_tile: u32,
    pub tiles_a_pass: u32,
    pub n_tiles: u32,
    pub stages: u32,
    pub second_from: u32,
}

/// `Matmul` of `cuda/matmul.cuh`.
#[allow(
    missing_docs,
    reason = "the fields are those of the kernel\'s structure, which are told there"
)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct Matmul {
    pub segments: [Segment; 3],
    pub n_segments: u32,
    pub cols: u32,
    pub x: Address,
    pub scales: Address,
    pub x_rows: u32,
    pub n_tokens: u32,
    pub epilogue: u32,
    pub activation: u32,
    pub alpha: f32,
    pub limit: f32,
    pub scale: f32,
    pub softcap: f32,
    pub groups: Address,
    pub tiles: Address,
    pub order: Address,
    pub w: Address,
    pub half_out: Address,
    pub half_rows: u32,
    pub half_scale: f32,
    pub x_scale: f32,
    pub w_rows: u32,
    pub first_tile: u32,
    pub row_tiles: u32,
}

/// `Split` of `cuda/split.cu`.
#[allow(
    missing_docs,
    reason = "the fields are those of the kernel\'s structure, which are told there"
)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct Split {
    pub blocks: Address,
    pub plane: Address,
    pub n_blocks: u64,
    pub blocks_a_row: u32,
    pub row_bytes: u32,
    pub pitch: u32,
    pub block_bytes: u32,
    pub offset: u32,
    pub bytes: u32,
}

/// `Embed` of `cuda/embed.cu`.
#[allow(
    missing_docs,
    reason = "the fields are those of the kernel\'s structure, which are told there"
)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct Embed {
    pub table: WeightRows,
    pub step: Address,
    pub x: Address,
    pub cols: u32,
    pub width: u32,
    pub scale: f32,
    pub add: u32,
}

/// `Norm` of `cuda/norm.cu`.
#[allow(
    missing_docs,
    reason = "the fields are those of the kernel\'s structure, which are told there"
)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct NormRows {
    pub x: Address,
    pub weight: Address,
    pub bias: Address,
    pub out: Address,
    pub half_out: Address,
    pub scales: Address,
    pub width: u32,
    pub cols: u32,
    pub x_stride: u32,
    pub out_stride: u32,
    pub norm: u32,
    pub eps: f32,
    pub scale: f32,
    pub add: u32,
    pub groups: Address,
    pub order: Address,
    pub n_used: u32,
    pub panel_rows: u32,
}

/// `Rope` of `cuda/rope.cuh`.
#[allow(
    missing_docs,
    reason = "the fields are those of the kernel\'s structure, which are told there"
)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct Rope {
    pub step: Address,
    pub q: Address,
    pub k: Address,
    pub v: Address,
    pub pool: Address,
    pub page_elements: u64,
    pub layer_offset: u64,
    pub q_norm: Address,
    pub k_norm: Address,
    pub frequencies: Address,
    pub n_heads: u32,
    pub n_kv_heads: u32,
    pub head_dim: u32,
    pub wide: u32,
    pub q_stride: u32,
    pub kv_stride: u32,
    pub dims: u32,
    pub halves: u32,
    pub magnitude: f32,
    pub eps: f32,
}

/// `Attend` of `cuda/attend.cu`.
#[allow(
    missing_docs,
    reason = "the fields are those of the kernel\'s structure, which are told there"
)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct Attend {
    pub step: Address,
    pub q: Address,
    pub pool: Address,
    pub partial: Address,
    pub out: Address,
    pub sinks: Address,
    pub arrived: Address,
    pub page_elements: u64,
    pub layer_offset: u64,
    pub n_heads: u32,
    pub n_kv_heads: u32,
    pub head_dim: u32,
    pub wide: u32,
    pub q_stride: u32,
    pub out_stride: u32,
    pub max_splits: u32,
    pub window: u32,
    pub scale: f32,
    pub softcap: f32,
    pub first_token: u32,
    pub slots: u32,
    pub turns: u32,
    pub group: u32,
    pub turn: Rope,
}

/// `AttendMany` of `cuda/attend_many.cu`.
#[allow(
    missing_docs,
    reason = "the fields are those of the kernel\'s structure, which are told there"
)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct AttendMany {
    pub step: Address,
    pub q: Address,
    pub pool: Address,
    pub out: Address,
    pub sinks: Address,
    pub page_elements: u64,
    pub layer_offset: u64,
    pub n_heads: u32,
    pub n_kv_heads: u32,
    pub q_stride: u32,
    pub out_stride: u32,
    pub window: u32,
    pub scale: f32,
    pub softcap: f32,
    pub half_rows: u32,
    pub half_out: Address,
}

/// `Route` of `cuda/experts.cu`.
#[allow(
    missing_docs,
    reason = "the fields are those of the kernel\'s structure, which are told there"
)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct Route {
    pub logits: Address,
    pub bias: Address,
    pub ids: Address,
    pub weights: Address,
    pub n_experts: u32,
    pub n_used: u32,
    pub n_tokens: u32,
    pub gating: u32,
    pub scale: f32,
    pub end: u32,
}

/// `Group` of `cuda/experts.cu`.
#[allow(
    missing_docs,
    reason = "the fields are those of the kernel\'s structure, which are told there"
)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct Group {
    pub ids: Address,
    pub groups: Address,
    pub tiles: Address,
    pub order: Address,
    pub n_slots: u32,
    pub n_experts: u32,
    pub tile: u32,
    pub end: u32,
}

/// `Router` of `cuda/router.cu`.
#[allow(
    missing_docs,
    reason = "the fields are those of the kernel\'s structure, which are told there"
)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct Router {
    pub segment: Segment,
    pub x: Address,
    pub cols: u32,
    pub width: u32,
    pub x_stride: u32,
    pub n_tokens: u32,
}

/// Arguments of `combine`.
#[derive(Clone, Copy, Debug)]
pub struct Combine {
    /// (n_tokens, width): what is added to.
    pub x: Address,
    /// (n_tokens × n_used, width): what the experts say.
    pub y: Address,
    /// (n_tokens, n_used): how much each counts.
    pub weights: Address,
    /// Of a row.
    pub width: u32,
    /// Experts of a token.
    pub n_used: u32,
    /// Of the sum.
    pub factor: f32,
}

/// `Search` of `cuda/candidates.cu`.
#[allow(
    missing_docs,
    reason = "the fields are those of the kernel\'s structure, which are told there"
)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct Search {
    pub logits: Address,
    pub allowed: Address,
    pub largest: Address,
    pub counts: Address,
    pub head: Address,
    pub blocks: Address,
    pub entries: Address,
    pub n_vocab: u32,
    pub n_words: u32,
    pub run: u32,
    pub temperature: f32,
    pub wants_one: u32,
    pub unused: u32,
}

/// `FoundHead` of `cuda/candidates.cu`, as it lies in page-locked memory.
#[derive(Clone, Copy, Debug, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct FoundHead {
    /// The largest logit; negative infinity where nothing is left.
    pub largest: f32,
    /// The first token whose logit is NaN or positive infinity; `u32::MAX` for none.
    pub bad: u32,
    /// Not 0: every token that can be drawn is an entry.
    pub whole: u32,
    /// For alignment.
    pub unused: u32,
}

/// `FoundBlock` of `cuda/candidates.cu`: what was found in a range of ids.
#[derive(Clone, Copy, Debug, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct FoundBlock {
    /// Its first entry.
    pub first: u32,
    /// Its entries.
    pub entries: u32,
    /// What its other tokens weigh.
    pub rest: f64,
    /// The same at temperature 1.
    pub rest_at_one: f64,
}

/// `FoundEntry` of `cuda/candidates.cu`.
#[derive(Clone, Copy, Debug, bytemuck::Pod, Zeroable)]
#[repr(C)]
pub struct FoundEntry {
    /// The token.
    pub id: u32,
    /// Its logit.
    pub logit: f32,
}
