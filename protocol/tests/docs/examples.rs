//! One example at least of every message, made of the types.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use worker_orcd_protocol::codec::decode_line;
use worker_orcd_protocol::*;

/// What an example is part of.
pub enum Kind {
    /// The params of a request.
    Params(Method, Option<Id>),
    /// The result of a method.
    Result(Method, Id),
    /// The params of a notification.
    Notification(&'static str),
    /// An error.
    Error(Option<Id>),
}

/// A value of a type of the wire.
pub struct Example {
    /// The type.
    pub type_name: &'static str,
    /// What it shows.
    pub name: &'static str,
    /// Where it stands.
    pub kind: Kind,
    /// The value.
    pub value: Value,
}

impl Example {
    /// The whole message.
    pub fn message(&self) -> Value {
        let value = &self.value;
        match &self.kind {
            Kind::Params(method, None) => {
                json!({"jsonrpc": "2.0", "method": method.name(), "params": value})
            }
            Kind::Params(method, Some(id)) if value == &json!({}) => {
                json!({"jsonrpc": "2.0", "id": id, "method": method.name()})
            }
            Kind::Params(method, Some(id)) => {
                json!({"jsonrpc": "2.0", "id": id, "method": method.name(), "params": value})
            }
            Kind::Result(_, id) => json!({"jsonrpc": "2.0", "id": id, "result": value}),
            Kind::Notification(name) => json!({"jsonrpc": "2.0", "method": name, "params": value}),
            Kind::Error(id) => json!({"jsonrpc": "2.0", "id": id, "error": value}),
        }
    }
}

/// Makes an example of a value and sees that it survives the way to text and back.
fn example<T>(type_name: &'static str, name: &'static str, kind: Kind, value: T) -> Example
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let text = serde_json::to_string(&value).unwrap();
    let again: T = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{type_name}/{name}: {error} in {text}"));
    assert_eq!(again, value, "{type_name}/{name}");
    Example {
        type_name,
        name,
        kind,
        value: serde_json::from_str(&text).unwrap(),
    }
}

fn text_id(text: &str) -> Id {
    Id::String(text.to_owned())
}

/// Every example, in the order of the page.
pub fn all() -> Vec<Example> {
    let mut examples = initialize();
    examples.extend(generate_params());
    examples.extend(generate_results());
    examples.extend(cancel());
    examples.extend(health());
    examples.extend(text());
    examples.extend(states());
    examples.extend(metrics());
    examples.extend(shutdown());
    examples.extend(notifications());
    examples.push(prompt_logprobs());
    examples.extend(errors());
    examples
}

fn memory() -> Memory {
    Memory {
        weights_bytes: 98_297_856,
        kv_bytes: 188_743_680,
        scratch_bytes: 6_291_456,
        total_bytes: 293_332_992,
    }
}

fn defaults() -> Defaults {
    Defaults {
        max_tokens: None,
        timeout_ms: None,
        min_tokens: 0,
        temperature: 1.0,
        top_k: 0,
        typical_p: 1.0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        penalty_last_n: -1,
    }
}

fn ready() -> Ready {
    Ready {
        protocol_version: limits::PROTOCOL_VERSION,
        server_info: ServerInfo {
            name: "worker-orcd".into(),
            version: "0.1.0".into(),
            worker_id: Some("gpu-0".into()),
            pid: 4711,
        },
        capabilities: Capabilities {
            methods: Method::ALL
                .iter()
                .map(|method| method.name().to_owned())
                .collect(),
            generate_fields: schema::generate_fields(),
            notifications: [
                "progress",
                "ready",
                "started",
                "prompt_logprobs",
                "token",
                "fatal",
            ]
            .map(str::to_owned)
            .to_vec(),
        },
        model: Some(ModelInfo {
            name: "Smollm2 135M 8k Lc100K Mix1 Ep2".into(),
            architecture: "llama".into(),
            quant_kind: "Q4_1".into(),
            parameters: 134_515_008,
            size_bytes: 96_520_704,
            vocab_size: 49_152,
            tokenizer_kind: "gguf-bpe".into(),
            context_length: 8192,
            context_length_trained: 8192,
            has_chat_template: true,
            device: "cpu (avx512)".into(),
        }),
        memory: Some(memory()),
        defaults: defaults(),
        limits: Limits {
            line_bytes: limits::LINE_BYTES_MAX as u64,
            queue: 64,
            context_length: Some(8192),
            max_tokens: limits::MAX_TOKENS_MAX,
            logprobs: limits::LOGPROBS_MAX,
            stop: limits::STOP_MAX as u64,
            stop_bytes: limits::STOP_BYTES_MAX as u64,
            stop_token_ids: limits::STOP_TOKEN_IDS_MAX as u64,
            logit_bias: limits::LOGIT_BIAS_MAX as u64,
            tokenize_bytes: limits::TOKENIZE_BYTES_MAX as u64,
            token_ids: limits::TOKEN_IDS_MAX as u64,
        },
    }
}

