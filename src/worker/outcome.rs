//! How a `generate` ends: exactly one response, whatever happens.

use std::time::Instant;

use worker_orcd_protocol::{
    ErrorObject, FinishReason, GenerateParams, GenerateResult, Id, MethodResult, Sampling,
    StopReason, Timings, Usage,
};

use super::Worker;
use super::generate::{Active, Work};
use super::lifecycle::{Stage, rounded};
use super::prompt_scores::PromptScores;
use super::queue::Job;
use super::report::id_value;
use super::run::{Cache, Flight, Run};
use super::state::label;
use crate::log::Level;
use crate::session::{Drafter, Finish};

impl Worker {
    /// Ends a `generate` that was taken out of `active`, wherever it stands.
    pub(super) fn end_generate(&mut self, now: Instant, active: Active, finish: Finish) {
        let Active { job, work, .. } = active;
        let mut run = match work {
            Work::Resolving(_) | Work::Preparing(_) => {
                return self.end_unstarted(now, job, finish);
            }
            Work::Running(run) => run,
        };
        self.release(&job.id, &mut run);
        let complete = run.controls.form.as_mut().map(|form| match finish {
            // What a stop string cuts off belonged to the form.
            Finish::StopString(_) => false,
            Finish::EndOfGeneration
            | Finish::StopToken(_)
            | Finish::Grammar
            | Finish::MaxTokens
            | Finish::Context
            | Finish::Cancelled
            | Finish::Timeout => form.is_complete(),
        });
        let tail = run.session.end(finish);
        run.text.push_str(&tail);
        let (tail, text) = if job.params.stream {
            (tail, None)
        } else {
            (String::new(), Some(run.text.clone()))
        };
        let wants_entries = !job.params.stream && job.params.logprobs.is_some();
        let scores = run.scores.take().filter(|_| !job.params.stream);
        let ids = run.session.tokens().split_at(run.session.prompt_tokens());
        let wants_ids = job.params.return_token_ids;
        let result = GenerateResult {
            finish_reason: match finish_reason(finish) {
                // A stop that comes too early leaves a piece of what was asked for, as a limit does.
                FinishReason::Stop if complete == Some(false) => FinishReason::Length,
                reason => reason,
            },
            stop_reason: stop_reason(finish, &job.params.stop),
            grammar_complete: complete,
            usage: run.usage(),
            timings: self.timings(now, &job, &run),
            seed: job.seed,
            sampling: self.sampling(
                &job.params,
                run.session.tokens_max() - run.session.prompt_tokens(),
                run.controls.bias.len(),
            ),
            tail,
            text,
            prompt_token_ids: wants_ids.then(|| ids.0.to_vec()),
            token_ids: wants_ids.then(|| ids.1.to_vec()),
            prompt_logprobs: scores.map(PromptScores::into_entries),
            logprobs: wants_entries.then(|| std::mem::take(&mut run.entries)),
        };
        self.respond(now, job, result);
    }

    /// Ends a `generate` that has not started: nothing was used.
    pub(super) fn end_unstarted(&mut self, now: Instant, job: Job, finish: Finish) {
        let queue_ms = self.config.clock.ms(job.received, now);
        let fits = match &self.stage {
            Stage::Serving(serving) => serving.model.context_length,
            Stage::Loading(_) | Stage::Gone => 0,
        };
        let result = GenerateResult {
            finish_reason: finish_reason(finish),
            stop_reason: stop_reason(finish, &job.params.stop),
            grammar_complete: None,
            usage: Usage::default(),
            timings: Timings {
                queue_ms,
                ..Timings::default()
            },
            seed: job.seed,
            sampling: self.sampling(&job.params, fits, 0),
            tail: String::new(),
            text: (!job.params.stream).then(String::new),
            logprobs: (!job.params.stream && job.params.logprobs.is_some()).then(Vec::new),
            prompt_logprobs: (!job.params.stream && job.params.prompt_logprobs.is_some())
                .then(Vec::new),
            prompt_token_ids: None,
            token_ids: job.params.return_token_ids.then(Vec::new),
        };
        self.respond(now, job, result);
    }

    fn respond(&mut self, now: Instant, job: Job, result: GenerateResult) {
        self.counters.count_end(result.finish_reason);
        self.counters
            .request_duration_ms
            .observe(self.config.clock.ms(job.received, now));
        let fields = [
            ("request_id", id_value(&job.id)),
            (
                "finish_reason",
                serde_json::to_value(result.finish_reason).unwrap_or_default(),
            ),
            ("prompt_tokens", result.usage.prompt_tokens.into()),
            ("completion_tokens", result.usage.completion_tokens.into()),
            ("ttft_ms", rounded(result.timings.ttft_ms)),
            (
                "predicted_per_second",
                rounded(result.timings.predicted_per_second),
            ),
        ];
        self.record(now, Level::Info, "execute_end", &fields);
        self.log.flush();
        self.answer(job.id, MethodResult::Generate(Box::new(result)));
    }

