//! On the real model: chunks of any size and every instruction set give the same logits, bit for bit.

mod common;

use worker_orcd::device::cpu::KvType;
use worker_orcd::device::cpu::isa::Isa;
use worker_orcd::device::{Device, Rows};

/// Ids that look like text to the model: some common tokens in an order that repeats nowhere.
fn tokens(n: u32) -> Vec<u32> {
    (0..n).map(|i| 200 + i * i * 7 % 3001).collect()
}

#[test]
fn chunks_of_any_size_give_the_same_bits() {
    let Some(path) = common::model_path() else {
        return;
    };
    let tokens = tokens(70);
    for kv in [KvType::F16, KvType::F32, KvType::Q8_0] {
        let mut device = common::real_device(&path, 512, kv, Isa::best());
        let piece = device.capacity().step_tokens_max;
        let whole = common::forward(&mut device, &tokens, 0, piece, Rows::All);
        for piece in [1, 2, 3, 7, 33] {
            let pieces = common::forward(&mut device, &tokens, 0, piece, Rows::All);
            assert!(
                whole == pieces,
                "{kv:?}: pieces of {piece} tokens differ from the whole"
            );
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let Some(path) = common::model_path() else {
        return;
    };
    // plain Rust takes seconds a token here, hence so few
    let tokens = tokens(4);
    let mut of_all: Vec<(Isa, Vec<Vec<f32>>)> = Vec::new();
    for isa in Isa::available() {
        let mut device = common::real_device(&path, 256, KvType::F16, isa);
        let mut logits = common::forward(&mut device, &tokens[..3], 0, 3, Rows::Last);
        logits.extend(common::forward(&mut device, &tokens[3..], 3, 1, Rows::Last));
        of_all.push((isa, logits));
    }
    common::say(&format!(
        "compared: {:?}",
        of_all.iter().map(|(isa, _)| isa.name()).collect::<Vec<_>>()
    ));
    for pair in of_all.windows(2) {
        assert!(
            pair[0].1 == pair[1].1,
            "{} and {} differ",
            pair[0].0.name(),
            pair[1].0.name()
        );
    }
}
