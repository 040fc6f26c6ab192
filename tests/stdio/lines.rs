//! Lines as no client should write them, and as one may.

use std::io::Write;

use serde_json::{Value, json};
use worker_orcd_protocol::limits;

use crate::support::{Running, fake};

/// What the worker answers to bytes, one answer a line, and to the end of input.
fn answers(bytes: &[u8]) -> Vec<Value> {
    let mut worker = Running::start(fake("", &["--queue", "1024"]));
    worker.until_method("ready");
    let mut stdin = worker.stdin.take().expect("stdin");
    stdin.write_all(bytes).expect("written");
    drop(stdin);
    let said = worker.rest();
    assert_eq!(worker.code(), Some(0));
    said
}

/// As above; the error codes alone, 0 where there is none.
fn codes(bytes: &[u8]) -> Vec<i64> {
    let code = |line: &Value| line["error"]["code"].as_i64().unwrap_or(0);
    answers(bytes).iter().map(code).collect()
}

/// A `health` that is so many bytes long.
fn health_of(bytes: usize) -> Vec<u8> {
    let mut line = b"{\"id\":1,\"method\":\"health\"}".to_vec();
    let missing = bytes.checked_sub(line.len()).expect("longer than that");
    line.splice(8..8, std::iter::repeat_n(b' ', missing));
    line
}

#[test]
fn a_line_has_its_length() {
    let longest = limits::LINE_BYTES_MAX;
    let mut bytes = health_of(longest);
    bytes.extend_from_slice(b"\r\n");
    assert_eq!(codes(&bytes), [0]);
    for len in [longest + 1, 10 * longest] {
        let mut bytes = health_of(len);
        bytes.extend_from_slice(b"\n{\"id\":2,\"method\":\"health\"}\n");
        let said = answers(&bytes);
        assert_eq!(said[0]["error"]["code"], -32600);
        assert_eq!(said[0]["id"], Value::Null);
        assert_eq!(said[0]["error"]["data"]["details"]["line_bytes"], len);
        assert_eq!(said[1]["id"], 2);
        assert_eq!(said.len(), 2);
    }
    // The end of the input is the end of a line too.
    assert_eq!(codes(&health_of(longest)), [0]);
    assert_eq!(codes(&health_of(longest + 1)), [-32600]);
}

#[test]
fn bytes_may_come_one_at_a_time() {
    let mut worker = Running::start(fake("", &[]));
    worker.until_method("ready");
    let stdin = worker.stdin.as_mut().expect("stdin");
    for byte in "\r\n\n{\"id\":\"é\",\"method\":\"health\"}\r\n".bytes() {
        stdin.write_all(&[byte]).expect("written");
    }
    assert_eq!(worker.response("é")["result"]["status"], "ready");
}

#[test]
fn a_hundred_thousand_lines_in_one_write() {
    let count = 100_000;
    let lines: String = (0..count)
        .map(|id| {
            format!("{{\"id\":{id},\"method\":\"cancel\",\"params\":{{\"request_id\":-1}}}}\n")
        })
        .collect();
    let said = answers(lines.as_bytes());
    assert_eq!(said.len(), count);
    for (id, answer) in said.iter().enumerate() {
        assert_eq!(answer["id"], id);
        assert_eq!(answer["result"], json!({"found": false}));
    }
}

#[test]
fn what_is_no_json_is_a_parse_error_and_the_next_line_is_read() {
    let deep = "[".repeat(1 << 20);
    let wrong: [&[u8]; 13] = [
        b"{\"id\":1e999,\"method\":\"health\"}",
        b"\xff\xfe",
        b"{\"id\":1,\"method\":\"health\xc3\"}",
        b"\0",
        b"{\"id\":1,\0\"method\":\"health\"}",
        b"{\"id\":1,\"method\":\"health\0\"}",
        b"{\"id\":1,\"method\":\"health\"",
        b"{\"id\":1,\"method\":\"health\"}}",
        b"{\"id\":NaN,\"method\":\"health\"}",
        b"{\"id\":Infinity,\"method\":\"health\"}",
        b"{\"id\":01,\"method\":\"health\"}",
        b"health",
        b"{\"id\":\"\\ud800\",\"method\":\"health\"}",
    ];
    for line in wrong {
        let mut bytes = line.to_vec();
        bytes.extend_from_slice(b"\n{\"id\":2,\"method\":\"health\"}\n");
        let name = String::from_utf8_lossy(line);
        assert_eq!(codes(&bytes), [-32700, 0], "{name}");
    }
    // What is refused for its depth need not be read to its end; it is one answer in any case.
    let said = answers(format!("{deep}\n{{\"id\":2,\"method\":\"health\"}}\n").as_bytes());
    assert_eq!(said.len(), 2);
    assert!(said[0]["error"]["code"].is_i64());
    assert_eq!(said[1]["id"], 2);
}

