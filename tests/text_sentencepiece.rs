//! SentencePiece vocabularies out of a GGUF file: against the ids of the Python package, against a slow reading of what
//! SentencePiece does, and against texts and vocabularies that are made to break them.

mod text_support;
#[path = "text_support/texts.rs"]
mod texts;

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::Value as Json;
use text_support::{
    bytes, check_shared_vectors, data, in_steps, plain, sentencepiece_metadata,
    sentencepiece_pieces, shared_metadata, timed,
};
use texts::texts;
use worker_orcd::gguf::Metadata;
use worker_orcd::text::{AddSpecial, ParseSpecial, Tokenizer, TokenizerKind};

/// A vocabulary and its texts.
struct Model {
    /// Piece, score, type.
    pieces: Vec<(String, f32, i32)>,
    /// Text, ids, ids with control tokens read.
    cases: Vec<(String, Vec<u32>, Vec<u32>)>,
    adds_space: bool,
}

static MODELS: LazyLock<[Model; 2]> = LazyLock::new(|| {
    let json: Json = serde_json::from_str(&data("small-sentencepiece.json")).unwrap();
    [("prefix", true), ("bare", false)].map(|(name, adds_space)| {
        let list = || json[name]["cases"].as_array().unwrap().iter();
        let ids = |value: &Json| serde_json::from_value(value.clone()).unwrap();
        Model {
            pieces: sentencepiece_pieces(name),
            cases: list()
                .map(|case| {
                    let text = case["text"].as_str().unwrap().to_owned();
                    (text, ids(&case["ids"]), ids(&case["special_ids"]))
                })
                .collect(),
            adds_space,
        }
    })
});

impl Model {
    fn metadata(&self) -> Metadata {
        sentencepiece_metadata(&self.pieces, self.adds_space)
    }

    fn tokenizer(&self) -> Tokenizer {
        Tokenizer::from_gguf(&self.metadata()).unwrap()
    }

    /// What SentencePiece does, as plainly as it can be said: characters to begin with, then again and again the neighbours
    /// are joined whose text is the piece of the highest score, the leftmost of equal ones.
    fn slow_ids(&self, text: &str) -> Vec<u32> {
        let known: HashMap<&str, (u32, f32)> = (0..)
            .zip(&self.pieces)
            .filter(|(_, piece)| piece.2 == 1)
            .map(|(id, (piece, score, _))| (piece.as_str(), (id, *score)))
            .collect();
        let prefix = if self.adds_space && !text.is_empty() {
            "▁"
        } else {
            ""
        };
        let text = format!("{prefix}{}", text.replace(' ', "▁"));
        let mut symbols: Vec<String> = text.chars().map(String::from).collect();
        loop {
            let mut best: Option<(usize, f32)> = None;
            for (at, pair) in symbols.windows(2).enumerate() {
                let Some((_, score)) = known.get(pair.concat().as_str()) else {
                    continue;
                };
                if best.is_none_or(|(_, highest)| *score > highest) {
                    best = Some((at, *score));
                }
            }
            let Some((at, _)) = best else { break };
            let right = symbols.remove(at + 1);
            symbols[at].push_str(&right);
        }
        let byte = |byte: u8| self.id(&format!("<0x{byte:02X}>"));
        let ids = symbols
            .iter()
            .flat_map(|symbol| match known.get(symbol.as_str()) {
                Some((id, _)) => vec![*id],
                None => symbol.bytes().map(byte).collect(),
            });
        ids.collect()
    }

    fn id(&self, token: &str) -> u32 {
        let at = self.pieces.iter().position(|piece| piece.0 == token);
        u32::try_from(at.unwrap()).unwrap()
    }
}

#[test]
fn phi3_gives_the_reference_ids() {
    check_shared_vectors("phi-3");
}

#[test]
fn ids_are_those_of_the_python_package() {
    for model in &*MODELS {
        let tokenizer = model.tokenizer();
        assert_eq!(tokenizer.kind(), TokenizerKind::GgufBpe);
        for (text, ids, special_ids) in &model.cases {
            assert_eq!(&plain(&tokenizer, text), ids, "{text:?}");
            let special = tokenizer.encode(text, AddSpecial::No, ParseSpecial::Yes);
            assert_eq!(&special.unwrap(), special_ids, "{text:?}");
            for ids in [ids, special_ids] {
                let decoded = String::from_utf8(bytes(&tokenizer, ids)).unwrap();
                assert_eq!(&decoded, text);
            }
        }
        assert_eq!(model.cases.len(), 30);
    }
}

