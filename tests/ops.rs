//! Every kernel against its naive twin, over odd shapes and for every instruction set that this machine has; all sets give the same bits.

use half::f16;
use proptest::prelude::*;
use worker_orcd::device::PAGE_TOKENS;
use worker_orcd::device::cpu::integers::{Packed, Rounded, blocks};
use worker_orcd::device::cpu::isa::Isa;
use worker_orcd::device::cpu::kernels::{Attend, Kernels, MatMul, Store, padded};
use worker_orcd::device::cpu::kv::KvElement;
use worker_orcd::device::cpu::moe::Routing;
use worker_orcd::device::cpu::naive;
use worker_orcd::device::cpu::packed::{Form, GROUP, expand_row, pack};
use worker_orcd::device::cpu::program::Choice;
use worker_orcd::model::spec::Gating;
use worker_orcd::quant::{Block, BlockQ8_0, TensorType};

/// Numbers that repeat for a seed, in about -1 to 1.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Where a format's block has halves: scales, and minima.
fn halves(kind: TensorType) -> &'static [usize] {
    match kind {
        TensorType::F32 | TensorType::BF16 | TensorType::Q8_K | TensorType::MXFP4 => &[],
        TensorType::F16 | TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 => &[0],
        TensorType::IQ4_NL | TensorType::IQ4_XS => &[0],
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4_K | TensorType::Q5_K => &[0, 2],
        TensorType::Q2_K => &[80, 82],
        TensorType::Q3_K => &[108],
        TensorType::Q6_K => &[208],
    }
}

/// Bytes of `rows` rows of a format: every quant and scale possible, no infinite scales.
fn weights(kind: TensorType, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let size = kind.block_bytes();
    let blocks = rows * cols / kind.block_len();
    let quants = numbers(seed, blocks * size);
    let mut bytes: Vec<u8> = quants.iter().map(|v| (v * 128.0) as i32 as u8).collect();
    for (block, scale) in bytes.chunks_exact_mut(size).zip(numbers(seed + 1, blocks)) {
        for (at, factor) in halves(kind).iter().zip([1.0, -3.0]) {
            block[*at..at + 2].copy_from_slice(&f16::from_f32(scale * factor).to_le_bytes());
        }
        if kind == TensorType::F32 || kind == TensorType::Q8_K {
            block[..4].copy_from_slice(&scale.to_le_bytes());
        } else if kind == TensorType::BF16 {
            block.copy_from_slice(&scale.to_le_bytes()[2..]);
        } else if kind == TensorType::MXFP4 {
            block[0] &= 0x7f; // at most 1/2
        }
    }
    bytes
}

/// (padded(cols), tokens): zero where padded.
fn activations(cols: usize, tokens: usize, seed: u64) -> Vec<f32> {
    let mut x = vec![0.0; padded(cols) * tokens];
    for (row, values) in x
        .chunks_exact_mut(padded(cols))
        .zip(numbers(seed, cols * tokens).chunks_exact(cols))
    {
        row[..cols].copy_from_slice(values);
    }
    x
}