fn initialize() -> Vec<Example> {
    let id = Id::Number(0);
    let client_info = Some(ClientInfo {
        name: "my-orchestrator".into(),
        version: Some("1.4.2".into()),
    });
    let params = InitializeParams {
        protocol_version: Some(1),
        client_info,
    };
    vec![
        example(
            "InitializeParams",
            "client",
            Kind::Params(Method::Initialize, Some(id.clone())),
            params,
        ),
        example(
            "Ready",
            "smollm2",
            Kind::Result(Method::Initialize, id),
            ready(),
        ),
    ]
}

fn user(text: &str) -> Message {
    Message::new(Role::User, text)
}

/// A tool as templates want it.
fn weather() -> Map<String, Value> {
    let place = json!({"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]});
    let function =
        json!({"name": "weather", "description": "Tells the weather.", "parameters": place});
    [
        ("type".to_owned(), json!("function")),
        ("function".to_owned(), function),
    ]
    .into_iter()
    .collect()
}

/// A conversation in which a tool was called and has answered.
fn tool_round() -> Vec<Message> {
    let place = [("place".to_owned(), json!("Bern"))].into_iter().collect();
    let call = ToolCall {
        id: Some("call00001".into()),
        kind: ToolKind::Function,
        function: FunctionCall {
            name: "weather".into(),
            arguments: Arguments::Object(place),
        },
    };
    let asks = Message {
        content: Content::Nothing,
        reasoning_content: Some("The weather is a tool's.".into()),
        tool_calls: Some(vec![call]),
        ..Message::new(Role::Assistant, "")
    };
    let answers = Message {
        name: Some("weather".into()),
        tool_call_id: Some("call00001".into()),
        ..Message::new(Role::Tool, "rain")
    };
    vec![user("How is the weather in Bern?"), asks, answers]
}

fn chat(messages: Vec<Message>) -> ApplyTemplateParams {
    ApplyTemplateParams {
        messages,
        add_generation_prompt: true,
        chat_template_kwargs: Map::new(),
        tools: None,
        tool_choice: None,
        chat_template: None,
    }
}

/// A request that names every field.
fn everything() -> GenerateParams {
    let part = ContentPart {
        kind: ContentPartKind::Text,
        text: "Name three rivers.".into(),
    };
    let kwargs: Map<String, Value> = [("enable_thinking".to_owned(), json!(false))]
        .into_iter()
        .collect();
    GenerateParams {
        messages: Some(vec![Message {
            content: Content::Parts(vec![part]),
            ..user("")
        }]),
        add_generation_prompt: false,
        chat_template_kwargs: kwargs,
        stream: false,
        max_tokens: Some(64),
        timeout_ms: Some(30_000),
        return_progress: true,
        cache_prompt: false,
        ..sampling_fields()
    }
}

/// Everything that a conversation with tools carries.
fn tool_chat() -> Example {
    let template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}";
    let params = ApplyTemplateParams {
        tools: Some(vec![weather()]),
        tool_choice: Some(ToolChoice::Word(ToolChoiceWord::Auto)),
        chat_template: Some(template.into()),
        ..chat(tool_round())
    };
    let kind = Kind::Params(Method::ApplyTemplate, Some(Id::Number(10)));
    example("ApplyTemplateParams", "tools", kind, params)
}

fn generate_params() -> Vec<Example> {
    let params = |name, id, params: GenerateParams| {
        example(
            "GenerateParams",
            name,
            Kind::Params(Method::Generate, Some(id)),
            params,
        )
    };
    let system = Message::new(Role::System, "You answer in one sentence.");
    vec![
        params(
            "prompt",
            Id::Number(1),
            GenerateParams {
                prompt: Some("The capital of France is".into()),
                max_tokens: Some(16),
                temperature: 0.0,
                ..Default::default()
            },
        ),
        params(
            "chat",
            text_id("chat-7"),
            GenerateParams {
                messages: Some(vec![system, user("What is the capital of France?")]),
                max_tokens: Some(200),
                ..Default::default()
            },
        ),
        params("everything", text_id("job/2"), everything()),
        params("json_schema", Id::Number(4), json_schema()),
        params("choice", Id::Number(5), choice()),
        params(
            "token_ids",
            Id::Number(3),
            GenerateParams {
                prompt_token_ids: Some(vec![504, 3575, 282, 4649, 314]),
                ..Default::default()
            },
        ),
    ]
}

/// A request whose answer is JSON under a schema.
fn json_schema() -> GenerateParams {
    let schema = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "country": {"type": "string", "maxLength": 20},
            "inhabitants": {"type": "integer", "minimum": 0, "maximum": 100_000_000},
        },
        "required": ["city", "country", "inhabitants"],
        "additionalProperties": false,
    });
    GenerateParams {
        messages: Some(vec![user("Describe Paris as JSON.")]),
        max_tokens: Some(200),
        temperature: 0.0,
        response_format: Some(ResponseFormat {
            kind: ResponseFormatKind::JsonSchema,
            json_schema: Some(SchemaFormat {
                name: None,
                strict: None,
                schema: schema.as_object().cloned().unwrap_or_default(),
            }),
        }),
        ..Default::default()
    }
}

