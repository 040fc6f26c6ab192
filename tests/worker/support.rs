//! A worker with a scripted device, a fake clock and a tokenizer whose tokens are bytes.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use worker_orcd::device::{
    Capacity, Device, DeviceError, LoadProgress, Memory, Output, PAGE_TOKENS, PageId, Rows, Step,
};
use worker_orcd::load::{Load, LoadError, LoadStep, Loaded, ModelFacts};
use worker_orcd::log::{Format, Level};
use worker_orcd::sampling::{SampleStep, Sampled, Scored, TopLogprobs};
use worker_orcd::state::{StateSink, StateStore};
use worker_orcd::text::{ChatTemplate, Tokenizer};
use worker_orcd::worker::{Clock, ClockMode, Config, Ending, Pressure, Worker};
use worker_orcd_protocol::codec::{Line, encode_line};

#[path = "../common/byte_tokenizer.rs"]
mod byte_tokenizer;
use byte_tokenizer::byte_tokenizer;

/// The token that ends a generation. Tokens 0 to 255 are bytes.
pub const END: u32 = 256;
/// A control token that ends nothing.
pub const PAD: u32 = 257;
/// Entries in the vocabulary.
pub const VOCAB: usize = 258;
/// How long a drain may take.
pub const DRAIN: Duration = Duration::from_secs(30);
/// Most tokens that one step of the device takes.
pub const STEP_TOKENS_MAX: usize = 8;

/// What the scripted device was asked for, and what it will do.
#[derive(Default)]
pub struct Script {
    /// Tokens that will be drawn; `b'a'` when there are no more.
    pub tokens: VecDeque<u32>,
    /// Polls that find nothing before a piece is done.
    pub polls: usize,
    /// What the next operations fail with, by their number among all forwards, samples and polls.
    pub failures: Vec<(usize, Failure)>,
    /// Operations so far.
    pub operations: usize,
    /// Forwards: pages, tokens, position, rows.
    pub forwards: Vec<(Vec<PageId>, Vec<u32>, usize, Rows)>,
    /// Samples: uniform number, length of the history.
    pub samples: Vec<(f64, usize)>,
    /// How many of these were on whole pages, which needs no job that runs.
    pub page_operations: usize,
    /// Pages that were copied, from and to.
    pub copies: Vec<(PageId, PageId)>,
    /// Aborts.
    pub aborts: usize,
    /// Whether a piece is under way, and how many polls it still needs.
    pub flight: Option<(usize, Output)>,
    /// Tokens that were drawn and handed over.
    pub drawn: Vec<u32>,
    /// What lies in the KV pages.
    pub kv: Kv,
}

/// KV pages that hold the tokens themselves instead of their keys and values.
#[derive(Default)]
pub struct Kv {
    cells: HashMap<PageId, [u32; PAGE_TOKENS]>,
    /// Positions of the sequence that lie in the pages.
    filled: usize,
}

impl Kv {
    /// Writes a chunk of a sequence. What lies before it is looked at when a token is drawn.
    fn write(&mut self, step: &Step<'_>) {
        self.filled = step.position;
        for (position, token) in (self.filled..).zip(step.tokens) {
            let page = step.pages[position / PAGE_TOKENS];
            self.cells.entry(page).or_insert([u32::MAX; PAGE_TOKENS])[position % PAGE_TOKENS] =
                *token;
        }
        self.filled += step.tokens.len();
    }

    fn copy(&mut self, from: PageId, to: PageId) {
        let cells = self.cells.get(&from).copied();
        self.cells
            .insert(to, cells.unwrap_or([u32::MAX; PAGE_TOKENS]));
    }

    /// The bytes of a page.
    fn page(&mut self, page: PageId) -> &mut [u8] {
        bytemuck::cast_slice_mut(self.cells.entry(page).or_insert([u32::MAX; PAGE_TOKENS]))
    }

    /// Whether the pages hold this sequence; beyond it there may be tokens that were proposed.
    fn assert_holds(&self, pages: &[PageId], sequence: &[u32]) {
        assert!(
            self.filled >= sequence.len(),
            "the pages hold less than the sequence"
        );
        for (page, tokens) in pages.iter().zip(sequence.chunks(PAGE_TOKENS)) {
            assert_eq!(
                &self.cells[page][..tokens.len()],
                tokens,
                "the pages hold other tokens"
            );
        }
    }
}

