//! `granite`: llama's shape with four factors: on the embedding, the scores, what is added to the stream, and the logits.
//!
//! Source of the shapes: Granite Team 2024. The file's `logit_scale` is a divisor. Those of the fourth generation that have attention in every
//! layer are the same, with keys that only tell of layers and experts which they do not have.

use super::keys::Keys;
use crate::model::ModelError;
use crate::model::spec::{
    Activation, AttentionSpec, Bias, DenseForm, DenseSpec, EmbeddingSpec, FfnSpec, HeadSpec,
    LayerOrder, LayerSpec, ModelSpec, Network, Positions, QkNorm, QkvLayout, RopeStyle, Sinks,
    YarnBounds,
};

/// Keys of recurrent layers; their tensors would be left over.
const OF_RECURRENT_LAYERS: [&str; 5] = [
    "ssm.conv_kernel",
    "ssm.state_size",
    "ssm.group_count",
    "ssm.inner_size",
    "ssm.time_step_rank",
];

/// Reads a `granite` file's metadata.
pub fn spec(keys: &mut Keys<'_>) -> Result<ModelSpec, ModelError> {
    let n_embd = keys.count("embedding_length")?;
    let heads = keys.heads(n_embd)?;
    let kind = keys.rms()?;
    let norm = |tensor| kind.at(tensor, Bias::None);
    let scale = keys.positive_or_none("attention.scale")?;
    let n_ff = keys.count("feed_forward_length")?;
    check_fourth(keys, n_ff)?;
    let layer = LayerSpec {
        attention: AttentionSpec {
            norm: Some(norm("attn_norm")),
            heads,
            qkv: QkvLayout::Separate,
            qkv_bias: Bias::None,
            qk_norm: QkNorm::None,
            rope: Some(keys.rope(RopeStyle::Interleaved, heads.head_dim, YarnBounds::Whole)?),
            scale: scale.unwrap_or(heads.scale()),
            softcap: None,
            window: None,
            sinks: Sinks::None,
            output_bias: Bias::None,
            post_norm: None,
        },
        ffn: FfnSpec {
            norm: Some(norm("ffn_norm")),
            network: Network::Dense(DenseSpec {
                n_ff,
                form: DenseForm::Gated,
                activation: Activation::Silu,
                bias: Bias::None,
            }),
            post_norm: None,
        },
        order: LayerOrder::Sequential,
        residual_scale: keys.positive_or_none("residual_scale")?.unwrap_or(1.0),
    };
    Ok(ModelSpec {
        architecture: keys.architecture(),
        context_length: keys.count("context_length")?,
        n_embd,
        n_vocab: keys.n_vocab()?,
        embedding: EmbeddingSpec {
            scale: keys.positive_or_none("embedding_scale")?.unwrap_or(1.0),
            positions: Positions::None,
        },
        layers: vec![layer; keys.layers()?],
        output_norm: norm("output_norm"),
        head: HeadSpec {
            matrix: keys.head_matrix(),
            scale: 1.0 / keys.positive_or_none("logit_scale")?.unwrap_or(1.0),
            softcap: None,
        },
    })
}

/// What files of the fourth generation say beyond the others. Here alone `rope.scaling.finetuned` says whether heads turn at all.
fn check_fourth(keys: &mut Keys<'_>, n_ff: usize) -> Result<(), ModelError> {
    let name = "rope.scaling.finetuned";
    if keys.bool(name)? == Some(false) {
        let expected = "but a granite without positions is not supported";
        return Err(keys.wrong(name, false, expected));
    }
    let name = "expert_shared_feed_forward_length";
    if let Some(other) = keys.count_or_none(name)?.filter(|n| *n != n_ff) {
        let expected =
            format!("but must be the feed-forward length {n_ff} where there are no experts");
        return Err(keys.wrong(name, other, expected));
    }
    for name in OF_RECURRENT_LAYERS {
        keys.key(name);
    }
    Ok(())
}
