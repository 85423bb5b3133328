//! One file's header.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use super::{Format, GgufError, Metadata, cursor::Cursor, layout};

const MAGIC: [u8; 4] = *b"GGUF";
/// Most keys; real files have under a hundred.
const KEY_LIMIT: u64 = 100_000;
/// Most tensors; the largest models have some thousands.
const TENSOR_LIMIT: u64 = 200_000;
/// Where tensors begin unless `general.alignment` says otherwise.
const ALIGNMENT: u64 = 32;

/// One tensor of a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// How its numbers are stored.
    pub format: Format,
    /// Its shape, the last dimension contiguous: GGUF's dimensions the other way round.
    pub shape: Vec<i64>,
    /// Its first byte in the file.
    pub offset: u64,
    /// Its bytes in the file.
    pub bytes: u64,
}

/// What one GGUF file says about itself.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufHeader {
    /// The file.
    pub file: PathBuf,
    /// The format's version.
    pub version: u32,
    /// Keys and values.
    pub metadata: Metadata,
    /// The tensors in the order of the header.
    pub tensors: Vec<GgufTensor>,
    /// What every tensor's offset is a multiple of, counted from [`GgufHeader::data_offset`].
    pub alignment: u64,
    /// Where the tensors begin.
    pub data_offset: u64,
    /// Bytes in the file.
    pub file_bytes: u64,
}

/// A tensor as the header spells it.
pub(super) struct Entry {
    pub(super) name: String,
    /// The innermost dimension first.
    pub(super) dimensions: Vec<u64>,
    pub(super) format: u32,
    /// Counted from where the tensors begin.
    pub(super) offset: u64,
}

impl GgufHeader {
    /// Reads a file's header and checks every entry against the file's size. No weight is read.
    ///
    /// # Errors
    ///
    /// Names the file and, where one is at fault, the key or tensor: truncated, oversized or malformed header, keys or
    /// tensors that stand twice, tensors that overlap, point outside the file, or are of a format that is not supported.
    pub fn read(path: &Path) -> Result<Self, GgufError> {
        let io = |source| GgufError::Io { file: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        Self::parse(path, bytes, file)
    }

    /// Reads the header of a file of `file_bytes`, of which `reader` gives at least the header.
    ///
    /// # Errors
    ///
    /// As [`GgufHeader::read`].
    pub fn parse(path: &Path, file_bytes: u64, reader: impl Read) -> Result<Self, GgufError> {
        let mut cursor = Cursor::new(path, file_bytes, reader);
        let version = read_version(&mut cursor)?;
        let tensors = cursor.u64()?;
        let keys = cursor.u64()?;
        cursor.limit("tensors", tensors, TENSOR_LIMIT)?;
        cursor.limit("keys", keys, KEY_LIMIT)?;
        let metadata = read_metadata(&mut cursor, keys)?;
        let alignment = alignment(path, &metadata)?;
        let entries = read_entries(&mut cursor, tensors)?;
        // The header's limit keeps this far from overflow.
        let data_offset = cursor.position().next_multiple_of(alignment);
        let tensors = layout::place(path, file_bytes, data_offset, alignment, entries)?;
        Ok(Self { file: path.to_owned(), version, metadata, tensors, alignment, data_offset, file_bytes })
    }
}

fn read_version<R: Read>(cursor: &mut Cursor<R>) -> Result<u32, GgufError> {
    let magic = cursor.magic()?;
    if magic != MAGIC {
        return Err(GgufError::Magic { file: cursor.path(), found: String::from_utf8_lossy(&magic).into_owned() });
    }
    match cursor.u32()? {
        version @ (2 | 3) => Ok(version),
        // 1 to 3 the other way round.
        version if matches!(version.swap_bytes(), 1..=3) => Err(GgufError::BigEndian { file: cursor.path() }),
        found => Err(GgufError::Version { file: cursor.path(), found }),
    }
}

fn read_metadata<R: Read>(cursor: &mut Cursor<R>, keys: u64) -> Result<Metadata, GgufError> {
    let mut metadata = Metadata::new(&cursor.path());
    for index in 0..keys {
        cursor.at = format!("key number {index}");
        let key = cursor.name()?;
        cursor.at = format!("key {key}");
        let value = cursor.value()?;
        metadata.insert(key, value)?;
    }
    Ok(metadata)
}

fn alignment(path: &Path, metadata: &Metadata) -> Result<u64, GgufError> {
    let found = metadata.get_u64("general.alignment")?.unwrap_or(ALIGNMENT);
    if found.is_power_of_two() && found <= 1 << 31 {
        return Ok(found);
    }
    Err(GgufError::Alignment { file: path.to_owned(), found })
}

fn read_entries<R: Read>(cursor: &mut Cursor<R>, tensors: u64) -> Result<Vec<Entry>, GgufError> {
    let mut entries = Vec::new();
    for index in 0..tensors {
        cursor.at = format!("tensor number {index}");
        let name = cursor.name()?;
        cursor.at = format!("tensor {name}");
        let count = cursor.u32()?;
        cursor.limit("dimensions", count.into(), 4)?;
        let dimensions = (0..count).map(|_| cursor.u64()).collect::<Result<_, _>>()?;
        let format = cursor.u32()?;
        entries.push(Entry { name, dimensions, format, offset: cursor.u64()? });
    }
    cursor.at = "the header".to_owned();
    Ok(entries)
}
