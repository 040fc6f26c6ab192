//! `tokenizer.json` against the ids of the Python package, against the same vocabulary out of a GGUF
//! file, and against files that are not supported or damaged.

mod text_support;

use serde_json::{Value as Json, json};
use text_support::{data, plain};
use worker_orcd::gguf::Metadata;
use worker_orcd::text::{
    AddSpecial, EncodingStep, ParseSpecial, Tokenizer, TokenizerError, TokenizerKind,
};

fn small() -> Json {
    serde_json::from_str(&data("small-tokenizer.json")).unwrap()
}

fn read(json: &Json, metadata: &Metadata) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_hf_json(json.to_string().as_bytes(), metadata)
}

/// The file with one change.
fn changed(change: impl FnOnce(&mut Json)) -> Result<Tokenizer, TokenizerError> {
    let mut json = small();
    change(&mut json);
    read(&json, &Metadata::default())
}

fn refused(change: impl FnOnce(&mut Json)) -> String {
    changed(change).unwrap_err().to_string()
}

#[test]
fn ids_are_those_of_the_python_package() {
    let tokenizer = read(&small(), &Metadata::default()).unwrap();
    assert_eq!(tokenizer.kind(), TokenizerKind::HfJson);
    assert_eq!(tokenizer.kind().as_str(), "hf-json");
    assert_eq!(tokenizer.vocab_size(), 598);
    let mut pairs = 0;
    for line in data("small-pairs.jsonl").lines() {
        let case: Json = serde_json::from_str(line).unwrap();
        let text = case["text"].as_str().unwrap();
        let ids = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
        assert_eq!(plain(&tokenizer, text), ids("ids"), "{text:?}");
        let special = tokenizer.encode(text, AddSpecial::Yes, ParseSpecial::Yes);
        assert_eq!(special.unwrap(), ids("special_ids"), "{text:?}");
        pairs += 1;
    }
    assert_eq!(pairs, 24);
}

#[test]
fn tokens_are_bytes_and_added_tokens_their_text() {
    let tokenizer = read(&small(), &Metadata::default()).unwrap();
    // Half a character each: never the library's per-token decoding, which loses it.
    let ids = plain(&tokenizer, "🦙");
    let bytes: Vec<u8> = ids
        .iter()
        .flat_map(|id| tokenizer.token_bytes(*id).unwrap())
        .copied()
        .collect();
    assert_eq!(bytes, "🦙".as_bytes());
    assert_eq!(tokenizer.token_bytes(0), Some(b"<|begin|>".as_slice()));
    assert_eq!(tokenizer.token_bytes(596), Some(b"<think>".as_slice()));
    assert!(tokenizer.is_control(0) && tokenizer.is_control(595));
    assert!(!tokenizer.is_control(596) && !tokenizer.is_control(300));
    for id in 0..598 {
        assert!(tokenizer.token_bytes(id).is_some());
    }
    assert_eq!(tokenizer.token_bytes(598), None);
}

#[test]
fn long_texts_are_normalized_and_encoded_in_steps() {
    let tokenizer = read(&small(), &Metadata::default()).unwrap();
    let part = "e\u{301}cole <think>A\u{30a} 日本語\u{3099} — n\u{303}".to_owned();
    let ids = plain(&tokenizer, &format!("{part}\n"));
    let text = format!("{part}\n").repeat(3000);
    let mut encoding = tokenizer.start_encoding(text, AddSpecial::No, ParseSpecial::No);
    let mut steps = 0;
    let all = loop {
        steps += 1;
        match encoding.step(&tokenizer).unwrap() {
            EncodingStep::Working => {}
            EncodingStep::Done(ids) => break ids,
        }
    };
    assert!(steps > 10, "{steps}");
    assert!(all == ids.repeat(3000));
    // Without an ASCII character to stop at, too.
    let text = "e\u{301}\u{323}日\u{3099}".repeat(5000);
    let composed = "ẹ\u{301}日\u{3099}".repeat(5000);
    assert!(plain(&tokenizer, &text) == plain(&tokenizer, &composed));
}

