//! The tokenizer against reference ids, against slower ways to the same ids, and against damaged
//! vocabularies and texts that are made to break it.

mod text_support;
#[path = "text_support/texts.rs"]
mod texts;

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use text_support::{
    bytes, check_shared_vectors, check_vectors, data, gpt2_library, gpt2_metadata, in_steps,
    model_metadata, plain, shared_metadata, small_metadata, timed,
};
use texts::texts;
use worker_orcd::gguf::Metadata;
use worker_orcd::text::{
    AddSpecial, EncodingStep, ParseSpecial, TextDecoder, Tokenizer, TokenizerError, TokenizerKind,
};

thread_local! {
    static GPT2: Tokenizer = Tokenizer::from_gguf(&gpt2_metadata()).unwrap();
}

#[test]
fn gpt2_gives_the_reference_ids() {
    GPT2.with(|tokenizer| {
        assert_eq!(tokenizer.vocab_size(), 50257);
        assert_eq!(tokenizer.kind(), TokenizerKind::GgufBpe);
        check_vectors(tokenizer, &data("gpt-2.inp"), &data("gpt-2.out"));
    });
}

#[test]
fn the_committed_gpt2_vocabulary_is_that_of_the_reference_file() {
    let Some(reference) = shared_metadata("gpt-2") else {
        return;
    };
    let ours = gpt2_metadata();
    for key in ["tokens", "merges", "token_type", "model", "pre"] {
        let key = format!("tokenizer.ggml.{key}");
        assert!(ours.get(&key) == reference.get(&key), "{key}");
    }
}

#[test]
fn other_vocabularies_give_their_reference_ids() {
    for name in ["llama-bpe", "qwen2", "deepseek-llm"] {
        check_shared_vectors(name);
    }
}

#[test]
fn the_default_model_gives_the_reference_ids() {
    let Some(metadata) = model_metadata() else {
        return;
    };
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    let mut prompts = 0;
    for line in data("smollm2-prompts.jsonl").lines() {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        let prompt = case["prompt"].as_str().unwrap();
        let expected: Vec<u32> = serde_json::from_value(case["token_ids"].clone()).unwrap();
        for add_special in [AddSpecial::No, AddSpecial::Yes] {
            // The file says add_bos_token = false, so both give the same.
            let ids = tokenizer.encode(prompt, add_special, ParseSpecial::Yes);
            assert_eq!(ids.unwrap(), expected, "{}", case["id"]);
        }
        assert_eq!(bytes(&tokenizer, &expected), prompt.as_bytes());
        prompts += 1;
    }
    assert_eq!(prompts, 10);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
    assert!(tokenizer.is_end_of_generation(2) && tokenizer.is_end_of_generation(0));
    assert!(!tokenizer.is_end_of_generation(1));
    assert!(tokenizer.is_control(1) && !tokenizer.is_control(9690));
    assert_eq!(tokenizer.token_bytes(2), Some(b"<|im_end|>".as_slice()));
    // This vocabulary has no token for some bytes that text hardly has: an error, not a gap.
    let error = tokenizer
        .encode("a\u{4}b", AddSpecial::No, ParseSpecial::No)
        .unwrap_err();
    assert_eq!(error, TokenizerError::MissingByte { byte: 4 });
}

/// The oracle for texts that its engine can take.
static LIBRARY: LazyLock<tokenizers::Tokenizer> = LazyLock::new(gpt2_library);

