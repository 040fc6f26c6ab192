//! The steps of a `tokenizer.json` that come before its model: what is done to text, and how it is cut.

use serde::Deserialize;

use super::bpe::Alphabet;
use super::error::{TokenizerError, shown};
use super::normalizer::{AddedSpace, Normalizer, SPACE_MARK_TEXT};
use super::pre_tokenizer::{DIGIT, DIGITS, GPT2, Splitter};
use super::sentencepiece;
use super::tokenizer::TokenEntry;

#[derive(Deserialize)]
#[serde(tag = "type")]
pub(super) enum NormalizerJson {
    #[serde(rename = "NFC")]
    Nfc,
    Sequence {
        normalizers: Vec<NormalizerJson>,
    },
    Prepend {
        prepend: String,
    },
    Replace {
        pattern: PatternJson,
        content: String,
    },
    #[serde(untagged)]
    Other(PartJson),
}

#[derive(Deserialize)]
#[serde(tag = "type")]
pub(super) enum PreTokenizerJson {
    Sequence {
        pretokenizers: Vec<PreTokenizerJson>,
    },
    Split {
        pattern: PatternJson,
        behavior: String,
        #[serde(default)]
        invert: bool,
    },
    Digits {
        #[serde(default)]
        individual_digits: bool,
    },
    ByteLevel {
        add_prefix_space: bool,
        #[serde(default = "yes")]
        use_regex: bool,
    },
    Metaspace {
        replacement: String,
        add_prefix_space: Option<bool>,
        #[serde(default)]
        prepend_scheme: PrependJson,
        #[serde(default = "yes")]
        split: bool,
    },
    #[serde(untagged)]
    Other(PartJson),
}

/// Where Metaspace adds a space.
#[derive(Deserialize, Clone, Copy, Default)]
#[serde(rename_all = "lowercase")]
pub(super) enum PrependJson {
    First,
    Never,
    #[default]
    Always,
}

#[derive(Deserialize)]
pub(super) enum PatternJson {
    Regex(String),
    String(String),
}

/// Any part, for its name.
#[derive(Deserialize)]
pub(super) struct PartJson {
    r#type: String,
}

fn yes() -> bool {
    true
}

/// What is done to text before it is encoded.
pub(super) fn cutting(
    normalizer: Option<&NormalizerJson>,
    pre_tokenizer: Option<&PreTokenizerJson>,
    alphabet: Alphabet,
    tokens: &[TokenEntry<'_>],
) -> Result<(Normalizer, Vec<Splitter>), TokenizerError> {
    let normalizer = read_normalizer(normalizer)?;
    match (alphabet, normalizer) {
        (Alphabet::Bytes, Normalizer::None | Normalizer::Nfc) => {
            Ok((normalizer, splitters(pre_tokenizer)?))
        }
        (Alphabet::Bytes, Normalizer::Spaces(_)) => Err(unsupported(
            "a normalizer that marks spaces, without byte_fallback",
        )),
        (Alphabet::Spaces, Normalizer::Nfc) => Err(unsupported(
            "the normalizer \"NFC\" beside the model's byte_fallback",
        )),
        (Alphabet::Spaces, Normalizer::None | Normalizer::Spaces(_)) => {
            let (normalizer, splitter) = space_marks(pre_tokenizer, normalizer)?;
            let splitter = match splitter {
                None => sentencepiece::splitter(tokens)?,
                Some(splitter) => Some(splitter),
            };
            Ok((normalizer, splitter.into_iter().collect()))
        }
    }
}

/// The same of a tokenizer that marks spaces, by its normalizer or by its pre-tokenizer.
fn space_marks(
    json: Option<&PreTokenizerJson>,
    normalizer: Normalizer,
) -> Result<(Normalizer, Option<Splitter>), TokenizerError> {
    let is_marked = normalizer != Normalizer::None;
    match json {
        None if is_marked => Ok((normalizer, None)),
        // Nothing is left to split, since all spaces are marked.
        Some(PreTokenizerJson::Split {
            pattern: PatternJson::String(pattern),
            ..
        }) if is_marked && pattern == " " => Ok((normalizer, None)),
        Some(PreTokenizerJson::Metaspace {
            replacement,
            add_prefix_space,
            prepend_scheme,
            split,
        }) if !is_marked && replacement == SPACE_MARK_TEXT => {
            let added = match (add_prefix_space, prepend_scheme) {
                (Some(false), _) | (_, PrependJson::Never) => AddedSpace::Never,
                (_, PrependJson::Always) => AddedSpace::WhereMissing,
                (_, PrependJson::First) => AddedSpace::AtStartWhereMissing,
            };
            let splitter = split.then(|| Splitter::new(sentencepiece::BEFORE_EACH_SPACE));
            Ok((Normalizer::Spaces(added), splitter.transpose()?))
        }
        Some(_) | None => Err(unsupported(
            "byte_fallback with a pre_tokenizer that does not mark spaces, or marks them again,",
        )),
    }
}

pub(super) fn unsupported(part: impl Into<String>) -> TokenizerError {
    TokenizerError::UnsupportedJson { part: part.into() }
}

fn read_normalizer(json: Option<&NormalizerJson>) -> Result<Normalizer, TokenizerError> {
    let mut steps = Vec::new();
    add_steps(json, &mut steps);
    match steps[..] {
        [] => Ok(Normalizer::None),
        [NormalizerJson::Nfc] => Ok(Normalizer::Nfc),
        [replace] if marks_spaces(replace) => Ok(Normalizer::Spaces(AddedSpace::Never)),
        [NormalizerJson::Prepend { prepend }, replace]
            if prepend == SPACE_MARK_TEXT && marks_spaces(replace) =>
        {
            Ok(Normalizer::Spaces(AddedSpace::Always))
        }
        [..] => {
            let names: Vec<String> = steps.iter().map(|step| step.name()).collect();
            Err(unsupported(format!("the normalizer {names:?}")))
        }
    }
}

fn add_steps<'a>(json: Option<&'a NormalizerJson>, steps: &mut Vec<&'a NormalizerJson>) {
    match json {
        None => {}
        Some(NormalizerJson::Sequence { normalizers }) => {
            for json in normalizers {
                add_steps(Some(json), steps);
            }
        }
        Some(step) => steps.push(step),
    }
}

