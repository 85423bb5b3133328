//! The weight files of a checkpoint, opened and mapped when first needed.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use memmap2::Mmap;
use tch::{Device, Kind, Tensor};

use crate::{
    Error, Result,
    index::{Index, TensorInfo, WeightFile},
    place_error::place_error,
};

/// Brings a weight file that is indexed but not on this machine yet.
pub(crate) trait Fetch: Send + Sync {
    /// Makes sure that the file lies at `path`, where the index says it is.
    fn fetch(&self, path: &Path) -> Result<()>;
}

/// An open weight file.
pub(crate) struct OpenFile {
    pub(crate) path: PathBuf,
    /// Bytes when it was indexed.
    pub(crate) bytes: u64,
    pub(crate) file: File,
    /// The same file, opened to be read past the page cache, where the file system can.
    pub(crate) direct: Option<File>,
}

impl OpenFile {
    fn open(indexed: &WeightFile) -> Result<Self> {
        let io = |source| Error::Io { path: indexed.path.clone(), source };
        let file = File::open(&indexed.path).map_err(io)?;
        let found = file.metadata().map_err(io)?.len();
        if found < indexed.bytes {
            return Err(Error::Shrunk { file: indexed.path.clone(), expected: indexed.bytes, found });
        }
        let direct = open_direct(&indexed.path);
        Ok(Self { path: indexed.path.clone(), bytes: indexed.bytes, file, direct })
    }

    pub(crate) fn io(&self, source: std::io::Error) -> Error {
        Error::Io { path: self.path.clone(), source }
    }

    /// The error for bytes that the index promised and that are gone.
    pub(crate) fn shrunk(&self) -> Error {
        let found = self.file.metadata().map_or(0, |metadata| metadata.len());
        Error::Shrunk { file: self.path.clone(), expected: self.bytes, found }
    }
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).ok()?;
    File::options().read(true).custom_flags(flags).open(path).ok()
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_path: &Path) -> Option<File> {
    None
}

/// All weight files of a checkpoint.
pub(crate) struct Files {
    entries: Vec<Entry>,
    fetch: Option<Arc<dyn Fetch>>,
}

struct Entry {
    indexed: WeightFile,
    state: Mutex<EntryState>,
}

#[derive(Default)]
struct EntryState {
    open: Option<Arc<OpenFile>>,
    /// The whole file as bytes, mapped privately. The mapping is libtorch's own (`from_file`): every view keeps it alive,
    /// and writing to a view copies the touched page and never reaches the file.
    mapped: Option<Tensor>,
    /// The same bytes for whoever decodes them.
    bytes: Option<Arc<Mapping>>,
}

/// A file whose bytes are no tensors, mapped to be read.
pub(crate) struct Mapping {
    file: OpenFile,
    bytes: Mmap,
}

impl Mapping {
    /// `length` bytes from `begin` on.
    pub(crate) fn bytes(&self, begin: u64, length: usize) -> Result<&[u8]> {
        let begin = usize::try_from(begin).ok();
        let range = begin.and_then(|begin| Some(begin..begin.checked_add(length)?));
        range.and_then(|range| self.bytes.get(range)).ok_or_else(|| self.file.shrunk())
    }

    pub(crate) fn io(&self, source: std::io::Error) -> Error {
        self.file.io(source)
    }
}

impl Files {
    pub(crate) fn new(index: &Index, fetch: Option<Arc<dyn Fetch>>) -> Self {
        let entry = |file: &WeightFile| Entry { indexed: file.clone(), state: Mutex::default() };
        Self { entries: index.files.iter().map(entry).collect(), fetch }
    }

    fn entry(&self, info: &TensorInfo) -> Result<&Entry> {
        self.entries.get(info.file).ok_or_else(|| Error::NotFound { path: PathBuf::from(&info.name) })
    }

