//! From a path to an index.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::Read,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use crate::{
    Dtype, Encoding, Error, Index, Recipe, Result, Spelled, bin_file,
    files::Fetch,
    gguf::{Format, GgufHeader, GgufTensor, Metadata, read_split},
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
    /// What a GGUF file says of itself.
    pub(crate) gguf: Option<Arc<Metadata>>,
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
        if !metadata.is_dir() && is_gguf(path) {
            return Self::open_gguf(path, folder);
        }
        if metadata.is_dir() && LocalFolder(folder).preferred().is_none() {
            // A folder with one model in GGUF, in one file or several, is that model.
            if let Some(first) = only_gguf(folder) {
                return Self::open_gguf(&first, folder);
            }
        }
        let index = if metadata.is_dir() {
            let missing = || Error::NoWeights { folder: folder.to_owned(), looked_for: WEIGHTS.to_vec() };
            index_folder(&LocalFolder(folder))?.ok_or_else(missing)?
        } else if path.extension().is_some_and(|extension| extension == "json") {
            read_shards(path, &LocalFolder(folder))?
        } else {
            single(read_file(path)?)?
        };
        Ok(Self { path: path.to_owned(), folder: folder.to_owned(), index, fetch: None, gguf: None })
    }

    fn open_gguf(path: &Path, folder: &Path) -> Result<Self> {
        let (index, metadata) = gguf_index(read_split(path)?)?;
        let gguf = Some(Arc::new(metadata));
        Ok(Self { path: path.to_owned(), folder: folder.to_owned(), index, fetch: None, gguf })
    }

    /// What a GGUF file says of itself: sizes, settings and the tokenizer. `None` for other formats.
    pub fn gguf(&self) -> Option<&Metadata> {
        self.gguf.as_deref()
    }

    /// The same checkpoint with its tensors under other names and made in other ways: each becomes what `spell` says of it, which
    /// may be nothing, or several slices of it.
    ///
    /// # Errors
    ///
    /// [`Error::Duplicate`] where two tensors get one name; [`Error::Recipe`] for one that cannot be made of the stored one.
    pub fn respelled(&self, mut spell: impl FnMut(&TensorInfo) -> Vec<Spelled>) -> Result<Self> {
        let mut index = Index { files: self.index.files.clone(), ..Index::default() };
        for stored in self.index.tensors.values() {
            for spelled in spell(stored) {
                let info = spelled.of(stored).ok_or_else(|| Error::Recipe {
                    tensor: stored.name.clone(),
                    shape: stored.shape.clone(),
                    wanted: format!("{spelled:?}"),
                })?;
                let name = info.name.clone();
                if index.tensors.insert(name.clone(), info).is_some() {
                    let first = self.path.clone();
                    return Err(Error::Duplicate { tensor: name, second: first.clone(), first });
                }
            }
        }
        Ok(Self { index, ..self.clone() })
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

/// The tensors of GGUF files under their own names, and the metadata of the first, which has the settings.
fn gguf_index(headers: Vec<GgufHeader>) -> Result<(Index, Metadata)> {
    let mut index = Index::default();
    let mut metadata = None;
    for header in headers {
        let file = WeightFile { path: header.file, bytes: header.file_bytes };
        index.add(file, header.tensors.into_iter().map(gguf_tensor).collect())?;
        metadata.get_or_insert(header.metadata);
    }
    let missing = || Error::NotFound { path: PathBuf::from("(a GGUF file)") };
    Ok((index, metadata.ok_or_else(missing)?))
}

fn gguf_tensor(tensor: GgufTensor) -> TensorInfo {
    let GgufTensor { name, format, shape, offset, .. } = tensor;
    let plain = match format {
        Format::F64 => Some(Dtype::F64),
        Format::F32 => Some(Dtype::F32),
        Format::F16 => Some(Dtype::F16),
        Format::BF16 => Some(Dtype::Bf16),
        Format::I64 => Some(Dtype::I64),
        Format::I32 => Some(Dtype::I32),
        Format::I16 => Some(Dtype::I16),
        Format::I8 => Some(Dtype::I8),
        _ => None,
    };
    let packed = || Recipe { encoding: Encoding::Gguf(format), stored: shape.clone(), steps: Vec::new() };
    let recipe = if plain.is_some() { None } else { Some(packed()) };
    TensorInfo { name, dtype: plain.unwrap_or(Dtype::F32), shape, file: 0, offset, strides: None, recipe }
}

/// The one file of a folder whose name ends in `.gguf`; of a model in several files, the first.
fn only_gguf(folder: &Path) -> Option<PathBuf> {
    let is_gguf = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "gguf");
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).filter(is_gguf).collect();
    files.sort();
    let first = files.first()?.clone();
    let model = |path: &PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let shard = name.rsplit_once("-of-").and_then(|(rest, _)| rest.rsplit_once('-'));
        shard.map_or(name.clone(), |(model, _)| model.to_owned())
    };
    files.iter().all(|file| model(file) == model(&first)).then_some(first)
}

/// Whether a file says that it is GGUF.
fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    fs::File::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok()) && magic == *b"GGUF"
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
