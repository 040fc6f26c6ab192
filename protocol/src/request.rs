//! What the worker hears: one type for the params of each method, every field with its range and default.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::grammar::{Grammar, ResponseFormat};
use crate::limits;
use crate::sampling::{Dry, LogitBias, Xtc};

/// The name of a request: an integer of 64 bits with sign, or a string of at most 256 bytes. 1 and "1" differ.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(untagged)]
pub enum Id {
    /// An integer, -2^63 to 2^63 - 1.
    Number(i64),
    /// A string of at most 256 bytes.
    String(#[schemars(extend("x-max-bytes" = limits::ID_BYTES_MAX))] String),
}

impl std::fmt::Display for Id {
    /// As JSON writes it, so that 1 and "1" look different.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Id::Number(n) => write!(f, "{n}"),
            Id::String(s) => write!(f, "{}", Value::String(s.clone())),
        }
    }
}

/// A request with its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// `None` for a `cancel` that was sent as a notification: nothing is answered then. All other methods need an id.
    pub id: Option<Id>,
    /// What is asked.
    pub request: Request,
}

/// What is asked, by method.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// `initialize`
    Initialize(InitializeParams),
    /// `generate`
    Generate(Box<GenerateParams>),
    /// `cancel`, `$/cancelRequest` and `notifications/cancelled`
    Cancel(CancelParams),
    /// `health`
    Health,
    /// `tokenize`
    Tokenize(TokenizeParams),
    /// `detokenize`
    Detokenize(DetokenizeParams),
    /// `apply_template`
    ApplyTemplate(ApplyTemplateParams),
    /// `metrics`
    Metrics(MetricsParams),
    /// `save_state`
    SaveState(SaveStateParams),
    /// `load_state`
    LoadState(LoadStateParams),
    /// `shutdown`
    Shutdown(ShutdownParams),
}

impl Request {
    /// The method's name on the wire; `cancel` for all its aliases.
    pub fn method(&self) -> &'static str {
        match self {
            Request::Initialize(_) => "initialize",
            Request::Generate(_) => "generate",
            Request::Cancel(_) => "cancel",
            Request::Health => "health",
            Request::Tokenize(_) => "tokenize",
            Request::Detokenize(_) => "detokenize",
            Request::ApplyTemplate(_) => "apply_template",
            Request::SaveState(_) => "save_state",
            Request::LoadState(_) => "load_state",
            Request::Metrics(_) => "metrics",
            Request::Shutdown(_) => "shutdown",
        }
    }
}

/// Params of a method that takes none: left out, or `{}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

/// Params of `initialize`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InitializeParams {
    /// The version of the wire that the client speaks. This worker speaks 1 and refuses any other. Left out: any will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = limits::PROTOCOL_VERSION))]
    pub protocol_version: Option<u32>,
    /// Who is asking; written to the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_info: Option<ClientInfo>,
}

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientInfo {
    /// The client's name, at most 256 bytes.
    #[schemars(length(min = 1), extend("x-max-bytes" = limits::CLIENT_INFO_BYTES_MAX))]
    pub name: String,
    /// The client's version, at most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-max-bytes" = limits::CLIENT_INFO_BYTES_MAX))]
    pub version: Option<String>,
}

