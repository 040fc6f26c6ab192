//! The Rust client against the scripted worker.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use worker_orcd_harness::client::{Client, ClientError, Event, Incoming};
use worker_orcd_protocol::{
    FinishReason, GenerateParams, GenerateResult, HealthResult, Id, MetricsParams, Notification,
    Request, Status,
};

use crate::fake_command;

/// Long enough for a slow machine, short enough for a test that hangs.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(20));

fn ready(faults: &str) -> Client {
    let mut worker = Client::spawn(fake_command(faults)).unwrap();
    worker.wait_ready(PATIENCE, |_| {}).unwrap();
    worker
}

fn generate(prompt: &str) -> Request {
    Request::Generate(Box::new(GenerateParams {
        prompt: Some(prompt.into()),
        ..Default::default()
    }))
}

/// Reads to the response of `id`: the text before it, and the result.
fn finish(worker: &mut Client, id: &Id) -> (String, GenerateResult) {
    let mut text = String::new();
    loop {
        match worker
            .next(PATIENCE)
            .unwrap()
            .expect("the worker answers in time")
        {
            Incoming::Notification(Notification::Token(token)) if token.request_id == *id => {
                text += &token.text
            }
            Incoming::Response(response) if response.id.as_ref() == Some(id) => {
                return (text, response.result().unwrap());
            }
            Incoming::Notification(_) | Incoming::Unknown { .. } | Incoming::Response(_) => {}
        }
    }
}

#[test]
fn streams_calls_in_between_and_ends_well() {
    let mut progress = Vec::new();
    let mut worker = Client::spawn(fake_command("{}")).unwrap();
    let ready = worker
        .wait_ready(PATIENCE, |p| progress.push(p.processed))
        .unwrap();
    assert_eq!(
        (ready.model.unwrap().name.as_str(), progress),
        ("Fake", vec![0, 25, 50, 75, 100])
    );
    let id = worker.request(generate("one two three")).unwrap();
    let health: HealthResult = worker.call(Request::Health, PATIENCE).unwrap();
    assert!(matches!(health.status, Status::Busy | Status::Ready));
    let (text, result) = finish(&mut worker, &id);
    assert_eq!(
        (text.as_str(), result.finish_reason),
        ("You said: one two three ", FinishReason::Stop)
    );
    let refused =
        worker.call::<serde_json::Value>(Request::Metrics(MetricsParams::default()), PATIENCE);
    assert!(matches!(refused, Err(ClientError::Refused(error)) if error.code == -32601));
    worker.close().unwrap();
    assert!(matches!(worker.wait(&[], None), Ok(Event::Closed)));
    assert!(worker.wait_exit(PATIENCE).unwrap().unwrap().success());
    assert!(matches!(
        worker.request(Request::Health),
        Err(ClientError::Io(_))
    ));
}

#[test]
fn a_cancel_ends_a_generation() {
    let mut worker = ready("{}");
    let id = worker.request(generate("long")).unwrap();
    while !matches!(
        worker.next(PATIENCE).unwrap(),
        Some(Incoming::Notification(Notification::Token(_)))
    ) {}
    worker.cancel(&id).unwrap();
    let (_, result) = finish(&mut worker, &id);
    assert_eq!(result.finish_reason, FinishReason::Cancelled);
    assert!(result.usage.completion_tokens < 10_000);
}

#[test]
fn nothing_said_is_none_and_other_descriptors_wake() {
    let mut worker = ready("{}");
    assert_eq!(worker.try_next().unwrap(), None);
    let begin = Instant::now();
    assert_eq!(worker.next(Some(Duration::from_millis(60))).unwrap(), None);
    assert!(begin.elapsed() >= Duration::from_millis(60));
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    worker.request(generate("long")).unwrap();
    std::io::Write::write_all(&mut &theirs, b"x").unwrap();
    // A flood of tokens does not drown it.
    let event = worker
        .wait(&[ours.as_fd()], Some(Instant::now() + PATIENCE.unwrap()))
        .unwrap();
    assert_eq!(event, Event::Other(0));
}

#[test]
fn a_worker_that_says_much_before_it_listens_blocks_nobody() {
    let mut worker = Client::spawn(fake_command(r#"{"burst":5000}"#)).unwrap();
    // Far more in both directions than two pipes hold.
    let long = "x".repeat(100_000);
    let ids: Vec<Id> = (0..40)
        .map(|_| worker.request(generate(&long)).unwrap())
        .collect();
    for id in &ids {
        assert_eq!(
            finish(&mut worker, id).0.len(),
            "You said: ".len() + long.len() + 1
        );
    }
}

#[test]
fn an_end_is_told_with_the_workers_words_and_exit_code() {
    let mut worker = Client::spawn(fake_command(r#"{"load_exit":65}"#)).unwrap();
    let error = worker.wait_ready(PATIENCE, |_| {}).unwrap_err();
    assert!(
        matches!(&error, ClientError::Ended { fatal: Some(fatal) } if fatal.code == 1001),
        "{error:?}"
    );
    assert_eq!(
        worker.wait_exit(PATIENCE).unwrap().unwrap().code(),
        Some(65)
    );
}

#[test]
fn a_dropped_client_leaves_no_process() {
    let worker = ready("{}");
    let pid = worker.pid();
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    drop(worker);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_worker_has_a_process_group_of_its_own() {
    let worker = ready("{}");
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", worker.pid())).unwrap();
    let group = stat.rsplit(") ").next().unwrap().split(' ').nth(2).unwrap();
    assert_eq!(
        group,
        worker.pid().to_string(),
        "a terminal's Ctrl-C would reach it"
    );
}