    /// Ends a `generate` that was taken out of `active` with an error, which carries what was used so far.
    pub(super) fn fail_generate(&mut self, now: Instant, active: Active, error: ErrorObject) {
        let error = match active.work {
            Work::Resolving(_) | Work::Preparing(_) => error,
            Work::Running(mut run) => {
                self.release(&active.job.id, &mut run);
                error.with_usage(run.usage())
            }
        };
        self.fail_job(now, &active.job, error);
    }

    /// Answers an accepted `generate` with an error.
    pub(super) fn fail_job(&mut self, now: Instant, job: &Job, error: ErrorObject) {
        self.counters.requests.error += 1;
        self.counters
            .request_duration_ms
            .observe(self.config.clock.ms(job.received, now));
        self.log_error(now, Some(&job.id), &error);
        self.answer_error(Some(job.id.clone()), error);
    }

    /// Takes device and pages back from a generation.
    fn release(&mut self, id: &Id, run: &mut Run) {
        let Stage::Serving(serving) = &mut self.stage else {
            return;
        };
        match run.flight {
            Flight::Forward { .. } | Flight::Sample { .. } | Flight::Score { .. } => {
                serving.device.abort();
            }
            Flight::Idle | Flight::Landed { .. } | Flight::Scored { .. } => {}
        }
        let pages = std::mem::take(&mut run.pages);
        match run.cache {
            Cache::Used => {
                let seen = run.session.seen();
                serving
                    .prefixes
                    .keep(&mut serving.pool, seen, pages, &label(id));
            }
            Cache::PassedBy => serving.pool.give_back(pages),
        }
    }

    fn timings(&self, now: Instant, job: &Job, run: &Run) -> Timings {
        let clock = self.config.clock;
        let since = |from: Option<Instant>| from.map_or(0.0, |from| clock.ms(from, now));
        let evaluated = run.session.prompt_tokens() - run.cached_tokens;
        let after_first = run.session.completion_tokens().saturating_sub(1);
        Timings {
            queue_ms: clock.ms(job.received, run.started),
            prefill_ms: run.prefilled.map_or(0.0, |end| clock.ms(run.started, end)),
            ttft_ms: run
                .first_token
                .map_or(0.0, |first| clock.ms(job.received, first)),
            decode_ms: since(run.first_token),
            prompt_per_second: run
                .prefilled
                .map_or(0.0, |end| clock.per_second(evaluated, run.started, end)),
            predicted_per_second: run
                .first_token
                .map_or(0.0, |first| clock.per_second(after_first, first, now)),
            drafted: run.drafter.as_ref().map_or(0, Drafter::drafted),
            accepted: run.drafter.as_ref().map_or(0, Drafter::accepted),
        }
    }

    fn sampling(&self, params: &GenerateParams, fits: usize, biased: usize) -> Sampling {
        let fits = u32::try_from(fits).unwrap_or(u32::MAX);
        Sampling {
            max_tokens: params.max_tokens.or(self.config.max_tokens).unwrap_or(fits),
            min_tokens: params.min_tokens,
            temperature: params.temperature,
            top_n_sigma: params.top_n_sigma,
            top_k: params.top_k,
            typical_p: params.typical_p,
            top_p: params.top_p,
            min_p: params.min_p,
            xtc: params.xtc,
            repetition_penalty: params.repetition_penalty,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            penalty_last_n: params.penalty_last_n,
            dry: params.dry.clone(),
            logit_bias_tokens: biased as u64,
            ignore_eos: params.ignore_eos,
        }
    }
}

fn finish_reason(finish: Finish) -> FinishReason {
    match finish {
        Finish::EndOfGeneration
        | Finish::StopString(_)
        | Finish::StopToken(_)
        | Finish::Grammar => FinishReason::Stop,
        Finish::MaxTokens | Finish::Context => FinishReason::Length,
        Finish::Cancelled => FinishReason::Cancelled,
        Finish::Timeout => FinishReason::Timeout,
    }
}

fn stop_reason(finish: Finish, stop: &[String]) -> Option<StopReason> {
    match finish {
        Finish::EndOfGeneration => Some(StopReason::Eos),
        Finish::StopString(index) => stop.get(index).cloned().map(StopReason::StopString),
        Finish::StopToken(token) => Some(StopReason::StopToken(token)),
        Finish::Grammar => Some(StopReason::Grammar),
        Finish::MaxTokens => Some(StopReason::MaxTokens),
        Finish::Context => Some(StopReason::Context),
        Finish::Cancelled | Finish::Timeout => None,
    }
}
