//! From what somebody typed to a checkpoint, wherever its files are.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Checkpoint, Error, HubOptions, Result, Source,
    cache::CacheEntry,
    checkpoint::{Folder, Indexed, LocalFolder, WEIGHTS, index_folder, read_file},
    files::Fetch,
    safetensors_file,
};

/// Files beside the weights that every use needs.
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
/// Files that make up for a missing `tokenizer.json`.
const OLD_TOKENIZER: [&str; 2] = ["vocab.json", "merges.txt"];
/// Files that are fetched where the repository has them.
const OPTIONAL: [&str; 5] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];

impl Checkpoint {
    /// Finds and indexes a checkpoint: on this machine, in the local Hugging Face cache, or on the Hub.
    ///
    /// What the cache has is used as it is. From the Hub come `config.json`, the tokenizer and the weights that are used,
    /// safetensors if there are any: of safetensors only the headers are fetched here, and each file as a whole when the
    /// first of its tensors is placed, or by [`Checkpoint::ensure`]. So a run that needs the first layers fetches the
    /// shards of the first layers. PyTorch's `.bin` files are fetched here, because they say what they hold in the middle.
    ///
    /// A download that was cut off or killed is continued by the next.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`]; [`Error::NotCached`] when offline; [`Error::Hub`] naming the address and what is wrong.
    pub fn find(source: &Source, options: &HubOptions) -> Result<Self> {
        let id = match source {
            Source::Local(path) => return Self::open(path),
            Source::Hub(id) => id,
            Source::HubFile { id, file } => return Self::find_file(id, file, options),
        };
        let entry = CacheEntry::new(id, options)?;
        let remote = Remote::new(entry, options, CONFIG)?;
        let folder = remote.folder();
        let complete = LocalFolder(&folder).preferred().is_some() && folder.join(CONFIG).is_file();
        if remote.file(CONFIG)?.is_none() {
            return Err(Error::NotOnHub {
                id: id.clone(),
                revision: options.revision_or_main().into(),
                file: CONFIG.into(),
            });
        }
        // What the cache lacks beside complete weights is worth a question to the Hub, but not a failure.
        let optional = |name: &&str| match remote.file(name) {
            Ok(path) => Ok(path.is_some()),
            Err(_) if complete || options.is_offline() => Ok(false),
            Err(error) => Err(error),
        };
        if !optional(&TOKENIZER)? {
            OLD_TOKENIZER.iter().try_for_each(|name| optional(name).map(drop))?;
        }
        OPTIONAL.iter().try_for_each(|name| optional(name).map(drop))?;
        let index = match index_folder(&remote)? {
            Some(index) => index,
            None if remote.is_offline() => return Err(remote.entry.not_cached(WEIGHTS[0], OFFLINE)),
            None => return Err(Error::NoWeights { folder: PathBuf::from(id), looked_for: WEIGHTS.to_vec() }),
        };
        Ok(Self { path: PathBuf::from(id), folder, index, fetch: Some(Arc::new(remote)), gguf: None })
    }

    /// A model in GGUF, which is fetched as a whole: in one file, or in all those of its name.
    fn find_file(id: &str, file: &str, options: &HubOptions) -> Result<Self> {
        let remote = Remote::new(CacheEntry::new(id, options)?, options, file)?;
        let bring = |name: &str| {
            let missing =
                || Error::NotOnHub { id: id.into(), revision: options.revision_or_main().into(), file: name.into() };
            remote.bring(name)?.ok_or_else(missing)
        };
        let path = bring(file)?;
        split_names(file).iter().try_for_each(|name| bring(name).map(drop))?;
        Ok(Self { path: PathBuf::from(format!("{id}:{file}")), ..Self::open(path)? })
    }

    /// Fetches the weight files that hold these tensors, where they are not on this machine yet. Names the checkpoint does
    /// not have are passed over: [`Parts::new`](crate::Parts::new) says so better.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::find`].
    pub fn ensure<'a>(&self, tensors: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let Some(fetch) = &self.fetch else { return Ok(()) };
        let mut files: Vec<usize> = tensors.into_iter().filter_map(|name| Some(self.index.get(name)?.file)).collect();
        files.sort_unstable();
        files.dedup();
        let mut missing =
            files.into_iter().filter_map(|file| self.index.files.get(file)).filter(|file| !file.path.is_file());
        missing.try_for_each(|file| fetch.fetch(&file.path))
    }
}

pub(crate) const OFFLINE: &str = "the Hub is not asked when offline";
#[cfg(not(feature = "hub"))]
pub(crate) const NOT_BUILT: &str = "this program was built without the feature `hub`, which would fetch it";

