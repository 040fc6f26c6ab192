//! How fast a card is, without a pipe: `cargo bench --features cuda --bench cuda -- MODEL [prefill|decode] [STEP]` prints decode and prefill
//! tok/s and bytes a second; prompts in steps of STEP tokens, as many as the device takes if none is given.

#[cfg(feature = "cuda")]
fn main() -> anyhow::Result<()> {
    bench::main()
}

#[cfg(not(feature = "cuda"))]
fn main() {
    eprintln!("SKIP: built without --features cuda");
}

#[cfg(feature = "cuda")]
mod bench {
    use std::time::{Duration, Instant};

    use worker_orcd::device::cuda::{CudaDevice, CudaOptions};
    use worker_orcd::device::{Device, KvType, Output, PageId, Rows, Step};
    use worker_orcd::model::{arch, lower, weights::Weights};

    /// Runs one step to its end.
    fn step(
        device: &mut CudaDevice,
        tokens: &[u32],
        position: usize,
        rows: Rows,
    ) -> anyhow::Result<()> {
        let pages: Vec<PageId> = (0..device.capacity().pages as u32).map(PageId).collect();
        device.forward(Step {
            pages: &pages,
            tokens,
            position,
            rows,
        })?;
        while device.poll(Instant::now() + Duration::from_secs(1))? != Some(Output::Forwarded) {}
        Ok(())
    }

    fn median(mut times: Vec<f64>) -> f64 {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }

    fn open(path: &str, context: usize) -> anyhow::Result<(CudaDevice, u64)> {
        let begin = Instant::now();
        let bytes = std::fs::read(path)?;
        let read = begin.elapsed();
        let gguf = worker_orcd::gguf::parse(&bytes)?;
        let plan = lower::lower(&arch::spec(&gguf)?, context);
        let weights = Weights::claim(&plan, &gguf)?;
        let size = weights.total_bytes();
        let options = CudaOptions {
            ordinal: 0,
            context,
            kv: KvType::F16,
        };
        let mut device = CudaDevice::new(plan, weights, Box::new(bytes), options)?;
        let opened = begin.elapsed() - read;
        while {
            let p = device.load_some(Instant::now() + Duration::from_secs(1))?;
            p.processed < p.total
        } {}
        eprintln!(
            "{path}: context and modules {:.3} s, weights {:.3} s",
            opened.as_secs_f64(),
            (begin.elapsed() - read - opened).as_secs_f64()
        );
        Ok((device, size))
    }

    pub fn main() -> anyhow::Result<()> {
        let arguments: Vec<String> = std::env::args()
            .skip(1)
            .filter(|a| a != "--bench")
            .collect();
        let Some(path) = arguments.first() else {
            eprintln!(
                "usage: cargo bench --features cuda --bench cuda -- MODEL [prefill|decode] [STEP]"
            );
            return Ok(());
        };
        let (mut device, size) = open(path, 8448)?;
        let tokens: Vec<u32> = (0..8192u32).map(|i| 100 + i * 37 % 1000).collect();
        let most = device.capacity().step_tokens_max;
        let chunk = arguments
            .get(2)
            .map_or(Ok(most), |step| step.parse())?
            .clamp(1, most);
        let only = arguments.get(1).map_or("", String::as_str);
        for n in [512, 2048, 8192].into_iter().filter(|_| only != "decode") {
            let mut times = Vec::new();
            for _ in 0..4 {
                let begin = Instant::now();
                for (i, piece) in tokens[..n].chunks(chunk).enumerate() {
                    step(&mut device, piece, i * chunk, Rows::None)?;
                }
                times.push(begin.elapsed().as_secs_f64());
            }
            eprintln!("{path}: prefill {n}: {:.0} tok/s", n as f64 / median(times));
        }
        for depth in [16, 4096].into_iter().filter(|_| only != "prefill") {
            for rows in [1, 2, 4, 8] {
                let wanted = if rows == 1 { Rows::Last } else { Rows::All };
                let mut times = Vec::new();
                for i in 0..120 {
                    let begin = Instant::now();
                    step(&mut device, &tokens[i..i + rows], depth + i, wanted)?;
                    times.push(begin.elapsed().as_secs_f64());
                }
                let t = median(times);
                eprintln!(
                    "{path}: decode at {depth}, {rows} rows: {:.1} steps/s, {:.1} tok/s ({:.2} TB/s)",
                    1.0 / t,
                    rows as f64 / t,
                    size as f64 / t / 1e12
                );
            }
        }
        Ok(())
    }
}