/// Params of `generate`: exactly one of `prompt`, `prompt_token_ids` and `messages`, and how to go on from there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend(
    "oneOf" = [{"required": ["prompt"]}, {"required": ["prompt_token_ids"]}, {"required": ["messages"]}],
    "dependentRequired" = {
        "add_special": ["prompt"],
        "parse_special": ["prompt"],
        "add_generation_prompt": ["messages"],
        "chat_template_kwargs": ["messages"],
        "tools": ["messages"],
        "tool_choice": ["tools"],
        "chat_template": ["messages"],
    }
))]
pub struct GenerateParams {
    /// Text to go on from. A prompt that does not fit in the context is refused with CONTEXT_OVERFLOW, never cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Token ids to go on from, each below the vocabulary's size; taken as they are, nothing is added.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::TOKEN_IDS_MAX))]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// A conversation, put into the model's words by its chat template; TEMPLATE_ERROR where it has none or the template refuses.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::MESSAGES_MAX))]
    pub messages: Option<Vec<Message>>,
    /// Put the tokens around `prompt` that the model asks for (BOS). Only with `prompt`.
    #[serde(skip_serializing_if = "is_true")]
    #[schemars(extend("default" = true))]
    pub add_special: bool,
    /// Read names of control tokens in `prompt` ("<|im_end|>") as these tokens; false: as plain text. Only with `prompt`.
    #[serde(skip_serializing_if = "is_true")]
    #[schemars(extend("default" = true))]
    pub parse_special: bool,
    /// End the rendered conversation with the opening of the assistant's turn. Only with `messages`.
    #[serde(skip_serializing_if = "is_true")]
    #[schemars(extend("default" = true))]
    pub add_generation_prompt: bool,
    /// Further variables for the chat template, by name. Only with `messages`.
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schemars(extend("default" = {}))]
    pub chat_template_kwargs: Map<String, Value>,
    /// Tools that the model may call, each an object as the chat template wants it (mostly the `{"type": "function", "function": …}` of
    /// other APIs). A template that knows of no tools leaves them out in silence. Only with `messages`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::TOOLS_MAX))]
    pub tools: Option<Vec<Map<String, Value>>>,
    /// Which tool the model is to call. Only handed to the chat template, of which few look at it; no output is forced. Only with `tools`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<ToolChoice>,
    /// A Jinja template to use instead of the model's. It runs under the limits of the model's, but is a program: not one to take from
    /// strangers. At most 64 KiB. Only with `messages`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-max-bytes" = limits::CHAT_TEMPLATE_BYTES_MAX))]
    pub chat_template: Option<String>,
    /// Send a `token` notification for each token; false: all text comes with the response.
    #[serde(skip_serializing_if = "is_true")]
    #[schemars(extend("default" = true))]
    pub stream: bool,
    /// Most tokens to generate. Left out: the worker's `--max-tokens`, or else what fits in the context.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = limits::MAX_TOKENS_MAX))]
    pub max_tokens: Option<u32>,
    /// Tokens that are generated at least: before that neither an end-of-generation token nor one of `stop_token_ids` is drawn, and stop strings that begin in the text of these tokens are not looked for. At most `max_tokens`.
    #[serde(skip_serializing_if = "is_zero_count")]
    #[schemars(extend("default" = 0))]
    #[schemars(range(max = limits::MAX_TOKENS_MAX))]
    pub min_tokens: u32,
    /// Divides the logits before a token is drawn; 0 takes the likeliest token.
    #[serde(skip_serializing_if = "is_one")]
    #[schemars(extend("default" = 1.0))]
    #[schemars(range(min = 0.0, max = limits::TEMPERATURE_MAX))]
    pub temperature: f32,
    /// Draw from tokens whose logit is at most so many standard deviations of all logits below the largest one. Left out: from all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0.0), range(max = limits::TOP_N_SIGMA_MAX))]
    pub top_n_sigma: Option<f32>,
    /// Draw from the `top_k` likeliest tokens; 0 draws from all.
    #[serde(skip_serializing_if = "is_zero_count")]
    #[schemars(extend("default" = 0))]
    pub top_k: u32,
    /// Draw from the smallest set of tokens whose probabilities reach `typical_p` in sum, those first whose surprise (-ln p) is nearest to the mean surprise of all; 1 draws from all.
    #[serde(skip_serializing_if = "is_one")]
    #[schemars(extend("default" = 1.0))]
    #[schemars(extend("exclusiveMinimum" = 0.0), range(max = 1.0))]
    pub typical_p: f32,
    /// Draw from the smallest set of tokens whose probabilities reach `top_p` in sum; 1 draws from all.
    #[serde(skip_serializing_if = "is_one")]
    #[schemars(extend("default" = 1.0))]
    #[schemars(extend("exclusiveMinimum" = 0.0), range(max = 1.0))]
    pub top_p: f32,
    /// Draw from tokens at least `min_p` times as likely as the likeliest; 0 draws from all.
    #[serde(skip_serializing_if = "is_zero")]
    #[schemars(extend("default" = 0.0))]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_p: f32,
    /// Leave out the likeliest tokens now and then. Left out: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xtc: Option<Xtc>,
    /// Divides positive and multiplies negative logits of tokens that stand in the window; 1 changes nothing.
    #[serde(skip_serializing_if = "is_one")]
    #[schemars(extend("default" = 1.0))]
    #[schemars(extend("exclusiveMinimum" = 0.0), range(max = limits::REPETITION_PENALTY_MAX))]
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens that stand in the window; 0 changes nothing, below 0 they become likelier.
    #[serde(skip_serializing_if = "is_zero")]
    #[schemars(extend("default" = 0.0))]
    #[schemars(range(min = -limits::PENALTY_MAX, max = limits::PENALTY_MAX))]
    pub presence_penalty: f32,
    /// Taken from the logit of a token for each time that it stands in the window; 0 changes nothing, below 0 it becomes likelier.
    #[serde(skip_serializing_if = "is_zero")]
    #[schemars(extend("default" = 0.0))]
    #[schemars(range(min = -limits::PENALTY_MAX, max = limits::PENALTY_MAX))]
    pub frequency_penalty: f32,
    /// The window of the three penalties in tokens, the last ones; -1: prompt and output, 0: none.
    #[serde(skip_serializing_if = "is_minus_one")]
    #[schemars(extend("default" = -1))]
    #[schemars(range(min = -1, max = limits::LAST_N_MAX))]
    pub penalty_last_n: i32,
    /// Make tokens less likely that would make a repetition longer. Left out: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry: Option<Dry>,
    /// What is added to the logits of single tokens, by token; `false` forbids one. A key of decimal digits is a token id, which the vocabulary must have; of any other key, all tokens of this text are meant (control tokens are not read by name). Where several entries meet in a token, they add up, and `false` wins. At most 1024 entries with keys of at most 256 bytes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("default" = {}, "maxProperties" = limits::LOGIT_BIAS_MAX, "x-max-key-bytes" = limits::LOGIT_BIAS_KEY_BYTES_MAX))]
    pub logit_bias: BTreeMap<String, LogitBias>,
    /// Where the random numbers start. Same worker, device, request and seed: same tokens. Left out: drawn below 2^53. Always reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Strings that end the generation when they come up in its text; they are not part of the text. At most 16, each of 1 to 256 bytes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::STOP_MAX), extend("items" = {"type": "string", "minLength": 1, "x-max-bytes": limits::STOP_BYTES_MAX}, "default" = []))]
    pub stop: Vec<String>,
    /// Tokens that end the generation when they are drawn, each below the vocabulary's size. Such a token counts and is sent, with text "": it is not part of the text. At most 64.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::STOP_TOKEN_IDS_MAX), extend("default" = []))]
    pub stop_token_ids: Vec<u32>,
    /// Go on after an end-of-generation token; it may be drawn and counts as a token.
    #[serde(skip_serializing_if = "is_false")]
    #[schemars(extend("default" = false))]
    pub ignore_eos: bool,
    /// Make the output JSON: any object, or what is valid under a schema. A prompt that asks for it makes a better answer; this makes it well-formed. Not beside `grammar`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_format: Option<ResponseFormat>,
    /// Make the output match a regular expression, be a sentence of a grammar, or one of several texts. Not beside a `response_format` that is JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grammar: Option<Grammar>,
    /// Guess tokens ahead, by what followed the last two or three tokens where they stood before in prompt or output, and check all of them in one step. Text that repeats its prompt comes faster, and not a token, log-probability or seed is another. `"auto"` guesses more where that pays and pauses where it does not; a number: so many tokens wherever something matches. `timings` tells how many were `drafted` and `accepted`.
    #[serde(skip_serializing_if = "Speculation::is_off")]
    #[schemars(extend("default" = "off"))]
    pub speculation: Speculation,
    /// Report each token's log-probability and this many of the likeliest alternatives. Left out: none are reported; 0: the token's own alone. Always of the model's unmodified distribution.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = limits::LOGPROBS_MAX))]
    pub logprobs: Option<u32>,
    /// The same for the tokens of the prompt, but for the first, before which there is nothing: in `prompt_logprobs` notifications, or in the response with stream:false. The prompt is then evaluated whole, whatever is cached of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = limits::LOGPROBS_MAX))]
    pub prompt_logprobs: Option<u32>,
    /// Put the token ids of prompt and output into the response. With `stream` that is one short line: INVALID_PARAMS where prompt and `max_tokens` come to more than 7168 tokens.
    #[serde(skip_serializing_if = "is_false")]
    #[schemars(extend("default" = false))]
    pub return_token_ids: bool,
    /// End after so many milliseconds with finish_reason "timeout", time in the queue included. Left out: the worker's `--timeout-ms`, or else none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = limits::TIMEOUT_MS_MAX))]
    pub timeout_ms: Option<u64>,
    /// Send `progress` notifications with phase "prefill" while the prompt is evaluated.
    #[serde(skip_serializing_if = "is_false")]
    #[schemars(extend("default" = false))]
    pub return_progress: bool,
    /// Whether keys and values of earlier requests that began with the same tokens are used again, and those of this one are kept for
    /// later ones; `cached_tokens` tells how many tokens that saved. The answer does not depend on it.
    #[serde(skip_serializing_if = "is_true")]
    #[schemars(extend("default" = true))]
    pub cache_prompt: bool,
}

