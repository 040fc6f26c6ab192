//! A line becomes a request, and a request finds who answers it.

use std::time::Instant;

use worker_orcd_protocol::codec::{Line, Reject, decode_line};
use worker_orcd_protocol::{
    Call, ErrorCode, ErrorObject, Id, Method, MethodResult, Request, ShutdownMode,
};

use super::Worker;
use super::side::SideWork;
use super::state::StateWork;
use crate::limits;

impl Worker {
    /// Takes a line of input. After [`Worker::ending`] has said `Some`, lines are not heard any more.
    pub fn handle_line(&mut self, now: Instant, line: Line<'_>) {
        if self.ending.is_some() {
            return;
        }
        match line {
            Line::TooLong { bytes } => self.answer_error(None, ErrorObject::line_too_long(bytes)),
            Line::Complete(bytes) => match decode_line(bytes) {
                Err(reject) => self.refuse(reject),
                Ok(call) => self.handle_call(now, call, bytes.len()),
            },
        }
        self.settle(now);
    }

    /// Answers a line that is no request that can be taken.
    fn refuse(&mut self, reject: Reject) {
        if reject.method == Some(Method::Generate) {
            self.counters.requests.rejected += 1;
        }
        // With an id that is taken, the error would look like the end of the request that has it.
        let id = reject.id.filter(|id| !self.is_taken(id));
        self.answer_error(id, reject.error);
    }

    fn handle_call(&mut self, now: Instant, call: Call, bytes: usize) {
        let Call { id, request } = call;
        if let Some(taken) = id.as_ref().filter(|id| self.is_taken(id)) {
            let error = ErrorObject::duplicate_id(taken.clone());
            self.count_if_generate(&request);
            return self.answer_error(None, error);
        }
        let method = request.method();
        match (id, request) {
            (id, Request::Cancel(params)) => self.cancel(now, id, &params.request_id),
            (Some(id), request) => self.handle_request(now, id, request, bytes),
            // The codec lets nothing else come without an id.
            (None, _) => self.answer_error(
                None,
                ErrorObject::new(ErrorCode::InvalidRequest, format!("{method} needs an id")),
            ),
        }
    }

    fn handle_request(&mut self, now: Instant, id: Id, request: Request, bytes: usize) {
        if self.drain.is_some() && is_new_work(&request) {
            self.count_if_generate(&request);
            return self.answer_error(Some(id), ErrorObject::shutting_down());
        }
        match request {
            Request::Initialize(params) => {
                self.log_client(now, params.client_info.as_ref());
                let ready = self.ready();
                self.answer(id, MethodResult::Initialize(Box::new(ready)));
            }
            Request::Generate(params) => self.accept_generate(now, id, params, bytes),
            Request::Cancel(params) => self.cancel(now, Some(id), &params.request_id),
            Request::Health => {
                let health = self.health(now);
                self.answer(id, MethodResult::Health(Box::new(health)));
            }
            Request::Tokenize(params) => self.accept_side(id, SideWork::tokenize(params), bytes),
            Request::Detokenize(params) => {
                self.accept_side(id, SideWork::detokenize(params), bytes)
            }
            Request::ApplyTemplate(params) => {
                self.accept_side(id, SideWork::apply_template(params), bytes);
            }
            Request::SaveState(params) => {
                self.accept_side(id, SideWork::State(StateWork::Save(params)), bytes);
            }
            Request::LoadState(params) => {
                self.accept_side(id, SideWork::State(StateWork::Load(params)), bytes);
            }
            Request::Metrics(params) => {
                let metrics = self.metrics(now, params.format);
                self.answer(id, MethodResult::Metrics(Box::new(metrics)));
            }
            Request::Shutdown(params) => self.accept_shutdown(now, id, params.mode),
        }
    }

    fn accept_shutdown(&mut self, now: Instant, id: Id, mode: ShutdownMode) {
        if self.shutdowns.len() >= limits::SIDE_QUEUE_MAX {
            return self.answer_error(
                Some(id),
                ErrorObject::queue_full(limits::SIDE_QUEUE_MAX as u64),
            );
        }
        self.shutdowns.push(id);
        match mode {
            ShutdownMode::Drain => self.begin_drain(now),
            ShutdownMode::Now => {
                self.begin_drain(now);
                self.cancel_everything(now);
            }
        }
    }

    fn count_if_generate(&mut self, request: &Request) {
        if let Request::Generate(_) = request {
            self.counters.requests.rejected += 1;
        }
    }
}

/// Whether a worker that drains refuses it: what asks for work does, what asks how it stands or tells it to end does not.
fn is_new_work(request: &Request) -> bool {
    match request {
        Request::Generate(_)
        | Request::Tokenize(_)
        | Request::Detokenize(_)
        | Request::ApplyTemplate(_)
        | Request::SaveState(_)
        | Request::LoadState(_) => true,
        Request::Initialize(_)
        | Request::Cancel(_)
        | Request::Health
        | Request::Metrics(_)
        | Request::Shutdown(_) => false,
    }
}
