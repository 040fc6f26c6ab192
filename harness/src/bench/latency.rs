//! `orcd bench latency`: the time from a `health` to its answer, and from a `cancel` to the end of what it cancels, while the worker
//! decodes and while it reads a long prompt.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use worker_orcd_protocol::{
    CancelParams, FinishReason, GenerateParams, GenerateResult, HealthResult, Id, Notification,
    Ready, Request,
};

use super::record;
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

    /// Tokens of the long prompt
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    pub prompt_tokens: u32,

    /// Append the figures to this file, as a line of JSON
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,

    /// Which worker.
    #[command(flatten)]
    pub worker: WorkerArgs,
}

/// How long a worker may take for anything before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Between an answer and the next `health`: so that they meet the worker at any point of its work, and do not become its work.
const PAUSE: Duration = Duration::from_millis(7);

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
/// When the worker does not load, ends, or does not answer as it should.
pub fn run(args: &LatencyArgs) -> Result<()> {
    let mut command = args.worker.find()?.command();
    command.stderr(Stdio::null());
    let mut bench = Bench {
        client: Client::spawn(command)?,
        prompt_tokens: args.prompt_tokens,
    };
    let ready = bench.client.wait_ready(Some(PATIENCE), |_| {})?;
    let room = ready.limits.context_length.unwrap_or_default();
    ensure!(
        room > u64::from(args.prompt_tokens) + 1,
        "the context holds {room} tokens, too few for a prompt of {}; ask for less with --prompt-tokens, or for more with -- --ctx N",
        args.prompt_tokens
    );
    out::print_line(&heading(&ready))?;
    let mut figures = Vec::new();
    for phase in [Phase::Decode, Phase::Prefill] {
        let healths = bench.healths(phase, args.healths)?;
        figures.push(told("health", phase, healths)?);
        let cancels = bench.cancels(phase, args.cancels)?;
        figures.push(told("cancel", phase, cancels)?);
    }
    if let Some(file) = &args.record {
        record::append(file, "latency", &ready, Value::Array(figures))?;
    }
    Ok(())
}

fn heading(ready: &Ready) -> String {
    let model = ready.model.as_ref();
    let words = model.map_or_else(String::new, |m| format!("{} on {}", m.name, m.device));
    format!(
        "{words}, {}\n{:8} {:8} {:>6} {:>9} {:>9} {:>9}",
        record::machine(),
        "request",
        "during",
        "count",
        "p50 ms",
        "p99 ms",
        "max ms"
    )
}

/// Prints a line of the table; the same as JSON.
fn told(request: &str, phase: Phase, mut times: Vec<Duration>) -> Result<Value> {
    times.sort_unstable();
    let ms = |q: f64| quantile(&times, q).as_secs_f64() * 1000.0;
    let (p50, p99, max) = (ms(0.5), ms(0.99), ms(1.0));
    let (during, count) = (phase.name(), times.len());
    out::print_line(&format!(
        "{request:8} {during:8} {count:6} {p50:9.2} {p99:9.2} {max:9.2}"
    ))?;
    Ok(
        json!({"request": request, "during": during, "count": count, "p50_ms": p50, "p99_ms": p99, "max_ms": max}),
    )
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
}

impl Bench {
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

    /// Times of `count` answers to `health`; a generation that ends meanwhile is followed by another.
    fn healths(&mut self, phase: Phase, count: u32) -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        while times.len() < count as usize {
            let target = self.start(phase)?;
            while times.len() < count as usize {
                std::thread::sleep(PAUSE);
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

    /// Times from a `cancel` to the response of the generation that it ends.
    fn cancels(&mut self, phase: Phase, count: u32) -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        for at in 0..count {
            let target = self.start(phase)?;
            // At another point of a step each time.
            std::thread::sleep(Duration::from_millis(3 + u64::from(at % 17)));
            match self.cancel(&target)? {
                Some(time) => times.push(time),
                None => bail!(
                    "a {} was over before it could be cancelled; it is too short to measure",
                    phase.name()
                ),
            }
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
