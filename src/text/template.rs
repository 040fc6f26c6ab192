//! Chat templates: messages in, the prompt text that the model was trained on out.
//!
//! Templates are Jinja, written for the environment of the transformers library; this is that
//! environment on minijinja. A template is not trusted: instructions and the text that they make cost
//! fuel, recursion and output have limits, and there is no file, clock or environment variable to
//! read. Errors never repeat what a message says.
//!
//! Fuel has gaps in the engine: comparing, joining and formatting lists is paid for by what comes out,
//! if at all, so a template that nests lists on purpose (`l = [l, l]`, forty times, then `l == m`)
//! can still block, and one that joins a list of long strings (`['x' * 2000000] * 1000 ~ ''`) makes
//! the whole text before it pays. Templates of model files do not; one from a stranger is a program from a stranger.
//! The engine recurses over operators and nested lists without a limit of its own. Source and fuel
//! bound both, and the process has a stack that holds what they allow (`limits::STACK_BYTES`).

use std::fmt;
use std::io;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};
use serde_json::Value as Json;

use super::calendar::strftime;
use super::tokenizer::Tokenizer;
use super::{json, python};

/// Bytes of a template's source; the longest of published models have some 30 KB. A chain of operators costs stack for each, at
/// compiling and at rendering: a source of this length takes up to 25 MiB (`limits::STACK_BYTES`).
pub const TEMPLATE_SOURCE_BYTES_MAX: usize = 64 * 1024;

/// Operators `~` and `+` of a source; templates of published models have some hundred. The engine compiles a chain of them in a time
/// that grows with the square of its length: this many take a fifth of a second, a whole source of them takes most of a minute.
pub const TEMPLATE_JOINS_MAX: usize = 2000;

/// What one rendering may cost: about one unit per instruction and per 64 bytes of text made. A long
/// conversation with tools costs some ten thousand.
pub const TEMPLATE_FUEL_MAX: u64 = 500_000;

/// How deep a template may recurse, in the engine's units (a macro call costs several).
pub const TEMPLATE_RECURSION_MAX: usize = 256;

/// Bytes of a rendered prompt.
pub const TEMPLATE_OUTPUT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes of the text that `raise_exception` carries into an error.
pub const TEMPLATE_MESSAGE_BYTES_MAX: usize = 512;

/// How deep messages, tools and arguments may be nested.
pub const TEMPLATE_INPUT_DEPTH_MAX: usize = 128;

/// The name under which the engine knows the one template that it has.
const NAME: &str = "chat";

/// Variables that the worker sets, which extra arguments must not replace.
const RESERVED: [&str; 8] = [
    "messages",
    "tools",
    "tool_choice",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "raise_exception",
    "strftime_now",
];

/// Why a template could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The source is longer than [`TEMPLATE_SOURCE_BYTES_MAX`].
    #[error("the chat template has {bytes} bytes, the limit is {max} (TEMPLATE_SOURCE_BYTES_MAX)")]
    TooLong {
        /// Length of the source.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The source has more than [`TEMPLATE_JOINS_MAX`] of the characters `~` and `+`, wherever they stand.
    #[error(
        "the chat template has {found} of the operators ~ and +, the limit is {max} (TEMPLATE_JOINS_MAX)"
    )]
    TooManyJoins {
        /// How many it has.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// The source is not a template.
    #[error("the chat template does not compile: {detail}")]
    Syntax {
        /// What and on which line.
        detail: String,
    },
    /// The template itself refused the messages with `raise_exception`.
    #[error("the chat template refused the messages: {message}")]
    Raised {
        /// The template's words, at most [`TEMPLATE_MESSAGE_BYTES_MAX`] bytes of them.
        message: String,
    },
    /// The template did more work than [`TEMPLATE_FUEL_MAX`] pays for.
    #[error(
        "the chat template did not finish within its budget of {max} steps (TEMPLATE_FUEL_MAX)"
    )]
    OutOfFuel {
        /// The limit.
        max: u64,
    },
    /// The prompt is longer than [`TEMPLATE_OUTPUT_BYTES_MAX`].
    #[error("the rendered prompt is longer than {max} bytes (TEMPLATE_OUTPUT_BYTES_MAX)")]
    OutputTooLong {
        /// The limit.
        max: usize,
    },
    /// An extra argument has the name of a variable that the worker sets.
    #[error("the template argument {name:?} is set by the worker and can't be given")]
    ReservedArgument {
        /// The argument's name.
        name: &'static str,
    },
    /// Messages, tools or arguments are nested too deep.
    #[error("the {what} are nested deeper than {max} levels (TEMPLATE_INPUT_DEPTH_MAX)")]
    TooDeep {
        /// Which input.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// An expression of the template failed on these messages.
    #[error("the chat template failed: {detail}")]
    Failed {
        /// Kind of failure and line; never a value.
        detail: String,
    },
}

