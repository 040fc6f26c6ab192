//! `orcd bench end-to-end`: tokens a second as the parent sees them through the pipe, greedy, drawn, and under a JSON schema; and the time to the
//! first token of short and long prompts, cold and with their beginning in the prefix cache.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Map, Value, json};
use worker_orcd_protocol::{
    GenerateParams, GenerateResult, Id, Notification, Request, ResponseFormat, ResponseFormatKind,
    SchemaFormat,
};

use super::device::{DeviceArgs, Runs, median, row};
use super::peer;
use super::record::Figure;
use super::subject::{Subjects, start};
use crate::client::{Client, Incoming};
use crate::out;

/// Tokens of the prompt of a generation whose speed is measured.
const PROMPT: u64 = 16;

/// Prompts whose first token is waited for.
const PROMPTS: [u64; 3] = [16, 512, 8000];

/// A prompt that would take longer is left out.
const PROMPT_TIME_MAX: f64 = 40.0;

/// How long a worker may say nothing.
const PATIENCE: Duration = Duration::from_secs(300);

/// Flags of `orcd bench end-to-end`.
#[derive(Clone, Debug, Args)]
pub struct EndToEndArgs {
    /// Tokens of each generation
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=100_000))]
    pub tokens: u32,

    /// What all have.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Runs `orcd bench end-to-end`.
///
/// # Errors
/// When the worker fails, an answer is wrong, or it is slower than before.
pub fn run(args: &EndToEndArgs) -> Result<()> {
    let device = &args.device;
    let mut subjects = Subjects::begin(&device.worker, &device.records)?;
    let figures = measure(&subjects, args.tokens, device.runs)?;
    subjects.keep("end-to-end", figures)?;
    subjects.end()
}

/// Prints and returns the figures.
///
/// # Errors
/// When the worker fails.
pub fn measure(subjects: &Subjects, tokens: u32, count: u32) -> Result<Vec<Figure>> {
    let room = subjects.context.saturating_sub(PROMPT + 1);
    let tokens = tokens.min(u32::try_from(room).unwrap_or(u32::MAX));
    // In the middle of the generation, so that both see the same depths; the device's bench needs room for some steps itself.
    let depth = (PROMPT + u64::from(tokens / 2))
        .min(subjects.context.saturating_sub(128))
        .max(1);
    let own = Runs::measure(subjects, &format!("decode:{depth}"), count, None)?;
    let own = own.rate_at(depth);
    let (client, _) = start(&subjects.line)?;
    let mut pipe = Pipe {
        client,
        vocab: subjects.vocab,
        next: 0,
    };
    let mut figures = Vec::new();
    for (name, params) in ways(tokens) {
        let rates = (0..=count).map(|_| pipe.rate(&params));
        let rates = rates.collect::<Result<Vec<f64>>>()?;
        // The first is there to warm up: a schema is compiled once.
        let rate = median(rates[1..].to_vec());
        let more = json!({"tokens": tokens, "depth": depth, "device_tok_s": own, "of_device": rate / own, "runs": rates[1..]});
        figures.push(Figure::new(name, rate, "tok/s", more));
        out::print_line(&row(&figures[figures.len() - 1]))?;
    }
    first_tokens(&mut pipe, subjects, count, &mut figures)?;
    Ok(figures)
}

/// The generations whose speed is measured.
fn ways(tokens: u32) -> [(&'static str, GenerateParams); 3] {
    let greedy = GenerateParams {
        max_tokens: Some(tokens),
        ignore_eos: true,
        temperature: 0.0,
        ..GenerateParams::default()
    };
    let drawn = GenerateParams {
        temperature: 0.8,
        top_p: 0.95,
        seed: Some(1),
        ..greedy.clone()
    };
    let schema = GenerateParams {
        response_format: Some(ResponseFormat {
            kind: ResponseFormatKind::JsonSchema,
            json_schema: Some(SchemaFormat {
                name: None,
                strict: None,
                schema: schema(),
            }),
        }),
        ignore_eos: false,
        ..drawn.clone()
    };
    [
        ("greedy", greedy),
        ("temperature 0.8, top_p 0.95", drawn),
        ("the same with a JSON schema", schema),
    ]
}

/// A list so long that no generation comes to its end.
fn schema() -> Map<String, Value> {
    let item = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "kind": {"enum": ["animal", "plant", "stone"]},
            "weight": {"type": "integer", "minimum": 0, "maximum": 100_000},
        },
        "required": ["name", "kind", "weight"],
        "additionalProperties": false,
    });
    let list = json!({"type": "array", "minItems": 10_000, "items": item});
    match json!({"type": "object", "properties": {"things": list}, "required": ["things"]}) {
        Value::Object(schema) => schema,
        _ => Map::new(),
    }
}

