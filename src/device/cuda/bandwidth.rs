//! How fast the card reads its own memory: what a decode's speed is held against.

use std::time::Instant;

use super::driver::Buffer;
use super::sizes::Area;
use super::{CudaDevice, DeviceError};

/// Far more than the card's caches hold.
const BYTES: usize = 1 << 30;

/// Passes that are timed together, and how often.
const PASSES: usize = 8;
const TIMES: usize = 5;

impl CudaDevice {
    /// Bytes a second, the median of several times. It borrows a GiB of memory; where there is none left, the weights are read.
    pub(super) fn measure_bandwidth(&mut self) -> Result<f64, DeviceError> {
        self.kernels.prepare("read")?;
        let borrowed = Buffer::zeroed(BYTES).ok();
        let memory = borrowed.as_ref().unwrap_or(&self.weights_buffer);
        let sink = self.scratch.at() + self.sizes.offset(Area::Search) as u64;
        let mut rates = Vec::new();
        for _ in 0..=TIMES {
            self.stream.wait()?;
            let begin = Instant::now();
            for _ in 0..PASSES {
                self.kernels.read(
                    &self.stream,
                    (memory.at(), sink),
                    memory.bytes() as u64,
                    self.multiprocessors,
                )?;
            }
            self.stream.wait()?;
            rates.push((memory.bytes() * PASSES) as f64 / begin.elapsed().as_secs_f64());
        }
        rates.remove(0); // it warmed up
        rates.sort_by(f64::total_cmp);
        Ok(rates[rates.len() / 2])
    }
}