impl Script {
    /// Whether an operation has failed like that.
    pub fn has_failed(&self, how: Failure) -> bool {
        let mut failed = self.failures.iter().filter(|(at, _)| *at < self.operations);
        failed.any(|(_, failure)| *failure == how)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    Step,
    Lost,
}

struct ScriptedDevice {
    script: Rc<RefCell<Script>>,
    pages: usize,
}

impl ScriptedDevice {
    fn operate(&self) -> Result<(), DeviceError> {
        let mut script = self.script.borrow_mut();
        let number = script.operations;
        script.operations += 1;
        match script.failures.iter().find(|(at, _)| *at == number) {
            Some((_, Failure::Step)) => Err(DeviceError::Step("the step failed".into())),
            Some((_, Failure::Lost)) => Err(DeviceError::Lost("the card fell off the bus".into())),
            None => Ok(()),
        }
    }
}

impl ScriptedDevice {
    fn operate_on_pages(&self) -> Result<(), DeviceError> {
        self.script.borrow_mut().page_operations += 1;
        self.operate()
    }
}

impl Device for ScriptedDevice {
    fn load_some(&mut self, _until: Instant) -> Result<LoadProgress, DeviceError> {
        Ok(LoadProgress::default())
    }

    fn forward(&mut self, step: Step<'_>) -> Result<(), DeviceError> {
        self.operate()?;
        let mut script = self.script.borrow_mut();
        assert!(
            script.flight.is_none(),
            "one piece of work is under way at a time"
        );
        assert!((1..=STEP_TOKENS_MAX).contains(&step.tokens.len()));
        assert!(step.tokens.iter().all(|t| (*t as usize) < VOCAB));
        assert!(
            step.pages.len() * PAGE_TOKENS >= step.position + step.tokens.len(),
            "not enough pages"
        );
        script.kv.write(&step);
        script.forwards.push((
            step.pages.to_vec(),
            step.tokens.to_vec(),
            step.position,
            step.rows,
        ));
        script.flight = Some((script.polls, Output::Forwarded));
        Ok(())
    }

    fn sample(&mut self, step: SampleStep<'_>) -> Result<(), DeviceError> {
        self.operate()?;
        let mut script = self.script.borrow_mut();
        assert!(
            script.flight.is_none(),
            "one piece of work is under way at a time"
        );
        let (pages, tokens, position, rows) =
            script.forwards.last().expect("a step before its token");
        let seen = match rows {
            Rows::None => panic!("a token of a step without logits"),
            Rows::Last => position + tokens.len() + step.row,
            Rows::All => position + step.row + 1,
        };
        assert_eq!(seen, step.history.len(), "the row is of another place");
        script.kv.assert_holds(pages, step.history);
        let token = script.tokens.pop_front().unwrap_or(u32::from(b'a'));
        let top = top(step.logprobs.unwrap_or(0));
        let logprob = step.logprobs.map(|_| -0.5);
        script.samples.push((step.uniform, step.history.len()));
        script.flight = Some((
            script.polls,
            Output::Sampled(Sampled {
                token,
                logprob,
                top,
            }),
        ));
        Ok(())
    }

    /// The row's place in the last step and the token say what the log-probability is.
    fn score(&mut self, row: usize, token: u32, wanted: usize) -> Result<(), DeviceError> {
        self.operate()?;
        let mut script = self.script.borrow_mut();
        assert!(
            script.flight.is_none(),
            "one piece of work is under way at a time"
        );
        let forward = script.forwards.last().expect("a step before its score");
        assert!(forward.3 == Rows::All && row < forward.1.len());
        let logprob = -(token as f32) - (forward.2 + row) as f32 / 1024.0;
        let scored = Scored {
            logprob,
            top: top(wanted),
        };
        script.flight = Some((script.polls, Output::Scored(scored)));
        Ok(())
    }

