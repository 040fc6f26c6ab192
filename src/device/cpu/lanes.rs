//! Sixteen virtual f32 lanes: the one arithmetic of the cpu device.
//!
//! Every kernel is written once over [`Lanes`] and compiled three times: plain Rust, AVX2 + FMA + F16C, AVX-512. Each operation here
//! is IEEE-754 exact or defined step by step ([`Lanes::sum`], [`exp`]), so the three give the same bits, and so do golden files on any machine.
#![allow(
    clippy::missing_safety_doc,
    reason = "the trait's own Safety section holds for all of its methods"
)]

use half::f16;

/// Lanes in a vector: the order of every sum is defined in terms of it.
pub const LANES: usize = 16;

/// Thirty-two bytes side by side: quants that are put together from pieces before they become numbers.
///
/// # Safety
///
/// As [`Lanes`].
pub trait Bytes: Copy {
    /// All bytes `value`.
    unsafe fn splat(value: u8) -> Self;
    /// 32 bytes.
    unsafe fn load(from: *const u8) -> Self;
    /// The low nibbles of 16 bytes, then their high nibbles.
    unsafe fn load_nibbles(from: *const u8) -> Self;
    /// 255 where a bit of 32 (4 bytes, the lowest bit first) is set, else 0.
    unsafe fn load_bits(from: *const u8) -> Self;
    /// Each byte's bits moved from bit `from` to bit `to`, of which those in `mask` stay; `mask` has no bit that a move leaves empty.
    unsafe fn field(self, from: u8, to: u8, mask: u8) -> Self;
    /// self & other.
    unsafe fn and(self, other: Self) -> Self;
    /// self | other.
    unsafe fn or(self, other: Self) -> Self;
    /// self - other, wrapping.
    unsafe fn sub(self, other: Self) -> Self;
    /// The table's entries at places 0 to 15.
    unsafe fn look_up(self, table: &[i8; 16]) -> Self;
}

/// Sixteen f32 values side by side.
///
/// # Safety
///
/// Every method must be called on a CPU that has the implementor's instructions, and every pointer must be readable (writable for
/// `store`) for the elements that the method names. No alignment is needed.
pub trait Lanes: Copy {
    /// The bytes that two vectors are made of.
    type Bytes: Bytes;
    /// All lanes `value`.
    unsafe fn splat(value: f32) -> Self;
    /// All lanes the little-endian f16 at `from`.
    unsafe fn splat_f16(from: *const u8) -> Self;
    /// Two little-endian f16, widened.
    unsafe fn two_halves(from: *const u8) -> [f32; 2];
    /// 16 f32.
    unsafe fn load(from: *const f32) -> Self;
    /// 16 f16, widened.
    unsafe fn load_f16(from: *const f16) -> Self;
    /// 16 bfloat16, widened.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// 16 unsigned bytes' low nibbles as numbers 0 to 15.
    unsafe fn load_low_nibbles(from: *const u8) -> Self;
    /// 16 unsigned bytes' high nibbles as numbers 0 to 15.
    unsafe fn load_high_nibbles(from: *const u8) -> Self;
    /// The low nibbles of 16 bytes, then their high ones, each as (nibble - about) × d.
    #[inline(always)]
    unsafe fn nibbles_about(from: *const u8, about: f32, d: Self) -> (Self, Self) {
        // SAFETY: 16 readable bytes by contract.
        unsafe {
            let about = Self::splat(about);
            let low = Self::load_low_nibbles(from).sub(about).mul(d);
            (low, Self::load_high_nibbles(from).sub(about).mul(d))
        }
    }
    /// The low nibbles of 16 bytes, then their high ones, each as nibble × d + m, rounded once.
    #[inline(always)]
    unsafe fn nibbles_mul_add(from: *const u8, d: Self, m: Self) -> (Self, Self) {
        // SAFETY: 16 readable bytes by contract.
        unsafe {
            (
                Self::load_low_nibbles(from).mul_add(d, m),
                Self::load_high_nibbles(from).mul_add(d, m),
            )
        }
    }
    /// The values at the places that the low nibbles of 16 bytes tell, then their high ones, each times `d`.
    #[inline(always)]
    unsafe fn look_up_nibbles(from: *const u8, values: &[i8; 16], d: Self) -> (Self, Self) {
        // SAFETY: 16 readable bytes by contract.
        unsafe {
            let (low, high) = Self::widen(Self::Bytes::load_nibbles(from).look_up(values));
            (low.mul(d), high.mul(d))
        }
    }
    /// 16 signed bytes as numbers.
    unsafe fn load_i8(from: *const i8) -> Self;
    /// 32 signed bytes as numbers.
    unsafe fn widen(bytes: Self::Bytes) -> (Self, Self);
    /// Writes 16 f32.
    unsafe fn store(self, to: *mut f32);
    /// self + other.
    unsafe fn add(self, other: Self) -> Self;
    /// self - other.
    unsafe fn sub(self, other: Self) -> Self;
    /// self × other.
    unsafe fn mul(self, other: Self) -> Self;
    /// self ÷ other.
    unsafe fn div(self, other: Self) -> Self;
    /// self × a + b, rounded once.
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    /// self < other ? self : other.
    unsafe fn min(self, other: Self) -> Self;
    /// self > other ? self : other.
    unsafe fn max(self, other: Self) -> Self;
    /// self where self's condition lane `of >= bound` holds, else 0.
    unsafe fn keep_where_ge(self, of: Self, bound: Self) -> Self;
    /// Adds the low bits of `n`'s representation to self's exponent: self × 2^n for an n made by adding 1.5 × 2^23.
    unsafe fn scale_by_pow2(self, n: Self) -> Self;
    /// Asks for the line of memory at `at`, which is read once; any address may be asked for.
    unsafe fn prefetch(at: *const u8);
    /// Sum of the lanes as a tree: lane i + lane i+8, then i+4, i+2, i+1.
    unsafe fn sum(self) -> f32;
    /// Largest lane, by the same tree of [`Lanes::max`].
    unsafe fn largest(self) -> f32;
}

