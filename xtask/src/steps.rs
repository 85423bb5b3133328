//! Running Cargo, and what is checked before.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    environment::Environment,
    libtorch::{self, Provided, Request},
    link::Pointed,
};

/// What the demonstration looks at when no sentence is given: a verse that the bundled models were not trained on.
pub const SENTENCE: &str = "If we say that we have no sin, we deceive ourselves, and the truth is not in us.";

/// What a published model looks at: after the pattern has been shown once, the last position is an answer that forms over the
/// layers.
pub const REAL_SENTENCE: &str = "The capital of France is Paris. The capital of Japan is";

/// Where it draws, in the workspace.
pub const PICTURE: &str = "lens.png";

/// A command of this Cargo, run in the workspace.
pub fn cargo(environment: &Environment) -> Command {
    let mut command = Command::new(environment.get("CARGO").unwrap_or(OsStr::new("cargo")));
    command.current_dir(&environment.workspace);
    // What Cargo has set for us would look like changes to build scripts that watch it (ring's does), and half of the
    // workspace would be compiled again whenever another program starts Cargo.
    for name in environment.variables.keys() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    // The value from .cargo/config.toml: handed on, it would look to Cargo like the user's, and a later plain
    // `cargo build`, without it, might build torch-sys again.
    if environment.user_libtorch().is_none() {
        command.env_remove("LIBTORCH");
    }
    command
}

/// Everything a build needs: a C++ compiler, and libtorch.
///
/// # Errors
/// If one of them is missing and cannot be had.
pub fn set_up(environment: &Environment, request: &Request) -> Result<Provided> {
    compiler(environment)?;
    let provided = libtorch::provide(environment, request)?;
    relink(environment, &provided.pointed);
    Ok(provided)
}

/// Tells Cargo that the libtorch behind the link is of another kind.
pub fn relink(environment: &Environment, pointed: &Pointed) {
    if *pointed != Pointed::Changed {
        return;
    }
    // torch-sys looks for the CUDA libraries when it is built, and is not built again for a link that moved.
    for profile in ["dev", "release"] {
        let result = cargo(environment)
            .args(["clean", "--quiet", "--package", "torch-sys", "--profile", profile])
            .stdin(Stdio::null())
            .status();
        if !result.is_ok_and(|status| status.success()) {
            eprintln!("note: run `cargo clean --package torch-sys` if linking fails");
        }
    }
}

