//! Each event that a worker says, held against the model.

use std::time::Instant;

use worker_orcd_protocol::{
    ErrorCode, ErrorObject, FinishReason, GenerateResult, HealthResult, Id, MethodResult, Metrics,
    MetricsFormat, Notification, Outgoing, Phase, Progress, PromptLogprobs, Started, Status,
    StopReason, Token, Usage,
};

use super::model::{Cancels, Due, Job, Model};
use super::script::Answer;
use super::wish::Wish;
use crate::support::{END, Failure, Script};

impl Model {
    /// Takes the next thing that the worker says.
    pub fn take(&mut self, now: Instant, event: &Outgoing, script: &Script) {
        assert_eq!(self.fatal, None, "something follows fatal: {event:?}");
        if let Some((id, due)) = self.due.take()
            && self.is_due(&id, &due, event, script)
        {
            return;
        }
        match event {
            Outgoing::Notification(notification) => self.take_notification(notification, script),
            Outgoing::Error { id: None, error } => panic!("nobody asked for {error:?}"),
            Outgoing::Error {
                id: Some(id),
                error,
            } => self.take_error(id, error, script),
            Outgoing::Result { id, result } => match result {
                MethodResult::Generate(result) => self.take_end(now, id, result, script),
                MethodResult::Shutdown(_) => self.take_shutdown(id),
                MethodResult::Tokenize(_)
                | MethodResult::Detokenize(_)
                | MethodResult::ApplyTemplate(_)
                | MethodResult::SaveState(_)
                | MethodResult::LoadState(_) => self.take_side(id, result),
                MethodResult::Initialize(_)
                | MethodResult::Cancel(_)
                | MethodResult::Health(_)
                | MethodResult::Metrics(_) => panic!("nobody asked for {event:?}"),
            },
        }
    }

    /// Whether the event is what has to be said at once. If not, only a queue that was not full excuses that.
    fn is_due(&mut self, id: &Option<Id>, due: &Due, event: &Outgoing, script: &Script) -> bool {
        if let Due::PerhapsFull = due {
            let full = matches!(event, Outgoing::Error { id: to, error }
                if to == id && error.data.code == ErrorCode::QueueFull);
            if full {
                self.jobs.pop_back();
                self.counts.requests.rejected += 1;
            }
            return full;
        }
        match (due, event) {
            (Due::Error(code), Outgoing::Error { id: to, error }) => {
                assert_eq!((to, &error.data.code), (id, code), "{error:?}");
            }
            (due, Outgoing::Result { id: to, result }) => {
                assert_eq!(Some(to), id.as_ref(), "{due:?} was due");
                self.check_answer(due, result, script);
            }
            (due, event) => panic!("{due:?} for {id:?} was due: {event:?}"),
        }
        true
    }

    fn check_answer(&self, due: &Due, result: &MethodResult, script: &Script) {
        match (due, result) {
            (Due::Found(found), MethodResult::Cancel(cancel)) => assert_eq!(cancel.found, *found),
            (Due::Health, MethodResult::Health(health)) => self.check_health(health),
            (Due::Ready, MethodResult::Initialize(ready)) => {
                assert_eq!(ready.model.is_some(), self.is_ready);
            }
            (Due::Metrics(format), MethodResult::Metrics(result)) => match format {
                MetricsFormat::Prometheus => assert!(result.text.is_some()),
                MetricsFormat::Json => {
                    self.check_metrics(result.metrics.as_ref().expect("metrics"), script);
                }
            },
            (due, result) => panic!("{due:?} was due: {result:?}"),
        }
    }

    fn check_health(&self, health: &HealthResult) {
        let active = health.active_request.as_ref();
        self.check_depth(health.queue_depth, usize::from(active.is_some()));
        if let Some(active) = active {
            assert_eq!(Some(active), self.jobs.front().map(|job| &job.id));
        }
        let status = match (self.is_ready, self.drain, self.jobs.is_empty()) {
            (false, _, _) => Status::Starting,
            (true, Some(_), _) => Status::Draining,
            (true, None, true) => Status::Ready,
            (true, None, false) => Status::Busy,
        };
        assert_eq!(health.status, status);
    }

    fn check_depth(&self, depth: u64, active: usize) {
        let depth = depth as usize;
        assert!(depth <= self.facts.queue_max, "{depth} wait");
        assert_eq!(depth + active, self.jobs.len(), "the queue's depth");
        assert!(
            active == 1 || self.running().is_none(),
            "one runs and none is active"
        );
    }

