//! A person at a terminal: typed lines, Ctrl-D, Ctrl-C, Ctrl-S, and the terminal that is closed.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::termios::{Action, tcflow};
use serde_json::json;

use crate::support::{Running, SOON, fake, terminal};

/// A worker whose stdin, stdout and stderr are one terminal, which is the controlling one of its session.
fn at_a_terminal(mut command: Command) -> (Running, File, std::os::fd::OwnedFd) {
    let (ours, theirs) = terminal();
    let clone = || theirs.try_clone().expect("cloned");
    command.stdin(clone()).stdout(clone()).stderr(clone());
    let control = || {
        rustix::process::setsid()?;
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        Ok(())
    };
    // SAFETY: between fork and exec it makes two system calls and does nothing else.
    unsafe { command.pre_exec(control) };
    (Running::start(command), ours, theirs)
}

/// Reads what the screen shows until it shows `wanted`; says all of it.
fn until(screen: &mut File, wanted: &str) -> String {
    let mut shown = String::new();
    let mut buffer = [0u8; 4096];
    while !shown.contains(wanted) {
        let read = screen.read(&mut buffer);
        let read = read.unwrap_or_else(|error| panic!("{error} before {wanted:?}: {shown}"));
        shown.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    shown
}

#[test]
fn lines_are_typed_and_ctrl_d_ends() {
    let (mut worker, mut screen, theirs) = at_a_terminal(fake("", &[]));
    let before = fcntl_getfl(&theirs).expect("flags");
    until(&mut screen, "\"ready\"");
    // Corrected while it is typed: the terminal gives whole lines.
    writeln!(screen, "{{\"id\":1,\"method\":\"healtx\x7fh\"}}").expect("typed");
    assert!(until(&mut screen, "\"status\":\"ready\"").contains("\"id\":1"));
    assert_eq!(fcntl_getfl(&theirs).expect("flags"), before);
    assert!(!before.contains(OFlags::NONBLOCK));
    screen.write_all(b"\x04").expect("typed");
    assert_eq!(worker.code(), Some(0));
}

#[test]
fn ctrl_c_is_sigint() {
    let (mut worker, mut screen, _theirs) = at_a_terminal(fake("tokens_per_second=50", &[]));
    until(&mut screen, "\"ready\"");
    let request =
        json!({"id": 1, "method": "generate", "params": {"prompt": "p", "ignore_eos": true}});
    writeln!(screen, "{request}").expect("typed");
    until(&mut screen, "\"token\"");
    screen.write_all(b"\x03").expect("typed");
    until(&mut screen, "\"fatal\"");
    assert_eq!(worker.code(), Some(130));
}

#[test]
fn ctrl_s_holds_the_output_and_stops_nothing_else() {
    let (mut worker, mut screen, theirs) = at_a_terminal(fake("", &["--ctx", "65536"]));
    until(&mut screen, "\"ready\"");
    tcflow(&theirs, Action::OOff).expect("held");
    let params = json!({"prompt": "p", "ignore_eos": true, "max_tokens": 30000});
    let request = json!({"id": 1, "method": "generate", "params": params});
    writeln!(screen, "{request}").expect("typed");
    worker.wait_until_still();
    // A signal gets through, and the worker does not wait for the screen for ever.
    let since = Instant::now();
    worker.signal(rustix::process::Signal::INT);
    assert_eq!(worker.code(), Some(130));
    assert!(since.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_terminal_that_is_closed_ends_the_worker() {
    for hang_up in ["trap - HUP", "trap '' HUP"] {
        let worker = fake("tokens_per_second=50", &[]);
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{hang_up}; exec \"$0\" \"$@\"")]);
        command.arg(worker.get_program()).args(worker.get_args());
        let (mut worker, mut screen, theirs) = at_a_terminal(command);
        until(&mut screen, "\"ready\"");
        drop(theirs);
        drop(screen);
        let (status, took) = worker.wait();
        // Its hang-up signal does it, and without that the reader that is gone.
        match hang_up {
            "trap - HUP" => assert!(!status.success(), "{status}"),
            _ => assert_eq!(status.code(), Some(74)),
        }
        assert!(took < SOON, "{took:?}");
    }
}
