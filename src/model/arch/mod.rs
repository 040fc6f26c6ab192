//! The table of architectures. Adding one is a file that returns a [`ModelSpec`], a line here, a fixture and a golden plan.

pub mod llama;

use super::ModelError;
use super::spec::ModelSpec;
use crate::gguf::{Gguf, Metadata};

/// An architecture: its name in `general.architecture` and the function that reads its metadata.
pub struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// Resolves the file's metadata (and the presence of optional tensors) to a spec.
    pub spec: fn(&Gguf) -> Result<ModelSpec, ModelError>,
}

/// Every architecture that this version runs.
pub const ARCHITECTURES: &[Architecture] = &[Architecture {
    name: "llama",
    spec: llama::spec,
}];

/// Reads what model a file holds.
pub fn spec(gguf: &Gguf) -> Result<ModelSpec, ModelError> {
    let name = gguf.metadata.require_string("general.architecture")?;
    match ARCHITECTURES.iter().find(|a| a.name == name) {
        Some(architecture) => (architecture.spec)(gguf),
        None => Err(ModelError::Architecture {
            name: name.chars().take(64).collect(),
            supported: ARCHITECTURES
                .iter()
                .map(|a| a.name)
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}

/// Most layers, heads or any other count that a model may have: beyond every published model, small enough that sums cannot overflow.
pub const DIMENSION_MAX: usize = 1 << 24;

/// A count from the metadata: present, at least 1, at most [`DIMENSION_MAX`].
pub(crate) fn require_count(metadata: &Metadata, key: &str) -> Result<usize, ModelError> {
    check_count(key, metadata.require_usize(key)?)
}

/// Like [`require_count`], with a value for where the key is absent.
pub(crate) fn count_or(
    metadata: &Metadata,
    key: &str,
    default: usize,
) -> Result<usize, ModelError> {
    check_count(key, metadata.usize(key)?.unwrap_or(default))
}

pub(crate) fn check_count(key: &str, value: usize) -> Result<usize, ModelError> {
    if (1..=DIMENSION_MAX).contains(&value) {
        Ok(value)
    } else {
        Err(ModelError::metadata(
            key,
            value,
            format!("but must be from 1 to {DIMENSION_MAX}"),
        ))
    }
}

/// A float from the metadata that must be finite and above zero.
pub(crate) fn check_positive(key: &str, value: f32) -> Result<f32, ModelError> {
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(ModelError::metadata(
            key,
            value,
            "but must be a finite number above 0",
        ))
    }
}