/// Whether the prompt ends with the opening of the assistant's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// It does: the model answers next.
    Add,
    /// It ends with the last message.
    Omit,
}

/// What a rendering depends on besides the messages.
#[derive(Debug, Clone)]
pub struct RenderOptions {
    /// Whether the assistant's turn is opened.
    pub generation_prompt: GenerationPrompt,
    /// Tool definitions; `None` is Jinja's `none`.
    pub tools: Option<Json>,
    /// Which tool is to be called; `None` leaves the variable undefined.
    pub tool_choice: Option<Json>,
    /// Further variables for the template (`chat_template_kwargs`).
    pub kwargs: serde_json::Map<String, Json>,
    /// The time that `strftime_now` formats, as UTC.
    pub now: SystemTime,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the texts of the model's tokens, which templates
    /// know as `bos_token` and `eos_token`; a missing one is the empty string.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self, TemplateError> {
        if source.len() > TEMPLATE_SOURCE_BYTES_MAX {
            return Err(TemplateError::TooLong {
                bytes: source.len(),
                max: TEMPLATE_SOURCE_BYTES_MAX,
            });
        }
        let joins = source.bytes().filter(|byte| b"~+".contains(byte)).count();
        if joins > TEMPLATE_JOINS_MAX {
            return Err(TemplateError::TooManyJoins {
                found: joins,
                max: TEMPLATE_JOINS_MAX,
            });
        }
        let mut environment = environment().map_err(syntax_error)?;
        environment
            .add_template_owned(NAME, without_generation_tags(&with_plain_line_ends(source)))
            .map_err(syntax_error)?;
        Ok(ChatTemplate {
            environment,
            bos: bos.unwrap_or_default().to_owned(),
            eos: eos.unwrap_or_default().to_owned(),
        })
    }

    /// Compiles a template for the model whose tokenizer this is.
    pub fn for_tokenizer(source: &str, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        let text_of = |id: Option<u32>| {
            Some(String::from_utf8_lossy(tokenizer.token_bytes(id?)?).into_owned())
        };
        let (bos, eos) = (text_of(tokenizer.bos()), text_of(tokenizer.eos()));
        Self::new(source, bos.as_deref(), eos.as_deref())
    }

    /// Renders the prompt of a conversation. `messages` is the list of a request, as JSON.
    pub fn render(
        &self,
        messages: &Json,
        options: &RenderOptions,
    ) -> Result<String, TemplateError> {
        let context = self.context(messages, options)?;
        let template = self.environment.get_template(NAME).map_err(render_error)?;
        let mut out = BoundedText::default();
        let rendered = template.render_captured_to(context, &mut out).map(drop);
        if out.is_full {
            return Err(TemplateError::OutputTooLong {
                max: TEMPLATE_OUTPUT_BYTES_MAX,
            });
        }
        rendered.map_err(render_error)?;
        // The engine writes whole strings, so the bytes are UTF-8.
        String::from_utf8(out.bytes).map_err(|_| TemplateError::Failed {
            detail: "the output is not UTF-8".to_owned(),
        })
    }

    fn context(&self, messages: &Json, options: &RenderOptions) -> Result<Value, TemplateError> {
        if let Some(name) = RESERVED
            .into_iter()
            .find(|name| options.kwargs.contains_key(*name))
        {
            return Err(TemplateError::ReservedArgument { name });
        }
        let too_deep = |what| TemplateError::TooDeep {
            what,
            max: TEMPLATE_INPUT_DEPTH_MAX,
        };
        let tools = match &options.tools {
            Some(tools) => to_value(tools, 0).ok_or_else(|| too_deep("tools"))?,
            None => Value::from(()),
        };
        let choice = match &options.tool_choice {
            Some(choice) => to_value(choice, 0).ok_or_else(|| too_deep("tool_choice"))?,
            None => Value::UNDEFINED,
        };
        let adds = options.generation_prompt == GenerationPrompt::Add;
        let now = options.now;
        let mut pairs = vec![
            (
                "messages".to_owned(),
                to_value(messages, 0).ok_or_else(|| too_deep("messages"))?,
            ),
            ("tools".to_owned(), tools),
            ("tool_choice".to_owned(), choice),
            ("add_generation_prompt".to_owned(), Value::from(adds)),
            ("bos_token".to_owned(), Value::from(self.bos.as_str())),
            ("eos_token".to_owned(), Value::from(self.eos.as_str())),
            (
                "strftime_now".to_owned(),
                Value::from_function(move |format: String| strftime(&format, now)),
            ),
        ];
        // The transformers library sets it whether or not there are any.
        if !options.kwargs.contains_key("documents") {
            pairs.push(("documents".to_owned(), Value::from(())));
        }
        for (name, argument) in &options.kwargs {
            let value = to_value(argument, 0).ok_or_else(|| too_deep("template arguments"))?;
            pairs.push((name.clone(), value));
        }
        Ok(Value::from_pairs(pairs))
    }
}

