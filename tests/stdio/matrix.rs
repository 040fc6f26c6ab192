//! Every kind of descriptor as stdin, as stdout and as stderr, all combinations: the same requests get the same answers, and the flags
//! of what was inherited stay what they were.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::Errno;
use serde_json::json;

use crate::support::{PATIENCE, fake, generate, terminal};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pipe,
    Socket,
    File,
    Null,
    Terminal,
}

const KINDS: [Kind; 5] = [
    Kind::Pipe,
    Kind::Socket,
    Kind::File,
    Kind::Null,
    Kind::Terminal,
];

/// What the worker gets, and what is left to us of it: the other end, or the file itself.
struct Ends {
    theirs: OwnedFd,
    ours: File,
}

impl Ends {
    /// Something to read from that holds all of `text`, and then ends.
    fn to_read(kind: Kind, text: &str) -> Self {
        match kind {
            Kind::Pipe => {
                let (reader, mut writer) = std::io::pipe().expect("a pipe");
                writer.write_all(text.as_bytes()).expect("written");
                Self::new(reader, null())
            }
            Kind::Socket => {
                let (mut ours, theirs) = UnixStream::pair().expect("a pair");
                ours.write_all(text.as_bytes()).expect("written");
                ours.shutdown(std::net::Shutdown::Write).expect("shut down");
                Self::new(theirs, OwnedFd::from(ours).into())
            }
            Kind::File => {
                let mut file = tempfile::tempfile().expect("a file");
                file.write_all(text.as_bytes()).expect("written");
                file.rewind().expect("rewound");
                Self::new(file, null())
            }
            Kind::Null => Self::new(null(), null()),
            Kind::Terminal => {
                let (mut ours, theirs) = terminal();
                write!(ours, "{text}\x04").expect("typed");
                Self::new(theirs, ours)
            }
        }
    }

    /// Something to write to that can be read by us.
    fn to_write(kind: Kind) -> Self {
        match kind {
            Kind::Pipe => {
                let (reader, writer) = std::io::pipe().expect("a pipe");
                Self::new(writer, OwnedFd::from(reader).into())
            }
            Kind::Socket => {
                let (ours, theirs) = UnixStream::pair().expect("a pair");
                Self::new(theirs, OwnedFd::from(ours).into())
            }
            Kind::File => {
                let file = tempfile::NamedTempFile::new().expect("a file");
                let ours = File::open(file.path()).expect("opened again");
                Self::new(file.into_file(), ours)
            }
            Kind::Null => Self::new(null(), null()),
            Kind::Terminal => {
                let (ours, theirs) = terminal();
                Self::new(theirs, ours)
            }
        }
    }

    fn new(theirs: impl Into<OwnedFd>, ours: File) -> Self {
        let theirs = theirs.into();
        Self { theirs, ours }
    }

    fn flags(&self) -> OFlags {
        fcntl_getfl(&self.theirs).expect("flags")
    }

    fn for_child(&self) -> OwnedFd {
        self.theirs.try_clone().expect("cloned")
    }

    /// Appends what has come; says whether that was something.
    fn read_to(&mut self, text: &mut Vec<u8>) -> bool {
        let mut buffer = [0u8; 16384];
        match self.ours.read(&mut buffer) {
            Ok(read) => {
                text.extend_from_slice(&buffer[..read]);
                read > 0
            }
            Err(error) => {
                let errno = Errno::from_io_error(&error);
                assert_eq!(errno, Some(Errno::AGAIN), "{error}");
                false
            }
        }
    }
}

fn null() -> File {
    let mut options = File::options();
    options
        .read(true)
        .write(true)
        .open("/dev/null")
        .expect("/dev/null")
}

/// The lines of stdout in a fixed order, and the log.
fn run(kinds: [Kind; 3], requests: &str) -> (Vec<String>, String) {
    let stdin = Ends::to_read(kinds[0], requests);
    let mut stdout = Ends::to_write(kinds[1]);
    let mut stderr = Ends::to_write(kinds[2]);
    // Of our ends alone, so that one loop can read both.
    for ours in [&stdout.ours, &stderr.ours] {
        rustix::io::ioctl_fionbio(ours, true).expect("nonblocking");
    }
    let flags = |ends: [&Ends; 3]| ends.map(Ends::flags);
    let before = flags([&stdin, &stdout, &stderr]);
    assert!(before.iter().all(|flags| !flags.contains(OFlags::NONBLOCK)));
    let mut command = fake("", &["--clock", "frozen"]);
    command
        .stdin(stdin.for_child())
        .stdout(stdout.for_child())
        .stderr(stderr.for_child());
    let mut child = command.spawn().expect("the worker starts");
    drop(command);
    let (text, log) = read_both(&mut child, &mut stdout, &mut stderr);
    assert_eq!(flags([&stdin, &stdout, &stderr]), before, "{kinds:?}");
    let status = child.wait().expect("a child");
    assert_eq!(status.code(), Some(0), "{kinds:?}");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    (lines, log)
}

/// Reads until the worker has ended and nothing is left. The ends that the worker had are open here too, so they have no end.
fn read_both(child: &mut Child, stdout: &mut Ends, stderr: &mut Ends) -> (String, String) {
    let (mut text, mut log) = (Vec::new(), Vec::new());
    let since = Instant::now();
    loop {
        let ended = child.try_wait().expect("a child").is_some();
        let came = stdout.read_to(&mut text) | stderr.read_to(&mut log);
        if ended && !came {
            break;
        }
        if !came {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(since.elapsed() < PATIENCE, "the worker does not end");
    }
    let text = String::from_utf8(text).expect("UTF-8");
    let log = String::from_utf8(log).expect("UTF-8");
    (text, log)
}

#[test]
fn on_every_kind_of_descriptor_the_same_requests_get_the_same_answers() {
    let requests = [
        generate(
            1,
            json!({"prompt": "Hello", "max_tokens": 9, "ignore_eos": true}),
        ),
        generate("two", json!({"prompt": "é", "seed": 7, "stream": false})),
        json!({"id": 3, "method": "tokenize", "params": {"content": "abc"}}),
        json!({"id": 4, "method": "nothing"}),
    ];
    let requests: String = requests.iter().map(|line| format!("{line}\n")).collect();
    let (expected, _) = run([Kind::Pipe; 3], &requests);
    // ready, twice started, nine tokens, four responses
    assert_eq!(expected.len(), 16, "{expected:#?}");
    let ready: Vec<String> = expected
        .iter()
        .filter(|line| line.contains("\"ready\""))
        .cloned()
        .collect();
    for stdin in KINDS {
        for stdout in KINDS {
            for stderr in KINDS {
                let kinds = [stdin, stdout, stderr];
                let (lines, log) = run(kinds, &requests);
                match (stdin, stdout) {
                    (_, Kind::Null) => assert!(lines.is_empty()),
                    (Kind::Null, _) => assert_eq!(lines, ready, "{kinds:?}"),
                    (_, _) => assert_eq!(lines, expected, "{kinds:?}"),
                }
                let told = log.contains("shutdown exit_code=0");
                assert_eq!(told, stderr != Kind::Null, "{kinds:?}: {log}");
            }
        }
    }
}
