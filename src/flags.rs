//! The command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::{
    OsStringValueParser, RangedU64ValueParser, StringValueParser, TypedValueParser,
};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use worker_orcd::limits;
use worker_orcd::load::fake::{self, FakeModel};
use worker_orcd::load::{self, LoadOptions};
use worker_orcd::log::{Format, Level};
use worker_orcd::worker::ClockMode;
use worker_orcd_protocol::{Exit, limits as wire};

/// With the build: speed is not to be compared without it.
const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("WORKER_ORCD_PROFILE"),
    " build)"
);

/// Owns one device and one language model and speaks newline-delimited JSON-RPC: requests come in on stdin, answers and tokens go out
/// on stdout, the log goes to stderr. The end of stdin ends the worker when everything is answered.
#[derive(Clone, Debug, Parser)]
#[command(version = VERSION, after_long_help = after_help(), max_term_width = 110)]
pub struct Flags {
    /// The model: a GGUF file (of a model in several any one, or their folder), or "fake:KEY=VALUE,…" for a model without a file, to test whoever spawns this process: see below
    #[arg(long, value_name = "FILE", required_unless_present = "print_schema", value_parser = OsStringValueParser::new().try_map(parse_model))]
    pub model: Option<ModelChoice>,

    /// The device that holds the model and computes: "cpu", or "cuda:N" for card number N. There is no fallback from one to the other
    /// [default: cuda:0 where the build and the machine have one, else an error]
    #[arg(long, value_name = "cpu|cuda:N", value_parser = parse_device, verbatim_doc_comment)]
    pub device: Option<DeviceChoice>,

    /// Tokens of context: prompt and output together, 1 to 16777216. An error where it does not fit in memory
    /// [default: what the model was trained for, at most 8192]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=limits::CONTEXT_MAX as u64))]
    pub ctx: Option<usize>,

    /// Numbers of the KV cache: "f16", "f32" at twice the memory, or "q8_0" at little more than half of it
    #[arg(long, value_enum, default_value_t = KvType::F16)]
    pub kv_type: KvType,

    /// Bytes of the KV pool, in which the prefixes of earlier requests are kept too [default: what one context takes]
    #[arg(long, value_name = "BYTES")]
    pub kv_bytes: Option<u64>,

    /// A tokenizer.json to be used instead of one that lies beside the model, or of the model file's vocabulary
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,

    /// A Jinja chat template to be used instead of the model file's
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,

    /// What this worker is called in `ready`, in metrics and in the log: 1 to 256 bytes
    #[arg(long, value_name = "ID", value_parser = StringValueParser::new().try_map(check_worker_id))]
    pub worker_id: Option<String>,

    /// `generate` requests that may wait, 1 to 1024; more are answered QUEUE_FULL
    #[arg(long, value_name = "N", default_value_t = limits::QUEUE_DEFAULT,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=limits::QUEUE_MAX as u64))]
    pub queue: usize,

    /// `max_tokens` of requests that name none, 1 to 1048576 [default: what fits in the context]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(wire::MAX_TOKENS_MAX)))]
    pub max_tokens: Option<u32>,

    /// `timeout_ms` of requests that name none, 1 to 604800000 [default: none]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=wire::TIMEOUT_MS_MAX))]
    pub timeout_ms: Option<u64>,

    /// How long `shutdown` and SIGTERM wait for what runs and what is queued, 0 to 86400000
    #[arg(long, value_name = "MS", default_value_t = limits::DRAIN_MS_DEFAULT,
        value_parser = clap::value_parser!(u64).range(0..=limits::DRAIN_MS_MAX))]
    pub drain_ms: u64,

    /// The process whose end ends this one (exit code 74); 0 for none. A parent that names itself is noticed even when it dies before
    /// this process has looked who its parent is
    /// [default: the parent process where stdin is a pipe or a socket, else none]
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(0..))]
    pub parent_pid: Option<i32>,

    /// Least important records that the log keeps. "debug" also sends to stderr what libraries print to stdout
    #[arg(long, value_enum, default_value_t = Level::Info)]
    pub log_level: Level,

    /// Form of the log
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub log_format: Format,

    /// Answer one prompt and end: as if a `generate` with this `prompt` and id 1 were all that stdin holds. For a person
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["input", "check", "print_plan", "print_schema"])]
    pub prompt: Option<String>,

    /// Read requests from this file instead of stdin, a line each. For a person: a terminal cuts typed lines at 4095 bytes
    #[arg(long, value_name = "FILE", conflicts_with_all = ["check", "print_plan", "print_schema"])]
    pub input: Option<PathBuf>,

    /// Print as JSON whether the model would load, with every tensor checked, and the memory that it would take, on the processor where no --device
    /// is given; then exit
    #[arg(long, conflicts_with_all = ["print_plan", "print_schema"])]
    pub check: bool,

    /// Print the operations that the model becomes, and exit
    #[arg(long, conflicts_with = "print_schema")]
    pub print_plan: bool,

    /// Print what every operation gives at every position of this text, as lines of JSON for `orcd trace compare`, and exit
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["prompt", "input", "check", "print_plan", "print_schema"])]
    pub trace: Option<String>,

    /// The same for token ids, separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with_all = ["trace", "prompt", "input", "check", "print_plan", "print_schema"])]
    pub trace_ids: Vec<u32>,

    /// Measure the device without a pipe and print the figures as JSON, for `orcd bench`: any of decode, decode:DEPTH, prefill, prefill:TOKENS,
    /// sampling and load, separated by commas; then exit
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse_measure,
        conflicts_with_all = ["trace", "trace_ids", "prompt", "input", "check", "print_plan", "print_schema"])]
    pub bench: Vec<Measure>,

    /// Print the JSON Schema of the protocol, and exit
    #[arg(long)]
    pub print_schema: bool,

    /// How times are told: "frozen" makes transcripts that compare plainly
    #[arg(long, value_enum, default_value_t = ClockMode::Real)]
    pub clock: ClockMode,
}

