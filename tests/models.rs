//! Whole models on the cpu device against an independent forward pass in double precision, and what no cutting, paging or
//! interruption may change.

mod common;
#[path = "common/gguf_writer.rs"]
mod gguf_writer;
#[path = "common/tiny_llama.rs"]
mod tiny_llama;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tiny_llama::{EPS, Head, Scaling, TinyLlama};
use worker_orcd::device::cpu::isa::Isa;
use worker_orcd::device::cpu::{CpuDevice, CpuOptions, KvType};
use worker_orcd::device::{Device, DeviceError, Output, PAGE_TOKENS, PageId, Rows, Step};
use worker_orcd::gguf;
use worker_orcd::quant::TensorType;
use worker_orcd::sampling::{SampleStep, SamplingParams};

/// Logits, one row a position.
type Logits = Vec<Vec<f32>>;

/// The forward pass of a llama as the papers have it: one token after another, every number an f64, nothing shared with the device
/// but the file and the naive decoding of its blocks.
struct Reference {
    shape: TinyLlama,
    tensors: HashMap<String, Vec<f64>>,
    /// Keys and values so far, by layer: one (n_kv_heads × head_dim) row a position.
    keys: Vec<Vec<Vec<f64>>>,
    values: Vec<Vec<Vec<f64>>>,
}

impl Reference {
    fn new(shape: TinyLlama) -> Self {
        let file = shape.file();
        let gguf = gguf::parse(&file).expect("a GGUF file");
        let decode = |tensor: &gguf::TensorInfo| {
            let kind = TensorType::from_ggml(tensor.ggml_type.name()).expect("a known type");
            let bytes = gguf.tensor_bytes(&file, tensor).expect("its bytes");
            let mut weights = vec![0.0; tensor.elements() as usize];
            kind.dequantize(bytes, &mut weights).expect("whole blocks");
            (
                tensor.name.clone(),
                weights.into_iter().map(f64::from).collect(),
            )
        };
        let tensors = gguf.tensors.iter().map(decode).collect();
        let nothing = vec![Vec::new(); shape.n_layers];
        Self {
            shape,
            tensors,
            keys: nothing.clone(),
            values: nothing,
        }
    }

    /// Logits after each of `tokens`, which follow what was there before.
    fn forward(&mut self, tokens: &[u32]) -> Vec<Vec<f64>> {
        tokens
            .iter()
            .map(|token| self.token(*token as usize))
            .collect()
    }

    fn token(&mut self, token: usize) -> Vec<f64> {
        let n_embd = self.shape.n_embd;
        let mut x = self.tensors["token_embd.weight"][token * n_embd..][..n_embd].to_vec();
        for layer in 0..self.shape.n_layers {
            let attended = self.attention(layer, &x);
            add(&mut x, &attended);
            let fed = self.feed_forward(layer, &x);
            add(&mut x, &fed);
        }
        let head = match self.shape.head {
            Head::Tied => "token_embd.weight",
            Head::Separate => "output.weight",
        };
        self.product(head, &self.norm("output_norm.weight", &x))
    }

