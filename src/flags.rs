//! The command line.

use std::path::PathBuf;

use clap::Parser;
use clap::builder::{RangedU64ValueParser, StringValueParser, TypedValueParser};
use worker_orcd::limits;
use worker_orcd::load::{self, LoadOptions};
use worker_orcd::log::{Format, Level};
use worker_orcd::worker::ClockMode;
use worker_orcd_protocol::{Exit, limits as wire};

/// Owns one device and one language model and speaks newline-delimited JSON-RPC: requests come in on stdin, answers and tokens go out
/// on stdout, the log goes to stderr. The end of stdin ends the worker when everything is answered.
#[derive(Clone, Debug, Parser)]
#[command(version, after_long_help = exit_codes(), max_term_width = 110)]
pub struct Flags {
    /// The model: a GGUF file
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,

    /// The device that holds the model and computes: "cpu", or "cuda:N" for card number N. There is no fallback from one to the other
    /// [default: cuda:0 where the build and the machine have one, else an error]
    #[arg(long, value_name = "cpu|cuda:N", value_parser = parse_device, verbatim_doc_comment)]
    pub device: Option<DeviceChoice>,

    /// Tokens of context: prompt and output together, 1 to 16777216. An error where it does not fit in memory
    /// [default: what the model was trained for, at most 8192]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=limits::CONTEXT_MAX as u64))]
    pub ctx: Option<usize>,

    /// Numbers of the KV cache: "f16", or "f32" at twice the memory
    #[arg(long, value_enum, default_value_t = KvType::F16)]
    pub kv_type: KvType,

    /// A tokenizer.json to be used instead of the model file's vocabulary
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

    /// The process whose end ends this one (exit code 74); 0 for none
    /// [default: the parent process where stdin is a pipe or a socket, else none]
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(0..))]
    pub parent_pid: Option<i32>,

    /// Least important records that the log keeps. "debug" also sends to stderr what libraries print to stdout
    #[arg(long, value_enum, default_value_t = Level::Info)]
    pub log_level: Level,

    /// Form of the log
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub log_format: Format,

    /// How times are told: "frozen" makes transcripts that compare plainly
    #[arg(long, value_enum, default_value_t = ClockMode::Real)]
    pub clock: ClockMode,
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

/// Numbers of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KvType {
    /// 16 bits.
    F16,
    /// 32 bits.
    F32,
}

impl Flags {
    /// What to load.
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions {
            model: self.model.clone(),
            context: self.ctx,
            kv: match self.kv_type {
                KvType::F16 => load::KvType::F16,
                KvType::F32 => load::KvType::F32,
            },
            tokenizer: self.tokenizer.clone(),
            chat_template: self.chat_template.clone(),
        }
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

fn check_worker_id(id: String) -> Result<String, String> {
    let (len, max) = (id.len(), limits::WORKER_ID_BYTES_MAX);
    if (1..=max).contains(&len) {
        Ok(id)
    } else {
        Err(format!("it has {len} bytes, 1 to {max} are allowed"))
    }
}

fn exit_codes() -> String {
    let mut text = String::from("Exit codes:\n");
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
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Flags::command().debug_assert();
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
