//! How a matrix lies in device memory: the bytes of its blocks, dealt out to planes, so that warps read them aligned and side by side.
//!
//! Nothing is lost but the sums of Q8_K, which follow from its quants: a plane holds, row after row, block after block, the same bytes of each
//! block. Rows of floats are padded with zeros to a multiple of [`COLS_STEP`] columns, and the rows of every plane to [`ROW_STEP`] bytes, so that
//! they can be copied to shared memory sixteen bytes at a time. `cuda/split.cu` does it on the card, [`split`] is its
//! twin, and `cuda/quant.cuh` reads the planes.

use crate::quant::TensorType;

/// Rows of floats, and activations, are padded to a multiple of this.
pub const COLS_STEP: usize = 32;

/// The rows of a plane begin at multiples of this.
pub const ROW_STEP: usize = 16;

/// Every plane begins at a multiple of this.
pub const ALIGNMENT: usize = 256;

/// Most planes of a type; `MAX_PLANES` of `cuda/quant.cuh`.
pub const PLANES_MAX: usize = 4;

/// The same bytes of every block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    /// First byte in the block.
    pub offset: usize,
    /// So many.
    pub bytes: usize,
    /// From one block to the next.
    pub pitch: usize,
}

const fn plane(offset: usize, bytes: usize) -> Plane {
    Plane {
        offset,
        bytes,
        pitch: bytes,
    }
}

/// Two bytes of a block of 256, in four: copies to shared memory take no fewer.
const fn widened(offset: usize) -> Plane {
    Plane {
        offset,
        bytes: 2,
        pitch: 4,
    }
}

/// The planes of a type, in the order in which `cuda/quant.cuh` names them. Floats have one plane, whose blocks are rows.
pub const fn planes(kind: TensorType) -> &'static [Plane] {
    match kind {
        TensorType::F32 | TensorType::F16 | TensorType::BF16 => &[],
        TensorType::Q4_0 | TensorType::IQ4_NL => const { &[plane(2, 16), plane(0, 2)] },
        TensorType::Q4_1 => const { &[plane(4, 16), plane(0, 4)] },
        TensorType::Q5_0 => const { &[plane(6, 16), plane(2, 4), plane(0, 2)] },
        TensorType::Q5_1 => const { &[plane(8, 16), plane(4, 4), plane(0, 4)] },
        TensorType::Q8_0 => const { &[plane(2, 32), plane(0, 2)] },
        TensorType::Q2_K => const { &[plane(16, 64), plane(0, 16), plane(80, 4)] },
        TensorType::Q3_K => const { &[plane(32, 64), plane(0, 32), plane(96, 12), widened(108)] },
        TensorType::Q4_K => const { &[plane(16, 128), plane(0, 16)] },
        TensorType::Q5_K => const { &[plane(48, 128), plane(16, 32), plane(0, 16)] },
        TensorType::Q6_K => {
            const { &[plane(0, 128), plane(128, 64), plane(192, 16), widened(208)] }
        }
        TensorType::Q8_K => const { &[plane(4, 256), plane(0, 4)] },
        TensorType::IQ4_XS => const { &[plane(8, 128), plane(0, 8)] },
        TensorType::MXFP4 => const { &[plane(1, 16), plane(0, 1)] },
    }
}

/// One plane of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaneLayout {
    /// Where it begins in the matrix.
    pub at: usize,
    /// From one block to the next in the plane.
    pub pitch: usize,
    /// Bytes of a block in the file, the first of those that are kept, and how many.
    pub source: (usize, Plane),
    /// Bytes of a row of the matrix in the plane.
    pub row_bytes: usize,
}

/// Where the parts of a matrix lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixLayout {
    /// Its type.
    pub kind: TensorType,
    /// Rows; of all experts together where there are some.
    pub rows: usize,
    /// Columns, padded.
    pub cols: usize,
    /// Bytes of a row in the file.
    pub file_row_bytes: usize,
    /// One to four.
    pub planes: Vec<PlaneLayout>,
    /// Bytes in all, a multiple of [`ALIGNMENT`].
    pub bytes: usize,
}