/// The same vocabulary as the metadata of a GGUF file.
fn gguf_metadata() -> Metadata {
    let json = small();
    let mut tokens = vec![String::new(); 600];
    let mut types = vec![1_i32; 600];
    for (token, id) in json["model"]["vocab"].as_object().unwrap() {
        tokens[usize::try_from(id.as_u64().unwrap()).unwrap()] = token.clone();
    }
    for added in json["added_tokens"].as_array().unwrap() {
        let id = usize::try_from(added["id"].as_u64().unwrap()).unwrap();
        tokens[id] = added["content"].as_str().unwrap().to_owned();
        types[id] = if added["special"] == true { 3 } else { 4 };
    }
    for id in 598..600 {
        tokens[id] = format!("[PAD{id}]");
        types[id] = 5;
    }
    let merges: Vec<String> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| {
            format!(
                "{} {}",
                pair[0].as_str().unwrap(),
                pair[1].as_str().unwrap()
            )
        })
        .collect();
    let mut metadata = Metadata::default();
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", "dbrx");
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", types);
    metadata.insert("tokenizer.ggml.merges", merges);
    metadata.insert("tokenizer.ggml.bos_token_id", 0_u32);
    metadata.insert("tokenizer.ggml.eos_token_id", 1_u32);
    metadata
}

#[test]
fn the_same_vocabulary_out_of_a_gguf_file_gives_the_same_ids() {
    let metadata = gguf_metadata();
    let gguf = Tokenizer::from_gguf(&metadata).unwrap();
    let json = read(&small(), &metadata).unwrap();
    assert_eq!((json.bos(), json.eos()), (Some(0), Some(1)));
    assert!(json.is_end_of_generation(1));
    for line in data("small-pairs.jsonl").lines() {
        let case: Json = serde_json::from_str(line).unwrap();
        let text = case["text"].as_str().unwrap();
        // A GGUF file has no normalizer and no stripping; what remains is the same.
        if text.contains("</think>") || text.contains("<|pad|>") || text.contains('\u{301}') {
            continue;
        }
        let encode =
            |tokenizer: &Tokenizer, parse| tokenizer.encode(text, AddSpecial::No, parse).unwrap();
        for parse in [ParseSpecial::Yes, ParseSpecial::No] {
            assert_eq!(encode(&gguf, parse), encode(&json, parse), "{text:?}");
        }
    }
}

#[test]
fn a_file_of_another_model_is_refused() {
    let mut json = small();
    let metadata = gguf_metadata();
    assert!(read(&json, &metadata).is_ok());
    // Added tokens may be renamed.
    json["added_tokens"][3]["content"] = "<thought>".into();
    assert!(read(&json, &metadata).is_ok());
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    let (b, c) = (vocab["b"].clone(), vocab["c"].clone());
    vocab["b"] = c;
    vocab["c"] = b.clone();
    let error = read(&json, &metadata).unwrap_err();
    assert!(
        matches!(&error, TokenizerError::ForeignJson { id, .. } if u64::from(*id) == b.as_u64().unwrap()),
        "{error}"
    );
    let mut short = gguf_metadata();
    short.insert("tokenizer.ggml.tokens", vec!["a".to_owned()]);
    let error = read(&small(), &short).unwrap_err().to_string();
    assert!(
        error.contains("598") && error.contains("has 1 tokens"),
        "{error}"
    );
}

#[test]
fn flags_of_the_model_file_overrule_the_post_processor() {
    let ids = |flags: &[(&str, bool)]| {
        let mut metadata = gguf_metadata();
        for (flag, value) in flags {
            metadata.insert(&format!("tokenizer.ggml.add_{flag}_token"), *value);
        }
        let tokenizer = read(&small(), &metadata).unwrap();
        let ids = tokenizer.encode("", AddSpecial::Yes, ParseSpecial::Yes);
        ids.unwrap()
    };
    assert_eq!(ids(&[]), [0, 1]);
    assert_eq!(ids(&[("bos", true), ("eos", true)]), [0, 1]);
    assert_eq!(ids(&[("eos", false)]), [0]);
    assert_eq!(ids(&[("bos", false), ("eos", false)]), [0; 0]);
}