/// e^x: range reduction to |r| ≤ ln2/2 and a polynomial of degree 7 (coefficients: Cephes `expf`), within 2 units in the last place;
/// 0 below -87.33 and finite (2.4e38) from 88.37 up.
///
/// # Safety
///
/// See [`Lanes`].
#[inline(always)]
pub unsafe fn exp<L: Lanes>(x: L) -> L {
    const ROUND: f32 = 12_582_912.0; // 1.5 × 2^23: adding it leaves the nearest integer in the low bits
    // SAFETY: the caller vouches for the instructions; no memory is touched.
    unsafe {
        let low = L::splat(-87.33);
        let clamped = x.min(L::splat(88.37)).max(low);
        let shifted = clamped.mul_add(L::splat(std::f32::consts::LOG2_E), L::splat(ROUND));
        let n = shifted.sub(L::splat(ROUND));
        let r = n.mul_add(L::splat(-0.693_359_4), clamped);
        let r = n.mul_add(L::splat(2.121_944_4e-4), r);
        let mut p = L::splat(1.987_569_1e-4);
        for c in [
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            0.5,
        ] {
            p = p.mul_add(r, L::splat(c));
        }
        let p = p.mul_add(r.mul(r), r).add(L::splat(1.0));
        p.scale_by_pow2(shifted).keep_where_ge(x, low)
    }
}

/// tanh(x): a polynomial for |x| below 0.625 (coefficients: Cephes `tanhf`), 1 - 2/(e^2x + 1) beyond.
///
/// # Safety
///
/// See [`Lanes`].
#[inline(always)]
pub unsafe fn tanh<L: Lanes>(x: L) -> L {
    const SMALL: f32 = 0.625;
    // SAFETY: the caller vouches for the instructions; no memory is touched.
    unsafe {
        let one = L::splat(1.0);
        let large = one.sub(L::splat(2.0).div(exp(x.add(x)).add(one)));
        let z = x.mul(x);
        let mut p = L::splat(-5.704_988_7e-3);
        for c in [
            2.063_908_8e-2,
            -5.373_971_5e-2,
            1.333_144_2e-1,
            -3.333_328e-1,
        ] {
            p = p.mul_add(z, L::splat(c));
        }
        let small = p.mul(z).mul_add(x, x);
        let size = x.max(L::splat(0.0).sub(x));
        let below = L::splat(-SMALL.next_down());
        let small = small.keep_where_ge(L::splat(0.0).sub(size), below);
        large.keep_where_ge(size, L::splat(SMALL)).add(small)
    }
}

/// The lanes in plain Rust.
#[derive(Clone, Copy)]
pub struct Scalar([f32; LANES]);

