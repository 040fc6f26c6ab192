//! The `generate` that runs: from its prompt to its response, one piece of work at a time.

use std::time::Instant;

use worker_orcd_protocol::{
    ErrorCode, ErrorObject, Notification, Outgoing, Phase, Progress, Started, Token, TokenLogprob,
    limits as wire,
};

use super::Worker;
use super::controls::{Controls, Resolved, Resolving};
use super::lifecycle::{Stage, device_error, rounded};
use super::prompt::{Preparation, Prepared, PromptFacts};
use super::prompt_scores::{PromptScores, Target};
use super::queue::Job;
use super::report::id_value;
use super::run::{Flight, Run, check_room, reuse, top_logprobs};
use crate::device::{DeviceError, Output};
use crate::log::Level;
use crate::sampling::{Sampled, Scored, TopLogprobs};
use crate::session::{AtEnd, Finish, Read, Session, SessionError, SessionParams};

/// The `generate` that runs.
pub(super) struct Active {
    pub(super) job: Job,
    /// What it says of single tokens; empty before that is found out, and once it runs.
    controls: Controls,
    pub(super) work: Work,
}

pub(super) enum Work {
    /// What it says of single tokens is being found out; `None` only while a piece is done.
    Resolving(Option<Resolving>),
    /// Its prompt is being made; `None` only while a piece is done.
    Preparing(Option<Preparation>),
    /// The device works for it.
    Running(Box<Run>),
}

impl Active {
    /// Whether the device has done something that nobody has looked at.
    pub(super) fn has_landed(&self) -> bool {
        match &self.work {
            Work::Running(run) => {
                matches!(run.flight, Flight::Landed { .. } | Flight::Scored { .. })
            }
            Work::Resolving(_) | Work::Preparing(_) => false,
        }
    }
}

/// What a piece of work came to.
enum Piece {
    GoesOn,
    Ends(Finish),
    Fails(ErrorObject),
    DeviceLost(String),
}

impl From<Result<(), DeviceError>> for Piece {
    fn from(result: Result<(), DeviceError>) -> Self {
        match result {
            Ok(()) => Piece::GoesOn,
            Err(DeviceError::Step(reason)) => {
                Piece::Fails(ErrorObject::new(ErrorCode::Internal, reason))
            }
            Err(DeviceError::Lost(reason)) => Piece::DeviceLost(reason),
        }
    }
}

impl Worker {
    /// Does one piece of the `generate` that runs, or takes the next one from the queue.
    pub(super) fn generate_piece(&mut self, now: Instant, until: Instant) {
        let Some(mut active) = self.active.take().or_else(|| self.next_from_queue()) else {
            return;
        };
        let piece = match &active.work {
            Work::Resolving(_) => self.resolve(&mut active),
            Work::Preparing(_) => self.prepare(now, &mut active),
            Work::Running(_) => self.run(now, until, &mut active),
        };
        match piece {
            Piece::GoesOn => self.active = Some(active),
            Piece::Ends(finish) => self.end_generate(now, active, finish),
            Piece::Fails(error) => self.fail_generate(now, active, error),
            Piece::DeviceLost(reason) => {
                self.fail_generate(now, active, device_error(&reason, &self.config.device_name));
                self.device_lost(now, &reason);
            }
        }
    }

    fn next_from_queue(&mut self) -> Option<Active> {
        let job = self.queue.pop_front()?;
        self.queued_bytes = self.queued_bytes.saturating_sub(job.bytes);
        Some(Active {
            job,
            controls: Controls::default(),
            work: Work::Resolving(Some(Resolving::new())),
        })
    }

    fn resolve(&mut self, active: &mut Active) -> Piece {
        let (Stage::Serving(serving), Work::Resolving(resolving)) =
            (&mut self.stage, &mut active.work)
        else {
            return Piece::GoesOn;
        };
        let resolving = resolving.take().unwrap_or_else(Resolving::new);
        match resolving.step(&mut active.job.params, serving) {
            Ok(Resolved::GoesOn(next)) => active.work = Work::Resolving(Some(next)),
            Ok(Resolved::Done(controls)) => {
                active.controls = controls;
                active.work = Work::Preparing(Some(Preparation::Given));
            }
            Err(error) => return Piece::Fails(error),
        }
        Piece::GoesOn
    }

