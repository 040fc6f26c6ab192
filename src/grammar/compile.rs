//! From what a request asks for to a matcher, in pieces; and where a schema is wrong that cannot be compiled.

use llguidance::Logger;
use llguidance::TokenParser;
use llguidance::api::{GrammarInit, TopLevelGrammar};
use llguidance::toktrie::InferenceCapabilities;
use serde_json::{Map, Value, json};

use super::vocabulary::{Vocabulary, parser_limits};
use super::{Forcing, Matcher, Refused, Source, in_short, schema, text};

/// White space in JSON that a model writes: a blank, or a new line and its indentation. Without an end to it a model can write
/// nothing else for ever.
const WHITE_SPACE: &str = r" |\n {0,24}";

/// A grammar that is being compiled.
pub struct Compiling {
    forcing: Forcing,
    stage: Stage,
}

enum Stage {
    Given(Source),
    /// It was refused without a place.
    Locating(Locating),
}

/// Looks for the innermost part of a schema that is refused.
struct Locating {
    root: Value,
    at: String,
    reason: String,
    /// Parts of what is at `at` that are still to be tried.
    parts: Vec<String>,
}

/// What a piece of it came to.
pub enum Compiled {
    /// There is more to do.
    GoesOn(Compiling),
    /// It is compiled.
    Done(Matcher),
}

impl Compiling {
    /// Nothing is done yet.
    pub fn new(source: Source, forcing: Forcing) -> Self {
        let stage = Stage::Given(source);
        Self { forcing, stage }
    }

    /// One piece.
    ///
    /// # Errors
    ///
    /// What is wrong, and where.
    pub fn step(self, vocabulary: &Vocabulary) -> Result<Compiled, Refused> {
        match self.stage {
            Stage::Given(source) => given(source, vocabulary, self.forcing),
            Stage::Locating(locating) => locating.step(vocabulary),
        }
    }
}

fn given(source: Source, vocabulary: &Vocabulary, forcing: Forcing) -> Result<Compiled, Refused> {
    let compiled = |grammar| parser(vocabulary, grammar, forcing);
    let parser = match source {
        Source::Regex(value) => {
            compiled(text::regex(&value)?).map_err(|said| text::regex_fault(&value, &said))?
        }
        Source::Lark(value) => {
            compiled(text::lark(&value)?).map_err(|said| text::lark_fault(&value, &said))?
        }
        Source::Choice(texts) => {
            compiled(text::choice(&texts)?).map_err(|said| text::choice_fault(&said))?
        }
        Source::JsonObject => {
            let any = Map::from_iter([("type".to_owned(), json!("object"))]);
            compiled(json(&any)).map_err(|said| Refused::at("", in_short(&said)))?
        }
        Source::Schema(root) => {
            schema::check(&root)?;
            match compiled(json(&root)) {
                Ok(parser) => parser,
                Err(said) => return Ok(Locating::new(root, &said).goes_on()),
            }
        }
    };
    let ends = vocabulary.factory.tok_env().tok_trie().eos_tokens();
    Ok(Compiled::Done(Matcher::new(parser, ends, forcing)))
}

/// What the crate says, without its advice on options that nobody here can set.
fn said_of_schema(said: &str) -> String {
    match said.contains("oneOf constraints are not supported") {
        true => "the alternatives of this oneOf cannot be told apart: say anyOf, or give them different types or constants".to_owned(),
        false => in_short(said),
    }
}

impl Locating {
    fn new(root: Map<String, Value>, said: &str) -> Self {
        let root = Value::Object(root);
        Self {
            parts: schema::parts(&root, ""),
            at: String::new(),
            reason: said_of_schema(said),
            root,
        }
    }

    /// Tries one part; that which is refused alone is looked into.
    fn step(mut self, vocabulary: &Vocabulary) -> Result<Compiled, Refused> {
        let Some(pointer) = self.parts.pop() else {
            return Err(Refused::at(self.at, self.reason));
        };
        if let Some(part @ Value::Object(fields)) = self.root.pointer(&pointer) {
            let mut alone = fields.clone();
            for shared in ["$schema", "$defs", "definitions"] {
                if let Some(value) = self.root.get(shared) {
                    alone
                        .entry(shared.to_owned())
                        .or_insert_with(|| value.clone());
                }
            }
            if let Err(said) = parser(vocabulary, json(&alone), Forcing::Drawn) {
                self.reason = said_of_schema(&said);
                self.parts = schema::parts(part, &pointer);
                self.at = pointer;
            }
        }
        Ok(self.goes_on())
    }

    fn goes_on(self) -> Compiled {
        Compiled::GoesOn(Compiling {
            // What is found in the end is a refusal.
            forcing: Forcing::Drawn,
            stage: Stage::Locating(self),
        })
    }
}

fn json(schema: &Map<String, Value>) -> TopLevelGrammar {
    let mut schema = schema.clone();
    let options = json!({"whitespace_pattern": WHITE_SPACE});
    schema.insert("x-guidance".to_owned(), options);
    TopLevelGrammar::from_json_schema(Value::Object(schema))
}

fn parser(
    vocabulary: &Vocabulary,
    grammar: TopLevelGrammar,
    forcing: Forcing,
) -> Result<TokenParser, String> {
    let capabilities = InferenceCapabilities {
        ff_tokens: forcing == Forcing::Forced,
        ..InferenceCapabilities::default()
    };
    let init = GrammarInit::Serialized(grammar);
    let (silent, limits) = (Logger::new(0, 0), parser_limits());
    let parser = vocabulary
        .factory
        .create_parser_from_init_ext(init, silent, capabilities, limits);
    parser.map_err(|error| format!("{error:#}"))
}
