//! How matrices of integers lie in memory: sixteen rows side by side, dealt out when they are loaded.
//!
//! A group is sixteen rows, the last one of a matrix filled up with zeros. It holds block after block of 32 columns: the rows' scales, then
//! their quants. Quants are unsigned (`zero` is subtracted from them), four bits of each first: byte 64 c + 4 r + j has column 4 c + j of
//! row r in its low half and column 16 + 4 c + j in its high one. What is above four bits follows in planes of 64 bytes, of which byte
//! 4 r + j has bits of columns j, 4 + j, 8 + j, ... of row r, the lowest first: one of each, or two. Bytes are 8 times 64, byte
//! 64 c + 4 r + j being column 4 c + j. So four columns of sixteen rows are one vector, and a row's sum stays in its lane.
//!
//! Scales are halves as in the file, then minima where there are any. Types with superblocks have those halves before each eight blocks
//! and bytes in the blocks: scales and minima, or two scales, for columns 0 to 15 and 16 to 31.

use half::f16;

use crate::quant::{
    BlockQ4_0, BlockQ4_1, BlockQ4_K, BlockQ5_0, BlockQ5_1, BlockQ5_K, BlockQ6_K, BlockQ8_0,
    TensorType, five_bits, nibbles, scale_and_minimum,
};

/// Rows of a group.
pub const GROUP: usize = 16;

/// Columns of a block.
pub const BLOCK: usize = 32;

/// What a type's weights are made of: `d × (q - zero)`, `d × q + m`, or with superblocks `d × s × (q - zero)`, `d × s × q - dmin × m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Bits of a quant: 4, 5, 6 or 8.
    pub bits: usize,
    /// The logarithm of `zero`, where there is one.
    pub zero: Option<u32>,
    /// Whether there is a minimum.
    pub minimum: bool,
    /// Whether eight blocks share halves.
    pub supers: bool,
    /// Whether a block has a scale for each 16 columns.
    pub halves: bool,
}

impl Form {
    /// The form of a type; types without one are multiplied as floats.
    pub const fn of(kind: TensorType) -> Option<Self> {
        let plain = Self {
            bits: 4,
            zero: None,
            minimum: false,
            supers: false,
            halves: false,
        };
        match kind {
            TensorType::Q4_0 => Some(Self {
                zero: Some(3),
                ..plain
            }),
            TensorType::Q4_1 => Some(Self {
                minimum: true,
                ..plain
            }),
            TensorType::Q5_0 => Some(Self {
                bits: 5,
                zero: Some(4),
                ..plain
            }),
            TensorType::Q5_1 => Some(Self {
                bits: 5,
                minimum: true,
                ..plain
            }),
            TensorType::Q8_0 => Some(Self {
                bits: 8,
                zero: Some(7),
                ..plain
            }),
            TensorType::Q4_K => Some(Self {
                minimum: true,
                supers: true,
                ..plain
            }),
            TensorType::Q5_K => Some(Self {
                bits: 5,
                minimum: true,
                supers: true,
                ..plain
            }),
            TensorType::Q6_K => Some(Self {
                bits: 6,
                zero: Some(5),
                supers: true,
                halves: true,
                ..plain
            }),
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => None,
            TensorType::Q2_K | TensorType::Q3_K | TensorType::Q8_K => None,
            TensorType::IQ4_NL | TensorType::IQ4_XS | TensorType::MXFP4 => None,
        }
    }

    /// Bytes of a group's halves: scales, then minima.
    pub const fn halves_bytes(self) -> usize {
        if self.minimum { 4 * GROUP } else { 2 * GROUP }
    }

    /// Bytes of a block's own scales.
    pub const fn scales_bytes(self) -> usize {
        if self.supers {
            2 * GROUP
        } else {
            self.halves_bytes()
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        self.scales_bytes() + 64 * self.bits
    }

    /// Bytes of a group of rows of so many columns, a multiple of 32, or of 256 with superblocks.
    pub const fn group_bytes(self, cols: usize) -> usize {
        let shared = if self.supers {
            cols / 256 * self.halves_bytes()
        } else {
            0
        };
        cols / BLOCK * self.block_bytes() + shared
    }

    /// Where in a group the halves of a block and the block itself begin.
    const fn places(self, block: usize) -> (usize, usize) {
        if !self.supers {
            let at = block * self.block_bytes();
            return (at, at);
        }
        let halves = block / 8 * (self.halves_bytes() + 8 * self.block_bytes());
        let first = halves + self.halves_bytes();
        (halves, first + block % 8 * self.block_bytes())
    }

    /// What is subtracted from a quant.
    pub const fn zero(self) -> i32 {
        match self.zero {
            Some(bits) => 1 << bits,
            None => 0,
        }
    }
}

/// A block of one row as it is in the file: quants, and the numbers that scale them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowBlock {
    /// Unsigned quants.
    pub quants: [u8; BLOCK],
    /// `d`, and `m` or `dmin`.
    pub halves: [f16; 2],
    /// Of a superblock: the scale and the minimum, or the scales of columns 0 to 15 and 16 to 31.
    pub scales: [i8; 2],
}

