//! A model file's bytes, through all that a load does with them: metadata, tensors, spec, plan, weights, vocabulary, template, and
//! where all of it holds, a device and its first token.

use std::time::{Duration, Instant};

use worker_orcd::device::cpu::isa::Isa;
use worker_orcd::device::cpu::{CpuDevice, CpuOptions, KvType};
use worker_orcd::device::{Device, PageId, Rows, Step};
use worker_orcd::gguf::{self, Gguf};
use worker_orcd::model::{arch, lower, plan::Plan, weights::Weights};
use worker_orcd::text::{AddSpecial, ChatTemplate, ParseSpecial, Tokenizer};

use super::meter;

/// What reading a header may hold besides what is in proportion to the file: the names of a thousand layers' tensors.
const HEADER_BYTES: usize = 2 << 20;

/// Bytes in memory for a byte of the file: an empty string takes 8 bytes in the file and 24 in a vector that grows by doubling.
const BYTES_PER_BYTE: usize = 32;

/// What a vocabulary may hold besides: its compiled expressions.
const TEXT_BYTES: usize = 64 << 20;

/// What a device for one page of context may hold besides, for models whose weights fit in a fuzzer's input.
const DEVICE_BYTES: usize = 256 << 20;

/// Reads the file and, where it is good, uses it.
pub fn run(bytes: &[u8]) {
    let proportion = bytes.len() * BYTES_PER_BYTE;
    let Some(gguf) = meter::within(HEADER_BYTES + proportion, || told(gguf::parse(bytes))) else {
        return;
    };
    check_tensors(bytes, &gguf);
    let model = meter::within(HEADER_BYTES + proportion, || claim(&gguf));
    meter::within(TEXT_BYTES + proportion * BYTES_PER_BYTE, || text(&gguf));
    if let Some((plan, weights)) = model {
        meter::within(DEVICE_BYTES, || first_token(bytes, plan, weights));
    }
}

/// The value, or nothing where an error says in a line why not.
fn told<T, E: std::fmt::Display>(result: Result<T, E>) -> Option<T> {
    result
        .map_err(|error| {
            let words = error.to_string();
            assert!(!words.is_empty() && words.len() < 4096, "{words}");
        })
        .ok()
}

/// Every tensor lies inside the file and its size is what its dimensions say.
fn check_tensors(bytes: &[u8], gguf: &Gguf) {
    for tensor in &gguf.tensors {
        let data = gguf.tensor_bytes(bytes, tensor).expect("inside the file");
        assert_eq!(data.len() as u64, tensor.size_bytes);
        assert!(tensor.offset.is_multiple_of(gguf.alignment));
        assert!(tensor.elements() > 0);
    }
}

fn claim(gguf: &Gguf) -> Option<(Plan, Weights)> {
    let spec = told(arch::spec(gguf))?;
    let plan = lower::lower(&spec, spec.context_length);
    let weights = told(Weights::claim(&plan, gguf))?;
    let claimed = weights.iter().count() + plan.unread.len();
    assert_eq!(claimed, gguf.tensors.len());
    Some((plan, weights))
}

fn text(gguf: &Gguf) {
    if let Some(tokenizer) = told(Tokenizer::from_gguf(&gguf.metadata)) {
        let ids = tokenizer.encode("a <|b|> é\n", AddSpecial::Yes, ParseSpecial::Yes);
        let size = tokenizer.vocab_size();
        for id in told(ids).into_iter().flatten() {
            assert!((id as usize) < size, "{id} of {size}");
            tokenizer.token_bytes(id).expect("an id that was encoded");
        }
    }
    if let Ok(Some(source)) = gguf.metadata.string("tokenizer.chat_template") {
        told(ChatTemplate::new(source, None, None));
    }
}

fn first_token(bytes: &[u8], plan: Plan, weights: Weights) {
    let options = CpuOptions {
        context: 1,
        kv: KvType::F16,
        isa: Isa::best(),
    };
    let device = CpuDevice::new(plan, weights, Box::new(bytes.to_vec()), options);
    let Some(mut device) = told(device) else {
        return;
    };
    let far = Instant::now() + Duration::from_secs(60);
    device.load_some(far).expect("the cpu loads everything");
    let step = Step {
        pages: &[PageId(0)],
        tokens: &[0],
        position: 0,
        rows: Rows::Last,
    };
    device.forward(step).expect("the first step");
    while device.poll(far).expect("the first step").is_none() {}
    let mut logits = vec![0.0; device.capacity().vocab];
    device.read_logits(0, &mut logits);
}
