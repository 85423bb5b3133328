//! Which libtorch is used, and how it comes to be there.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    cache::Entry,
    environment::Environment,
    folder::{Folder, REQUIRED},
    link::{self, Linked, Pointed},
    routes::{self, Archive, Flavour, Route, Wheel},
};

/// Where an installation may come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum From {
    /// What the environment names, what is linked, what is cached, then the archive, then pip.
    #[default]
    Auto,
    /// The cache or the official archive.
    Archive,
    /// The cache or the wheel through pip.
    Pip,
    /// A folder of the user's, which is linked as it is.
    Folder(PathBuf),
}

impl std::str::FromStr for From {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "archive" => Self::Archive,
            "pip" => Self::Pip,
            folder => Self::Folder(folder.into()),
        })
    }
}

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Where from.
    pub from: From,
    /// Which build; `None` takes the one that is linked, and the CPU build where nothing is.
    pub flavour: Option<Flavour>,
    /// Install again what is installed.
    pub force: bool,
}

impl Request {
    fn routes(&self, environment: &Environment) -> Vec<Box<dyn Route>> {
        let flavour = self.flavour.unwrap_or_default();
        let archive = || -> Box<dyn Route> { Box::new(Archive::new(environment, flavour)) };
        let pip = || -> Box<dyn Route> { Box::new(Wheel::new(environment)) };
        match self.from {
            From::Archive => vec![archive()],
            From::Pip => vec![pip()],
            // The wheel's CUDA half needs three gigabytes of other wheels: that is what LIBTORCH_USE_PYTORCH is for.
            _ if flavour != Flavour::Cpu => vec![archive()],
            _ => vec![archive(), pip()],
        }
    }
}

/// The libtorch that Cargo will use.
#[derive(Debug)]
pub struct Provided {
    /// The folder itself, not the link to it.
    pub folder: Folder,
    /// Why it is this one: `LIBTORCH`, `.libtorch`, ...
    pub because: &'static str,
    /// What happened to the link, where it is used.
    pub pointed: Pointed,
}

/// Finds or installs the libtorch of `request`, and points the workspace at it.
///
/// # Errors
/// One message that says what was tried, why each failed, and what can be done.
pub fn provide(environment: &Environment, request: &Request) -> Result<Provided> {
    provide_from(environment, request, &request.routes(environment))
}

/// [`provide`], with the routes given.
///
/// # Errors
/// The same.
pub fn provide_from(environment: &Environment, request: &Request, routes: &[Box<dyn Route>]) -> Result<Provided> {
    let auto = request.from == From::Auto && request.flavour.is_none() && !request.force;
    let named = [
        ("LIBTORCH_USE_PYTORCH", environment.is_set("LIBTORCH_USE_PYTORCH")),
        ("LIBTORCH", environment.user_libtorch().is_some()),
    ];
    if let Some((name, _)) = named.iter().find(|(_, set)| *set) {
        if auto {
            return from_variable(environment);
        }
        eprintln!("note: {name} is set and wins over .libtorch whenever Cargo runs; unset it to use what this sets up");
    }
    let mut tried = Vec::new();
    match link::look(environment) {
        Linked::Own(Ok(folder)) if auto => {
            return Ok(Provided { folder, because: "the folder .libtorch", pointed: Pointed::Unchanged });
        }
        // Never replaced: somebody put it there.
        Linked::Own(own) => {
            let reason = own.err().map(|error| format!(" ({error:#})")).unwrap_or_default();
            bail!("{} is a folder, not a link{reason}: move it away first", environment.link().display());
        }
        Linked::Link(_, Ok(folder)) if auto => {
            return Ok(Provided { folder, because: "the link .libtorch", pointed: Pointed::Unchanged });
        }
        Linked::Link(_, Err(error)) if auto => tried.push(format!("the link .libtorch: {error:#}")),
        Linked::Link(..) | Linked::Nothing => {}
    }
    let (folder, because) = match &request.from {
        From::Folder(path) => {
            let path = std::path::absolute(path).with_context(|| format!("--from {}", path.display()))?;
            (Folder::inspect(&path, &environment.platform)?.require()?, "--from")
        }
        _ => from_cache(environment, request, routes, tried)?,
    };
    let pointed = link::point(environment, &folder)?;
    Ok(Provided { folder, because, pointed })
}

