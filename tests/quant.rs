//! Decoding of each tensor type, bit for bit against an independent decoder's vectors.

use std::collections::BTreeSet;

use worker_orcd::gguf::GgmlType;
use worker_orcd::quant::*;

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

/// The weights of blocks that are looked at where they lie.
fn in_place<B: Block>(stored: &[u8]) -> Vec<f32> {
    // no block is aligned to more than four bytes
    let mut room = vec![0u32; stored.len().div_ceil(4)];
    let bytes = &mut bytemuck::cast_slice_mut(&mut room)[..stored.len()];
    bytes.copy_from_slice(stored);
    let blocks: &[B] = bytemuck::cast_slice(bytes);
    let weights = blocks.iter().flat_map(|b| b.dequantize().as_ref().to_vec());
    weights.collect()
}

#[test]
fn blocks_can_be_viewed_in_place() {
    for vector in vectors() {
        let of = match vector.tensor_type {
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => continue,
            TensorType::Q4_0 => in_place::<BlockQ4_0>,
            TensorType::Q4_1 => in_place::<BlockQ4_1>,
            TensorType::Q5_0 => in_place::<BlockQ5_0>,
            TensorType::Q5_1 => in_place::<BlockQ5_1>,
            TensorType::Q8_0 => in_place::<BlockQ8_0>,
            TensorType::Q2_K => in_place::<BlockQ2_K>,
            TensorType::Q3_K => in_place::<BlockQ3_K>,
            TensorType::Q4_K => in_place::<BlockQ4_K>,
            TensorType::Q5_K => in_place::<BlockQ5_K>,
            TensorType::Q6_K => in_place::<BlockQ6_K>,
            TensorType::Q8_K => in_place::<BlockQ8_K>,
            TensorType::IQ4_NL => in_place::<BlockIQ4_NL>,
            TensorType::IQ4_XS => in_place::<BlockIQ4_XS>,
            TensorType::MXFP4 => in_place::<BlockMXFP4>,
        };
        assert_same(&vector, &of(&vector.stored));
    }
}

/// Bytes of a type's blocks, from all its vectors.
fn bytes_at(tensor_type: TensorType, places: std::ops::Range<usize>) -> Vec<(usize, u8)> {
    vectors()
        .iter()
        .filter(|v| v.tensor_type == tensor_type)
        .flat_map(|v| places.clone().map(|at| (at, v.stored[at])))
        .collect()
}

/// What makes the vectors worth having: a decoder that gets one of these wrong fails.
#[test]
fn the_vectors_cover_every_quant_and_every_scale() {
    let nibbles = [
        (TensorType::Q4_0, 2..18),
        (TensorType::Q4_1, 4..20),
        (TensorType::Q5_0, 6..22),
        (TensorType::Q5_1, 8..24),
        (TensorType::Q4_K, 16..144),
        (TensorType::Q5_K, 48..176),
        (TensorType::Q6_K, 0..128),
        (TensorType::IQ4_NL, 2..18),
        (TensorType::IQ4_XS, 8..136),
        (TensorType::MXFP4, 1..17),
    ];
    for (tensor_type, places) in nibbles {
        let bytes = bytes_at(tensor_type, places.clone());
        let low: BTreeSet<_> = bytes.iter().map(|(at, q)| (at, q & 15)).collect();
        let high: BTreeSet<_> = bytes.iter().map(|(at, q)| (at, q >> 4)).collect();
        // what random bytes leave out is little
        let all = places.len() * 16;
        let name = tensor_type.name();
        assert!(low.len() > all * 4 / 5, "{name}: low nibbles at each place");
        assert!(high.len() > all * 4 / 5, "{name}: high nibbles");
    }
    let scales = [
        (TensorType::Q8_0, 2..34),
        (TensorType::Q2_K, 0..16),
        (TensorType::Q3_K, 96..108),
        (TensorType::Q4_K, 4..16),
        (TensorType::Q5_K, 4..16),
        (TensorType::Q6_K, 192..208),
        (TensorType::Q8_K, 4..260),
        (TensorType::IQ4_XS, 2..8),
        (TensorType::MXFP4, 0..1),
    ];
    for (tensor_type, places) in scales {
        let bytes = bytes_at(tensor_type, places);
        let values: BTreeSet<u8> = bytes.into_iter().map(|(_, byte)| byte).collect();
        assert_eq!(values.len(), 256, "{}", tensor_type.name());
    }
}

#[test]
fn the_vectors_cover_signs_and_extremes() {
    for tensor_type in TensorType::ALL {
        let name = tensor_type.name();
        let of = |v: &Vector| v.tensor_type == tensor_type;
        let weights = vectors().into_iter().filter(of).flat_map(|v| v.weights);
        let bits: BTreeSet<u32> = weights.flatten().collect();
        assert_eq!(
            bits.contains(&(-0.0f32).to_bits()),
            tensor_type != TensorType::MXFP4, // whose scales have no sign and whose table has no minus zero
            "{name}: negative zero"
        );
        assert!(bits.contains(&f32::INFINITY.to_bits()), "{name}: infinity");
        let small = |&b: &u32| f32::from_bits(b) != 0.0 && f32::from_bits(b).abs() < 6.2e-5;
        assert!(
            bits.iter().any(small),
            "{name}: a weight made of a subnormal scale"
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
    for other in ["IQ2_XXS", "IQ1_S", "TQ1_0", "Q8_1", "I8", "q4_0", ""] {
        assert_eq!(TensorType::from_ggml(other), None, "{other}");
    }
}
