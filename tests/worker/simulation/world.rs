//! What is around a worker: a client's lines on their way in, a reader of stdout, a device that may fail, a clock. It drives the
//! worker as the process does.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

use serde::de::IgnoredAny;
use worker_orcd::device::{DeviceError, PAGE_TOKENS};
use worker_orcd::limits;
use worker_orcd::load::LoadError;
use worker_orcd::log::Level;
use worker_orcd::worker::{ClockMode, Pressure};
use worker_orcd_protocol::codec::{Line, encode_line};
use worker_orcd_protocol::{Exit, MethodResult, Notification, Outgoing, limits as wire};

use super::dice::Dice;
use super::model::{Facts, Model};
use super::script::{Act, Author, Reader, SECRET, Saying, Spoken, TEMPLATE, TEMPLATE_THAT_REFUSES};
use super::seen::Seen;
use crate::support::{END, Failure, Loading, PAD, Rig, Setup};

/// Most turns in which a worker comes to rest.
const TURNS_MAX: usize = 100_000;

/// Most bytes that wait for a reader. At the point at which the process stops to read, one call may still answer everything that
/// waits, and one of the answers may be a whole text with its log-probabilities.
const UNREAD_BYTES_MAX: usize = wire::OUTPUT_PAUSE_INPUT_BYTES + 1024 * 1024;

pub struct World {
    rig: Rig,
    model: Model,
    author: Author,
    /// Lines that the worker has not been given yet.
    inbox: VecDeque<Saying>,
    input: Input,
    source: Source,
    reader: Reader,
    /// Bytes of output that nobody has read.
    unread: usize,
    line: Vec<u8>,
    transcript: Transcript,
    seen: Seen,
}

/// How it stands with stdin.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Input {
    Open,
    /// It ends after the lines that are there.
    Ends,
    Ended,
}

/// Where lines come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Pipe,
    /// A file is only read while there is room.
    File,
}

/// Whether what happens is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Transcript {
    None,
    Print,
}

/// Runs the script of a seed.
pub fn run_script(seed: u64, transcript: Transcript) -> Seen {
    let mut world = World::new(Dice::new(seed), transcript);
    let acts = world.author.dice.throw(40) + 4;
    for _ in 0..acts {
        let act = world.author.act();
        world.act(act);
        let turns = world.author.dice.throw(8);
        world.turns(turns);
    }
    world.end();
    world.seen.exits.extend(world.rig.exit_code());
    world.seen.requests = world.model.counts.requests;
    world.seen
}

impl World {
    fn new(mut dice: Dice, transcript: Transcript) -> Self {
        let (setup, load_fails) = setup(&mut dice);
        let facts = Facts {
            context_length: setup.context_length,
            pages: setup.pages,
            queue_max: setup.queue_max,
            max_tokens: setup.max_tokens,
            timeout_ms: setup.timeout_ms,
            load_fails,
        };
        let template = setup.template;
        let rig = Rig::unloaded(setup);
        prepare_device(&mut dice, &rig);
        let near = |limit: usize| limit - 3000;
        let unread = match dice.throw(12) {
            0 => near(wire::OUTPUT_PAUSE_DECODE_BYTES),
            1 => near(wire::OUTPUT_PAUSE_INPUT_BYTES),
            _ => 0,
        };
        Self {
            rig,
            model: Model::new(facts),
            inbox: VecDeque::new(),
            input: Input::Open,
            source: dice.pick(&[Source::Pipe, Source::Pipe, Source::File]),
            reader: if unread == 0 {
                Reader::TakesAll
            } else {
                Reader::Takes(dice.throw(200))
            },
            unread,
            line: Vec::new(),
            transcript,
            seen: Seen::default(),
            author: Author::new(dice, template),
        }
    }

    fn note(&self, words: impl FnOnce() -> String) {
        if self.transcript == Transcript::Print {
            let ms = self.rig.now.duration_since(self.rig.start).as_millis();
            eprintln!("{ms:>9} {}", words());
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Say(saying) if self.input == Input::Open => self.inbox.push_back(saying),
            Act::Say(_) => {}
            Act::EndOfInput if self.input == Input::Open => self.input = Input::Ends,
            Act::EndOfInput => {}
            Act::Signal(signal) => {
                self.note(|| format!("{signal:?}"));
                self.before();
                self.model
                    .hear_signal(self.rig.now, signal, &self.rig.worker);
                self.rig.worker.signal(self.rig.now, signal);
                self.after();
            }
            Act::Lost(connection) => {
                self.note(|| format!("{connection:?} is lost"));
                self.before();
                self.model.hear_lost(connection);
                self.rig.worker.connection_lost(self.rig.now, connection);
                self.after();
            }
            Act::Sleep(duration) => {
                self.rig.now += duration;
                self.note(|| format!("{duration:?} later"));
            }
            Act::Reader(reader) => {
                self.note(|| format!("the reader: {reader:?}"));
                self.reader = reader;
            }
            Act::Turns(turns) => self.turns(turns),
        }
    }

