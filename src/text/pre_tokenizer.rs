//! Cutting text into the pieces that byte-pair encoding works on, by the regular expression that a
//! model was trained with.
//!
//! The expressions are those that the models' authors published, and they end in `\s+(?!\S)|\s+`:
//! white space, but the last of it belongs to the word that follows. Engines with look-ahead
//! backtrack, and their limit on backtracking turns a long run of spaces into an error or, where the
//! error is dropped, into wrong ids. So `\s+(?!\S)` is written here without look-ahead, as two
//! expressions: `\s+$` (a run that ends the text), and `\s+\s` whose last character is given back.
//! What remains runs on an automaton: linear time, no limit, nothing to swallow.

use regex_automata::meta::Regex;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input};

use super::error::TokenizerError;

/// Bytes that the engine may spend on remembering states of one expression.
const AUTOMATON_CACHE_BYTES: usize = 8 * 1024 * 1024;

/// How a piece's text is encoded once it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WholePiece {
    /// A piece that is itself in the vocabulary is that token, whatever the merges say.
    First,
    /// Only the merges count.
    ByMerges,
}

/// Whether a prompt begins with the BOS token where the file does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BosDefault {
    Add,
    Omit,
}

/// What the name of a pre-tokenizer stands for.
#[derive(Debug, Clone, Copy)]
pub(super) struct PreTokenizer {
    /// Each expression cuts the pieces of the one before; what it does not match is a piece too.
    pub(super) expressions: &'static [&'static str],
    pub(super) whole_piece: WholePiece,
    pub(super) bos: BosDefault,
}

/// The expression of GPT-2, which others put after a cut of their own.
pub(super) const GPT2: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Every digit for itself.
pub(super) const DIGIT: &str = r"\p{N}";

