//! What is done to the text between special tokens before it is cut, in parts of about a millisecond.

use std::ops::Range;

use tokenizers::NormalizedString;

/// How SentencePiece writes a space.
pub(super) const SPACE_MARK: char = '▁';

/// [`SPACE_MARK`] as text.
pub(super) const SPACE_MARK_TEXT: &str = "▁";

/// Bytes that are composed at once, if the text has an ASCII character to stop at.
const COMPOSED_BYTES: usize = 2048;

/// What composing a byte costs, in bytes encoded.
const COMPOSE_COST: usize = 4;

/// Bytes whose spaces are marked at once.
const MARKED_BYTES: usize = 16 * 1024;

/// How many bytes can be marked in the time that encodes one.
const MARKED_PER_ENCODED: usize = 16;

/// What is done to text before it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Normalizer {
    None,
    /// Canonical composition.
    Nfc,
    /// Spaces are written as [`SPACE_MARK`], after one may have been added.
    Spaces(AddedSpace),
}

/// Where a space is put before a text that has none in front of its first word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddedSpace {
    Never,
    /// At the beginning and after every special token, whatever stands there.
    Always,
    /// There too, but not where a space stands already.
    WhereMissing,
    /// At the beginning alone, and not where a space stands already.
    AtStartWhereMissing,
}

impl AddedSpace {
    fn is_added(self, text: &str, start: usize) -> bool {
        let has_space = text[start..].starts_with([' ', SPACE_MARK]);
        match self {
            AddedSpace::Never => false,
            AddedSpace::Always => true,
            AddedSpace::WhereMissing => !has_space,
            AddedSpace::AtStartWhereMissing => start == 0 && !has_space,
        }
    }
}

impl Normalizer {
    /// Appends the beginning of `text[source]` as it is to be cut, and says how many bytes of it that
    /// was and what it cost in bytes encoded. `out` is empty at the beginning of a segment.
    pub(super) fn push_some(
        self,
        text: &str,
        source: Range<usize>,
        out: &mut String,
    ) -> (usize, usize) {
        let part = &text[source.clone()];
        match self {
            Normalizer::None => {
                out.push_str(part);
                (part.len(), 1)
            }
            Normalizer::Nfc => {
                let part = first_composable(part);
                (part.len(), push_composed(part, out))
            }
            Normalizer::Spaces(added) => {
                if out.is_empty() && !part.is_empty() && added.is_added(text, source.start) {
                    out.push(SPACE_MARK);
                }
                let part = up_to(part, MARKED_BYTES);
                push_marked(part, out);
                (part.len(), part.len() / MARKED_PER_ENCODED + 1)
            }
        }
    }
}

/// The beginning of `text` of at most `bytes` bytes, and of whole characters.
pub(super) fn up_to(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn push_marked(part: &str, out: &mut String) {
    let mut words = part.split(' ');
    out.extend(words.next());
    for word in words {
        out.push(SPACE_MARK);
        out.push_str(word);
    }
}

/// The beginning of `text` that can be composed alone: canonical composition never reaches across
/// the place before an ASCII character, which starts a sequence and is never the second half of one.
fn first_composable(text: &str) -> &str {
    let bytes = text.as_bytes();
    let end = (COMPOSED_BYTES.min(bytes.len())..bytes.len())
        .find(|index| bytes[*index].is_ascii())
        .unwrap_or(bytes.len());
    &text[..end]
}

/// Appends the canonical composition of `part` and says what it cost.
fn push_composed(part: &str, out: &mut String) -> usize {
    if part.is_ascii() {
        out.push_str(part);
        return part.len() / COMPOSE_COST + 1;
    }
    let mut normalized = NormalizedString::from(part);
    normalized.nfc();
    out.push_str(normalized.get());
    part.len() * COMPOSE_COST + 1
}
