//! Which tensors a shape has, and which types the quantiser gives them.

use super::kind::{Filler, Kind};
use super::shape::{Family, Head, Mix, Shape};

/// A tensor of the file.
pub(super) struct Tensor {
    pub(super) name: String,
    /// Innermost first.
    pub(super) dims: Vec<u32>,
    pub(super) kind: Kind,
    content: Content,
}

/// What stands in a tensor.
enum Content {
    /// Random weights that leave activations as large as they find them: they deviate by 1/√columns.
    Matrix,
    /// Near 1, as norms are.
    Norm,
    /// Singles of either sign, up to this.
    UpTo(f32),
    Given(Vec<f32>),
}

impl Tensor {
    /// Stored bytes, without padding.
    pub(super) fn bytes(&self) -> u64 {
        self.kind
            .bytes(self.dims.iter().map(|dim| u64::from(*dim)).product())
    }

    /// What makes them.
    pub(super) fn filler(&self) -> Filler {
        match &self.content {
            Content::Matrix => Filler::weights(self.kind, 1.0 / (self.dims[0] as f32).sqrt()),
            Content::Norm => Filler::Between(0.9, 1.1),
            Content::UpTo(most) => Filler::Between(-most, *most),
            Content::Given(singles) => {
                Filler::Given(singles.iter().flat_map(|x| x.to_le_bytes()).collect())
            }
        }
    }
}

/// What a matrix is for, as far as the quantiser cares.
#[derive(Clone, Copy)]
enum Role {
    /// Gives the logits: the head, or the embedding where that is both.
    Logits,
    Embedding,
    /// Values, and the second matrix of the FFN: more bits in some layers.
    Precious,
    /// Queries, keys and values in one.
    Fused,
    Experts,
    Other,
}

/// All tensors of a shape with so many layers.
pub(super) fn tensors(shape: &Shape, layers: u32) -> Vec<Tensor> {
    let mut list = List {
        shape,
        layers,
        layer: 0,
        tensors: Vec::new(),
    };
    let (embedding, tied) = match shape.head {
        Head::Tied => (Role::Logits, true),
        Head::Separate => (Role::Embedding, false),
    };
    list.matrix("token_embd", embedding, shape.n_embd, shape.n_vocab);
    if let Some(factors) = shape.rope_factors() {
        let dims = vec![factors.len() as u32];
        list.put(
            "rope_freqs.weight",
            dims,
            Kind::F32,
            Content::Given(factors),
        );
    }
    for layer in 0..layers {
        list.layer = layer;
        list.attention();
        match shape.family {
            Family::Llama { .. } | Family::Qwen2 | Family::Qwen3 | Family::Phi3 { .. } => {
                list.feed_forward();
            }
            Family::GptOss { experts, .. } => list.experts(experts),
        }
    }
    list.norm("output_norm", shape.n_embd);
    if !tied {
        list.matrix("output", Role::Logits, shape.n_embd, shape.n_vocab);
    }
    list.tensors
}

/// The list in the making.
struct List<'a> {
    shape: &'a Shape,
    layers: u32,
    layer: u32,
    tensors: Vec<Tensor>,
}

