//! Packages from a Python package index, through pip.

use std::{
    fs,
    io::{self, BufRead, BufReader, IsTerminal},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::HumanBytes;

use crate::environment::Environment;

/// The commands to try as pip, first to last.
pub(crate) fn candidates(environment: &Environment) -> Vec<Vec<String>> {
    // The interpreter of an active environment is called python.
    let pythons = if environment.is_set("VIRTUAL_ENV") { ["python", "python3"] } else { ["python3", "python"] };
    let mut pips: Vec<Vec<String>> = pythons.map(|python| [python, "-m", "pip"].map(String::from).to_vec()).to_vec();
    pips.extend(["pip3", "pip"].map(|pip| vec![pip.to_owned()]));
    pips
}

/// A pip that answers.
pub(crate) struct Pip {
    command: Vec<String>,
    scratch: PathBuf,
}

impl Pip {
    /// The first of the candidates that answers; its scratch files go to `work`.
    pub(crate) fn find(candidates: &[Vec<String>], work: &Path) -> Result<Self> {
        let scratch = work.join("scratch");
        fs::create_dir_all(&scratch).with_context(|| format!("making {}", scratch.display()))?;
        let mut reasons = Vec::new();
        for command in candidates {
            let pip = Self { command: command.clone(), scratch: scratch.clone() };
            match pip.command().arg("--version").output() {
                Ok(output) if output.status.success() => return Ok(pip),
                Ok(output) => reasons.push(format!("`{}`: {}", pip.name(), last_line(&output.stderr))),
                Err(error) => reasons.push(format!("`{}`: {error}", pip.name())),
            }
        }
        bail!("no pip was found ({})", reasons.join("; "))
    }

    pub(crate) fn name(&self) -> String {
        self.command.join(" ")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            // pip keeps half a gigabyte there while it loads; like this it goes when our folder goes.
            .env("TMPDIR", &self.scratch)
            .env("PIP_NO_INPUT", "1")
            .env("PIP_DISABLE_PIP_VERSION_CHECK", "1")
            // Its cache would keep a second copy of what we keep.
            .env("PIP_NO_CACHE_DIR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Downloads wheels, for this interpreter, or for Python 3.11 with the platform tags given.
    pub(crate) fn download(&self, packages: &[String], to: &Path, tags: &[String]) -> Result<()> {
        let mut command = self.command();
        command.args(["download", "--no-deps", "--only-binary=:all:", "--retries=3", "--dest"]).arg(to);
        if !tags.is_empty() {
            command.args(["--python-version=3.11", "--implementation=cp"]);
            command.args(tags.iter().map(|tag| format!("--platform={tag}")));
        }
        self.fetch(command.args(packages), "download", &packages.join(" "))
    }

    /// Puts packages, and what they need, into a folder for this interpreter.
    pub(crate) fn install(&self, packages: &[&str], to: &Path) -> Result<()> {
        let mut command = self.command();
        command.args(["install", "--only-binary=:all:", "--retries=3", "--target"]).arg(to).args(packages);
        // In a folder of its own it is nobody's business who we are.
        self.fetch(command.env("PIP_ROOT_USER_ACTION", "ignore"), "install", &packages.join(" "))
    }

    fn fetch(&self, command: &mut Command, action: &str, packages: &str) -> Result<()> {
        let watched = if io::stderr().is_terminal() {
            // Its own bar; our standard output is for --print.
            command.stdout(io::stderr());
            None
        } else {
            command.stdout(Stdio::null());
            Some(&*self.scratch)
        };
        let (status, errors) = run(command, watched).with_context(|| format!("running `{}`", self.name()))?;
        if !status.success() {
            let lines: Vec<_> = errors.lines().filter(|line| line.starts_with("ERROR")).collect();
            let said = if lines.is_empty() { last_line(errors.as_bytes()) } else { lines.join("; ") };
            bail!("`{} {action} {packages}` failed with {status}: {said}", self.name());
        }
        Ok(())
    }
}

/// Runs a command, keeping what it writes to standard error, and says every 15 s how much is in `watched`.
fn run(command: &mut Command, watched: Option<&Path>) -> io::Result<(ExitStatus, String)> {
    let mut child = command.stderr(Stdio::piped()).spawn()?;
    let stderr = child.stderr.take();
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let lines =
                stderr.map(BufReader::new).into_iter().flat_map(|stderr| stderr.split(b'\n').map_while(io::Result::ok));
            lines.map(|line| String::from_utf8_lossy(&line).into_owned() + "\n").collect::<String>()
        });
        let mut said = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            thread::sleep(Duration::from_millis(50));
            if let Some(folder) = watched.filter(|_| said.elapsed() > Duration::from_secs(15)) {
                eprintln!("  {} so far", HumanBytes(size(folder)));
                said = Instant::now();
            }
        };
        Ok((status, reader.join().unwrap_or_default()))
    })
}

/// The bytes of all files below `folder`, as far as they can be seen.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

fn last_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message").to_owned()
}
