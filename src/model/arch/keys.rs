//! The keys of one architecture: read with their bounds, and each of them either read or refused, so that no variant is run as if it were
//! another.

use std::collections::HashSet;

use crate::gguf::{Gguf, Value};
use crate::model::ModelError;
use crate::model::spec::{Activation, Bias, ExpertsSpec, Gating, HeadMatrix, Heads, Norm};

/// Most layers, heads or any other count that a model may have: beyond every published model, small enough that sums cannot overflow.
pub const DIMENSION_MAX: usize = 1 << 24;

/// Most layers that a model may have.
const LAYERS_MAX: usize = 1024;

/// Keys that say nothing of the arithmetic, or repeat what the tensors say.
const SAY_NOTHING: [&str; 4] = [
    "vocab_size",
    "tensor_data_layout",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
];

/// The metadata below an architecture's name. Names are given without it: "block_count".
pub struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'static str,
    read: HashSet<String>,
}

impl<'a> Keys<'a> {
    /// The keys of a file's architecture.
    pub(super) fn new(gguf: &'a Gguf, architecture: &'static str) -> Self {
        Self {
            gguf,
            architecture,
            read: HashSet::new(),
        }
    }

    /// `general.architecture`.
    pub(super) fn architecture(&self) -> &'static str {
        self.architecture
    }

    /// The whole key, which counts as read from now on.
    pub(super) fn key(&mut self, name: &str) -> String {
        let key = format!("{}.{name}", self.architecture);
        self.read.insert(key.clone());
        key
    }

    /// An error about one of the keys.
    pub(super) fn wrong(
        &mut self,
        name: &str,
        value: impl ToString,
        expected: impl Into<String>,
    ) -> ModelError {
        let value = value.to_string().chars().take(64).collect::<String>();
        ModelError::metadata(self.key(name), value, expected)
    }

    /// A count that must be there: from 1 to [`DIMENSION_MAX`].
    pub(super) fn count(&mut self, name: &str) -> Result<usize, ModelError> {
        let key = self.key(name);
        let value = self.gguf.metadata.require_usize(&key)?;
        self.check_count(name, value)
    }

    /// A count that may be absent.
    pub(super) fn optional_count(&mut self, name: &str) -> Result<Option<usize>, ModelError> {
        let key = self.key(name);
        let value = self.gguf.metadata.usize(&key)?;
        value.map(|v| self.check_count(name, v)).transpose()
    }

    /// A count where 0 means as much as being absent.
    pub(super) fn count_or_none(&mut self, name: &str) -> Result<Option<usize>, ModelError> {
        let key = self.key(name);
        match self.gguf.metadata.usize(&key)? {
            None | Some(0) => Ok(None),
            Some(n) => self.check_count(name, n).map(Some),
        }
    }

    fn check_count(&mut self, name: &str, value: usize) -> Result<usize, ModelError> {
        if (1..=DIMENSION_MAX).contains(&value) {
            Ok(value)
        } else {
            let expected = format!("but must be from 1 to {DIMENSION_MAX}");
            Err(self.wrong(name, value, expected))
        }
    }

    /// A number that may be absent: finite and above 0.
    pub(super) fn positive(&mut self, name: &str) -> Result<Option<f32>, ModelError> {
        let key = self.key(name);
        match self.gguf.metadata.f32(&key)? {
            Some(v) if !(v.is_finite() && v > 0.0) => {
                Err(self.wrong(name, v, "but must be a finite number above 0"))
            }
            value => Ok(value),
        }
    }

    /// A factor or a cap, where 0 means as much as being absent.
    pub(super) fn positive_or_none(&mut self, name: &str) -> Result<Option<f32>, ModelError> {
        let key = self.key(name);
        match self.gguf.metadata.f32(&key)? {
            Some(0.0) => Ok(None),
            Some(_) | None => self.positive(name),
        }
    }

    /// A number that must be there: finite and above 0.
    pub(super) fn require_positive(&mut self, name: &str) -> Result<f32, ModelError> {
        let key = self.key(name);
        self.gguf.metadata.require_f32(&key)?;
        Ok(self.positive(name)?.unwrap_or_default())
    }

    /// Text that may be absent.
    pub(super) fn string(&mut self, name: &str) -> Result<Option<&'a str>, ModelError> {
        let key = self.key(name);
        Ok(self.gguf.metadata.string(&key)?)
    }

    /// Yes or no, or absent.
    pub(super) fn bool(&mut self, name: &str) -> Result<Option<bool>, ModelError> {
        let key = self.key(name);
        Ok(self.gguf.metadata.bool(&key)?)
    }

    /// Number of layers.
    pub(super) fn layers(&mut self) -> Result<usize, ModelError> {
        let n = self.count("block_count")?;
        if n > LAYERS_MAX {
            let expected = format!("but at most {LAYERS_MAX} layers are supported");
            return Err(self.wrong("block_count", n, expected));
        }
        Ok(n)
    }

    /// RMSNorm with the file's epsilon.
    pub(super) fn rms(&mut self) -> Result<Norm, ModelError> {
        let eps = self.require_positive("attention.layer_norm_rms_epsilon")?;
        Ok(Norm::Rms { eps })
    }

    /// LayerNorm with the file's epsilon.
    pub(super) fn layer_norm(&mut self) -> Result<Norm, ModelError> {
        let eps = self.require_positive("attention.layer_norm_epsilon")?;
        Ok(Norm::Layer { eps })
    }

    /// Heads, of their share of the stream where the file says no width.
    pub(super) fn heads(&mut self, n_embd: usize) -> Result<Heads, ModelError> {
        let n_heads = self.count("attention.head_count")?;
        let name = "attention.head_count_kv";
        let n_kv_heads = self.kv_heads(name)?.unwrap_or(n_heads);
        if !n_heads.is_multiple_of(n_kv_heads) {
            let expected = format!("but must divide the {n_heads} query heads evenly");
            return Err(self.wrong(name, n_kv_heads, expected));
        }
        Ok(Heads {
            n_heads,
            n_kv_heads,
            head_dim: self.head_dim(n_embd, n_heads)?,
        })
    }

    /// Key and value heads: one number, or one for each layer where all are the same.
    fn kv_heads(&mut self, name: &str) -> Result<Option<usize>, ModelError> {
        let key = self.key(name);
        let Some(Value::Array(_)) = self.gguf.metadata.get(&key) else {
            return self.optional_count(name);
        };
        let (of_layers, layers) = (self.gguf.metadata.require_usizes(&key)?, self.layers()?);
        let first = of_layers.first().copied().unwrap_or(0);
        if of_layers.len() != layers || of_layers.iter().any(|n| *n != first) {
            let expected = format!("but must be the same number for each of the {layers} layers");
            return Err(self.wrong(name, format!("{of_layers:?}"), expected));
        }
        self.check_count(name, first).map(Some)
    }

    fn head_dim(&mut self, n_embd: usize, n_heads: usize) -> Result<usize, ModelError> {
        let name = "attention.key_length";
        let head_dim = match self.optional_count(name)? {
            Some(n) => n,
            None if n_embd.is_multiple_of(n_heads) => n_embd / n_heads,
            None => {
                let key = self.key(name);
                let expected = format!(
                    "but must divide the embedding length {n_embd} evenly where {key} is absent"
                );
                return Err(self.wrong("attention.head_count", n_heads, expected));
            }
        };
        let name = "attention.value_length";
        let value_length = self.optional_count(name)?.unwrap_or(head_dim);
        if value_length != head_dim {
            let expected = format!(
                "but must equal the key length {head_dim}: heads of two widths are not supported"
            );
            return Err(self.wrong(name, value_length, expected));
        }
        Ok(head_dim)
    }

    /// Experts with the shares that are usual for the architecture and with no shared one.
    pub(super) fn experts(
        &mut self,
        usual: Gating,
        activation: Activation,
        bias: Bias,
    ) -> Result<ExpertsSpec, ModelError> {
        // files of nothing but experts tell the width of a dense network all the same, which none of their layers has
        self.optional_count("feed_forward_length")?;
        let (n_experts, n_used) = (
            self.count("expert_count")?,
            self.count("expert_used_count")?,
        );
        if n_used > n_experts {
            let expected = format!("but there are only {n_experts} experts");
            return Err(self.wrong("expert_used_count", n_used, expected));
        }
        Ok(ExpertsSpec {
            n_experts,
            n_used,
            n_ff: self.count("expert_feed_forward_length")?,
            gating: self.gating(usual)?,
            scale: self
                .positive_or_none("expert_weights_scale")?
                .unwrap_or(1.0),
            activation,
            bias,
            shared_n_ff: None,
        })
    }

    /// What a file says of the experts' shares, where it does not leave that to its architecture.
    fn gating(&mut self, usual: Gating) -> Result<Gating, ModelError> {
        const SOFTMAX: usize = 1;
        const SOFTMAX_OF_USED: usize = 3;
        let name = "expert_gating_func";
        let of_used = match self.count_or_none(name)? {
            Some(SOFTMAX) | None => self.bool("expert_weights_norm")?,
            Some(SOFTMAX_OF_USED) => Some(true),
            Some(other) => return Err(self.wrong(name, other, "but only a softmax is supported")),
        };
        Ok(match of_used {
            Some(true) => Gating::SoftmaxOfUsed,
            Some(false) => Gating::SoftmaxOfAll,
            None => usual,
        })
    }

    /// How many positions a token sees, where that is not all.
    pub(super) fn window(&mut self) -> Result<Option<usize>, ModelError> {
        self.count_or_none("attention.sliding_window")
    }

    /// Whether the file has a tensor.
    pub(super) fn has(&self, tensor: &str) -> bool {
        self.gguf.tensors.iter().any(|t| t.name == tensor)
    }

    /// Biases where the file has this one.
    pub(super) fn bias(&self, tensor: &str) -> Bias {
        if self.has(tensor) {
            Bias::Added
        } else {
            Bias::None
        }
    }

    /// The head's own matrix where the file has one.
    pub(super) fn head_matrix(&self) -> HeadMatrix {
        if self.has("output.weight") {
            HeadMatrix::Separate
        } else {
            HeadMatrix::Tied
        }
    }

    /// The vocabulary's size is the embedding's number of rows: what the tokenizer says is checked against it at load.
    pub(super) fn n_vocab(&self) -> Result<usize, ModelError> {
        let name = "token_embd.weight";
        let tensor = self.gguf.tensor(name);
        let tensor = tensor.ok_or_else(|| ModelError::tensor(name, "is missing"))?;
        match tensor.dims.as_slice() {
            [_, rows] if (1..=DIMENSION_MAX as u64).contains(rows) => Ok(*rows as usize),
            dims => {
                let problem = format!(
                    "has the shape {dims:?}, but must have two dimensions: embedding length, vocabulary"
                );
                Err(ModelError::tensor(name, problem))
            }
        }
    }

    /// Refuses the keys of the architecture that nothing has read, unless they are known to say nothing, or say 0 or no: there is none.
    pub(super) fn refuse_unread(&mut self) -> Result<(), ModelError> {
        let gguf = self.gguf;
        let prefix = format!("{}.", self.architecture);
        let unread = gguf.metadata.iter().find_map(|(key, value)| {
            let name = key.strip_prefix(&prefix)?;
            let known = self.read.contains(key) || says_nothing(name, value);
            (!known).then_some((name, value))
        });
        let Some((name, value)) = unread else {
            return Ok(());
        };
        let expected = if name.starts_with("expert") {
            "but mixtures of experts are not supported for this architecture".to_owned()
        } else {
            format!(
                "which is not known for {}: leaving it unread might change what the model says",
                self.architecture
            )
        };
        Err(self.wrong(name, told(value), expected))
    }
}

