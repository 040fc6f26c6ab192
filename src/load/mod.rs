//! Loading a model in pieces, so that `health` and `cancel` are answered meanwhile.

mod device;
pub mod fake;
mod files;
mod map;

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::device::{Device, DeviceError, LoadProgress, PAGE_TOKENS};
use crate::gguf::{Gguf, Metadata, TensorInfo};
use crate::limits;
use crate::model::lower::lower;
use crate::model::plan::Plan;
use crate::model::{arch, reads::Reads, weights::Weights};
use crate::text::{ChatTemplate, TemplateError, Tokenizer, TokenizerKind};

/// The file beside a model whose tokenizer is used instead of the model file's.
const TOKENIZER_JSON: &str = "tokenizer.json";

pub use files::FileFacts;
use map::Mapped;

/// A load under way. The worker calls [`Load::step`] until it says [`LoadStep::Ready`].
pub trait Load {
    /// One bounded piece of the load; returns at about `until`.
    fn step(&mut self, now: Instant, until: Instant) -> Result<LoadStep, LoadError>;

    /// When each part of the load began, in their order: "open_ms" for the log's field of this name.
    fn parts(&self) -> &[(&'static str, Instant)] {
        &[]
    }
}

/// What a piece of a load came to.
pub enum LoadStep {
    /// More is to do.
    Progress(LoadProgress),
    /// The model is in place.
    Ready(Box<Loaded>),
}

/// A model in place and all that is needed to talk to it.
pub struct Loaded {
    /// Holds the weights and computes.
    pub device: Box<dyn Device>,
    /// Text to token ids and back. Nothing changes it, so that it can be shared.
    pub tokenizer: Arc<Tokenizer>,
    /// How messages become a prompt; `None` where the model brings no template.
    pub template: Option<Rc<ChatTemplate>>,
    /// What the model is called and how large it is.
    pub model: ModelFacts,
}

/// What `ready` and `health` tell of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFacts {
    /// `general.name`, or else the file's name without its ending.
    pub name: String,
    /// `general.architecture`.
    pub architecture: String,
    /// The tensor type that holds most of the weights' bytes: "Q4_1".
    pub quant_kind: String,
    /// Number of weights.
    pub parameters: u64,
    /// Size of the tensors in the file.
    pub size_bytes: u64,
    /// Longest context the model was trained for, in tokens.
    pub context_length_trained: usize,
    /// Longest context this worker holds, in tokens.
    pub context_length: usize,
    /// Entries in the vocabulary.
    pub vocab_size: usize,
    /// The device's name: "cpu (avx2)".
    pub device: String,
}

/// Why a model cannot be loaded; each kind has its exit code.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no such file, or it cannot be read (exit 66).
    #[error("{0}")]
    NoInput(String),
    /// The file is damaged, or asks for something that this worker does not know (exit 65).
    #[error("{0}")]
    BadModel(String),
    /// The build or the machine has no such device (exit 69).
    #[error("{0}")]
    NoDevice(String),
    /// It does not fit in memory (exit 75).
    #[error("{message}")]
    NoMemory {
        /// What does not fit, where, and what would help.
        message: String,
        /// Bytes wanted.
        required_bytes: u64,
        /// Bytes there are.
        available_bytes: u64,
    },
    /// The device failed while loading (exit 76 when it is lost).
    #[error(transparent)]
    Device(#[from] DeviceError),
}

pub use device::{HAS_CUDA, Target, no_card};

/// How keys and values are stored.
pub use crate::device::KvType;

/// What the flags say of the model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The GGUF file, any one of several, or a folder with one model.
    pub model: PathBuf,
    /// The device that it is loaded onto.
    pub target: Target,
    /// Context in tokens; `None` takes the trained one, at most [`limits::CONTEXT_DEFAULT`].
    pub context: Option<usize>,
    /// How keys and values are stored.
    pub kv: KvType,
    /// Bytes of the KV pool; `None` for what one context takes.
    pub kv_bytes: Option<u64>,
    /// A `tokenizer.json` to use instead of one beside the model, or of the vocabulary in the file.
    pub tokenizer: Option<PathBuf>,
    /// A Jinja chat template to use instead of the one in the file.
    pub chat_template: Option<PathBuf>,
}

