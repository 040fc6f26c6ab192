//! What can be wrong with a GGUF file, in words that say where.

use std::fmt;

use super::{ALIGNMENT_MIN, TENSOR_DIMS_MAX, VERSION_MAX, VERSION_MIN};

/// Characters of a name out of the file that an error repeats: enough to find it, and a damaged name cannot flood a log.
const SHOWN_CHARS_MAX: usize = 100;

/// Why a file is refused, or why a metadata value is not what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GgufError {
    /// The file does not begin with the magic.
    #[error("not a GGUF file: it begins with \"{}\", not with \"GGUF\"", .found.escape_ascii())]
    NotGguf {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// A version that is not read.
    #[error(
        "GGUF version {found} is not supported (only {VERSION_MIN} to {VERSION_MAX}); convert the model again"
    )]
    Version {
        /// The file's version.
        found: u32,
    },
    /// The file is for machines of the other byte order.
    #[error(
        "the file is big-endian GGUF, only little-endian is supported; convert the model again"
    )]
    BigEndian,
    /// The file ends too early.
    #[error(
        "{place}: {wanted} more bytes wanted at byte {at}, but the file has only {left}: it is damaged or incomplete, fetch it again"
    )]
    Truncated {
        /// What was being read.
        place: String,
        /// Where, in bytes from the start of the file.
        at: u64,
        /// Bytes wanted; `u64::MAX` where the true number is beyond that.
        wanted: u64,
        /// Bytes there are.
        left: u64,
    },
    /// A count or length is over its limit.
    #[error("{what} is {value}, over the limit of {limit} ({name})")]
    OverLimit {
        /// What is counted.
        what: String,
        /// The file's value.
        value: u64,
        /// The largest allowed.
        limit: u64,
        /// The limit's name.
        name: &'static str,
    },
    /// A string is not UTF-8.
    #[error("{place} is not UTF-8 (byte {valid_up_to} of the string)")]
    NotUtf8 {
        /// Which string.
        place: String,
        /// The first byte of the string that is wrong.
        valid_up_to: usize,
    },
    /// A key stands twice in the file.
    #[error("the key {key} occurs twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A value's type is none of the format's.
    #[error("key {key}: value type {id} is unknown")]
    UnknownValueType {
        /// The key.
        key: String,
        /// The type id in the file.
        id: u32,
    },
    /// An array of arrays.
    #[error("key {key}: arrays of arrays are not supported")]
    NestedArray {
        /// The key.
        key: String,
    },
    /// A bool that is neither 0 nor 1.
    #[error("{place} is the byte {value} where a bool (0 or 1) is wanted")]
    NotBool {
        /// Which value.
        place: String,
        /// The byte.
        value: u8,
    },
    /// The alignment is no power of two, or too small.
    #[error(
        "key general.alignment is {found}, wanted is a power of two of at least {ALIGNMENT_MIN}"
    )]
    Alignment {
        /// The file's value.
        found: u64,
    },
    /// A tensor name stands twice in the file.
    #[error("the tensor {tensor} occurs twice")]
    DuplicateTensor {
        /// The tensor's name.
        tensor: String,
    },
    /// No dimension, or too many.
    #[error("tensor {tensor} has {found} dimensions, wanted are 1 to {TENSOR_DIMS_MAX}")]
    DimCount {
        /// The tensor's name.
        tensor: String,
        /// Dimensions in the file.
        found: u32,
    },
    /// A dimension is zero.
    #[error("tensor {tensor} with dimensions {dims:?} is empty: dimension {index} is 0")]
    ZeroDim {
        /// The tensor's name.
        tensor: String,
        /// All its dimensions, innermost first.
        dims: Vec<u64>,
        /// Which is zero.
        index: usize,
    },
    /// More elements or bytes than 64 bits can count.
    #[error("tensor {tensor} with dimensions {dims:?} is too large: its size overflows 64 bits")]
    SizeOverflow {
        /// The tensor's name.
        tensor: String,
        /// Its dimensions, innermost first.
        dims: Vec<u64>,
    },
    /// A tensor type that ggml does not know.
    #[error("tensor {tensor}: tensor type {id} is unknown")]
    UnknownTensorType {
        /// The tensor's name.
        tensor: String,
        /// The type id in the file.
        id: u32,
    },
    /// A row is no whole number of blocks.
    #[error(
        "tensor {tensor}: its rows of {row_len} elements are not whole blocks of {block_len} ({type_name})"
    )]
    PartialBlock {
        /// The tensor's name.
        tensor: String,
        /// The innermost dimension.
        row_len: u64,
        /// The type's name.
        type_name: &'static str,
        /// Elements in a block.
        block_len: u64,
    },
    /// A tensor does not begin where the alignment says.
    #[error(
        "tensor {tensor}: its offset {offset} in the data is not a multiple of the alignment {alignment}"
    )]
    Misaligned {
        /// The tensor's name.
        tensor: String,
        /// Offset as the file says it, from the start of the data.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// A tensor's bytes go beyond the end of the file.
    #[error(
        "tensor {tensor}: its {size_bytes} bytes at byte {offset} end after the file's {file_bytes} bytes: it is damaged or incomplete, fetch it again"
    )]
    OutsideFile {
        /// The tensor's name.
        tensor: String,
        /// First byte from the start of the file; `u64::MAX` where the true one is beyond that.
        offset: u64,
        /// The tensor's size.
        size_bytes: u64,
        /// The file's size.
        file_bytes: u64,
    },
    /// Two tensors share bytes.
    #[error(
        "the tensors {first} and {second} overlap: the second begins at byte {second_offset}, before the first ends at byte {first_end}"
    )]
    Overlap {
        /// The tensor that begins first.
        first: String,
        /// One past its last byte, from the start of the file.
        first_end: u64,
        /// The tensor that begins inside it.
        second: String,
        /// Its first byte, from the start of the file.
        second_offset: u64,
    },
    /// There is no file at all.
    #[error("a model is in one file at least")]
    NoFiles,
    /// A file is of another number of files than there are.
    #[error(
        "key split.count is {found}, but the model is given as {files} file(s): a model in several has names like NAME-00001-of-00003.gguf, all in one folder"
    )]
    SplitCount {
        /// What the file says.
        found: u64,
        /// Files that there are.
        files: u64,
    },
    /// A file has the name of another.
    #[error(
        "key split.no is {found}, but the file's name says {wanted} (both from 0): it was renamed"
    )]
    SplitNumber {
        /// What the file says.
        found: u64,
        /// What its name says.
        wanted: u64,
    },
    /// A later file says something of the model.
    #[error("key {key} is not what the model's first file says: it belongs to another model")]
    SplitKey {
        /// The key.
        key: String,
    },
    /// The files together do not have the tensors that they should.
    #[error(
        "the model's {files} file(s) have {found} tensors, but key split.tensors.count is {wanted}"
    )]
    SplitTensors {
        /// Tensors in all files.
        found: u64,
        /// What the first file says.
        wanted: u64,
        /// Files that there are.
        files: u64,
    },
    /// A key that is needed is not there.
    #[error("key {key} is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A value is of another type than is wanted.
    #[error("key {key} is of type {found}, wanted is {wanted}")]
    WrongType {
        /// The key.
        key: String,
        /// The type wanted.
        wanted: &'static str,
        /// The type found.
        found: &'static str,
    },
    /// A number that the wanted type cannot hold.
    #[error("key {key} is {value}, which does not fit {wanted}")]
    DoesNotFit {
        /// The key.
        key: String,
        /// The number.
        value: String,
        /// The type wanted.
        wanted: &'static str,
    },
}

