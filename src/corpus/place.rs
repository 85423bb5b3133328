//! Where bytes are: a file or an object, a folder or a prefix.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use super::{
    error::{Error, Result},
    object::Object,
};

/// A file, a folder, an object, or the prefix of objects.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Local(PathBuf),
    Object(Object),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => write!(formatter, "{}", path.display()),
            Self::Object(object) => write!(formatter, "{object}"),
        }
    }
}

/// What a listing says of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    /// Below the folder, with `/` between segments.
    pub(super) name: String,
    pub(super) bytes: u64,
}

impl Place {
    /// A path, or the address of an object.
    pub(super) fn parse(path: &Path) -> Result<Self> {
        match path.to_str().filter(|text| text.contains("://")) {
            Some(address) => Ok(Self::Object(Object::parse(address)?)),
            None => Ok(Self::Local(path.to_owned())),
        }
    }

    /// What is called `name` in this folder.
    pub(super) fn join(&self, name: &str) -> Self {
        match self {
            Self::Local(path) => Self::Local(path.join(name)),
            Self::Object(object) => Self::Object(object.join(name)),
        }
    }

    /// The last segment of its name.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Local(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            Self::Object(object) => object.name(),
        }
    }

    /// The bytes of a file; `None` where none is there, or a folder.
    pub(super) fn size(&self) -> Result<Option<u64>> {
        match self {
            Self::Local(path) => match fs::metadata(path) {
                Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
                Err(error) if is_absent(&error) => Ok(None),
                Err(error) => Err(Error::io("read", self)(error)),
            },
            Self::Object(object) => object.size(),
        }
    }

    /// The whole of a file; `None` where none is there.
    pub(super) fn read(&self) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Local(path) => match fs::read(path) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if is_absent(&error) => Ok(None),
                Err(error) => Err(Error::io("read", self)(error)),
            },
            Self::Object(object) => object.read(),
        }
    }

    /// `length` bytes from `start` on, all of which must be there.
    pub(super) fn range(&self, start: u64, length: u64) -> Result<Vec<u8>> {
        match self {
            Self::Local(path) => {
                let read = || {
                    let mut file = File::open(path)?;
                    file.seek(SeekFrom::Start(start))?;
                    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
                    file.read_exact(&mut bytes)?;
                    Ok(bytes)
                };
                read().map_err(Error::io("read", self))
            }
            Self::Object(object) => object.range(start..start + length).map_err(Error::io("read", self)),
        }
    }

    /// The bytes from `start` on. `ahead` is how many will be read at least, as far as is known: an object is asked for that many at once.
    pub(super) fn reader(&self, start: u64, bytes: u64, ahead: u64) -> Result<Box<dyn Read + Send>> {
        match self {
            Self::Local(path) => {
                let open = || {
                    let mut file = File::open(path)?;
                    file.seek(SeekFrom::Start(start))?;
                    Ok(file)
                };
                Ok(Box::new(open().map_err(Error::io("read", self))?))
            }
            Self::Object(object) => Ok(Box::new(object.reader(start, bytes, ahead))),
        }
    }

    /// All files below a folder, in the order of their names; `None` where no folder is there.
    pub(super) fn list(&self) -> Result<Option<Vec<Listed>>> {
        let mut all = Vec::new();
        match self {
            Self::Local(path) if !path.is_dir() => return Ok(None),
            Self::Local(path) => walk(path, "", &mut all).map_err(Error::io("list", self))?,
            Self::Object(object) => all = object.list()?,
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Some(all))
    }

    /// Makes the folder, whose parent must be there. Prefixes of objects need no making.
    pub(super) fn make_folder(&self) -> Result<()> {
        let Self::Local(path) = self else { return Ok(()) };
        match fs::create_dir(path) {
            Err(_) if path.is_dir() => Ok(()),
            made => made.map_err(Error::io("make", self)),
        }
    }

    /// Writes a file whole or not at all; `bytes` follow one another in it.
    pub(super) fn write(&self, bytes: Vec<Vec<u8>>) -> Result<()> {
        match self {
            Self::Local(path) => {
                let fill = |temporary: &Path| {
                    let write = || {
                        let mut file = File::create(temporary)?;
                        bytes.iter().try_for_each(|bytes| file.write_all(bytes))?;
                        // A name must not survive a crash of the machine that its bytes do not.
                        file.sync_data()
                    };
                    write().map_err(|source| lowmem::Error::Io { path: path.clone(), source })
                };
                lowmem::write_whole(path, fill).map_err(|error| match error {
                    lowmem::Error::Io { source, .. } => Error::io("write", self)(source),
                    other => Error::io("write", self)(io::Error::other(other)),
                })
            }
            Self::Object(object) => object.write(bytes),
        }
    }

    /// Writes a file unless there is one of its name; whether it was written. Of several that try at once, one succeeds.
    pub(super) fn create(&self, bytes: &[u8]) -> Result<bool> {
        match self {
            Self::Local(path) => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let mut builder = tempfile::Builder::new();
                let prefix = format!(".{}.", self.name());
                builder.prefix(&prefix).suffix(TEMPORARY);
                #[cfg(unix)]
                {
                    use std::os::unix::fs::PermissionsExt;
                    builder.permissions(fs::Permissions::from_mode(0o666));
                }
                let make = || {
                    let mut file = builder.tempfile_in(folder)?;
                    file.write_all(bytes)?;
                    match file.into_temp_path().persist_noclobber(path) {
                        Ok(()) => Ok(true),
                        Err(refused) if refused.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                        Err(refused) => Err(refused.error),
                    }
                };
                make().map_err(Error::io("write", self))
            }
            Self::Object(object) => object.create(bytes),
        }
    }

    /// Removes a file; one that is gone already is no error.
    pub(super) fn remove(&self) -> Result<()> {
        match self {
            Self::Local(path) => match fs::remove_file(path) {
                Err(error) if !is_absent(&error) => Err(Error::io("remove", self)(error)),
                _ => Ok(()),
            },
            Self::Object(object) => object.remove(),
        }
    }
}