fn marks_spaces(json: &NormalizerJson) -> bool {
    matches!(json, NormalizerJson::Replace { pattern: PatternJson::String(pattern), content }
        if pattern == " " && content == SPACE_MARK_TEXT)
}

impl NormalizerJson {
    fn name(&self) -> String {
        match self {
            NormalizerJson::Nfc => "NFC".to_owned(),
            NormalizerJson::Sequence { .. } => "Sequence".to_owned(),
            NormalizerJson::Prepend { .. } => "Prepend".to_owned(),
            NormalizerJson::Replace { .. } => "Replace".to_owned(),
            NormalizerJson::Other(part) => shown(&part.r#type),
        }
    }
}

/// Whether the last step so far turned the text into byte characters. What would come after it would
/// see those, and not text.
#[derive(PartialEq)]
enum LastStep {
    Cut,
    ByteLevel,
}

fn splitters(json: Option<&PreTokenizerJson>) -> Result<Vec<Splitter>, TokenizerError> {
    let mut splitters = Vec::new();
    let mut last = LastStep::Cut;
    add_splitters(json, &mut splitters, &mut last)?;
    match last {
        LastStep::ByteLevel => Ok(splitters),
        LastStep::Cut => Err(unsupported("a pre_tokenizer without ByteLevel")),
    }
}

fn add_splitters(
    json: Option<&PreTokenizerJson>,
    splitters: &mut Vec<Splitter>,
    last: &mut LastStep,
) -> Result<(), TokenizerError> {
    let Some(json) = json else {
        return Ok(());
    };
    if let PreTokenizerJson::Sequence { pretokenizers } = json {
        return pretokenizers
            .iter()
            .try_for_each(|json| add_splitters(Some(json), splitters, last));
    }
    if *last == LastStep::ByteLevel {
        return Err(unsupported("a pre_tokenizer after ByteLevel"));
    }
    match json {
        PreTokenizerJson::Sequence { .. } => {}
        PreTokenizerJson::Split {
            pattern,
            behavior,
            invert,
        } => splitters.push(isolating(pattern, behavior, *invert)?),
        PreTokenizerJson::Digits { individual_digits } => {
            let expression = if *individual_digits { DIGIT } else { DIGITS };
            splitters.push(Splitter::new(expression)?);
        }
        PreTokenizerJson::ByteLevel {
            add_prefix_space: true,
            ..
        } => {
            return Err(unsupported(
                "the pre_tokenizer ByteLevel with add_prefix_space",
            ));
        }
        PreTokenizerJson::ByteLevel { use_regex, .. } => {
            if *use_regex {
                splitters.push(Splitter::new(GPT2)?);
            }
            *last = LastStep::ByteLevel;
        }
        PreTokenizerJson::Metaspace { .. } => {
            return Err(unsupported(
                "the pre_tokenizer \"Metaspace\" without byte_fallback",
            ));
        }
        PreTokenizerJson::Other(part) => {
            let name = shown(&part.r#type);
            return Err(unsupported(format!("the pre_tokenizer {name:?}")));
        }
    }
    Ok(())
}

/// What cuts as a Split does.
fn isolating(
    pattern: &PatternJson,
    behavior: &str,
    is_inverted: bool,
) -> Result<Splitter, TokenizerError> {
    match (pattern, behavior, is_inverted) {
        (PatternJson::Regex(expression), "Isolated", false) => Splitter::foreign(expression),
        (PatternJson::Regex(_) | PatternJson::String(_), ..) => Err(unsupported(format!(
            "the pre_tokenizer Split with behavior {:?}, inverted, or by a string",
            shown(behavior)
        ))),
    }
}