    fn turns(&mut self, turns: usize) {
        for _ in 0..turns {
            self.turn();
        }
    }

    /// One turn of the loop: lines, time, output, and a piece of work unless the reader is too far behind.
    fn turn(&mut self) {
        for _ in 0..limits::LINES_PER_TURN_MAX {
            if !self.takes_lines() {
                break;
            }
            match self.inbox.pop_front() {
                Some(saying) => self.hand_over(saying),
                None => self.end_input(),
            }
        }
        self.tick();
        self.read();
        let pressure = Pressure::of(self.unread);
        let is_paused = pressure != Pressure::None && self.rig.worker.wants_work(Pressure::None);
        let is_deaf = pressure == Pressure::PauseInput && !self.inbox.is_empty();
        self.seen.turns_without_work += u64::from(is_paused);
        self.seen.turns_without_input += u64::from(is_deaf);
        if self.rig.worker.wants_work(pressure) {
            self.rig.now += Duration::from_millis(1);
            self.before();
            self.rig
                .worker
                .step(self.rig.now, self.rig.now + limits::SLICE);
            self.after();
        }
    }

    fn takes_lines(&self) -> bool {
        let has_some = !self.inbox.is_empty() || self.input == Input::Ends;
        let has_room = self.source == Source::Pipe || self.rig.worker.has_room();
        has_some
            && has_room
            && self.rig.worker.ending().is_none()
            && Pressure::of(self.unread) < Pressure::PauseInput
    }

    fn hand_over(&mut self, saying: Saying) {
        let now = self.rig.now;
        self.before();
        match &saying.line {
            Spoken::Line(line) => {
                self.note(|| format!("→ {}", shown(line)));
                self.rig.worker.handle_line(now, Line::Complete(line));
            }
            Spoken::TooLong(bytes) => {
                self.note(|| format!("→ a line of {bytes} bytes"));
                self.rig
                    .worker
                    .handle_line(now, Line::TooLong { bytes: *bytes });
            }
        }
        self.model.hear(now, saying);
        if self.source == Source::File {
            self.model.assert_room();
        }
        self.after();
    }

    fn end_input(&mut self) {
        self.note(|| "the input ends".into());
        self.input = Input::Ended;
        self.before();
        self.rig.worker.end_of_input(self.rig.now);
        self.after();
    }

    fn tick(&mut self) {
        self.before();
        self.model.hear_time(self.rig.now);
        self.rig.worker.tick(self.rig.now);
        self.after();
        self.model.nothing_is_late(self.rig.now);
    }

    fn read(&mut self) {
        self.unread = match self.reader {
            Reader::TakesAll => 0,
            Reader::Takes(bytes) => self.unread.saturating_sub(bytes),
        };
    }

    fn before(&mut self) {
        self.model.before(&self.rig.script.borrow());
    }

    /// Takes what a call has led to.
    fn after(&mut self) {
        while let Some(event) = self.rig.worker.poll_event() {
            self.take(&event);
        }
        assert!(
            self.unread <= UNREAD_BYTES_MAX,
            "{} bytes wait",
            self.unread
        );
        self.model
            .after(&self.rig.worker, &self.rig.script.borrow());
        if let Some(log) = self.rig.worker.take_log() {
            check_log(&log);
        }
    }

    fn take(&mut self, event: &Outgoing) {
        self.line.clear();
        encode_line(event, &mut self.line);
        self.note(|| format!("← {}", shown(&self.line)));
        self.unread += self.line.len();
        match event {
            Outgoing::Error { error, .. } => {
                self.seen.codes.insert(error.data.code);
                assert_keeps_secret(&self.line);
            }
            Outgoing::Notification(Notification::Fatal(fatal)) => {
                self.seen.codes.insert(fatal.error.data.code);
            }
            Outgoing::Notification(Notification::Token(_) | Notification::Started(_)) => {
                assert!(self.line.len() <= wire::STREAM_LINE_BYTES_MAX);
            }
            Outgoing::Notification(_) | Outgoing::Result { .. } => {}
        }
        if !is_whole_text(event) {
            self.model.said_bytes += self.line.len();
        }
        self.model
            .take(self.rig.now, event, &self.rig.script.borrow());
    }

