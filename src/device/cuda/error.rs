//! Why there is no cuda device: what is looked at before anything is allocated.

use cudarc::driver::{DriverError, sys};

use super::driver::{Context, OpenError, explain};
use super::sizes::Sizes;
use super::{Card, Memory};

/// The oldest card: Ampere.
const CAPABILITY_MIN: (usize, usize) = (8, 0);

/// Why a cuda device cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// There is no such card, or no driver.
    #[error("--device cuda:{ordinal}: {source}")]
    Open {
        /// Asked for.
        ordinal: usize,
        /// Why not.
        source: OpenError,
    },
    /// The card is too old.
    #[error("--device cuda:{ordinal} is a {name} of compute capability {}.{}; 8.0 (Ampere) or newer is needed", .capability.0, .capability.1)]
    TooOld {
        /// Asked for.
        ordinal: usize,
        /// What it is called.
        name: String,
        /// Major and minor.
        capability: (usize, usize),
    },
    /// It does not fit.
    #[error(
        "the model needs {required} bytes of device memory ({what}); {available} are free on {name}. A smaller --ctx or --kv-bytes needs less"
    )]
    Memory {
        /// Bytes by kind, in words.
        what: String,
        /// Bytes wanted.
        required: u64,
        /// Bytes there are.
        available: u64,
        /// The card.
        name: String,
    },
    /// A plan that these kernels cannot run.
    #[error("the cuda device cannot run this model: {0}")]
    Unsupported(String),
    /// The driver failed.
    #[error("the CUDA driver failed: {}", explain(.0))]
    Driver(#[from] DriverError),
}

/// What the card says of itself; one that is too old is refused.
pub(super) fn check_card(context: &Context, ordinal: usize, name: &str) -> Result<Card, CudaError> {
    use sys::CUdevice_attribute as Of;
    let capability = (
        context.attribute(Of::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        context.attribute(Of::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    if capability < CAPABILITY_MIN {
        return Err(CudaError::TooOld {
            ordinal,
            name: name.to_owned(),
            capability,
        });
    }
    Ok(Card {
        compute_capability: format!("{}.{}", capability.0, capability.1),
        driver_version: context.driver_version()?,
        used_bytes: 0,
    })
}

/// Refuses a model that does not fit.
pub(super) fn check_memory(context: &Context, sizes: &Sizes, name: &str) -> Result<(), CudaError> {
    let (available, _) = context.memory()?;
    if sizes.memory().total_bytes() <= available {
        return Ok(());
    }
    Err(no_memory(sizes, available, name))
}

/// What an error means after [`check_memory`]: where there is no memory now, somebody else has taken it.
pub(super) fn after_check(
    error: DriverError,
    context: &Context,
    sizes: &Sizes,
    name: &str,
) -> CudaError {
    if error.0 != sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        return error.into();
    }
    let available = context.memory().map_or(0, |(available, _)| available);
    no_memory(sizes, available, name)
}

/// Why a card cannot be opened. One that is so full that there is no room for a context has no memory left for a model either.
pub(super) fn not_opened(error: OpenError, ordinal: usize, sizes: &Sizes) -> CudaError {
    match error {
        OpenError::Driver(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
            no_memory(sizes, 0, &format!("card {ordinal}"))
        }
        source => CudaError::Open { ordinal, source },
    }
}

fn no_memory(sizes: &Sizes, available: u64, name: &str) -> CudaError {
    let memory = sizes.memory();
    let Memory {
        weights_bytes,
        kv_bytes,
        scratch_bytes,
    } = memory;
    CudaError::Memory {
        what: format!(
            "{weights_bytes} of weights, {kv_bytes} of keys and values, {scratch_bytes} of scratch"
        ),
        required: memory.total_bytes(),
        available,
        name: name.to_owned(),
    }
}