#[test]
fn what_is_no_request_is_refused_by_name() {
    for (line, code) in [
        ("[]", -32600),
        ("null", -32600),
        ("7", -32600),
        ("{}", -32600),
        ("[{\"id\":1,\"method\":\"health\"}]", -32600),
        ("{\"id\":1,\"id\":2,\"method\":\"health\"}", -32600),
        ("{\"id\":1,\"method\":\"health\",\"extra\":1}", -32600),
        (
            "{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"health\"}",
            -32600,
        ),
        ("{\"id\":1,\"method\":\"health\",\"params\":null}", -32600),
        ("{\"id\":1,\"method\":\"health\",\"params\":[]}", -32600),
        ("{\"method\":\"health\"}", -32600),
        ("{\"id\":1,\"method\":\"Health\"}", -32601),
        ("{\"id\":1,\"method\":\"\"}", -32601),
        (
            "{\"id\":1,\"method\":\"health\",\"params\":{\"x\":1}}",
            -32602,
        ),
    ] {
        assert_eq!(codes(format!("{line}\n").as_bytes()), [code], "{line}");
    }
}

#[test]
fn numbers_are_what_they_have_to_be() {
    for field in [
        "\"temperature\":-0.1",
        "\"temperature\":2.001",
        "\"temperature\":\"1\"",
        "\"temperature\":null",
        "\"top_p\":0",
        "\"top_p\":1e-999",
        "\"max_tokens\":0",
        "\"max_tokens\":1.0",
        "\"max_tokens\":-1",
        "\"max_tokens\":1e2",
        "\"max_tokens\":99999999999999999999999999",
        "\"seed\":18446744073709551616",
        "\"seed\":-1",
        "\"timeout_ms\":0",
        "\"logprobs\":21",
        "\"prompt\":\"twice\"",
        "\"stop\":[\"\"]",
        "\"prompt_token_ids\":[1]",
        "\"max_token\":1",
    ] {
        let line = format!(
            "{{\"id\":1,\"method\":\"generate\",\"params\":{{\"prompt\":\"p\",{field}}}}}\n"
        );
        let said = answers(line.as_bytes());
        assert_eq!(said.len(), 1, "{field}");
        assert_eq!(said[0]["error"]["code"], -32602, "{field}");
        assert_eq!(said[0]["id"], 1, "{field}");
    }
    let edge = "\"seed\":18446744073709551615,\"temperature\":2,\"top_k\":4294967295,\"min_p\":1,\"max_tokens\":1";
    let line =
        format!("{{\"id\":1,\"method\":\"generate\",\"params\":{{\"prompt\":\"p\",{edge}}}}}\n");
    let last = answers(line.as_bytes()).pop().expect("an answer");
    assert_eq!(last["result"]["seed"], u64::MAX, "{last}");
}

#[test]
fn ids_come_back_as_they_were_or_are_refused() {
    let longest = format!("\"{}\"", "x".repeat(limits::ID_BYTES_MAX));
    let too_long = format!("\"{}\"", "x".repeat(limits::ID_BYTES_MAX + 1));
    for id in [
        "0",
        "-1",
        "9007199254740993",
        "9223372036854775807",
        "-9223372036854775808",
        "\"1\"",
        "\"é\\u0000\\n\\\"\\\\\"",
        "\"\\ud83d\\ude00\"",
        &longest,
    ] {
        let said = answers(format!("{{\"id\":{id},\"method\":\"health\"}}\n").as_bytes());
        let same: Value = serde_json::from_str(id).expect("JSON");
        assert_eq!(said[0]["id"], same);
        assert_eq!(said[0]["result"]["status"], "ready", "{id}");
    }
    for id in [
        "null", "1.5", "1.0", "1e3", "true", "[]", "{}", "-0", &too_long,
    ] {
        let said = answers(format!("{{\"id\":{id},\"method\":\"health\"}}\n").as_bytes());
        assert_eq!(said[0]["error"]["code"], -32600, "{id}");
        assert_eq!(said[0]["id"], Value::Null, "{id}");
        assert_eq!(said.len(), 1, "{id}");
    }
}
