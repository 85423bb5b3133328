//! The per-user folder of installations.
//!
//! ```text
//! <cache>/libtorch/
//!     2.13.0-cpu/                  an installation: appears by one rename, never changes
//!     2.13.0-cpu.lock              held by whoever installs it; the system lets go of it when its process dies
//!     .2.13.0-cpu.staging-XXXXXX/  being assembled; a leftover is removed by the next who holds the lock
//! ```

use std::{
    fs::{self, File, TryLockError},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{environment::Platform, folder::Folder};

/// One place in the cache: for one build of libtorch, or for packages.
#[derive(Debug, Clone)]
pub struct Entry {
    root: PathBuf,
    name: String,
}

impl Entry {
    /// The entry `name` (`2.13.0-cpu`) of the cache at `root`.
    pub fn new(root: &Path, name: &str) -> Self {
        Self { root: root.to_owned(), name: name.to_owned() }
    }

    /// Where the installation is, or will be.
    pub fn path(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// What is installed: `None` if nothing is, an error if it is not usable.
    ///
    /// An archive that was unpacked here by hand, with its outer folder, is found too.
    ///
    /// # Errors
    /// If something is there that is no libtorch, or of the wrong version.
    pub fn installed(&self, platform: &Platform) -> Result<Option<Folder>> {
        let path = self.path();
        if fs::symlink_metadata(&path).is_err() {
            return Ok(None);
        }
        let nested = path.join("libtorch");
        let path = if nested.is_dir() { nested } else { path };
        Folder::inspect(&path, platform)?.require().map(Some)
    }

    /// Takes the entry's lock, calling `waiting` first if another process has it.
    ///
    /// # Errors
    /// If the cache cannot be written.
    pub fn lock(&self, waiting: impl FnOnce()) -> Result<Lock<'_>> {
        fs::create_dir_all(&self.root).with_context(|| format!("making the cache folder {}", self.root.display()))?;
        let path = self.root.join(format!("{}.lock", self.name));
        let context = || format!("locking {}", path.display());
        let file = File::create(&path).with_context(context)?;
        let locked = match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock()
            }
            Err(TryLockError::Error(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        match locked {
            // Some network file systems have no locks. The staging folder and the rename still keep the cache whole.
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            other => other.with_context(context)?,
        }
        let lock = Lock { entry: self, _file: file };
        lock.sweep();
        Ok(lock)
    }

    fn prefix(&self) -> String {
        format!(".{}.staging-", self.name)
    }
}

/// The right to change an entry, until dropped.
#[derive(Debug)]
pub struct Lock<'a> {
    entry: &'a Entry,
    _file: File,
}

impl Lock<'_> {
    /// Removes what killed runs left. Nobody else is at work on this entry, so every staging folder is a leftover.
    fn sweep(&self) {
        let prefix = self.entry.prefix();
        for leftover in fs::read_dir(&self.entry.root).into_iter().flatten().flatten() {
            if leftover.file_name().to_string_lossy().starts_with(&prefix) {
                // What cannot be removed now (a pip that outlived us still writes there) goes next time.
                let _ = fs::remove_dir_all(leftover.path());
            }
        }
    }

    /// A new folder beside the entry, on the same file system, removed when dropped.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn stage(&self) -> Result<TempDir> {
        tempfile::Builder::new()
            .prefix(&self.entry.prefix())
            .tempdir_in(&self.entry.root)
            .with_context(|| format!("making a folder in {}", self.entry.root.display()))
    }

    /// Makes `assembled`, a folder inside a [`Lock::stage`], the installation. What was there before is replaced.
    ///
    /// # Errors
    /// If a rename fails.
    pub fn commit(&self, assembled: &Path) -> Result<PathBuf> {
        let target = self.entry.path();
        // Named like a staging folder: if we are killed between the renames, the next run sweeps it and installs anew.
        let aside = self.stage()?;
        match fs::rename(&target, aside.path().join("old")) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => other.with_context(|| format!("moving the old {} aside", target.display()))?,
        }
        fs::rename(assembled, &target).with_context(|| format!("moving what was fetched to {}", target.display()))?;
        Ok(target)
    }
}
