//! The plan of a step: fused operations in order, each with its shapes and the tensors it reads. Printable, and the same for every backend.
//!
//! Matrices are (rows, cols) = (outputs, inputs), row-major as GGUF stores them: `y[row] = Σ_col w[row][col] × x[col]`.

mod print;
mod rope;

pub use rope::RopeOp;

use super::spec::{Activation, Gating, Norm};

/// A tensor of the plan: an index into [`Plan::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorId(pub usize);

/// What a tensor must look like in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDecl {
    /// Its name: "blk.0.attn_q.weight".
    pub name: String,
    /// Its shape.
    pub shape: Shape,
}

/// The shape of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// So many values; widened to f32 at load.
    Vector(usize),
    /// (count, len): vectors one after another; widened to f32 at load.
    Vectors(usize, usize),
    /// (rows, cols); stays in its stored format.
    Matrix(usize, usize),
    /// (count, rows, cols): matrices one after another; stay in their stored format.
    Matrices(usize, usize, usize),
}

impl Shape {
    /// The dimensions as GGUF has them: innermost first.
    pub fn dims(&self) -> Vec<u64> {
        let dims = match *self {
            Shape::Vector(len) => vec![len],
            Shape::Vectors(count, len) => vec![len, count],
            Shape::Matrix(rows, cols) => vec![cols, rows],
            Shape::Matrices(count, rows, cols) => vec![cols, rows, count],
        };
        dims.into_iter().map(|d| d as u64).collect()
    }

    /// How many rows of how many values lie one after another.
    pub fn rows(&self) -> (usize, usize) {
        match *self {
            Shape::Vector(len) => (1, len),
            Shape::Vectors(count, len) => (count, len),
            Shape::Matrix(rows, cols) => (rows, cols),
            Shape::Matrices(count, rows, cols) => (count.saturating_mul(rows), cols),
        }
    }
}

/// A matrix of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Where it lies.
    pub tensor: TensorId,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
}

/// A projection: matrix · x + bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// The weights.
    pub matrix: Matrix,
    /// (rows).
    pub bias: Option<TensorId>,
}

/// A projection of each expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertLinear {
    /// (n_experts, rows, cols).
    pub tensor: TensorId,
    /// How many experts there are.
    pub n_experts: usize,
    /// Outputs of each.
    pub rows: usize,
    /// Inputs of each.
    pub cols: usize,
    /// (n_experts, rows).
    pub bias: Option<TensorId>,
}

/// A normalisation of `len` values with its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormOp {
    /// Which one.
    pub norm: Norm,
    /// (len): factors.
    pub weight: TensorId,
    /// (len): added at the end.
    pub bias: Option<TensorId>,
    /// How many values are normalised together. Where it is less than there are, each `len` of them are, with the same weight: heads.
    pub len: usize,
}

/// The projections of queries, keys and values: (n_heads × head_dim, n_embd) and twice (n_kv_heads × head_dim, n_embd).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qkv {
    /// Three tensors.
    Separate {
        /// Queries.
        q: Linear,
        /// Keys.
        k: Linear,
        /// Values.
        v: Linear,
    },
    /// One tensor: rows of all queries, all keys, all values.
    Fused(Linear),
}

/// What makes the hidden layer of a feed-forward network; every projection is (n_ff, n_embd).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Hidden {
    /// activation(gate · x) × (up · x).
    Gated {
        /// What the activation is applied to.
        gate: Linear,
        /// What it is multiplied by.
        up: Linear,
        /// What joins the two.
        activation: Activation,
    },
    /// The same with one tensor (2 × n_ff, n_embd): rows of the gate, then of `up`.
    GatedFused {
        /// Gate and up.
        gate_up: Linear,
        /// What joins the two.
        activation: Activation,
    },
    /// activation(up · x).
    Plain {
        /// What the activation is applied to.
        up: Linear,
        /// The activation.
        activation: Activation,
    },
}

impl Hidden {
    /// Width of the hidden layer.
    pub fn n_ff(&self) -> usize {
        match self {
            Hidden::Gated { up, .. } | Hidden::Plain { up, .. } => up.matrix.rows,
            Hidden::GatedFused { gate_up, .. } => gate_up.matrix.rows / 2,
        }
    }
}

/// How a projection's result y joins the stream: x += scale × norm(y).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Join {
    /// Of the result, where there is one.
    pub norm: Option<NormOp>,
    /// Factor on what is added; 1 in most models.
    pub scale: f32,
}

