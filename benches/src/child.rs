//! Running a program: how long it took, and the most memory it held.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::cgroup::Group;

/// A program with its arguments, and how a reader would type it.
#[derive(Debug, Clone)]
pub struct Call {
    program: PathBuf,
    arguments: Vec<OsString>,
    shown: String,
}

impl Call {
    /// The program at `program`, which a reader starts with `typed`.
    pub fn new(program: &Path, typed: &str) -> Self {
        Self { program: program.to_owned(), arguments: Vec::new(), shown: typed.to_owned() }
    }

    /// With one more argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        let argument = argument.as_ref();
        self.shown.push(' ');
        self.shown.push_str(&quoted(&argument.to_string_lossy()));
        self.arguments.push(argument.to_owned());
        self
    }

    /// With words that need no quoting, separated by spaces.
    pub fn args(self, words: &str) -> Self {
        words.split_whitespace().fold(self, |call, word| call.arg(word))
    }

    /// With the flag `--ids` and [`ids`], which a reader gets from `seq`.
    pub fn ids(mut self, tokens: usize) -> Self {
        self.arguments.extend(["--ids".into(), ids(tokens).into()]);
        self.shown.push_str(&format!(" --ids $(seq -s, {FIRST} {STEP} {})", FIRST + STEP * tokens.saturating_sub(1)));
        self
    }

    /// With what the reader need not see: temporary files.
    pub fn hidden(mut self, words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments.extend(words.into_iter().map(Into::into));
        self
    }

    /// With `place` where the argument `name` stood; a reader goes on seeing the name.
    pub fn replaced(mut self, name: &str, place: impl AsRef<OsStr>) -> Self {
        for argument in self.arguments.iter_mut().filter(|argument| **argument == *name) {
            *argument = place.as_ref().to_owned();
        }
        self
    }

    /// How a reader would type it.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Runs it.
    ///
    /// # Errors
    /// If it cannot be started or fails; what it wrote last is in the message.
    pub fn run(&self) -> Result<Outcome> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        self.watch(&mut command)
    }

    /// Runs it in `group`, all of it: the group is entered before the program is started.
    ///
    /// # Errors
    /// As [`Call::run`].
    pub fn run_in(&self, group: &Group) -> Result<Outcome> {
        // Through ourselves: a program cannot be put into a group before it runs without unsafe code.
        let this = std::env::current_exe().context("finding this program")?;
        let mut command = Command::new(this);
        command.arg("confined").arg(group.path()).arg("--").arg(&self.program).args(&self.arguments);
        self.watch(&mut command)
    }

    fn watch(&self, command: &mut Command) -> Result<Outcome> {
        let context = || format!("`{}`", self.shown);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Peers must not ask the network about a folder on this disk.
        command.env("HF_HUB_OFFLINE", "1");
        let start = Instant::now();
        let child = command.spawn().with_context(context)?;
        let status = PathBuf::from(format!("/proc/{}/status", child.id()));
        let running = AtomicBool::new(true);
        let (output, seconds, peak) = thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut peak = Peak::default();
                while running.load(Ordering::Relaxed) {
                    peak.see(&std::fs::read_to_string(&status).unwrap_or_default());
                    thread::sleep(Duration::from_millis(5));
                }
                peak
            });
            let output = child.wait_with_output();
            let seconds = start.elapsed().as_secs_f64();
            running.store(false, Ordering::Relaxed);
            (output, seconds, watcher.join().unwrap_or_default())
        });
        let output = output.with_context(context)?;
        let said = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = said.lines().rev().take(4).collect();
        let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
        ensure!(output.status.success(), "`{}` ended with {}\n{last}", self.shown, output.status);
        Ok(Outcome { seconds, stdout: String::from_utf8_lossy(&output.stdout).into_owned(), peak })
    }
}

/// How a run of a program ended.
#[derive(Debug)]
pub struct Outcome {
    /// From start to end.
    pub seconds: f64,
    /// What it printed.
    pub stdout: String,
    /// The most memory it held.
    pub peak: Peak,
}

