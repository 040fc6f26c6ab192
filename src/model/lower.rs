//! From a spec to a plan: one function for all architectures. Fusion is not discovered here; the fused operation is the vocabulary.

use std::collections::HashMap;

use super::plan::{
    ExpertLinear, Hidden, Join, KvShape, Linear, Matrix, NormOp, Op, Plan, Qkv, RopeOp, Shape,
    TensorDecl, TensorId,
};
use super::spec::{
    AttentionSpec, Bias, DenseForm, DenseSpec, ExpertsSpec, FfnSpec, HeadMatrix, LayerOrder,
    LayerSpec, ModelSpec, Network, NormSpec, Positions, QkNorm, QkvLayout, Rope, RopeScaling,
    Sinks,
};

/// Lowers a model to the operations of a step. `context` is the longest context that the worker will hold; what of a model depends on it
/// (LongRoPE) is settled here.
pub fn lower(spec: &ModelSpec, context: usize) -> Plan {
    let mut b = Builder {
        n_embd: spec.n_embd,
        context,
        tensors: Vec::new(),
        ids: HashMap::new(),
        unread: Vec::new(),
        ops: Vec::new(),
    };
    let (n_vocab, n_embd) = (spec.n_vocab, spec.n_embd);
    let table = b.matrix("token_embd.weight", n_vocab, n_embd);
    let positions = match spec.embedding.positions {
        Positions::None => None,
        Positions::Learned => Some(b.matrix("position_embd.weight", spec.context_length, n_embd)),
    };
    b.ops.push(Op::Embed {
        table,
        scale: spec.embedding.scale,
        positions,
    });
    for (i, layer) in spec.layers.iter().enumerate() {
        b.layer(i, layer);
    }
    let norm = b.norm("", &spec.output_norm, n_embd);
    let matrix = match spec.head.matrix {
        HeadMatrix::Tied => table,
        HeadMatrix::Separate => b.matrix("output.weight", n_vocab, n_embd),
    };
    b.ops.push(Op::Head {
        norm,
        logits: Linear { matrix, bias: None },
        scale: spec.head.scale,
        softcap: spec.head.softcap,
    });
    Plan {
        architecture: spec.architecture,
        context_length: spec.context_length,
        n_embd,
        n_vocab,
        kv: spec.layers.iter().map(kv_shape).collect(),
        tensors: b.tensors,
        unread: b.unread,
        ops: b.ops,
    }
}

fn kv_shape(layer: &LayerSpec) -> KvShape {
    KvShape {
        n_kv_heads: layer.attention.heads.n_kv_heads,
        head_dim: layer.attention.heads.head_dim,
    }
}

struct Builder {
    n_embd: usize,
    context: usize,
    tensors: Vec<TensorDecl>,
    /// A tensor that several operations read is declared once.
    ids: HashMap<String, TensorId>,
    unread: Vec<TensorDecl>,
    ops: Vec<Op>,
}

impl Builder {
    fn declare(&mut self, name: impl Into<String>, shape: Shape) -> TensorId {
        let name = name.into();
        if let Some(id) = self.ids.get(&name) {
            return *id;
        }
        let id = TensorId(self.tensors.len());
        self.ids.insert(name.clone(), id);
        self.tensors.push(TensorDecl { name, shape });
        id
    }

    fn matrix(&mut self, name: impl Into<String>, rows: usize, cols: usize) -> Matrix {
        Matrix {
            tensor: self.declare(name, Shape::Matrix(rows, cols)),
            rows,
            cols,
        }
    }

    /// `name` is that of both tensors without their endings.
    fn linear(&mut self, name: &str, rows: usize, cols: usize, bias: Bias) -> Linear {
        Linear {
            matrix: self.matrix(format!("{name}.weight"), rows, cols),
            bias: match bias {
                Bias::None => None,
                Bias::Added => Some(self.declare(format!("{name}.bias"), Shape::Vector(rows))),
            },
        }
    }

    fn experts(&mut self, name: &str, e: &ExpertsSpec, rows: usize, cols: usize) -> ExpertLinear {
        let n = e.n_experts;
        ExpertLinear {
            tensor: self.declare(format!("{name}.weight"), Shape::Matrices(n, rows, cols)),
            n_experts: n,
            rows,
            cols,
            bias: match e.bias {
                Bias::None => None,
                Bias::Added => Some(self.declare(format!("{name}.bias"), Shape::Vectors(n, rows))),
            },
        }
    }

