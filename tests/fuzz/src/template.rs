//! A chat template and the messages that it renders: an end within its budget, whatever both say.
//!
//! The input is the template's source, and after a line `===` the messages as JSON; without them, a conversation that is always the
//! same.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use worker_orcd::text::template::TEMPLATE_OUTPUT_BYTES_MAX;
use worker_orcd::text::{ChatTemplate, GenerationPrompt, RenderOptions, TemplateError};

use super::meter;

/// Stands between the template and the messages.
const SEPARATOR: &str = "\n===\n";

/// What a rendering may hold at most: the output once as it grows by doubling and once more as it moves, and the values that half a
/// million units of fuel make.
const RENDER_BYTES: usize = 512 << 20;

/// A word that the messages have and no template.
const SECRET: &str = "q7Zkx3Vw";

/// Compiles and renders.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (source, messages) = text.split_once(SEPARATOR).unwrap_or((&text, ""));
    let messages = serde_json::from_str(messages).unwrap_or_else(|_| conversation());
    meter::within(RENDER_BYTES, || render(source, &messages));
}

fn conversation() -> Value {
    json!([
        {"role": "system", "content": SECRET},
        {"role": "user", "content": [{"type": "text", "text": "é"}]},
        {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1.5}}}]},
    ])
}

fn render(source: &str, messages: &Value) {
    let template = match ChatTemplate::new(source, Some("<s>"), Some("</s>")) {
        Ok(template) => template,
        Err(error) => return check_error(source, &error),
    };
    let options = RenderOptions {
        generation_prompt: GenerationPrompt::Add,
        tools: Some(json!([{"function": {"name": "f"}}])),
        tool_choice: None,
        kwargs: Map::new(),
        now: UNIX_EPOCH + Duration::from_secs(1_735_689_599),
    };
    match template.render(messages, &options) {
        Ok(text) => assert!(text.len() <= TEMPLATE_OUTPUT_BYTES_MAX),
        Err(error) => check_error(source, &error),
    }
}

/// An error is short and repeats nothing that a message says, unless the template says it.
fn check_error(source: &str, error: &TemplateError) {
    let words = error.to_string();
    assert!(!words.is_empty() && words.len() < 4096, "{words}");
    let raised = matches!(error, TemplateError::Raised { .. });
    assert!(
        raised || source.contains(SECRET) || !words.contains(SECRET),
        "{words}"
    );
}