/// Texts in the letters that the small vocabularies have pieces of, and others.
fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        texts(),
        "[ aeinrst]{0,80}",
        "( {0,40}[the\n]{0,3}){0,6}",
        "[日本語のテキスト。 ]{0,30}",
        "[▁ a]{0,30}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_texts_have_the_ids_that_the_slow_way_gives(text in any_text()) {
        let [model, _] = &*MODELS;
        thread_local!(static TOKENIZER: Tokenizer = MODELS[0].tokenizer());
        TOKENIZER.with(|tokenizer| {
            let ids = plain(tokenizer, &text);
            prop_assert_eq!(&ids, &model.slow_ids(&text));
            // A mark is a space to SentencePiece.
            prop_assert_eq!(bytes(tokenizer, &ids), text.replace('▁', " ").into_bytes());
            Ok(())
        })?;
    }

    #[test]
    fn texts_come_back_where_tokens_are_user_defined(text in any_text()) {
        thread_local!(static TOKENIZER: Tokenizer = MODELS[1].tokenizer());
        TOKENIZER.with(|tokenizer| {
            for parse in [ParseSpecial::No, ParseSpecial::Yes] {
                let ids = tokenizer.encode(&text, AddSpecial::No, parse).unwrap();
                prop_assert_eq!(bytes(tokenizer, &ids), text.replace('▁', " ").into_bytes());
            }
            Ok(())
        })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn words_of_several_windows_have_the_ids_that_the_slow_way_gives(
        alphabet in prop_oneof![Just("aeinst"), Just("ab"), Just("日本語のテ🐙"), Just("x🐙")],
        letters in prop::collection::vec(any::<prop::sample::Index>(), 4200..6000),
    ) {
        let [model, _] = &*MODELS;
        let alphabet: Vec<char> = alphabet.chars().collect();
        let text: String = letters.iter().map(|index| *index.get(&alphabet)).collect();
        prop_assert!(plain(&model.tokenizer(), &text) == model.slow_ids(&text), "{:?}", text);
    }
}

#[test]
fn pieces_of_work_give_the_ids_of_the_whole() {
    let tokenizer = MODELS[1].tokenizer();
    let part = "the  worker\n\n\n reads a   line; 日本語 🐙 <table>x</table>\t\t<|user|>naïve ";
    let ids = |text: &str| {
        tokenizer
            .encode(text, AddSpecial::No, ParseSpecial::Yes)
            .unwrap()
    };
    // Nothing is joined across a control token, so the repetition is that of the ids.
    let part = format!("{part}<|end|>");
    let (all, steps) = in_steps(&tokenizer, &part.repeat(3000), ParseSpecial::Yes);
    assert!(all == ids(&part).repeat(3000));
    assert!(steps > 20, "{steps}");
}

#[test]
fn a_megabyte_of_anything_is_quick_and_right() {
    const COUNT: usize = 1_000_000;
    let [model, _] = &*MODELS;
    let tokenizer = model.tokenizer();
    // The longest run of spaces that is a piece has 16.
    let ids = timed("spaces", || plain(&tokenizer, &" ".repeat(COUNT - 1)));
    assert!(ids == vec![model.id(&"▁".repeat(16)); COUNT / 16]);
    let ids = timed("spaces and a word", || {
        plain(&tokenizer, &(" ".repeat(COUNT) + "and"))
    });
    assert_eq!(ids.last(), Some(&model.id("▁and")));
    assert_eq!(ids.len(), COUNT / 16 + 1);
    let ids = timed("bytes", || plain(&tokenizer, &"\u{7}".repeat(COUNT)));
    assert!(ids[1..] == vec![model.id("<0x07>"); COUNT]);
    for unit in ["a", "in", "the ", "🐙", "日本語", "a🐙", "aeinst", "▁"] {
        let text = unit.repeat(COUNT / unit.len());
        let ids = timed(unit, || plain(&tokenizer, &text));
        let decoded = String::from_utf8(bytes(&tokenizer, &ids)).unwrap();
        assert!(decoded == text.replace('▁', " "), "{unit}");
    }
}

