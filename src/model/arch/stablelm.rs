//! `stablelm`: LayerNorm, a SiLU-gated FFN, a part of each head turned. Some have biases of queries, keys and values; in some attention
//! and FFN read the same norm of the same stream.
//!
//! Source of the shapes: Bellagente et al. 2024.

use super::keys::Keys;
use crate::model::ModelError;
use crate::model::spec::{
    Activation, AttentionSpec, Bias, DenseForm, DenseSpec, EmbeddingSpec, FfnSpec, HeadSpec,
    LayerOrder, LayerSpec, ModelSpec, Network, Positions, QkNorm, QkvLayout, RopeStyle, Sinks,
    YarnBounds,
};

/// Reads a `stablelm` file's metadata.
pub fn spec(keys: &mut Keys<'_>) -> Result<ModelSpec, ModelError> {
    let n_embd = keys.count("embedding_length")?;
    let heads = keys.heads(n_embd)?;
    let kind = keys.layer_norm()?;
    let norm = |tensor| kind.at(tensor, Bias::Added);
    let parallel = keys.bool("use_parallel_residual")?.unwrap_or(false);
    let (order, ffn_norm) = if parallel {
        (LayerOrder::Parallel, "attn_norm")
    } else {
        (LayerOrder::Sequential, "ffn_norm")
    };
    let layer = LayerSpec {
        attention: AttentionSpec {
            norm: Some(norm("attn_norm")),
            heads,
            qkv: QkvLayout::Separate,
            qkv_bias: keys.bias("blk.0.attn_q.bias"),
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
            norm: Some(norm(ffn_norm)),
            network: Network::Dense(DenseSpec {
                n_ff: keys.count("feed_forward_length")?,
                form: DenseForm::Gated,
                activation: Activation::Silu,
                bias: Bias::None,
            }),
            post_norm: None,
        },
        order,
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
