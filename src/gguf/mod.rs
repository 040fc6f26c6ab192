//! GGUF files: bytes to metadata and tensor places, by a parser that takes nothing in the file for granted.
//!
//! A file is a header (magic, version, counts), key-value pairs, a list of tensors and then the tensors' bytes. Only the first three
//! are read here; the weights stay where they are, in the mapped files, and [`Gguf::tensor_bytes`] hands out views of them. Whatever
//! the bytes are, parsing ends in a [`Gguf`] whose every tensor lies inside the file, or in an error that names the key or the tensor.
//! A model in several files is parsed file by file, and [`split`] makes one of them.
//! Nothing is reserved on the word of a count alone, so that a damaged file cannot ask for memory that it does not itself fill.

mod error;
mod metadata;
mod reader;
pub mod split;
mod tensors;
mod types;
mod values;

pub use error::GgufError;
pub use metadata::{Array, Metadata, Value};
pub use types::GgmlType;

use error::{Place, shown};
use reader::Reader;

/// The oldest version of the format that is read. Version 1 had 32-bit counts and is gone from the world.
pub const VERSION_MIN: u32 = 2;
/// The newest version of the format that is read.
pub const VERSION_MAX: u32 = 3;
/// Bytes from the start of the file to the end of the tensor list. The largest vocabularies known take about 30 MB.
pub const HEADER_BYTES_MAX: u64 = 128 << 20;
/// Key-value pairs in a file; models carry some dozens.
pub const METADATA_COUNT_MAX: u64 = 1 << 16;
/// Bytes of a key; the format's own limit.
pub const KEY_BYTES_MAX: u64 = (1 << 16) - 1;
/// Bytes of one string value; the longest are chat templates and tokenizer files carried whole.
pub const STRING_BYTES_MAX: u64 = 64 << 20;
/// Elements of one array value; the longest are vocabularies and merges.
pub const ARRAY_LEN_MAX: u64 = 1 << 24;
/// Tensors in a file; the largest models have a few thousand.
pub const TENSOR_COUNT_MAX: u64 = 1 << 16;
/// Bytes of a tensor's name; the format's own limit.
pub const TENSOR_NAME_BYTES_MAX: u64 = 64;
/// Dimensions of a tensor; the format's own limit.
pub const TENSOR_DIMS_MAX: u32 = 4;
/// Alignment of the tensors' bytes where `general.alignment` says nothing else.
pub const ALIGNMENT_DEFAULT: u64 = 32;
/// The smallest alignment there may be; the format wants a multiple of 8.
pub const ALIGNMENT_MIN: u64 = 8;

/// Key that holds the alignment of the tensors' bytes.
const ALIGNMENT_KEY: &str = "general.alignment";

/// What a GGUF file says, apart from the weights themselves.
#[derive(Clone, Debug)]
pub struct Gguf {
    /// Version of the format, [`VERSION_MIN`] to [`VERSION_MAX`].
    pub version: u32,
    /// Every tensor begins at a multiple of this many bytes; a power of two, at least [`ALIGNMENT_MIN`].
    pub alignment: u64,
    /// The key-value pairs.
    pub metadata: Metadata,
    /// The tensors in the order of the files and of each file. They lie inside their file and do not overlap.
    pub tensors: Vec<TensorInfo>,
}

/// Where a tensor is and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name; no two in a model are alike.
    pub name: String,
    /// Elements along each dimension, innermost (contiguous) first; one to four, none zero.
    /// The first is a multiple of the type's block length, so that every row is whole blocks.
    pub dims: Vec<u64>,
    /// How the elements are stored.
    pub ggml_type: GgmlType,
    /// Which of the model's files it lies in, from 0.
    pub file: usize,
    /// First byte, counted from the start of that file.
    pub offset: u64,
    /// Number of bytes; `offset + size_bytes` is at most the length of that file.
    pub size_bytes: u64,
}

impl TensorInfo {
    /// Number of weights: the product of the dimensions, which the parser has checked to fit.
    pub fn elements(&self) -> u64 {
        self.dims.iter().fold(1u64, |n, &dim| n.saturating_mul(dim))
    }
}

impl Gguf {
    /// The tensor called `name`, found by walking the list.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|t| t.name == name)
    }

    /// The stored bytes of `tensor`, `tensor.size_bytes` long, as a view of `file`, which is the whole file that it lies in.
    ///
    /// Fails if `file` ends before the tensor does, that is if it is not the file that was parsed.
    pub fn tensor_bytes<'a>(
        &self,
        file: &'a [u8],
        tensor: &TensorInfo,
    ) -> Result<&'a [u8], GgufError> {
        let range = || {
            let start = usize::try_from(tensor.offset).ok()?;
            let end = usize::try_from(tensor.offset.checked_add(tensor.size_bytes)?).ok()?;
            file.get(start..end)
        };
        range().ok_or_else(|| GgufError::OutsideFile {
            tensor: shown(&tensor.name),
            offset: tensor.offset,
            size_bytes: tensor.size_bytes,
            file_bytes: file.len() as u64,
        })
    }
}

/// Reads the header of a GGUF file. `bytes` is the whole file, since every tensor is checked to lie inside it.
///
/// Versions 2 and 3, little-endian. Fails on anything that is not as the format says, see [`GgufError`].
pub fn parse(bytes: &[u8]) -> Result<Gguf, GgufError> {
    let mut reader = Reader::new(bytes);
    let version = read_version(&mut reader)?;
    let tensor_count = reader.u64(Place::Header("the tensor count"))?;
    let metadata_count = reader.u64(Place::Header("the key count"))?;
    check_limit(
        || "the number of tensors".into(),
        tensor_count,
        TENSOR_COUNT_MAX,
        "TENSOR_COUNT_MAX",
    )?;
    check_limit(
        || "the number of keys".into(),
        metadata_count,
        METADATA_COUNT_MAX,
        "METADATA_COUNT_MAX",
    )?;
    let metadata = values::read_metadata(&mut reader, metadata_count)?;
    let alignment = read_alignment(&metadata)?;
    let tensors = tensors::read_tensors(&mut reader, tensor_count, alignment, bytes.len() as u64)?;
    Ok(Gguf {
        version,
        alignment,
        metadata,
        tensors,
    })
}

/// Magic and version. A big-endian file shows itself by its version's bytes.
fn read_version(reader: &mut Reader<'_>) -> Result<u32, GgufError> {
    let magic = reader.bytes::<4>(Place::Header("the magic"))?;
    if &magic != b"GGUF" {
        return Err(GgufError::NotGguf { found: magic });
    }
    let version = reader.u32(Place::Header("the version"))?;
    if (VERSION_MIN..=VERSION_MAX).contains(&version) {
        Ok(version)
    } else if (VERSION_MIN..=VERSION_MAX).contains(&version.swap_bytes()) {
        Err(GgufError::BigEndian)
    } else {
        Err(GgufError::Version { found: version })
    }
}

/// `general.alignment`, or the default where there is none.
fn read_alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    let alignment = metadata.u64(ALIGNMENT_KEY)?.unwrap_or(ALIGNMENT_DEFAULT);
    if alignment.is_power_of_two() && alignment >= ALIGNMENT_MIN {
        Ok(alignment)
    } else {
        Err(GgufError::Alignment { found: alignment })
    }
}

/// An error unless `value` is at most `limit`.
fn check_limit(
    what: impl FnOnce() -> String,
    value: u64,
    limit: u64,
    name: &'static str,
) -> Result<(), GgufError> {
    if value <= limit {
        Ok(())
    } else {
        Err(GgufError::OverLimit {
            what: what(),
            value,
            limit,
            name,
        })
    }
}
