//! A client that writes without reading, or reads slowly: the worker pauses, stays small, drops nothing and goes on by itself.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::process::{ChildStdin, ChildStdout};
use std::time::{Duration, Instant};

use rustix::io::{Errno, ioctl_fionbio, ioctl_fionread};
use serde_json::{Value, json};
use worker_orcd_protocol::limits;

use crate::common::say;
use crate::support::{Running, fake, generate, resident_bytes};

/// What a worker with a fake model may have in use, whatever is done to it: 4 MiB of output, 16 MiB of input, and itself.
const RESIDENT_MAX: u64 = 64 << 20;

/// Output that the system's pipe takes beside what the worker holds.
const PIPE_BYTES: usize = 64 * 1024;

/// Writes what the worker takes, until it has taken nothing for a while; says how much that was.
fn write_until_stuck(stdin: &ChildStdin, bytes: &[u8]) -> usize {
    ioctl_fionbio(stdin, true).expect("our end only");
    let mut written = 0;
    let mut since = Instant::now();
    while written < bytes.len() && since.elapsed() < Duration::from_millis(400) {
        match rustix::io::write(stdin, &bytes[written..]) {
            Ok(more) => {
                written += more;
                since = Instant::now();
            }
            Err(Errno::AGAIN) => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => panic!("{error}"),
        }
    }
    ioctl_fionbio(stdin, false).expect("our end only");
    written
}

fn assert_small(worker: &Running) {
    let resident = resident_bytes(worker.child.id());
    assert!(resident < RESIDENT_MAX, "{resident} bytes resident");
}

/// The lines that answer requests, and how often each id is answered.
fn answered(said: &[Value]) -> HashMap<String, usize> {
    let mut times = HashMap::new();
    for line in said.iter().filter(|line| line.get("method").is_none()) {
        *times.entry(line["id"].to_string()).or_default() += 1;
    }
    times
}

/// Reads on, lets the rest of the requests in, and says all that was said.
fn resume(worker: &mut Running, stdin: ChildStdin, stdout: ChildStdout, rest: &[u8]) -> Vec<Value> {
    worker.read(stdout);
    let mut stdin = stdin;
    stdin.write_all(rest).expect("the worker reads");
    drop(stdin);
    let said = worker.rest();
    assert_eq!(worker.code(), Some(0));
    said
}

#[test]
fn a_flood_of_health_without_a_reader_stops_the_input() {
    let (mut worker, stdout) = Running::start_unread(fake("", &[]));
    let stdin = worker.stdin.take().expect("stdin");
    let total = 100_000;
    let lines: Vec<String> = (0..total)
        .map(|id| format!("{{\"id\":{id},\"method\":\"health\"}}\n"))
        .collect();
    let bytes = lines.concat();
    let written = write_until_stuck(&stdin, bytes.as_bytes());
    assert!(written < bytes.len(), "all was read though nobody listened");
    worker.wait_until_still();
    assert_small(&worker);
    let waits = ioctl_fionread(&stdin).expect("a pipe") as usize;
    let taken = bytes[..written - waits].lines().count();
    let said = resume(&mut worker, stdin, stdout, &bytes.as_bytes()[written..]);
    let answers: Vec<_> = said.iter().filter(|m| m.get("method").is_none()).collect();
    assert_eq!(answers.len(), total);
    assert!((0..total).all(|id| answers[id]["id"] == id));
    // What was taken before the brake is the limit, and what one read brings at most.
    let made: usize = answers[..taken].iter().map(|m| m.to_string().len()).sum();
    let limit = limits::OUTPUT_PAUSE_INPUT_BYTES;
    say(&format!(
        "stdin paused with answers of {made} bytes taken in"
    ));
    assert!(made > limit && made < 2 * limit, "{made}");
}

