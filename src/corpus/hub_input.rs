//! Data sets of the Hugging Face Hub.

use std::{fs, path::Path};

use lowmem::{Dataset, HubOptions};

use super::{
    corpus::{File, choose, split_pattern},
    error::{Error, Result},
    place::{Listed, Place},
};

/// How addresses begin.
pub(super) const SCHEME: &str = "hf://";

/// Repository, revision, and what of it, as an address names them.
#[derive(Debug, PartialEq)]
struct Address {
    id: String,
    revision: Option<String>,
    path: String,
}

impl Address {
    /// Of what stands behind `hf://`: `datasets/OWNER/NAME[@REVISION][/PATH]`. A revision of several segments is written with `%2F`, but
    /// for `refs/...`, which has three.
    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("datasets/")?.trim_end_matches('/');
        let (id, revision, path) = match rest.split_once('@') {
            // An @ in the name of a file is none of a revision.
            Some((id, behind)) if id.split('/').count() <= 2 => {
                let segments = if behind.starts_with("refs/") { 3 } else { 1 };
                let mut parts = behind.splitn(segments + 1, '/');
                let revision: Vec<&str> = parts.by_ref().take(segments).collect();
                (id.to_owned(), Some(revision.join("/").replace("%2F", "/")), parts.next().unwrap_or_default())
            }
            _ => match rest.splitn(3, '/').collect::<Vec<_>>()[..] {
                [owner, name, path] => (format!("{owner}/{name}"), None, path),
                _ => (rest.to_owned(), None, ""),
            },
        };
        let is_fine = |part: &str| !part.is_empty() && !part.starts_with('.');
        let fine = id.split('/').all(is_fine) && revision.as_deref() != Some("");
        fine.then(|| Self { id, revision, path: path.to_owned() })
    }
}

/// Fetches the files of a corpus: those of a data set, or of a folder or a pattern in it, as for folders of this machine. Beside them, the
/// commit that they are of.
pub(super) fn fetch(place: &Path, address: &str, options: &HubOptions) -> Result<(Vec<File>, String)> {
    let place = place.display().to_string();
    let problem = "expected hf://datasets/OWNER/NAME[@REVISION][/PATH]".to_owned();
    let address = Address::parse(address).ok_or_else(|| Error::Address { place: place.clone(), problem })?;
    let mut options = options.clone();
    if address.revision.is_some() {
        options = options.revision(address.revision);
    }
    let hub = |source| Error::Hub { place: place.clone(), source };
    let dataset = Dataset::find(&address.id, &options).map_err(hub)?;
    let is_file = dataset.names().contains(&address.path);
    let (folder, pattern) = match split_pattern(address.path.as_ref()).filter(|_| !is_file) {
        Some((folder, pattern)) => (folder, Some(pattern)),
        // A file is chosen alone among those of its folder.
        None if is_file => (address.path.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned(), None),
        None => (address.path.clone(), None),
    };
    let before = match folder.as_str() {
        "" | "." => String::new(),
        folder => format!("{folder}/"),
    };
    let inside = dataset.names().iter().filter(|name| !is_file || **name == address.path);
    let listed = inside.filter_map(|name| name.strip_prefix(&before));
    let listed = listed.map(|name| Listed { name: name.to_owned(), bytes: 0 }).collect();
    let snapshot = Place::Local(dataset.folder().join(before.trim_end_matches('/')));
    let mut files = choose(&snapshot, listed, pattern.as_deref())?;
    for file in &mut files {
        let path = dataset.bring(&format!("{before}{}", file.name)).map_err(hub)?;
        file.bytes = fs::metadata(&path).map_err(Error::io("read", path.display()))?.len();
        file.place = Place::Local(path);
    }
    Ok((files, dataset.commit().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_repository_revision_and_path() {
        let parse =
            |text: &str| Address::parse(text).map(|found| (found.id, found.revision.unwrap_or_default(), found.path));
        let cases = [
            ("datasets/o/n", ("o/n", "", "")),
            ("datasets/o/n/", ("o/n", "", "")),
            ("datasets/squad", ("squad", "", "")),
            ("datasets/o/n/data/*.parquet", ("o/n", "", "data/*.parquet")),
            ("datasets/o/n@v1/data/a.jsonl", ("o/n", "v1", "data/a.jsonl")),
            ("datasets/o/n@refs/convert/parquet/default/train", ("o/n", "refs/convert/parquet", "default/train")),
            ("datasets/o/n@refs%2Fpr%2F1", ("o/n", "refs/pr/1", "")),
            ("datasets/o/n/a@b.jsonl", ("o/n", "", "a@b.jsonl")),
        ];
        for (text, (id, revision, path)) in cases {
            assert_eq!(parse(text), Some((id.to_owned(), revision.to_owned(), path.to_owned())), "{text}");
        }
        for none in ["o/n", "datasets/", "datasets/o/n@", "datasets/../n", "spaces/o/n"] {
            assert_eq!(parse(none), None, "{none}");
        }
    }
}
