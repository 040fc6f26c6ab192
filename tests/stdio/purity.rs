//! Nothing but the protocol on stdout, though a library in the process prints to it.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::common::say;
use crate::support::{Running, fake, generate};

/// A library that prints whenever somebody asks for the time, by number and through stdio, and leaves something in the buffer of stdio
/// before `main`.
const LIBRARY: &str = r#"
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
__attribute__((constructor)) static void begin(void) {
    printf("{\"stray\":\"before main\"}\n");
}
int clock_gettime(clockid_t clock, struct timespec *at) {
    static int depth;
    if (depth++ == 0) {
        printf("{\"stray\":\"printf\"}\n");
        fflush(stdout);
        if (write(1, "stray write\n", 12) < 0) _exit(99);
        printf("half a stray line");
        fflush(stdout);
    }
    depth--;
    return (int)syscall(SYS_clock_gettime, clock, at);
}
"#;

/// Compiles the library; says whether there is a compiler.
fn compile(to: &Path) -> bool {
    let source = to.with_extension("c");
    std::fs::write(&source, LIBRARY).expect("written");
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-o"])
        .arg(to)
        .arg(source);
    match compiler.status() {
        Ok(status) => {
            assert!(status.success(), "cc fails");
            true
        }
        Err(error) => {
            say(&format!(
                "SKIP: no C compiler, so no library that prints: {error}"
            ));
            false
        }
    }
}

#[test]
fn a_library_that_prints_does_not_reach_the_client() {
    let folder = tempfile::tempdir().expect("a folder");
    let library = folder.path().join("stray.so");
    if !compile(&library) {
        return;
    }
    for level in ["info", "debug"] {
        let mut command = fake("", &["--log-level", level]);
        command.env("LD_PRELOAD", &library);
        let log = folder.path().join("log");
        command.stderr(std::fs::File::create(&log).expect("a file"));
        let mut worker = Running::start(command);
        for id in 0..3 {
            worker.say(&generate(id, json!({"prompt": "p", "max_tokens": 20})));
        }
        drop(worker.stdin.take());
        let said = worker.rest();
        assert_eq!(worker.code(), Some(0));
        for line in &said {
            assert_eq!(line["jsonrpc"], "2.0", "{line}");
        }
        let answers = said.iter().filter(|line| line.get("result").is_some());
        assert_eq!(answers.count(), 3);
        // In all detail it is on stderr, which shows that the library has printed.
        let log = std::fs::read_to_string(&log).expect("UTF-8");
        for stray in [
            "\"before main\"",
            "\"printf\"",
            "stray write",
            "half a stray",
        ] {
            assert_eq!(log.contains(stray), level == "debug", "{stray} at {level}");
        }
    }
}
