//! Regular expressions, grammars in Lark's notation and texts to choose from; and where they are wrong.

use std::collections::HashMap;

use llguidance::api::TopLevelGrammar;
use regex_syntax::ast::parse::Parser;
use regex_syntax::ast::{self, Ast, Visitor};
use regex_syntax::hir::translate::Translator;
use worker_orcd_protocol::limits as wire;

use super::{Place, Refused, in_short};

/// A keyword of Lark's notation that is not taken: a schema inside a grammar would pass by what a schema may cost.
const JSON_KEYWORD: &str = "%json";

pub(super) fn regex(value: &str) -> Result<TopLevelGrammar, Refused> {
    let ast = Parser::new()
        .parse(value)
        .map_err(|error| fault(error.span(), error.kind().to_string()))?;
    Translator::new()
        .translate(value, &ast)
        .map_err(|error| fault(error.span(), error.kind().to_string()))?;
    Ok(TopLevelGrammar::from_regex(value))
}

fn fault(span: &ast::Span, reason: String) -> Refused {
    let (line, column) = (span.start.line, span.start.column);
    Refused {
        place: Place::Text { line, column },
        reason,
    }
}

/// What the crate refuses in an expression that is one: what looks around, or its size.
pub(super) fn regex_fault(value: &str, said: &str) -> Refused {
    let looks = Parser::new()
        .parse(value)
        .ok()
        .and_then(|ast| {
            ast::visit(
                &ast,
                Looking {
                    length: value.len(),
                    found: None,
                },
            )
            .ok()
        })
        .flatten();
    match looks {
        Some(span) => fault(
            &span,
            "^, $ and \\b are not taken here: the whole output has to match anyway".to_owned(),
        ),
        None => Refused {
            place: Place::Text { line: 1, column: 1 },
            reason: without_place(said),
        },
    }
}

/// Looks for the first assertion that is neither `^` at the beginning nor `$` at the end.
struct Looking {
    length: usize,
    found: Option<ast::Span>,
}

impl Visitor for Looking {
    type Output = Option<ast::Span>;
    type Err = std::convert::Infallible;

    fn finish(self) -> Result<Self::Output, Self::Err> {
        Ok(self.found)
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), Self::Err> {
        if let Ast::Assertion(assertion) = ast {
            let span = assertion.span;
            let at_an_end = span.start.offset == 0 || span.end.offset == self.length;
            if self.found.is_none() && !at_an_end {
                self.found = Some(span);
            }
        }
        Ok(())
    }
}

pub(super) fn lark(value: &str) -> Result<TopLevelGrammar, Refused> {
    match value.find(JSON_KEYWORD) {
        None => Ok(TopLevelGrammar::from_lark(value.to_owned())),
        Some(at) => Err(Refused {
            place: place_of(value, at),
            reason: format!("{JSON_KEYWORD} is not taken; use response_format for a JSON schema"),
        }),
    }
}

/// Line and column as the crate has them: "at 3(14): what is wrong".
pub(super) fn lark_fault(value: &str, said: &str) -> Refused {
    let place = place_in(said).map_or_else(
        // It says so where something is missing at the end, and nothing where the grammar as a whole is wrong.
        || match said.contains("at EOF") {
            true => place_of(value, value.len()),
            false => Place::Text { line: 1, column: 1 },
        },
        |(line, column)| Place::Text {
            line: line.max(1),
            column: column.max(1),
        },
    );
    Refused {
        place,
        reason: without_place(said),
    }
}

/// Each text is quoted, so that none of its characters means anything.
pub(super) fn choice(texts: &[String]) -> Result<TopLevelGrammar, Refused> {
    let mut seen = HashMap::new();
    let mut bytes = 0;
    for (index, text) in texts.iter().enumerate() {
        let refused = |reason| Refused {
            place: Place::Choice(index),
            reason,
        };
        if let Some(first) = seen.insert(text, index) {
            return Err(refused(format!("it is the same as choice {first}")));
        }
        bytes += text.len();
        if bytes > wire::GRAMMAR_BYTES_MAX {
            let most = wire::GRAMMAR_BYTES_MAX;
            return Err(refused(format!(
                "all up to here have {bytes} bytes together; at most {most} are taken"
            )));
        }
    }
    let quoted: Vec<String> = texts
        .iter()
        .map(|text| regex_syntax::escape(text))
        .collect();
    Ok(TopLevelGrammar::from_regex(&quoted.join("|")))
}

pub(super) fn choice_fault(said: &str) -> Refused {
    Refused {
        place: Place::Choice(0),
        reason: without_place(said),
    }
}

fn place_of(text: &str, at: usize) -> Place {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    Place::Text {
        line: before.matches('\n').count() + 1,
        column: line.chars().count() + 1,
    }
}

/// The first "LINE(COLUMN): ".
fn place_in(said: &str) -> Option<(usize, usize)> {
    said.match_indices("): ").find_map(|(end, _)| {
        let (before, column) = said.get(..end)?.rsplit_once('(')?;
        let digits = before.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let line = before.get(digits..)?;
        Some((line.parse().ok()?, column.parse().ok()?))
    })
}

/// What was said, without the place before it.
fn without_place(said: &str) -> String {
    let line = in_short(said);
    match place_in(&line) {
        Some(_) => line
            .split_once("): ")
            .map_or(line.clone(), |(_, rest)| rest.to_owned()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_out_of_what_is_said() {
        assert_eq!(place_in("at 3(14): lexer error"), Some((3, 14)));
        assert_eq!(place_in("12(1): Expected x (at y (z))"), Some((12, 1)));
        assert_eq!(place_in("nothing (here): at all"), None);
        assert_eq!(without_place("at 3(14): lexer error\nmore"), "lexer error");
        let second = Place::Text { line: 2, column: 3 };
        assert_eq!(place_of("é\nab%json", 5), second);
    }
}
