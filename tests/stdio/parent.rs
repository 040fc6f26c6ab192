//! The process that spawned the worker: when it is killed, whatever the worker does and whoever else holds its pipes, the worker ends.

use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::json;

use crate::common::say;
use crate::support::{PATIENCE, Running, SOON, fake, generate, processes_with};

/// What the worker is at when its parent is killed.
struct Phase {
    name: &'static str,
    /// The fake model that makes it last.
    keys: &'static str,
    /// Length of the prompt that it is asked, 0 for none.
    prompt: usize,
    /// What stands in the line that shows that it is there.
    wanted: &'static str,
    /// What it is told then.
    then: &'static str,
}

const PHASES: [Phase; 5] = [
    phase("load", "load_ms=60000", 0, "\"progress\"", ""),
    phase("idle", "", 0, "\"ready\"", ""),
    phase(
        "prefill",
        "prompt_tokens_per_second=100",
        4000,
        "\"started\"",
        "",
    ),
    phase("decode", "tokens_per_second=50", 1, "\"token\"", ""),
    phase(
        "drain",
        "tokens_per_second=50",
        1,
        "\"token\"",
        "{\"id\":2,\"method\":\"shutdown\"}\n",
    ),
];

const fn phase(
    name: &'static str,
    keys: &'static str,
    prompt: usize,
    wanted: &'static str,
    then: &'static str,
) -> Phase {
    Phase {
        name,
        keys,
        prompt,
        wanted,
        then,
    }
}

impl Phase {
    fn ask(&self, asks: &mut PipeWriter) {
        if self.prompt > 0 {
            let params = json!({"prompt": "p".repeat(self.prompt), "ignore_eos": true});
            writeln!(asks, "{}", generate(1, params)).expect("written");
        }
    }

    /// Brings the worker there.
    fn reach(&self, asks: &mut PipeWriter, answers: &mut BufReader<PipeReader>) {
        read_until(answers, self.wanted);
        asks.write_all(self.then.as_bytes()).expect("written");
    }
}

/// A shell that spawns the worker and waits for it, with a folder for whatever might be left behind. The test keeps the other ends of
/// the pipes, as a sibling would. PARENT among the worker's flags stands for the shell's number.
fn parent_of(worker: &Command, folder: &Path, stdin: PipeReader, stdout: PipeWriter) -> Child {
    let script = "exec 3<&0; \
        for flag; do shift; [ \"$flag\" = PARENT ] && flag=$$; set -- \"$@\" \"$flag\"; done; \
        \"$0\" \"$@\" <&3 3<&- & exec 3<&-; wait";
    let mut parent = Command::new("sh");
    parent.args(["-c", script]).arg(worker.get_program());
    parent.args(worker.get_args());
    parent.current_dir(folder).env("TMPDIR", folder);
    parent.stdin(stdin).stdout(stdout).stderr(Stdio::null());
    parent.spawn().expect("a shell")
}

#[test]
fn when_the_parent_is_killed_the_worker_ends_though_others_hold_its_stdin() {
    for phase in PHASES {
        let name = phase.name;
        let (stdin, mut asks) = std::io::pipe().expect("a pipe");
        let (answers, stdout) = std::io::pipe().expect("a pipe");
        let worker_id = unique(name);
        let worker = fake(phase.keys, &["--worker-id", &worker_id]);
        let mut parent = parent_of(&worker, &std::env::temp_dir(), stdin, stdout);
        let mut answers = BufReader::new(answers);
        phase.ask(&mut asks);
        phase.reach(&mut asks, &mut answers);
        parent.kill().expect("killed");
        let took = gone(&worker_id);
        say(&format!(
            "the parent killed during {name}: gone in {took:?}"
        ));
        assert!(took < SOON, "{name}: {took:?}");
        let last = answers.lines().map_while(Result::ok).last();
        let last = last.expect("a line");
        assert!(
            last.contains("\"fatal\"") && last.contains("parent"),
            "{last}"
        );
        parent.wait().expect("a child");
    }
}

fn read_until(answers: &mut BufReader<PipeReader>, wanted: &str) {
    let mut line = String::new();
    while !line.contains(wanted) {
        line.clear();
        assert!(
            answers.read_line(&mut line).expect("a line") > 0,
            "{wanted}"
        );
    }
}

#[test]
fn a_killed_parent_is_enough_when_the_output_is_stuck() {
    let name = unique("stuck");
    let worker = fake("", &["--ctx", "65536", "--worker-id", &name]);
    let (stdin, mut asks) = std::io::pipe().expect("a pipe");
    let (answers, stdout) = std::io::pipe().expect("a pipe");
    let mut parent = parent_of(&worker, &std::env::temp_dir(), stdin, stdout);
    let params = json!({"prompt": "p", "ignore_eos": true, "max_tokens": 60000});
    writeln!(asks, "{}", generate(1, params)).expect("written");
    std::thread::sleep(Duration::from_millis(150));
    parent.kill().expect("killed");
    // Reaped here; the worker is the shell's child and not ours.
    parent.wait().expect("a child");
    let took = gone(&name);
    assert!(took < SOON, "{took:?}");
    drop((asks, answers));
}

