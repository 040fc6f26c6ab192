//! What an error says: a number, a word, a sentence, and whether it is worth trying again.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::Usage;
use crate::limits;
use crate::request::Id;

/// Why a request failed, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// The line is not JSON in UTF-8.
    ParseError,
    /// The line is JSON, but no request: not an object, a batch, a wrong or missing id, too long, a key twice.
    InvalidRequest,
    /// There is no such method; details.methods lists those there are.
    MethodNotFound,
    /// The params are wrong (a field unknown, missing, given twice, out of range, too deep); errors lists every fault.
    InvalidParams,
    /// A bug of the worker; or a form that cannot be followed any further, or one that leaves no token together with `logit_bias`.
    Internal,
    /// The model cannot be loaded.
    ModelLoadFailed,
    /// The model and its cache do not fit in the device's memory; details has both numbers.
    InsufficientVram,
    /// The prompt does not fit in the context; details has both numbers. It is never cut.
    ContextOverflow,
    /// As many requests wait as may; try again when one has ended.
    QueueFull,
    /// The KV pool has no room for this request; the worker goes on.
    VramOom,
    /// The device failed. When it is lost, `fatal` follows and the worker exits with 76.
    CudaError,
    /// The grammar or the JSON schema cannot be used; details names the place.
    InvalidGrammar,
    /// The model has no chat template, or the template refuses these messages.
    TemplateError,
    /// The worker drains and takes nothing new; try another worker.
    ShuttingDown,
    /// A request with this id is queued or running; sent with id null, the id is in details.id.
    DuplicateId,
}

impl ErrorCode {
    /// Every code, in the order of the documentation.
    pub const ALL: [ErrorCode; 15] = [
        ErrorCode::ParseError,
        ErrorCode::InvalidRequest,
        ErrorCode::MethodNotFound,
        ErrorCode::InvalidParams,
        ErrorCode::Internal,
        ErrorCode::ModelLoadFailed,
        ErrorCode::InsufficientVram,
        ErrorCode::ContextOverflow,
        ErrorCode::QueueFull,
        ErrorCode::VramOom,
        ErrorCode::CudaError,
        ErrorCode::InvalidGrammar,
        ErrorCode::TemplateError,
        ErrorCode::ShuttingDown,
        ErrorCode::DuplicateId,
    ];

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            ErrorCode::ParseError => "PARSE_ERROR",
            ErrorCode::InvalidRequest => "INVALID_REQUEST",
            ErrorCode::MethodNotFound => "METHOD_NOT_FOUND",
            ErrorCode::InvalidParams => "INVALID_PARAMS",
            ErrorCode::Internal => "INTERNAL",
            ErrorCode::ModelLoadFailed => "MODEL_LOAD_FAILED",
            ErrorCode::InsufficientVram => "INSUFFICIENT_VRAM",
            ErrorCode::ContextOverflow => "CONTEXT_OVERFLOW",
            ErrorCode::QueueFull => "QUEUE_FULL",
            ErrorCode::VramOom => "VRAM_OOM",
            ErrorCode::CudaError => "CUDA_ERROR",
            ErrorCode::InvalidGrammar => "INVALID_GRAMMAR",
            ErrorCode::TemplateError => "TEMPLATE_ERROR",
            ErrorCode::ShuttingDown => "SHUTTING_DOWN",
            ErrorCode::DuplicateId => "DUPLICATE_ID",
        }
    }

    /// The JSON-RPC error code.
    pub fn number(self) -> i32 {
        match self {
            ErrorCode::ParseError => -32700,
            ErrorCode::InvalidRequest => -32600,
            ErrorCode::MethodNotFound => -32601,
            ErrorCode::InvalidParams => -32602,
            ErrorCode::Internal => -32603,
            ErrorCode::ModelLoadFailed => 1001,
            ErrorCode::InsufficientVram => 1002,
            ErrorCode::ContextOverflow => 1003,
            ErrorCode::QueueFull => 1004,
            ErrorCode::VramOom => 1005,
            ErrorCode::CudaError => 1006,
            ErrorCode::InvalidGrammar => 1007,
            ErrorCode::TemplateError => 1008,
            ErrorCode::ShuttingDown => 1009,
            ErrorCode::DuplicateId => 1010,
        }
    }

    /// Whether the same request may succeed later or at another worker.
    pub fn retriable(self) -> bool {
        match self {
            ErrorCode::QueueFull
            | ErrorCode::VramOom
            | ErrorCode::CudaError
            | ErrorCode::ShuttingDown => true,
            ErrorCode::ParseError
            | ErrorCode::InvalidRequest
            | ErrorCode::MethodNotFound
            | ErrorCode::InvalidParams
            | ErrorCode::Internal
            | ErrorCode::ModelLoadFailed
            | ErrorCode::InsufficientVram
            | ErrorCode::ContextOverflow
            | ErrorCode::InvalidGrammar
            | ErrorCode::TemplateError
            | ErrorCode::DuplicateId => false,
        }
    }
}

