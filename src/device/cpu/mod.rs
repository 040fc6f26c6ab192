//! The cpu device: one thread, one arithmetic, results that no chunking and no instruction set can change.
//!
//! Matrices of integers are dealt out to groups of sixteen rows when they are loaded (`packed.rs`) and leave the mapped files; all others stay there.
//! A step is a walk over (stage, tile); `poll` runs tiles until its time is up, so a step of any model can be left at any moment.

mod attention;
mod formats;
pub mod integers;
#[cfg(target_arch = "x86_64")]
mod integers_x86;
pub mod isa;
pub mod kernels;
pub mod kv;
pub mod lanes;
#[cfg(target_arch = "x86_64")]
mod lanes_x86;
mod matmul;
pub mod moe;
pub mod naive;
pub mod packed;
pub mod program;
mod rope;
mod run;
mod stored;
mod trace;

use std::time::Instant;

use self::integers::Rounded;
use self::isa::Isa;
use self::kernels::{Kernels, padded};
pub use self::kv::page_bytes;
use self::kv::{Pool, page_layout};
use self::moe::Routing;
use self::program::{BUFS, Buf, Program};
use self::stored::Stored;
pub use super::KvType;
use super::{
    Capacity, Device, DeviceError, LoadProgress, Memory, Output, PAGE_TOKENS, PageId, Rows, Shown,
    Step, check_pages, page_range,
};
use crate::model::plan::{Op, Plan, Shape, TensorId};
use crate::model::weights::{Files, Weights};
use crate::sampling::{self, SampleStep, Sampler};

/// Most tokens a step holds: enough that expanding a weight once for all of them costs little, few enough that activations stay in cache.
pub const STEP_TOKENS_MAX: usize = 64;

/// Room for expanded weights, in values: 128 KiB stay in the second-level cache beside the activations.
const EXPANDED_MAX: usize = 32 * 1024;

/// How a cpu device is set up.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Tokens that the KV pool must hold; rounded up to whole pages.
    pub context: usize,
    /// How keys and values are stored.
    pub kv: KvType,
    /// Which kernels.
    pub isa: Isa,
}

/// Why a cpu device cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// The allocator refused.
    #[error("{bytes} bytes for {what} cannot be allocated; a smaller --ctx needs less")]
    Memory {
        /// What they were for.
        what: &'static str,
        /// How many.
        bytes: u64,
    },
    /// A plan that these kernels cannot run.
    #[error("the cpu device cannot run this model: {0}")]
    Unsupported(String),
}

/// The step under way.
struct Current {
    pages: Vec<PageId>,
    tokens: Vec<u32>,
    position: usize,
    rows: Rows,
    stage: usize,
    tile: usize,
}

impl Current {
    /// None yet, with room for the largest.
    fn with_capacity(pages: usize) -> Self {
        Self {
            pages: Vec::with_capacity(pages),
            tokens: Vec::with_capacity(STEP_TOKENS_MAX),
            position: 0,
            rows: Rows::None,
            stage: 0,
            tile: 0,
        }
    }
}

/// What `poll` has to do.
enum Job {
    Idle,
    Forward,
    /// Finished when it was asked for; waits to be fetched.
    Done(Output),
}

/// Whether the logits buffer holds what the last forward asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Logits {
    /// They are of no finished step.
    Stale,
    /// They are of the last step.
    Ready,
}

/// A model on the cpu.
pub struct CpuDevice {
    plan: Plan,
    weights: Weights,
    files: Box<dyn Files>,
    /// Vectors of the plan (norms, factors), widened and padded; empty for matrices.
    vectors: Vec<Vec<f32>>,
    isa: Isa,
    kernels: Kernels,
    program: Program,
    bufs: [Vec<f32>; BUFS],
    /// Distance between two tokens in a buffer.
    strides: [usize; BUFS],
    ropes: Vec<rope::Angles>,
    /// Matrices of integers.
    stored: Stored,
    /// Activations of a product, rounded.
    rounded: Vec<Rounded>,
    expanded: Vec<f32>,
    scores: Vec<f32>,
    routing: Routing,
    /// Positions that the model has rows for, where it has learned them.
    positions_max: usize,
    pool: Pool,
    page_elements: usize,
    /// Where a layer's keys and values begin inside a page.
    layer_offsets: Vec<usize>,
    capacity: Capacity,
    current: Current,
    job: Job,
    logits: Logits,
    sampler: Sampler,
}

