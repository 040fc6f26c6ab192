//! A model's metadata: keys, typed values, and getters that say which key is missing or of the wrong type.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::error::{GgufError, shown};

/// A value as the file has it.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // The names are the types.
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

/// An array as the file has it; all elements are of one type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // The names are the types.
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(Vec<String>),
}

impl Value {
    /// The type in words: "u32", "array of string".
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::U8(_) => "u8",
            Self::I8(_) => "i8",
            Self::U16(_) => "u16",
            Self::I16(_) => "i16",
            Self::U32(_) => "u32",
            Self::I32(_) => "i32",
            Self::U64(_) => "u64",
            Self::I64(_) => "i64",
            Self::F32(_) => "f32",
            Self::F64(_) => "f64",
            Self::Bool(_) => "bool",
            Self::String(_) => "string",
            Self::Array(array) => array.type_name(),
        }
    }

    /// The number, if this is an integer of any width.
    fn integer(&self) -> Option<i128> {
        match *self {
            Self::U8(n) => Some(n.into()),
            Self::I8(n) => Some(n.into()),
            Self::U16(n) => Some(n.into()),
            Self::I16(n) => Some(n.into()),
            Self::U32(n) => Some(n.into()),
            Self::I32(n) => Some(n.into()),
            Self::U64(n) => Some(n.into()),
            Self::I64(n) => Some(n.into()),
            Self::F32(_) | Self::F64(_) | Self::Bool(_) | Self::String(_) | Self::Array(_) => None,
        }
    }
}

impl Array {
    /// The type in words: "array of u32".
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::U8(_) => "array of u8",
            Self::I8(_) => "array of i8",
            Self::U16(_) => "array of u16",
            Self::I16(_) => "array of i16",
            Self::U32(_) => "array of u32",
            Self::I32(_) => "array of i32",
            Self::U64(_) => "array of u64",
            Self::I64(_) => "array of i64",
            Self::F32(_) => "array of f32",
            Self::F64(_) => "array of f64",
            Self::Bool(_) => "array of bool",
            Self::String(_) => "array of string",
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::U32(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::U64(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::Bool(v) => v.len(),
            Self::String(v) => v.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers, if these are integers of any width.
    fn integers(&self) -> Option<Box<dyn Iterator<Item = i128> + '_>> {
        fn widen<T: Copy + Into<i128>>(
            numbers: &[T],
        ) -> Option<Box<dyn Iterator<Item = i128> + '_>> {
            Some(Box::new(numbers.iter().map(|&n| n.into())))
        }
        match self {
            Self::U8(v) => widen(v),
            Self::I8(v) => widen(v),
            Self::U16(v) => widen(v),
            Self::I16(v) => widen(v),
            Self::U32(v) => widen(v),
            Self::I32(v) => widen(v),
            Self::U64(v) => widen(v),
            Self::I64(v) => widen(v),
            Self::F32(_) | Self::F64(_) | Self::Bool(_) | Self::String(_) => None,
        }
    }
}

/// The key-value pairs of a file.
///
/// Each getter comes twice: `u32(key)` gives `None` where the key is absent, `require_u32(key)` an error. Both refuse a value of
/// another type. Integers are taken from any integer type as long as the number fits, since writers differ in the widths they use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: BTreeMap<String, Value>,
}

impl Metadata {
    /// Sets a value and gives back the one that it replaces.
    pub fn insert(&mut self, key: &str, value: impl Into<Value>) -> Option<Value> {
        self.entries.insert(key.to_owned(), value.into())
    }

    /// The value of `key` as the file has it.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    /// All pairs in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries
            .iter()
            .map(|(key, value)| (key.as_str(), value))
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A string.
    pub fn string(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.read(key, "string", |value| {
            if let Value::String(text) = value {
                Some(text.as_str())
            } else {
                None
            }
        })
    }

