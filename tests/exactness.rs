//! The worker says what the model says: teacher-forced against an exact float32 forward pass over the same file.

mod common;

use common::reference::{Bounds, Figures, cases};
use worker_orcd::device::cpu::KvType;
use worker_orcd::device::cpu::isa::Isa;
use worker_orcd::device::{Device, Rows};

const BOUNDS: Bounds = Bounds {
    clear_min: 1.0,
    top1_min: 0.998,
    delta_max: 0.005,
    weighted_max: 1e-4,
};

/// What a cache of 8 bits may cost: it does 0.9958, 0.9875, 0.0448 and 2.1e-3.
const BOUNDS_Q8_0: Bounds = Bounds {
    clear_min: 0.99,
    top1_min: 0.985,
    delta_max: 0.05,
    weighted_max: 2.5e-3,
};

#[test]
fn agrees_with_the_reference_prefilled_and_decoded() {
    agrees(KvType::F16, BOUNDS);
}

#[test]
fn agrees_nearly_with_keys_and_values_in_q8_0() {
    agrees(KvType::Q8_0, BOUNDS_Q8_0);
}

#[track_caller]
fn agrees(kv: KvType, bounds: Bounds) {
    let Some(path) = common::model_path() else {
        return;
    };
    let mut device = common::real_device(&path, 512, kv, Isa::best());
    common::say(&format!("kernels: {}", device.name()));
    let (mut prefilled, mut decoded) = (Figures::default(), Figures::default());
    for case in cases() {
        let steps = case.generated.len();
        let all: Vec<u32> = case
            .prompt
            .iter()
            .chain(&case.generated[..steps - 1])
            .copied()
            .collect();
        let piece = device.capacity().step_tokens_max;
        let first = case.prompt.len() - 1;
        let whole = common::forward(&mut device, &all, 0, piece, Rows::All);
        assert_eq!(whole.len(), all.len(), "{}", case.id);
        for (logits, reference) in whole[first..].iter().zip(&case.top) {
            prefilled.add(logits, reference);
        }
        common::forward(&mut device, &case.prompt[..first], 0, piece, Rows::None);
        let stepwise = common::forward(&mut device, &all[first..], first, 1, Rows::Last);
        for (logits, reference) in stepwise.iter().zip(&case.top) {
            decoded.add(logits, reference);
        }
        assert!(
            whole[first..] == stepwise[..],
            "{}: prefilled and decoded logits differ in their bits",
            case.id
        );
    }
    prefilled.check(&format!("{kv:?}, prefilled whole"), bounds);
    decoded.check(&format!("{kv:?}, decoded step by step"), bounds);
}
