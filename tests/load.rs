//! What a load makes of the files it is given: a model in one file or in several, the tokenizer beside it, and files that are not what
//! they should be.

mod common;
#[path = "common/gguf_writer.rs"]
mod gguf_writer;
#[path = "common/tiny_llama.rs"]
mod tiny_llama;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gguf_writer::{GgufWriter, tensor_type};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tiny_llama::TinyLlama;
use worker_orcd::device::Rows;
use worker_orcd::load::{
    FileLoad, KvType, Load, LoadError, LoadOptions, LoadStep, Loaded, TensorTypeFacts,
};
use worker_orcd::quant::TensorType;
use worker_orcd::text::{TokenizerKind, byte_level_alphabet};

/// Bytes, and a token that ends.
const VOCAB: usize = 257;

/// A small model with a vocabulary of bytes.
fn model() -> GgufWriter {
    let tiny = TinyLlama {
        n_vocab: VOCAB,
        ..TinyLlama::new(TensorType::Q4_0)
    };
    let mut tokens: Vec<String> = byte_level_alphabet().map(String::from).to_vec();
    tokens.push("<end>".to_owned());
    let mut types = [1_i32; VOCAB];
    types[256] = 3;
    tiny.writer()
        .key("tokenizer.ggml.model", "gpt2")
        .key("tokenizer.ggml.pre", "gpt-2")
        .key("tokenizer.ggml.tokens", &tokens[..])
        .key("tokenizer.ggml.token_type", types)
        .key("tokenizer.ggml.merges", [""; 0])
        .key("tokenizer.ggml.eos_token_id", 256_u32)
}