/// Whether a key may be left unread.
fn says_nothing(name: &str, value: &Value) -> bool {
    match name {
        "attention.causal" => *value == Value::Bool(true),
        name => SAY_NOTHING.contains(&name) || says_none(value),
    }
}

/// Whether a value says that there is none of what its key names.
fn says_none(value: &Value) -> bool {
    match value {
        Value::U8(0) | Value::I8(0) | Value::U16(0) | Value::I16(0) => true,
        Value::U32(0) | Value::I32(0) | Value::U64(0) | Value::I64(0) => true,
        Value::Bool(false) => true,
        Value::F32(v) => *v == 0.0,
        Value::F64(v) => *v == 0.0,
        Value::U8(_) | Value::I8(_) | Value::U16(_) | Value::I16(_) | Value::U32(_) => false,
        Value::I32(_) | Value::U64(_) | Value::I64(_) | Value::Bool(_) => false,
        Value::String(_) | Value::Array(_) => false,
    }
}

/// A value for an error: what it is, or only its type.
fn told(value: &Value) -> String {
    match value {
        Value::U8(v) => v.to_string(),
        Value::I8(v) => v.to_string(),
        Value::U16(v) => v.to_string(),
        Value::I16(v) => v.to_string(),
        Value::U32(v) => v.to_string(),
        Value::I32(v) => v.to_string(),
        Value::U64(v) => v.to_string(),
        Value::I64(v) => v.to_string(),
        Value::F32(v) => v.to_string(),
        Value::F64(v) => v.to_string(),
        Value::Bool(v) => v.to_string(),
        Value::String(v) => format!("{v:?}"),
        Value::Array(_) => value.type_name().to_owned(),
    }
}
