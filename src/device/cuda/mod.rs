//! The cuda device: one card, everything in its memory, the same plan as the cpu device.
//!
//! A step is enqueued in groups of operations, never more than about twenty milliseconds ahead, and `poll` asks an event. A step of one
//! token is captured once, when the load is done, and replayed. Steps of up to [`ROWS_MAX`] tokens multiply in f32 and give each token the
//! same bits whatever the others are; longer ones multiply in f16 on the tensor cores, with f32 sums.

pub mod args;
mod attention;
mod bandwidth;
pub mod driver;
mod error;
mod held;
pub mod launch;
pub mod layout;
mod load;
mod ops;
mod project;
mod prompt;
mod sample;
mod sizes;
mod tiles;
mod trace;

use std::rc::Rc;
use std::time::{Duration, Instant};

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUdevice_attribute as Attribute;

use self::args::StepHeader;
use self::driver::{Buffer, Context, Event, Graph, Pinned, Stream, explain};
pub use self::error::CudaError;
use self::error::{after_check, check_card, check_memory, not_opened};
use self::held::Held;
use self::launch::Kernels;
use self::layout::MatrixLayout;
use self::sample::Finder;
pub use self::sizes::page_bytes;
use self::sizes::{Area, Sizes};
use super::{
    Capacity, Card, Device, DeviceError, KvType, LoadProgress, Memory, Output, PAGE_TOKENS, PageId,
    Rows, Shown, Step, check_pages, page_range,
};
use crate::model::plan::Plan;
use crate::model::weights::{Files, Weights};
use crate::sampling::{SampleStep, Sampler};

/// Most tokens a step holds: enough rows for the tensor cores, few enough that activations stay small.
pub const STEP_TOKENS_MAX: usize = 2048;

/// Most tokens that are multiplied as vectors, in f32; so many rows of logits are kept.
pub const ROWS_MAX: usize = 8;

/// How long a step must still take, at least, for `poll` to nap instead of spinning.
const NAP: Duration = Duration::from_micros(100);

/// How a cuda device is set up.
#[derive(Clone, Copy, Debug)]
pub struct CudaOptions {
    /// Number of the card.
    pub ordinal: usize,
    /// Tokens that the KV pool must hold; rounded up to whole pages.
    pub context: usize,
    /// How keys and values are stored.
    pub kv: KvType,
}

/// What is enqueued of the step under way.
#[derive(Clone, Copy, Debug)]
struct Flight {
    rows: Rows,
    tokens: usize,
    /// The operation that is enqueued next; `ops.len()` when all are.
    next_op: usize,
    /// Which of the two events was recorded last, and how many are still to be waited for.
    newest: usize,
    flying: usize,
}

/// What `poll` has to do.
enum Job {
    Idle,
    Forward(Flight),
    /// A step whose operations leave f32, as they are shown one by one.
    Trace,
    /// Finished when it was asked for; waits to be fetched.
    Done(Output),
}

/// Which rows of the last step there are logits of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Logits {
    /// None.
    Stale,
    /// The last row's.
    Last,
    /// So many rows' can be had; those from `first` on lie in the buffer, at most [`ROWS_MAX`].
    All { rows: usize, first: usize },
}

