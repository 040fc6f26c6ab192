//! `orcd conformance`: holds any worker of this protocol, in whatever language it is written, against what protocol/PROTOCOL.md
//! promises.
//!
//! Each promise is a transcript in protocol/conformance: lines to send, patterns for what must come. The folder's README.md is the
//! documentation of the format. The transcripts are part of this program, so that it can be used away from its sources.

mod files;
mod pattern;
mod play;
mod rules;
mod transcript;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::locate;
use crate::out;
use crate::talk::{Interrupted, Interrupts};
use play::{Outcome, play};
use transcript::{Need, Transcript};

/// What the default worker runs. It takes its time, so that a generation is still under way when the suite reacts to it.
const DEFAULT_MODEL: &str = "fake:seed=1,tokens_per_second=2000";

/// Begins the name of a model that can be told to fail.
const FAKE_MODEL: &str = "fake:";

/// The flag that names the model.
const MODEL_FLAG: &str = "--model";

/// Stands in a flag for the folder of the transcript's files.
const FILES: &str = "{files}";

/// Flags of `orcd conformance`.
#[derive(Clone, Debug, Args)]
pub struct ConformanceArgs {
    /// Transcripts of your own instead of those that are part of this program
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// The worker's command line with its model, in one word: "my-worker --model m.gguf"; quotes are as in a shell
    /// [default: worker-orcd with a fake model]
    #[arg(long, value_name = "COMMAND")]
    pub worker: Option<String>,

    /// Only transcripts whose name has this in it; may be given several times
    #[arg(long, value_name = "NAME")]
    pub filter: Vec<String>,

    /// Print the names and the promises, and run nothing
    #[arg(long)]
    pub list: bool,

    /// How long a step may take that names no time of its own
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub timeout: u64,
}

/// Runs `orcd conformance`.
///
/// # Errors
/// When the worker breaks a promise, a transcript is wrong, or the worker cannot be started.
pub fn run(args: &ConformanceArgs) -> Result<()> {
    let transcripts = transcripts(args)?;
    if args.list {
        for Transcript { name, head, .. } in &transcripts {
            out::print_line(&format!("{name}: {} ({})", head.promise, head.section))?;
        }
        return Ok(());
    }
    let worker = worker(args.worker.as_deref())?;
    let interrupts = Interrupts::catch()?;
    let (mut kept, mut skipped, mut broken) = (0, 0, 0);
    for transcript in &transcripts {
        let begin = Instant::now();
        let outcome = play_with(transcript, &worker, args.timeout, &interrupts);
        let name = format!(
            "{} ({:.2} s)",
            transcript.name,
            begin.elapsed().as_secs_f64()
        );
        match outcome {
            Ok(Outcome::Kept) => {
                kept += 1;
                out::print_line(&format!("ok      {name}"))?;
            }
            Ok(Outcome::Skipped(why)) => {
                skipped += 1;
                out::print_line(&format!("skipped {name}: {why}"))?;
            }
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => {
                broken += 1;
                let head = &transcript.head;
                out::print_line(&format!(
                    "BROKEN  {name}: {error:#}\n  the promise ({}): {}",
                    head.section, head.promise
                ))?;
            }
        }
    }
    out::print_line(&format!("{kept} ok, {broken} broken, {skipped} skipped"))?;
    ensure!(
        broken == 0,
        "{broken} of {} promises are broken",
        transcripts.len()
    );
    ensure!(kept > 0, "nothing was run");
    Ok(())
}

/// The transcripts that are wanted.
fn transcripts(args: &ConformanceArgs) -> Result<Vec<Transcript>> {
    let mut all = Vec::new();
    for path in &args.files {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_stem().unwrap_or(path.as_os_str());
        all.push(Transcript::parse(&name.to_string_lossy(), &text)?);
    }
    if args.files.is_empty() {
        let embedded = files::ALL.iter();
        all = embedded
            .map(|(name, text)| Transcript::parse(name, text))
            .collect::<Result<_>>()?;
    }
    let is_wanted =
        |name: &str| args.filter.is_empty() || args.filter.iter().any(|part| name.contains(part));
    all.retain(|transcript| is_wanted(&transcript.name));
    ensure!(
        !all.is_empty(),
        "no transcript has such a name; orcd conformance --list shows all"
    );
    Ok(all)
}

/// The worker's command line in words.
fn worker(line: Option<&str>) -> Result<Vec<String>> {
    let Some(line) = line else {
        let program = locate::worker_binary(None)?;
        let program = program
            .to_str()
            .context("the path of the worker is not UTF-8; name it with --worker")?;
        return Ok([program, MODEL_FLAG, DEFAULT_MODEL]
            .map(str::to_owned)
            .to_vec());
    };
    let words = shell_words::split(line).with_context(|| format!("--worker {line:?}"))?;
    ensure!(!words.is_empty(), "--worker names no program");
    Ok(words)
}

