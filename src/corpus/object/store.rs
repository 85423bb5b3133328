//! Objects by the crate `object_store`.
//!
//! An object is written by one request, which every store carries out whole or not at all; so a worker that is killed leaves
//! nothing behind. Uploads in parts would: the crate cannot list those that were begun. The largest object that one request
//! may bring is 5 GB (S3), far above what a unit makes.

use std::{
    env, fmt,
    io::{self, Read},
    ops::Range,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path};
use tokio::runtime::Runtime;
use url::Url;

use crate::corpus::{
    error::{Error, Result},
    place::Listed,
};

/// What one request of a reader asks for at most.
const LARGEST_READ: u64 = 8 << 20;

/// An object, or the prefix of some.
#[derive(Clone)]
pub(in crate::corpus) struct Object {
    store: Arc<dyn ObjectStore>,
    /// Scheme and bucket.
    root: String,
    path: Path,
}

impl fmt::Display for Object {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.root, self.path)
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}

/// The threads that wait for stores; made when they are first needed.
fn runtime() -> io::Result<&'static Runtime> {
    static RUNTIME: OnceLock<std::result::Result<Runtime, String>> = OnceLock::new();
    let make = || {
        // Somebody else in the process may have chosen another already, which then holds.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).thread_name("object store").enable_all();
        builder.build().map_err(|error| error.to_string())
    };
    RUNTIME.get_or_init(make).as_ref().map_err(|problem| io::Error::other(problem.as_str()))
}

/// Waits for a store.
fn wait<T>(work: impl Future<Output = object_store::Result<T>>) -> io::Result<T> {
    Ok(runtime()?.block_on(work)?)
}

impl Object {
    /// `s3://bucket/path`, `gs://`, `az://`, `file://`; keys, regions and endpoints come from the environment's variables, as
    /// each store's own tools have them (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`, ..).
    pub(in crate::corpus) fn parse(address: &str) -> Result<Self> {
        let refuse = |problem: String| Error::Address { place: address.to_owned(), problem };
        let url = Url::parse(address).map_err(|error| refuse(error.to_string()))?;
        // Building a client takes the place of a TLS library that the runtime's making chooses.
        runtime().map_err(|error| refuse(error.to_string()))?;
        // Stores also know settings by bare names (`region`, `token`), which in an environment may mean anything.
        let variables = env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?.to_ascii_lowercase();
            let known = ["aws_", "azure_", "google_"].iter().any(|prefix| name.starts_with(prefix));
            known.then_some((name, value.into_string().ok()?))
        });
        let (store, path) = object_store::parse_url_opts(&url, variables).map_err(|error| {
            refuse(format!("{error}; expected s3://bucket/path, gs://bucket/path, az://container/path or file:///path"))
        })?;
        let root = url.as_str().split_once("://").map_or("", |(scheme, _)| scheme);
        let root = format!("{root}://{}", url.host_str().unwrap_or_default());
        Ok(Self { store: Arc::from(store), root, path })
    }

    /// An object of a store that a test has made.
    #[cfg(test)]
    pub(super) fn new(store: Arc<dyn ObjectStore>, root: &str, path: Path) -> Self {
        Self { store, root: root.to_owned(), path }
    }

    pub(in crate::corpus) fn join(&self, name: &str) -> Self {
        let path = name.split('/').fold(self.path.clone(), |path, segment| path.join(segment));
        Self { path, ..self.clone() }
    }

    pub(in crate::corpus) fn name(&self) -> String {
        self.path.filename().unwrap_or_default().to_owned()
    }

    pub(in crate::corpus) fn size(&self) -> Result<Option<u64>> {
        let head = wait(self.store.head(&self.path));
        self.present(head.map(|found| found.size), "read")
    }

    pub(in crate::corpus) fn read(&self) -> Result<Option<Vec<u8>>> {
        let read = wait(async { self.store.get(&self.path).await?.bytes().await });
        self.present(read.map(Vec::from), "read")
    }

    pub(in crate::corpus) fn range(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        wait(self.store.get_range(&self.path, range)).map(Vec::from)
    }

    pub(in crate::corpus) fn reader(&self, start: u64, bytes: u64, ahead: u64) -> Reader {
        Reader { object: self.clone(), next: start, bytes, ahead, held: Bytes::new() }
    }

    pub(in crate::corpus) fn list(&self) -> Result<Vec<Listed>> {
        let all: io::Result<Vec<_>> = wait(self.store.list(Some(&self.path)).try_collect());
        let listed = |found: object_store::ObjectMeta| {
            let below: Vec<_> = found.location.prefix_match(&self.path)?.map(|part| part.as_ref().to_owned()).collect();
            // The object of the prefix's own name is not below it.
            (!below.is_empty()).then(|| Listed { name: below.join("/"), bytes: found.size })
        };
        Ok(all.map_err(Error::io("list", self))?.into_iter().filter_map(listed).collect())
    }

    pub(in crate::corpus) fn write(&self, bytes: Vec<Vec<u8>>) -> Result<()> {
        let payload: PutPayload = bytes.into_iter().map(Bytes::from).collect();
        wait(self.store.put(&self.path, payload)).map_err(Error::io("write", self))?;
        Ok(())
    }

    pub(in crate::corpus) fn create(&self, bytes: &[u8]) -> Result<bool> {
        let payload = PutPayload::from(bytes.to_vec());
        let options = PutOptions::from(PutMode::Create);
        match wait(self.store.put_opts(&self.path, payload, options)) {
            Ok(_) => Ok(true),
            Err(error) if is_conflict(&error) => Ok(false),
            Err(error) => Err(Error::io("write", self)(error)),
        }
    }

    pub(in crate::corpus) fn remove(&self) -> Result<()> {
        self.present(wait(self.store.delete(&self.path)), "remove").map(|_| ())
    }

    fn present<T>(&self, found: io::Result<T>, doing: &'static str) -> Result<Option<T>> {
        match found {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(doing, self)(error)),
        }
    }
}