/// What [`FileLoad::check`] found.
pub struct Checked {
    /// The model, ready but for its weights.
    pub loaded: Loaded,
    /// What its tensors are stored as, in the order of their first appearance.
    pub tensor_types: Vec<TensorTypeFacts>,
    /// The files that it is in.
    pub files: Vec<FileFacts>,
}

/// How much of a model is stored as one tensor type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorTypeFacts {
    /// "Q4_1".
    pub name: &'static str,
    /// Tensors of this type.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Loads a GGUF file onto the cpu device in pieces: map and parse, tokenizer and template, device, weights.
pub struct FileLoad {
    options: LoadOptions,
    stage: Stage,
    parts: Vec<(&'static str, Instant)>,
    /// Bytes of the weights that are read.
    read_bytes: usize,
}

/// What is done next.
enum Stage {
    Open,
    Text(Box<Opened>),
    Device(Box<Opened>, Box<(Tokenizer, Option<ChatTemplate>)>),
    Weights(Box<Loaded>, Rc<Mapped>),
    /// A piece of its own, so that the time that it comes with is the load's end.
    Ready(Box<Loaded>),
    Over,
}

impl Stage {
    /// What the log calls the time that it takes.
    fn part(&self) -> Option<&'static str> {
        match self {
            Stage::Open => Some("open_ms"),
            Stage::Text(_) => Some("text_ms"),
            Stage::Device(..) => Some("device_ms"),
            Stage::Weights(..) => Some("weights_ms"),
            Stage::Ready(_) | Stage::Over => None,
        }
    }
}

/// A mapped and parsed model.
struct Opened {
    map: Rc<Mapped>,
    files: Vec<FileFacts>,
    gguf: Gguf,
    plan: Plan,
    weights: Weights,
}

impl FileLoad {
    /// A load that has done nothing yet.
    pub fn new(options: LoadOptions) -> Self {
        Self {
            options,
            stage: Stage::Open,
            parts: Vec::new(),
            read_bytes: 0,
        }
    }

    /// The operations that the file's model becomes.
    ///
    /// # Errors
    ///
    /// As a load: the file cannot be read, is damaged or asks for what is not known.
    pub fn plan(&self) -> Result<Plan, LoadError> {
        Ok(self.open()?.plan)
    }

    /// What a token of the file's model reads at least.
    ///
    /// # Errors
    ///
    /// As a load: the file cannot be read, is damaged or asks for what is not known.
    pub fn reads(&self) -> Result<Reads, LoadError> {
        let opened = self.open()?;
        Ok(Reads::of(&opened.plan, &opened.weights))
    }

    /// Does all of a load but reading the weights: every tensor is claimed, the tokenizer and the template are made, and the memory is
    /// reserved, though not yet used.
    ///
    /// # Errors
    ///
    /// As a load.
    pub fn check(&self) -> Result<Checked, LoadError> {
        let opened = self.open()?;
        let text = self.text(&opened)?;
        let mut tensor_types: Vec<TensorTypeFacts> = Vec::new();
        for weight in opened.weights.iter() {
            let name = weight.kind.name();
            match tensor_types.iter_mut().find(|t| t.name == name) {
                Some(seen) => {
                    seen.tensors += 1;
                    seen.bytes += weight.bytes as u64;
                }
                None => tensor_types.push(TensorTypeFacts {
                    name,
                    tensors: 1,
                    bytes: weight.bytes as u64,
                }),
            }
        }
        let files = opened.files.clone();
        let loaded = self.device(*opened, text)?;
        Ok(Checked {
            loaded,
            tensor_types,
            files,
        })
    }

    fn bad_model(&self, e: impl std::fmt::Display) -> LoadError {
        LoadError::BadModel(format!("{}: {e}", self.options.model.display()))
    }

    fn open(&self) -> Result<Box<Opened>, LoadError> {
        let files::Opened { map, gguf, files } = files::open(&self.options.model)?;
        let spec = arch::spec(&gguf).map_err(|e| self.bad_model(e))?;
        let plan = lower(&spec, self.context(spec.context_length)?);
        let weights = Weights::claim(&plan, &gguf).map_err(|e| self.bad_model(e))?;
        Ok(Box::new(Opened {
            map: Rc::new(map),
            files,
            gguf,
            plan,
            weights,
        }))
    }