fn read<B: bytemuck::Pod>(row: &[u8], block: usize) -> B {
    bytemuck::pod_read_unaligned(&row[block * size_of::<B>()..][..size_of::<B>()])
}

/// 32 nibbles of a superblock: bytes `at` to `at + 31`, their low or high halves.
fn of_super(bytes: &[u8; 128], at: usize, high: usize) -> [u8; BLOCK] {
    std::array::from_fn(|k| bytes[at + k] >> (4 * high) & 15)
}

impl RowBlock {
    fn plain(quants: [u8; BLOCK], halves: [f16; 2]) -> Self {
        Self {
            quants,
            halves,
            scales: [0; 2],
        }
    }

    /// Block `block` of a row; `None` for types without a form.
    pub fn of(kind: TensorType, row: &[u8], block: usize) -> Option<Self> {
        let none = f16::ZERO;
        Some(match kind {
            TensorType::Q4_0 => {
                let b: BlockQ4_0 = read(row, block);
                Self::plain(nibbles(&b.qs), [b.d, none])
            }
            TensorType::Q4_1 => {
                let b: BlockQ4_1 = read(row, block);
                Self::plain(nibbles(&b.qs), [b.d, b.m])
            }
            TensorType::Q5_0 => {
                let b: BlockQ5_0 = read(row, block);
                Self::plain(five_bits(&b.qs, b.qh), [b.d, none])
            }
            TensorType::Q5_1 => {
                let b: BlockQ5_1 = read(row, block);
                Self::plain(five_bits(&b.qs, b.qh), [b.d, b.m])
            }
            TensorType::Q8_0 => {
                let b: BlockQ8_0 = read(row, block);
                Self::plain(b.qs.map(|q| q.cast_unsigned() ^ 0x80), [b.d, none])
            }
            TensorType::Q4_K | TensorType::Q5_K | TensorType::Q6_K => {
                return Self::of_superblock(kind, row, block);
            }
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => return None,
            TensorType::Q2_K | TensorType::Q3_K | TensorType::Q8_K => return None,
            TensorType::IQ4_NL | TensorType::IQ4_XS | TensorType::MXFP4 => return None,
        })
    }

    fn of_superblock(kind: TensorType, row: &[u8], block: usize) -> Option<Self> {
        let (at, part) = (block / 8, block % 8);
        let signed = |(s, m): (u8, u8)| [s.cast_signed(), m.cast_signed()];
        match kind {
            TensorType::Q4_K => {
                let b: BlockQ4_K = read(row, at);
                Some(Self {
                    quants: of_super(&b.qs, part / 2 * 32, part % 2),
                    halves: [b.d, b.dmin],
                    scales: signed(scale_and_minimum(&b.scales, part)),
                })
            }
            TensorType::Q5_K => {
                let b: BlockQ5_K = read(row, at);
                let low = of_super(&b.qs, part / 2 * 32, part % 2);
                Some(Self {
                    quants: std::array::from_fn(|k| low[k] | (b.qh[k] >> part & 1) << 4),
                    halves: [b.d, b.dmin],
                    scales: signed(scale_and_minimum(&b.scales, part)),
                })
            }
            TensorType::Q6_K => {
                let b: BlockQ6_K = read(row, at);
                let low = of_super(&b.ql, part / 4 * 64 + part % 2 * 32, part % 4 / 2);
                let high = &b.qh[part / 4 * 32..][..32];
                Some(Self {
                    quants: std::array::from_fn(|k| low[k] | (high[k] >> (part % 4 * 2) & 3) << 4),
                    halves: [b.d, f16::ZERO],
                    scales: [b.scales[2 * part], b.scales[2 * part + 1]],
                })
            }
            _ => None,
        }
    }

    /// Block `block` of row `r` of a group: what [`pack`] has put there.
    fn of_group(form: Form, group: &[u8], block: usize, r: usize) -> Self {
        let (halves, at) = form.places(block);
        let (scales, quants) = group[at..][..form.block_bytes()].split_at(form.scales_bytes());
        let half = |place: usize| read::<f16>(&group[halves + place * 2 * GROUP..], r);
        let scale = |place: usize| scales[place * GROUP + r].cast_signed();
        Self {
            quants: read_quants(form, r, quants),
            halves: [half(0), if form.minimum { half(1) } else { f16::ZERO }],
            scales: if form.supers {
                [scale(0), scale(1)]
            } else {
                [0; 2]
            },
        }
    }