#[test]
fn decoding_pauses_and_health_goes_on() {
    let (mut worker, stdout) = Running::start_unread(fake("", &["--ctx", "65536"]));
    let params = json!({"prompt": "p", "ignore_eos": true, "max_tokens": 20000});
    worker.say(&generate(1, params));
    worker.wait_until_still();
    assert_small(&worker);
    worker.say(&json!({"id": "h", "method": "health"}));
    std::thread::sleep(Duration::from_millis(50));
    worker.read(stdout);
    let before = worker.until(|line| line["id"] == "h");
    let bytes: usize = before.iter().map(|line| line.to_string().len() + 1).sum();
    say(&format!("decoding paused after {bytes} bytes"));
    let limit = limits::OUTPUT_PAUSE_DECODE_BYTES;
    assert!(bytes > limit && bytes < limit + 4 * PIPE_BYTES, "{bytes}");
    let after = worker.until(|line| line["id"] == 1);
    let tokens = before.iter().chain(&after);
    let indexes: Vec<_> = tokens
        .filter(|m| m["method"] == "token")
        .map(|m| m["params"]["index"].as_u64().expect("an index"))
        .collect();
    assert!(indexes.into_iter().eq(0..20000));
    drop(worker.stdin.take());
    assert_eq!(worker.code(), Some(0));
}

#[test]
fn a_flood_of_generate_is_refused_and_each_refusal_is_told() {
    let (mut worker, stdout) = Running::start_unread(fake("", &["--queue", "8"]));
    let stdin = worker.stdin.take().expect("stdin");
    let total = 30_000;
    let lines: Vec<String> = (0..total)
        .map(|id| {
            format!(
                "{}\n",
                generate(id, json!({"prompt": "p", "max_tokens": 2}))
            )
        })
        .collect();
    let bytes = lines.concat();
    let written = write_until_stuck(&stdin, bytes.as_bytes());
    worker.wait_until_still();
    assert_small(&worker);
    let said = resume(&mut worker, stdin, stdout, &bytes.as_bytes()[written..]);
    let times = answered(&said);
    assert!(times.len() == total && times.values().all(|times| *times == 1));
    let code = |line: &&Value| line["error"]["data"]["code"] == "QUEUE_FULL";
    let refused = said.iter().filter(code).count();
    let done = said
        .iter()
        .filter(|line| line["result"].is_object())
        .count();
    assert_eq!(refused + done, total);
    assert!(done > 8, "nothing ran");
}

#[test]
fn everything_at_once_and_a_slow_reader() {
    let (mut worker, mut stdout) = Running::start_unread(fake("", &[]));
    let content = "word ".repeat(20_000);
    let line = |id: u32| match id {
        _ if id % 1000 == 7 => {
            let params = json!({"content": content, "with_pieces": true});
            json!({"id": id, "method": "tokenize", "params": params}).to_string()
        }
        _ if id % 10 == 3 => {
            generate(id, json!({"prompt": "p", "max_tokens": 50, "logprobs": 5})).to_string()
        }
        _ if id % 10 == 5 => format!("{{\"id\":{id},\"method\":\"nothing\"}}"),
        _ => format!("{{\"id\":{id},\"method\":\"health\"}}"),
    };
    let total = 10_000u32;
    let lines: Vec<String> = (0..total).map(line).collect();
    let mut stdin = worker.stdin.take().expect("stdin");
    let writer = std::thread::spawn(move || {
        for line in lines {
            writeln!(stdin, "{line}").expect("the worker reads");
        }
    });
    std::thread::sleep(Duration::from_millis(200));
    let (mut text, mut buffer) = (Vec::new(), vec![0u8; 128 * 1024]);
    let mut resident = 0;
    loop {
        std::thread::sleep(Duration::from_millis(1));
        match stdout.read(&mut buffer).expect("readable") {
            0 => break,
            read => text.extend_from_slice(&buffer[..read]),
        }
        resident = resident.max(resident_bytes(worker.child.id()));
    }
    writer.join().expect("a writer");
    let text = String::from_utf8(text).expect("UTF-8");
    let said: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let times = answered(&said);
    assert!(times.len() == total as usize && times.values().all(|times| *times == 1));
    let pieces = said.iter().filter(|m| m["result"]["pieces"].is_array());
    assert_eq!(pieces.count(), 10);
    say(&format!(
        "{} bytes read slowly, {resident} bytes resident at most",
        text.len()
    ));
    assert!(resident < RESIDENT_MAX, "{resident}");
    assert_eq!(worker.code(), Some(0));
}