/// Zeroed memory that the system hands out page by page as it is touched, or an error instead of an abort.
fn zeroed<T: bytemuck::Zeroable>(len: usize, what: &'static str) -> Result<Vec<T>, CpuError> {
    let bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
    bytemuck::allocation::try_zeroed_vec(len).map_err(|()| CpuError::Memory { what, bytes })
}

/// Query heads that share a key head, in the layer where they are most.
fn queries_a_kv_head(plan: &Plan, q_stride: usize) -> usize {
    let groups = plan
        .kv
        .iter()
        .map(|kv| q_stride / (kv.n_kv_heads * kv.head_dim));
    groups.max().unwrap_or(1)
}

/// Values that expanded weights, sums of a group of rows and rows in passing need.
fn expanded_max(program: &Program, widest: usize) -> usize {
    let sums = packed::GROUP * STEP_TOKENS_MAX * program.experts.1.max(1);
    EXPANDED_MAX.max(8 * widest).max(sums)
}

/// What steps may be: as many tokens as a group of the widest rows is multiplied with in a tile's time.
fn capacity(isa: Isa, widest: usize, pages: usize, vocab: usize) -> Capacity {
    let in_time = isa.group_macs_max() / (packed::GROUP * widest.max(1));
    let tokens = in_time.clamp(1, STEP_TOKENS_MAX);
    Capacity {
        step_tokens_max: tokens,
        // However tokens are cut into steps, there is one order of summation.
        exact_tokens_max: tokens,
        pages,
        vocab,
    }
}

impl CpuDevice {
    /// Sets up everything that steps will need; the weights stay where they are, in `files`, and are brought in by `load_some`.
    pub fn new(
        plan: Plan,
        weights: Weights,
        files: Box<dyn Files>,
        options: CpuOptions,
    ) -> Result<Self, CpuError> {
        let kernels = options.isa.kernels();
        let kernels = kernels.ok_or_else(|| {
            CpuError::Unsupported(format!("this machine has no {}", options.isa.name()))
        })?;
        let program = program::compile(&plan);
        let strides = strides(&program)?;
        let (page_elements, layer_offsets) = page_layout(&plan, options.kv);
        let pages = options.context.div_ceil(PAGE_TOKENS);
        let pool = Pool::new(options.kv, pages, page_elements)?;
        let mut bufs: [Vec<f32>; BUFS] = Default::default();
        for (buf, stride) in program::ALL.into_iter().zip(strides) {
            let rows = program.rows_a_token(buf) * STEP_TOKENS_MAX;
            bufs[buf as usize] = zeroed(stride * rows, "activations")?;
        }
        let widest = strides[..Buf::Logits as usize].iter().copied().max();
        let widest = widest.unwrap_or(0);
        let vectors = widen_vectors(&plan, &weights, &*files)?;
        let ropes = program
            .ropes
            .iter()
            .map(|r| rope::Angles::new(r, &vectors, STEP_TOKENS_MAX))
            .collect();
        let capacity = capacity(options.isa, widest, pages, plan.n_vocab);
        let group = queries_a_kv_head(&plan, strides[Buf::Q as usize]);
        Ok(Self {
            expanded: zeroed(expanded_max(&program, widest), "expanded weights")?,
            scores: zeroed((group + 1) * pages * PAGE_TOKENS, "attention scores")?,
            sampler: Sampler::new(plan.n_vocab),
            routing: Routing::new(program.experts, STEP_TOKENS_MAX),
            positions_max: positions_max(&plan),
            current: Current::with_capacity(pages),
            job: Job::Idle,
            logits: Logits::Stale,
            stored: Stored::new(&program, &weights)?,
            rounded: zeroed(
                program.rounded_max() * (STEP_TOKENS_MAX + 1),
                "rounded activations",
            )?,
            isa: options.isa,
            plan,
            weights,
            files,
            vectors,
            kernels,
            program,
            bufs,
            strides,
            ropes,
            pool,
            page_elements,
            layer_offsets,
            capacity,
        })
    }

    /// "cpu (avx2)".
    pub fn name(&self) -> String {
        format!("cpu ({})", self.isa.name())
    }

