//! What the worker tells of itself: `ready`, `health`, `metrics`, and its log.

use std::time::Instant;

use serde_json::Value;
use worker_orcd_protocol::schema::generate_fields;
use worker_orcd_protocol::{
    Capabilities, ClientInfo, Defaults, ErrorObject, GenerateParams, HealthResult, Id, Limits,
    Memory, Method, Metrics, MetricsFormat, MetricsLabels, MetricsResult, ModelInfo, Ready,
    ServerInfo, Status, limits as wire,
};

use super::lifecycle::{Serving, Stage};
use super::{ClockMode, Worker};
use crate::log::Level;

impl Worker {
    /// The params of `ready` and the result of `initialize`; without a model before the load is done.
    pub(super) fn ready(&self) -> Ready {
        let serving = self.serving();
        let sampling = GenerateParams::default();
        Ready {
            protocol_version: wire::PROTOCOL_VERSION,
            server_info: ServerInfo {
                name: env!("CARGO_PKG_NAME").to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                worker_id: self.config.worker_id.clone(),
                pid: self.pid(),
            },
            capabilities: capabilities(),
            model: serving.map(model_info),
            memory: serving.map(memory),
            defaults: Defaults {
                max_tokens: self.config.max_tokens,
                timeout_ms: self.config.timeout_ms,
                min_tokens: sampling.min_tokens,
                temperature: sampling.temperature,
                top_k: sampling.top_k,
                typical_p: sampling.typical_p,
                top_p: sampling.top_p,
                min_p: sampling.min_p,
                repetition_penalty: sampling.repetition_penalty,
                presence_penalty: sampling.presence_penalty,
                frequency_penalty: sampling.frequency_penalty,
                penalty_last_n: sampling.penalty_last_n,
            },
            limits: Limits {
                line_bytes: wire::LINE_BYTES_MAX as u64,
                queue: self.config.queue_max as u64,
                context_length: serving.map(|s| s.model.context_length as u64),
                max_tokens: wire::MAX_TOKENS_MAX,
                logprobs: wire::LOGPROBS_MAX,
                stop: wire::STOP_MAX as u64,
                stop_bytes: wire::STOP_BYTES_MAX as u64,
                stop_token_ids: wire::STOP_TOKEN_IDS_MAX as u64,
                logit_bias: wire::LOGIT_BIAS_MAX as u64,
                tokenize_bytes: wire::TOKENIZE_BYTES_MAX as u64,
                token_ids: wire::TOKEN_IDS_MAX as u64,
            },
        }
    }

    pub(super) fn health(&self, now: Instant) -> HealthResult {
        let serving = self.serving();
        let card = serving.and_then(|s| s.device.card());
        HealthResult {
            status: self.status(),
            model: self.model_name().to_owned(),
            device: self.device_name().to_owned(),
            resident: serving.is_some(),
            quant_kind: serving.map(|s| s.model.quant_kind.clone()),
            vram_bytes_used: card.as_ref().map(|card| card.used_bytes),
            memory: serving.map(memory),
            tokenizer_kind: serving.map(|s| s.tokenizer.kind().as_str().to_owned()),
            vocab_size: serving.map(|s| s.model.vocab_size as u64),
            context_length: serving.map(|s| s.model.context_length as u64),
            uptime_seconds: self.config.clock.uptime_seconds(now),
            active_request: self.active.as_ref().map(|active| active.job.id.clone()),
            queue_depth: self.queue.len() as u64,
            steps_total: self.counters.steps_total,
            last_step_ms: self.counters.last_step_ms,
            compute_capability: card.as_ref().map(|card| card.compute_capability.clone()),
            driver_version: card.map(|card| card.driver_version),
        }
    }

    fn status(&self) -> Status {
        match self.stage {
            Stage::Gone => Status::Failed,
            Stage::Loading(_) => Status::Starting,
            Stage::Serving(_) if self.drain.is_some() => Status::Draining,
            Stage::Serving(_) if self.active.is_some() || !self.queue.is_empty() => Status::Busy,
            Stage::Serving(_) => Status::Ready,
        }
    }

    pub(super) fn metrics(&self, now: Instant, format: MetricsFormat) -> MetricsResult {
        let serving = self.serving();
        let counters = &self.counters;
        let metrics = Metrics {
            labels: MetricsLabels {
                worker_id: self.config.worker_id.clone().unwrap_or_default(),
                model: self.model_name().to_owned(),
                quant_kind: serving
                    .map(|s| s.model.quant_kind.clone())
                    .unwrap_or_default(),
                device: self.device_name().to_owned(),
            },
            uptime_seconds: self.config.clock.uptime_seconds(now),
            requests: counters.requests,
            tokens: counters.tokens,
            queue_depth: self.queue.len() as u64,
            active_requests: u64::from(self.active.is_some()),
            memory: serving.map(memory).unwrap_or_default(),
            time_to_first_token_ms: counters.time_to_first_token_ms.clone(),
            inter_token_ms: counters.inter_token_ms.clone(),
            request_duration_ms: counters.request_duration_ms.clone(),
            log_lines_dropped: counters.log_lines_dropped,
        };
        match format {
            MetricsFormat::Json => MetricsResult {
                format,
                metrics: Some(metrics),
                text: None,
            },
            MetricsFormat::Prometheus => MetricsResult {
                format,
                text: Some(metrics.to_prometheus()),
                metrics: None,
            },
        }
    }

