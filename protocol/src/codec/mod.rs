//! Bytes to requests, and what the worker says to bytes; for clients the other way round.

pub(crate) mod check;
mod client;
pub(crate) mod fault;
pub(crate) mod json;
mod lines;
mod typed;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use self::check::wrong_kind_words;
pub use self::client::{Incoming, NotOurs, decode_output, encode_call};
use self::fault::{Faults, Path, quoted};
use self::json::Node;
pub use self::lines::{Line, LineReader};
use crate::error::{ErrorCode, ErrorDetails, ErrorObject};
use crate::event::{MethodResult, Notification, Outgoing};
use crate::limits;
use crate::method::{IdRule, Method};
use crate::request::{Call, CancelParams, CancelRequestParams, CancelledParams, Id, Request};

/// A line that could not be taken, ready to be answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Reject {
    /// The request's id, where it could be read.
    pub id: Option<Id>,
    /// The method that it asks for, where there is such a method.
    pub method: Option<Method>,
    /// Why.
    pub error: ErrorObject,
}

impl Reject {
    fn new(id: Option<Id>, method: Option<Method>, error: ErrorObject) -> Self {
        Reject { id, method, error }
    }

    /// The answer to a [`Line::TooLong`].
    pub fn line_too_long(bytes: u64) -> Self {
        Reject::new(None, None, ErrorObject::line_too_long(bytes))
    }
}

impl From<Reject> for Outgoing {
    fn from(reject: Reject) -> Self {
        Outgoing::Error {
            id: reject.id,
            error: reject.error,
        }
    }
}

/// The path of an entry of an object, as faults name it: `field.key`, or `field["a key"]`, cut where it is long.
pub fn entry_path(field: &str, key: &str) -> String {
    Path::ROOT.key(field).key(key).text()
}

/// Makes a request of a line (without its line end).
///
/// All faults are found in one go. Those of the request itself (-32600) come before an unknown method (-32601), and that
/// before those of its params (-32602). The id comes back with the error wherever it can be read.
pub fn decode_line(line: &[u8]) -> Result<Call, Reject> {
    let parsed = read(line).map_err(|error| Reject::new(None, None, error))?;
    let id_twice = parsed.id_twice;
    let mut faults = parsed.faults;
    let envelope = Envelope::open(parsed.root, &mut faults);
    let id = envelope.id.filter(|_| !id_twice);
    let method = envelope.method.as_deref().and_then(Method::from_name);
    let reject = |error| Err(Reject::new(id.clone(), method, error));

    let may_lack_id = method.is_none_or(|method| method.id_rule() == IdRule::MayBeLeftOut);
    if let (IdPresence::Absent, false, Some(name)) =
        (envelope.id_presence, may_lack_id, &envelope.method)
    {
        faults.add(&Path::ROOT.key("id"), || {
            (
                "required".to_owned(),
                format!("is missing: {name} needs one for its answer"),
            )
        });
    }
    let mut params_faults = parsed.params_faults;
    if let (Some(method), Some(params)) = (method, &envelope.params) {
        method.check().run(params, &Path::ROOT, &mut params_faults);
    }
    if !faults.is_empty() {
        faults.append(params_faults);
        return reject(ErrorObject::with_faults(
            ErrorCode::InvalidRequest,
            faults.list,
            faults.count,
        ));
    }
    let Some(method) = method else {
        return reject(unknown_method(&envelope.method.unwrap_or_default()));
    };
    // Params over a limit are dropped, and their fault is on record.
    let params = match envelope.params {
        Some(params) if params_faults.is_empty() => params,
        _ => {
            return reject(ErrorObject::with_faults(
                ErrorCode::InvalidParams,
                params_faults.list,
                params_faults.count,
            ));
        }
    };
    match request(method, params) {
        Ok(request) => Ok(Call { id, request }),
        // The checker takes nothing that the types refuse (a property test holds this); if it did, this is the answer.
        // What serde says is left out, since it quotes values.
        Err(_) => reject(ErrorObject::new(
            ErrorCode::InvalidParams,
            "the params do not have the form that the schema asks for",
        )),
    }
}