#[test]
fn a_thread_that_ends_takes_no_worker_with_it() {
    let spawn = || Running::start(fake("tokens_per_second=100", &[]));
    let mut worker = std::thread::spawn(spawn).join().expect("a thread");
    worker.say(&generate(
        1,
        json!({"prompt": "p", "ignore_eos": true, "max_tokens": 20}),
    ));
    let done = worker.response(1);
    assert_eq!(done["result"]["usage"]["completion_tokens"], 20);
    drop(worker.stdin.take());
    assert_eq!(worker.code(), Some(0));
}

#[test]
fn another_process_can_be_watched_and_none() {
    let (stdin, asks) = std::io::pipe().expect("a pipe");
    let (answers, stdout) = std::io::pipe().expect("a pipe");
    let name = unique("unwatched");
    let unwatched = fake("", &["--parent-pid", "0", "--worker-id", &name]);
    let mut parent = parent_of(&unwatched, &std::env::temp_dir(), stdin, stdout);
    let mut answers = BufReader::new(answers);
    read_until(&mut answers, "\"ready\"");
    parent.kill().expect("killed");
    parent.wait().expect("a child");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(processes_with(&name).len(), 1);
    drop(asks);
    assert!(gone(&name) < SOON);

    let mut watched = Command::new("sleep").arg("1000").spawn().expect("sleep");
    let number = watched.id().to_string();
    let mut worker = Running::start(fake("", &["--parent-pid", &number]));
    worker.until_method("ready");
    watched.kill().expect("killed");
    // Nobody has waited for it yet: it has ended all the same.
    let (status, took) = worker.wait();
    assert_eq!(status.code(), Some(74));
    assert!(took < SOON, "{took:?}");
    watched.wait().expect("waited");

    // A process that is gone already.
    let mut worker = Running::start(fake("", &["--parent-pid", &number]));
    assert_eq!(worker.code(), Some(74));
}

/// A name that no other test gives a worker, in no other run.
fn unique(what: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = now.expect("after 1970").as_nanos();
    format!("{what}-{}-{nanos}", std::process::id())
}

/// Waits until there is no process with this name; says how long that took.
fn gone(name: &str) -> Duration {
    let since = Instant::now();
    while !processes_with(name).is_empty() {
        if since.elapsed() > PATIENCE {
            for pid in processes_with(name).into_iter().filter_map(pid) {
                rustix::process::kill_process(pid, Signal::KILL).ok();
            }
            panic!("{name} is still there");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    since.elapsed()
}

fn pid(number: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(number).ok()?)
}

/// How often the parent is killed in the next test; `WORKER_ORCD_TEST_KILLS` asks for more.
const KILLS: u64 = 60;

#[test]
fn killing_the_parent_again_and_again_leaves_nothing_behind() {
    let kills = std::env::var("WORKER_ORCD_TEST_KILLS").ok();
    let kills = kills.map_or(KILLS, |text| text.parse().expect("a number of kills"));
    let seed = std::process::id().into();
    let mut random = Random(seed);
    let folder = tempfile::tempdir().expect("a folder");
    let since = Instant::now();
    let mut longest = Duration::ZERO;
    for kill in 0..kills {
        let took = one_kill(&mut random, folder.path(), kill);
        assert!(took < SOON, "kill {kill} of seed {seed}: {took:?}");
        longest = longest.max(took);
    }
    let left = std::fs::read_dir(folder.path()).expect("a folder").count();
    assert_eq!(left, 0, "files are left behind, seed {seed}");
    say(&format!(
        "{kills} parents killed in {:?}: no process and no file left, the slowest worker was gone after {longest:?}",
        since.elapsed()
    ));
}

/// Kills a parent at a random moment of a random phase; says when its worker was gone.
fn one_kill(random: &mut Random, folder: &Path, kill: u64) -> Duration {
    let phase = &PHASES[random.below(PHASES.len() as u64) as usize];
    let name = unique(&format!("kill{kill}"));
    let mut worker = fake(phase.keys, &["--worker-id", &name]);
    let is_watched_by_name = random.below(2) == 0;
    if is_watched_by_name {
        // The shell's own number: the test's sibling holds stdin, so that only this tells of a parent that dies at once.
        worker.args(["--parent-pid", "PARENT"]);
    }
    let (stdin, asks) = std::io::pipe().expect("a pipe");
    let (answers, stdout) = std::io::pipe().expect("a pipe");
    let mut parent = parent_of(&worker, folder, stdin, stdout);
    let mut held: Option<(PipeWriter, BufReader<PipeReader>)> =
        Some((asks, BufReader::new(answers)));
    if let Some((asks, answers)) = &mut held {
        phase.ask(asks);
        if random.below(3) > 0 {
            phase.reach(asks, answers);
        }
    }
    std::thread::sleep(Duration::from_micros(random.below(8000)));
    if !is_watched_by_name {
        // Nobody else has the pipes: they end with the parent.
        held = None;
    }
    parent.kill().expect("killed");
    parent.wait().expect("a child");
    let took = gone(&name);
    drop(held);
    took
}

/// Numbers that are random enough, and the same again for the same seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}
