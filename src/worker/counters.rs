//! What the worker counts.

use worker_orcd_protocol::{FinishReason, Histogram, RequestCounts, TokenCounts};

/// Upper bounds in milliseconds.
const TIME_TO_FIRST_TOKEN_MS: [f64; 14] = [
    5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0, 30_000.0,
    60_000.0, 300_000.0,
];
const INTER_TOKEN_MS: [f64; 13] = [
    0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 5000.0,
];
const REQUEST_DURATION_MS: [f64; 13] = [
    10.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    1_800_000.0,
];

/// Counters and histograms since the start.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) requests: RequestCounts,
    pub(super) tokens: TokenCounts,
    pub(super) steps_total: u64,
    pub(super) last_step_ms: Option<f64>,
    pub(super) time_to_first_token_ms: Histogram,
    pub(super) inter_token_ms: Histogram,
    pub(super) request_duration_ms: Histogram,
    pub(super) log_lines_dropped: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            requests: RequestCounts::default(),
            tokens: TokenCounts::default(),
            steps_total: 0,
            last_step_ms: None,
            time_to_first_token_ms: Histogram::with_bounds(&TIME_TO_FIRST_TOKEN_MS),
            inter_token_ms: Histogram::with_bounds(&INTER_TOKEN_MS),
            request_duration_ms: Histogram::with_bounds(&REQUEST_DURATION_MS),
            log_lines_dropped: 0,
        }
    }
}

impl Counters {
    /// Counts the end of a `generate`.
    pub(super) fn count_end(&mut self, reason: FinishReason) {
        let count = match reason {
            FinishReason::Stop => &mut self.requests.stop,
            FinishReason::Length => &mut self.requests.length,
            FinishReason::Cancelled => &mut self.requests.cancelled,
            FinishReason::Timeout => &mut self.requests.timeout,
        };
        *count += 1;
    }
}