impl Default for GenerateParams {
    fn default() -> Self {
        GenerateParams {
            prompt: None,
            prompt_token_ids: None,
            messages: None,
            add_special: true,
            parse_special: true,
            add_generation_prompt: true,
            chat_template_kwargs: Map::new(),
            tools: None,
            tool_choice: None,
            chat_template: None,
            stream: true,
            max_tokens: None,
            min_tokens: 0,
            temperature: 1.0,
            top_n_sigma: None,
            top_k: 0,
            typical_p: 1.0,
            top_p: 1.0,
            min_p: 0.0,
            xtc: None,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_last_n: -1,
            dry: None,
            logit_bias: BTreeMap::new(),
            seed: None,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            response_format: None,
            grammar: None,
            speculation: Speculation::OFF,
            logprobs: None,
            prompt_logprobs: None,
            return_token_ids: false,
            timeout_ms: None,
            return_progress: false,
            cache_prompt: true,
        }
    }
}

/// What a `generate` goes on from.
#[derive(Clone, Debug, PartialEq)]
pub enum GenerateInput {
    /// Text.
    Prompt {
        /// The text.
        text: String,
        /// See [`GenerateParams::add_special`].
        add_special: bool,
        /// See [`GenerateParams::parse_special`].
        parse_special: bool,
    },
    /// Token ids.
    TokenIds(Vec<u32>),
    /// A conversation.
    Messages(Box<ApplyTemplateParams>),
}

