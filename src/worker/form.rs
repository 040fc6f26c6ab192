//! What form a request wants its output to have: from the fields to a matcher, before its prompt is looked at.

use worker_orcd_protocol::{
    ErrorCode, ErrorDetails, ErrorObject, Fault, GenerateParams, Grammar, GrammarKind,
    GrammarValue, ResponseFormat, ResponseFormatKind,
};

use super::lifecycle::Serving;
use crate::grammar::{
    Building, Built, Compiled, Compiling, Forcing, Matcher, Place, Refused, Source,
};

/// The field of a schema.
const SCHEMA_FIELD: &str = "response_format.json_schema.schema";

/// The field of a grammar.
const GRAMMAR_FIELD: &str = "grammar.value";

/// A form that is being made ready.
pub(super) enum Forming {
    /// It is the first one, and the vocabulary is made ready for grammars.
    Vocabulary(Building, Compiling),
    Grammar(Compiling),
}

/// What a piece of it came to.
pub(super) enum Formed {
    GoesOn(Forming),
    Done(Matcher),
}

impl Forming {
    /// `None` where any text will do.
    pub(super) fn of(params: &mut GenerateParams, bias: &[(u32, f32)]) -> Option<Self> {
        let source = match (params.response_format.take(), params.grammar.take()) {
            (_, Some(grammar)) => source(grammar),
            (Some(format), None) => match (format.kind, format.json_schema) {
                (ResponseFormatKind::Text, _) => return None,
                (ResponseFormatKind::JsonSchema, Some(format)) => Source::Schema(format.schema),
                (ResponseFormatKind::JsonObject | ResponseFormatKind::JsonSchema, _) => {
                    Source::JsonObject
                }
            },
            (None, None) => return None,
        };
        // A forced token has no probability to report, and no bias could keep it away.
        let forcing = match params.logprobs {
            None if bias.is_empty() => Forcing::Forced,
            Some(_) | None => Forcing::Drawn,
        };
        Some(Forming::Grammar(Compiling::new(source, forcing)))
    }

    /// One piece.
    pub(super) fn step(self, serving: &mut Serving) -> Result<Formed, ErrorObject> {
        let next = match (self, &serving.vocabulary) {
            (Forming::Grammar(compiling) | Forming::Vocabulary(_, compiling), Some(vocabulary)) => {
                match compiling.step(vocabulary).map_err(refusal)? {
                    Compiled::GoesOn(compiling) => Forming::Grammar(compiling),
                    Compiled::Done(matcher) => return Ok(Formed::Done(matcher)),
                }
            }
            (Forming::Grammar(compiling), None) => {
                Forming::Vocabulary(Building::default(), compiling)
            }
            (Forming::Vocabulary(building, compiling), None) => {
                let built = building.step(&serving.tokenizer).map_err(|reason| {
                    let message = format!("the vocabulary cannot be used for grammars: {reason}");
                    ErrorObject::new(ErrorCode::Internal, message)
                })?;
                match built {
                    Built::GoesOn(building) => Forming::Vocabulary(building, compiling),
                    Built::Done(vocabulary) => {
                        serving.vocabulary = Some(vocabulary);
                        Forming::Grammar(compiling)
                    }
                }
            }
        };
        Ok(Formed::GoesOn(next))
    }
}

fn source(grammar: Grammar) -> Source {
    match (grammar.kind, grammar.value) {
        (GrammarKind::Regex, GrammarValue::Text(text)) => Source::Regex(text),
        (GrammarKind::Lark, GrammarValue::Text(text)) => Source::Lark(text),
        (_, GrammarValue::Choices(texts)) => Source::Choice(texts),
        (GrammarKind::Choice, GrammarValue::Text(text)) => Source::Choice(vec![text]),
    }
}

/// Fields that do not go together.
pub(super) fn wrong_forms(params: &GenerateParams) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |field: &str, constraint: &str, message: &str| {
        faults.push(Fault {
            field: field.to_owned(),
            constraint: constraint.to_owned(),
            message: format!("{field} {message}"),
        });
    };
    if let Some(ResponseFormat { kind, json_schema }) = &params.response_format {
        let field = "response_format.json_schema";
        match (kind, json_schema) {
            (ResponseFormatKind::JsonSchema, None) => fault(
                field,
                "required",
                "is missing; type \"json_schema\" needs it",
            ),
            (ResponseFormatKind::Text | ResponseFormatKind::JsonObject, Some(_)) => fault(
                field,
                "only with type \"json_schema\"",
                "is only taken with type \"json_schema\"",
            ),
            (ResponseFormatKind::JsonSchema, Some(_))
            | (ResponseFormatKind::Text | ResponseFormatKind::JsonObject, None) => {}
        }
        if *kind != ResponseFormatKind::Text && params.grammar.is_some() {
            fault(
                "grammar",
                "not beside response_format",
                "and a response_format that is JSON cannot both be kept; give one of them",
            );
        }
    }
    if let Some(Grammar { kind, value }) = &params.grammar {
        match (kind, value) {
            (GrammarKind::Choice, GrammarValue::Text(_)) => fault(
                GRAMMAR_FIELD,
                "type array",
                "is an array of texts with type \"choice\"",
            ),
            (GrammarKind::Regex | GrammarKind::Lark, GrammarValue::Choices(_)) => fault(
                GRAMMAR_FIELD,
                "type string",
                "is a string with type \"regex\" and \"lark\"",
            ),
            (GrammarKind::Choice, GrammarValue::Choices(_))
            | (GrammarKind::Regex | GrammarKind::Lark, GrammarValue::Text(_)) => {}
        }
    }
    faults
}

/// INVALID_GRAMMAR with its place, for people and for programs.
fn refusal(refused: Refused) -> ErrorObject {
    let Refused { place, reason } = refused;
    let field = match place {
        Place::Pointer(_) => SCHEMA_FIELD,
        Place::Text { .. } | Place::Choice(_) => GRAMMAR_FIELD,
    };
    let message = format!("{field} is refused at {place}: {reason}");
    let mut details = ErrorDetails::default();
    match place {
        Place::Pointer(pointer) => details.pointer = Some(pointer),
        Place::Text { line, column } => {
            details.line = Some(line as u64);
            details.column = Some(column as u64);
        }
        Place::Choice(index) => details.index = Some(index as u64),
    }
    ErrorObject::new(ErrorCode::InvalidGrammar, message)
        .with_param(field)
        .with_details(details)
}
