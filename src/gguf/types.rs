//! The tensor types that ggml knows: names and sizes, so that any file can be described and a type not computed with refused by name.

use std::fmt;

/// One of ggml's tensor types. Elements come in blocks of `block_len`, each stored in `block_bytes`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct GgmlType {
    id: u32,
    name: &'static str,
    block_len: u32,
    block_bytes: u32,
}

/// A line of the table.
const fn entry(id: u32, name: &'static str, block_len: u32, block_bytes: u32) -> GgmlType {
    GgmlType {
        id,
        name,
        block_len,
        block_bytes,
    }
}

/// Every type in ggml's enumeration; the numbers that are not here belonged to types that it has removed.
const TABLE: &[GgmlType] = &[
    entry(0, "F32", 1, 4),
    entry(1, "F16", 1, 2),
    entry(2, "Q4_0", 32, 18),
    entry(3, "Q4_1", 32, 20),
    entry(6, "Q5_0", 32, 22),
    entry(7, "Q5_1", 32, 24),
    entry(8, "Q8_0", 32, 34),
    // Its block has two halves before the bytes; it is made for products and never written to files.
    entry(9, "Q8_1", 32, 36),
    entry(10, "Q2_K", 256, 84),
    entry(11, "Q3_K", 256, 110),
    entry(12, "Q4_K", 256, 144),
    entry(13, "Q5_K", 256, 176),
    entry(14, "Q6_K", 256, 210),
    entry(15, "Q8_K", 256, 292),
    entry(16, "IQ2_XXS", 256, 66),
    entry(17, "IQ2_XS", 256, 74),
    entry(18, "IQ3_XXS", 256, 98),
    entry(19, "IQ1_S", 256, 50),
    entry(20, "IQ4_NL", 32, 18),
    entry(21, "IQ3_S", 256, 110),
    entry(22, "IQ2_S", 256, 82),
    entry(23, "IQ4_XS", 256, 136),
    entry(24, "I8", 1, 1),
    entry(25, "I16", 1, 2),
    entry(26, "I32", 1, 4),
    entry(27, "I64", 1, 8),
    entry(28, "F64", 1, 8),
    entry(29, "IQ1_M", 256, 56),
    entry(30, "BF16", 1, 2),
    entry(34, "TQ1_0", 256, 54),
    entry(35, "TQ2_0", 256, 66),
    entry(39, "MXFP4", 32, 17),
    entry(40, "NVFP4", 64, 36),
    entry(41, "Q1_0", 128, 18),
];

impl GgmlType {
    /// All types, in the order of their ids.
    pub fn all() -> &'static [GgmlType] {
        TABLE
    }

    /// The type with this number in the file; `None` if ggml has none.
    pub fn from_id(id: u32) -> Option<Self> {
        TABLE.iter().find(|t| t.id == id).copied()
    }

    /// The type with this name, spelt as ggml does: "Q4_K".
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|t| t.name == name).copied()
    }

    /// The type's number in files.
    pub fn id(self) -> u32 {
        self.id
    }

    /// The type's name: "Q4_K".
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Elements in a block, at least 1.
    pub fn block_len(self) -> u64 {
        u64::from(self.block_len)
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> u64 {
        u64::from(self.block_bytes)
    }
}

impl fmt::Debug for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}