impl GenerateParams {
    /// Moves the input out. `None` when there is none, which cannot be in params that were decoded and not yet asked.
    pub fn take_input(&mut self) -> Option<GenerateInput> {
        if let Some(text) = self.prompt.take() {
            let GenerateParams {
                add_special,
                parse_special,
                ..
            } = *self;
            return Some(GenerateInput::Prompt {
                text,
                add_special,
                parse_special,
            });
        }
        if let Some(ids) = self.prompt_token_ids.take() {
            return Some(GenerateInput::TokenIds(ids));
        }
        Some(GenerateInput::Messages(Box::new(ApplyTemplateParams {
            messages: self.messages.take()?,
            add_generation_prompt: self.add_generation_prompt,
            chat_template_kwargs: std::mem::take(&mut self.chat_template_kwargs),
            tools: self.tools.take(),
            tool_choice: self.tool_choice.take(),
            chat_template: self.chat_template.take(),
        })))
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Whose turn it is.
    pub role: Role,
    /// What is said. null only where an assistant's message has `tool_calls`; the chat template sees none then.
    pub content: Content,
    /// Who says it, or the name of the tool that answers; for templates that show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), extend("x-max-bytes" = limits::TOOL_NAME_BYTES_MAX))]
    pub name: Option<String>,
    /// What the assistant thought before it answered, apart from the answer; for templates that show it (Qwen 3, GLM, SmolLM3, …).
    /// Only of an assistant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Tools that the assistant called. Only of an assistant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::TOOL_CALLS_MAX))]
    pub tool_calls: Option<Vec<ToolCall>>,
    /// Which call a tool answers. Only of a tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), extend("x-max-bytes" = limits::TOOL_NAME_BYTES_MAX))]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A turn that says a text and nothing else.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Message {
            role,
            content: Content::Text(text.into()),
            name: None,
            reasoning_content: None,
            tool_calls: None,
            tool_call_id: None,
        }
    }
}