/// A request whose answer is one of three words.
fn choice() -> GenerateParams {
    let words = ["positive", "negative", "neutral"].map(str::to_owned);
    GenerateParams {
        messages: Some(vec![user("How does this sound? \"I love it.\"")]),
        temperature: 0.0,
        grammar: Some(Grammar {
            kind: GrammarKind::Choice,
            value: GrammarValue::Choices(words.into()),
        }),
        ..Default::default()
    }
}

/// Every field that says how tokens are drawn, and what is told of them.
fn sampling_fields() -> GenerateParams {
    GenerateParams {
        min_tokens: 8,
        temperature: 0.7,
        top_n_sigma: Some(3.0),
        top_k: 40,
        typical_p: 0.98,
        top_p: 0.95,
        min_p: 0.05,
        xtc: Some(Xtc {
            probability: 0.5,
            threshold: 0.1,
        }),
        repetition_penalty: 1.1,
        presence_penalty: 0.2,
        frequency_penalty: -0.1,
        penalty_last_n: 256,
        dry: Some(dry()),
        logit_bias: [
            ("504".to_owned(), LogitBias::Add(-2.5)),
            (" Paris".to_owned(), LogitBias::Forbid),
        ]
        .into(),
        seed: Some(42),
        stop: vec!["\n\n".into(), "User:".into()],
        stop_token_ids: vec![28],
        ignore_eos: true,
        response_format: Some(ResponseFormat {
            kind: ResponseFormatKind::Text,
            json_schema: None,
        }),
        grammar: Some(Grammar {
            kind: GrammarKind::Regex,
            value: GrammarValue::Text("[A-Z][a-z]+(, [A-Z][a-z]+){2}".into()),
        }),
        speculation: Speculation::Word(SpeculationWord::Auto),
        logprobs: Some(1),
        prompt_logprobs: Some(0),
        return_token_ids: true,
        ..Default::default()
    }
}

fn dry() -> Dry {
    Dry {
        multiplier: 0.8,
        base: 1.75,
        allowed_length: 2,
        last_n: -1,
        sequence_breakers: vec!["\n".into(), ":".into()],
    }
}

fn timings() -> Timings {
    Timings {
        queue_ms: 0.041,
        prefill_ms: 21.52,
        ttft_ms: 24.873,
        decode_ms: 44.104,
        prompt_per_second: 232.342,
        predicted_per_second: 158.716,
        drafted: 0,
        accepted: 0,
    }
}

fn greedy(max_tokens: u32) -> Sampling {
    Sampling {
        max_tokens,
        min_tokens: 0,
        temperature: 0.0,
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
        logit_bias_tokens: 0,
        ignore_eos: false,
    }
}

/// A form that is complete, and one that a stop string cuts off.
fn formed(streamed: &GenerateResult) -> (GenerateResult, GenerateResult) {
    let formed = GenerateResult {
        stop_reason: Some(StopReason::Grammar),
        grammar_complete: Some(true),
        usage: Usage::new(34, 0, 2),
        sampling: greedy(8158),
        ..streamed.clone()
    };
    let cut = GenerateResult {
        finish_reason: FinishReason::Length,
        stop_reason: Some(StopReason::StopString(",".into())),
        grammar_complete: Some(false),
        usage: Usage::new(32, 0, 7),
        ..streamed.clone()
    };
    (formed, cut)
}