/// Digits apart from all else.
pub(super) const DIGITS: &str = r"\p{N}+";

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const FALCON_PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|`]+";

const LINE_END: &str = r"[\r\n]";

/// The letters with case that DeepSeek LLM was trained with: a list, not a Unicode property.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[\u{41}-\u{5A}\u{61}-\u{7A}\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}",
    r"\u{1C4}-\u{293}\u{295}-\u{2AF}\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}",
    r"\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}",
    r"\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}",
    r"\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}",
    r"\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}",
    r"\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}",
    r"\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}",
    r"\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}",
    r"\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}",
    r"\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}",
    r"\u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}",
    r"\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}",
    r"\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}",
    r"\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}]+",
);

const DEEPSEEK_PUNCTUATION: &str =
    r"\s?[!-/:-\u{7E}\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+";

const DEEPSEEK_CJK: &str = r"[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+";

const DEEPSEEK_V3_CJK: &str = r"[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+";

const DEEPSEEK_V3_WORDS: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

impl PreTokenizer {
    const fn by_merges(expressions: &'static [&'static str]) -> Self {
        PreTokenizer {
            expressions,
            whole_piece: WholePiece::ByMerges,
            bos: BosDefault::Omit,
        }
    }

    /// What `tokenizer.ggml.pre` names, or `None` if it is not known. The names are those that the
    /// GGUF converters write; several models share one expression.
    pub(super) fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "exaone4" | "gigachat"
            | "granite-docling" | "mellum" => Self::by_merges(&[GPT2]),
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone"
            | "minerva-7b" | "mellum2" => Self::by_merges(&[DIGIT, GPT2]),
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "lfm2"
            | "midm-2.0" => PreTokenizer {
                expressions: &[LLAMA3],
                whole_piece: WholePiece::First,
                bos: BosDefault::Add,
            },
            "dbrx" | "smaug-bpe" | "chatglm-bpe" => Self::by_merges(&[LLAMA3]),
            "glm4" => PreTokenizer {
                expressions: &[LLAMA3],
                whole_piece: WholePiece::First,
                bos: BosDefault::Omit,
            },
            "qwen2" | "deepseek-r1-qwen" | "stablelm2" | "megrez" | "hunyuan" | "solar-open"
            | "grok-2" => Self::by_merges(&[QWEN2]),
            "qwen35" => Self::by_merges(&[QWEN35]),
            "gpt-4o" | "llama4" | "kanana2" | "minimax-m2" => Self::by_merges(&[GPT4O]),
            "tekken" => PreTokenizer {
                expressions: &[TEKKEN],
                whole_piece: WholePiece::First,
                bos: BosDefault::Add,
            },
            "falcon" => Self::by_merges(&[FALCON_PUNCTUATION, GPT2, "[0-9][0-9][0-9]"]),
            "deepseek-llm" => Self::by_merges(&[
                LINE_END,
                DEEPSEEK_LETTERS,
                DEEPSEEK_PUNCTUATION,
                r"\s+$",
                DEEPSEEK_CJK,
                DIGITS,
            ]),
            "deepseek-coder" => {
                Self::by_merges(&[LINE_END, r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, DIGIT])
            }
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" => {
                Self::by_merges(&[r"\p{N}{1,3}", DEEPSEEK_V3_CJK, DEEPSEEK_V3_WORDS])
            }
            _ => return None,
        })
    }
}

/// What becomes of the last character of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LastCharacter {
    Keep,
    /// It was only looked at and belongs to the next piece.
    GiveBack,
}

/// One expression, ready to cut.
pub(super) struct Splitter {
    regex: Regex,
    /// By the number of the alternative that matched.
    last_characters: Vec<LastCharacter>,
}

impl Splitter {
    /// Compiles an expression out of a tokenizer file, which was written for another engine. One
    /// that this engine would read differently is an error.
    pub(super) fn foreign(expression: &str) -> Result<Self, TokenizerError> {
        match foreign_syntax(expression) {
            Some(reason) => Err(unsupported(expression, reason.to_owned())),
            None => Self::new(expression),
        }
    }

    /// Compiles an expression. One that needs more look-ahead than `\s+(?!\S)` is an error.
    pub(super) fn new(expression: &str) -> Result<Self, TokenizerError> {
        let unsupported = |reason: String| unsupported(expression, reason);
        let (patterns, last_characters) = without_look_ahead(expression);
        for pattern in &patterns {
            let parsed = syntax::parse(pattern).map_err(|error| unsupported(error.to_string()))?;
            if parsed.properties().minimum_len() == Some(0) {
                return Err(unsupported("it matches the empty text".to_owned()));
            }
        }
        let regex = Regex::builder()
            .configure(Regex::config().hybrid_cache_capacity(AUTOMATON_CACHE_BYTES))
            .build_many(&patterns)
            .map_err(|error| unsupported(error.to_string()))?;
        Ok(Splitter {
            regex,
            last_characters,
        })
    }

    /// Where the first piece of `text` ends. It is a match, or all that precedes the next match.
    /// Not 0 unless the text is empty.
    pub(super) fn first_piece(&self, text: &str) -> usize {
        let anchored = Input::new(text).anchored(Anchored::Yes);
        if let Some(end) = self.regex.search_half(&anchored) {
            let given_back = match self.last_characters[end.pattern().as_usize()] {
                LastCharacter::Keep => 0,
                LastCharacter::GiveBack => text[..end.offset()]
                    .chars()
                    .next_back()
                    .map_or(0, char::len_utf8),
            };
            return end.offset() - given_back;
        }
        self.regex
            .search(&Input::new(text))
            .map_or(text.len(), |next| next.start())
    }
}

fn unsupported(expression: &str, reason: String) -> TokenizerError {
    TokenizerError::UnsupportedExpression {
        expression: expression.to_owned(),
        reason,
    }
}

/// Constructs that other engines read differently from this one, so that compiling them would cut
/// differently without a word. Character classes are skipped, escapes are let through one by one.
fn foreign_syntax(expression: &str) -> Option<&'static str> {
    let mut characters = expression.chars().peekable();
    let mut class_depth = 0_usize;
    let mut after_quantifier = false;
    while let Some(character) = characters.next() {
        let next = characters.peek().copied();
        let is_quantifier = class_depth == 0 && matches!(character, '?' | '*' | '+' | '}');
        match character {
            '\\' => match characters.next() {
                // `\u{…}` and `\p{…}` end in a brace that is no quantifier.
                Some('p' | 'P' | 'u' | 'x') => {
                    if characters.peek() == Some(&'{') {
                        characters.by_ref().find(|character| *character == '}');
                    }
                }
                Some('s' | 'S' | 'd' | 'r' | 'n' | 't') => {}
                Some(escaped) if escaped.is_ascii_punctuation() => {}
                Some(_) | None => return Some("an escape that engines read differently"),
            },
            '[' if next == Some(':') && class_depth > 0 => return Some("a POSIX class"),
            '[' => class_depth += 1,
            ']' => class_depth = class_depth.saturating_sub(1),
            '+' if after_quantifier => return Some("a possessive quantifier"),
            '^' | '$' if class_depth == 0 => return Some("an anchor"),
            '-' | '~' if class_depth > 0 && next == Some(character) => {
                return Some("an operation on character classes");
            }
            '(' if class_depth == 0 && next == Some('?') && !is_known_group(&characters) => {
                return Some("a group with flags or look-around");
            }
            _ => {}
        }
        after_quantifier = is_quantifier;
    }
    None
}

/// Whether what follows `(` is `?:`, `?i:` or the look-ahead `?!\S)` of white space.
fn is_known_group(rest: &std::iter::Peekable<std::str::Chars>) -> bool {
    let start: String = rest.clone().take(5).collect();
    start.starts_with("?:") || start.starts_with("?i:") || start == r"?!\S)"
}

/// The expression's alternatives as a list of expressions without look-ahead, tried in this order.
fn without_look_ahead(expression: &str) -> (Vec<String>, Vec<LastCharacter>) {
    let mut patterns: Vec<String> = Vec::new();
    let mut last_characters = Vec::new();
    let mut is_open = false;
    for alternative in alternatives(expression) {
        if alternative == r"\s+(?!\S)" {
            patterns.extend([r"\s+$".to_owned(), r"\s+\s".to_owned()]);
            last_characters.extend([LastCharacter::Keep, LastCharacter::GiveBack]);
            is_open = false;
            continue;
        }
        match patterns.last_mut().filter(|_| is_open) {
            Some(last) => {
                last.push('|');
                last.push_str(alternative);
            }
            None => {
                patterns.push(alternative.to_owned());
                last_characters.push(LastCharacter::Keep);
                is_open = true;
            }
        }
    }
    (patterns, last_characters)
}

/// Splits an expression at the `|` that stand in no group, class or escape.
fn alternatives(expression: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut class_depth, mut group_depth) = (0, 0_usize, 0_usize);
    let mut characters = expression.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '\\' => {
                characters.next();
            }
            '[' => class_depth += 1,
            ']' => class_depth = class_depth.saturating_sub(1),
            '(' if class_depth == 0 => group_depth += 1,
            ')' if class_depth == 0 => group_depth = group_depth.saturating_sub(1),
            '|' if class_depth == 0 && group_depth == 0 => {
                parts.push(&expression[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&expression[start..]);
    parts
}

/// Walks through the pieces of a text, all expressions applied one after the other. It holds
/// offsets only, so it can stop after any piece and go on later.
#[derive(Debug, Default)]
pub(super) struct PieceCursor {
    /// What is left, per expression: the last entry is the piece of the innermost.
    left: Vec<std::ops::Range<usize>>,
}

impl PieceCursor {
    pub(super) fn new(text: &str) -> Self {
        let whole = 0..text.len();
        PieceCursor { left: vec![whole] }
    }

    /// The next piece of the text that the cursor was made for.
    pub(super) fn next(
        &mut self,
        splitters: &[Splitter],
        text: &str,
    ) -> Option<std::ops::Range<usize>> {
        loop {
            let level = self.left.len().checked_sub(1)?;
            let left = &mut self.left[level];
            if left.start == left.end {
                self.left.pop();
                continue;
            }
            let Some(splitter) = splitters.get(level) else {
                return self.left.pop();
            };
            let end = left.start + splitter.first_piece(&text[left.clone()]);
            let piece = left.start..end;
            left.start = end;
            self.left.push(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces<'a>(name: &str, text: &'a str) -> Vec<&'a str> {
        let pre = PreTokenizer::by_name(name).unwrap();
        let splitters: Vec<Splitter> = pre
            .expressions
            .iter()
            .map(|expression| Splitter::new(expression).unwrap())
            .collect();
        let mut cursor = PieceCursor::new(text);
        std::iter::from_fn(|| cursor.next(&splitters, text))
            .map(|range| &text[range])
            .collect()
    }

    #[test]
    fn cuts_are_those_of_another_engine() {
        let cuts = include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/tokenizers/small-cuts.jsonl"
        ));
        let mut names = std::collections::BTreeSet::new();
        for line in cuts.lines() {
            let case: serde_json::Value = serde_json::from_str(line).unwrap();
            let name = case["pre"].as_str().unwrap();
            let text = case["text"].as_str().unwrap();
            let expected: Vec<usize> = serde_json::from_value(case["lengths"].clone()).unwrap();
            let pieces = pieces(name, text);
            let lengths: Vec<usize> = pieces.iter().map(|piece| piece.chars().count()).collect();
            assert_eq!(lengths, expected, "{name} {text:?}: {pieces:?}");
            names.insert(name.to_owned());
        }
        assert_eq!(names.len(), 11);
    }

    #[test]
    fn names_that_share_an_expression_cut_alike_and_others_are_none() {
        for (name, like) in [
            ("starcoder", "smollm"),
            ("refact", "smollm"),
            ("command-r", "smollm"),
            ("llama3", "llama-bpe"),
            ("llama-v3", "llama-bpe"),
            ("deepseek-r1-qwen", "qwen2"),
            ("llama4", "gpt-4o"),
        ] {
            let text = "I'M 12345 iPhone\t\tüber-cool  \n 日本語";
            assert_eq!(pieces(name, text), pieces(like, text), "{name}");
        }
        for name in ["", "default", "llama", "GPT-2", "qwen9"] {
            assert!(PreTokenizer::by_name(name).is_none(), "{name}");
        }
    }

    #[test]
    fn the_last_space_belongs_to_the_word() {
        assert_eq!(pieces("gpt-2", "a   b"), ["a", "  ", " b"]);
        assert_eq!(pieces("gpt-2", "a   "), ["a", "   "]);
        assert_eq!(pieces("gpt-2", "a\n\n b"), ["a", "\n\n", " b"]);
        assert_eq!(
            pieces("gpt-2", "a \u{3000}\tb"),
            ["a", " \u{3000}", "\t", "b"]
        );
        assert_eq!(
            pieces("llama-bpe", "a \n \n  b"),
            ["a", " \n \n", " ", " b"]
        );
        assert_eq!(pieces("llama-bpe", "a\tb  "), ["a", "\tb", "  "]);
    }

    #[test]
    fn digits_stand_as_their_model_wants_them() {
        assert_eq!(pieces("gpt-2", "a 12345"), ["a", " 12345"]);
        assert_eq!(pieces("smollm", "a 123"), ["a", " ", "1", "2", "3"]);
        assert_eq!(pieces("llama-bpe", "a 12345"), ["a", " ", "123", "45"]);
        assert_eq!(pieces("qwen2", "12"), ["1", "2"]);
        assert_eq!(pieces("falcon", "12345!!"), ["123", "45", "!!"]);
    }

    #[test]
    fn case_and_contractions_stand_as_their_model_wants_them() {
        assert_eq!(pieces("gpt-2", "I'm I'M"), ["I", "'m", " I", "'", "M"]);
        assert_eq!(pieces("llama-bpe", "I'm I'M"), ["I", "'m", " I", "'M"]);
        assert_eq!(pieces("gpt-4o", "helloWorld'S"), ["hello", "World'S"]);
        assert_eq!(pieces("tekken", "helloWorld's"), ["hello", "World", "'s"]);
    }

    #[test]
    fn expressions_that_engines_read_differently_are_refused() {
        for expression in [
            r"[^\r\n]?+\p{L}+",
            r"\p{L}++",
            r"\p{N}{1,3}+",
            r"(?=a)b",
            r"\s+(?!\d)",
            r"(?<=a)b",
            r"^a",
            r"\ba",
            r"\w+",
            r"[[:alpha:]]+",
            r"\s+$",
            r"(?m:a.)",
            r"[a--b]",
            r"a*",
            r"(a",
        ] {
            assert!(Splitter::foreign(expression).is_err(), "{expression}");
        }
        for expression in [
            GPT2,
            LLAMA3,
            QWEN35,
            GPT4O,
            TEKKEN,
            DEEPSEEK_V3_WORDS,
            r"[+?^$]+|a{2}",
        ] {
            assert!(Splitter::foreign(expression).is_ok(), "{expression}");
        }
    }
}
