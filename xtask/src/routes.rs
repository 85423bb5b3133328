//! The ways to get a libtorch: the official archive, the wheel through pip.

use std::{
    ffi::OsStr,
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    download::{self, Patience},
    environment::{Environment, Platform},
    folder::{REQUIRED, python_value},
    pip::{self, Pip},
    unpack,
};

/// Which build of libtorch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flavour {
    /// Runs everywhere.
    #[default]
    Cpu,
    /// For CUDA 12.6.
    Cu126,
    /// For CUDA 12.8.
    Cu128,
    /// For CUDA 13.0.
    Cu130,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cu126 => "cu126",
            Self::Cu128 => "cu128",
            Self::Cu130 => "cu130",
        })
    }
}

/// Where the official archives are. `TRANSFORMER_UTILS_LIBTORCH_MIRROR` names another place with the same files.
pub const OFFICIAL: &str = "https://download.pytorch.org/libtorch";

/// The address of the official archive, below `base`.
///
/// Since 2.8 there is one archive for Linux, with the C++11 ABI; `cxx11-abi` is gone from its name.
///
/// # Errors
/// If there is none for this platform and flavour.
pub fn archive_url(base: &str, platform: &Platform, flavour: Flavour) -> Result<String> {
    let base = base.trim_end_matches('/');
    match (platform.os.as_str(), platform.arch.as_str(), flavour) {
        // The + of the version must be encoded.
        ("linux", "x86_64", _) => Ok(format!("{base}/{flavour}/libtorch-shared-with-deps-{REQUIRED}%2B{flavour}.zip")),
        ("macos", "aarch64", Flavour::Cpu) => Ok(format!("{base}/cpu/libtorch-macos-arm64-{REQUIRED}.zip")),
        _ => bail!("there is no official {flavour} archive for {platform}"),
    }
}

/// A way to get a libtorch.
pub trait Route {
    /// What it is, for messages: `the archive https://...`.
    fn name(&self) -> String;

    /// Assembles a libtorch in the new folder `to`; `work`, on the same file system, is for everything else and is
    /// removed afterwards.
    ///
    /// # Errors
    /// If it fails, with the reason; what is in `to` then does not matter.
    fn install(&self, to: &Path, work: &Path) -> Result<()>;
}

/// The official archive.
#[derive(Debug)]
pub struct Archive {
    /// Where it is, or why there is none.
    pub url: Result<String>,
    /// How patiently it is fetched.
    pub patience: Patience,
}

impl Archive {
    /// The archive for `environment`.
    pub fn new(environment: &Environment, flavour: Flavour) -> Self {
        let mirror =
            environment.get("TRANSFORMER_UTILS_LIBTORCH_MIRROR").map(|base| base.to_string_lossy().into_owned());
        let url = archive_url(mirror.as_deref().unwrap_or(OFFICIAL), &environment.platform, flavour);
        Self { url, patience: Patience::default() }
    }
}

impl Route for Archive {
    fn name(&self) -> String {
        let url = self.url.as_ref().map(|url| format!(" {url}")).unwrap_or_default();
        format!("the official archive{url}")
    }

    fn install(&self, to: &Path, work: &Path) -> Result<()> {
        let url = self.url.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        download::check_url(url)?;
        eprintln!("Downloading {url}");
        let file = work.join("libtorch.zip");
        let bar = byte_bar("downloading");
        let result = download::download(url, &file, &bar, self.patience);
        bar.finish_and_clear();
        result?;
        let mut zip = unpack::open(&file)?;
        let bar = byte_bar("unpacking");
        let result = unpack::extract(&mut zip, to, &bar, unpack::archive_place);
        bar.finish_and_clear();
        result
    }
}

/// The torch wheel, through pip: the way where only a Python package index can be reached.
#[derive(Debug)]
pub struct Wheel {
    /// What to get it for.
    pub platform: Platform,
    /// The commands to try as pip, first to last.
    pub pips: Vec<Vec<String>>,
}

impl Wheel {
    /// The wheel for `environment`.
    pub fn new(environment: &Environment) -> Self {
        let pips = pip::candidates(environment);
        Self { platform: environment.platform.clone(), pips }
    }

    /// The platform tags under which the wheels for this platform are published, for pips whose interpreter has none.
    fn tags(&self) -> Vec<String> {
        match (self.platform.os.as_str(), self.platform.arch.as_str()) {
            // Asked for by name, a tag does not include the older ones.
            ("linux", arch) => (17..=28)
                .rev()
                .map(|minor| format!("manylinux_2_{minor}_{arch}"))
                .chain([format!("manylinux2014_{arch}")])
                .collect(),
            ("macos", "aarch64") => (11..=15).map(|major| format!("macosx_{major}_0_arm64")).collect(),
            _ => Vec::new(),
        }
    }
}

impl Route for Wheel {
    fn name(&self) -> String {
        format!("the wheel torch=={REQUIRED} through pip")
    }

