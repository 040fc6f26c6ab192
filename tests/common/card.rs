//! A device on the first card, for the tests that need one.

use std::time::{Duration, Instant};

use worker_orcd::device::cuda::{CudaDevice, CudaError, CudaOptions};
use worker_orcd::device::{Device, KvType};
use worker_orcd::model::{arch, lower, weights::Weights};

/// A loaded device over a file on the first card; `None`, loudly, where there is no card.
pub fn device(bytes: Vec<u8>, context: usize, kv: KvType) -> Option<CudaDevice> {
    let gguf = worker_orcd::gguf::parse(&bytes).expect("a GGUF file");
    let plan = lower::lower(&arch::spec(&gguf).expect("a known architecture"), context);
    let weights = Weights::claim(&plan, &gguf).expect("every tensor");
    let options = CudaOptions {
        ordinal: 0,
        context,
        kv,
    };
    let mut device = match CudaDevice::new(plan, weights, Box::new(bytes), options) {
        Ok(device) => device,
        Err(e @ CudaError::Open { .. }) => {
            super::say(&format!("SKIP: {e}"));
            return None;
        }
        Err(e) => panic!("{e}"),
    };
    loop {
        let progress = device
            .load_some(Instant::now() + Duration::from_secs(60))
            .expect("a load");
        if progress.processed == progress.total {
            return Some(device);
        }
    }
}
