//! `gpt2`: LayerNorm, learned positions, one tensor for queries, keys and values, a plain GELU FFN, biases everywhere.
//!
//! Source of the shapes: Radford et al. 2019. The converter has turned the weights to rows of outputs.

use super::keys::Keys;
use crate::model::ModelError;
use crate::model::spec::{
    Activation, AttentionSpec, Bias, DenseForm, DenseSpec, EmbeddingSpec, FfnSpec, HeadSpec,
    LayerOrder, LayerSpec, ModelSpec, Network, Positions, QkNorm, QkvLayout, Sinks,
};

/// Reads a `gpt2` file's metadata.
pub fn spec(keys: &mut Keys<'_>) -> Result<ModelSpec, ModelError> {
    let n_embd = keys.count("embedding_length")?;
    let heads = keys.heads(n_embd)?;
    let kind = keys.layer_norm()?;
    let norm = |tensor| kind.at(tensor, Bias::Added);
    let layer = LayerSpec {
        attention: AttentionSpec {
            norm: Some(norm("attn_norm")),
            heads,
            qkv: QkvLayout::Fused,
            qkv_bias: Bias::Added,
            qk_norm: QkNorm::None,
            rope: None,
            scale: heads.scale(),
            softcap: None,
            window: None,
            sinks: Sinks::None,
            output_bias: Bias::Added,
            post_norm: None,
        },
        ffn: FfnSpec {
            norm: Some(norm("ffn_norm")),
            network: Network::Dense(DenseSpec {
                n_ff: keys.count("feed_forward_length")?,
                form: DenseForm::Plain,
                activation: Activation::GeluTanh,
                bias: Bias::Added,
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
            positions: Positions::Learned,
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
