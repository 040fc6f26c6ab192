//! A text through a vocabulary: the ids stand for exactly its bytes, they are those of the library where that can be asked, they do
//! not depend on how the work is cut, and the number of its steps is in proportion to its length.
//!
//! The first byte picks the vocabulary and how special tokens are read, the second how often the rest is repeated; the rest is the text.

use std::cell::OnceCell;

use worker_orcd::text::{
    AddSpecial, EncodingStep, ParseSpecial, TextDecoder, Tokenizer, TokenizerError,
};

use super::meter;
use text_support::{
    bytes, gpt2_library, gpt2_metadata, model_metadata, sentencepiece_metadata,
    sentencepiece_pieces, small_metadata,
};

#[path = "../../text_support/mod.rs"]
mod text_support;

/// Longest text that is encoded.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// Longest text that the library is asked about: its expressions give up on long ones.
const LIBRARY_BYTES_MAX: usize = 1024;

/// What encoding may hold besides what is in proportion to the text: caches of expressions and pieces.
const CACHE_BYTES: usize = 32 << 20;

/// Bytes in memory for a byte of text.
const BYTES_PER_BYTE: usize = 1024;

/// A step works on 8 KiB of text, or on less where much is searched again; not on less than this.
const STEP_BYTES_MIN: usize = 256;

/// A vocabulary and the library's own view of it.
struct Vocabulary {
    ours: Tokenizer,
    peer: Option<tokenizers::Tokenizer>,
    /// A control token's name.
    control: &'static str,
}

thread_local! {
    static VOCABULARIES: OnceCell<Vec<Vocabulary>> = const { OnceCell::new() };
}

/// Encodes and decodes.
pub fn run(input: &[u8]) {
    let [choice, times, text @ ..] = input else {
        return;
    };
    let text = String::from_utf8_lossy(text);
    let times = (TEXT_BYTES_MAX / text.len().max(1)).min(usize::from(*times) + 1);
    let text = text.repeat(times.max(1));
    let parse = if choice & 1 == 0 {
        ParseSpecial::No
    } else {
        ParseSpecial::Yes
    };
    VOCABULARIES.with(|cell| {
        let all = cell.get_or_init(vocabularies);
        let vocabulary = &all[usize::from(choice >> 1) % all.len()];
        let limit = CACHE_BYTES + text.len() * BYTES_PER_BYTE;
        meter::within(limit, || check(vocabulary, &text, parse));
    });
}

/// A small one, GPT-2's, that of the default model where it has been fetched, and a SentencePiece one.
fn vocabularies() -> Vec<Vocabulary> {
    let merges = ["a a", "aa aa", "b c", "a bc", "Ġ a", "Ġ Ġ", "Ċ Ċ", "Ã ©"];
    let special = [("<|end|>", 3), ("<|endless|>", 3), ("user", 4), ("us", 4)];
    let small = small_metadata("qwen2", &merges, &special);
    let mut all = vec![
        Vocabulary {
            ours: Tokenizer::from_gguf(&small).expect("the small vocabulary"),
            peer: None,
            control: "<|end|>",
        },
        Vocabulary {
            ours: Tokenizer::from_gguf(&gpt2_metadata()).expect("GPT-2's vocabulary"),
            peer: Some(gpt2_library()),
            control: "<|endoftext|>",
        },
    ];
    all.extend(model_metadata().map(|metadata| Vocabulary {
        ours: Tokenizer::from_gguf(&metadata).expect("the model's vocabulary"),
        peer: None,
        control: "<|im_end|>",
    }));
    let sentencepiece = sentencepiece_metadata(&sentencepiece_pieces("prefix"), true);
    all.push(Vocabulary {
        ours: Tokenizer::from_gguf(&sentencepiece).expect("the SentencePiece vocabulary"),
        peer: None,
        control: "<|user|>",
    });
    all
}

fn check(vocabulary: &Vocabulary, text: &str, parse: ParseSpecial) {
    let ours = &vocabulary.ours;
    let Some(ids) = encode(ours, text, parse) else {
        return;
    };
    let mut decoder = TextDecoder::new();
    let mut decoded = decoder.push(&bytes(ours, &ids));
    decoded.push_str(&decoder.finish());
    // To SentencePiece its mark is a space; the others keep it.
    let is_same = decoded == text || decoded == text.replace('▁', " ");
    assert!(is_same, "{text:?} comes back as {decoded:?}");
    if let Some(peer) = &vocabulary.peer
        && text.len() <= LIBRARY_BYTES_MAX
        && parse == ParseSpecial::No
    {
        let theirs = peer.encode_fast(text, false).expect("the library's ids");
        assert_eq!(ids, theirs.get_ids(), "{text:?}");
    }
    check_halves(vocabulary, text);
}

/// The ids of a text in steps, which are not too many. `None` where it is refused: no seam is found in a piece, or the vocabulary
/// lacks one of its bytes.
fn encode(tokenizer: &Tokenizer, text: &str, parse: ParseSpecial) -> Option<Vec<u32>> {
    let mut encoding = tokenizer.start_encoding(text.to_owned(), AddSpecial::No, parse);
    for _ in 0..text.len() / STEP_BYTES_MIN + 4 {
        match encoding.step(tokenizer) {
            Ok(EncodingStep::Working) => {}
            Ok(EncodingStep::Done(ids)) => return Some(ids),
            Err(TokenizerError::PieceTooLong { .. }) => return None,
            Err(TokenizerError::MissingByte { byte }) if text.as_bytes().contains(&byte) => {
                return None;
            }
            Err(error) => panic!("{error}: {text:?}"),
        }
    }
    panic!("{} bytes take too many steps: {text:?}", text.len());
}

/// A control token parts a text: what stands on either side has the ids that it has alone.
fn check_halves(vocabulary: &Vocabulary, text: &str) {
    let (ours, control) = (&vocabulary.ours, vocabulary.control);
    let middle = (text.len() / 2..=text.len()).find(|at| text.is_char_boundary(*at));
    let (left, right) = text.split_at(middle.unwrap_or(0));
    if [left, right].iter().any(|half| half.contains('<')) {
        return; // the beginning of a name at the seam would be another name
    }
    let encode = |text: &str| encode(ours, text, ParseSpecial::Yes);
    let parts = (encode(left), encode(control), encode(right));
    if let (Some(left_ids), Some(control_id), Some(right_ids)) = parts {
        let whole = encode(&format!("{left}{control}{right}"));
        assert_eq!(whole, Some([left_ids, control_id, right_ids].concat()));
    }
}