const FAKE_HELP: &str = "\
A fake model (--model fake:KEY=VALUE,…; all keys may be left out):
  seed=N                      another seed, another text [default: 0]
  tokens_per_second=X         its speed when it decodes; 0 for as fast as possible [default: 0]
  prompt_tokens_per_second=X  its speed when it reads a prompt; 0 for as fast as possible [default: 0]
  load_ms=N                   how long the load takes [default: 0]
  load_exit=CODE              the load fails with this exit code: 65, 66, 69, 75 or 76
  fail_at=N                   drawing the Nth token of its life fails; the request gets an error, the worker goes on
  lose_at=N                   the device is lost at the Nth token: exit code 76
  panic_at=N                  a bug at the Nth token: exit code 70
Everything but the numbers that it computes is real: process, protocol, tokenizer (a byte is a token), sampling, KV pages.
It takes any --device, and needs none.";

/// Which model.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelChoice {
    /// A GGUF file.
    File(PathBuf),
    /// None: a device that makes its logits up.
    Fake(FakeModel),
}

impl ModelChoice {
    /// What it is called until it is loaded.
    pub fn name(&self) -> String {
        match self {
            ModelChoice::File(path) => {
                let name = path.file_stem().unwrap_or(path.as_os_str());
                name.to_string_lossy().into_owned()
            }
            ModelChoice::Fake(_) => "fake".to_owned(),
        }
    }
}

/// Which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The processor.
    Cpu,
    /// A card.
    Cuda(u32),
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// What `--bench` measures; a number that is left out stands for the usual ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Steps of one token after so many others.
    Decode(Option<usize>),
    /// A prompt of so many tokens.
    Prefill(Option<usize>),
    /// Drawing a token.
    Sampling,
    /// The parts of the load.
    Load,
}

/// Numbers of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KvType {
    /// 16 bits.
    F16,
    /// 32 bits.
    F32,
    /// 8 bits, and a scale of 16 for each 32 of them.
    #[value(name = "q8_0")]
    Q8_0,
}

impl From<KvType> for load::KvType {
    fn from(kv: KvType) -> Self {
        match kv {
            KvType::F16 => load::KvType::F16,
            KvType::F32 => load::KvType::F32,
            KvType::Q8_0 => load::KvType::Q8_0,
        }
    }
}

impl Flags {
    /// What cannot be said by one flag alone.
    ///
    /// # Errors
    ///
    /// A flag that means nothing for the model that is given.
    pub fn check_together(&self) -> Result<(), clap::Error> {
        let fake = matches!(self.model, Some(ModelChoice::Fake(_)));
        let senseless = [
            (self.tokenizer.is_some(), "--tokenizer"),
            (self.check, "--check"),
            (self.print_plan, "--print-plan"),
            (self.trace.is_some(), "--trace"),
            (!self.trace_ids.is_empty(), "--trace-ids"),
        ];
        match senseless.iter().find(|(given, _)| fake && *given) {
            None => Ok(()),
            Some((_, flag)) => Err(Flags::command().error(
                ErrorKind::ArgumentConflict,
                format!("{flag} needs a model file; a fake model has none"),
            )),
        }
    }

    /// What to load from this file.
    pub fn load_options(&self, model: &Path) -> LoadOptions {
        LoadOptions {
            model: model.to_owned(),
            target: match self.device {
                None | Some(DeviceChoice::Cpu) => load::Target::Cpu,
                Some(DeviceChoice::Cuda(number)) => load::Target::Cuda(number),
            },
            context: self.ctx,
            kv: self.kv_type.into(),
            kv_bytes: self.kv_bytes,
            tokenizer: self.tokenizer.clone(),
            chat_template: self.chat_template.clone(),
        }
    }
}

fn parse_model(value: OsString) -> Result<ModelChoice, String> {
    match value
        .to_str()
        .and_then(|text| text.strip_prefix(fake::PREFIX))
    {
        Some(text) => FakeModel::parse(text).map(ModelChoice::Fake),
        None => Ok(ModelChoice::File(value.into())),
    }
}

