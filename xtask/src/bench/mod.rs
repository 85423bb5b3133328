//! `cargo xtask bench`: the promised figures, each beside its floor, its limit or a Python peer, in one run.
//!
//! Whatever is compared runs in turns (A, B, A, B, ...), and medians are shown. Programs are the examples of the workspace,
//! run as a user would; what only one process can measure comes from `benches/inside.rs`. Peers are short scripts in
//! `xtask/peers`, run only with a Python that has them.
//!
//! | module | owns |
//! |---|---|
//! | [`figure`] | one number, its promise, the table |
//! | [`child`] | running a program, its time and its memory |
//! | [`cgroup`] | the cap on a program's memory |
//! | [`files`] | the page cache, and the plain reading that is a floor |
//! | [`checkpoints`] | the sizes, made where they are missing |
//! | `sections` | what is measured |

pub mod cgroup;
pub mod checkpoints;
pub mod child;
pub mod figure;
pub mod files;
mod machine;
mod programs;
mod sections;

use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;
use tempfile::TempDir;

use crate::{environment::Environment, libtorch::Provided};

use self::{
    checkpoints::{Checkpoints, Size, Variant},
    child::{Call, Outcome},
    figure::{Asked, Figure, table},
    programs::Programs,
};

/// The flags of `cargo xtask bench`.
#[derive(Debug, Args)]
pub struct Options {
    /// Sizes of the random checkpoints, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["gpt2", "gpt2-xl", "gpt-neo-2.7B"])]
    sizes: Vec<Size>,
    /// Sections to run, separated by commas [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SECTIONS")]
    only: Vec<Section>,
    /// Timed runs of everything that is compared
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    repeats: u16,
    /// A Python with transformers, nnsight and transformer-utils, to measure them in turns with this workspace
    #[arg(long, value_name = "PYTHON")]
    peers: Option<PathBuf>,
    /// Where the checkpoints are, or are made [default: target/bench]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Also write the table to this file, with the machine and the commands
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// Opening a checkpoint with mapped weights, over all sizes
    Load,
    /// From f32 to bf16
    Convert,
    /// A forward within less memory than the weights
    Stream,
    /// The same logits, bit for bit, from every residency and file format
    Same,
    /// Three activations, stopping at the deepest; observers and captures
    Partial,
    /// The lens: time, memory, and from start to picture
    Lens,
}