    fn install(&self, to: &Path, work: &Path) -> Result<()> {
        let pip = Pip::find(&self.pips, work)?;
        let wheels = work.join("wheels");
        eprintln!("Downloading torch {REQUIRED} with `{}` (up to 530 MB, of which the CPU half is kept)", pip.name());
        let mut tags = Vec::new();
        let torch = [format!("torch=={REQUIRED}")];
        if let Err(error) = pip.download(&torch, &wheels, &tags) {
            // No wheel for this interpreter: too new, too old, an unusual build. The libraries are the same in all.
            let absent = |error: &anyhow::Error| error.to_string().contains("No matching distribution");
            if !absent(&error) || self.tags().is_empty() {
                return Err(error);
            }
            tags = self.tags();
            pip.download(&torch, &wheels, &tags).map_err(|second| {
                let second = if absent(&second) { "no such wheel".into() } else { format!("{second:#}") };
                error.context(format!("for Python 3.11: {second}; for the Python that runs pip"))
            })?;
        }
        let is_torch = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("torch-"));
        let wheel = zips(&wheels)?.into_iter().find(|path| is_torch(path)).context("pip brought no torch wheel")?;
        let companions = companions(&wheel)?;
        if !companions.is_empty() {
            pip.download(&companions, &wheels, &tags)?;
        }
        let zips = zips(&wheels)?;
        let bar = byte_bar("unpacking");
        let result = zips.iter().try_for_each(|path| unpack_wheel(path, to, &self.platform, &bar));
        bar.finish_and_clear();
        result?;
        // The local part of a CUDA wheel's version would be wrong for what is left of it.
        fs::write(to.join("build-version"), format!("{REQUIRED}\n")).context("writing build-version")
    }
}

/// Adds to `to` what a wheel has for it.
///
/// # Errors
/// If the wheel is damaged, or `to` cannot be written.
pub fn unpack_wheel(wheel: &Path, to: &Path, platform: &Platform, bar: &ProgressBar) -> Result<()> {
    let mut zip = unpack::open(wheel)?;
    unpack::extract(&mut zip, to, bar, |name| unpack::wheel_place(name, platform))
        .with_context(|| format!("unpacking {}", wheel.display()))
}

/// What the CPU half of a torch wheel needs from other wheels: nothing, unless it was built with CUDA. Then its CPU
/// library refers to the CUDA runtime and to the profiler's interface.
///
/// # Errors
/// If the wheel cannot be read or is of another version.
pub fn companions(wheel: &Path) -> Result<Vec<String>> {
    let mut zip = unpack::open(wheel)?;
    let version = unpack::text(&mut zip, "torch/version.py")?.context("the wheel has no torch/version.py")?;
    let found = crate::folder::Version::from_version_py(&version)?;
    ensure!(found.release == REQUIRED, "the wheel is version {found}, not {REQUIRED}");
    // The macOS and processor-only wheels say None here.
    let Some(cuda) = python_value(&version, "cuda") else {
        return Ok(Vec::new());
    };
    let major = cuda.split('.').next().unwrap_or(cuda);
    // From CUDA 13 on, the packages carry no number in their names.
    let suffix = if major.parse::<u32>().is_ok_and(|major| major < 13) { format!("-cu{major}") } else { String::new() };
    Ok(["runtime", "cupti"].map(|part| format!("nvidia-cuda-{part}{suffix}=={cuda}.*")).to_vec())
}

/// The files a pip download left.
pub(crate) fn zips(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension() == Some(OsStr::new("whl")));
    paths.sort();
    Ok(paths)
}

/// A bar on standard error; where that is no terminal, nothing is drawn.
pub(crate) fn byte_bar(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_message(what);
    let style = "{msg:>12} [{bar:40}] {binary_bytes:>10} of {binary_total_bytes} {binary_bytes_per_sec:>12} {eta:>4}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(os: &str, arch: &str) -> Platform {
        Platform { os: os.into(), arch: arch.into() }
    }

    #[test]
    fn addresses_of_the_official_archives() {
        let linux = platform("linux", "x86_64");
        assert_eq!(
            archive_url(OFFICIAL, &linux, Flavour::Cpu).unwrap(),
            "https://download.pytorch.org/libtorch/cpu/libtorch-shared-with-deps-2.13.0%2Bcpu.zip"
        );
        assert_eq!(
            archive_url(OFFICIAL, &linux, Flavour::Cu130).unwrap(),
            "https://download.pytorch.org/libtorch/cu130/libtorch-shared-with-deps-2.13.0%2Bcu130.zip"
        );
        assert_eq!(
            archive_url("http://127.0.0.1:1/lt/", &platform("macos", "aarch64"), Flavour::Cpu).unwrap(),
            "http://127.0.0.1:1/lt/cpu/libtorch-macos-arm64-2.13.0.zip"
        );
        for (os, arch, flavour) in [
            ("macos", "aarch64", Flavour::Cu130),
            ("macos", "x86_64", Flavour::Cpu),
            ("linux", "aarch64", Flavour::Cpu),
        ] {
            let error = archive_url(OFFICIAL, &platform(os, arch), flavour).unwrap_err().to_string();
            assert!(error.contains(os) && error.contains(arch), "{error}");
        }
    }

    #[test]
    fn without_any_pip_every_candidate_is_named() {
        let work = tempfile::tempdir().unwrap();
        let pips = vec![vec!["no-such-python".into(), "-m".into(), "pip".into()], vec!["no-such-pip".into()]];
        let wheel = Wheel { platform: platform("linux", "x86_64"), pips };
        let error = wheel.install(&work.path().join("to"), work.path()).unwrap_err().to_string();
        assert!(error.contains("`no-such-python -m pip`") && error.contains("`no-such-pip`"), "{error}");
    }
}
