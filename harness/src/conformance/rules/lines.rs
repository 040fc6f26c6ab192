//! What holds for a line by itself: it is JSON, and it is as protocol/schema.json says.

use std::collections::BTreeMap;

use serde_json::Value;
use worker_orcd_protocol::error::{ErrorCode, Fault};
use worker_orcd_protocol::method::Method;
use worker_orcd_protocol::schema::{Definition, Definitions};

use super::{Breach, Rule, hold};

/// Holds lines against the schema.
#[derive(Debug)]
pub struct Lines {
    definitions: Definitions,
    any: Definition,
    results: BTreeMap<&'static str, Definition>,
}

impl Lines {
    pub fn new() -> anyhow::Result<Lines> {
        let definitions = Definitions::new();
        let fault = |fault: Fault| anyhow::Error::msg(fault.message);
        let results = Method::ALL.into_iter().map(|method| {
            let result = definitions.result_of(method).map_err(fault)?;
            Ok((method.name(), result))
        });
        Ok(Lines {
            any: definitions.named("OutputLine").map_err(fault)?,
            results: results.collect::<anyhow::Result<_>>()?,
            definitions,
        })
    }

    /// What a line says.
    pub fn read(&self, line: &[u8]) -> Result<Value, Breach> {
        let breach = |what: String| Breach {
            rule: Rule::Lines,
            what,
        };
        let text = std::str::from_utf8(line)
            .map_err(|error| breach(format!("a line that is not UTF-8: {error}")))?;
        let message: Value = serde_json::from_str(text)
            .map_err(|error| breach(format!("a line that is not JSON ({error}): {text}")))?;
        hold(message["jsonrpc"] == "2.0", Rule::Lines, || {
            format!("a line without \"jsonrpc\":\"2.0\": {text}")
        })?;
        let parts = ["method", "result", "error"];
        let count = parts
            .iter()
            .filter(|part| message.get(part).is_some())
            .count();
        hold(count == 1, Rule::Lines, || {
            format!("a line with not exactly one of method, result and error: {text}")
        })?;
        if !self.is_known(&message) {
            return Ok(message);
        }
        self.any
            .check(text)
            .map_err(|faults| against_schema(&faults, text))?;
        Ok(message)
    }

    /// Whether it is anything but a notification that this version of the protocol does not have.
    pub fn is_known(&self, message: &Value) -> bool {
        let method = message["method"].as_str();
        method.is_none_or(|method| self.definitions.has_notification(method))
    }

    /// Holds a result against what its method promises.
    pub fn result(&self, method: Method, result: &Value) -> Result<(), Breach> {
        let Some(definition) = self.results.get(method.name()) else {
            return Ok(());
        };
        let text = result.to_string();
        definition
            .check(&text)
            .map_err(|faults| against_schema(&faults, &text))
    }
}

fn against_schema(faults: &[Fault], text: &str) -> Breach {
    let faults: Vec<_> = faults.iter().map(|fault| fault.message.as_str()).collect();
    Breach {
        rule: Rule::Schema,
        what: format!("{}: {text}", faults.join("; ")),
    }
}

/// Number, name and `retriable` belong together, and `param` is the first of the faults.
pub fn error_is_consistent(error: &Value) -> Result<(), Breach> {
    let data = &error["data"];
    let code = ErrorCode::ALL
        .into_iter()
        .find(|code| data["code"] == code.name());
    let agrees = code.is_some_and(|code| {
        error["code"] == code.number() && data["retriable"] == code.retriable()
    });
    hold(agrees, Rule::Errors, || {
        format!("code, data.code and data.retriable do not belong together: {error}")
    })?;
    let first = &data["errors"][0]["field"];
    let leads = first.is_null() || first == "" || data["param"] == *first;
    hold(leads, Rule::Errors, || {
        format!("param is not the first field of errors: {error}")
    })
}
