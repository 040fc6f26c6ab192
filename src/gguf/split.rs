//! A model in several files: how they are called, and how what they say becomes one [`Gguf`].
//!
//! The first file has all of the metadata, each has tensors of its own, and each says which it is of how many (`split.no`,
//! `split.count`, `split.tensors.count`).

use std::collections::HashSet;

use super::error::{GgufError, shown};
use super::{ALIGNMENT_KEY, Gguf, TensorInfo};

const NUMBER_KEY: &str = "split.no";
const COUNT_KEY: &str = "split.count";
const TENSORS_KEY: &str = "split.tensors.count";

/// Keys that each file has for itself.
const OWN_KEYS: [&str; 4] = [NUMBER_KEY, COUNT_KEY, TENSORS_KEY, ALIGNMENT_KEY];

/// Digits of either number in a name.
const DIGITS: usize = 5;

/// The name of one file of several: `model-00002-of-00003.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardName {
    /// What the names have in common: `model`.
    pub prefix: String,
    /// Which of them it is, from 1.
    pub number: u32,
    /// How many there are.
    pub count: u32,
}

impl ShardName {
    /// Reads a file's name; `None` where it is not one of several.
    pub fn parse(file_name: &str) -> Option<Self> {
        let (rest, count) = file_name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let (number, count) = (digits(number)?, digits(count)?);
        (1..=count).contains(&number).then(|| Self {
            prefix: prefix.to_owned(),
            number,
            count,
        })
    }

    /// The name of file `number` of the same model.
    pub fn sibling(&self, number: u32) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.prefix, self.count)
    }
}

/// A number of exactly [`DIGITS`] digits.
fn digits(text: &str) -> Option<u32> {
    let is_number = text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// One [`Gguf`] of all files of a model, in their order: the metadata of the first and the tensors of all, each with the number of its
/// file.
///
/// # Errors
///
/// A file that does not belong to the others, with its place among them.
pub fn join(files: Vec<Gguf>) -> Result<Gguf, (usize, GgufError)> {
    let count = files.len() as u64;
    for (place, file) in files.iter().enumerate() {
        check_numbers(file, place as u64, count).map_err(|error| (place, error))?;
    }
    let mut files = files.into_iter();
    let Some(mut all) = files.next() else {
        return Err((0, GgufError::NoFiles));
    };
    for (place, later) in (1..).zip(files) {
        check_keys(&all, &later).map_err(|error| (place, error))?;
        all.tensors
            .extend(later.tensors.into_iter().map(|tensor| TensorInfo {
                file: place,
                ..tensor
            }));
    }
    check_tensors(&all, count).map_err(|error| (0, error))?;
    Ok(all)
}

/// A file that says nothing of splits is the only one.
fn check_numbers(gguf: &Gguf, place: u64, files: u64) -> Result<(), GgufError> {
    let count = match gguf.metadata.u64(COUNT_KEY)? {
        None if files == 1 => return Ok(()),
        None => gguf.metadata.require_u64(COUNT_KEY)?,
        Some(count) => count,
    };
    if count.max(1) != files {
        return Err(GgufError::SplitCount {
            found: count,
            files,
        });
    }
    let number = gguf.metadata.u64(NUMBER_KEY)?.unwrap_or(0);
    match number == place {
        true => Ok(()),
        false => Err(GgufError::SplitNumber {
            found: number,
            wanted: place,
        }),
    }
}

/// A later file repeats what the first says, or says nothing: something else would be lost.
fn check_keys(first: &Gguf, later: &Gguf) -> Result<(), GgufError> {
    let other = later
        .metadata
        .iter()
        .find(|(key, value)| !OWN_KEYS.contains(key) && first.metadata.get(key) != Some(value));
    match other {
        None => Ok(()),
        Some((key, _)) => Err(GgufError::SplitKey { key: shown(key) }),
    }
}

fn check_tensors(all: &Gguf, files: u64) -> Result<(), GgufError> {
    let mut names = HashSet::with_capacity(all.tensors.len());
    if let Some(twice) = all.tensors.iter().find(|t| !names.insert(t.name.as_str())) {
        return Err(GgufError::DuplicateTensor {
            tensor: shown(&twice.name),
        });
    }
    let found = all.tensors.len() as u64;
    match all.metadata.u64(TENSORS_KEY)? {
        Some(wanted) if wanted != found => Err(GgufError::SplitTensors {
            found,
            wanted,
            files,
        }),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let name = ShardName::parse("a-b-00002-of-00003.gguf").unwrap();
        assert_eq!(
            (name.prefix.as_str(), name.number, name.count),
            ("a-b", 2, 3)
        );
        assert_eq!(name.sibling(2), "a-b-00002-of-00003.gguf");
        for other in [
            "model.gguf",
            "a-00000-of-00003.gguf",
            "a-00004-of-00003.gguf",
            "a-2-of-3.gguf",
            "a-00002-of-00003.bin",
            "a-0000x-of-00003.gguf",
            "a-+0002-of-00003.gguf",
            "00002-of-00003.gguf",
            "",
        ] {
            assert_eq!(ShardName::parse(other), None, "{other}");
        }
    }
}
