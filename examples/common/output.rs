//! Files that are written whole or not at all.

use std::path::{Path, PathBuf};

use anyhow::Context;
use transformer_utils::lowmem::write_file;

/// Refuses an output file whose folder does not exist or cannot be written, before any work is done for it.
pub fn check_writable(path: &Path) -> anyhow::Result<()> {
    check_folder(path)?;
    anyhow::ensure!(!path.is_dir(), "{}: is a folder, expected a file to write", path.display());
    Ok(())
}

/// Refuses a path beside which nothing can be written.
pub fn check_folder(path: &Path) -> anyhow::Result<()> {
    let folder = folder_of(path);
    anyhow::ensure!(folder.is_dir(), "{}: the folder {} does not exist", path.display(), folder.display());
    tempfile::tempfile_in(&folder)
        .with_context(|| format!("{}: cannot write in {}", path.display(), folder.display()))?;
    Ok(())
}

/// Writes `bytes` to a temporary file beside `path` and renames it.
pub fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write_file(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes `value` as indented JSON.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    write(path, text.as_bytes())
}

/// The folder a file lies in.
pub fn folder_of(path: &Path) -> PathBuf {
    let folder = path.parent().unwrap_or(Path::new(""));
    if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.to_owned() }
}
