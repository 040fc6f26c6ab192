//! How weights are stored: one file per format with its block, its size and its naive decoding, which is the oracle for every fast path.
//!
//! A row is whole blocks, one after another, rows likewise. Decoding is exact as the format defines it, bit for bit: what a faster
//! kernel gives is compared with this. The layouts are those of ggml's `block_*` structures, the decoding is that of its
//! `dequantize_row_*`; each is told in words where it stands.
#![allow(
    non_camel_case_types,
    reason = "the names are those that the world knows"
)]

mod bf16;
mod f16;
mod f32;
pub mod iq4_nl;
mod iq4_xs;
pub mod mxfp4;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod q8_k;

pub use iq4_nl::BlockIQ4_NL;
pub use iq4_xs::BlockIQ4_XS;
pub use mxfp4::BlockMXFP4;
pub use q2_k::BlockQ2_K;
pub use q3_k::BlockQ3_K;
pub use q4_0::BlockQ4_0;
pub use q4_1::BlockQ4_1;
pub use q4_k::BlockQ4_K;
pub(crate) use q4_k::scale_and_minimum;
pub use q5_0::BlockQ5_0;
pub use q5_1::BlockQ5_1;
pub use q5_k::BlockQ5_K;
pub use q6_k::BlockQ6_K;
pub use q8_0::BlockQ8_0;
pub use q8_k::BlockQ8_K;

/// Weights that are stored together, as they lie in the file.
pub trait Block: bytemuck::Pod {
    /// `[f32; LEN]`.
    type Weights: AsRef<[f32]>;
    /// Weights in a block.
    const LEN: usize;
    /// The weights that the block stands for.
    fn dequantize(&self) -> Self::Weights;
}

/// A tensor type that can be computed with. Any other is refused by name before it comes here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats (IEEE half precision).
    F16,
    /// 16-bit floats (the upper halves of 32-bit floats).
    BF16,
    /// Blocks of 32: a scale and 4-bit integers about 8.
    Q4_0,
    /// Blocks of 32: a scale, a minimum and 4-bit integers.
    Q4_1,
    /// Blocks of 32: a scale and 5-bit integers about 16.
    Q5_0,
    /// Blocks of 32: a scale, a minimum and 5-bit integers.
    Q5_1,
    /// Blocks of 32: a scale and signed bytes.
    Q8_0,
    /// Blocks of 256: 4-bit scales and minima, 2-bit integers.
    Q2_K,
    /// Blocks of 256: 6-bit scales, 3-bit integers about 4.
    Q3_K,
    /// Blocks of 256: 6-bit scales and minima, 4-bit integers.
    Q4_K,
    /// Blocks of 256: 6-bit scales and minima, 5-bit integers.
    Q5_K,
    /// Blocks of 256: 8-bit scales, 6-bit integers about 32.
    Q6_K,
    /// Blocks of 256: a scale and signed bytes.
    Q8_K,
    /// Blocks of 32: a scale and 4-bit places in a table.
    IQ4_NL,
    /// Blocks of 256: 6-bit scales and 4-bit places in a table.
    IQ4_XS,
    /// Blocks of 32: a power of two and 4-bit floats.
    MXFP4,
}

/// The bytes and the room for the weights do not belong together, or are no whole number of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes of {} cannot be decoded to {weights} weights: {} weights take {} bytes",
    .tensor_type.name(), .tensor_type.block_len(), .tensor_type.block_bytes())]
pub struct LengthMismatch {
    /// The type that was to be decoded.
    pub tensor_type: TensorType,
    /// Bytes given.
    pub bytes: usize,
    /// Weights that there was room for.
    pub weights: usize,
}