    fn text(&self, opened: &Opened) -> Result<(Tokenizer, Option<ChatTemplate>), LoadError> {
        let metadata = &opened.gguf.metadata;
        let mut tokenizer = self.tokenizer(opened)?;
        let (tokens, rows) = (tokenizer.vocab_size(), opened.plan.n_vocab);
        let agree = match tokenizer.kind() {
            TokenizerKind::GgufBpe => tokens == rows,
            // Rows that pad the embedding have tokens in a GGUF file alone.
            TokenizerKind::HfJson => tokens <= rows,
        };
        if !agree {
            return Err(self.bad_model(format!(
                "the tokenizer has {tokens} tokens, but the embedding has {rows} rows"
            )));
        }
        tokenizer.add_holes(rows);
        let template = self.template(metadata, &tokenizer)?;
        Ok((tokenizer, template))
    }

    /// The tokenizer of the flag, or of a `tokenizer.json` beside the model, or of the model file.
    fn tokenizer(&self, opened: &Opened) -> Result<Tokenizer, LoadError> {
        let metadata = &opened.gguf.metadata;
        let read = |path: &Path, advice: &str| {
            let bad = |e| LoadError::BadModel(format!("{}: {e}{advice}", path.display()));
            Tokenizer::from_hf_json(&read_side_file(path)?, metadata).map_err(bad)
        };
        if let Some(path) = &self.options.tokenizer {
            return read(path, "");
        }
        let first = opened.files.first();
        let beside = first.map(|file| file.path.with_file_name(TOKENIZER_JSON));
        if let Some(beside) = beside.filter(|path| path.is_file()) {
            return read(
                &beside,
                "; it lies beside the model and is used for that: move it away to use the model file's vocabulary, or name another with --tokenizer",
            );
        }
        Tokenizer::from_gguf(metadata).map_err(|e| self.bad_model(e))
    }

    fn template(
        &self,
        metadata: &Metadata,
        tokenizer: &Tokenizer,
    ) -> Result<Option<ChatTemplate>, LoadError> {
        let key = "tokenizer.chat_template";
        let make = |source: &str| ChatTemplate::for_tokenizer(source, tokenizer);
        match &self.options.chat_template {
            Some(path) => read_template(path, make).map(Some),
            None => match metadata.string(key).map_err(|e| self.bad_model(e))? {
                Some(source) => make(source)
                    .map(Some)
                    .map_err(|e| self.bad_model(format!("{key}: {e}"))),
                None => Ok(None),
            },
        }
    }

    fn context(&self, trained: usize) -> Result<usize, LoadError> {
        match self.options.context {
            None => Ok(trained.min(limits::CONTEXT_DEFAULT)),
            Some(n) if (1..=trained).contains(&n) => Ok(n),
            Some(n) => Err(self.bad_model(format!(
                "--ctx {n} is not possible: the model was trained for 1 to {trained} tokens"
            ))),
        }
    }

    /// What is told of the model, but for its device.
    fn facts(&self, opened: &Opened) -> Result<ModelFacts, LoadError> {
        let Opened {
            gguf,
            plan,
            weights,
            files,
            ..
        } = opened;
        let name = gguf
            .metadata
            .string("general.name")
            .map_err(|e| self.bad_model(e))?;
        let file_name = || files.first().map(|file| files::stem(&file.path));
        Ok(ModelFacts {
            name: name
                .map(str::to_owned)
                .or_else(file_name)
                .unwrap_or_default(),
            architecture: plan.architecture.to_owned(),
            quant_kind: weights.main_kind().name().to_owned(),
            parameters: gguf.tensors.iter().map(TensorInfo::elements).sum(),
            size_bytes: weights.total_bytes(),
            context_length_trained: plan.context_length,
            context_length: self.context(plan.context_length)?,
            vocab_size: plan.n_vocab,
            device: String::new(),
        })
    }

    fn device(
        &self,
        opened: Opened,
        (tokenizer, template): (Tokenizer, Option<ChatTemplate>),
    ) -> Result<Loaded, LoadError> {
        let mut model = self.facts(&opened)?;
        let Opened {
            map, plan, weights, ..
        } = opened;
        let page_bytes = device::page_bytes(self.options.target, &plan, self.options.kv) as u64;
        let parts = device::Parts {
            pool_tokens: pool_tokens(model.context_length, self.options.kv_bytes, page_bytes)?,
            kv: self.options.kv,
            files: Box::new(map),
            plan,
            weights,
        };
        let (device, device_name) =
            device::open(self.options.target, parts).map_err(|e| match e {
                LoadError::BadModel(problem) => self.bad_model(problem),
                e => e,
            })?;
        model.device = device_name;
        Ok(Loaded {
            device,
            tokenizer: Arc::new(tokenizer),
            template: template.map(Rc::new),
            model,
        })
    }
}