fn stop_token(streamed: GenerateResult) -> GenerateResult {
    GenerateResult {
        stop_reason: Some(StopReason::StopToken(28)),
        usage: Usage::new(3, 0, 2),
        sampling: Sampling {
            temperature: 0.7,
            dry: Some(dry()),
            xtc: Some(Xtc {
                probability: 0.5,
                threshold: 0.1,
            }),
            logit_bias_tokens: 2,
            ..greedy(16)
        },
        text: Some(" Paris".into()),
        prompt_logprobs: Some(prompt_entries()),
        prompt_token_ids: Some(vec![504, 3575, 282]),
        token_ids: Some(vec![7042, 28]),
        ..streamed
    }
}

fn paris() -> TokenLogprob {
    let top = TopLogprob {
        token_id: 7042,
        text: " Paris".into(),
        logprob: -0.3125,
    };
    TokenLogprob {
        token_id: 7042,
        text: " Paris".into(),
        logprob: -0.3125,
        top_logprobs: vec![top],
    }
}

fn generate_results() -> Vec<Example> {
    let result = |name, id, result: GenerateResult| {
        example(
            "GenerateResult",
            name,
            Kind::Result(Method::Generate, id),
            result,
        )
    };
    let streamed = GenerateResult {
        finish_reason: FinishReason::Stop,
        stop_reason: Some(StopReason::Eos),
        grammar_complete: None,
        usage: Usage::new(5, 0, 8),
        timings: timings(),
        seed: 1_905_312_220_174_003,
        sampling: greedy(16),
        tail: String::new(),
        text: None,
        logprobs: None,
        prompt_logprobs: None,
        prompt_token_ids: None,
        token_ids: None,
    };
    let entry = paris();
    let whole = GenerateResult {
        finish_reason: FinishReason::Length,
        stop_reason: Some(StopReason::MaxTokens),
        usage: Usage::new(5, 4, 1),
        sampling: greedy(1),
        text: Some(" Paris".into()),
        logprobs: Some(vec![entry]),
        ..streamed.clone()
    };
    let stop_token = stop_token(streamed.clone());
    let cancelled = GenerateResult {
        finish_reason: FinishReason::Cancelled,
        stop_reason: None,
        usage: Usage::default(),
        timings: Timings {
            queue_ms: 812.5,
            ..Default::default()
        },
        ..streamed.clone()
    };
    let (formed, cut) = formed(&streamed);
    vec![
        result("grammar", Id::Number(5), formed),
        result("grammar_cut", Id::Number(4), cut),
        result("streamed", Id::Number(1), streamed),
        result("whole", Id::Number(2), whole),
        result("stop_token", Id::Number(3), stop_token),
        result("cancelled", text_id("chat-7"), cancelled),
    ]
}

/// The log-probabilities of a prompt of two tokens.
fn prompt_entries() -> Vec<PromptLogprob> {
    let likelier = TopLogprob {
        token_id: 808,
        text: " first".into(),
        logprob: -3.25,
    };
    let first = PromptLogprob {
        token_id: 504,
        text: "The".into(),
        logprob: None,
        top_logprobs: Vec::new(),
    };
    let second = PromptLogprob {
        token_id: 3575,
        text: " capital".into(),
        logprob: Some(-6.5),
        top_logprobs: vec![likelier],
    };
    vec![first, second]
}

fn cancel() -> Vec<Example> {
    let request_id = text_id("chat-7");
    let params = CancelParams {
        request_id: request_id.clone(),
    };
    let language_server = CancelRequestParams {
        id: request_id.clone(),
    };
    let context = CancelledParams { request_id };
    let result = |name, found| {
        example(
            "CancelResult",
            name,
            Kind::Result(Method::Cancel, text_id("c1")),
            CancelResult { found },
        )
    };
    vec![
        example(
            "CancelParams",
            "request",
            Kind::Params(Method::Cancel, Some(text_id("c1"))),
            params.clone(),
        ),
        example(
            "CancelParams",
            "notification",
            Kind::Params(Method::Cancel, None),
            params,
        ),
        example(
            "CancelRequestParams",
            "notification",
            Kind::Params(Method::CancelRequest, None),
            language_server,
        ),
        example(
            "CancelledParams",
            "notification",
            Kind::Params(Method::Cancelled, None),
            context,
        ),
        result("found", true),
        result("unknown", false),
    ]
}

