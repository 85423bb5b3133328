//! The one error type of this crate.

use std::path::PathBuf;

use tch::TchError;

use crate::Dtype;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong between a checkpoint's name and its tensors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path is neither a file nor a folder.
    #[error("{path}: no such file or folder")]
    NotFound {
        /// What was asked for.
        path: PathBuf,
    },
    /// A tensor cannot be made of the stored one.
    #[error("tensor {tensor} of shape {shape:?} cannot become what the model asks for: {wanted}")]
    Recipe {
        /// The stored tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<i64>,
        /// What it was to become.
        wanted: String,
    },
    /// The folder holds no weights in a format this crate reads.
    #[error("{folder}: no weights found; looked for {}", .looked_for.join(", "))]
    NoWeights {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// File names that would have been taken, best first.
        looked_for: Vec<&'static str>,
    },
    /// A file is not in the local cache and cannot be fetched.
    #[error("{id} at {revision}: {file} is not in the cache {cache}, and {why}")]
    NotCached {
        /// The repository.
        id: String,
        /// The revision asked for.
        revision: String,
        /// The file.
        file: String,
        /// The repository's folder in the cache.
        cache: PathBuf,
        /// Why it is not fetched.
        why: &'static str,
    },
    /// The Hub's repository has no such file.
    #[error("{id} at {revision}: no such repository or revision on the Hub, or it has no {file}")]
    NotOnHub {
        /// The repository.
        id: String,
        /// The revision asked for.
        revision: String,
        /// The file.
        file: String,
    },
    /// The Hub cannot be reached, refuses, or answers nonsense.
    #[error("{url}: {problem}")]
    Hub {
        /// The address that was asked for.
        url: String,
        /// The HTTP status, where there was an answer.
        status: Option<u16>,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The bytes of a download are not those that the Hub promised. They have been removed.
    #[error("{url}: what came has the SHA-256 {found}, the Hub promised {expected}; it has been removed, run it again")]
    Digest {
        /// The address that was asked for.
        url: String,
        /// The SHA-256 that the Hub gave, 64 hexadecimal digits.
        expected: String,
        /// That of the bytes that came.
        found: String,
    },
    /// A revision that cannot name a branch, tag or commit.
    #[error("{id}: {revision:?} is not a revision")]
    Revision {
        /// The repository.
        id: String,
        /// The revision asked for.
        revision: String,
    },
    /// There is no place for a cache.
    #[error("no folder for the Hugging Face cache: neither HF_HUB_CACHE, HF_HOME nor a home folder is set")]
    NoCache,
    /// A GGUF file is damaged, not supported, or misses what is asked of it.
    #[error(transparent)]
    Gguf(#[from] crate::gguf::GgufError),
    /// Reading or writing a file failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A JSON file (config or index) does not parse.
    #[error("{path}: not valid JSON: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The file ends before its header does.
    #[error("{file}: truncated: {found} bytes, too short for the {expected} bytes of its header")]
    TruncatedHeader {
        /// The weight file.
        file: PathBuf,
        /// Bytes the header claims, its length field included.
        expected: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// The header claims a size no real header has.
    #[error("{file}: the header claims {bytes} bytes, more than the limit of {limit}; this is not a safetensors file")]
    HeaderTooLarge {
        /// The weight file.
        file: PathBuf,
        /// Bytes claimed.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The header is not what the format asks for.
    #[error("{file}: the header is not valid: {source}")]
    Header {
        /// The weight file.
        file: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// One tensor's entry points outside the file.
    #[error(
        "{file}: tensor {tensor} ends at byte {end}, but the file has {file_bytes} bytes; it is truncated, download it again"
    )]
    OutOfRange {
        /// The weight file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// One past its last byte in the file.
        end: u64,
        /// Bytes in the file.
        file_bytes: u64,
    },
    /// One tensor's byte range does not fit its shape and dtype.
    #[error(
        "{file}: tensor {tensor} of shape {shape:?} and dtype {dtype} needs {expected} bytes, its entry gives {found}"
    )]
    WrongSize {
        /// The weight file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<i64>,
        /// Its dtype.
        dtype: Dtype,
        /// Bytes that shape and dtype need.
        expected: u64,
        /// Bytes of the entry.
        found: u64,
    },
    /// One tensor's entry is not usable: negative range, a shape beyond 64 bits.
    #[error("{file}: tensor {tensor}: {problem}")]
    BadEntry {
        /// The weight file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with the entry.
        problem: String,
    },
    /// Two tensors claim the same bytes.
    #[error("{file}: tensors {first} and {second} overlap")]
    Overlap {
        /// The weight file.
        file: PathBuf,
        /// The tensor that begins first.
        first: String,
        /// The tensor that begins inside it.
        second: String,
    },
    /// Bytes of the file belong to no tensor.
    #[error("{file}: bytes {begin}..{end} belong to no tensor")]
    Hole {
        /// The weight file.
        file: PathBuf,
        /// First unclaimed byte.
        begin: u64,
        /// One past the last unclaimed byte.
        end: u64,
    },
    /// The same tensor is named twice.
    #[error("tensor {tensor} is in {first} and again in {second}")]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// The file that has it first.
        first: PathBuf,
        /// The file that has it again.
        second: PathBuf,
    },
    /// A dtype this crate cannot place.
    #[error("{file}: tensor {tensor} has dtype {dtype}, which is not supported; supported: {}", Dtype::names())]
    UnsupportedDtype {
        /// The weight file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The dtype as the file spells it.
        dtype: String,
    },
    /// An index file names a shard outside its own folder.
    #[error("{index}: the shard {shard:?} of tensor {tensor} is not a plain file name; refusing to leave the folder")]
    ShardOutside {
        /// The index file.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard as the index spells it.
        shard: String,
    },
    /// An index file names a shard that is not there.
    #[error("{index}: the shard {shard} of tensor {tensor} is missing")]
    ShardMissing {
        /// The index file.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: PathBuf,
    },
    /// An index file promises a tensor that its shard does not hold.
    #[error("{index}: tensor {tensor} is not in {shard}, where the index says it is")]
    NotInShard {
        /// The index file.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: PathBuf,
    },
    /// A pickle asks for a name that is not on the allow-list. Nothing was run.
    #[error(
        "{file}: the pickle asks for {global}, which is not on the allow-list of names that only describe tensors; nothing was run"
    )]
    PickleGlobal {
        /// The weight file.
        file: PathBuf,
        /// The name, such as `os.system`.
        global: String,
    },
    /// A pickle is damaged, or does what no checkpoint needs.
    #[error("{file}: the pickle cannot be read: {problem} (byte {position} of the pickle)")]
    Pickle {
        /// The weight file.
        file: PathBuf,
        /// Bytes of the pickle that had been read.
        position: u64,
        /// What is wrong.
        problem: String,
    },
    /// What is around the pickle of a `.bin` file is damaged.
    #[error("{file}: {problem}")]
    Archive {
        /// The weight file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A `.bin` file was written on a big-endian machine.
    #[error("{file}: its numbers are big-endian, which is not supported; save it again on a little-endian machine")]
    BigEndian {
        /// The weight file.
        file: PathBuf,
    },
    /// A `.bin` file holds no state dict.
    #[error(
        "{file}: holds no tensors by name; a state dict is expected, alone or under state_dict, model_state_dict, model or module"
    )]
    NoTensors {
        /// The weight file.
        file: PathBuf,
    },
    /// A tensor the model needs is not in the checkpoint.
    #[error("{checkpoint}: tensor {tensor} {shape:?} is missing{}", did_you_mean(.nearest))]
    MissingTensor {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape it must have.
        shape: Vec<i64>,
        /// The checkpoint's names most like it.
        nearest: Vec<String>,
    },
    /// A tensor has another shape than the config implies.
    #[error("{file}: tensor {tensor} has shape {found:?}, the config implies {expected:?}")]
    Misshapen {
        /// The weight file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape the config implies.
        expected: Vec<i64>,
        /// The shape in the file.
        found: Vec<i64>,
    },
    /// The checkpoint holds tensors that nothing asks for.
    #[error("{checkpoint}: {} no part of this model uses: {}", count(.tensors.len()), some(.tensors))]
    ExtraTensors {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// The tensors.
        tensors: Vec<String>,
    },
    /// A file has become shorter since it was indexed.
    #[error("{file}: {found} bytes now, {expected} when it was indexed; it changed under the program")]
    Shrunk {
        /// The weight file.
        file: PathBuf,
        /// Bytes when it was indexed.
        expected: u64,
        /// Bytes now.
        found: u64,
    },
    /// A tensor could not be placed: out of memory, no such device.
    #[error("cannot place tensor {tensor} ({bytes} bytes, {target}): {}", first_line(.source))]
    Place {
        /// The tensor.
        tensor: String,
        /// Bytes it needs where it goes.
        bytes: u64,
        /// Dtype and device it was to have.
        target: String,
        /// What libtorch said.
        source: TchError,
    },
    /// A tensor could not be written out.
    #[error("{file}: cannot write tensor {tensor}: {problem}")]
    Write {
        /// The file to be written.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why.
        problem: String,
    },
    /// A path that libtorch cannot be given.
    #[error("{path}: the path is not valid UTF-8, which libtorch needs")]
    PathNotUtf8 {
        /// The path.
        path: PathBuf,
    },
    /// A part was asked for that was never requested.
    #[error("part {part} was asked for, but there are {parts}")]
    NoSuchPart {
        /// The index asked for.
        part: usize,
        /// How many there are.
        parts: usize,
    },
    /// A row was asked for that a table does not have.
    #[error("tensor {tensor} has {rows} rows; row {row} was asked for")]
    RowOutOfRange {
        /// The tensor.
        tensor: String,
        /// The row asked for.
        row: i64,
        /// How many there are.
        rows: i64,
    },
    /// The requested dtype does not work on the device.
    #[error("dtype {dtype} cannot be computed on {device}: {problem}")]
    DtypeOnDevice {
        /// The dtype.
        dtype: Dtype,
        /// The device.
        device: String,
        /// Why, and what to use.
        problem: &'static str,
    },
    /// The requested residency does not fit dtype or device.
    #[error("residency {residency} is not possible: {problem}")]
    Residency {
        /// The residency asked for.
        residency: &'static str,
        /// Why, and what to use.
        problem: String,
    },
}

/// Conversions that cannot fail fit in where others can.
impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

/// The first line of a libtorch error: the rest is a C++ stack.
pub fn first_line(error: &TchError) -> String {
    let text = match error {
        TchError::Torch(text) => text.clone(),
        other => other.to_string(),
    };
    text.lines().next().unwrap_or_default().trim().to_owned()
}

/// Up to three of `names` that are spelt most like `name`, nearest first.
pub fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut scored: Vec<(f64, &str)> = names
        .into_iter()
        .map(|candidate| (strsim::normalized_damerau_levenshtein(name, candidate), candidate))
        .filter(|(score, _)| *score > 0.5)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    scored.into_iter().take(3).map(|(_, candidate)| candidate.to_owned()).collect()
}

fn did_you_mean(nearest: &[String]) -> String {
    if nearest.is_empty() { String::new() } else { format!("; the nearest there: {}", nearest.join(", ")) }
}

fn count(tensors: usize) -> String {
    if tensors == 1 { "1 tensor".into() } else { format!("{tensors} tensors") }
}

fn some(tensors: &[String]) -> String {
    let shown = tensors.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    if tensors.len() > 5 { format!("{shown}, ...") } else { shown }
}
