//! `gemma2`: a window in every other layer, caps on scores and logits, norms before and after each half, GELU-gated FFN.
//!
//! Source of the shapes: Gemma Team 2024. Norms' weights have their 1 added by the converter.

use super::keys::Keys;
use crate::model::ModelError;
use crate::model::spec::{
    Activation, AttentionSpec, Bias, DenseForm, DenseSpec, EmbeddingSpec, FfnSpec, HeadSpec, Heads,
    LayerOrder, LayerSpec, ModelSpec, Network, Positions, QkNorm, QkvLayout, RopeStyle, Sinks,
    YarnBounds,
};

/// Layers of the model of 27B.
const LAYERS_27B: usize = 46;

/// Reads a `gemma2` file's metadata.
pub fn spec(keys: &mut Keys<'_>) -> Result<ModelSpec, ModelError> {
    let n_embd = keys.count("embedding_length")?;
    let heads = keys.heads(n_embd)?;
    let kind = keys.rms()?;
    let norm = |tensor| kind.at(tensor, Bias::None);
    let window = keys.window()?;
    let n_layers = keys.layers()?;
    let layer = LayerSpec {
        attention: AttentionSpec {
            norm: Some(norm("attn_norm")),
            heads,
            qkv: QkvLayout::Separate,
            qkv_bias: Bias::None,
            qk_norm: QkNorm::None,
            rope: Some(keys.rope(RopeStyle::Halves, heads.head_dim, YarnBounds::Whole)?),
            scale: scale((n_layers, LAYERS_27B), n_embd, heads),
            softcap: Some(keys.positive("attn_logit_softcapping")?.unwrap_or(50.0)),
            window: None,
            sinks: Sinks::None,
            output_bias: Bias::None,
            post_norm: Some(norm("post_attention_norm")),
        },
        ffn: FfnSpec {
            norm: Some(norm("ffn_norm")),
            network: Network::Dense(DenseSpec {
                n_ff: keys.count("feed_forward_length")?,
                form: DenseForm::Gated,
                activation: Activation::GeluTanh,
                bias: Bias::None,
            }),
            post_norm: Some(norm("post_ffw_norm")),
        },
        order: LayerOrder::Sequential,
        residual_scale: 1.0,
    };
    // the first layer has the window, the second sees all, and so on
    let mut layers = vec![layer; n_layers];
    for layer in layers.iter_mut().step_by(2) {
        layer.attention.window = window;
    }
    Ok(ModelSpec {
        architecture: keys.architecture(),
        context_length: keys.count("context_length")?,
        n_embd,
        n_vocab: keys.n_vocab()?,
        embedding: EmbeddingSpec {
            scale: (n_embd as f32).sqrt(),
            positions: Positions::None,
        },
        layers,
        output_norm: norm("output_norm"),
        head: HeadSpec {
            matrix: keys.head_matrix(),
            scale: 1.0,
            softcap: Some(keys.positive("final_logit_softcapping")?.unwrap_or(30.0)),
        },
    })
}

/// Factor on q·k: by the width of a head, or in the model of 27B by a head's share of the stream. Only the number of layers tells.
pub(super) fn scale((layers, layers_27b): (usize, usize), n_embd: usize, heads: Heads) -> f32 {
    if layers == layers_27b {
        1.0 / ((n_embd / heads.n_heads) as f32).sqrt()
    } else {
        heads.scale()
    }
}