#[test]
fn no_step_takes_long() {
    let tokenizer = MODELS[1].tokenizer();
    for unit in ["a", " ", "\n", "the worker ", "🐙"] {
        let text = unit.repeat((1 << 20) / unit.len());
        let mut encoding = tokenizer.start_encoding(text, AddSpecial::No, ParseSpecial::Yes);
        let mut slowest = Duration::ZERO;
        loop {
            let begin = Instant::now();
            let step = encoding.step(&tokenizer).unwrap();
            slowest = slowest.max(begin.elapsed());
            if matches!(step, worker_orcd::text::EncodingStep::Done(_)) {
                break;
            }
        }
        eprintln!("{unit:?}: slowest {slowest:?}");
        // Far above what a step takes, so that a busy machine does not fail it.
        assert!(slowest < Duration::from_millis(100), "{unit:?} {slowest:?}");
    }
}

#[test]
fn the_file_says_what_is_added() {
    let [model, bare] = &*MODELS;
    let ids = |model: &Model, flags: &[(&str, bool)], text: &str| {
        let mut metadata = model.metadata();
        for (flag, value) in flags {
            metadata.insert(&format!("tokenizer.ggml.{flag}"), *value);
        }
        let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
        tokenizer
            .encode(text, AddSpecial::Yes, ParseSpecial::Yes)
            .unwrap()
    };
    let and = model.id("▁and");
    // BOS where the file is silent, as SentencePiece models are trained.
    assert_eq!(ids(model, &[], "and"), [1, and]);
    assert_eq!(ids(model, &[("add_bos_token", false)], "and"), [and]);
    assert_eq!(ids(model, &[("add_eos_token", true)], "and"), [1, and, 2]);
    assert_eq!(ids(model, &[("add_bos_token", true)], ""), [1]);
    let bare_and = ids(model, &[("add_space_prefix", false)], "and");
    assert!(!bare_and.contains(&and) && bare_and.len() > 1);
    assert_eq!(ids(model, &[("add_space_prefix", false)], " and"), [1, and]);
    assert_eq!(
        ids(bare, &[("add_space_prefix", true)], "and")[1],
        bare.id("▁and")
    );
}

#[test]
fn user_defined_tokens_are_found_however_the_file_spells_their_spaces() {
    let bare = &MODELS[1];
    let two = bare.id("▁▁");
    let mut spaced = bare.metadata();
    let tokens = bare.pieces.iter().map(|piece| match piece.2 {
        4 => piece.0.replace('▁', " "),
        _ => piece.0.clone(),
    });
    spaced.insert("tokenizer.ggml.tokens", tokens.collect::<Vec<String>>());
    let spaced = Tokenizer::from_gguf(&spaced).unwrap();
    let marked = bare.tokenizer();
    for (text, ids, _) in &bare.cases {
        assert_eq!(&plain(&spaced, text), ids, "{text:?}");
    }
    for tokenizer in [&spaced, &marked] {
        assert_eq!(plain(tokenizer, "  "), [two]);
        for mixed in ["▁▁", "▁ ", " ▁"] {
            assert_eq!(plain(tokenizer, mixed), [two], "{mixed:?}");
        }
        assert_eq!(tokenizer.token_bytes(two), Some(b"  ".as_slice()));
        // Found always, while control tokens are text unless they are asked for.
        let ids = plain(tokenizer, "<table><|user|>");
        assert_eq!(ids[0], bare.id("<table>"));
        assert!(!ids.contains(&bare.id("<|user|>")));
    }
}

#[test]
fn the_tokens_of_phi3_take_the_white_space_after_them() {
    let Some(metadata) = shared_metadata("phi-3") else {
        return;
    };
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    let ids = |text| {
        tokenizer
            .encode(text, AddSpecial::No, ParseSpecial::Yes)
            .unwrap()
    };
    // As the model's own tokenizer has it.
    assert_eq!(
        ids("<|user|>\nHello<|end|>\n<|assistant|>\n"),
        [32010, 15043, 32007, 32001]
    );
    assert_eq!(
        ids("<s>\nHello"),
        ids("<s>")
            .into_iter()
            .chain(ids("\nHello"))
            .collect::<Vec<_>>()
    );
}

