//! What the worker says: results, notifications, and the line that carries them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use crate::error::ErrorObject;
use crate::limits;
use crate::metrics::Metrics;
use crate::request::{Id, MetricsFormat};
use crate::sampling::{Dry, Xtc};

/// One line of output.
#[derive(Clone, Debug, PartialEq)]
pub enum Outgoing {
    /// The answer to a request.
    Result {
        /// The request's id.
        id: Id,
        /// What came of it.
        result: MethodResult,
    },
    /// The answer to a request that failed.
    Error {
        /// The request's id; `None` (null on the wire) where it could not be read or must not be taken for another's.
        id: Option<Id>,
        /// Why.
        error: ErrorObject,
    },
    /// Something that nobody answers.
    Notification(Notification),
}

/// What came of a request, by method.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum MethodResult {
    /// Of `initialize`.
    Initialize(Box<Ready>),
    /// Of `generate`.
    Generate(Box<GenerateResult>),
    /// Of `cancel`.
    Cancel(CancelResult),
    /// Of `health`.
    Health(Box<HealthResult>),
    /// Of `tokenize`.
    Tokenize(TokenizeResult),
    /// Of `detokenize`.
    Detokenize(DetokenizeResult),
    /// Of `apply_template`.
    ApplyTemplate(ApplyTemplateResult),
    /// Of `save_state`.
    SaveState(StateResult),
    /// Of `load_state`.
    LoadState(StateResult),
    /// Of `metrics`.
    Metrics(Box<MetricsResult>),
    /// Of `shutdown`.
    Shutdown(ShutdownResult),
}

/// Something that nobody answers, by method.
#[derive(Clone, Debug, PartialEq)]
pub enum Notification {
    /// `progress`
    Progress(Progress),
    /// `ready`
    Ready(Box<Ready>),
    /// `started`
    Started(Started),
    /// `token`
    Token(Token),
    /// `prompt_logprobs`
    PromptLogprobs(PromptLogprobs),
    /// `fatal`
    Fatal(Fatal),
}

impl Notification {
    /// The method's name on the wire.
    pub fn method(&self) -> &'static str {
        match self {
            Notification::Progress(_) => "progress",
            Notification::Ready(_) => "ready",
            Notification::Started(_) => "started",
            Notification::Token(_) => "token",
            Notification::PromptLogprobs(_) => "prompt_logprobs",
            Notification::Fatal(_) => "fatal",
        }
    }
}

/// How far the load or a prefill is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// What is under way.
    pub phase: Phase,
    /// Load: bytes of weights in place. Prefill: tokens of the prompt that are evaluated, cached ones included.
    pub processed: u64,
    /// The same unit; `processed == total` says that the phase is done.
    pub total: u64,
    /// Milliseconds since the phase began.
    #[serde(serialize_with = "millis")]
    pub time_ms: f64,
    /// Prefill: the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Id>,
}

/// What `progress` tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The model is being loaded; at 0, 25, 50, 75 and 100 % at least.
    Load,
    /// A prompt is being evaluated; only with `return_progress`.
    Prefill,
}

/// The worker takes requests: params of `ready`, and the result of `initialize`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ready {
    /// The version of the wire.
    pub protocol_version: u32,
    /// Who is speaking.
    pub server_info: ServerInfo,
    /// What can be asked.
    pub capabilities: Capabilities,
    /// The model; left out while it is being loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelInfo>,
    /// What the device holds; left out while the model is being loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// What a `generate` gets for the fields that it leaves out.
    pub defaults: Defaults,
    /// Maxima.
    pub limits: Limits,
}

/// The result of `initialize`: what `ready` carries.
pub type InitializeResult = Ready;

/// Who is speaking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServerInfo {
    /// "worker-orcd".
    pub name: String,
    /// The program's version.
    pub version: String,
    /// What `--worker-id` gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<String>,
    /// The process.
    pub pid: u32,
}

/// What can be asked of this worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Capabilities {
    /// The methods.
    pub methods: Vec<String>,
    /// The fields that `generate` takes.
    pub generate_fields: Vec<String>,
    /// The notifications that may come.
    pub notifications: Vec<String>,
}

