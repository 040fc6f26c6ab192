//! From a spec to a plan: one function for all architectures. Fusion is not discovered here; the fused operation is the vocabulary.

use super::plan::{KvShape, Matrix, NormOp, Op, Plan, RopeOp, Shape, TensorDecl, TensorId};
use super::spec::{AttentionSpec, FfnSpec, Head, LayerSpec, ModelSpec, Norm, Rope, RopeScaling};

/// Lowers a model to the operations of a step.
pub fn lower(spec: &ModelSpec) -> Plan {
    let mut b = Builder {
        n_embd: spec.n_embd,
        tensors: Vec::new(),
        ops: Vec::new(),
        rope_factors: None,
    };
    let table = b.matrix("token_embd.weight", spec.n_vocab, spec.n_embd);
    b.ops.push(Op::Embed { table });
    for (i, layer) in spec.layers.iter().enumerate() {
        b.layer(i, layer);
    }
    let norm = b.norm("output_norm.weight", spec.output_norm);
    let logits = match spec.head {
        Head::Tied => table,
        Head::Separate => b.matrix("output.weight", spec.n_vocab, spec.n_embd),
    };
    b.ops.push(Op::Head { norm, logits });
    Plan {
        architecture: spec.architecture,
        context_length: spec.context_length,
        n_embd: spec.n_embd,
        n_vocab: spec.n_vocab,
        kv: spec
            .layers
            .iter()
            .map(|l| KvShape {
                n_kv_heads: l.attention.n_kv_heads,
                head_dim: l.attention.head_dim,
            })
            .collect(),
        tensors: b.tensors,
        ops: b.ops,
    }
}

struct Builder {
    n_embd: usize,
    tensors: Vec<TensorDecl>,
    ops: Vec<Op>,
    /// `rope_freqs.weight` is one tensor for all layers.
    rope_factors: Option<TensorId>,
}

impl Builder {
    fn declare(&mut self, name: impl Into<String>, shape: Shape) -> TensorId {
        self.tensors.push(TensorDecl {
            name: name.into(),
            shape,
        });
        TensorId(self.tensors.len() - 1)
    }

    fn matrix(&mut self, name: impl Into<String>, rows: usize, cols: usize) -> Matrix {
        Matrix {
            tensor: self.declare(name, Shape::Matrix(rows, cols)),
            rows,
            cols,
        }
    }

    fn norm(&mut self, name: impl Into<String>, norm: Norm) -> NormOp {
        NormOp {
            norm,
            weight: self.declare(name, Shape::Vector(self.n_embd)),
        }
    }

    fn rope(&mut self, rope: &Rope) -> RopeOp {
        let factors = match rope.scaling {
            RopeScaling::None | RopeScaling::Linear { .. } => None,
            RopeScaling::Factors => {
                if self.rope_factors.is_none() {
                    self.rope_factors =
                        Some(self.declare("rope_freqs.weight", Shape::Vector(rope.dims / 2)));
                }
                self.rope_factors
            }
        };
        RopeOp {
            rope: rope.clone(),
            factors,
        }
    }

    fn layer(&mut self, i: usize, layer: &LayerSpec) {
        self.attention(i, &layer.attention);
        self.ffn(i, &layer.ffn);
    }

    fn attention(&mut self, layer: usize, a: &AttentionSpec) {
        let (q_width, kv_width) = (a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim);
        let norm = self.norm(format!("blk.{layer}.attn_norm.weight"), a.norm);
        let q = self.matrix(format!("blk.{layer}.attn_q.weight"), q_width, self.n_embd);
        let k = self.matrix(format!("blk.{layer}.attn_k.weight"), kv_width, self.n_embd);
        let v = self.matrix(format!("blk.{layer}.attn_v.weight"), kv_width, self.n_embd);
        let rope = self.rope(&a.rope);
        self.ops.push(Op::AttnIn {
            layer,
            norm,
            q,
            k,
            v,
            head_dim: a.head_dim,
            rope,
        });
        self.ops.push(Op::Attend {
            layer,
            n_heads: a.n_heads,
            n_kv_heads: a.n_kv_heads,
            head_dim: a.head_dim,
            scale: a.scale,
        });
        let proj = self.matrix(
            format!("blk.{layer}.attn_output.weight"),
            self.n_embd,
            q_width,
        );
        self.ops.push(Op::AttnOut { proj });
    }

    fn ffn(&mut self, layer: usize, ffn: &FfnSpec) {
        let norm = self.norm(format!("blk.{layer}.ffn_norm.weight"), ffn.norm);
        let gate = self.matrix(
            format!("blk.{layer}.ffn_gate.weight"),
            ffn.n_ff,
            self.n_embd,
        );
        let up = self.matrix(format!("blk.{layer}.ffn_up.weight"), ffn.n_ff, self.n_embd);
        self.ops.push(Op::FfnIn {
            norm,
            gate,
            up,
            activation: ffn.activation,
        });
        let down = self.matrix(
            format!("blk.{layer}.ffn_down.weight"),
            self.n_embd,
            ffn.n_ff,
        );
        self.ops.push(Op::FfnOut { down });
    }
}
