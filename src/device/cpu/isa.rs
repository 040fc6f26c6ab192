//! Which instruction set the kernels use: asked of the CPU once, at load.

use super::kernels::{self, Kernels};

/// An instruction set that the kernels are compiled for. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust: any machine.
    Scalar,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// Those that this machine can run, slowest first.
    pub fn available() -> Vec<Self> {
        let mut found = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            if avx2 {
                found.push(Self::Avx2);
            }
            if avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                found.push(Self::Avx512);
            }
        }
        found
    }

    /// The fastest that this machine can run.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::Scalar)
    }

    /// As it appears in the device's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
        }
    }

    /// Its kernels, or `None` where this machine cannot run them.
    pub fn kernels(self) -> Option<Kernels> {
        Self::available().contains(&self).then_some(match self {
            Self::Scalar => kernels::scalar::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => kernels::avx2::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => kernels::avx512::KERNELS,
        })
    }

    /// Multiply-adds of integers that one tile may hold, which are faster.
    pub(crate) fn group_macs_max(self) -> usize {
        8 * self.tile_macs_max()
    }

    /// Multiply-adds that one tile may hold: about two milliseconds' worth on a slow machine, so that the loop is never kept waiting.
    pub(crate) fn tile_macs_max(self) -> usize {
        match self {
            Self::Scalar => 1 << 18,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 1 << 23,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => 1 << 24,
        }
    }
}