    /// The plan that it runs.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    fn vector(&self, id: TensorId) -> &[f32] {
        &self.vectors[id.0]
    }

    /// Rows that the logits buffer holds of the last step.
    fn rows_of_logits(&self) -> usize {
        match (self.logits, self.current.rows) {
            (Logits::Stale, _) | (Logits::Ready, Rows::None) => 0,
            (Logits::Ready, Rows::Last) => 1,
            (Logits::Ready, Rows::All) => self.current.tokens.len(),
        }
    }

    /// Where a row lies in the logits buffer.
    fn row_of_logits(&self, row: usize) -> Result<std::ops::Range<usize>, DeviceError> {
        let rows = self.rows_of_logits();
        let vocab = self.capacity.vocab;
        if row < rows {
            return Ok(row * vocab..(row + 1) * vocab);
        }
        Err(DeviceError::Step(format!(
            "there are no such logits: the last step asked for none or did not finish, or it has only {rows} rows of them"
        )))
    }
}

/// The distance between two tokens in each buffer; every product must find its input padded as the kernels expect it.
fn strides(program: &Program) -> Result<[usize; BUFS], CpuError> {
    let strides = program::ALL.map(|buf| match buf {
        Buf::Logits => program.width(buf),
        Buf::X | Buf::Xn | Buf::Q | Buf::K | Buf::V | Buf::Heads | Buf::Gate | Buf::Up => {
            padded(program.width(buf))
        }
        Buf::Out | Buf::Router => padded(program.width(buf)),
        Buf::ExpertX | Buf::ExpertGate | Buf::ExpertUp | Buf::ExpertOut => {
            padded(program.width(buf))
        }
    });
    for (from, cols) in program.inputs() {
        if padded(cols) != strides[from as usize] {
            return Err(CpuError::Unsupported(format!(
                "layers of different widths ({cols} and {})",
                strides[from as usize]
            )));
        }
    }
    Ok(strides)
}

/// Positions that a plan has rows for: those that it was trained for where it learned them, else any.
fn positions_max(plan: &Plan) -> usize {
    let learned = plan.ops.iter().find_map(|op| match op {
        Op::Embed { positions, .. } => positions.map(|matrix| matrix.rows),
        Op::AttnIn { .. } | Op::Attend { .. } | Op::AttnOut { .. } | Op::FfnIn { .. } => None,
        Op::FfnOut { .. } | Op::Route { .. } | Op::ExpertsIn { .. } => None,
        Op::ExpertsOut { .. } | Op::Head { .. } => None,
    });
    learned.unwrap_or(usize::MAX)
}

/// Norms, biases and factors are small: they are kept as f32, padded with zeros.
fn widen_vectors(
    plan: &Plan,
    weights: &Weights,
    files: &dyn Files,
) -> Result<Vec<Vec<f32>>, CpuError> {
    let widen = |(i, decl): (usize, &crate::model::plan::TensorDecl)| match decl.shape {
        Shape::Matrix(..) | Shape::Matrices(..) => Ok(Vec::new()),
        Shape::Vector(_) | Shape::Vectors(..) => {
            let (count, len) = decl.shape.rows();
            let len = count * len;
            let weight = weights.get(TensorId(i));
            let mut values = vec![0.0; padded(len)];
            let decoded = weight
                .kind
                .dequantize(files.bytes(&weight), &mut values[..len]);
            decoded
                .map(|()| values)
                .map_err(|e| CpuError::Unsupported(format!("{}: {e}", decl.name)))
        }
    };
    plan.tensors.iter().enumerate().map(widen).collect()
}

impl Device for CpuDevice {
    fn load_some(&mut self, until: Instant) -> Result<LoadProgress, DeviceError> {
        let total = self.weights.total_bytes();
        while self.stored.load_piece(&self.weights, &*self.files) {
            if Instant::now() >= until {
                break;
            }
        }
        Ok(LoadProgress {
            processed: self.stored.loaded_bytes(),
            total,
        })
    }

