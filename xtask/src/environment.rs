//! What the commands read from the process, collected once so that tests can hand in another.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// The link in the workspace that `.cargo/config.toml` names as `LIBTORCH`.
pub const LINK: &str = ".libtorch";

/// The operating system and processor, in the spelling of [`std::env::consts`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`, `macos`, ...
    pub os: String,
    /// `x86_64`, `aarch64`, ...
    pub arch: String,
}

impl Platform {
    /// The platform this program was built for.
    pub fn host() -> Self {
        Self { os: std::env::consts::OS.into(), arch: std::env::consts::ARCH.into() }
    }

    /// The file name of a shared library called `name` here.
    pub fn library(&self, name: &str) -> String {
        if self.os == "macos" { format!("lib{name}.dylib") } else { format!("lib{name}.so") }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {}", self.os, self.arch)
    }
}

/// Variables, places and platform.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The variables of the process.
    pub variables: BTreeMap<OsString, OsString>,
    /// The workspace's root.
    pub workspace: PathBuf,
    /// Where this platform wants caches of the user, if it says.
    pub cache_home: Option<PathBuf>,
    /// What to install for.
    pub platform: Platform,
}

impl Environment {
    /// Reads the process.
    ///
    /// # Errors
    /// If the workspace cannot be found.
    pub fn from_process() -> Result<Self> {
        // Cargo sets it when it runs us; the constant serves a program that was started by hand.
        let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let workspace = Path::new(&package).parent().context("the xtask package has no parent folder")?.to_owned();
        Ok(Self {
            variables: std::env::vars_os().collect(),
            workspace,
            cache_home: dirs::cache_dir(),
            platform: Platform::host(),
        })
    }

    /// The variable `name`, unless it is unset or empty.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// Whether the variable is there at all: torch-sys takes even an empty `LIBTORCH_USE_PYTORCH` for a yes.
    pub fn is_set(&self, name: &str) -> bool {
        self.variables.contains_key(OsStr::new(name))
    }

    /// The workspace's link to libtorch.
    pub fn link(&self) -> PathBuf {
        self.workspace.join(LINK)
    }

    /// The user's `LIBTORCH`.
    ///
    /// Cargo hands us the value of `.cargo/config.toml` as if it were exported; that one is nobody's wish.
    pub fn user_libtorch(&self) -> Option<&Path> {
        self.get("LIBTORCH").map(Path::new).filter(|path| *path != self.link())
    }

    /// The folder that holds all installations.
    ///
    /// # Errors
    /// If neither the environment nor the platform names a cache.
    pub fn cache(&self) -> Result<PathBuf> {
        Ok(self.cache_root()?.join("libtorch"))
    }

    /// Where published models are kept.
    ///
    /// # Errors
    /// The same.
    pub fn models(&self) -> Result<PathBuf> {
        Ok(self.cache_root()?.join("models"))
    }

    /// Where what the engines need is kept.
    ///
    /// # Errors
    /// The same.
    pub fn engines(&self) -> Result<PathBuf> {
        Ok(self.cache_root()?.join("engines"))
    }

    fn cache_root(&self) -> Result<PathBuf> {
        let root = match (self.get("TRANSFORMER_UTILS_CACHE"), &self.cache_home) {
            (Some(path), _) => {
                std::path::absolute(path).with_context(|| format!("TRANSFORMER_UTILS_CACHE={}", path.display()))?
            }
            (None, Some(home)) => home.join("transformer-utils"),
            (None, None) => anyhow::bail!(
                "no cache folder is known for this user (no HOME): set TRANSFORMER_UTILS_CACHE to a folder for what is fetched"
            ),
        };
        Ok(root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment {
            variables: variables.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            workspace: "/ws".into(),
            cache_home: Some("/home/u/.cache".into()),
            platform: Platform { os: "linux".into(), arch: "x86_64".into() },
        }
    }

    #[test]
    fn the_libtorch_of_cargo_config_is_nobodys_wish() {
        assert_eq!(environment(&[("LIBTORCH", "/ws/.libtorch")]).user_libtorch(), None);
        assert_eq!(environment(&[("LIBTORCH", "")]).user_libtorch(), None);
        assert_eq!(environment(&[("LIBTORCH", "/opt/lt")]).user_libtorch(), Some(Path::new("/opt/lt")));
    }

    #[test]
    fn the_cache_is_the_platforms_unless_the_user_names_one() {
        assert_eq!(environment(&[]).cache().unwrap(), Path::new("/home/u/.cache/transformer-utils/libtorch"));
        let own = environment(&[("TRANSFORMER_UTILS_CACHE", "/big/disk")]);
        assert_eq!(own.cache().unwrap(), Path::new("/big/disk/libtorch"));
        let homeless = Environment { cache_home: None, ..environment(&[]) };
        assert!(homeless.cache().unwrap_err().to_string().contains("TRANSFORMER_UTILS_CACHE"));
    }
}
