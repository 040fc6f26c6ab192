//! Any bytes on stdin: cut into lines the same way however they come, and each line a call that survives being written and read
//! again, or an error of the documented shape.

use worker_orcd_protocol::codec::{
    Incoming, Line, LineReader, Reject, decode_line, decode_output, encode_call, encode_line,
};
use worker_orcd_protocol::{Call, ErrorCode, Outgoing, limits};

use super::meter;

/// What a line may hold in memory besides what is in proportion to it: the wire's tables, made at the first line.
const TABLE_BYTES: usize = 4 << 20;

/// Bytes in memory for a byte of a line: `0,` is a value, and a value takes some dozens of bytes in vectors that grow by doubling.
const BYTES_PER_BYTE: usize = 128;

/// The longest error: 32 faults, each with a path and a sentence whose quotes are cut.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// Cuts and decodes.
pub fn run(bytes: &[u8]) {
    let whole = lines(bytes, bytes.len().max(1));
    for chunk in [1, 2, 7] {
        assert_eq!(lines(bytes, chunk), whole, "in pieces of {chunk}");
    }
    let raw = std::iter::once(bytes);
    for line in raw.chain(whole.iter().map(Vec::as_slice)) {
        let limit = TABLE_BYTES + line.len() * BYTES_PER_BYTE;
        match meter::within(limit, || decode_line(line)) {
            Ok(call) => check_call(call),
            Err(reject) => check_reject(reject),
        }
    }
}

/// The lines of an input that comes in pieces of `chunk` bytes.
fn lines(bytes: &[u8], chunk: usize) -> Vec<Vec<u8>> {
    let mut reader = LineReader::new();
    let mut lines = Vec::new();
    let mut keep = |line: Line<'_>| match line {
        Line::Complete(line) => {
            let blank = |byte: &u8| b" \t\r".contains(byte);
            assert!(!line.contains(&b'\n') && !line.iter().all(blank));
            lines.push(line.to_vec());
        }
        Line::TooLong { .. } => assert!(bytes.len() > limits::LINE_BYTES_MAX),
    };
    for piece in bytes.chunks(chunk) {
        reader.push(piece);
        while let Some(line) = reader.next() {
            keep(line);
        }
    }
    if let Some(line) = reader.finish() {
        keep(line);
    }
    lines
}

/// A call that is written and read again is the same call.
fn check_call(call: Call) {
    let mut line = Vec::new();
    encode_call(&call, &mut line);
    let text = one_line(&line);
    assert_eq!(decode_line(text), Ok(call), "{}", text.escape_ascii());
}

/// An error is one that a line can have, says what it says twice the same way, and is read as it was written.
fn check_reject(reject: Reject) {
    let (id, error) = (reject.id.clone(), reject.error.clone());
    let kinds = [
        ErrorCode::ParseError,
        ErrorCode::InvalidRequest,
        ErrorCode::MethodNotFound,
        ErrorCode::InvalidParams,
    ];
    assert!(kinds.contains(&error.data.code), "{error:?}");
    assert_eq!(error.code, error.data.code.number());
    assert_eq!(error.data.retriable, error.data.code.retriable());
    assert!(!error.message.is_empty());
    assert!(error.data.errors.len() <= limits::FAULTS_MAX);
    if let Some(first) = error.data.errors.first() {
        // the request as a whole has no field
        let field = Some(&first.field).filter(|field| !field.is_empty());
        assert_eq!(error.data.param.as_ref(), field);
    }
    let mut line = Vec::new();
    encode_line(&Outgoing::from(reject), &mut line);
    assert!(line.len() <= ERROR_BYTES_MAX, "{} bytes", line.len());
    let outcome = Err(error);
    assert_eq!(
        decode_output(one_line(&line)),
        Ok(Incoming::Response { id, outcome })
    );
}

/// What was written, without the LF that ends it.
fn one_line(bytes: &[u8]) -> &[u8] {
    let (last, line) = bytes.split_last().expect("a line");
    assert!(*last == b'\n' && !line.contains(&b'\n'));
    line
}
