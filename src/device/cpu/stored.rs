//! Matrices of integers as the kernels read them, dealt out a group of rows at a time while the model is loaded. What a matrix took of the
//! mapped files is given back then, so that weights are in memory once.

use memmap2::MmapMut;

use super::CpuError;
use super::packed::{Form, GROUP, pack};
use super::program::Program;
use crate::model::plan::TensorId;
use crate::model::weights::{Files, Weight, Weights};
use crate::quant::TensorType;

/// Bytes of the mapped files that are brought in between two looks at the clock.
const PIECE_BYTES: usize = 1 << 20;

/// Bytes of a line of memory: vectors that begin with one are read at once.
const LINE: usize = 64;

/// One matrix.
struct Matrix {
    form: Form,
    kind: TensorType,
    cols: usize,
    /// Where it lies in the memory of all.
    begin: usize,
    bytes: usize,
}

/// Those of all tensors that are multiplied and have a [`Form`], and how far the load is.
pub(super) struct Stored {
    /// Pages of their own, that take room as they are written: what the allocator hands out may have been in use before.
    memory: MmapMut,
    matrices: Vec<Option<Matrix>>,
    tensor: usize,
    /// Bytes of the tensor that are done.
    at: usize,
    loaded_bytes: u64,
}

/// What a product needs of a matrix: whole groups, and rows before the first that is wanted.
pub(super) struct Groups<'a> {
    pub kind: TensorType,
    pub bytes: &'a [u8],
    pub skip: usize,
}

impl Stored {
    /// Room for all of them.
    pub(super) fn new(program: &Program, weights: &Weights) -> Result<Self, CpuError> {
        let mut matrices: Vec<Option<Matrix>> = weights.iter().map(|_| None).collect();
        let mut end = 0usize;
        for (tensor, cols) in program.matrices() {
            let weight = weights.get(tensor);
            let Some(form) = Form::of(weight.kind) else {
                continue;
            };
            let rows = weight.bytes / weight.kind.row_bytes(cols);
            let bytes = rows.div_ceil(GROUP) * form.group_bytes(cols);
            // a tensor may be in several products
            matrices[tensor.0].get_or_insert_with(|| {
                let begin = end.next_multiple_of(LINE);
                end = begin + bytes;
                Matrix {
                    form,
                    kind: weight.kind,
                    cols,
                    begin,
                    bytes,
                }
            });
        }
        let memory = MmapMut::map_anon(end).map_err(|_| CpuError::Memory {
            what: "the weights",
            bytes: end as u64,
        })?;
        Ok(Self {
            memory,
            matrices,
            tensor: 0,
            at: 0,
            loaded_bytes: 0,
        })
    }

    /// Brings in one piece of the weights; whether any is left.
    pub(super) fn load_piece(&mut self, weights: &Weights, files: &dyn Files) -> bool {
        let Some(weight) = weights.iter().nth(self.tensor) else {
            return false;
        };
        let bytes = &files.bytes(weight)[self.at..];
        let done = match &self.matrices[self.tensor] {
            Some(matrix) => matrix.pack_piece(bytes, self.at, &mut self.memory),
            None => {
                let piece = &bytes[..bytes.len().min(PIECE_BYTES)];
                // one read a page makes the system bring it in
                std::hint::black_box(piece.iter().step_by(4096).fold(0u8, |a, b| a ^ b));
                piece.len()
            }
        };
        let begin = self.at - self.at % PIECE_BYTES;
        self.at += done;
        self.loaded_bytes += done as u64;
        let is_whole = self.at == weight.bytes || self.at - begin >= PIECE_BYTES;
        if is_whole && self.matrices[self.tensor].is_some() {
            files.release(&Weight {
                offset: weight.offset + begin,
                bytes: self.at - begin,
                ..*weight
            });
        }
        if self.at == weight.bytes {
            (self.tensor, self.at) = (self.tensor + 1, 0);
            if self.tensor == self.matrices.len() {
                self.release(weights, files);
            }
        }
        true
    }

    /// Gives back what matrices that are here take of the mapped files. Whoever reads from the files, were it from a tensor's neighbour,
    /// brings some of it in again.
    pub(super) fn release(&self, weights: &Weights, files: &dyn Files) {
        for (weight, matrix) in weights.iter().zip(&self.matrices) {
            if matrix.is_some() {
                files.release(weight);
            }
        }
    }

    /// Bytes of the files that have been brought in.
    pub(super) fn loaded_bytes(&self) -> u64 {
        self.loaded_bytes
    }

    /// Bytes that all weights take: those of the matrices that are here, and of the files for all others.
    pub(super) fn bytes(&self, weights: &Weights) -> u64 {
        let tensors = weights.iter().zip(&self.matrices);
        let bytes = tensors.map(|(weight, matrix)| match matrix {
            Some(matrix) => matrix.bytes as u64,
            None => weight.bytes as u64,
        });
        bytes.sum()
    }

    /// Whether a tensor is here.
    pub(super) fn has(&self, tensor: TensorId) -> bool {
        self.matrices[tensor.0].is_some()
    }

    /// The groups that rows of a tensor lie in; `None` for tensors that are not here.
    pub(super) fn groups(&self, tensor: TensorId, first: usize, rows: usize) -> Option<Groups<'_>> {
        let matrix = self.matrices[tensor.0].as_ref()?;
        let size = matrix.form.group_bytes(matrix.cols);
        let groups = first / GROUP..(first + rows).div_ceil(GROUP);
        let bytes = &self.memory[matrix.begin..];
        Some(Groups {
            kind: matrix.kind,
            bytes: &bytes[groups.start * size..groups.end * size],
            skip: first % GROUP,
        })
    }
}

impl Matrix {
    /// Packs some groups of rows, the first being at `at` in the tensor; how many bytes they have in the file.
    fn pack_piece(&self, bytes: &[u8], at: usize, memory: &mut [u8]) -> usize {
        let row_bytes = self.kind.row_bytes(self.cols);
        let size = self.form.group_bytes(self.cols);
        let in_file = GROUP * row_bytes;
        let groups = (PIECE_BYTES / 16 / in_file).max(1);
        let rows = &bytes[..bytes.len().min(groups * in_file)];
        let begin = self.begin + at / in_file * size;
        let to = memory[begin..].chunks_mut(size);
        for (rows, to) in rows.chunks(in_file).zip(to) {
            pack(self.kind, self.cols, rows, to);
        }
        rows.len()
    }
}
