//! `gemma3`: the text model of Gemma 3. Five layers with a window and slow positions, then one that sees all; norms before and after each
//! half, norms of query and key heads, GELU-gated FFN.
//!
//! Source of the shapes: Gemma Team 2025. Norms' weights have their 1 added by the converter.

use super::keys::Keys;
use crate::model::ModelError;
use crate::model::spec::{
    Activation, AttentionSpec, Bias, DenseForm, DenseSpec, EmbeddingSpec, FfnSpec, HeadSpec,
    LayerOrder, LayerSpec, ModelSpec, Network, NormSpec, Positions, QkNorm, QkvLayout, Rope,
    RopeScaling, RopeStyle, Sinks, YarnBounds,
};

/// Layers of the 27B model, whose scores are scaled by the heads' share of the stream and not by their width.
const LAYERS_27B: usize = 62;

/// One layer in so many sees all positions.
const GLOBAL_EVERY: usize = 6;

/// Reads a `gemma3` file's metadata.
pub fn spec(keys: &mut Keys<'_>) -> Result<ModelSpec, ModelError> {
    let n_embd = keys.count("embedding_length")?;
    let heads = keys.heads(n_embd)?;
    let kind = keys.rms()?;
    let norm = |tensor| NormSpec {
        tensor,
        norm: kind,
        bias: Bias::None,
    };
    let window = keys.window()?;
    let n_layers = keys.layers()?;
    let scaled_by = if n_layers == LAYERS_27B {
        n_embd / heads.n_heads
    } else {
        heads.head_dim
    };
    let global = keys.rope(RopeStyle::Halves, heads.head_dim, YarnBounds::Whole)?;
    let local = Rope {
        base: keys.positive("rope.freq_base_swa")?.unwrap_or(10_000.0),
        scaling: RopeScaling::None,
        ..global
    };
    let layer = LayerSpec {
        attention: AttentionSpec {
            norm: Some(norm("attn_norm")),
            n_heads: heads.n_heads,
            n_kv_heads: heads.n_kv_heads,
            head_dim: heads.head_dim,
            qkv: QkvLayout::Separate,
            qkv_bias: Bias::None,
            qk_norm: QkNorm::PerHead(kind),
            rope: Some(local),
            scale: 1.0 / (scaled_by as f32).sqrt(),
            softcap: None,
            window: window,
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
    let every = keys.count_or_none("attention.sliding_window_pattern")?;
    let mut layers = vec![layer; n_layers];
    let every = every.unwrap_or(GLOBAL_EVERY);
    for layer in layers.iter_mut().skip(every - 1).step_by(every) {
        layer.attention.window = None;
        layer.attention.rope = Some(global);
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
            softcap: keys.positive("final_logit_softcapping")?,
        },
    })
}
