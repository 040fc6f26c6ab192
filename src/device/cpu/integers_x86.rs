//! Sixteen rows of integers on x86-64: AVX2, where products of bytes are added in pairs of 16 bits, and AVX-512 with VNNI, which adds four to
//! 32 bits at once.

use std::arch::x86_64::*;

use super::integers::Integers;
use super::lanes_x86::{Avx2, Avx512};
use super::packed::BLOCK;

/// Eight rows, then eight more.
type Two = (__m256i, __m256i);

/// Quad `quad` of 32 activations, in every row.
#[inline(always)]
unsafe fn four(x: &[i8; BLOCK], quad: usize) -> i32 {
    // SAFETY: the caller hands a quad below 8.
    unsafe { x.as_ptr().add(4 * quad).cast::<i32>().read_unaligned() }
}

#[inline(always)]
unsafe fn load(from: *const u8) -> Two {
    // SAFETY: the caller hands 64 readable bytes.
    unsafe {
        (
            _mm256_loadu_si256(from.cast()),
            _mm256_loadu_si256(from.add(32).cast()),
        )
    }
}

/// Bits of bytes moved up (or down where `by` is negative), of which `mask` stays.
#[inline(always)]
unsafe fn moved(v: __m256i, by: i32, mask: u8) -> __m256i {
    // SAFETY: the caller vouches for AVX2.
    unsafe {
        let count = _mm_cvtsi32_si128(by.abs());
        let moved = if by >= 0 {
            _mm256_sll_epi16(v, count)
        } else {
            _mm256_srl_epi16(v, count)
        };
        _mm256_and_si256(moved, _mm256_set1_epi8(mask.cast_signed()))
    }
}

#[inline(always)]
unsafe fn moved_512(v: __m512i, by: i32, mask: u8) -> __m512i {
    // SAFETY: the caller vouches for AVX-512.
    unsafe {
        let count = _mm_cvtsi32_si128(by.abs());
        let moved = if by >= 0 {
            _mm512_sll_epi16(v, count)
        } else {
            _mm512_srl_epi16(v, count)
        };
        _mm512_and_si512(moved, _mm512_set1_epi8(mask.cast_signed()))
    }
}

/// Where the bits above the fourth of quad `quad` are: the plane, how far up they must go to be bit 4, and their mask there.
#[inline(always)]
fn upper(quad: usize, bits: usize) -> (usize, i32, u8) {
    let width = bits - 4;
    let field = quad % (8 / width) * width;
    (
        quad / (8 / width),
        4 - field as i32,
        ((1u8 << width) - 1) << 4,
    )
}

/// Products of 8-bit quants: pairs of them can be larger than 16 bits, so bytes are taken apart.
#[inline(always)]
unsafe fn add_wide(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
    // SAFETY: the caller vouches for AVX2.
    unsafe {
        let even = _mm256_and_si256(w, _mm256_set1_epi16(0xff));
        let odd = _mm256_srli_epi16::<8>(w);
        let of_even = _mm256_madd_epi16(even, _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)));
        let of_odd = _mm256_madd_epi16(odd, _mm256_srai_epi16::<8>(x));
        _mm256_add_epi32(sum, _mm256_add_epi32(of_even, of_odd))
    }
}