fn from_cache(
    environment: &Environment,
    request: &Request,
    routes: &[Box<dyn Route>],
    mut tried: Vec<String>,
) -> Result<(Folder, &'static str)> {
    let flavour = request.flavour.unwrap_or_default();
    let platform = &environment.platform;
    let entry = Entry::new(&environment.cache()?, &format!("{REQUIRED}-{flavour}"));
    let found = |because| move |folder: Option<Folder>| folder.map(|folder| (folder, because));
    if !request.force
        && let Ok(Some(cached)) = entry.installed(platform).map(found("the cache"))
    {
        return Ok(cached);
    }
    let lock = entry.lock(|| eprintln!("Another cargo xtask is installing libtorch; waiting for it"));
    let lock = match lock {
        Ok(lock) => lock,
        Err(error) => bail!(failure(environment, flavour, &entry.path(), &[format!("the cache: {error:#}")])),
    };
    if !request.force {
        // Whoever had the lock may have installed it.
        match entry.installed(platform).map(found("the cache")) {
            Ok(Some(cached)) => return Ok(cached),
            Ok(None) => {}
            Err(error) => tried.push(format!("the cache: {error:#}")),
        }
    }
    for route in routes {
        match install(environment, route.as_ref(), &lock) {
            Ok(folder) => return Ok((folder, "just installed")),
            Err(error) => {
                eprintln!("{} failed: {error:#}", route.name());
                tried.push(format!("{}: {error:#}", route.name()));
            }
        }
    }
    bail!(failure(environment, flavour, &entry.path(), &tried))
}

/// One route, from an empty folder to the checked installation.
fn install(environment: &Environment, route: &dyn Route, lock: &crate::cache::Lock<'_>) -> Result<Folder> {
    let stage = lock.stage()?;
    let (to, work) = (stage.path().join("libtorch"), stage.path().join("work"));
    for folder in [&to, &work] {
        std::fs::create_dir(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    route.install(&to, &work)?;
    // Before it can be seen, so that nothing unchecked is ever in the cache.
    Folder::inspect(&to, &environment.platform).and_then(Folder::require).context("what came is not usable")?;
    let path = lock.commit(&to)?;
    Folder::inspect(&path, &environment.platform)
}

/// The message when nothing is left to try.
fn failure(environment: &Environment, flavour: Flavour, entry: &Path, tried: &[String]) -> String {
    let mut text = format!("no libtorch {REQUIRED} ({flavour}) could be found or installed. Tried:\n");
    for attempt in tried {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  - {}", attempt.trim().replace('\n', "\n    "));
    }
    let archive = routes::archive_url(routes::OFFICIAL, &environment.platform, flavour)
        .map_or_else(|_| format!("a libtorch {REQUIRED}"), |url| format!("what is in {url}"));
    let _ = write!(
        text,
        "Ways out:\n  \
         1. set LIBTORCH to the absolute path of a libtorch {REQUIRED} that you have;\n  \
         2. set LIBTORCH_USE_PYTORCH=1, where python3 (python in a virtual environment) has torch {REQUIRED};\n  \
         3. put {archive} into {}, so that {} is there.",
        entry.display(),
        entry.join("lib").join(environment.platform.library("torch")).display(),
    );
    text
}

/// What the user's variables name. Nothing is installed for them, nor linked.
fn from_variable(environment: &Environment) -> Result<Provided> {
    let (folder, because) = if environment.is_set("LIBTORCH_USE_PYTORCH") {
        let because = "LIBTORCH_USE_PYTORCH";
        let folder = python_torch(environment)
            .and_then(|path| Folder::inspect(&path, &environment.platform))
            .with_context(|| format!("{because} is set, but its torch cannot be used"))?;
        (folder, because)
    } else {
        let because = "LIBTORCH";
        let path = environment.user_libtorch().context("LIBTORCH is not set")?;
        ensure!(
            path.is_absolute(),
            "LIBTORCH={} must be an absolute path: it is read in other folders than this one",
            path.display()
        );
        let part = |name: &str| environment.get(name).map_or(path, Path::new);
        let folder = Folder::inspect_parts(path, part("LIBTORCH_INCLUDE"), part("LIBTORCH_LIB"), &environment.platform)
            .with_context(|| format!("LIBTORCH={} cannot be used", path.display()))?;
        (folder, because)
    };
    let folder = match folder.clone().require() {
        Err(error) if environment.is_set("LIBTORCH_BYPASS_VERSION_CHECK") => {
            eprintln!("warning: {error}, and LIBTORCH_BYPASS_VERSION_CHECK lets it pass");
            folder
        }
        checked => checked.with_context(|| {
            format!("{because} names the wrong libtorch; unset it and `cargo xtask libtorch` gets the right one")
        })?,
    };
    Ok(Provided { folder, because, pointed: Pointed::Unchanged })
}

/// The folder of the `torch` package that torch-sys will use; imported as torch-sys does it, because its own message on
/// a package that cannot be imported says nothing.
fn python_torch(environment: &Environment) -> Result<PathBuf> {
    let python = if environment.is_set("VIRTUAL_ENV") { "python" } else { "python3" };
    let script = "import torch, os; from torch.utils import cpp_extension; print(os.path.dirname(torch.__file__))";
    let output = Command::new(python)
        .args(["-c", script])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {python}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{python} cannot import it: {}",
        errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message")
    );
    let out = String::from_utf8(output.stdout).context("the path of the torch package")?;
    Ok(out.lines().last().context("python printed no path")?.into())
}