fn health() -> Vec<Example> {
    let id = Id::Number(9);
    let busy = HealthResult {
        status: Status::Busy,
        model: "Smollm2 135M 8k Lc100K Mix1 Ep2".into(),
        device: "cpu (avx512)".into(),
        resident: true,
        quant_kind: Some("Q4_1".into()),
        vram_bytes_used: None,
        memory: Some(memory()),
        tokenizer_kind: Some("gguf-bpe".into()),
        vocab_size: Some(49_152),
        context_length: Some(8192),
        uptime_seconds: 184.25,
        active_request: Some(Id::Number(1)),
        queue_depth: 2,
        steps_total: 5120,
        last_step_ms: Some(6.31),
        compute_capability: None,
        driver_version: None,
    };
    let starting = HealthResult {
        status: Status::Starting,
        quant_kind: None,
        memory: None,
        tokenizer_kind: None,
        vocab_size: None,
        context_length: None,
        uptime_seconds: 0.12,
        active_request: None,
        queue_depth: 0,
        steps_total: 0,
        last_step_ms: None,
        resident: false,
        ..busy.clone()
    };
    let card = HealthResult {
        status: Status::Ready,
        device: "cuda:0 (NVIDIA H200)".into(),
        vram_bytes_used: Some(731_906_048),
        active_request: None,
        queue_depth: 0,
        last_step_ms: Some(0.31),
        compute_capability: Some("9.0".into()),
        driver_version: Some("570.86.15".into()),
        ..busy.clone()
    };
    let result = |name, value| {
        example(
            "HealthResult",
            name,
            Kind::Result(Method::Health, Id::Number(9)),
            value,
        )
    };
    vec![
        example(
            "NoParams",
            "none",
            Kind::Params(Method::Health, Some(id)),
            NoParams {},
        ),
        result("busy", busy),
        result("starting", starting),
        result("card", card),
    ]
}

fn states() -> Vec<Example> {
    let id = || Id::Number(9);
    vec![
        example(
            "SaveStateParams",
            "request",
            Kind::Params(Method::SaveState, Some(id())),
            SaveStateParams {
                path: "/var/tmp/chat-7.kv".into(),
                request_id: Some(text_id("chat-7")),
                token_ids: None,
            },
        ),
        example(
            "LoadStateParams",
            "path",
            Kind::Params(Method::LoadState, Some(id())),
            LoadStateParams {
                path: "/var/tmp/chat-7.kv".into(),
            },
        ),
        example(
            "StateResult",
            "saved",
            Kind::Result(Method::SaveState, id()),
            StateResult {
                tokens: 612,
                bytes: 17_697_345,
            },
        ),
        example(
            "StateResult",
            "loaded",
            Kind::Result(Method::LoadState, id()),
            StateResult {
                tokens: 612,
                bytes: 17_697_345,
            },
        ),
    ]
}

fn text() -> Vec<Example> {
    let id = || Id::Number(10);
    let tokenize = TokenizeParams {
        content: "The capital of France".into(),
        add_special: false,
        parse_special: true,
        with_pieces: true,
    };
    let pieces = ["The", " capital", " of", " France"]
        .map(str::to_owned)
        .to_vec();
    let tokenized = TokenizeResult {
        token_ids: vec![504, 3575, 282, 4649],
        pieces: Some(pieces),
    };
    let chat = chat(vec![user("Hello")]);
    let prompt = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n".to_owned();
    let ids = DetokenizeParams {
        token_ids: vec![504, 3575, 282, 4649],
    };
    let content = "The capital of France".to_owned();
    vec![
        example(
            "TokenizeParams",
            "pieces",
            Kind::Params(Method::Tokenize, Some(id())),
            tokenize,
        ),
        example(
            "TokenizeResult",
            "pieces",
            Kind::Result(Method::Tokenize, id()),
            tokenized,
        ),
        example(
            "DetokenizeParams",
            "ids",
            Kind::Params(Method::Detokenize, Some(id())),
            ids,
        ),
        example(
            "DetokenizeResult",
            "text",
            Kind::Result(Method::Detokenize, id()),
            DetokenizeResult { content },
        ),
        example(
            "ApplyTemplateParams",
            "chat",
            Kind::Params(Method::ApplyTemplate, Some(id())),
            chat,
        ),
        tool_chat(),
        example(
            "ApplyTemplateResult",
            "chat",
            Kind::Result(Method::ApplyTemplate, id()),
            ApplyTemplateResult { prompt },
        ),
    ]
}

