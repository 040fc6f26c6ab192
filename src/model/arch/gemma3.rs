//! `gemma3`: the text model of Gemma 3. Five layers with a window and slow positions, then one that sees all; norms before and after each
//! half, norms of query and key heads, GELU-gated FFN.
//!
//! Source of the shapes: Gemma Team 2025. Norms' weights have their 1 added by the converter.

use super::gemma2::scale;
use super::keys::Keys;
use crate::model::ModelError;
use crate::model::spec::{
    Activation, AttentionSpec, Bias, DenseForm, DenseSpec, EmbeddingSpec, FfnSpec, HeadSpec,
    LayerOrder, LayerSpec, ModelSpec, Network, Positions, QkNorm, QkvLayout, Rope, RopeScaling,
    RopeStyle, Sinks, YarnBounds,
};

/// Layers of the model of 27B.
const LAYERS_27B: usize = 62;

/// One layer in so many sees all positions.
const GLOBAL_EVERY: usize = 6;

/// Reads a `gemma3` file's metadata.
pub fn spec(keys: &mut Keys<'_>) -> Result<ModelSpec, ModelError> {
    let n_embd = keys.count("embedding_length")?;
    let heads = keys.heads(n_embd)?;
    let kind = keys.rms()?;
    let norm = |tensor| kind.at(tensor, Bias::None);
    let window = keys.window()?;
    let global = keys.rope(RopeStyle::Halves, heads.head_dim, YarnBounds::Whole)?;
    let slow = Rope {
        base: keys.positive("rope.freq_base_swa")?.unwrap_or(10_000.0),
        scaling: RopeScaling::None,
        ..global
    };
    let local = LayerSpec {
        attention: AttentionSpec {
            norm: Some(norm("attn_norm")),
            heads,
            qkv: QkvLayout::Separate,
            qkv_bias: Bias::None,
            qk_norm: QkNorm::PerHead(kind),
            rope: Some(slow),
            scale: scale((keys.layers()?, LAYERS_27B), n_embd, heads),
            softcap: None,
            window,
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
    Ok(ModelSpec {
        architecture: keys.architecture(),
        context_length: keys.count("context_length")?,
        n_embd,
        n_vocab: keys.n_vocab()?,
        embedding: EmbeddingSpec {
            scale: (n_embd as f32).sqrt(),
            positions: Positions::None,
        },
        layers: layers(keys, local, global)?,
        output_norm: norm("output_norm"),
        head: HeadSpec {
            matrix: keys.head_matrix(),
            scale: 1.0,
            softcap: keys.positive_or_none("final_logit_softcapping")?,
        },
    })
}

/// Layers with a window, and now and then one that sees all, with positions of its own.
fn layers(
    keys: &mut Keys<'_>,
    local: LayerSpec,
    global: Rope,
) -> Result<Vec<LayerSpec>, ModelError> {
    let every = keys.count_or_none("attention.sliding_window_pattern")?;
    let every = every.unwrap_or(GLOBAL_EVERY);
    let mut layers = vec![local; keys.layers()?];
    for layer in layers.iter_mut().skip(every - 1).step_by(every) {
        layer.attention.window = None;
        layer.attention.rope = Some(global);
    }
    Ok(layers)
}