fn kernel_sets() -> Vec<(Isa, Kernels)> {
    Isa::available()
        .into_iter()
        .filter_map(|isa| isa.kernels().map(|k| (isa, k)))
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// The columns of a format that the kernels must take: any for plain floats, whole blocks for the others.
fn columns(kind: TensorType, n: usize) -> usize {
    n.next_multiple_of(kind.block_len())
}

/// A matrix dealt out to groups of rows.
fn packed(kind: TensorType, weights: &[u8], cols: usize) -> Vec<u8> {
    let form = Form::of(kind).expect("a type that is packed");
    let rows = weights.chunks(GROUP * kind.row_bytes(cols));
    let mut groups = vec![0; rows.len() * form.group_bytes(cols)];
    for (rows, group) in rows.zip(groups.chunks_exact_mut(form.group_bytes(cols))) {
        pack(kind, cols, rows, group);
    }
    groups
}

/// Products of the rows of groups from `skip` on: `out` is (rows, tokens).
fn multiply_packed(
    kernels: &Kernels,
    (kind, groups, cols): (TensorType, &[u8], usize),
    skip: usize,
    x: &[f32],
    tokens: usize,
    store: Store,
    out: &mut [f32],
) {
    let mut rounded = vec![bytemuck::Zeroable::zeroed(); blocks(cols) * tokens];
    let rows = out.len() / tokens;
    // SAFETY: `kernel_sets` holds only what this machine has.
    unsafe {
        for (token, x) in x.chunks_exact(padded(cols)).enumerate() {
            (kernels.round)(x, &mut rounded[token..], tokens);
        }
        let job = Packed {
            kind,
            groups,
            cols,
            skip,
            rows,
            x: &rounded,
            x_stride: tokens,
            tokens,
            store,
            first_row: 0,
            dst_stride: rows,
        };
        (kernels.multiply)(&job, out, &mut vec![f32::NAN; GROUP * tokens]);
    }
}

/// Products of a matrix in the way that its type has.
fn multiply(
    kernels: &Kernels,
    (kind, weights, cols): (TensorType, &[u8], usize),
    x: &[f32],
    tokens: usize,
    store: Store,
    out: &mut [f32],
) {
    if Form::of(kind).is_some() {
        let groups = packed(kind, weights, cols);
        return multiply_packed(kernels, (kind, &groups, cols), 0, x, tokens, store, out);
    }
    let rows = out.len() / tokens;
    let mut scratch = vec![f32::NAN; rows * padded(cols)];
    let job = MatMul {
        kind,
        weights,
        cols,
        x,
        tokens,
        store,
        first_row: 0,
        dst_stride: rows,
    };
    // SAFETY: `kernel_sets` holds only what this machine has.
    unsafe { (kernels.matmul)(&job, out, &mut scratch) };
}

/// The twin's products of all tokens.
fn of_twins(kind: TensorType, weights: &[u8], cols: usize, x: &[f32]) -> Vec<f32> {
    x.chunks_exact(padded(cols))
        .flat_map(|x| naive::matvec(kind, weights, cols, &x[..cols]).expect("whole rows"))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn products_are_the_twins_bits(rows in 1..40usize, cols in 1..300usize, tokens in 1..17usize, seed in 0..1000u64) {
        for kind in TensorType::ALL {
            let cols = columns(kind, cols);
            let (w, x) = (weights(kind, rows, cols, seed), activations(cols, tokens, seed + 7));
            let expected = of_twins(kind, &w, cols, &x);
            for (isa, kernels) in kernel_sets() {
                let mut out = vec![0.5; rows * tokens];
                multiply(&kernels, (kind, &w, cols), &x, tokens, Store::Set, &mut out);
                prop_assert_eq!(bits(&out), bits(&expected), "{} {}", isa.name(), kind.name());
                multiply(&kernels, (kind, &w, cols), &x, tokens, Store::Add, &mut out);
                let doubled: Vec<f32> = expected.iter().map(|v| v + v).collect();
                prop_assert_eq!(bits(&out), bits(&doubled), "{} {} added", isa.name(), kind.name());
            }
        }
    }

    /// Rows from the middle of groups.
    #[test]
    fn some_rows_of_packed_matrices_are_the_twins_bits(rows in 1..60usize, skip in 0..60usize, tokens in 1..5usize, seed in 0..1000u64) {
        for kind in TensorType::ALL {
            let Some(form) = Form::of(kind) else { continue };
            let skip = skip % rows;
            let (cols, wanted) = (512, rows - skip);
            let (w, x) = (weights(kind, rows, cols, seed), activations(cols, tokens, seed + 7));
            let expected: Vec<f32> = of_twins(kind, &w, cols, &x).chunks_exact(rows).flat_map(|row| row[skip..].to_vec()).collect();
            let groups = packed(kind, &w, cols);
            for (isa, kernels) in kernel_sets() {
                let mut out = vec![0.5; wanted * tokens];
                let from = skip / GROUP * form.group_bytes(cols);
                multiply_packed(&kernels, (kind, &groups[from..], cols), skip % GROUP, &x, tokens, Store::Set, &mut out);
                prop_assert_eq!(bits(&out), bits(&expected), "{} {}", isa.name(), kind.name());
            }
        }
    }

    /// Rows of an embedding that is packed for the output's sake.
    #[test]
    fn rows_of_packed_matrices_are_those_of_the_file(rows in 1..40usize, cols in 1..600usize, seed in 0..1000u64) {
        for kind in TensorType::ALL {
            let Some(form) = Form::of(kind) else { continue };
            let cols = columns(kind, cols);
            let bytes = numbers(seed, rows * kind.row_bytes(cols));
            let bytes: Vec<u8> = bytes.iter().map(|v| (v * 128.0) as i32 as u8).collect();
            let groups = packed(kind, &bytes, cols);
            for (r, row) in bytes.chunks_exact(kind.row_bytes(cols)).enumerate() {
                let (mut ours, mut expected) = (vec![f32::NAN; cols], vec![0.0; cols]);
                kind.dequantize(row, &mut expected).expect("whole blocks");
                let group = &groups[r / GROUP * form.group_bytes(cols)..][..form.group_bytes(cols)];
                expand_row(kind, group, r % GROUP, &mut ours);
                for (k, (ours, wanted)) in ours.iter().zip(&expected).enumerate() {
                    let same = ours.to_bits() == wanted.to_bits() || ours.is_nan() && wanted.is_nan();
                    prop_assert!(same, "{}: weight {} of row {} is {:?}, not {:?}", kind.name(), k, r, ours, wanted);
                }
            }
        }
    }

    /// A block's numbers are what the format defines, and sums of integers stay close to those of floats.
    #[test]
    fn packed_products_are_close_to_those_of_floats(rows in 1..20usize, cols in 1..600usize, seed in 0..1000u64) {
        for kind in TensorType::ALL {
            let cols = columns(kind, cols);
            let (w, x) = (weights(kind, rows, cols, seed), activations(cols, 1, seed + 7));
            let ours = of_twins(kind, &w, cols, &x);
            for (row, ours) in w.chunks_exact(kind.row_bytes(cols)).zip(ours) {
                let mut weights = vec![0.0; cols];
                kind.dequantize(row, &mut weights).expect("whole blocks");
                let products = || weights.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let (exact, size) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
                prop_assert!((f64::from(ours) - exact).abs() <= 4e-6 * size, "{}: {ours} is not {exact}", kind.name());
            }
        }
    }

    /// Activations of any size, infinite ones and those that are no numbers included, are rounded as by the twin.
    #[test]
    fn activations_are_rounded_as_by_the_twin(seed in 0..1000u64, exponent in -130..128i32, odd in proptest::option::of((0..32usize, 0..4usize))) {
        let mut x: Vec<f32> = numbers(seed, 32).iter().map(|v| (f64::from(*v) * 2f64.powi(exponent)) as f32).collect();
        if let Some((at, which)) = odd {
            x[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX][which];
        }
        let (expected, worth) = naive::round(&x);
        for (isa, kernels) in kernel_sets() {
            let mut to = [bytemuck::Zeroable::zeroed()];
            // SAFETY: `kernel_sets` holds only what this machine has.
            unsafe { (kernels.round)(&x, &mut to, 1) };
            let [r]: [Rounded; 1] = to;
            let whole = |k: usize| i32::from(r.bytes[0][k]) * 65536 + i32::from(r.bytes[1][k]) * 256 + i32::from(r.bytes[2][k]);
            let rounded: Vec<i32> = (0..32).map(whole).collect();
            prop_assert_eq!(&rounded, &expected, "{}", isa.name());
            prop_assert!(r.scale.to_bits() == worth.to_bits() || r.scale.is_nan() && worth.is_nan());
            let sums = |half: usize, plane: usize| -r.bytes[plane][half * 16..][..16].iter().map(|b| i32::from(*b)).sum::<i32>();
            prop_assert!((0..2).all(|half| (0..3).all(|plane| r.sums[half][plane] == sums(half, plane))));
        }
    }

    /// Any bytes at all, infinite scales and those that are no numbers included; zeros have their signs.
    #[test]
    fn rows_expand_to_the_twins_bits(cols in 1..600usize, seed in 0..1000u64) {
        for kind in TensorType::ALL {
            let cols = columns(kind, cols);
            let row: Vec<u8> = numbers(seed, kind.row_bytes(cols)).iter().map(|v| (v * 128.0) as i32 as u8).collect();
            let mut expected = vec![0.0; padded(cols)];
            kind.dequantize(&row, &mut expected[..cols]).expect("whole blocks");
            for (isa, kernels) in kernel_sets() {
                let mut out = vec![f32::NAN; padded(cols)];
                // SAFETY: `kernel_sets` holds only what this machine has.
                unsafe { (kernels.expand_row)(kind, &row, &mut out) };
                for (k, (ours, twin)) in out.iter().zip(&expected).enumerate() {
                    let same = ours.to_bits() == twin.to_bits() || ours.is_nan() && twin.is_nan();
                    prop_assert!(same, "{} {}: weight {} is {:?}, not {:?}", isa.name(), kind.name(), k, ours, twin);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn norms_are_the_twins_bits(len in 1..700usize, seed in 0..1000u64) {
        let (x, w) = (activations(len, 1, seed), activations(len, 1, seed + 1));
        let rms = naive::rms_norm(&x[..len], &w[..len], 1e-5);
        let layer = naive::layer_norm(&x[..len], &w[..len], 1e-5);
        for (isa, kernels) in kernel_sets() {
            for (kernel, expected) in [(kernels.rms_norm, &rms), (kernels.layer_norm, &layer)] {
                let mut out = vec![f32::NAN; padded(len)];
                // SAFETY: `kernel_sets` holds only what this machine has.
                unsafe { kernel(&x, &w, len, 1e-5, &mut out) };
                prop_assert_eq!(bits(&out[..len]), bits(expected), "{}", isa.name());
                prop_assert!(out[len..].iter().all(|v| *v == 0.0), "padding stays zero");
            }
        }
    }

    /// From far below to far beyond where the functions turn, and any cap.
    #[test]
    fn activations_follow_their_twins(len in 1..300usize, reach in 0.1..40.0f32, cap in 0.5..50.0f32, seed in 0..1000u64) {
        let far = |seed| -> Vec<f32> { activations(len, 1, seed).iter().map(|v| v * reach).collect() };
        let (x, up) = (far(seed), far(seed + 1));
        let twins: [Vec<f32>; 4] = [
            x.iter().map(|x| naive::silu(*x)).collect(),
            x.iter().map(|x| naive::gelu_tanh(*x)).collect(),
            x.iter().zip(&up).map(|(x, up)| naive::clamped_swiglu(*x, *up, 1.702, 7.0)).collect(),
            x[..len].iter().map(|x| naive::softcap(*x, cap)).collect(),
        ];
        let mut of_all: Vec<[Vec<u32>; 4]> = Vec::new();
        for (isa, kernels) in kernel_sets() {
            let mut ours = [x.clone(), x.clone(), x.clone(), x[..len].to_vec()];
            let [silu, gelu, swiglu, capped] = &mut ours;
            // SAFETY: `kernel_sets` holds only what this machine has.
            unsafe {
                (kernels.silu)(silu);
                (kernels.gelu_tanh)(gelu);
                (kernels.clamped_swiglu)(swiglu, &up, 1.702, 7.0);
                (kernels.softcap)(capped, cap);
            }
            for (which, (ours, twins)) in ours.iter().zip(&twins).enumerate() {
                for (ours, twin) in ours.iter().zip(twins) {
                    let close = (ours - twin).abs() <= 2e-6 * twin.abs().max(1e-3);
                    prop_assert!(close, "{} {which}: {ours} is not {twin}", isa.name());
                }
            }
            of_all.push(ours.map(|values| bits(&values)));
        }
        prop_assert!(of_all.windows(2).all(|w| w[0] == w[1]), "instruction sets differ");
    }

    /// A window of any width, a cap and sinks, each there or not.
    #[test]
    fn attention_follows_its_twin(
        head_dim in 1..140usize, group in 1..8usize, positions in 1..700usize, seed in 0..1000u64,
        window in proptest::option::of(1..600usize), softcap in proptest::option::of(0.5..9.0f32), with_sinks: bool,
    ) {
        let stride = head_dim.next_multiple_of(16);
        let pages = positions.div_ceil(PAGE_TOKENS);
        let page = PAGE_TOKENS * (head_dim + stride);
        let q = numbers(seed, head_dim * group);
        let rows = |seed| -> Vec<Vec<f32>> { numbers(seed, head_dim * positions).chunks_exact(head_dim).map(<[f32]>::to_vec).collect() };
        let (keys, values) = (rows(seed + 1), rows(seed + 2));
        // pages lie in the pool in reverse, so that an offset that ignores the table is noticed
        let base = |p: usize| (pages - 1 - p) * page;
        let mut pool = vec![9.0f32; pages * page];
        for t in 0..positions {
            for d in 0..head_dim {
                pool[base(t / PAGE_TOKENS) + d * PAGE_TOKENS + t % PAGE_TOKENS] = keys[t][d];
                pool[base(t / PAGE_TOKENS) + PAGE_TOKENS * head_dim + t % PAGE_TOKENS * stride + d] = values[t][d];
            }
        }
        let scale = 1.0 / (head_dim as f32).sqrt();
        let first = window.map_or(0, |window| positions.saturating_sub(window));
        let sinks: Vec<f32> = if with_sinks { numbers(seed + 3, group).iter().map(|v| 4.0 * v).collect() } else { Vec::new() };
        let twin = |(head, q): (usize, &[f32])| {
            let extras = naive::Extras { first, softcap, sink: sinks.get(head).copied() };
            naive::attend(q, &keys, &values, scale, extras)
        };
        let expected: Vec<f32> = q.chunks_exact(head_dim).enumerate().flat_map(twin).collect();
        let (key_offsets, value_offsets) = (|p: usize| base(p), |p: usize| base(p) + PAGE_TOKENS * head_dim);
        let mut of_all = Vec::new();
        for (isa, kernels) in kernel_sets() {
            let mut out = vec![f32::NAN; head_dim * group];
            let mut buffer = vec![f32::NAN; group * pages * PAGE_TOKENS];
            let job = Attend { queries: &q, pool: &pool[..], key_offsets: &key_offsets, value_offsets: &value_offsets, value_stride: stride, head_dim, first, positions, scale, softcap, sinks: &sinks };
            // SAFETY: `kernel_sets` holds only what this machine has.
            unsafe { (kernels.attend_f32)(&job, &mut buffer, &mut out) };
            for (ours, twin) in out.iter().zip(&expected) {
                prop_assert!((ours - twin).abs() <= 2e-5, "{}: {ours} is not {twin}", isa.name());
            }
            of_all.push(bits(&out));
        }
        prop_assert!(of_all.windows(2).all(|w| w[0] == w[1]), "instruction sets differ");
    }
}

/// What blocks of Q8_0 make of a head.
fn in_blocks(head: &[f32]) -> Vec<f32> {
    let block = |part: &[f32]| {
        let mut padded = [0.0; 32];
        padded[..part.len()].copy_from_slice(part);
        let weights = BlockQ8_0::quantize(&padded).dequantize();
        weights[..part.len()].to_vec()
    };
    head.chunks(32).flat_map(block).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Attention over blocks of Q8_0 is the twin's over what the blocks stand for.
    #[test]
    fn attention_over_q8_0_follows_its_twin(head_dim in 1..140usize, group in 1..6usize, positions in 1..400usize, seed in 0..1000u64) {
        let layout = <i8 as KvElement>::layout(head_dim);
        let page = layout.keys + layout.values;
        let pages = positions.div_ceil(PAGE_TOKENS);
        let q = numbers(seed, head_dim * group);
        let rows = |seed| -> Vec<Vec<f32>> { numbers(seed, head_dim * positions).chunks_exact(head_dim).map(<[f32]>::to_vec).collect() };
        let (keys, values) = (rows(seed + 1), rows(seed + 2));
        // what is padding is of no matter
        let mut pool = vec![77i8; pages * page];
        for (t, (key, value)) in keys.iter().zip(&values).enumerate() {
            let (of_keys, of_values) = pool[t / PAGE_TOKENS * page..][..page].split_at_mut(layout.keys);
            i8::write_key(of_keys, t % PAGE_TOKENS, key);
            i8::write_value(of_values, t % PAGE_TOKENS, value);
        }
        let [keys, values] = [keys, values].map(|rows| rows.iter().map(|row| in_blocks(row)).collect::<Vec<_>>());
        let scale = 1.0 / (head_dim as f32).sqrt();
        let twin = |q| naive::attend(q, &keys, &values, scale, naive::Extras { first: 0, softcap: None, sink: None });
        let expected: Vec<f32> = q.chunks_exact(head_dim).flat_map(twin).collect();
        let (key_offsets, value_offsets) = (|p: usize| p * page, |p: usize| p * page + layout.keys);
        let mut of_all = Vec::new();
        for (isa, kernels) in kernel_sets() {
            let mut out = vec![f32::NAN; head_dim * group];
            let mut buffer = vec![f32::NAN; group * pages * PAGE_TOKENS];
            let job = Attend { queries: &q, pool: &pool[..], key_offsets: &key_offsets, value_offsets: &value_offsets, value_stride: layout.value_stride, head_dim, first: 0, positions, scale, softcap: None, sinks: &[] };
            // SAFETY: `kernel_sets` holds only what this machine has.
            unsafe { (kernels.attend_q8_0)(&job, &mut buffer, &mut out) };
            for (ours, twin) in out.iter().zip(&expected) {
                prop_assert!((ours - twin).abs() <= 2e-5, "{}: {ours} is not {twin}", isa.name());
            }
            of_all.push(bits(&out));
        }
        prop_assert!(of_all.windows(2).all(|w| w[0] == w[1]), "instruction sets differ");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Experts and shares are the twin's, ties included; places are all different, and those of an expert lie together.
    #[test]
    fn routes_are_the_twins(n_experts in 1..40usize, used in 1..9usize, tokens in 1..40usize, steps in 1..20i32, seed in 0..1000u64) {
        let n_used = used.min(n_experts);
        // few different logits, so that many are equal
        let logits: Vec<f32> = numbers(seed, n_experts * tokens).iter().map(|v| (v * steps as f32).round()).collect();
        for gating in [Gating::SoftmaxOfUsed, Gating::SoftmaxOfAll] {
            let choice = Choice { n_experts, n_used, gating, scale: 1.5 };
            let mut routing = Routing::new((n_experts + 3, n_used + 1), tokens);
            for (token, logits) in logits.chunks_exact(n_experts).enumerate() {
                routing.choose(token, logits, choice);
            }
            routing.group(n_experts, tokens);
            let mut taken = vec![0; tokens * n_used];
            for (token, logits) in logits.chunks_exact(n_experts).enumerate() {
                let twin = naive::route(logits, n_used, gating, 1.5);
                prop_assert_eq!(routing.of_token(token).count(), n_used);
                for ((expert, share, place), (of_twin, share_of_twin)) in routing.of_token(token).zip(twin) {
                    prop_assert_eq!(expert, of_twin);
                    prop_assert!((share - share_of_twin).abs() <= 1e-6, "{share} is not {share_of_twin}");
                    let (begin, count) = routing.places_of(expert);
                    prop_assert!((begin..begin + count).contains(&place), "{place} is not of {expert}");
                    taken[place] += 1;
                }
            }
            prop_assert!(taken.iter().all(|n| *n == 1), "each place is taken once: {taken:?}");
        }
    }
}

/// Logits that are no numbers choose some experts all the same.
#[test]
fn logits_that_are_no_numbers_choose_different_experts() {
    let choice = Choice {
        n_experts: 4,
        n_used: 3,
        gating: Gating::SoftmaxOfAll,
        scale: 1.0,
    };
    let mut routing = Routing::new((4, 3), 1);
    routing.choose(0, &[f32::NAN, 1.0, f32::NAN, f32::INFINITY], choice);
    routing.group(4, 1);
    let mut chosen: Vec<usize> = routing.of_token(0).map(|(expert, ..)| expert).collect();
    chosen.sort_unstable();
    chosen.dedup();
    assert!(chosen.len() == 3 && chosen[2] < 4, "{chosen:?}");
}

/// Extreme scales: subnormal, zero, largest, negative zero; the product must still be the twin's.
#[test]
fn extreme_scales_are_the_twins_bits() {
    let scales = [
        0x0001u16, 0x8000, 0x0000, 0x7bff, 0xfbff, 0x03ff, 0x8001, 0x3c00,
    ];
    for kind in TensorType::ALL {
        let cols = columns(kind, 32);
        let mut w = weights(kind, 8, cols, 3);
        for (row, block) in w.chunks_exact_mut(kind.row_bytes(cols)).enumerate() {
            for (i, at) in halves(kind).iter().enumerate() {
                let scale = scales[(row + 3 * i) % 8];
                block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
            if kind == TensorType::MXFP4 {
                block[0] = [0, 1, 2, 100, 127, 128, 200, 240][row];
            } else if kind == TensorType::Q8_K {
                block[..4].copy_from_slice(&(1u32 << (row * 4)).to_le_bytes());
            }
        }
        let x = activations(cols, 5, 11);
        let expected = of_twins(kind, &w, cols, &x);
        for (isa, kernels) in kernel_sets() {
            let mut out = vec![0.0; 40];
            multiply(&kernels, (kind, &w, cols), &x, 5, Store::Set, &mut out);
            let (ours, twins) = (bits(&out), bits(&expected));
            assert_eq!(ours, twins, "{} {}", isa.name(), kind.name());
        }
    }
}

/// The whole range of the kernels' e^x, through the kernel that shows it plainly: silu.
#[test]
fn exp_is_within_a_few_units_everywhere_and_the_same_bits_on_every_set() {
    let x: Vec<f32> = (-140_000..140_000)
        .map(|i| i as f32 * 0.001)
        .chain([f32::INFINITY, 1e30, -1000.0, 0.0, -0.0])
        .collect();
    let mut x = x;
    x.resize(x.len().next_multiple_of(16), 0.0);
    let mut of_all = Vec::new();
    for (isa, kernels) in kernel_sets() {
        let mut gate = x.clone();
        // SAFETY: `kernel_sets` holds only what this machine has.
        unsafe { (kernels.silu)(&mut gate) };
        for (ours, x) in gate.iter().zip(&x) {
            let exact = if x.is_infinite() {
                f64::INFINITY
            } else {
                f64::from(*x) / (1.0 + (-f64::from(*x)).exp())
            };
            let close = (f64::from(*ours) - exact).abs() <= 5e-7 * exact.abs()
                || (exact.abs() < 1e-34 && ours.abs() < 1e-34)
                || exact == f64::from(*ours);
            assert!(close, "{}: silu({x}) = {ours}, not {exact}", isa.name());
        }
        of_all.push(bits(&gate));
    }
    assert!(
        of_all.windows(2).all(|w| w[0] == w[1]),
        "instruction sets differ"
    );
}