/// The names of all files of a model of which `file` is one of several, `NAME-00001-of-00003.gguf`; none otherwise.
fn split_names(file: &str) -> Vec<String> {
    let parts = || {
        let (rest, count) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (name, _) = rest.rsplit_once('-')?;
        Some((name, count, count.parse::<u16>().ok()?))
    };
    parts().map_or(Vec::new(), |(name, count, last)| {
        (1..=last).map(|number| format!("{name}-{number:05}-of-{count}.gguf")).collect()
    })
}

/// A revision of a repository: what the cache has of it, and the Hub for the rest.
pub(crate) struct Remote {
    pub(crate) entry: CacheEntry,
    pub(crate) commit: String,
    /// None when offline.
    #[cfg(feature = "hub")]
    pub(crate) hub: Option<crate::hub::Hub>,
}

impl Remote {
    #[cfg(feature = "hub")]
    /// `wanted` is a file that the repository must have, to ask for.
    fn new(entry: CacheEntry, options: &HubOptions, wanted: &str) -> Result<Self> {
        let hub = (!options.is_offline()).then(|| crate::hub::Hub::new(options));
        let commit = match (entry.commit(), &hub) {
            (Some(commit), _) => commit,
            (None, Some(hub)) => hub.resolve(&entry, wanted)?,
            (None, None) => return Err(entry.not_cached(wanted, OFFLINE)),
        };
        Ok(Self { entry, commit, hub })
    }

    #[cfg(not(feature = "hub"))]
    /// `wanted` is a file that the repository must have, to ask for.
    fn new(entry: CacheEntry, options: &HubOptions, wanted: &str) -> Result<Self> {
        let why = if options.is_offline() { OFFLINE } else { NOT_BUILT };
        match entry.commit() {
            Some(commit) => Ok(Self { entry, commit }),
            None => Err(entry.not_cached(wanted, why)),
        }
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.entry.snapshot(&self.commit)
    }

    fn is_offline(&self) -> bool {
        #[cfg(feature = "hub")]
        return self.hub.is_none();
        #[cfg(not(feature = "hub"))]
        true
    }

    /// The path of a file, fetched if need be; None if the repository has no such file.
    pub(crate) fn bring(&self, name: &str) -> Result<Option<PathBuf>> {
        let path = self.folder().join(name);
        if path.is_file() {
            return Ok(Some(path));
        }
        if self.entry.is_absent(&self.commit, name) {
            return Ok(None);
        }
        #[cfg(feature = "hub")]
        return match &self.hub {
            Some(hub) => hub.fetch(&self.entry, &self.commit, name),
            None => Err(self.entry.not_cached(name, OFFLINE)),
        };
        #[cfg(not(feature = "hub"))]
        Err(self.entry.not_cached(name, NOT_BUILT))
    }

    /// The header of a safetensors file that is not here, and the size of that file.
    fn header(&self, name: &str) -> Result<Option<(u64, Vec<u8>)>> {
        if let Some(header) = self.entry.header(&self.commit, name) {
            return Ok(Some(header));
        }
        #[cfg(feature = "hub")]
        return match &self.hub {
            Some(_) if self.entry.is_absent(&self.commit, name) => Ok(None),
            Some(hub) => hub.header(&self.entry, &self.commit, name),
            None => Ok(None),
        };
        #[cfg(not(feature = "hub"))]
        Ok(None)
    }
}

impl Folder for Remote {
    fn file(&self, name: &str) -> Result<Option<PathBuf>> {
        // Which of the possible weight files a repository has is asked one by one; offline only the cache answers.
        if self.is_offline() && WEIGHTS.contains(&name) {
            return Ok(Some(self.folder().join(name)).filter(|path| path.is_file()));
        }
        self.bring(name)
    }

    fn weights(&self, name: &str) -> Result<Option<Indexed>> {
        let path = self.folder().join(name);
        if path.is_file() {
            return read_file(&path).map(Some);
        }
        if name.ends_with(".safetensors") {
            let Some((bytes, header)) = self.header(name)? else {
                let known_shard = self.is_offline() && !WEIGHTS.contains(&name);
                return if known_shard { Err(self.entry.not_cached(name, OFFLINE)) } else { Ok(None) };
            };
            return safetensors_file::parse_header(&path, bytes, &header).map(Some);
        }
        match self.file(name)? {
            Some(path) => read_file(&path).map(Some),
            None => Ok(None),
        }
    }

    fn preferred(&self) -> Option<&'static str> {
        // Whatever a tool has put here before is used; asking for something better would need the network.
        LocalFolder(&self.folder()).preferred()
    }
}

impl Fetch for Remote {
    fn fetch(&self, path: &Path) -> Result<()> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match self.bring(name)? {
            Some(_) => Ok(()),
            None => {
                let (id, revision) = (self.entry.id.clone(), self.entry.revision.clone());
                Err(Error::NotOnHub { id, revision, file: name.to_owned() })
            }
        }
    }
}
