//! How the weights of each tensor type become vectors of f32: one [`Format`] per type, written once over [`Lanes`].
//!
//! Every step but the one that the format itself rounds is exact in f32 (`quant/` says why, type by type), so the order of products is free
//! and a fused multiply-add rounds as `d × q + m` does. Only signs of zeros need care: they come out as in the naive twin.
#![allow(
    non_camel_case_types,
    reason = "the names are those that the world knows"
)]

mod blocks;
mod floats;
mod k_quants;
mod tables;

pub use blocks::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
pub use floats::{BF16, F16, F32};
pub use k_quants::{Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K};
pub use tables::{IQ4_NL, IQ4_XS, MXFP4};

use super::lanes::Lanes;

/// Weights of one format, a group at a time: 32 of them, or a superblock of 256 whose eight parts share scales.
pub trait Format {
    /// Bytes of a group.
    const BYTES: usize;
    /// Parts of 32 weights in a group: 1 or 8.
    const PARTS: usize;
    /// What the parts of a group share.
    type Shared: Copy + Default;
    /// Decodes what the parts share.
    ///
    /// # Safety
    ///
    /// As [`Lanes`]; `group` must be readable for [`Self::BYTES`].
    unsafe fn begin<L: Lanes>(group: *const u8) -> Self::Shared;
    /// The 32 weights of part P.
    ///
    /// # Safety
    ///
    /// As for `begin`, and `shared` must be of the same group.
    unsafe fn part<L: Lanes, const P: usize>(group: *const u8, shared: &Self::Shared) -> (L, L);
}

/// A format whose 32 weights share nothing with others.
pub trait Alone {
    /// Bytes that 32 weights take.
    const BYTES: usize;
    /// Its scale and its minimum, where it has them.
    ///
    /// # Safety
    ///
    /// As [`Lanes`]; `from` must be readable for [`Self::BYTES`].
    unsafe fn scales<L: Lanes>(from: *const u8) -> [f32; 2];
    /// # Safety
    ///
    /// As for `scales`, which must be of the same block.
    unsafe fn decode<L: Lanes>(from: *const u8, scales: &[f32; 2]) -> (L, L);
}

impl<F: Alone> Format for F {
    const BYTES: usize = F::BYTES;
    const PARTS: usize = 1;
    type Shared = [f32; 2];
    #[inline(always)]
    unsafe fn begin<L: Lanes>(group: *const u8) -> [f32; 2] {
        // SAFETY: the contract is the same.
        unsafe { F::scales::<L>(group) }
    }
    #[inline(always)]
    unsafe fn part<L: Lanes, const P: usize>(group: *const u8, scales: &[f32; 2]) -> (L, L) {
        // SAFETY: the contract is the same.
        unsafe { F::decode(group, scales) }
    }
}

/// Runs a body for each part of a format, with a constant of the given name for the part, so that shifts and offsets are immediates.
macro_rules! each_part {
    ($format:ty, $part:ident => $body:block) => {
        each_part!(@ $format, $part, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $format:ty, $part:ident, $body:block, $($n:literal)*) => {
        $(
            if $n < <$format as Format>::PARTS {
                const $part: usize = $n;
                $body
            }
        )*
    };
}

/// The exhaustive match from tensor types to formats: an expression, with a name for the format.
macro_rules! with_format {
    ($kind:expr, $format:ident => $body:expr) => {
        with_format!(@ $kind, $format, $body,
            F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ4_NL IQ4_XS MXFP4)
    };
    (@ $kind:expr, $format:ident, $body:expr, $($name:ident)*) => {
        match $kind {
            $(
                TensorType::$name => {
                    type $format = formats::$name;
                    $body
                }
            )*
        }
    };
}

/// The same for the types that are multiplied as floats; nothing happens for those that have a form in `packed.rs`.
macro_rules! with_float_format {
    ($kind:expr, $format:ident => $body:expr) => {
        with_float_format!(@ $kind, $format, $body, F32 F16 BF16 Q2_K Q3_K Q8_K IQ4_NL IQ4_XS MXFP4)
    };
    (@ $kind:expr, $format:ident, $body:expr, $($name:ident)*) => {
        match $kind {
            $(
                TensorType::$name => {
                    type $format = formats::$name;
                    $body
                }
            )*
            TensorType::Q4_0 | TensorType::Q4_1 | TensorType::Q5_0 | TensorType::Q5_1 => {}
            TensorType::Q8_0 | TensorType::Q4_K | TensorType::Q5_K | TensorType::Q6_K => {}
        }
    };
}

pub(super) use {each_part, with_float_format, with_format};