    /// The open file that holds the tensor.
    pub(crate) fn open(&self, info: &TensorInfo) -> Result<Arc<OpenFile>> {
        let entry = self.entry(info)?;
        let mut state = entry.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &state.open {
            return Ok(Arc::clone(open));
        }
        self.ensure(entry)?;
        let open = Arc::new(OpenFile::open(&entry.indexed)?);
        state.open = Some(Arc::clone(&open));
        Ok(open)
    }

    fn ensure(&self, entry: &Entry) -> Result<()> {
        match &self.fetch {
            Some(fetch) if !entry.indexed.path.is_file() => fetch.fetch(&entry.indexed.path),
            _ => Ok(()),
        }
    }

    /// The bytes of a file that `info` is made of.
    pub(crate) fn mapping(&self, info: &TensorInfo, file: usize) -> Result<Arc<Mapping>> {
        let entry = self.entries.get(file).ok_or_else(|| Error::NotFound { path: PathBuf::from(&info.name) })?;
        let mut state = entry.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = &state.bytes {
            return Ok(Arc::clone(bytes));
        }
        self.ensure(entry)?;
        let file = OpenFile::open(&entry.indexed)?;
        let mapping = Arc::new(Mapping { bytes: map_bytes(&file)?, file });
        state.bytes = Some(Arc::clone(&mapping));
        Ok(mapping)
    }

    fn map(&self, info: &TensorInfo) -> Result<Tensor> {
        let entry = self.entry(info)?;
        let mut state = entry.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = &state.mapped {
            return Ok(bytes.shallow_clone());
        }
        self.ensure(entry)?;
        let bytes = map(&entry.indexed, info)?;
        state.mapped = Some(bytes.shallow_clone());
        Ok(bytes)
    }

    /// The tensor as a view of its mapped file, copied only where it does not begin at a multiple of its element size.
    pub(crate) fn view(&self, info: &TensorInfo) -> Result<Tensor> {
        let bytes = self.map(info)?;
        let view = || {
            let mut part = bytes.f_narrow(0, info.offset as i64, info.extent() as i64)?;
            if !info.is_aligned() {
                part = part.f_clone(&part.f_empty_like()?)?;
            }
            shape_view(&part, info)
        };
        view().map_err(|source| place_error(info, info.dtype, Device::Cpu, source))
    }
}

fn map_bytes(file: &OpenFile) -> Result<Mmap> {
    // SAFETY: the mapping is read only and its bytes are plain numbers, any of which may stand anywhere. As with every mapping,
    // libtorch's too, a file that another program changes meanwhile gives other numbers, and one that it cuts off ends this
    // program by a signal: weights are files that are replaced, not rewritten.
    unsafe { Mmap::map(&file.file) }.map_err(|source| file.io(source))
}

/// The bytes from a tensor's first to its last element, as that tensor.
pub(crate) fn shape_view(bytes: &Tensor, info: &TensorInfo) -> Result<Tensor, tch::TchError> {
    let typed = bytes.f_view_dtype(info.dtype.kind())?;
    match &info.strides {
        None => typed.f_view(&info.shape[..]),
        // Without an offset of its own, the strided view begins where these bytes do.
        Some(strides) => typed.f_as_strided(&info.shape[..], &strides[..], None),
    }
}

fn map(file: &WeightFile, info: &TensorInfo) -> Result<Tensor> {
    let io = |source| Error::Io { path: file.path.clone(), source };
    let found = std::fs::metadata(&file.path).map_err(io)?.len();
    if found < file.bytes {
        // A page beyond the end would be a bus error when touched, long after this.
        return Err(Error::Shrunk { file: file.path.clone(), expected: file.bytes, found });
    }
    let Some(path) = file.path.to_str() else {
        return Err(Error::PathNotUtf8 { path: file.path.clone() });
    };
    let bytes = Tensor::f_from_file(path, false, file.bytes as i64, (Kind::Uint8, Device::Cpu));
    bytes.map_err(|source| place_error(info, info.dtype, Device::Cpu, source))
}
