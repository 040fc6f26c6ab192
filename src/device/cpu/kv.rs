//! How keys and values lie in the KV pool, by their type.
//!
//! A page holds, layer by layer, for each key-value head its keys as (PAGE_TOKENS, width), positions innermost, so that scores of sixteen
//! positions are one vector, then for each head its values as (width, PAGE_TOKENS). Of floats, the width of keys is that of the head, and that
//! of values the next multiple of 16. Of Q8_0 both are the next multiple of 32, an element is a byte, and behind a head's keys come their
//! scales as (PAGE_TOKENS, blocks) halves, behind its values theirs as (blocks, PAGE_TOKENS): a block is 32 elements of one position.

use half::f16;

use super::{CpuError, KvType, zeroed};
use crate::device::PAGE_TOKENS;
use crate::device::cpu::lanes::Lanes;
use crate::model::plan::{KvShape, Plan};
use crate::quant::BlockQ8_0;

/// Elements along a head that share a scale, where there are scales.
pub const BLOCK: usize = 32;

/// Sizes of one head's part of a page, in elements of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLayout {
    /// All of its keys.
    pub keys: usize,
    /// All of its values.
    pub values: usize,
    /// From the values of one position to those of the next.
    pub value_stride: usize,
}

impl HeadLayout {
    fn of(kv: KvType, head_dim: usize) -> Self {
        match kv {
            KvType::F16 => f16::layout(head_dim),
            KvType::F32 => f32::layout(head_dim),
            KvType::Q8_0 => i8::layout(head_dim),
        }
    }

    fn of_floats(head_dim: usize) -> Self {
        let value_stride = head_dim.next_multiple_of(16);
        Self {
            keys: head_dim * PAGE_TOKENS,
            values: value_stride * PAGE_TOKENS,
            value_stride,
        }
    }

    /// Elements of a layer.
    fn layer(self, kv: KvShape) -> usize {
        kv.n_kv_heads * (self.keys + self.values)
    }

    /// Where a head's keys and its values begin, in a layer that begins at `layer`.
    pub(super) fn head(self, kv: KvShape, layer: usize, head: usize) -> (usize, usize) {
        let values = layer + kv.n_kv_heads * self.keys;
        (layer + head * self.keys, values + head * self.values)
    }
}

/// An element of the KV pool.
pub trait KvElement: Copy {
    /// Sizes of heads of such a width.
    fn layout(head_dim: usize) -> HeadLayout;
    /// What sixteen keys' elements in the block that begins at element `d` are multiplied by.
    ///
    /// # Safety
    ///
    /// As [`Lanes`]; `keys` are a head's keys of a page, `d` is a multiple of [`BLOCK`] below `head_dim`, and `position` at most
    /// [`PAGE_TOKENS`] - 16.
    unsafe fn key_scales<L: Lanes>(
        keys: *const Self,
        head_dim: usize,
        d: usize,
        position: usize,
    ) -> L;
    /// What sixteen elements of a position's values, from `d` on, are multiplied by.
    ///
    /// # Safety
    ///
    /// As [`Lanes`]; `values` are a head's values of a page, `d` is a multiple of 16 below `stride`.
    unsafe fn value_scale<L: Lanes>(
        values: *const Self,
        stride: usize,
        d: usize,
        position: usize,
    ) -> L;
    /// 16 elements as numbers: exact.
    ///
    /// # Safety
    ///
    /// As [`Lanes`]; `from` must be readable for 16 elements.
    unsafe fn load<L: Lanes>(from: *const Self, scale: L) -> L;
    /// Puts a position's key among a head's keys of a page, rounded to the nearest.
    fn write_key(keys: &mut [Self], position: usize, key: &[f32]);
    /// Puts a position's value among a head's values of a page, rounded to the nearest.
    fn write_value(values: &mut [Self], position: usize, value: &[f32]);
}

/// The same for both kinds of floats.
macro_rules! floats {
    ($type:ty, $load:ident, $rounded:expr) => {
        impl KvElement for $type {
            fn layout(head_dim: usize) -> HeadLayout {
                HeadLayout::of_floats(head_dim)
            }
            #[inline(always)]
            unsafe fn key_scales<L: Lanes>(_: *const Self, _: usize, _: usize, _: usize) -> L {
                // SAFETY: the caller vouches for the instructions; `load` does not use it.
                unsafe { L::splat(1.0) }
            }
            #[inline(always)]
            unsafe fn value_scale<L: Lanes>(_: *const Self, _: usize, _: usize, _: usize) -> L {
                // SAFETY: as for the keys.
                unsafe { L::splat(1.0) }
            }
            #[inline(always)]
            unsafe fn load<L: Lanes>(from: *const Self, _: L) -> L {
                // SAFETY: the caller's contract is the same.
                unsafe { L::$load(from) }
            }
            fn write_key(keys: &mut [Self], position: usize, key: &[f32]) {
                let rows = keys.chunks_exact_mut(PAGE_TOKENS);
                for (row, k) in rows.zip(key) {
                    row[position] = $rounded(*k);
                }
            }
            fn write_value(values: &mut [Self], position: usize, value: &[f32]) {
                let row = &mut values[position * value.len().next_multiple_of(16)..];
                for (to, v) in row.iter_mut().zip(value) {
                    *to = $rounded(*v);
                }
            }
        }
    };
}

floats!(f16, load_f16, f16::from_f32);
floats!(f32, load, std::convert::identity);

/// The bytes of a scale.
fn scale_bytes(scale: f16) -> [i8; 2] {
    scale.to_le_bytes().map(u8::cast_signed)
}

