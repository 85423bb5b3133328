//! `engines/slurm` on a cluster of four nodes: a controller and four daemons of Debian's packages, on the loopback.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::getuid;

use super::{
    process::{Process, Service, logged},
    tools::{self, Debian, output},
    trial::{PIECES, QUIET, RETRIES, Trial, contents, end, runs},
};

const NODES: usize = 4;

pub(super) fn run(trial: &mut Trial, packages: &Debian) -> Result<&'static str> {
    let mut cluster = Cluster::start(trial, packages)?;
    trial.line("slurm: four nodes are idle", Ok(cluster.version()?));
    trial.rounds("slurm", |trial, number, most| {
        let out = trial.place(&format!("slurm-{number}"));
        let recipe = Recipe::new(trial, &out);
        cluster.submit(&recipe)?;
        let program = runs(&trial.program);
        // Slurm calls a task's script so, wherever it lies.
        let script = |process: &Process| process.arguments.iter().any(|argument| argument.ends_with("/slurm_script"));
        let victims = |process: &Process| program(process) || script(process);
        // In the first round a whole machine goes, too.
        let mut lost = number > 0;
        let kills = trial.strike(most, &victims, &mut || {
            if !lost && cluster.lose_a_node()? {
                lost = true;
            }
            if !cluster.is_idle()? {
                return Ok(false);
            }
            // Nobody comes after the last job: where its script was killed, its user gives the command again.
            let done = out.join("manifest.json").exists();
            if !done {
                cluster.submit(&recipe)?;
            }
            Ok(done)
        })?;
        ensure!(lost, "no node was busy");
        let found = contents(&out).with_context(|| end(&trial.logs().join("slurm")))?;
        fs::remove_dir_all(&out)?;
        Ok((kills, found))
    });
    cluster.stop();
    Ok("slurm")
}

/// The recipe's command.
struct Recipe {
    script: PathBuf,
    arguments: Vec<OsString>,
    program: PathBuf,
}

impl Recipe {
    fn new(trial: &Trial, out: &Path) -> Self {
        let mut arguments = vec![PIECES.to_string().into(), out.into()];
        arguments.extend(trial.arguments());
        Self { script: trial.recipe("slurm/submit.sh"), arguments, program: trial.program.clone() }
    }
}

/// What runs.
struct Cluster {
    /// `PATH`, libraries and the configuration.
    variables: Vec<(&'static str, OsString)>,
    folder: PathBuf,
    logs: PathBuf,
    daemon: PathBuf,
    step: PathBuf,
    nodes: Vec<Service>,
    controller: Service,
    munge: Service,
    asked: Instant,
}

impl Cluster {
    fn start(trial: &Trial, packages: &Debian) -> Result<Self> {
        let programs = ["usr/sbin", "usr/bin"];
        let find = |name: &str| packages.find(&programs, &[&format!("{name}-wlm"), name]);
        let libraries = packages.libraries(&trial.environment.platform.arch);
        let folder = trial.place("cluster");
        for name in ["munge", "state"].map(String::from).into_iter().chain((0..NODES).map(|node| format!("node{node}")))
        {
            let path = folder.join(name);
            fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        }
        let plugins = [
            &libraries,
            Path::new("/usr/lib").join(format!("{}-linux-gnu", trial.environment.platform.arch)).as_path(),
        ]
        .map(|folder| folder.join("slurm-wlm"));
        let plugins =
            plugins.iter().find(|folder| folder.is_dir()).context("Slurm's plugins are not in its packages")?;
        fs::write(folder.join("slurm.conf"), configuration(&folder, plugins))?;
        // Nothing asks it for anything here, but a daemon does not start without. The first version mounts nothing.
        fs::write(folder.join("cgroup.conf"), "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")?;
        let key = folder.join("munge/key");
        // Whom it keeps out is not on this network.
        fs::write(&key, [7; 64])?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o400))?;
        fs::set_permissions(folder.join("munge"), fs::Permissions::from_mode(0o755))?;

