//! Cutting bytes into lines: the same for any way in which they come, with bounded memory, in linear time.

use std::time::Instant;

use proptest::prelude::*;
use worker_orcd_protocol::codec::{Line, LineReader};
use worker_orcd_protocol::limits::LINE_BYTES_MAX;

#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Line(Vec<u8>),
    TooLong(u64),
}

fn seen(line: Line<'_>) -> Seen {
    match line {
        Line::Complete(bytes) => Seen::Line(bytes.to_vec()),
        Line::TooLong { bytes } => Seen::TooLong(bytes),
    }
}

/// Reads chunks to the end of input.
fn read<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<Seen> {
    let mut reader = LineReader::new();
    let mut lines = Vec::new();
    for chunk in chunks {
        reader.push(chunk);
        while let Some(line) = reader.next() {
            lines.push(seen(line));
        }
    }
    lines.extend(reader.finish().map(seen));
    assert!(
        reader.finish().is_none() && reader.next().is_none(),
        "the end comes once"
    );
    lines
}

/// The same in the plainest way, for lines within the limit.
fn naive(bytes: &[u8]) -> Vec<Seen> {
    bytes
        .split(|&byte| byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .filter(|line| !line.iter().all(|byte| b" \t\r".contains(byte)))
        .map(|line| Seen::Line(line.to_vec()))
        .collect()
}

fn lines(texts: &[&str]) -> Vec<Seen> {
    texts
        .iter()
        .map(|text| Seen::Line(text.as_bytes().to_vec()))
        .collect()
}

#[test]
fn line_ends_and_blank_lines() {
    assert_eq!(
        read([&b"a\nb\r\n\n\r\n \t\nc\rd\n\re"[..]]),
        lines(&["a", "b", "c\rd", "\re"])
    );
    assert_eq!(read([&b"last"[..]]), lines(&["last"]));
    assert_eq!(read([&b"last\r"[..]]), lines(&["last"]));
    assert_eq!(read([&b"a\n  "[..]]), lines(&["a"]));
    assert_eq!(read([&b""[..]]), []);
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_lines(
        pieces in prop::collection::vec(prop_oneof![Just("\n"), Just("\r"), Just("\r\n"), Just(" "), Just("a"), Just("{}"), Just("\0")], 0..60),
        size in 1usize..12,
    ) {
        let bytes = pieces.concat().into_bytes();
        prop_assert_eq!(read(bytes.chunks(size)), naive(&bytes));
        prop_assert_eq!(read([bytes.as_slice()]), naive(&bytes));
    }
}

#[test]
fn exactly_the_limit_passes_and_one_byte_more_does_not() {
    let line = |length: usize, end: &str| {
        [
            vec![b'x'; length],
            end.as_bytes().to_vec(),
            b"after\n".to_vec(),
        ]
        .concat()
    };
    for chunk in [64 * 1024, 1_000_003, usize::MAX] {
        for end in ["\n", "\r\n"] {
            let at = line(LINE_BYTES_MAX, end);
            let lines = read(at.chunks(chunk));
            assert_eq!(lines.len(), 2);
            assert!(matches!(&lines[0], Seen::Line(bytes) if bytes.len() == LINE_BYTES_MAX));
            let over = line(LINE_BYTES_MAX + 1, end);
            let after = Seen::Line(b"after".to_vec());
            assert_eq!(
                read(over.chunks(chunk)),
                [Seen::TooLong(LINE_BYTES_MAX as u64 + 1), after]
            );
        }
        let last = vec![b'x'; LINE_BYTES_MAX];
        assert!(
            matches!(&read(last.chunks(chunk))[..], [Seen::Line(bytes)] if bytes.len() == LINE_BYTES_MAX)
        );
        let last = vec![b'x'; LINE_BYTES_MAX + 1];
        assert_eq!(
            read(last.chunks(chunk)),
            [Seen::TooLong(LINE_BYTES_MAX as u64 + 1)]
        );
    }
}

#[test]
fn a_line_far_too_long_is_not_kept() {
    let chunk = vec![b'x'; 64 * 1024];
    let mut reader = LineReader::new();
    let count = 10 * LINE_BYTES_MAX / chunk.len();
    for _ in 0..count {
        reader.push(&chunk);
        assert!(reader.next().is_none());
        assert!(reader.pending_bytes() <= LINE_BYTES_MAX + 1);
    }
    assert!(reader.pending_bytes() <= 1);
    reader.push(b"\r\nshort\n");
    assert_eq!(
        reader.next().map(seen),
        Some(Seen::TooLong((count * chunk.len()) as u64))
    );
    assert_eq!(reader.next().map(seen), Some(Seen::Line(b"short".to_vec())));
    assert_eq!(reader.next(), None);
}

#[test]
fn one_byte_at_a_time_and_a_hundred_thousand_at_once_take_linear_time() {
    let start = Instant::now();
    let bytes = vec![b'x'; 4 * 1024 * 1024];
    assert_eq!(read(bytes.chunks(1)).len(), 1);
    let many = "{\"id\":1,\"method\":\"health\"}\n".repeat(100_000);
    assert_eq!(read([many.as_bytes()]).len(), 100_000);
    assert_eq!(read(many.as_bytes().chunks(7)).len(), 100_000);
    // Quadratic work would take minutes.
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
}

#[test]
fn after_a_long_line_the_buffer_shrinks() {
    let mut reader = LineReader::new();
    reader.push(&vec![b'x'; LINE_BYTES_MAX]);
    reader.push(b"\n");
    assert!(matches!(reader.next(), Some(Line::Complete(_))));
    assert_eq!(reader.next(), None);
    reader.push(b"a\n");
    assert!(
        reader.capacity_bytes() <= 1024 * 1024,
        "{}",
        reader.capacity_bytes()
    );
}