/// What is being read, for errors; made into words only when there is one.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    /// One of the header's own numbers.
    Header(&'static str),
    /// The name of the key of this number, counted from 0.
    Key(u64),
    /// The value of a key.
    Value(&'a str),
    /// An element of an array.
    Element(&'a str, u64),
    /// The name of the tensor of this number, counted from 0.
    TensorName(u64),
    /// What is said of a tensor.
    Tensor(&'a str),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(what) => f.write_str(what),
            Self::Key(index) => write!(f, "the name of key number {index}"),
            Self::Value(key) => write!(f, "key {}", shown(key)),
            Self::Element(key, index) => write!(f, "key {}, element {index}", shown(key)),
            Self::TensorName(index) => write!(f, "the name of tensor number {index}"),
            Self::Tensor(name) => write!(f, "tensor {}", shown(name)),
        }
    }
}

/// A name out of the file as an error shows it: control characters escaped, long ones shortened, empty ones visible.
pub(super) fn shown(name: &str) -> String {
    if name.is_empty() {
        return "\"\"".into();
    }
    let mut text: String = name
        .chars()
        .take(SHOWN_CHARS_MAX)
        .flat_map(char::escape_debug)
        .collect();
    if name.chars().nth(SHOWN_CHARS_MAX).is_some() {
        text.push('…');
    }
    text
}
