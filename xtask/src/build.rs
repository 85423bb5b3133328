//! Builds by Cargo: beside a download, and with the time that they still take.
//!
//! Cargo counts what it has built, which says little: one C++ file takes as long as a hundred small packages. Here
//! every package is counted by the time that it takes, known ahead for those that take long, and the time that has
//! passed says how fast this machine is. Only on a terminal; elsewhere Cargo's own lines are all that anyone wants.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, IsTerminal, Read},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::{environment::Environment, steps};

/// Packages and targets that take long, in seconds of one processor, as `cargo build --timings` says them. They need not be exact:
/// they are weighed against each other.
const SLOW: [(&str, f64); 32] = [
    ("arrow_select", 5.0),
    ("clap_builder", 3.0),
    ("fancy_regex", 6.0),
    ("harfrust", 2.5),
    ("jiff", 2.5),
    ("jsonschema", 9.0),
    ("lens", 4.0),
    ("lowmem", 3.5),
    ("minijinja", 5.0),
    ("models", 5.0),
    ("ndarray", 2.0),
    ("object_store", 8.0),
    ("parquet", 11.0),
    ("partial", 2.5),
    ("proptest", 6.0),
    ("read_fonts", 5.5),
    ("regex_automata", 3.0),
    ("rustix", 3.0),
    ("safetensors", 2.0),
    ("serde_json", 3.5),
    ("sha2", 2.0),
    ("skrifa", 2.0),
    ("syn", 7.0),
    ("tch", 4.0),
    ("tiny_skia", 2.0),
    ("tokenizers", 7.0),
    ("torch_sys", 42.0),
    ("transformer_utils", 1.5),
    ("usvg", 3.0),
    ("zerocopy", 4.0),
    ("zip", 2.0),
    ("zstd_sys", 8.0),
];

/// What every other one takes.
const USUAL: f64 = 0.4;
/// What every program or test of ours takes: most of it is linking.
const LINKED: f64 = 4.0;

/// What each waits for the one before, whatever number of processors there is.
const CHAIN: [&str; 7] = ["torch_sys", "tch", "lowmem", "models", "partial", "lens", "transformer_utils"];

/// What a build has left to do.
struct Work {
    /// By unit, the seconds that it takes.
    left: BTreeMap<String, f64>,
    /// By package that is being compiled, when that began, in seconds of the build.
    begun: BTreeMap<String, f64>,
    processors: f64,
    /// The seconds of all that was not there already.
    whole: f64,
}

impl Work {
    fn new(units: impl IntoIterator<Item = String>, processors: usize) -> Self {
        let slow = BTreeMap::from(SLOW);
        let seconds = |unit: &String| match slow.get(unit.as_str()) {
            Some(&seconds) => seconds,
            None if unit.contains(' ') => LINKED,
            None => USUAL,
        };
        let left: BTreeMap<_, _> = units.into_iter().map(|unit| (unit.clone(), seconds(&unit))).collect();
        let mut work = Self { left, begun: BTreeMap::new(), processors: processors.max(1) as f64, whole: 0.0 };
        work.whole = work.seconds(0.0);
        work
    }

    /// Seconds that the rest takes on the machine that [`SLOW`] is from, with as many processors as here, when the build has taken
    /// `passed` seconds.
    fn seconds(&self, passed: f64) -> f64 {
        // Of what is being compiled, as much is done as time has passed, but never all.
        let rest = |unit: &str, seconds: f64| {
            let done = self.begun.get(unit).map_or(0.0, |begun| (passed - begun).clamp(0.0, 0.9 * seconds));
            seconds - done
        };
        let all: f64 = self.left.iter().map(|(unit, seconds)| rest(unit, *seconds)).sum();
        let chain: f64 = CHAIN.iter().filter_map(|unit| Some(rest(unit, *self.left.get(*unit)?))).sum();
        (all / self.processors).max(chain)
    }

    /// The compiler was started for a package.
    fn begins(&mut self, package: String, passed: Duration) {
        self.begun.entry(package).or_insert(passed.as_secs_f64());
    }

    /// `unit` is there, and was `before` the build: then it says nothing of the machine's speed.
    fn built(&mut self, unit: &str, before: bool) {
        let seconds = self.seconds(0.0);
        self.left.remove(unit);
        if before {
            self.whole -= seconds - self.seconds(0.0);
        }
    }