impl Section {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Tokens of the prompt, where a section does not say otherwise.
const TOKENS: usize = 45;

/// Runs what `options` ask for and prints the table.
///
/// # Errors
/// If the programs cannot be built, if nothing can be measured, or if a section failed; the figures of the others are
/// printed all the same.
pub fn run(environment: &Environment, provided: &Provided, options: &Options) -> Result<()> {
    let folder = match &options.folder {
        Some(folder) => std::path::absolute(folder).with_context(|| folder.display().to_string())?,
        None => environment.workspace.join("target/bench"),
    };
    if let Some(parent) = options.markdown.as_deref().and_then(Path::parent) {
        let there = parent.as_os_str().is_empty() || parent.is_dir();
        ensure!(there, "--markdown: the folder {} does not exist", parent.display());
    }
    let absolute = |path: &PathBuf| std::path::absolute(path).with_context(|| path.display().to_string());
    let markdown = options.markdown.as_ref().map(absolute).transpose()?;
    // A bare `python3` is looked up as always.
    let is_path = |python: &&PathBuf| python.components().count() > 1;
    let peers = options.peers.as_ref().filter(is_path).map(absolute).transpose()?.or(options.peers.clone());
    // Commands are shown as they are typed there.
    std::env::set_current_dir(&environment.workspace).context("going to the workspace")?;
    let programs = Programs::build(environment)?;
    let mut checkpoints = Checkpoints::new(&folder)?;
    let mut notes = Vec::new();
    for &size in &options.sizes {
        if checkpoints.provide(&programs, Variant::Whole(size))?.is_none() {
            notes.push(format!("{} was skipped, the disk is full", size.name()));
        }
    }
    let scratch = tempfile::Builder::new().prefix(".bench").tempdir_in(&folder);
    let mut bench = Bench {
        environment,
        options,
        peers,
        programs,
        checkpoints,
        scratch: scratch.with_context(|| format!("writing in {}", folder.display()))?,
        figures: Vec::new(),
        notes,
    };
    let machine = machine::describe(provided);
    eprintln!("{machine}");
    if bench.peers.is_none() {
        bench.note("peers were not measured: --peers names a Python that has them".into());
    }
    let mut failed = Vec::new();
    for section in Section::value_variants() {
        if !options.only.is_empty() && !options.only.contains(section) {
            continue;
        }
        eprintln!("\n{}", section.name());
        if let Err(error) = sections::run(&mut bench, *section) {
            bench.note(format!("{} failed: {error:#}", section.name()));
            failed.push(section.name());
        }
    }
    ensure!(!bench.figures.is_empty() || !failed.is_empty(), "nothing was measured");
    let text = bench.text(&machine);
    println!("\n{text}");
    if let Some(path) = &markdown {
        fs::write(path, format!("# Figures\n\n{text}")).with_context(|| format!("writing {}", path.display()))?;
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

/// Enters the control group at `group` and becomes `command`.
///
/// # Errors
/// If one of them fails.
pub fn confined(group: &Path, command: &[OsString]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no program was named")?;
    cgroup::enter(group)?;
    let mut command = Command::new(program);
    command.args(arguments);
    #[cfg(unix)]
    return Err(std::os::unix::process::CommandExt::exec(&mut command)).context(program.to_string_lossy().into_owned());
    #[cfg(not(unix))]
    bail!("{:?}: control groups are a thing of Linux", command)
}

/// One run of the command.
struct Bench<'a> {
    environment: &'a Environment,
    options: &'a Options,
    peers: Option<PathBuf>,
    programs: Programs,
    checkpoints: Checkpoints,
    /// For reports and outputs; beside the checkpoints, where there is room.
    scratch: TempDir,
    figures: Vec<Figure>,
    notes: Vec<String>,
}

impl Bench<'_> {
    fn text(&self, machine: &str) -> String {
        let runs = match self.options.repeats {
            1 => "One run each".to_owned(),
            repeats => format!("Medians of {repeats} runs in turns"),
        };
        let mut text = format!("{machine}. {runs}.\n\n{}", table(&self.figures));
        if !self.notes.is_empty() {
            text.push_str("\nNotes:\n\n");
            text.extend(self.notes.iter().map(|note| format!("- {note}\n")));
        }
        text
    }

    fn add(&mut self, figure: Figure) {
        eprintln!("  {figure}");
        self.figures.push(figure);
    }

    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            eprintln!("  note: {note}");
            self.notes.push(note);
        }
    }

    fn repeats(&self) -> usize {
        usize::from(self.options.repeats)
    }

    /// The sizes that were asked for and are there, with their folders.
    fn sizes(&self) -> Vec<(Size, PathBuf)> {
        let there = |&size: &Size| Some((size, self.checkpoints.get(Variant::Whole(size))?));
        self.options.sizes.iter().filter_map(there).collect()
    }

    /// The largest GPT-2 there is: most promises are about [`Size::Gpt2Xl`].
    fn largest_gpt2(&mut self) -> Option<(Size, PathBuf)> {
        let found = self.sizes().into_iter().filter(|(size, _)| *size != Size::GptNeo).max_by_key(|(size, _)| *size);
        if found.is_none() {
            self.note("no GPT-2 is among the sizes; some sections need one".into());
        }
        found
    }

    fn smallest(&self) -> Option<(Size, PathBuf)> {
        self.sizes().into_iter().min_by_key(|(size, _)| *size)
    }

    fn scratch(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// A call of an example with a model.
    fn example(&self, name: &str, model: &Path) -> Result<Call> {
        let call = Call::new(self.programs.get(name)?, &format!("cargo run --release --example {name} --"));
        Ok(call.arg("--model").arg(self.relative(model)))
    }

    /// A path as a reader in the workspace would type it. Programs are run there.
    fn relative<'p>(&self, path: &'p Path) -> &'p Path {
        path.strip_prefix(&self.environment.workspace).unwrap_or(path)
    }

    /// Runs an example that writes its report as JSON.
    fn reported(&self, call: &Call, run: impl FnOnce(&Call) -> Result<Outcome>) -> Result<(Outcome, Value)> {
        let path = self.scratch("report.json");
        let call = call.clone().hidden(["--json".into(), path.clone().into_os_string()]);
        let outcome = run(&call)?;
        let text = fs::read_to_string(&path).with_context(|| format!("reading the report of `{}`", call.shown()))?;
        Ok((outcome, serde_json::from_str(&text)?))
    }

    /// A peer's script, if there are peers.
    fn peer(&self, script: &str) -> Option<Call> {
        let python = self.peers.as_ref()?;
        let path = self.environment.workspace.join("xtask/peers").join(script);
        Some(Call::new(python, &format!("python xtask/peers/{script}")).hidden([path]))
    }

    /// Runs sections of `benches/inside.rs`.
    fn inside(&self, model: &Path, only: &str, repeats: usize) -> Result<Inside> {
        let call = Call::new(self.programs.get(programs::INSIDE)?, "cargo bench --bench inside --")
            .arg("--model")
            .arg(self.relative(model))
            .args(&format!("--only {only} --tokens {TOKENS} --repeats {repeats}"));
        let json = call.clone().hidden(["--json"]).run()?.json()?;
        let mut medians = HashMap::new();
        for figure in json["figures"].as_array().context("the bench wrote no figures")? {
            let name = figure["name"].as_str().context("a figure of the bench has no name")?;
            medians.insert(name.to_owned(), number(figure, "median")?);
        }
        Ok(Inside { medians, shown: call.shown().to_owned() })
    }
}

/// What `benches/inside.rs` measured.
struct Inside {
    medians: HashMap<String, f64>,
    shown: String,
}

impl Inside {
    /// A median; figures that the system cannot give are missing.
    fn get(&self, name: &str) -> Result<f64> {
        self.find(name).with_context(|| format!("the bench has no {name}"))
    }

    fn find(&self, name: &str) -> Option<f64> {
        self.medians.get(name).copied()
    }
}

/// A number of a report.
fn number(report: &Value, name: &str) -> Result<f64> {
    report[name].as_f64().with_context(|| format!("the report has no number {name}"))
}

/// The times a peer took.
fn seconds(outcome: &Outcome) -> Result<f64> {
    let json = outcome.json()?;
    let runs = json["seconds"].as_array().context("the peer wrote no seconds")?;
    Ok(figure::median(&runs.iter().filter_map(Value::as_f64).collect::<Vec<_>>()))
}

/// A promise about GPT-2 XL says nothing about other sizes.
fn asked_of_xl(size: Size, asked: Asked) -> Asked {
    match asked {
        asked if size == Size::Gpt2Xl => asked,
        Asked::FasterBy(_) => Asked::Faster,
        _ => Asked::Nothing,
    }
}
