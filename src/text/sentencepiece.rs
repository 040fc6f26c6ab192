//! What a SentencePiece vocabulary of scored pieces means in terms of byte-pair encoding.
//!
//! SentencePiece joins, of all neighbours whose text together is a piece, those whose piece has the
//! highest score, leftmost first. So every way to cut a piece into two pieces is a merge, and its
//! rank is the piece's score. Runs of spaces have one score in some vocabularies: there the longer
//! left part comes first, so that a run grows from the left as it does in SentencePiece.

use std::cmp::Reverse;

use tokenizers::models::bpe::Vocab;

use super::error::TokenizerError;
use super::normalizer::SPACE_MARK;
use super::pre_tokenizer::Splitter;
use super::special::SpecialToken;
use super::tokenizer::{TokenClass, TokenEntry};

/// Cuts before the first space of each run that follows something else.
const BEFORE_SPACES: &str = "▁+[^▁]*|[^▁]+";

/// Cuts before every space. Runs of them are not joined then.
pub(super) const BEFORE_EACH_SPACE: &str = "▁[^▁]*|[^▁]+";

/// A way to make a piece.
struct Merge<'a> {
    score: f32,
    left: &'a str,
    right: &'a str,
    left_chars: usize,
    right_chars: usize,
}

/// All merges in the order of their rank. `scores` are by id, and none is NaN.
pub(super) fn merges<'a>(
    tokens: &[TokenEntry<'a>],
    scores: &[f32],
    vocab: &Vocab,
) -> Vec<(&'a str, &'a str)> {
    let is_piece = |text: &str| {
        let token = vocab.get(text).and_then(|id| tokens.get(*id as usize));
        token.is_some_and(|token| token.class == TokenClass::Normal)
    };
    let mut merges = Vec::with_capacity(2 * tokens.len());
    for (token, score) in tokens.iter().zip(scores) {
        if token.class != TokenClass::Normal {
            continue;
        }
        let chars = token.text.chars().count();
        for (left_chars, (at, _)) in token.text.char_indices().enumerate().skip(1) {
            let (left, right) = token.text.split_at(at);
            if is_piece(left) && is_piece(right) {
                merges.push(Merge {
                    score: *score,
                    left,
                    right,
                    left_chars,
                    right_chars: chars - left_chars,
                });
            }
        }
    }
    merges.sort_by(|a, b| {
        let lengths = |merge: &Merge| Reverse((merge.left_chars, merge.right_chars));
        b.score
            .total_cmp(&a.score)
            .then_with(|| lengths(a).cmp(&lengths(b)))
    });
    merges
        .iter()
        .map(|merge| (merge.left, merge.right))
        .collect()
}

/// What may cut the text before it is encoded, to save work: nothing is joined across a place where a
/// space follows something else, if no piece has a space there. `None` if some piece has.
pub(super) fn splitter(tokens: &[TokenEntry<'_>]) -> Result<Option<Splitter>, TokenizerError> {
    let has_inner_space = tokens.iter().any(|token| {
        let word = token.text.trim_start_matches(SPACE_MARK);
        let is_text = matches!(token.class, TokenClass::Normal | TokenClass::UserDefined);
        is_text && word.contains(SPACE_MARK)
    });
    match has_inner_space {
        true => Ok(None),
        false => Splitter::new(BEFORE_SPACES).map(Some),
    }
}

/// Converters write the spaces of a token that is searched for in the text as spaces or as marks. To
/// SentencePiece both are one character, so both the tokens and the text are searched as spaces.
pub(super) fn unmark_spaces(special: &mut [SpecialToken]) {
    for token in special {
        token.text = token.text.replace(SPACE_MARK, " ");
    }
}

/// The byte that a token of the form `<0x0A>` stands for.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let byte = u8::from_str_radix(digits, 16).ok()?;
    (byte_token(byte) == token).then_some(byte)
}

/// How the token of a byte is written.
pub(super) fn byte_token(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bytes_are_bytes() {
        for byte in 0..=255 {
            assert_eq!(byte_of(&byte_token(byte)), Some(byte));
        }
        for token in ["<0x0a>", "<0xA>", "<0x100>", "<0x+A>", "0x0A", "<0x0A", ""] {
            assert_eq!(byte_of(token), None, "{token}");
        }
    }
}