/// Tokens that the KV pool holds: a whole context, or what `--kv-bytes` has room for.
fn pool_tokens(context: usize, kv_bytes: Option<u64>, page_bytes: u64) -> Result<usize, LoadError> {
    let Some(bytes) = kv_bytes else {
        return Ok(context);
    };
    let pages = usize::try_from(bytes / page_bytes.max(1)).unwrap_or(usize::MAX);
    match pages.saturating_mul(PAGE_TOKENS) {
        0 => Err(LoadError::NoMemory {
            message: format!(
                "--kv-bytes {bytes} is less than {page_bytes}, which is what {PAGE_TOKENS} tokens of this model take"
            ),
            required_bytes: page_bytes,
            available_bytes: bytes,
        }),
        tokens => Ok(tokens),
    }
}

/// The chat template in a file that a flag names.
fn read_template(
    path: &Path,
    make: impl Fn(&str) -> Result<ChatTemplate, TemplateError>,
) -> Result<ChatTemplate, LoadError> {
    let bad = |e: String| LoadError::BadModel(format!("{}: {e}", path.display()));
    let source = String::from_utf8(read_side_file(path)?).map_err(|e| bad(e.to_string()))?;
    make(&source).map_err(|e| bad(e.to_string()))
}

/// A small file named by a flag.
fn read_side_file(path: &Path) -> Result<Vec<u8>, LoadError> {
    let no_input =
        |e: std::io::Error| LoadError::NoInput(format!("{} cannot be read: {e}", path.display()));
    let metadata = std::fs::metadata(path).map_err(no_input)?;
    files::check_file(path, &metadata)?;
    let length = metadata.len();
    if length > limits::SIDE_FILE_BYTES_MAX {
        let problem = format!(
            "{} has {length} bytes; at most {} are read",
            path.display(),
            limits::SIDE_FILE_BYTES_MAX
        );
        return Err(LoadError::BadModel(problem));
    }
    std::fs::read(path).map_err(no_input)
}

impl Load for FileLoad {
    fn step(&mut self, now: Instant, until: Instant) -> Result<LoadStep, LoadError> {
        if let Some(part) = self.stage.part()
            && self.parts.last().is_none_or(|(last, _)| *last != part)
        {
            self.parts.push((part, now));
        }
        let begun = |weights: &Weights| {
            LoadStep::Progress(LoadProgress {
                processed: 0,
                total: weights.total_bytes(),
            })
        };
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Open => {
                device::find(self.options.target)?;
                let opened = self.open()?;
                let step = begun(&opened.weights);
                self.stage = Stage::Text(opened);
                Ok(step)
            }
            Stage::Text(opened) => {
                let text = self.text(&opened)?;
                let step = begun(&opened.weights);
                self.stage = Stage::Device(opened, Box::new(text));
                Ok(step)
            }
            Stage::Device(opened, text) => {
                let step = begun(&opened.weights);
                let map = Rc::clone(&opened.map);
                self.stage = Stage::Weights(Box::new(self.device(*opened, *text)?), map);
                Ok(step)
            }
            Stage::Ready(loaded) => Ok(LoadStep::Ready(loaded)),
            Stage::Over => Err(LoadError::BadModel("the load is over".into())),
            Stage::Weights(mut loaded, map) => {
                map.read_ahead(self.read_bytes);
                let progress = loaded.device.load_some(until)?;
                if progress.processed >= progress.total {
                    self.stage = Stage::Ready(loaded);
                    return Ok(LoadStep::Progress(progress));
                }
                // The tensors come in about the order of the files.
                self.read_bytes = usize::try_from(progress.processed).unwrap_or(usize::MAX);
                self.stage = Stage::Weights(loaded, map);
                Ok(LoadStep::Progress(progress))
            }
        }
    }

    fn parts(&self) -> &[(&'static str, Instant)] {
        &self.parts
    }
}
