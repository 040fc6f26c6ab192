//! Spawns a worker, asks one question, and prints the answer as it comes. Only the standard library and serde_json.
//!
//! ```text
//! cargo run -p worker-orcd-harness --example spawn -- MODEL.gguf
//! ```
//!
//! $WORKER_ORCD_BIN names the worker; without it, it is the `worker-orcd` on $PATH.

use std::error::Error;
use std::io::{BufRead, BufReader, Write, stdout};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let model = std::env::args_os()
        .nth(1)
        .ok_or("usage: spawn MODEL.gguf")?;
    let program = std::env::var_os("WORKER_ORCD_BIN").unwrap_or_else(|| "worker-orcd".into());
    let mut worker = Command::new(program)
        .arg("--model")
        .arg(model)
        .args(["--device", "cpu"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;

    // Requests may be sent at once; they wait for the model. Closing stdin says: when that is done, exit.
    let mut stdin = worker.stdin.take().ok_or("no stdin")?;
    let messages = json!([{"role": "user", "content": "What is the capital of France?"}]);
    let params = json!({"messages": messages, "max_tokens": 32, "temperature": 0});
    writeln!(
        stdin,
        "{}",
        json!({"jsonrpc": "2.0", "id": 1, "method": "generate", "params": params})
    )?;
    drop(stdin);

    for line in BufReader::new(worker.stdout.take().ok_or("no stdout")?).lines() {
        let message: Value = serde_json::from_str(&line?)?;
        match message["method"].as_str() {
            Some("token") => write!(
                stdout(),
                "{}",
                message["params"]["text"].as_str().unwrap_or("")
            )?,
            Some("fatal") => return Err(message["params"]["error"]["message"].to_string().into()),
            Some(_) => {} // progress, ready, started
            None if message["error"].is_object() => {
                return Err(message["error"]["message"].to_string().into());
            }
            None => {
                let result = &message["result"];
                writeln!(stdout(), "{}", result["tail"].as_str().unwrap_or(""))?;
                writeln!(
                    stdout(),
                    "({}, {} tokens)",
                    result["finish_reason"],
                    result["usage"]["completion_tokens"]
                )?;
            }
        }
        stdout().flush()?;
    }
    let status = worker.wait()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("the worker ended: {status}").into())
    }
}
