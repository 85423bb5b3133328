//! Where the tensors lie, and that they can lie there.

use std::{collections::HashSet, path::Path};

use super::{Format, GgufError, GgufTensor, header::Entry};

/// Checks every tensor of a header, and all of them against each other.
pub(super) fn place(
    path: &Path,
    file_bytes: u64,
    data_offset: u64,
    alignment: u64,
    entries: Vec<Entry>,
) -> Result<Vec<GgufTensor>, GgufError> {
    let mut tensors = Vec::new();
    for entry in entries {
        tensors.push(place_one(path, file_bytes, data_offset, alignment, entry)?);
    }
    check_names(path, &tensors)?;
    check_overlaps(path, &tensors)?;
    Ok(tensors)
}

fn place_one(
    path: &Path,
    file_bytes: u64,
    data_offset: u64,
    alignment: u64,
    entry: Entry,
) -> Result<GgufTensor, GgufError> {
    let Entry { name, dimensions, format, offset } = entry;
    let format = Format::from_number(format).map_err(|found| GgufError::UnsupportedFormat {
        file: path.to_owned(),
        tensor: name.clone(),
        found,
    })?;
    let bad = |problem, expected, found| GgufError::BadTensor {
        file: path.to_owned(),
        tensor: name.clone(),
        problem,
        expected,
        found,
    };
    let row = dimensions.first().copied().unwrap_or(1);
    if !row.is_multiple_of(format.elements_per_block()) {
        let expected = format!("a multiple of {}, the block of {format}", format.elements_per_block());
        return Err(bad("its innermost dimension does not fit its format", expected, row.to_string()));
    }
    let shape: Option<Vec<i64>> = dimensions.iter().rev().map(|&size| i64::try_from(size).ok()).collect();
    let elements = dimensions.iter().try_fold(1_u64, |product, &size| product.checked_mul(size));
    let elements = elements.filter(|&elements| i64::try_from(elements).is_ok());
    let bytes = elements.and_then(|elements| format.bytes(elements)).filter(|&bytes| i64::try_from(bytes).is_ok());
    let (Some(shape), Some(bytes)) = (shape, bytes) else {
        let found = format!("{dimensions:?}");
        return Err(bad("its dimensions are too large", "a product within 63 bits".to_owned(), found));
    };
    if !offset.is_multiple_of(alignment) {
        return Err(bad("its offset is not aligned", format!("a multiple of {alignment}"), offset.to_string()));
    }
    let begin = data_offset.checked_add(offset);
    match begin.and_then(|begin| Some((begin, begin.checked_add(bytes)?))) {
        Some((offset, end)) if end <= file_bytes => Ok(GgufTensor { name, format, shape, offset, bytes }),
        range => {
            let end = range.map_or(u64::MAX, |(_, end)| end);
            Err(GgufError::OutOfRange { file: path.to_owned(), tensor: name, end, file_bytes })
        }
    }
}

fn check_names(path: &Path, tensors: &[GgufTensor]) -> Result<(), GgufError> {
    let mut names = HashSet::new();
    match tensors.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
        None => Ok(()),
        Some(twice) => Err(GgufError::DuplicateTensor {
            tensor: twice.name.clone(),
            first: path.to_owned(),
            second: path.to_owned(),
        }),
    }
}

fn check_overlaps(path: &Path, tensors: &[GgufTensor]) -> Result<(), GgufError> {
    let mut ordered: Vec<&GgufTensor> = tensors.iter().collect();
    ordered.sort_by_key(|tensor| (tensor.offset, tensor.bytes));
    for (first, second) in ordered.iter().zip(ordered.iter().skip(1)) {
        // Ends were checked to be in the file.
        if second.offset < first.offset + first.bytes {
            return Err(GgufError::Overlap {
                file: path.to_owned(),
                first: first.name.clone(),
                second: second.name.clone(),
            });
        }
    }
    Ok(())
}
