//! What a worker may say, and when: a model of it that knows the requests, the clock and the device, and that every line and
//! every event is held against.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use worker_orcd::device::PAGE_TOKENS;
use worker_orcd::limits;
use worker_orcd::worker::{Connection, Signal, Worker};
use worker_orcd_protocol::{ErrorCode, Exit, Id, MetricsFormat, RequestCounts, ShutdownMode};

use super::script::{Answer, Ask, Saying, Spoken};
use super::wish::Wish;
use crate::support::{DRAIN, Failure, Script};

/// What the worker was started with.
pub struct Facts {
    pub context_length: usize,
    pub pages: usize,
    pub queue_max: usize,
    pub max_tokens: Option<u32>,
    pub timeout_ms: Option<u64>,
    /// How the load ends, where it fails.
    pub load_fails: Option<Exit>,
}

/// A `generate` that was accepted and has no response yet.
pub struct Job {
    pub id: Id,
    pub wish: Box<Wish>,
    pub bytes: usize,
    pub deadline: Option<Instant>,
    /// Once it has started: where its tokens begin among those that the device has drawn.
    pub began: Option<usize>,
    /// Tokens that were told.
    pub told: usize,
    /// Tokens of its prompt whose log-probabilities were told.
    pub prompt_told: usize,
    pub text: String,
    /// Tokens of its prompt that were said to need no evaluation.
    pub cached: u64,
    /// Tokens of its prompt that were told to be evaluated.
    pub prefilled: Option<u64>,
}

/// A request that the host alone answers.
pub struct Side {
    pub id: Id,
    pub answer: Answer,
    pub bytes: usize,
}

/// What has to be said at once.
#[derive(Debug)]
pub enum Due {
    Error(ErrorCode),
    /// QUEUE_FULL, or nothing: nobody outside can tell whether the first job still waits.
    PerhapsFull,
    Found(bool),
    Health,
    Metrics(MetricsFormat),
    Ready,
}

/// Who may end as cancelled in this call, and has to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cancels {
    Nobody,
    One(Id),
    Everybody,
}

/// What was counted, as `metrics` has to tell it.
#[derive(Default)]
pub struct Counts {
    pub requests: RequestCounts,
    pub prompt_tokens: u64,
    /// Of requests that have ended.
    pub completion_tokens: u64,
    /// Requests that have ended and had tokens.
    pub with_tokens: u64,
}

pub struct Model {
    pub facts: Facts,
    pub jobs: VecDeque<Job>,
    pub side: VecDeque<Side>,
    pub shutdowns: Vec<Id>,
    pub is_ready: bool,
    pub drain: Option<Option<Instant>>,
    pub counts: Counts,
    pub due: Option<(Option<Id>, Due)>,
    pub cancels: Cancels,
    /// An error that only a `fatal` with the same code explains.
    pub needs_fatal: Option<ErrorCode>,
    pub fatal: Option<ErrorCode>,
    /// Exits that something has happened for.
    exits: Vec<Exit>,
    terminate_signals: usize,
    /// Bytes that this call has said, whole texts left out.
    pub said_bytes: usize,
    before: Before,
}

/// How it stood before the call.
#[derive(Default)]
struct Before {
    operations: usize,
    ran: bool,
}

/// Most bytes that one call of the worker says in these scripts, whole texts left out.
const CALL_BYTES_MAX: usize = 256 * 1024;

/// Whether one more request finds room.
enum Room {
    Yes,
    No,
    /// It depends on whether the first job still waits.
    Perhaps,
}

impl Model {
    pub fn new(facts: Facts) -> Self {
        Self {
            facts,
            jobs: VecDeque::new(),
            side: VecDeque::new(),
            shutdowns: Vec::new(),
            is_ready: false,
            drain: None,
            counts: Counts::default(),
            due: None,
            cancels: Cancels::Nobody,
            needs_fatal: None,
            fatal: None,
            exits: vec![Exit::Done],
            terminate_signals: 0,
            said_bytes: 0,
            before: Before::default(),
        }
    }

    /// Notes how it stands before a call of the worker.
    pub fn before(&mut self, script: &Script) {
        self.before = Before {
            operations: script.operations - script.page_operations,
            ran: self.running().is_some(),
        };
        self.cancels = Cancels::Nobody;
        self.said_bytes = 0;
    }

    /// The job that has started.
    pub fn running(&self) -> Option<&Job> {
        self.jobs.front().filter(|job| job.began.is_some())
    }