/// The `error` of a response and of `fatal`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorObject {
    /// The number that belongs to `data.code`.
    pub code: i32,
    /// What was wrong, the value and the limit, and what to do. For people; the words may change.
    pub message: String,
    /// The same for programs.
    pub data: Box<ErrorData>,
}

/// What a program reads of an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorData {
    /// Why, by name.
    pub code: ErrorCode,
    /// Whether the same request may succeed later or at another worker.
    pub retriable: bool,
    /// The first field at fault, where a field is at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
    /// All faults of the request, at most 32; the message says how many more there are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Fault>,
    /// Numbers and names, by kind of error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<ErrorDetails>,
    /// What had been used when a `generate` failed after its `started`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// One fault of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fault {
    /// Where: a path from `params` (`messages[0].role`), or the name of a field of the request itself ("id").
    pub field: String,
    /// What is demanded: the schema's word and its value ("maximum 2", "type integer", "required", "unknown").
    pub constraint: String,
    /// The same as a sentence, with the value that was found where it is short.
    pub message: String,
}

/// Numbers and names of an error; each field stands only where it belongs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ErrorDetails {
    /// DUPLICATE_ID: the id that is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// METHOD_NOT_FOUND: what was asked for, cut to 64 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// METHOD_NOT_FOUND: the methods there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
    /// INVALID_REQUEST: length of the line in bytes, when it was too long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line_bytes: Option<u64>,
    /// INVALID_REQUEST: the longest line allowed in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line_bytes_max: Option<u64>,
    /// CONTEXT_OVERFLOW: tokens of the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    /// CONTEXT_OVERFLOW: tokens asked for, where they are part of what does not fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// CONTEXT_OVERFLOW: tokens that fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u64>,
    /// QUEUE_FULL: requests that may wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_max: Option<u64>,
    /// INSUFFICIENT_VRAM, VRAM_OOM: bytes wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required_bytes: Option<u64>,
    /// INSUFFICIENT_VRAM, VRAM_OOM: bytes there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// INSUFFICIENT_VRAM, CUDA_ERROR: the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// INSUFFICIENT_VRAM, MODEL_LOAD_FAILED: the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// INVALID_GRAMMAR: the place in a JSON schema, as a JSON pointer; "" is the schema itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// INVALID_GRAMMAR: the line of a regular expression or a Lark grammar, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// INVALID_GRAMMAR: the column in this line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u64>,
    /// INVALID_GRAMMAR: which of the texts to choose from, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
}

