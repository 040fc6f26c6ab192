//! What the worker counts, as an object and as the text format of Prometheus.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::{Memory, millis, rounded};

/// Upper bounds of [`Metrics::time_to_first_token_ms`] in milliseconds.
pub const TIME_TO_FIRST_TOKEN_BOUNDS_MS: [f64; 13] = [
    1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0, 60_000.0,
];

/// Upper bounds of [`Metrics::inter_token_ms`] in milliseconds.
pub const INTER_TOKEN_BOUNDS_MS: [f64; 12] = [
    0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0,
];

/// Upper bounds of [`Metrics::request_duration_ms`] in milliseconds.
pub const REQUEST_DURATION_BOUNDS_MS: [f64; 12] = [
    10.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0, 30_000.0, 60_000.0,
    300_000.0,
];

/// Counters, gauges and histograms since the process started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Metrics {
    /// What tells this worker's figures from another's.
    pub labels: MetricsLabels,
    /// Seconds since the process started.
    #[serde(serialize_with = "millis")]
    pub uptime_seconds: f64,
    /// `generate` requests by outcome.
    pub requests: RequestCounts,
    /// Tokens.
    pub tokens: TokenCounts,
    /// Requests that wait now.
    pub queue_depth: u64,
    /// 1 while a `generate` runs.
    pub active_requests: u64,
    /// What the device holds.
    pub memory: Memory,
    /// Milliseconds from a request to its first token.
    pub time_to_first_token_ms: Histogram,
    /// Milliseconds from one token to the next.
    pub inter_token_ms: Histogram,
    /// Milliseconds from a request to its response.
    pub request_duration_ms: Histogram,
    /// Log lines that were dropped since nobody read them.
    pub log_lines_dropped: u64,
}

/// What tells this worker's figures from another's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MetricsLabels {
    /// What `--worker-id` gave; "" without.
    pub worker_id: String,
    /// The model's name.
    pub model: String,
    /// The tensor type that holds most of the weights' bytes.
    pub quant_kind: String,
    /// The device.
    pub device: String,
}

/// `generate` requests by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RequestCounts {
    /// Ended with finish_reason "stop".
    pub stop: u64,
    /// Ended with finish_reason "length".
    pub length: u64,
    /// Ended with finish_reason "cancelled".
    pub cancelled: u64,
    /// Ended with finish_reason "timeout".
    pub timeout: u64,
    /// Accepted, and answered with an error.
    pub error: u64,
    /// Not accepted: wrong params, a full queue, a taken id, a worker that drains.
    pub rejected: u64,
}

/// Tokens by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenCounts {
    /// Of prompts.
    pub prompt: u64,
    /// Of prompts, those that needed no evaluation.
    pub cached: u64,
    /// Generated.
    pub completion: u64,
}

/// How a measured value is spread.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Histogram {
    /// Buckets with rising `le`; what is above the last one stands in `count` alone.
    pub buckets: Vec<Bucket>,
    /// Sum of all values.
    #[serde(serialize_with = "millis")]
    pub sum: f64,
    /// Number of all values.
    pub count: u64,
}

impl Histogram {
    /// An empty histogram with these upper bounds, which have to be finite and rising.
    pub fn with_bounds(bounds: &[f64]) -> Self {
        let buckets = bounds.iter().map(|&le| Bucket { le, count: 0 }).collect();
        Histogram {
            buckets,
            sum: 0.0,
            count: 0,
        }
    }

    /// Counts a value; one that is no finite number is passed over.
    pub fn observe(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        let first = self.buckets.partition_point(|bucket| bucket.le < value);
        for bucket in self.buckets.iter_mut().skip(first) {
            bucket.count += 1;
        }
        self.sum += value;
        self.count += 1;
    }
}

/// A bucket of a histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Bucket {
    /// Upper bound, itself included.
    #[serde(serialize_with = "millis")]
    pub le: f64,
    /// Number of values up to the bound, those of smaller buckets included.
    pub count: u64,
}