    /// How much is done, 0 to 1.
    fn share(&self, passed: Duration) -> f64 {
        if self.whole > 0.0 { (1.0 - self.seconds(passed.as_secs_f64()) / self.whole).clamp(0.0, 1.0) } else { 1.0 }
    }

    /// What is left, when the build has taken `passed`.
    fn time(&self, passed: Duration) -> Duration {
        let passed = passed.as_secs_f64();
        let left = self.seconds(passed);
        // As if ten seconds had passed as foreseen: the first few packages are no measure.
        let pace = (passed + 10.0) / (self.whole - left + 10.0).max(1.0);
        Duration::from_secs_f64((pace * left).max(0.0))
    }
}

/// What a Cargo says.
enum Said {
    /// A unit is there, and whether it was before.
    Built(String, bool),
    /// A line for people.
    Line(String),
}

/// Listens to a Cargo that was started with [`MESSAGES`], until it closes its outputs.
fn listen(child: &mut Child) -> Receiver<Said> {
    let (sender, receiver) = mpsc::channel();
    if let Some(output) = child.stdout.take() {
        each_line(output, sender.clone(), |line| unit(&line).map(|(unit, before)| Said::Built(unit, before)));
    }
    if let Some(output) = child.stderr.take() {
        each_line(output, sender, |line| Some(Said::Line(line)));
    }
    receiver
}

fn each_line(
    from: impl Read + Send + 'static,
    to: Sender<Said>,
    said: impl Fn(String) -> Option<Said> + Send + 'static,
) {
    thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            // Where nobody listens any more, the lines are read all the same, so that Cargo can go on.
            let _ = said(line).map(|said| to.send(said));
        }
    });
}

/// The unit that one of Cargo's messages says is there, and whether it was before.
fn unit(line: &str) -> Option<(String, bool)> {
    let message: Value = serde_json::from_str(line).ok()?;
    (message["reason"] == "compiler-artifact").then_some(())?;
    let test = message["profile"]["test"].as_bool()?;
    Some((name(&message["target"], test)?, message["fresh"].as_bool()?))
}

/// The package that a line, with colours or without, says is being compiled.
fn begun(line: &str) -> Option<String> {
    let mut words = line.split_whitespace().skip_while(|word| !word.contains("Compiling"));
    words.nth(1).map(|package| package.replace('-', "_"))
}

/// What a unit is called here: a library as in Rust's paths, everything else with its kind, what has tests within with `test`.
/// Scripts that build are part of their package.
fn name(target: &Value, test: bool) -> Option<String> {
    let name = target["name"].as_str()?;
    Some(match target["kind"][0].as_str()? {
        "custom-build" => return None,
        "example" => format!("{name} example"),
        "test" => format!("{name} test"),
        kind if kind == "bin" || test => format!("{name} {kind}{}", if test { " test" } else { "" }),
        _ => name.replace('-', "_"),
    })
}

