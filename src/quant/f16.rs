//! F16: each weight is an IEEE half, little-endian. Every half is a single, so nothing is rounded.

use half::f16;

/// Decodes `bytes` (2 a weight) into `out` (n weights).
pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (weight, &stored) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *weight = f16::from_le_bytes(stored).to_f32();
    }
}