fn library_ids(text: &str) -> Vec<u32> {
    LIBRARY.encode_fast(text, false).unwrap().get_ids().to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_texts_have_the_library_s_ids_and_come_back(text in texts()) {
        GPT2.with(|tokenizer| {
            let ids = plain(tokenizer, &text);
            prop_assert_eq!(&ids, &library_ids(&text));
            prop_assert_eq!(bytes(tokenizer, &ids), text.as_bytes());
            let mut decoder = TextDecoder::new();
            let mut decoded: String = ids
                .iter()
                .map(|id| decoder.push(tokenizer.token_bytes(*id).unwrap()))
                .collect();
            decoded.push_str(&decoder.finish());
            prop_assert_eq!(decoded, text);
            Ok(())
        })?;
    }

    #[test]
    fn long_random_words_have_the_library_s_ids(
        alphabet in prop_oneof![
            Just("a"), Just("ab"), Just("aeist"), Just("etaoinshrdlu"), Just("lL"), Just("日本語の"),
            Just("éèà"),
        ],
        letters in prop::collection::vec(any::<prop::sample::Index>(), 4000..14000),
    ) {
        // One pre-token that goes through several windows.
        let alphabet: Vec<char> = alphabet.chars().collect();
        let text: String = letters.iter().map(|index| *index.get(&alphabet)).collect();
        GPT2.with(|tokenizer| {
            prop_assert!(plain(tokenizer, &text) == library_ids(&text), "{:?}", text);
            Ok(())
        })?;
    }
}

#[test]
fn a_long_text_is_encoded_in_steps_with_the_same_ids() {
    let paragraph = data("gpt-2.inp");
    let text = paragraph.repeat(200);
    GPT2.with(|tokenizer| {
        let (ids, steps) = in_steps(tokenizer, &text, ParseSpecial::No);
        assert!(ids == library_ids(&text));
        assert!(steps > text.len() / 20_000, "{steps} steps");
    });
}

/// The ids of `count` times `unit`, where the whole is one pre-token: the merges of such a run go
/// from the left, so its ids repeat, and what is left over at the end is encoded for itself.
fn run_ids(tokenizer: &Tokenizer, unit: &str, count: usize) -> Vec<u32> {
    // A run that the library encodes at once shows the pattern.
    let short = library_ids(&unit.repeat(1024));
    let period = (1..100)
        .find(|period| {
            short
                .iter()
                .zip(&short[*period..])
                .all(|(left, right)| left == right)
        })
        .unwrap();
    let pattern = &short[..period];
    let width = bytes(tokenizer, pattern).len() / unit.len();
    let mut ids = pattern.repeat(count / width);
    ids.extend(library_ids(&unit.repeat(count % width)));
    ids
}

#[test]
fn long_runs_of_one_character_are_right_and_quick() {
    const COUNT: usize = 1_000_000;
    GPT2.with(|tokenizer| {
        for unit in [" ", "\n", "a", "1", "!", "-", "\u{3000}"] {
            let text = unit.repeat(COUNT);
            let ids = timed(&format!("{COUNT} x {unit:?}"), || plain(tokenizer, &text));
            assert!(ids == run_ids(tokenizer, unit, COUNT), "{unit:?}");
        }
        // A word after the run takes the last space of it.
        let text = format!("{}word", " ".repeat(COUNT));
        let mut expected = run_ids(tokenizer, " ", COUNT - 1);
        expected.extend(plain(tokenizer, " word"));
        assert!(plain(tokenizer, &text) == expected);
    });
}

/// Cuts as the expression of Llama 3 cuts white space, by hand and without an expression: up to the
/// last line end, then all but the last character, then that one with the word after it.
fn llama3_white_space(text: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let rest = match text.rfind(['\r', '\n']) {
        Some(index) => {
            pieces.push(text[..=index].to_owned());
            &text[index + 1..]
        }
        None => text,
    };
    if !rest.is_empty() {
        pieces.push(rest.to_owned());
    }
    pieces
}

#[test]
fn long_mixed_runs_are_right_and_quick() {
    const COUNT: usize = 1_000_000;
    // Ids by piece: the small vocabulary has no merge across pieces, so a cut shows.
    let merges = ["Ġ Ġ", "ĠĠ ĠĠ", "Ċ Ċ", "Ġ Ċ", "Ċ Ġ", "ĠĊ Ġ", "ĠĊ ĠĊ"];
    for pre in ["smollm", "llama-bpe", "deepseek-llm"] {
        let mut metadata = small_metadata(pre, &merges, &[]);
        metadata.insert("tokenizer.ggml.add_bos_token", false);
        let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
        for unit in ["\n ", " \n", "  \n", "\t ", "1a", "1 ", "!1", "a\n", "é!"] {
            let text = unit.repeat(COUNT / unit.len());
            let ids = timed(&format!("{pre} {unit:?}"), || plain(&tokenizer, &text));
            assert!(bytes(&tokenizer, &ids) == text.as_bytes());
        }
        if pre == "llama-bpe" {
            let text = format!("{}  ", "\n ".repeat(3000));
            let expected: Vec<u32> = llama3_white_space(&text)
                .iter()
                .flat_map(|piece| plain(&tokenizer, piece))
                .collect();
            assert_eq!(plain(&tokenizer, &text), expected);
        }
    }
}