    /// A norm of `len` values; `prefix` is that of its layer.
    fn norm(&mut self, prefix: &str, spec: &NormSpec, len: usize) -> NormOp {
        let name = format!("{prefix}{}", spec.tensor);
        NormOp {
            norm: spec.norm,
            weight: self.declare(format!("{name}.weight"), Shape::Vector(len)),
            bias: match spec.bias {
                Bias::None => None,
                Bias::Added => Some(self.declare(format!("{name}.bias"), Shape::Vector(len))),
            },
            len,
        }
    }

    fn stream_norm(&mut self, prefix: &str, spec: Option<&NormSpec>) -> Option<NormOp> {
        spec.map(|spec| self.norm(prefix, spec, self.n_embd))
    }

    fn rope(&mut self, rope: &Rope) -> RopeOp {
        let shape = Shape::Vector(rope.dims / 2);
        let (short, long) = ("rope_factors_short.weight", "rope_factors_long.weight");
        let factors = match rope.scaling {
            RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Yarn(_) => None,
            RopeScaling::Factors => Some(self.declare("rope_freqs.weight", shape)),
            RopeScaling::LongShort {
                original_context, ..
            } => {
                let (read, other) = if self.context > original_context {
                    (long, short)
                } else {
                    (short, long)
                };
                if self.unread.is_empty() {
                    let name = other.to_owned();
                    self.unread.push(TensorDecl { name, shape });
                }
                Some(self.declare(read, shape))
            }
        };
        RopeOp {
            rope: *rope,
            factors,
        }
    }

    fn layer(&mut self, i: usize, layer: &LayerSpec) {
        let prefix = format!("blk.{i}.");
        let scale = layer.residual_scale;
        let [attn_in, attend, attn_out] = self.attention(i, &prefix, &layer.attention, scale);
        let (ffn_in, ffn_out) = self.ffn(&prefix, &layer.ffn, scale);
        self.ops.push(attn_in);
        match layer.order {
            LayerOrder::Sequential => {
                self.ops.extend([attend, attn_out]);
                self.ops.extend(ffn_in);
            }
            LayerOrder::Parallel => {
                self.ops.extend(ffn_in);
                self.ops.extend([attend, attn_out]);
            }
        }
        self.ops.extend(ffn_out);
    }

    fn attention(&mut self, layer: usize, prefix: &str, a: &AttentionSpec, scale: f32) -> [Op; 3] {
        let norm = self.stream_norm(prefix, a.norm.as_ref());
        let qkv = self.qkv(prefix, a);
        let (q_norm, k_norm) = self.qk_norms(prefix, a);
        let rope = a.rope.as_ref().map(|rope| self.rope(rope));
        let attn_in = Op::AttnIn {
            layer,
            norm,
            qkv,
            n_heads: a.heads.n_heads,
            n_kv_heads: a.heads.n_kv_heads,
            head_dim: a.heads.head_dim,
            q_norm,
            k_norm,
            rope,
        };
        let sinks = match a.sinks {
            Sinks::None => None,
            Sinks::PerHead => {
                let name = format!("{prefix}attn_sinks.weight");
                Some(self.declare(name, Shape::Vector(a.heads.n_heads)))
            }
        };
        let attend = Op::Attend {
            layer,
            n_heads: a.heads.n_heads,
            n_kv_heads: a.heads.n_kv_heads,
            head_dim: a.heads.head_dim,
            scale: a.scale,
            window: a.window,
            sinks,
            softcap: a.softcap,
        };
        let (name, q_width) = (
            format!("{prefix}attn_output"),
            a.heads.n_heads * a.heads.head_dim,
        );
        let proj = self.linear(&name, self.n_embd, q_width, a.output_bias);
        let join = self.join(prefix, a.post_norm.as_ref(), scale);
        [attn_in, attend, Op::AttnOut { proj, join }]
    }

    fn qkv(&mut self, prefix: &str, a: &AttentionSpec) -> Qkv {
        let (q_rows, kv_rows) = (
            a.heads.n_heads * a.heads.head_dim,
            a.heads.n_kv_heads * a.heads.head_dim,
        );
        let mut part = |part: &str, rows| {
            self.linear(&format!("{prefix}{part}"), rows, self.n_embd, a.qkv_bias)
        };
        match a.qkv {
            QkvLayout::Separate => Qkv::Separate {
                q: part("attn_q", q_rows),
                k: part("attn_k", kv_rows),
                v: part("attn_v", kv_rows),
            },
            QkvLayout::Fused => Qkv::Fused(part("attn_qkv", q_rows + 2 * kv_rows)),
        }
    }

