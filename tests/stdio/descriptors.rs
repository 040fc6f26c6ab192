//! Every kind of descriptor as stdin, stdout and stderr.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode};
use serde_json::{Value, json};

use crate::support::{Running, fake, generate};

#[test]
fn a_file_of_any_length_gets_no_queue_full() {
    let mut command = fake("", &["--queue", "2"]);
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
    let mut command = fake("", &[]);
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
        generate(
            1,
            json!({"prompt": "Hello", "max_tokens": 3, "ignore_eos": true})
        )
    )
    .expect("written");
    assert_eq!(worker.response(1)["result"]["finish_reason"], "length");
    ours.shutdown(std::net::Shutdown::Write).expect("shut down");
    assert_eq!(worker.code(), Some(0));
}

#[test]
fn a_socket_that_is_closed_ends_the_worker() {
    let mut command = fake("", &[]);
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
fn a_full_disk_is_a_lost_reader() {
    let mut command = fake("", &[]);
    let full = File::options()
        .write(true)
        .open("/dev/full")
        .expect("/dev/full");
    command.stdout(full);
    assert_eq!(Running::start(command).code(), Some(74));
}

#[test]
fn a_stderr_that_nobody_reads_blocks_nothing() {
    let mut command = fake("", &[]);
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
fn a_stderr_that_others_fill_too_blocks_nothing() {
    let mut command = fake("", &[]);
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    // Siblings on the same stderr take the room that the worker has seen.
    let siblings: Vec<_> = (0..3)
        .map(|_| {
            let mut writer = writer.try_clone().expect("cloned");
            std::thread::spawn(move || while writer.write_all(&[b'x'; 4096]).is_ok() {})
        })
        .collect();
    command.stderr(writer);
    let mut worker = Running::start(command);
    for id in 0..600 {
        // Work that leaves something in the log, room for some of it, and then for nothing more.
        for n in 0..20 {
            let params = json!({"prompt": "p", "max_tokens": 1});
            worker.say(&generate(format!("{id}.{n}"), params));
        }
        for _ in 0..60 {
            reader.read_exact(&mut [0u8; 4096]).expect("something");
        }
        let since = Instant::now();
        worker.say(&json!({"id": id, "method": "health"}));
        worker.response(id);
        let took = since.elapsed();
        assert!(took < Duration::from_secs(5), "it was blocked for {took:?}");
    }
    drop(reader);
    for sibling in siblings {
        sibling.join().expect("a sibling");
    }
    // Nor does it matter that nobody will ever read the log again.
    worker.say(&json!({"id": "last", "method": "health"}));
    worker.response("last");
    drop(worker.stdin.take());
    assert_eq!(worker.code(), Some(0));
}

#[test]
fn a_number_that_is_closed_at_the_start_is_never_taken_by_a_file_of_ours() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("a path").to_owned()
    };
    let template = file("template", "{{ messages[0].content }}");
    let request = generate(
        1,
        json!({"messages": [{"role": "user", "content": "p"}], "max_tokens": 3}),
    )
    .to_string();
    let input = file("input", &request);
    for closed in 0..8 {
        let is_closed = |number: i32| closed & (1 << number) != 0;
        let flags = ["--chat-template", &template, "--input", &input];
        // With a file to read from, and without.
        for flags in [&flags[..], &flags[..2]] {
            let mut shell = String::from("exec \"$0\" \"$@\"");
            for number in (0..3).filter(|number| is_closed(*number)) {
                shell.push_str(&format!(" {number}>&-"));
            }
            let worker = fake("", flags);
            let mut command = Command::new("sh");
            command.args(["-c", &shell]).arg(worker.get_program());
            command.args(worker.get_args());
            let mut stdin = tempfile::tempfile().expect("a file");
            stdin.write_all(request.as_bytes()).expect("written");
            stdin.rewind().expect("rewound");
            let output = command.stdin(stdin).output().expect("it runs");
            assert_eq!(output.status.code(), Some(0), "{closed:03b}");
            let (said, log) = (
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
            );
            // A closed stdin is one that has ended, a closed stdout is one that nobody listens to.
            let hears = !is_closed(0) || flags.len() > 2;
            assert_eq!(
                said.contains("finish_reason"),
                hears && !is_closed(1),
                "{closed:03b}: {said}"
            );
            assert!(
                said.lines().all(|line| line.starts_with("{\"jsonrpc\"")),
                "{said}"
            );
            assert_eq!(log.contains("execute_end"), hears && !is_closed(2));
            assert!(!log.contains("jsonrpc"), "{log}");
        }
    }
    let left = |path: &str| std::fs::read_to_string(path).expect("readable");
    assert_eq!(left(&input), request);
    assert_eq!(left(&template), "{{ messages[0].content }}");
}

#[test]
fn what_cannot_be_read_is_told() {
    let mut command = fake("", &[]);
    command.stdin(File::open("/").expect("a folder"));
    let mut worker = Running::start(command);
    let said = worker.rest();
    let last = said.last().expect("a line");
    assert_eq!(last["method"], "fatal");
    let message = last["params"]["error"]["message"].as_str();
    assert!(message.expect("words").contains("stdin"), "{last}");
    assert_eq!(worker.code(), Some(74));
}

#[test]
fn descriptors_that_do_not_block_and_belong_to_the_parent_are_as_good() {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    rustix::io::ioctl_fionbio(&theirs, true).expect("nonblocking");
    rustix::io::ioctl_fionbio(&writer, true).expect("nonblocking");
    let mut command = fake("", &["--ctx", "8192"]);
    command.stdin(OwnedFd::from(theirs)).stdout(writer);
    let mut worker = Running::start(command);
    let mut asker = &ours;
    let params = json!({"prompt": "p", "max_tokens": 4000, "ignore_eos": true});
    writeln!(asker, "{}", generate(1, params)).expect("written");
    // The pipe runs full, and nothing is lost for it; nor does the worker turn in circles.
    worker.wait_until_still();
    worker.read(reader);
    let said = worker.until(|line| line["id"] == 1);
    let tokens = said.iter().filter(|m| m["method"] == "token").count();
    assert_eq!(tokens, 4000);
    ours.shutdown(std::net::Shutdown::Write).expect("shut down");
    assert_eq!(worker.code(), Some(0));
}

#[test]
fn pipes_with_a_name_have_their_end_though_the_writer_has_gone_before_the_worker_came() {
    let folder = tempfile::tempdir().expect("a folder");
    let [stdin, stdout] = ["in", "out"].map(|name| {
        let path = folder.path().join(name);
        let (kind, mode) = (FileType::Fifo, Mode::RUSR | Mode::WUSR);
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).expect("a pipe");
        // Opened for both, since one end alone waits for the other.
        let both = File::options().read(true).write(true).open(&path);
        let reader = File::open(&path).expect("one end");
        let writer = File::options().write(true).open(&path).expect("the other");
        drop(both);
        (reader, writer)
    });
    let (reader, mut writer) = stdin;
    let params = json!({"prompt": "Hello", "max_tokens": 3, "ignore_eos": true});
    writeln!(writer, "{}", generate(1, params)).expect("written");
    drop(writer);
    let mut command = fake("", &[]);
    command.stdin(reader).stdout(stdout.1);
    let mut worker = Running::start(command);
    worker.read(stdout.0);
    assert_eq!(worker.response(1)["result"]["finish_reason"], "length");
    assert_eq!(worker.code(), Some(0));
}
