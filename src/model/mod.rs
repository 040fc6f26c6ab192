//! What a model is ([`spec`]), how a file says so ([`arch`]), what is to be done for a step ([`plan`], [`lower`]) and where its tensors lie ([`weights`]).
//!
//! A model definition knows no device: an architecture is data, and [`lower::lower`] turns any of them into the same few fused operations.

pub mod arch;
pub mod lower;
mod names;
pub mod plan;
pub mod reads;
pub mod spec;
pub mod weights;

/// Why a file cannot become a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The container is damaged or lacks a key.
    #[error(transparent)]
    Gguf(#[from] crate::gguf::GgufError),
    /// No arch file reads this architecture.
    #[error("architecture {name:?} is not supported; this version runs {supported}")]
    Architecture {
        /// `general.architecture` as the file has it.
        name: String,
        /// The supported ones, comma separated.
        supported: String,
    },
    /// A value in the metadata that no supported model has.
    #[error("{key} is {value}, {expected}")]
    Metadata {
        /// The metadata key.
        key: String,
        /// What it holds.
        value: String,
        /// What it may be: "but must be a positive multiple of 2".
        expected: String,
    },
    /// A tensor is missing, misshapen, unclaimed or of an unsupported type.
    #[error("tensor {name:?} {problem}")]
    Tensor {
        /// The tensor's name.
        name: String,
        /// What is wrong with it and what was expected.
        problem: String,
    },
}

impl ModelError {
    /// A metadata value that cannot be.
    pub fn metadata(
        key: impl Into<String>,
        value: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Metadata {
            key: key.into(),
            value: value.to_string(),
            expected: expected.into(),
        }
    }

    /// A tensor that is not as it must be.
    pub fn tensor(name: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Tensor {
            name: name.into(),
            problem: problem.into(),
        }
    }
}