    /// The weights. All products are exact, so they are rounded once at most, as where the type itself is decoded.
    fn weights(&self, form: Form) -> [f32; BLOCK] {
        let [d, m] = self.halves.map(f16::to_f32);
        let [s, t] = self.scales.map(f32::from);
        let (scales, minimum) = match (form.supers, form.halves) {
            (false, _) => ([d, d], m),
            (true, false) => ([d * s, d * s], t * -m),
            (true, true) => ([d * s, d * t], 0.0),
        };
        std::array::from_fn(|column| {
            let q = (i32::from(self.quants[column]) - form.zero()) as f32;
            let product = scales[column / 16] * q;
            if form.minimum {
                product + minimum
            } else {
                product
            }
        })
    }

    /// Puts the quants into a block, as row `r` of sixteen.
    fn write_quants(&self, form: Form, r: usize, to: &mut [u8]) {
        let q = &self.quants;
        if form.bits == 8 {
            for (c, four) in q.chunks_exact(4).enumerate() {
                to[64 * c + 4 * r..][..4].copy_from_slice(four);
            }
            return;
        }
        let both: [u8; 16] = std::array::from_fn(|k| q[k] & 15 | q[k + 16] << 4);
        for (c, four) in both.chunks_exact(4).enumerate() {
            to[64 * c + 4 * r..][..4].copy_from_slice(four);
        }
        let width = form.bits - 4;
        for plane in 0..width {
            let mut four = [0u8; 4];
            for (j, byte) in four.iter_mut().enumerate() {
                for field in 0..8 / width {
                    let column = (plane * (8 / width) + field) * 4 + j;
                    *byte |= q[column] >> 4 << (field * width);
                }
            }
            to[256 + 64 * plane + 4 * r..][..4].copy_from_slice(&four);
        }
    }
}

/// The quants of row `r` of sixteen, which [`RowBlock::write_quants`] has put into a block.
fn read_quants(form: Form, r: usize, from: &[u8]) -> [u8; BLOCK] {
    std::array::from_fn(|column| {
        let (four, j) = (column / 4, 4 * r + column % 4);
        if form.bits == 8 {
            return from[64 * four + j];
        }
        let low = from[64 * (four % 4) + j] >> (column / 16 * 4) & 15;
        let width = form.bits - 4;
        if width == 0 {
            return low;
        }
        let (plane, field) = (four / (8 / width), four % (8 / width));
        let high = from[256 + 64 * plane + j] >> (field * width) & ((1 << width) - 1);
        low | high << 4
    })
}

/// The same for blocks whose pairs of quants are those of the file already, after a half or two: nothing is taken apart.
fn copy_pairs(block: &[u8], r: usize, scales: &mut [u8], quants: &mut [u8]) {
    let (halves, pairs) = block.split_at(block.len() - BLOCK / 2);
    let places = scales.chunks_exact_mut(2 * GROUP);
    for (half, to) in halves.chunks_exact(2).zip(places) {
        to[2 * r..][..2].copy_from_slice(half);
    }
    for (c, four) in pairs.chunks_exact(4).enumerate() {
        quants[64 * c + 4 * r..][..4].copy_from_slice(four);
    }
}

/// Deals up to sixteen rows out to a group. `rows` are whole rows of a type that has a form; `to` is [`Form::group_bytes`] of zeros.
pub fn pack(kind: TensorType, cols: usize, rows: &[u8], to: &mut [u8]) {
    let Some(form) = Form::of(kind) else { return };
    let mut to = to;
    for block in 0..cols / BLOCK {
        let shared = if form.supers && block.is_multiple_of(8) {
            form.halves_bytes()
        } else {
            0
        };
        let (of_super, rest) = to.split_at_mut(shared);
        let (scales, rest) = rest.split_at_mut(form.scales_bytes());
        let (quants, rest) = rest.split_at_mut(64 * form.bits);
        for (r, row) in rows.chunks_exact(kind.row_bytes(cols)).enumerate() {
            if matches!(kind, TensorType::Q4_0 | TensorType::Q4_1) {
                let size = kind.block_bytes();
                copy_pairs(&row[block * size..][..size], r, scales, quants);
                continue;
            }
            let Some(b) = RowBlock::of(kind, row, block) else {
                return;
            };
            b.write_quants(form, r, quants);
            let halves = if form.supers {
                &mut *of_super
            } else {
                &mut *scales
            };
            for (half, to) in b.halves.iter().zip(halves.chunks_exact_mut(2 * GROUP)) {
                to[2 * r..][..2].copy_from_slice(&half.to_le_bytes());
            }
            if form.supers {
                scales[r] = b.scales[0].cast_unsigned();
                scales[GROUP + r] = b.scales[1].cast_unsigned();
            }
        }
        to = rest;
    }
}

/// Row `r` of a group as numbers, bit for bit those of the file's row; `out` is as long as the row, and nothing is written for types
/// without a form.
pub fn expand_row(kind: TensorType, group: &[u8], r: usize, out: &mut [f32]) {
    let Some(form) = Form::of(kind) else { return };
    for (block, out) in out.chunks_exact_mut(BLOCK).enumerate() {
        out.copy_from_slice(&RowBlock::of_group(form, group, block, r).weights(form));
    }
}
