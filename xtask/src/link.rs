//! The `.libtorch` link in the workspace.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result, bail};

use crate::{environment::Environment, folder::Folder};

/// What stands at `.libtorch`.
#[derive(Debug)]
pub enum Linked {
    /// Nothing.
    Nothing,
    /// A link, and what it leads to, or why that is of no use.
    Link(PathBuf, Result<Folder>),
    /// A folder that somebody put there, or why it is of no use.
    Own(Result<Folder>),
}

/// Looks at `.libtorch`.
pub fn look(environment: &Environment) -> Linked {
    let path = environment.link();
    let inspect = |path: &Path| Folder::inspect(path, &environment.platform).and_then(Folder::require);
    match (fs::read_link(&path), fs::symlink_metadata(&path)) {
        // A link is read from its own folder.
        (Ok(target), _) => {
            let target = environment.workspace.join(target);
            let folder = inspect(&target);
            Linked::Link(target, folder)
        }
        (Err(_), Ok(_)) => Linked::Own(inspect(&path)),
        (Err(_), Err(_)) => Linked::Nothing,
    }
}

/// What [`point`] did, and so what Cargo has to be told.
#[derive(Debug, PartialEq, Eq)]
pub enum Pointed {
    /// The link was right already.
    Unchanged,
    /// There was none.
    New,
    /// It led to another libtorch of the same kind: programs must be linked again.
    Moved,
    /// It led to one of another kind or version, or to nothing: torch-sys recorded other libraries and headers.
    Changed,
}

/// Makes `.libtorch` a link to `folder`, in one step; one that leads there already is not touched.
///
/// # Errors
/// If a folder is in the way, or links cannot be made.
pub fn point(environment: &Environment, folder: &Folder) -> Result<Pointed> {
    let link = environment.link();
    let pointed = match look(environment) {
        Linked::Nothing => Pointed::New,
        Linked::Own(_) => bail!("{} is a folder or file, not a link: move it away first", link.display()),
        Linked::Link(target, old) => match (target.canonicalize(), folder.path.canonicalize(), old) {
            (Ok(target), Ok(wanted), _) if target == wanted => return Ok(Pointed::Unchanged),
            (_, _, Ok(old)) if old.cuda == folder.cuda => Pointed::Moved,
            _ => Pointed::Changed,
        },
    };
    // A link cannot be overwritten, but a rename over it can do that, and no moment is without one.
    let new = environment.workspace.join(format!("{}.{}", crate::environment::LINK, std::process::id()));
    let _ = fs::remove_file(&new);
    symlink(&folder.path, &new).with_context(|| format!("linking {} to {}", new.display(), folder.path.display()))?;
    if let Err(error) = fs::rename(&new, &link) {
        let _ = fs::remove_file(&new);
        return Err(error).with_context(|| format!("renaming {} to {}", new.display(), link.display()));
    }
    if matches!(pointed, Pointed::Moved | Pointed::Changed) {
        // Cargo compares times and variables, and sees neither change when a link moves. This makes it run build.rs
        // again, which records the new folder in every program.
        let touched = File::options()
            .append(true)
            .open(environment.workspace.join("build.rs"))
            .and_then(|file| file.set_modified(SystemTime::now()));
        if touched.is_err() {
            eprintln!("note: build.rs could not be touched; programs built before may still use the old libtorch");
        }
    }
    Ok(pointed)
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_dir(target, link)
}
