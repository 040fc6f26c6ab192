//! How weights are stored: one file per format with its block, its size and its naive decoding, which is the oracle for every fast path.
//!
//! A row is whole blocks, one after another, rows likewise. Decoding is exact as the format defines it, bit for bit: what a faster
//! kernel gives is compared with this.

mod f16;
mod f32;
mod q4_0;
mod q4_1;
mod q8_0;

pub use q4_0::BlockQ4_0;
pub use q4_1::BlockQ4_1;
pub use q8_0::BlockQ8_0;

/// A tensor type that can be computed with. Any other is refused by name before it comes here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)] // The names are those that the world knows.
pub enum TensorType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats (IEEE half precision).
    F16,
    /// Blocks of 32: a scale and 4-bit integers about 8.
    Q4_0,
    /// Blocks of 32: a scale, a minimum and 4-bit integers.
    Q4_1,
    /// Blocks of 32: a scale and signed bytes.
    Q8_0,
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
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Q4_0, Self::Q4_1, Self::Q8_0];

    /// The type that ggml calls `name` ("Q4_1"), or `None` if it cannot be computed with.
    pub fn from_ggml(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// ggml's name of the type: "Q4_1".
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q8_0 => "Q8_0",
        }
    }

    /// Weights in a block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 => 1,
            Self::Q4_0 => BlockQ4_0::LEN,
            Self::Q4_1 => BlockQ4_1::LEN,
            Self::Q8_0 => BlockQ8_0::LEN,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Q4_0 => size_of::<BlockQ4_0>(),
            Self::Q4_1 => size_of::<BlockQ4_1>(),
            Self::Q8_0 => size_of::<BlockQ8_0>(),
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
            Self::Q4_0 => q4_0::dequantize(bytes, out),
            Self::Q4_1 => q4_1::dequantize(bytes, out),
            Self::Q8_0 => q8_0::dequantize(bytes, out),
        }
        Ok(())
    }
}
