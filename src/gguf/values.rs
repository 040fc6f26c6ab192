//! Reading the key-value pairs.

use super::error::{GgufError, Place, shown};
use super::metadata::{Array, Metadata, Value};
use super::reader::Reader;
use super::{ARRAY_LEN_MAX, KEY_BYTES_MAX, STRING_BYTES_MAX, check_limit};

/// Strings that room is made for at once; more are taken as they come, since a string is larger in memory than an empty one on disk.
const STRINGS_RESERVED_MAX: u64 = 1 << 16;
/// The fewest bytes a string takes in the file: its length.
const STRING_BYTES_MIN: u64 = 8;
/// The fewest bytes a key-value pair takes: an empty key, a type and a byte.
const PAIR_BYTES_MIN: u64 = STRING_BYTES_MIN + 4 + 1;

/// The numbers that files give the value types.
#[derive(Clone, Copy)]
enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    fn read(reader: &mut Reader<'_>, key: &str) -> Result<Self, GgufError> {
        let id = reader.u32(Place::Value(key))?;
        Ok(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            id => {
                return Err(GgufError::UnknownValueType {
                    key: shown(key),
                    id,
                });
            }
        })
    }
}

/// Reads `count` pairs.
pub(super) fn read_metadata(reader: &mut Reader<'_>, count: u64) -> Result<Metadata, GgufError> {
    reader.expect(count, PAIR_BYTES_MIN, Place::Header("the keys"))?;
    let mut metadata = Metadata::default();
    for index in 0..count {
        let key = reader.string(KEY_BYTES_MAX, "KEY_BYTES_MAX", Place::Key(index))?;
        let value = read_value(reader, key)?;
        if metadata.insert(key, value).is_some() {
            return Err(GgufError::DuplicateKey { key: shown(key) });
        }
    }
    Ok(metadata)
}

/// A value: its type, then what the type says.
fn read_value(reader: &mut Reader<'_>, key: &str) -> Result<Value, GgufError> {
    let value_type = ValueType::read(reader, key)?;
    let place = Place::Value(key);
    Ok(match value_type {
        ValueType::U8 => Value::U8(u8::from_le_bytes(reader.bytes(place)?)),
        ValueType::I8 => Value::I8(i8::from_le_bytes(reader.bytes(place)?)),
        ValueType::U16 => Value::U16(u16::from_le_bytes(reader.bytes(place)?)),
        ValueType::I16 => Value::I16(i16::from_le_bytes(reader.bytes(place)?)),
        ValueType::U32 => Value::U32(u32::from_le_bytes(reader.bytes(place)?)),
        ValueType::I32 => Value::I32(i32::from_le_bytes(reader.bytes(place)?)),
        ValueType::U64 => Value::U64(u64::from_le_bytes(reader.bytes(place)?)),
        ValueType::I64 => Value::I64(i64::from_le_bytes(reader.bytes(place)?)),
        ValueType::F32 => Value::F32(f32::from_le_bytes(reader.bytes(place)?)),
        ValueType::F64 => Value::F64(f64::from_le_bytes(reader.bytes(place)?)),
        ValueType::Bool => {
            let [byte] = reader.bytes(place)?;
            Value::Bool(as_bool(byte, place)?)
        }
        ValueType::String => Value::String(
            reader
                .string(STRING_BYTES_MAX, "STRING_BYTES_MAX", place)?
                .to_owned(),
        ),
        ValueType::Array => Value::Array(read_array(reader, key)?),
    })
}

/// An array: the type of its elements, their number, then one after another.
fn read_array(reader: &mut Reader<'_>, key: &str) -> Result<Array, GgufError> {
    let element_type = ValueType::read(reader, key)?;
    let count = reader.u64(Place::Value(key))?;
    check_limit(
        || format!("key {}: the length of the array", shown(key)),
        count,
        ARRAY_LEN_MAX,
        "ARRAY_LEN_MAX",
    )?;
    Ok(match element_type {
        ValueType::U8 => Array::U8(read_numbers(reader, count, key, u8::from_le_bytes)?),
        ValueType::I8 => Array::I8(read_numbers(reader, count, key, i8::from_le_bytes)?),
        ValueType::U16 => Array::U16(read_numbers(reader, count, key, u16::from_le_bytes)?),
        ValueType::I16 => Array::I16(read_numbers(reader, count, key, i16::from_le_bytes)?),
        ValueType::U32 => Array::U32(read_numbers(reader, count, key, u32::from_le_bytes)?),
        ValueType::I32 => Array::I32(read_numbers(reader, count, key, i32::from_le_bytes)?),
        ValueType::U64 => Array::U64(read_numbers(reader, count, key, u64::from_le_bytes)?),
        ValueType::I64 => Array::I64(read_numbers(reader, count, key, i64::from_le_bytes)?),
        ValueType::F32 => Array::F32(read_numbers(reader, count, key, f32::from_le_bytes)?),
        ValueType::F64 => Array::F64(read_numbers(reader, count, key, f64::from_le_bytes)?),
        ValueType::Bool => Array::Bool(read_bools(reader, count, key)?),
        ValueType::String => Array::String(read_strings(reader, count, key)?),
        ValueType::Array => return Err(GgufError::NestedArray { key: shown(key) }),
    })
}

/// `count` numbers of `N` bytes. They take no more room in memory than in the file.
fn read_numbers<T, const N: usize>(
    reader: &mut Reader<'_>,
    count: u64,
    key: &str,
    from_le_bytes: fn([u8; N]) -> T,
) -> Result<Vec<T>, GgufError> {
    let bytes = reader.take(count, N as u64, Place::Value(key))?;
    let (numbers, _) = bytes.as_chunks::<N>();
    Ok(numbers
        .iter()
        .map(|&number| from_le_bytes(number))
        .collect())
}

fn read_bools(reader: &mut Reader<'_>, count: u64, key: &str) -> Result<Vec<bool>, GgufError> {
    let bytes = reader.take(count, 1, Place::Value(key))?;
    (0..)
        .zip(bytes)
        .map(|(index, &byte)| as_bool(byte, Place::Element(key, index)))
        .collect()
}

fn read_strings(reader: &mut Reader<'_>, count: u64, key: &str) -> Result<Vec<String>, GgufError> {
    reader.expect(count, STRING_BYTES_MIN, Place::Value(key))?;
    let mut strings = Vec::with_capacity(count.min(STRINGS_RESERVED_MAX) as usize);
    for index in 0..count {
        let place = Place::Element(key, index);
        strings.push(
            reader
                .string(STRING_BYTES_MAX, "STRING_BYTES_MAX", place)?
                .to_owned(),
        );
    }
    Ok(strings)
}

fn as_bool(byte: u8, place: Place<'_>) -> Result<bool, GgufError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(GgufError::NotBool {
            place: place.to_string(),
            value,
        }),
    }
}
