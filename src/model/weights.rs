//! Claims every tensor of the file exactly once, with the shape that the plan expects and a type that this version reads.

use std::collections::HashMap;
use std::ops::Range;

use sha2::{Digest, Sha256};

use super::ModelError;
use super::plan::{Plan, TensorDecl, TensorId};
use crate::gguf::{Gguf, TensorInfo};
use crate::quant::TensorType;

/// Where a claimed tensor lies and in which format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Its storage format.
    pub kind: TensorType,
    /// Which of the model's files it lies in, from 0.
    pub file: usize,
    /// First byte in that file.
    pub offset: usize,
    /// Length in bytes.
    pub bytes: usize,
}

/// The files that a model's tensors lie in.
pub trait Files {
    /// All bytes of a file; none where there is no such file.
    fn file(&self, number: usize) -> &[u8];

    /// All bytes of a tensor that was claimed in these files.
    fn bytes(&self, weight: &Weight) -> &[u8] {
        &self.file(weight.file)[weight.offset..][..weight.bytes]
    }

    /// Says that these bytes of a file will hardly be read again.
    fn forget(&self, _number: usize, _bytes: Range<usize>) {}

    /// Says that a tensor, or a stretch of one, is not read soon: what memory its bytes take may be used for something else. They can be
    /// read all the same.
    fn release(&self, weight: &Weight) {
        self.forget(weight.file, weight.offset..weight.offset + weight.bytes);
    }
}

/// A model in one file.
impl Files for Vec<u8> {
    fn file(&self, number: usize) -> &[u8] {
        match number {
            0 => self,
            1.. => &[],
        }
    }
}

/// The plan's tensors, found.
#[derive(Clone, Debug)]
pub struct Weights {
    claimed: Vec<Weight>,
}

impl Weights {
    /// Finds each tensor of the plan in the file and leaves none over.
    pub fn claim(plan: &Plan, gguf: &Gguf) -> Result<Self, ModelError> {
        let mut left: HashMap<&str, &TensorInfo> =
            gguf.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        let mut find = |decl: &TensorDecl| match left.remove(decl.name.as_str()) {
            Some(info) => check(decl, info),
            None => Err(ModelError::tensor(
                &decl.name,
                format!("is missing: a {} model must have it", plan.architecture),
            )),
        };
        let claimed = plan.tensors.iter().map(&mut find);
        let claimed = claimed.collect::<Result<Vec<_>, _>>()?;
        plan.unread
            .iter()
            .try_for_each(|decl| find(decl).map(drop))?;
        match gguf
            .tensors
            .iter()
            .find(|t| left.contains_key(t.name.as_str()))
        {
            None => Ok(Self { claimed }),
            Some(extra) => {
                let problem = format!(
                    "is not part of a {} model as this version knows it ({} tensors are left over): leaving it out would change what the model says",
                    plan.architecture,
                    left.len()
                );
                Err(ModelError::tensor(&extra.name, problem))
            }
        }
    }

    /// Where a tensor lies.
    pub fn get(&self, id: TensorId) -> Weight {
        self.claimed[id.0]
    }

    /// All of them, in the plan's order.
    pub fn iter(&self) -> impl Iterator<Item = &Weight> {
        self.claimed.iter()
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.claimed.iter().map(|w| w.bytes as u64).sum()
    }

    /// A hash of the weights that tells two models apart without reading all of them: each tensor's type and size, and bytes from its
    /// beginning, middle and end. `files` hold the tensors.
    pub fn fingerprint(&self, plan: &Plan, files: &dyn Files) -> String {
        const SAMPLE_BYTES: usize = 64;
        let mut hasher = Sha256::new();
        hasher.update(plan.to_string());
        for weight in &self.claimed {
            hasher.update(weight.kind.name());
            hasher.update(weight.bytes.to_le_bytes());
            let bytes = files.bytes(weight);
            let len = SAMPLE_BYTES.min(bytes.len());
            for begin in [0, (bytes.len() - len) / 2, bytes.len() - len] {
                hasher.update(&bytes[begin..][..len]);
            }
        }
        let digest = hasher.finalize();
        digest
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The format that holds most of the bytes: what people call the file's quantisation.
    pub fn main_kind(&self) -> TensorType {
        let mut bytes: Vec<(TensorType, usize)> = Vec::new();
        for w in &self.claimed {
            match bytes.iter_mut().find(|(kind, _)| *kind == w.kind) {
                Some((_, sum)) => *sum += w.bytes,
                None => bytes.push((w.kind, w.bytes)),
            }
        }
        bytes
            .into_iter()
            .max_by_key(|&(_, sum)| sum)
            .map_or(TensorType::F32, |(kind, _)| kind)
    }
}

fn check(decl: &TensorDecl, info: &TensorInfo) -> Result<Weight, ModelError> {
    let (dims, (rows, cols)) = (decl.shape.dims(), decl.shape.rows());
    if info.dims != dims {
        let problem = format!(
            "has the shape {:?}, but its model needs {dims:?} (innermost first)",
            info.dims
        );
        return Err(ModelError::tensor(&decl.name, problem));
    }
    let type_name = info.ggml_type.name();
    let kind = TensorType::from_ggml(type_name).ok_or_else(|| {
        let supported = TensorType::ALL.map(TensorType::name).join(", ");
        ModelError::tensor(
            &decl.name,
            format!(
                "has the type {type_name}, which this version cannot read (it reads {supported})"
            ),
        )
    })?;
    let bytes = kind.row_bytes(cols) * rows;
    if bytes as u64 != info.size_bytes {
        let problem = format!(
            "has {} bytes in the file, but {rows} rows of {cols} {type_name} values take {bytes}",
            info.size_bytes
        );
        return Err(ModelError::tensor(&decl.name, problem));
    }
    let offset = usize::try_from(info.offset)
        .map_err(|_| ModelError::tensor(&decl.name, "lies beyond what this machine can address"))?;
    Ok(Weight {
        kind,
        file: info.file,
        offset,
        bytes,
    })
}
