//! The safetensors format: reading a header without the weights, and writing a file tensor by tensor.
//!
//! The header is parsed here and not by the `safetensors` crate because its errors do not say which tensor is at fault,
//! and because it wants the whole file in one slice. Format: <https://github.com/huggingface/safetensors#format>.

use std::{
    borrow::Cow,
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use tch::{Kind, Tensor};

use crate::{
    Dtype, Error, Result, first_line,
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
    Ok(TensorInfo { name, dtype, shape, file: 0, offset: data + begin, strides: None })
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

struct OneTensor<'a> {
    tensor: &'a Tensor,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
}

impl safetensors::View for &OneTensor<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        // The trait has no way to fail. `save_safetensors` made the tensor contiguous, on the CPU and of a known dtype,
        // so this copy cannot either; a short file would be refused by every reader.
        let elements = self.tensor.numel();
        if self.tensor.f_copy_data_u8(&mut bytes, elements).is_err() {
            bytes.clear();
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Writes tensors as one safetensors file: to a temporary file beside it, then renamed, so that a kill or a full disk
/// leaves either the old file or the new one.
///
/// Tensors are written one at a time; only those that are not contiguous or not on the CPU are copied first.
///
/// # Errors
///
/// [`Error::Write`] for a dtype the format or this crate does not know, [`Error::Io`] where the file cannot be written.
pub fn save_safetensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let write =
        |tensor: &str, problem: String| Error::Write { file: path.to_owned(), tensor: tensor.to_owned(), problem };
    let mut plain = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let on_cpu = tensor.f_detach().and_then(|tensor| tensor.f_to_device(tch::Device::Cpu));
        let contiguous = on_cpu.and_then(|tensor| tensor.f_contiguous());
        plain.push(contiguous.map_err(|error| write(name, first_line(&error)))?);
    }
    let mut views = Vec::with_capacity(tensors.len());
    for ((name, _), tensor) in tensors.iter().zip(&plain) {
        let kind = tensor.f_kind().map_err(|error| write(name, first_line(&error)))?;
        let dtype = safetensors_dtype(kind).ok_or_else(|| write(name, format!("dtype {kind:?} is not supported")))?;
        let shape = tensor.size().iter().map(|&size| size as usize).collect();
        views.push((name.clone(), OneTensor { tensor, dtype, shape }));
    }
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let temporary = temporary_beside(path);
    let written = safetensors::serialize_to_file(
        views.iter().map(|(name, view)| (name.as_str(), view)),
        Some(metadata),
        &temporary,
    )
    .map_err(|error| write("(all)", error.to_string()))
    .and_then(|()| {
        let finish = readable(&temporary).and_then(|()| std::fs::rename(&temporary, path));
        finish.map_err(|source| Error::Io { path: path.to_owned(), source })
    });
    if written.is_err() {
        // Best effort: the error that matters is the one already at hand.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Gives a file the mode that any new file has; the writer makes private ones.
fn readable(path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

fn safetensors_dtype(kind: Kind) -> Option<safetensors::Dtype> {
    use safetensors::Dtype as S;
    Some(match Dtype::from_kind(kind)? {
        Dtype::F64 => S::F64,
        Dtype::F32 => S::F32,
        Dtype::F16 => S::F16,
        Dtype::Bf16 => S::BF16,
        Dtype::I64 => S::I64,
        Dtype::I32 => S::I32,
        Dtype::I16 => S::I16,
        Dtype::I8 => S::I8,
        Dtype::U8 => S::U8,
        Dtype::Bool => S::BOOL,
    })
}

fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}
