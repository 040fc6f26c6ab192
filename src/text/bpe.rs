//! Byte-level byte-pair encoding of one piece of text, by the `tokenizers` crate.
//!
//! The crate's model does the merging; this file hands it a vocabulary that has been checked, maps
//! bytes to the characters that byte-level vocabularies are written in, and cuts pieces that are too
//! long to be encoded at once.

use std::collections::HashSet;
use std::hash::BuildHasher;
use std::ops::Range;

use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};

use super::pre_tokenizer::WholePiece;
use super::tokenizer::{TokenizerError, shown};

/// Pieces that the crate may remember the encoding of (short ones only; about 1 MB).
const CACHE_PIECES: usize = 10_000;

/// Bytes of a piece that are encoded at once. A longer piece goes through windows of this size.
const WINDOW_BYTES: usize = 4096;

/// Bytes at the end of a window whose tokens are not trusted, because what follows may change them.
/// It is a saving only: a wrong guess is noticed at the seam.
const MARGIN_BYTES: usize = 256;

/// What a byte of a window costs: its merges are many and none is remembered.
const WINDOW_COST: usize = 2;

/// How far back a window may begin again to find a seam, in bytes.
pub(super) const SEAM_SEARCH_BYTES_MAX: usize = WINDOW_BYTES / 2;

/// A vocabulary with its merges, checked and ready to encode.
pub(super) struct ByteLevelBpe {
    model: BPE,
    whole_piece: WholePiece,
    /// Whether there is a token for the byte.
    has_byte: [bool; 256],
    /// Bytes of one window: [`WINDOW_BYTES`], or more if the vocabulary has longer tokens.
    window_bytes: usize,
}

/// How far the encoding of one piece has come.
#[derive(Debug)]
pub(super) struct PieceProgress {
    /// Bytes of the piece that the ids stand for.
    done: usize,
    /// The furthest that `done` has been.
    furthest: usize,
    /// Number of ids before this piece.
    first_id: usize,
}

impl PieceProgress {
    /// The beginning of a piece, when `ids` ids have been found before it.
    pub(super) fn new(ids: usize) -> Self {
        PieceProgress {
            done: 0,
            furthest: 0,
            first_id: ids,
        }
    }
}

/// What [`ByteLevelBpe::encode_some`] achieved.
pub(super) struct Encoded {
    /// A measure of the work: bytes of ordinary text.
    pub(super) cost: usize,
    /// Whether the piece is complete.
    pub(super) is_done: bool,
}

