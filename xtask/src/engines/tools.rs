//! What the engines need, in the cache: Debian packages unpacked, Python packages beside each other.
//!
//! Nothing is installed into the system. A package is unpacked into a folder, without its scripts: no user is made, no
//! service is started, and nobody has to be root.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    cache::Entry,
    environment::Environment,
    pip::{self, Pip},
};

/// Packages of the Python package index, with their versions.
const RAY: &[&str] = &["ray==2.60.0"];
/// The S3-compatible store with its client (moto brings boto3; its `server` would bring all of Amazon's services), and
/// Kubernetes' schemas with PyYAML.
const KUBERNETES: &[&str] = &["flask==3.1.3", "flask-cors==6.0.5", "moto[s3]==5.2.5", "kubernetes-validate==1.37.0"];

/// A folder with the insides of Debian packages.
#[derive(Debug, Clone)]
pub struct Debian {
    root: PathBuf,
}

impl Debian {
    /// The first of `names` (programs have other names in other releases) that is in the packages or in the system.
    ///
    /// # Errors
    /// If there is none.
    pub fn find(&self, folders: &[&str], names: &[&str]) -> Result<PathBuf> {
        let places = [&*self.root, Path::new("/")].into_iter();
        let all = places.flat_map(|root| folders.iter().map(move |folder| root.join(folder)));
        let mut all = all.flat_map(|folder| names.iter().map(move |name| folder.join(name)));
        all.find(|path| path.exists()).with_context(|| {
            format!(
                "neither {} nor the system has {}; remove that folder to fetch it again",
                self.root.display(),
                names[0]
            )
        })
    }

    /// The folder of libraries of this machine's architecture.
    pub fn libraries(&self, arch: &str) -> PathBuf {
        self.root.join(format!("usr/lib/{arch}-linux-gnu"))
    }

    /// Where its programs are.
    fn programs(&self) -> [PathBuf; 4] {
        ["usr/bin", "usr/sbin", "bin", "sbin"].map(|folder| self.root.join(folder))
    }
}

/// `PATH` with the programs of `packages` before the system's.
pub(super) fn path(environment: &Environment, packages: &Option<Debian>) -> OsString {
    let own = packages.iter().flat_map(Debian::programs);
    let system = environment.get("PATH").map(std::env::split_paths).into_iter().flatten();
    // Where the system keeps programs for administrators, which are not on everybody's path.
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    // Only a path with a colon in it cannot be joined.
    std::env::join_paths(own.chain(system).chain(more)).unwrap_or_default()
}

/// Slurm and munge.
///
/// # Errors
/// If they cannot be had.
pub fn slurm(environment: &Environment) -> Result<Debian> {
    debian(environment, "slurm", &["slurmctld", "slurmd", "slurm-client", "munge"])
}

/// `ip`, where the system has none: it brings a loopback up.
///
/// # Errors
/// If it cannot be had.
pub(super) fn ip(environment: &Environment) -> Result<Option<Debian>> {
    let there = std::env::split_paths(&path(environment, &None)).any(|folder| folder.join("ip").is_file());
    if there { Ok(None) } else { debian(environment, "iproute2", &["iproute2"]).map(Some) }
}