    fn attention(&mut self, layer: usize, x: &[f64]) -> Vec<f64> {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let xn = self.norm(&name("attn_norm"), x);
        let position = self.keys[layer].len();
        let q = self.rotated(self.product(&name("attn_q"), &xn), position);
        let k = self.rotated(self.product(&name("attn_k"), &xn), position);
        let v = self.product(&name("attn_v"), &xn);
        self.keys[layer].push(k);
        self.values[layer].push(v);
        let d = self.shape.head_dim;
        let group = self.shape.n_heads / self.shape.n_kv_heads;
        let heads = q.chunks(d).enumerate().flat_map(|(head, q)| {
            let slice = head / group * d..head / group * d + d;
            let score = |k: &Vec<f64>| dot(q, &k[slice.clone()]) / (d as f64).sqrt();
            let weights: Vec<f64> = self.keys[layer].iter().map(|k| score(k).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut out = vec![0.0; d];
            for (weight, v) in weights.iter().zip(&self.values[layer]) {
                out.iter_mut()
                    .zip(&v[slice.clone()])
                    .for_each(|(o, v)| *o += weight / total * v);
            }
            out
        });
        self.product(&name("attn_output"), &heads.collect::<Vec<_>>())
    }

    fn feed_forward(&self, layer: usize, x: &[f64]) -> Vec<f64> {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let xn = self.norm(&name("ffn_norm"), x);
        let (gate, up) = (
            self.product(&name("ffn_gate"), &xn),
            self.product(&name("ffn_up"), &xn),
        );
        let hidden: Vec<f64> = gate
            .iter()
            .zip(&up)
            .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
            .collect();
        self.product(&name("ffn_down"), &hidden)
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let root = (dot(x, x) / x.len() as f64 + f64::from(EPS)).sqrt();
        x.iter()
            .zip(&self.tensors[name])
            .map(|(x, w)| x / root * w)
            .collect()
    }

    fn product(&self, name: &str, x: &[f64]) -> Vec<f64> {
        self.tensors[name]
            .chunks(x.len())
            .map(|row| dot(row, x))
            .collect()
    }

    /// Heads with their pairs of neighbours turned, as far as they are turned at all.
    fn rotated(&self, mut heads: Vec<f64>, position: usize) -> Vec<f64> {
        let dims = self.shape.rope_dims;
        for head in heads.chunks_mut(self.shape.head_dim) {
            for (i, pair) in head[..dims].chunks_mut(2).enumerate() {
                let divisor = match self.shape.scaling {
                    Scaling::None => 1.0,
                    Scaling::Linear(factor) => f64::from(factor),
                    Scaling::Factors => self.tensors["rope_freqs.weight"][i],
                };
                let plain = f64::from(self.shape.rope_base).powf(-2.0 * i as f64 / dims as f64);
                let (sin, cos) = (position as f64 * plain / divisor).sin_cos();
                (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
            }
        }
        heads
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Fails unless every logit is within `tolerance` × the reference's largest of what the reference has.
#[track_caller]
fn assert_close(what: &str, ours: &[Vec<f32>], reference: &[Vec<f64>], tolerance: f64) {
    assert_eq!(ours.len(), reference.len(), "{what}: positions");
    let largest = reference
        .iter()
        .flatten()
        .fold(0.0f64, |a, b| a.max(b.abs()));
    let mut worst = (0.0f64, 0, 0);
    for (position, (ours, reference)) in ours.iter().zip(reference).enumerate() {
        assert_eq!(ours.len(), reference.len(), "{what}: vocabulary");
        for (token, (ours, reference)) in ours.iter().zip(reference).enumerate() {
            let off = (f64::from(*ours) - reference).abs() / largest;
            assert!(
                !off.is_nan(),
                "{what}: logit {token} at position {position} is {ours}"
            );
            worst = if off > worst.0 {
                (off, position, token)
            } else {
                worst
            };
        }
    }
    let (off, position, token) = worst;
    eprintln!("{what}: at most {off:.1e} of {largest:.2} off");
    assert!(
        off <= tolerance,
        "{what}: logit {token} at position {position} is off by {off:e} of the largest"
    );
}

/// Ids that repeat in no short pattern.
fn tokens(n: u32, vocab: usize) -> Vec<u32> {
    (0..n)
        .map(|i| (i * i * 7 + i * 3 + 5) % vocab as u32)
        .collect()
}

fn device_of(shape: &TinyLlama, context: usize, kv: KvType, isa: Isa) -> CpuDevice {
    common::cpu_device(shape.file(), CpuOptions { context, kv, isa })
}

fn best(shape: &TinyLlama) -> CpuDevice {
    device_of(shape, 512, KvType::F16, Isa::best())
}

/// Every test that is about bits, not about numbers, runs over these.
fn shapes() -> Vec<TinyLlama> {
    let of = TinyLlama::new;
    vec![
        TinyLlama {
            n_kv_heads: 3,
            head_dim: 8,
            rope_dims: 8,
            n_embd: 32,
            ..of(TensorType::Q4_0)
        },
        TinyLlama {
            n_embd: 96,
            n_layers: 3,
            ..of(TensorType::Q4_1)
        },
        TinyLlama {
            head: Head::Tied,
            head_dim: 14,
            ..of(TensorType::Q8_0)
        },
        TinyLlama {
            n_embd: 50,
            n_ff: 75,
            head: Head::Tied,
            ..of(TensorType::F16)
        },
        TinyLlama {
            n_embd: 33,
            n_kv_heads: 3,
            head_dim: 10,
            rope_dims: 2,
            ..of(TensorType::F32)
        },
        wide(),
        mixed(),
    ]
}

/// Every tensor type in one file, in the rows of every width but attention's output.
fn mixed() -> TinyLlama {
    TinyLlama {
        matrices: &MIXED,
        n_layers: 4,
        ..TinyLlama::new(TensorType::Q4_K)
    }
}

/// In the order of [`TensorType::ALL`].
static MIXED: [TensorType; TensorType::ALL.len()] = TensorType::ALL;

/// Seven wide heads over one: so much attention at 300 positions that a tile of plain Rust takes one head at a time.
fn wide() -> TinyLlama {
    TinyLlama {
        n_heads: 7,
        head_dim: 72,
        rope_dims: 72,
        n_layers: 1,
        ..TinyLlama::new(TensorType::F16)
    }
}

/// Runs a step to its end and appends the logits of every token to `logits`.
fn step(
    device: &mut CpuDevice,
    pages: &[PageId],
    tokens: &[u32],
    position: usize,
    logits: &mut Logits,
) {
    device
        .forward(Step {
            pages,
            tokens,
            position,
            rows: Rows::All,
        })
        .expect("a step");
    finish(device);
    logits.extend((0..tokens.len()).map(|row| read(device, row)));
}

fn finish(device: &mut CpuDevice) {
    let far = Instant::now() + Duration::from_secs(60);
    assert_eq!(device.poll(far).expect("a step"), Some(Output::Forwarded));
}

fn read(device: &mut CpuDevice, row: usize) -> Vec<f32> {
    let mut out = vec![0.0; device.capacity().vocab];
    device.read_logits(row, &mut out);
    out
}

/// A sequence in pages of its own choice, in pieces.
fn run(device: &mut CpuDevice, pages: &[PageId], tokens: &[u32], piece: usize) -> Logits {
    let mut logits = Vec::new();
    for (i, part) in tokens.chunks(piece).enumerate() {
        step(device, pages, part, i * piece, &mut logits);
    }
    logits
}

#[test]
fn every_tensor_type_says_what_the_reference_says() {
    for kind in TensorType::ALL {
        let shape = TinyLlama::new(kind);
        let tokens = tokens(70, shape.n_vocab);
        let reference = Reference::new(shape).forward(&tokens);
        for (kv, tolerance) in [
            (KvType::F32, 1e-5),
            (KvType::F16, 2e-3),
            (KvType::Q8_0, 3e-2),
        ] {
            let mut device = device_of(&shape, 256, kv, Isa::best());
            let what = format!("{} over {kv:?}", kind.name());
            assert_close(
                &what,
                &common::forward(&mut device, &tokens, 0, 64, Rows::All),
                &reference,
                tolerance,
            );
        }
    }
}

#[test]
fn every_tensor_type_in_one_file_says_what_the_reference_says() {
    let tokens = tokens(70, mixed().n_vocab);
    let file = mixed().file();
    let gguf = gguf::parse(&file).expect("a GGUF file");
    for kind in TensorType::ALL {
        let of_kind = |t: &gguf::TensorInfo| t.ggml_type.name() == kind.name() && t.dims.len() == 2;
        assert!(gguf.tensors.iter().any(of_kind), "no {}", kind.name());
    }
    let reference = Reference::new(mixed()).forward(&tokens);
    let mut device = device_of(&mixed(), 256, KvType::F32, Isa::best());
    let ours = common::forward(&mut device, &tokens, 0, 64, Rows::All);
    assert_close("all types", &ours, &reference, 1e-5);
}

#[test]
fn every_shape_says_what_the_reference_says() {
    for shape in shapes() {
        let tokens = tokens(70, shape.n_vocab);
        let reference = Reference::new(shape).forward(&tokens);
        let mut device = device_of(&shape, 256, KvType::F32, Isa::best());
        let ours = common::forward(&mut device, &tokens, 0, 64, Rows::All);
        assert_close(&format!("{shape:?}"), &ours, &reference, 1e-5);
    }
}

#[test]
fn scaled_positions_say_what_the_reference_says_and_something_else_than_plain_ones() {
    let plain = TinyLlama::new(TensorType::F32);
    let tokens = tokens(70, plain.n_vocab);
    let unscaled = Reference::new(plain).forward(&tokens);
    for scaling in [Scaling::Linear(4.0), Scaling::Factors] {
        let shape = TinyLlama { scaling, ..plain };
        let reference = Reference::new(shape).forward(&tokens);
        let mut device = device_of(&shape, 256, KvType::F32, Isa::best());
        let ours = common::forward(&mut device, &tokens, 0, 64, Rows::All);
        assert_close(&format!("{scaling:?}"), &ours, &reference, 1e-5);
        let moved = ours[69]
            .iter()
            .zip(&unscaled[69])
            .fold(0.0f64, |a, (o, u)| a.max((f64::from(*o) - u).abs()));
        assert!(moved > 1e-2, "{scaling:?} changes nothing");
        // at position 0 there is nothing to turn
        assert_close(
            &format!("{scaling:?} at 0"),
            &ours[..1],
            &unscaled[..1],
            1e-5,
        );
    }
}

#[test]
fn a_sequence_over_two_pages_says_what_the_reference_says_in_any_pages() {
    for shape in [TinyLlama::new(TensorType::Q4_1), wide()] {
        let tokens = tokens(300, shape.n_vocab);
        assert!(tokens.len() > PAGE_TOKENS);
        let reference = Reference::new(shape).forward(&tokens);
        let mut device = device_of(&shape, 4 * PAGE_TOKENS, KvType::F32, Isa::best());
        let in_order = run(&mut device, &[PageId(0), PageId(1)], &tokens, 64);
        assert_close("two pages", &in_order, &reference, 1e-5);
        for pages in [[3, 0], [1, 2], [2, 1]] {
            let shuffled = run(&mut device, &pages.map(PageId), &tokens, 64);
            assert!(shuffled == in_order, "pages {pages:?} change the bits");
        }
    }
}

#[test]
fn pieces_of_any_size_give_the_same_bits() {
    for shape in shapes() {
        let tokens = tokens(70, shape.n_vocab);
        for kv in [KvType::F16, KvType::F32, KvType::Q8_0] {
            let mut device = device_of(&shape, 256, kv, Isa::best());
            let whole = common::forward(&mut device, &tokens, 0, 64, Rows::All);
            for piece in [1, 2, 3, 7, 13] {
                let pieces = common::forward(&mut device, &tokens, 0, piece, Rows::All);
                assert!(whole == pieces, "{shape:?}: pieces of {piece}");
            }
        }
    }
}

#[test]
fn pieces_may_cross_the_end_of_a_page() {
    let shape = TinyLlama {
        n_layers: 1,
        ..TinyLlama::new(TensorType::Q8_0)
    };
    let tokens = tokens(262, shape.n_vocab);
    let mut device = best(&shape);
    let whole = common::forward(&mut device, &tokens, 0, 64, Rows::All);
    for piece in [3, 50] {
        assert!(
            whole == common::forward(&mut device, &tokens, 0, piece, Rows::All),
            "pieces of {piece}"
        );
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let sets = Isa::available();
    eprintln!(
        "compared: {:?}",
        sets.iter().map(|isa| isa.name()).collect::<Vec<_>>()
    );
    for shape in shapes() {
        let tokens = tokens(70, shape.n_vocab);
        for kv in [KvType::F16, KvType::F32, KvType::Q8_0] {
            let of = |isa: &Isa| {
                let mut device = device_of(&shape, 256, kv, *isa);
                let mut logits = common::forward(&mut device, &tokens[..66], 0, 64, Rows::All);
                logits.extend(common::forward(
                    &mut device,
                    &tokens[66..],
                    66,
                    1,
                    Rows::All,
                ));
                logits
            };
            let plain = of(&Isa::Scalar);
            for isa in &sets {
                assert!(
                    of(isa) == plain,
                    "{shape:?}: {} differs from plain Rust",
                    isa.name()
                );
            }
        }
    }
    let tokens = tokens(300, wide().n_vocab);
    let of = |isa: &Isa| {
        common::forward(
            &mut device_of(&wide(), 512, KvType::F16, *isa),
            &tokens,
            0,
            64,
            Rows::Last,
        )
    };
    let plain = of(&Isa::Scalar);
    assert!(
        sets.iter().all(|isa| of(isa) == plain),
        "300 positions over wide heads"
    );
}

#[test]
fn sequences_side_by_side_do_not_disturb_each_other() {
    let shape = TinyLlama::new(TensorType::Q4_0);
    let mut device = device_of(&shape, 4 * PAGE_TOKENS, KvType::F16, Isa::best());
    let (first, second) = (
        tokens(290, shape.n_vocab),
        tokens(300, shape.n_vocab)[10..].to_vec(),
    );
    let (first_pages, second_pages) = ([PageId(2), PageId(0)], [PageId(3), PageId(1)]);
    let first_alone = run(&mut best(&shape), &[PageId(0), PageId(1)], &first, 64);
    let second_alone = run(&mut best(&shape), &[PageId(0), PageId(1)], &second, 64);
    let (mut of_first, mut of_second) = (Vec::new(), Vec::new());
    for (i, (a, b)) in first.chunks(29).zip(second.chunks(29)).enumerate() {
        step(&mut device, &first_pages, a, i * 29, &mut of_first);
        step(&mut device, &second_pages, b, i * 29, &mut of_second);
    }
    assert!(of_first == first_alone && of_second == second_alone);
}

/// A prefix once computed serves any continuation, as often as it is wanted.
#[test]
fn a_sequence_can_be_taken_back_to_any_position() {
    let shape = TinyLlama::new(TensorType::Q4_1);
    let mut device = best(&shape);
    let pages = [PageId(1)];
    let (long, other) = (
        tokens(60, shape.n_vocab),
        tokens(80, shape.n_vocab)[20..].to_vec(),
    );
    let once = run(&mut device, &pages, &long, 64);
    let mut diverted = Vec::new();
    step(&mut device, &pages, &other[..25], 30, &mut diverted);
    let mut again = Vec::new();
    step(&mut device, &pages, &long[30..], 30, &mut again);
    assert!(
        again == once[30..],
        "what stood in the pages before changes the bits"
    );
    assert!(diverted != once[30..55]);
}

#[test]
fn an_aborted_step_leaves_nothing_behind() {
    let shape = TinyLlama::new(TensorType::Q4_1);
    let tokens = tokens(50, shape.n_vocab);
    let pages = [PageId(0)];
    let alone = run(&mut best(&shape), &pages, &tokens, 40);
    let mut device = best(&shape);
    run(&mut device, &pages, &tokens[..40], 40);
    let mut cuts = 0;
    loop {
        let wrong = Step {
            pages: &pages,
            tokens: &tokens[..10],
            position: 40,
            rows: Rows::All,
        };
        device.forward(wrong).expect("a step");
        let past = Instant::now();
        if (0..cuts).any(|_| device.poll(past).expect("a step").is_some()) {
            break;
        }
        device.abort();
        assert_eq!(device.poll(Instant::now()).expect("nothing to do"), None);
        let mut again = Vec::new();
        step(&mut device, &pages, &tokens[40..], 40, &mut again);
        assert!(again == alone[40..], "aborted after {cuts} tiles");
        cuts += 7;
    }
    assert!(cuts > 70, "a step has only {cuts} tiles to stop at");
}

/// Whoever looks at the clock after every tile gets what he gets who waits.
#[test]
fn a_step_in_the_smallest_slices_gives_the_same_bits() {
    for rows in [Rows::None, Rows::Last, Rows::All] {
        let shape = TinyLlama::new(TensorType::Q8_0);
        let tokens = tokens(9, shape.n_vocab);
        let (mut device, mut fresh) = (best(&shape), best(&shape));
        let whole = run(&mut fresh, &[PageId(0)], &tokens, 9);
        device
            .forward(Step {
                pages: &[PageId(0)],
                tokens: &tokens,
                position: 0,
                rows,
            })
            .expect("a step");
        let past = Instant::now();
        let polls =
            (1..10_000).find(|_| device.poll(past).expect("a step") == Some(Output::Forwarded));
        assert!(polls.expect("an end") > 50, "{rows:?}");
        assert_eq!(
            device.poll(past).expect("nothing to do"),
            None,
            "a step is done once"
        );
        match rows {
            Rows::None => {}
            Rows::Last => assert!(read(&mut device, 0) == whole[8]),
            Rows::All => assert!((0..9).all(|row| read(&mut device, row) == whole[row])),
        }
        // and the keys and values that it leaves are those of a whole step
        let (mut next, mut next_of_fresh) = (Vec::new(), Vec::new());
        step(&mut device, &[PageId(0)], &[1], 9, &mut next);
        step(&mut fresh, &[PageId(0)], &[1], 9, &mut next_of_fresh);
        assert!(next == next_of_fresh, "{rows:?}: the token after it");
    }
}

#[test]
fn a_token_is_drawn_from_the_row_that_is_named() {
    let shape = TinyLlama::new(TensorType::F32);
    let tokens = tokens(12, shape.n_vocab);
    let greedy = SamplingParams::GREEDY;
    for (rows, row) in [(Rows::Last, 0), (Rows::All, 11), (Rows::All, 4)] {
        let mut device = best(&shape);
        device
            .forward(Step {
                pages: &[PageId(0)],
                tokens: &tokens,
                position: 0,
                rows,
            })
            .expect("a step");
        finish(&mut device);
        let logits = read(&mut device, row);
        let likeliest =
            (0..77u32).max_by(|a, b| logits[*a as usize].total_cmp(&logits[*b as usize]));
        device
            .sample(SampleStep {
                row,
                ..SampleStep::new(&greedy, 0.5, &tokens)
            })
            .expect("a draw");
        match device
            .poll(Instant::now() + Duration::from_secs(9))
            .expect("a draw")
        {
            Some(Output::Sampled(sampled)) => {
                assert_eq!(Some(sampled.token), likeliest, "{rows:?} {row}")
            }
            other => panic!("{other:?} instead of a token"),
        }
    }
}

/// A step that cannot be: what is wrong, its pages, tokens and position, and a word that the error must have.
type Wrong<'a> = (&'a str, &'a [PageId], &'a [u32], usize, &'a str);

#[test]
fn a_step_that_cannot_be_is_refused_and_the_device_goes_on() {
    let shape = TinyLlama::new(TensorType::Q4_0);
    let mut device = device_of(&shape, 2 * PAGE_TOKENS, KvType::F16, Isa::best());
    let pages = [PageId(0), PageId(1)];
    let expected = run(&mut device, &pages, &[1, 2, 3], 3);
    let (beyond, most) = ([PageId(0), PageId(2)], usize::MAX);
    let cases: [Wrong<'_>; 10] = [
        ("no tokens", &pages, &[], 0, "0 tokens"),
        ("too many tokens", &pages, &[1; 65], 0, "65 tokens"),
        ("beyond the vocabulary", &pages, &[1, 77], 0, "77"),
        ("the largest id", &pages, &[u32::MAX], 0, "4294967295"),
        ("no pages", &[], &[1], 0, "0 pages"),
        ("after the pages", &pages[..1], &[1], 256, "position 257"),
        ("over the pages", &pages, &[1, 2], 511, "position 513"),
        ("the largest position", &pages, &[1, 2], most, "position"),
        ("beyond the pool", &beyond, &[1], 0, "page"),
        ("more than the pool", &[PageId(0); 3], &[1], 0, "page"),
    ];
    for wrong in cases {
        assert_refused(&mut device, wrong);
    }
    assert!(run(&mut device, &pages, &[1, 2, 3], 3) == expected);
}

fn assert_refused(device: &mut CpuDevice, (what, pages, tokens, position, says): Wrong<'_>) {
    let step = Step {
        pages,
        tokens,
        position,
        rows: Rows::All,
    };
    match device.forward(step) {
        Err(DeviceError::Step(e)) => assert!(e.contains(says), "{what}: {e:?} lacks {says:?}"),
        Err(other) => panic!("{what}: {other}"),
        Ok(()) => panic!("{what} is taken"),
    }
    let idle = device.poll(Instant::now()).expect("nothing to do");
    assert_eq!(idle, None, "{what}");
}

/// A token drawn where no logits are would be one of another step's.
#[test]
fn drawing_from_no_logits_is_refused() {
    let greedy = SamplingParams::GREEDY;
    let draw = SampleStep::new(&greedy, 0.5, &[]);
    let mut device = best(&TinyLlama::new(TensorType::F32));
    let refused = |device: &mut CpuDevice| matches!(device.sample(draw), Err(DeviceError::Step(_)));
    assert!(refused(&mut device), "before any step");
    let step = Step {
        pages: &[PageId(0)],
        tokens: &[1, 2],
        position: 0,
        rows: Rows::None,
    };
    device.forward(step).expect("a step");
    finish(&mut device);
    assert!(refused(&mut device), "after a step that asked for none");
}

#[test]
fn a_load_goes_on_where_it_stopped() {
    let shape = TinyLlama {
        n_vocab: 40_000,
        ..TinyLlama::new(TensorType::F32)
    };
    let file = shape.file();
    let gguf = gguf::parse(&file).expect("a GGUF file");
    let spec = worker_orcd::model::arch::spec(&gguf).expect("a llama");
    let plan = worker_orcd::model::lower::lower(&spec, 256);
    let weights = worker_orcd::model::weights::Weights::claim(&plan, &gguf).expect("every tensor");
    let total: u64 = gguf.tensors.iter().map(|t| t.size_bytes).sum();
    let options = CpuOptions {
        context: 256,
        kv: KvType::F16,
        isa: Isa::best(),
    };
    let mut device = CpuDevice::new(plan, weights, Box::new(file), options).expect("memory");
    let past = Instant::now();
    let mut seen = vec![0];
    while seen.last() != Some(&total) {
        let progress = device.load_some(past).expect("a load");
        assert_eq!(progress.total, total);
        assert!(Some(&progress.processed) > seen.last(), "{seen:?}");
        seen.push(progress.processed);
    }
    assert!(seen.len() > 20, "20 MB in {} pieces", seen.len());
}
