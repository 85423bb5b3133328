//! Files that are written whole or not at all.

use std::{fs, path::Path};

use crate::{Error, Result};

/// Writes `bytes` to a temporary file beside `path`, then renames it, so that a kill or a full disk leaves either the old
/// file or the new one. It has the mode that any new file has.
///
/// # Errors
///
/// [`Error::Io`] naming `path`.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    write_whole(path, |temporary| fs::write(temporary, bytes).map_err(io))
}

/// Has `write` make a temporary file beside `path`, which is renamed when it is whole and removed when it is not. Its name is that of
/// `path` between a point and `.XXXXXX.tmp`.
///
/// # Errors
///
/// Whatever `write` gives; [`Error::Io`] naming `path`.
pub fn write_whole(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".tmp");
    #[cfg(unix)]
    {
        // What any program asks for; the system takes away what the umask says.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let file = builder.tempfile_in(folder).map_err(io)?;
    let permissions = file.as_file().metadata().map_err(io)?.permissions();
    let temporary = file.into_temp_path();
    write(&temporary)?;
    // `write` may have put another file there: the writer of safetensors does, and makes it private.
    fs::set_permissions(&temporary, permissions).map_err(io)?;
    temporary.persist(path).map_err(|error| io(error.error))
}
