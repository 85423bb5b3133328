//! The safetensors format: reading a header without the weights.
//!
//! The header is parsed here and not by the `safetensors` crate because its errors do not say which tensor is at fault,
//! and because it wants the whole file in one slice. Format: <https://github.com/huggingface/safetensors#format>.

use std::{fmt, fs::File, io::Read, path::Path};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::{
    Dtype, Error, Result,
    index::{TensorInfo, WeightFile},
};

/// The format's own limit on a header, in bytes.
pub(crate) const HEADER_LIMIT: u64 = 100_000_000;
const LENGTH_BYTES: u64 = 8;

#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header's entries in file order; a map would silently keep the last of two equal names.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map from tensor names to dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<serde::de::IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Reads the header of `path` and checks every entry against the file's size.
///
/// # Errors
///
/// Names the file and, where one is at fault, the tensor: truncated, oversized or malformed header, entries that overlap,
/// leave a hole, point outside the file, do not fit their shape, or are of an unsupported dtype.
pub(crate) fn read_header(path: &Path) -> Result<(WeightFile, Vec<TensorInfo>)> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    let mut header = Vec::new();
    file.by_ref().take(LENGTH_BYTES).read_to_end(&mut header).map_err(io)?;
    let end = header_end(path, bytes, &header)?;
    file.take(end - LENGTH_BYTES).read_to_end(&mut header).map_err(io)?;
    parse_header(path, bytes, &header)
}

/// Where the header of a file of `file_bytes` ends, from at least its first eight bytes.
pub(crate) fn header_end(path: &Path, file_bytes: u64, start: &[u8]) -> Result<u64> {
    let truncated = |expected| Error::TruncatedHeader { file: path.to_owned(), expected, found: file_bytes };
    let Some(length) = start.first_chunk::<{ LENGTH_BYTES as usize }>() else {
        return Err(truncated(LENGTH_BYTES));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_LIMIT {
        return Err(Error::HeaderTooLarge { file: path.to_owned(), bytes: length, limit: HEADER_LIMIT });
    }
    let end = LENGTH_BYTES + length;
    if file_bytes < end { Err(truncated(end)) } else { Ok(end) }
}

/// Reads a header, length field included, of a file of `bytes`, which need not be here.
pub(crate) fn parse_header(path: &Path, bytes: u64, header: &[u8]) -> Result<(WeightFile, Vec<TensorInfo>)> {
    let data = header_end(path, bytes, header)?;
    let text = header.get(LENGTH_BYTES as usize..data as usize);
    let text = text.ok_or_else(|| Error::TruncatedHeader {
        file: path.to_owned(),
        expected: data,
        found: header.len() as u64,
    })?;
    let Header(entries) =
        serde_json::from_slice(text).map_err(|source| Error::Header { file: path.to_owned(), source })?;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        tensors.push(check_entry(path, bytes, data, name, entry)?);
    }
    check_layout(path, data, bytes, &tensors)?;
    Ok((WeightFile { path: path.to_owned(), bytes }, tensors))
}

fn check_entry(path: &Path, file_bytes: u64, data: u64, name: String, entry: Entry) -> Result<TensorInfo> {
    let file = || path.to_owned();
    let Some(dtype) = Dtype::from_safetensors_name(&entry.dtype) else {
        return Err(Error::UnsupportedDtype { file: file(), tensor: name, dtype: entry.dtype });
    };
    let (begin, end) = entry.data_offsets;
    let bad = |tensor: &str, problem: &str| Error::BadEntry {
        file: file(),
        tensor: tensor.to_owned(),
        problem: problem.to_owned(),
    };
    if end < begin {
        return Err(bad(&name, &format!("its data_offsets [{begin}, {end}] run backwards")));
    }
    let expected = entry
        .shape
        .iter()
        .try_fold(dtype.bytes(), |product, &size| product.checked_mul(size))
        .filter(|&product| i64::try_from(product).is_ok());
    let (Some(expected), Ok(shape)) =
        (expected, entry.shape.iter().map(|&size| i64::try_from(size)).collect::<Result<Vec<_>, _>>())
    else {
        return Err(bad(&name, &format!("its shape {:?} is beyond 64 bits", entry.shape)));
    };
    if end - begin != expected {
        return Err(Error::WrongSize { file: file(), tensor: name, shape, dtype, expected, found: end - begin });
    }
    match end.checked_add(data) {
        Some(end) if end <= file_bytes => {}
        end => {
            return Err(Error::OutOfRange { file: file(), tensor: name, end: end.unwrap_or(u64::MAX), file_bytes });
        }
    }
    Ok(TensorInfo { name, dtype, shape, file: 0, offset: data + begin, strides: None, recipe: None })
}

/// The format allows no overlap and no hole: either would let a file carry bytes that nobody sees.
fn check_layout(path: &Path, data: u64, file_bytes: u64, tensors: &[TensorInfo]) -> Result<()> {
    let mut names = std::collections::HashSet::new();
    if let Some(twice) = tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
        return Err(Error::Duplicate { tensor: twice.name.clone(), first: path.to_owned(), second: path.to_owned() });
    }
    let mut ordered: Vec<&TensorInfo> = tensors.iter().collect();
    ordered.sort_by_key(|tensor| (tensor.offset, tensor.bytes()));
    let (mut end, mut previous) = (data, None::<&TensorInfo>);
    for tensor in ordered {
        if let Some(previous) = previous.filter(|_| tensor.offset < end) {
            let (first, second) = (previous.name.clone(), tensor.name.clone());
            return Err(Error::Overlap { file: path.to_owned(), first, second });
        }
        if tensor.offset > end {
            return Err(Error::Hole { file: path.to_owned(), begin: end, end: tensor.offset });
        }
        end = tensor.offset + tensor.bytes();
        previous = Some(tensor);
    }
    if end < file_bytes {
        return Err(Error::Hole { file: path.to_owned(), begin: end, end: file_bytes });
    }
    Ok(())
}