    fn check_metrics(&self, metrics: &Metrics, script: &Script) {
        let counts = &self.counts;
        assert_eq!(metrics.requests, counts.requests);
        assert_eq!(metrics.tokens.prompt, counts.prompt_tokens);
        self.check_depth(metrics.queue_depth, metrics.active_requests as usize);
        let ended = counts.requests;
        let ended = ended.stop + ended.length + ended.cancelled + ended.timeout + ended.error;
        assert_eq!(metrics.request_duration_ms.count, ended);
        let completion = metrics.tokens.completion;
        let first = metrics.time_to_first_token_ms.count;
        assert_eq!(metrics.inter_token_ms.count + first, completion);
        let running = match self.running() {
            None => 0..=0,
            Some(job) if job.wish.stream => job.told..=job.told,
            // The last token that was drawn may not have been looked at.
            Some(job) => {
                let drawn = job.drawn(script).len();
                drawn.saturating_sub(1)..=drawn
            }
        };
        let running_told = completion - counts.completion_tokens;
        assert!(
            running.contains(&(running_told as usize)),
            "{completion} tokens"
        );
        assert_eq!(first, counts.with_tokens + u64::from(running_told > 0));
    }

    fn take_notification(&mut self, notification: &Notification, script: &Script) {
        match notification {
            Notification::Progress(progress) => self.take_progress(progress),
            Notification::Ready(ready) => {
                assert!(!self.is_ready && ready.model.is_some());
                self.is_ready = true;
            }
            Notification::Started(started) => self.take_started(started, script),
            Notification::PromptLogprobs(piece) => self.take_prompt_logprobs(piece),
            Notification::Token(token) => self.take_token(token, script),
            Notification::Fatal(fatal) => self.fatal = Some(fatal.error.data.code),
        }
    }

    fn take_progress(&mut self, progress: &Progress) {
        let Progress {
            phase,
            processed,
            total,
            request_id,
            ..
        } = progress;
        assert!(processed <= total);
        if *phase == Phase::Load {
            return assert!(!self.is_ready, "the load goes on after ready");
        }
        let job = self.jobs.front_mut().expect("somebody who makes progress");
        assert_eq!(request_id.as_ref(), Some(&job.id));
        assert!(job.wish.return_progress && job.began.is_some() && job.told == 0);
        assert_eq!(*total as usize, job.prompt_tokens());
        match job.prefilled {
            None => assert_eq!(*processed, job.cached),
            Some(before) => assert!(*processed > before),
        }
        job.prefilled = Some(*processed);
    }

    fn take_started(&mut self, started: &Started, script: &Script) {
        let job = self.jobs.front_mut().expect("somebody who starts");
        assert_eq!(started.request_id, job.id, "not first in, first out");
        assert!(self.is_ready && job.began.is_none());
        assert!(started.cached_tokens < started.prompt_tokens);
        job.cached = started.cached_tokens;
        assert_eq!(
            job.tokens_max(&self.facts).map(drop),
            Ok(()),
            "it cannot start"
        );
        assert_eq!(started.prompt_tokens as usize, job.prompt_tokens());
        assert_eq!(started.seed, job.wish.seed.unwrap_or(started.seed));
        job.began = Some(script.drawn.len());
        self.counts.prompt_tokens += started.prompt_tokens;
    }

    fn take_prompt_logprobs(&mut self, piece: &PromptLogprobs) {
        let job = self.jobs.front_mut().expect("somebody who has a prompt");
        assert_eq!(piece.request_id, job.id, "a prompt of who does not run");
        assert!(job.wish.stream && job.began.is_some() && job.told == 0);
        let wanted = job.wish.prompt_logprobs.expect("they were asked for") as usize;
        let prompt = job.wish.prompt.as_ref().expect("it runs");
        assert_eq!(piece.from as usize, job.prompt_told);
        for entry in &piece.entries {
            let is_first = job.prompt_told == 0;
            assert_eq!(Some(&entry.token_id), prompt.get(job.prompt_told));
            assert_eq!(entry.logprob.is_none(), is_first);
            let alternatives = if is_first { 0 } else { wanted };
            assert_eq!(entry.top_logprobs.len(), alternatives);
            job.prompt_told += 1;
        }
    }