    fn qk_norms(&mut self, prefix: &str, a: &AttentionSpec) -> (Option<NormOp>, Option<NormOp>) {
        let (norm, q_len, k_len) = match a.qk_norm {
            QkNorm::None => return (None, None),
            QkNorm::PerHead(norm) => (norm, a.heads.head_dim, a.heads.head_dim),
            QkNorm::Whole(norm) => (
                norm,
                a.heads.n_heads * a.heads.head_dim,
                a.heads.n_kv_heads * a.heads.head_dim,
            ),
        };
        let mut of = |tensor, len| {
            let bias = Bias::None;
            Some(self.norm(prefix, &NormSpec { tensor, norm, bias }, len))
        };
        (of("attn_q_norm", q_len), of("attn_k_norm", k_len))
    }

    fn join(&mut self, prefix: &str, post_norm: Option<&NormSpec>, scale: f32) -> Join {
        Join {
            norm: self.stream_norm(prefix, post_norm),
            scale,
        }
    }

    /// What reads the stream, and what adds to it.
    fn ffn(&mut self, prefix: &str, ffn: &FfnSpec, scale: f32) -> (Vec<Op>, Vec<Op>) {
        let norm = self.stream_norm(prefix, ffn.norm.as_ref());
        match &ffn.network {
            Network::Dense(dense) => {
                let (hidden, down) = self.dense(prefix, "", dense);
                let join = self.join(prefix, ffn.post_norm.as_ref(), scale);
                let ffn_in = Op::FfnIn {
                    norm,
                    hidden,
                    share: None,
                };
                (vec![ffn_in], vec![Op::FfnOut { down, join }])
            }
            Network::Experts(experts) => {
                let join = self.join(prefix, ffn.post_norm.as_ref(), scale);
                self.routed(prefix, experts, norm, join)
            }
        }
    }

    /// A network whose tensors have names that end in `suffix`.
    fn dense(&mut self, prefix: &str, suffix: &str, d: &DenseSpec) -> (Hidden, Linear) {
        let (n_ff, n_embd, activation) = (d.n_ff, self.n_embd, d.activation);
        let mut linear = |part: &str, rows, cols| {
            self.linear(&format!("{prefix}{part}{suffix}"), rows, cols, d.bias)
        };
        let hidden = match d.form {
            DenseForm::Gated => Hidden::Gated {
                gate: linear("ffn_gate", n_ff, n_embd),
                up: linear("ffn_up", n_ff, n_embd),
                activation,
            },
            DenseForm::GatedFused => Hidden::GatedFused {
                gate_up: linear("ffn_up", 2 * n_ff, n_embd),
                activation,
            },
            DenseForm::Plain => Hidden::Plain {
                up: linear("ffn_up", n_ff, n_embd),
                activation,
            },
        };
        (hidden, linear("ffn_down", n_embd, n_ff))
    }

    fn routed(
        &mut self,
        prefix: &str,
        e: &ExpertsSpec,
        norm: Option<NormOp>,
        join: Join,
    ) -> (Vec<Op>, Vec<Op>) {
        let (n_ff, n_embd) = (e.n_ff, self.n_embd);
        let name = |part: &str| format!("{prefix}{part}");
        let mut reads = vec![
            Op::Route {
                norm,
                router: self.linear(&name("ffn_gate_inp"), e.n_experts, n_embd, e.bias),
                n_used: e.n_used,
                gating: e.gating,
                scale: e.scale,
            },
            Op::ExpertsIn {
                gate: self.experts(&name("ffn_gate_exps"), e, n_ff, n_embd),
                up: self.experts(&name("ffn_up_exps"), e, n_ff, n_embd),
                activation: e.activation,
            },
        ];
        let down = self.experts(&name("ffn_down_exps"), e, n_embd, n_ff);
        let mut adds = vec![Op::ExpertsOut { down, join }];
        if let Some(n_ff) = e.shared_n_ff {
            let dense = DenseSpec {
                n_ff,
                form: DenseForm::Gated,
                activation: e.activation,
                bias: e.bias,
            };
            let (hidden, down) = self.dense(prefix, "_shexp", &dense);
            let share = self.declare(name("ffn_gate_inp_shexp.weight"), Shape::Vector(n_embd));
            reads.push(Op::FfnIn {
                norm,
                hidden,
                share: Some(share),
            });
            adds.push(Op::FfnOut { down, join });
        }
        (reads, adds)
    }
}