fn metrics() -> Vec<Example> {
    let id = || Id::Number(11);
    let mut first = Histogram::with_bounds(&[10.0, 100.0]);
    let mut between = Histogram::with_bounds(&[5.0, 10.0]);
    let mut whole = Histogram::with_bounds(&[100.0, 1000.0]);
    first.observe(24.873);
    between.observe(6.1);
    between.observe(6.4);
    whole.observe(68.977);
    let figures = Metrics {
        labels: MetricsLabels {
            worker_id: "gpu-0".into(),
            model: "Smollm2 135M 8k Lc100K Mix1 Ep2".into(),
            quant_kind: "Q4_1".into(),
            device: "cpu (avx512)".into(),
        },
        uptime_seconds: 184.25,
        requests: RequestCounts {
            stop: 1,
            ..Default::default()
        },
        tokens: TokenCounts {
            prompt: 5,
            cached: 0,
            completion: 3,
        },
        queue_depth: 0,
        active_requests: 0,
        memory: memory(),
        time_to_first_token_ms: first,
        inter_token_ms: between,
        request_duration_ms: whole,
        log_lines_dropped: 0,
    };
    let lines = figures.to_prometheus();
    let short: String = lines
        .lines()
        .take(3)
        .map(|line| format!("{line}\n"))
        .collect();
    let object = MetricsResult {
        format: MetricsFormat::Json,
        metrics: Some(figures),
        text: None,
    };
    let text = MetricsResult {
        format: MetricsFormat::Prometheus,
        metrics: None,
        text: Some(short),
    };
    let params = |name, format| {
        example(
            "MetricsParams",
            name,
            Kind::Params(Method::Metrics, Some(id())),
            MetricsParams { format },
        )
    };
    vec![
        params("json", MetricsFormat::Json),
        params("prometheus", MetricsFormat::Prometheus),
        example(
            "MetricsResult",
            "json",
            Kind::Result(Method::Metrics, id()),
            object,
        ),
        example(
            "MetricsResult",
            "prometheus",
            Kind::Result(Method::Metrics, id()),
            text,
        ),
    ]
}

fn shutdown() -> Vec<Example> {
    let id = || text_id("bye");
    let params = |name, mode| {
        example(
            "ShutdownParams",
            name,
            Kind::Params(Method::Shutdown, Some(id())),
            ShutdownParams { mode },
        )
    };
    vec![
        params("drain", ShutdownMode::Drain),
        params("now", ShutdownMode::Now),
        example(
            "ShutdownResult",
            "done",
            Kind::Result(Method::Shutdown, id()),
            ShutdownResult {},
        ),
    ]
}

fn notifications() -> Vec<Example> {
    let load = Progress {
        phase: Phase::Load,
        processed: 48_260_352,
        total: 96_520_704,
        time_ms: 61.204,
        request_id: None,
    };
    let prefill = Progress {
        phase: Phase::Prefill,
        processed: 512,
        total: 3000,
        time_ms: 2204.5,
        request_id: Some(text_id("chat-7")),
    };
    let started = Started {
        request_id: Id::Number(1),
        prompt_tokens: 5,
        cached_tokens: 0,
        seed: 1_905_312_220_174_003,
        queue_ms: 0.041,
    };
    let plain = Token {
        request_id: Id::Number(1),
        index: 0,
        token_id: 7042,
        text: " Paris".into(),
        logprob: None,
        top_logprobs: Vec::new(),
    };
    let alternative = |token_id, text: &str, logprob| TopLogprob {
        token_id,
        text: text.into(),
        logprob,
    };
    let top_logprobs = vec![
        alternative(7042, " Paris", -0.3125),
        alternative(260, " the", -2.75),
    ];
    let logprobs = Token {
        logprob: Some(-0.3125),
        top_logprobs,
        ..plain.clone()
    };
    let error = ErrorObject::new(
        ErrorCode::CudaError,
        "the device is lost: an illegal memory access was encountered",
    )
    .with_details(ErrorDetails {
        device: Some("cuda:0".into()),
        ..Default::default()
    });
    vec![
        example("Progress", "load", Kind::Notification("progress"), load),
        example(
            "Progress",
            "prefill",
            Kind::Notification("progress"),
            prefill,
        ),
        example(
            "Ready",
            "notification",
            Kind::Notification("ready"),
            ready(),
        ),
        example("Started", "queued", Kind::Notification("started"), started),
        example("Token", "plain", Kind::Notification("token"), plain),
        example("Token", "logprobs", Kind::Notification("token"), logprobs),
        example(
            "Fatal",
            "device_lost",
            Kind::Notification("fatal"),
            Fatal { error },
        ),
    ]
}

