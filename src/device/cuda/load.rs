//! Bringing the weights to the card: windows of the mapped files are registered, so that the card reads them itself, and pieces of tensors are
//! copied from there and split into planes.
//!
//! The processor's part is to register, which costs a call and something for each page; the card copies and splits meanwhile. A piece on its
//! way has a slot of the scratch memory. Tensors come in the order of the files.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

use cudarc::driver::DriverError;

use super::args::Split;
use super::driver::{Event, Registered};
use super::layout::MatrixLayout;
use super::sizes::{PIECE_BYTES, UPLOAD_SLOTS};
use super::{CudaDevice, DeviceError, LoadProgress};
use crate::model::plan::{RopeOp, Shape, TensorId};
use crate::model::weights::{Files, Weights};

/// Bytes of a page of the host's memory.
const HOST_PAGE: usize = 4096;

/// Bytes of a file that are registered with one call: about 5 ms.
const WINDOW_BYTES: usize = 64 << 20;

/// Windows that are registered at once, 4 GB of the host's memory. To let go of one takes a millisecond, so that waits until the load is over
/// where it can.
const WINDOWS: usize = 64;

/// How far the upload is: a tensor, and the rows of it that are on their way.
pub struct Upload {
    /// Tensors in the order in which they lie in the files.
    order: Vec<usize>,
    /// How many of them are on their way, all of them.
    tensors: usize,
    rows: usize,
    bytes: u64,
    windows: VecDeque<Window>,
    /// Whether the system lets pages be registered.
    registers: bool,
    /// Each behind everything that reads the slot.
    slots: Vec<Event>,
    /// The slot that is used next.
    next: usize,
}

/// A registered part of a file.
struct Window {
    file: usize,
    bytes: Range<usize>,
    pages: Registered,
    /// Behind the last copy from it.
    used: Event,
}

impl Drop for Window {
    fn drop(&mut self) {
        self.used.wait().ok();
    }
}

impl Upload {
    /// One that has not begun.
    pub fn new(weights: &Weights, tensors: usize) -> Result<Self, DriverError> {
        let mut order: Vec<usize> = (0..tensors).collect();
        order.sort_by_key(|i| {
            let weight = weights.get(TensorId(*i));
            (weight.file, weight.offset)
        });
        let slots = (0..UPLOAD_SLOTS).map(|_| Event::new());
        Ok(Self {
            order,
            tensors: 0,
            rows: 0,
            bytes: 0,
            windows: VecDeque::new(),
            registers: true,
            slots: slots.collect::<Result<_, _>>()?,
            next: 0,
        })
    }

    /// The window that a byte of a file lies in, registered; `None` where there is none: at the edges of a file, or where the system refuses.
    fn window(
        &mut self,
        files: &Rc<dyn Files>,
        file: usize,
        at: usize,
    ) -> Result<Option<&Window>, DriverError> {
        let is_in = |window: &Window| window.file == file && window.bytes.contains(&at);
        if let Some(found) = self.windows.iter().position(is_in) {
            return Ok(self.windows.get(found));
        }
        let whole = whole_pages(files.file(file));
        if !self.registers || !whole.contains(&at) {
            return Ok(None);
        }
        let begin = whole.start + (at - whole.start) / WINDOW_BYTES * WINDOW_BYTES;
        let bytes = begin..whole.end.min(begin + WINDOW_BYTES);
        if self.windows.len() == WINDOWS {
            self.let_go(&**files);
        }
        let Ok(pages) = Registered::pages(files, file, bytes.clone()) else {
            self.registers = false;
            return Ok(None);
        };
        self.windows.push_back(Window {
            file,
            bytes,
            pages,
            used: Event::new()?,
        });
        Ok(self.windows.back())
    }

    /// Lets go of the window that has been registered longest; whether there was one.
    fn let_go(&mut self, files: &dyn Files) -> bool {
        let Some(window) = self.windows.pop_front() else {
            return false;
        };
        let (file, bytes) = (window.file, window.bytes.clone());
        drop(window);
        files.forget(file, bytes);
        true
    }
}

/// The part of a file that is whole pages of memory.
fn whole_pages(file: &[u8]) -> Range<usize> {
    let head = file.as_ptr().align_offset(HOST_PAGE).min(file.len());
    head..head + (file.len() - head) / HOST_PAGE * HOST_PAGE
}

impl CudaDevice {
    /// Uploads until `until`.
    pub(super) fn upload_some(&mut self, until: Instant) -> Result<LoadProgress, DeviceError> {
        let total = self.weights.total_bytes();
        while let Some(i) = self.upload.order.get(self.upload.tensors).copied() {
            let shape = self.plan.tensors[i].shape;
            let done = match shape {
                Shape::Vector(_) | Shape::Vectors(..) => {
                    let (rows, cols) = shape.rows();
                    self.upload_vector(i, rows * cols)?
                }
                Shape::Matrix(..) | Shape::Matrices(..) => self.upload_rows(i)?,
            };
            if done {
                self.upload.tensors += 1;
                self.upload.rows = 0;
            }
            if Instant::now() >= until {
                break;
            }
        }
        let processed = if self.upload.tensors == self.upload.order.len() {
            total
        } else {
            self.upload.bytes.min(total.saturating_sub(1))
        };
        Ok(LoadProgress { processed, total })
    }

    /// Vectors are widened to f32 on the host: they are small.
    fn upload_vector(&mut self, i: usize, len: usize) -> Result<bool, DeviceError> {
        let weight = self.weights.get(TensorId(i));
        let mut values = vec![0.0f32; len];
        let bytes = self.tensor_bytes(i, 0, weight.bytes)?;
        weight
            .kind
            .dequantize(bytes, &mut values)
            .map_err(|e| DeviceError::Step(format!("{}: {e}", self.plan.tensors[i].name)))?;
        self.weights_buffer.send(
            &self.stream,
            self.sizes.tensors_at[i],
            bytemuck::cast_slice(&values),
        )?;
        self.upload.bytes += weight.bytes as u64;
        Ok(true)
    }