    fn take_token(&mut self, token: &Token, script: &Script) {
        let job = self.jobs.front_mut().expect("somebody who has tokens");
        assert_eq!(token.request_id, job.id, "a token of who does not run");
        assert!(job.wish.stream && job.began.is_some());
        assert_eq!(token.index as usize, job.told);
        if job.wish.prompt_logprobs.is_some() {
            assert_eq!(job.prompt_told, job.prompt_tokens());
        }
        assert_eq!(Some(&token.token_id), job.drawn(script).get(job.told));
        assert_eq!(token.logprob.is_some(), job.wish.logprobs.is_some());
        assert_eq!(
            token.top_logprobs.len(),
            job.wish.logprobs.unwrap_or(0) as usize
        );
        job.told += 1;
        job.text.push_str(&token.text);
    }

    fn take_error(&mut self, id: &Id, error: &ErrorObject, script: &Script) {
        let code = error.data.code;
        if let Some(at) = self.jobs.iter().position(|job| job.id == *id) {
            let job = self.jobs.remove(at).expect("a job");
            self.counts.requests.error += 1;
            self.check_failure(at, &job, error, script);
        } else if let Some(at) = self.side.iter().position(|side| side.id == *id) {
            let side = self.side.remove(at).expect("a side job");
            let is_answer = match side.answer {
                Answer::Error(expected) => expected == code,
                Answer::Result(_) => false,
                Answer::State => matches!(
                    code,
                    ErrorCode::InvalidParams | ErrorCode::VramOom | ErrorCode::Internal
                ),
            };
            let is_end = code == ErrorCode::ShuttingDown && self.cancels == Cancels::Everybody;
            if !(is_end || at == 0 && is_answer) {
                self.needs_fatal = Some(code);
            }
        } else if self.shutdowns.contains(id) {
            self.shutdowns.retain(|other| other != id);
            self.needs_fatal = Some(code);
        } else {
            panic!("{id} has no request: {error:?}");
        }
    }

    fn check_failure(&mut self, at: usize, job: &Job, error: &ErrorObject, script: &Script) {
        let code = error.data.code;
        if job.began.is_some() {
            let usage = error.data.usage.expect("what was used");
            self.count_usage(job, &usage);
            assert!(job.drawn(script).len() - usage.completion_tokens as usize <= 1);
            match code {
                ErrorCode::Internal => assert!(script.has_failed(Failure::Step), "{error:?}"),
                _ => self.needs_fatal = Some(code),
            }
        } else {
            // A page that the cache shares has to be copied before a job starts, and that can fail.
            let copy_failed = code == ErrorCode::Internal && script.has_failed(Failure::Step);
            let is_own = job.tokens_max(&self.facts) == Err(code) || copy_failed;
            if at > 0 || !self.is_ready || !is_own {
                self.needs_fatal = Some(code);
            }
        }
    }

    fn take_shutdown(&mut self, id: &Id) {
        assert!(self.shutdowns.contains(id), "{id} asked for no shutdown");
        assert!(self.jobs.is_empty() && self.side.is_empty(), "not drained");
        self.shutdowns.retain(|other| other != id);
    }

    fn take_side(&mut self, id: &Id, result: &MethodResult) {
        let side = self.side.pop_front().expect("a request for the host");
        assert_eq!(side.id, *id);
        match side.answer {
            Answer::Result(expected) => assert_eq!(expected, *result),
            Answer::Error(code) => panic!("{id} should have had {code:?}"),
            Answer::State => {
                let is_state = matches!(
                    result,
                    MethodResult::SaveState(_) | MethodResult::LoadState(_)
                );
                assert!(is_state, "{result:?}");
            }
        }
    }

    fn count_usage(&mut self, job: &Job, usage: &Usage) {
        let completion = usage.completion_tokens;
        assert_eq!(usage.prompt_tokens as usize, job.prompt_tokens());
        assert_eq!(usage.total_tokens, usage.prompt_tokens + completion);
        assert_eq!(usage.prompt_tokens_details.cached_tokens, job.cached);
        assert!(
            !job.wish.stream || job.told as u64 == completion,
            "tokens were not told"
        );
        self.counts.completion_tokens += completion;
        self.counts.with_tokens += u64::from(completion > 0);
    }