/// A `tokenizer.json` of the same tokens, the last of them under this name.
fn tokenizer_json(end: &str) -> Value {
    let vocab: Map<String, Value> = (0..)
        .zip(byte_level_alphabet())
        .map(|(id, character): (u32, char)| (character.to_string(), id.into()))
        .collect();
    json!({
        "added_tokens": [{"id": 256, "content": end, "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "post_processor": null,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}

fn options(model: &Path) -> LoadOptions {
    LoadOptions {
        target: worker_orcd::load::Target::Cpu,
        model: model.to_owned(),
        context: Some(512),
        kv: KvType::F16,
        kv_bytes: None,
        tokenizer: None,
        chat_template: None,
    }
}

/// A folder with these files.
fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).expect("written");
    }
    folder
}

/// The name of a file of several, from 1.
fn shard(number: usize, count: usize) -> String {
    format!("tiny-{number:05}-of-{count:05}.gguf")
}

/// A folder with the model in `count` files.
fn split_folder(count: usize, change: impl FnOnce(&mut Vec<GgufWriter>)) -> TempDir {
    let mut writers = model().split(count);
    change(&mut writers);
    let names: Vec<String> = (1..=count).map(|number| shard(number, count)).collect();
    let files: Vec<(&str, Vec<u8>)> = names
        .iter()
        .zip(&writers)
        .map(|(name, writer)| (name.as_str(), writer.finish()))
        .collect();
    folder(&files)
}

/// Loads to the end; says what was told of the progress.
fn load(path: &Path) -> Result<(Loaded, Vec<u64>), LoadError> {
    let mut load = FileLoad::new(options(path));
    let mut told = Vec::new();
    loop {
        let now = Instant::now();
        match load.step(now, now + Duration::from_millis(1))? {
            LoadStep::Progress(progress) => {
                assert!(progress.processed <= progress.total);
                told.push(progress.processed);
            }
            LoadStep::Ready(loaded) => return Ok((*loaded, told)),
        }
    }
}

fn logits(loaded: &mut Loaded) -> Vec<Vec<f32>> {
    let tokens: Vec<u32> = (0..40).map(|n| n * 6).collect();
    common::forward(&mut *loaded.device, &tokens, 0, 16, Rows::All)
}

/// The error of a load that has to fail.
fn refused(path: &Path) -> LoadError {
    match FileLoad::new(options(path)).check() {
        Err(error) => error,
        Ok(_) => panic!("{} is loaded", path.display()),
    }
}

#[track_caller]
fn assert_says(error: &LoadError, wanted: &[&str]) {
    let text = error.to_string();
    for wanted in wanted {
        assert!(text.contains(wanted), "{text:?} does not say {wanted:?}");
    }
}

#[test]
fn a_model_in_several_files_says_what_it_says_in_one() {
    let one = folder(&[("tiny.gguf", model().finish())]);
    let (mut whole, told) = load(&one.path().join("tiny.gguf")).expect("a model");
    let wanted = logits(&mut whole);
    assert!(told.is_sorted() && told[0] == 0);
    for count in [1, 2, 3, 21] {
        let split = split_folder(count, |_| {});
        let path = split.path().join(shard(1, count));
        let (mut loaded, _) = load(&path).expect("a model");
        assert_eq!(logits(&mut loaded), wanted, "{count} files");
        assert_eq!(loaded.model.name, "tiny");
        assert_eq!(loaded.model.parameters, whole.model.parameters);
        assert_eq!(loaded.device.memory(), whole.device.memory());
    }
}

#[test]
fn any_of_the_files_or_their_folder_names_the_model() {
    let split = split_folder(3, |_| {});
    std::fs::write(split.path().join("notes.txt"), "no model").expect("written");
    let mut given: Vec<PathBuf> = (1..=3).map(|n| split.path().join(shard(n, 3))).collect();
    given.push(split.path().to_owned());
    for path in given {
        let checked = FileLoad::new(options(&path)).check().expect("a model");
        let names: Vec<String> = checked
            .files
            .iter()
            .map(|file| {
                file.path
                    .file_name()
                    .unwrap()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        assert_eq!(names, [shard(1, 3), shard(2, 3), shard(3, 3)]);
        let tensors: Vec<usize> = checked.files.iter().map(|file| file.tensors).collect();
        assert_eq!(tensors, [7, 7, 7]);
        for file in &checked.files {
            assert_eq!(file.bytes, std::fs::metadata(&file.path).unwrap().len());
        }
        let by_type: usize = checked
            .tensor_types
            .iter()
            .map(|t: &TensorTypeFacts| t.tensors)
            .sum();
        assert_eq!(by_type, 21);
    }
}

#[test]
fn pipes_and_devices_are_no_files_of_a_model() {
    let folder = folder(&[("tiny.gguf", model().finish())]);
    let (model, pipe) = (folder.path().join("tiny.gguf"), folder.path().join("pipe"));
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo").success());
    for path in [pipe, PathBuf::from("/dev/zero")] {
        let good = options(&model);
        let cases = [
            options(&path),
            LoadOptions {
                tokenizer: Some(path.clone()),
                ..good.clone()
            },
            LoadOptions {
                chat_template: Some(path.clone()),
                ..good
            },
        ];
        for options in cases {
            let error = FileLoad::new(options).check().err().expect("it is refused");
            assert!(matches!(error, LoadError::NoInput(_)), "{error:?}");
            assert_says(&error, &["is not a file"]);
        }
    }
}

/// What is done to the files before they are written.
type Change = fn(&mut Vec<GgufWriter>);

#[test]
fn files_that_do_not_make_a_model_are_named() {
    let split = split_folder(3, |_| {});
    let first = split.path().join(shard(1, 3));
    std::fs::remove_file(split.path().join(shard(2, 3))).expect("removed");
    let error = refused(&first);
    assert!(matches!(error, LoadError::NoInput(_)), "{error:?}");
    assert_says(&error, &[&shard(2, 3), "is missing", "3 files"]);

    let cases: [(&str, Change, &[&str]); 7] = [
        (
            "two files have each other's name",
            |w| w.swap(1, 2),
            &["00002-of", "split.no is 2"],
        ),
        (
            "a file of another split",
            |w| w[2] = model().split(4).swap_remove(2),
            &["00003-of", "split.count is 4", "3 file(s)"],
        ),
        (
            "a tensor is gone",
            |w| drop(w[1].tensors.pop()),
            &["00001-of", "20 tensors", "is 21"],
        ),
        (
            "a tensor twice",
            |w| w[2].tensors[0] = w[1].tensors[0].clone(),
            &["occurs twice", "blk."],
        ),
        (
            "a later file of another model",
            |w| w[1] = w[1].clone().key("general.architecture", "gpt2"),
            &["00002-of", "general.architecture"],
        ),
        (
            "nothing says how many",
            |w| w[0].keys.retain(|k| k.0 != b"split.count"),
            &["split.count"],
        ),
        (
            "no GGUF",
            |w| w[1].magic = *b"ELF!",
            &["00002-of", "not a GGUF file"],
        ),
    ];
    for (what, change, wanted) in cases {
        let split = split_folder(3, change);
        let error = refused(&split.path().join(shard(1, 3)));
        assert!(matches!(error, LoadError::BadModel(_)), "{what}: {error:?}");
        assert_says(&error, wanted);
    }
}

#[test]
fn a_file_of_several_has_to_have_its_name() {
    let part = model().split(3)[0].finish();
    let renamed = folder(&[("renamed.gguf", part)]);
    let error = refused(&renamed.path().join("renamed.gguf"));
    assert_says(&error, &["split.count is 3", "1 file(s)", "00001-of-00003"]);
}

#[test]
fn a_folder_has_to_have_one_model() {
    let file = model().finish();
    let two = folder(&[("a.gguf", file.clone()), ("b.gguf", file.clone())]);
    assert_says(&refused(two.path()), &["2 models", "a.gguf, b.gguf"]);
    let none = folder(&[("a.bin", file.clone())]);
    assert_says(&refused(none.path()), &["no .gguf file"]);
    let one = folder(&[("a.gguf", file)]);
    assert!(FileLoad::new(options(one.path())).check().is_ok());
    assert_says(
        &refused(&one.path().join("b.gguf")),
        &["b.gguf cannot be read"],
    );
}

#[test]
fn each_file_has_its_version_and_alignment() {
    let wanted = logits(&mut load(split_folder(1, |_| {}).path()).expect("a model").0);
    let split = split_folder(3, |writers| {
        writers[0].version = 2;
        writers[1].alignment = 256;
        writers[1] = writers[1].clone().key("general.alignment", 256_u32);
        writers[2].alignment = 64;
        writers[2] = writers[2].clone().key("general.alignment", 64_u32);
    });
    assert_eq!(logits(&mut load(split.path()).expect("a model").0), wanted);
}

#[test]
fn empty_first_files_hold_the_metadata_alone() {
    let split = split_folder(2, |writers| {
        let mut tensors = std::mem::take(&mut writers[0].tensors);
        tensors.append(&mut writers[1].tensors);
        writers[1].tensors = tensors;
    });
    let checked = FileLoad::new(options(split.path()))
        .check()
        .expect("a model");
    assert_eq!(
        (checked.files[0].tensors, checked.files[1].tensors),
        (0, 21)
    );
}

#[test]
fn a_tokenizer_json_beside_the_model_is_used() {
    let json = tokenizer_json("<stop>").to_string().into_bytes();
    let alone = folder(&[("tiny.gguf", model().finish())]);
    let beside = folder(&[
        ("tiny.gguf", model().finish()),
        ("tokenizer.json", json.clone()),
    ]);
    let split = split_folder(2, |_| {});
    std::fs::write(split.path().join("tokenizer.json"), &json).expect("written");
    for (path, kind, end) in [
        (alone.path().to_owned(), TokenizerKind::GgufBpe, "<end>"),
        (
            beside.path().join("tiny.gguf"),
            TokenizerKind::HfJson,
            "<stop>",
        ),
        (beside.path().to_owned(), TokenizerKind::HfJson, "<stop>"),
        (split.path().to_owned(), TokenizerKind::HfJson, "<stop>"),
    ] {
        let tokenizer = FileLoad::new(options(&path))
            .check()
            .expect("a model")
            .loaded
            .tokenizer;
        assert_eq!(tokenizer.kind(), kind);
        assert_eq!(tokenizer.token_bytes(256), Some(end.as_bytes()));
    }
    // The flag comes first.
    let other = folder(&[(
        "other.json",
        tokenizer_json("<other>").to_string().into_bytes(),
    )]);
    let mut flags = options(beside.path());
    flags.tokenizer = Some(other.path().join("other.json"));
    let tokenizer = FileLoad::new(flags)
        .check()
        .expect("a model")
        .loaded
        .tokenizer;
    assert_eq!(tokenizer.token_bytes(256), Some(b"<other>".as_slice()));
}

#[test]
fn a_tokenizer_json_that_does_not_fit_is_refused_and_not_passed_over() {
    let mut swapped = tokenizer_json("<end>");
    swapped["model"]["vocab"]["!"] = 34.into();
    swapped["model"]["vocab"]["\""] = 33.into();
    let path = folder(&[
        ("tiny.gguf", model().finish()),
        ("tokenizer.json", swapped.to_string().into_bytes()),
    ]);
    let error = refused(path.path());
    assert_says(
        &error,
        &[
            "tokenizer.json",
            "does not belong",
            "beside the model",
            "--tokenizer",
        ],
    );
}

#[test]
fn the_vocabulary_is_as_large_as_the_embedding() {
    let rows = |n_vocab| {
        let keys = model().keys;
        let tiny = TinyLlama {
            n_vocab,
            ..TinyLlama::new(TensorType::Q4_0)
        };
        let mut writer = tiny.writer();
        writer.keys = keys;
        writer.finish()
    };
    for n_vocab in [VOCAB - 1, VOCAB + 1] {
        let path = folder(&[("tiny.gguf", rows(n_vocab))]);
        let rows = format!("{n_vocab} rows");
        assert_says(&refused(path.path()), &["257 tokens", &rows]);
    }
    // Rows that pad the embedding have no token in a tokenizer.json, where the model file names none either.
    let mut padded = model();
    padded
        .keys
        .retain(|key| !key.0.starts_with(b"tokenizer.ggml.t"));
    let tiny = TinyLlama {
        n_vocab: VOCAB + 7,
        ..TinyLlama::new(TensorType::Q4_0)
    };
    padded.tensors = tiny.writer().tensors;
    let json = tokenizer_json("<end>").to_string().into_bytes();
    let path = folder(&[("tiny.gguf", padded.finish()), ("tokenizer.json", json)]);
    let loaded = FileLoad::new(options(path.path()))
        .check()
        .expect("a model")
        .loaded;
    assert_eq!(loaded.tokenizer.vocab_size(), VOCAB + 7);
    assert_eq!(loaded.tokenizer.token_bytes(260), None);
}

/// Bytes for the second file: anything, or the true ones with a few changed or cut off.
fn second_file() -> impl Strategy<Value = Vec<u8>> {
    let good = model().split(2)[1].finish();
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let changed = (changes, any::<prop::sample::Index>()).prop_map(move |(changes, end)| {
        let mut bytes = good.clone();
        for (at, byte) in changes {
            // Most of the file is weights; the header is what can go wrong.
            let at = at.index(1024.min(bytes.len()));
            bytes[at] = byte;
        }
        bytes.truncate(end.index(2 * bytes.len()));
        bytes
    });
    prop_oneof![prop::collection::vec(any::<u8>(), 0..200), changed]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_second_file_of_any_bytes_is_refused_or_read(bytes in second_file()) {
        let first = model().split(2)[0].finish();
        let path = folder(&[(&shard(1, 2), first), (&shard(2, 2), bytes)]);
        // Whatever it says, it says it in an error of its own kind.
        match FileLoad::new(options(path.path())).check() {
            Ok(checked) => prop_assert_eq!(checked.files.len(), 2),
            Err(LoadError::BadModel(text)) => prop_assert!(text.contains(&*path.path().to_string_lossy())),
            Err(other) => prop_assert!(false, "{other:?}"),
        }
    }
}

#[test]
fn a_tensor_in_no_file_or_too_many_is_named() {
    let split = split_folder(2, |writers| {
        writers[1].tensors.remove(0);
        let extra = writers[1]
            .clone()
            .tensor("blk.7.extra", &[4], tensor_type::F32, [0; 16]);
        writers[1] = extra;
    });
    let error = refused(split.path());
    assert_says(&error, &["is missing"]);
    let more = split_folder(2, |writers| {
        writers[1] = writers[1]
            .clone()
            .tensor("blk.7.extra", &[4], tensor_type::F32, [0; 16]);
        writers[0]
            .keys
            .retain(|key| key.0 != b"split.tensors.count");
    });
    assert_says(&refused(more.path()), &["blk.7.extra", "left over"]);
}

#[test]
fn the_default_model_is_there_at_once() {
    let Some(path) = common::model_path() else {
        return;
    };
    let mut load = FileLoad::new(options(&path));
    let begin = Instant::now();
    let mut phases = Vec::new();
    for phase in ["files", "text", "device"] {
        let since = Instant::now();
        load.step(since, since).expect("a phase");
        phases.push(format!("{phase} {:?}", since.elapsed()));
    }
    let since = Instant::now();
    while let LoadStep::Progress(_) = load
        .step(since, since + Duration::from_millis(5))
        .expect("weights")
    {}
    common::say(&format!(
        "{} weights {:?}, in all {:?}",
        phases.join(" "),
        since.elapsed(),
        begin.elapsed()
    ));
    // Far above what it takes, so that a busy machine does not fail it.
    assert!(begin.elapsed() < Duration::from_secs(5));
}