/// A model on a card. Fields are dropped in this order: the context goes last.
pub struct CudaDevice {
    plan: Plan,
    weights: Weights,
    files: Option<Rc<dyn Files>>,
    fingerprint: String,
    name: String,
    card: Card,
    kv: KvType,
    sizes: Sizes,
    /// Where each tensor lies in the weights: its layout for matrices, nothing for vectors.
    layouts: Vec<Option<MatrixLayout>>,
    upload: load::Upload,
    load_parts: Vec<(&'static str, Duration)>,
    graph: Option<Graph>,
    events: [Event; 2],
    kernels: Kernels,
    multiprocessors: usize,
    weights_buffer: Buffer,
    pool: Buffer,
    scratch: Buffer,
    staging: Pinned,
    stream: Stream,
    capacity: Capacity,
    job: Job,
    logits: Logits,
    finder: Finder,
    sampler: Sampler,
    row: Vec<f32>, // (vocab)
    context: Context,
}

/// A CUDA error during work: the context is of no use any more.
impl From<DriverError> for DeviceError {
    fn from(error: DriverError) -> Self {
        DeviceError::Lost(explain(&error))
    }
}

impl CudaDevice {
    /// Opens the card and allocates everything that steps will need; the weights are brought in by `load_some`.
    pub fn new(
        plan: Plan,
        weights: Weights,
        files: Box<dyn Files>,
        options: CudaOptions,
    ) -> Result<Self, CudaError> {
        let (ordinal, tokens, kv) = (options.ordinal, options.context, options.kv);
        let sizes = Sizes::of(&plan, &weights, tokens, kv).map_err(CudaError::Unsupported)?;
        let context = Context::open(ordinal).map_err(|e| not_opened(e, ordinal, &sizes))?;
        let name = context.name()?;
        let card = check_card(&context, ordinal, &name)?;
        check_memory(&context, &sizes, &name)?;
        let held = Held::allocate(&context, &sizes, (&plan, &weights), kv)
            .map_err(|e| after_check(e, &context, &sizes, &name))?;
        let files: Rc<dyn Files> = files.into();
        let mut device = Self {
            fingerprint: weights.fingerprint(&plan, &*files),
            layouts: sizes::layouts(&plan, &weights),
            capacity: Capacity {
                step_tokens_max: STEP_TOKENS_MAX,
                exact_tokens_max: ROWS_MAX,
                pages: sizes.pages,
                vocab: plan.n_vocab,
            },
            multiprocessors: context
                .attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            weights_buffer: held.weights,
            pool: held.pool,
            scratch: held.scratch,
            staging: held.staging,
            stream: held.stream,
            events: held.events,
            kernels: held.kernels,
            upload: held.upload,
            finder: held.finder,
            sampler: Sampler::new(plan.n_vocab),
            row: vec![0.0; plan.n_vocab],
            load_parts: held.parts,
            graph: None,
            job: Job::Idle,
            logits: Logits::Stale,
            plan,
            weights,
            files: Some(files),
            name,
            card,
            kv,
            sizes,
            context,
        };
        device.check_widths()?;
        // a graph takes memory, too, and knows only addresses: the weights need not be there
        device
            .capture()
            .map_err(|e| after_check(e, &device.context, &device.sizes, &device.name))?;
        Ok(device)
    }

    /// "NVIDIA H100 80GB HBM3".
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends the step's description to the card.
    fn describe(&mut self, step: &Step<'_>) -> Result<(), DriverError> {
        let at = self.scratch.at() + self.sizes.offset(Area::Step) as u64;
        let pages_at = size_of::<StepHeader>();
        let tokens_at = pages_at + self.sizes.pages * 4;
        let header = StepHeader {
            position: step.position as u32,
            n_tokens: step.tokens.len() as u32,
            tokens: at + tokens_at as u64,
            pages: at + pages_at as u64,
        };
        let staging = self.staging.as_mut_slice();
        staging[..pages_at].copy_from_slice(bytemuck::bytes_of(&header));
        for (to, page) in staging[pages_at..tokens_at]
            .chunks_exact_mut(4)
            .zip(step.pages)
        {
            to.copy_from_slice(&page.0.to_le_bytes());
        }
        for (to, token) in staging[tokens_at..].chunks_exact_mut(4).zip(step.tokens) {
            to.copy_from_slice(&token.to_le_bytes());
        }
        self.staging.send(
            &self.stream,
            &self.scratch,
            tokens_at + step.tokens.len() * 4,
        )
    }

