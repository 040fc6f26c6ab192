//! The real binary as a child process, and the model that it needs.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long anything may take before a test gives up; only a broken worker comes near.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How soon an end has to come that cannot wait. A second is what an orchestrator is promised; a busy machine gets a little more.
pub const SOON: Duration = Duration::from_secs(2);

pub use crate::common::model_path as model;

/// The worker's command line with these flags.
pub fn command(flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_worker-orcd"));
    command
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The worker's command line with the model and these flags.
pub fn with_model(flags: &[&str]) -> Option<Command> {
    let model = model()?;
    let mut command = command(&["--device", "cpu", "--ctx", "2048"]);
    command.arg("--model").arg(model).args(flags);
    Some(command)
}

/// The worker's command line with a fake model that has these keys ("" for none), and these flags.
pub fn fake(keys: &str, flags: &[&str]) -> Command {
    let mut command = command(&["--model", &format!("fake:{keys}")]);
    command.args(flags);
    command
}

/// A worker that runs. It is killed when the test lets go of it.
pub struct Running {
    pub child: Child,
    pub stdin: Option<ChildStdin>,
    lines: Option<Receiver<String>>,
}

impl Running {
    /// Starts a worker whose stdout is read by somebody at once.
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the worker starts");
        let stdin = child.stdin.take();
        let lines = child.stdout.take().map(read_lines);
        drain(child.stderr.take());
        Self {
            child,
            stdin,
            lines,
        }
    }

    /// Starts a worker that finds these lines, and then the end of its input. What may fail at once has heard them all the same.
    pub fn start_with(mut command: Command, lines: &[Value]) -> Self {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        for line in lines {
            writeln!(writer, "{line}").expect("a pipe holds them");
        }
        command.stdin(reader);
        Self::start(command)
    }

    /// Starts a worker whose stdout nobody reads until [`Running::read`].
    pub fn start_unread(mut command: Command) -> (Self, std::process::ChildStdout) {
        let mut child = command.spawn().expect("the worker starts");
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("a pipe");
        drain(child.stderr.take());
        (
            Self {
                child,
                stdin,
                lines: None,
            },
            stdout,
        )
    }

    /// Begins to read the output of a worker that was started unread.
    pub fn read(&mut self, stdout: impl Read + Send + 'static) {
        self.lines = Some(read_lines(stdout));
    }

    /// Says a line.
    pub fn say(&mut self, line: &Value) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        writeln!(stdin, "{line}").expect("the worker reads");
    }

    /// The next line of output; `None` at its end.
    pub fn next(&mut self) -> Option<Value> {
        match self
            .lines
            .as_ref()
            .expect("somebody reads")
            .recv_timeout(PATIENCE)
        {
            Ok(line) => Some(
                serde_json::from_str(&line)
                    .unwrap_or_else(|e| panic!("not a line of JSON: {line:?}: {e}")),
            ),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the worker says nothing for {PATIENCE:?}"),
        }
    }

    /// Output up to the first line that is asked for, that one included.
    pub fn until(&mut self, is_it: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut said = Vec::new();
        loop {
            let line = self
                .next()
                .unwrap_or_else(|| panic!("the output ends first: {said:#?}"));
            said.push(line);
            if said.last().is_some_and(&is_it) {
                return said;
            }
        }
    }

    /// Output up to a notification.
    pub fn until_method(&mut self, method: &str) -> Vec<Value> {
        self.until(|line| line["method"] == method)
    }

    /// The response to a request.
    pub fn response(&mut self, id: impl Into<Value>) -> Value {
        let id = id.into();
        self.until(|line| line.get("method").is_none() && line["id"] == id)
            .pop()
            .expect("a line")
    }

    /// All output that is left.
    pub fn rest(&mut self) -> Vec<Value> {
        std::iter::from_fn(|| self.next()).collect()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("the worker runs");
    }

    /// The process.
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Waits until the worker does nothing; a pause is no turning in circles.
    pub fn wait_until_still(&self) {
        let since = Instant::now();
        let mut before = cpu_time(self.child.id());
        loop {
            std::thread::sleep(Duration::from_millis(150));
            let now = cpu_time(self.child.id());
            if now == before {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "the worker never pauses");
            before = now;
        }
    }

    /// Waits for the end; says how it ended and how long that took.
    pub fn wait(&mut self) -> (ExitStatus, Duration) {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return (status, since.elapsed());
            }
            assert!(since.elapsed() < PATIENCE, "the worker does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for the end; says the exit code.
    pub fn code(&mut self) -> Option<i32> {
        self.wait().0.code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Memory that a process has in use; nothing once it has ended.
pub fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let Some(line) = status.lines().find(|line| line.starts_with("VmRSS")) else {
        return 0;
    };
    let kib = line.split_whitespace().nth(1).expect("a number of KiB");
    kib.parse::<u64>().expect("a number") * 1024
}

/// Time that a process has computed for, in its own code and in the system.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let after_name = stat.rsplit_once(')').expect("a name in brackets").1;
    let ticks = after_name.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.map(|n| n.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// Processes with this word on their command line.
pub fn processes_with(word: &str) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").expect("/proc");
    let pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let has_word = |pid: &u32| {
        // Who has ended in between, or waits for its parent to notice, has none.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .any(|arg| arg == word.as_bytes())
    };
    pids.filter(has_word).collect()
}

/// A pseudo terminal: the side of whoever types and reads, and the side of the program.
pub fn terminal() -> (File, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags).expect("a pseudo terminal");
    grantpt(&ours).expect("granted");
    unlockpt(&ours).expect("unlocked");
    let theirs = ioctl_tiocgptpeer(&ours, flags).expect("the other side");
    (File::from(ours), theirs)
}

/// Lines of a stream, read by a thread until its end.
fn read_lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn drain(stream: Option<impl Read + Send + 'static>) {
    if let Some(mut stream) = stream {
        std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
    }
}

/// A `generate` with these params.
pub fn generate(id: impl Into<Value>, params: Value) -> Value {
    json!({"id": id.into(), "method": "generate", "params": params})
}