/// Reads JSON; the error is a -32700 that quotes nothing of the line.
fn read(line: &[u8]) -> Result<json::Parsed<'_>, ErrorObject> {
    let text = std::str::from_utf8(line).map_err(|error| {
        let position = error.valid_up_to();
        ErrorObject::new(
            ErrorCode::ParseError,
            format!("the line is not UTF-8: byte {position}, counted from 0, begins no character"),
        )
    })?;
    json::parse(text).map_err(|error| {
        let words = error.to_string();
        let words = words
            .rsplit_once(" at line ")
            .map_or(words.as_str(), |(words, _)| words);
        let position = error.column();
        ErrorObject::new(
            ErrorCode::ParseError,
            format!("the line is not JSON: {words} at byte {position}"),
        )
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum IdPresence {
    Present,
    Absent,
}

/// A request as JSON-RPC frames it.
struct Envelope<'a> {
    id: Option<Id>,
    id_presence: IdPresence,
    method: Option<Cow<'a, str>>,
    params: Option<Node<'a>>,
}

impl<'a> Envelope<'a> {
    /// Takes a request apart and adds what is wrong with its frame.
    fn open(root: Node<'a>, faults: &mut Faults) -> Self {
        let mut envelope = Envelope {
            id: None,
            id_presence: IdPresence::Absent,
            method: None,
            params: None,
        };
        let entries = match root {
            Node::Object(entries) => entries,
            other => {
                not_an_object(&other, faults);
                return envelope;
            }
        };
        let mut params = Some(Node::Object(Vec::new()));
        let mut has_method = false;
        for (key, value) in entries {
            match key.as_ref() {
                "jsonrpc" => version(&value, faults),
                "id" => {
                    envelope.id_presence = IdPresence::Present;
                    envelope.id = id(value, faults);
                }
                "method" => {
                    has_method = true;
                    envelope.method = method_name(value, faults);
                }
                "params" => params = params_object(value, faults),
                other => {
                    let words = || {
                        (
                            "unknown".to_owned(),
                            "is not a field of a request; those are jsonrpc, id, method and params"
                                .to_owned(),
                        )
                    };
                    faults.add(&Path::ROOT.key(other), words);
                }
            }
        }
        if !has_method {
            faults.add(&Path::ROOT.key("method"), || {
                ("required".to_owned(), "is missing".to_owned())
            });
        }
        envelope.params = params;
        envelope
    }
}

fn not_an_object(root: &Node<'_>, faults: &mut Faults) {
    match root {
        Node::Ids(_) | Node::Array(_) => {
            faults.add(&Path::ROOT, || {
                (
                    "type object".to_owned(),
                    "is a batch; batches are not taken, send each request on a line of its own"
                        .to_owned(),
                )
            });
        }
        // What is over a limit has its fault already.
        Node::Dropped => {}
        other => faults.add(&Path::ROOT, || wrong_kind_words("an object", other)),
    }
}

fn version(value: &Node<'_>, faults: &mut Faults) {
    if !matches!(value, Node::String(text) if text == "2.0") {
        faults.add(&Path::ROOT.key("jsonrpc"), || {
            (
                "const \"2.0\"".to_owned(),
                "has to be \"2.0\", or may be left out".to_owned(),
            )
        });
    }
}

fn id(value: Node<'_>, faults: &mut Faults) -> Option<Id> {
    let key = Path::ROOT;
    let path = key.key("id");
    match value {
        Node::Int(number) => Some(Id::Number(number)),
        Node::UInt(number) => {
            let max = i64::MAX;
            let words = || {
                (
                    format!("maximum {max}"),
                    format!("is {number}; at most {max} is allowed"),
                )
            };
            i64::try_from(number)
                .map(Id::Number)
                .map_err(|_| faults.add(&path, words))
                .ok()
        }
        Node::String(text) if text.len() <= limits::ID_BYTES_MAX => {
            Some(Id::String(text.into_owned()))
        }
        Node::String(text) => {
            let (max, bytes) = (limits::ID_BYTES_MAX, text.len());
            faults.add(&path, || {
                (
                    format!("bytes {max}"),
                    format!("is {bytes} bytes long; at most {max} are allowed"),
                )
            });
            None
        }
        Node::Dropped => None,
        other => {
            faults.add(&path, || wrong_kind_words("an integer or a string", &other));
            None
        }
    }
}

fn method_name<'a>(value: Node<'a>, faults: &mut Faults) -> Option<Cow<'a, str>> {
    match value {
        Node::String(name) => Some(name),
        Node::Dropped => None,
        other => {
            faults.add(&Path::ROOT.key("method"), || {
                wrong_kind_words("a string", &other)
            });
            None
        }
    }
}

