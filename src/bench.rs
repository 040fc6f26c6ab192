//! `--bench`: how fast the device is without a pipe, as one line of JSON for `orcd bench`. Clocks are read here and nothing is answered.

use std::fmt::Display;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use worker_orcd::device::{Device, DeviceError, Output, PAGE_TOKENS, PageId, Rows, Step};
use worker_orcd::io;
use worker_orcd::limits;
use worker_orcd::load::{FileLoad, LoadError, LoadStep, Loaded};
use worker_orcd::sampling::{SampleStep, SamplingParams, uniform};
use worker_orcd_protocol::Exit;

use crate::flags::{Flags, Measure, ModelChoice};
use crate::inspect::refused;

/// Depths and lengths that are measured where none is named and the context has room.
const DEPTHS: [usize; 2] = [16, 4096];
const LENGTHS: [usize; 3] = [512, 2048, 8192];

/// Steps of a decode: so many at most, and no more once this time is over, but for the fewest.
const STEPS_MAX: usize = 128;
const STEPS_MIN: usize = 5;
const STEPS_TIME: Duration = Duration::from_secs(4);

/// Times that a prompt is read: so often at most, and not again once this time is over.
const PROMPTS_MAX: usize = 4;
const PROMPTS_TIME: Duration = Duration::from_secs(6);

/// A prompt that would take longer is left out, unless it was named.
const PROMPT_TIME_MAX: Duration = Duration::from_secs(40);

/// Memory of the host that is read for its bandwidth: far more than caches hold.
const HOST_BYTES: usize = 512 << 20;

/// Measures what the flags ask for, and how the process then ends; `None` where they ask for nothing.
pub fn bench(flags: &Flags) -> Option<Exit> {
    let model = flags.model.as_ref().filter(|_| !flags.bench.is_empty())?;
    let (text, exit) = match measure(flags, model) {
        Ok(figures) => (format!("{figures}\n"), Exit::Done),
        Err(Failure::Load(error)) => refused(&error, flags),
        Err(Failure::Measure(reason)) => {
            eprintln!("worker-orcd: {reason}");
            return Some(Exit::Usage);
        }
    };
    Some(io::print(&text).map_or(Exit::PipeLost, |()| exit))
}

/// Why there are no figures.
enum Failure {
    /// There is no model either.
    Load(LoadError),
    /// The reason, as a sentence.
    Measure(String),
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Failure::Load(error)
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        Failure::Load(error.into())
    }
}