/// How the names of files end that are not whole yet; they begin with a point and the name they will have.
pub(super) const TEMPORARY: &str = ".tmp";

/// The name that a temporary file is to have, if `name` is one's.
pub(super) fn temporary_of(name: &str) -> Option<&str> {
    let inside = name.strip_prefix('.')?.strip_suffix(TEMPORARY)?;
    inside.rsplit_once('.').map(|(target, _)| target)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Everything below a folder, links followed.
fn walk(folder: &Path, prefix: &str, all: &mut Vec<Listed>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // A temporary file may get its name, or a link lead nowhere, between the listing and this.
        let Ok(metadata) = fs::metadata(entry.path()) else { continue };
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if metadata.is_dir() {
            walk(&entry.path(), &format!("{name}/"), all)?;
        } else {
            all.push(Listed { name, bytes: metadata.len() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_files_are_known_by_their_names() {
        assert_eq!(temporary_of(".job.json.aB3dEf.tmp"), Some("job.json"));
        assert_eq!(temporary_of(".activations-00001.safetensors.1.tmp"), Some("activations-00001.safetensors"));
        assert_eq!(temporary_of("job.json"), None);
        assert_eq!(temporary_of(".tmp"), None);
    }

    #[test]
    fn of_two_that_create_a_file_one_does() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Local(folder.path().join("job.json"));
        assert!(place.create(b"first").unwrap());
        assert!(!place.create(b"second").unwrap());
        assert_eq!(place.read().unwrap().unwrap(), b"first");
        let listed = Place::Local(folder.path().to_owned()).list().unwrap().unwrap();
        assert_eq!(listed, [Listed { name: "job.json".into(), bytes: 5 }]);
    }
}