#[test]
fn rows_without_a_token_are_holes() {
    let mut tokenizer = read(&small(), &gguf_metadata()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 598);
    tokenizer.add_holes(600);
    assert_eq!(tokenizer.vocab_size(), 600);
    assert_eq!(tokenizer.token_bytes(599), None);
    assert!(tokenizer.token_bytes(597).is_some() && !tokenizer.is_control(599));
    tokenizer.add_holes(10);
    assert_eq!(tokenizer.vocab_size(), 600);
}

/// Asserts that the file with `value` at `pointer` is refused by an error that says `named`.
fn check_named(pointer: &str, value: Json, named: &str) {
    let error = refused(|json| *json.pointer_mut(pointer).unwrap() = value);
    assert!(error.contains(named), "{pointer}: {error}");
}

#[test]
fn parts_that_are_not_supported_are_named() {
    for (pointer, value, named) in [
        ("/normalizer", json!({"type": "NFKC"}), "NFKC"),
        (
            "/normalizer",
            json!({"type": "Prepend", "prepend": "▁"}),
            "Prepend",
        ),
        (
            "/normalizer",
            json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
            "without byte_fallback",
        ),
        (
            "/normalizer",
            json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}),
            "Lowercase",
        ),
        ("/pre_tokenizer", Json::Null, "without ByteLevel"),
        (
            "/pre_tokenizer",
            json!({"type": "Metaspace", "replacement": "▁"}),
            "Metaspace",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "ByteLevel", "add_prefix_space": true, "use_regex": true}),
            "add_prefix_space",
        ),
        (
            "/pre_tokenizer/pretokenizers/0/behavior",
            json!("Removed"),
            "Removed",
        ),
        (
            "/pre_tokenizer/pretokenizers/0/invert",
            json!(true),
            "inverted",
        ),
        (
            "/pre_tokenizer/pretokenizers/0/pattern",
            json!({"String": " "}),
            "string",
        ),
        (
            "/pre_tokenizer/pretokenizers/0/pattern",
            json!({"Regex": "[^a]?+b"}),
            "possessive",
        ),
        (
            "/pre_tokenizer/pretokenizers/0/pattern",
            json!({"Regex": "(?<=a)b"}),
            "look-around",
        ),
    ] {
        check_named(pointer, value, named);
    }
}

#[test]
fn models_and_tokens_that_are_not_supported_are_named() {
    for (pointer, value, named) in [
        ("/model/type", json!("Unigram"), "Unigram"),
        ("/model/byte_fallback", json!(true), "byte_fallback"),
        ("/model/dropout", json!(0.1), "dropout"),
        (
            "/model/end_of_word_suffix",
            json!("</w>"),
            "end_of_word_suffix",
        ),
        ("/added_tokens/0/single_word", json!(true), "single_word"),
        ("/added_tokens/0/normalized", json!(true), "normalized"),
    ] {
        check_named(pointer, value, named);
    }
}

#[test]
fn damaged_files_are_errors() {
    for text in ["", "{", "[]", "{\"model\": {}}", "null"] {
        let error = Tokenizer::from_hf_json(text.as_bytes(), &Metadata::default()).unwrap_err();
        assert!(
            error.to_string().contains("tokenizer.json"),
            "{text}: {error}"
        );
    }
    let error = refused(|json| {
        json["model"]["vocab"] = json!({});
        json["added_tokens"] = json!([]);
    });
    assert!(error.contains("the vocabulary is empty"), "{error}");
    let whole = data("small-tokenizer.json");
    for length in (0..whole.len()).step_by(97) {
        let cut = &whole.as_bytes()[..length];
        assert!(Tokenizer::from_hf_json(cut, &Metadata::default()).is_err());
    }
    let error = refused(|json| json["model"]["vocab"]["b"] = 5.into());
    assert!(error.contains("the id 5 belongs to two tokens"), "{error}");
    let error = refused(|json| json["model"]["vocab"]["b"] = u32::MAX.into());
    assert!(error.contains("VOCAB_TOKENS_MAX"), "{error}");
    let error = refused(|json| json["added_tokens"][0]["id"] = 7.into());
    assert!(error.contains("the id 7 belongs to two tokens"), "{error}");
    let error = refused(|json| json["added_tokens"][3]["content"] = "a".into());
    assert!(error.contains("both \"a\""), "{error}");
    let error = refused(|json| json["model"]["merges"][0] = json!(["q", "q"]));
    assert!(
        error.contains("merge 0") && error.contains("\"qq\""),
        "{error}"
    );
    let error =
        refused(|json| json["model"]["merges"][5] = json!(["q".repeat(99), "q".repeat(99)]));
    assert!(error.contains("merge 5"), "{error}");
    let error = refused(|json| json["model"]["something_new"] = true.into());
    assert!(error.contains("something_new"), "{error}");
    // The vocabulary twice: what a map would silently resolve.
    let twice = whole.replacen("\"vocab\":{", "\"vocab\":{\"!\":590,", 1);
    assert!(Tokenizer::from_hf_json(twice.as_bytes(), &Metadata::default()).is_err());
}