    /// As many rows as fit in one piece; whether they were the last.
    fn upload_rows(&mut self, i: usize) -> Result<bool, DeviceError> {
        let Some(layout) = self.layouts[i].clone() else {
            return Ok(true);
        };
        let rows = (PIECE_BYTES / layout.file_row_bytes)
            .max(1)
            .min(layout.rows - self.upload.rows);
        let bytes = rows * layout.file_row_bytes;
        if bytes > PIECE_BYTES {
            return Err(DeviceError::Step(format!(
                "{}: a row of {bytes} bytes; at most {PIECE_BYTES} can be brought to a card at once",
                self.plan.tensors[i].name
            )));
        }
        let slot = self.upload.next;
        self.upload.next = (slot + 1) % UPLOAD_SLOTS;
        self.upload.slots[slot].wait()?;
        let first = self.upload.rows * layout.file_row_bytes;
        self.send_piece(i, first..first + bytes, slot * PIECE_BYTES)?;
        let from = self.scratch.at() + (slot * PIECE_BYTES) as u64;
        self.split_rows(i, &layout, rows, from)?;
        self.upload.slots[slot].record(&self.stream)?;
        self.upload.rows += rows;
        self.upload.bytes += bytes as u64;
        Ok(self.upload.rows == layout.rows)
    }

    /// Starts the copy of bytes of a tensor to the scratch memory, window by window.
    fn send_piece(&mut self, i: usize, of: Range<usize>, to: usize) -> Result<(), DeviceError> {
        let weight = self.weights.get(TensorId(i));
        let files = Rc::clone(self.files.as_ref().ok_or_else(short)?);
        let file = files.file(weight.file);
        let (begin, end) = (weight.offset + of.start, weight.offset + of.end);
        let mut at = begin;
        while at < end {
            let to = to + at - begin;
            at = match self.upload.window(&files, weight.file, at)? {
                Some(window) => {
                    let part = at..end.min(window.bytes.end);
                    let first = window.bytes.start;
                    let in_window = part.start - first..part.end - first;
                    window
                        .pages
                        .send(&self.stream, in_window, &self.scratch, to)?;
                    window.used.record(&self.stream)?;
                    part.end
                }
                None => {
                    let whole = whole_pages(file);
                    // up to where windows begin, if they do
                    let stop = if at < whole.start {
                        whole.start.min(end)
                    } else {
                        end
                    };
                    let part = file.get(at..stop).ok_or_else(short)?;
                    self.scratch.send(&self.stream, to, part)?;
                    stop
                }
            };
        }
        Ok(())
    }

    /// Deals rows of the file at `from` out to the planes.
    fn split_rows(
        &self,
        i: usize,
        layout: &MatrixLayout,
        rows: usize,
        from: u64,
    ) -> Result<(), DriverError> {
        let to = self.weights_buffer.at() + self.sizes.tensors_at[i] as u64;
        for p in &layout.planes {
            let (block_bytes, part) = p.source;
            let blocks_a_row = layout.file_row_bytes / block_bytes;
            let args = Split {
                blocks: from,
                plane: to + (p.at + self.upload.rows * p.row_bytes) as u64,
                n_blocks: (rows * blocks_a_row) as u64,
                blocks_a_row: blocks_a_row as u32,
                row_bytes: p.row_bytes as u32,
                pitch: p.pitch as u32,
                block_bytes: block_bytes as u32,
                offset: part.offset as u32,
                bytes: part.bytes as u32,
            };
            self.kernels.split(&self.stream, &args)?;
        }
        Ok(())
    }

    /// Lets go of a part of the files, and of the files with the last one; whether there is more.
    pub(super) fn let_go(&mut self) -> bool {
        if let Some(files) = &self.files
            && self.upload.let_go(&**files)
        {
            return true;
        }
        self.files = None;
        false
    }

    /// The end of a load: the frequencies of the rotary embeddings, which are computed from what the file says, and an empty scratch memory.
    pub(super) fn upload_frequencies(&mut self) -> Result<(), DeviceError> {
        self.stream.wait()?;
        for (rope, at) in &self.sizes.ropes {
            let values = self.rope_frequencies(rope)?;
            let bytes = bytemuck::cast_slice(&values);
            self.weights_buffer.send(&self.stream, *at, bytes)?;
        }
        // pieces of the file have been where counters are to begin at zero
        Ok(self.scratch.clear(&self.stream)?)
    }

    fn rope_frequencies(&self, rope: &RopeOp) -> Result<Vec<f32>, DeviceError> {
        let Some(id) = rope.factors else {
            return Ok(rope.inverse_frequencies(None));
        };
        let mut factors = vec![0.0; rope.rope.dims / 2];
        self.weights_buffer.read(
            self.sizes.tensors_at[id.0],
            bytemuck::cast_slice_mut(&mut factors),
        )?;
        Ok(rope.inverse_frequencies(Some(&factors)))
    }

    /// Bytes of a tensor from one on.
    fn tensor_bytes(&self, i: usize, first: usize, len: usize) -> Result<&[u8], DeviceError> {
        let weight = self.weights.get(TensorId(i));
        let bytes = self.files.as_ref().map(|files| files.bytes(&weight));
        bytes
            .and_then(|bytes| bytes.get(first..)?.get(..len))
            .ok_or_else(short)
    }
}

fn short() -> DeviceError {
    DeviceError::Step("the model's file is shorter than it says".to_owned())
}
