//! What can be wrong with a GGUF file.

use std::path::PathBuf;

use super::Format;

/// Everything that can be wrong with a GGUF file, or with what is asked of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// Reading a file failed.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file does not begin as a GGUF file does.
    #[error("{file}: not a GGUF file: it begins with {found:?}, \"GGUF\" is expected")]
    Magic {
        /// The file.
        file: PathBuf,
        /// Its first bytes as text.
        found: String,
    },
    /// The file was written for big-endian machines.
    #[error("{file}: its numbers are big-endian, which is not supported; convert it for little-endian machines")]
    BigEndian {
        /// The file.
        file: PathBuf,
    },
    /// A version of the format this crate does not read.
    #[error("{file}: version {found} of the format is not supported; 2 and 3 are")]
    Version {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The file ends inside its header.
    #[error("{file}: {at} needs {expected} more bytes, but only {found} follow; it is truncated or damaged")]
    Truncated {
        /// The file.
        file: PathBuf,
        /// What was being read.
        at: String,
        /// Bytes that it needs.
        expected: u64,
        /// Bytes that are left in the file.
        found: u64,
    },
    /// The header has more of something than any real header.
    #[error("{file}: {at}: {found} {what}, more than the limit of {limit}")]
    Limit {
        /// The file.
        file: PathBuf,
        /// What was being read.
        at: String,
        /// What there is too much of.
        what: &'static str,
        /// How much is claimed.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// A name or a value is not UTF-8.
    #[error("{file}: {at} is not UTF-8 but {found:?}")]
    NotUtf8 {
        /// The file.
        file: PathBuf,
        /// What was being read.
        at: String,
        /// The text, with replacement characters.
        found: String,
    },
    /// A number that stands for a type of values means none.
    #[error("{file}: {at}: {found} is no type of values; 0 to 12 are")]
    ValueType {
        /// The file.
        file: PathBuf,
        /// What was being read.
        at: String,
        /// The number.
        found: u32,
    },
    /// A truth value is neither 0 nor 1.
    #[error("{file}: {at}: a truth value is 0 or 1, not {found}")]
    Bool {
        /// The file.
        file: PathBuf,
        /// What was being read.
        at: String,
        /// The byte.
        found: u8,
    },
    /// A key stands twice in the metadata.
    #[error("{file}: key {key} stands twice")]
    DuplicateKey {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
    },
    /// A tensor is named twice.
    #[error("tensor {tensor} is in {first} and again in {second}")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
        /// The file that has it first.
        first: PathBuf,
        /// The file that has it again.
        second: PathBuf,
    },
    /// The alignment is no power of two.
    #[error("{file}: general.alignment is {found}, not a power of two between 1 and 2147483648")]
    Alignment {
        /// The file.
        file: PathBuf,
        /// The alignment.
        found: u64,
    },
    /// A tensor's numbers are in a format this crate does not read.
    #[error("{file}: tensor {tensor} has format {found}, which is not supported; supported: {}", Format::names())]
    UnsupportedFormat {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The format's name, or its number where it has none.
        found: String,
    },
    /// A tensor's entry is not usable.
    #[error("{file}: tensor {tensor}: {problem}: expected {expected}, found {found}")]
    BadTensor {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong.
        problem: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A tensor ends beyond the file.
    #[error(
        "{file}: tensor {tensor} ends at byte {end}, but the file has {file_bytes} bytes; it is truncated, download it again"
    )]
    OutOfRange {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// One past its last byte in the file.
        end: u64,
        /// Bytes in the file.
        file_bytes: u64,
    },
    /// Two tensors claim the same bytes.
    #[error("{file}: tensors {first} and {second} overlap")]
    Overlap {
        /// The file.
        file: PathBuf,
        /// The tensor that begins first.
        first: String,
        /// The tensor that begins inside it.
        second: String,
    },
    /// A key that is needed is not there.
    #[error("{file}: key {key} is missing; {expected} is expected")]
    MissingKey {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// What its value would be.
        expected: &'static str,
    },
    /// A key has another kind of value than is needed.
    #[error("{file}: key {key}: expected {expected}, found {found}")]
    KeyType {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// The files of a split model do not belong together.
    #[error("{file}: {problem}: expected {expected}, found {found}")]
    Split {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A file of a split model is not there.
    #[error("{first}: the model is in {count} files, and {missing} is missing")]
    SplitMissing {
        /// The file that was asked for.
        first: PathBuf,
        /// How many files there are to be.
        count: u64,
        /// The one that is missing.
        missing: PathBuf,
    },
    /// Bytes and numbers do not go together.
    #[error("{format}: {elements} elements need {expected} bytes, there are {found}")]
    Length {
        /// The format.
        format: Format,
        /// Elements asked for.
        elements: usize,
        /// Bytes that they need; `whole blocks of N elements` where they fill no whole number of blocks.
        expected: String,
        /// Bytes given.
        found: usize,
    },
}
