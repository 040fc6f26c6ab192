//! What a model is, with every layer already resolved: data that an arch file fills in and [`super::lower`] reads.
//!
//! There are no clusters of flags and no `Default`: a new field breaks every arch file, and that is the checklist. Tensors have the names
//! that all architectures share, but for norms, which stand in other places from one to the next and so carry theirs.

/// A whole model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// Longest context it was trained for, in tokens.
    pub context_length: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Rows of the embedding: entries of the vocabulary.
    pub n_vocab: usize,
    /// How a token enters.
    pub embedding: EmbeddingSpec,
    /// One entry a layer, first to last.
    pub layers: Vec<LayerSpec>,
    /// Before the logits; its tensor has no layer.
    pub output_norm: NormSpec,
    /// How logits come out.
    pub head: HeadSpec,
}

/// How a token enters the residual stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EmbeddingSpec {
    /// Factor on the embedding's rows.
    pub scale: f32,
    /// What is added for the position.
    pub positions: Positions,
}

/// What the embedding adds for a token's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// Nothing: positions enter in attention.
    None,
    /// A row of `position_embd.weight` each, for as many positions as the context was trained for.
    Learned,
}

/// How logits come out of the residual stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadSpec {
    /// Which matrix.
    pub matrix: HeadMatrix,
    /// Factor on the logits.
    pub scale: f32,
    /// Logits become cap × tanh(logit / cap).
    pub softcap: Option<f32>,
}

/// Where the logits' matrix comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadMatrix {
    /// The embedding once more.
    Tied,
    /// `output.weight`.
    Separate,
}

/// One transformer layer: attention and feed-forward, each added to the residual stream.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// The attention half.
    pub attention: AttentionSpec,
    /// The feed-forward half.
    pub ffn: FfnSpec,
    /// What the feed-forward half reads.
    pub order: LayerOrder,
    /// Factor on what each half adds.
    pub residual_scale: f32,
}

/// What the feed-forward half of a layer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerOrder {
    /// The stream with what attention has added.
    Sequential,
    /// The same stream as attention.
    Parallel,
}

/// Grouped-query attention.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Before the projections.
    pub norm: Option<NormSpec>,
    /// How many there are, and how wide.
    pub heads: Heads,
    /// How the projections are stored.
    pub qkv: QkvLayout,
    /// Biases of queries, keys and values.
    pub qkv_bias: Bias,
    /// Norms of queries and keys before they turn.
    pub qk_norm: QkNorm,
    /// How positions enter, where they do.
    pub rope: Option<Rope>,
    /// Factor on q·k before the softmax, usually 1/√head_dim.
    pub scale: f32,
    /// Scores become cap × tanh(score / cap).
    pub softcap: Option<f32>,
    /// A token sees so many positions, its own included; `None` for all.
    pub window: Option<usize>,
    /// Whether a softmax has a term of no value.
    pub sinks: Sinks,
    /// Bias of the projection back.
    pub output_bias: Bias,
    /// Of what is added to the stream.
    pub post_norm: Option<NormSpec>,
}

/// Heads of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads; a multiple of `n_kv_heads`.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl Heads {
    /// 1/√head_dim, the usual factor on q·k.
    pub fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// How the projections of queries, keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvLayout {
    /// `attn_q`, `attn_k`, `attn_v`.
    Separate,
    /// `attn_qkv`: rows of all queries, all keys, all values.
    Fused,
}

/// Norms of queries and keys: `attn_q_norm` and `attn_k_norm`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QkNorm {
    /// None.
    None,
    /// Of every head by itself; one weight for all heads.
    PerHead(Norm),
    /// Of all heads at once.
    Whole(Norm),
}

/// A learned term in the denominator of a softmax.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sinks {
    /// None.
    None,
    /// `attn_sinks`: e^sink joins the sum of each query head.
    PerHead,
}

/// Whether projections have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// They have none.
    None,
    /// They have: a tensor of the same name that ends in `.bias`.
    Added,
}

/// Feed-forward half of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct FfnSpec {
    /// Before the projections.
    pub norm: Option<NormSpec>,
    /// One network, or one of many for each token.
    pub network: Network,
    /// Of what is added to the stream.
    pub post_norm: Option<NormSpec>,
}

/// A feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Network {
    /// The same for every token.
    Dense(DenseSpec),
    /// A few of many experts for each token.
    Experts(ExpertsSpec),
}

/// A network that every token goes through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DenseSpec {
    /// Width of the hidden layer.
    pub n_ff: usize,
    /// What makes the hidden layer.
    pub form: DenseForm,
    /// Between the two projections.
    pub activation: Activation,
    /// Of all projections.
    pub bias: Bias,
}

