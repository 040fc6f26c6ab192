//! Traces of the cpu device: complete, the same however a step is cut, and different from the operation on whose weights differ.

mod common;
#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/gguf_writer.rs"]
mod gguf_writer;
#[path = "common/tiny_llama.rs"]
mod tiny_llama;

use serde_json::Value;
use tiny_llama::TinyLlama;
use worker_orcd::device::cpu::isa::Isa;
use worker_orcd::device::cpu::{CpuOptions, KvType};
use worker_orcd::device::fake::{FakeDevice, FakeOptions};
use worker_orcd::device::{Device, Rows};
use worker_orcd::gguf;
use worker_orcd::model::plan::Plan;
use worker_orcd::model::weights::Weights;
use worker_orcd::model::{arch, lower};
use worker_orcd::quant::TensorType;
use worker_orcd::trace::{TraceError, Traced, record};

const OPTIONS: CpuOptions = CpuOptions {
    context: 256,
    kv: KvType::F32,
    isa: Isa::Scalar,
};

fn plan(file: &[u8]) -> Plan {
    let gguf = gguf::parse(file).expect("a GGUF file");
    let spec = arch::spec(&gguf).expect("a known architecture");
    lower::lower(&spec, spec.context_length)
}

/// More tokens than a step takes.
fn tokens() -> Vec<u32> {
    (0..70).map(|i| i * i % 77).collect()
}

/// The lines of a trace of the tokens on the cpu.
fn traced(file: &[u8], tokens: &[u32]) -> Vec<Value> {
    let op_names = plan(file).op_names();
    let mut device = common::cpu_device(file.to_vec(), OPTIONS);
    let traced = Traced {
        model: "tiny",
        device: "cpu",
        op_names: &op_names,
        tokens,
    };
    let lines = record(&mut device, traced).expect("a trace");
    let lines = String::from_utf8(lines).expect("text");
    let parse = |line: &str| serde_json::from_str(line).expect("JSON");
    lines.lines().map(parse).collect()
}

/// The hashes of an operation, by position.
fn hashes<'a>(trace: &'a [Value], op: &str) -> Vec<&'a Value> {
    let lines = trace.iter().filter(|line| line["op"] == op);
    lines.map(|line| &line["hash"]).collect()
}

/// The operations in the order in which they come.
fn ops(trace: &[Value]) -> Vec<&str> {
    let mut ops: Vec<&str> = Vec::new();
    for op in trace.iter().filter_map(|line| line["op"].as_str()) {
        if !ops.contains(&op) {
            ops.push(op);
        }
    }
    ops
}

#[test]
fn every_operation_is_told_at_every_position() {
    let file = TinyLlama::new(TensorType::F32).file();
    let trace = traced(&file, &tokens());
    let layer = |n: usize| {
        let parts = [
            "attn_in.q",
            "attn_in.k",
            "attn_in.v",
            "attend",
            "attn_out",
            "ffn_in",
            "ffn_out",
        ];
        parts.map(|part| format!("{n}.{part}"))
    };
    let want = [
        &["embed".to_owned()][..],
        &layer(0),
        &layer(1),
        &["head".to_owned()],
    ]
    .concat();
    assert_eq!(ops(&trace), want);
    assert_eq!(trace[0]["tokens"].as_array().map(Vec::len), Some(70));
    for op in ops(&trace) {
        let positions: Vec<u64> = trace
            .iter()
            .filter(|line| line["op"] == op)
            .map(|line| line["position"].as_u64().expect("a number"))
            .collect();
        assert_eq!(positions, (0..70).collect::<Vec<u64>>(), "{op}");
    }
    let widths = [
        ("embed", 64),
        ("0.attn_in.q", 60),
        ("1.attn_in.k", 20),
        ("0.attend", 60),
        ("1.ffn_in", 96),
        ("head", 77),
    ];
    for (op, width) in widths {
        let line = trace.iter().find(|line| line["op"] == op).expect("a line");
        assert_eq!(line["width"], width, "{op}");
        let samples = line["samples"].as_array().map(Vec::len);
        let stride = line["stride"].as_u64().expect("a number") as usize;
        assert_eq!(
            (stride, samples),
            (usize::div_ceil(width, 16), Some(width.div_ceil(stride)))
        );
    }
}

