//! The plan of a model as stages of the cpu: each stage is a loop over independent tiles, and a step's cursor is (stage, tile).

use super::integers::blocks;
use super::kernels::Store;
use crate::model::plan::{
    ExpertLinear, Hidden, Join, Linear, Matrix, NormOp, Op, Plan, Qkv, RopeOp, TensorId,
};
use crate::model::spec::{Activation, Gating};

/// An activation buffer; all are (padded width, rows). A row is a token, or in those of experts a token and one of its experts: those of
/// one expert lie together.
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
    /// A projection's result before it joins the stream.
    Out,
    /// Logits of the router.
    Router,
    /// What the experts read.
    ExpertX,
    /// Gate projection of experts, then their hidden layers.
    ExpertGate,
    /// Up projection of experts.
    ExpertUp,
    /// Results of experts.
    ExpertOut,
    /// Logits; not padded.
    Logits,
}

/// Number of buffers.
pub const BUFS: usize = 15;

/// All of them, in their order.
pub const ALL: [Buf; BUFS] = [
    Buf::X,
    Buf::Xn,
    Buf::Q,
    Buf::K,
    Buf::V,
    Buf::Heads,
    Buf::Gate,
    Buf::Up,
    Buf::Out,
    Buf::Router,
    Buf::ExpertX,
    Buf::ExpertGate,
    Buf::ExpertUp,
    Buf::ExpertOut,
    Buf::Logits,
];

/// Which tokens of the step a stage works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// All of them.
    Tokens,
    /// Those whose logits are wanted.
    Rows,
}

/// Rows of a projection times some tokens.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// The tensor.
    pub tensor: TensorId,
    /// The first row that is used: other rows of a fused tensor are other products.
    pub first_row: usize,
    /// How many are used.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// One for each row of the tensor.
    pub bias: Option<TensorId>,
    /// Input.
    pub from: Buf,
    /// Output.
    pub to: Buf,
    /// Whether it is set or added to.
    pub store: Store,
    /// For which tokens.
    pub of: Of,
}

/// What becomes of queries and keys before the pages get them.
#[derive(Clone, Copy, Debug)]
pub struct Append {
    /// Whose keys and values.
    pub layer: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Norms of queries and of keys.
    pub norms: [Option<NormOp>; 2],
    /// Which angles.
    pub rope: Option<usize>,
}

/// Attention of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Whose keys and values.
    pub layer: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Query heads that share a key-value head.
    pub group: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on q·k.
    pub scale: f32,
    /// So many positions are seen.
    pub window: Option<usize>,
    /// A score without a value for each query head.
    pub sinks: Option<TensorId>,
    /// Cap on scores.
    pub softcap: Option<f32>,
}

/// How a token's experts follow from the router's logits.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// How many there are.
    pub n_experts: usize,
    /// How many are used.
    pub n_used: usize,
    /// What their shares are.
    pub gating: Gating,
    /// Factor on the shares.
    pub scale: f32,
}

/// How a hidden layer comes of its projections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activate {
    /// Gate = activation(Gate) × Up, or what joins the two.
    Gated(Activation),
    /// Gate = activation(Gate).
    Plain(Activation),
}

/// One loop over tiles.
#[derive(Clone, Copy, Debug)]
pub enum Stage {
    /// X = scaled rows of the table, with rows of the positions; a tile is a token.
    Embed(Matrix, f32, Option<Matrix>),
    /// Angles of the step's positions for one rotary embedding; a tile is a token.
    Angles(usize),
    /// Xn = norm(X); a tile is a token.
    Norm(NormOp, Of),
    /// `to` = or += matrix × `from` + bias; a tile is some rows of the matrix.
    MatMul(Product),
    /// Normalises and rotates Q and K, appends K and V to the pages; a tile is a token.
    Append(Append),
    /// Heads = attention; a tile is one token and one or more heads of a key-value head.
    Attend(Attention),
    /// The hidden layer of so many values; a tile is a token.
    Activate(Activate, usize),
    /// Gate ×= sigmoid(vector · `Buf`); a tile is a token.
    Share(TensorId, Buf),
    /// X += scale × norm(Out); a tile is a token.
    Join(Join),
    /// The experts of a token by its row of Router; a tile is a token.
    Choose(Choice),
    /// Finds a place for each token and each of its experts, of so many; one tile.
    Group(usize),
    /// ExpertX = rows of `Buf` at their places; a tile is a token.
    Gather(Buf),
    /// A projection of experts; a tile is some rows of one expert's.
    Experts(ExpertLinear, Buf, Buf),
    /// The hidden layers of experts; a tile is a place.
    ActivateExperts(Activate, usize),
    /// Out = Σ share × ExpertOut; a tile is a token.
    Combine,
    /// Logits = softcap(scale × Logits); a tile is a row.
    Logits(f32, Option<f32>),
}