    /// A bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.read(key, "bool", |value| {
            if let Value::Bool(b) = value {
                Some(*b)
            } else {
                None
            }
        })
    }

    /// A 32-bit float; a 64-bit one only if nothing of it is lost. It may be infinite or not a number if the file says so.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::F32(x)) => Ok(Some(*x)),
            Some(Value::F64(x)) if f64::from(*x as f32) == *x => Ok(Some(*x as f32)),
            Some(Value::F64(x)) => Err(does_not_fit(key, x.to_string(), "f32")),
            Some(other) => Err(wrong_type(key, "f32", other)),
        }
    }

    /// An integer from 0 to 2^32 - 1.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.integer(key, "u32")
    }

    /// An integer from 0 to 2^64 - 1.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.integer(key, "u64")
    }

    /// An integer that is a size or a count.
    pub fn usize(&self, key: &str) -> Result<Option<usize>, GgufError> {
        self.integer(key, "usize")
    }

    /// An integer from -2^31 to 2^31 - 1.
    pub fn i32(&self, key: &str) -> Result<Option<i32>, GgufError> {
        self.integer(key, "i32")
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, GgufError> {
        self.read(key, "array of string", |value| {
            if let Value::Array(Array::String(v)) = value {
                Some(v.as_slice())
            } else {
                None
            }
        })
    }

    /// An array of 32-bit floats.
    pub fn f32s(&self, key: &str) -> Result<Option<&[f32]>, GgufError> {
        self.read(key, "array of f32", |value| {
            if let Value::Array(Array::F32(v)) = value {
                Some(v.as_slice())
            } else {
                None
            }
        })
    }

    /// An array of bools.
    pub fn bools(&self, key: &str) -> Result<Option<&[bool]>, GgufError> {
        self.read(key, "array of bool", |value| {
            if let Value::Array(Array::Bool(v)) = value {
                Some(v.as_slice())
            } else {
                None
            }
        })
    }

    /// An array of integers that fit `i32`; borrowed where the file has just that type.
    pub fn i32s(&self, key: &str) -> Result<Option<Cow<'_, [i32]>>, GgufError> {
        if let Some(Value::Array(Array::I32(v))) = self.get(key) {
            return Ok(Some(Cow::Borrowed(v)));
        }
        Ok(self.integers(key, "array of i32")?.map(Cow::Owned))
    }

    /// An array of integers that fit `u32`; borrowed where the file has just that type.
    pub fn u32s(&self, key: &str) -> Result<Option<Cow<'_, [u32]>>, GgufError> {
        if let Some(Value::Array(Array::U32(v))) = self.get(key) {
            return Ok(Some(Cow::Borrowed(v)));
        }
        Ok(self.integers(key, "array of u32")?.map(Cow::Owned))
    }

    /// An array of integers that are sizes or counts.
    pub fn usizes(&self, key: &str) -> Result<Option<Vec<usize>>, GgufError> {
        self.integers(key, "array of usize")
    }

    /// As [`Metadata::string`], of a key that must be there.
    pub fn require_string(&self, key: &str) -> Result<&str, GgufError> {
        self.string(key)?.ok_or_else(|| missing(key))
    }

    /// As [`Metadata::bool`], of a key that must be there.
    pub fn require_bool(&self, key: &str) -> Result<bool, GgufError> {
        self.bool(key)?.ok_or_else(|| missing(key))
    }

    /// As [`Metadata::f32`], of a key that must be there.
    pub fn require_f32(&self, key: &str) -> Result<f32, GgufError> {
        self.f32(key)?.ok_or_else(|| missing(key))
    }

    /// As [`Metadata::u32`], of a key that must be there.
    pub fn require_u32(&self, key: &str) -> Result<u32, GgufError> {
        self.u32(key)?.ok_or_else(|| missing(key))
    }

    /// As [`Metadata::u64`], of a key that must be there.
    pub fn require_u64(&self, key: &str) -> Result<u64, GgufError> {
        self.u64(key)?.ok_or_else(|| missing(key))
    }

    /// As [`Metadata::usize`], of a key that must be there.
    pub fn require_usize(&self, key: &str) -> Result<usize, GgufError> {
        self.usize(key)?.ok_or_else(|| missing(key))
    }

    /// As [`Metadata::i32`], of a key that must be there.
    pub fn require_i32(&self, key: &str) -> Result<i32, GgufError> {
        self.i32(key)?.ok_or_else(|| missing(key))
    }

    /// As [`Metadata::strings`], of a key that must be there.
    pub fn require_strings(&self, key: &str) -> Result<&[String], GgufError> {
        self.strings(key)?.ok_or_else(|| missing(key))
    }

    /// As [`Metadata::f32s`], of a key that must be there.
    pub fn require_f32s(&self, key: &str) -> Result<&[f32], GgufError> {
        self.f32s(key)?.ok_or_else(|| missing(key))
    }

    /// As [`Metadata::bools`], of a key that must be there.
    pub fn require_bools(&self, key: &str) -> Result<&[bool], GgufError> {
        self.bools(key)?.ok_or_else(|| missing(key))
    }

    /// As [`Metadata::i32s`], of a key that must be there.
    pub fn require_i32s(&self, key: &str) -> Result<Cow<'_, [i32]>, GgufError> {
        self.i32s(key)?.ok_or_else(|| missing(key))
    }

    /// As [`Metadata::u32s`], of a key that must be there.
    pub fn require_u32s(&self, key: &str) -> Result<Cow<'_, [u32]>, GgufError> {
        self.u32s(key)?.ok_or_else(|| missing(key))
    }

    /// As [`Metadata::usizes`], of a key that must be there.
    pub fn require_usizes(&self, key: &str) -> Result<Vec<usize>, GgufError> {
        self.usizes(key)?.ok_or_else(|| missing(key))
    }

    /// The value of `key` if `as_type` accepts it.
    fn read<'a, T>(
        &'a self,
        key: &str,
        wanted: &'static str,
        as_type: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        as_type(value)
            .map(Some)
            .ok_or_else(|| wrong_type(key, wanted, value))
    }

    fn integer<T: TryFrom<i128>>(
        &self,
        key: &str,
        wanted: &'static str,
    ) -> Result<Option<T>, GgufError> {
        let Some(n) = self.read(key, wanted, Value::integer)? else {
            return Ok(None);
        };
        T::try_from(n)
            .map(Some)
            .map_err(|_| does_not_fit(key, n.to_string(), wanted))
    }

    fn integers<T: TryFrom<i128>>(
        &self,
        key: &str,
        wanted: &'static str,
    ) -> Result<Option<Vec<T>>, GgufError> {
        let numbers = self.read(key, wanted, |value| {
            if let Value::Array(array) = value {
                array.integers()
            } else {
                None
            }
        })?;
        let Some(numbers) = numbers else {
            return Ok(None);
        };
        let fitting = numbers.enumerate().map(|(index, n)| {
            T::try_from(n).map_err(|_| does_not_fit(key, format!("{n} at element {index}"), wanted))
        });
        fitting.collect::<Result<Vec<T>, _>>().map(Some)
    }
}