    fn prepare(&mut self, now: Instant, active: &mut Active) -> Piece {
        let (Stage::Serving(serving), Work::Preparing(preparation)) =
            (&self.stage, &mut active.work)
        else {
            return Piece::GoesOn;
        };
        let preparation = preparation.take().unwrap_or(Preparation::Given);
        let wall = self.config.clock.wall(now);
        match preparation.step(&mut active.job.params, serving, wall) {
            Ok(Prepared::GoesOn(next)) => {
                active.work = Work::Preparing(Some(next));
                Piece::GoesOn
            }
            Ok(Prepared::Done { tokens, facts }) => self.start(now, active, tokens, &facts),
            Err(error) => Piece::Fails(error),
        }
    }

    /// The prompt is there: the generation gets its pages and is told to have started.
    fn start(
        &mut self,
        now: Instant,
        active: &mut Active,
        prompt: Vec<u32>,
        facts: &PromptFacts,
    ) -> Piece {
        let Stage::Serving(serving) = &mut self.stage else {
            return Piece::GoesOn;
        };
        let job = &active.job;
        let max_tokens = job.params.max_tokens.or(self.config.max_tokens);
        let context_length = match max_tokens {
            Some(_) => serving.model.context_length,
            // "What fits" has to fit in the pool too.
            None => serving.fits(prompt.len() + 1),
        };
        let session = Session::new(SessionParams {
            prompt,
            context_length,
            max_tokens: max_tokens.map(|max| max as usize),
            min_tokens: job.params.min_tokens as usize,
            stop: job.params.stop.clone(),
            stop_tokens: job.params.stop_token_ids.clone(),
            at_end: if job.params.ignore_eos {
                AtEnd::GoOn
            } else {
                AtEnd::Finish
            },
        })
        .map_err(|error| session_error(&error))
        .and_then(|session| check_line(job, &session).map(|()| session))
        .and_then(|session| check_room(serving, session.tokens_max()).map(|()| session));
        let session = match session {
            Ok(session) => session,
            Err(error) => return Piece::Fails(error),
        };
        let reused = match reuse(serving, session.tokens(), &job.params) {
            Ok(reused) => reused,
            Err(error) => return Err(error).into(),
        };
        let controls = std::mem::take(&mut active.controls);
        let mut run = Run::new(now, session, reused, &job.params, controls);
        run.scores = PromptScores::wanted(&job.params, &run.session, &serving.tokenizer);
        self.tell_start(now, &active.job, &run, facts);
        active.work = Work::Running(Box::new(run));
        Piece::GoesOn
    }

    fn tell_start(&mut self, now: Instant, job: &Job, run: &Run, facts: &PromptFacts) {
        let queue_ms = self.config.clock.ms(job.received, now);
        let prompt_tokens = run.session.prompt_tokens() as u64;
        let cached_tokens = run.cached_tokens as u64;
        self.notify(Notification::Started(Started {
            request_id: job.id.clone(),
            prompt_tokens,
            cached_tokens,
            seed: job.seed,
            queue_ms,
        }));
        self.counters.tokens.prompt += prompt_tokens;
        self.counters.tokens.cached += cached_tokens;
        let fields = [
            ("request_id", id_value(&job.id)),
            ("prompt_bytes", facts.bytes.into()),
            ("prompt_sha256", facts.sha256.as_str().into()),
            ("prompt_tokens", prompt_tokens.into()),
            ("cached_tokens", cached_tokens.into()),
            ("seed", job.seed.into()),
            ("queue_ms", rounded(queue_ms)),
        ];
        self.record(now, Level::Info, "execute_start", &fields);
        self.tell_prefill(now, now, job, cached_tokens, prompt_tokens);
    }

    fn tell_prefill(
        &mut self,
        now: Instant,
        since: Instant,
        job: &Job,
        processed: u64,
        total: u64,
    ) {
        if job.params.return_progress {
            let time_ms = self.config.clock.ms(since, now);
            let request_id = Some(job.id.clone());
            let progress = Progress {
                phase: Phase::Prefill,
                processed,
                total,
                time_ms,
                request_id,
            };
            self.notify(Notification::Progress(progress));
        }
    }

    /// Looks at what the device has done and gives it its next piece, or lets it work until `until`. Not both at once: what came
    /// of the last piece is to be written before time is spent on the next one.
    fn run(&mut self, now: Instant, until: Instant, active: &mut Active) -> Piece {
        let Work::Running(run) = &mut active.work else {
            return Piece::GoesOn;
        };
        match std::mem::replace(&mut run.flight, Flight::Idle) {
            Flight::Landed {
                output,
                tokens,
                since,
            } => {
                self.count_step(since, now);
                match output {
                    Output::Forwarded => {
                        self.forwarded(now, &active.job, run, tokens);
                        self.go_on(now, &active.job, run, None)
                    }
                    Output::Sampled(sampled) => self.sampled(now, &active.job, run, sampled),
                    // Scores have a landing of their own.
                    Output::Scored(_) => self.go_on(now, &active.job, run, None),
                }
            }
            Flight::Scored { target, output } => {
                if let Output::Scored(scored) = output {
                    self.scored(now, &active.job, run, target, &scored);
                }
                self.go_on(now, &active.job, run, None)
            }
            flight @ (Flight::Idle
            | Flight::Forward { .. }
            | Flight::Sample { .. }
            | Flight::Score { .. }) => {
                run.flight = flight;
                let Stage::Serving(serving) = &mut self.stage else {
                    return Piece::GoesOn;
                };
                run.launch(serving, &active.job, now)
                    .and_then(|()| run.look_ahead())
                    .and_then(|()| run.poll(serving, until))
                    .into()
            }
        }
    }