/// The stages of a step and the rotary embeddings that they use.
#[derive(Debug)]
pub struct Program {
    /// In order.
    pub stages: Vec<Stage>,
    /// Distinct rotary embeddings.
    pub ropes: Vec<RopeOp>,
    /// Most experts of a layer, and most that a token goes through.
    pub experts: (usize, usize),
    /// What experts read: the buffer that the last router read.
    routed_from: Buf,
}

/// The exhaustive match over the plan's operations.
pub fn compile(plan: &Plan) -> Program {
    let mut p = Program {
        stages: Vec::new(),
        ropes: Vec::new(),
        experts: (0, 0),
        routed_from: Buf::Xn,
    };
    for op in &plan.ops {
        match op {
            Op::Embed {
                table,
                scale,
                positions,
            } => p.stages.push(Stage::Embed(*table, *scale, *positions)),
            Op::AttnIn { .. } => p.attn_in(op),
            Op::Attend {
                layer,
                n_heads,
                n_kv_heads,
                head_dim,
                scale,
                window,
                sinks,
                softcap,
            } => p.stages.push(Stage::Attend(Attention {
                layer: *layer,
                n_heads: *n_heads,
                group: n_heads / n_kv_heads,
                head_dim: *head_dim,
                scale: *scale,
                window: *window,
                sinks: *sinks,
                softcap: *softcap,
            })),
            Op::AttnOut { proj, join } => p.out(proj, Buf::Heads, join),
            Op::FfnIn {
                norm,
                hidden,
                share,
            } => p.ffn_in(norm.as_ref(), hidden, *share),
            Op::FfnOut { down, join } => p.out(down, Buf::Gate, join),
            Op::Route { .. } | Op::ExpertsIn { .. } | Op::ExpertsOut { .. } => p.routed(op),
            Op::Head {
                norm,
                logits,
                scale,
                softcap,
            } => p.head(norm, logits, *scale, *softcap),
        }
    }
    p
}

/// All rows of a projection, set, for all tokens.
fn whole(linear: &Linear, from: Buf, to: Buf) -> Product {
    rows(linear, 0, linear.matrix.rows, from, to)
}

/// Some rows of a projection, set, for all tokens.
fn rows(linear: &Linear, first_row: usize, rows: usize, from: Buf, to: Buf) -> Product {
    Product {
        tensor: linear.matrix.tensor,
        first_row,
        rows,
        cols: linear.matrix.cols,
        bias: linear.bias,
        from,
        to,
        store: Store::Set,
        of: Of::Tokens,
    }
}

impl Program {
    fn products<const N: usize>(&mut self, products: [Product; N]) {
        self.stages.extend(products.map(Stage::MatMul));
    }

    /// Where the normalised stream is.
    fn norm(&mut self, norm: Option<&NormOp>) -> Buf {
        let Some(norm) = norm else {
            return Buf::X;
        };
        self.stages.push(Stage::Norm(*norm, Of::Tokens));
        Buf::Xn
    }