#[test]
fn no_step_takes_long() {
    GPT2.with(|tokenizer| {
        let mixed = data("gpt-2.inp").repeat(500);
        let special = "<|endoftext|>".repeat(40_000);
        for text in [
            "a".repeat(1 << 20),
            " ".repeat(1 << 20),
            "lorem ipsum dolor sit amet ".repeat(40_000),
            "日本語".repeat(100_000),
            mixed,
            special,
        ] {
            let mut encoding =
                tokenizer.start_encoding(text.clone(), AddSpecial::No, ParseSpecial::Yes);
            let mut steps = Vec::new();
            loop {
                let begin = Instant::now();
                let step = encoding.step(tokenizer).unwrap();
                steps.push(begin.elapsed());
                if matches!(step, EncodingStep::Done(_)) {
                    break;
                }
            }
            steps.sort_unstable();
            let (median, slowest) = (steps[steps.len() / 2], steps[steps.len() - 1]);
            let name: String = text.chars().take(12).collect();
            eprintln!(
                "{name:?}…: {} steps, median {median:?}, slowest {slowest:?}",
                steps.len()
            );
            // Far above what a step takes, so that a busy machine does not fail it.
            assert!(slowest < Duration::from_millis(100), "{slowest:?}");
        }
    });
}

#[test]
fn control_tokens_are_read_only_where_asked_for() {
    let special = [
        ("<|x|>", 3),
        ("<|x|>y", 3),
        ("word", 4),
        ("<unk>", 2),
        ("[PAD]", 5),
    ];
    let metadata = small_metadata("gpt-2", &["w o", "r d"], &special);
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    let (x, xy, word, unk, pad) = (258, 259, 260, 261, 262);
    let encode = |text, parse| tokenizer.encode(text, AddSpecial::No, parse).unwrap();
    assert_eq!(encode("<|x|>", ParseSpecial::Yes), [x]);
    // The longest of those that begin first.
    assert_eq!(encode("<|x|>y<|x|>", ParseSpecial::Yes), [xy, x]);
    assert_eq!(encode("<unk>", ParseSpecial::Yes), [unk]);
    assert_eq!(encode("swordword", ParseSpecial::Yes)[1..], [word, word]);
    // As text: no control token, but user-defined ones all the same.
    let ids = encode("<|x|>yword<unk>", ParseSpecial::No);
    assert!(!ids.contains(&x) && !ids.contains(&xy) && !ids.contains(&unk));
    assert_eq!(ids.iter().filter(|id| **id == word).count(), 1);
    assert_eq!(bytes(&tokenizer, &ids), b"<|x|>yword<unk>");
    // Unused tokens are never found.
    assert!(!encode("[PAD]", ParseSpecial::Yes).contains(&pad));
    assert!(tokenizer.is_control(x) && tokenizer.is_control(unk));
    assert!(
        !tokenizer.is_control(word) && !tokenizer.is_control(pad) && !tokenizer.is_control(999)
    );
    assert_eq!(tokenizer.token_bytes(x), Some(b"<|x|>".as_slice()));
    assert_eq!(tokenizer.token_bytes(263), None);
    assert_eq!(tokenizer.token_bytes(u32::MAX), None);
}

#[test]
fn special_tokens_are_found_across_search_windows() {
    let metadata = small_metadata("gpt-2", &[], &[("<|middle|>", 3)]);
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    for offset in (65_520..65_545).chain(131_060..131_075) {
        let text = format!("{}<|middle|>b", "a".repeat(offset));
        let ids = tokenizer
            .encode(&text, AddSpecial::No, ParseSpecial::Yes)
            .unwrap();
        assert_eq!(ids.len(), offset + 2, "{offset}");
        assert_eq!(ids[offset], 256);
    }
}

