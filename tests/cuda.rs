//! The cuda device against the cpu device, and against the reference. Without a card every test says SKIP.
#![cfg(feature = "cuda")]

#[path = "common/mod.rs"]
mod common;
#[path = "common/gguf_writer.rs"]
mod gguf_writer;
#[path = "common/tiny_llama.rs"]
mod tiny_llama;

use std::time::{Duration, Instant};

use common::card::device;
use common::reference::{Bounds, Figures, cases};
use tiny_llama::{Head, TinyLlama};
use worker_orcd::device::cpu::CpuOptions;
use worker_orcd::device::cpu::isa::Isa;
use worker_orcd::device::cuda::CudaDevice;
use worker_orcd::device::{Device, KvType, PageId, Rows, Step};
use worker_orcd::quant::TensorType;
use worker_orcd::sampling::{SampleStep, SamplingParams};

fn tokens(n: u32, vocab: usize) -> Vec<u32> {
    (0..n)
        .map(|i| (i * i * 7 + i * 3 + 5) % vocab as u32)
        .collect()
}

/// The largest difference, as a share of the largest logit.
fn difference(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().flatten().fold(0.0f32, |m, v| m.max(v.abs()));
    let pairs = ours.iter().flatten().zip(theirs.iter().flatten());
    pairs.fold(0.0f32, |m, (a, b)| {
        if a.is_nan() {
            f32::INFINITY
        } else {
            m.max((a - b).abs())
        }
    }) / largest
}

/// A shape of so many query heads over so many key heads of a width, of which so much is rotated.
fn heads(
    of: TinyLlama,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    rope_dims: usize,
) -> TinyLlama {
    TinyLlama {
        n_heads,
        n_kv_heads,
        head_dim,
        rope_dims,
        ..of
    }
}

fn shapes() -> Vec<(String, TinyLlama)> {
    static MIXED: [TensorType; TensorType::ALL.len()] = TensorType::ALL;
    let of = TinyLlama::new;
    let tied = |shape| TinyLlama {
        head: Head::Tied,
        ..shape
    };
    let mut all: Vec<(String, TinyLlama)> = TensorType::ALL
        .iter()
        .map(|k| (k.name().to_owned(), of(*k)))
        .collect();
    let more = [
        (
            "group of 1, heads of 64",
            heads(of(TensorType::Q8_0), 2, 2, 64, 64),
        ),
        (
            "group of 4, heads of 128",
            heads(of(TensorType::Q4_K), 8, 2, 128, 128),
        ),
        (
            "group of 7, heads of 96",
            heads(of(TensorType::Q6_K), 7, 1, 96, 48),
        ),
        (
            "heads of 256",
            tied(heads(of(TensorType::Q5_0), 4, 1, 256, 256)),
        ),
        (
            "odd widths",
            TinyLlama {
                n_embd: 33,
                n_ff: 75,
                ..heads(of(TensorType::F32), 3, 3, 10, 2)
            },
        ),
        (
            "odd widths in f16",
            tied(TinyLlama {
                n_embd: 50,
                n_ff: 75,
                ..of(TensorType::F16)
            }),
        ),
        (
            "all types",
            TinyLlama {
                matrices: &MIXED,
                n_layers: 4,
                ..of(TensorType::Q4_K)
            },
        ),
    ];
    all.extend(more.map(|(name, shape)| (name.to_owned(), shape)));
    all.extend(large_groups());
    all
}

/// More query heads on a key head than a launch has room for.
fn large_groups() -> [(String, TinyLlama); 2] {
    let of = |n_heads, n_kv, dim, kind| heads(TinyLlama::new(kind), n_heads, n_kv, dim, dim);
    [
        ("group of 19, heads of 64", of(38, 2, 64, TensorType::Q8_0)),
        ("group of 71, heads of 10", of(71, 1, 10, TensorType::F16)),
    ]
    .map(|(name, shape)| (name.to_owned(), shape))
}

