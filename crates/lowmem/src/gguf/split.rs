//! Models in several files, `NAME-00001-of-00003.gguf` and so on, as llama.cpp's `gguf-split` writes them.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use super::{GgufError, GgufHeader};

const COUNT: &str = "split.count";
const NUMBER: &str = "split.no";
const TENSORS: &str = "split.tensors.count";

/// The headers of all files of a model, in order, from any one of them. A model in one file gives one.
///
/// # Errors
///
/// As [`GgufHeader::read`]; a file that is missing, one too many, or one that does not belong to the others; a tensor that is in
/// two files; another number of tensors than the files promise.
pub fn read_split(path: &Path) -> Result<Vec<GgufHeader>, GgufError> {
    let header = GgufHeader::read(path)?;
    let count = header.metadata.get_u64(COUNT)?.unwrap_or(1);
    if count <= 1 {
        return Ok(vec![header]);
    }
    let name = SplitName::of(path).filter(|name| name.count == count).ok_or_else(|| GgufError::Split {
        file: path.to_owned(),
        problem: "the name of one file of several",
        expected: format!("NAME-00001-of-{count:05}.gguf or another of its numbers"),
        found: file_name(path),
    })?;
    refuse_extra(path, &name)?;
    let mut headers = Vec::new();
    for number in 1..=count {
        headers.push(read_one(path, &name, number)?);
    }
    check_tensors(&headers)?;
    Ok(headers)
}

/// What a file's name says.
struct SplitName {
    folder: PathBuf,
    prefix: String,
    /// From 1.
    number: u64,
    count: u64,
}

impl SplitName {
    fn of(path: &Path) -> Option<Self> {
        let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(number) || !digits(count) {
            return None;
        }
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        Some(Self { folder, prefix: prefix.to_owned(), number: number.parse().ok()?, count: count.parse().ok()? })
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{}-{number:05}-of-{:05}.gguf", self.prefix, self.count))
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Refuses a folder with a file of the same model beyond its number of files.
fn refuse_extra(path: &Path, name: &SplitName) -> Result<(), GgufError> {
    let folder = if name.folder.as_os_str().is_empty() { Path::new(".") } else { &name.folder };
    let io = |source| GgufError::Io { file: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let other = entry.map_err(io)?.path();
        let Some(found) = SplitName::of(&other).filter(|other| other.prefix == name.prefix) else { continue };
        if found.count == name.count && !(1..=name.count).contains(&found.number) {
            return Err(GgufError::Split {
                file: path.to_owned(),
                problem: "one file too many",
                expected: format!("numbers 1 to {}", name.count),
                found: file_name(&other),
            });
        }
    }
    Ok(())
}

fn read_one(asked: &Path, name: &SplitName, number: u64) -> Result<GgufHeader, GgufError> {
    let path = name.path(number);
    if !path.is_file() {
        return Err(GgufError::SplitMissing { first: asked.to_owned(), count: name.count, missing: path });
    }
    let header = GgufHeader::read(&path)?;
    for (key, expected) in [(COUNT, name.count), (NUMBER, number - 1)] {
        let found = header.metadata.require_u64(key)?;
        if found != expected {
            return Err(GgufError::Split {
                file: path,
                problem: if key == COUNT { COUNT } else { NUMBER },
                expected: expected.to_string(),
                found: found.to_string(),
            });
        }
    }
    Ok(header)
}

fn check_tensors(headers: &[GgufHeader]) -> Result<(), GgufError> {
    let mut seen = HashMap::new();
    for header in headers {
        for tensor in &header.tensors {
            if let Some(first) = seen.insert(tensor.name.as_str(), &header.file) {
                return Err(GgufError::DuplicateTensor {
                    tensor: tensor.name.clone(),
                    first: first.clone(),
                    second: header.file.clone(),
                });
            }
        }
    }
    for header in headers {
        let promised = header.metadata.get_u64(TENSORS)?;
        if let Some(promised) = promised.filter(|&promised| promised != seen.len() as u64) {
            return Err(GgufError::Split {
                file: header.file.clone(),
                problem: TENSORS,
                expected: promised.to_string(),
                found: seen.len().to_string(),
            });
        }
    }
    Ok(())
}