impl Outcome {
    /// The last line that it printed, as JSON.
    ///
    /// # Errors
    /// If that is none.
    pub fn json(&self) -> Result<Value> {
        let line = self.stdout.lines().next_back().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("expected a line of JSON, found {line:?}"))
    }
}

/// The most memory a process held, in MiB; `None` where the system does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Peak {
    /// All of it, mapped file pages included, as the system keeps it.
    pub resident: Option<f64>,
    /// What is no file's, at the highest moment that was looked at.
    pub private: Option<f64>,
}

impl Peak {
    /// Takes in one look at `/proc/PID/status`.
    fn see(&mut self, status: &str) {
        self.resident = most(self.resident, status_mib(status, "VmHWM"));
        self.private = most(self.private, status_mib(status, "RssAnon"));
    }

    /// The larger of each.
    pub fn max(self, other: Self) -> Self {
        Self { resident: most(self.resident, other.resident), private: most(self.private, other.private) }
    }
}

fn most(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}

/// A size in a text such as `/proc/PID/status`, in MiB.
pub fn status_mib(text: &str, field: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes / 1024.0)
}

const FIRST: usize = 1000;
const STEP: usize = 23;

/// Token ids for a prompt, separated by commas. 2048 of them stay below 50257, the vocabulary of every size.
pub fn ids(tokens: usize) -> String {
    (0..tokens).map(|index| (FIRST + STEP * index).to_string()).collect::<Vec<_>>().join(",")
}

/// An argument as a shell would take it, near enough to be copied.
pub fn quoted(argument: &str) -> String {
    if argument.is_empty() || argument.contains(char::is_whitespace) {
        format!("\"{argument}\"")
    } else {
        argument.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_shows_what_it_runs() {
        let call = Call::new(Path::new("/target/release/examples/load"), "cargo run --release --example load --")
            .args("--model a/gpt2")
            .arg("two words")
            .ids(3)
            .args("--out a.png")
            .replaced("a.png", "/tmp/a.png")
            .hidden(["--json", "/tmp/report"]);
        let shown = "cargo run --release --example load -- --model a/gpt2 \"two words\" --ids $(seq -s, 1000 23 1046) --out a.png";
        assert_eq!(call.shown(), shown);
        let arguments = [
            "--model",
            "a/gpt2",
            "two words",
            "--ids",
            "1000,1023,1046",
            "--out",
            "/tmp/a.png",
            "--json",
            "/tmp/report",
        ];
        assert_eq!(call.arguments, arguments);
    }

    #[test]
    fn the_longest_prompt_stays_within_the_vocabulary() {
        let last = ids(2048).rsplit(',').next().unwrap().parse::<usize>().unwrap();
        assert!(last < 50257, "{last}");
    }

    #[test]
    fn peaks_are_read_from_the_status() {
        let mut peak = Peak::default();
        peak.see("VmPeak:\t 9 kB\nVmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\nRssAnon:\t 1024 kB\n");
        peak.see("VmHWM:\t  3072 kB\nRssAnon:\t 512 kB\n");
        // A process that has ended still has a status, without sizes.
        peak.see("State:\tZ (zombie)\n");
        assert_eq!(peak, Peak { resident: Some(3.0), private: Some(1.0) });
        assert_eq!(status_mib("VmRSS: many kB", "VmRSS"), None);
    }

    #[test]
    fn a_program_that_fails_is_named_with_its_last_words() {
        let call = Call::new(Path::new("sh"), "sh").arg("-c").hidden(["echo one; echo lost >&2; exit 3"]);
        let text = format!("{:#}", call.run().unwrap_err());
        assert!(text.contains("sh -c") && text.contains("lost"), "{text}");
    }

    #[test]
    fn the_last_line_is_the_report() {
        let call = Call::new(Path::new("sh"), "sh").arg("-c").hidden(["echo loading; echo '{\"seconds\": [1.5]}'"]);
        assert_eq!(call.run().unwrap().json().unwrap()["seconds"][0], 1.5);
    }
}
