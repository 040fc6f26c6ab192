//! Every kind of descriptor as stdin, stdout and stderr.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use serde_json::{Value, json};

use crate::support::{PATIENCE, Running, generate, with_model};

#[test]
fn a_file_of_any_length_gets_no_queue_full() {
    let Some(mut command) = with_model(&["--queue", "2"]) else {
        return;
    };
    let mut input = tempfile::tempfile().expect("a file");
    for id in 0..100 {
        writeln!(
            input,
            "{}",
            generate(id, json!({"prompt": "p", "max_tokens": 1}))
        )
        .expect("written");
        writeln!(
            input,
            "{}",
            json!({"id": format!("t{id}"), "method": "tokenize", "params": {"content": "p"}})
        )
        .expect("written");
    }
    input.rewind().expect("rewound");
    let mut output = tempfile::tempfile().expect("a file");
    command
        .stdin(input)
        .stdout(output.try_clone().expect("cloned"));
    let mut worker = Running::start(command);
    assert_eq!(worker.code(), Some(0));
    output.rewind().expect("rewound");
    let mut text = String::new();
    output.read_to_string(&mut text).expect("UTF-8");
    let said: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(
        said.iter().filter(|m| m.get("result").is_some()).count(),
        200
    );
    assert!(said.iter().all(|m| m.get("error").is_none()));
}

#[test]
fn one_socket_for_both_directions() {
    let Some(mut command) = with_model(&[]) else {
        return;
    };
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let theirs = OwnedFd::from(theirs);
    command
        .stdin(theirs.try_clone().expect("cloned"))
        .stdout(theirs);
    let mut worker = Running::start(command);
    worker.read(ours.try_clone().expect("cloned"));
    // The command keeps no end of the pair: it was moved into the child.
    let mut writer = ours.try_clone().expect("cloned");
    writeln!(
        writer,
        "{}",
        generate(1, json!({"prompt": "Hello", "max_tokens": 3}))
    )
    .expect("written");
    assert_eq!(worker.response(1)["result"]["finish_reason"], "length");
    ours.shutdown(std::net::Shutdown::Write).expect("shut down");
    assert_eq!(worker.code(), Some(0));
}

#[test]
fn a_socket_that_is_closed_ends_the_worker() {
    let Some(mut command) = with_model(&[]) else {
        return;
    };
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let theirs = OwnedFd::from(theirs);
    command
        .stdin(theirs.try_clone().expect("cloned"))
        .stdout(theirs);
    let mut worker = Running::start(command);
    let mut one = [0u8; 1];
    (&ours).read_exact(&mut one).expect("a byte");
    drop(ours);
    let (status, took) = worker.wait();
    assert_eq!(status.code(), Some(74));
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn inherited_descriptors_keep_their_flags() {
    let Some(mut command) = with_model(&[]) else {
        return;
    };
    let (stdin_reader, mut stdin_writer) = std::io::pipe().expect("a pipe");
    let (stdout_reader, stdout_writer) = std::io::pipe().expect("a pipe");
    let (stderr_reader, stderr_writer) = std::io::pipe().expect("a pipe");
    let kept: [OwnedFd; 3] = [
        stdin_reader.try_clone().expect("cloned").into(),
        stdout_writer.try_clone().expect("cloned").into(),
        stderr_writer.try_clone().expect("cloned").into(),
    ];
    let flags = || {
        kept.each_ref()
            .map(|fd| rustix::fs::fcntl_getfl(fd.as_fd()).expect("flags"))
    };
    let before = flags();
    command
        .stdin(stdin_reader)
        .stdout(stdout_writer)
        .stderr(stderr_writer);
    let mut worker = Running::start(command);
    worker.read(stdout_reader);
    writeln!(
        stdin_writer,
        "{}",
        generate(1, json!({"prompt": "Hello", "max_tokens": 3}))
    )
    .expect("written");
    worker.response(1);
    assert_eq!(flags(), before);
    assert!(before.iter().all(|flags| !flags.contains(OFlags::NONBLOCK)));
    drop(stdin_writer);
    assert_eq!(worker.code(), Some(0));
    drop(stderr_reader);
}

#[test]
fn nothing_at_all_as_stdin_and_stdout() {
    let Some(mut command) = with_model(&[]) else {
        return;
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    assert_eq!(Running::start(command).code(), Some(0));
}

#[test]
fn a_full_disk_is_a_lost_reader() {
    let Some(mut command) = with_model(&[]) else {
        return;
    };
    let full = File::options()
        .write(true)
        .open("/dev/full")
        .expect("/dev/full");
    command.stdout(full);
    assert_eq!(Running::start(command).code(), Some(74));
}

#[test]
fn a_stderr_that_nobody_reads_blocks_nothing() {
    let Some(mut command) = with_model(&[]) else {
        return;
    };
    let (reader, writer) = std::io::pipe().expect("a pipe");
    // Filled to the brim before the worker starts.
    rustix::io::ioctl_fionbio(&writer, true).expect("nonblocking");
    while rustix::io::write(&writer, &[b'x'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).expect("blocking");
    command.stderr(writer);
    let mut worker = Running::start(command);
    for id in 0..20 {
        worker.say(&generate(id, json!({"prompt": "p", "max_tokens": 1})));
    }
    drop(worker.stdin.take());
    assert_eq!(
        worker
            .rest()
            .iter()
            .filter(|m| m.get("result").is_some())
            .count(),
        20
    );
    assert_eq!(worker.code(), Some(0));
    drop(reader);
}

#[test]
fn a_slow_reader_gets_everything() {
    let Some(command) = with_model(&[]) else {
        return;
    };
    let (mut worker, mut stdout) = Running::start_unread(command);
    let content = "word ".repeat(100_000);
    for id in 0..3 {
        worker.say(&json!({"id": id, "method": "tokenize", "params": {"content": content, "with_pieces": true}}));
    }
    drop(worker.stdin.take());
    let (mut text, mut buffer) = (Vec::new(), vec![0u8; 300_000]);
    let since = Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(1));
        match stdout.read(&mut buffer).expect("readable") {
            0 => break,
            read => text.extend_from_slice(&buffer[..read]),
        }
        assert!(since.elapsed() < PATIENCE);
    }
    let text = String::from_utf8(text).expect("UTF-8");
    let results: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(
        results
            .iter()
            .filter(|m| m["result"]["pieces"].is_array())
            .count(),
        3
    );
    assert_eq!(worker.code(), Some(0));
}