impl MatrixLayout {
    /// The layout of a matrix of (rows, cols); `cols` is a multiple of the type's block.
    pub fn new(kind: TensorType, rows: usize, cols: usize) -> Self {
        let file_row_bytes = kind.row_bytes(cols);
        let mut planes = Vec::with_capacity(PLANES_MAX);
        let mut end = 0;
        let mut add = |pitch: usize, source: (usize, Plane), row_bytes: usize| {
            let row_bytes = row_bytes.next_multiple_of(ROW_STEP);
            planes.push(PlaneLayout {
                at: end,
                pitch,
                source,
                row_bytes,
            });
            end = (end + rows * row_bytes).next_multiple_of(ALIGNMENT);
        };
        let of_type = self::planes(kind);
        for p in of_type {
            add(
                p.pitch,
                (kind.block_bytes(), *p),
                cols / kind.block_len() * p.pitch,
            );
        }
        if of_type.is_empty() {
            let pitch = cols.next_multiple_of(COLS_STEP) * kind.block_bytes();
            add(pitch, (file_row_bytes, plane(0, file_row_bytes)), pitch);
        }
        Self {
            kind,
            rows,
            cols: cols.next_multiple_of(COLS_STEP),
            file_row_bytes,
            planes,
            bytes: end,
        }
    }
}

/// What the card does with the file's bytes of a whole matrix.
pub fn split(layout: &MatrixLayout, file: &[u8]) -> Vec<u8> {
    let mut out = vec![0; layout.bytes];
    for p in &layout.planes {
        let (block_bytes, part) = p.source;
        for (row, blocks) in file.chunks_exact(layout.file_row_bytes).enumerate() {
            for (i, block) in blocks.chunks_exact(block_bytes).enumerate() {
                out[p.at + row * p.row_bytes + i * p.pitch..][..part.bytes]
                    .copy_from_slice(&block[part.offset..][..part.bytes]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_block_is_in_one_plane() {
        for kind in TensorType::ALL {
            let mut seen = vec![0; kind.block_bytes()];
            for p in planes(kind) {
                seen[p.offset..][..p.bytes].iter_mut().for_each(|n| *n += 1);
            }
            let kept = match kind {
                TensorType::F32 | TensorType::F16 | TensorType::BF16 => continue,
                TensorType::Q8_K => &seen[..260], // the sums after it are left out
                _ => &seen[..],
            };
            assert!(kept.iter().all(|n| *n == 1), "{}: {seen:?}", kind.name());
        }
    }

    #[test]
    fn planes_are_aligned_and_do_not_overlap() {
        for kind in TensorType::ALL {
            let layout = MatrixLayout::new(kind, 7, 3 * kind.block_len().max(11));
            let mut end = 0;
            for p in &layout.planes {
                assert!(p.at >= end && p.at % ALIGNMENT == 0, "{}", kind.name());
                end = p.at + 7 * p.row_bytes;
            }
            assert!(layout.bytes >= end && layout.planes.len() <= PLANES_MAX);
        }
    }

    #[test]
    fn a_matrix_is_split() {
        let layout = MatrixLayout::new(TensorType::Q4_0, 1, 64);
        let file: Vec<u8> = (0..36).collect();
        let out = split(&layout, &file);
        assert_eq!(out[..16], file[2..18]);
        assert_eq!(out[16..32], file[20..36]);
        assert_eq!(out[256..260], [0, 1, 18, 19]);
    }

    #[test]
    fn rows_of_floats_are_padded() {
        let layout = MatrixLayout::new(TensorType::F16, 2, 3);
        assert_eq!((layout.cols, layout.bytes), (32, 256));
        let out = split(&layout, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(
            (&out[..7], &out[64..71]),
            (&[1, 2, 3, 4, 5, 6, 0][..], &[7, 8, 9, 10, 11, 12, 0][..])
        );
    }
}
