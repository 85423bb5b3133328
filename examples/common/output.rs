//! Files that are written whole or not at all.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;

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
    let context = || format!("cannot write {}", path.display());
    let mut file = tempfile::NamedTempFile::new_in(folder_of(path)).with_context(context)?;
    file.write_all(bytes).with_context(context)?;
    #[cfg(unix)]
    {
        // A temporary file is private; what people ask for gets the mode that any new file has.
        use std::os::unix::fs::PermissionsExt;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).with_context(context)?;
    }
    file.persist(path).with_context(context)?;
    Ok(())
}

/// Gives a temporary folder the mode that any new folder has.
pub fn set_folder_mode(folder: &Path) -> anyhow::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder, mode).with_context(|| format!("cannot write {}", folder.display()))?;
    }
    Ok(())
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
