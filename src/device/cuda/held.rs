//! What a device has on its card before there are weights: kernels, memory, a stream.

use std::time::{Duration, Instant};

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUdevice_attribute as Attribute;

use super::KvType;
use super::driver::{Buffer, Context, Event, Pinned, Stream};
use super::launch::Kernels;
use super::load::Upload;
use super::project;
use super::sample::{self, Finder};
use super::sizes::Sizes;
use crate::model::plan::Plan;
use crate::model::weights::Weights;

/// What is on the card, or knows something there, before there are weights.
pub(super) struct Held {
    pub(super) kernels: Kernels,
    pub(super) weights: Buffer,
    pub(super) pool: Buffer,
    pub(super) scratch: Buffer,
    pub(super) staging: Pinned,
    pub(super) stream: Stream,
    pub(super) events: [Event; 2],
    pub(super) upload: Upload,
    pub(super) finder: Finder,
    /// What took how long so far.
    pub(super) parts: Vec<(&'static str, Duration)>,
}

impl Held {
    /// Loads the kernels and reserves all memory.
    pub(super) fn allocate(
        context: &Context,
        sizes: &Sizes,
        (plan, weights): (&Plan, &Weights),
        kv: KvType,
    ) -> Result<Self, DriverError> {
        let begin = Instant::now();
        let shared =
            context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let mut kernels = Kernels::load(shared)?;
        project::prepare(&mut kernels, plan, weights, kv)?;
        sample::prepare(&mut kernels)?;
        let mut held = Self {
            kernels,
            weights: Buffer::zeroed(sizes.weights_bytes)?,
            pool: Buffer::zeroed(sizes.pool_bytes())?,
            scratch: Buffer::zeroed(sizes.scratch_bytes)?,
            staging: Pinned::zeroed(sizes.staging_bytes())?,
            stream: Stream::new()?,
            events: [Event::new()?, Event::new()?],
            upload: Upload::new(weights, plan.tensors.len())?,
            finder: Finder::new(plan.n_vocab)?,
            parts: vec![("context", context.opening())],
        };
        held.parts.push(("kernels and memory", begin.elapsed()));
        Ok(held)
    }
}