#[test]
fn says_what_the_cpu_says_in_pieces_of_any_size() {
    let _alone = common::alone();
    let mut wrong = Vec::new();
    for (name, shape) in shapes() {
        let tokens = tokens(513, shape.n_vocab);
        for kv in [KvType::F32, KvType::F16, KvType::Q8_0] {
            let options = CpuOptions {
                context: 768,
                kv,
                isa: Isa::best(),
            };
            let theirs = common::forward(
                &mut common::cpu_device(shape.file(), options),
                &tokens,
                0,
                64,
                Rows::All,
            );
            let Some(mut device) = device(shape.file(), 768, kv) else {
                return;
            };
            for piece in [1, 2, 5, 8, 9, 130, 513] {
                let ours = common::forward(&mut device, &tokens, 0, piece, Rows::All);
                let off = difference(&ours, &theirs);
                // activations of 16 bits, or f16 products; a number of Q8_0 that is rounded after them may fall to the other side, by 1/127 of
                // its block's largest, which is as much as rounding costs
                let bound = match (kv, piece > 8) {
                    (KvType::F32, false) => 3e-4,
                    (KvType::F16, false) => 2e-3,
                    (KvType::Q8_0, false) => 2e-2,
                    (KvType::F32 | KvType::F16, true) => 6e-3,
                    (KvType::Q8_0, true) => 5e-2,
                };
                common::say(&format!("{name}, {kv:?}, pieces of {piece}: {off:.1e}"));
                if off > bound {
                    wrong.push(format!(
                        "{name}, {kv:?}, pieces of {piece}: off by {off:e} of the largest logit"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_row_has_the_same_bits_whatever_the_others() {
    let _alone = common::alone();
    let kvs = [KvType::F16, KvType::Q8_0];
    let all = shapes()
        .into_iter()
        .flat_map(|of| kvs.map(|kv| (of.clone(), kv)));
    for ((name, shape), kv) in all {
        let tokens = tokens(300, shape.n_vocab);
        let Some(mut device) = device(shape.file(), 512, kv) else {
            return;
        };
        let one = common::forward(&mut device, &tokens, 0, 1, Rows::All);
        for piece in [2, 3, 8] {
            let many = common::forward(&mut device, &tokens, 0, piece, Rows::All);
            assert!(one == many, "{name}: pieces of {piece}");
        }
        let long = common::forward(&mut device, &tokens, 0, 300, Rows::All);
        let longer = [
            common::forward(&mut device, &tokens[..150], 0, 150, Rows::All),
            common::forward(&mut device, &tokens[150..], 150, 150, Rows::All),
        ]
        .concat();
        assert!(long == longer, "{name}: a prompt in one piece and in two");
        assert!(
            one == common::forward(&mut device, &tokens, 0, 1, Rows::Last),
            "{name}: the captured step"
        );
    }
}

#[test]
fn tiles_of_any_width_give_the_same_bits() {
    let _alone = common::alone();
    for kind in TensorType::ALL {
        // so many rows that 513 tokens go through wider tiles than 100 do, and blocks through several of them
        let shape = TinyLlama {
            n_ff: 5120,
            n_layers: 1,
            ..TinyLlama::new(kind)
        };
        let tokens = tokens(513, shape.n_vocab);
        let options = CpuOptions {
            context: 768,
            kv: KvType::F16,
            isa: Isa::best(),
        };
        let mut cpu = common::cpu_device(shape.file(), options);
        let theirs = common::forward(&mut cpu, &tokens, 0, 64, Rows::All);
        let Some(mut device) = device(shape.file(), 768, KvType::F16) else {
            return;
        };
        let wide = common::forward(&mut device, &tokens, 0, 513, Rows::All);
        let off = difference(&wide, &theirs);
        common::say(&format!("{}: {off:.1e}", kind.name()));
        assert!(off < 6e-3, "{}: off by {off:e}", kind.name());
        let narrow = common::forward(&mut device, &tokens, 0, 100, Rows::All);
        assert!(wide == narrow, "{}", kind.name());
    }
}

#[test]
fn pages_may_lie_anywhere_and_move() {
    let _alone = common::alone();
    let shape = TinyLlama::new(TensorType::Q4_K);
    let tokens = tokens(300, shape.n_vocab);
    let Some(mut device) = device(shape.file(), 1280, KvType::F16) else {
        return;
    };
    let straight = common::forward(&mut device, &tokens, 0, 1, Rows::Last);
    let run = |device: &mut CudaDevice, pages: &[PageId], from: usize| -> Vec<f32> {
        for (i, token) in tokens.iter().enumerate().skip(from) {
            device
                .forward(Step {
                    pages,
                    tokens: &[*token],
                    position: i,
                    rows: Rows::Last,
                })
                .expect("a step");
            while device
                .poll(Instant::now() + Duration::from_secs(9))
                .expect("a step")
                .is_none()
            {}
        }
        let mut out = vec![0.0; device.capacity().vocab];
        device.read_logits(0, &mut out);
        out
    };
    assert_eq!(run(&mut device, &[PageId(4), PageId(2)], 0), straight[299]);
    device.copy_page(PageId(4), PageId(1)).expect("a copy");
    let mut bytes = vec![0; device.page_bytes()];
    device.read_page(PageId(2), 0, &mut bytes).expect("bytes");
    device.write_page(PageId(3), 0, &bytes).expect("bytes");
    assert_eq!(
        run(&mut device, &[PageId(1), PageId(3)], 299),
        straight[299]
    );
    assert!(device.is_resident().expect("an answer"));
}

#[test]
fn draws_what_the_logits_say() {
    let _alone = common::alone();
    let shape = TinyLlama::new(TensorType::Q8_0);
    let tokens = tokens(20, shape.n_vocab);
    let Some(mut device) = device(shape.file(), 256, KvType::F16) else {
        return;
    };
    for n in 1..tokens.len() {
        let logits = common::forward(&mut device, &tokens[..n], 0, 64, Rows::Last).remove(0);
        let likeliest = (0..logits.len())
            .rev()
            .max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
            .expect("a token");
        let greedy = SamplingParams::GREEDY;
        device
            .sample(SampleStep::new(&greedy, 0.5, &tokens))
            .expect("a draw");
        let Some(worker_orcd::device::Output::Sampled(drawn)) =
            device.poll(Instant::now()).expect("a draw")
        else {
            panic!("nothing was drawn");
        };
        assert_eq!(drawn.token, likeliest as u32);
    }
}

/// A fixture of `tests/data/fixtures`: the file, the context it is for, and for each prompt its tokens and their logits.
struct Fixture {
    name: String,
    file: Vec<u8>,
    context: usize,
    prompts: Vec<(Vec<u32>, Vec<Vec<f32>>)>,
    /// The last logits of the last prompt where the reference rounds keys and values to blocks of Q8_0, too.
    q8_0: Vec<Vec<f32>>,
}

fn fixtures() -> Vec<Fixture> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures");
    let folder = std::env::var_os("WORKER_ORCD_TEST_FIXTURES").map_or(folder, Into::into);
    // a prompt's beginning is a prompt: short ones for tools that make everything slow
    let most = std::env::var("WORKER_ORCD_TEST_TOKENS")
        .map_or(usize::MAX, |n| n.parse().expect("a number"));
    let mut all: Vec<Fixture> = std::fs::read_dir(folder)
        .expect("fixtures")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let meta = std::fs::read(path.join("meta.json")).expect("meta.json");
            let meta: serde_json::Value = serde_json::from_slice(&meta).expect("JSON");
            let number = |v: &serde_json::Value| v.as_u64().expect("a number") as usize;
            let vocab = number(&meta["n_vocab"]);
            let logits = std::fs::read(path.join("logits.f32")).expect("logits");
            let logits: Vec<f32> = bytemuck::pod_collect_to_vec(&logits);
            let prompt = |p: &serde_json::Value| {
                let tokens: Vec<u32> = p["tokens"]
                    .as_array()
                    .expect("tokens")
                    .iter()
                    .map(|t| number(t) as u32)
                    .collect();
                let tokens = tokens[..tokens.len().min(most)].to_vec();
                let first = number(&p["first_row"]);
                let rows = logits[first * vocab..]
                    .chunks(vocab)
                    .take(tokens.len())
                    .map(<[f32]>::to_vec);
                (tokens.clone(), rows.collect())
            };
            let rounded = std::fs::read(path.join("logits-kv-q8_0.f32")).expect("logits");
            let rounded: Vec<f32> = bytemuck::pod_collect_to_vec(&rounded);
            Fixture {
                q8_0: rounded.chunks(vocab).map(<[f32]>::to_vec).collect(),
                name: path
                    .file_name()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned(),
                file: std::fs::read(path.join("model.gguf")).expect("the model"),
                context: number(&meta["context"]),
                prompts: meta["prompts"]
                    .as_array()
                    .expect("prompts")
                    .iter()
                    .map(prompt)
                    .collect(),
            }
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

#[test]
fn every_architecture_says_what_its_reference_says() {
    let _alone = common::alone();
    let mut wrong = Vec::new();
    for fixture in fixtures() {
        // of f16, 2e-3 are the cache's (tests/fixtures.rs)
        for (kv, bound) in [(KvType::F32, 1e-3f32), (KvType::F16, 3e-3)] {
            let Some(mut device) = device(fixture.file.clone(), fixture.context, kv) else {
                return;
            };
            for (i, (tokens, reference)) in fixture.prompts.iter().enumerate() {
                let name = &fixture.name;
                let bits = common::forward(&mut device, tokens, 0, 1, Rows::Last);
                for (piece, bound) in [(1, bound), (3, bound), (tokens.len(), bound.max(1e-2))] {
                    let ours = common::forward(&mut device, tokens, 0, piece, Rows::All);
                    let off = difference(&ours, reference);
                    common::say(&format!(
                        "{name}, {kv:?}, prompt {i} in pieces of {piece}: {off:.1e}"
                    ));
                    if off > bound {
                        wrong.push(format!(
                            "{name}, {kv:?}, prompt {i} in pieces of {piece}: off by {off:e}"
                        ));
                    }
                    if piece <= 8 && ours != bits {
                        wrong.push(format!("{name}: pieces of {piece} change bits"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_cache_of_q8_0_is_the_reference_with_keys_and_values_in_blocks() {
    let _alone = common::alone();
    let mut wrong = Vec::new();
    // a prompt's beginning has other last logits
    let whole = std::env::var_os("WORKER_ORCD_TEST_TOKENS").is_none();
    for fixture in fixtures().into_iter().filter(|_| whole) {
        let Some(mut device) = device(fixture.file, fixture.context, KvType::Q8_0) else {
            return;
        };
        let (tokens, _) = fixture.prompts.last().expect("a prompt");
        let first = tokens.len() - fixture.q8_0.len();
        for (piece, bound) in [(1, 8e-3), (8, 8e-3), (64, 2e-2)] {
            let ours = common::forward(&mut device, tokens, 0, piece, Rows::All);
            let off = difference(&ours[first..], &fixture.q8_0);
            let told = format!("{}, pieces of {piece}: off by {off:.1e}", fixture.name);
            common::say(&told);
            if off > bound {
                wrong.push(told);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A choice of experts has no tolerance, so that a few rows may go another way; the others agree.
#[test]
fn experts_say_together_what_they_say_one_by_one() {
    let _alone = common::alone();
    let of_experts = |f: &Fixture| f.name.starts_with("gpt-oss") || f.name.ends_with("moe");
    for fixture in fixtures().into_iter().filter(of_experts) {
        let Some(mut device) = device(fixture.file, 512, KvType::F16) else {
            return;
        };
        let tokens = tokens(500, device.capacity().vocab);
        let single = common::forward(&mut device, &tokens, 0, 8, Rows::All);
        let together = common::forward(&mut device, &tokens, 0, 500, Rows::All);
        let agree =
            |(a, b): &(&Vec<f32>, &Vec<f32>)| difference(&[a.to_vec()], &[b.to_vec()]) < 3e-2;
        let n = together.iter().zip(&single).filter(agree).count();
        common::say(&format!("{}: {n} of 500 rows agree", fixture.name));
        assert!(n >= 450, "{}: {n} of 500 rows agree", fixture.name);
        let in_two = [
            common::forward(&mut device, &tokens[..200], 0, 200, Rows::All),
            common::forward(&mut device, &tokens[200..], 200, 300, Rows::All),
        ];
        assert!(
            in_two.concat() == together,
            "{}: in two pieces",
            fixture.name
        );
    }
}

#[test]
fn the_real_model_says_what_the_reference_says() {
    let _alone = common::alone();
    let Some(path) = common::model_path() else {
        return;
    };
    let Some(mut device) = device(
        std::fs::read(path).expect("the model's file"),
        512,
        KvType::F16,
    ) else {
        return;
    };
    let (mut prefilled, mut decoded) = (Figures::default(), Figures::default());
    for case in cases() {
        let all: Vec<u32> = case
            .prompt
            .iter()
            .chain(&case.generated[..case.generated.len() - 1])
            .copied()
            .collect();
        let first = case.prompt.len() - 1;
        let whole = common::forward(&mut device, &all, 0, 512, Rows::All);
        for (logits, reference) in whole[first..].iter().zip(&case.top) {
            prefilled.add(logits, reference);
        }
        common::forward(&mut device, &case.prompt[..first], 0, 1, Rows::None);
        let stepwise = common::forward(&mut device, &all[first..], first, 1, Rows::Last);
        for (logits, reference) in stepwise.iter().zip(&case.top) {
            decoded.add(logits, reference);
        }
    }
    let bounds = Bounds {
        clear_min: 1.0,
        top1_min: 0.995,
        delta_max: 0.01,
        weighted_max: 1e-3,
    };
    prefilled.check("prefilled whole", bounds);
    decoded.check("decoded step by step", bounds);
}
