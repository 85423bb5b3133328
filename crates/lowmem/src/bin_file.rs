//! PyTorch's `.bin` (`torch.save`): where every tensor lies, without reading the weights.
//!
//! Since PyTorch 1.6 the file is a zip archive whose entries are stored, not compressed: `NAME/data.pkl` is a pickle of
//! the state dict, `NAME/data/KEY` the bytes of storage `KEY`. Before, it was four pickles in a row (a magic number, the
//! protocol, facts about the system, the state dict), a pickled list of storage keys, and then the storages in that order,
//! each behind the number of its elements. In both a tensor is a view of a storage: an offset, a shape and strides. So
//! each tensor's place in the file is known exactly and it can be mapped where it lies.
//!
//! Pickles are read by [`crate::pickle`], which runs nothing. What a tensor claims is checked here, where its name is known.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use zip::{CompressionMethod, ZipArchive};

use crate::{
    Dtype, Error, Result,
    index::{TensorInfo, WeightFile},
    pickle::{self, Global, Id, Node, Pickle},
};

/// What every zip archive that is not empty begins with.
pub(crate) const ZIP_MAGIC: [u8; 4] = *b"PK\x03\x04";
/// The number that the first pickle of a legacy file holds.
const LEGACY_MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const LEGACY_PROTOCOL: i128 = 1001;
/// Keys under which training scripts put the state dict.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];
/// Most names a checkpoint's archive may have entries for.
const ENTRY_LIMIT: usize = 1_000_000;

/// The bytes of one storage.
#[derive(Clone, Copy)]
struct Storage {
    /// First byte in the file.
    offset: u64,
    bytes: u64,
}

/// Reads where the tensors of a `.bin` file lie.
///
/// # Errors
///
/// [`Error::PickleGlobal`], [`Error::Pickle`], [`Error::Archive`], [`Error::BigEndian`]; [`Error::BadEntry`] and
/// [`Error::OutOfRange`] for a tensor that claims what the file does not hold; [`Error::NoTensors`].
pub(crate) fn read_index(path: &Path, magic: &[u8]) -> Result<(WeightFile, Vec<TensorInfo>)> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    let input = BufReader::with_capacity(1 << 14, file);
    let (pickle, storages) =
        if magic.starts_with(&ZIP_MAGIC) { read_zip(path, bytes, input)? } else { read_legacy(path, bytes, input)? };
    let mut tensors = Vec::new();
    for (name, id) in state_dict(path, &pickle)? {
        tensors.push(place(path, &pickle, &storages, &name, id)?);
    }
    Ok((WeightFile { path: path.to_owned(), bytes }, tensors))
}

/// The pickle of a `.bin` file.
///
/// # Errors
///
/// As [`read_index`].
pub(crate) fn read_pickle(path: &Path) -> Result<Pickle> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    let mut magic = Vec::new();
    file.by_ref().take(ZIP_MAGIC.len() as u64).read_to_end(&mut magic).map_err(io)?;
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    let input = BufReader::with_capacity(1 << 14, file);
    let (pickle, _) = if magic == ZIP_MAGIC { read_zip(path, bytes, input)? } else { read_legacy(path, bytes, input)? };
    Ok(pickle)
}

type Storages = HashMap<String, Storage>;

fn read_zip(path: &Path, file_bytes: u64, input: BufReader<File>) -> Result<(Pickle, Storages)> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let bad = |problem: String| Error::Archive { file: path.to_owned(), problem };
    let mut archive = ZipArchive::new(input).map_err(|error| {
        bad(format!("its table of contents cannot be read ({error}); it is truncated or damaged, download it again"))
    })?;
    if archive.len() > ENTRY_LIMIT {
        return Err(bad(format!("it has {} entries, more than the limit of {ENTRY_LIMIT}", archive.len())));
    }
    let mut entries: HashMap<String, Storage> = HashMap::new();
    for number in 0..archive.len() {
        let entry = archive.by_index_raw(number).map_err(|error| bad(format!("entry {number}: {error}")))?;
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return Err(bad(format!("entry {name} is compressed or encrypted, which PyTorch never does")));
        }
        let Some(offset) = entry.data_start() else {
            return Err(bad(format!("entry {name} has no data")));
        };
        let bytes = entry.size();
        match offset.checked_add(bytes) {
            Some(end) if end <= file_bytes => {}
            end => {
                let end = end.unwrap_or(u64::MAX);
                return Err(Error::OutOfRange { file: path.to_owned(), tensor: name, end, file_bytes });
            }
        }
        entries.insert(name, Storage { offset, bytes });
    }
    let mut input = archive.into_inner();
    // `NAME/` is whatever the file was called when it was saved.
    let pickle_name = entries.keys().filter(|name| *name == "data.pkl" || name.ends_with("/data.pkl")).min();
    let Some(pickle_name) = pickle_name.cloned() else {
        return Err(bad("it has no data.pkl; this is not a PyTorch checkpoint".into()));
    };
    let prefix = pickle_name.trim_end_matches("data.pkl");
    let mut text_of = |entry: &Storage, limit: u64| -> Result<Vec<u8>> {
        input.seek(SeekFrom::Start(entry.offset)).map_err(io)?;
        let mut bytes = Vec::new();
        input.by_ref().take(entry.bytes.min(limit)).read_to_end(&mut bytes).map_err(io)?;
        Ok(bytes)
    };
    if let Some(order) = entries.get(&format!("{prefix}byteorder")) {
        let order = text_of(order, 16)?;
        if order != b"little" {
            return Err(Error::BigEndian { file: path.to_owned() });
        }
    }
    let data = entries.get(&pickle_name).copied().unwrap_or(Storage { offset: 0, bytes: 0 });
    input.seek(SeekFrom::Start(data.offset)).map_err(io)?;
    let pickle = pickle::read(path, &mut input.by_ref().take(data.bytes))?;
    let data_prefix = format!("{prefix}data/");
    let storages = entries.into_iter();
    let storages = storages.filter_map(|(name, storage)| Some((name.strip_prefix(&data_prefix)?.to_owned(), storage)));
    Ok((pickle, storages.collect()))
}

