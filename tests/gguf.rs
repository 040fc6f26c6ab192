//! The GGUF parser against hand-made, damaged and real files.

#[path = "common/gguf_writer.rs"]
mod gguf_writer;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gguf_writer::{GgufWriter, Raw, string, tensor_type, value_type};
use proptest::prelude::*;
use worker_orcd::gguf::{self, Array, GgmlType, Gguf, GgufError, Metadata, Value};

/// Counts what each thread has allocated, so that a test can say how much a parse took.
struct Counting;

thread_local! {
    static LIVE_BYTES: Cell<isize> = const { Cell::new(0) };
    static PEAK_BYTES: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    LIVE_BYTES.set(LIVE_BYTES.get() + bytes);
    PEAK_BYTES.set(PEAK_BYTES.get().max(LIVE_BYTES.get()));
}

// SAFETY: every call goes to the system's allocator unchanged; the counters are plain cells that allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The result of `work` and the most bytes it had allocated at once.
fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE_BYTES.get();
    PEAK_BYTES.set(before);
    let result = work();
    (result, (PEAK_BYTES.get() - before) as usize)
}

/// Parses, and holds what is promised of any bytes: little memory for a little file, and a result that can be relied on.
fn parse(file: &[u8]) -> Result<Gguf, GgufError> {
    let (parsed, peak_bytes) = measured(|| gguf::parse(file));
    assert!(
        peak_bytes <= 8192 + 16 * file.len(),
        "{peak_bytes} bytes for {}",
        file.len()
    );
    match &parsed {
        Ok(gguf) => assert_sound(gguf, file),
        Err(error) => assert!(error.to_string().len() < 1000, "{error}"),
    }
    parsed
}

fn assert_sound(gguf: &Gguf, file: &[u8]) {
    let mut ranges = Vec::new();
    for tensor in &gguf.tensors {
        let (t, size) = (tensor.ggml_type, tensor.size_bytes);
        assert_eq!(gguf.tensor_bytes(file, tensor).unwrap().len() as u64, size);
        assert_eq!(tensor.elements() / t.block_len() * t.block_bytes(), size);
        assert!(tensor.dims[0] % t.block_len() == 0 && tensor.offset % gguf.alignment == 0);
        ranges.push((tensor.offset, tensor.offset + size));
    }
    ranges.sort_unstable();
    assert!(
        ranges.is_sorted_by(|a, b| a.1 <= b.0),
        "tensors overlap: {ranges:?}"
    );
}

/// Fails unless parsing gives an error whose text holds all of `wanted`.
#[track_caller]
fn assert_refused(writer: &GgufWriter, wanted: &[&str]) {
    assert_bytes_refused(&writer.finish(), wanted);
}

