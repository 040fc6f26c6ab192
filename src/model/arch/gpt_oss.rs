//! `gpt-oss`: RMSNorm, YaRN, sinks, a window in every other layer, biases everywhere, experts with a clamped SwiGLU.
//!
//! Source of the shapes: OpenAI 2025. The bounds of YaRN's ramp are not rounded, as the model's own code has it. The norm before the experts
//! is called `post_attention_norm` in files, though nothing is normalised after attention.

use super::keys::Keys;
use crate::model::ModelError;
use crate::model::spec::{
    Activation, AttentionSpec, Bias, EmbeddingSpec, FfnSpec, Gating, HeadSpec, LayerOrder,
    LayerSpec, ModelSpec, Network, Positions, QkNorm, QkvLayout, RopeStyle, Sinks, YarnBounds,
};

/// Reads a `gpt-oss` file's metadata.
pub fn spec(keys: &mut Keys<'_>) -> Result<ModelSpec, ModelError> {
    let n_embd = keys.count("embedding_length")?;
    let heads = keys.heads(n_embd)?;
    let kind = keys.rms()?;
    let norm = |tensor| kind.at(tensor, Bias::None);
    let activation = Activation::ClampedSwiglu {
        alpha: 1.702,
        limit: 7.0,
    };
    let window = keys.window()?;
    let layer = LayerSpec {
        attention: AttentionSpec {
            norm: Some(norm("attn_norm")),
            heads,
            qkv: QkvLayout::Separate,
            qkv_bias: Bias::Added,
            qk_norm: QkNorm::None,
            rope: Some(keys.rope(RopeStyle::Halves, heads.head_dim, YarnBounds::Exact)?),
            scale: heads.scale(),
            softcap: None,
            window: None,
            sinks: Sinks::PerHead,
            output_bias: Bias::Added,
            post_norm: None,
        },
        ffn: FfnSpec {
            norm: Some(norm("post_attention_norm")),
            network: Network::Experts(keys.experts(
                Gating::SoftmaxOfUsed,
                activation,
                Bias::Added,
            )?),
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