/// A part of the load and its time.
type Part = (&'static str, Duration);

fn measure(flags: &Flags, model: &ModelChoice) -> Result<Value, Failure> {
    let (loaded, parts) = load(flags, model)?;
    let facts = loaded.model;
    let mut bench = Bench {
        parts: [parts, loaded.device.load_parts()],
        pages: (0..loaded.device.capacity().pages as u32)
            .map(PageId)
            .collect(),
        device: loaded.device,
        context: facts.context_length,
    };
    let figures = bench.figures(&flags.bench)?;
    let reads = match model {
        ModelChoice::File(path) => Some(FileLoad::new(flags.load_options(path)).reads()?),
        ModelChoice::Fake(_) => None,
    };
    let block_bytes = worker_orcd::load::KvType::from(flags.kv_type).block_bytes() as u64;
    let floor = |depth: usize| {
        let reads = reads.as_ref()?;
        Some(reads.weights_bytes + reads.kv_numbers(depth) * block_bytes / 32)
    };
    let decode: Vec<Value> = (figures.decode.iter())
        .map(|(depth, step, drawn)| {
            json!({"depth": depth, "step_s": step, "drawn_s": drawn, "bytes": floor(*depth)})
        })
        .collect();
    let named = |list: &[(String, f64)], key: &str| -> Vec<Value> {
        let one = |(name, seconds): &(String, f64)| json!({key: name, "seconds": seconds});
        list.iter().map(one).collect()
    };
    let prefill: Vec<Value> = (figures.prefill.iter())
        .map(|(tokens, seconds)| json!({"tokens": tokens, "seconds": seconds}))
        .collect();
    let [load, of_device] = bench.parts.map(|parts| {
        let seconds = |(name, time): &Part| (String::from(*name), time.as_secs_f64());
        parts.iter().map(seconds).collect::<Vec<_>>()
    });
    Ok(json!({
        "model": facts.name,
        "quant": facts.quant_kind,
        "size_bytes": facts.size_bytes,
        "device": facts.device,
        "build": env!("WORKER_ORCD_PROFILE"),
        "version": env!("CARGO_PKG_VERSION"),
        "context": facts.context_length,
        "read_bytes_s": figures.bandwidth,
        "load": named(&load, "part"),
        "load_device": named(&of_device, "part"),
        "decode": decode,
        "prefill": prefill,
        "left_out": figures.left_out,
        "sampling": named(&figures.sampling, "draw"),
    }))
}

/// Loads the model; what each part of that took.
fn load(flags: &Flags, model: &ModelChoice) -> Result<(Box<Loaded>, Vec<Part>), Failure> {
    let mut load = crate::load(flags, model);
    let begin = Instant::now();
    let (mut loaded, end) = loop {
        let now = Instant::now();
        if let LoadStep::Ready(loaded) = load.step(now, now + limits::SLICE)? {
            break (loaded, now);
        }
    };
    // A worker does so between its requests: whoever waits for `ready` does not wait for this, and nothing is measured beside it.
    while loaded.device.tidy() {}
    let parts = load.parts();
    let ends = parts.iter().skip(1).map(|(_, begin)| *begin).chain([end]);
    let times = parts.iter().zip(ends);
    let mut parts: Vec<Part> = times
        .map(|((name, begin), end)| (part_name(name), end - *begin))
        .collect();
    if parts.is_empty() {
        parts.push(("load", begin.elapsed()));
    }
    Ok((loaded, parts))
}

/// What a person calls a part of the load that the log calls so.
fn part_name(field: &'static str) -> &'static str {
    match field {
        "open_ms" => "map and parse",
        "text_ms" => "tokenizer and template",
        "device_ms" => "device",
        "weights_ms" => "weights",
        other => other,
    }
}

/// What was measured; times in seconds, each a median.
#[derive(Default)]
struct Figures {
    /// Bytes a second that can be read where the weights are.
    bandwidth: Option<f64>,
    /// Depth; a step alone; a step and a token drawn from it.
    decode: Vec<(usize, f64, f64)>,
    prefill: Vec<(usize, f64)>,
    sampling: Vec<(String, f64)>,
    /// Why something that is usually measured was not.
    left_out: Vec<String>,
}

/// A device that is loaded.
struct Bench {
    device: Box<dyn Device>,
    pages: Vec<PageId>,
    context: usize,
    /// Of the load, as seen from outside and as the device tells them.
    parts: [Vec<Part>; 2],
}

impl Bench {
    fn figures(&mut self, measures: &[Measure]) -> Result<Figures, Failure> {
        let mut figures = Figures::default();
        let needs_bandwidth = |m: &Measure| matches!(m, Measure::Decode(_));
        if measures.iter().any(needs_bandwidth) {
            let of_device = self.device.read_bandwidth()?;
            figures.bandwidth = Some(of_device.unwrap_or_else(host_bandwidth));
            self.fill()?;
        }
        for measure in measures {
            match *measure {
                Measure::Decode(Some(depth)) => self.decode(depth, &mut figures)?,
                Measure::Decode(None) => {
                    for depth in DEPTHS {
                        if self.has_room(depth + STEPS_MAX) {
                            self.decode(depth, &mut figures)?;
                        } else {
                            let why =
                                format!("decode at {depth}: the context holds {}", self.context);
                            figures.left_out.push(why);
                        }
                    }
                }
                Measure::Prefill(Some(tokens)) => self.prefill(tokens, &mut figures)?,
                Measure::Prefill(None) => {
                    for tokens in LENGTHS {
                        match self.prefill_obstacle(tokens, &figures) {
                            None => self.prefill(tokens, &mut figures)?,
                            Some(why) => {
                                figures.left_out.push(format!("prefill of {tokens}: {why}"));
                            }
                        }
                    }
                }
                Measure::Sampling => self.sampling(&mut figures)?,
                Measure::Load => {}
            }
        }
        Ok(figures)
    }

    fn has_room(&self, tokens: usize) -> bool {
        tokens <= self.pages.len() * PAGE_TOKENS
    }

    /// Why a prompt that nobody named is not read.
    fn prefill_obstacle(&self, tokens: usize, figures: &Figures) -> Option<String> {
        if !self.has_room(tokens) {
            return Some(format!("the context holds {}", self.context));
        }
        let (shorter, seconds) = figures.prefill.last()?;
        let estimate = seconds * tokens as f64 / *shorter as f64;
        (estimate > PROMPT_TIME_MAX.as_secs_f64())
            .then(|| format!("it would take {estimate:.0} s or longer"))
    }

    /// Writes numbers to every page of the KV pool: memory that was never written need not be read.
    fn fill(&mut self) -> Result<(), Failure> {
        // As 16-bit floats these are between -1 and 1, as 32-bit ones tiny; none is subnormal or no number.
        let numbers = (0..self.device.page_bytes() as u32 / 2).map(|i| {
            0x2c00 + (i.wrapping_mul(2_654_435_761) >> 20) as u16 + ((i as u16 & 1) << 15)
        });
        let bytes: Vec<u8> = numbers.flat_map(u16::to_le_bytes).collect();
        for page in self.pages.clone() {
            self.device.write_page(page, 0, &bytes)?;
        }
        Ok(())
    }

    fn decode(&mut self, depth: usize, figures: &mut Figures) -> Result<(), Failure> {
        if !self.has_room(depth + STEPS_MAX) {
            return Err(self.no_room(format!("decode at {depth}"), depth + STEPS_MAX));
        }
        let greedy = SamplingParams::GREEDY;
        let [step, drawn] = [false, true].map(|draws| {
            timed(STEPS_MAX, STEPS_MIN, STEPS_TIME, |i| {
                let tokens = self.tokens(depth + i, 1);
                self.step(&tokens, depth + i, Rows::Last)?;
                if draws {
                    self.device.sample(SampleStep::new(&greedy, 0.0, &[]))?;
                    self.finish()?;
                }
                Ok(())
            })
        });
        figures.decode.push((depth, step?, drawn?));
        Ok(())
    }

    fn prefill(&mut self, tokens: usize, figures: &mut Figures) -> Result<(), Failure> {
        if !self.has_room(tokens) {
            return Err(self.no_room(format!("a prompt of {tokens}"), tokens));
        }
        let prompt = self.tokens(0, tokens);
        let most = self.device.capacity().step_tokens_max;
        let seconds = timed(PROMPTS_MAX, 1, PROMPTS_TIME, |_| {
            for (i, piece) in prompt.chunks(most).enumerate() {
                let last = i * most + piece.len() == tokens;
                let rows = if last { Rows::Last } else { Rows::None };
                self.step(piece, i * most, rows)?;
            }
            Ok(())
        })?;
        figures.prefill.push((tokens, seconds));
        Ok(())
    }

    /// Draws from the logits of one step in the ways that requests ask for.
    fn sampling(&mut self, figures: &mut Figures) -> Result<(), Failure> {
        let neutral = SamplingParams::NEUTRAL;
        let warm = SamplingParams {
            temperature: 0.8,
            top_p: 0.95,
            ..neutral
        };
        let cases = [
            ("greedy", SamplingParams::GREEDY),
            ("temperature 1", neutral),
            ("temperature 0.8, top_p 0.95", warm),
            ("and top_k 40", SamplingParams { top_k: 40, ..warm }),
            (
                "and min_p 0.05",
                SamplingParams {
                    min_p: 0.05,
                    ..warm
                },
            ),
            (
                "and penalties",
                SamplingParams {
                    repetition_penalty: 1.1,
                    ..warm
                },
            ),
        ];
        let history = self.tokens(0, 1024);
        let tokens = self.tokens(0, 1);
        self.step(&tokens, 0, Rows::Last)?;
        for (name, params) in cases {
            let seconds = timed(STEPS_MAX, STEPS_MIN, STEPS_TIME, |i| {
                let step = SampleStep::new(&params, uniform(1, i as u64), &history);
                self.device.sample(step)?;
                self.finish()
            })?;
            figures.sampling.push((name.to_owned(), seconds));
        }
        Ok(())
    }

    fn no_room(&self, what: impl Display, tokens: usize) -> Failure {
        Failure::Measure(format!(
            "{what} needs room for {tokens} tokens, and the context holds {}: name less, or more with --ctx",
            self.context
        ))
    }

    /// The ids from number `first` on: 100, 137, 174 … of a thousand. They are the same for any engine.
    fn tokens(&self, first: usize, count: usize) -> Vec<u32> {
        let vocab = self.device.capacity().vocab as u32;
        let id = |i: usize| (100 + i as u32 * 37 % 1000) % vocab;
        (first..first + count).map(id).collect()
    }

    fn step(&mut self, tokens: &[u32], position: usize, rows: Rows) -> Result<(), DeviceError> {
        self.device.forward(Step {
            pages: &self.pages,
            tokens,
            position,
            rows,
        })?;
        self.finish()
    }

    fn finish(&mut self) -> Result<(), DeviceError> {
        loop {
            match self.device.poll(Instant::now() + limits::SLICE)? {
                Some(Output::Forwarded | Output::Sampled(_) | Output::Scored(_)) => return Ok(()),
                None => {}
            }
        }
    }
}

/// Does something once, and then again and again; the median of the times in seconds.
fn timed(
    most: usize,
    least: usize,
    time: Duration,
    mut work: impl FnMut(usize) -> Result<(), DeviceError>,
) -> Result<f64, DeviceError> {
    work(0)?;
    let begin = Instant::now();
    let mut times = Vec::new();
    for i in 0..most {
        let since = Instant::now();
        work(i)?;
        times.push(since.elapsed().as_secs_f64());
        if times.len() >= least && begin.elapsed() > time {
            break;
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Bytes a second that one core reads from memory: the median of several passes.
fn host_bandwidth() -> f64 {
    let memory = vec![1u64; HOST_BYTES / size_of::<u64>()];
    let pass = |_| {
        let mut sums = [0u64; 16];
        for piece in memory.chunks_exact(sums.len()) {
            for (sum, number) in sums.iter_mut().zip(piece) {
                *sum = sum.wrapping_add(*number);
            }
        }
        std::hint::black_box(sums);
        Ok(())
    };
    let seconds = timed(5, 3, Duration::from_secs(2), pass).unwrap_or(f64::INFINITY);
    HOST_BYTES as f64 / seconds
}