    fn poll(&mut self, _until: Instant) -> Result<Option<Output>, DeviceError> {
        self.operate()?;
        let mut script = self.script.borrow_mut();
        match script.flight.take() {
            Some((0, output)) => {
                if let Output::Sampled(sampled) = &output {
                    script.drawn.push(sampled.token);
                }
                Ok(Some(output))
            }
            Some((polls, output)) => {
                script.flight = Some((polls - 1, output));
                Ok(None)
            }
            None => Ok(None),
        }
    }

    fn abort(&mut self) {
        let mut script = self.script.borrow_mut();
        assert!(script.flight.is_some(), "nothing is under way");
        script.aborts += 1;
        script.flight = None;
        script.kv.filled = 0;
    }

    fn read_logits(&mut self, _row: usize, out: &mut [f32]) {
        out.fill(0.0);
    }

    fn copy_page(&mut self, from: PageId, to: PageId) -> Result<(), DeviceError> {
        self.operate_on_pages()?;
        let mut script = self.script.borrow_mut();
        assert!(
            script.flight.is_none(),
            "pages are copied between pieces of work"
        );
        script.kv.copy(from, to);
        script.copies.push((from, to));
        Ok(())
    }

    fn page_bytes(&self) -> usize {
        PAGE_TOKENS * size_of::<u32>()
    }

    fn read_page(
        &mut self,
        page: PageId,
        offset: usize,
        out: &mut [u8],
    ) -> Result<(), DeviceError> {
        self.operate_on_pages()?;
        let mut script = self.script.borrow_mut();
        out.copy_from_slice(&script.kv.page(page)[offset..][..out.len()]);
        Ok(())
    }

