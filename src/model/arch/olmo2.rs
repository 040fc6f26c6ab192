//! `olmo2`: norms after each half and none before, norms of all query and all key heads at once.
//!
//! Source of the shapes: OLMo Team 2024.

use super::keys::Keys;
use crate::model::ModelError;
use crate::model::spec::{
    Activation, AttentionSpec, Bias, DenseForm, DenseSpec, EmbeddingSpec, FfnSpec, HeadSpec,
    LayerOrder, LayerSpec, ModelSpec, Network, Positions, QkNorm, QkvLayout, RopeStyle, Sinks,
    YarnBounds,
};

/// Reads an `olmo2` file's metadata.
pub fn spec(keys: &mut Keys<'_>) -> Result<ModelSpec, ModelError> {
    let n_embd = keys.count("embedding_length")?;
    let heads = keys.heads(n_embd)?;
    let kind = keys.rms()?;
    let norm = |tensor| kind.at(tensor, Bias::None);
    let layer = LayerSpec {
        attention: AttentionSpec {
            norm: None,
            heads,
            qkv: QkvLayout::Separate,
            qkv_bias: Bias::None,
            qk_norm: QkNorm::Whole(kind),
            rope: Some(keys.rope(RopeStyle::Halves, heads.head_dim, YarnBounds::Whole)?),
            scale: heads.scale(),
            softcap: None,
            window: None,
            sinks: Sinks::None,
            output_bias: Bias::None,
            post_norm: Some(norm("post_attention_norm")),
        },
        ffn: FfnSpec {
            norm: None,
            network: Network::Dense(DenseSpec {
                n_ff: keys.count("feed_forward_length")?,
                form: DenseForm::Gated,
                activation: Activation::Silu,
                bias: Bias::None,
            }),
            post_norm: Some(norm("post_ffw_norm")),
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
