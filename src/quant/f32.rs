//! F32: each weight is an IEEE single, little-endian.

/// Decodes `bytes` (4 a weight) into `out` (n weights).
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (weight, &stored) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *weight = f32::from_le_bytes(stored);
    }
}