/// A tool that the assistant called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolCall {
    /// The call's id, to which `tool_call_id` refers. Some templates want a form of their own (Mistral: nine letters and digits).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), extend("x-max-bytes" = limits::TOOL_NAME_BYTES_MAX))]
    pub id: Option<String>,
    /// The kind of the tool.
    #[serde(rename = "type")]
    pub kind: ToolKind,
    /// What was called.
    pub function: FunctionCall,
}

/// The kind of a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolKind {
    /// A function; nothing else is understood.
    Function,
}

/// A function that was called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FunctionCall {
    /// The function's name.
    #[schemars(length(min = 1), extend("x-max-bytes" = limits::TOOL_NAME_BYTES_MAX))]
    pub name: String,
    /// With what.
    pub arguments: Arguments,
}

/// Arguments of a call: an object, or its JSON text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Arguments {
    /// JSON text, as a model writes it. Where it is an object the chat template sees the object, as templates expect; any other text it
    /// sees as it is.
    Text(String),
    /// The object.
    Object(Map<String, Value>),
}

/// Which tool the model is to call: a word, or an object that names one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ToolChoice {
    /// A word.
    Word(ToolChoiceWord),
    /// An object, handed on as it is.
    Object(Map<String, Value>),
}

/// Whether a tool is to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoiceWord {
    /// None.
    None,
    /// The model may.
    Auto,
    /// One at least.
    Required,
}

/// How many tokens are guessed ahead: a word, or a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Speculation {
    /// A word.
    Word(SpeculationWord),
    /// So many wherever something matches.
    Tokens(#[schemars(range(min = 1, max = limits::SPECULATION_MAX))] u32),
}

impl Speculation {
    /// None.
    pub const OFF: Self = Self::Word(SpeculationWord::Off);

    fn is_off(&self) -> bool {
        *self == Self::OFF
    }
}

/// Whether tokens are guessed ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SpeculationWord {
    /// None are.
    Off,
    /// As many as pay.
    Auto,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Instructions that stand above the conversation.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
    /// What a tool answered.
    Tool,
}

/// What is said: a string, an array of parts, or null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Content {
    /// The text.
    Text(String),
    /// The text in parts. The chat template sees one string: the parts, joined with line ends.
    Parts(#[schemars(length(max = limits::CONTENT_PARTS_MAX))] Vec<ContentPart>),
    /// Nothing: the assistant only calls tools.
    Nothing,
}

impl Content {
    /// As one string, if it is not null: parts are joined with line ends.
    pub fn joined(self) -> Self {
        match self {
            Self::Parts(parts) => {
                let texts: Vec<String> = parts.into_iter().map(|part| part.text).collect();
                Self::Text(texts.join("\n"))
            }
            Self::Text(_) | Self::Nothing => self,
        }
    }
}

/// A part of what is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContentPart {
    /// The kind of the part.
    #[serde(rename = "type")]
    pub kind: ContentPartKind,
    /// The text.
    pub text: String,
}

/// The kind of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ContentPartKind {
    /// Text; nothing else is understood.
    Text,
}

/// Params of `cancel`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelParams {
    /// The id of the `generate` to end.
    pub request_id: Id,
}

/// Params of `$/cancelRequest`, which does what `cancel` does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelRequestParams {
    /// The id of the `generate` to end.
    pub id: Id,
}

