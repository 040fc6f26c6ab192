//! Every maximum of the wire, by name. Over one of them is an error that says the limit and the value.

/// A limit as documentation and schema tell it.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    /// Its name in this module.
    pub name: &'static str,
    /// Its value.
    pub value: serde_json::Number,
    /// What it bounds, with its unit.
    pub meaning: &'static str,
}

/// A number as JSON has it; a limit is never anything that JSON lacks.
trait Json {
    fn number(self) -> serde_json::Number;
}

impl Json for usize {
    fn number(self) -> serde_json::Number {
        (self as u64).into()
    }
}

impl Json for u64 {
    fn number(self) -> serde_json::Number {
        self.into()
    }
}

impl Json for u32 {
    fn number(self) -> serde_json::Number {
        self.into()
    }
}

impl Json for f32 {
    fn number(self) -> serde_json::Number {
        serde_json::Number::from_f64(f64::from(self)).unwrap_or_else(|| 0.into())
    }
}

/// Defines each limit once, with its value, its words, and its place in [`ALL`].
macro_rules! limits {
    ($(#[doc = $meaning:literal] $name:ident: $kind:ty = $value:expr;)*) => {
        $(#[doc = $meaning] pub const $name: $kind = $value;)*

        /// Every limit, in the order of the documentation.
        pub static ALL: std::sync::LazyLock<Vec<Limit>> = std::sync::LazyLock::new(|| {
            vec![$(Limit { name: stringify!($name), value: Json::number($name), meaning: $meaning.trim_ascii() }),*]
        });
    };
}

limits! {
    /// The version of the wire. A change that an old client would notice raises it.
    PROTOCOL_VERSION: u32 = 1;

    /// Longest input line in bytes, without its LF and a CR before it. A longer one is drained and answered with -32600.
    LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

    /// Longest output line of a streamed request in bytes; the readers of some languages give up beyond it.
    STREAM_LINE_BYTES_MAX: usize = 64 * 1024;

    /// Unread output in bytes at which decoding pauses.
    OUTPUT_PAUSE_DECODE_BYTES: usize = 1024 * 1024;

    /// Unread output in bytes at which stdin is no longer read.
    OUTPUT_PAUSE_INPUT_BYTES: usize = 4 * 1024 * 1024;

    /// Arrays and objects inside each other, the request itself counted.
    DEPTH_MAX: usize = 64;

    /// JSON values in one line; the numbers of an array of token ids do not count.
    VALUES_MAX: usize = 256 * 1024;

    /// Longest string `id` in bytes.
    ID_BYTES_MAX: usize = 256;

    /// Faults that one error lists; the message says how many more there are.
    FAULTS_MAX: usize = 32;

    /// Bytes of a name or word of the request that an error quotes; what is longer is cut.
    QUOTE_BYTES_MAX: usize = 64;

    /// Token ids in `prompt_token_ids`, and in `token_ids` of `detokenize`.
    TOKEN_IDS_MAX: usize = 1024 * 1024;

    /// Messages of a chat.
    MESSAGES_MAX: usize = 4096;

    /// Parts of a message's content.
    CONTENT_PARTS_MAX: usize = 256;

    /// Tools of a chat.
    TOOLS_MAX: usize = 1024;

    /// Calls that one message makes.
    TOOL_CALLS_MAX: usize = 256;

    /// Longest `name` of a message or of a function that it calls, and longest id of a call, in bytes.
    TOOL_NAME_BYTES_MAX: usize = 256;

    /// Longest `chat_template` in bytes.
    CHAT_TEMPLATE_BYTES_MAX: usize = 64 * 1024;

    /// Largest `max_tokens`.
    MAX_TOKENS_MAX: u32 = 1024 * 1024;

    /// Highest `temperature`.
    TEMPERATURE_MAX: f32 = 2.0;

    /// Highest `repetition_penalty`.
    REPETITION_PENALTY_MAX: f32 = 2.0;

    /// Highest `presence_penalty` and `frequency_penalty`; the lowest is this below zero.
    PENALTY_MAX: f32 = 2.0;

    /// Largest `penalty_last_n`, and `last_n` of `dry`.
    LAST_N_MAX: u32 = 1024 * 1024;

    /// Highest `top_n_sigma`.
    TOP_N_SIGMA_MAX: f32 = 100.0;

    /// Highest `multiplier` of `dry`.
    DRY_MULTIPLIER_MAX: f32 = 100.0;

    /// Highest `base` of `dry`.
    DRY_BASE_MAX: f32 = 10.0;

    /// Largest `allowed_length` of `dry`.
    DRY_ALLOWED_LENGTH_MAX: u32 = 128;

    /// Texts in `sequence_breakers` of `dry`.
    SEQUENCE_BREAKERS_MAX: usize = 16;

    /// Longest text in `sequence_breakers` of `dry`, in bytes.
    SEQUENCE_BREAKER_BYTES_MAX: usize = 64;

    /// Entries of `logit_bias`.
    LOGIT_BIAS_MAX: usize = 1024;

    /// Longest key of `logit_bias` in bytes.
    LOGIT_BIAS_KEY_BYTES_MAX: usize = 256;

    /// Highest value in `logit_bias`; the lowest is this below zero.
    LOGIT_BIAS_VALUE_MAX: f32 = 100.0;

    /// Longest `name` of a JSON schema in bytes.
    SCHEMA_NAME_BYTES_MAX: usize = 256;

    /// Schemas inside a JSON schema, itself counted: those of properties, items, definitions and so on.
    SUBSCHEMAS_MAX: usize = 512;

    /// Schemas of a JSON schema inside each other.
    SCHEMA_DEPTH_MAX: usize = 24;

    /// Members of all `allOf` of a JSON schema together.
    ALL_OF_MAX: usize = 16;

    /// Entries of all `patternProperties` of a JSON schema together.
    PATTERN_PROPERTIES_MAX: usize = 16;

    /// `pattern`s of a JSON schema together.
    PATTERNS_MAX: usize = 64;

    /// Longest pattern of a JSON schema in bytes.
    PATTERN_BYTES_MAX: usize = 1024;

    /// Values of all `enum` of a JSON schema together.
    ENUM_VALUES_MAX: usize = 2048;

    /// Bytes of names and values of a JSON schema, as JSON text.
    SCHEMA_BYTES_MAX: usize = 128 * 1024;

    /// Highest number in a JSON schema that counts: characters, items, properties.
    SCHEMA_COUNT_MAX: u64 = 10_000;

    /// Longest `value` of a regular expression or a Lark grammar, in bytes.
    GRAMMAR_BYTES_MAX: usize = 64 * 1024;

    /// Texts to choose from.
    CHOICES_MAX: usize = 1024;

    /// Longest text to choose, in bytes.
    CHOICE_BYTES_MAX: usize = 1024;

    /// Alternatives for which `logprobs` and `prompt_logprobs` can ask.
    LOGPROBS_MAX: u32 = 20;

    /// Tokens that `speculation` can ask to be proposed in a step.
    SPECULATION_MAX: u32 = 32;

    /// Stop strings of a request.
    STOP_MAX: usize = 16;

    /// Longest stop string in bytes.
    STOP_BYTES_MAX: usize = 256;

    /// Token ids in `stop_token_ids`.
    STOP_TOKEN_IDS_MAX: usize = 64;

    /// Most tokens, prompt and `max_tokens` together, of a request that is streamed and asks for `return_token_ids`: the response is one line.
    RETURN_TOKEN_IDS_STREAM_MAX: usize = 7168;

    /// Longest `timeout_ms`: a week.
    TIMEOUT_MS_MAX: u64 = 7 * 24 * 60 * 60 * 1000;

    /// Longest `content` of `tokenize` in bytes.
    TOKENIZE_BYTES_MAX: usize = 1024 * 1024;

    /// Longest `path` of `save_state` and `load_state` in bytes.
    PATH_BYTES_MAX: usize = 4096;

    /// Longest name or version in `client_info`, in bytes.
    CLIENT_INFO_BYTES_MAX: usize = 256;

    /// The smallest log-probability on the wire. JSON has no minus infinity: a probability of zero is sent as this.
    LOGPROB_FLOOR: f32 = -9999.0;
}
