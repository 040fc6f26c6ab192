//! A text on its way to token ids, in steps of about a millisecond.

use std::ops::Range;

use super::bpe::PieceProgress;
use super::error::TokenizerError;
use super::normalizer::{Normalizer, SPACE_MARK, up_to};
use super::pre_tokenizer::PieceCursor;
use super::special::Found;
use super::tokenizer::{ParseSpecial, Tokenizer};

/// Bytes that one [`Encoding::step`] encodes: about a millisecond's work.
const STEP_BYTES: usize = 8 * 1024;

/// What a piece costs besides its bytes, in the same unit.
const PIECE_COST: usize = 4;

/// How many bytes can be searched for special tokens in the time that encodes one.
const SEARCHED_PER_ENCODED: usize = 16;

/// Bytes in which spaces are written for their marks at once.
const UNMARKED_BYTES: usize = 16 * 1024;

/// What finding a special token costs besides, in bytes encoded.
const FOUND_COST: usize = 8;

/// What a step of an [`Encoding`] achieved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EncodingStep {
    /// There is more to do.
    Working,
    /// All ids. The encoding is used up: a further step gives an empty list.
    Done(Vec<u32>),
}

/// A text that is being encoded, in pieces of work of about a millisecond.
///
/// Nothing is cut that the whole text would not cut: special tokens are searched for from where the
/// last one ended, the expression goes on where its last match ended, with the whole rest of the text
/// before its eyes, and a piece that is too long is encoded in windows whose seams are proved. So the
/// ids are those of the text encoded at once, wherever the steps end. What a step can't interrupt is
/// the search for the end of one piece, which takes about a millisecond per megabyte.
#[derive(Debug)]
pub struct Encoding {
    text: String,
    parse_special: ParseSpecial,
    ids: Vec<u32>,
    suffix: Vec<u32>,
    /// Bytes of the text that are done, or that the current segment covers.
    at: usize,
    stage: Stage,
}

/// How a text is searched for special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    AsGiven,
    /// With spaces for their marks.
    Unmarked,
}

#[derive(Debug)]
enum Stage {
    /// Writing spaces for their marks: this much of the text is done.
    Unmarking { done: String, at: usize },
    /// Looking for the next special token, which none of the bytes before `scanned` begins.
    Searching { scanned: usize },
    /// Normalizing the text before a special token or the end.
    Normalizing {
        source: Range<usize>,
        done: String,
        then: Option<u32>,
    },
    /// Encoding that text.
    Encoding { segment: Segment, then: Option<u32> },
    /// There is nothing left.
    Finished,
}

/// Text without special tokens.
#[derive(Debug)]
struct Segment {
    text: SegmentText,
    cursor: PieceCursor,
    piece: Option<(Range<usize>, PieceProgress)>,
}

#[derive(Debug)]
enum SegmentText {
    /// A part of the encoding's text.
    Part(Range<usize>),
    /// Normalized text.
    Own(String),
}

impl Encoding {
    /// Nothing is done yet; `ids` stand before those of the text, and `suffix` after them.
    pub(super) fn new(
        text: String,
        spelling: Spelling,
        parse_special: ParseSpecial,
        ids: Vec<u32>,
        suffix: Vec<u32>,
    ) -> Self {
        let stage = match spelling {
            Spelling::AsGiven => Stage::Searching { scanned: 0 },
            Spelling::Unmarked => Stage::Unmarking {
                done: String::new(),
                at: 0,
            },
        };
        Encoding {
            text,
            parse_special,
            ids,
            suffix,
            at: 0,
            stage,
        }
    }

    /// How many ids there are so far; the last few may still change.
    pub fn ids_so_far(&self) -> usize {
        self.ids.len()
    }

    /// Works on for about a millisecond. After an error the encoding is of no use.
    pub fn step(&mut self, tokenizer: &Tokenizer) -> Result<EncodingStep, TokenizerError> {
        let mut budget = STEP_BYTES;
        while budget > 0 {
            let stage = std::mem::replace(&mut self.stage, Stage::Finished);
            let (stage, cost) = match stage {
                Stage::Unmarking { done, at } => self.unmark(done, at),
                Stage::Searching { scanned } => self.search(tokenizer, scanned),
                Stage::Normalizing { source, done, then } => {
                    self.normalize(tokenizer.normalizer, source, done, then)
                }
                Stage::Encoding { segment, then } => {
                    self.encode(tokenizer, segment, then, budget)?
                }
                Stage::Finished => {
                    self.ids.append(&mut self.suffix);
                    return Ok(EncodingStep::Done(std::mem::take(&mut self.ids)));
                }
            };
            self.stage = stage;
            budget = budget.saturating_sub(cost);
        }
        Ok(EncodingStep::Working)
    }

