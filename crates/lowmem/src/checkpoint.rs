//! From a path to an index.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::Read,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use crate::{
    Error, Index, Result, bin_file,
    files::Fetch,
    index::{TensorInfo, WeightFile},
    safetensors_file,
};

/// What a folder's weights may be called, best first.
pub(crate) const WEIGHTS: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

/// A checkpoint that has been found and indexed; no weight has been read.
#[derive(Clone)]
pub struct Checkpoint {
    pub(crate) path: PathBuf,
    pub(crate) folder: PathBuf,
    pub(crate) index: Index,
    /// None when all files are here.
    pub(crate) fetch: Option<Arc<dyn Fetch>>,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("folder", &self.folder)
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Opens a folder with a checkpoint, a single weight file, or an index file of shards.
    ///
    /// In a folder `model.safetensors`, `model.safetensors.index.json`, `pytorch_model.bin` and
    /// `pytorch_model.bin.index.json` are looked for, in this order. What a file is, safetensors or PyTorch's `.bin` of
    /// either age, is seen from its content.
    ///
    /// # Errors
    ///
    /// Says which file is missing, truncated or malformed, and which tensor is at fault.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let metadata = fs::metadata(path).map_err(|_| Error::NotFound { path: path.to_owned() })?;
        let folder = if metadata.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
        let index = if metadata.is_dir() {
            let missing = || Error::NoWeights { folder: folder.to_owned(), looked_for: WEIGHTS.to_vec() };
            index_folder(&LocalFolder(folder))?.ok_or_else(missing)?
        } else if path.extension().is_some_and(|extension| extension == "json") {
            read_shards(path, &LocalFolder(folder))?
        } else {
            single(read_file(path)?)?
        };
        Ok(Self { path: path.to_owned(), folder: folder.to_owned(), index, fetch: None })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder with its config, tokenizer and weights.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where every tensor lies.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// How to bring weight files that are not on this machine yet.
    pub(crate) fn fetch(&self) -> Option<Arc<dyn Fetch>> {
        self.fetch.clone()
    }

    /// The text of a file of the checkpoint, such as `config.json`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] naming the file.
    pub fn read_text(&self, name: &str) -> Result<String> {
        let path = self.folder.join(name);
        fs::read_to_string(&path).map_err(|source| Error::Io { path, source })
    }

    /// The path of a file of the checkpoint, where it exists.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.folder.join(name)).filter(|path| path.is_file())
    }
}

/// The files of a checkpoint, wherever they are.
pub(crate) trait Folder {
    /// The path of a file that is needed as a whole.
    fn file(&self, name: &str) -> Result<Option<PathBuf>>;

    /// What a weight file holds.
    fn weights(&self, name: &str) -> Result<Option<Indexed>>;

    /// Which of [`WEIGHTS`] is here, at no cost.
    fn preferred(&self) -> Option<&'static str>;
}

/// A weight file and what it holds.
pub(crate) type Indexed = (WeightFile, Vec<TensorInfo>);

/// A folder on this machine.
pub(crate) struct LocalFolder<'a>(pub(crate) &'a Path);

impl Folder for LocalFolder<'_> {
    fn file(&self, name: &str) -> Result<Option<PathBuf>> {
        Ok(Some(self.0.join(name)).filter(|path| path.is_file()))
    }

    fn weights(&self, name: &str) -> Result<Option<Indexed>> {
        self.file(name)?.map(|path| read_file(&path)).transpose()
    }

    fn preferred(&self) -> Option<&'static str> {
        WEIGHTS.into_iter().find(|name| self.0.join(name).is_file())
    }
}

/// Indexes the best weights that a folder has.
pub(crate) fn index_folder(folder: &dyn Folder) -> Result<Option<Index>> {
    let names = folder.preferred().map_or(WEIGHTS.to_vec(), |name| vec![name]);
    for name in names {
        if name.ends_with(".json") {
            if let Some(path) = folder.file(name)? {
                return read_shards(&path, folder).map(Some);
            }
        } else if let Some(indexed) = folder.weights(name)? {
            return single(indexed).map(Some);
        }
    }
    Ok(None)
}

fn single((file, tensors): Indexed) -> Result<Index> {
    let mut index = Index::default();
    index.add(file, tensors)?;
    index.join_mxfp4();
    Ok(index)
}

/// Indexes one weight file of any kind.
pub(crate) fn read_file(path: &Path) -> Result<Indexed> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let mut magic = Vec::new();
    fs::File::open(path).and_then(|file| file.take(8).read_to_end(&mut magic)).map_err(io)?;
    // A pickle begins with 0x80 and its protocol. So may the length of a safetensors header, but not one of that size.
    let pickle = matches!(magic[..], [0x80, 0..=5, ..])
        && <[u8; 8]>::try_from(&magic[..])
            .is_ok_and(|length| u64::from_le_bytes(length) > safetensors_file::HEADER_LIMIT);
    if pickle || magic.starts_with(&bin_file::ZIP_MAGIC) {
        bin_file::read_index(path, &magic)
    } else {
        safetensors_file::read_header(path)
    }
}

#[derive(serde::Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

fn read_shards(path: &Path, shelf: &dyn Folder) -> Result<Index> {
    let text = fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let ShardIndex { weight_map } =
        serde_json::from_str(&text).map_err(|source| Error::Json { path: path.to_owned(), source })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut shards: BTreeMap<&str, &str> = BTreeMap::new();
    for (tensor, shard) in &weight_map {
        let mut components = Path::new(shard).components();
        if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
            let (tensor, shard) = (tensor.clone(), shard.clone());
            return Err(Error::ShardOutside { index: path.to_owned(), tensor, shard });
        }
        shards.entry(shard).or_insert(tensor);
    }
    let mut index = Index::default();
    for (shard, tensor) in shards {
        let Some((file, tensors)) = shelf.weights(shard)? else {
            let shard = folder.join(shard);
            return Err(Error::ShardMissing { index: path.to_owned(), tensor: tensor.to_owned(), shard });
        };
        index.add(file, tensors)?;
    }
    for (tensor, shard) in weight_map {
        let shard = folder.join(shard);
        let there = index.get(&tensor).and_then(|info| index.files.get(info.file));
        if there.is_none_or(|file| file.path != shard) {
            return Err(Error::NotInShard { index: path.to_owned(), tensor, shard });
        }
    }
    index.join_mxfp4();
    Ok(index)
}