#[track_caller]
fn assert_bytes_refused(file: &[u8], wanted: &[&str]) {
    let error = parse(file)
        .expect_err("the file should be refused")
        .to_string();
    for part in wanted {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

/// A file with a value of every type and tensors of several; it ends with the last tensor's last byte.
fn small_writer() -> GgufWriter {
    GgufWriter::new()
        .key("general.architecture", "llama")
        .key("a.u8", 200u8)
        .key("a.i8", -100i8)
        .key("a.u16", 60_000u16)
        .key("a.i16", -30_000i16)
        .key("a.u32", 4_000_000_000u32)
        .key("a.i32", -2_000_000_000i32)
        .key("a.u64", u64::MAX)
        .key("a.i64", i64::MIN)
        .key("a.f32", -0.5f32)
        .key("a.f64", 0.1f64)
        .key("a.bool", true)
        .key("v.u8", [1u8, 255])
        .key("v.i8", [-1i8])
        .key("v.u16", [65_535u16])
        .key("v.i16", [-2i16, 2])
        .key("v.u32", [7u32, 8, 9])
        .key("v.i32", [-1i32, 1])
        .key("v.u64", [1u64 << 40])
        .key("v.i64", [-1i64])
        .key("v.f32", [1.5f32, -0.0])
        .key("v.f64", [1e300f64])
        .key("v.bool", [true, false])
        .key("v.string", ["", "Ġhello", "日本"])
        .key("v.empty", [0u32; 0])
        .tensor("first", &[32, 3], tensor_type::Q4_0, [1; 54])
        .tensor("second", &[5], tensor_type::F32, [2; 20])
        .tensor("third", &[256, 1, 1, 2], tensor_type::Q4_K, [3; 288])
}

#[test]
fn a_file_is_read_as_it_was_written() {
    for version in [2, 3] {
        let file = GgufWriter {
            version,
            ..small_writer()
        }
        .finish();
        let gguf = parse(&file).unwrap();
        assert_eq!((gguf.version, gguf.alignment), (version, 32));
        assert_eq!(gguf.metadata.len(), 25);
        let names: Vec<&str> = gguf.tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["first", "second", "third"]);
        let third = gguf.tensor("third").unwrap();
        assert_eq!(third.dims, [256, 1, 1, 2]);
        assert_eq!(third.ggml_type, GgmlType::from_name("Q4_K").unwrap());
        assert_eq!((third.elements(), third.size_bytes), (512, 288));
        assert_eq!(third.offset + third.size_bytes, file.len() as u64);
        for (tensor, byte) in gguf.tensors.iter().zip(1u8..) {
            let stored = gguf.tensor_bytes(&file, tensor).unwrap();
            assert!(
                stored.iter().all(|&b| b == byte),
                "{}: {stored:?}",
                tensor.name
            );
        }
        assert!(gguf.tensor("fourth").is_none());
    }
}

#[test]
fn every_type_of_value_is_read() {
    let gguf = parse(&small_writer().finish()).unwrap();
    let wanted: Metadata = [
        ("general.architecture", "llama".into()),
        ("a.u8", Value::U8(200)),
        ("a.i8", Value::I8(-100)),
        ("a.u16", Value::U16(60_000)),
        ("a.i16", Value::I16(-30_000)),
        ("a.u32", Value::U32(4_000_000_000)),
        ("a.i32", Value::I32(-2_000_000_000)),
        ("a.u64", Value::U64(u64::MAX)),
        ("a.i64", Value::I64(i64::MIN)),
        ("a.f32", Value::F32(-0.5)),
        ("a.f64", Value::F64(0.1)),
        ("a.bool", Value::Bool(true)),
        ("v.u8", Value::Array(Array::U8(vec![1, 255]))),
        ("v.i8", Value::Array(Array::I8(vec![-1]))),
        ("v.u16", Value::Array(Array::U16(vec![65_535]))),
        ("v.i16", Value::Array(Array::I16(vec![-2, 2]))),
        ("v.u32", Value::Array(Array::U32(vec![7, 8, 9]))),
        ("v.i32", Value::Array(Array::I32(vec![-1, 1]))),
        ("v.u64", Value::Array(Array::U64(vec![1 << 40]))),
        ("v.i64", Value::Array(Array::I64(vec![-1]))),
        ("v.f32", Value::Array(Array::F32(vec![1.5, -0.0]))),
        ("v.f64", Value::Array(Array::F64(vec![1e300]))),
        ("v.bool", Value::Array(Array::Bool(vec![true, false]))),
        (
            "v.string",
            ["", "Ġhello", "日本"].map(String::from).to_vec().into(),
        ),
        ("v.empty", Value::Array(Array::U32(vec![]))),
    ]
    .into_iter()
    .collect();
    assert_eq!(gguf.metadata, wanted);
    assert!(gguf.metadata.iter().map(|(key, _)| key).is_sorted());
}

#[test]
fn getters_take_any_integer_that_fits_and_nothing_else() {
    let metadata = parse(&small_writer().finish()).unwrap().metadata;
    let m = &metadata;
    assert_eq!(m.string("general.architecture"), Ok(Some("llama")));
    assert_eq!(m.u32("a.u8"), Ok(Some(200)));
    assert_eq!(m.usize("a.u32"), Ok(Some(4_000_000_000)));
    assert_eq!(m.u64("a.u64"), Ok(Some(u64::MAX)));
    assert_eq!(m.i32("a.i8"), Ok(Some(-100)));
    assert_eq!(m.f32("a.f32"), Ok(Some(-0.5)));
    assert_eq!(m.bool("a.bool"), Ok(Some(true)));
    assert_eq!(
        m.strings("v.string").unwrap().unwrap(),
        ["", "Ġhello", "日本"]
    );
    assert_eq!(m.f32s("v.f32"), Ok(Some([1.5f32, -0.0].as_slice())));
    assert_eq!(m.bools("v.bool"), Ok(Some([true, false].as_slice())));
    assert_eq!(m.i32s("v.i32").unwrap().unwrap().as_ref(), [-1, 1]);
    assert_eq!(m.i32s("v.u8").unwrap().unwrap().as_ref(), [1, 255]);
    assert_eq!(m.u32s("v.u32").unwrap().unwrap().as_ref(), [7, 8, 9]);
    assert_eq!(m.usizes("v.u64"), Ok(Some(vec![1 << 40])));
    assert_eq!(m.usizes("v.empty"), Ok(Some(vec![])));

    let said = |result: Result<(), GgufError>| result.unwrap_err().to_string();
    let wrong = said(m.require_u32("general.architecture").map(drop));
    assert_eq!(
        wrong,
        "key general.architecture is of type string, wanted is u32"
    );
    let wrong = said(m.strings("v.u8").map(drop));
    assert_eq!(
        wrong,
        "key v.u8 is of type array of u8, wanted is array of string"
    );
    let wrong = said(m.i32s("a.i32").map(drop));
    assert_eq!(wrong, "key a.i32 is of type i32, wanted is array of i32");
    let wrong = said(m.usize("a.i16").map(drop));
    assert_eq!(wrong, "key a.i16 is -30000, which does not fit usize");
    let wrong = said(m.u32s("v.i16").map(drop));
    assert_eq!(
        wrong,
        "key v.i16 is -2 at element 0, which does not fit array of u32"
    );
    let wrong = said(m.f32("a.f64").map(drop));
    assert_eq!(wrong, "key a.f64 is 0.1, which does not fit f32");
    assert_eq!(
        said(m.f32("a.u8").map(drop)),
        "key a.u8 is of type u8, wanted is f32"
    );
    assert_eq!(
        said(m.bool("a.u8").map(drop)),
        "key a.u8 is of type u8, wanted is bool"
    );
}

#[test]
fn an_absent_key_is_none_or_an_error_as_asked() {
    let m = Metadata::default();
    assert_eq!(m.string("k"), Ok(None));
    assert_eq!(m.usize("k"), Ok(None));
    assert_eq!(m.f32("k"), Ok(None));
    assert_eq!(m.i32s("k"), Ok(None));
    let missing = |error: Option<GgufError>| {
        assert_eq!(
            error.unwrap().to_string(),
            "key llama.block_count is missing"
        );
    };
    let key = "llama.block_count";
    missing(m.require_string(key).err());
    missing(m.require_bool(key).err());
    missing(m.require_f32(key).err());
    missing(m.require_u32(key).err());
    missing(m.require_u64(key).err());
    missing(m.require_usize(key).err());
    missing(m.require_i32(key).err());
    missing(m.require_strings(key).err());
    missing(m.require_f32s(key).err());
    missing(m.require_bools(key).err());
    missing(m.require_i32s(key).err());
    missing(m.require_u32s(key).err());
    missing(m.require_usizes(key).err());
}

#[test]
fn the_alignment_of_the_file_is_kept() {
    for alignment in [8u64, 64, 4096] {
        let writer = GgufWriter {
            alignment,
            ..GgufWriter::new()
        }
        .key("general.alignment", alignment as u32)
        .tensor("a", &[1], tensor_type::F32, [1; 4])
        .tensor("b", &[1], tensor_type::F32, [2; 4]);
        let file = writer.finish();
        let gguf = parse(&file).unwrap();
        assert_eq!(gguf.alignment, alignment);
        let offsets: Vec<u64> = gguf.tensors.iter().map(|t| t.offset).collect();
        assert_eq!(offsets[1] - offsets[0], alignment);
        assert_eq!(gguf.tensor_bytes(&file, &gguf.tensors[1]).unwrap(), [2; 4]);
    }
    for alignment in [0u32, 1, 4, 24, 48, u32::MAX] {
        let writer = GgufWriter::new().key("general.alignment", alignment);
        assert_refused(
            &writer,
            &["general.alignment", &alignment.to_string(), "power of two"],
        );
    }
    let text = GgufWriter::new().key("general.alignment", "32");
    assert_refused(&text, &["general.alignment", "string", "u64"]);
    // So large that no tensor can come after it, and the sum does not fit 64 bits.
    let huge = GgufWriter::new()
        .key("general.alignment", 1u64 << 63)
        .tensor_at("t", &[1], tensor_type::F32, 1 << 63);
    assert_refused(&huge, &["tensor t", "end after the file's"]);
}

#[test]
fn what_is_no_gguf_of_a_known_version_is_refused() {
    assert_bytes_refused(b"", &["the magic", "0"]);
    assert_bytes_refused(b"PK\x03\x04 and so on", &["not a GGUF file", r"PK\x03\x04"]);
    assert_refused(
        &GgufWriter {
            magic: *b"GGML",
            ..small_writer()
        },
        &["GGML", "GGUF"],
    );
    for version in [0u32, 1, 4, u32::MAX] {
        let writer = GgufWriter {
            version,
            ..small_writer()
        };
        assert_refused(&writer, &["version", &version.to_string()]);
    }
    let swapped = GgufWriter {
        version: 3u32.swap_bytes(),
        ..small_writer()
    };
    assert_refused(&swapped, &["big-endian"]);
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let file = small_writer().finish();
    parse(&file).unwrap();
    for len in 0..file.len() {
        let error = parse(&file[..len]).expect_err("a part of the file is no file");
        assert!(
            matches!(
                error,
                GgufError::Truncated { .. } | GgufError::OutsideFile { .. }
            ),
            "{len} bytes: {error}"
        );
    }
    assert_bytes_refused(&file[..400], &["the file has only", "fetch it again"]);
}

#[test]
fn huge_counts_are_refused_before_anything_is_reserved_for_them() {
    let with_counts = |tensors, keys| GgufWriter {
        tensor_count: tensors,
        key_count: keys,
        ..small_writer()
    };
    for count in [u64::MAX, 1 << 63, 1 << 32, 65_537] {
        let tensors = with_counts(Some(count), None);
        assert_refused(
            &tensors,
            &[
                "the number of tensors",
                &count.to_string(),
                "TENSOR_COUNT_MAX",
            ],
        );
        let keys = with_counts(None, Some(count));
        assert_refused(
            &keys,
            &[
                "the number of keys",
                &count.to_string(),
                "METADATA_COUNT_MAX",
            ],
        );
    }
    assert_refused(
        &with_counts(Some(65_536), None),
        &["the tensor list", "the file has only"],
    );
    assert_refused(
        &with_counts(None, Some(65_536)),
        &["the keys", "the file has only"],
    );
}

#[test]
fn huge_lengths_are_refused_before_anything_is_reserved_for_them() {
    for element in [
        value_type::U8,
        value_type::F64,
        value_type::BOOL,
        value_type::STRING,
    ] {
        let with_len = |len| GgufWriter::new().key("k.v", Raw::array(element, len, &[0; 64]));
        for len in [u64::MAX, 1 << 61, (1 << 24) + 1] {
            assert_refused(
                &with_len(len),
                &["key k.v", &len.to_string(), "ARRAY_LEN_MAX"],
            );
        }
        assert_refused(&with_len(1 << 24), &["key k.v", "the file has only"]);
    }
    let mut long = (u64::MAX - 3).to_le_bytes().to_vec();
    let with_string =
        |bytes: &[u8]| GgufWriter::new().key("k", Raw::new(value_type::STRING, bytes));
    assert_refused(
        &with_string(&long),
        &["key k", "STRING_BYTES_MAX", "18446744073709551612"],
    );
    long = (64u64 << 20).to_le_bytes().to_vec();
    assert_refused(
        &with_string(&long),
        &["key k", "67108864", "the file has only"],
    );
}

#[test]
fn a_header_over_its_limit_is_refused() {
    let numbers = Raw::array(value_type::U64, 1 << 24, &[]);
    let mut file = GgufWriter::new().key("numbers", numbers).finish();
    file.resize(130 << 20, 0);
    let (parsed, peak_bytes) = measured(|| gguf::parse(&file));
    let error = parsed.unwrap_err().to_string();
    assert!(
        error.contains("key numbers") && error.contains("HEADER_BYTES_MAX"),
        "{error}"
    );
    assert!(peak_bytes < 4096, "{peak_bytes}");
}

#[test]
fn names_over_their_limits_are_refused() {
    let long_key = "k".repeat(65_536);
    assert_refused(
        &GgufWriter::new().key(&long_key, 1u32),
        &["key number 0", "65536", "65535"],
    );
    assert!(parse(&GgufWriter::new().key(&long_key[1..], 1u32).finish()).is_ok());
    let tensor = |len| {
        GgufWriter::new()
            .tensor("t".repeat(len), &[1], tensor_type::F32, [0; 4])
            .finish()
    };
    assert!(parse(&tensor(64)).is_ok());
    assert_bytes_refused(
        &tensor(65),
        &["tensor number 0", "65", "TENSOR_NAME_BYTES_MAX"],
    );
}

#[test]
fn values_that_the_format_does_not_know_are_refused() {
    let refused = |value: Raw, wanted: &[&str]| {
        assert_refused(
            &GgufWriter::new().key("x", 1u8).key("the.key", value),
            wanted,
        );
    };
    refused(Raw::new(13, [0; 8]), &["the.key", "13"]);
    refused(Raw::array(99, 0, &[]), &["the.key", "99"]);
    refused(
        Raw::array(value_type::ARRAY, 1, &[0; 16]),
        &["the.key", "arrays of arrays"],
    );
    refused(Raw::new(value_type::BOOL, [2]), &["the.key", "2", "bool"]);
    let bools = Raw::array(value_type::BOOL, 3, &[0, 1, 255]);
    refused(bools, &["the.key", "element 2", "255", "bool"]);
    let text = Raw::new(value_type::STRING, string(b"ab\xff"));
    refused(text, &["the.key", "UTF-8", "byte 2"]);
    let texts = [string("good"), string(b"\xc3\x28")].concat();
    let texts = Raw::array(value_type::STRING, 2, &texts);
    refused(texts, &["the.key", "element 1", "UTF-8"]);
    let key = GgufWriter::new().key(b"\x80", 1u8);
    assert_refused(&key, &["key number 0", "UTF-8"]);
    let tensor = GgufWriter::new().tensor(b"\x80", &[1], tensor_type::F32, [0; 4]);
    assert_refused(&tensor, &["tensor number 0", "UTF-8"]);
}

#[test]
fn duplicates_are_refused() {
    let keys = GgufWriter::new()
        .key("a", 1u32)
        .key("b", 2u32)
        .key("a", "other");
    assert_refused(&keys, &["key a", "twice"]);
    let tensors = GgufWriter::new()
        .tensor("a.weight", &[1], tensor_type::F32, [0; 4])
        .tensor("b.weight", &[1], tensor_type::F32, [0; 4])
        .tensor("a.weight", &[2], tensor_type::F32, [0; 8]);
    assert_refused(&tensors, &["tensor a.weight", "twice"]);
}

#[test]
fn misshapen_tensors_are_refused() {
    let refused = |dims: &[u64], type_id, wanted: &[&str]| {
        let writer = GgufWriter::new().tensor("blk.0.w", dims, type_id, [0; 64]);
        assert_refused(&writer, &[&["tensor blk.0.w"], wanted].concat());
    };
    refused(&[], tensor_type::F32, &["0 dimensions"]);
    refused(&[1; 5], tensor_type::F32, &["5 dimensions"]);
    refused(&[4, 0], tensor_type::F32, &["dimension 1 is 0"]);
    refused(&[0], tensor_type::Q4_0, &["dimension 0 is 0"]);
    refused(&[1 << 32, 1 << 32], tensor_type::F32, &["overflows"]);
    refused(&[1 << 62], tensor_type::F32, &["overflows"]);
    refused(&[u64::MAX; 4], tensor_type::F32, &["overflows"]);
    refused(&[33], tensor_type::Q4_0, &["33", "blocks of 32", "Q4_0"]);
    refused(&[16, 2], tensor_type::Q8_0, &["16", "blocks of 32", "Q8_0"]);
    refused(
        &[128, 2],
        tensor_type::Q4_K,
        &["128", "blocks of 256", "Q4_K"],
    );
    refused(&[32], 4, &["tensor type 4 is unknown"]);
    refused(&[32], u32::MAX, &["tensor type 4294967295 is unknown"]);
}

#[test]
fn misplaced_tensors_are_refused() {
    let base = || GgufWriter::new().tensor("base", &[64], tensor_type::F32, [0; 256]);
    let at = |offset| base().tensor_at("stray", &[8], tensor_type::F32, offset);
    for offset in [1, 16, 33, u64::MAX] {
        assert_refused(
            &at(offset),
            &["tensor stray", &offset.to_string(), "alignment 32"],
        );
    }
    for offset in [256, 1 << 40, u64::MAX - 31] {
        assert_refused(
            &at(offset),
            &["tensor stray", "32 bytes", "end after the file's"],
        );
    }
    for offset in [0, 32, 224] {
        assert_refused(&at(offset), &["base", "stray", "overlap"]);
    }
    // One that begins before the other and reaches into it, listed after it.
    let reaching = GgufWriter::new()
        .tensor_at("behind", &[8], tensor_type::F32, 64)
        .tensor("before", &[32], tensor_type::F32, [0; 128]);
    assert_refused(&reaching, &["before and behind overlap"]);
    // One that lies within another that a third comes after.
    let within = GgufWriter::new()
        .tensor_at("large", &[32], tensor_type::F32, 0)
        .tensor_at("small", &[1], tensor_type::F32, 32)
        .tensor_at("last", &[1], tensor_type::F32, 128)
        .tensor("file's end", &[64], tensor_type::F32, [0; 512]);
    assert_refused(&within, &["overlap"]);
}

#[test]
fn tensors_may_stand_in_any_order_with_gaps_and_bytes_after_them() {
    let mut file = GgufWriter::new()
        .tensor_at("second", &[8], tensor_type::F32, 192)
        .tensor_at("first", &[8], tensor_type::F32, 0)
        .finish();
    file.resize(file.len() + 300, 9);
    let gguf = parse(&file).unwrap();
    assert_eq!(gguf.tensors[0].offset, gguf.tensors[1].offset + 192);
}

#[test]
fn a_view_of_another_file_is_an_error() {
    let file = small_writer().finish();
    let gguf = parse(&file).unwrap();
    let error = gguf
        .tensor_bytes(&file[..file.len() - 1], &gguf.tensors[2])
        .unwrap_err();
    assert!(matches!(error, GgufError::OutsideFile { .. }), "{error}");
    let mut tensor = gguf.tensors[2].clone();
    tensor.offset = u64::MAX;
    assert!(gguf.tensor_bytes(&file, &tensor).is_err());
}

#[test]
fn names_out_of_the_file_do_not_flood_or_colour_an_error() {
    let name = format!("\x1b[31m{}", "x".repeat(60_000));
    let file = GgufWriter::new().key(&name, Raw::new(77, [])).finish();
    let error = parse(&file).unwrap_err().to_string();
    assert!(error.len() < 200 && !error.contains('\x1b'), "{error:?}");
    let unnamed = GgufWriter::new().tensor("", &[0], tensor_type::F32, []);
    assert_refused(&unnamed, &["tensor \"\""]);
}

/// Anything that compares each name or tensor with each other would take minutes here.
#[test]
fn as_many_keys_and_tensors_as_there_may_be_are_read_at_once() {
    let mut writer = GgufWriter::new();
    for i in 0..65_536u32 {
        writer = writer.key(format!("key.{i}"), i).tensor_at(
            format!("blk.{i}.weight"),
            &[8],
            tensor_type::F32,
            u64::from(i) * 32,
        );
    }
    let mut file = writer.finish();
    file.resize(file.len() + 65_536 * 32, 0);
    let start = Instant::now();
    let gguf = parse(&file).unwrap();
    let took = start.elapsed();
    assert_eq!((gguf.metadata.len(), gguf.tensors.len()), (65_536, 65_536));
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn every_flipped_bit_is_refused_or_read_soundly() {
    let good = small_writer().finish();
    let mut refused = 0;
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut file = good.clone();
            file[at] ^= 1 << bit;
            refused += usize::from(parse(&file).is_err());
        }
    }
    assert!(
        refused > good.len(),
        "only {refused} damaged files were refused"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_bytes_never_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut file = small_writer().finish();
        let len = file.len();
        damage.iter().for_each(|(at, byte)| file[at.index(len)] = *byte);
        file.truncate(cut.map_or(len, |cut| cut.index(len)));
        let _ = parse(&file);
    }

    #[test]
    fn any_bytes_after_a_good_beginning_never_panic(
        tensor_count in 0u64..4,
        key_count in 0u64..4,
        // Small numbers make counts and types that mean something, so that the parser gets further.
        rest in prop::collection::vec(prop_oneof![8 => Just(0u8), 4 => 0u8..16, 1 => any::<u8>()], 0..400),
    ) {
        let writer = GgufWriter { tensor_count: Some(tensor_count), key_count: Some(key_count), ..GgufWriter::new() };
        let mut file = writer.finish()[..24].to_vec();
        file.extend(rest);
        let _ = parse(&file);
    }
}

