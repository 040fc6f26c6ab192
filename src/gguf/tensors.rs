//! Reading the list of tensors and proving that each lies where it may.

use std::collections::HashSet;

use super::error::{GgufError, Place, shown};
use super::reader::Reader;
use super::types::GgmlType;
use super::{TENSOR_DIMS_MAX, TENSOR_NAME_BYTES_MAX, TensorInfo};

/// The fewest bytes a tensor takes in the list: an empty name, one dimension, a type and an offset.
const TENSOR_INFO_BYTES_MIN: u64 = 8 + 4 + 8 + 4 + 8;

/// Reads `count` tensors; afterwards `reader` stands at the end of the header, and the data follow at the next multiple of `alignment`.
pub(super) fn read_tensors(
    reader: &mut Reader<'_>,
    count: u64,
    alignment: u64,
    file_bytes: u64,
) -> Result<Vec<TensorInfo>, GgufError> {
    reader.expect(
        count,
        TENSOR_INFO_BYTES_MIN,
        Place::Header("the tensor list"),
    )?;
    // The reader has found room for them in the file, so this is no more than a small multiple of the file.
    let mut tensors = Vec::with_capacity(count as usize);
    let mut names = HashSet::with_capacity(count as usize);
    for index in 0..count {
        let name = reader.string(
            TENSOR_NAME_BYTES_MAX,
            "TENSOR_NAME_BYTES_MAX",
            Place::TensorName(index),
        )?;
        if !names.insert(name) {
            return Err(GgufError::DuplicateTensor {
                tensor: shown(name),
            });
        }
        tensors.push(read_tensor(reader, name, alignment)?);
    }
    // The position is at most the header's limit, but the alignment can be anything up to 2^63.
    let data_start = reader.at().checked_next_multiple_of(alignment);
    for tensor in &mut tensors {
        place_in_file(tensor, data_start, file_bytes)?;
    }
    check_overlap(&tensors)?;
    Ok(tensors)
}

/// One line of the list, its offset still counted from the start of the data.
fn read_tensor(
    reader: &mut Reader<'_>,
    name: &str,
    alignment: u64,
) -> Result<TensorInfo, GgufError> {
    let place = Place::Tensor(name);
    let dims = read_dims(reader, name)?;
    let id = reader.u32(place)?;
    let offset = reader.u64(place)?;
    let ggml_type = GgmlType::from_id(id).ok_or_else(|| GgufError::UnknownTensorType {
        tensor: shown(name),
        id,
    })?;
    let size_bytes = size_bytes(name, &dims, ggml_type)?;
    if !offset.is_multiple_of(alignment) {
        return Err(GgufError::Misaligned {
            tensor: shown(name),
            offset,
            alignment,
        });
    }
    Ok(TensorInfo {
        name: name.to_owned(),
        dims,
        ggml_type,
        file: 0,
        offset,
        size_bytes,
    })
}

fn read_dims(reader: &mut Reader<'_>, name: &str) -> Result<Vec<u64>, GgufError> {
    let place = Place::Tensor(name);
    let found = reader.u32(place)?;
    if !(1..=TENSOR_DIMS_MAX).contains(&found) {
        return Err(GgufError::DimCount {
            tensor: shown(name),
            found,
        });
    }
    let dims = (0..found)
        .map(|_| reader.u64(place))
        .collect::<Result<Vec<_>, _>>()?;
    match dims.iter().position(|&dim| dim == 0) {
        Some(index) => Err(GgufError::ZeroDim {
            tensor: shown(name),
            dims,
            index,
        }),
        None => Ok(dims),
    }
}

/// Bytes of a tensor with these dimensions, which must be whole blocks row by row.
fn size_bytes(name: &str, dims: &[u64], ggml_type: GgmlType) -> Result<u64, GgufError> {
    let block_len = ggml_type.block_len();
    let row_len = dims.first().copied().unwrap_or(0);
    if !row_len.is_multiple_of(block_len) {
        let type_name = ggml_type.name();
        return Err(GgufError::PartialBlock {
            tensor: shown(name),
            row_len,
            type_name,
            block_len,
        });
    }
    let elements = dims.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim));
    elements
        .and_then(|n| (n / block_len).checked_mul(ggml_type.block_bytes()))
        .ok_or_else(|| GgufError::SizeOverflow {
            tensor: shown(name),
            dims: dims.to_vec(),
        })
}

/// Makes the tensor's offset one from the start of the file, if it ends inside. `data_start` is `None` beyond 64 bits.
fn place_in_file(
    tensor: &mut TensorInfo,
    data_start: Option<u64>,
    file_bytes: u64,
) -> Result<(), GgufError> {
    let offset = data_start.and_then(|start| start.checked_add(tensor.offset));
    let end = offset.and_then(|offset| offset.checked_add(tensor.size_bytes));
    match (offset, end) {
        (Some(offset), Some(end)) if end <= file_bytes => {
            tensor.offset = offset;
            Ok(())
        }
        (offset, _) => Err(GgufError::OutsideFile {
            tensor: shown(&tensor.name),
            offset: offset.unwrap_or(u64::MAX),
            size_bytes: tensor.size_bytes,
            file_bytes,
        }),
    }
}

/// An error if two tensors share a byte. In the order of their offsets it is enough to look at neighbours: none is empty.
fn check_overlap(tensors: &[TensorInfo]) -> Result<(), GgufError> {
    let mut sorted: Vec<&TensorInfo> = tensors.iter().collect();
    sorted.sort_by_key(|t| t.offset);
    for (first, second) in sorted.iter().zip(sorted.iter().skip(1)) {
        let first_end = first.offset.saturating_add(first.size_bytes);
        if second.offset < first_end {
            return Err(GgufError::Overlap {
                first: shown(&first.name),
                first_end,
                second: shown(&second.name),
                second_offset: second.offset,
            });
        }
    }
    Ok(())
}