fn parse_device(value: &str) -> Result<DeviceChoice, String> {
    let number = value
        .strip_prefix("cuda:")
        .and_then(|number| number.parse().ok());
    match (value, number) {
        ("cpu", _) => Ok(DeviceChoice::Cpu),
        (_, Some(number)) => Ok(DeviceChoice::Cuda(number)),
        (_, None) => {
            Err("a device is \"cpu\" or \"cuda:N\", N being the number of a card".to_owned())
        }
    }
}

fn parse_measure(value: &str) -> Result<Measure, String> {
    let (name, number) = match value.split_once(':') {
        None => (value, None),
        Some((name, number)) => {
            let number = number
                .parse()
                .ok()
                .filter(|n| (1..=limits::CONTEXT_MAX).contains(n));
            let wrong = || format!("{value}: a number of tokens from 1 is needed after the colon");
            (name, Some(number.ok_or_else(wrong)?))
        }
    };
    match (name, number) {
        ("decode", depth) => Ok(Measure::Decode(depth)),
        ("prefill", tokens) => Ok(Measure::Prefill(tokens)),
        ("sampling", None) => Ok(Measure::Sampling),
        ("load", None) => Ok(Measure::Load),
        (_, _) => Err(
            "decode, decode:DEPTH, prefill, prefill:TOKENS, sampling and load can be measured"
                .to_owned(),
        ),
    }
}

fn check_worker_id(id: String) -> Result<String, String> {
    let (len, max) = (id.len(), limits::WORKER_ID_BYTES_MAX);
    if (1..=max).contains(&len) {
        Ok(id)
    } else {
        Err(format!("it has {len} bytes, 1 to {max} are allowed"))
    }
}

fn after_help() -> String {
    let mut text = format!("{FAKE_HELP}\n\nExit codes:\n");
    for exit in Exit::ALL {
        text.push_str(&format!("  {:3}  {}\n", exit.code(), exit.meaning()));
    }
    text.push_str(
        "\nStart again at once after 76, and with growing pauses after 70; 65, 66, 69 and 75 come again.\n\
         Signals: SIGTERM finishes what was accepted (a second one exits at once), SIGINT cancels everything.",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Flags::command().debug_assert();
    }

    #[test]
    fn models() {
        let file = |name: &str| Ok(ModelChoice::File(name.into()));
        assert_eq!(parse_model("a.gguf".into()), file("a.gguf"));
        assert_eq!(parse_model("./fake:seed=1".into()), file("./fake:seed=1"));
        let fake = parse_model("fake:seed=1".into());
        assert!(matches!(fake, Ok(ModelChoice::Fake(fake)) if fake.device.seed == 1));
        assert!(parse_model("fake:sead=1".into()).is_err());
        let flags = |flags: &[&str]| {
            Flags::try_parse_from([&["worker-orcd"], flags].concat())
                .and_then(|flags| flags.check_together())
        };
        assert!(flags(&["--print-schema"]).is_ok());
        assert!(flags(&["--model", "a", "--check"]).is_ok());
        assert!(flags(&["--model", "fake:", "--check"]).is_err());
        assert!(flags(&["--model", "fake:", "--tokenizer", "t"]).is_err());
        assert!(flags(&["--model", "a", "--check", "--print-plan"]).is_err());
        for device in ["cpu", "cuda:1"] {
            let q8_0 = flags(&["--model", "a", "--device", device, "--kv-type", "q8_0"]);
            assert!(q8_0.is_ok(), "{device}");
        }
        assert!(flags(&["--model", "a", "--prompt", "p", "--input", "f"]).is_err());
    }

    #[test]
    fn devices() {
        assert_eq!(parse_device("cpu"), Ok(DeviceChoice::Cpu));
        assert_eq!(parse_device("cuda:3"), Ok(DeviceChoice::Cuda(3)));
        for wrong in ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(parse_device(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn measures() {
        assert_eq!(parse_measure("decode"), Ok(Measure::Decode(None)));
        assert_eq!(parse_measure("decode:16"), Ok(Measure::Decode(Some(16))));
        assert_eq!(
            parse_measure("prefill:512"),
            Ok(Measure::Prefill(Some(512)))
        );
        assert_eq!(parse_measure("load"), Ok(Measure::Load));
        for wrong in ["", "speed", "decode:", "decode:0", "decode:x", "load:3"] {
            assert!(parse_measure(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_flag_has_a_line_and_every_number_a_range() {
        let help = Flags::command().render_long_help().to_string();
        for argument in Flags::command().get_arguments() {
            assert!(argument.get_help().is_some(), "{}", argument.get_id());
        }
        for exit in Exit::ALL {
            assert!(
                help.contains(&format!("{:3}  ", exit.code())),
                "{}",
                exit.code()
            );
        }
        for max in [
            limits::QUEUE_MAX as u64,
            limits::CONTEXT_MAX as u64,
            limits::DRAIN_MS_MAX,
            wire::TIMEOUT_MS_MAX,
        ] {
            assert!(help.contains(&max.to_string()), "{max}");
        }
    }
}
