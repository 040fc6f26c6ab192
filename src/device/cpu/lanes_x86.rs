//! The sixteen lanes on x86-64: two 256-bit registers (AVX2, FMA, F16C) or one of 512 bits (AVX-512 F, BW, VL).

use std::arch::x86_64::*;

use half::f16;

use super::lanes::{Bytes, Lanes};

/// Two 256-bit registers; needs AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2(pub(super) __m256, pub(super) __m256);

#[inline(always)]
unsafe fn widen_bytes(bytes: __m128i) -> Avx2 {
    // SAFETY: the caller vouches for AVX2; no memory is touched.
    unsafe {
        let low = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
        let high = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes)));
        Avx2(low, high)
    }
}

#[inline(always)]
unsafe fn widen_signed(bytes: __m128i) -> Avx2 {
    // SAFETY: the caller vouches for AVX2; no memory is touched.
    unsafe {
        let low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
        let high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)));
        Avx2(low, high)
    }
}

#[inline(always)]
unsafe fn widen_two_halves(from: *const u8) -> [f32; 2] {
    let mut two = [0.0; 2];
    // SAFETY: the caller hands four readable bytes; `two` has room for both.
    unsafe {
        let halves = _mm_cvtsi32_si128(from.cast::<i32>().read_unaligned());
        _mm_storel_pd(two.as_mut_ptr().cast(), _mm_castps_pd(_mm_cvtph_ps(halves)));
    }
    two
}

