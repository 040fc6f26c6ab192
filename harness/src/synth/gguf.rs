//! Writes the head of a GGUF file: keys, and where the tensors will be.

use super::tensors::Tensor;

/// Every tensor begins at a multiple of this many bytes: the format's default.
pub(super) const ALIGNMENT: u64 = 32;

const MAGIC: &[u8] = b"GGUF";
const VERSION: u32 = 3;

/// A value of a key.
pub(super) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Texts(Vec<String>),
}

/// Everything before the tensors' bytes, padded to where the first begins.
pub(super) fn header(keys: &[(String, Value)], tensors: &[Tensor]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        put_text(&mut out, key);
        put_value(&mut out, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        put_text(&mut out, &tensor.name);
        out.extend((tensor.dims.len() as u32).to_le_bytes());
        for dim in &tensor.dims {
            out.extend(u64::from(*dim).to_le_bytes());
        }
        out.extend(tensor.kind.id().to_le_bytes());
        out.extend(u64::to_le_bytes(offset));
        offset += aligned(tensor.bytes());
    }
    out.resize(aligned(out.len() as u64) as usize, 0);
    out
}

/// Bytes with the padding that follows them.
pub(super) fn aligned(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

const ARRAY: u32 = 9;

impl Value {
    /// The number that files give the type, of an array's elements where it is one.
    fn id(&self) -> u32 {
        match self {
            Value::U32(_) => 4,
            Value::I32s(_) => 5,
            Value::F32(_) | Value::F32s(_) => 6,
            Value::Bool(_) => 7,
            Value::Text(_) | Value::Texts(_) => 8,
        }
    }
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let begin_array = |out: &mut Vec<u8>, len: usize| {
        out.extend(ARRAY.to_le_bytes());
        out.extend(value.id().to_le_bytes());
        out.extend((len as u64).to_le_bytes());
    };
    match value {
        Value::I32s(all) => {
            begin_array(out, all.len());
            out.extend(all.iter().flat_map(|x| x.to_le_bytes()));
        }
        Value::F32s(all) => {
            begin_array(out, all.len());
            out.extend(all.iter().flat_map(|x| x.to_le_bytes()));
        }
        Value::Texts(all) => {
            begin_array(out, all.len());
            all.iter().for_each(|text| put_text(out, text));
        }
        Value::U32(x) => {
            out.extend(value.id().to_le_bytes());
            out.extend(x.to_le_bytes());
        }
        Value::F32(x) => {
            out.extend(value.id().to_le_bytes());
            out.extend(x.to_le_bytes());
        }
        Value::Bool(x) => {
            out.extend(value.id().to_le_bytes());
            out.push(u8::from(*x));
        }
        Value::Text(text) => {
            out.extend(value.id().to_le_bytes());
            put_text(out, text);
        }
    }
}