/// The default model, or `None` with a loud line where it has not been fetched.
fn model() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let fetched = cache.map(|c| c.join("worker-orcd/models/SmolLM2-135M-Instruct.Q4_1.gguf"));
    let path = std::env::var_os("WORKER_ORCD_TEST_MODEL")
        .map(PathBuf::from)
        .or(fetched);
    let found = path.clone().filter(|p| p.is_file());
    if found.is_none() {
        eprintln!("SKIP: there is no model at {path:?}; fetch it or set WORKER_ORCD_TEST_MODEL");
    }
    found
}

#[test]
fn the_default_model_is_read_in_milliseconds() {
    let Some(path) = model() else { return };
    let file = std::fs::read(path).unwrap();
    let start = Instant::now();
    let (parsed, peak_bytes) = measured(|| gguf::parse(&file));
    let took = start.elapsed();
    let gguf = parsed.unwrap();
    assert_sound(&gguf, &file);
    assert_eq!((gguf.metadata.len(), gguf.tensors.len()), (33, 272));
    assert_eq!(gguf.metadata.require_usize("llama.block_count"), Ok(30));
    assert_eq!(
        gguf.metadata
            .require_strings("tokenizer.ggml.tokens")
            .unwrap()
            .len(),
        49_152
    );
    assert_eq!(
        gguf.metadata
            .require_i32s("tokenizer.ggml.token_type")
            .unwrap()
            .len(),
        49_152
    );
    let embedding = gguf.tensor("token_embd.weight").unwrap();
    assert_eq!(embedding.dims, [576, 49_152]);
    assert_eq!(
        (embedding.ggml_type.name(), embedding.offset),
        ("Q8_0", 1_785_664)
    );
    let down = gguf.tensor("blk.0.ffn_down.weight").unwrap();
    assert_eq!(
        (down.dims.as_slice(), down.offset),
        ([1536, 576].as_slice(), 31_868_992)
    );
    assert_eq!(
        gguf.tensors.iter().map(|t| t.elements()).sum::<u64>(),
        134_515_008
    );
    assert_eq!(
        gguf.tensors.iter().map(|t| t.size_bytes).sum::<u64>(),
        96_576_768
    );
    eprintln!("parsed in {took:?}, {peak_bytes} bytes allocated at most");
    // A few milliseconds; the rest is for slow and busy machines.
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert!(peak_bytes < 8 << 20, "{peak_bytes} bytes");
}