#[test]
fn bos_and_eos_are_added_as_the_file_says() {
    let special = [("<s>", 3), ("</s>", 3)];
    let with = |pre: &str, flags: &[(&str, bool)]| {
        let mut metadata = small_metadata(pre, &[], &special);
        metadata.insert("tokenizer.ggml.bos_token_id", 256_u32);
        metadata.insert("tokenizer.ggml.eos_token_id", 257_u32);
        for (flag, value) in flags {
            metadata.insert(&format!("tokenizer.ggml.add_{flag}_token"), *value);
        }
        let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
        assert_eq!(plain(&tokenizer, "!"), [0]);
        tokenizer
            .encode("!", AddSpecial::Yes, ParseSpecial::Yes)
            .unwrap()
    };
    assert_eq!(with("gpt-2", &[]), [0]);
    assert_eq!(with("llama-bpe", &[]), [256, 0]);
    assert_eq!(with("tekken", &[("eos", true)]), [256, 0, 257]);
    assert_eq!(with("llama-bpe", &[("bos", false)]), [0]);
    assert_eq!(with("gpt-2", &[("bos", true), ("eos", false)]), [256, 0]);
}

#[test]
fn ends_of_generation_are_those_of_the_file_and_well_known_names() {
    let special = [
        ("<|end|>", 3),
        ("<|return|>", 3),
        ("<|call|>", 3),
        ("stop", 3),
        ("<|eot_id|>", 3),
        ("<|im_end|>", 1),
    ];
    let mut metadata = small_metadata("gpt-2", &[], &special);
    metadata.insert("tokenizer.ggml.eot_token_id", 259_u32);
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    let ends: Vec<u32> = (0..263)
        .filter(|id| tokenizer.is_end_of_generation(*id))
        .collect();
    // <|end|> is none beside <|return|> and <|call|>; a normal token is none whatever its name.
    assert_eq!(ends, [257, 258, 259, 260]);
    let mut metadata = small_metadata("gpt-2", &[], &special[..1]);
    metadata.insert("tokenizer.ggml.eos_token_id", 5_u32);
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    assert!(tokenizer.is_end_of_generation(256) && tokenizer.is_end_of_generation(5));
}

fn refused(metadata: &Metadata) -> String {
    Tokenizer::from_gguf(metadata).unwrap_err().to_string()
}

