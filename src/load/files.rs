//! Which files a model is in, and what they say together.

use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};

use super::LoadError;
use super::map::{self, Mapped};
use crate::gguf::split::{ShardName, join};
use crate::gguf::{self, Gguf};

/// Names that an error about a folder lists.
const SHOWN_NAMES_MAX: usize = 5;

/// One file of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Tensors in it.
    pub tensors: usize,
}

/// A model's files, mapped and parsed.
pub(super) struct Opened {
    pub(super) map: Mapped,
    pub(super) gguf: Gguf,
    /// In their order.
    pub(super) files: Vec<FileFacts>,
}

/// Opens the file at `path`, with all others that the model is in, or the one model in the folder at `path`.
pub(super) fn open(path: &Path) -> Result<Opened, LoadError> {
    let paths = if path.is_dir() {
        all_of(&only_model(path)?)
    } else {
        all_of(path)
    };
    let files = paths
        .iter()
        .map(|path| open_file(path, paths.len()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut maps = Vec::with_capacity(paths.len());
    let mut parsed = Vec::with_capacity(paths.len());
    let mut facts = Vec::with_capacity(paths.len());
    for (path, file) in paths.iter().zip(&files) {
        let map = map::map(file).map_err(|e| no_input(path, &e))?;
        let gguf = gguf::parse(&map).map_err(|e| bad_model(path, e))?;
        facts.push(FileFacts {
            path: path.clone(),
            bytes: map.len() as u64,
            tensors: gguf.tensors.len(),
        });
        maps.push(map);
        parsed.push(gguf);
    }
    let gguf = join(parsed).map_err(|(place, e)| bad_model(&paths[place], e))?;
    Ok(Opened {
        map: Mapped::new(maps),
        gguf,
        files: facts,
    })
}

/// The model's name by its file's.
pub(super) fn stem(path: &Path) -> String {
    match shard_name(path) {
        Some(name) => name.prefix,
        None => path
            .file_stem()
            .map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned()),
    }
}

fn shard_name(path: &Path) -> Option<ShardName> {
    ShardName::parse(path.file_name()?.to_str()?)
}

/// All files of the model that `path` is a file of.
fn all_of(path: &Path) -> Vec<PathBuf> {
    match shard_name(path) {
        None => vec![path.to_owned()],
        Some(name) => (1..=name.count)
            .map(|number| path.with_file_name(name.sibling(number)))
            .collect(),
    }
}

fn open_file(path: &Path, files: usize) -> Result<File, LoadError> {
    let metadata = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound if files > 1 => LoadError::NoInput(format!(
            "{} is missing: the model is in {files} files, which all have to lie in one folder",
            path.display()
        )),
        _ => no_input(path, &e),
    })?;
    check_file(path, &metadata)?;
    if metadata.len() == 0 {
        return Err(LoadError::BadModel(format!("{} is empty", path.display())));
    }
    File::open(path).map_err(|e| no_input(path, &e))
}

/// Refuses what is no file, before it is opened: to open a pipe would be to wait for its other end, and a device may have no end.
pub(super) fn check_file(path: &Path, metadata: &Metadata) -> Result<(), LoadError> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(LoadError::NoInput(format!(
        "{} is not a file",
        path.display()
    )))
}

/// The first file of the one model in a folder.
fn only_model(folder: &Path) -> Result<PathBuf, LoadError> {
    let entries = std::fs::read_dir(folder).map_err(|e| no_input(folder, &e))?;
    let mut models: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| no_input(folder, &e))?.path();
        let is_model = path
            .extension()
            .is_some_and(|extension| extension == "gguf");
        if is_model && path.is_file() {
            let first = all_of(&path).swap_remove(0);
            if !models.contains(&first) {
                models.push(first);
            }
        }
    }
    models.sort();
    match &models[..] {
        [model] => Ok(model.clone()),
        [] => Err(LoadError::NoInput(format!(
            "{} has no .gguf file",
            folder.display()
        ))),
        several => {
            let names: Vec<String> = several
                .iter()
                .take(SHOWN_NAMES_MAX)
                .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
                .collect();
            Err(LoadError::NoInput(format!(
                "{} has {} models, name one of them: {}",
                folder.display(),
                several.len(),
                names.join(", ")
            )))
        }
    }
}

fn no_input(path: &Path, e: &std::io::Error) -> LoadError {
    LoadError::NoInput(format!("{} cannot be read: {e}", path.display()))
}

fn bad_model(path: &Path, e: impl std::fmt::Display) -> LoadError {
    LoadError::BadModel(format!("{}: {e}", path.display()))
}