/// The model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelInfo {
    /// The name in the file, or else the file's name without its ending.
    pub name: String,
    /// The architecture ("llama").
    pub architecture: String,
    /// The tensor type that holds most of the weights' bytes ("Q4_1").
    pub quant_kind: String,
    /// Number of weights.
    pub parameters: u64,
    /// Size of the tensors in the file in bytes.
    pub size_bytes: u64,
    /// Entries in the vocabulary.
    pub vocab_size: u64,
    /// "gguf-bpe" (from the model file) or "hf-json" (from a tokenizer.json).
    pub tokenizer_kind: String,
    /// Tokens of context that this worker holds.
    pub context_length: u64,
    /// Tokens of context that the model was trained for.
    pub context_length_trained: u64,
    /// Whether there is a chat template, so that `messages` can be taken.
    pub has_chat_template: bool,
    /// The device ("cpu (avx2)").
    pub device: String,
}

/// What the device holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Memory {
    /// Weights, as they lie in memory.
    pub weights_bytes: u64,
    /// The KV pool.
    pub kv_bytes: u64,
    /// Activations, logits and other scratch.
    pub scratch_bytes: u64,
    /// The sum.
    pub total_bytes: u64,
}

/// What a `generate` gets for the fields that it leaves out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Defaults {
    /// Tokens; left out: what fits in the context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Milliseconds; left out: no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// See `generate`.
    pub min_tokens: u32,
    /// See `generate`.
    #[serde(serialize_with = "finite32")]
    pub temperature: f32,
    /// See `generate`.
    pub top_k: u32,
    /// See `generate`.
    #[serde(serialize_with = "finite32")]
    pub typical_p: f32,
    /// See `generate`.
    #[serde(serialize_with = "finite32")]
    pub top_p: f32,
    /// See `generate`.
    #[serde(serialize_with = "finite32")]
    pub min_p: f32,
    /// See `generate`.
    #[serde(serialize_with = "finite32")]
    pub repetition_penalty: f32,
    /// See `generate`.
    #[serde(serialize_with = "finite32")]
    pub presence_penalty: f32,
    /// See `generate`.
    #[serde(serialize_with = "finite32")]
    pub frequency_penalty: f32,
    /// See `generate`.
    pub penalty_last_n: i32,
}

/// Maxima that a client may want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// Longest input line in bytes.
    pub line_bytes: u64,
    /// Requests that may wait (`--queue`).
    pub queue: u64,
    /// Tokens of prompt and output together; left out while the model is being loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u64>,
    /// Largest `max_tokens`.
    pub max_tokens: u32,
    /// Largest `logprobs`.
    pub logprobs: u32,
    /// Stop strings of a request.
    pub stop: u64,
    /// Longest stop string in bytes.
    pub stop_bytes: u64,
    /// Token ids in `stop_token_ids`.
    pub stop_token_ids: u64,
    /// Entries of `logit_bias`.
    pub logit_bias: u64,
    /// Longest `content` of `tokenize` in bytes.
    pub tokenize_bytes: u64,
    /// Most token ids in one request.
    pub token_ids: u64,
}

/// A `generate` has left the queue; its prompt is about to be evaluated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Started {
    /// The request.
    pub request_id: Id,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// How many of them need not be evaluated.
    pub cached_tokens: u64,
    /// The seed that is used.
    pub seed: u64,
    /// Milliseconds spent waiting.
    #[serde(serialize_with = "millis")]
    pub queue_ms: f64,
}

/// A token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Token {
    /// The request.
    pub request_id: Id,
    /// Number of the token, from 0.
    pub index: u64,
    /// The token.
    pub token_id: u32,
    /// Text that is complete with this token, possibly ""; whole characters only.
    pub text: String,
    /// Natural logarithm of the token's probability in the model's unmodified distribution; only with `logprobs`. At least -9999, which also stands for minus infinity.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "logprob_option"
    )]
    pub logprob: Option<f32>,
    /// The likeliest tokens, likeliest first; only with `logprobs` above 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top_logprobs: Vec<TopLogprob>,
}

