//! `llama`: Llama 2 and 3.x, Mistral, SmolLM, TinyLlama. RMSNorm, grouped-query attention, RoPE over neighbours, SiLU-gated FFN.
//!
//! Source of the shapes: Touvron et al. 2023; the keys are those of the GGUF specification.

use super::{check_positive, count_or, require_count};
use crate::gguf::{Gguf, Metadata};
use crate::model::ModelError;
use crate::model::spec::{
    Activation, AttentionSpec, FfnSpec, Head, LayerSpec, ModelSpec, Norm, Rope, RopeScaling,
    RopeStyle,
};

/// Reads a `llama` file's metadata.
pub fn spec(gguf: &Gguf) -> Result<ModelSpec, ModelError> {
    let m = &gguf.metadata;
    let n_embd = require_count(m, "llama.embedding_length")?;
    let n_heads = require_count(m, "llama.attention.head_count")?;
    let n_kv_heads = count_or(m, "llama.attention.head_count_kv", n_heads)?;
    if !n_heads.is_multiple_of(n_kv_heads) {
        let expected = format!("but must divide the {n_heads} query heads evenly");
        return Err(ModelError::metadata(
            "llama.attention.head_count_kv",
            n_kv_heads,
            expected,
        ));
    }
    refuse_experts(m)?;
    let head_dim = head_dim(m, n_embd, n_heads)?;
    let eps_key = "llama.attention.layer_norm_rms_epsilon";
    let norm = Norm::Rms {
        eps: check_positive(eps_key, m.require_f32(eps_key)?)?,
    };
    let layer = LayerSpec {
        attention: AttentionSpec {
            norm,
            n_heads,
            n_kv_heads,
            head_dim,
            rope: rope(gguf, head_dim)?,
            scale: 1.0 / (head_dim as f32).sqrt(),
        },
        ffn: FfnSpec {
            norm,
            n_ff: require_count(m, "llama.feed_forward_length")?,
            activation: Activation::SiluGated,
        },
    };
    Ok(ModelSpec {
        architecture: "llama",
        context_length: require_count(m, "llama.context_length")?,
        n_embd,
        n_vocab: n_vocab(gguf)?,
        layers: vec![layer; layers(m)?],
        output_norm: norm,
        head: if has_tensor(gguf, "output.weight") {
            Head::Separate
        } else {
            Head::Tied
        },
    })
}

/// Most layers that a model may have.
const LAYERS_MAX: usize = 1024;

fn layers(m: &Metadata) -> Result<usize, ModelError> {
    let n = require_count(m, "llama.block_count")?;
    if n > LAYERS_MAX {
        return Err(ModelError::metadata(
            "llama.block_count",
            n,
            format!("but at most {LAYERS_MAX} layers are supported"),
        ));
    }
    Ok(n)
}

/// Mixtral is `llama` too, with experts: a different data flow.
fn refuse_experts(m: &Metadata) -> Result<(), ModelError> {
    match m.usize("llama.expert_count")? {
        None | Some(0) => Ok(()),
        Some(n) => Err(ModelError::metadata(
            "llama.expert_count",
            n,
            "but mixtures of experts are not supported for this architecture",
        )),
    }
}

fn head_dim(m: &Metadata, n_embd: usize, n_heads: usize) -> Result<usize, ModelError> {
    let key = "llama.attention.key_length";
    let head_dim = match m.usize(key)? {
        Some(n) => super::check_count(key, n)?,
        None if n_embd.is_multiple_of(n_heads) => n_embd / n_heads,
        None => {
            let expected = format!(
                "but must divide the embedding length {n_embd} evenly where {key} is absent"
            );
            return Err(ModelError::metadata(
                "llama.attention.head_count",
                n_heads,
                expected,
            ));
        }
    };
    let value_length = count_or(m, "llama.attention.value_length", head_dim)?;
    if value_length != head_dim {
        let expected = format!(
            "but must equal the key length {head_dim}: heads of two widths are not supported"
        );
        return Err(ModelError::metadata(
            "llama.attention.value_length",
            value_length,
            expected,
        ));
    }
    Ok(head_dim)
}

fn rope(gguf: &Gguf, head_dim: usize) -> Result<Rope, ModelError> {
    let m = &gguf.metadata;
    let dims = count_or(m, "llama.rope.dimension_count", head_dim)?;
    if dims > head_dim || !dims.is_multiple_of(2) {
        let expected = format!("but must be even and at most the head's width {head_dim}");
        return Err(ModelError::metadata(
            "llama.rope.dimension_count",
            dims,
            expected,
        ));
    }
    let base = check_positive(
        "llama.rope.freq_base",
        m.f32("llama.rope.freq_base")?.unwrap_or(10_000.0),
    )?;
    Ok(Rope {
        style: RopeStyle::Interleaved,
        dims,
        base,
        scaling: rope_scaling(gguf)?,
    })
}

/// `llama.rope.scaling.type` without which a factor means linear scaling, as files older than the key have it.
fn rope_scaling(gguf: &Gguf) -> Result<RopeScaling, ModelError> {
    let m = &gguf.metadata;
    let key = "llama.rope.scaling.type";
    let factors = has_tensor(gguf, "rope_freqs.weight");
    match (m.string(key)?, rope_factor(m)?) {
        (Some("none") | None, None) if factors => Ok(RopeScaling::Factors),
        (Some("none"), _) if !factors => Ok(RopeScaling::None),
        (None, None) => Ok(RopeScaling::None),
        (Some("linear") | None, Some(factor)) if !factors => Ok(RopeScaling::Linear { factor }),
        (Some("linear"), None) => {
            let expected = "but llama.rope.scaling.factor is missing";
            Err(ModelError::metadata(key, "linear", expected))
        }
        (Some("none" | "linear") | None, _) => {
            let expected = "but the tensor rope_freqs.weight is there too, and it is not known how the two combine";
            Err(ModelError::metadata(
                key,
                m.string(key)?.unwrap_or("linear by its factor"),
                expected,
            ))
        }
        (Some(other), _) => {
            let value = other.chars().take(64).collect::<String>();
            let expected = "which is not supported here (none, linear, or rope_freqs.weight alone)";
            Err(ModelError::metadata(key, value, expected))
        }
    }
}

/// The factor by which positions are divided, under its present or its older key.
fn rope_factor(m: &Metadata) -> Result<Option<f32>, ModelError> {
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
        if let Some(factor) = m.f32(key)? {
            return check_positive(key, factor).map(Some);
        }
    }
    Ok(None)
}

fn has_tensor(gguf: &Gguf, name: &str) -> bool {
    gguf.tensors.iter().any(|t| t.name == name)
}

/// The vocabulary's size is the embedding's number of rows: what the tokenizer says is checked against it at load.
fn n_vocab(gguf: &Gguf) -> Result<usize, ModelError> {
    let name = "token_embd.weight";
    let tensor = gguf
        .tensors
        .iter()
        .find(|t| t.name == name)
        .ok_or_else(|| ModelError::tensor(name, "is missing"))?;
    match tensor.dims.as_slice() {
        [_, rows] if (1..=DIMENSION_MAX_U64).contains(rows) => Ok(*rows as usize),
        dims => Err(ModelError::tensor(
            name,
            format!(
                "has the shape {dims:?}, but must have two dimensions: embedding length, vocabulary"
            ),
        )),
    }
}

const DIMENSION_MAX_U64: u64 = super::DIMENSION_MAX as u64;