/// Whether an object was not created because there is one.
fn is_conflict(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<object_store::Error>());
    matches!(inner, Some(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }))
}

/// An object read forward, a range at a time.
pub(in crate::corpus) struct Reader {
    object: Object,
    /// First byte that has not been asked for.
    next: u64,
    /// Bytes of the object.
    bytes: u64,
    /// Bytes that are known to be wanted from there on.
    ahead: u64,
    held: Bytes,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.held.is_empty() && self.next < self.bytes {
            // Beyond what is known to be wanted, little: the end of a line.
            let wanted = self.ahead.clamp(64 << 10, LARGEST_READ);
            let end = self.bytes.min(self.next + wanted);
            self.held = Bytes::from(self.object.range(self.next..end)?);
            self.ahead = self.ahead.saturating_sub(end - self.next);
            self.next = end;
        }
        let taken = self.held.split_to(buffer.len().min(self.held.len()));
        buffer.get_mut(..taken.len()).unwrap_or_default().copy_from_slice(&taken);
        Ok(taken.len())
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[test]
    fn objects_are_created_once_and_read_in_ranges() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let folder = Object { store, root: "memory://".into(), path: Path::from("acts") };
        assert!(folder.list().unwrap().is_empty());
        let job = folder.join("job.json");
        assert_eq!((job.size().unwrap(), job.read().unwrap()), (None, None));
        assert!(job.create(b"first").unwrap());
        assert!(!job.create(b"second").unwrap());
        assert_eq!(job.read().unwrap().unwrap(), b"first");

        let bytes: Vec<u8> = (0..300_000_u32).map(|number| number as u8).collect();
        let (one, other) = bytes.split_at(100_000);
        let object = folder.join("data/a.txt");
        object.write(vec![one.to_vec(), other.to_vec()]).unwrap();
        for (start, ahead) in [(0, 0), (5, 70_000), (299_999, 1), (300_000, 9), (0, 1 << 40)] {
            let mut read = Vec::new();
            object.reader(start, 300_000, ahead).read_to_end(&mut read).unwrap();
            assert!(read == bytes[start as usize..], "{start}, {ahead}");
        }
        assert_eq!(object.range(99_999..100_001).unwrap(), bytes[99_999..100_001]);
        let mut names: Vec<String> = folder.list().unwrap().into_iter().map(|listed| listed.name).collect();
        names.sort();
        assert_eq!(names, ["data/a.txt", "job.json"]);
        job.remove().unwrap();
        assert_eq!(job.size().unwrap(), None);
        // Another's prefix that begins alike is another's.
        assert!(Object { path: Path::from("act"), ..folder }.list().unwrap().is_empty());
    }
}