impl List<'_> {
    fn attention(&mut self) {
        let shape = self.shape;
        let (n_embd, q) = (shape.n_embd, shape.n_heads * shape.head_dim);
        let kv = shape.n_kv_heads * shape.head_dim;
        self.norm(&self.named("attn_norm"), n_embd);
        if let Family::Phi3 { .. } = shape.family {
            self.matrix(&self.named("attn_qkv"), Role::Fused, n_embd, q + 2 * kv);
            self.matrix(&self.named("attn_output"), Role::Other, q, n_embd);
            return;
        }
        let projections = [
            ("attn_q", Role::Other, n_embd, q),
            ("attn_k", Role::Other, n_embd, kv),
            ("attn_v", Role::Precious, n_embd, kv),
            ("attn_output", Role::Other, q, n_embd),
        ];
        let biased = match shape.family {
            Family::Llama { .. } | Family::Qwen3 | Family::Phi3 { .. } => 0,
            Family::Qwen2 => 3,
            Family::GptOss { .. } => 4,
        };
        for (i, (part, role, columns, rows)) in projections.into_iter().enumerate() {
            self.matrix(&self.named(part), role, columns, rows);
            if i < biased {
                self.bias(part, vec![rows]);
            }
        }
        match shape.family {
            Family::Qwen3 => {
                self.norm(&self.named("attn_q_norm"), shape.head_dim);
                self.norm(&self.named("attn_k_norm"), shape.head_dim);
            }
            Family::GptOss { .. } => {
                let name = self.named("attn_sinks.weight");
                self.put(&name, vec![shape.n_heads], Kind::F32, Content::UpTo(1.0));
            }
            Family::Llama { .. } | Family::Qwen2 | Family::Phi3 { .. } => {}
        }
    }

    fn feed_forward(&mut self) {
        let (n_embd, n_ff) = (self.shape.n_embd, self.shape.n_ff);
        self.norm(&self.named("ffn_norm"), n_embd);
        if let Family::Phi3 { .. } = self.shape.family {
            self.matrix(&self.named("ffn_up"), Role::Other, n_embd, 2 * n_ff);
        } else {
            self.matrix(&self.named("ffn_gate"), Role::Other, n_embd, n_ff);
            self.matrix(&self.named("ffn_up"), Role::Other, n_embd, n_ff);
        }
        self.matrix(&self.named("ffn_down"), Role::Precious, n_ff, n_embd);
    }

    fn experts(&mut self, experts: u32) {
        let (n_embd, n_ff) = (self.shape.n_embd, self.shape.n_ff);
        self.norm(&self.named("post_attention_norm"), n_embd);
        let router = self.named("ffn_gate_inp.weight");
        self.put(&router, vec![n_embd, experts], Kind::F32, Content::Matrix);
        self.bias("ffn_gate_inp", vec![experts]);
        for (part, columns, rows) in [
            ("ffn_gate_exps", n_embd, n_ff),
            ("ffn_up_exps", n_embd, n_ff),
            ("ffn_down_exps", n_ff, n_embd),
        ] {
            let kind = self.kind(Role::Experts, columns);
            let name = self.named(&format!("{part}.weight"));
            self.put(&name, vec![columns, rows, experts], kind, Content::Matrix);
            self.bias(part, vec![rows, experts]);
        }
    }

    fn named(&self, part: &str) -> String {
        format!("blk.{}.{part}", self.layer)
    }

    fn matrix(&mut self, stem: &str, role: Role, columns: u32, rows: u32) {
        let kind = self.kind(role, columns);
        let name = format!("{stem}.weight");
        self.put(&name, vec![columns, rows], kind, Content::Matrix);
    }

    fn norm(&mut self, stem: &str, len: u32) {
        self.put(
            &format!("{stem}.weight"),
            vec![len],
            Kind::F32,
            Content::Norm,
        );
    }

    fn bias(&mut self, part: &str, dims: Vec<u32>) {
        let name = self.named(&format!("{part}.bias"));
        self.put(&name, dims, Kind::F32, Content::UpTo(0.1));
    }

    fn put(&mut self, name: &str, dims: Vec<u32>, kind: Kind, content: Content) {
        let name = name.to_owned();
        self.tensors.push(Tensor {
            name,
            dims,
            kind,
            content,
        });
    }

    /// What the quantiser chooses.
    fn kind(&self, role: Role, columns: u32) -> Kind {
        let wanted = match (self.shape.mix, role) {
            (Mix::Q4KM, Role::Logits) => Kind::Q6K,
            (Mix::Q4KM, Role::Precious) if more_bits(self.layer, self.layers) => Kind::Q6K,
            (Mix::Q4KM, Role::Fused) => Kind::Q5K,
            (Mix::Q4KM, Role::Embedding | Role::Precious | Role::Experts | Role::Other) => {
                Kind::Q4K
            }
            (Mix::Q4_1, Role::Logits) => Kind::Q6K,
            (
                Mix::Q4_1,
                Role::Embedding | Role::Precious | Role::Fused | Role::Experts | Role::Other,
            ) => Kind::Q4_1,
            (Mix::Mxfp4, Role::Experts) => Kind::Mxfp4,
            (
                Mix::Mxfp4,
                Role::Logits | Role::Embedding | Role::Precious | Role::Fused | Role::Other,
            ) => Kind::Q8_0,
        };
        wanted.for_columns(columns)
    }
}

/// The layers in which llama.cpp's mixes with an M spend more on the precious matrices: the first and the last eighth, and every
/// third of those between.
fn more_bits(layer: u32, layers: u32) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}
