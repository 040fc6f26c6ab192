//! `falcon`: LayerNorm, attention and a plain GELU FFN side by side; in the larger models each of the two has a norm of its own.
//!
//! Source of the shapes: Almazrouei et al. 2023. With two norms, the second is that of attention.

use super::keys::Keys;
use crate::model::ModelError;
use crate::model::spec::{
    Activation, AttentionSpec, Bias, DenseForm, DenseSpec, EmbeddingSpec, FfnSpec, HeadSpec,
    LayerOrder, LayerSpec, ModelSpec, Network, Positions, QkNorm, QkvLayout, RopeStyle, Sinks,
    YarnBounds,
};

/// Reads a `falcon` file's metadata.
pub fn spec(keys: &mut Keys<'_>) -> Result<ModelSpec, ModelError> {
    let n_embd = keys.count("embedding_length")?;
    let heads = keys.heads(n_embd)?;
    let kind = keys.layer_norm()?;
    let norm = |tensor| kind.at(tensor, Bias::Added);
    let attn_norm = if keys.has("blk.0.attn_norm_2.weight") {
        "attn_norm_2"
    } else {
        "attn_norm"
    };
    let layer = LayerSpec {
        attention: AttentionSpec {
            norm: Some(norm(attn_norm)),
            heads,
            qkv: QkvLayout::Fused,
            qkv_bias: Bias::None,
            qk_norm: QkNorm::None,
            rope: Some(keys.rope(RopeStyle::Halves, heads.head_dim, YarnBounds::Whole)?),
            scale: heads.scale(),
            softcap: None,
            window: None,
            sinks: Sinks::None,
            output_bias: Bias::None,
            post_norm: None,
        },
        ffn: FfnSpec {
            norm: Some(norm("attn_norm")),
            network: Network::Dense(DenseSpec {
                n_ff: keys.count("feed_forward_length")?,
                form: DenseForm::Plain,
                activation: Activation::GeluErf,
                bias: Bias::None,
            }),
            post_norm: None,
        },
        order: LayerOrder::Parallel,
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