    fn write_page(&mut self, page: PageId, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.operate_on_pages()?;
        let mut script = self.script.borrow_mut();
        script.kv.page(page)[offset..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn state_id(&self) -> String {
        "script".into()
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            step_tokens_max: STEP_TOKENS_MAX,
            exact_tokens_max: STEP_TOKENS_MAX,
            pages: self.pages,
            vocab: VOCAB,
        }
    }

    fn memory(&self) -> Memory {
        Memory {
            weights_bytes: 1000,
            kv_bytes: 256 * self.pages as u64,
            scratch_bytes: 24,
        }
    }
}

/// So many alternatives: "a", "b" and so on.
fn top(wanted: usize) -> TopLogprobs {
    let mut top = TopLogprobs::default();
    for rank in 0..wanted {
        top.push(u32::from(b'a') + rank as u32, -0.5 - rank as f32);
    }
    top
}

/// Saved states that are gone with the worker.
#[derive(Default)]
struct MemoryStates {
    files: Rc<RefCell<HashMap<PathBuf, Vec<u8>>>>,
}

struct MemoryFile {
    files: Rc<RefCell<HashMap<PathBuf, Vec<u8>>>>,
    path: PathBuf,
    bytes: Vec<u8>,
}

impl StateStore for MemoryStates {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StateSink>> {
        Ok(Box::new(MemoryFile {
            files: self.files.clone(),
            path: path.to_owned(),
            bytes: Vec::new(),
        }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read>> {
        let bytes = self.files.borrow().get(path).cloned();
        let bytes = bytes.ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(io::Cursor::new(bytes)))
    }
}

impl Write for MemoryFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StateSink for MemoryFile {
    fn finish(self: Box<Self>) -> io::Result<()> {
        self.files.borrow_mut().insert(self.path, self.bytes);
        Ok(())
    }
}

/// How the load goes.
pub enum Loading {
    /// So many steps of progress, then the model.
    Works { steps: u64 },
    /// So many steps, then this.
    Fails {
        steps: u64,
        error: fn() -> LoadError,
    },
}

struct ScriptedLoad {
    loading: Loading,
    done: u64,
    loaded: Option<Box<Loaded>>,
}

impl Load for ScriptedLoad {
    fn step(&mut self, _now: Instant, _until: Instant) -> Result<LoadStep, LoadError> {
        let steps = match self.loading {
            Loading::Works { steps } | Loading::Fails { steps, .. } => steps,
        };
        if self.done < steps {
            self.done += 1;
            let processed = self.done * 1000 / steps.max(1);
            return Ok(LoadStep::Progress(LoadProgress {
                processed,
                total: 1000,
            }));
        }
        match &self.loading {
            Loading::Works { .. } => Ok(LoadStep::Ready(self.loaded.take().expect("loaded once"))),
            Loading::Fails { error, .. } => Err(error()),
        }
    }
}

thread_local! {
    /// Made once a thread: a tokenizer takes longer to make than most tests take.
    static TOKENIZER: Arc<Tokenizer> = Arc::new(byte_tokenizer(&["<|end|>", "<|pad|>"]));
    static TEMPLATES: RefCell<HashMap<&'static str, Rc<ChatTemplate>>> = RefCell::default();
}

fn template(source: &'static str) -> Rc<ChatTemplate> {
    let make = || ChatTemplate::new(source, None, Some("<|end|>")).expect("a template");
    TEMPLATES.with_borrow_mut(|made| {
        let entry = made.entry(source);
        entry.or_insert_with(|| Rc::new(make())).clone()
    })
}

/// What a test may want different.
pub struct Setup {
    pub loading: Loading,
    pub context_length: usize,
    pub pages: usize,
    pub template: Option<&'static str>,
    /// Instead of the one whose tokens are bytes.
    pub tokenizer: Option<Tokenizer>,
    pub queue_max: usize,
    pub max_tokens: Option<u32>,
    pub timeout_ms: Option<u64>,
    pub clock: ClockMode,
    pub log_level: Level,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            loading: Loading::Works { steps: 1 },
            context_length: 600,
            pages: 3,
            template: Some("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"),
            tokenizer: None,
            queue_max: 4,
            max_tokens: None,
            timeout_ms: None,
            clock: ClockMode::Real,
            log_level: Level::Debug,
        }
    }
}

/// A worker under test.
pub struct Rig {
    pub worker: Worker,
    pub script: Rc<RefCell<Script>>,
    pub start: Instant,
    pub now: Instant,
    /// Everything that was said, as JSON.
    pub said: Vec<Value>,
    /// The log so far.
    pub log: String,
}

impl Rig {
    /// A worker that has not begun to load.
    pub fn unloaded(setup: Setup) -> Self {
        let script = Rc::new(RefCell::new(Script::default()));
        let device = Box::new(ScriptedDevice {
            script: script.clone(),
            pages: setup.pages,
        });
        let loaded = Loaded {
            device,
            tokenizer: match setup.tokenizer {
                Some(tokenizer) => Arc::new(tokenizer),
                None => TOKENIZER.with(Arc::clone),
            },
            template: setup.template.map(template),
            model: ModelFacts {
                name: "scripted".into(),
                architecture: "llama".into(),
                quant_kind: "F32".into(),
                parameters: 1,
                size_bytes: 1000,
                context_length_trained: 1000,
                context_length: setup.context_length,
                vocab_size: VOCAB,
                device: "script".into(),
            },
        };
        let now = Instant::now() + Duration::from_secs(1000);
        let config = Config {
            worker_id: Some("w1".into()),
            pid: 42,
            model_name: "file".into(),
            device_name: "cpu".into(),
            queue_max: setup.queue_max,
            max_tokens: setup.max_tokens,
            timeout_ms: setup.timeout_ms,
            drain: DRAIN,
            log_level: setup.log_level,
            log_format: Format::Json,
            entropy: 5,
            clock: Clock {
                mode: setup.clock,
                start: now,
                start_wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1),
            },
        };
        let load = ScriptedLoad {
            loading: setup.loading,
            done: 0,
            loaded: Some(Box::new(loaded)),
        };
        let worker =
            Worker::new(config, Box::new(load), now).with_states(Box::<MemoryStates>::default());
        Self {
            worker,
            script,
            start: now,
            now,
            said: Vec::new(),
            log: String::new(),
        }
    }

    /// A worker that has said `ready`; what it said so far is forgotten.
    pub fn ready(setup: Setup) -> Self {
        let mut rig = Self::unloaded(setup);
        rig.finish();
        assert_eq!(
            rig.said.last().map(|last| &last["method"]),
            Some(&json!("ready"))
        );
        rig.said.clear();
        rig
    }