/// A token that might have been.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TopLogprob {
    /// The token.
    pub token_id: u32,
    /// The token's own bytes as text; bytes that are no whole character become U+FFFD.
    pub text: String,
    /// Natural logarithm of its probability; at least -9999, which also stands for minus infinity.
    #[serde(serialize_with = "logprob")]
    pub logprob: f32,
}

/// Log-probabilities of some tokens of a prompt; all pieces in order are the whole prompt, and they come before the first `token`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PromptLogprobs {
    /// The request.
    pub request_id: Id,
    /// Number of the first of these tokens in the prompt, from 0.
    pub from: u64,
    /// One for each token.
    pub entries: Vec<PromptLogprob>,
}

/// A token of a prompt with its log-probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PromptLogprob {
    /// The token.
    pub token_id: u32,
    /// The token's own bytes as text; bytes that are no whole character become U+FFFD.
    pub text: String,
    /// Natural logarithm of the token's probability after the tokens before it, in the model's unmodified distribution; left out for the first token. At least -9999, which also stands for minus infinity.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "logprob_option"
    )]
    pub logprob: Option<f32>,
    /// The likeliest tokens in its place, likeliest first; only with `prompt_logprobs` above 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top_logprobs: Vec<TopLogprob>,
}

/// The worker ends with a non-zero exit code; nothing follows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Fatal {
    /// Why.
    pub error: ErrorObject,
}

/// The result of `generate`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GenerateResult {
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// What ended it: the stop string, the stop token's id, "eos", "grammar", "max_tokens", "context", or null when it was cancelled or out of time.
    pub stop_reason: Option<StopReason>,
    /// Whether the text is whole in the sense of the `grammar` or `response_format`; left out where there was none. False where a limit, a stop string or a cancel came first: the text is then only the beginning of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grammar_complete: Option<bool>,
    /// Tokens.
    pub usage: Usage,
    /// Times.
    pub timings: Timings,
    /// The seed that was used.
    pub seed: u64,
    /// How tokens were drawn, all defaults filled in.
    pub sampling: Sampling,
    /// Text that had been held back when the generation ended; the texts of all `token` notifications and this, joined, are the whole text. "" with stream:false.
    pub tail: String,
    /// The whole text; only with stream:false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// One entry per token; only with stream:false and `logprobs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// One entry per token of the prompt; only with stream:false and `prompt_logprobs`. Fewer where the generation ended within its prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<PromptLogprob>>,
    /// The tokens of the prompt; only with `return_token_ids`. None when it ended before the prompt had become tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// The tokens generated, an end-of-generation or stop token included; only with `return_token_ids`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// A token of a result with its log-probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokenLogprob {
    /// The token.
    pub token_id: u32,
    /// What the `token` notification of a streamed request would carry as text.
    pub text: String,
    /// Natural logarithm of the token's probability in the model's unmodified distribution; at least -9999, which also stands for minus infinity.
    #[serde(serialize_with = "logprob")]
    pub logprob: f32,
    /// The likeliest tokens, likeliest first; only with `logprobs` above 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top_logprobs: Vec<TopLogprob>,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, a stop string came up, or the grammar leaves nothing more to say.
    Stop,
    /// `max_tokens` or the context is used up, or a stop came up before the grammar was satisfied.
    Length,
    /// It was cancelled, or the worker's drain time was over.
    Cancelled,
    /// `timeout_ms` was over.
    Timeout,
}

/// What ended a generation. A stop string that is spelled "eos", "grammar", "max_tokens" or "context" cannot be told from these words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// An end-of-generation token: "eos".
    Eos,
    /// The grammar leaves nothing more to say: "grammar".
    Grammar,
    /// `max_tokens` is used up: "max_tokens".
    MaxTokens,
    /// The context is full: "context".
    Context,
    /// This stop string came up.
    StopString(String),
    /// This stop token came up.
    StopToken(u32),
}