impl Metrics {
    /// The text format of Prometheus, version 0.0.4. Each figure carries the labels of the worker.
    pub fn to_prometheus(&self) -> String {
        let mut text = Text {
            out: String::new(),
            labels: self.labels.to_prometheus(),
        };
        text.gauge(
            "uptime_seconds",
            "Seconds since the process started.",
            rounded(self.uptime_seconds),
        );
        let RequestCounts {
            stop,
            length,
            cancelled,
            timeout,
            error,
            rejected,
        } = self.requests;
        let requests = [("stop", stop), ("length", length), ("cancelled", cancelled)];
        let more = [
            ("timeout", timeout),
            ("error", error),
            ("rejected", rejected),
        ];
        text.head(
            "requests_total",
            "counter",
            "Requests of generate by outcome.",
        );
        text.values(
            "requests_total",
            "outcome",
            requests.into_iter().chain(more),
        );
        let TokenCounts {
            prompt,
            cached,
            completion,
        } = self.tokens;
        let tokens = [
            ("prompt", prompt),
            ("cached", cached),
            ("completion", completion),
        ];
        text.head(
            "tokens_total",
            "counter",
            "Tokens by kind; cached ones are part of prompt.",
        );
        text.values("tokens_total", "kind", tokens);
        text.gauge("queue_depth", "Requests that wait.", self.queue_depth);
        text.gauge(
            "active_requests",
            "Requests that run.",
            self.active_requests,
        );
        let Memory {
            weights_bytes,
            kv_bytes,
            scratch_bytes,
            total_bytes: _,
        } = self.memory;
        let parts = [
            ("weights", weights_bytes),
            ("kv", kv_bytes),
            ("scratch", scratch_bytes),
        ];
        text.head(
            "memory_bytes",
            "gauge",
            "Bytes that the device holds, by what they are for.",
        );
        text.values("memory_bytes", "part", parts);
        self.histograms_to_prometheus(&mut text);
        text.head(
            "log_lines_dropped_total",
            "counter",
            "Log lines that nobody read.",
        );
        text.value("log_lines_dropped_total", &[], self.log_lines_dropped);
        text.out
    }

    fn histograms_to_prometheus(&self, text: &mut Text) {
        for (name, help, histogram) in [
            (
                "time_to_first_token",
                "From a request to its first token.",
                &self.time_to_first_token_ms,
            ),
            (
                "inter_token",
                "From one token to the next.",
                &self.inter_token_ms,
            ),
            (
                "request_duration",
                "From a request to its response.",
                &self.request_duration_ms,
            ),
        ] {
            text.histogram(&format!("{name}_milliseconds"), help, histogram);
        }
    }
}

impl MetricsLabels {
    fn to_prometheus(&self) -> String {
        let MetricsLabels {
            worker_id,
            model,
            quant_kind,
            device,
        } = self;
        [
            ("worker_id", worker_id),
            ("model", model),
            ("quant_kind", quant_kind),
            ("device", device),
        ]
        .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
        .join(",")
    }
}

/// A label's value as Prometheus wants it.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// Text under way. Every name begins with "worker_orcd_".
struct Text {
    out: String,
    /// The labels that every figure carries.
    labels: String,
}

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.out.push_str(&format!(
            "# HELP worker_orcd_{name} {help}\n# TYPE worker_orcd_{name} {kind}\n"
        ));
    }

    fn value(&mut self, name: &str, own: &[(&str, &str)], value: impl std::fmt::Display) {
        let own: String = own
            .iter()
            .map(|(label, word)| format!("{label}=\"{word}\","))
            .collect();
        self.out.push_str(&format!(
            "worker_orcd_{name}{{{own}{}}} {value}\n",
            self.labels
        ));
    }

    fn values<'a>(
        &mut self,
        name: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) {
        for (word, value) in values {
            self.value(name, &[(label, word)], value);
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, "gauge", help);
        self.value(name, &[], value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        for Bucket { le, count } in &histogram.buckets {
            self.value(&bucket, &[("le", &le.to_string())], count);
        }
        self.value(&bucket, &[("le", "+Inf")], histogram.count);
        self.value(&format!("{name}_sum"), &[], rounded(histogram.sum));
        self.value(&format!("{name}_count"), &[], histogram.count);
    }
}