/// What makes the hidden layer of a dense network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenseForm {
    /// `ffn_gate` and `ffn_up`.
    Gated,
    /// `ffn_up` alone, with the rows of the gate first.
    GatedFused,
    /// `ffn_up` alone: there is no gate.
    Plain,
}

/// Networks of which each token goes through a few, gated all of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertsSpec {
    /// How many there are.
    pub n_experts: usize,
    /// How many a token goes through.
    pub n_used: usize,
    /// Width of the hidden layer of each.
    pub n_ff: usize,
    /// How their shares follow from the router's logits.
    pub gating: Gating,
    /// Factor on the shares.
    pub scale: f32,
    /// Between the two projections.
    pub activation: Activation,
    /// Of the router and of all projections.
    pub bias: Bias,
    /// One more network for every token: its hidden width. Its part is weighed by a sigmoid of its own.
    pub shared_n_ff: Option<usize>,
}

/// How the shares of the experts that are used follow from the router's logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// Softmax over the logits of those that are used.
    SoftmaxOfUsed,
    /// Softmax over all logits; the shares are those of it, so that they do not sum to 1.
    SoftmaxOfAll,
}

/// A normalisation and where its weight lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// The tensor without its layer and ending: "attn_norm".
    pub tensor: &'static str,
    /// Which one.
    pub norm: Norm,
    /// Whether it has a bias.
    pub bias: Bias,
}

/// A normalisation over the last dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// x / √(mean(x²) + eps) × weight (Zhang & Sennrich 2019).
    Rms {
        /// Added to the mean square.
        eps: f32,
    },
    /// (x - mean(x)) / √(variance(x) + eps) × weight (Ba et al. 2016).
    Layer {
        /// Added to the variance.
        eps: f32,
    },
}

impl Norm {
    /// The norm of one place in a model.
    pub const fn at(self, tensor: &'static str, bias: Bias) -> NormSpec {
        NormSpec {
            tensor,
            norm: self,
            bias,
        }
    }
}

/// Rotary position embedding (Su et al. 2021).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Which elements form a pair.
    pub style: RopeStyle,
    /// Leading elements of a head that are rotated; even, at most head_dim.
    pub dims: usize,
    /// Base of the frequencies: pair i turns by position × base^(-2i/dims).
    pub base: f32,
    /// How frequencies are changed for contexts longer than trained.
    pub scaling: RopeScaling,
}

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Neighbours (2i, 2i+1): llama as its GGUF converter lays it out.
    Interleaved,
    /// Halves (i, i + dims/2), as GPT-NeoX does.
    Halves,
}

/// Frequency scaling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Every frequency divided by one factor (position interpolation).
    Linear {
        /// The divisor, > 0.
        factor: f32,
    },
    /// Each pair's frequency divided by its own factor, from the tensor `rope_freqs.weight` (Llama 3.1).
    Factors,
    /// The same from one of two tensors, `rope_factors_short.weight` and `rope_factors_long.weight` (LongRoPE, Ding et al. 2024). The long
    /// ones are for a worker whose context is longer than `original_context`, at all of its positions: keys that are cached have turned once and
    /// for all, so that the choice cannot follow the length of a sequence as it grows.
    LongShort {
        /// Longest context that the short factors are for.
        original_context: usize,
        /// Factor on sines and cosines, with either tensor.
        magnitude: f32,
    },
    /// Low frequencies divided by a factor, high ones left, a ramp between them (Peng et al. 2023).
    Yarn(Yarn),
}

/// The parameters of YaRN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// The divisor of low frequencies.
    pub factor: f32,
    /// Context that the model was trained for before.
    pub original_context: usize,
    /// Pairs that turn more often than this within the original context keep their frequency.
    pub beta_fast: f32,
    /// Pairs that turn less often than this have theirs divided.
    pub beta_slow: f32,
    /// Between which pairs the ramp lies.
    pub bounds: YarnBounds,
    /// Factor on sines and cosines.
    pub magnitude: f32,
}

/// Whether the ends of YaRN's ramp are pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum YarnBounds {
    /// Rounded outwards to whole pairs.
    Whole,
    /// As computed (gpt-oss).
    Exact,
}

/// What stands between the two projections of a feed-forward network. Where there is a gate it is applied to the gate, and multiplied by `up`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// x / (1 + e^-x).
    Silu,
    /// x/2 × (1 + tanh(√(2/π) × (x + 0.044715 x³))).
    GeluTanh,
    /// x/2 × (1 + erf(x/√2)).
    GeluErf,
    /// g / (1 + e^(-alpha g)) × (u + 1) with g = min(gate, limit) and u = up within ±limit (gpt-oss). Needs a gate.
    ClampedSwiglu {
        /// Factor in the exponent.
        alpha: f32,
        /// Bound of gate and up.
        limit: f32,
    },
}