    fn pid(&self) -> u32 {
        match self.config.clock.mode {
            ClockMode::Real => self.config.pid,
            ClockMode::Frozen => 0,
        }
    }

    fn serving(&self) -> Option<&Serving> {
        match &self.stage {
            Stage::Serving(serving) => Some(serving),
            Stage::Loading(_) | Stage::Gone => None,
        }
    }

    fn model_name(&self) -> &str {
        self.serving()
            .map_or(&self.config.model_name, |s| &s.model.name)
    }

    fn device_name(&self) -> &str {
        self.serving()
            .map_or(&self.config.device_name, |s| &s.model.device)
    }

    /// Appends a record to the log.
    pub(super) fn record(
        &mut self,
        now: Instant,
        level: Level,
        event: &str,
        fields: &[(&str, Value)],
    ) {
        self.log
            .record(self.config.clock.wall(now), level, event, fields);
    }

    /// Logs something that somebody should look at.
    pub fn warn(&mut self, now: Instant, message: &str) {
        self.record(now, Level::Warn, "warning", &[("message", message.into())]);
    }

    /// The log's last lines after a panic at `place`. Nothing else of the worker is to be asked any more.
    pub fn take_log_after_panic(&mut self, now: Instant, place: &str) -> Option<Vec<u8>> {
        self.record(now, Level::Error, "panic", &[("place", place.into())]);
        self.log.take()
    }

    pub(super) fn log_startup(&mut self, now: Instant) {
        if let Some(worker_id) = &self.config.worker_id {
            self.log.set_common("worker_id", worker_id.as_str());
        }
        self.log
            .set_common("model", self.config.model_name.as_str());
        self.log
            .set_common("device", self.config.device_name.as_str());
        let fields = [
            ("version", env!("CARGO_PKG_VERSION").into()),
            ("pid", self.pid().into()),
        ];
        self.record(now, Level::Info, "startup", &fields);
        let fields = [
            ("model", self.config.model_name.as_str().into()),
            ("device", self.config.device_name.as_str().into()),
        ];
        self.record(now, Level::Info, "model_load_start", &fields);
        self.log.flush();
    }

    pub(super) fn log_client(&mut self, now: Instant, client: Option<&ClientInfo>) {
        let Some(client) = client else { return };
        let version = client.version.as_deref().unwrap_or_default();
        let fields = [
            ("client", client.name.as_str().into()),
            ("client_version", version.into()),
        ];
        self.record(now, Level::Info, "initialize", &fields);
    }

    pub(super) fn log_error(&mut self, now: Instant, request: Option<&Id>, error: &ErrorObject) {
        let mut fields: Vec<(&str, Value)> = Vec::with_capacity(3);
        fields.extend(request.map(|id| ("request_id", id_value(id))));
        fields.push(("code", error.data.code.name().into()));
        fields.push(("message", error.message.as_str().into()));
        self.record(now, Level::Error, "error", &fields);
    }
}

/// An id as a field of the log.
pub(super) fn id_value(id: &Id) -> Value {
    match id {
        Id::Number(number) => (*number).into(),
        Id::String(string) => string.as_str().into(),
    }
}

fn capabilities() -> Capabilities {
    let notifications = [
        "progress",
        "ready",
        "started",
        "prompt_logprobs",
        "token",
        "fatal",
    ];
    Capabilities {
        methods: Method::ALL
            .iter()
            .map(|method| method.name().to_owned())
            .collect(),
        generate_fields: generate_fields(),
        notifications: notifications.map(str::to_owned).into(),
    }
}

fn model_info(serving: &Serving) -> ModelInfo {
    let model = &serving.model;
    ModelInfo {
        name: model.name.clone(),
        architecture: model.architecture.clone(),
        quant_kind: model.quant_kind.clone(),
        parameters: model.parameters,
        size_bytes: model.size_bytes,
        vocab_size: model.vocab_size as u64,
        tokenizer_kind: serving.tokenizer.kind().as_str().to_owned(),
        context_length: model.context_length as u64,
        context_length_trained: model.context_length_trained as u64,
        has_chat_template: serving.template.is_some(),
        device: model.device.clone(),
    }
}

fn memory(serving: &Serving) -> Memory {
    let held = serving.device.memory();
    Memory {
        weights_bytes: held.weights_bytes,
        kv_bytes: held.kv_bytes,
        scratch_bytes: held.scratch_bytes,
        total_bytes: held.total_bytes(),
    }
}