impl ErrorObject {
    /// An error with its sentence and nothing more.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        ErrorObject {
            code: code.number(),
            message: message.into(),
            data: Box::new(ErrorData {
                code,
                retriable: code.retriable(),
                param: None,
                errors: Vec::new(),
                details: None,
                usage: None,
            }),
        }
    }

    /// Adds numbers and names.
    pub fn with_details(mut self, details: ErrorDetails) -> Self {
        self.data.details = Some(details);
        self
    }

    /// Names the field at fault.
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.data.param = Some(param.into());
        self
    }

    /// Adds what had been used when a `generate` failed after its `started`.
    pub fn with_usage(mut self, usage: Usage) -> Self {
        self.data.usage = Some(usage);
        self
    }

    /// An error that lists faults; the first [`limits::FAULTS_MAX`] of them, with the number of all in the message.
    pub fn with_faults(code: ErrorCode, mut faults: Vec<Fault>, count: usize) -> Self {
        faults.truncate(limits::FAULTS_MAX);
        let first = faults
            .first()
            .map_or("the request is wrong", |fault| fault.message.as_str());
        let message = match count.saturating_sub(1) {
            0 => first.to_owned(),
            more if count > faults.len() => {
                format!(
                    "{first} (and {more} more faults; the first {} are listed in errors)",
                    faults.len()
                )
            }
            1 => format!("{first} (and 1 more fault, see errors)"),
            more => format!("{first} (and {more} more faults, see errors)"),
        };
        let mut error = ErrorObject::new(code, message);
        error.data.param = faults
            .first()
            .map(|fault| fault.field.clone())
            .filter(|field| !field.is_empty());
        error.data.errors = faults;
        error
    }

    /// INVALID_PARAMS for one field.
    pub fn invalid_param(
        field: impl Into<String>,
        constraint: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        let fault = Fault {
            field: field.into(),
            constraint: constraint.into(),
            message: message.into(),
        };
        ErrorObject::with_faults(ErrorCode::InvalidParams, vec![fault], 1)
    }

    /// INVALID_REQUEST for a line longer than [`limits::LINE_BYTES_MAX`].
    pub fn line_too_long(bytes: u64) -> Self {
        let limit = limits::LINE_BYTES_MAX as u64;
        ErrorObject::new(
            ErrorCode::InvalidRequest,
            format!("the line is {bytes} bytes long, at most {limit} are allowed; it was skipped"),
        )
        .with_details(ErrorDetails {
            line_bytes: Some(bytes),
            line_bytes_max: Some(limit),
            ..Default::default()
        })
    }

    /// CONTEXT_OVERFLOW. `max_tokens` where the request named a number that is part of the overflow.
    pub fn context_overflow(
        prompt_tokens: u64,
        max_tokens: Option<u64>,
        context_length: u64,
    ) -> Self {
        let message = match max_tokens {
            Some(max) => format!(
                "the prompt has {prompt_tokens} tokens and max_tokens is {max}, the context holds {context_length}; shorten the prompt or lower max_tokens"
            ),
            None => format!(
                "the prompt has {prompt_tokens} tokens, the context holds {context_length} and one of them has to be new; shorten the prompt"
            ),
        };
        ErrorObject::new(ErrorCode::ContextOverflow, message).with_details(ErrorDetails {
            prompt_tokens: Some(prompt_tokens),
            max_tokens,
            context_length: Some(context_length),
            ..Default::default()
        })
    }

    /// QUEUE_FULL.
    pub fn queue_full(queue_max: u64) -> Self {
        ErrorObject::new(
            ErrorCode::QueueFull,
            format!(
                "{queue_max} requests are waiting, more are not taken; try again when one has ended"
            ),
        )
        .with_details(ErrorDetails {
            queue_max: Some(queue_max),
            ..Default::default()
        })
    }

    /// DUPLICATE_ID; to be sent with id null.
    pub fn duplicate_id(id: Id) -> Self {
        ErrorObject::new(
            ErrorCode::DuplicateId,
            format!("a request with id {id} is queued or running; wait for its response or use another id"),
        )
        .with_details(ErrorDetails { id: Some(id), ..Default::default() })
    }

    /// SHUTTING_DOWN.
    pub fn shutting_down() -> Self {
        ErrorObject::new(
            ErrorCode::ShuttingDown,
            "the worker is shutting down and takes no new requests; use another worker",
        )
    }
}

impl std::fmt::Display for ErrorObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} ({}): {}",
            self.data.code.name(),
            self.code,
            self.message
        )
    }
}

impl std::error::Error for ErrorObject {}
