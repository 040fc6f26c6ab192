//! `generate` requests on their way in and out: admission, ids, cancelling, time limits.

use std::time::{Duration, Instant};

use worker_orcd_protocol::{
    CancelResult, ErrorCode, ErrorObject, GenerateParams, Id, MethodResult,
};

use super::Worker;
use crate::limits;
use crate::sampling::uniform;
use crate::session::Finish;

/// A `generate` that was accepted.
pub(super) struct Job {
    pub(super) id: Id,
    pub(super) params: Box<GenerateParams>,
    /// Bytes of its line, while it waits.
    pub(super) bytes: usize,
    pub(super) received: Instant,
    pub(super) deadline: Option<Instant>,
    pub(super) seed: u64,
}

impl Worker {
    /// Takes a `generate` into the queue, or says why not.
    pub(super) fn accept_generate(
        &mut self,
        now: Instant,
        id: Id,
        params: Box<GenerateParams>,
        bytes: usize,
    ) {
        if let Err(error) = self.check_room(bytes, self.queue.len(), self.config.queue_max) {
            self.counters.requests.rejected += 1;
            self.answer_error(Some(id), error);
            return;
        }
        let timeout_ms = params.timeout_ms.or(self.config.timeout_ms);
        // A deadline beyond what the clock can tell is none.
        let deadline = timeout_ms.and_then(|ms| now.checked_add(Duration::from_millis(ms)));
        let seed = params.seed.unwrap_or_else(|| self.draw_seed());
        self.queued_bytes += bytes;
        self.queue.push_back(Job {
            id,
            params,
            bytes,
            received: now,
            deadline,
            seed,
        });
    }

    /// Whether one more request may wait beside `waiting` of at most `max`.
    pub(super) fn check_room(
        &self,
        bytes: usize,
        waiting: usize,
        max: usize,
    ) -> Result<(), ErrorObject> {
        if waiting >= max {
            return Err(ErrorObject::queue_full(max as u64));
        }
        let total = self.queued_bytes.saturating_add(bytes);
        if self.queued_bytes > 0 && total > limits::QUEUED_BYTES_MAX {
            return Err(ErrorObject::new(
                ErrorCode::QueueFull,
                format!(
                    "the requests that wait and this one have {total} bytes, at most {} are taken; try again when one has ended",
                    limits::QUEUED_BYTES_MAX
                ),
            ));
        }
        Ok(())
    }

    /// Whether another line can be taken without QUEUE_FULL, whatever it asks for: what a reader of a file waits for.
    pub fn has_room(&self) -> bool {
        self.queue.len() < self.config.queue_max
            && self.side.len() < limits::SIDE_QUEUE_MAX
            && self.queued_bytes < limits::QUEUED_BYTES_MAX / 2
    }

    /// Whether a request with this id waits or runs.
    pub(super) fn is_taken(&self, id: &Id) -> bool {
        self.active.iter().any(|active| active.job.id == *id)
            || self.queue.iter().any(|job| job.id == *id)
            || self.side.iter().any(|job| job.id == *id)
            || self.shutdowns.contains(id)
    }

    /// Answers a `cancel` (unless it was a notification) and ends its target.
    pub(super) fn cancel(&mut self, now: Instant, id: Option<Id>, target: &Id) {
        let waiting = self.queue.iter().position(|job| job.id == *target);
        let runs = self.active.iter().any(|active| active.job.id == *target);
        if let Some(id) = id {
            let found = waiting.is_some() || runs;
            self.answer(id, MethodResult::Cancel(CancelResult { found }));
        }
        if let Some(at) = waiting {
            self.end_waiting(now, at, Finish::Cancelled);
        } else if runs {
            self.end_active(now, Finish::Cancelled);
        }
    }

    /// Ends all jobs whose time is over.
    pub(super) fn end_what_is_late(&mut self, now: Instant) {
        let late = |job: &Job| job.deadline.is_some_and(|deadline| deadline <= now);
        if self.active.as_ref().is_some_and(|active| late(&active.job)) {
            self.end_active(now, Finish::Timeout);
        }
        while let Some(at) = self.queue.iter().position(late) {
            self.end_waiting(now, at, Finish::Timeout);
        }
    }

    /// Ends everything that runs or waits as cancelled; what only the host answers is refused.
    pub(super) fn cancel_everything(&mut self, now: Instant) {
        self.end_active(now, Finish::Cancelled);
        while !self.queue.is_empty() {
            self.end_waiting(now, 0, Finish::Cancelled);
        }
        self.refuse_side_jobs(&ErrorObject::shutting_down());
    }

    /// Answers everything that runs or waits with `error`.
    pub(super) fn fail_everything(&mut self, now: Instant, error: &ErrorObject) {
        if let Some(active) = self.active.take() {
            self.fail_generate(now, active, error.clone());
        }
        while let Some(job) = self.queue.pop_front() {
            self.queued_bytes = self.queued_bytes.saturating_sub(job.bytes);
            self.fail_job(now, &job, error.clone());
        }
        self.refuse_side_jobs(error);
        for id in std::mem::take(&mut self.shutdowns) {
            self.answer_error(Some(id), error.clone());
        }
    }

    fn refuse_side_jobs(&mut self, error: &ErrorObject) {
        while let Some(job) = self.side.pop_front() {
            self.queued_bytes = self.queued_bytes.saturating_sub(job.bytes);
            self.answer_error(Some(job.id), error.clone());
        }
    }

    fn end_waiting(&mut self, now: Instant, at: usize, finish: Finish) {
        if let Some(job) = self.queue.remove(at) {
            self.queued_bytes = self.queued_bytes.saturating_sub(job.bytes);
            self.end_unstarted(now, job, finish);
        }
    }

    fn end_active(&mut self, now: Instant, finish: Finish) {
        if let Some(active) = self.active.take() {
            self.end_generate(now, active, finish);
        }
    }

    /// A seed below 2^53, so that every client's numbers can hold it.
    fn draw_seed(&mut self) -> u64 {
        let seed = (uniform(self.config.entropy, self.seeds_drawn) * (1u64 << 53) as f64) as u64;
        self.seeds_drawn += 1;
        seed
    }
}
