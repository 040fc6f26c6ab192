//! What every backend can do. The worker drives a [`Device`] in slices of time and never learns which one it is.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod fake;

use std::time::{Duration, Instant};

use crate::sampling::{SampleStep, Sampled, Scored};

/// Positions a KV page holds.
pub const PAGE_TOKENS: usize = 256;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// 16-bit floats.
    F16,
    /// 32-bit floats.
    F32,
    /// Blocks of 32 along a head, of one position: signed bytes under a 16-bit scale, as GGUF's tensor type of this name.
    Q8_0,
}

impl KvType {
    /// "f16": what the flag calls it.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::F32 => "f32",
            KvType::Q8_0 => "q8_0",
        }
    }

    /// Bytes of an element of a pool; in a pool of Q8_0 a scale counts as two.
    pub(crate) fn element_bytes(self) -> usize {
        match self {
            KvType::F16 => 2,
            KvType::F32 => 4,
            KvType::Q8_0 => 1,
        }
    }

    /// Bytes of a block of 32 numbers.
    pub fn block_bytes(self) -> usize {
        let scale = if self == KvType::Q8_0 { 2 } else { 0 };
        32 * self.element_bytes() + scale
    }
}

/// A page of the device's KV pool. Who holds which page is written in page tables that no device owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageId(pub u32);

/// For which rows of a step logits are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// None: a chunk of a prompt that another chunk follows.
    None,
    /// The last row alone: what sampling needs.
    Last,
    /// Every row, for teacher-forced scoring and for tokens that were only proposed.
    All,
}

/// One pass of some tokens of one sequence through the model.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The sequence's pages in order; position `p` lies in `pages[p / PAGE_TOKENS]`.
    pub pages: &'a [PageId],
    /// Token ids, at least one, at most [`Capacity::step_tokens_max`], each below the vocabulary's size.
    pub tokens: &'a [u32],
    /// Position of the first token; everything before it is already in the pages.
    pub position: usize,
    /// Which logits are wanted.
    pub rows: Rows,
}

impl Step<'_> {
    /// Refuses what would read or write where it must not on a device of this capacity.
    ///
    /// # Errors
    ///
    /// A step of no or too many tokens, pages that are too few or that the pool does not have, a token that the vocabulary does not have.
    pub fn check(&self, capacity: &Capacity) -> Result<(), DeviceError> {
        let Self { pages, tokens, .. } = *self;
        let end = self.position.saturating_add(tokens.len());
        let most = capacity.step_tokens_max;
        let wrong = if tokens.is_empty() || tokens.len() > most {
            format!(
                "a step of {} tokens; 1 to {most} are possible",
                tokens.len()
            )
        } else if end > pages.len().saturating_mul(PAGE_TOKENS) {
            let hold = pages.len() * PAGE_TOKENS;
            format!(
                "a step up to position {end}, but {} pages hold {hold}",
                pages.len()
            )
        } else if pages.len() > capacity.pages {
            format!("{} pages, but the pool has {}", pages.len(), capacity.pages)
        } else if let Some(token) = tokens.iter().find(|t| **t as usize >= capacity.vocab) {
            format!("token id {token}; the vocabulary has {}", capacity.vocab)
        } else {
            return check_pages(pages, capacity);
        };
        Err(DeviceError::Step(wrong))
    }
}

/// Refuses pages that the pool does not have.
pub fn check_pages(pages: &[PageId], capacity: &Capacity) -> Result<(), DeviceError> {
    match pages.iter().find(|p| p.0 as usize >= capacity.pages) {
        None => Ok(()),
        Some(page) => Err(DeviceError::Step(format!(
            "page {}, but the pool has {}",
            page.0, capacity.pages
        ))),
    }
}

/// Where bytes of a page lie in a pool of pages of `page_bytes`, or why there are none.
pub fn page_range(
    page: PageId,
    offset: usize,
    len: usize,
    page_bytes: usize,
    capacity: &Capacity,
) -> Result<std::ops::Range<usize>, DeviceError> {
    check_pages(&[page], capacity)?;
    match offset.checked_add(len) {
        Some(end) if end <= page_bytes => {
            let begin = page.0 as usize * page_bytes;
            Ok(begin + offset..begin + end)
        }
        Some(_) | None => Err(DeviceError::Step(format!(
            "{len} bytes from {offset} on of a page of {page_bytes}"
        ))),
    }
}

/// What a finished piece of work gives back.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// A [`Device::forward`] is done; its keys, values and logits are in place.
    Forwarded,
    /// A [`Device::sample`] is done.
    Sampled(Sampled),
    /// A [`Device::score`] is done.
    Scored(Scored),
}

/// What a device was built for; fixed from the moment the load is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Most tokens that one step may hold.
    pub step_tokens_max: usize,
    /// Most tokens of a step in which every row has the bits that it has in a step of its own: what speculation may use.
    pub exact_tokens_max: usize,
    /// Pages in the KV pool.
    pub pages: usize,
    /// Entries in the vocabulary: logits a row.
    pub vocab: usize,
}

/// Bytes that the device holds, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Weights, as they lie in memory (pages of mapped files count, unless what they hold is kept in another layout, which counts then).
    pub weights_bytes: u64,
    /// The KV pool.
    pub kv_bytes: u64,
    /// Activations, logits, norms widened to f32 and other scratch.
    pub scratch_bytes: u64,
}

