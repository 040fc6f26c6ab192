//! What a model is, with every layer already resolved: data that an arch file fills in and [`super::lower`] reads.
//!
//! There are no clusters of flags and no `Default`: a new field breaks every arch file, and that is the checklist.

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
    /// One entry a layer, first to last.
    pub layers: Vec<LayerSpec>,
    /// Norm before the logits.
    pub output_norm: Norm,
    /// Which matrix gives the logits.
    pub head: Head,
}

/// One transformer layer: attention, then feed-forward, each added to the residual stream.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// The attention half.
    pub attention: AttentionSpec,
    /// The feed-forward half.
    pub ffn: FfnSpec,
}

/// Grouped-query attention.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Norm before the projections.
    pub norm: Norm,
    /// Query heads; a multiple of `n_kv_heads`.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// How positions enter.
    pub rope: Rope,
    /// Factor on q·k before the softmax, usually 1/√head_dim.
    pub scale: f32,
}

/// Feed-forward network.
#[derive(Clone, Debug, PartialEq)]
pub struct FfnSpec {
    /// Norm before the projections.
    pub norm: Norm,
    /// Width of the hidden layer.
    pub n_ff: usize,
    /// What is applied between the two projections.
    pub activation: Activation,
}

/// A normalisation over the last dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// x / √(mean(x²) + eps) × weight (Zhang & Sennrich 2019).
    Rms {
        /// Added to the mean square.
        eps: f32,
    },
}

/// Rotary position embedding (Su et al. 2021).
#[derive(Clone, Debug, PartialEq)]
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
}

/// What stands between the two projections of a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// silu(gate) × up, silu(x) = x / (1 + e^-x).
    SiluGated,
}

/// Where the logits' matrix comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// The embedding once more.
    Tied,
    /// `output.weight`.
    Separate,
}
