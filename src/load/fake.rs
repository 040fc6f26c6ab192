//! `--model fake:…`: a model without a file, for testing whoever spawns a worker. The process, the protocol, the tokenizer, sampling
//! and page tables are the real ones; only the logits are made up.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Load, LoadError, LoadStep, Loaded, ModelFacts, pool_tokens, read_template};
use crate::device::fake::{END, FakeDevice, FakeOptions, PAGE_BYTES, nap};
use crate::device::{DeviceError, LoadProgress};
use crate::gguf::Metadata;
use crate::limits;
use crate::text::{ChatTemplate, Tokenizer};

/// What a fake model's name begins with.
pub const PREFIX: &str = "fake:";

/// The context that it was "trained" for, in tokens.
const CONTEXT_TRAINED: usize = 131_072;

/// What its weights are said to weigh, so that the load has something to tell: there are none.
const PRETENDED_BYTES: u64 = 1024 * 1024;

/// Control tokens from [`END`] on.
const CONTROL_TOKENS: [&str; 6] = [
    "<|end|>",
    "<|start|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
];

const TEMPLATE: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}\
    {% if add_generation_prompt %}<|assistant|>{% endif %}";

/// What `--model fake:KEY=VALUE,…` asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FakeModel {
    /// How the device behaves.
    pub device: FakeOptions,
    /// How long the load takes, in milliseconds.
    pub load_ms: u64,
    /// How the load fails.
    pub load_exit: Option<LoadFailure>,
}

/// The ways in which a load can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFailure {
    /// Exit code 65.
    BadModel,
    /// Exit code 66.
    NoInput,
    /// Exit code 69.
    NoDevice,
    /// Exit code 75.
    NoMemory,
    /// Exit code 76.
    DeviceLost,
}

impl FakeModel {
    /// Reads what stands behind [`PREFIX`].
    ///
    /// # Errors
    ///
    /// An unknown key, a key that comes twice, a value out of its range; the message names what is possible.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut fake = Self::default();
        let mut keys = Vec::new();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(format!("\"{pair}\" is no KEY=VALUE"));
            };
            if keys.contains(&key) {
                return Err(format!("{key} is given twice"));
            }
            keys.push(key);
            fake.set(key, value)?;
        }
        Ok(fake)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let device = &mut self.device;
        match key {
            "seed" => device.seed = whole(key, value)?,
            "tokens_per_second" => device.tokens_per_second = rate(key, value)?,
            "prompt_tokens_per_second" => device.prompt_tokens_per_second = rate(key, value)?,
            "fail_at" => device.fail_at = Some(whole(key, value)?),
            "lose_at" => device.lose_at = Some(whole(key, value)?),
            "panic_at" => device.panic_at = Some(whole(key, value)?),
            "load_ms" => self.load_ms = whole(key, value)?,
            "load_exit" => self.load_exit = Some(failure(value)?),
            _ => {
                return Err(format!(
                    "\"{key}\" is no key of a fake model; there are seed, tokens_per_second, prompt_tokens_per_second, load_ms, \
                     load_exit, fail_at, lose_at and panic_at"
                ));
            }
        }
        Ok(())
    }
}

fn whole(key: &str, value: &str) -> Result<u64, String> {
    value
        .parse()
        .map_err(|_| format!("{key}={value}: a whole number from 0 is needed"))
}

/// A million is faster than the loop.
fn rate(key: &str, value: &str) -> Result<f64, String> {
    let number = value.parse().ok();
    number
        .filter(|rate| *rate == 0.0 || (0.001..=1e6).contains(rate))
        .ok_or_else(|| format!("{key}={value}: a number from 0.001 to 1000000 is needed, or 0 for as fast as possible"))
}

fn failure(value: &str) -> Result<LoadFailure, String> {
    match value {
        "65" => Ok(LoadFailure::BadModel),
        "66" => Ok(LoadFailure::NoInput),
        "69" => Ok(LoadFailure::NoDevice),
        "75" => Ok(LoadFailure::NoMemory),
        "76" => Ok(LoadFailure::DeviceLost),
        _ => Err(format!(
            "load_exit={value}: a load can fail with 65, 66, 69, 75 or 76"
        )),
    }
}

/// What the flags say beside the model.
#[derive(Clone, Debug, Default)]
pub struct FakeLoadOptions {
    /// Context in tokens.
    pub context: Option<usize>,
    /// Bytes of the KV pool; `None` for what one context takes.
    pub kv_bytes: Option<u64>,
    /// A Jinja chat template to use instead of its own.
    pub chat_template: Option<PathBuf>,
}

/// The load of a fake model.
pub struct FakeLoad {
    model: FakeModel,
    options: FakeLoadOptions,
    begun: Option<Instant>,
    /// Whether the end of the load was told, as that of a file is.
    complete: bool,
}

impl FakeLoad {
    /// A load that has done nothing yet.
    pub fn new(model: FakeModel, options: FakeLoadOptions) -> Self {
        Self {
            model,
            options,
            begun: None,
            complete: false,
        }
    }