    fn attn_in(&mut self, op: &Op) {
        let Op::AttnIn {
            layer,
            norm,
            qkv,
            n_heads,
            n_kv_heads,
            head_dim,
            q_norm,
            k_norm,
            rope,
        } = op
        else {
            return;
        };
        let rope = rope.as_ref().map(|rope| self.angles(rope));
        let from = self.norm(norm.as_ref());
        let (q_rows, kv_rows) = (n_heads * head_dim, n_kv_heads * head_dim);
        self.products(match qkv {
            Qkv::Separate { q, k, v } => [
                whole(q, from, Buf::Q),
                whole(k, from, Buf::K),
                whole(v, from, Buf::V),
            ],
            Qkv::Fused(qkv) => [
                rows(qkv, 0, q_rows, from, Buf::Q),
                rows(qkv, q_rows, kv_rows, from, Buf::K),
                rows(qkv, q_rows + kv_rows, kv_rows, from, Buf::V),
            ],
        });
        self.stages.push(Stage::Append(Append {
            layer: *layer,
            head_dim: *head_dim,
            n_heads: *n_heads,
            norms: [*q_norm, *k_norm],
            rope,
        }));
    }

    /// The projection back and what joins the stream. A plain sum is the product's own.
    fn out(&mut self, linear: &Linear, from: Buf, join: &Join) {
        if join.norm.is_none() && join.scale == 1.0 {
            let store = Store::Add;
            self.products([Product {
                store,
                ..whole(linear, from, Buf::X)
            }]);
        } else {
            self.products([whole(linear, from, Buf::Out)]);
            self.stages.push(Stage::Join(*join));
        }
    }

    fn ffn_in(&mut self, norm: Option<&NormOp>, hidden: &Hidden, share: Option<TensorId>) {
        let from = self.norm(norm);
        let n_ff = hidden.n_ff();
        let activate = match hidden {
            Hidden::Gated {
                gate,
                up,
                activation,
            } => {
                self.products([whole(gate, from, Buf::Gate), whole(up, from, Buf::Up)]);
                Activate::Gated(*activation)
            }
            Hidden::GatedFused {
                gate_up,
                activation,
            } => {
                self.products([
                    rows(gate_up, 0, n_ff, from, Buf::Gate),
                    rows(gate_up, n_ff, n_ff, from, Buf::Up),
                ]);
                Activate::Gated(*activation)
            }
            Hidden::Plain { up, activation } => {
                self.products([whole(up, from, Buf::Gate)]);
                Activate::Plain(*activation)
            }
        };
        self.stages.push(Stage::Activate(activate, n_ff));
        if let Some(vector) = share {
            self.stages.push(Stage::Share(vector, from));
        }
    }

    fn head(&mut self, norm: &NormOp, logits: &Linear, scale: f32, softcap: Option<f32>) {
        self.stages.push(Stage::Norm(*norm, Of::Rows));
        let of = Of::Rows;
        self.products([Product {
            of,
            ..whole(logits, Buf::Xn, Buf::Logits)
        }]);
        if scale != 1.0 || softcap.is_some() {
            self.stages.push(Stage::Logits(scale, softcap));
        }
    }

    fn routed(&mut self, op: &Op) {
        match op {
            Op::Route {
                norm,
                router,
                n_used,
                gating,
                scale,
            } => {
                let n_experts = router.matrix.rows;
                self.experts = (self.experts.0.max(n_experts), self.experts.1.max(*n_used));
                self.routed_from = self.norm(norm.as_ref());
                self.products([whole(router, self.routed_from, Buf::Router)]);
                self.stages.push(Stage::Choose(Choice {
                    n_experts,
                    n_used: *n_used,
                    gating: *gating,
                    scale: *scale,
                }));
                self.stages.push(Stage::Group(n_experts));
                self.stages.push(Stage::Gather(self.routed_from));
            }
            Op::ExpertsIn {
                gate,
                up,
                activation,
            } => self.stages.extend([
                Stage::Experts(*gate, Buf::ExpertX, Buf::ExpertGate),
                Stage::Experts(*up, Buf::ExpertX, Buf::ExpertUp),
                Stage::ActivateExperts(Activate::Gated(*activation), up.rows),
            ]),
            Op::ExpertsOut { down, join } => self.stages.extend([
                Stage::Experts(*down, Buf::ExpertGate, Buf::ExpertOut),
                Stage::Combine,
                Stage::Join(*join),
            ]),
            Op::Embed { .. } | Op::AttnIn { .. } | Op::Attend { .. } | Op::AttnOut { .. } => {}
            Op::FfnIn { .. } | Op::FfnOut { .. } | Op::Head { .. } => {}
        }
    }