        let mut library_path = OsString::from(&libraries);
        library_path.push(":");
        library_path.push(plugins);
        let variables = vec![
            ("PATH", tools::path(trial.environment, &Some(packages.clone()))),
            ("LD_LIBRARY_PATH", library_path),
            ("SLURM_CONF", folder.join("slurm.conf").into()),
        ];
        let logs = trial.logs();
        let socket = folder.join("munge/socket");
        let mut command = Command::new(find("munged")?);
        command.args(["--foreground", "--force"]).envs(variables.clone());
        for (flag, file) in
            [("key-file", "key"), ("socket", "socket"), ("pid-file", "id"), ("seed-file", "seed"), ("log-file", "log")]
        {
            let mut argument = OsString::from(format!("--{flag}="));
            argument.push(folder.join("munge").join(file));
            command.arg(argument);
        }
        let mut munge = Service::start("munged", &mut command, &logs)?;
        munge.wait_for(|| socket.exists())?;
        let mut command = Command::new(find("slurmctld")?);
        let controller = Service::start("slurmctld", command.args(["-D", "-i"]).envs(variables.clone()), &logs)?;
        let mut cluster = Self {
            variables,
            folder,
            logs,
            daemon: find("slurmd")?,
            step: find("slurmstepd")?,
            nodes: Vec::new(),
            controller,
            munge,
            asked: Instant::now(),
        };
        for node in 0..NODES {
            let service = cluster.node(node)?;
            cluster.nodes.push(service);
        }
        cluster.wait_for_nodes()?;
        Ok(cluster)
    }

    fn node(&self, node: usize) -> Result<Service> {
        let name = format!("node{node}");
        let mut command = Command::new(&self.daemon);
        command.args(["-D", "-N", &name, "-d"]).arg(&self.step).envs(self.variables.clone());
        Service::start(&format!("slurmd-{name}"), &mut command, &self.logs)
    }

    /// A command of Slurm's, and what it says.
    fn ask(&self, arguments: &[&str]) -> Result<String> {
        output(Command::new(arguments[0]).args(&arguments[1..]).envs(self.variables.clone()))
    }

    fn version(&self) -> Result<String> {
        Ok(self.ask(&["sinfo", "--version"])?.trim().to_owned())
    }

    fn wait_for_nodes(&self) -> Result<()> {
        let began = Instant::now();
        while self.ask(&["sinfo", "--noheader", "--states=idle", "--Format=nodes"]).unwrap_or_default().trim()
            != NODES.to_string()
        {
            ensure!(
                began.elapsed() < Duration::from_secs(60),
                "the nodes are not idle: {}",
                end(&self.logs.join("slurmctld"))
            );
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// The recipe, as its user calls it.
    fn submit(&mut self, recipe: &Recipe) -> Result<()> {
        let mut command = Command::new(&recipe.script);
        command.args(&recipe.arguments).current_dir(&self.folder);
        command.envs(self.variables.clone()).envs(QUIET).env("ACTIVATIONS", &recipe.program);
        // In minutes: a task that hangs is ended by Slurm, as anywhere.
        command.env("SBATCH_TIMELIMIT", "2").env("RETRIES", RETRIES.to_string()).env("ROUNDS", RETRIES.to_string());
        let log = self.logs.join("slurm");
        let status = logged(&mut command, &log)?.status().context("starting submit.sh")?;
        ensure!(status.success(), "submit.sh ended with {status}: {}", end(&log));
        Ok(())
    }

    /// Whether nothing runs or waits. Asks only now and then: it is asked all the time.
    fn is_idle(&mut self) -> Result<bool> {
        if self.asked.elapsed() < Duration::from_millis(500) {
            return Ok(false);
        }
        self.asked = Instant::now();
        Ok(self.ask(&["squeue", "--noheader"])?.trim().is_empty())
    }

    /// Kills the daemon of a node and all that it runs, waits until the controller has noticed, and brings it back. False if
    /// no node runs anything.
    fn lose_a_node(&mut self) -> Result<bool> {
        let script = Process::all().into_iter().find(|process| {
            process.arguments.iter().any(|argument| argument.ends_with("/slurm_script"))
                && process.variable("SLURM_ARRAY_TASK_ID").is_some()
        });
        let Some((name, script)) = script.and_then(|script| Some((script.variable("SLURMD_NODENAME")?, script))) else {
            return Ok(false);
        };
        let node: usize = name.trim_start_matches("node").parse().context("the name of a node")?;
        let daemon = self.nodes.get(node).context("the number of a node")?.id();
        // The daemon first, then who would tell the controller, then the task.
        let family = script.with_descendants();
        for process in Process::all().iter().filter(|process| process.id == daemon || process.id == script.parent) {
            process.kill();
        }
        for process in family {
            process.kill();
        }
        let began = Instant::now();
        while !self.ask(&["sinfo", "--noheader", "--nodes", &name, "--Format=statecompact"])?.contains("down") {
            ensure!(began.elapsed() < Duration::from_secs(180), "the controller does not miss {name}");
            thread::sleep(Duration::from_millis(200));
        }
        // What comes back is another machine, with an empty disk. A daemon that finds the task's old folder cannot start the
        // task, and Slurm then holds it until somebody releases it.
        let spool = self.folder.join(&name);
        fs::remove_dir_all(&spool).and_then(|()| fs::create_dir(&spool)).context("a new node's folder")?;
        self.nodes[node] = self.node(node)?;
        Ok(true)
    }

    fn stop(&mut self) {
        // All daemons that still listen, in the right order.
        let _ = self.ask(&["scontrol", "shutdown"]);
        for service in self.nodes.iter_mut().chain([&mut self.controller, &mut self.munge]) {
            service.stop();
        }
    }
}

/// A cluster on the loopback: the nodes are four daemons, each with ports and a folder of its own.
fn configuration(folder: &Path, plugins: &Path) -> String {
    let (folder, plugins) = (folder.display(), plugins.display());
    let last = NODES - 1;
    let user = getuid();
    format!(
        "\
ClusterName=loopback
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=6817
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# How long a credential lives is also how long a task waits that is queued again: 120 s if nobody says.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
PluginDir={plugins}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=5
KillWait=1
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# What a node has is what it says, not what this machine has.
SlurmdParameters=config_overrides
NodeName=node[0-{last}] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[6820-{}] CPUs=1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
",
        6820 + last
    )
}