/// The units of a build with these arguments, as [`name`] calls them.
///
/// # Errors
/// If Cargo does not say.
fn units(environment: &Environment, build: &[String]) -> Result<Vec<String>> {
    let says = |arguments: &[&str]| -> Result<String> {
        let output =
            steps::cargo(environment).args(arguments).stdin(Stdio::null()).output().context("starting Cargo")?;
        ensure!(
            output.status.success(),
            "`cargo {}`: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    // Libraries by what depends on what, of which the flags that choose packages and features are enough.
    let mut arguments = vec!["tree", "--prefix", "none", "--format", "{lib}", "--edges", "normal,build,dev"];
    let (mut all, mut units) = (false, Vec::new());
    let mut flags = build.iter().map(String::as_str);
    while let Some(flag) = flags.next() {
        match flag {
            "--example" => units.extend(flags.next().map(|name| format!("{name} example"))),
            "--all-targets" => all = true,
            "--release" | "--no-run" => {}
            flag => arguments.push(flag),
        }
    }
    units.extend(says(&arguments)?.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned));
    if all {
        let metadata: Value = serde_json::from_str(&says(&["metadata", "--no-deps", "--format-version", "1"])?)?;
        let packages = metadata["packages"].as_array().into_iter().flatten();
        let targets =
            packages.filter(|package| package["name"] != "bench").filter_map(|package| package["targets"].as_array());
        units.extend(
            targets.flatten().flat_map(|target| [false, true].into_iter().filter_map(|test| name(target, test))),
        );
    }
    Ok(units)
}

/// What makes a Cargo say what it has built.
const MESSAGES: [&str; 2] = ["--message-format", "json-render-diagnostics"];

/// A build of everything that does not need libtorch, while libtorch is on its way. Ends with this value.
pub struct Meanwhile(Option<(Child, Receiver<Said>)>);

impl Meanwhile {
    /// Starts it, unless libtorch is there already.
    pub fn start(environment: &Environment, build: &[String]) -> Self {
        let there = environment.user_libtorch().is_some()
            || environment.get("LIBTORCH_USE_PYTORCH").is_some()
            || environment.link().join("lib").is_dir();
        if there {
            return Self(None);
        }
        // The package that links libtorch fails, even where libtorch has come before its turn, and what needs it is left for
        // later: for a build that shows how far it is.
        let mut command = steps::cargo(environment);
        command.args(["build", "--keep-going", "--quiet"]).args(MESSAGES).args(build);
        command.env("LIBTORCH", environment.workspace.join("no-libtorch-yet"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, so that compilers end with their Cargo.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Self(command.spawn().ok().map(|mut child| {
            let said = listen(&mut child);
            (child, said)
        }))
    }

    /// Whether there was a reason to start it.
    pub fn is_running(&self) -> bool {
        self.0.is_some()
    }

    /// Ends it, now that libtorch is there, once the package that links libtorch has had its turn: what that package waits for is
    /// compiled then. It takes longest of all, and what is ended half-way has to be done again. `progress` shows it.
    pub fn finish(self, progress: Option<&mut Progress>) {
        let Some((_, said)) = &self.0 else { return };
        let reached = |line: &str| line.contains("torch-sys");
        match progress {
            Some(progress) => progress.follow(said, |_| (), reached),
            None => {
                said.iter().find(|said| matches!(said, Said::Line(line) if reached(line)));
            }
        }
    }
}

impl Drop for Meanwhile {
    fn drop(&mut self) {
        let Some((child, _)) = &mut self.0 else { return };
        #[cfg(unix)]
        if let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) {
            // Gone already, if it was quicker.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::TERM);
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A build that is followed on the terminal.
pub struct Progress {
    work: Work,
    since: Instant,
    bar: ProgressBar,
}

impl Progress {
    /// For a build with these arguments that began at `since`. None where there is no terminal, or where Cargo cannot say what it
    /// will build.
    pub fn new(environment: &Environment, build: &[String], since: Instant) -> Option<Self> {
        std::io::stderr().is_terminal().then_some(())?;
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let work = Work::new(units(environment, build).ok()?, processors);
        let bar = ProgressBar::new(1000);
        if let Ok(style) = ProgressStyle::with_template("{msg:>22} [{bar:40}]") {
            bar.set_style(style.progress_chars("=> "));
        }
        Some(Self { work, since, bar })
    }

    /// Shows how far a build is, and gives its lines to `show`, until it ends or a line `is_last`.
    fn follow(&mut self, said: &Receiver<Said>, show: impl Fn(&str), is_last: impl Fn(&str) -> bool) {
        const PAUSE: Duration = Duration::from_millis(250);
        let mut shown = Instant::now();
        loop {
            let passed = self.since.elapsed();
            // Not at once: what was said before anybody listened comes first.
            if shown.elapsed() >= PAUSE {
                shown = Instant::now();
                self.bar.set_message(words(self.work.time(passed)));
                self.bar.set_position((self.work.share(passed) * 1000.0) as u64);
            }
            match said.recv_timeout(PAUSE) {
                Ok(Said::Built(unit, before)) => self.work.built(&unit, before),
                Ok(Said::Line(line)) if is_last(&line) => return,
                Ok(Said::Line(line)) => {
                    if let Some(package) = begun(&line) {
                        self.work.begins(package, passed);
                    }
                    show(&line);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Runs `command`, which builds and does nothing else, to its end.
    ///
    /// # Errors
    /// If it cannot be started or does not succeed.
    pub fn build(mut self, environment: &Environment, command: &mut Command) -> Result<()> {
        let shown = steps::shown(command);
        command.args(MESSAGES);
        // As on the terminal that Cargo no longer sees, unless somebody wants it otherwise.
        if environment.get("CARGO_TERM_COLOR").is_none() && environment.get("NO_COLOR").is_none() {
            command.env("CARGO_TERM_COLOR", "always");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting `{shown}`"))?;
        let said = listen(&mut child);
        let bar = self.bar.clone();
        self.follow(&said, |line| bar.println(line), |_| false);
        self.bar.finish_and_clear();
        let status = child.wait().with_context(|| format!("waiting for `{shown}`"))?;
        ensure!(status.success(), "`{shown}` ended with {status}");
        Ok(())
    }
}

/// What is left, as people say it.
fn words(left: Duration) -> String {
    match left.as_secs() {
        0..5 => "a moment left".to_owned(),
        seconds => format!("about {}:{:02} left", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::environment::Platform;

    fn environment(cargo: &Path, workspace: &Path) -> Environment {
        Environment {
            variables: [("CARGO".into(), cargo.into())].into(),
            workspace: workspace.to_owned(),
            cache_home: None,
            platform: Platform::host(),
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_needs_no_libtorch_is_compiled_until_it_is_there() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (cargo, started) = (folder.path().join("cargo"), folder.path().join("started"));
        // Writes down its arguments and its number, reaches the package that fails, and would work for a minute.
        let script = format!(
            "#!/bin/sh\necho $$ \"$@\" > {0}.part; mv {0}.part {0}\n\
            echo warning >&2; touch {0}.reached; echo 'error: failed to run `torch-sys v0.26.0`' >&2; sleep 60\n",
            started.display()
        );
        std::fs::write(&cargo, script).unwrap();
        std::fs::set_permissions(&cargo, std::fs::Permissions::from_mode(0o755)).unwrap();
        let environment = environment(&cargo, folder.path());

        let compiling = Meanwhile::start(&environment, &["--release".to_owned()]);
        assert!(compiling.is_running());
        let line = loop {
            if let Ok(line) = std::fs::read_to_string(&started) {
                break line;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        let (process, arguments) = line.trim().split_once(' ').unwrap();
        assert_eq!(arguments, "build --keep-going --quiet --message-format json-render-diagnostics --release");
        compiling.finish(None);
        assert!(folder.path().join("started.reached").is_file(), "it was not waited for");
        let process = rustix::process::Pid::from_raw(process.parse().unwrap()).unwrap();
        assert!(rustix::process::test_kill_process(process).is_err(), "it goes on");

        std::fs::create_dir_all(environment.link().join("lib")).unwrap();
        assert!(!Meanwhile::start(&environment, &["--release".to_owned()]).is_running());
    }

    fn work(units: &[&str], processors: usize) -> Work {
        Work::new(units.iter().map(|&unit| unit.to_owned()), processors)
    }

    #[test]
    fn what_is_left_is_what_was_foreseen_at_the_pace_seen_so_far() {
        let libraries: Vec<_> = (0..50).map(|number| format!("library_{number}")).collect();
        let mut work = Work::new(libraries.clone(), 2);
        assert_eq!(work.time(Duration::ZERO).as_secs_f64(), 25.0 * USUAL);
        // Twenty of fifty in twice the time, after the first ten seconds that count as foreseen.
        for library in &libraries[..20] {
            work.built(library, false);
        }
        let pace = (20.0 * USUAL + 10.0) / (10.0 * USUAL + 10.0);
        let left = work.time(Duration::from_secs_f64(20.0 * USUAL)).as_secs_f64();
        assert!((left - pace * 15.0 * USUAL).abs() < 1e-6, "{left}");
        assert!((work.share(Duration::ZERO) - 0.4).abs() < 1e-9);
        for library in &libraries[20..] {
            work.built(library, false);
        }
        let passed = Duration::from_secs(60);
        assert_eq!((work.share(passed), work.time(passed)), (1.0, Duration::ZERO));
    }

    #[test]
    fn what_was_there_before_is_neither_left_nor_done() {
        let mut work = work(&["a", "b", "c", "d"], 2);
        work.built("a", true);
        work.built("b", true);
        assert_eq!((work.share(Duration::ZERO), work.time(Duration::ZERO).as_secs_f64()), (0.0, USUAL));
        work.built("of nobody's list", false);
        assert_eq!(work.share(Duration::ZERO), 0.0);
    }

    #[test]
    fn more_processors_do_not_shorten_what_waits_for_each_other() {
        let units = [&CHAIN[..], &["syn", "quote"]].concat();
        let many = work(&units, 64);
        let chain: f64 = CHAIN.iter().map(|unit| many.left[*unit]).sum();
        assert_eq!(many.seconds(0.0), chain);
        assert!(work(&units, 1).seconds(0.0) > chain);
    }

    #[test]
    fn what_is_being_compiled_gets_done_while_time_passes() {
        let mut work = work(&CHAIN, 2);
        let whole = work.seconds(0.0);
        work.begins("torch_sys".to_owned(), Duration::from_secs(5));
        assert_eq!(work.seconds(5.0), whole);
        assert!((work.seconds(25.0) - (whole - 20.0)).abs() < 1e-9);
        // It takes longer than foreseen: the pace says so, and something is always left of it.
        let late = work.seconds(500.0);
        assert!(late > whole - work.left["torch_sys"]);
        work.built("torch_sys", false);
        assert!(work.seconds(500.0) < late);
    }

    #[test]
    fn lines_say_what_is_being_compiled() {
        assert_eq!(begun("   Compiling torch-sys v0.26.0").as_deref(), Some("torch_sys"));
        assert_eq!(begun("\u{1b}[1m\u{1b}[92m   Compiling\u{1b}[0m tch v0.26.0").as_deref(), Some("tch"));
        assert_eq!(begun("    Finished `dev` profile"), None);
    }

    #[test]
    fn cargos_messages_name_units() {
        let message = |kind: &str, name: &str, test: bool, fresh: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"path+file:///ws#0.1.0","target":{{"kind":["{kind}"],"name":"{name}"}},
                "profile":{{"test":{test}}},"fresh":{fresh}}}"#
            )
        };
        let unit = |kind, name, test| unit(&message(kind, name, test, true)).map(|(unit, _)| unit);
        assert_eq!(unit("lib", "fancy-regex", false).as_deref(), Some("fancy_regex"));
        assert_eq!(unit("lib", "lowmem", true).as_deref(), Some("lowmem lib test"));
        assert_eq!(unit("proc-macro", "serde_derive", false).as_deref(), Some("serde_derive"));
        assert_eq!(unit("example", "logit_lens", false).as_deref(), Some("logit_lens example"));
        assert_eq!(unit("test", "suite", true).as_deref(), Some("suite test"));
        assert_eq!(unit("bin", "xtask", false).as_deref(), Some("xtask bin"));
        assert_eq!(unit("bin", "xtask", true).as_deref(), Some("xtask bin test"));
        assert_eq!(unit("custom-build", "build-script-build", false), None);
        assert_eq!(super::unit(&message("lib", "a", false, false)), Some(("a".to_owned(), false)));
        assert_eq!(super::unit("{\"reason\":\"build-finished\",\"success\":true}"), None);
        assert_eq!(super::unit("hello"), None);
    }

    #[test]
    fn the_demonstration_is_made_of_these_units() {
        let environment = Environment::from_process().unwrap();
        let units = units(&environment, &steps::demo_build(false, &[])).unwrap();
        for unit in CHAIN.iter().chain(&["tokenizers", "logit_lens example"]) {
            assert!(units.iter().any(|other| other == unit), "{unit}");
        }
        assert!(!units.iter().any(|unit| unit == "parquet" || unit == "suite test"), "more than it needs");
        let all = self::units(&environment, &steps::test_build()).unwrap();
        for unit in ["parquet", "suite test", "lowmem lib test", "xtask bin", "logit_lens example"] {
            assert!(all.iter().any(|other| other == unit), "{unit}");
        }
        assert!(!all.iter().any(|unit| unit == "bench"), "it has a step of its own");
    }

    #[test]
    fn a_package_that_takes_long_is_still_called_so() {
        let environment = Environment::from_process().unwrap();
        let mut units = units(&environment, &steps::test_build()).unwrap();
        units.extend(self::units(&environment, &steps::demo_build(false, &[])).unwrap());
        for (unit, _) in SLOW {
            assert!(units.iter().any(|other| other == unit), "nothing is called {unit} any more");
        }
    }

    #[test]
    fn the_time_is_said_in_words() {
        let left = |seconds| words(Duration::from_secs(seconds));
        assert_eq!((left(0), left(65)), ("a moment left".to_owned(), "about 1:05 left".to_owned()));
    }
}