#[test]
fn what_is_told_of_the_head_are_the_logits_of_a_step_however_it_is_cut() {
    let file = TinyLlama::new(TensorType::F16).file();
    let trace = traced(&file, &tokens());
    let mut device = common::cpu_device(file, OPTIONS);
    let logits = common::forward(&mut device, &tokens(), 0, 7, Rows::All);
    let heads = trace.iter().filter(|line| line["op"] == "head");
    for (line, logits) in heads.zip(&logits) {
        let (at, largest) = (0..).zip(logits).fold((0, f32::MIN), |best, (at, logit)| {
            if *logit > best.1 { (at, *logit) } else { best }
        });
        let first = &line["top"][0];
        let logit = first[1].as_f64().map(|logit| logit as f32);
        assert_eq!((first[0].as_i64(), logit), (Some(at), Some(largest)));
        assert_eq!(line["top"].as_array().map(Vec::len), Some(8));
        let squares: f64 = logits.iter().map(|l| f64::from(*l).powi(2)).sum();
        assert!((line["l2"].as_f64().expect("a number") - squares.sqrt()).abs() < 1e-9);
    }
}

/// Experts and halves of a layer that are parallel included. Only the hidden layers of experts belong to no position.
#[test]
fn every_architecture_tells_all_of_its_operations_and_its_logits() {
    for fixture in fixtures::all() {
        let tokens = &fixture.prompts.last().expect("a prompt").tokens;
        let trace = traced(&fixture.gguf, tokens);
        let told = ops(&trace);
        for op in plan(&fixture.gguf).op_names() {
            let is_told = told.iter().any(|told| told.starts_with(&op));
            assert_eq!(
                is_told,
                !op.ends_with("experts_in"),
                "{}: {op}",
                fixture.name
            );
        }
        let mut device = common::cpu_device(fixture.gguf.clone(), OPTIONS);
        let logits = common::forward(&mut device, tokens, 0, 7, Rows::All);
        let heads = trace.iter().filter(|line| line["op"] == "head");
        for (line, logits) in heads.zip(&logits) {
            let largest = logits.iter().copied().fold(f32::MIN, f32::max);
            let told = line["max"].as_f64().map(|max| max as f32);
            assert_eq!(told, Some(largest), "{}", fixture.name);
        }
    }
}

#[test]
fn a_model_agrees_with_itself_and_a_changed_weight_shows_at_its_operation() {
    let file = TinyLlama::new(TensorType::F32).file();
    let right = traced(&file, &tokens());
    assert_eq!(right, traced(&file, &tokens()));
    for (tensor, op) in [
        ("blk.0.attn_v.weight", "0.attn_in.v"),
        ("blk.1.ffn_up.weight", "1.ffn_in"),
        ("blk.1.ffn_down.weight", "1.ffn_out"),
        ("output.weight", "head"),
    ] {
        let (plan, gguf) = (plan(&file), gguf::parse(&file).expect("a GGUF file"));
        let weights = Weights::claim(&plan, &gguf).expect("every tensor");
        let at = plan
            .tensors
            .iter()
            .position(|t| t.name == tensor)
            .expect(tensor);
        let offset = weights.iter().nth(at).expect("a weight").offset;
        let mut wrong = file.clone();
        // The sign of the first number.
        wrong[offset + 3] ^= 0x80;
        let wrong = traced(&wrong, &tokens());
        let differs = |op: &&&str| hashes(&right, op) != hashes(&wrong, op);
        assert_eq!(ops(&right).iter().find(differs), Some(&op), "{tensor}");
    }
}

#[test]
fn what_cannot_be_traced_is_said() {
    let file = TinyLlama::new(TensorType::F32).file();
    let mut device = common::cpu_device(file, OPTIONS);
    let ask = |device: &mut dyn Device, tokens: &[u32]| {
        let traced = Traced {
            model: "",
            device: "",
            op_names: &[],
            tokens,
        };
        record(device, traced).expect_err("an error")
    };
    assert!(matches!(ask(&mut device, &[]), TraceError::NoTokens));
    let long = [1; 257];
    assert!(matches!(
        ask(&mut device, &long),
        TraceError::TooLong {
            tokens: 257,
            room: 256
        }
    ));
    assert!(ask(&mut device, &[77]).to_string().contains("token id 77"));
    let mut fake = FakeDevice::new(FakeOptions::default(), 256, 262);
    assert!(ask(&mut fake, &[1]).to_string().contains("--device cpu"));
}