impl ByteLevelBpe {
    /// Checks a vocabulary. `merges` are pairs in the order of their rank; each part and each
    /// result has to be in `vocab`, which has no control token.
    pub(super) fn new<'a>(
        vocab: Vocab,
        merges: impl ExactSizeIterator<Item = (&'a str, &'a str)> + Clone,
        whole_piece: WholePiece,
    ) -> Result<Self, TokenizerError> {
        let longest = vocab.keys().map(String::len).max().unwrap_or(0);
        check_distinct(merges.clone())?;
        if merges
            .clone()
            .any(|(left, right)| left.len() + right.len() > longest)
        {
            check_known(&vocab, merges.clone())?;
        }
        let has_byte = std::array::from_fn(|byte| {
            vocab.contains_key(byte_to_char(byte as u8).encode_utf8(&mut [0; 4]))
        });
        let pairs = merges
            .clone()
            .map(|(left, right)| (left.to_owned(), right.to_owned()))
            .collect();
        let model = BPE::builder()
            .vocab_and_merges(vocab, pairs)
            .cache_capacity(CACHE_PIECES)
            .build();
        let model = model.map_err(|error| merge_error(&error, merges))?;
        Ok(ByteLevelBpe {
            model,
            whole_piece,
            has_byte,
            window_bytes: WINDOW_BYTES.max(longest.saturating_mul(8)),
        })
    }

    /// Encodes a piece, or the next window of a long one, and appends the ids.
    ///
    /// A long piece is encoded in windows, from left to right. Let the ids of the windows be
    /// t1 … tn. They are the encoding of the whole piece if each neighbouring pair stays apart,
    /// that is, if encoding the bytes of `ti ti+1` gives `ti ti+1` again: run the merges of the
    /// whole piece (lowest rank first, leftmost first) up to the first that would cross one of
    /// those boundaries. Until then the two tokens beside it have been merged exactly as when they
    /// stand alone, so it would be crossed when they stand alone too. Within a window the pairs
    /// stay apart because the window's own merges never crossed them; so only the pair at each seam
    /// needs a look. If it does not stay apart, the last token is taken back and the window begins
    /// there.
    pub(super) fn encode_some(
        &self,
        piece: &[u8],
        progress: &mut PieceProgress,
        ids: &mut Vec<u32>,
    ) -> Result<Encoded, TokenizerError> {
        if piece.len() <= self.window_bytes {
            self.encode_whole(piece, ids)?;
            return Ok(Encoded {
                cost: piece.len(),
                is_done: true,
            });
        }
        let begin = progress.done;
        let end = piece.len().min(begin.saturating_add(self.window_bytes));
        let tokens = self.tokenize(&piece[begin..end])?;
        let bytes = end - begin;
        let cost = bytes * WINDOW_COST;
        let has_predecessor = ids.len() > progress.first_id;
        if has_predecessor && let (Some(last), Some(first)) = (ids.last(), tokens.first()) {
            let last_len = self.token_len(*last);
            let seam = &piece[begin - last_len..begin + first.bytes.len()];
            if !self.stays_apart(*last, first.id, seam)? {
                ids.pop();
                progress.done = begin - last_len;
                return match progress.furthest - progress.done > SEAM_SEARCH_BYTES_MAX {
                    true => Err(TokenizerError::PieceTooLong {
                        bytes: piece.len(),
                        max: self.window_bytes,
                    }),
                    false => Ok(Encoded {
                        cost,
                        is_done: false,
                    }),
                };
            }
        }
        let is_done = end == piece.len();
        let trusted = if is_done { bytes } else { bytes - MARGIN_BYTES };
        for token in tokens.iter().take_while(|token| token.bytes.end <= trusted) {
            ids.push(token.id);
            progress.done = begin + token.bytes.end;
        }
        progress.furthest = progress.furthest.max(progress.done);
        Ok(Encoded { cost, is_done })
    }

    fn encode_whole(&self, piece: &[u8], ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let text = self.to_chars(piece)?;
        if self.whole_piece == WholePiece::First
            && let Some(id) = self.model.token_to_id(&text)
        {
            ids.push(id);
            return Ok(());
        }
        let tokens = self.model.tokenize(&text).map_err(vocabulary_error)?;
        ids.extend(tokens.iter().map(|token| token.id));
        Ok(())
    }

    /// Whether the encoding of `seam`, the bytes of two tokens, is those two tokens.
    fn stays_apart(&self, left: u32, right: u32, seam: &[u8]) -> Result<bool, TokenizerError> {
        let tokens = self.tokenize(seam)?;
        Ok(tokens.iter().map(|token| token.id).eq([left, right]))
    }

    fn token_len(&self, id: u32) -> usize {
        self.model
            .id_to_token(id)
            .map_or(0, |token| token.chars().count())
    }

    /// The tokens of some bytes by the merges alone.
    fn tokenize(&self, bytes: &[u8]) -> Result<Vec<Token>, TokenizerError> {
        let text = self.to_chars(bytes)?;
        let tokens = self.model.tokenize(&text).map_err(vocabulary_error)?;
        let mut begin = 0;
        Ok(tokens
            .iter()
            .map(|token| {
                let end = begin + token.value.chars().count();
                let bytes = std::mem::replace(&mut begin, end)..end;
                Token {
                    id: token.id,
                    bytes,
                }
            })
            .collect())
    }

    fn to_chars(&self, bytes: &[u8]) -> Result<String, TokenizerError> {
        if let Some(byte) = bytes
            .iter()
            .find(|byte| !self.has_byte[usize::from(**byte)])
        {
            return Err(TokenizerError::MissingByte { byte: *byte });
        }
        Ok(bytes.iter().map(|byte| byte_to_char(*byte)).collect())
    }
}

/// A token of a window.
struct Token {
    id: u32,
    /// Where it stands in the window.
    bytes: Range<usize>,
}

fn vocabulary_error(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Vocabulary {
        reason: error.to_string(),
    }
}

/// Refuses a merge that stands in the list twice: the crate would let the last of them win, others
/// the first. Looks at hashes first, since comparing all merges takes longer than all the rest here.
fn check_distinct<'a>(
    merges: impl ExactSizeIterator<Item = (&'a str, &'a str)> + Clone,
) -> Result<(), TokenizerError> {
    let hasher = std::hash::RandomState::new();
    let mut hashes: Vec<u64> = merges.clone().map(|pair| hasher.hash_one(pair)).collect();
    hashes.sort_unstable();
    if hashes.windows(2).all(|pair| pair[0] != pair[1]) {
        return Ok(());
    }
    let mut seen = HashSet::with_capacity(merges.len());
    for (rank, (left, right)) in merges.enumerate() {
        if !seen.insert((left, right)) {
            return Err(TokenizerError::DuplicateMerge {
                rank,
                merge: shown(&format!("{left} {right}")),
            });
        }
    }
    Ok(())
}

