//! The plan of a step: fused operations in order, each with its shapes and the tensors it reads. Printable, and the same for every backend.
//!
//! Matrices are (rows, cols) = (outputs, inputs), row-major as GGUF stores them: `y[row] = Σ_col w[row][col] × x[col]`.

use std::fmt;

use super::spec::{Activation, Norm, Rope};

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
    /// (rows, cols); stays in its stored format.
    Matrix(usize, usize),
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

/// A normalisation with its weight (n_embd).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormOp {
    /// Which one.
    pub norm: Norm,
    /// Its weight.
    pub weight: TensorId,
}

/// A rotary embedding with the tensor of its factors, where it has one.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeOp {
    /// Style, width, base and scaling.
    pub rope: Rope,
    /// (dims / 2) divisors of the frequencies.
    pub factors: Option<TensorId>,
}

/// A fused operation: one phase of a step. `x` is the residual stream (n_embd, n_tokens).
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// x = embedding rows of the step's tokens.
    Embed {
        /// (n_vocab, n_embd).
        table: Matrix,
    },
    /// q, k, v = projections of norm(x); q and k rotated; k and v appended to the layer's pages.
    AttnIn {
        /// Which layer's keys and values.
        layer: usize,
        /// Before the projections.
        norm: NormOp,
        /// (n_heads × head_dim, n_embd).
        q: Matrix,
        /// (n_kv_heads × head_dim, n_embd).
        k: Matrix,
        /// (n_kv_heads × head_dim, n_embd).
        v: Matrix,
        /// Width of a head.
        head_dim: usize,
        /// Applied to q and k.
        rope: RopeOp,
    },
    /// heads = softmax(scale × q·kᵀ over positions up to the token's own) · v.
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
    },
    /// x += proj · heads.
    AttnOut {
        /// (n_embd, n_heads × head_dim).
        proj: Matrix,
    },
    /// hidden = activation(gate · norm(x), up · norm(x)).
    FfnIn {
        /// Before the projections.
        norm: NormOp,
        /// (n_ff, n_embd).
        gate: Matrix,
        /// (n_ff, n_embd).
        up: Matrix,
        /// What joins the two.
        activation: Activation,
    },
    /// x += down · hidden.
    FfnOut {
        /// (n_embd, n_ff).
        down: Matrix,
    },
    /// logits = matrix · norm(x), for the rows that the step asks for.
    Head {
        /// Before the projection.
        norm: NormOp,
        /// (n_vocab, n_embd).
        logits: Matrix,
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
    /// The file must hold these and no others.
    pub tensors: Vec<TensorDecl>,
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

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} layers, n_embd {}, n_vocab {}, context {}",
            self.architecture,
            self.kv.len(),
            self.n_embd,
            self.n_vocab,
            self.context_length
        )?;
        for (i, op) in self.ops.iter().enumerate() {
            write!(f, "{i:4} ")?;
            self.write_op(f, op)?;
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Plan {
    fn name(&self, id: TensorId) -> &str {
        &self.tensors[id.0].name
    }

    fn write_matrix(&self, f: &mut fmt::Formatter<'_>, label: &str, m: Matrix) -> fmt::Result {
        write!(
            f,
            " {label}={}({}, {})",
            self.name(m.tensor),
            m.rows,
            m.cols
        )
    }

    fn write_norm(&self, f: &mut fmt::Formatter<'_>, n: NormOp) -> fmt::Result {
        match n.norm {
            Norm::Rms { eps } => write!(f, " norm=rms({}, eps {eps:e})", self.name(n.weight)),
        }
    }

    fn write_op(&self, f: &mut fmt::Formatter<'_>, op: &Op) -> fmt::Result {
        match op {
            Op::Embed { table } => {
                write!(f, "Embed  ")?;
                self.write_matrix(f, "table", *table)
            }
            Op::AttnIn {
                layer,
                norm,
                q,
                k,
                v,
                head_dim,
                rope,
            } => {
                write!(f, "AttnIn  layer={layer}")?;
                self.write_norm(f, *norm)?;
                for (label, m) in [("q", q), ("k", k), ("v", v)] {
                    self.write_matrix(f, label, *m)?;
                }
                let Rope {
                    style,
                    dims,
                    base,
                    scaling,
                } = &rope.rope;
                write!(
                    f,
                    " head_dim={head_dim} rope={style:?}(dims {dims}, base {base}, scaling {scaling:?})"
                )
            }
            Op::Attend {
                layer,
                n_heads,
                n_kv_heads,
                head_dim,
                scale,
            } => {
                write!(
                    f,
                    "Attend  layer={layer} heads={n_heads} kv_heads={n_kv_heads} head_dim={head_dim} scale={scale}"
                )
            }
            Op::AttnOut { proj } => {
                write!(f, "AttnOut")?;
                self.write_matrix(f, "proj", *proj)
            }
            Op::FfnIn {
                norm,
                gate,
                up,
                activation,
            } => {
                write!(f, "FfnIn  ")?;
                self.write_norm(f, *norm)?;
                self.write_matrix(f, "gate", *gate)?;
                self.write_matrix(f, "up", *up)?;
                write!(f, " activation={activation:?}")
            }
            Op::FfnOut { down } => {
                write!(f, "FfnOut ")?;
                self.write_matrix(f, "down", *down)
            }
            Op::Head { norm, logits } => {
                write!(f, "Head   ")?;
                self.write_norm(f, *norm)?;
                self.write_matrix(f, "logits", *logits)
            }
        }
    }
}