/// A block of up to [`BLOCK`] values; what is missing is 0.
fn block(values: &[f32]) -> BlockQ8_0 {
    let mut padded = [0.0; BLOCK];
    padded[..values.len()].copy_from_slice(values);
    BlockQ8_0::quantize(&padded)
}

/// A byte of Q8_0: the number itself, or half of a scale.
impl KvElement for i8 {
    fn layout(head_dim: usize) -> HeadLayout {
        let value_stride = head_dim.next_multiple_of(BLOCK);
        let all = PAGE_TOKENS * value_stride / BLOCK * size_of::<BlockQ8_0>();
        HeadLayout {
            keys: all,
            values: all,
            value_stride,
        }
    }
    #[inline(always)]
    unsafe fn key_scales<L: Lanes>(
        keys: *const Self,
        head_dim: usize,
        d: usize,
        position: usize,
    ) -> L {
        let width = head_dim.next_multiple_of(BLOCK);
        let at = width * PAGE_TOKENS + (d / BLOCK * PAGE_TOKENS + position) * size_of::<f16>();
        // SAFETY: by the layout there are PAGE_TOKENS scales for each block behind the width's rows; no alignment is needed.
        unsafe { L::load_f16(keys.add(at).cast()) }
    }
    #[inline(always)]
    unsafe fn value_scale<L: Lanes>(
        values: *const Self,
        stride: usize,
        d: usize,
        position: usize,
    ) -> L {
        let at =
            stride * PAGE_TOKENS + (position * (stride / BLOCK) + d / BLOCK) * size_of::<f16>();
        // SAFETY: by the layout there are stride / BLOCK scales for each position behind all rows.
        unsafe { L::splat_f16(values.add(at).cast()) }
    }
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self, scale: L) -> L {
        // SAFETY: the caller's contract is the same.
        unsafe { L::load_i8(from).mul(scale) }
    }
    fn write_key(keys: &mut [Self], position: usize, key: &[f32]) {
        let width = key.len().next_multiple_of(BLOCK);
        let (rows, scales) = keys.split_at_mut(width * PAGE_TOKENS);
        let rows = rows.chunks_exact_mut(BLOCK * PAGE_TOKENS);
        let scales = scales.as_chunks_mut::<2>().0.chunks_exact_mut(PAGE_TOKENS);
        for ((key, rows), scales) in key.chunks(BLOCK).zip(rows).zip(scales) {
            let block = block(key);
            for (row, q) in rows.chunks_exact_mut(PAGE_TOKENS).zip(block.qs) {
                row[position] = q;
            }
            scales[position] = scale_bytes(block.d);
        }
    }
    fn write_value(values: &mut [Self], position: usize, value: &[f32]) {
        let stride = value.len().next_multiple_of(BLOCK);
        let (rows, scales) = values.split_at_mut(stride * PAGE_TOKENS);
        let row = rows[position * stride..][..stride].as_chunks_mut().0;
        let scales = &mut scales.as_chunks_mut().0[position * (stride / BLOCK)..];
        for ((value, row), scale) in value.chunks(BLOCK).zip(row).zip(scales) {
            let block = block(value);
            (*row, *scale) = (block.qs, scale_bytes(block.d));
        }
    }
}

/// The KV pool: pages one after the other.
pub(super) enum Pool {
    F16(Vec<f16>),
    F32(Vec<f32>),
    Q8_0(Vec<i8>),
}

impl Pool {
    pub(super) fn new(kv: KvType, pages: usize, page_elements: usize) -> Result<Self, CpuError> {
        let what = "the KV cache";
        let elements = pages.checked_mul(page_elements).ok_or(CpuError::Memory {
            what,
            bytes: u64::MAX,
        })?;
        Ok(match kv {
            KvType::F16 => Pool::F16(zeroed(elements, what)?),
            KvType::F32 => Pool::F32(zeroed(elements, what)?),
            KvType::Q8_0 => Pool::Q8_0(zeroed(elements, what)?),
        })
    }

    pub(super) fn kv(&self) -> KvType {
        match self {
            Pool::F16(_) => KvType::F16,
            Pool::F32(_) => KvType::F32,
            Pool::Q8_0(_) => KvType::Q8_0,
        }
    }

    pub(super) fn head_layout(&self, head_dim: usize) -> HeadLayout {
        HeadLayout::of(self.kv(), head_dim)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Pool::F16(pool) => bytemuck::cast_slice(pool),
            Pool::F32(pool) => bytemuck::cast_slice(pool),
            Pool::Q8_0(pool) => bytemuck::cast_slice(pool),
        }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Pool::F16(pool) => bytemuck::cast_slice_mut(pool),
            Pool::F32(pool) => bytemuck::cast_slice_mut(pool),
            Pool::Q8_0(pool) => bytemuck::cast_slice_mut(pool),
        }
    }
}

/// Elements that one page takes for all layers, and where each layer begins.
pub(super) fn page_layout(plan: &Plan, kv_type: KvType) -> (usize, Vec<usize>) {
    let mut offset = 0;
    let offsets = plan.kv.iter().map(|kv| {
        let begin = offset;
        offset += HeadLayout::of(kv_type, kv.head_dim).layer(*kv);
        begin
    });
    let offsets = offsets.collect();
    (offset, offsets)
}

/// Bytes that [`PAGE_TOKENS`] positions take in all layers of a model.
pub fn page_bytes(plan: &Plan, kv: KvType) -> usize {
    page_layout(plan, kv).0 * kv.element_bytes()
}