// SAFETY (for every body below): the trait's contract gives the instructions and the pointers' ranges.
impl Integers for Avx2 {
    type Quad = Two;
    type Sum = Two;
    #[inline(always)]
    unsafe fn unpack(from: *const u8, bits: usize) -> [Two; 8] {
        // SAFETY: 64 × bits readable bytes by contract.
        unsafe {
            let zero = _mm256_setzero_si256();
            let mut w = [(zero, zero); 8];
            for (quad, w) in w.iter_mut().enumerate() {
                if bits == 8 {
                    *w = load(from.add(64 * quad));
                    continue;
                }
                let (a, b) = load(from.add(64 * (quad % 4)));
                let down = -4 * (quad as i32 / 4);
                *w = (moved(a, down, 15), moved(b, down, 15));
                if bits > 4 {
                    let (plane, by, mask) = upper(quad, bits);
                    let (a, b) = load(from.add(256 + 64 * plane));
                    w.0 = _mm256_or_si256(w.0, moved(a, by, mask));
                    w.1 = _mm256_or_si256(w.1, moved(b, by, mask));
                }
            }
            w
        }
    }
    #[inline(always)]
    unsafe fn dot(
        w: &[Two; 8],
        x: &[[i8; BLOCK]; 3],
        (first, n): (usize, usize),
        (start, shift): ([i32; 3], u32),
        bits: usize,
    ) -> [Two; 3] {
        // SAFETY: quads are below 8 by contract.
        unsafe {
            let zero = _mm256_setzero_si256();
            let mut sums = [(zero, zero); 3];
            for (sum, start) in sums.iter_mut().zip(start) {
                let start = _mm256_set1_epi32(start << shift);
                *sum = (start, start);
            }
            if bits == 8 {
                for (quad, w) in w.iter().enumerate().skip(first).take(n) {
                    for (sum, x) in sums.iter_mut().zip(x) {
                        let x = _mm256_set1_epi32(four(x, quad));
                        sum.0 = add_wide(sum.0, w.0, x);
                        sum.1 = add_wide(sum.1, w.1, x);
                    }
                }
                return sums;
            }
            // so many pairs of products fit 16 bits: 8 × 2 × 15 × 128, 4 × 2 × 31 × 128, 2 × 2 × 63 × 128
            let at_once = 8 >> (bits - 4);
            let ones = _mm256_set1_epi16(1);
            for from in (first..first + n).step_by(at_once) {
                let mut pairs = [(zero, zero); 3];
                for (quad, w) in w.iter().enumerate().skip(from).take(at_once) {
                    for (pairs, x) in pairs.iter_mut().zip(x) {
                        let x = _mm256_set1_epi32(four(x, quad));
                        pairs.0 = _mm256_add_epi16(pairs.0, _mm256_maddubs_epi16(w.0, x));
                        pairs.1 = _mm256_add_epi16(pairs.1, _mm256_maddubs_epi16(w.1, x));
                    }
                }
                for (sum, pairs) in sums.iter_mut().zip(pairs) {
                    sum.0 = _mm256_add_epi32(sum.0, _mm256_madd_epi16(pairs.0, ones));
                    sum.1 = _mm256_add_epi32(sum.1, _mm256_madd_epi16(pairs.1, ones));
                }
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn join([high, middle, low]: [Two; 3]) -> Self {
        // SAFETY: AVX2 and FMA by the trait's contract.
        unsafe { Self(join(high.0, middle.0, low.0), join(high.1, middle.1, low.1)) }
    }
}

#[inline(always)]
unsafe fn join(high: __m256i, middle: __m256i, low: __m256i) -> __m256 {
    // SAFETY: the caller vouches for AVX2 and FMA.
    unsafe {
        let rest = _mm256_add_epi32(_mm256_slli_epi32::<8>(middle), low);
        _mm256_fmadd_ps(
            _mm256_cvtepi32_ps(high),
            _mm256_set1_ps(65536.0),
            _mm256_cvtepi32_ps(rest),
        )
    }
}

impl Integers for Avx512 {
    type Quad = __m512i;
    type Sum = __m512i;
    #[inline(always)]
    unsafe fn unpack(from: *const u8, bits: usize) -> [__m512i; 8] {
        // SAFETY: 64 × bits readable bytes by contract.
        unsafe {
            let mut w = [_mm512_setzero_si512(); 8];
            for (quad, w) in w.iter_mut().enumerate() {
                if bits == 8 {
                    *w = _mm512_loadu_si512(from.add(64 * quad).cast());
                    continue;
                }
                let both = _mm512_loadu_si512(from.add(64 * (quad % 4)).cast());
                *w = moved_512(both, -4 * (quad as i32 / 4), 15);
                if bits > 4 {
                    let (plane, by, mask) = upper(quad, bits);
                    let above = _mm512_loadu_si512(from.add(256 + 64 * plane).cast());
                    *w = _mm512_or_si512(*w, moved_512(above, by, mask));
                }
            }
            w
        }
    }
    #[inline(always)]
    unsafe fn dot(
        w: &[__m512i; 8],
        x: &[[i8; BLOCK]; 3],
        (first, n): (usize, usize),
        (start, shift): ([i32; 3], u32),
        _: usize,
    ) -> [__m512i; 3] {
        // SAFETY: quads are below 8 by contract.
        unsafe {
            let mut sums = [_mm512_setzero_si512(); 3];
            for (sum, start) in sums.iter_mut().zip(start) {
                *sum = _mm512_set1_epi32(start << shift);
            }
            for (quad, w) in w.iter().enumerate().skip(first).take(n) {
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = _mm512_dpbusd_epi32(*sum, *w, _mm512_set1_epi32(four(x, quad)));
                }
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn join([high, middle, low]: [__m512i; 3]) -> Self {
        // SAFETY: AVX-512 by the trait's contract.
        unsafe {
            let rest = _mm512_add_epi32(_mm512_slli_epi32::<8>(middle), low);
            Self(_mm512_fmadd_ps(
                _mm512_cvtepi32_ps(high),
                _mm512_set1_ps(65536.0),
                _mm512_cvtepi32_ps(rest),
            ))
        }
    }
}
