//! `qwen2moe`: Qwen 1.5 and 2 with experts. Attention of `qwen2`; a token goes through a few of many networks, with the shares of a
//! softmax over all of them, and through one more that all share, weighed by a sigmoid.
//!
//! Source of the shapes: Qwen Team 2024.

use super::keys::Keys;
use crate::model::ModelError;
use crate::model::spec::{
    Activation, AttentionSpec, Bias, EmbeddingSpec, ExpertsSpec, FfnSpec, Gating, HeadSpec,
    LayerOrder, LayerSpec, ModelSpec, Network, NormSpec, Positions, QkNorm, QkvLayout, RopeStyle,
    Sinks, YarnBounds,
};

/// Reads a `qwen2moe` file's metadata.
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
    let layer = LayerSpec {
        attention: AttentionSpec {
            norm: Some(norm("attn_norm")),
            n_heads: heads.n_heads,
            n_kv_heads: heads.n_kv_heads,
            head_dim: heads.head_dim,
            qkv: QkvLayout::Separate,
            qkv_bias: Bias::Added,
            qk_norm: QkNorm::None,
            rope: Some(keys.rope(RopeStyle::Halves, heads.head_dim, YarnBounds::Whole)?),
            scale: 1.0 / (heads.head_dim as f32).sqrt(),
            softcap: None,
            window: None,
            sinks: Sinks::None,
            output_bias: Bias::None,
            post_norm: None,
        },
        ffn: FfnSpec {
            norm: Some(norm("ffn_norm")),
            network: Network::Experts(ExpertsSpec {
                n_experts: keys.count("expert_count")?,
                n_used: keys.experts_used()?,
                n_ff: keys.count("expert_feed_forward_length")?,
                gating: keys.softmax_gating(Gating::SoftmaxOfAll)?,
                scale: keys.positive("expert_weights_scale")?.unwrap_or(1.0),
                activation: Activation::Silu,
                bias: Bias::None,
                shared_n_ff: Some(keys.count("expert_shared_feed_forward_length")?),
            }),
            post_norm: None,
        },
        order: LayerOrder::Sequential,
        residual_scale: 1.0,
    };
    Ok(ModelSpec {
        architecture: keys.architecture(),
        context_length: keys.count("context_length")?,
        n_embd,
        n_vocab: keys.n_vocab()?,
        embedding: EmbeddingSpec {
            scale: 1.0,
            positions: Positions::None,
        },
        layers: vec![layer; keys.layers()?],
        output_norm: norm("output_norm"),
        head: HeadSpec {
            matrix: keys.head_matrix(),
            scale: 1.0,
            softcap: None,
        },
    })
}