    /// The index of a rotary embedding; its angles are computed once a step, before their first use.
    fn angles(&mut self, rope: &RopeOp) -> usize {
        if let Some(i) = self.ropes.iter().position(|r| r == rope) {
            return i;
        }
        self.ropes.push(*rope);
        self.stages.push(Stage::Angles(self.ropes.len() - 1));
        self.ropes.len() - 1
    }

    /// The widest use of a buffer, in values a row, before padding.
    pub fn width(&self, buf: Buf) -> usize {
        let product = |from: Buf, to: Buf, rows: usize, cols: usize| {
            let written = if to == buf { rows } else { 0 };
            written.max(if from == buf { cols } else { 0 })
        };
        let of_stage = |stage: &Stage| match stage {
            Stage::Embed(m, ..) if matches!(buf, Buf::X | Buf::Xn) => m.cols,
            Stage::MatMul(p) => product(p.from, p.to, p.rows, p.cols),
            Stage::Experts(e, from, to) => product(*from, *to, e.rows, e.cols),
            Stage::Combine if buf == Buf::Out => self.width(Buf::X),
            Stage::Embed(..) | Stage::Angles(_) | Stage::Norm(..) | Stage::Append(_) => 0,
            Stage::Attend(_) | Stage::Activate(..) | Stage::Share(..) | Stage::Join(_) => 0,
            Stage::Choose(_) | Stage::Group(_) | Stage::Gather(_) | Stage::Combine => 0,
            Stage::ActivateExperts(..) | Stage::Logits(..) => 0,
        };
        self.stages.iter().map(of_stage).max().unwrap_or(0)
    }

    /// Rows that a buffer has for each token of a step.
    pub fn rows_a_token(&self, buf: Buf) -> usize {
        match buf {
            Buf::X | Buf::Xn | Buf::Q | Buf::K | Buf::V | Buf::Heads | Buf::Gate | Buf::Up => 1,
            Buf::Out | Buf::Router | Buf::Logits => 1,
            Buf::ExpertX | Buf::ExpertGate | Buf::ExpertUp | Buf::ExpertOut => self.experts.1,
        }
    }

    /// Every product: what it reads and how wide that is.
    pub fn inputs(&self) -> impl Iterator<Item = (Buf, usize)> {
        self.stages.iter().filter_map(|stage| match stage {
            Stage::MatMul(p) => Some((p.from, p.cols)),
            Stage::Experts(e, from, _) => Some((*from, e.cols)),
            Stage::Embed(..) | Stage::Angles(_) | Stage::Norm(..) | Stage::Append(_) => None,
            Stage::Attend(_) | Stage::Activate(..) | Stage::Share(..) | Stage::Join(_) => None,
            Stage::Choose(_) | Stage::Group(_) | Stage::Gather(_) | Stage::Combine => None,
            Stage::ActivateExperts(..) | Stage::Logits(..) => None,
        })
    }

    /// Every product: its tensor and its inputs a row.
    pub fn matrices(&self) -> impl Iterator<Item = (TensorId, usize)> {
        self.stages.iter().filter_map(|stage| match stage {
            Stage::MatMul(p) => Some((p.tensor, p.cols)),
            Stage::Experts(e, ..) => Some((e.tensor, e.cols)),
            Stage::Embed(..) | Stage::Angles(_) | Stage::Norm(..) | Stage::Append(_) => None,
            Stage::Attend(_) | Stage::Activate(..) | Stage::Share(..) | Stage::Join(_) => None,
            Stage::Choose(_) | Stage::Group(_) | Stage::Gather(_) | Stage::Combine => None,
            Stage::ActivateExperts(..) | Stage::Logits(..) => None,
        })
    }

    /// Most blocks of 32 values that the input of a product has for each token of a step.
    pub fn rounded_max(&self) -> usize {
        let blocks = |(from, cols): (Buf, usize)| blocks(cols) * self.rows_a_token(from);
        self.inputs().map(blocks).max().unwrap_or(0)
    }
}
