//! `orcd bench latency`: the time from a `health` to its answer, and from a `cancel` to the end of what it cancels, while the worker
//! decodes and while it reads a long prompt.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::json;
use worker_orcd_protocol::{
    CancelParams, FinishReason, GenerateParams, GenerateResult, HealthResult, Id, Notification,
    Request,
};

use super::record::{Figure, RecordArgs};
use super::subject::{Subjects, start};
use crate::args::WorkerArgs;
use crate::client::{Client, Incoming, Response};
use crate::out;

/// Flags of `orcd bench latency`.
#[derive(Clone, Debug, Args)]
pub struct LatencyArgs {
    /// `health` requests in each phase
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub healths: u32,

    /// `cancel` requests in each phase
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub cancels: u32,

    /// Tokens of the long prompt [default: 4096, or as many as the context holds where a device reads those too fast to be met]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    pub prompt_tokens: Option<u32>,

    /// Where records go.
    #[command(flatten)]
    pub records: RecordArgs,

    /// Which worker.
    #[command(flatten)]
    pub worker: WorkerArgs,
}

/// How long a worker may take for anything before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Between an answer and the next `health`: so that they meet the worker at any point of its work, and do not become its work.
const PAUSE: Duration = Duration::from_millis(7);

/// The long prompt where none is named, and how long it has to last: else a longer one is taken.
const PROMPT: u32 = 4096;
const LONG: Duration = Duration::from_millis(200);

/// A prompt that is over sooner cannot be met while it is read.
const SHORT: Duration = Duration::from_millis(2);

/// Generations that are started for a request at most: one may be over before its request comes.
const TRIES: usize = 4;

/// What the worker is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Decode,
    Prefill,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::Decode => "decode",
            Phase::Prefill => "prefill",
        }
    }
}

/// Runs `orcd bench latency`.
///
/// # Errors
/// When the worker does not load, ends, does not answer as it should, or is slower than before.
pub fn run(args: &LatencyArgs) -> Result<()> {
    let mut subjects = Subjects::begin(&args.worker, &args.records)?;
    let figures = measure(&subjects, args.prompt_tokens, args.healths, args.cancels)?;
    subjects.keep("latency", figures)?;
    subjects.end()
}

/// Prints and returns the figures.
///
/// # Errors
/// When the worker does not answer as it should, or has no room for the prompt.
pub fn measure(
    subjects: &Subjects,
    prompt_tokens: Option<u32>,
    healths: u32,
    cancels: u32,
) -> Result<Vec<Figure>> {
    let room = u32::try_from(subjects.context.saturating_sub(2)).unwrap_or(u32::MAX);
    let named = prompt_tokens.unwrap_or(PROMPT.min(room));
    ensure!(
        named <= room,
        "the context holds {} tokens, too few for a prompt of {named}; ask for less with --prompt-tokens, or for more with -- --ctx N",
        subjects.context,
    );
    let (client, _) = start(&subjects.line)?;
    let mut bench = Bench {
        client,
        prompt_tokens: named,
        lasts: LONG,
    };
    bench.time_prompt()?;
    if bench.lasts < LONG && prompt_tokens.is_none() && room > named {
        bench.prompt_tokens = room;
        bench.time_prompt()?;
    }
    out::print_line(&format!(
        "{:8} {:8} {:>6} {:>9} {:>9} {:>9}",
        "request", "during", "count", "p50 ms", "p99 ms", "max ms"
    ))?;
    let mut figures = Vec::new();
    for phase in [Phase::Decode, Phase::Prefill] {
        if phase == Phase::Prefill && bench.lasts < SHORT {
            out::print_line(&bench.too_short())?;
            continue;
        }
        let times = bench.healths(phase, healths)?;
        figures.extend(told("health", phase, times)?);
        let times = bench.cancels(phase, cancels)?;
        figures.extend(told("cancel", phase, times)?);
    }
    Ok(figures)
}