    fn loaded(&self) -> Result<Loaded, LoadError> {
        let bad = |e: String| LoadError::BadModel(e);
        let context = match self.options.context {
            None => limits::CONTEXT_DEFAULT,
            Some(n) if n <= CONTEXT_TRAINED => n,
            Some(n) => {
                return Err(bad(format!(
                    "--ctx {n} is not possible: the fake model was trained for {CONTEXT_TRAINED} tokens"
                )));
            }
        };
        let tokenizer = tokenizer().map_err(|e| bad(e.to_string()))?;
        let [end, start, ..] = CONTROL_TOKENS;
        let make = |source: &str| ChatTemplate::new(source, Some(start), Some(end));
        let template = match &self.options.chat_template {
            Some(path) => read_template(path, make)?,
            None => make(TEMPLATE).map_err(|e| bad(e.to_string()))?,
        };
        let vocab_size = tokenizer.vocab_size();
        Ok(Loaded {
            device: Box::new(FakeDevice::new(
                self.model.device.clone(),
                pool_tokens(context, self.options.kv_bytes, PAGE_BYTES)?,
                vocab_size,
            )),
            tokenizer: Arc::new(tokenizer),
            template: Some(Rc::new(template)),
            model: ModelFacts {
                name: "fake".into(),
                architecture: "fake".into(),
                quant_kind: "F32".into(),
                parameters: 0,
                size_bytes: 0,
                context_length_trained: CONTEXT_TRAINED,
                context_length: context,
                vocab_size,
                device: "fake".into(),
            },
        })
    }
}

impl Load for FakeLoad {
    fn step(&mut self, now: Instant, until: Instant) -> Result<LoadStep, LoadError> {
        let begun = *self.begun.get_or_insert(now);
        let takes = Duration::from_millis(self.model.load_ms);
        if Instant::now().saturating_duration_since(begun) < takes {
            nap(until.min(begun + takes));
        }
        let took = Instant::now().saturating_duration_since(begun);
        if took < takes {
            let part = took.as_secs_f64() / takes.as_secs_f64();
            return Ok(LoadStep::Progress(LoadProgress {
                processed: (PRETENDED_BYTES as f64 * part) as u64,
                total: PRETENDED_BYTES,
            }));
        }
        match self.model.load_exit {
            None if !self.complete => {
                self.complete = true;
                Ok(LoadStep::Progress(LoadProgress {
                    processed: PRETENDED_BYTES,
                    total: PRETENDED_BYTES,
                }))
            }
            None => self
                .loaded()
                .map(|loaded| LoadStep::Ready(Box::new(loaded))),
            Some(failure) => Err(load_error(failure)),
        }
    }
}

fn load_error(failure: LoadFailure) -> LoadError {
    let message = "the fake model was asked to fail while loading".to_owned();
    match failure {
        LoadFailure::BadModel => LoadError::BadModel(message),
        LoadFailure::NoInput => LoadError::NoInput(message),
        LoadFailure::NoDevice => LoadError::NoDevice(message),
        LoadFailure::NoMemory => LoadError::NoMemory {
            message,
            required_bytes: 2 * PRETENDED_BYTES,
            available_bytes: PRETENDED_BYTES,
        },
        LoadFailure::DeviceLost => LoadError::Device(DeviceError::Lost(message)),
    }
}

/// Byte-level BPE without merges, so that every byte is a token, and a few control tokens.
fn tokenizer() -> Result<Tokenizer, crate::text::TokenizerError> {
    let bytes = crate::text::byte_level_alphabet();
    let control = CONTROL_TOKENS.map(str::to_owned);
    let mut types = vec![1i32; bytes.len()];
    types.extend([3; CONTROL_TOKENS.len()]);
    let tokens: Vec<String> = bytes.into_iter().map(String::from).chain(control).collect();
    let mut metadata = Metadata::default();
    metadata.insert("tokenizer.ggml.model", "gpt2".to_owned());
    metadata.insert("tokenizer.ggml.pre", "gpt-2".to_owned());
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", types);
    metadata.insert("tokenizer.ggml.merges", Vec::<String>::new());
    metadata.insert("tokenizer.ggml.eos_token_id", END);
    metadata.insert("tokenizer.ggml.bos_token_id", END + 1);
    metadata.insert("tokenizer.ggml.add_bos_token", true);
    Tokenizer::from_gguf(&metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read_and_what_is_not_known_is_refused() {
        assert_eq!(FakeModel::parse(""), Ok(FakeModel::default()));
        let fake = FakeModel::parse("seed=7,tokens_per_second=200,load_exit=75,lose_at=3").unwrap();
        assert_eq!(fake.device.seed, 7);
        assert_eq!(fake.device.tokens_per_second, 200.0);
        assert_eq!(fake.device.lose_at, Some(3));
        assert_eq!(fake.load_exit, Some(LoadFailure::NoMemory));
        for (wrong, why) in [
            ("speed=1", "\"speed\" is no key"),
            ("seed", "no KEY=VALUE"),
            ("seed=1,seed=2", "twice"),
            ("seed=-1", "a whole number"),
            ("tokens_per_second=NaN", "from 0.001"),
            ("tokens_per_second=inf", "from 0.001"),
            ("load_exit=1", "65, 66, 69, 75 or 76"),
        ] {
            let error = FakeModel::parse(wrong).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }

    #[test]
    fn it_loads_and_every_byte_is_a_token() {
        let now = Instant::now();
        let options = |context| FakeLoadOptions {
            context: Some(context),
            ..FakeLoadOptions::default()
        };
        let mut load = FakeLoad::new(FakeModel::default(), options(600));
        let LoadStep::Progress(told) = load.step(now, now).unwrap() else {
            panic!("a client waits for processed to reach total");
        };
        assert_eq!((told.processed, told.total > 0), (told.total, true));
        let LoadStep::Ready(loaded) = load.step(now, now).unwrap() else {
            panic!("it takes no time");
        };
        assert_eq!(loaded.tokenizer.token_bytes(0xc3), Some(&[0xc3][..]));
        assert_eq!(loaded.tokenizer.eos(), Some(END));
        assert_eq!(loaded.device.capacity().pages, 3);
        let mut late = FakeLoad::new(FakeModel::default(), options(CONTEXT_TRAINED + 1));
        assert!((0..2).any(|_| late.step(now, now).is_err()));
    }
}
