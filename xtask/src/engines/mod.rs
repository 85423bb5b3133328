//! `cargo xtask engines`: the recipes of `engines/` run for real, with workers killed at random.
//!
//! Slurm, Ray, an object store and the program run on this machine in namespaces of their own (util-linux's `unshare`): of
//! processes, so that none of them outlives the command, whatever happens to it; of the network, which is a loopback and
//! nothing else, so that nothing is reachable from outside and no port is taken; and of mounts, with a file system in memory
//! at `/dev/shm` for all that is written, which is gone with the last process. What is installed for them goes to the
//! cache; the system is left as it is.
//!
//! | module | owns |
//! |---|---|
//! | [`tools`] | Debian packages and Python packages in the cache |
//! | `trial` | the corpus, the uninterrupted run, kills, comparing, the line a check |
//! | `process` | who runs, children that end |
//! | `bare`, `slurm`, `ray`, `kubernetes` | an engine each: its services, its recipe, whom to kill |

mod bare;
mod kubernetes;
mod process;
mod ray;
mod slurm;
pub mod tools;
mod trial;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use rustix::process::{getgid, getuid};

use crate::environment::Environment;
use trial::Trial;

/// The flags of `cargo xtask engines`.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Which [default: all]
    #[arg(value_enum)]
    engines: Vec<Engine>,
    /// A built `activations` to run [default: one that Cargo builds, optimised]
    #[arg(long, value_name = "FILE")]
    pub program: Option<PathBuf>,
    /// How many processes of each engine are killed
    #[arg(long, value_name = "N", default_value_t = 34)]
    kills: u32,
    /// Of the moments and of the choice among those that run
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// We are in the namespaces already
    #[arg(long, hide = true)]
    pub inside: bool,
}

/// What starts the pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// Plain processes, started again when they were killed
    Processes,
    /// engines/slurm on four nodes
    Slurm,
    /// engines/ray on two processors
    Ray,
    /// engines/kubernetes: the manifests against the schema, their pods as processes, an object store
    Kubernetes,
}

impl Options {
    fn engines(&self) -> Vec<Engine> {
        if self.engines.is_empty() { Engine::value_variants().to_vec() } else { self.engines.clone() }
    }
}

/// Installs what is missing, then runs everything inside.
///
/// # Errors
/// If something cannot be installed, or a check failed.
pub fn run(environment: &Environment, options: &Options, program: &Path) -> Result<()> {
    ensure!(environment.platform.os == "linux", "the engines run on Linux only, in its namespaces");
    // Before the network is left behind.
    for engine in options.engines() {
        match engine {
            Engine::Processes => {}
            Engine::Slurm => drop(tools::slurm(environment)?),
            Engine::Ray => drop(tools::ray(environment)?),
            Engine::Kubernetes => drop(tools::kubernetes(environment)?),
        }
    }
    let own = std::env::current_exe().context("the path of this program")?;
    let mut arguments: Vec<OsString> = vec!["engines".into(), "--inside".into(), "--program".into(), program.into()];
    arguments.extend(["--kills".into(), options.kills.to_string().into()]);
    arguments.extend(["--seed".into(), options.seed.to_string().into()]);
    for engine in options.engines() {
        let name = engine.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        arguments.push(name.into());
    }
    let status = unshared(environment)?.arg(own).args(arguments).status().context("starting setpriv")?;
    ensure!(status.success(), "not all checks passed");
    Ok(())
}

/// A command that runs what is added to it in namespaces of their own.
fn unshared(environment: &Environment) -> Result<Command> {
    // PID 1 is a shell, which waits for orphans, and ends with the status of what it ran. It brings the loopback up, with an
    // address more: a network that has none but 127.0.0.1 has no addresses to the C library, and Slurm finds nowhere to listen.
    const FIRST: &str = "ip link set lo up && ip address add 127.0.0.2/8 dev lo && mount -t tmpfs tmpfs /dev/shm";
    let path = tools::path(environment, &tools::ip(environment)?);
    // Whoever ends us, for one at the keyboard, ends it all; unshare alone would let what is inside go on. A session inside,
    // since a group of processes that was made outside has the number 0 there, and who kills that kills everybody.
    let outer = ["--pdeathsig=KILL", "unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"];
    // Who is not root becomes root of a namespace of users, which may make the others, and then itself again: Slurm's
    // daemons take root for one who may become any user.
    let itself = format!("unshare --user --map-user={} --map-group={} --", getuid(), getgid());
    let mut reasons = Vec::new();
    for (user, again) in [(&[][..], ""), (&["--user", "--map-root-user"], &*itself)] {
        let command = || {
            let mut command = Command::new("setpriv");
            command.args(outer).args(user).args(["--", "setsid", "bash", "-c"]).env("PATH", &path);
            command.arg(format!("{FIRST} && {again} \"$@\"; exit $?")).arg("bash");
            command
        };
        match command().arg("true").stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => return Ok(command()),
            Ok(output) => reasons.push(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => bail!("no `setpriv` ({error}); install util-linux"),
        }
    }
    bail!(
        "this user may not make namespaces ({}). Run the command as root, or allow user namespaces \
         (sysctl kernel.unprivileged_userns_clone=1; in a container: --privileged)",
        reasons.join("; ")
    )
}

/// Runs the checks, a line each. We are in the namespaces.
///
/// # Errors
/// If a check failed.
pub fn run_inside(environment: &Environment, options: &Options) -> Result<()> {
    let program = options.program.as_deref().context("--program is missing")?;
    let mut trial = Trial::new(environment, program, options.kills, options.seed)?;
    for engine in options.engines() {
        let result = match engine {
            Engine::Processes => bare::run(&mut trial),
            Engine::Slurm => slurm::run(&mut trial, &tools::slurm(environment)?),
            Engine::Ray => ray::run(&mut trial, &tools::ray(environment)?),
            Engine::Kubernetes => kubernetes::run(&mut trial, &tools::kubernetes(environment)?),
        };
        trial.end(result);
    }
    trial.summary()
}