    /// What a line has to lead to.
    pub fn hear(&mut self, now: Instant, saying: Saying) {
        let Saying { line, id, ask } = saying;
        let bytes = match line {
            Spoken::Line(line) => line.len(),
            Spoken::TooLong(_) => 0,
        };
        match ask {
            Ask::WrongGenerate(code) => {
                self.counts.requests.rejected += 1;
                self.refuse(id, code);
            }
            Ask::Wrong(code) => self.refuse(id, code),
            ask if id.as_ref().is_some_and(|id| self.is_taken(id)) => {
                self.count_rejected(&ask);
                self.due = Some((None, Due::Error(ErrorCode::DuplicateId)));
            }
            ask @ (Ask::Generate(_) | Ask::Side(_)) if self.drain.is_some() => {
                self.count_rejected(&ask);
                self.due = Some((id, Due::Error(ErrorCode::ShuttingDown)));
            }
            Ask::Generate(wish) => self.hear_generate(now, id, wish, bytes),
            Ask::Side(answer) => self.hear_side(id, answer, bytes),
            Ask::Cancel(target) => {
                let found = self.jobs.iter().any(|job| job.id == target);
                self.due = id.map(|id| (Some(id), Due::Found(found)));
                self.cancels = Cancels::One(target);
            }
            Ask::Health => self.due = Some((id, Due::Health)),
            Ask::Metrics(format) => self.due = Some((id, Due::Metrics(format))),
            Ask::Initialize => self.due = Some((id, Due::Ready)),
            Ask::Shutdown(_) if self.shutdowns.len() >= limits::SIDE_QUEUE_MAX => {
                self.due = Some((id, Due::Error(ErrorCode::QueueFull)));
            }
            Ask::Shutdown(mode) => {
                self.shutdowns.extend(id);
                self.begin_drain(now);
                if mode == ShutdownMode::Now {
                    self.cancels = Cancels::Everybody;
                }
            }
        }
    }

    /// An id that is taken does not come back with an error: it would look like the end of the request that has it.
    fn refuse(&mut self, id: Option<Id>, code: ErrorCode) {
        let id = id.filter(|id| !self.is_taken(id));
        self.due = Some((id, Due::Error(code)));
    }

    fn count_rejected(&mut self, ask: &Ask) {
        if let Ask::Generate(_) = ask {
            self.counts.requests.rejected += 1;
        }
    }

    fn hear_generate(&mut self, now: Instant, id: Option<Id>, wish: Box<Wish>, bytes: usize) {
        let room = self.room(self.jobs.len(), self.facts.queue_max, bytes);
        match room {
            Room::Yes => {}
            Room::No => {
                self.counts.requests.rejected += 1;
                self.due = Some((id, Due::Error(ErrorCode::QueueFull)));
                return;
            }
            Room::Perhaps => self.due = Some((id.clone(), Due::PerhapsFull)),
        }
        let timeout_ms = wish.timeout_ms.or(self.facts.timeout_ms);
        self.jobs.push_back(Job {
            id: id.expect("an id"),
            wish,
            bytes,
            deadline: timeout_ms.map(|ms| now + Duration::from_millis(ms)),
            began: None,
            told: 0,
            prompt_told: 0,
            text: String::new(),
            cached: 0,
            prefilled: None,
        });
    }

    fn hear_side(&mut self, id: Option<Id>, answer: Answer, bytes: usize) {
        // Side jobs do not leave their queue before they are answered, but the bytes of jobs do.
        let has_place = self.side.len() < limits::SIDE_QUEUE_MAX;
        match self.room(0, usize::MAX, bytes) {
            Room::Yes | Room::Perhaps if has_place => {}
            Room::Yes | Room::No | Room::Perhaps => {
                self.due = Some((id, Due::Error(ErrorCode::QueueFull)));
                return;
            }
        }
        let id = id.expect("an id");
        self.side.push_back(Side { id, answer, bytes });
    }

    /// Whether one more request finds room where `places` of `max` are taken or were by the first job.
    fn room(&self, places: usize, max: usize, bytes: usize) -> Room {
        let all: usize = self.jobs.iter().map(|job| job.bytes).sum::<usize>()
            + self.side.iter().map(|side| side.bytes).sum::<usize>();
        let first = self.jobs.front().map_or(0, |job| job.bytes);
        let is_full = |places: usize, held: usize| {
            places >= max || (held > 0 && held + bytes > limits::QUEUED_BYTES_MAX)
        };
        let if_it_waits = is_full(places, all);
        let if_it_runs = is_full(places.saturating_sub(1), all - first);
        match (if_it_waits, if_it_runs) {
            (false, _) => Room::Yes,
            (true, true) => Room::No,
            (true, false) if self.running().is_some() => Room::Yes,
            (true, false) if !self.is_ready || self.jobs.is_empty() => Room::No,
            (true, false) => Room::Perhaps,
        }
    }

    fn is_taken(&self, id: &Id) -> bool {
        self.jobs.iter().any(|job| job.id == *id)
            || self.side.iter().any(|side| side.id == *id)
            || self.shutdowns.contains(id)
    }

    fn begin_drain(&mut self, now: Instant) {
        self.drain.get_or_insert(now.checked_add(DRAIN));
        if !self.is_ready {
            self.cancels = Cancels::Everybody;
        }
    }

