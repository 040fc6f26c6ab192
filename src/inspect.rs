//! What the process tells instead of running: `--check`, `--print-plan`, `--print-schema`.

use serde_json::{Value, json};
use worker_orcd::io;
use worker_orcd::load::{FileLoad, HAS_CUDA, LoadError, no_card};
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
        Some(_) | None => return None,
    };
    Some(io::print(&text).map_or(Exit::PipeLost, |()| exit))
}

/// Checks all that a load would check, without reading the weights.
fn check(load: &FileLoad, flags: &Flags) -> Result<Value, LoadError> {
    match flags.device {
        None | Some(DeviceChoice::Cpu) => {}
        Some(DeviceChoice::Cuda(number)) if !HAS_CUDA => {
            return Err(LoadError::NoDevice(no_card(number)));
        }
        Some(DeviceChoice::Cuda(_)) => {}
    }
    let checked = load.check()?;
    let (model, memory) = (&checked.loaded.model, checked.loaded.device.memory());
    let types: Vec<Value> = checked
        .tensor_types
        .iter()
        .map(|t| json!({"type": t.name, "tensors": t.tensors, "bytes": t.bytes}))
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
        "memory": {
            "weights_bytes": memory.weights_bytes,
            "kv_bytes": memory.kv_bytes,
            "scratch_bytes": memory.scratch_bytes,
            "total_bytes": memory.weights_bytes + memory.kv_bytes + memory.scratch_bytes,
        },
    }))
}

/// The same error that `fatal` would carry.
fn refused(error: &LoadError, flags: &Flags) -> (String, Exit) {
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
