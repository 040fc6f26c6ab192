//! Byte-pair encoding of one piece of text, by the `tokenizers` crate.
//!
//! The crate's model does the merging; this file hands it a vocabulary that has been checked, spells
//! text in the alphabet that the vocabulary is written in, and cuts pieces that are too long to be
//! encoded at once.

use std::borrow::Cow;
use std::collections::HashSet;
use std::hash::BuildHasher;
use std::ops::Range;

use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};

use super::error::{TokenizerError, shown};
use super::normalizer::SPACE_MARK;
use super::pre_tokenizer::WholePiece;
use super::sentencepiece::byte_token;

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

/// What a vocabulary is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// Each byte is a character of its own.
    Bytes,
    /// Text with its spaces marked, as SentencePiece writes it. A character that is no token becomes
    /// the tokens of its bytes, `<0xF0>` and so on.
    Spaces,
}

/// A vocabulary with its merges, checked and ready to encode.
pub(super) struct Bpe {
    model: BPE,
    alphabet: Alphabet,
    whole_piece: WholePiece,
    /// The token of each byte, if it has one.
    byte_ids: [Option<u32>; 256],
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

impl Bpe {
    /// A byte-level vocabulary. `merges` are pairs in the order of their rank, checked by
    /// [`check_merges`]; `vocab` has no control token.
    pub(super) fn byte_level(
        vocab: Vocab,
        merges: &[(&str, &str)],
        whole_piece: WholePiece,
    ) -> Result<Self, TokenizerError> {
        let byte_ids = std::array::from_fn(|byte| {
            let character = byte_to_char(byte as u8);
            vocab.get(character.encode_utf8(&mut [0; 4])).copied()
        });
        Self::new(vocab, merges, whole_piece, Alphabet::Bytes, byte_ids)
    }

    /// A SentencePiece vocabulary, in the same way.
    pub(super) fn sentencepiece(
        vocab: Vocab,
        merges: &[(&str, &str)],
    ) -> Result<Self, TokenizerError> {
        let byte_ids = std::array::from_fn(|byte| vocab.get(&byte_token(byte as u8)).copied());
        let by_merges = WholePiece::ByMerges;
        Self::new(vocab, merges, by_merges, Alphabet::Spaces, byte_ids)
    }

    fn new(
        vocab: Vocab,
        merges: &[(&str, &str)],
        whole_piece: WholePiece,
        alphabet: Alphabet,
        byte_ids: [Option<u32>; 256],
    ) -> Result<Self, TokenizerError> {
        let longest = longest_token(&vocab);
        let pairs = merges
            .iter()
            .map(|(left, right)| ((*left).to_owned(), (*right).to_owned()))
            .collect();
        let model = BPE::builder()
            .vocab_and_merges(vocab, pairs)
            .byte_fallback(alphabet == Alphabet::Spaces)
            .cache_capacity(CACHE_PIECES)
            .build();
        let model = model.map_err(|error| merge_error(&error, merges))?;
        Ok(Bpe {
            model,
            alphabet,
            whole_piece,
            byte_ids,
            window_bytes: WINDOW_BYTES.max(longest.saturating_mul(8)),
        })
    }