    pub fn hear_signal(&mut self, now: Instant, signal: Signal, worker: &Worker) {
        match signal {
            Signal::Interrupt => {
                self.exits.push(Exit::Interrupted);
                self.cancels = Cancels::Everybody;
            }
            Signal::Terminate => {
                self.terminate_signals += 1;
                if self.terminate_signals > 1 {
                    self.exits.push(Exit::Terminated);
                    self.cancels = Cancels::Everybody;
                } else if worker.ending().is_none() {
                    self.begin_drain(now);
                }
            }
        }
    }

    pub fn hear_lost(&mut self, _: Connection) {
        self.exits.push(Exit::PipeLost);
        self.cancels = Cancels::Everybody;
    }

    /// The time has come to `now`, and the worker is told.
    pub fn hear_time(&mut self, now: Instant) {
        if self.drain.flatten().is_some_and(|deadline| deadline <= now) {
            self.cancels = Cancels::Everybody;
        }
    }

    /// After a call that was told the time: nothing that is out of time is left.
    pub fn nothing_is_late(&self, now: Instant) {
        let late = |job: &&Job| job.deadline.is_some_and(|deadline| deadline <= now);
        if let Some(job) = self.jobs.iter().find(late) {
            panic!("the time of {} is over", job.id);
        }
    }

    /// A line that came from a file is never refused because of a full queue.
    pub fn assert_room(&self) {
        let full = matches!(self.due, Some((_, Due::Error(ErrorCode::QueueFull))));
        assert!(!full, "it was read although there is no room");
    }

    /// After a call of the worker: what has to hold then.
    pub fn after(&mut self, worker: &Worker, script: &Script) {
        match self.due.take() {
            None | Some((_, Due::PerhapsFull)) => {}
            Some((id, due)) => panic!("{due:?} for {id:?} was not said"),
        }
        match &self.cancels {
            Cancels::Nobody => {}
            Cancels::One(target) => {
                assert!(
                    self.jobs.iter().all(|job| job.id != *target),
                    "{target} goes on"
                );
            }
            Cancels::Everybody => assert!(self.jobs.is_empty(), "jobs outlive the end of all"),
        }
        assert!(
            self.jobs.len() <= self.facts.queue_max + 1,
            "more jobs than the queue holds"
        );
        assert!(
            self.said_bytes <= CALL_BYTES_MAX,
            "one call says {} bytes",
            self.said_bytes
        );
        self.device_is_idle_between_jobs(script);
        self.ends_well(worker, script);
    }

    fn device_is_idle_between_jobs(&self, script: &Script) {
        let worked = script.operations - script.page_operations != self.before.operations;
        assert!(!worked || self.before.ran, "the device works for nobody");
        assert!(
            script.flight.is_none() || self.running().is_some(),
            "the device works on after the end"
        );
    }

    fn ends_well(&mut self, worker: &Worker, script: &Script) {
        if let Some(code) = self.needs_fatal {
            assert_eq!(self.fatal, Some(code), "an error without a reason");
        }
        let Some(ending) = worker.ending() else {
            assert_eq!(self.fatal, None, "a fatal and no end");
            let drain = self.drain.flatten();
            let deadlines = self.jobs.iter().filter_map(|job| job.deadline);
            assert_eq!(worker.deadline(), deadlines.chain(drain).min());
            return;
        };
        let left = self.jobs.len() + self.side.len() + self.shutdowns.len();
        assert_eq!(left, 0, "requests have no response at the end");
        assert_eq!(
            self.fatal.is_some(),
            ending.exit != Exit::Done,
            "{ending:?}"
        );
        let lost = script.has_failed(Failure::Lost).then_some(Exit::DeviceLost);
        let mut reasons = self.exits.iter().chain(&lost).chain(&self.facts.load_fails);
        assert!(
            reasons.any(|exit| *exit == ending.exit),
            "{ending:?} has no reason"
        );
    }
}

impl Job {
    /// Tokens that it may generate, or why it cannot start.
    pub fn tokens_max(&self, facts: &Facts) -> Result<usize, ErrorCode> {
        let prompt = self.wish.prompt.as_ref().map_err(|code| *code)?.len();
        if prompt == 0 {
            return Err(ErrorCode::InvalidParams);
        }
        if prompt >= facts.context_length {
            return Err(ErrorCode::ContextOverflow);
        }
        let pool = facts.pages * PAGE_TOKENS;
        let room = facts.context_length - prompt;
        let wanted = self.wish.max_tokens.or(facts.max_tokens);
        let fits = || room.min(pool.saturating_sub(prompt).max(1));
        let tokens = wanted.map_or_else(fits, |wanted| room.min(wanted as usize));
        if (prompt + tokens).div_ceil(PAGE_TOKENS) > facts.pages {
            return Err(ErrorCode::VramOom);
        }
        Ok(tokens)
    }
}