    /// The reader catches up, a last job shows that no page is lost, and the input ends.
    fn end(&mut self) {
        self.reader = Reader::TakesAll;
        self.rest();
        let serves = self.model.is_ready && self.model.drain.is_none();
        if serves && self.input == Input::Open && self.rig.worker.ending().is_none() {
            let facts = &self.model.facts;
            let positions = facts.context_length.min(facts.pages * PAGE_TOKENS);
            let whole = self.author.generate_whole(positions);
            self.inbox.push_back(whole);
            self.turns(6);
            let cancel = self.author.cancel_whole();
            self.inbox.push_back(cancel);
            self.rest();
        }
        if self.input == Input::Open {
            self.input = Input::Ends;
        }
        self.rest();
        assert!(self.rig.worker.ending().is_some(), "the worker never ends");
    }

    /// Turns until nothing is left to do.
    fn rest(&mut self) {
        for _ in 0..TURNS_MAX {
            self.turn();
            if !self.takes_lines() && !self.rig.worker.wants_work(Pressure::None) {
                return;
            }
        }
        panic!("the worker never comes to rest");
    }
}

/// Whether it is a line that may have any length in these scripts.
fn is_whole_text(event: &Outgoing) -> bool {
    matches!(event, Outgoing::Result { result: MethodResult::Generate(result), .. } if result.text.is_some())
}

fn shown(line: &[u8]) -> String {
    let mut shown = String::from_utf8_lossy(&line[..line.len().min(600)])
        .trim()
        .to_owned();
    if line.len() > 600 {
        let _ = write!(shown, "… ({} bytes)", line.len());
    }
    shown
}

fn assert_keeps_secret(bytes: &[u8]) {
    let text = std::str::from_utf8(bytes).expect("UTF-8");
    assert!(
        !text.contains(SECRET),
        "it tells what a client sent: {text}"
    );
}

fn check_log(log: &[u8]) {
    assert_keeps_secret(log);
    for line in log
        .strip_suffix(b"\n")
        .expect("whole lines")
        .split(|byte| *byte == b'\n')
    {
        serde_json::from_slice::<IgnoredAny>(line).expect("a line of JSON");
    }
}

/// How a load fails: the error and the exit.
const LOAD_FAILURES: [(fn() -> LoadError, Exit); 6] = [
    (|| LoadError::BadModel("bad".into()), Exit::BadModel),
    (|| LoadError::NoInput("none".into()), Exit::NoInput),
    (|| LoadError::NoDevice("none".into()), Exit::NoDevice),
    (
        || LoadError::NoMemory {
            message: "no memory".into(),
            required_bytes: 2,
            available_bytes: 1,
        },
        Exit::NoMemory,
    ),
    (
        || LoadError::Device(DeviceError::Step("failed".into())),
        Exit::DeviceLost,
    ),
    (
        || LoadError::Device(DeviceError::Lost("lost".into())),
        Exit::DeviceLost,
    ),
];

fn setup(dice: &mut Dice) -> (Setup, Option<Exit>) {
    let steps = dice.throw(6) as u64;
    let failure = dice.seldom(16, |dice| dice.pick(&LOAD_FAILURES));
    let loading = match failure {
        Some((error, _)) => Loading::Fails { steps, error },
        None => Loading::Works { steps },
    };
    let setup = Setup {
        loading,
        pages: 1 + dice.throw(3),
        context_length: 20 + dice.throw(600),
        template: dice.pick(&[
            Some(TEMPLATE),
            Some(TEMPLATE),
            Some(TEMPLATE_THAT_REFUSES),
            None,
        ]),
        tokenizer: None,
        queue_max: 1 + dice.throw(5),
        max_tokens: dice.seldom(4, |dice| 1 + dice.throw(20) as u32),
        timeout_ms: dice.seldom(8, |dice| 1 + dice.throw(500) as u64),
        clock: dice.pick(&[ClockMode::Real, ClockMode::Real, ClockMode::Frozen]),
        log_level: dice.pick(&[Level::Debug, Level::Info, Level::Error, Level::Error]),
    };
    (setup, failure.map(|(_, exit)| exit))
}

fn prepare_device(dice: &mut Dice, rig: &Rig) {
    let mut script = rig.script.borrow_mut();
    script.polls = dice.pick(&[0, 0, 1, 3]);
    script.tokens = (0..dice.throw(300))
        .map(|_| match dice.throw(24) {
            0 => END,
            1 => PAD,
            2 => dice.throw(256) as u32,
            n => [0xc3, 0xa9, u32::from(b'a'), u32::from(b'b')][n % 4],
        })
        .collect();
    for _ in 0..dice.throw(6).saturating_sub(3) {
        let failure = dice.pick(&[Failure::Lost, Failure::Step, Failure::Step]);
        let near = dice.pick(&[20, 200, 1000]);
        script.failures.push((dice.throw(near), failure));
    }
}