    /// Gives the device its next piece where there is one, and tells of the tokens that nobody has been told of. A step is given first, so
    /// that the device works meanwhile: should a stop string be in the text, it is forgotten, and the position has not moved.
    fn go_on(&mut self, now: Instant, job: &Job, run: &mut Run, finish: Option<Finish>) -> Piece {
        let outcome = match finish {
            Some(finish) => Ok(Some(finish)),
            None => self.force(job, run),
        };
        let ahead = match outcome {
            Ok(None) if run.has_unseen() => self.launch(now, job, run),
            Ok(_) | Err(_) => Ok(()),
        };
        let stopped = self.tell(now, job, run);
        match (ahead, stopped, outcome) {
            (Err(lost @ DeviceError::Lost(_)), _, _) => Err(lost).into(),
            (_, Some(stop), _) => Piece::Ends(stop),
            (_, None, Err(error)) => Err(error).into(),
            (_, None, Ok(Some(finish))) => Piece::Ends(finish_of(finish, run)),
            (Err(error), None, Ok(None)) => Err(error).into(),
            (Ok(()), None, Ok(None)) => self.launch(now, job, run).into(),
        }
    }

    fn launch(&mut self, now: Instant, job: &Job, run: &mut Run) -> Result<(), DeviceError> {
        match &mut self.stage {
            Stage::Serving(serving) => run.launch(serving, job, now),
            Stage::Loading(_) | Stage::Gone => Ok(()),
        }
    }

    /// Puts tokens into the output that have to come next. They need no draw; the device sees them with its next piece. `Some` where the
    /// output ends with them.
    fn force(&mut self, job: &Job, run: &mut Run) -> Result<Option<Finish>, DeviceError> {
        let Stage::Serving(serving) = &self.stage else {
            return Ok(None);
        };
        for token in run.forced(job)? {
            let sampled = Sampled {
                token,
                logprob: None,
                top: TopLogprobs::default(),
            };
            if let Some(finish) = run.push(&serving.tokenizer, sampled) {
                return Ok(Some(finish));
            }
        }
        Ok(run.is_over().then_some(Finish::Grammar))
    }

    fn count_step(&mut self, since: Instant, now: Instant) {
        self.counters.steps_total += 1;
        self.counters.last_step_ms = Some(self.config.clock.ms(since, now));
    }

    fn forwarded(&mut self, now: Instant, job: &Job, run: &mut Run, tokens: usize) {
        let position = run.session.position();
        run.session.advance(tokens);
        if run.prefilled.is_none() {
            if let Some(scores) = &mut run.scores {
                scores.begin(position, tokens, run.session.prompt_tokens());
            }
            self.end_prefill_piece(now, job, run);
        }
    }

    /// A piece of the prompt is done, once its tokens are scored where that is wanted.
    fn end_prefill_piece(&mut self, now: Instant, job: &Job, run: &mut Run) {
        if let Some(scores) = &mut run.scores {
            if scores.next(&run.session).is_some() {
                return;
            }
            if job.params.stream {
                let told = scores.take_notification(&job.id);
                self.events.extend(told.map(Outgoing::Notification));
            }
        }
        let (processed, total) = (run.session.position(), run.session.prompt_tokens());
        self.tell_prefill(now, run.started, job, processed as u64, total as u64);
        if processed >= total {
            run.prefilled = Some(now);
        }
    }

    /// The prompt has said something of one of its tokens.
    fn scored(&mut self, now: Instant, job: &Job, run: &mut Run, target: Target, scored: &Scored) {
        let (Stage::Serving(serving), Some(scores)) = (&self.stage, &mut run.scores) else {
            return;
        };
        let entry = scores.scored(target, scored, &serving.tokenizer);
        let full = job.params.stream && !scores.has_room(&entry);
        let told = if full {
            scores.take_notification(&job.id)
        } else {
            None
        };
        scores.push(entry);
        self.events.extend(told.map(Outgoing::Notification));
        self.end_prefill_piece(now, job, run);
    }