/// Params of `notifications/cancelled`, which does what `cancel` does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelledParams {
    /// The id of the `generate` to end.
    #[serde(rename = "requestId")]
    pub request_id: Id,
}

/// Params of `tokenize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizeParams {
    /// The text, at most 1 MiB.
    #[schemars(extend("x-max-bytes" = limits::TOKENIZE_BYTES_MAX))]
    pub content: String,
    /// Put the tokens around the text that the model asks for (BOS).
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    #[schemars(extend("default" = true))]
    pub add_special: bool,
    /// Read names of control tokens in the text as these tokens; false: as plain text.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    #[schemars(extend("default" = true))]
    pub parse_special: bool,
    /// Report the text of each token too.
    #[serde(default, skip_serializing_if = "is_false")]
    #[schemars(extend("default" = false))]
    pub with_pieces: bool,
}

/// Params of `detokenize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DetokenizeParams {
    /// Token ids, each below the vocabulary's size. Control tokens are rendered by name.
    #[schemars(length(max = limits::TOKEN_IDS_MAX))]
    pub token_ids: Vec<u32>,
}

/// Params of `apply_template`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("dependentRequired" = {"tool_choice": ["tools"]}))]
pub struct ApplyTemplateParams {
    /// A conversation.
    #[schemars(length(min = 1, max = limits::MESSAGES_MAX))]
    pub messages: Vec<Message>,
    /// End with the opening of the assistant's turn.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    #[schemars(extend("default" = true))]
    pub add_generation_prompt: bool,
    /// Further variables for the chat template, by name.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(extend("default" = {}))]
    pub chat_template_kwargs: Map<String, Value>,
    /// Tools that the model may call, each an object as the chat template wants it (mostly the `{"type": "function", "function": …}` of
    /// other APIs). A template that knows of no tools leaves them out in silence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::TOOLS_MAX))]
    pub tools: Option<Vec<Map<String, Value>>>,
    /// Which tool the model is to call. Only handed to the chat template, of which few look at it; no output is forced. Only with `tools`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<ToolChoice>,
    /// A Jinja template to use instead of the model's. It runs under the limits of the model's, but is a program: not one to take from
    /// strangers. At most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-max-bytes" = limits::CHAT_TEMPLATE_BYTES_MAX))]
    pub chat_template: Option<String>,
}

/// Params of `save_state`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["request_id"]}, {"required": ["token_ids"]}]))]
pub struct SaveStateParams {
    /// The file to write, in the file system of the worker. What is there is replaced when all is written.
    #[schemars(length(min = 1), extend("x-max-bytes" = limits::PATH_BYTES_MAX))]
    pub path: String,
    /// The conversation that this request has left when it ended. Exactly one of this and `token_ids` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Id>,
    /// The conversation that begins with these tokens, as far as it is kept; `tokens` of the result tells how far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::TOKEN_IDS_MAX))]
    pub token_ids: Option<Vec<u32>>,
}

/// Params of `load_state`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadStateParams {
    /// The file to read, in the file system of the worker.
    #[schemars(length(min = 1), extend("x-max-bytes" = limits::PATH_BYTES_MAX))]
    pub path: String,
}

/// Params of `metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricsParams {
    /// In which form.
    #[serde(default)]
    pub format: MetricsFormat,
}

/// In which form metrics are reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MetricsFormat {
    /// An object.
    #[default]
    Json,
    /// The text format of Prometheus.
    Prometheus,
}

/// Params of `shutdown`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShutdownParams {
    /// How to end.
    #[serde(default)]
    pub mode: ShutdownMode,
}

/// How to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownMode {
    /// Finish what runs and what is queued, for at most `--drain-ms`.
    #[default]
    Drain,
    /// Cancel what runs and what is queued.
    Now,
}

fn yes() -> bool {
    true
}

fn is_true(value: &bool) -> bool {
    *value
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn is_one(value: &f32) -> bool {
    *value == 1.0
}

fn is_zero(value: &f32) -> bool {
    *value == 0.0
}

fn is_minus_one(value: &i32) -> bool {
    *value == -1
}

fn is_zero_count(value: &u32) -> bool {
    *value == 0
}