    /// Enqueues operations until the step is enqueued or enough is in flight.
    fn enqueue(&mut self, flight: &mut Flight) -> Result<(), DeviceError> {
        while flight.next_op < self.plan.ops.len() && flight.flying < self.events.len() {
            if let (1, Rows::Last, Some(graph)) = (flight.tokens, flight.rows, &self.graph) {
                graph.launch(&self.stream)?;
                flight.next_op = self.plan.ops.len();
            } else {
                flight.next_op = self.run_group(flight.next_op, flight.tokens, flight.rows)?;
            }
            if flight.next_op == self.plan.ops.len() && flight.rows == Rows::Last {
                self.look_ahead()?;
            }
            flight.newest = 1 - flight.newest;
            flight.flying += 1;
            self.events[flight.newest].record(&self.stream)?;
        }
        Ok(())
    }

    /// Runs a step as far as it comes until `until`; whether it is done.
    fn fly(&mut self, flight: &mut Flight, until: Instant) -> Result<bool, DeviceError> {
        loop {
            self.enqueue(flight)?;
            let oldest = if flight.flying == 2 {
                1 - flight.newest
            } else {
                flight.newest
            };
            if self.events[oldest].is_done()? {
                flight.flying -= 1;
                if flight.flying == 0 && flight.next_op == self.plan.ops.len() {
                    return Ok(true);
                }
                continue;
            }
            let now = Instant::now();
            if now >= until {
                return Ok(false);
            }
            if flight.tokens > ROWS_MAX && until - now > NAP {
                nap(NAP); // a prompt takes milliseconds; spinning would only heat the core
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// What a step leaves.
    fn logits_after(&self, tokens: usize, rows: Rows) -> Logits {
        match rows {
            Rows::None => Logits::Stale,
            Rows::Last => Logits::Last,
            Rows::All if tokens <= ROWS_MAX => Logits::All {
                rows: tokens,
                first: 0,
            },
            // computed when they are asked for
            Rows::All => Logits::All {
                rows: tokens,
                first: usize::MAX,
            },
        }
    }

    /// Where a row's logits lie in device memory, after computing them where that was put off.
    fn logits_at(&mut self, row: usize) -> Result<usize, DeviceError> {
        let vocab_bytes = self.capacity.vocab * size_of::<f32>();
        let base = self.sizes.offset(Area::Logits);
        let rows = match self.logits {
            Logits::Stale => 0,
            Logits::Last => 1,
            Logits::All { rows, .. } => rows,
        };
        if row >= rows {
            return Err(DeviceError::Step(format!(
                "there are no such logits: the last step asked for none or did not finish, or it has only {rows} rows of them"
            )));
        }
        match self.logits {
            Logits::Stale | Logits::Last => Ok(base),
            Logits::All { rows, first } => {
                let wanted = row / ROWS_MAX * ROWS_MAX;
                if first != wanted {
                    self.finder.forget();
                    self.head_rows(wanted, ROWS_MAX.min(rows - wanted))?;
                    self.logits = Logits::All {
                        rows,
                        first: wanted,
                    };
                }
                Ok(base + (row - wanted) * vocab_bytes)
            }
        }
    }
}

/// Sleeps: poll(2) of nothing.
fn nap(time: Duration) {
    let time = rustix::time::Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    rustix::event::poll(&mut [], Some(&time)).ok();
}

impl Device for CudaDevice {
    fn load_some(&mut self, until: Instant) -> Result<LoadProgress, DeviceError> {
        let progress = self.upload_some(until)?;
        if progress.processed == progress.total {
            self.upload_frequencies()?;
            if !self.is_resident()? {
                return Err(DeviceError::Lost(
                    "the model's memory is not on the card".to_owned(),
                ));
            }
        }
        Ok(progress)
    }

    fn tidy(&mut self) -> bool {
        self.let_go()
    }

    fn forward(&mut self, step: Step<'_>) -> Result<(), DeviceError> {
        step.check(&self.capacity)?;
        self.stream.wait()?; // what an aborted step left, and the staging area that it read
        self.forget_logits();
        self.describe(&step)?;
        let mut flight = Flight {
            rows: step.rows,
            tokens: step.tokens.len(),
            next_op: 0,
            newest: 1,
            flying: 0,
        };
        self.enqueue(&mut flight)?;
        self.job = Job::Forward(flight);
        Ok(())
    }

    fn sample(&mut self, step: SampleStep<'_>) -> Result<(), DeviceError> {
        self.job = Job::Done(Output::Sampled(self.draw(&step)?));
        Ok(())
    }

    fn score(&mut self, row: usize, token: u32, top: usize) -> Result<(), DeviceError> {
        let scored = self.score_row(row, token, top)?;
        self.job = Job::Done(Output::Scored(scored));
        Ok(())
    }

    fn poll(&mut self, until: Instant) -> Result<Option<Output>, DeviceError> {
        match std::mem::replace(&mut self.job, Job::Idle) {
            Job::Idle | Job::Trace => Ok(None),
            Job::Done(output) => Ok(Some(output)),
            Job::Forward(mut flight) => {
                if !self.fly(&mut flight, until)? {
                    self.job = Job::Forward(flight);
                    return Ok(None);
                }
                self.logits = self.logits_after(flight.tokens, flight.rows);
                Ok(Some(Output::Forwarded))
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
        self.trace_step(step, show)
    }

    fn read_logits(&mut self, row: usize, out: &mut [f32]) {
        match self.fetch_row(row) {
            Ok(()) => out.copy_from_slice(&self.row),
            Err(_) => out.fill(f32::NAN),
        }
    }

    fn copy_page(&mut self, from: PageId, to: PageId) -> Result<(), DeviceError> {
        check_pages(&[from, to], &self.capacity)?;
        let size = self.page_bytes();
        self.pool.copy_within(
            &self.stream,
            from.0 as usize * size,
            to.0 as usize * size,
            size,
        )?;
        Ok(())
    }

    fn page_bytes(&self) -> usize {
        self.sizes.page_bytes()
    }

    fn read_page(
        &mut self,
        page: PageId,
        offset: usize,
        out: &mut [u8],
    ) -> Result<(), DeviceError> {
        let range = page_range(page, offset, out.len(), self.page_bytes(), &self.capacity)?;
        self.stream.wait()?;
        Ok(self.pool.read(range.start, out)?)
    }

    fn write_page(&mut self, page: PageId, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        let range = page_range(page, offset, bytes.len(), self.page_bytes(), &self.capacity)?;
        self.stream.wait()?;
        Ok(self.pool.send(&self.stream, range.start, bytes)?)
    }

    fn state_id(&self) -> String {
        let kv = self.kv.name();
        format!(
            "{} {}, cuda pages of {kv}",
            self.plan.architecture, self.fingerprint
        )
    }

    fn card(&self) -> Option<Card> {
        let buffers = [&self.weights_buffer, &self.pool, &self.scratch];
        Some(Card {
            used_bytes: buffers.iter().map(|b| b.bytes() as u64).sum(),
            ..self.card.clone()
        })
    }

    fn is_resident(&mut self) -> Result<bool, DeviceError> {
        let mut all = true;
        for buffer in [&self.weights_buffer, &self.pool, &self.scratch] {
            all &= buffer.is_resident(&self.context)?;
        }
        Ok(all)
    }

    fn read_bandwidth(&mut self) -> Result<Option<f64>, DeviceError> {
        self.measure_bandwidth().map(Some)
    }

    fn load_parts(&self) -> Vec<(&'static str, Duration)> {
        self.load_parts.clone()
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn memory(&self) -> Memory {
        self.sizes.memory()
    }
}

/// Positions of all pages, for sizes.
fn positions(pages: usize) -> usize {
    pages * PAGE_TOKENS
}
