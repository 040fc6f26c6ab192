//! The client's side of the wire: requests to bytes, and what the worker says back to types.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::ErrorObject;
use crate::event::Notification;
use crate::request::{Call, Id, NoParams, Request};

/// A line of a worker, as a client reads it.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// The answer to a request.
    Response {
        /// The request's id; `None` where the worker could not read it.
        id: Option<Id>,
        /// The result, to be read as the type that belongs to the method, or the error.
        outcome: Result<Value, ErrorObject>,
    },
    /// Something that nobody answers.
    Notification(Notification),
    /// A notification that this version of the types does not know; to be passed over.
    UnknownNotification {
        /// Its name.
        method: String,
    },
}

/// A line that no worker says; in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotOurs(pub String);

impl std::fmt::Display for NotOurs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotOurs {}

/// A line before it is known what it is. What is not known is passed over, so that a worker may learn to say more.
#[derive(Deserialize)]
struct AnyLine {
    #[serde(default)]
    jsonrpc: Option<String>,
    #[serde(default)]
    id: Option<Id>,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    params: Option<Value>,
    #[serde(default)]
    result: Option<Value>,
    #[serde(default)]
    error: Option<ErrorObject>,
}

/// Reads a line of a worker (without its line end).
pub fn decode_output(line: &[u8]) -> Result<Incoming, NotOurs> {
    let not_ours = |words: String| NotOurs(format!("no line of the protocol: {words}"));
    let line: AnyLine =
        serde_json::from_slice(line).map_err(|error| not_ours(error.to_string()))?;
    if line.jsonrpc.as_deref() != Some("2.0") {
        return Err(not_ours("jsonrpc is not \"2.0\"".to_owned()));
    }
    match (line.method, line.result, line.error) {
        (None, Some(result), None) => Ok(Incoming::Response {
            id: line.id,
            outcome: Ok(result),
        }),
        (None, None, Some(error)) => Ok(Incoming::Response {
            id: line.id,
            outcome: Err(error),
        }),
        (Some(method), None, None) => {
            notification(method, line.params.unwrap_or_default()).map_err(not_ours)
        }
        _ => Err(not_ours(
            "it has not exactly one of method, result and error".to_owned(),
        )),
    }
}

fn notification(method: String, params: Value) -> Result<Incoming, String> {
    fn read<T: for<'de> Deserialize<'de>>(method: &str, params: Value) -> Result<T, String> {
        serde_json::from_value(params).map_err(|error| format!("params of {method}: {error}"))
    }
    Ok(Incoming::Notification(match method.as_str() {
        "progress" => Notification::Progress(read(&method, params)?),
        "ready" => Notification::Ready(read(&method, params)?),
        "started" => Notification::Started(read(&method, params)?),
        "token" => Notification::Token(read(&method, params)?),
        "prompt_logprobs" => Notification::PromptLogprobs(read(&method, params)?),
        "fatal" => Notification::Fatal(read(&method, params)?),
        _ => return Ok(Incoming::UnknownNotification { method }),
    }))
}

#[derive(Serialize)]
struct CallLine<'a, P: Serialize> {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: &'a Option<Id>,
    method: &'static str,
    params: &'a P,
}

/// Appends a request as one line with its LF to `out`.
pub fn encode_call(call: &Call, out: &mut Vec<u8>) {
    fn line<P: Serialize>(call: &Call, params: &P, out: &mut Vec<u8>) {
        super::write(
            &CallLine {
                jsonrpc: "2.0",
                id: &call.id,
                method: call.request.method(),
                params,
            },
            out,
        );
    }
    match &call.request {
        Request::Initialize(params) => line(call, params, out),
        Request::Generate(params) => line(call, params, out),
        Request::Cancel(params) => line(call, params, out),
        Request::Health => line(call, &NoParams {}, out),
        Request::Tokenize(params) => line(call, params, out),
        Request::Detokenize(params) => line(call, params, out),
        Request::ApplyTemplate(params) => line(call, params, out),
        Request::SaveState(params) => line(call, params, out),
        Request::LoadState(params) => line(call, params, out),
        Request::Metrics(params) => line(call, params, out),
        Request::Shutdown(params) => line(call, params, out),
    }
}
