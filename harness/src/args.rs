//! Flags that several commands share.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use clap::Args;
use worker_orcd_protocol::{GenerateParams, Message, Role};

use crate::client;
use crate::fetch;
use crate::locate;

/// Which worker, with which model.
#[derive(Clone, Debug, Args)]
pub struct WorkerArgs {
    /// The model, a GGUF file [default: SmolLM2-135M-Instruct, fetched where it is not there]
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,

    /// The worker's binary [default: $WORKER_ORCD_BIN, else worker-orcd beside this program, else on $PATH]
    #[arg(long, value_name = "FILE")]
    pub worker: Option<PathBuf>,

    /// What the worker computes on: cpu, or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: String,

    /// Further flags for the worker, after two dashes: -- --ctx 4096
    #[arg(last = true, value_name = "WORKER FLAGS")]
    pub further: Vec<OsString>,
}

/// A worker and a model that are there.
#[derive(Clone, Debug)]
pub struct WorkerLine {
    program: PathBuf,
    model: PathBuf,
    device: String,
    further: Vec<OsString>,
}

impl WorkerArgs {
    /// Finds the worker and the model, which is fetched where it has to be.
    ///
    /// # Errors
    /// When there is no worker, or no model and none can be fetched; both say what to do.
    pub fn find(&self) -> Result<WorkerLine> {
        // The worker first: it would be a pity to fetch a model that nothing can load.
        let program = locate::worker_binary(self.worker.as_deref())?;
        let model = match &self.model {
            Some(model) => model.clone(),
            None => fetch::default_model()?,
        };
        Ok(WorkerLine {
            program,
            model,
            device: self.device.clone(),
            further: self.further.clone(),
        })
    }
}

impl WorkerLine {
    /// The worker's binary.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The model: a file, or `fake:…`.
    pub fn model(&self) -> &Path {
        &self.model
    }

    /// The worker's command line.
    pub fn command(&self) -> Command {
        let mut command = client::command(&self.program, &self.model, &self.device);
        command.args(&self.further);
        command
    }
}

/// How to answer.
#[derive(Clone, Debug, Args)]
pub struct AnswerArgs {
    /// Instructions that stand above the conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// How freely words are chosen, 0 to 2; 0 always takes the likeliest
    #[arg(long, value_name = "NUMBER", default_value_t = 0.0)]
    pub temperature: f32,

    /// Choose among the likeliest words that reach this probability in sum, above 0 and up to 1
    #[arg(long, value_name = "NUMBER", default_value_t = 1.0)]
    pub top_p: f32,

    /// Keeps small models from going round in circles, above 0 and up to 2; 1 does nothing
    #[arg(long, value_name = "NUMBER", default_value_t = 1.1)]
    pub repetition_penalty: f32,

    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub max_tokens: u32,

    /// Where chance begins: same model, same words, same seed give the same answer [default: drawn]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Show the worker's log on stderr; without it only a failing worker's last lines are shown
    #[arg(long, short)]
    pub verbose: bool,
}

impl AnswerArgs {
    /// The conversation's beginning: the system message, where there is one.
    pub fn beginning(&self) -> Vec<Message> {
        self.system
            .iter()
            .map(|text| Message::new(Role::System, text))
            .collect()
    }

    /// The request for an answer to these messages.
    pub fn request(&self, messages: &[Message]) -> GenerateParams {
        GenerateParams {
            messages: Some(messages.to_vec()),
            temperature: self.temperature,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            max_tokens: Some(self.max_tokens),
            seed: self.seed,
            ..GenerateParams::default()
        }
    }
}