#[test]
fn old_forms_of_the_file_are_read() {
    let lines = |json: &mut Json| {
        let merges = json["model"]["merges"].as_array().unwrap().iter();
        let lines: Vec<String> = merges
            .map(|pair| {
                format!(
                    "{} {}",
                    pair[0].as_str().unwrap(),
                    pair[1].as_str().unwrap()
                )
            })
            .collect();
        json["model"]["merges"] = lines.into();
        json["model"]["unk_token"] = "<|end|>".into();
        json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        ]});
        json["normalizer"] = Json::Null;
    };
    let tokenizer = changed(lines).unwrap();
    // The library's own reader and pipeline as the oracle.
    let mut json = small();
    lines(&mut json);
    let library = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
    for line in data("small-pairs.jsonl").lines() {
        let case: Json = serde_json::from_str(line).unwrap();
        let text = case["text"].as_str().unwrap();
        let ids = tokenizer.encode(text, AddSpecial::Yes, ParseSpecial::Yes);
        let expected = library.encode_fast(text, true).unwrap();
        assert_eq!(ids.unwrap(), expected.get_ids(), "{text:?}");
    }
}

fn sentencepiece() -> Json {
    serde_json::from_str(&data("small-sentencepiece-tokenizer.json")).unwrap()
}

#[test]
fn every_form_of_marking_spaces_has_the_ids_of_the_python_package() {
    let mut forms = std::collections::BTreeMap::new();
    let mut pairs = 0;
    for line in data("small-sentencepiece-pairs.jsonl").lines() {
        let line: Json = serde_json::from_str(line).unwrap();
        let form = line["form"].as_str().unwrap().to_owned();
        let Some(text) = line["text"].as_str() else {
            let mut json = sentencepiece();
            json["normalizer"] = line["normalizer"].clone();
            json["pre_tokenizer"] = line["pre_tokenizer"].clone();
            forms.insert(form, read(&json, &Metadata::default()).unwrap());
            continue;
        };
        let tokenizer = &forms[&form];
        let ids = |key: &str| -> Vec<u32> { serde_json::from_value(line[key].clone()).unwrap() };
        assert_eq!(plain(tokenizer, text), ids("ids"), "{form} {text:?}");
        let special = tokenizer.encode(text, AddSpecial::Yes, ParseSpecial::Yes);
        assert_eq!(special.unwrap(), ids("special_ids"), "{form} {text:?}");
        pairs += 1;
    }
    assert_eq!((forms.len(), pairs), (4, 120));
    let tokenizer = &forms["prepend"];
    assert_eq!(tokenizer.token_bytes(15), Some(b"\n".as_slice()));
    assert_eq!(tokenizer.token_bytes(3), Some(b"<|user|>".as_slice()));
}

#[test]
fn byte_fallback_without_marked_spaces_is_refused() {
    let mut json = sentencepiece();
    let error = read(&json, &Metadata::default()).unwrap_err().to_string();
    assert!(error.contains("does not mark spaces"), "{error}");
    json["normalizer"] = json!({"type": "NFC"});
    let error = read(&json, &Metadata::default()).unwrap_err().to_string();
    assert!(error.contains("NFC"), "{error}");
    json["normalizer"] = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    assert!(read(&json, &Metadata::default()).is_ok());
    json["model"]["ignore_merges"] = true.into();
    let error = read(&json, &Metadata::default()).unwrap_err().to_string();
    assert!(error.contains("ignore_merges"), "{error}");
}