fn params_object<'a>(value: Node<'a>, faults: &mut Faults) -> Option<Node<'a>> {
    match value {
        Node::Object(_) => Some(value),
        Node::Dropped => None,
        other => {
            faults.add(&Path::ROOT.key("params"), || {
                wrong_kind_words("an object", &other)
            });
            None
        }
    }
}

fn unknown_method(name: &str) -> ErrorObject {
    let methods: Vec<String> = Method::ALL
        .iter()
        .map(|method| method.name().to_owned())
        .collect();
    let message = format!(
        "there is no method {}; there are {}",
        quoted(name),
        methods.join(", ")
    );
    ErrorObject::new(ErrorCode::MethodNotFound, message)
        .with_param("method")
        .with_details(ErrorDetails {
            method: Some(fault::cut(name, limits::QUOTE_BYTES_MAX)),
            methods: Some(methods),
            ..Default::default()
        })
}

/// Makes the typed request of checked params.
fn request(method: Method, params: Node<'_>) -> Result<Request, serde::de::value::Error> {
    Ok(match method {
        Method::Initialize => Request::Initialize(Deserialize::deserialize(params)?),
        Method::Generate => Request::Generate(Deserialize::deserialize(params)?),
        Method::Cancel => Request::Cancel(Deserialize::deserialize(params)?),
        Method::CancelRequest => {
            let CancelRequestParams { id } = Deserialize::deserialize(params)?;
            Request::Cancel(CancelParams { request_id: id })
        }
        Method::Cancelled => {
            let CancelledParams { request_id } = Deserialize::deserialize(params)?;
            Request::Cancel(CancelParams { request_id })
        }
        Method::Health => Request::Health,
        Method::Tokenize => Request::Tokenize(Deserialize::deserialize(params)?),
        Method::Detokenize => Request::Detokenize(Deserialize::deserialize(params)?),
        Method::ApplyTemplate => Request::ApplyTemplate(Deserialize::deserialize(params)?),
        Method::SaveState => Request::SaveState(Deserialize::deserialize(params)?),
        Method::LoadState => Request::LoadState(Deserialize::deserialize(params)?),
        Method::Metrics => Request::Metrics(Deserialize::deserialize(params)?),
        Method::Shutdown => Request::Shutdown(Deserialize::deserialize(params)?),
    })
}

#[derive(Serialize)]
struct ResultLine<'a> {
    jsonrpc: &'static str,
    id: &'a Id,
    result: &'a MethodResult,
}

#[derive(Serialize)]
struct ErrorLine<'a> {
    jsonrpc: &'static str,
    id: &'a Option<Id>,
    error: &'a ErrorObject,
}

#[derive(Serialize)]
struct NotificationLine<'a, P: Serialize> {
    jsonrpc: &'static str,
    method: &'static str,
    params: &'a P,
}

/// Appends one line with its LF to `out`.
pub fn encode_line(outgoing: &Outgoing, out: &mut Vec<u8>) {
    let jsonrpc = "2.0";
    match outgoing {
        Outgoing::Result { id, result } => write(
            &ResultLine {
                jsonrpc,
                id,
                result,
            },
            out,
        ),
        Outgoing::Error { id, error } => write(&ErrorLine { jsonrpc, id, error }, out),
        Outgoing::Notification(notification) => encode_notification(notification, out),
    }
}

fn encode_notification(notification: &Notification, out: &mut Vec<u8>) {
    fn line<P: Serialize>(method: &'static str, params: &P, out: &mut Vec<u8>) {
        let jsonrpc = "2.0";
        write(
            &NotificationLine {
                jsonrpc,
                method,
                params,
            },
            out,
        );
    }
    let method = notification.method();
    match notification {
        Notification::Progress(params) => line(method, params, out),
        Notification::Ready(params) => line(method, params, out),
        Notification::Started(params) => line(method, params, out),
        Notification::Token(params) => line(method, params, out),
        Notification::PromptLogprobs(params) => line(method, params, out),
        Notification::Fatal(params) => line(method, params, out),
    }
}

fn write<T: Serialize>(line: &T, out: &mut Vec<u8>) {
    let written = serde_json::to_writer(&mut *out, line);
    // Our types have string keys only and a Vec takes every byte, so there is nothing that could fail.
    debug_assert!(written.is_ok(), "a type of ours cannot be written");
    out.push(b'\n');
}
