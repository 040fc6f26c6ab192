//! The plan of a model as stages of the cpu: each stage is a loop over independent tiles, and a step's cursor is (stage, tile).

use crate::model::plan::{Hidden, Linear, Matrix, NormOp, Op, Plan, Qkv, RopeOp};
use crate::model::spec::Activation;

/// An activation buffer; all are (padded width, tokens).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buf {
    /// Residual stream.
    X,
    /// Normalised residual stream.
    Xn,
    /// Queries.
    Q,
    /// Keys of the step's tokens.
    K,
    /// Values of the step's tokens.
    V,
    /// Attention's output.
    Heads,
    /// Gate projection, then hidden layer.
    Gate,
    /// Up projection.
    Up,
    /// Logits; not padded.
    Logits,
}

/// Number of buffers.
pub const BUFS: usize = 9;

/// Which tokens of the step a stage works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// All of them.
    Tokens,
    /// Those whose logits are wanted.
    Rows,
}

/// One loop over tiles.
#[derive(Clone, Debug)]
pub enum Stage {
    /// X = rows of the table; a tile is a token.
    Embed(Matrix),
    /// Angles of the step's positions for one rotary embedding; a tile is a token.
    Angles(usize),
    /// Xn = norm(X); a tile is a token.
    Norm(NormOp, Of),
    /// `to` = or += matrix × `from`; a tile is some rows of the matrix.
    MatMul {
        /// The weights.
        matrix: Matrix,
        /// Input.
        from: Buf,
        /// Output.
        to: Buf,
        /// Whether it is set or added to.
        store: super::kernels::Store,
        /// For which tokens.
        of: Of,
    },
    /// Rotates Q and K, appends K and V to the pages; a tile is a token.
    Append {
        /// Whose keys and values.
        layer: usize,
        /// Width of a head.
        head_dim: usize,
        /// Query heads.
        n_heads: usize,
        /// Which angles.
        rope: usize,
    },
    /// Heads = attention; a tile is one token and one key-value head.
    Attend {
        /// Whose keys and values.
        layer: usize,
        /// Query heads.
        n_heads: usize,
        /// Key-value heads.
        n_kv_heads: usize,
        /// Width of a head.
        head_dim: usize,
        /// Factor on q·k.
        scale: f32,
    },
    /// Gate = activation(Gate, Up); a tile is a token.
    Activate(Activation, usize),
}

/// The stages of a step and the rotary embeddings that they use.
#[derive(Debug)]
pub struct Program {
    /// In order.
    pub stages: Vec<Stage>,
    /// Distinct rotary embeddings.
    pub ropes: Vec<RopeOp>,
}

/// The exhaustive match over the plan's operations.
pub fn compile(plan: &Plan) -> Result<Program, super::CpuError> {
    use super::kernels::Store::{Add, Set};
    let mut p = Program {
        stages: Vec::new(),
        ropes: Vec::new(),
    };
    let matmul = |matrix, from, to, store| Stage::MatMul {
        matrix,
        from,
        to,
        store,
        of: Of::Tokens,
    };
    for op in &plan.ops {
        match op {
            Op::Embed {
                table,
                scale: 1.0,
                positions: None,
            } => p.stages.push(Stage::Embed(*table)),
            Op::AttnIn {
                layer,
                norm: Some(norm),
                qkv: Qkv::Separate { q, k, v },
                n_heads,
                head_dim,
                q_norm: None,
                k_norm: None,
                rope: Some(rope),
                ..
            } => {
                let rope = p.angles(rope);
                p.stages.push(Stage::Norm(*norm, Of::Tokens));
                p.stages.extend([
                    matmul(q.matrix, Buf::Xn, Buf::Q, Set),
                    matmul(k.matrix, Buf::Xn, Buf::K, Set),
                    matmul(v.matrix, Buf::Xn, Buf::V, Set),
                ]);
                p.stages.push(Stage::Append {
                    layer: *layer,
                    head_dim: *head_dim,
                    n_heads: *n_heads,
                    rope,
                });
            }
            Op::Attend {
                layer,
                n_heads,
                n_kv_heads,
                head_dim,
                scale,
                window: None,
                sinks: None,
                softcap: None,
            } => p.stages.push(Stage::Attend {
                layer: *layer,
                n_heads: *n_heads,
                n_kv_heads: *n_kv_heads,
                head_dim: *head_dim,
                scale: *scale,
            }),
            Op::AttnOut { proj, .. } => p.stages.push(matmul(proj.matrix, Buf::Heads, Buf::X, Add)),
            Op::FfnIn {
                norm: Some(norm),
                hidden:
                    Hidden::Gated {
                        gate,
                        up,
                        activation,
                    },
                share: None,
            } => {
                p.stages.push(Stage::Norm(*norm, Of::Tokens));
                p.stages.extend([
                    matmul(gate.matrix, Buf::Xn, Buf::Gate, Set),
                    matmul(up.matrix, Buf::Xn, Buf::Up, Set),
                ]);
                p.stages
                    .push(Stage::Activate(*activation, gate.matrix.rows));
            }
            Op::FfnOut { down, .. } => p.stages.push(matmul(down.matrix, Buf::Gate, Buf::X, Add)),
            Op::Head {
                norm,
                logits: Linear { matrix, bias: None },
                ..
            } => {
                p.stages.push(Stage::Norm(*norm, Of::Rows));
                p.stages.push(Stage::MatMul {
                    matrix: *matrix,
                    from: Buf::Xn,
                    to: Buf::Logits,
                    store: Set,
                    of: Of::Rows,
                });
            }
            other => return Err(super::CpuError::Unsupported(format!("{other:?}"))),
        }
    }
    Ok(p)
}

impl Program {
    /// The index of a rotary embedding; its angles are computed once a step, before their first use.
    fn angles(&mut self, rope: &RopeOp) -> usize {
        if let Some(i) = self.ropes.iter().position(|r| r == rope) {
            return i;
        }
        self.ropes.push(*rope);
        self.stages.push(Stage::Angles(self.ropes.len() - 1));
        self.ropes.len() - 1
    }

    /// The widest use of a buffer, in values a token, before padding.
    pub fn width(&self, buf: Buf) -> usize {
        let of_stage = |stage: &Stage| match stage {
            Stage::Embed(m) if matches!(buf, Buf::X | Buf::Xn) => m.cols,
            Stage::MatMul { matrix, to, .. } if *to == buf => matrix.rows,
            Stage::MatMul { matrix, from, .. } if *from == buf => matrix.cols,
            Stage::Embed(_) | Stage::Angles(_) | Stage::Norm(..) | Stage::MatMul { .. } => 0,
            Stage::Append { .. } | Stage::Attend { .. } | Stage::Activate(..) => 0,
        };
        self.stages.iter().map(of_stage).max().unwrap_or(0)
    }
}
