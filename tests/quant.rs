//! Decoding of each tensor type, bit for bit against an independent decoder's vectors.

use std::collections::BTreeSet;

use worker_orcd::gguf::GgmlType;
use worker_orcd::quant::{BlockQ4_0, BlockQ4_1, BlockQ8_0, TensorType};

/// Types and their sizes, then lines of type, stored bytes and weights; `harness/reference/quant_vectors.py` says how they are made.
const VECTORS: &str = include_str!("data/quant_vectors.txt");

struct Vector {
    tensor_type: TensorType,
    stored: Vec<u8>,
    /// The weights' bits; `None` is any number that is none.
    weights: Vec<Option<u32>>,
}

fn vectors() -> Vec<Vector> {
    VECTORS
        .lines()
        .filter(|line| !line.starts_with(['#', 't']))
        .map(read_vector)
        .collect()
}

fn read_vector(line: &str) -> Vector {
    let fields: Vec<&str> = line.split(' ').collect();
    let [name, stored, weights] = fields[..] else {
        panic!("three fields wanted: {line}")
    };
    let mut rest = weights;
    let mut weights = Vec::new();
    while !rest.is_empty() {
        let after_nan = rest.strip_prefix("nan");
        weights.push(match after_nan {
            Some(_) => None,
            None => Some(u32::from_le_bytes(bytes(&rest[..8]).try_into().unwrap())),
        });
        rest = after_nan.unwrap_or_else(|| &rest[8..]);
    }
    Vector {
        tensor_type: TensorType::from_ggml(name).unwrap(),
        stored: bytes(stored),
        weights,
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
        .collect()
}

/// Compares bits, so that a zero of the wrong sign is wrong.
fn assert_same(vector: &Vector, decoded: &[f32]) {
    assert_eq!(decoded.len(), vector.weights.len());
    for (i, (&got, &wanted)) in decoded.iter().zip(&vector.weights).enumerate() {
        let same = wanted.map_or(got.is_nan(), |bits| got.to_bits() == bits);
        assert!(
            same,
            "{} block {:02x?}: weight {i} is {got:?}, wanted {:?}",
            vector.tensor_type.name(),
            vector.stored,
            wanted.map(f32::from_bits)
        );
    }
}

#[test]
fn every_type_decodes_bit_for_bit() {
    let mut seen = BTreeSet::new();
    for vector in vectors() {
        let mut decoded = vec![f32::NAN; vector.weights.len()];
        vector
            .tensor_type
            .dequantize(&vector.stored, &mut decoded)
            .unwrap();
        assert_same(&vector, &decoded);
        seen.insert(vector.tensor_type.name());
    }
    assert_eq!(
        seen,
        TensorType::ALL.iter().map(|t| t.name()).collect(),
        "types with vectors"
    );
}

#[test]
fn a_row_of_many_blocks_at_any_address_decodes_as_its_blocks_do() {
    for tensor_type in TensorType::ALL {
        let (mut stored, mut wanted) = (Vec::new(), Vec::new());
        for vector in vectors().iter().filter(|v| v.tensor_type == tensor_type) {
            stored.extend(&vector.stored);
            wanted.extend(&vector.weights);
        }
        assert_eq!(tensor_type.row_bytes(wanted.len()), stored.len());
        // Of two neighbouring addresses one is odd, and no block has an odd alignment.
        for shift in 0..2 {
            let shifted: Vec<u8> = std::iter::repeat_n(0, shift)
                .chain(stored.clone())
                .collect();
            let mut decoded = vec![f32::NAN; wanted.len()];
            tensor_type
                .dequantize(&shifted[shift..], &mut decoded)
                .unwrap();
            let row = Vector {
                tensor_type,
                stored: Vec::new(),
                weights: wanted.clone(),
            };
            assert_same(&row, &decoded);
        }
    }
}

#[test]
fn blocks_can_be_viewed_in_place() {
    for vector in vectors() {
        // The blocks' alignment is that of a half, which a fresh Vec<u16> has.
        let halves: Vec<u16> = vector
            .stored
            .chunks(2)
            .map(|b| u16::from_ne_bytes(b.try_into().unwrap()))
            .collect();
        let decoded: Vec<f32> = match vector.tensor_type {
            TensorType::F32 | TensorType::F16 => continue,
            TensorType::Q4_0 => bytemuck::cast_slice(&halves)
                .iter()
                .flat_map(BlockQ4_0::dequantize)
                .collect(),
            TensorType::Q4_1 => bytemuck::cast_slice(&halves)
                .iter()
                .flat_map(BlockQ4_1::dequantize)
                .collect(),
            TensorType::Q8_0 => bytemuck::cast_slice(&halves)
                .iter()
                .flat_map(BlockQ8_0::dequantize)
                .collect(),
        };
        assert_same(&vector, &decoded);
    }
}

/// What makes the vectors worth having: a decoder that gets one of these wrong fails.
#[test]
fn the_vectors_cover_signs_extremes_and_every_quant() {
    let of = |t: TensorType| vectors().into_iter().filter(move |v| v.tensor_type == t);
    let (mut nibbles, mut signed_bytes) = (BTreeSet::new(), BTreeSet::new());
    for v in of(TensorType::Q4_0).chain(of(TensorType::Q4_1)) {
        let quants = &v.stored[v.stored.len() - 16..];
        nibbles.extend(
            quants
                .iter()
                .enumerate()
                .flat_map(|(i, q)| [(i, q & 15), (i + 16, q >> 4)]),
        );
    }
    for v in of(TensorType::Q8_0) {
        signed_bytes.extend(v.stored[2..].iter().copied());
    }
    assert_eq!(nibbles.len(), 32 * 16, "every nibble at every place");
    assert_eq!(signed_bytes.len(), 256);
    for tensor_type in TensorType::ALL {
        let bits: BTreeSet<u32> = of(tensor_type).flat_map(|v| v.weights).flatten().collect();
        assert!(
            bits.contains(&(-0.0f32).to_bits()),
            "{}: negative zero",
            tensor_type.name()
        );
        assert!(
            bits.contains(&f32::INFINITY.to_bits()),
            "{}: infinity",
            tensor_type.name()
        );
        let has_below = |limit: f32| {
            bits.iter()
                .any(|&b| f32::from_bits(b) != 0.0 && f32::from_bits(b).abs() < limit)
        };
        assert!(
            has_below(6.2e-5),
            "{}: a weight made of a subnormal scale",
            tensor_type.name()
        );
    }
}

#[test]
fn lengths_that_do_not_belong_together_are_refused_and_nothing_is_written() {
    for tensor_type in TensorType::ALL {
        let (len, size) = (tensor_type.block_len(), tensor_type.block_bytes());
        let pairs = [
            (size, 2 * len),
            (2 * size, len),
            (size - 1, len),
            (size + 1, len),
            (0, len),
        ];
        let more_pairs = [(size, len + 1), (size, len - 1), (size, 0)];
        for (bytes, weights) in pairs.into_iter().chain(more_pairs) {
            let mut out = vec![7.0; weights];
            let error = tensor_type
                .dequantize(&vec![1; bytes], &mut out)
                .unwrap_err();
            assert_eq!((error.bytes, error.weights), (bytes, weights));
            assert!(error.to_string().contains(tensor_type.name()), "{error}");
            assert!(
                out.iter().all(|&x| x == 7.0),
                "{}: out was touched",
                tensor_type.name()
            );
        }
        assert_eq!(tensor_type.dequantize(&[], &mut []), Ok(()));
    }
}

#[test]
fn the_table_of_file_types_is_complete_and_has_their_sizes() {
    let wanted: Vec<String> = VECTORS
        .lines()
        .filter_map(|line| line.strip_prefix("type "))
        .map(str::to_owned)
        .collect();
    let got: Vec<String> = GgmlType::all()
        .iter()
        .map(|t| format!("{} {t} {} {}", t.id(), t.block_len(), t.block_bytes()))
        .collect();
    assert_eq!(got, wanted);
    for &t in GgmlType::all() {
        assert_eq!(GgmlType::from_id(t.id()), Some(t));
    }
    for removed_or_unknown in [4, 5, 31, 32, 33, 36, 37, 38, 42, u32::MAX] {
        assert_eq!(GgmlType::from_id(removed_or_unknown), None);
    }
}

#[test]
fn sizes_are_those_that_the_file_format_gives() {
    for tensor_type in TensorType::ALL {
        let in_files = GgmlType::from_name(tensor_type.name()).unwrap();
        let wanted = (in_files.block_len(), in_files.block_bytes());
        let got = (
            tensor_type.block_len() as u64,
            tensor_type.block_bytes() as u64,
        );
        assert_eq!(got, wanted, "{}", tensor_type.name());
        assert_eq!(tensor_type.row_bytes(256) as u64, 256 / wanted.0 * wanted.1);
        assert_eq!(TensorType::from_ggml(tensor_type.name()), Some(tensor_type));
    }
    for other in ["Q4_K", "q4_0", "BF16", ""] {
        assert_eq!(TensorType::from_ggml(other), None, "{other}");
    }
}