impl Memory {
    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        self.weights_bytes + self.kv_bytes + self.scratch_bytes
    }
}

/// What a card says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// "9.0".
    pub compute_capability: String,
    /// The newest CUDA version that the driver knows: "13.0".
    pub driver_version: String,
    /// Bytes that this process has allocated of the card's memory.
    pub used_bytes: u64,
}

/// How far a load is. `processed == total` says that it is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of weights in place.
    pub processed: u64,
    /// Bytes of weights in all.
    pub total: u64,
}

/// Why a device could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// This step failed; the device can take the next one.
    #[error("{0}")]
    Step(String),
    /// Nothing more can be expected of this device; the process has to end.
    #[error("the device is lost: {0}")]
    Lost(String),
}

/// What an operation of the plan leaves for the tokens of a step; for traces.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// The operation's place in the plan.
    pub op: usize,
    /// Which of its results, where it has several; else "".
    pub part: &'static str,
    /// Values of a token.
    pub width: usize,
    /// Distance between two tokens.
    pub stride: usize,
    /// (stride, tokens).
    pub values: &'a [f32],
}

/// A backend that holds one model. One piece of work is under way at a time: `forward`, `sample` or `score` starts
/// it, `poll` drives it until it is done, `abort` forgets it.
pub trait Device {
    /// Brings weights into place until `until`; called again until `processed == total`. Nothing else is called before.
    fn load_some(&mut self, until: Instant) -> Result<LoadProgress, DeviceError>;

    /// Does a millisecond's worth of what a load has left behind, such as letting go of the files; whether there is more of it.
    fn tidy(&mut self) -> bool {
        false
    }

    /// Starts a step. Its keys and values are written to its pages at `position..position + tokens.len()`.
    fn forward(&mut self, step: Step<'_>) -> Result<(), DeviceError>;

    /// Starts drawing a token from the logits of a row of the last forward, [`SampleStep::row`].
    fn sample(&mut self, step: SampleStep<'_>) -> Result<(), DeviceError>;

    /// Starts computing what a row of the last forward (row 0 for [`Rows::Last`]) says of `token`, and the `top` likeliest tokens: few
    /// numbers, so that a row of logits need not leave the device.
    fn score(&mut self, row: usize, token: u32, top: usize) -> Result<(), DeviceError>;

    /// Works until the piece under way is done (`Some`) or `until` has come (`None`): it returns at most a few
    /// milliseconds late. Returns `None` at once when nothing is under way.
    fn poll(&mut self, until: Instant) -> Result<Option<Output>, DeviceError>;

    /// Forgets the piece under way. Pages written by it hold unspecified values at the step's positions and nowhere else.
    fn abort(&mut self);

    /// Runs a step at once, operation by operation, and shows what each one leaves. For traces, while nothing is under way: it takes as
    /// long as it takes, and no step of a generation goes this way.
    fn trace(
        &mut self,
        step: Step<'_>,
        show: &mut dyn FnMut(Shown<'_>),
    ) -> Result<(), DeviceError> {
        let _ = (step, show);
        Err(DeviceError::Step(
            "this device does not show its operations; trace the model on --device cpu".into(),
        ))
    }

    /// Copies the logits of a row of the last forward (row 0 for [`Rows::Last`]). `out` holds [`Capacity::vocab`] values. For tests and traces.
    fn read_logits(&mut self, row: usize, out: &mut [f32]);

    /// Makes a page hold what another one holds, for all layers. Only while nothing is under way.
    fn copy_page(&mut self, from: PageId, to: PageId) -> Result<(), DeviceError>;

    /// Bytes of a page of the KV pool, all layers together.
    fn page_bytes(&self) -> usize;

    /// Reads bytes of a page from `offset` on, as the device holds them. Only while nothing writes to the page.
    fn read_page(&mut self, page: PageId, offset: usize, out: &mut [u8])
    -> Result<(), DeviceError>;

    /// Writes bytes of a page from `offset` on, as [`Device::read_page`] gave them. Only while nothing works on the page.
    fn write_page(&mut self, page: PageId, offset: usize, bytes: &[u8]) -> Result<(), DeviceError>;

    /// What the bytes of a page mean: the same for two devices only if each can go on with the other's pages.
    fn state_id(&self) -> String;

    /// What the card says of itself, where the device is one.
    fn card(&self) -> Option<Card> {
        None
    }

    /// Whether everything that the device holds lies in its own memory still. Cheap enough to be asked now and then.
    fn is_resident(&mut self) -> Result<bool, DeviceError> {
        Ok(true)
    }

    /// Bytes a second that the device reads from its own memory, measured now; `None` where that is the host's. For benches, while nothing is
    /// under way: it takes some milliseconds.
    fn read_bandwidth(&mut self) -> Result<Option<f64>, DeviceError> {
        Ok(None)
    }

    /// What setting the device up and bringing the weights in consisted of, as far as the device tells: name and time of each part.
    fn load_parts(&self) -> Vec<(&'static str, Duration)> {
        Vec::new()
    }

    /// What the device was built for.
    fn capacity(&self) -> Capacity;

    /// What the device holds.
    fn memory(&self) -> Memory;
}
