//! `gpt-oss`: RMSNorm, YaRN, sinks, a window in every other layer, biases everywhere, experts with a clamped SwiGLU.
//!
//! Source of the shapes: OpenAI 2025. The bounds of YaRN's ramp are not rounded, as the model's own code has it. The norm before the experts
//! is called `post_attention_norm` in files, though nothing is normalised after attention.

use super::keys::Keys;
use crate::model::ModelError;
use crate::model::spec::{
    Activation, AttentionSpec, Bias, EmbeddingSpec, ExpertsSpec, FfnSpec, Gating, HeadSpec,
    LayerOrder, LayerSpec, ModelSpec, Network, NormSpec, Positions, QkNorm, QkvLayout, RopeStyle,
    Sinks, YarnBounds,
};

/// Reads a `gpt-oss` file's metadata.
pub fn spec(keys: &mut Keys<'_>) -> Result<ModelSpec, ModelError> {
    let n_embd = keys.count("embedding_length")?;
    let heads = keys.heads(n_embd)?;
    let kind = keys.rms()?;
    let norm = |tensor| NormSpec {
        tensor,
        norm: kind,
        bias: Bias::None,
    };
    keys.dense_width_of_experts()?;
    let window = keys.window()?;
    let layer = LayerSpec {
        attention: AttentionSpec {
            norm: Some(norm("attn_norm")),
            n_heads: heads.n_heads,
            n_kv_heads: heads.n_kv_heads,
            head_dim: heads.head_dim,
            qkv: QkvLayout::Separate,
            qkv_bias: Bias::Added,
            qk_norm: QkNorm::None,
            rope: Some(keys.rope(RopeStyle::Halves, heads.head_dim, YarnBounds::Exact)?),
            scale: 1.0 / (heads.head_dim as f32).sqrt(),
            softcap: None,
            window: None,
            sinks: Sinks::PerHead,
            output_bias: Bias::Added,
            post_norm: None,
        },
        ffn: FfnSpec {
            norm: Some(norm("post_attention_norm")),
            network: Network::Experts(ExpertsSpec {
                n_experts: keys.count("expert_count")?,
                n_used: keys.experts_used()?,
                n_ff: keys.count("expert_feed_forward_length")?,
                gating: keys.softmax_gating(Gating::SoftmaxOfUsed)?,
                scale: keys.positive("expert_weights_scale")?.unwrap_or(1.0),
                activation: Activation::ClampedSwiglu {
                    alpha: 1.702,
                    limit: 7.0,
                },
                bias: Bias::Added,
                shared_n_ff: None,
            }),
            post_norm: None,
        },
        order: LayerOrder::Sequential,
        residual_scale: 1.0,
    };
    // the first layer has the window, the second sees all, and so on
    let mut layers = vec![layer; keys.layers()?];
    for layer in layers.iter_mut().step_by(2) {
        layer.attention.window = window;
    }
    Ok(ModelSpec {
        architecture: keys.architecture(),
        context_length: keys.count("context_length")?,
        n_embd,
        n_vocab: keys.n_vocab()?,
        embedding: EmbeddingSpec {
            scale: 1.0,
            positions: Positions::None,
        },
        layers,
        output_norm: norm("output_norm"),
        head: HeadSpec {
            matrix: keys.head_matrix(),
            scale: 1.0,
            softcap: None,
        },
    })
}