/// Looks for a C++ compiler where torch-sys will, and has it read a standard header.
///
/// # Errors
/// If there is none, or it is too old or incomplete.
pub fn compiler(environment: &Environment) -> Result<()> {
    let arch = &environment.platform.arch;
    let chosen = [&format!("CXX_{arch}_unknown_linux_gnu"), &format!("CXX_{arch}_apple_darwin"), "HOST_CXX", "CXX"]
        .into_iter()
        .find_map(|name: &str| environment.get(name))
        .unwrap_or(OsStr::new("c++"))
        .to_string_lossy()
        .into_owned();
    // CXX may be `ccache g++`.
    let mut words = chosen.split_whitespace();
    let hint = match environment.platform.os.as_str() {
        "macos" => "xcode-select --install",
        _ => "apt-get install g++, dnf install gcc-c++, or what your system calls it",
    };
    let context = || format!("no working C++ compiler, which tch needs (tried `{chosen}`); get one with: {hint}");
    let mut child = Command::new(words.next().unwrap_or("c++"))
        .args(words)
        .args(["-std=c++17", "-x", "c++", "-fsyntax-only", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(context)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that reads nothing fails, and says so below.
        let _ = stdin.write_all(b"#include <optional>\n#include <vector>\n");
    }
    let output = child.wait_with_output().with_context(context)?;
    if !output.status.success() {
        return Err(anyhow::anyhow!(String::from_utf8_lossy(&output.stderr).trim().to_owned()).context(context()));
    }
    Ok(())
}

/// `cargo test`, over the whole workspace unless `arguments` name a package. Without the package `bench`, which has a step of
/// its own in the checks: its programs link libtorch, and nobody who tests the libraries should wait for them.
pub fn test(environment: &Environment, arguments: &[OsString]) -> Command {
    let mut command = cargo(environment);
    command.arg("test");
    let names_package = arguments.iter().take_while(|argument| *argument != "--").any(|argument| {
        let argument = argument.to_string_lossy();
        argument.starts_with("-p") || argument.starts_with("--package") || argument == "--workspace"
    });
    if !names_package {
        command.args(["--workspace", "--exclude", "bench"]);
    }
    command.arg("--all-features").args(arguments);
    // Each test has libtorch's threads of its own. More of them than processors wait busily for one another: measured on two cores,
    // the tests took two fifths longer, those of `partial` almost four times as long.
    if environment.get(WAIT_POLICY).is_none() {
        command.env(WAIT_POLICY, "passive");
    }
    command
}

/// How OpenMP's threads wait for work.
const WAIT_POLICY: &str = "OMP_WAIT_POLICY";

/// A user's package, which is no member of the workspace.
const DOWNSTREAM: &str = "tests/downstream";

/// Builds and runs a package that depends on the workspace as a user's does, out of what the workspace's tests have built.
///
/// # Errors
/// If the lock file cannot be copied.
pub fn downstream(environment: &Environment) -> Result<Command> {
    // The same versions and profile, so that nothing is fetched and only the workspace's own packages are compiled again.
    let [from, to] = ["", DOWNSTREAM].map(|folder| environment.workspace.join(folder).join("Cargo.lock"));
    fs::copy(&from, &to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    let mut command = cargo(environment);
    // Quiet: as a configuration, the workspace's manifest has keys that Cargo does not know there.
    command.args(["run", "--quiet", "--offline", "--config", "Cargo.toml"]);
    // It is compiled again, and waited for, to run once.
    command.args(["--config", "profile.dev.package.lowmem.opt-level=0"]);
    command.arg("--manifest-path").arg(Path::new(DOWNSTREAM).join("Cargo.toml"));
    if environment.get("CARGO_TARGET_DIR").is_none() {
        command.args(["--target-dir", "target"]);
    }
    Ok(command)
}

/// The programs of the package `bench` that link libtorch and are run by name.
const MEASURING: [&str; 3] = ["inside", "invariance", "repeat"];

/// Whether `cargo xtask bench` with these arguments needs libtorch: the help and the report do not.
pub fn measures(arguments: &[OsString]) -> bool {
    let asks = |argument: &OsString| ["-h", "--help", "--report"].iter().any(|flag| argument == flag);
    named(arguments).is_some() || !(arguments.iter().any(asks) || computes(arguments))
}

/// Whether the program is meant that measures nothing, but computes what corpora take.
fn computes(arguments: &[OsString]) -> bool {
    arguments.first().is_some_and(|first| first == "capacity")
}

/// The program that the first of these arguments names.
fn named(arguments: &[OsString]) -> Option<&'static str> {
    let first = arguments.first()?;
    MEASURING.into_iter().find(|name| first == name)
}

/// `cargo xtask bench`: the program `figures` of the package `bench`, or the one that is named first.
///
/// `figures` measures nothing itself. It is built without libtorch's bindings and without optimisation, so that its help
/// and its report come at once.
pub fn bench(environment: &Environment, arguments: &[OsString], provided: Option<&Provided>) -> Command {
    let mut command = cargo(environment);
    if let Some(name) = named(arguments) {
        command.args(["run", "--release", "--package", "bench", "--bin", name, "--"]).args(&arguments[1..]);
        return command;
    }
    let (name, arguments) = if computes(arguments) { ("capacity", &arguments[1..]) } else { ("figures", arguments) };
    command.args(["run", "--package", "bench", "--no-default-features", "--bin", name, "--"]).args(arguments);
    // Its hidden subcommands come first and take no flags.
    let flags = arguments.iter().all(|argument| argument != "plain-read" && argument != "confined");
    if let Some(provided) = provided.filter(|_| flags) {
        command.arg("--libtorch").arg(provided.folder.to_string());
    }
    command
}

/// What the demonstration leaves without optimisation: compiling it optimised takes longer than it saves in the one run. None of it is
/// what torch-sys builds with: its C++ would be compiled again for the tests.
const PLAIN: [&str; 7] = ["fdeflate", "libm", "lowmem", "png", "resvg", "tiny-skia", "tiny-skia-path"];

/// How Cargo builds the demonstration, of the bundled model or a `real` one.
///
/// Without arguments it needs nothing from the Hub, and so no TLS. Where it also looks at the small bundled model, nothing of ours is
/// optimised, nor what reads text and draws: on two cores that is a good minute less to compile, and a second more to run.
/// Everything else is built as the tests build it.
pub fn demo_build(real: bool, arguments: &[OsString]) -> Vec<String> {
    let own = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let mut build = if real || !arguments.is_empty() {
        own(&["--release"])
    } else {
        let ours = ["debug=false", "incremental=false"].map(str::to_owned);
        let packages = PLAIN.map(|package| format!("package.{package}.opt-level=0"));
        ours.iter()
            .chain(&packages)
            .flat_map(|setting| ["--config".to_owned(), format!("profile.dev.{setting}")])
            .collect()
    };
    if arguments.is_empty() {
        build.extend(own(&["--no-default-features", "--features", "plot"]));
    }
    build.extend(own(&["--example", "logit_lens"]));
    build
}

/// Where Cargo puts what it builds.
pub fn target(environment: &Environment) -> PathBuf {
    environment.workspace.join(environment.get("CARGO_TARGET_DIR").unwrap_or(OsStr::new("target")))
}

/// Builds an example, optimised, and says where it is.
///
/// # Errors
/// If it cannot be built.
pub fn example(environment: &Environment, name: &str) -> Result<PathBuf> {
    let mut command = cargo(environment);
    run(command.args(["build", "--release", "--example", name]))?;
    let path = target(environment).join("release/examples").join(name);
    ensure!(path.is_file(), "Cargo built no {}; name a program with --program", path.display());
    Ok(path)
}

/// How Cargo builds the tests.
pub fn test_build() -> Vec<String> {
    ["--workspace", "--exclude", "bench", "--all-features", "--all-targets"].map(str::to_owned).to_vec()
}

/// The demonstration: the lens of a model, the bundled one where none is named, over one sentence.
///
/// # Errors
/// If it fails.
pub fn demo(
    environment: &Environment,
    model: Option<&Path>,
    sentence: Option<&OsStr>,
    arguments: &[OsString],
) -> Result<()> {
    let mut command = cargo(environment);
    command.arg("run").args(demo_build(model.is_some(), arguments));
    // How likely an answer is, is decided late; which rank it has, long before.
    let measure = if model.is_some() { "ranks" } else { "probs" };
    command.args(["--", "--measure", measure, "--out", PICTURE]);
    if let Some(model) = model {
        command.arg("--model").arg(model);
    }
    let usual = if model.is_some() { REAL_SENTENCE } else { SENTENCE };
    command.args(arguments).arg(sentence.unwrap_or(OsStr::new(usual)));
    run(&mut command)?;
    let picture = environment.workspace.join(PICTURE);
    ensure!(picture.is_file(), "the example drew nothing at {}", picture.display());
    println!("\nThe picture is at {}", picture.display());
    if let Some(model) = model {
        println!("The model is at {}", model.display());
    }
    Ok(())
}

/// One step of a check.
pub struct Step {
    /// For the summary.
    pub name: &'static str,
    /// What it runs.
    pub command: Command,
    /// The rustup component it needs.
    pub component: Option<&'static str>,
}

/// What has to pass before a change is taken, without the tests of the libraries.
pub fn lints(environment: &Environment) -> Vec<Step> {
    let step = |name, component, arguments: &[&str]| {
        let mut command = cargo(environment);
        command.args(arguments);
        Step { name, command, component }
    };
    let mut doc = step("doc", None, &["doc", "--workspace", "--no-deps", "--all-features"]);
    doc.command.env("RUSTDOCFLAGS", "-D warnings");
    let clippy = ["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
    // Without the programs that link libtorch, which have no tests.
    let bench = ["test", "--package", "bench", "--no-default-features", "--lib", "--bin", "figures"];
    vec![
        step("bench", None, &bench),
        step("fmt", Some("rustfmt"), &["fmt", "--all", "--check"]),
        step("clippy", Some("clippy"), &clippy),
        doc,
    ]
}

/// Runs all steps, also after one has failed, and says at the end which did.
///
/// # Errors
/// If any failed.
pub fn check(environment: &Environment, steps: Vec<Step>) -> Result<()> {
    let mut failed = Vec::new();
    let mut summary = String::new();
    for mut step in steps {
        let result = missing(environment, &step).and_then(|()| run(&mut step.command));
        let line = match &result {
            Ok(()) => format!("  ok      {}\n", step.name),
            Err(error) => format!("  FAILED  {}: {error:#}\n", step.name),
        };
        if result.is_err() {
            eprint!("\n{line}");
            failed.push(step.name);
        }
        summary += &line;
    }
    eprint!("\n{summary}");
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Is the step's component there?
fn missing(environment: &Environment, step: &Step) -> Result<()> {
    let Some(component) = step.component else {
        return Ok(());
    };
    let there = cargo(environment)
        .args([step.name, "--version"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    ensure!(there, "cargo {} is not installed: rustup component add {component}", step.name);
    Ok(())
}

/// Shows a command and runs it.
///
/// # Errors
/// If it cannot be started or does not succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    eprintln!("\n> {shown}");
    io::stderr().flush().context("standard error")?;
    let status = command.status().with_context(|| format!("starting `{shown}`"))?;
    ensure!(status.success(), "`{shown}` ended with {status}");
    Ok(())
}

/// A command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let arguments: Vec<_> = command.get_args().map(quoted).collect();
    format!("{program} {}", arguments.join(" "))
}

/// An argument as a shell would take it, near enough to be copied.
fn quoted(argument: &OsStr) -> String {
    let text = argument.to_string_lossy();
    if text.contains(char::is_whitespace) { format!("\"{text}\"") } else { text.into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::Platform;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment {
            variables: variables.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            workspace: "/ws".into(),
            cache_home: None,
            platform: Platform::host(),
        }
    }

    fn arguments(command: &Command) -> String {
        command.get_args().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_demonstration_needs_no_hub_unless_arguments_may() {
        let build = |real, arguments: &[OsString]| demo_build(real, arguments).join(" ");
        let lean = "--no-default-features --features plot --example logit_lens";
        assert!(build(false, &[]).ends_with(lean) && !build(false, &[]).contains("--release"));
        assert_eq!(build(true, &[]), format!("--release {lean}"));
        assert_eq!(build(false, &["--model".into()]), "--release --example logit_lens");
    }

    #[test]
    fn tests_run_over_the_workspace_unless_a_package_is_named() {
        let test = |extra: &[&str]| {
            let extra: Vec<OsString> = extra.iter().map(OsString::from).collect();
            arguments(&test(&environment(&[]), &extra))
        };
        assert_eq!(test(&[]), "test --workspace --exclude bench --all-features");
        assert_eq!(test(&["-p", "lens", "--", "--nocapture"]), "test --all-features -p lens -- --nocapture");
        assert_eq!(test(&["--", "-p"]), "test --workspace --exclude bench --all-features -- -p");
        let policy = |variables: &[(&str, &str)]| {
            let command = super::test(&environment(variables), &[]);
            let set = command.get_envs().find(|(name, _)| *name == WAIT_POLICY);
            set.and_then(|(_, value)| value).map(OsStr::to_owned)
        };
        assert_eq!(policy(&[]), Some("passive".into()));
        assert_eq!(policy(&[(WAIT_POLICY, "active")]), None);
    }

    #[test]
    fn a_users_package_is_built_with_the_workspaces_versions_and_profile() {
        let folder = tempfile::tempdir().unwrap();
        let mut environment = environment(&[]);
        environment.workspace = folder.path().to_owned();
        let error = downstream(&environment).unwrap_err().to_string();
        assert!(error.contains("Cargo.lock"), "{error}");

        fs::create_dir_all(folder.path().join(DOWNSTREAM)).unwrap();
        fs::write(folder.path().join("Cargo.lock"), "version = 4").unwrap();
        let configuration = "--config Cargo.toml --config profile.dev.package.lowmem.opt-level=0";
        let command = format!("run --quiet --offline {configuration} --manifest-path tests/downstream/Cargo.toml");
        assert_eq!(arguments(&downstream(&environment).unwrap()), format!("{command} --target-dir target"));
        assert_eq!(fs::read_to_string(folder.path().join(DOWNSTREAM).join("Cargo.lock")).unwrap(), "version = 4");
        environment.variables.insert("CARGO_TARGET_DIR".into(), "/t".into());
        assert_eq!(arguments(&downstream(&environment).unwrap()), command);
    }

    #[test]
    fn figures_are_run_without_libtorch_and_other_programs_by_name() {
        let bench = |extra: &[&str]| {
            let extra: Vec<OsString> = extra.iter().map(OsString::from).collect();
            (arguments(&bench(&environment(&[]), &extra, None)), measures(&extra))
        };
        let figures = "run --package bench --no-default-features --bin figures --";
        assert_eq!(bench(&["--keep"]), (format!("{figures} --keep"), true));
        assert_eq!(bench(&["--report"]), (format!("{figures} --report"), false));
        let repeat = "run --release --package bench --bin repeat -- --processes 1000";
        assert_eq!(bench(&["repeat", "--processes", "1000"]), (repeat.to_owned(), true));
        assert!(bench(&["repeat", "--help"]).1, "its program links libtorch");
        let capacity = "run --package bench --no-default-features --bin capacity -- --tokens 1e6";
        assert_eq!(bench(&["capacity", "--tokens", "1e6"]), (capacity.to_owned(), false));
    }

    #[test]
    fn cargo_gets_a_libtorch_only_from_the_user() {
        let removed = |value| {
            let command = cargo(&environment(&[("LIBTORCH", value)]));
            command.get_envs().any(|change| change == (OsStr::new("LIBTORCH"), None))
        };
        assert!(removed("/ws/.libtorch"));
        assert!(!removed("/opt/libtorch"));
    }

    #[test]
    fn what_cargo_has_set_for_us_is_not_handed_on() {
        let command = cargo(&environment(&[("CARGO_PKG_NAME", "xtask"), ("CARGO_TARGET_DIR", "/t")]));
        let removed: Vec<_> = command.get_envs().filter(|(_, value)| value.is_none()).map(|(name, _)| name).collect();
        assert!(removed.contains(&OsStr::new("CARGO_PKG_NAME")) && !removed.contains(&OsStr::new("CARGO_TARGET_DIR")));
    }

    #[test]
    fn a_missing_compiler_is_named_with_the_way_to_get_one() {
        let error = compiler(&environment(&[("CXX", "no-such-compiler")])).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("no-such-compiler") && text.contains("C++ compiler"), "{text}");
    }

    #[test]
    fn a_failed_step_does_not_keep_the_others_from_running() {
        let marker = tempfile::tempdir().unwrap().keep().join("ran");
        let step = |name, program: &str, argument: &Path| {
            let mut command = Command::new(program);
            command.arg(argument);
            Step { name, command, component: None }
        };
        let steps = vec![step("first", "false", &marker), step("second", "touch", &marker)];
        let error = check(&environment(&[]), steps).unwrap_err().to_string();
        assert_eq!(error, "failed: first");
        assert!(marker.is_file());
        std::fs::remove_dir_all(marker.parent().unwrap()).unwrap();
    }
}