    fn sampled(&mut self, now: Instant, job: &Job, run: &mut Run, sampled: Sampled) -> Piece {
        let Stage::Serving(serving) = &self.stage else {
            return Piece::GoesOn;
        };
        let before = run.session.tokens().last().copied();
        let kind = run.kind(&serving.tokenizer, sampled.token, before);
        if let Err(error) = run.follow(job, sampled.token, kind) {
            return Err(error).into();
        }
        let finish = run.push(&serving.tokenizer, sampled);
        self.go_on(now, job, run, finish)
    }

    /// Tells of tokens that are part of the output; `Some` where their text says that it ends.
    fn tell(&mut self, now: Instant, job: &Job, run: &mut Run) -> Option<Finish> {
        let mut untold = std::mem::take(&mut run.untold);
        let first = run.session.completion_tokens() - untold.len();
        let mut stopped = None;
        for (index, sampled) in (first..).zip(untold.drain(..)) {
            stopped = self.tell_token(now, job, run, (index, sampled));
            if stopped.is_some() {
                break;
            }
        }
        run.untold = untold; // its room
        stopped
    }

    fn tell_token(
        &mut self,
        now: Instant,
        job: &Job,
        run: &mut Run,
        (index, sampled): (usize, Sampled),
    ) -> Option<Finish> {
        let Stage::Serving(serving) = &self.stage else {
            return None;
        };
        let at = run.session.prompt_tokens() + index;
        let before = run.session.tokens().get(at.wrapping_sub(1)).copied();
        let kind = run.kind(&serving.tokenizer, sampled.token, before);
        let Read { text, stop } = run.session.read(index, kind);
        let logprob = job.params.logprobs.and(sampled.logprob);
        let top_logprobs = match job.params.logprobs {
            Some(wanted) if wanted > 0 => top_logprobs(&serving.tokenizer, &sampled.top),
            Some(_) | None => Vec::new(),
        };
        let token_id = sampled.token;
        if job.params.stream {
            let token = Token {
                request_id: job.id.clone(),
                index: index as u64,
                token_id,
                text,
                logprob,
                top_logprobs,
            };
            self.notify(Notification::Token(token));
        } else {
            run.text.push_str(&text);
            if let Some(logprob) = logprob {
                run.entries.push(TokenLogprob {
                    token_id,
                    text,
                    logprob,
                    top_logprobs,
                });
            }
        }
        self.time_token(now, job, run);
        stop.map(Finish::StopString)
    }

    fn time_token(&mut self, now: Instant, job: &Job, run: &mut Run) {
        self.counters.tokens.completion += 1;
        let clock = self.config.clock;
        match run.last_token {
            None => {
                run.first_token = Some(now);
                self.counters
                    .time_to_first_token_ms
                    .observe(clock.ms(job.received, now));
            }
            Some(last) => self.counters.inter_token_ms.observe(clock.ms(last, now)),
        }
        run.last_token = Some(now);
    }
}

/// A form that is complete with the last token that there may be has not been cut off.
fn finish_of(finish: Finish, run: &Run) -> Finish {
    match finish {
        Finish::MaxTokens | Finish::Context if run.is_over() => Finish::Grammar,
        Finish::MaxTokens
        | Finish::Context
        | Finish::EndOfGeneration
        | Finish::StopString(_)
        | Finish::StopToken(_)
        | Finish::Grammar
        | Finish::Cancelled
        | Finish::Timeout => finish,
    }
}

/// A response with token ids is one line, and those of a streamed request are short.
fn check_line(job: &Job, session: &Session) -> Result<(), ErrorObject> {
    let (tokens, most) = (session.tokens_max(), wire::RETURN_TOKEN_IDS_STREAM_MAX);
    if !(job.params.return_token_ids && job.params.stream) || tokens <= most {
        return Ok(());
    }
    Err(ErrorObject::invalid_param(
        "return_token_ids",
        format!("tokens {most}"),
        format!(
            "return_token_ids: prompt and max_tokens come to {tokens} tokens, and the response of a streamed request is a line of at most {most}; lower max_tokens, or ask with stream false"
        ),
    ))
}

fn session_error(error: &SessionError) -> ErrorObject {
    match error {
        SessionError::ContextOverflow {
            prompt_tokens,
            context_length,
        } => ErrorObject::context_overflow(*prompt_tokens as u64, None, *context_length as u64),
        SessionError::EmptyPrompt => {
            ErrorObject::new(ErrorCode::InvalidParams, error.to_string()).with_param("prompt")
        }
    }
}
