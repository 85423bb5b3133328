//! Who runs, and children that end.
//!
//! In a namespace of processes of our own, `/proc` shows what we have started and nothing else.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// A process of the namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub id: i32,
    /// The number of its parent.
    pub parent: i32,
    /// Its command line.
    pub arguments: Vec<String>,
}

impl Process {
    /// All that run: no zombies.
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| Self::read(entry.file_name().to_str()?.parse().ok()?)).collect()
    }

    fn read(id: i32) -> Option<Self> {
        // "12 (a name) S 1 ...", where a name may have anything in it.
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let (state, parent) = (fields.next()?, fields.next()?.parse().ok()?);
        let line = fs::read(format!("/proc/{id}/cmdline")).ok()?;
        let arguments = String::from_utf8_lossy(&line).trim_end_matches('\0').split('\0').map(String::from).collect();
        (state != "Z" && state != "X").then_some(Self { id, parent, arguments })
    }

    /// A variable of its environment, as it was started.
    pub fn variable(&self, name: &str) -> Option<String> {
        let block = fs::read(format!("/proc/{}/environ", self.id)).ok()?;
        let block = String::from_utf8_lossy(&block);
        let found = block.split('\0').find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='));
        found.map(String::from)
    }

    /// Kills it. False if it had ended by itself.
    pub fn kill(&self) -> bool {
        Pid::from_raw(self.id).is_some_and(|id| kill_process(id, Signal::KILL).is_ok())
    }

    /// Itself and all that it has started.
    pub fn with_descendants(&self) -> Vec<Self> {
        let all = Self::all();
        let mut family = vec![self.clone()];
        let mut next = 0;
        while next < family.len() {
            let id = family[next].id;
            family.extend(all.iter().filter(|process| process.parent == id).cloned());
            next += 1;
        }
        family
    }
}

/// What runs besides this program and the first of the namespace, after `patience`.
pub fn left_over(patience: Duration) -> Vec<Process> {
    let own = std::process::id() as i32;
    let began = Instant::now();
    loop {
        let mut left = Process::all();
        left.retain(|process| process.id != 1 && process.id != own);
        if left.is_empty() || began.elapsed() > patience {
            return left;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// A service of an engine: what it says goes to a file, and it ends with this value.
pub struct Service {
    name: String,
    child: Child,
}

impl Service {
    /// Starts it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(name: &str, command: &mut Command, logs: &Path) -> Result<Self> {
        // In a group of its own: a daemon may signal its whole group. And in a folder that goes with us, for what it leaves when it
        // crashes.
        let command = logged(command, &logs.join(name))?.process_group(0).current_dir(logs);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), child })
    }

    /// Its number.
    pub fn id(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits until `ready`, for half a minute.
    ///
    /// # Errors
    /// If it ends before, or is not ready then.
    pub fn wait_for(&mut self, ready: impl Fn() -> bool) -> Result<()> {
        let began = Instant::now();
        while !ready() {
            if let Some(status) = self.child.try_wait().context("waiting")? {
                bail!("{} ended with {status}", self.name);
            }
            ensure!(began.elapsed() < Duration::from_secs(30), "{} was not ready after 30 s", self.name);
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Asks it to end, and makes it end after ten seconds.
    pub fn stop(&mut self) {
        if let Some(id) = Pid::from_raw(self.id()) {
            let _ = kill_process(id, Signal::TERM);
        }
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(10) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
    }
}

/// The command with all that it says in a file, after what is there.
///
/// # Errors
/// If the file cannot be opened.
pub fn logged<'a>(command: &'a mut Command, path: &Path) -> Result<&'a mut Command> {
    let open = || File::options().create(true).append(true).open(path);
    let context = || format!("opening {}", path.display());
    Ok(command.stdin(Stdio::null()).stdout(open().with_context(context)?).stderr(open().with_context(context)?))
}
