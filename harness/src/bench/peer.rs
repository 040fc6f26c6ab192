//! `--peer CMD`: another engine, measured in turns with the worker. It is a command line, and this is all that it has to do:
//!
//! It is run through `sh -c` with ORCD_BENCH ("decode" or "prefill"), ORCD_MODEL (the file), ORCD_TOKENS (how many tokens are timed),
//! ORCD_DEPTH (how many stand before them, which are not timed) and ORCD_IDS (the ids of all of them, separated by commas) in its
//! environment. A decode takes a token a step, a prefill all at once. It prints one line of JSON with `tok_s`; other lines are passed over.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What a peer is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// So many steps of one token, after so many tokens.
    Decode {
        /// Tokens before.
        depth: u64,
        /// Tokens that are timed.
        tokens: u64,
    },
    /// A prompt.
    Prefill {
        /// Its tokens.
        tokens: u64,
    },
}

/// Runs the peer once; its tokens a second.
///
/// # Errors
/// When it cannot be run, fails, or says no number.
pub fn run(peer: &str, model: &str, vocab: u64, task: Task) -> Result<f64> {
    let (name, depth, tokens) = match task {
        Task::Decode { depth, tokens } => ("decode", depth, tokens),
        Task::Prefill { tokens } => ("prefill", 0, tokens),
    };
    let ids: Vec<String> = (0..depth + tokens)
        .map(|i| id(i, vocab).to_string())
        .collect();
    let run = Command::new("sh")
        .args(["-c", peer])
        .env("ORCD_BENCH", name)
        .env("ORCD_MODEL", model)
        .env("ORCD_TOKENS", tokens.to_string())
        .env("ORCD_DEPTH", depth.to_string())
        .env("ORCD_IDS", ids.join(","))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("the peer cannot be run: {peer}"))?;
    ensure!(
        run.status.success(),
        "the peer failed ({}): {peer}",
        run.status
    );
    let said = String::from_utf8_lossy(&run.stdout);
    let rate = said.lines().rev().find_map(|line| {
        let value: Value = serde_json::from_str(line).ok()?;
        value.get("tok_s")?.as_f64()
    });
    rate.filter(|rate| rate.is_finite() && *rate > 0.0)
        .with_context(|| format!("the peer printed no {{\"tok_s\": NUMBER}}: {peer}"))
}

/// Token number `i` of what is measured: the same for every engine.
pub fn id(i: u64, vocab: u64) -> u32 {
    ((100 + i * 37 % 1000) % vocab.max(1)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_told_everything_and_its_number_is_read() {
        let task = Task::Decode {
            depth: 2,
            tokens: 3,
        };
        let peer = r#"echo loading; echo "{\"tok_s\": $ORCD_TOKENS.5}"; test "$ORCD_BENCH:$ORCD_MODEL:$ORCD_DEPTH:$ORCD_IDS" = "decode:m:2:100,137,174,211,248""#;
        assert_eq!(run(peer, "m", 1000, task).unwrap(), 3.5);
        for wrong in ["false", "true", r#"echo '{"tok_s": 0}'"#, "echo 12"] {
            assert!(run(wrong, "m", 1000, task).is_err(), "{wrong}");
        }
    }
}
