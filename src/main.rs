//! The worker process: flags, the device, the loop.

mod bench;
mod flags;
mod inspect;
mod process;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use flags::{DeviceChoice, Flags, ModelChoice};
use process::Process;
use worker_orcd::io::{Io, ParentWatch, StrayOutput, TakeError, WatchError};
use worker_orcd::limits;
use worker_orcd::load::fake::{FakeLoad, FakeLoadOptions};
use worker_orcd::load::{FileLoad, HAS_CUDA, Load, LoadError, LoadStep, no_card};
use worker_orcd::log::Level;
use worker_orcd::worker::{Clock, ClockMode, Config, Connection, Worker};
use worker_orcd_protocol::codec::encode_call;
use worker_orcd_protocol::{Call, Exit, GenerateParams, Id, Request, limits as wire};

fn main() -> ExitCode {
    let flags = Flags::parse();
    if let Err(error) = flags.check_together() {
        error.exit();
    }
    widen_stack();
    let told = inspect::inspect(&flags).or_else(|| bench::bench(&flags));
    match (told, &flags.model) {
        (Some(exit), _) => ExitCode::from(exit.code()),
        (None, Some(model)) => run(&flags, model),
        // Only a flag that is answered above comes without a model.
        (None, None) => ExitCode::from(Exit::Usage.code()),
    }
}

/// The worker's whole life.
fn run(flags: &Flags, model: &ModelChoice) -> ExitCode {
    let stray = if flags.log_level == Level::Debug {
        StrayOutput::Stderr
    } else {
        StrayOutput::Discard
    };
    let io = match Io::take(stray, flags.input.as_deref()) {
        Ok(io) => io,
        Err(error) => {
            eprintln!("worker-orcd: {error}");
            return ExitCode::from(match error {
                TakeError::Descriptors(_) => Exit::PipeLost.code(),
                TakeError::Input { .. } => Exit::NoInput.code(),
            });
        }
    };
    note_panics();
    let now = Instant::now();
    let worker = Worker::new(config(flags, model, now), load(flags, model), now);
    let mut process = Process::new(io, worker);
    watch_parent(&mut process, flags.parent_pid);
    if let Some(prompt) = &flags.prompt {
        process.hear_only(prompt_line(prompt));
    }
    let exit = match catch_unwind(AssertUnwindSafe(|| process.run())) {
        Ok(exit) => exit,
        Err(_) => process.after_panic(PANICKED_AT.take().unwrap_or_default()),
    };
    ExitCode::from(exit.code())
}

/// Lets the stack grow as far as chat templates need it. The kernel looks at this limit when the stack grows, not at the start, and
/// leaves at least 128 MiB of address space below it; a lower hard limit stands.
fn widen_stack() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Stack);
    let wanted = limits::STACK_BYTES as u64;
    let wanted = limit.maximum.map_or(wanted, |most| wanted.min(most));
    if limit.current.is_some_and(|now| now < wanted) {
        limit.current = Some(wanted);
        setrlimit(Resource::Stack, limit).ok(); // what is below the hard limit is not refused
    }
}

/// The one place where flags become a load.
fn load(flags: &Flags, model: &ModelChoice) -> Box<dyn Load> {
    match (model, flags.device) {
        (ModelChoice::Fake(model), _) => {
            let options = FakeLoadOptions {
                context: flags.ctx,
                kv_bytes: flags.kv_bytes,
                chat_template: flags.chat_template.clone(),
            };
            Box::new(FakeLoad::new(model.clone(), options))
        }
        (ModelChoice::File(_), Some(DeviceChoice::Cuda(number))) if !HAS_CUDA => {
            Box::new(Refused(no_card(number)))
        }
        (ModelChoice::File(file), Some(DeviceChoice::Cpu | DeviceChoice::Cuda(_))) => {
            Box::new(FileLoad::new(flags.load_options(file)))
        }
        (ModelChoice::File(_), None) => Box::new(Refused(
            if HAS_CUDA {
                "no --device was given; use --device cuda:0 to run on the first card, --device cpu to run on the processor"
            } else {
                "no --device was given, and this build knows no CUDA device; use --device cpu to run on the processor"
            }
            .to_owned(),
        )),
    }
}

/// A load that finds no device, so that this failure goes the way of all others: `fatal`, log, exit code.
struct Refused(String);

impl Load for Refused {
    fn step(&mut self, _now: Instant, _until: Instant) -> Result<LoadStep, LoadError> {
        Err(LoadError::NoDevice(std::mem::take(&mut self.0)))
    }
}

/// The request that `--prompt` stands for, as a line.
fn prompt_line(prompt: &str) -> Vec<u8> {
    let params = GenerateParams {
        prompt: Some(prompt.to_owned()),
        ..GenerateParams::default()
    };
    let call = Call {
        id: Some(Id::Number(1)),
        request: Request::Generate(Box::new(params)),
    };
    let mut line = Vec::new();
    encode_call(&call, &mut line);
    line
}

fn config(flags: &Flags, model: &ModelChoice, now: Instant) -> Config {
    Config {
        worker_id: flags.worker_id.clone(),
        pid: std::process::id(),
        model_name: model.name(),
        device_name: flags
            .device
            .map_or_else(|| "none".to_owned(), |device| device.to_string()),
        queue_max: flags.queue,
        max_tokens: flags.max_tokens,
        timeout_ms: flags.timeout_ms,
        drain: Duration::from_millis(flags.drain_ms),
        log_level: flags.log_level,
        log_format: flags.log_format,
        entropy: match flags.clock {
            ClockMode::Real => entropy(),
            ClockMode::Frozen => 0,
        },
        clock: Clock {
            mode: flags.clock,
            start: now,
            start_wall: SystemTime::now(),
        },
    }
}

/// Where the seeds of requests that name none come from.
fn entropy() -> u64 {
    let mut bytes = [0u8; 8];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(_) => u64::from_le_bytes(bytes),
        // A system without a source of randomness still has a clock and process numbers.
        Err(_) => {
            let since = SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default();
            (since.as_nanos() as u64) ^ (u64::from(std::process::id()) << 32)
        }
    }
}

/// Watches whoever feeds stdin, or whom `--parent-pid` names.
fn watch_parent(process: &mut Process, parent_pid: Option<i32>) {
    let watch = match parent_pid {
        Some(0) => Ok(None),
        Some(pid) => ParentWatch::of_pid(pid).map(Some),
        None if process.io.has_peer() => ParentWatch::of_parent(),
        None => Ok(None),
    };
    match watch {
        Ok(None) => {}
        Ok(Some(watch)) => process.io.watch(watch),
        Err(WatchError::Gone) => process
            .worker
            .connection_lost(Instant::now(), Connection::Parent),
        Err(error @ WatchError::Refused(_)) => {
            process.worker.warn(Instant::now(), &error.to_string())
        }
    }
}

thread_local! {
    /// Where the last panic happened. A panic's message may quote what was in the request, its place does not.
    static PANICKED_AT: Cell<Option<String>> = const { Cell::new(None) };
}

/// Keeps the panic's place and prints nothing: stderr must never block, and the log has its own form.
fn note_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info
            .location()
            .map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        PANICKED_AT.set(Some(place));
    }));
}

// A context longer than this could not be filled by one request.
const _: () = assert!(limits::CONTEXT_MAX >= wire::TOKEN_IDS_MAX);