impl Serialize for StopReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            StopReason::Eos => serializer.serialize_str("eos"),
            StopReason::Grammar => serializer.serialize_str("grammar"),
            StopReason::MaxTokens => serializer.serialize_str("max_tokens"),
            StopReason::Context => serializer.serialize_str("context"),
            StopReason::StopString(text) => serializer.serialize_str(text),
            StopReason::StopToken(token) => serializer.serialize_u32(*token),
        }
    }
}

impl<'de> Deserialize<'de> for StopReason {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match StopReasonWire::deserialize(deserializer)? {
            StopReasonWire::Token(token) => StopReason::StopToken(token),
            StopReasonWire::Word(word) => match word.as_str() {
                "eos" => StopReason::Eos,
                "grammar" => StopReason::Grammar,
                "max_tokens" => StopReason::MaxTokens,
                "context" => StopReason::Context,
                _ => StopReason::StopString(word),
            },
        })
    }
}

/// What ended a generation.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "the fields are read through serde")]
enum StopReasonWire {
    /// A stop token's id.
    Token(u32),
    /// "eos", "grammar", "max_tokens", "context", or the stop string.
    Word(String),
}

impl JsonSchema for StopReason {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "StopReason".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        StopReasonWire::json_schema(generator)
    }
}

/// Tokens of a `generate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Tokens of the prompt; 0 when it was cancelled in the queue.
    pub prompt_tokens: u64,
    /// Tokens generated, an end-of-generation token included.
    pub completion_tokens: u64,
    /// The sum.
    pub total_tokens: u64,
    /// Of the prompt.
    pub prompt_tokens_details: PromptTokensDetails,
}

impl Usage {
    /// Fills in the sum.
    pub fn new(prompt_tokens: u64, cached_tokens: u64, completion_tokens: u64) -> Self {
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}

/// Tokens of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PromptTokensDetails {
    /// Tokens that needed no evaluation.
    pub cached_tokens: u64,
}

/// Times of a `generate`. What there was nothing to measure for is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timings {
    /// Milliseconds from the request to its start.
    #[serde(serialize_with = "millis")]
    pub queue_ms: f64,
    /// Milliseconds in which the prompt was evaluated.
    #[serde(serialize_with = "millis")]
    pub prefill_ms: f64,
    /// Milliseconds from the request to its first token.
    #[serde(serialize_with = "millis")]
    pub ttft_ms: f64,
    /// Milliseconds from the first token to the end.
    #[serde(serialize_with = "millis")]
    pub decode_ms: f64,
    /// Prompt tokens evaluated per second, cached ones left out.
    #[serde(serialize_with = "millis")]
    pub prompt_per_second: f64,
    /// Tokens generated per second after the first.
    #[serde(serialize_with = "millis")]
    pub predicted_per_second: f64,
    /// Tokens that were proposed by speculation.
    pub drafted: u64,
    /// How many of them were right.
    pub accepted: u64,
}

/// How tokens were drawn, all defaults filled in; see `generate` for the fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sampling {
    /// Most tokens to generate.
    pub max_tokens: u32,
    /// Tokens to generate at least.
    pub min_tokens: u32,
    /// 0 is greedy.
    #[serde(serialize_with = "finite32")]
    pub temperature: f32,
    /// Left out when it is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_n_sigma: Option<f32>,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    #[serde(serialize_with = "finite32")]
    pub typical_p: f32,
    /// 1 is off.
    #[serde(serialize_with = "finite32")]
    pub top_p: f32,
    /// 0 is off.
    #[serde(serialize_with = "finite32")]
    pub min_p: f32,
    /// Left out when it is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xtc: Option<Xtc>,
    /// 1 is off.
    #[serde(serialize_with = "finite32")]
    pub repetition_penalty: f32,
    /// 0 is off.
    #[serde(serialize_with = "finite32")]
    pub presence_penalty: f32,
    /// 0 is off.
    #[serde(serialize_with = "finite32")]
    pub frequency_penalty: f32,
    /// -1 is prompt and output.
    pub penalty_last_n: i32,
    /// Left out when it is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry: Option<Dry>,
    /// Tokens whose logits were changed by `logit_bias`, or that it forbade.
    pub logit_bias_tokens: u64,
    /// Whether end-of-generation tokens were passed over.
    pub ignore_eos: bool,
}