    fn unmark(&mut self, mut done: String, at: usize) -> (Stage, usize) {
        let part = up_to(&self.text[at..], UNMARKED_BYTES);
        let at = at + part.len();
        if !done.is_empty() || part.contains(SPACE_MARK) {
            if done.is_empty() {
                // A text without marks, as nearly all are, is not copied.
                done.push_str(&self.text[..at - part.len()]);
            }
            done.push_str(&part.replace(SPACE_MARK, " "));
        }
        let cost = UNMARKED_BYTES / SEARCHED_PER_ENCODED;
        if at < self.text.len() {
            return (Stage::Unmarking { done, at }, cost);
        }
        if !done.is_empty() {
            self.text = done;
        }
        (Stage::Searching { scanned: 0 }, cost)
    }

    fn search(&mut self, tokenizer: &Tokenizer, scanned: usize) -> (Stage, usize) {
        let found = tokenizer
            .special
            .find(&self.text, self.at, scanned, self.parse_special);
        let (source, then, looked_at) = match found {
            Found::NothingBefore(offset) => {
                let cost = (offset - scanned) / SEARCHED_PER_ENCODED + 1;
                return (Stage::Searching { scanned: offset }, cost);
            }
            Found::Token { id, range } => {
                let source = self.at..range.start.max(self.at);
                self.at = range.end;
                (source, Some(id), range.start.saturating_sub(scanned))
            }
            Found::End => {
                let source = self.at..self.text.len();
                self.at = self.text.len();
                let looked_at = self.text.len() - scanned;
                (source, None, looked_at)
            }
        };
        let stage = match tokenizer.normalizer {
            Normalizer::None => self.encoding_stage(SegmentText::Part(source), then),
            Normalizer::Nfc | Normalizer::Spaces(_) => Stage::Normalizing {
                source,
                done: String::new(),
                then,
            },
        };
        (stage, looked_at / SEARCHED_PER_ENCODED + FOUND_COST)
    }

    fn encoding_stage(&self, text: SegmentText, then: Option<u32>) -> Stage {
        let cursor = PieceCursor::new(text.resolve(&self.text));
        let segment = Segment {
            text,
            cursor,
            piece: None,
        };
        Stage::Encoding { segment, then }
    }

    fn normalize(
        &mut self,
        normalizer: Normalizer,
        source: Range<usize>,
        mut done: String,
        then: Option<u32>,
    ) -> (Stage, usize) {
        let (bytes, cost) = normalizer.push_some(&self.text, source.clone(), &mut done);
        let rest = source.start + bytes..source.end;
        let stage = match rest.is_empty() {
            true => self.encoding_stage(SegmentText::Own(done), then),
            false => Stage::Normalizing {
                source: rest,
                done,
                then,
            },
        };
        (stage, cost)
    }

    /// Encodes pieces of the segment until it ends or the budget is spent.
    fn encode(
        &mut self,
        tokenizer: &Tokenizer,
        mut segment: Segment,
        then: Option<u32>,
        budget: usize,
    ) -> Result<(Stage, usize), TokenizerError> {
        let mut cost = 1;
        while cost < budget {
            let text = segment.text.resolve(&self.text);
            let (piece, mut progress) = match segment.piece.take() {
                Some(piece) => piece,
                None => match segment.cursor.next(&tokenizer.splitters, text) {
                    Some(piece) => (piece, PieceProgress::new(self.ids.len())),
                    None => {
                        self.ids.extend(then);
                        return Ok((self.after_segment(then), cost));
                    }
                },
            };
            let encoded =
                tokenizer
                    .bpe
                    .encode_some(&text[piece.clone()], &mut progress, &mut self.ids)?;
            cost += encoded.cost + PIECE_COST;
            if !encoded.is_done {
                segment.piece = Some((piece, progress));
            }
        }
        Ok((Stage::Encoding { segment, then }, cost))
    }

    fn after_segment(&self, then: Option<u32>) -> Stage {
        match then {
            Some(_) => Stage::Searching { scanned: self.at },
            None => Stage::Finished,
        }
    }
}

impl SegmentText {
    fn resolve<'a>(&'a self, text: &'a str) -> &'a str {
        match self {
            SegmentText::Part(range) => &text[range.clone()],
            SegmentText::Own(own) => own,
        }
    }
}
