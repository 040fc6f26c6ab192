//! The table of architectures. Adding one is a file that returns a [`ModelSpec`], a line here, a fixture and a golden plan.

mod falcon;
mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_oss;
mod granite;
mod keys;
mod llama;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen2moe;
mod qwen3;
mod qwen3moe;
mod rope;
mod stablelm;
mod starcoder2;

pub use keys::Keys;

use super::ModelError;
use super::spec::ModelSpec;
use crate::gguf::Gguf;

/// An architecture: its name in `general.architecture` and the function that reads its metadata.
pub struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// Resolves the file's metadata (and the presence of optional tensors) to a spec.
    pub spec: fn(&mut Keys<'_>) -> Result<ModelSpec, ModelError>,
}

/// A line of the table.
const fn line(
    name: &'static str,
    spec: fn(&mut Keys<'_>) -> Result<ModelSpec, ModelError>,
) -> Architecture {
    Architecture { name, spec }
}

/// Every architecture that this version runs.
pub const ARCHITECTURES: &[Architecture] = &[
    line("llama", llama::spec),
    line("qwen2", qwen2::spec),
    line("qwen3", qwen3::spec),
    line("phi3", phi3::spec),
    line("gemma3", gemma3::spec),
    line("gpt2", gpt2::spec),
    line("gpt-oss", gpt_oss::spec),
    line("qwen2moe", qwen2moe::spec),
    line("qwen3moe", qwen3moe::spec),
    line("gemma2", gemma2::spec),
    line("olmo2", olmo2::spec),
    line("granite", granite::spec),
    line("starcoder2", starcoder2::spec),
    line("stablelm", stablelm::spec),
    line("falcon", falcon::spec),
];

/// Reads what model a file holds.
pub fn spec(gguf: &Gguf) -> Result<ModelSpec, ModelError> {
    let name = gguf.metadata.require_string("general.architecture")?;
    match ARCHITECTURES.iter().find(|a| a.name == name) {
        Some(architecture) => {
            let mut keys = Keys::new(gguf, architecture.name);
            let spec = (architecture.spec)(&mut keys)?;
            keys.refuse_unread()?;
            Ok(spec)
        }
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