fn first_tokens(
    pipe: &mut Pipe,
    subjects: &Subjects,
    count: u32,
    figures: &mut Vec<Figure>,
) -> Result<()> {
    let mut slowest = 0.0f64;
    for tokens in PROMPTS {
        let estimate = slowest * tokens as f64;
        let why = if tokens + 2 > subjects.context {
            format!("the context holds {}", subjects.context)
        } else if estimate > PROMPT_TIME_MAX {
            format!("it would take {estimate:.0} s or longer")
        } else {
            String::new()
        };
        if !why.is_empty() {
            out::print_line(&format!("left out: a prompt of {tokens}: {why}"))?;
            continue;
        }
        // Once to warm up: the first long prompt finds memory that was never used.
        pipe.first_token(tokens, false)?;
        let cold: Vec<f64> = (0..count)
            .map(|_| pipe.first_token(tokens, false))
            .collect::<Result<_>>()?;
        pipe.next += 1;
        pipe.first_token_of(tokens, true)?;
        let cached: Vec<f64> = (0..count)
            .map(|_| pipe.first_token_of(tokens, true))
            .collect::<Result<_>>()?;
        let cold = median(cold);
        slowest = cold / tokens as f64;
        for (how, seconds) in [("cold", cold), ("cached", median(cached))] {
            let what = format!("first token of {tokens}, {how}");
            figures.push(Figure::new(
                what,
                seconds * 1e3,
                "ms",
                json!({"tokens": tokens}),
            ));
            out::print_line(&row(&figures[figures.len() - 1]))?;
        }
    }
    Ok(())
}

struct Pipe {
    client: Client,
    vocab: u64,
    /// Makes prompts different, so that none begins as an earlier one did.
    next: u64,
}

impl Pipe {
    fn prompt(&self, tokens: u64) -> Vec<u32> {
        let first = 7 * self.next;
        (first..first + tokens)
            .map(|i| peer::id(i, self.vocab))
            .collect()
    }

    /// Tokens a second between the first and the last token of a generation.
    fn rate(&mut self, params: &GenerateParams) -> Result<f64> {
        self.next += 1;
        let params = GenerateParams {
            prompt_token_ids: Some(self.prompt(PROMPT)),
            ..params.clone()
        };
        let id = self.client.request(Request::Generate(Box::new(params)))?;
        let times = self.tokens(&id)?;
        let span = times.first().zip(times.last());
        let seconds = span.map_or(0.0, |(first, last)| (*last - *first).as_secs_f64());
        ensure!(
            times.len() > 1 && seconds > 0.0,
            "a generation of {} tokens has no speed",
            times.len()
        );
        Ok((times.len() - 1) as f64 / seconds)
    }

    /// Seconds to the first token of a prompt that was never sent.
    fn first_token(&mut self, tokens: u64, cache: bool) -> Result<f64> {
        self.next += 1;
        self.first_token_of(tokens, cache)
    }

    /// Seconds to the first token of the prompt that was sent last.
    fn first_token_of(&mut self, tokens: u64, cache: bool) -> Result<f64> {
        let params = GenerateParams {
            prompt_token_ids: Some(self.prompt(tokens)),
            max_tokens: Some(1),
            ignore_eos: true,
            temperature: 0.0,
            cache_prompt: cache,
            ..GenerateParams::default()
        };
        let begin = Instant::now();
        let id = self.client.request(Request::Generate(Box::new(params)))?;
        let times = self.tokens(&id)?;
        let first = times.first().context("a generation without a token")?;
        Ok((*first - begin).as_secs_f64())
    }

    /// When each token of a generation came.
    fn tokens(&mut self, id: &Id) -> Result<Vec<Instant>> {
        let mut times = Vec::new();
        loop {
            let next = self.client.next(Some(PATIENCE))?;
            match next.context("the worker has said nothing for five minutes")? {
                Incoming::Notification(Notification::Token(_)) => times.push(Instant::now()),
                Incoming::Response(response) if response.id.as_ref() == Some(id) => {
                    response.result::<GenerateResult>()?;
                    return Ok(times);
                }
                Incoming::Response(_) | Incoming::Notification(_) | Incoming::Unknown { .. } => {}
            }
        }
    }
}