/// Closures over vectors are not inlined into functions that have the instructions, hence two trees instead of one with a parameter.
#[inline(always)]
unsafe fn sum_tree(v: __m256) -> f32 {
    // SAFETY: the caller vouches for AVX2; no memory is touched.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ps(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

#[inline(always)]
unsafe fn max_tree(v: __m256) -> f32 {
    // SAFETY: the caller vouches for AVX2; no memory is touched.
    unsafe {
        let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ps(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

#[inline(always)]
unsafe fn shift_exponent(a: __m256, n: __m256) -> __m256 {
    // SAFETY: the caller vouches for AVX2; no memory is touched.
    unsafe {
        let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(n));
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent))
    }
}

/// Thirty-two bytes in a 256-bit register, for both kinds of lanes; needs AVX2.
#[derive(Clone, Copy)]
pub struct Bytes256(__m256i);

impl Bytes for Bytes256 {
    #[inline(always)]
    unsafe fn splat(value: u8) -> Self {
        // SAFETY: AVX2 by the trait's contract.
        unsafe { Self(_mm256_set1_epi8(value.cast_signed())) }
    }
    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: 32 readable bytes by the trait's contract; unaligned load.
        unsafe { Self(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8) -> Self {
        // SAFETY: 16 readable bytes by the trait's contract; unaligned load.
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            let both = _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes);
            Self(_mm256_and_si256(both, _mm256_set1_epi8(15)))
        }
    }
    #[inline(always)]
    unsafe fn load_bits(from: *const u8) -> Self {
        // SAFETY: 4 readable bytes by the trait's contract; unaligned load.
        unsafe {
            // each byte goes to eight places, of which each looks at a bit of its own
            let bytes = _mm256_set1_epi32(from.cast::<i32>().read_unaligned());
            let places = _mm256_set_epi64x(
                0x0303_0303_0303_0303,
                0x0202_0202_0202_0202,
                0x0101_0101_0101_0101,
                0,
            );
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
            let found = _mm256_and_si256(_mm256_shuffle_epi8(bytes, places), bit);
            Self(_mm256_cmpeq_epi8(found, bit))
        }
    }
    #[inline(always)]
    unsafe fn field(self, from: u8, to: u8, mask: u8) -> Self {
        // SAFETY: AVX2 by the trait's contract.
        unsafe {
            // words are shifted, and what comes from the neighbouring byte is masked off
            let moved = if from >= to {
                _mm256_srl_epi16(self.0, _mm_cvtsi32_si128(i32::from(from - to)))
            } else {
                _mm256_sll_epi16(self.0, _mm_cvtsi32_si128(i32::from(to - from)))
            };
            Self(moved).and(Self::splat(mask))
        }
    }
    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        // SAFETY: AVX2 by the trait's contract.
        unsafe { Self(_mm256_and_si256(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        // SAFETY: AVX2 by the trait's contract.
        unsafe { Self(_mm256_or_si256(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: AVX2 by the trait's contract.
        unsafe { Self(_mm256_sub_epi8(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn look_up(self, table: &[i8; 16]) -> Self {
        // SAFETY: AVX2 by the trait's contract; the table has the 16 bytes that are read.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            Self(_mm256_shuffle_epi8(table, self.0))
        }
    }
}

// SAFETY (for every body below): the trait's contract gives the instructions and the pointers' ranges.
impl Lanes for Avx2 {
    type Bytes = Bytes256;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: AVX2 by the trait's contract.
        unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn splat_f16(from: *const u8) -> Self {
        // SAFETY: two readable bytes by the trait's contract; x86 is little-endian.
        unsafe {
            let v = _mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(
                from.cast::<u16>().read_unaligned(),
            )));
            Self(_mm256_broadcastss_ps(v), _mm256_broadcastss_ps(v))
        }
    }
    #[inline(always)]
    unsafe fn two_halves(from: *const u8) -> [f32; 2] {
        // SAFETY: four readable bytes by the trait's contract.
        unsafe { widen_two_halves(from) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: 16 readable f32 by the trait's contract; unaligned loads.
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: 16 readable f16 by the trait's contract; unaligned loads.
        unsafe {
            Self(
                _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: 16 readable u16 by the trait's contract; unaligned loads.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8).cast()));
            Self(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_low_nibbles(from: *const u8) -> Self {
        // SAFETY: 16 readable bytes by the trait's contract; unaligned load.
        unsafe {
            widen_bytes(_mm_and_si128(
                _mm_loadu_si128(from.cast()),
                _mm_set1_epi8(15),
            ))
        }
    }
    #[inline(always)]
    unsafe fn load_high_nibbles(from: *const u8) -> Self {
        // SAFETY: 16 readable bytes by the trait's contract; unaligned load.
        unsafe {
            widen_bytes(_mm_and_si128(
                _mm_srli_epi16::<4>(_mm_loadu_si128(from.cast())),
                _mm_set1_epi8(15),
            ))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: SSE is everywhere; no address faults.
        unsafe { _mm_prefetch::<_MM_HINT_NTA>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: 16 readable bytes by the trait's contract; unaligned load.
        unsafe { widen_signed(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn widen(bytes: Self::Bytes) -> (Self, Self) {
        // SAFETY: AVX2 by the trait's contract.
        unsafe {
            (
                widen_signed(_mm256_castsi256_si128(bytes.0)),
                widen_signed(_mm256_extracti128_si256::<1>(bytes.0)),
            )
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: 16 writable f32 by the trait's contract; unaligned stores.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: AVX2 by the trait's contract.
        unsafe {
            Self(
                _mm256_add_ps(self.0, other.0),
                _mm256_add_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: AVX2 by the trait's contract.
        unsafe {
            Self(
                _mm256_sub_ps(self.0, other.0),
                _mm256_sub_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: AVX2 by the trait's contract.
        unsafe {
            Self(
                _mm256_mul_ps(self.0, other.0),
                _mm256_mul_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: AVX2 by the trait's contract.
        unsafe {
            Self(
                _mm256_div_ps(self.0, other.0),
                _mm256_div_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        // SAFETY: FMA by the trait's contract.
        unsafe {
            Self(
                _mm256_fmadd_ps(self.0, a.0, b.0),
                _mm256_fmadd_ps(self.1, a.1, b.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: AVX2 by the trait's contract.
        unsafe {
            Self(
                _mm256_min_ps(self.0, other.0),
                _mm256_min_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: AVX2 by the trait's contract.
        unsafe {
            Self(
                _mm256_max_ps(self.0, other.0),
                _mm256_max_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn keep_where_ge(self, of: Self, bound: Self) -> Self {
        // SAFETY: AVX2 by the trait's contract.
        unsafe {
            Self(
                _mm256_and_ps(self.0, _mm256_cmp_ps::<_CMP_GE_OQ>(of.0, bound.0)),
                _mm256_and_ps(self.1, _mm256_cmp_ps::<_CMP_GE_OQ>(of.1, bound.1)),
            )
        }
    }
    #[inline(always)]
    unsafe fn scale_by_pow2(self, n: Self) -> Self {
        // SAFETY: AVX2 by the trait's contract.
        unsafe { Self(shift_exponent(self.0, n.0), shift_exponent(self.1, n.1)) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: AVX2 by the trait's contract.
        unsafe { sum_tree(_mm256_add_ps(self.0, self.1)) }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: AVX2 by the trait's contract.
        unsafe { max_tree(_mm256_max_ps(self.0, self.1)) }
    }
}

/// One 512-bit register; needs AVX-512 F, BW, VL and VNNI.
#[derive(Clone, Copy)]
pub struct Avx512(pub(super) __m512);

impl Avx512 {
    #[inline(always)]
    unsafe fn halves(self) -> (__m256, __m256) {
        // SAFETY: AVX-512 by the trait's contract.
        unsafe {
            let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0));
            (_mm512_castps512_ps256(self.0), _mm256_castpd_ps(high))
        }
    }
}

/// 0 to 15.
#[inline(always)]
unsafe fn numbers() -> __m512 {
    // SAFETY: the caller vouches for AVX-512; no memory is touched.
    unsafe {
        _mm512_setr_ps(
            0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
        )
    }
}

/// The low nibbles of 16 bytes as places in a table, then the high ones.
#[inline(always)]
unsafe fn pick(from: *const u8, table: __m512) -> (Avx512, Avx512) {
    // SAFETY: the caller hands 16 readable bytes.
    unsafe {
        // a place is the lowest four bits of a lane, whatever lies above them
        let places = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
        let high = _mm512_srli_epi32::<4>(places);
        (
            Avx512(_mm512_permutexvar_ps(places, table)),
            Avx512(_mm512_permutexvar_ps(high, table)),
        )
    }
}

impl Lanes for Avx512 {
    type Bytes = Bytes256;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: AVX-512 by the trait's contract.
        unsafe { Self(_mm512_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn splat_f16(from: *const u8) -> Self {
        // SAFETY: two readable bytes by the trait's contract; x86 is little-endian.
        unsafe {
            let v = _mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(
                from.cast::<u16>().read_unaligned(),
            )));
            Self(_mm512_broadcastss_ps(v))
        }
    }
    #[inline(always)]
    unsafe fn two_halves(from: *const u8) -> [f32; 2] {
        // SAFETY: four readable bytes by the trait's contract.
        unsafe { widen_two_halves(from) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: 16 readable f32 by the trait's contract; unaligned load.
        unsafe { Self(_mm512_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: 16 readable f16 by the trait's contract; unaligned load.
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: 16 readable u16 by the trait's contract; unaligned load.
        unsafe {
            let dwords = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(dwords)))
        }
    }
    #[inline(always)]
    unsafe fn load_low_nibbles(from: *const u8) -> Self {
        // SAFETY: 16 readable bytes by the trait's contract; unaligned load.
        unsafe {
            let dwords = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            Self(_mm512_cvtepi32_ps(_mm512_and_si512(
                dwords,
                _mm512_set1_epi32(15),
            )))
        }
    }
    #[inline(always)]
    unsafe fn load_high_nibbles(from: *const u8) -> Self {
        // SAFETY: 16 readable bytes by the trait's contract; unaligned load.
        unsafe {
            let dwords = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            Self(_mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(dwords)))
        }
    }
    #[inline(always)]
    unsafe fn nibbles_about(from: *const u8, about: f32, d: Self) -> (Self, Self) {
        // SAFETY: 16 readable bytes by contract.
        unsafe {
            pick(
                from,
                _mm512_mul_ps(_mm512_sub_ps(numbers(), _mm512_set1_ps(about)), d.0),
            )
        }
    }
    #[inline(always)]
    unsafe fn nibbles_mul_add(from: *const u8, d: Self, m: Self) -> (Self, Self) {
        // SAFETY: 16 readable bytes by contract.
        unsafe { pick(from, _mm512_fmadd_ps(numbers(), d.0, m.0)) }
    }
    #[inline(always)]
    unsafe fn look_up_nibbles(from: *const u8, values: &[i8; 16], d: Self) -> (Self, Self) {
        // SAFETY: 16 readable bytes by contract.
        unsafe { pick(from, Self::load_i8(values.as_ptr()).mul(d).0) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: SSE is everywhere; no address faults.
        unsafe { _mm_prefetch::<_MM_HINT_NTA>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: 16 readable bytes by the trait's contract; unaligned load.
        unsafe {
            Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(
                from.cast(),
            ))))
        }
    }
    #[inline(always)]
    unsafe fn widen(bytes: Self::Bytes) -> (Self, Self) {
        // SAFETY: AVX-512 by the trait's contract.
        unsafe {
            let low = _mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes.0));
            let high = _mm512_cvtepi8_epi32(_mm256_extracti128_si256::<1>(bytes.0));
            (
                Self(_mm512_cvtepi32_ps(low)),
                Self(_mm512_cvtepi32_ps(high)),
            )
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: 16 writable f32 by the trait's contract; unaligned store.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: AVX-512 by the trait's contract.
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: AVX-512 by the trait's contract.
        unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: AVX-512 by the trait's contract.
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: AVX-512 by the trait's contract.
        unsafe { Self(_mm512_div_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        // SAFETY: AVX-512 by the trait's contract.
        unsafe { Self(_mm512_fmadd_ps(self.0, a.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: AVX-512 by the trait's contract.
        unsafe { Self(_mm512_min_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: AVX-512 by the trait's contract.
        unsafe { Self(_mm512_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn keep_where_ge(self, of: Self, bound: Self) -> Self {
        // SAFETY: AVX-512 by the trait's contract.
        unsafe {
            Self(_mm512_maskz_mov_ps(
                _mm512_cmp_ps_mask::<_CMP_GE_OQ>(of.0, bound.0),
                self.0,
            ))
        }
    }
    #[inline(always)]
    unsafe fn scale_by_pow2(self, n: Self) -> Self {
        // SAFETY: AVX-512 by the trait's contract.
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(n.0));
            Self(_mm512_castsi512_ps(_mm512_add_epi32(
                _mm512_castps_si512(self.0),
                exponent,
            )))
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: AVX-512 by the trait's contract.
        unsafe {
            let (low, high) = self.halves();
            sum_tree(_mm256_add_ps(low, high))
        }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: AVX-512 by the trait's contract.
        unsafe {
            let (low, high) = self.halves();
            max_tree(_mm256_max_ps(low, high))
        }
    }
}
