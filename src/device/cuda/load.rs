//! Bringing the weights to the card: pieces of the mapped file are registered, copied and split into planes there.
//!
//! The processor's part is to find the pages of the next piece; meanwhile the card copies and splits those before it. Each piece on its way
//! has a slot: its part of the scratch memory, its registration, and the event that tells when both are free again.

use std::time::Instant;

use cudarc::driver::DriverError;

use super::driver::{Event, Registered};
use super::layout::MatrixLayout;
use super::sizes::{PIECE_BYTES, UPLOAD_SLOTS};
use super::{CudaDevice, DeviceError, LoadProgress};
use crate::model::plan::{RopeOp, Shape, TensorId};

/// Bytes of a page of the host's memory, and what copies are aligned to.
const HOST_PAGE: usize = 4096;

/// Pieces that are shorter are copied by the driver: that is quicker than to register them.
const REGISTERED_BYTES_MIN: usize = 256 << 10;

/// How far the upload is: a tensor, and the rows of it that are on their way.
pub struct Upload {
    tensor: usize,
    rows: usize,
    bytes: u64,
    slots: Vec<Slot>,
    /// The slot that is used next.
    next: usize,
}

/// A piece on its way.
struct Slot {
    registered: Option<Registered>,
    /// Behind everything that reads the slot or its pages.
    event: Event,
}

impl Slot {
    /// Waits until the card is done with it.
    fn free(&mut self) -> Result<(), DriverError> {
        self.event.wait()?;
        self.registered = None;
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.free().ok();
    }
}

impl Upload {
    /// One that has not begun.
    pub fn new() -> Result<Self, DriverError> {
        let slot = |_| {
            Ok(Slot {
                registered: None,
                event: Event::new()?,
            })
        };
        Ok(Self {
            tensor: 0,
            rows: 0,
            bytes: 0,
            slots: (0..UPLOAD_SLOTS)
                .map(slot)
                .collect::<Result<_, DriverError>>()?,
            next: 0,
        })
    }
}

impl CudaDevice {
    /// Uploads until `until`.
    pub(super) fn upload_some(&mut self, until: Instant) -> Result<LoadProgress, DeviceError> {
        let total = self.weights.total_bytes();
        while self.upload.tensor < self.plan.tensors.len() {
            let i = self.upload.tensor;
            let shape = self.plan.tensors[i].shape;
            let done = match shape {
                Shape::Vector(_) | Shape::Vectors(..) => {
                    let (rows, cols) = shape.rows();
                    self.upload_vector(i, rows * cols)?
                }
                Shape::Matrix(..) | Shape::Matrices(..) => self.upload_rows(i)?,
            };
            if done {
                self.upload.tensor += 1;
                self.upload.rows = 0;
            }
            if Instant::now() >= until {
                break;
            }
        }
        let processed = if self.upload.tensor == self.plan.tensors.len() {
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
        self.upload.slots[slot].free()?;
        let first = self.upload.rows * layout.file_row_bytes;
        self.upload.slots[slot].registered = self.send_piece(slot, i, first, bytes)?;
        self.split_rows(
            i,
            &layout,
            rows,
            self.scratch.at() + (slot * PIECE_BYTES) as u64,
        )?;
        self.upload.slots[slot].event.record(&self.stream)?;
        self.upload.rows += rows;
        self.upload.bytes += bytes as u64;
        Ok(self.upload.rows == layout.rows)
    }

    /// Starts the copy of `len` bytes of a tensor to a slot. Whole pages are registered, so that the card reads them itself; where the system
    /// does not allow that, and at the edges, the driver copies.
    fn send_piece(
        &self,
        slot: usize,
        i: usize,
        first: usize,
        len: usize,
    ) -> Result<Option<Registered>, DeviceError> {
        let piece = self.tensor_bytes(i, first, len)?;
        let to = slot * PIECE_BYTES;
        let send = |at: usize, bytes: &[u8]| self.scratch.send(&self.stream, to + at, bytes);
        let head = piece.as_ptr().align_offset(HOST_PAGE).min(len);
        let whole = (len - head) / HOST_PAGE * HOST_PAGE;
        let registered = if len < REGISTERED_BYTES_MIN {
            None
        } else {
            self.register(i, first + head, whole)
        };
        let Some(pages) = registered else {
            send(0, piece)?;
            return Ok(None);
        };
        send(0, &piece[..head])?;
        pages.send(&self.stream, &self.scratch, to + head)?;
        send(head + whole, &piece[head + whole..])?;
        Ok(Some(pages))
    }

    /// Registers pages of a tensor's file; `None` where the system does not allow it.
    fn register(&self, i: usize, first: usize, len: usize) -> Option<Registered> {
        let weight = self.weights.get(TensorId(i));
        let begin = weight.offset + first;
        Registered::pages(self.files.as_ref()?, weight.file, begin..begin + len).ok()
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
            let blocks = rows * layout.file_row_bytes / block_bytes;
            let at = to + (p.at + self.upload.rows * p.row_bytes) as u64;
            let numbers = [block_bytes, part.offset, part.bytes, p.pitch];
            self.kernels
                .split(&self.stream, (from, at), blocks as u64, numbers)?;
        }
        Ok(())
    }

    /// The frequencies of the rotary embeddings, which are computed from what the file says.
    pub(super) fn upload_frequencies(&mut self) -> Result<(), DeviceError> {
        self.stream.wait()?;
        for (rope, at) in &self.sizes.ropes {
            let values = self.rope_frequencies(rope)?;
            self.weights_buffer
                .write(*at, bytemuck::cast_slice(&values))?;
        }
        Ok(())
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
            .ok_or_else(|| DeviceError::Step("the model's file is shorter than it says".to_owned()))
    }
}