    fn forward(&mut self, step: Step<'_>) -> Result<(), DeviceError> {
        step.check(&self.capacity)?;
        let end = step.position + step.tokens.len();
        if end > self.positions_max {
            return Err(DeviceError::Step(format!(
                "a step up to position {end}, but the model has learned {} positions",
                self.positions_max
            )));
        }
        let c = &mut self.current;
        c.pages.clear();
        c.pages.extend_from_slice(step.pages);
        c.tokens.clear();
        c.tokens.extend_from_slice(step.tokens);
        (c.position, c.rows, c.stage, c.tile) = (step.position, step.rows, 0, 0);
        self.job = Job::Forward;
        self.logits = Logits::Stale;
        Ok(())
    }

    fn sample(&mut self, step: SampleStep<'_>) -> Result<(), DeviceError> {
        let range = self.row_of_logits(step.row)?;
        let logits = &self.bufs[Buf::Logits as usize][range];
        let sampled = self
            .sampler
            .sample(logits, &step)
            .map_err(|e| DeviceError::Step(e.to_string()))?;
        self.job = Job::Done(Output::Sampled(sampled));
        Ok(())
    }

    fn score(&mut self, row: usize, token: u32, top: usize) -> Result<(), DeviceError> {
        let logits = &self.bufs[Buf::Logits as usize][self.row_of_logits(row)?];
        let scored =
            sampling::score(logits, token, top).map_err(|e| DeviceError::Step(e.to_string()))?;
        self.job = Job::Done(Output::Scored(scored));
        Ok(())
    }

    fn poll(&mut self, until: Instant) -> Result<Option<Output>, DeviceError> {
        match std::mem::replace(&mut self.job, Job::Idle) {
            Job::Idle => Ok(None),
            Job::Done(output) => Ok(Some(output)),
            Job::Forward => {
                let done = self.run_until(until);
                if !done {
                    self.job = Job::Forward;
                } else if self.current.rows != Rows::None {
                    self.logits = Logits::Ready;
                }
                Ok(done.then_some(Output::Forwarded))
            }
        }
    }

    fn abort(&mut self) {
        self.job = Job::Idle;
    }

    fn trace(
        &mut self,
        step: Step<'_>,
        show: &mut dyn FnMut(Shown<'_>),
    ) -> Result<(), DeviceError> {
        trace::trace(self, step, show)
    }

    fn read_logits(&mut self, row: usize, out: &mut [f32]) {
        let vocab = self.capacity.vocab;
        out.copy_from_slice(&self.bufs[Buf::Logits as usize][row * vocab..][..vocab]);
    }

    fn copy_page(&mut self, from: PageId, to: PageId) -> Result<(), DeviceError> {
        check_pages(&[from, to], &self.capacity)?;
        let size = self.page_bytes();
        let (from, to) = (from.0 as usize * size, to.0 as usize * size);
        let pool = self.pool.bytes_mut();
        pool.copy_within(from..from + size, to);
        Ok(())
    }

    fn page_bytes(&self) -> usize {
        self.page_elements * self.pool.kv().element_bytes()
    }

    fn read_page(
        &mut self,
        page: PageId,
        offset: usize,
        out: &mut [u8],
    ) -> Result<(), DeviceError> {
        let range = page_range(page, offset, out.len(), self.page_bytes(), &self.capacity)?;
        out.copy_from_slice(&self.pool.bytes()[range]);
        Ok(())
    }

    fn write_page(&mut self, page: PageId, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        let range = page_range(page, offset, bytes.len(), self.page_bytes(), &self.capacity)?;
        self.pool.bytes_mut()[range].copy_from_slice(bytes);
        Ok(())
    }

    fn state_id(&self) -> String {
        let kv = self.pool.kv().name();
        let fingerprint = self.weights.fingerprint(&self.plan, &*self.files);
        self.stored.release(&self.weights, &*self.files);
        format!(
            "{} {fingerprint}, cpu pages of {kv}",
            self.plan.architecture
        )
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn memory(&self) -> Memory {
        let kv = self.pool.bytes().len();
        let scratch = self
            .bufs
            .iter()
            .chain(&self.vectors)
            .chain([&self.expanded, &self.scores])
            .map(|b| size_of_val(b.as_slice()))
            .sum::<usize>()
            + size_of_val(self.rounded.as_slice())
            + self.routing.bytes();
        Memory {
            weights_bytes: self.stored.bytes(&self.weights),
            kv_bytes: kv as u64,
            scratch_bytes: scratch as u64,
        }
    }
}
