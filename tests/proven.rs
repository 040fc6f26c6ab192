//! The table in ARCHITECTURE.md of what runs and by what that is proven: it follows from the data that the other tests are held against.
//! `UPDATE_DOCS=1 cargo test --test proven` writes it anew.

#[path = "common/fixtures.rs"]
mod fixtures;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use worker_orcd::gguf::{self, Gguf};
use worker_orcd::model::arch::{ARCHITECTURES, Architecture};
use worker_orcd::quant::TensorType;
use worker_orcd::text::Tokenizer;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/ARCHITECTURE.md");
const BEGIN: &str = "<!-- UPDATE_DOCS=1 cargo test --test proven -->\n";
const END: &str = "<!-- end -->\n";

/// Blocks of every tensor type with the weights that an independent decoder makes of them.
const BLOCKS: &str = include_str!("data/quant_vectors.txt");

/// Texts with the pieces that reference tokenizers cut them into.
const CUTS: &str = include_str!("data/tokenizers/small-cuts.jsonl");

/// A SentencePiece vocabulary with the ids that its own package gives texts.
const SENTENCEPIECE: &str = include_str!("data/tokenizers/small-sentencepiece.json");

const SENTENCEPIECE_NAME: &str = "SentencePiece";

/// Names that stand for the expression of another one.
const ALIASES: [(&str, &str); 4] = [
    ("dbrx", "llama-bpe"),
    ("refact", "smollm"),
    ("stablelm2", "qwen2"),
    ("starcoder", "smollm"),
];

/// The name under which the reference cuts texts as this tokenizer has to.
fn cut_as(name: &str) -> &str {
    let alias = ALIASES.iter().find(|(alias, _)| *alias == name);
    alias.map_or(name, |(_, name)| name)
}

/// Names in an order of their own, each once.
type Names = BTreeSet<String>;

/// What the fixtures of one architecture have.
#[derive(Default)]
struct Shown {
    fixtures: Names,
    /// Types of tensors with rows: what a product or an embedding reads.
    tensor_types: Names,
    tokenizers: Names,
}

/// The name by which a model's file asks for its tokenizer.
fn tokenizer(gguf: &Gguf) -> String {
    let key = |name: &str| {
        let value = gguf.metadata.require_string(name);
        value.expect("a model with a tokenizer").to_owned()
    };
    Tokenizer::from_gguf(&gguf.metadata).expect("a tokenizer that is known");
    match key("tokenizer.ggml.model").as_str() {
        "llama" => SENTENCEPIECE_NAME.to_owned(),
        _ => key("tokenizer.ggml.pre"),
    }
}

/// By architecture.
fn shown() -> BTreeMap<String, Shown> {
    let mut shown: BTreeMap<String, Shown> = BTreeMap::new();
    for fixture in fixtures::all() {
        let gguf = gguf::parse(&fixture.gguf).expect("a GGUF file");
        let of = shown.entry(fixture.architecture).or_default();
        of.fixtures.insert(fixture.name);
        let matrices = gguf.tensors.iter().filter(|t| t.dims.len() > 1);
        of.tensor_types
            .extend(matrices.map(|t| t.ggml_type.name().to_owned()));
        of.tokenizers.insert(tokenizer(&gguf));
    }
    shown
}

/// How many lines there are of each name.
fn count<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    counts
}

fn list(names: &Names) -> String {
    match names.is_empty() {
        true => "–".to_owned(),
        false => Vec::from_iter(names.iter().map(String::as_str)).join(", "),
    }
}

/// The architectures of which some fixture has it.
fn having(shown: &BTreeMap<String, Shown>, has: impl Fn(&Shown) -> bool) -> String {
    let architectures = shown.iter().filter(|(_, of)| has(of));
    list(&architectures.map(|(name, _)| name.clone()).collect())
}

fn tables() -> String {
    let shown = shown();
    let mut text = "| architecture | logits in double precision | with tensors of | and the tokenizer |\n|---|---|---|---|\n".to_owned();
    for Architecture { name, .. } in ARCHITECTURES {
        let of = shown
            .get(*name)
            .unwrap_or_else(|| panic!("no fixture of {name}"));
        let (fixtures, types) = (list(&of.fixtures), list(&of.tensor_types));
        text += &format!(
            "| `{name}` | {fixtures} | {types} | {} |\n",
            list(&of.tokenizers)
        );
    }

    let blocks = BLOCKS.lines().filter(|line| !line.starts_with(['#', 't']));
    let blocks = count(blocks.filter_map(|line| line.split(' ').next()));
    text += "\n| tensor type | blocks with known weights | in fixtures of |\n|---|---|---|\n";
    for tensor_type in TensorType::ALL {
        let name = tensor_type.name();
        let blocks = blocks
            .get(name)
            .unwrap_or_else(|| panic!("no blocks of {name}"));
        let of = having(&shown, |of| of.tensor_types.contains(name));
        text += &format!("| {name} | {blocks} | {of} |\n");
    }

    let cuts: Vec<Value> = CUTS
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let mut texts = count(cuts.iter().map(|cut| cut["pre"].as_str().expect("a name")));
    let pairs: Value = serde_json::from_str(SENTENCEPIECE).expect("JSON");
    let cases = ["prefix", "bare"].map(|kind| pairs[kind]["cases"].as_array().map_or(0, Vec::len));
    texts.insert(SENTENCEPIECE_NAME.to_owned(), cases.iter().sum());
    for name in shown.values().flat_map(|of| &of.tokenizers) {
        assert!(texts.contains_key(cut_as(name)), "no texts cut as {name}");
    }
    text += "\n| tokenizer | texts of a reference | in fixtures of |\n|---|---|---|\n";
    for (name, texts) in &texts {
        let of = having(&shown, |of| {
            of.tokenizers.iter().any(|other| cut_as(other) == name)
        });
        text += &format!("| {name} | {texts} | {of} |\n");
    }
    text
}

#[test]
fn the_page_says_what_is_proven() {
    let page = std::fs::read_to_string(PAGE).expect("the page");
    let (before, rest) = page.split_once(BEGIN).expect("where the tables begin");
    let (written, after) = rest.split_once(END).expect("where they end");
    let tables = format!("\n{}\n", tables());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let page = [before, BEGIN, &tables, END, after].concat();
        std::fs::write(PAGE, page).expect("the page");
        return;
    }
    assert_eq!(
        written, tables,
        "UPDATE_DOCS=1 cargo test --test proven writes it anew"
    );
}