fn missing(key: &str) -> GgufError {
    GgufError::MissingKey { key: shown(key) }
}

fn wrong_type(key: &str, wanted: &'static str, found: &Value) -> GgufError {
    GgufError::WrongType {
        key: shown(key),
        wanted,
        found: found.type_name(),
    }
}

fn does_not_fit(key: &str, value: String, wanted: &'static str) -> GgufError {
    GgufError::DoesNotFit {
        key: shown(key),
        value,
        wanted,
    }
}

/// `From` for each Rust type that is just one kind of value.
macro_rules! value_from {
    ($($rust:ty => $value:expr),* $(,)?) => {
        $(impl From<$rust> for Value {
            fn from(x: $rust) -> Self {
                $value(x)
            }
        })*
    };
}

value_from! {
    u32 => Value::U32,
    i32 => Value::I32,
    u64 => Value::U64,
    f32 => Value::F32,
    bool => Value::Bool,
    String => Value::String,
    Array => Value::Array,
    Vec<String> => |v| Value::Array(Array::String(v)),
    Vec<i32> => |v| Value::Array(Array::I32(v)),
    Vec<u32> => |v| Value::Array(Array::U32(v)),
    Vec<f32> => |v| Value::Array(Array::F32(v)),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::String(text.to_owned())
    }
}

impl<K: Into<String>> FromIterator<(K, Value)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, Value)>>(pairs: I) -> Self {
        Self {
            entries: pairs
                .into_iter()
                .map(|(key, value)| (key.into(), value))
                .collect(),
        }
    }
}