/// Refuses a merge whose parts or result the vocabulary does not have. The crate checks that too and
/// quicker, but it panics where a result is longer than every token, and does not name the merge.
fn check_known<'a>(
    vocab: &Vocab,
    merges: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<(), TokenizerError> {
    for (rank, (left, right)) in merges.enumerate() {
        let result = format!("{left}{right}");
        let missing = [left, right, &result]
            .into_iter()
            .find(|token| !vocab.contains_key(*token));
        if let Some(missing) = missing {
            return Err(TokenizerError::MergeOutOfVocabulary {
                rank,
                merge: shown(&format!("{left} {right}")),
                missing: shown(missing),
            });
        }
    }
    Ok(())
}

/// The crate's error with the merge that it is about.
fn merge_error<'a>(
    error: &tokenizers::Error,
    merges: impl Iterator<Item = (&'a str, &'a str)>,
) -> TokenizerError {
    use tokenizers::models::bpe::Error::MergeTokenOutOfVocabulary;
    if let Some(MergeTokenOutOfVocabulary(missing)) = error.downcast_ref() {
        for (rank, (left, right)) in merges.enumerate() {
            if left == missing || right == missing || format!("{left}{right}") == *missing {
                return TokenizerError::MergeOutOfVocabulary {
                    rank,
                    merge: shown(&format!("{left} {right}")),
                    missing: shown(missing),
                };
            }
        }
    }
    TokenizerError::Vocabulary {
        reason: error.to_string(),
    }
}

/// The characters that byte-level vocabularies write for bytes: printable Latin-1 stands for
/// itself, the other 68 bytes are numbered from U+0100 on.
const BYTE_CHARS: [char; 256] = {
    let mut chars = ['\0'; 256];
    let mut byte = 0;
    let mut next = 0x100;
    while byte < 256 {
        let is_itself = matches!(byte, 0x21..=0x7E)
            || matches!(byte, 0xA1..=0xAC)
            || matches!(byte, 0xAE..=0xFF);
        let code = if is_itself { byte } else { next };
        if !is_itself {
            next += 1;
        }
        chars[byte as usize] = match char::from_u32(code) {
            Some(character) => character,
            None => panic!("codes below 0x144 are characters"),
        };
        byte += 1;
    }
    chars
};

/// The character that stands for each byte in a byte-level vocabulary.
pub fn byte_level_alphabet() -> [char; 256] {
    BYTE_CHARS
}

fn byte_to_char(byte: u8) -> char {
    BYTE_CHARS[usize::from(byte)]
}

/// The byte that a character of a byte-level vocabulary stands for.
fn char_to_byte(character: char) -> Option<u8> {
    const CHAR_BYTES: [Option<u8>; 0x144] = {
        let mut bytes = [None; 0x144];
        let mut byte = 0;
        while byte < 256 {
            bytes[BYTE_CHARS[byte] as usize] = Some(byte as u8);
            byte += 1;
        }
        bytes
    };
    CHAR_BYTES.get(character as usize).copied().flatten()
}

/// Appends the bytes that a token of a byte-level vocabulary stands for. A token with a character
/// outside of that alphabet stands for its own text.
pub(super) fn push_token_bytes(token: &str, out: &mut Vec<u8>) {
    let begin = out.len();
    for character in token.chars() {
        match char_to_byte(character) {
            Some(byte) => out.push(byte),
            None => {
                out.truncate(begin);
                out.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        let distinct: HashSet<char> = BYTE_CHARS.into_iter().collect();
        assert_eq!(distinct.len(), 256);
        for byte in 0..=255 {
            assert_eq!(char_to_byte(byte_to_char(byte)), Some(byte));
        }
        // The crate's own alphabet is the reference.
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        assert_eq!(distinct, alphabet.into_iter().collect());
        assert_eq!(byte_to_char(b' '), 'Ġ');
        assert_eq!(byte_to_char(b'\n'), 'Ċ');
    }

    #[test]
    fn tokens_outside_of_the_alphabet_stand_for_their_text() {
        for (token, bytes) in [("Ġa", " a"), ("Ã©", "é"), ("a▁a", "a▁a"), ("", "")] {
            let mut out = b"before ".to_vec();
            push_token_bytes(token, &mut out);
            assert_eq!(out, format!("before {bytes}").as_bytes());
        }
    }
}