#[test]
fn vocabularies_without_weights_are_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/tokenizers");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        eprintln!("SKIP: there are no vocabularies in {}", folder.display());
        return;
    };
    let known = |name: &str| match name {
        "ggml-vocab-deepseek-llm.gguf" => Some(("deepseek-llm", 102_400, 99_757)),
        "ggml-vocab-gpt-2.gguf" => Some(("gpt-2", 50_257, 50_000)),
        "ggml-vocab-llama-bpe.gguf" => Some(("llama-bpe", 128_256, 280_147)),
        "ggml-vocab-phi-3.gguf" => Some(("default", 32_064, 0)),
        "ggml-vocab-qwen2.gguf" => Some(("qwen2", 151_936, 151_387)),
        _ => None,
    };
    let mut compared = 0;
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.extension().is_none_or(|ending| ending != "gguf") {
            continue;
        }
        let file = std::fs::read(&path).unwrap();
        let gguf = parse(&file).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(gguf.tensors.is_empty());
        let m = &gguf.metadata;
        let len = |key| m.strings(key).unwrap().map_or(0, <[String]>::len);
        let pre = m.require_string("tokenizer.ggml.pre").unwrap();
        let got = (
            pre,
            len("tokenizer.ggml.tokens"),
            len("tokenizer.ggml.merges"),
        );
        if let Some(wanted) = known(path.file_name().unwrap().to_str().unwrap()) {
            assert_eq!(got, wanted, "{}", path.display());
            compared += 1;
        }
    }
    assert!(
        compared > 0,
        "{} holds none of the known vocabularies",
        folder.display()
    );
}