/// The environment that chat templates are written for.
fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_debug(false);
    environment.set_fuel(Some(TEMPLATE_FUEL_MAX));
    environment.set_recursion_limit(TEMPLATE_RECURSION_MAX);
    // The one would show the engine's state and is not Jinja2's; the other takes a time that grows with
    // the square of its fuel, and no prompt is printed prettily.
    environment.remove_global("debug");
    environment.remove_filter("pprint");
    environment.add_filter("tojson", json::tojson);
    python::install(&mut environment);
    environment.add_function("raise_exception", raise_exception);
    Ok(environment)
}

/// Jinja2 reads every kind of line end as LF, in the template's text and in its strings.
fn with_plain_line_ends(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// Turns `{% generation %}` blocks into blocks that do nothing. They mark the assistant's words for
/// training and leave the text alone, but their tags take part in the trimming of white space:
/// `if true` trims exactly as they would.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        rest = tag;
        let Some((inner, after)) = tag.split_once("%}") else {
            break;
        };
        let (name, replacement) = match inner.trim_matches(['-', '+']).trim() {
            "generation" => ("generation", "if true"),
            "endgeneration" => ("endgeneration", "endif"),
            _ => continue,
        };
        out.push_str(&inner.replacen(name, replacement, 1));
        out.push_str("%}");
        rest = after;
    }
    out.push_str(rest);
    out
}

/// JSON as the engine's value, `None` if it is nested too deep.
fn to_value(json: &Json, depth: usize) -> Option<Value> {
    if depth > TEMPLATE_INPUT_DEPTH_MAX {
        return None;
    }
    Some(match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::from(value),
            (None, Some(value)) => Value::from(value),
            (None, None) => Value::from(number.as_f64()?),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => {
            let items: Option<Vec<Value>> =
                items.iter().map(|item| to_value(item, depth + 1)).collect();
            Value::from(items?)
        }
        Json::Object(map) => {
            let pairs: Option<Vec<(String, Value)>> = map
                .iter()
                .map(|(key, value)| Some((key.clone(), to_value(value, depth + 1)?)))
                .collect();
            Value::from_pairs(pairs?)
        }
    })
}

/// What `raise_exception` throws; it travels as the source of the engine's error.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

/// The engine's error without what it may quote of the messages: kind, line, and the detail only
/// where it can name nothing but the template's own words.
fn describe(error: &Error) -> String {
    let mut text = error.kind().to_string();
    let detail = match error.kind() {
        ErrorKind::SyntaxError
        | ErrorKind::BadEscape
        | ErrorKind::UnknownFilter
        | ErrorKind::UnknownTest
        | ErrorKind::UnknownFunction
        | ErrorKind::UnknownMethod => error.detail(),
        _ => None,
    };
    if let Some(detail) = detail {
        text.push_str(": ");
        text.push_str(first_bytes(detail, TEMPLATE_MESSAGE_BYTES_MAX));
    }
    if let Some(line) = error.line() {
        text.push_str(&format!(" (line {line} of the template)"));
    }
    text
}

fn syntax_error(error: Error) -> TemplateError {
    TemplateError::Syntax {
        detail: describe(&error),
    }
}

fn render_error(error: Error) -> TemplateError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref::<Raised>() {
            return TemplateError::Raised {
                message: first_bytes(message, TEMPLATE_MESSAGE_BYTES_MAX).to_owned(),
            };
        }
        let is_out_of_fuel = cause
            .downcast_ref::<Error>()
            .is_some_and(|error| error.kind() == ErrorKind::OutOfFuel);
        if is_out_of_fuel {
            return TemplateError::OutOfFuel {
                max: TEMPLATE_FUEL_MAX,
            };
        }
        source = cause.source();
    }
    TemplateError::Failed {
        detail: describe(&error),
    }
}

/// The longest beginning of `text` of at most `max` bytes.
fn first_bytes(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Output that refuses to grow beyond [`TEMPLATE_OUTPUT_BYTES_MAX`].
#[derive(Default)]
struct BoundedText {
    bytes: Vec<u8>,
    is_full: bool,
}

impl io::Write for BoundedText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > TEMPLATE_OUTPUT_BYTES_MAX - self.bytes.len() {
            self.is_full = true;
            return Err(io::Error::other("the output is full"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_become_blocks_that_trim_alike() {
        assert_eq!(
            without_generation_tags("{% generation %}x{%- endgeneration -%}"),
            "{% if true %}x{%- endif -%}"
        );
        let other = "{% set generation = 1 %}{{ generation }}{% unclosed";
        assert_eq!(without_generation_tags(other), other);
    }
}
