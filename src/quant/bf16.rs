//! BF16: each weight is the upper half of an IEEE single, little-endian. The lower half is zero, so nothing is rounded.

/// Decodes `bytes` (2 a weight) into `out` (n weights).
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (weight, &stored) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *weight = f32::from_bits(u32::from(u16::from_le_bytes(stored)) << 16);
    }
}
