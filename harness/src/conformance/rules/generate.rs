//! What holds for a `generate`: started, then tokens, then the response, and figures that agree with each other.

use serde_json::Value;
use worker_orcd_protocol::limits::STREAM_LINE_BYTES_MAX;

use super::{Breach, Rule, hold};

/// What has come for a `generate`.
#[derive(Debug, Default)]
pub struct Generate {
    /// The params of `started`.
    started: Option<Value>,
    tokens: u64,
    /// Prompt tokens that the last `progress` told.
    processed: u64,
    /// Tokens of the prompt whose log-probabilities were told.
    prompt_told: usize,
    /// A cancel was answered with `found` true.
    pub is_cancelled: bool,
}

impl Generate {
    pub fn is_started(&self) -> bool {
        self.started.is_some()
    }

    pub fn started(&mut self, params: &Value, asked: &Value) -> Result<(), Breach> {
        let id = &params["request_id"];
        hold(self.started.is_none(), Rule::StartedTokensResponse, || {
            format!("{id} started twice")
        })?;
        seed_is_as_asked(&params["seed"], asked)?;
        self.started = Some(params.clone());
        Ok(())
    }

    pub fn progress(&mut self, params: &Value) -> Result<(), Breach> {
        let processed = params["processed"].as_u64().unwrap_or(0);
        let total = params["total"].as_u64().unwrap_or(0);
        let fits = self.is_started()
            && self.tokens == 0
            && self.processed <= processed
            && processed <= total;
        hold(fits, Rule::StartedTokensResponse, || {
            format!(
                "a progress that is not between started and the first token, goes back, or is above its total: {params}"
            )
        })?;
        self.processed = processed;
        Ok(())
    }

    pub fn prompt_logprobs(&mut self, params: &Value, bytes: usize) -> Result<(), Breach> {
        let goes_on = self.is_started() && self.tokens == 0 && params["from"] == self.prompt_told;
        hold(goes_on, Rule::StartedTokensResponse, || {
            format!(
                "a prompt_logprobs that is not between started and the first token, or does not go on where the last one ended: from {}",
                params["from"]
            )
        })?;
        hold(bytes < STREAM_LINE_BYTES_MAX, Rule::ShortLines, || {
            format!("a prompt_logprobs is a line of {bytes} bytes")
        })?;
        self.prompt_told += params["entries"].as_array().map_or(0, Vec::len);
        Ok(())
    }

    pub fn token(&mut self, params: &Value, bytes: usize) -> Result<(), Breach> {
        let id = &params["request_id"];
        hold(self.is_started(), Rule::StartedTokensResponse, || {
            format!("a token of {id} before it has started")
        })?;
        hold(
            params["index"] == self.tokens,
            Rule::StartedTokensResponse,
            || {
                format!(
                    "token {} of {id} has index {}",
                    self.tokens, params["index"]
                )
            },
        )?;
        hold(bytes < STREAM_LINE_BYTES_MAX, Rule::ShortLines, || {
            format!("a token of {id} is a line of {bytes} bytes")
        })?;
        self.tokens += 1;
        Ok(())
    }

    /// `asked`: the params of the request.
    pub fn responded(&self, message: &Value, asked: &Value) -> Result<(), Breach> {
        match message.get("result") {
            Some(result) => self.result(&message["id"], result, asked),
            None => {
                let has_usage = message["error"]["data"].get("usage").is_some();
                hold(has_usage == self.is_started(), Rule::Usage, || {
                    format!(
                        "an error has usage if, and only if, the generate has started: {message}"
                    )
                })
            }
        }
    }

    fn result(&self, id: &Value, result: &Value, asked: &Value) -> Result<(), Breach> {
        let is_streamed = asked["stream"] != false;
        let reason = &result["finish_reason"];
        hold(
            !self.is_cancelled || reason == "cancelled",
            Rule::Cancel,
            || format!("a cancel of {id} was answered with found true, but it ended with {reason}"),
        )?;
        hold(reasons_agree(reason, result), Rule::Reasons, || {
            format!(
                "{id} has finish_reason {reason} and stop_reason {}",
                result["stop_reason"]
            )
        })?;
        hold(is_streamed || self.tokens == 0, Rule::StreamOrText, || {
            format!("{id} has stream false and got tokens")
        })?;
        hold(
            is_streamed != result.get("text").is_some(),
            Rule::StreamOrText,
            || format!("text is in the response to {id} if, and only if, stream is false"),
        )?;
        let wants_logprobs = !is_streamed && asked.get("logprobs").is_some();
        hold(
            wants_logprobs == result.get("logprobs").is_some(),
            Rule::StreamOrText,
            || {
                format!(
                    "logprobs are in the response to {id} if, and only if, they were asked for with stream false"
                )
            },
        )?;
        seed_is_as_asked(&result["seed"], asked)?;
        self.usage(id, result, is_streamed)
    }

    fn usage(&self, id: &Value, result: &Value, is_streamed: bool) -> Result<(), Breach> {
        let usage = &result["usage"];
        let count = |name: &str| usage[name].as_u64().unwrap_or(0);
        let (prompt, completion) = (count("prompt_tokens"), count("completion_tokens"));
        let breach =
            |holds: bool, what: &str| hold(holds, Rule::Usage, || format!("{what}: {id}, {usage}"));
        breach(
            prompt + completion == count("total_tokens"),
            "total_tokens is the sum",
        )?;
        let Some(started) = &self.started else {
            return breach(
                prompt + completion == 0,
                "what never started has used nothing",
            );
        };
        breach(
            started["prompt_tokens"] == prompt,
            "prompt_tokens is as in started",
        )?;
        breach(
            started["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"],
            "cached_tokens is as in started",
        )?;
        breach(
            !is_streamed || completion == self.tokens,
            "completion_tokens is the number of tokens",
        )?;
        hold(started["seed"] == result["seed"], Rule::Seed, || {
            format!(
                "{id} started with seed {} and ended with {}",
                started["seed"], result["seed"]
            )
        })
    }
}

fn seed_is_as_asked(seed: &Value, asked: &Value) -> Result<(), Breach> {
    let holds = asked.get("seed").is_none_or(|wanted| wanted == seed);
    hold(holds, Rule::Seed, || {
        format!("seed {} was asked for, but {seed} is told", asked["seed"])
    })
}

/// The table of protocol/PROTOCOL.md.
fn reasons_agree(finish: &Value, result: &Value) -> bool {
    let stop = &result["stop_reason"];
    let is_stopped = stop.is_string() || stop.is_u64();
    match finish.as_str() {
        Some("stop") => is_stopped && result["grammar_complete"] != false,
        // A stop inside a form that is not complete cuts it off.
        Some("length") => {
            stop == "max_tokens"
                || stop == "context"
                || is_stopped && result["grammar_complete"] == false
        }
        _ => stop.is_null(),
    }
}