/// The packages and what they need that the system has not, unpacked.
fn debian(environment: &Environment, name: &str, packages: &[&str]) -> Result<Debian> {
    let entry = Entry::new(&environment.engines()?, &format!("debian-{name}"));
    let root = entry.path();
    if root.is_dir() {
        return Ok(Debian { root });
    }
    let lock = entry.lock(|| eprintln!("Waiting for another process that fetches {name}"))?;
    if root.is_dir() {
        return Ok(Debian { root });
    }
    eprintln!("Fetching {} with apt-get into {}", packages.join(", "), root.display());
    let staging = lock.stage()?;
    let (lists, archives, unpacked) =
        (staging.path().join("lists"), staging.path().join("archives"), staging.path().join("root"));
    for folder in [&lists.join("partial"), &archives.join("partial"), &unpacked] {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    // Its own lists and archives: so any user may ask it, and the system's stay as they are.
    let apt = |arguments: &[&str]| -> Result<String> {
        let mut command = Command::new("apt-get");
        command.arg("-qq").current_dir(&archives);
        command.arg("-o").arg(format!("Dir::State::Lists={}", lists.display()));
        command.arg("-o").arg(format!("Dir::Cache={}", archives.display()));
        // It would give up root's rights to a user who may not write here.
        command.args(["-o", "APT::Sandbox::User=root"]).args(arguments);
        output(&mut command)
            .context("with apt-get, of Debian and its descendants (the only systems this knows how to ask)")
    };
    apt(&["update"])?;
    let plan = apt(&[&["--simulate", "--no-install-recommends", "install"], packages].concat())?;
    let needed: Vec<_> = plan.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next()).collect();
    if !needed.is_empty() {
        apt(&[&["download"], &*needed].concat())?;
    }
    for file in fs::read_dir(&archives).context("reading the folder of packages")?.flatten() {
        if file.path().extension().is_some_and(|extension| extension == "deb") {
            output(Command::new("dpkg-deb").arg("--extract").arg(file.path()).arg(&unpacked))?;
        }
    }
    Ok(Debian { root: lock.commit(&unpacked)? })
}

/// An interpreter and a folder of packages for it.
#[derive(Debug)]
pub struct Python {
    interpreter: String,
    packages: PathBuf,
}

impl Python {
    /// The interpreter, with its packages.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.interpreter);
        // The sources get no compiled files beside them, and the user's own packages do not mix with these.
        command.env("PYTHONPATH", &self.packages).env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONNOUSERSITE", "1");
        command
    }
}

/// Ray.
///
/// # Errors
/// If it cannot be had.
pub fn ray(environment: &Environment) -> Result<Python> {
    python(environment, "ray", RAY)
}

/// An S3-compatible store, and Kubernetes' schemas.
///
/// # Errors
/// If they cannot be had.
pub fn kubernetes(environment: &Environment) -> Result<Python> {
    python(environment, "kubernetes", KUBERNETES)
}

fn python(environment: &Environment, name: &str, packages: &[&str]) -> Result<Python> {
    let mut reasons = Vec::new();
    for candidate in pip::candidates(environment) {
        // A pip alone does not say whose it is.
        let [interpreter, _, _] = &*candidate else { continue };
        let version = "import sys; print('%d.%d' % sys.version_info[:2])";
        match output(Command::new(interpreter).args(["-c", version])) {
            Ok(version) => {
                return packages_for(environment, interpreter, version.trim(), name, packages, candidate.clone());
            }
            Err(error) => reasons.push(format!("{error:#}")),
        }
    }
    bail!("no Python was found ({}): install python3 with pip", reasons.join("; "))
}

/// A folder rather than a virtual environment: it can be moved to its place when it is whole, and Debian's Python has it
/// without another package.
fn packages_for(
    environment: &Environment,
    interpreter: &str,
    version: &str,
    name: &str,
    packages: &[&str],
    pip: Vec<String>,
) -> Result<Python> {
    let versions: Vec<_> = packages.iter().map(|package| package.rsplit("==").next().unwrap_or("")).collect();
    let entry = Entry::new(&environment.engines()?, &format!("python{version}-{name}-{}", versions.join("-")));
    let python = Python { interpreter: interpreter.to_owned(), packages: entry.path() };
    if entry.path().is_dir() {
        return Ok(python);
    }
    let lock = entry.lock(|| eprintln!("Waiting for another process that fetches {name}"))?;
    if !entry.path().is_dir() {
        let staging = lock.stage()?;
        let pip = Pip::find(&[pip], staging.path())?;
        eprintln!("Fetching {} with `{}` into {}", packages.join(", "), pip.name(), entry.path().display());
        let folder = staging.path().join("packages");
        pip.install(packages, &folder)?;
        lock.commit(&folder)?;
    }
    Ok(python)
}

/// Runs a command and gives what it wrote to standard output.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("starting {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "{name} ended with {}: {said}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
