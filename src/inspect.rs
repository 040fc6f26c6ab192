//! What the process tells instead of running: `--check`, `--print-plan`, `--print-schema`, `--trace`.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};
use worker_orcd::io;
use worker_orcd::limits;
use worker_orcd::load::{Checked, FileLoad, HAS_CUDA, Load, LoadError, LoadStep, Loaded, no_card};
use worker_orcd::text::{AddSpecial, ParseSpecial};
use worker_orcd::trace::{self, Traced};
use worker_orcd::worker::load_error;
use worker_orcd_protocol::{Exit, schema};

use crate::flags::{DeviceChoice, Flags, ModelChoice};

/// Tells what a flag asks for, and how the process then ends; `None` where it is to run.
pub fn inspect(flags: &Flags) -> Option<Exit> {
    let file = match &flags.model {
        Some(ModelChoice::File(path)) => Some(path),
        Some(ModelChoice::Fake(_)) | None => None,
    };
    let load = file.map(|file| FileLoad::new(flags.load_options(file)));
    let (text, exit) = match load {
        _ if flags.print_schema => (pretty(&schema::document()), Exit::Done),
        Some(load) if flags.print_plan => match load.plan() {
            Ok(plan) => (plan.to_string(), Exit::Done),
            Err(error) => refused(&error, flags),
        },
        Some(load) if flags.check => match check(&load, flags) {
            Ok(facts) => (pretty(&facts), Exit::Done),
            Err(error) => refused(&error, flags),
        },
        Some(load) if flags.trace.is_some() || !flags.trace_ids.is_empty() => {
            match trace(load, flags) {
                Ok(lines) => (lines, Exit::Done),
                Err(Untraced::Load(error)) => refused(&error, flags),
                Err(Untraced::Trace(reason)) => {
                    eprintln!("worker-orcd: {reason}");
                    return Some(Exit::Usage);
                }
            }
        }
        Some(_) | None => return None,
    };
    Some(io::print(&text).map_or(Exit::PipeLost, |()| exit))
}

/// Why there is no trace.
enum Untraced {
    /// There is no model either.
    Load(LoadError),
    /// The reason, as a sentence.
    Trace(String),
}

/// Loads the model and traces what the flags ask for; a text as `generate` would take it.
fn trace(mut load: FileLoad, flags: &Flags) -> Result<String, Untraced> {
    check_device(flags).map_err(Untraced::Load)?;
    let op_names = load.plan().map_err(Untraced::Load)?.op_names();
    let mut loaded = load_all(&mut load).map_err(Untraced::Load)?;
    let say = |error: &dyn std::fmt::Display| Untraced::Trace(error.to_string());
    let tokens = match &flags.trace {
        Some(text) => loaded
            .tokenizer
            .encode(text, AddSpecial::Yes, ParseSpecial::Yes)
            .map_err(|error| say(&error))?,
        None => flags.trace_ids.clone(),
    };
    let traced = Traced {
        model: &loaded.model.name,
        device: &loaded.model.device,
        op_names: &op_names,
        tokens: &tokens,
    };
    let lines = trace::record(&mut *loaded.device, traced).map_err(|error| say(&error))?;
    String::from_utf8(lines).map_err(|error| say(&error))
}

fn load_all(load: &mut FileLoad) -> Result<Box<Loaded>, LoadError> {
    loop {
        let now = Instant::now();
        if let LoadStep::Ready(loaded) = load.step(now, now + limits::SLICE)? {
            return Ok(loaded);
        }
    }
}

/// Checks all that a load would check, without reading the weights.
fn check(load: &FileLoad, flags: &Flags) -> Result<Value, LoadError> {
    check_device(flags)?;
    let checked = load.check()?;
    let (model, memory) = (&checked.loaded.model, checked.loaded.device.memory());
    let types: Vec<Value> = checked
        .tensor_types
        .iter()
        .map(|t| json!({"type": t.name, "tensors": t.tensors, "bytes": t.bytes}))
        .collect();
    let files: Vec<Value> = checked
        .files
        .iter()
        .map(|f| json!({"path": f.path.to_string_lossy(), "bytes": f.bytes, "tensors": f.tensors}))
        .collect();
    Ok(json!({
        "loads": true,
        "model": model.name,
        "architecture": model.architecture,
        "parameters": model.parameters,
        "device": model.device,
        "context_length": model.context_length,
        "context_length_trained": model.context_length_trained,
        "vocab_size": model.vocab_size,
        "tokenizer_kind": checked.loaded.tokenizer.kind().as_str(),
        "chat_template": checked.loaded.template.is_some(),
        "tensor_types": types,
        "files": files,
        "resident_bytes": resident_bytes(&checked),
        "memory": {
            "weights_bytes": memory.weights_bytes,
            "kv_bytes": memory.kv_bytes,
            "scratch_bytes": memory.scratch_bytes,
            "total_bytes": memory.total_bytes(),
        },
    }))
}

/// What the process takes when all that it reserves is in use: what it has now, vocabulary and program included, and then what the
/// files say of the model and the device's buffers. `None` where the system does not tell.
fn resident_bytes(checked: &Checked) -> Option<u64> {
    let maps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    let paths: Vec<PathBuf> = checked
        .files
        .iter()
        .filter_map(|file| file.path.canonicalize().ok())
        .collect();
    // The pages of the files that are there by now are not counted twice.
    let is_model = |line: &str| {
        paths
            .iter()
            .any(|path| line.ends_with(&*path.to_string_lossy()))
    };
    let mut now = 0;
    let mut is_counted = true;
    for line in maps.lines() {
        match line.split_once(':') {
            Some(("Rss", size)) if is_counted => {
                let kib: u64 = size.trim().strip_suffix(" kB")?.trim().parse().ok()?;
                now += kib * 1024;
            }
            // A range of addresses begins what is said of one mapping.
            Some((range, _)) if range.contains('-') => is_counted = !is_model(line),
            Some(_) | None => {}
        }
    }
    let memory = checked.loaded.device.memory();
    let files: u64 = checked.files.iter().map(|file| file.bytes).sum();
    let tensors: u64 = checked.tensor_types.iter().map(|t| t.bytes).sum();
    let metadata = files.saturating_sub(tensors);
    Some(now + metadata + memory.weights_bytes + memory.kv_bytes + memory.scratch_bytes)
}

/// Whether the device is one that this build knows; the processor where none is named.
fn check_device(flags: &Flags) -> Result<(), LoadError> {
    match flags.device {
        None | Some(DeviceChoice::Cpu) => Ok(()),
        Some(DeviceChoice::Cuda(number)) if !HAS_CUDA => Err(LoadError::NoDevice(no_card(number))),
        Some(DeviceChoice::Cuda(_)) => Ok(()),
    }
}

/// The same error that `fatal` would carry.
pub fn refused(error: &LoadError, flags: &Flags) -> (String, Exit) {
    let model = flags.model.as_ref().map(ModelChoice::name);
    let device = flags.device.map(|device| device.to_string());
    let (exit, error) = load_error(
        error,
        &model.unwrap_or_default(),
        device.as_deref().unwrap_or("cpu"),
    );
    let told = json!({"loads": false, "exit_code": exit.code(), "error": error});
    (pretty(&told), exit)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