fn read_legacy(path: &Path, file_bytes: u64, mut input: BufReader<File>) -> Result<(Pickle, Storages)> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let bad = |problem: String| Error::Archive { file: path.to_owned(), problem };
    let mut next = || pickle::read(path, &mut input);
    let magic = next()?;
    if *magic.node(magic.root) != Node::Int(LEGACY_MAGIC) {
        return Err(bad("it is a pickle, but not one of PyTorch's: the magic number is missing".into()));
    }
    let protocol = next()?;
    if *protocol.node(protocol.root) != Node::Int(LEGACY_PROTOCOL) {
        return Err(bad(format!("it is not of PyTorch's protocol {LEGACY_PROTOCOL}")));
    }
    let system = next()?;
    if let Node::Dict(facts) = system.node(system.root) {
        let little = facts.iter().find(|fact| system.text(fact.0) == Some("little_endian"));
        if little.is_some_and(|fact| *system.node(fact.1) == Node::Bool(false)) {
            return Err(Error::BigEndian { file: path.to_owned() });
        }
    }
    let pickle = next()?;
    let keys = next()?;
    let Some(order) = keys.sequence(keys.root) else {
        return Err(bad("it has no list of storages".into()));
    };
    // The file says how many elements a storage has, the pickle how large they are.
    let mut dtypes = HashMap::new();
    for node in pickle.nodes() {
        if let Node::Persistent(description) = node
            && let Some((dtype, key)) = describe_storage(&pickle, *description)
        {
            dtypes.insert(key, dtype);
        }
    }
    let mut storages = HashMap::new();
    let mut offset = input.stream_position().map_err(io)?;
    for &key in order {
        let Some(key) = keys.text(key) else {
            return Err(bad("a storage has no name".into()));
        };
        let Some(dtype) = dtypes.get(key) else {
            return Err(bad(format!("storage {key} is in the file, but the pickle does not mention it")));
        };
        let mut count = [0; 8];
        input.seek(SeekFrom::Start(offset)).map_err(io)?;
        let storage = input.read_exact(&mut count).ok().and_then(|()| {
            let bytes = u64::try_from(i64::from_le_bytes(count)).ok()?.checked_mul(dtype.bytes())?;
            let storage = Storage { offset: offset + 8, bytes };
            storage.offset.checked_add(bytes).filter(|&end| end <= file_bytes).map(|_| storage)
        });
        let Some(storage) = storage else {
            return Err(bad(format!(
                "storage {key} at byte {offset} does not fit the {file_bytes} bytes of the file; it is truncated, download it again"
            )));
        };
        offset = storage.offset + storage.bytes;
        storages.insert(key.to_owned(), storage);
    }
    Ok((pickle, storages))
}

/// The dtype and key of `('storage', torch.FloatStorage, 'KEY', 'cpu', elements)`.
fn describe_storage(pickle: &Pickle, description: Id) -> Option<(Dtype, &str)> {
    let [kind, class, key, ..] = pickle.sequence(description)? else { return None };
    if pickle.text(*kind)? != "storage" {
        return None;
    }
    match pickle.node(*class) {
        Node::Global(Global::Storage(dtype)) => Some((*dtype, pickle.text(*key)?)),
        _ => None,
    }
}