impl Scalar {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }

    #[inline(always)]
    fn fold(mut self, f: impl Fn(f32, f32) -> f32) -> f32 {
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                self.0[i] = f(self.0[i], self.0[i + half]);
            }
        }
        self.0[0]
    }
}

impl Bytes for [u8; 32] {
    #[inline(always)]
    unsafe fn splat(value: u8) -> Self {
        [value; 32]
    }
    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller vouches for 32 readable bytes.
        unsafe { from.cast::<Self>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8) -> Self {
        // SAFETY: the caller vouches for 16 readable bytes.
        let bytes = unsafe { from.cast::<[u8; 16]>().read_unaligned() };
        std::array::from_fn(|i| bytes[i % 16] >> (i / 16 * 4) & 15)
    }
    #[inline(always)]
    unsafe fn load_bits(from: *const u8) -> Self {
        // SAFETY: the caller vouches for 4 readable bytes.
        let bytes = unsafe { from.cast::<[u8; 4]>().read_unaligned() };
        std::array::from_fn(|i| (bytes[i / 8] >> (i % 8) & 1) * 255)
    }
    #[inline(always)]
    unsafe fn field(self, from: u8, to: u8, mask: u8) -> Self {
        self.map(|b| b >> from << to & mask)
    }
    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] & other[i])
    }
    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] | other[i])
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i].wrapping_sub(other[i]))
    }
    #[inline(always)]
    unsafe fn look_up(self, table: &[i8; 16]) -> Self {
        self.map(|b| table[usize::from(b & 15)].cast_unsigned())
    }
}

impl Lanes for Scalar {
    type Bytes = [u8; 32];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    unsafe fn splat_f16(from: *const u8) -> Self {
        // SAFETY: the caller vouches for two readable bytes.
        let bytes = unsafe { [*from, *from.add(1)] };
        Self([f16::from_le_bytes(bytes).to_f32(); LANES])
    }
    #[inline(always)]
    unsafe fn two_halves(from: *const u8) -> [f32; 2] {
        // SAFETY: the caller vouches for four readable bytes.
        let bytes = unsafe { from.cast::<[[u8; 2]; 2]>().read_unaligned() };
        bytes.map(|half| f16::from_le_bytes(half).to_f32())
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for 16 readable f32.
        let values = unsafe { from.cast::<[f32; LANES]>().read_unaligned() };
        Self(values)
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: the caller vouches for 16 readable f16.
        let values = unsafe { from.cast::<[f16; LANES]>().read_unaligned() };
        Self(values.map(f16::to_f32))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller vouches for 16 readable u16.
        let values = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        Self(values.map(|v| f32::from_bits(u32::from(v) << 16)))
    }
    #[inline(always)]
    unsafe fn load_low_nibbles(from: *const u8) -> Self {
        // SAFETY: the caller vouches for 16 readable bytes.
        let values = unsafe { from.cast::<[u8; LANES]>().read_unaligned() };
        Self(values.map(|v| f32::from(v & 15)))
    }
    #[inline(always)]
    unsafe fn load_high_nibbles(from: *const u8) -> Self {
        // SAFETY: the caller vouches for 16 readable bytes.
        let values = unsafe { from.cast::<[u8; LANES]>().read_unaligned() };
        Self(values.map(|v| f32::from(v >> 4)))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller vouches for 16 readable bytes.
        let values = unsafe { from.cast::<[i8; LANES]>().read_unaligned() };
        Self(values.map(f32::from))
    }
    #[inline(always)]
    unsafe fn widen(bytes: Self::Bytes) -> (Self, Self) {
        let number = |i: usize| f32::from(bytes[i].cast_signed());
        let low = Self(std::array::from_fn(number));
        (low, Self(std::array::from_fn(|i| number(i + LANES))))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller vouches for 16 writable f32.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) };
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add(a.0[i], b.0[i])))
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn keep_where_ge(self, of: Self, bound: Self) -> Self {
        Self(std::array::from_fn(|i| {
            if of.0[i] >= bound.0[i] {
                self.0[i]
            } else {
                0.0
            }
        }))
    }
    #[inline(always)]
    unsafe fn scale_by_pow2(self, n: Self) -> Self {
        self.zip(n, |a, b| {
            f32::from_bits(a.to_bits().wrapping_add(b.to_bits() << 23))
        })
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        self.fold(|a, b| a + b)
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.fold(|a, b| if a > b { a } else { b })
    }
}