    /// Says a line.
    pub fn say(&mut self, line: Value) {
        self.say_bytes(line.to_string().as_bytes());
    }

    /// Says bytes.
    pub fn say_bytes(&mut self, line: &[u8]) {
        self.worker.handle_line(self.now, Line::Complete(line));
        self.listen();
    }

    /// Says a `generate` with these params.
    pub fn generate(&mut self, id: impl Into<Value>, params: Value) {
        self.say(json!({"id": id.into(), "method": "generate", "params": params}));
    }

    /// One turn of the loop, a millisecond long.
    pub fn step(&mut self) {
        self.now += Duration::from_millis(1);
        self.worker.tick(self.now);
        if self.worker.wants_work(Pressure::None) {
            self.worker
                .step(self.now, self.now + Duration::from_millis(5));
        }
        self.listen();
    }

    /// Turns until nothing is left to do.
    pub fn finish(&mut self) {
        for _ in 0..100_000 {
            if !self.worker.wants_work(Pressure::None) {
                return;
            }
            self.step();
        }
        panic!("the worker never comes to rest");
    }

    /// Turns until the last thing said is this notification.
    pub fn step_until(&mut self, method: &str) {
        for _ in 0..10_000 {
            self.step();
            if self
                .said
                .last()
                .is_some_and(|last| last["method"] == method)
            {
                return;
            }
        }
        panic!("{method} never comes: {:#?}", self.said);
    }

    /// Lets time pass.
    pub fn sleep(&mut self, duration: Duration) {
        self.now += duration;
        self.worker.tick(self.now);
        self.listen();
    }

    /// How the worker ends, where it does.
    pub fn ending(&self) -> Option<Ending> {
        self.worker.ending()
    }

    /// The code it exits with, where it does.
    pub fn exit_code(&self) -> Option<u8> {
        self.ending().map(|ending| ending.exit.code())
    }

    /// Notes what the worker has said.
    pub fn listen(&mut self) {
        while let Some(event) = self.worker.poll_event() {
            let mut line = Vec::new();
            encode_line(&event, &mut line);
            self.said
                .push(serde_json::from_slice(&line).expect("a line of JSON"));
        }
        if let Some(log) = self.worker.take_log() {
            self.log
                .push_str(&String::from_utf8(log).expect("a log in UTF-8"));
        }
    }

    /// Takes everything that was said.
    pub fn take(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.said)
    }

    /// The response to a request; there has to be exactly one.
    pub fn response(&self, id: impl Into<Value>) -> &Value {
        let id = id.into();
        let mut responses = self
            .said
            .iter()
            .filter(|m| m.get("method").is_none() && m["id"] == id);
        let response = responses
            .next()
            .unwrap_or_else(|| panic!("no response to {id}: {:#?}", self.said));
        assert!(responses.next().is_none(), "two responses to {id}");
        response
    }

    /// The texts of a request's `token` notifications.
    pub fn texts(&self, id: impl Into<Value>) -> Vec<String> {
        let id = id.into();
        let tokens = self
            .said
            .iter()
            .filter(|m| m["method"] == "token" && m["params"]["request_id"] == id);
        tokens
            .map(|m| m["params"]["text"].as_str().expect("text").to_owned())
            .collect()
    }

    /// The params of each `progress`.
    pub fn progress(&self) -> Vec<&Value> {
        let progress = self.said.iter().filter(|m| m["method"] == "progress");
        progress.map(|m| &m["params"]).collect()
    }

    /// What was said, in short: method and id.
    pub fn order(&self) -> Vec<String> {
        let short = |m: &Value| match m.get("method").and_then(Value::as_str) {
            Some(method) => match m["params"].get("request_id") {
                Some(id) => format!("{method} {id}"),
                None => method.to_owned(),
            },
            None if m.get("error").is_some() => {
                format!(
                    "{} {}",
                    m["error"]["data"]["code"].as_str().unwrap_or("?"),
                    m["id"]
                )
            }
            None => format!("result {}", m["id"]),
        };
        self.said.iter().map(short).collect()
    }
}

/// The tokens of a text, as the scripted device draws them.
pub fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}