impl TensorType {
    /// Every type that can be computed with.
    pub const ALL: [Self; 17] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::Q8_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
        Self::MXFP4,
    ];

    /// The type that ggml calls `name` ("Q4_1"), or `None` if it cannot be computed with.
    pub fn from_ggml(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// ggml's name of the type: "Q4_1".
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2_K => "Q2_K",
            Self::Q3_K => "Q3_K",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
            Self::Q8_K => "Q8_K",
            Self::IQ4_NL => "IQ4_NL",
            Self::IQ4_XS => "IQ4_XS",
            Self::MXFP4 => "MXFP4",
        }
    }

    /// Weights in a block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 => BlockQ4_0::LEN,
            Self::Q4_1 => BlockQ4_1::LEN,
            Self::Q5_0 => BlockQ5_0::LEN,
            Self::Q5_1 => BlockQ5_1::LEN,
            Self::Q8_0 => BlockQ8_0::LEN,
            Self::Q2_K => BlockQ2_K::LEN,
            Self::Q3_K => BlockQ3_K::LEN,
            Self::Q4_K => BlockQ4_K::LEN,
            Self::Q5_K => BlockQ5_K::LEN,
            Self::Q6_K => BlockQ6_K::LEN,
            Self::Q8_K => BlockQ8_K::LEN,
            Self::IQ4_NL => BlockIQ4_NL::LEN,
            Self::IQ4_XS => BlockIQ4_XS::LEN,
            Self::MXFP4 => BlockMXFP4::LEN,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => size_of::<BlockQ4_0>(),
            Self::Q4_1 => size_of::<BlockQ4_1>(),
            Self::Q5_0 => size_of::<BlockQ5_0>(),
            Self::Q5_1 => size_of::<BlockQ5_1>(),
            Self::Q8_0 => size_of::<BlockQ8_0>(),
            Self::Q2_K => size_of::<BlockQ2_K>(),
            Self::Q3_K => size_of::<BlockQ3_K>(),
            Self::Q4_K => size_of::<BlockQ4_K>(),
            Self::Q5_K => size_of::<BlockQ5_K>(),
            Self::Q6_K => size_of::<BlockQ6_K>(),
            Self::Q8_K => size_of::<BlockQ8_K>(),
            Self::IQ4_NL => size_of::<BlockIQ4_NL>(),
            Self::IQ4_XS => size_of::<BlockIQ4_XS>(),
            Self::MXFP4 => size_of::<BlockMXFP4>(),
        }
    }

    /// Bytes of a row of `n` weights, where `n` is a multiple of the block length and a size that exists in memory.
    pub const fn row_bytes(self, n: usize) -> usize {
        debug_assert!(n.is_multiple_of(self.block_len()));
        n / self.block_len() * self.block_bytes()
    }

    /// Decodes whole blocks of `bytes` (of any alignment) into as many weights: `out` is `(bytes.len() / block_bytes) * block_len` long.
    ///
    /// Fails without touching `out` if the lengths do not belong together. Scales that are infinite or not a number give what
    /// IEEE arithmetic gives.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) -> Result<(), LengthMismatch> {
        let mismatch = LengthMismatch {
            tensor_type: self,
            bytes: bytes.len(),
            weights: out.len(),
        };
        let whole = bytes.len().is_multiple_of(self.block_bytes())
            && out.len().is_multiple_of(self.block_len());
        if !whole || bytes.len() / self.block_bytes() != out.len() / self.block_len() {
            return Err(mismatch);
        }
        match self {
            Self::F32 => f32::dequantize(bytes, out),
            Self::F16 => f16::dequantize(bytes, out),
            Self::BF16 => bf16::dequantize(bytes, out),
            Self::Q4_0 => decode_blocks::<BlockQ4_0>(bytes, out),
            Self::Q4_1 => decode_blocks::<BlockQ4_1>(bytes, out),
            Self::Q5_0 => decode_blocks::<BlockQ5_0>(bytes, out),
            Self::Q5_1 => decode_blocks::<BlockQ5_1>(bytes, out),
            Self::Q8_0 => decode_blocks::<BlockQ8_0>(bytes, out),
            Self::Q2_K => decode_blocks::<BlockQ2_K>(bytes, out),
            Self::Q3_K => decode_blocks::<BlockQ3_K>(bytes, out),
            Self::Q4_K => decode_blocks::<BlockQ4_K>(bytes, out),
            Self::Q5_K => decode_blocks::<BlockQ5_K>(bytes, out),
            Self::Q6_K => decode_blocks::<BlockQ6_K>(bytes, out),
            Self::Q8_K => decode_blocks::<BlockQ8_K>(bytes, out),
            Self::IQ4_NL => decode_blocks::<BlockIQ4_NL>(bytes, out),
            Self::IQ4_XS => decode_blocks::<BlockIQ4_XS>(bytes, out),
            Self::MXFP4 => decode_blocks::<BlockMXFP4>(bytes, out),
        }
        Ok(())
    }
}

/// Decodes blocks of any alignment.
fn decode_blocks<B: Block>(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.chunks_exact(size_of::<B>());
    for (weights, block) in out.chunks_exact_mut(B::LEN).zip(blocks) {
        let block: B = bytemuck::pod_read_unaligned(block);
        weights.copy_from_slice(block.dequantize().as_ref());
    }
}

/// 32 numbers of four bits: the low halves of 16 bytes, then the high ones.
pub(crate) fn nibbles(bytes: &[u8; 16]) -> [u8; 32] {
    std::array::from_fn(|k| bytes[k % 16] >> (k / 16 * 4) & 15)
}

/// 32 numbers of five bits: four of [`nibbles`], and above them bit `k` of `high`.
pub(crate) fn five_bits(low: &[u8; 16], high: [u8; 4]) -> [u8; 32] {
    let (low, high) = (nibbles(low), u32::from_le_bytes(high));
    std::array::from_fn(|k| low[k] | ((high >> k & 1) as u8) << 4)
}

/// 256 numbers of two bits: of each 32 bytes the lowest two bits, then the next, then the next, then the highest.
fn two_bits(bytes: &[u8; 64]) -> [u8; 256] {
    std::array::from_fn(|k| bytes[k / 128 * 32 + k % 32] >> (k / 32 % 4 * 2) & 3)
}
