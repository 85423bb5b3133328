//! The cache that all Hugging Face tools share.
//!
//! `models--ORG--NAME/refs/REVISION` (of data sets `datasets--ORG--NAME`) holds a commit, `snapshots/COMMIT/FILE` links to `blobs/ETAG`, and an empty
//! `.no_exist/COMMIT/FILE` remembers that the repository has no such file. What is still being fetched is
//! `blobs/ETAG.incomplete`. One folder more is ours: `.headers/COMMIT/FILE` keeps the header of a safetensors file that
//! was indexed and not needed, so that the checkpoint opens offline too. Another is `.listings/COMMIT`, the names of a data set's files:
//! without it nobody could tell offline whether all are here.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use crate::{Error, HubOptions, Result};

/// One revision of one repository in the cache.
#[derive(Clone, Debug)]
pub(crate) struct CacheEntry {
    pub(crate) id: String,
    /// What stands before the id in addresses: nothing, or `datasets/`.
    #[cfg_attr(not(feature = "hub"), allow(dead_code))]
    pub(crate) prefix: &'static str,
    pub(crate) revision: String,
    /// Where all its files and revisions lie.
    pub(crate) root: PathBuf,
}

impl CacheEntry {
    pub(crate) fn new(id: &str, options: &HubOptions) -> Result<Self> {
        Self::of(hf_hub::Repo::model(id.to_owned()), "", id, options)
    }

    /// The entry of a data set.
    pub(crate) fn dataset(id: &str, options: &HubOptions) -> Result<Self> {
        Self::of(hf_hub::Repo::dataset(id.to_owned()), "datasets/", id, options)
    }

    fn of(repo: hf_hub::Repo, prefix: &'static str, id: &str, options: &HubOptions) -> Result<Self> {
        let revision = options.revision_or_main().to_owned();
        let plain = |component| matches!(component, Component::Normal(_));
        if revision.is_empty() || !Path::new(&revision).components().all(plain) {
            return Err(Error::Revision { id: id.to_owned(), revision });
        }
        let Some(cache) = options.cache_folder() else { return Err(Error::NoCache) };
        Ok(Self { id: id.to_owned(), prefix, revision, root: cache.join(repo.folder_name()) })
    }

    /// The commit that the revision is known to mean.
    pub(crate) fn commit(&self) -> Option<String> {
        if is_commit(&self.revision) {
            return Some(self.revision.clone());
        }
        let commit = fs::read_to_string(self.root.join("refs").join(&self.revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_name(commit))
    }

    /// The folder of a commit's files.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The error for a file that is needed and not here.
    pub(crate) fn not_cached(&self, file: &str, why: &'static str) -> Error {
        let (id, revision) = (self.id.clone(), self.revision.clone());
        Error::NotCached { id, revision, file: file.to_owned(), cache: self.root.clone(), why }
    }

    /// The header of a safetensors file that is not here itself, and that file's size in bytes.
    pub(crate) fn header(&self, commit: &str, file: &str) -> Option<(u64, Vec<u8>)> {
        let bytes = fs::read(self.root.join(".headers").join(commit).join(file)).ok()?;
        let (size, header) = bytes.split_first_chunk::<8>()?;
        Some((u64::from_le_bytes(*size), header.to_vec()))
    }

    /// The names of all files of a data set, where they are known.
    pub(crate) fn listing(&self, commit: &str) -> Option<Vec<String>> {
        serde_json::from_slice(&fs::read(self.root.join(".listings").join(commit)).ok()?).ok()
    }

    /// Whether the repository is known not to have that file.
    pub(crate) fn is_absent(&self, commit: &str, file: &str) -> bool {
        self.root.join(".no_exist").join(commit).join(file).is_file()
    }
}

#[cfg(feature = "hub")]
impl CacheEntry {
    pub(crate) fn set_commit(&self, commit: &str) -> Result<()> {
        if is_commit(&self.revision) {
            Ok(())
        } else {
            write(&self.root.join("refs").join(&self.revision), commit.as_bytes())
        }
    }

    pub(crate) fn set_header(&self, commit: &str, file: &str, size: u64, header: &[u8]) -> Result<()> {
        write(&self.root.join(".headers").join(commit).join(file), &[&size.to_le_bytes(), header].concat())
    }

    pub(crate) fn set_listing(&self, commit: &str, names: &[String]) -> Result<()> {
        let json = serde_json::Value::from(names).to_string();
        write(&self.root.join(".listings").join(commit), json.as_bytes())
    }

    pub(crate) fn set_absent(&self, commit: &str, file: &str) -> Result<()> {
        write(&self.root.join(".no_exist").join(commit).join(file), &[])
    }
}

#[cfg(feature = "hub")]
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    create_folder(path.parent().unwrap_or(Path::new(".")))?;
    crate::write_file(path, bytes)
}

#[cfg(feature = "hub")]
pub(crate) fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// Makes `link`, a file of a snapshot, mean `target`, a blob of the same repository; a copy where links are not possible.
#[cfg(feature = "hub")]
pub(crate) fn link(target: &Path, link: &Path) -> Result<()> {
    let made = || -> std::io::Result<()> {
        // A link that points at nothing is what an interrupted cleaning leaves.
        let _ = fs::remove_file(link);
        #[cfg(unix)]
        {
            let blob = target.file_name().unwrap_or_default();
            // `snapshots/COMMIT` lies two folders below `blobs`' own, and files may lie in folders there.
            let root = target.parent().and_then(Path::parent).unwrap_or(target);
            let depth = link.strip_prefix(root).map_or(2, |below| below.components().count().saturating_sub(1));
            let up: PathBuf = std::iter::repeat_n("..", depth).collect();
            std::os::unix::fs::symlink(up.join("blobs").join(blob), link)
        }
        #[cfg(not(unix))]
        {
            fs::hard_link(target, link).or_else(|_| fs::copy(target, link).map(drop))
        }
    };
    match made() {
        Err(_) if link.is_file() => Ok(()), // Another process was faster.
        made => made.map_err(|source| Error::Io { path: link.to_owned(), source }),
    }
}

/// Whether a text is a full commit.
fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a text from elsewhere can safely name a file here.
pub(crate) fn is_name(text: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !text.is_empty() && text.len() <= 200 && !text.starts_with('.') && text.bytes().all(fine)
}