/// The names of the tensors and the values they stand for.
fn state_dict<'a>(path: &Path, pickle: &'a Pickle) -> Result<Vec<(Cow<'a, str>, Id)>> {
    let is_tensor = |id: Id| matches!(pickle.node(id), Node::Tensor(_));
    let tensors_of = |id: Id| match pickle.node(id) {
        Node::Dict(items) => {
            let named = items.iter().filter_map(|&(key, value)| Some((Cow::Borrowed(pickle.text(key)?), value)));
            named.filter(|&(_, value)| is_tensor(value)).collect()
        }
        _ => Vec::new(),
    };
    let mut tensors: Vec<(Cow<str>, Id)> = tensors_of(pickle.root);
    if tensors.is_empty()
        && let Node::Dict(items) = pickle.node(pickle.root)
    {
        let inside = |wrapper| items.iter().find(|item| pickle.text(item.0) == Some(wrapper)).map(|item| item.1);
        let wrapped = WRAPPERS.into_iter().filter_map(inside).map(tensors_of);
        tensors = wrapped.into_iter().find(|tensors| !tensors.is_empty()).unwrap_or_default();
        if tensors.is_empty() {
            // Dictionaries of tensors by number, such as a lens has for its layers: `J.0`.
            for (name, numbered) in items.iter().filter_map(|&(key, value)| Some((pickle.text(key)?, value))) {
                let Node::Dict(numbered) = pickle.node(numbered) else { continue };
                let of = |&(key, value): &(Id, Id)| Some((format!("{name}.{}", pickle.integer(key)?), value));
                let found = numbered.iter().filter_map(of).filter(|&(_, value)| is_tensor(value));
                tensors.extend(found.map(|(name, value)| (Cow::Owned(name), value)));
            }
        }
    }
    if tensors.is_empty() {
        return Err(Error::NoTensors { file: path.to_owned() });
    }
    Ok(tensors)
}

/// Checks what `_rebuild_tensor_v2(storage, offset, shape, strides, ...)` would be called with.
fn place(path: &Path, pickle: &Pickle, storages: &Storages, name: &str, id: Id) -> Result<TensorInfo> {
    let bad = |problem: String| Error::BadEntry { file: path.to_owned(), tensor: name.to_owned(), problem };
    let Node::Tensor(arguments) = pickle.node(id) else {
        return Err(bad("it is not a tensor".into()));
    };
    let [storage, first, shape, strides, ..] = arguments[..] else {
        return Err(bad("it is described by too few values".into()));
    };
    let Node::Persistent(description) = pickle.node(storage) else {
        return Err(bad("it has no storage".into()));
    };
    let Some((dtype, key)) = describe_storage(pickle, *description) else {
        return Err(bad("its storage is of a kind that is not supported".into()));
    };
    if let Some(Node::Tuple(view)) =
        pickle.sequence(*description).and_then(|parts| parts.get(5)).map(|&view| pickle.node(view))
    {
        return Err(bad(format!("its storage is a view of another ({} values), as before PyTorch 0.4", view.len())));
    }
    let Some(storage) = storages.get(key) else {
        return Err(bad(format!("its storage {key} is not in the file")));
    };
    let sizes = |id: Id| {
        let items = pickle.sequence(id)?.iter().map(|&item| pickle.integer(item).filter(|&size| size >= 0));
        items.collect::<Option<Vec<i64>>>()
    };
    let (Some(first), Some(shape), Some(strides)) =
        (pickle.integer(first).and_then(|first| u64::try_from(first).ok()), sizes(shape), sizes(strides))
    else {
        return Err(bad("its offset, shape or strides are not numbers of zero or more".into()));
    };
    if shape.len() != strides.len() {
        return Err(bad(format!("its shape {shape:?} and strides {strides:?} differ in length")));
    }
    let width = dtype.bytes();
    let product = |from: u64| shape.iter().try_fold(from, |product, &size| product.checked_mul(size as u64));
    if product(width).is_none_or(|bytes| i64::try_from(bytes).is_err()) {
        return Err(bad(format!("its shape {shape:?} is beyond 64 bits")));
    }
    let empty = shape.contains(&0);
    let last = shape.iter().zip(&strides).try_fold(0_u64, |last, (&size, &stride)| {
        last.checked_add((size as u64).saturating_sub(1).checked_mul(stride as u64)?)
    });
    let elements = if empty { Some(0) } else { last.and_then(|last| last.checked_add(1)) };
    let end = elements.and_then(|elements| first.checked_add(elements)?.checked_mul(width));
    if end.is_none_or(|end| end > storage.bytes) {
        return Err(bad(format!(
            "its view (offset {first}, shape {shape:?}, strides {strides:?}, dtype {dtype}) leaves the {} bytes of storage {key}",
            storage.bytes
        )));
    }
    let strides = Some(strides).filter(|strides| !empty && !row_by_row(&shape, strides));
    Ok(TensorInfo {
        name: name.to_owned(),
        dtype,
        shape,
        file: 0,
        offset: storage.offset + first * width,
        strides,
        recipe: None,
    })
}

/// Whether a tensor of these strides lies element by element in the order of its indices. Dimensions of size one can have
/// any stride.
fn row_by_row(shape: &[i64], strides: &[i64]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&size, &stride)| {
        let fits = size == 1 || stride == expected;
        expected *= size;
        fits
    })
}