#[test]
fn vocabularies_that_are_not_understood_are_errors_that_say_why() {
    let model = &MODELS[0];
    let refused = |key: &str, value: worker_orcd::gguf::Value| {
        let mut metadata = model.metadata();
        metadata.insert(&format!("tokenizer.ggml.{key}"), value);
        Tokenizer::from_gguf(&metadata).unwrap_err().to_string()
    };
    let mut scores: Vec<f32> = model.pieces.iter().map(|piece| piece.1).collect();
    scores[300] = f32::NAN;
    assert!(refused("scores", scores.into()).contains("scores of token 300"));
    let error = refused("scores", vec![0.0_f32; 3].into());
    assert!(
        error.contains("scores has 3 entries") && error.contains("655"),
        "{error}"
    );
    let mut types: Vec<i32> = model.pieces.iter().map(|piece| piece.2).collect();
    types[300] = 6;
    let error = refused("token_type", types.into());
    assert!(error.contains("token 300 is of the type byte"), "{error}");
    assert!(refused("pre", "llama-bpe".into()).contains("\"llama-bpe\""));
    assert!(refused("remove_extra_whitespaces", true.into()).contains("remove_extra_whitespaces"));
    assert!(
        refused("precompiled_charsmap", vec![0_i32; 4].into()).contains("precompiled_charsmap")
    );
    for missing in ["scores", "token_type"] {
        let mut metadata = Metadata::default();
        let suffix = format!(".{missing}");
        for (key, value) in model
            .metadata()
            .iter()
            .filter(|(key, _)| !key.ends_with(&suffix))
        {
            metadata.insert(key, value.clone());
        }
        let error = Tokenizer::from_gguf(&metadata).unwrap_err().to_string();
        assert!(
            error.contains(&suffix) && error.contains("missing"),
            "{error}"
        );
    }
}

#[test]
fn a_missing_byte_is_an_error_and_unused_tokens_are_never_made() {
    let model = &MODELS[0];
    let mut types: Vec<i32> = model.pieces.iter().map(|piece| piece.2).collect();
    types[usize::try_from(model.id("<0xF0>")).unwrap()] = 3;
    types[usize::try_from(model.id("▁and")).unwrap()] = 5;
    let mut metadata = model.metadata();
    metadata.insert("tokenizer.ggml.token_type", types);
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    for text in ["a🐙".to_owned(), format!("{}🐙", "a".repeat(10_000))] {
        let error = tokenizer.encode(&text, AddSpecial::No, ParseSpecial::No);
        assert!(error.unwrap_err().to_string().contains("byte 0xf0"));
    }
    assert_eq!(
        bytes(&tokenizer, &plain(&tokenizer, "a\u{10}é")),
        "a\u{10}é".as_bytes()
    );
    assert!(!plain(&tokenizer, "and").contains(&model.id("▁and")));
}

#[test]
fn a_vocabulary_of_the_largest_size_in_use_builds_quickly() {
    // Words over 64 syllables, so that every word can be cut in several places: 262,144 pieces, as Gemma has.
    let syllables: Vec<String> = "bdfgklmn"
        .chars()
        .flat_map(|a| "aeiouäöü".chars().map(move |b| format!("{a}{b}")))
        .collect();
    let letters = "▁bdfgklmnaeiouäöü".chars().map(String::from);
    let mut tokens: Vec<String> = letters.chain(syllables.iter().cloned()).collect();
    for a in &syllables {
        for b in &syllables {
            tokens.push(format!("{a}{b}"));
            tokens.extend(syllables.iter().map(|c| format!("{a}{b}{c}")));
        }
    }
    tokens.truncate(262_144);
    let scores: Vec<f32> = (0..tokens.len()).map(|id| -(id as f32)).collect();
    let mut metadata = MODELS[1].metadata();
    let types = vec![1_i32; tokens.len()];
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.scores", scores);
    metadata.insert("tokenizer.ggml.token_type", types);
    let begin = Instant::now();
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    let took = begin.elapsed();
    eprintln!("{} tokens built in {took:?}", tokenizer.vocab_size());
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(
        bytes(&tokenizer, &plain(&tokenizer, "badefi lumö")),
        "badefi lumö".as_bytes()
    );
}
