//! Data sets of the Hub.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{Error, HubOptions, Result, cache::CacheEntry, find::Remote};

/// One revision of a data set of the Hub, whose files are fetched into the shared cache one by one, as they are asked for.
///
/// As with checkpoints, what the cache has is used as it is: the Hub is asked what a revision means where the cache does not say.
pub struct Dataset {
    id: String,
    remote: Remote,
    names: Vec<String>,
}

impl Dataset {
    /// The data set `id`, such as `owner/name`, in the revision of the options.
    ///
    /// # Errors
    ///
    /// [`Error::NotCached`] when offline; [`Error::Hub`] naming the address and what is wrong; [`Error::Revision`],
    /// [`Error::NoCache`], [`Error::Io`].
    pub fn find(id: &str, options: &HubOptions) -> Result<Self> {
        let entry = CacheEntry::dataset(id, options)?;
        let known = entry.commit().and_then(|commit| Some((entry.listing(&commit)?, commit)));
        #[cfg(feature = "hub")]
        let hub = (!options.is_offline()).then(|| crate::hub::Hub::new(options));
        let (mut names, commit) = match known {
            Some(known) => known,
            None => {
                #[cfg(feature = "hub")]
                let asked = hub.as_ref().map(|hub| hub.list(&entry)).transpose()?;
                #[cfg(not(feature = "hub"))]
                let asked: Option<(String, Vec<String>)> = None;
                match (asked, entry.commit()) {
                    (Some((commit, names)), _) => (names, commit),
                    // What another tool has put there.
                    (None, Some(commit)) => (below(&entry.snapshot(&commit))?, commit),
                    (None, None) => return Err(entry.not_cached("the list of files", why(options))),
                }
            }
        };
        names.sort();
        #[cfg(feature = "hub")]
        let remote = Remote { entry, commit, hub };
        #[cfg(not(feature = "hub"))]
        let remote = Remote { entry, commit };
        Ok(Self { id: id.to_owned(), remote, names })
    }

    /// The names of all its files, with `/` between folders, in alphabetical order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The commit that the revision means.
    pub fn commit(&self) -> &str {
        &self.remote.commit
    }

    /// The folder that its files are in when they are here.
    pub fn folder(&self) -> PathBuf {
        self.remote.folder()
    }

    /// The path of a file, which is fetched if it is not here.
    ///
    /// # Errors
    ///
    /// [`Error::NotOnHub`] where there is no such file; [`Error::NotCached`] when offline; [`Error::Hub`], [`Error::Digest`],
    /// [`Error::Io`].
    pub fn bring(&self, name: &str) -> Result<PathBuf> {
        let missing = || {
            let revision = self.remote.entry.revision.clone();
            Error::NotOnHub { id: self.id.clone(), revision, file: name.to_owned() }
        };
        self.remote.bring(name)?.ok_or_else(missing)
    }
}

fn why(options: &HubOptions) -> &'static str {
    #[cfg(not(feature = "hub"))]
    if !options.is_offline() {
        return crate::find::NOT_BUILT;
    }
    let _ = options;
    crate::find::OFFLINE
}

/// The files of a folder, with `/` between folders.
fn below(folder: &Path) -> Result<Vec<String>> {
    fn walk(folder: &Path, before: &str, names: &mut Vec<String>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = format!("{before}{}", path.file_name().unwrap_or_default().to_string_lossy());
            if path.is_dir() { walk(&path, &format!("{name}/"), names)? } else { names.push(name) }
        }
        Ok(())
    }
    let mut names = Vec::new();
    walk(folder, "", &mut names).map_err(|source| Error::Io { path: folder.to_owned(), source })?;
    Ok(names)
}