/// Prints a line of the table; its figure. Nothing where nothing was measured.
fn told(request: &str, phase: Phase, mut times: Vec<Duration>) -> Result<Option<Figure>> {
    times.sort_unstable();
    let during = phase.name();
    if times.is_empty() {
        out::print_line(&format!(
            "{request:8} {during:8} {:6} every generation was over before its request came",
            0
        ))?;
        return Ok(None);
    }
    let ms = |q: f64| quantile(&times, q).as_secs_f64() * 1000.0;
    let (p50, p90, p99, max) = (ms(0.5), ms(0.9), ms(0.99), ms(1.0));
    let count = times.len();
    out::print_line(&format!(
        "{request:8} {during:8} {count:6} {p50:9.2} {p99:9.2} {max:9.2}"
    ))?;
    // Enough of the distribution to draw it.
    let curve: Vec<f64> = (1..=20).map(|i| ms(f64::from(i) / 20.0)).collect();
    let more = json!({"request": request, "during": during, "count": count, "p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "max_ms": max, "curve_ms": curve});
    Ok(Some(Figure::new(
        format!("{request} during {during}"),
        p50,
        "ms",
        more,
    )))
}

/// The smallest time that is not below this share of all; zero where there are none.
fn quantile(sorted: &[Duration], share: f64) -> Duration {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    let at = rank.clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).copied().unwrap_or_default()
}

struct Bench {
    client: Client,
    prompt_tokens: u32,
    /// How long the prompt is read; [`LONG`] stands for longer.
    lasts: Duration,
}

impl Bench {
    /// Finds out how long the prompt is read, twice: the first time warms up.
    fn time_prompt(&mut self) -> Result<()> {
        for _ in 0..2 {
            let target = self.start(Phase::Prefill)?;
            let since = Instant::now();
            self.lasts = LONG;
            while let Some(left) = LONG.checked_sub(since.elapsed()) {
                match self.client.next(Some(left))? {
                    Some(Incoming::Notification(Notification::Token(_))) => {
                        self.lasts = since.elapsed();
                        break;
                    }
                    Some(Incoming::Response(response)) => return Err(unexpected(response)),
                    Some(Incoming::Notification(_) | Incoming::Unknown { .. }) | None => {}
                }
            }
            self.cancel(&target)?;
        }
        Ok(())
    }

    fn too_short(&self) -> String {
        format!(
            "a prompt of {} tokens is read in {:.2} ms, too short for a request to meet it: give the worker more context with -- --ctx N",
            self.prompt_tokens,
            self.lasts.as_secs_f64() * 1e3
        )
    }

    /// How long to wait before request number `at`: another time each, within what is measured.
    fn pause(&self, phase: Phase, at: usize) -> Duration {
        let spread = match phase {
            Phase::Decode => Duration::from_millis(17),
            Phase::Prefill => (self.lasts / 2).min(Duration::from_millis(17)),
        };
        spread * (at as u32 % 17) / 17
    }

    /// Starts a generation that is in this phase when this returns, and stays in it for long.
    fn start(&mut self, phase: Phase) -> Result<Id> {
        let tokens = match phase {
            Phase::Decode => 4,
            Phase::Prefill => self.prompt_tokens,
        };
        // Ids that every vocabulary has; what they mean does not matter.
        let params = GenerateParams {
            prompt_token_ids: Some((0..tokens).map(|i| 32 + i % 90).collect()),
            temperature: 0.0,
            ignore_eos: true,
            // A prompt that is cached would not be read.
            cache_prompt: false,
            ..GenerateParams::default()
        };
        let id = self.client.request(Request::Generate(Box::new(params)))?;
        loop {
            match (self.next()?, phase) {
                (Incoming::Notification(Notification::Started(_)), Phase::Prefill) => break,
                (Incoming::Notification(Notification::Token(_)), Phase::Decode) => break,
                (Incoming::Response(response), _) => return Err(unexpected(response)),
                (Incoming::Notification(_) | Incoming::Unknown { .. }, _) => {}
            }
        }
        Ok(id)
    }

    fn next(&mut self) -> Result<Incoming> {
        let next = self.client.next(Some(PATIENCE))?;
        next.context("the worker has said nothing for two minutes")
    }

    /// Times of `count` answers to `health`; a generation that ends meanwhile is followed by another. Fewer where too many are over too soon.
    fn healths(&mut self, phase: Phase, count: u32) -> Result<Vec<Duration>> {
        let count = count as usize;
        let pause = match phase {
            Phase::Decode => PAUSE,
            Phase::Prefill => PAUSE.min(self.lasts / 4),
        };
        let mut times = Vec::new();
        for _ in 0..count * TRIES {
            if times.len() == count {
                break;
            }
            let target = self.start(phase)?;
            while times.len() < count {
                std::thread::sleep(pause);
                match self.health(&target, phase)? {
                    Some(time) => times.push(time),
                    None => break,
                }
            }
            self.cancel(&target)?;
        }
        Ok(times)
    }

    /// One `health`; `None` where the phase was over before it came.
    fn health(&mut self, target: &Id, phase: Phase) -> Result<Option<Duration>> {
        let since = Instant::now();
        let id = self.client.request(Request::Health)?;
        let mut is_over = false;
        loop {
            match self.next()? {
                Incoming::Response(response) if response.id.as_ref() == Some(&id) => {
                    let time = since.elapsed();
                    let health: HealthResult = response.result()?;
                    let runs = health.active_request.as_ref() == Some(target);
                    return Ok((runs && !is_over).then_some(time));
                }
                Incoming::Response(response) if response.id.as_ref() == Some(target) => {
                    response.result::<GenerateResult>()?;
                    is_over = true;
                }
                Incoming::Response(response) => return Err(unexpected(response)),
                Incoming::Notification(Notification::Token(_)) => {
                    is_over |= phase == Phase::Prefill
                }
                Incoming::Notification(_) | Incoming::Unknown { .. } => {}
            }
        }
    }

    /// Times from a `cancel` to the response of the generation that it ends. Fewer than `count` where too many end by themselves.
    fn cancels(&mut self, phase: Phase, count: u32) -> Result<Vec<Duration>> {
        let count = count as usize;
        let mut times = Vec::new();
        for at in 0..count * TRIES {
            if times.len() == count {
                break;
            }
            let target = self.start(phase)?;
            std::thread::sleep(self.pause(phase, at));
            times.extend(self.cancel(&target)?);
        }
        Ok(times)
    }

    /// Cancels a generation and waits for its end; `None` where it had ended by itself.
    fn cancel(&mut self, target: &Id) -> Result<Option<Duration>> {
        let since = Instant::now();
        let request_id = target.clone();
        let id = self
            .client
            .request(Request::Cancel(CancelParams { request_id }))?;
        let (mut time, mut answered) = (None, false);
        loop {
            match self.next()? {
                Incoming::Response(response) if response.id.as_ref() == Some(target) => {
                    let took = since.elapsed();
                    let result: GenerateResult = response.result()?;
                    time = (result.finish_reason == FinishReason::Cancelled).then_some(took);
                    if answered {
                        return Ok(time);
                    }
                }
                Incoming::Response(response) if response.id.as_ref() == Some(&id) => {
                    answered = true;
                    let found: worker_orcd_protocol::CancelResult = response.result()?;
                    if !found.found {
                        return Ok(time);
                    }
                }
                Incoming::Response(response) => return Err(unexpected(response)),
                Incoming::Notification(_) | Incoming::Unknown { .. } => {}
            }
        }
    }
}

fn unexpected(response: Response) -> anyhow::Error {
    anyhow::anyhow!("the worker answered what was not asked: {}", response.line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_was_measured() {
        let times: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        for (share, ms) in [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)] {
            assert_eq!(quantile(&times, share), Duration::from_millis(ms));
        }
        assert_eq!(quantile(&[], 0.5), Duration::ZERO);
        assert_eq!(quantile(&times[..1], 0.99), Duration::from_millis(1));
    }
}
