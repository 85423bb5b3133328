//! Is this folder a libtorch, and which version?

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use crate::environment::Platform;

/// The version that tch 0.26 is made for; torch-sys takes no other.
pub const REQUIRED: &str = "2.13.0";

/// A version as PyTorch writes it: `2.13.0+cu130`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// What tch compares: `2.13.0`.
    pub release: String,
    /// What the build was made for, where it says: `cpu`, `cu130`.
    pub local: Option<String>,
}

impl Version {
    /// Reads `2.13.0`, `2.13.0+cpu`, with white space around it.
    ///
    /// # Errors
    /// If the text does not start like a version.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let (release, local) = match text.split_once('+') {
            Some((release, local)) => (release, Some(local.to_owned())),
            None => (text, None),
        };
        ensure!(
            release.split('.').count() >= 2 && release.starts_with(|c: char| c.is_ascii_digit()),
            "{text:?} is no version"
        );
        Ok(Self { release: release.to_owned(), local })
    }

    /// Reads the `__version__` of a wheel's `version.py`.
    ///
    /// # Errors
    /// If there is none.
    pub fn from_version_py(text: &str) -> Result<Self> {
        let quoted = python_value(text, "__version__").context("no __version__ in version.py")?;
        Self::parse(quoted)
    }

    /// Reads the macros of libtorch's `version.h`.
    ///
    /// # Errors
    /// If one of the three is missing.
    pub fn from_header(text: &str) -> Result<Self> {
        let part = |name: &str| -> Result<&str> {
            text.lines()
                .filter_map(|line| line.trim().strip_prefix("#define"))
                .filter_map(|line| line.trim().split_once(char::is_whitespace))
                .find_map(|(macro_name, value)| (macro_name == name).then_some(value.trim()))
                .with_context(|| format!("no {name} in version.h"))
        };
        let [major, minor, patch] = ["TORCH_VERSION_MAJOR", "TORCH_VERSION_MINOR", "TORCH_VERSION_PATCH"].map(part);
        Self::parse(&format!("{}.{}.{}", major?, minor?, patch?))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.release)?;
        self.local.as_ref().map_or(Ok(()), |local| write!(f, "+{local}"))
    }
}

/// The string assigned to `name` in a Python file of plain assignments; `None` for anything else than a string.
pub fn python_value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?.trim_start();
        // `cuda: Optional[str] = '13.0'`
        let value = match rest.strip_prefix(':') {
            Some(annotated) => annotated.split_once('=')?.1,
            None => rest.strip_prefix('=')?,
        }
        .trim();
        let quote = value.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        value.strip_prefix(quote)?.split_once(quote).map(|(inner, _)| inner)
    })
}

/// A folder that was seen to hold a libtorch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// Where.
    pub path: PathBuf,
    /// Which.
    pub version: Version,
    /// Whether programs linked to it can use CUDA.
    pub cuda: bool,
}

impl Folder {
    /// Looks at `path`: headers, libraries and version.
    ///
    /// # Errors
    /// If something that every libtorch has is not there. Any version is fine here; see [`Folder::require`].
    pub fn inspect(path: &Path, platform: &Platform) -> Result<Self> {
        ensure!(path.is_dir(), "{} is not a folder", path.display());
        Self::inspect_parts(path, path, path, platform)
    }

    /// Like [`Folder::inspect`], where headers and libraries have folders of their own (`LIBTORCH_INCLUDE`,
    /// `LIBTORCH_LIB`).
    ///
    /// # Errors
    /// The same.
    pub fn inspect_parts(path: &Path, include: &Path, lib: &Path, platform: &Platform) -> Result<Self> {
        let header = include.join("include/torch/csrc/api/include/torch/torch.h");
        ensure!(header.is_file(), "{} is not there: no libtorch, or one without its headers", header.display());
        for name in ["c10", "torch_cpu", "torch"] {
            let file = lib.join("lib").join(platform.library(name));
            ensure!(file.is_file(), "{} is not there", file.display());
        }
        let cuda = lib.join("lib").join(platform.library("torch_cuda")).is_file();
        Ok(Self { path: path.to_owned(), version: version(path, include)?, cuda })
    }

    /// Is it the version that tch wants?
    ///
    /// # Errors
    /// If not.
    pub fn require(self) -> Result<Self> {
        ensure!(
            self.version.release == REQUIRED,
            "{} is version {}; tch needs exactly {REQUIRED}",
            self.path.display(),
            self.version
        );
        Ok(self)
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.cuda { "CUDA" } else { "CPU" };
        write!(f, "libtorch {} ({kind}) at {}", self.version.release, self.path.display())
    }
}

/// The version, from the first of the files that say it.
fn version(path: &Path, include: &Path) -> Result<Version> {
    type Reader = fn(&str) -> Result<Version>;
    let sources: [(PathBuf, Reader); 4] = [
        // The one that torch-sys reads.
        (path.join("build-version"), Version::parse),
        (path.join("version.py"), Version::from_version_py),
        (include.join("include/torch/headeronly/version.h"), Version::from_header),
        // Where releases before 2.9 had it, so that an old one is named by its version.
        (include.join("include/torch/csrc/api/include/torch/version.h"), Version::from_header),
    ];
    for (file, read) in &sources {
        if file.is_file() {
            let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
            return read(&text).with_context(|| format!("in {}", file.display()));
        }
    }
    bail!("{} does not say its version: no build-version, version.py or version.h", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_every_file_that_says_them() {
        let cuda = Version { release: "2.13.0".into(), local: Some("cu130".into()) };
        assert_eq!(Version::parse("2.13.0+cu130\n").unwrap(), cuda);
        let py = "from typing import Optional\n\n__all__ = ['__version__']\n__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n";
        assert_eq!(Version::from_version_py(py).unwrap(), cuda);
        assert_eq!(python_value(py, "cuda"), Some("13.0"));
        assert_eq!(python_value(py, "hip"), None);
        let header = "#pragma once\n/// Indicates the major\n#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 13\n  #define TORCH_VERSION_PATCH 0\n#define TORCH_VERSION \\\n  \"2.13.0\"\n";
        assert_eq!(Version::from_header(header).unwrap().to_string(), "2.13.0");
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in ["", "<html>", "+cpu", "2"] {
            assert!(Version::parse(text).is_err(), "{text:?}");
        }
        assert!(Version::from_version_py("__version__ = None").is_err());
        assert!(Version::from_header("#define TORCH_VERSION_MAJOR 2").unwrap_err().to_string().contains("MINOR"));
    }
}