/// The result of `cancel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CancelResult {
    /// true promises that the request ends with finish_reason "cancelled"; false says that no such request is queued or running.
    pub found: bool,
}

/// The result of `health`. Before the load is done, what only the model can tell is left out; what a device does not have is left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HealthResult {
    /// How it stands.
    pub status: Status,
    /// The model's name; the file's name until it is loaded.
    pub model: String,
    /// The device ("cpu (avx2)").
    pub device: String,
    /// Whether all weights lie in the device's own memory. On a card it is looked at when the load is done and at most a minute before
    /// any answer after that; a worker whose model is not where it belongs ends with `fatal` and exit code 76.
    pub resident: bool,
    /// The tensor type that holds most of the weights' bytes ("Q4_1").
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quant_kind: Option<String>,
    /// Bytes that this worker uses of the card's memory; left out on the cpu.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_bytes_used: Option<u64>,
    /// What the device holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// "gguf-bpe" or "hf-json".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer_kind: Option<String>,
    /// Entries in the vocabulary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<u64>,
    /// Tokens of context that this worker holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u64>,
    /// Seconds since the process started.
    #[serde(serialize_with = "millis")]
    pub uptime_seconds: f64,
    /// The `generate` that runs; null when none does.
    pub active_request: Option<Id>,
    /// Requests that wait.
    pub queue_depth: u64,
    /// Steps that the device has done: pieces of a prefill and tokens.
    pub steps_total: u64,
    /// Milliseconds that the last step took; null before the first.
    #[serde(serialize_with = "millis_option")]
    pub last_step_ms: Option<f64>,
    /// The card's compute capability ("9.0"); left out on the cpu.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<String>,
    /// The newest CUDA version that the card's driver knows ("13.0"); left out on the cpu.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
}

/// How the worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The model is being loaded.
    Starting,
    /// Nothing to do.
    Ready,
    /// A `generate` runs.
    Busy,
    /// What was taken is finished, nothing new is taken.
    Draining,
    /// The device or the weights can no longer be trusted; new requests get CUDA_ERROR.
    Failed,
}

/// The result of `tokenize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenizeResult {
    /// The tokens.
    pub token_ids: Vec<u32>,
    /// The text of each token, bytes that are no whole character as U+FFFD; only with `with_pieces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pieces: Option<Vec<String>>,
}

/// The result of `detokenize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DetokenizeResult {
    /// The text; bytes that are no whole character as U+FFFD.
    pub content: String,
}

/// The result of `save_state` and `load_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StateResult {
    /// Tokens whose keys and values the file holds.
    pub tokens: u64,
    /// Size of the file in bytes.
    pub bytes: u64,
}

/// The result of `apply_template`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApplyTemplateResult {
    /// The conversation in the model's words.
    pub prompt: String,
}

/// The result of `metrics`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MetricsResult {
    /// The form that was asked for.
    pub format: MetricsFormat,
    /// Counters and histograms; only with format "json".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// The same as the text format of Prometheus; only with format "prometheus".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// The result of `shutdown`, sent when all is drained; the worker then exits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShutdownResult {}

/// Three decimals are enough for a time or a rate, and a number that is none is 0.
pub(crate) fn millis<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(rounded(*value))
}

fn millis_option<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => millis(value, serializer),
        None => serializer.serialize_none(),
    }
}

pub(crate) fn rounded(value: f64) -> f64 {
    let rounded = (value * 1000.0).round() / 1000.0;
    if rounded.is_finite() { rounded } else { 0.0 }
}

fn finite32<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f32(if value.is_finite() { *value } else { 0.0 })
}

fn logprob<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f32(clamped(*value))
}

fn logprob_option<S: Serializer>(value: &Option<f32>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => logprob(value, serializer),
        None => serializer.serialize_none(),
    }
}

/// Minus infinity and what is no number become the floor; a probability is never above 1.
fn clamped(value: f32) -> f32 {
    if value.is_nan() {
        limits::LOGPROB_FLOOR
    } else {
        value.clamp(limits::LOGPROB_FLOOR, 0.0)
    }
}