#[test]
fn damaged_vocabularies_are_errors_that_name_the_damage() {
    let good = || small_metadata("gpt-2", &["a b", "ab c"], &[("<s>", 3)]);
    let change = |key: &str, value: worker_orcd::gguf::Value| {
        let mut metadata = good();
        metadata.insert(&format!("tokenizer.ggml.{key}"), value);
        refused(&metadata)
    };
    assert!(Tokenizer::from_gguf(&good()).is_ok());
    let tokens = |metadata: &Metadata| -> Vec<String> {
        metadata
            .require_strings("tokenizer.ggml.tokens")
            .unwrap()
            .to_vec()
    };
    let merges = |merges: &[&str]| -> worker_orcd::gguf::Value {
        merges
            .iter()
            .map(|merge| (*merge).to_owned())
            .collect::<Vec<String>>()
            .into()
    };

    let error = change("merges", merges(&["a b", "b c"]));
    assert!(
        error.contains("merge 1") && error.contains("\"bc\""),
        "{error}"
    );
    let error = change("merges", merges(&["a b", "ab zz"]));
    assert!(error.contains("\"zz\""), "{error}");
    // A result longer than every token makes the library panic.
    let error = change("merges", merges(&["a b", "abc abc"]));
    assert!(error.contains("\"abcabc\""), "{error}");
    let error = change("merges", merges(&["a b", "ab c", "a b"]));
    assert!(
        error.contains("merge 2") && error.contains("twice"),
        "{error}"
    );
    for bad in ["ab", "a b c", " ab", "ab ", "", " "] {
        let error = change("merges", merges(&["a b", bad]));
        assert!(error.contains("merge 1"), "{bad:?}: {error}");
    }
    // A merge must not make a control token out of text.
    let error = change("merges", merges(&["a b", "< s", "<s >"]));
    assert!(error.contains("\"<s\""), "{error}");

    let error = change("token_type", vec![1_i32; 3].into());
    assert!(
        error.contains("token_type has 3 entries") && error.contains("259"),
        "{error}"
    );
    let error = change("token_type", vec![7_i32; 259].into());
    assert!(error.contains("token 0 is 7"), "{error}");
    let error = change("bos_token_id", 259_u32.into());
    assert!(error.contains("bos_token_id is 259"), "{error}");
    let error = change("eot_token_id", u32::MAX.into());
    assert!(error.contains("eot_token_id is 4294967295"), "{error}");
    let error = change("add_bos_token", true.into());
    assert!(error.contains("bos_token_id is missing"), "{error}");

    let mut twice = tokens(&good());
    twice[258] = "a".to_owned();
    let error = change("tokens", twice.into());
    assert!(
        error.contains("64 and 258") && error.contains("\"a\""),
        "{error}"
    );
    let mut empty = tokens(&good());
    empty[258] = String::new();
    assert!(change("tokens", empty.into()).contains("token 258 is empty"));
    assert!(change("tokens", Vec::<String>::new().into()).contains("empty"));
    assert!(change("tokens", "a".into()).contains("tokenizer.ggml.tokens"));

    assert!(change("pre", "default".into()).contains("default"));
    assert!(change("pre", "nobody-knows".into()).contains("\"nobody-knows\""));
    assert!(change("model", "bert".into()).contains("\"bert\""));
    let mut metadata = Metadata::default();
    assert!(refused(&metadata).contains("tokenizer.ggml.model"));
    metadata.insert("tokenizer.ggml.model", "gpt2");
    assert!(refused(&metadata).contains("tokenizer.ggml.pre is missing"));
}

#[test]
fn a_missing_byte_is_an_error_and_not_a_gap() {
    let mut metadata = small_metadata("gpt-2", &[], &[]);
    let mut tokens = text_support::byte_characters();
    tokens.retain(|token| token != "b");
    metadata.insert("tokenizer.ggml.token_type", vec![1_i32; tokens.len()]);
    metadata.insert("tokenizer.ggml.tokens", tokens);
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    assert_eq!(plain(&tokenizer, "aca").len(), 3);
    for text in ["abc".to_owned(), format!("{}b", "a".repeat(10_000))] {
        let error = tokenizer
            .encode(&text, AddSpecial::No, ParseSpecial::No)
            .unwrap_err();
        assert_eq!(error, TokenizerError::MissingByte { byte: b'b' });
    }
}

#[test]
fn every_id_of_a_vocabulary_decodes() {
    GPT2.with(|tokenizer| {
        let mut bytes_of_all: Vec<&[u8]> = (0..50257)
            .map(|id| tokenizer.token_bytes(id).unwrap())
            .collect();
        assert!(bytes_of_all.iter().all(|bytes| !bytes.is_empty()));
        assert_eq!(bytes_of_all[220], b" ");
        assert_eq!(bytes_of_all[198], b"\n");
        assert_eq!(bytes_of_all[50256], b"<|endoftext|>");
        bytes_of_all.sort_unstable();
        bytes_of_all.dedup();
        assert_eq!(
            bytes_of_all.len(),
            50257,
            "two ids stand for the same bytes"
        );
    });
}

#[test]
fn encoding_starts_no_thread() {
    let threads = || std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    let names = || -> Vec<String> {
        std::fs::read_dir("/proc/self/task")
            .into_iter()
            .flatten()
            .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("comm")).ok())
            .collect()
    };
    GPT2.with(|tokenizer| plain(tokenizer, &data("gpt-2.inp").repeat(50)));
    assert!(threads() > 0);
    assert!(
        names().iter().all(|name| !name.contains("rayon")),
        "{:?}",
        names()
    );
}