    /// What the vocabulary is written in.
    pub(super) fn alphabet(&self) -> Alphabet {
        self.alphabet
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
        piece: &str,
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
        let end = self.cut_before(piece, begin.saturating_add(self.window_bytes));
        let tokens = self.tokenize(piece, begin..end)?;
        let cost = (end - begin) * WINDOW_COST;
        let has_predecessor = ids.len() > progress.first_id;
        if has_predecessor && let (Some(last), Some(first)) = (ids.last(), tokens.first()) {
            let last_len = self.token_len(*last);
            let seam = begin - last_len..begin + first.bytes.len();
            if !self.stays_apart(*last, first.id, piece, seam)? {
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
        let trusted = if is_done { end } else { end - MARGIN_BYTES };
        let is_kept = |token: &Token| {
            let at = begin + token.bytes.end;
            at <= trusted && self.can_cut(piece, at)
        };
        let kept = tokens.iter().rposition(is_kept).map_or(0, |last| last + 1);
        for token in &tokens[..kept] {
            ids.push(token.id);
            progress.done = begin + token.bytes.end;
        }
        progress.furthest = progress.furthest.max(progress.done);
        Ok(Encoded { cost, is_done })
    }

    fn encode_whole(&self, piece: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let text = self.spelled(piece, 0..piece.len())?;
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

    /// Whether a window may begin here.
    fn can_cut(&self, piece: &str, at: usize) -> bool {
        self.alphabet == Alphabet::Bytes || piece.is_char_boundary(at)
    }

    /// The last place up to `at` where a window may end.
    fn cut_before(&self, piece: &str, at: usize) -> usize {
        let mut at = at.min(piece.len());
        while !self.can_cut(piece, at) {
            at -= 1;
        }
        at
    }

    /// Whether the encoding of `seam`, the bytes of two tokens, is those two tokens.
    fn stays_apart(
        &self,
        left: u32,
        right: u32,
        piece: &str,
        seam: Range<usize>,
    ) -> Result<bool, TokenizerError> {
        // The bytes of a character that is no token are merged with nothing.
        if self.is_fallback(left) || self.is_fallback(right) {
            return Ok(true);
        }
        let tokens = self.tokenize(piece, seam)?;
        Ok(tokens.iter().map(|token| token.id).eq([left, right]))
    }

    fn is_fallback(&self, id: u32) -> bool {
        self.alphabet == Alphabet::Spaces && self.byte_ids.contains(&Some(id))
    }

    /// Bytes of a piece that a token stands for.
    fn token_len(&self, id: u32) -> usize {
        let text = self.model.id_to_token(id).unwrap_or_default();
        match self.alphabet {
            Alphabet::Bytes => text.chars().count(),
            Alphabet::Spaces if self.is_fallback(id) => 1,
            Alphabet::Spaces => text.len(),
        }
    }

    /// The tokens of a part of a piece by the merges alone.
    fn tokenize(&self, piece: &str, part: Range<usize>) -> Result<Vec<Token>, TokenizerError> {
        let text = self.spelled(piece, part)?;
        let tokens = self.model.tokenize(&text).map_err(vocabulary_error)?;
        let mut begin = 0;
        Ok(tokens
            .iter()
            .map(|token| {
                let len = match self.alphabet {
                    Alphabet::Bytes => token.value.chars().count(),
                    Alphabet::Spaces => token.offsets.1 - token.offsets.0,
                };
                let end = begin + len;
                let bytes = std::mem::replace(&mut begin, end)..end;
                Token {
                    id: token.id,
                    bytes,
                }
            })
            .collect())
    }

    /// A part of a piece in the vocabulary's alphabet.
    fn spelled<'a>(
        &self,
        piece: &'a str,
        part: Range<usize>,
    ) -> Result<Cow<'a, str>, TokenizerError> {
        match self.alphabet {
            Alphabet::Bytes => {
                let bytes = &piece.as_bytes()[part];
                self.check_bytes(bytes)?;
                Ok(bytes.iter().map(|byte| byte_to_char(*byte)).collect())
            }
            Alphabet::Spaces => {
                let part = &piece[part];
                if self.byte_ids.contains(&None) {
                    let mut utf8 = [0; 4];
                    for character in part.chars() {
                        let text = character.encode_utf8(&mut utf8);
                        if self.model.token_to_id(text).is_none() {
                            self.check_bytes(text.as_bytes())?;
                        }
                    }
                }
                Ok(part.into())
            }
        }
    }

    fn check_bytes(&self, bytes: &[u8]) -> Result<(), TokenizerError> {
        let has_token = |byte: &u8| self.byte_ids[usize::from(*byte)].is_some();
        match bytes.iter().find(|byte| !has_token(byte)) {
            Some(byte) => Err(TokenizerError::MissingByte { byte: *byte }),
            None => Ok(()),
        }
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
/// the first. Then one whose parts or result the vocabulary does not have: the crate sees that too
/// and quicker, but it panics where a result is longer than every token, so that is looked for here.
pub(super) fn check_merges(vocab: &Vocab, merges: &[(&str, &str)]) -> Result<(), TokenizerError> {
    check_distinct(merges)?;
    let longest = longest_token(vocab);
    let mut results = merges.iter().map(|(left, right)| left.len() + right.len());
    match results.any(|bytes| bytes > longest) {
        true => check_known(vocab, merges),
        false => Ok(()),
    }
}

fn longest_token(vocab: &Vocab) -> usize {
    vocab.keys().map(String::len).max().unwrap_or(0)
}

/// Looks at hashes first, since comparing all merges takes longer than all the rest here.
fn check_distinct(merges: &[(&str, &str)]) -> Result<(), TokenizerError> {
    let hasher = std::hash::RandomState::new();
    let mut hashes: Vec<u64> = merges.iter().map(|pair| hasher.hash_one(pair)).collect();
    hashes.sort_unstable();
    if hashes.windows(2).all(|pair| pair[0] != pair[1]) {
        return Ok(());
    }
    let mut seen = HashSet::with_capacity(merges.len());
    for (rank, (left, right)) in merges.iter().enumerate() {
        if !seen.insert((left, right)) {
            return Err(TokenizerError::DuplicateMerge {
                rank,
                merge: shown(&format!("{left} {right}")),
            });
        }
    }
    Ok(())
}

/// Names the first merge with a part or result that the vocabulary does not have.
fn check_known(vocab: &Vocab, merges: &[(&str, &str)]) -> Result<(), TokenizerError> {
    for (rank, (left, right)) in merges.iter().enumerate() {
        let result = format!("{left}{right}");
        let missing = [left, right, result.as_str()]
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
fn merge_error(error: &tokenizers::Error, merges: &[(&str, &str)]) -> TokenizerError {
    use tokenizers::models::bpe::Error::MergeTokenOutOfVocabulary;
    if let Some(MergeTokenOutOfVocabulary(missing)) = error.downcast_ref() {
        for (rank, (left, right)) in merges.iter().enumerate() {
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

impl Alphabet {
    /// Appends the bytes that a token stands for. One with a character outside of the byte alphabet
    /// stands for its own text.
    pub(super) fn push_token_bytes(self, token: &str, out: &mut Vec<u8>) {
        let begin = out.len();
        for character in token.chars() {
            match (self, char_to_byte(character)) {
                (Alphabet::Bytes, Some(byte)) => out.push(byte),
                (Alphabet::Bytes, None) => {
                    out.truncate(begin);
                    out.extend_from_slice(token.as_bytes());
                    return;
                }
                (Alphabet::Spaces, _) if character == SPACE_MARK => out.push(b' '),
                (Alphabet::Spaces, _) => {
                    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                }
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
            Alphabet::Bytes.push_token_bytes(token, &mut out);
            assert_eq!(out, format!("before {bytes}").as_bytes());
        }
    }
}