fn prompt_logprobs() -> Example {
    let kind = Kind::Notification("prompt_logprobs");
    let value = PromptLogprobs {
        request_id: Id::Number(1),
        from: 0,
        entries: prompt_entries(),
    };
    example("PromptLogprobs", "beginning", kind, value)
}

/// An error that the codec itself gives for a line.
fn refusal(name: &'static str, line: &str) -> Example {
    let reject = decode_line(line.as_bytes()).expect_err(line);
    example("ErrorObject", name, Kind::Error(reject.id), reject.error)
}

fn errors() -> Vec<Example> {
    let error = |name, error| example("ErrorObject", name, Kind::Error(Some(Id::Number(1))), error);
    let sized = |model: &str| ErrorDetails {
        required_bytes: Some(17_179_869_184),
        available_bytes: Some(8_589_934_592),
        device: Some("cuda:0".into()),
        model: Some(model.into()),
        ..Default::default()
    };
    let duplicate = ErrorObject::duplicate_id(Id::Number(1));
    let too_long = ErrorObject::line_too_long(20_000_000);
    let several = r#"{"id":1,"method":"generate","params":{"temperature":3,"top_k":2.5,"stop":[""],"prompts":"a"}}"#;
    let usage = Usage::new(5, 0, 3);
    vec![
        refusal("parse_error", r#"{"id":1,"method":"health""#),
        refusal("invalid_request", r#"{"jsonrpc":"1.0","id":1,"method":"health"}"#),
        refusal("invalid_request_no_id", r#"{"method":"generate","params":{"prompt":"a"}}"#),
        example("ErrorObject", "invalid_request_too_long", Kind::Error(None), too_long),
        refusal("method_not_found", r#"{"id":1,"method":"completions"}"#),
        refusal("invalid_params", several),
        error("internal", ErrorObject::new(ErrorCode::Internal, "step 17 gave no token; this is a bug")),
        error("internal_after_started", ErrorObject::new(ErrorCode::Internal, "step 17 gave no token; this is a bug").with_usage(usage)),
        error(
            "model_load_failed",
            ErrorObject::new(ErrorCode::ModelLoadFailed, "tensor blk.0.attn_q.weight ends beyond the end of the file")
                .with_details(ErrorDetails { model: Some("model.gguf".into()), ..Default::default() }),
        ),
        error(
            "insufficient_vram",
            ErrorObject::new(
                ErrorCode::InsufficientVram,
                "model.gguf needs 17179869184 bytes on cuda:0, 8589934592 are free; 8589934592 are missing",
            )
            .with_details(sized("model.gguf")),
        ),
        error("context_overflow", ErrorObject::context_overflow(9000, None, 8192)),
        error("queue_full", ErrorObject::queue_full(64)),
        error(
            "vram_oom",
            ErrorObject::new(ErrorCode::VramOom, "the KV pool has 12 free pages, this request needs 32; try again later"),
        ),
        error("cuda_error", ErrorObject::new(ErrorCode::CudaError, "the step failed: too many resources requested for launch")),
        error("invalid_grammar", invalid_grammar()),
        error("template_error", ErrorObject::new(ErrorCode::TemplateError, "the chat template refuses: roles must alternate")),
        error("shutting_down", ErrorObject::shutting_down()),
        example("ErrorObject", "duplicate_id", Kind::Error(None), duplicate),
    ]
}

fn invalid_grammar() -> ErrorObject {
    let field = "response_format.json_schema.schema";
    let message =
        format!("{field} is refused at /properties/city/not: the keyword \"not\" is not taken");
    let details = ErrorDetails {
        pointer: Some("/properties/city/not".into()),
        ..Default::default()
    };
    ErrorObject::new(ErrorCode::InvalidGrammar, message)
        .with_param(field)
        .with_details(details)
}