fn play_with(
    transcript: &Transcript,
    worker: &[String],
    timeout: u64,
    interrupts: &Interrupts,
) -> Result<Outcome> {
    let is_fake = flag(worker, MODEL_FLAG).is_some_and(|model| model.starts_with(FAKE_MODEL));
    if transcript.head.needs.contains(&Need::Fake) && !is_fake {
        return Ok(Outcome::Skipped("the worker has no fake model"));
    }
    let folder =
        tempfile::tempdir().context("cannot make a folder for the files of a transcript")?;
    for (name, text) in &transcript.head.files {
        fs::write(folder.path().join(name), text)
            .with_context(|| format!("cannot write {name}"))?;
    }
    let folder_name = folder.path().to_string_lossy();
    let mut words = worker.to_vec();
    for (name, value) in &transcript.head.flags {
        set_flag(&mut words, name, &value.replace(FILES, &folder_name));
    }
    let Some((program, arguments)) = words.split_first() else {
        bail!("--worker names no program");
    };
    let mut command = Command::new(program);
    command.args(arguments);
    play(
        transcript,
        command,
        &folder_name,
        Duration::from_secs(timeout),
        interrupts,
    )
}

/// The value of a flag in a command line, given as `--flag value` or `--flag=value`.
fn flag<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    words.iter().enumerate().find_map(|(at, word)| {
        if word == name {
            return words.get(at + 1).map(String::as_str);
        }
        word.strip_prefix(name)?.strip_prefix('=')
    })
}

/// Gives a flag this value, in its place where it has one already.
fn set_flag(words: &mut Vec<String>, name: &str, value: &str) {
    while let Some(at) = words.iter().position(|word| word == name) {
        words.drain(at..(at + 2).min(words.len()));
    }
    words.retain(|word| {
        word.strip_prefix(name)
            .is_none_or(|rest| !rest.starts_with('='))
    });
    words.extend([name.to_owned(), value.to_owned()]);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use serde_json::Value;
    use worker_orcd_protocol::error::ErrorCode;
    use worker_orcd_protocol::method::Method;
    use worker_orcd_protocol::schema::{Definitions, generate_fields};

    use super::*;

    /// What nobody can bring about from outside: it takes a card.
    const OUT_OF_REACH: [ErrorCode; 1] = [ErrorCode::VramOom];

    fn protocol(file: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../protocol")
            .join(file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    #[test]
    fn every_file_of_the_folder_is_part_of_the_program() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/conformance");
        let files = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let files: BTreeSet<String> = files
            .filter_map(|name| Some(name.to_str()?.strip_suffix(".jsonl")?.to_owned()))
            .collect();
        let embedded: BTreeSet<String> = files::ALL
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect();
        assert_eq!(files, embedded);
        assert_eq!(files::ALL.len(), embedded.len(), "a name stands twice");
    }

    #[test]
    fn every_transcript_names_a_promise_and_where_it_stands() {
        let page = protocol("PROTOCOL.md");
        for (name, text) in files::ALL {
            let head = Transcript::parse(name, text).unwrap().head;
            assert!(head.promise.ends_with('.'), "{name}: {}", head.promise);
            let heading = format!("# {}\n", head.section);
            assert!(
                page.contains(&heading),
                "{name}: no heading {}",
                head.section
            );
        }
    }

    #[test]
    fn every_method_field_and_error_of_the_protocol_is_met() {
        let all: String = files::ALL.iter().map(|(_, text)| *text).collect();
        let methods = Method::ALL.map(|method| format!("\"method\":\"{}\"", method.name()));
        let fields = generate_fields()
            .into_iter()
            .map(|field| format!("\"{field}\":"));
        let errors = ErrorCode::ALL
            .into_iter()
            .filter(|code| !OUT_OF_REACH.contains(code));
        let errors = errors.map(|code| format!("\"code\":{}", code.number()));
        for wanted in methods.into_iter().chain(fields).chain(errors) {
            assert!(all.contains(&wanted), "no transcript has {wanted}");
        }
        let definitions = Definitions::new();
        for notification in [
            "progress",
            "ready",
            "started",
            "prompt_logprobs",
            "token",
            "fatal",
        ] {
            assert!(definitions.has_notification(notification) && all.contains(notification));
        }
    }

    #[test]
    fn the_format_is_documented() {
        let page = protocol("conformance/README.md");
        for word in pattern::VALUES.iter().chain(pattern::TESTS) {
            assert!(
                page.contains(&format!("`{{\"{word}\":")),
                "{word} is not in README.md"
            );
        }
        for (name, text) in files::ALL {
            for line in text.lines() {
                let step: Value = serde_json::from_str(line).unwrap();
                for key in step.as_object().unwrap().keys() {
                    assert!(
                        page.contains(&format!("`{key}`")),
                        "{name}: {key} is not in README.md"
                    );
                }
            }
        }
        for rule in rules::Rule::ALL {
            let name = rule.name();
            assert!(
                page.contains(&format!("| {name} |")),
                "{name} is not in README.md"
            );
        }
    }

    #[test]
    fn a_flag_is_replaced_wherever_it_stands() {
        for line in [
            "w --queue 3 --model 'my m.gguf' x",
            "w --model='my m.gguf' --queue=3 x",
        ] {
            let mut words = worker(Some(line)).unwrap();
            assert_eq!(flag(&words, "--model"), Some("my m.gguf"));
            set_flag(&mut words, "--queue", "2");
            assert_eq!(
                words.iter().filter(|word| word.contains("queue")).count(),
                1
            );
            assert_eq!(flag(&words, "--queue"), Some("2"));
            assert!(words.contains(&"x".to_owned()) && flag(&words, "--model").is_some());
        }
        assert!(worker(Some("w 'open")).is_err() && worker(Some(" ")).is_err());
    }
}
