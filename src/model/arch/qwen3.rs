//! `qwen3`: Qwen 3, dense. Queries and keys are normalised head by head before they turn; heads are as wide as the file says.
//!
//! Source of the shapes: Qwen Team 2025.

use super::keys::Keys;
use crate::model::ModelError;
use crate::model::spec::{
    Activation, AttentionSpec, Bias, DenseForm, DenseSpec, EmbeddingSpec, FfnSpec, HeadSpec,
    LayerOrder, LayerSpec, ModelSpec, Network, Positions, QkNorm, QkvLayout, RopeStyle, Sinks,
    YarnBounds,
};

/// Reads a `qwen3` file's metadata.
pub fn spec(keys: &mut Keys<'_>) -> Result<ModelSpec, ModelError> {
    let n_embd = keys.count("embedding_length")?;
    let heads = keys.heads(n_embd)?;
    let kind = keys.rms()?;
    let norm = |tensor| kind.at(tensor, Bias::None);
    let layer = LayerSpec {
        attention: AttentionSpec {
            norm: Some(norm("attn_norm")),
            heads,
            qkv: QkvLayout::Separate,
            qkv_bias: Bias::None,
            qk_norm: QkNorm::PerHead(kind),
            rope: Some(keys.rope(RopeStyle::Halves, heads.head_dim, YarnBounds::Whole)?),
            scale: heads.scale(),
            softcap: None,
            window: None,
            sinks: Sinks::None,
            output_bias: Bias::None,
            post_norm: None,
        },
        ffn: FfnSpec {
            norm: Some(norm("ffn_norm")),
            network: Network::Dense(DenseSpec {
                n_ff: keys.count("feed_forward_length")?,
                form: DenseForm::Gated,
                activation: Activation::Silu,
                bias: Bias::None,
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