/// A fused operation: one phase of a step. `x` is the residual stream (n_embd, n_tokens).
///
/// q, heads, hidden and the experts' hidden are buffers of their own: in a layer whose halves are parallel `FfnIn` stands before `Attend`, and
/// beside experts a shared one's `FfnIn` stands before `ExpertsOut`.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// x = scale × embedding rows of the step's tokens + rows of their positions.
    Embed {
        /// (n_vocab, n_embd).
        table: Matrix,
        /// Factor on the rows.
        scale: f32,
        /// (context_length, n_embd): a row for each position.
        positions: Option<Matrix>,
    },
    /// q, k, v = projections of norm(x); q and k normalised and rotated; k and v appended to the layer's pages.
    AttnIn {
        /// Which layer's keys and values.
        layer: usize,
        /// Before the projections.
        norm: Option<NormOp>,
        /// The projections.
        qkv: Qkv,
        /// Query heads.
        n_heads: usize,
        /// Key and value heads.
        n_kv_heads: usize,
        /// Width of a head.
        head_dim: usize,
        /// Of the queries: of head_dim or of all n_heads × head_dim values together.
        q_norm: Option<NormOp>,
        /// Of the keys.
        k_norm: Option<NormOp>,
        /// Applied to q and k.
        rope: Option<RopeOp>,
    },
    /// heads = softmax(softcap(scale × q·kᵀ) over positions up to the token's own) · v.
    Attend {
        /// Which layer's keys and values.
        layer: usize,
        /// Query heads.
        n_heads: usize,
        /// Key and value heads.
        n_kv_heads: usize,
        /// Width of a head.
        head_dim: usize,
        /// Factor on q·k.
        scale: f32,
        /// Only so many positions are seen, the token's own included.
        window: Option<usize>,
        /// (n_heads): a score that joins each softmax without a value.
        sinks: Option<TensorId>,
        /// score = cap × tanh(score / cap).
        softcap: Option<f32>,
    },
    /// x joins proj · heads.
    AttnOut {
        /// (n_embd, n_heads × head_dim).
        proj: Linear,
        /// How.
        join: Join,
    },
    /// hidden = what the projections of norm(x) make of it.
    FfnIn {
        /// Before the projections.
        norm: Option<NormOp>,
        /// The projections and what joins them.
        hidden: Hidden,
        /// (n_embd): all of a token's hidden values are multiplied by sigmoid(share · norm(x)): a shared expert.
        share: Option<TensorId>,
    },
    /// x joins down · hidden.
    FfnOut {
        /// (n_embd, n_ff).
        down: Linear,
        /// How.
        join: Join,
    },
    /// For each token: the `n_used` largest of router · norm(x), and the share of each. norm(x) is kept for `ExpertsIn`.
    Route {
        /// Before the router and the experts.
        norm: Option<NormOp>,
        /// (n_experts, n_embd).
        router: Linear,
        /// Experts a token goes through; of equal logits the lower index is taken.
        n_used: usize,
        /// How shares follow from logits.
        gating: Gating,
        /// Factor on the shares.
        scale: f32,
    },
    /// For each token and each of its experts: hidden = activation(gate · norm(x)) × (up · norm(x)).
    ExpertsIn {
        /// (n_ff, n_embd) each.
        gate: ExpertLinear,
        /// (n_ff, n_embd) each.
        up: ExpertLinear,
        /// What joins the two.
        activation: Activation,
    },
    /// x joins Σ over the token's experts, the largest logit first, of share × (down · hidden).
    ExpertsOut {
        /// (n_embd, n_ff) each.
        down: ExpertLinear,
        /// How.
        join: Join,
    },
    /// logits = softcap(scale × matrix · norm(x)), for the rows that the step asks for.
    Head {
        /// Before the projection.
        norm: NormOp,
        /// (n_vocab, n_embd).
        logits: Linear,
        /// Factor on the logits.
        scale: f32,
        /// logit = cap × tanh(logit / cap).
        softcap: Option<f32>,
    },
}

/// Everything a backend needs to know of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// Longest context it was trained for, in tokens.
    pub context_length: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Logits a row.
    pub n_vocab: usize,
    /// One entry a layer: shape of its keys and values.
    pub kv: Vec<KvShape>,
    /// The file must hold these, those that are not read, and no others.
    pub tensors: Vec<TensorDecl>,
    /// The file must hold these too, though no operation reads them: what another context would read.
    pub unread: Vec<TensorDecl>,
    /// In the order in which they run.
    pub ops: Vec<Op>,
}

/// Keys and values of one layer and one position: `n_kv_heads × head_dim` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}
