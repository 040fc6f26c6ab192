//! Bringing the weights to the card: pieces of the mapped file are registered, copied and split into planes there.

use std::time::Instant;

use cudarc::driver::DriverError;

use super::args::Split;
use super::driver::Registered;
use super::layout::MatrixLayout;
use super::sizes::UPLOAD_BYTES;
use super::{CudaDevice, DeviceError, LoadProgress};
use crate::model::plan::{RopeOp, Shape, TensorId};

/// Bytes of a page of the host's memory, and what copies are aligned to.
const HOST_PAGE: usize = 4096;

/// How far the upload is: a tensor, and the rows of it that are in place.
#[derive(Clone, Copy, Debug, Default)]
pub struct Upload {
    tensor: usize,
    rows: usize,
    bytes: u64,
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
        self.weights_buffer
            .write(self.sizes.tensors_at[i], bytemuck::cast_slice(&values))?;
        self.upload.bytes += weight.bytes as u64;
        Ok(true)
    }

    /// As many rows as fit in one piece; whether they were the last.
    fn upload_rows(&mut self, i: usize) -> Result<bool, DeviceError> {
        let Some(layout) = self.layouts[i].clone() else {
            return Ok(true);
        };
        let rows = (UPLOAD_BYTES / layout.file_row_bytes)
            .max(1)
            .min(layout.rows - self.upload.rows);
        let bytes = rows * layout.file_row_bytes;
        if bytes > UPLOAD_BYTES {
            return Err(DeviceError::Step(format!(
                "{}: a row of {bytes} bytes; at most {UPLOAD_BYTES} can be brought to a card at once",
                self.plan.tensors[i].name
            )));
        }
        self.stream.wait()?; // the piece before has been split
        let piece = self.tensor_bytes(i, self.upload.rows * layout.file_row_bytes, bytes)?;
        copy_piece(&self.scratch, piece)?;
        self.split_rows(i, &layout, rows)?;
        self.upload.rows += rows;
        self.upload.bytes += bytes as u64;
        Ok(self.upload.rows == layout.rows)
    }

    /// Deals the piece in the scratch memory out to the planes.
    fn split_rows(&self, i: usize, layout: &MatrixLayout, rows: usize) -> Result<(), DriverError> {
        let to = self.weights_buffer.at() + self.sizes.tensors_at[i] as u64;
        for p in &layout.planes {
            let (block_bytes, part) = p.source;
            let blocks_a_row = layout.file_row_bytes / block_bytes;
            let args = Split {
                blocks: self.scratch.at(),
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

    /// The frequencies of the rotary embeddings, which are computed from what the file says.
    pub(super) fn upload_frequencies(&mut self) -> Result<(), DeviceError> {
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

/// Copies a piece of the file to the beginning of `to`. Whole pages are registered, so that the card reads them itself; where the system
/// does not allow that, and at the edges, the driver copies.
fn copy_piece(to: &super::driver::Buffer, piece: &[u8]) -> Result<(), DriverError> {
    let head = piece.as_ptr().align_offset(HOST_PAGE).min(piece.len());
    let whole = (piece.len() - head) / HOST_PAGE * HOST_PAGE;
    let pages = &piece[head..head + whole];
    let registered = if pages.is_empty() {
        None
    } else {
        Registered::pages(pages).ok()
    };
    to.write(0, &piece[..head])?;
    to.write(head, pages)?;
    drop(registered);
    to.write(head + whole, &piece[head + whole..])
}
