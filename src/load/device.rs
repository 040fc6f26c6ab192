//! The device that a model is loaded onto: chosen once, with no fallback from one to the other.

use crate::device::cpu::isa::Isa;
use crate::device::cpu::{CpuDevice, CpuError, CpuOptions};
use crate::device::{Device, KvType};
use crate::model::plan::Plan;
use crate::model::weights::{Files, Weights};

use super::LoadError;

/// Which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The processor.
    Cpu,
    /// Card number N.
    Cuda(u32),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Cpu => f.write_str("cpu"),
            Target::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// Whether this build knows cards.
pub const HAS_CUDA: bool = cfg!(feature = "cuda");

/// What is said to a card where the build knows none.
pub fn no_card(number: u32) -> String {
    let target = Target::Cuda(number);
    format!(
        "--device {target} was given, but this build knows no CUDA device; use --device cpu, or build with --features cuda"
    )
}

/// Bytes of a page of the KV pool.
pub(super) fn page_bytes(target: Target, plan: &Plan, kv: KvType) -> usize {
    match target {
        Target::Cpu => crate::device::cpu::page_bytes(plan, kv),
        #[cfg(feature = "cuda")]
        Target::Cuda(_) => crate::device::cuda::page_bytes(plan, kv),
        #[cfg(not(feature = "cuda"))]
        Target::Cuda(_) => crate::device::cpu::page_bytes(plan, kv),
    }
}

/// A model's plan, where its weights are, and how it is to be held.
pub(super) struct Parts {
    pub(super) plan: Plan,
    pub(super) weights: Weights,
    pub(super) files: Box<dyn Files>,
    /// Tokens that the KV pool holds.
    pub(super) pool_tokens: usize,
    pub(super) kv: KvType,
}

/// Whether there is such a device at all: that is told before a file is looked at.
pub(super) fn find(target: Target) -> Result<(), LoadError> {
    match target {
        Target::Cpu => Ok(()),
        #[cfg(feature = "cuda")]
        Target::Cuda(number) => {
            use crate::device::cuda::{CudaError, driver};
            let ordinal = number as usize;
            match driver::find(ordinal) {
                Ok(_) => Ok(()),
                Err(source) => Err(LoadError::NoDevice(
                    CudaError::Open { ordinal, source }.to_string(),
                )),
            }
        }
        #[cfg(not(feature = "cuda"))]
        Target::Cuda(number) => Err(LoadError::NoDevice(no_card(number))),
    }
}

/// Sets up the device; the weights come later, in pieces. Also what it is called.
pub(super) fn open(target: Target, parts: Parts) -> Result<(Box<dyn Device>, String), LoadError> {
    match target {
        Target::Cpu => open_cpu(parts),
        Target::Cuda(number) => open_cuda(number, parts),
    }
}

fn open_cpu(parts: Parts) -> Result<(Box<dyn Device>, String), LoadError> {
    let options = CpuOptions {
        context: parts.pool_tokens,
        kv: parts.kv,
        isa: Isa::best(),
    };
    let device =
        CpuDevice::new(parts.plan, parts.weights, parts.files, options).map_err(|e| match e {
            CpuError::Memory { bytes, .. } => LoadError::NoMemory {
                message: e.to_string(),
                required_bytes: bytes,
                available_bytes: 0,
            },
            CpuError::Unsupported(_) => LoadError::BadModel(e.to_string()),
        })?;
    let name = device.name();
    Ok((Box::new(device), name))
}

#[cfg(feature = "cuda")]
fn open_cuda(number: u32, parts: Parts) -> Result<(Box<dyn Device>, String), LoadError> {
    use crate::device::cuda::{CudaDevice, CudaError, CudaOptions};
    let options = CudaOptions {
        ordinal: number as usize,
        context: parts.pool_tokens,
        kv: parts.kv,
    };
    let device =
        CudaDevice::new(parts.plan, parts.weights, parts.files, options).map_err(|e| match &e {
            CudaError::Memory {
                required,
                available,
                ..
            } => LoadError::NoMemory {
                message: e.to_string(),
                required_bytes: *required,
                available_bytes: *available,
            },
            CudaError::Open { .. } | CudaError::TooOld { .. } => LoadError::NoDevice(e.to_string()),
            CudaError::Unsupported(_) => LoadError::BadModel(e.to_string()),
            CudaError::Driver(_) => {
                LoadError::Device(crate::device::DeviceError::Lost(e.to_string()))
            }
        })?;
    let name = format!("cuda:{number} ({})", device.name());
    Ok((Box::new(device), name))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(number: u32, _: Parts) -> Result<(Box<dyn Device>, String), LoadError> {
    Err(LoadError::NoDevice(no_card(number)))
}
