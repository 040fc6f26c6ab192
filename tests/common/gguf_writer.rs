//! Writes small GGUF files for tests, good ones and such as no converter would write. It shares nothing with the parser.

// Each test binary that includes this file uses another part of it.
#![allow(dead_code)]

/// The numbers that files give the types of values.
pub mod value_type {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

/// The numbers that files give the tensor types that tests write.
pub mod tensor_type {
    pub const F32: u32 = 0;
    pub const Q4_0: u32 = 2;
    pub const Q8_0: u32 = 8;
    pub const Q4_K: u32 = 12;
}

/// A value as it stands in the file: its type's number and its bytes.
#[derive(Clone, Debug)]
pub struct Raw {
    pub type_id: u32,
    pub bytes: Vec<u8>,
}

impl Raw {
    /// Any bytes under any type's number.
    pub fn new(type_id: u32, bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self { type_id, bytes }
    }

    /// An array that says it has `count` elements of a type, whatever `bytes` hold.
    pub fn array(element_type_id: u32, count: u64, bytes: &[u8]) -> Self {
        let mut all = element_type_id.to_le_bytes().to_vec();
        all.extend(count.to_le_bytes());
        all.extend(bytes);
        Self::new(value_type::ARRAY, all)
    }
}

/// A string as it stands in the file: the length, then the bytes.
pub fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes
}

macro_rules! raw_from_number {
    ($($rust:ty: $id:ident),*) => {
        $(
            impl From<$rust> for Raw {
                fn from(x: $rust) -> Self {
                    Raw::new(value_type::$id, x.to_le_bytes())
                }
            }
            impl From<&[$rust]> for Raw {
                fn from(v: &[$rust]) -> Self {
                    let bytes: Vec<u8> = v.iter().flat_map(|x| x.to_le_bytes()).collect();
                    Raw::array(value_type::$id, v.len() as u64, &bytes)
                }
            }
            impl<const N: usize> From<[$rust; N]> for Raw {
                fn from(v: [$rust; N]) -> Self {
                    v.as_slice().into()
                }
            }
        )*
    };
}
raw_from_number!(u8: U8, i8: I8, u16: U16, i16: I16, u32: U32, i32: I32, u64: U64, i64: I64, f32: F32, f64: F64);

impl From<bool> for Raw {
    fn from(x: bool) -> Self {
        Raw::new(value_type::BOOL, [u8::from(x)])
    }
}

impl<const N: usize> From<[bool; N]> for Raw {
    fn from(v: [bool; N]) -> Self {
        Raw::array(value_type::BOOL, N as u64, &v.map(u8::from))
    }
}

impl From<&str> for Raw {
    fn from(text: &str) -> Self {
        Raw::new(value_type::STRING, string(text))
    }
}

impl From<&[&str]> for Raw {
    fn from(v: &[&str]) -> Self {
        let bytes: Vec<u8> = v.iter().flat_map(string).collect();
        Raw::array(value_type::STRING, v.len() as u64, &bytes)
    }
}

impl From<&[String]> for Raw {
    fn from(v: &[String]) -> Self {
        let bytes: Vec<u8> = v.iter().flat_map(string).collect();
        Raw::array(value_type::STRING, v.len() as u64, &bytes)
    }
}

impl<const N: usize> From<[&str; N]> for Raw {
    fn from(v: [&str; N]) -> Self {
        v.as_slice().into()
    }
}

/// A tensor as it is to stand in the list.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: Vec<u8>,
    pub dims: Vec<u64>,
    pub type_id: u32,
    /// From the start of the data; `None`: after the tensors before it, aligned.
    pub offset: Option<u64>,
    pub data: Vec<u8>,
}

/// A file in the making. Everything it says can be made a lie.
#[derive(Clone, Debug)]
pub struct GgufWriter {
    pub magic: [u8; 4],
    pub version: u32,
    /// Written as the counts in place of the true ones.
    pub tensor_count: Option<u64>,
    pub key_count: Option<u64>,
    /// What the data are aligned to; write the key `general.alignment` too where it is not 32.
    pub alignment: u64,
    pub keys: Vec<(Vec<u8>, Raw)>,
    pub tensors: Vec<Tensor>,
}

impl Default for GgufWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl GgufWriter {
    /// An empty file of version 3.
    pub fn new() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            key_count: None,
            alignment: 32,
            keys: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// Adds a key and its value; nothing keeps it from standing there already.
    pub fn key(mut self, key: impl AsRef<[u8]>, value: impl Into<Raw>) -> Self {
        self.keys.push((key.as_ref().to_vec(), value.into()));
        self
    }

    /// Adds a tensor after those before it. `data` may be of any length.
    pub fn tensor(
        self,
        name: impl AsRef<[u8]>,
        dims: &[u64],
        type_id: u32,
        data: impl Into<Vec<u8>>,
    ) -> Self {
        self.push(name.as_ref(), dims, type_id, None, data.into())
    }

    /// Adds a tensor that claims `offset` and brings no data.
    pub fn tensor_at(
        self,
        name: impl AsRef<[u8]>,
        dims: &[u64],
        type_id: u32,
        offset: u64,
    ) -> Self {
        self.push(name.as_ref(), dims, type_id, Some(offset), Vec::new())
    }

    fn push(
        mut self,
        name: &[u8],
        dims: &[u64],
        type_id: u32,
        offset: Option<u64>,
        data: Vec<u8>,
    ) -> Self {
        self.tensors.push(Tensor {
            name: name.to_vec(),
            dims: dims.to_vec(),
            type_id,
            offset,
            data,
        });
        self
    }

    /// Files that hold this one's tensors in turn, as converters split them: the first has all keys, the others only what says which they are.
    pub fn split(&self, count: usize) -> Vec<Self> {
        let per_file = self.tensors.len().div_ceil(count);
        (0..count)
            .map(|number| {
                let mut file = Self {
                    keys: Vec::new(),
                    tensors: Vec::new(),
                    ..self.clone()
                };
                if number == 0 {
                    file.keys = self.keys.clone();
                }
                let tensors = self.tensors.iter().skip(number * per_file).take(per_file);
                file.tensors = tensors.cloned().collect();
                file.key("split.no", number as u16)
                    .key("split.count", count as u16)
                    .key("split.tensors.count", self.tensors.len() as i32)
            })
            .collect()
    }

    /// The bytes of the file.
    pub fn finish(&self) -> Vec<u8> {
        let mut file = self.magic.to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(
            self.tensor_count
                .unwrap_or(self.tensors.len() as u64)
                .to_le_bytes(),
        );
        file.extend(
            self.key_count
                .unwrap_or(self.keys.len() as u64)
                .to_le_bytes(),
        );
        for (key, value) in &self.keys {
            file.extend(string(key));
            file.extend(value.type_id.to_le_bytes());
            file.extend(&value.bytes);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            if tensor.offset.is_none() {
                data.resize(data.len().next_multiple_of(self.alignment as usize), 0);
            }
            let offset = tensor.offset.unwrap_or(data.len() as u64);
            data.extend(&tensor.data);
            file.extend(string(&tensor.name));
            file.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor
                .dims
                .iter()
                .for_each(|dim| file.extend(dim.to_le_bytes()));
            file.extend(tensor.type_id.to_le_bytes());
            file.extend(offset.to_le_bytes());
        }
        file.resize(file.len().next_multiple_of(self.alignment as usize), 0);
        file.extend(data);
        file
    }
}