    fn take_end(&mut self, now: Instant, id: &Id, result: &GenerateResult, script: &Script) {
        let at = self.jobs.iter().position(|job| job.id == *id);
        let job = self
            .jobs
            .remove(at.expect("a job that ends"))
            .expect("a job");
        let counts = &mut self.counts.requests;
        match result.finish_reason {
            FinishReason::Stop => counts.stop += 1,
            FinishReason::Length => counts.length += 1,
            FinishReason::Cancelled => counts.cancelled += 1,
            FinishReason::Timeout => counts.timeout += 1,
        }
        match result.finish_reason {
            FinishReason::Stop | FinishReason::Length => assert!(job.began.is_some()),
            FinishReason::Cancelled => assert!(
                self.cancels == Cancels::Everybody || self.cancels == Cancels::One(job.id.clone()),
                "nobody cancelled {id}"
            ),
            FinishReason::Timeout => assert!(job.deadline.is_some_and(|deadline| deadline <= now)),
        }
        assert_eq!(result.text.is_some(), !job.wish.stream);
        if job.began.is_none() {
            assert_eq!(result.usage, Usage::default());
            assert_eq!(
                result.tail.len() + result.text.as_ref().map_or(0, String::len),
                0
            );
            return;
        }
        self.count_usage(&job, &result.usage);
        let wanted = job.tokens_max(&self.facts).expect("it has started");
        job.check_tokens(result, wanted, script);
    }
}

impl Job {
    fn prompt_tokens(&self) -> usize {
        self.wish.prompt.as_ref().map_or(0, Vec::len)
    }

    /// The tokens that the device has drawn for it, while it runs or as it ends.
    fn drawn<'a>(&self, script: &'a Script) -> &'a [u32] {
        self.began.map_or(&[], |began| &script.drawn[began..])
    }

    /// Text and reason of the end follow from the tokens that were drawn.
    fn check_tokens(&self, result: &GenerateResult, wanted: usize, script: &Script) {
        let drawn = self.drawn(script);
        let completion = result.usage.completion_tokens as usize;
        assert!(completion <= wanted && completion <= drawn.len());
        let tokens = &drawn[..completion];
        let whole = text_of(tokens);
        let (kept, stop) = self.wish.cut(&whole);
        let text = match &result.text {
            Some(text) => text.clone(),
            None => format!("{}{}", self.text, result.tail),
        };
        assert_eq!(text, kept, "the text of {tokens:?}");
        let is_end = tokens.last() == Some(&END) && !self.wish.ignore_eos;
        match (result.finish_reason, &result.stop_reason) {
            (FinishReason::Stop, Some(StopReason::Eos)) => assert!(is_end),
            (FinishReason::Stop, Some(StopReason::StopString(found))) => {
                assert_eq!(Some(found.as_str()), stop);
            }
            (FinishReason::Length, Some(StopReason::MaxTokens | StopReason::Context)) => {
                assert!(completion == wanted && !is_end);
            }
            (FinishReason::Cancelled | FinishReason::Timeout, None) => {
                // One more may have been drawn that nobody has looked at.
                assert!(drawn.len() - completion <= 1 && !is_end);
                return;
            }
            (reason, detail) => panic!("{reason:?} because of {detail:?}"),
        }
        assert_eq!(drawn.len(), completion, "tokens were drawn after the last");
        let entries = result.logprobs.as_ref().map(Vec::len);
        let wanted = self.wish.logprobs.filter(|_| !self.wish.stream);
        assert_eq!(entries, wanted.map(|_| completion));
        let entries = result.prompt_logprobs.as_ref().map(Vec::len);
        let wanted = self.wish.prompt_logprobs.filter(|_| !self.wish.stream);
        assert_eq!(entries, wanted.map(|_| self.prompt_tokens()));
    }
}

impl Wish {
    /// The text up to the stop string that is complete first, and that; of several the longest, of equals the first.
    fn cut<'a>(&self, text: &'a str) -> (&'a str, Option<&'static str>) {
        let found = self.stop.iter().filter_map(|stop| {
            let start = text.find(stop)?;
            Some((start + stop.len(), start, *stop))
        });
        match found.min() {
            Some((_, start, stop)) => (&text[..start], Some(stop)),
            None => (text, None),
        }
    }
}

/// The text of tokens that are bytes; control tokens have none.
fn text_of(tokens: &[u32]) -> String {
    let bytes: Vec<u8> = tokens
        .iter()
        .filter_map(|t| u8::try_from(*t).ok())
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
