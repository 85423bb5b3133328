//! `cargo xtask bench`: the promised figures, each beside its floor, its limit or a peer, in one run.
//!
//! Whatever is compared runs in turns (A, B, A, B, ...), and medians are shown. Programs are the examples of the workspace,
//! run as a user would; what only one process can measure comes from the program `inside` of this package. Peers in Python
//! are short scripts in `benches/peers`, run only with a Python that has them; the one in Rust, candle, is a program of its
//! own in `benches/candle`, so that nobody who builds this workspace has to build it.
//!
//! | module | owns |
//! |---|---|
//! | [`figure`] | one number, its promise, the table |
//! | [`results`] | the figures of a run as a file that is kept |
//! | [`report`] | BENCHMARKS.md, from all kept files |
//! | [`plot`] | its pictures |
//! | [`machine`] | what was measured on |
//! | [`child`] | running a program, its time and its memory |
//! | [`cgroup`] | the cap on a program's memory |
//! | [`files`] | the page cache, and the plain reading that is a floor |
//! | [`checkpoints`] | the sizes, made where they are missing |
//! | `sections` | what is measured |
//! | [`capacity`] | what corpora take on clusters: nothing is measured, it is computed and simulated |
//!
//! Nothing here links libtorch: the programs that do are binaries behind the feature `libtorch`.

pub mod capacity;
pub mod cgroup;
pub mod checkpoints;
pub mod child;
pub mod figure;
pub mod files;
pub mod machine;
pub mod plot;
mod programs;
pub mod report;
pub mod results;
mod sections;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;
use tempfile::TempDir;

use self::{
    checkpoints::{Checkpoints, Dtype, Size, Variant},
    child::{Call, Outcome},
    figure::{Asked, Case, Figure},
    machine::Machine,
    programs::Programs,
    results::Results,
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
    /// Tokens of the prompts of the section `forward`, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "N,..", default_values_t = [1, 45, 512, 1024],
        value_parser = clap::value_parser!(u64).range(1..=1024))]
    lengths: Vec<u64>,
    /// A Python with transformers, nnsight, transformer-utils, transformer-lens and tuned-lens, to measure them in turns with this workspace
    #[arg(long, value_name = "PYTHON")]
    peers: Option<PathBuf>,
    /// Build candle's program in benches/candle and measure it in turns, too
    #[arg(long)]
    candle: bool,
    /// Where the checkpoints are, or are made [default: target/bench]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Also write the table to this file, with the machine and the commands
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Keep the figures as benches/results/DATE-PROCESSOR.json
    #[arg(long)]
    keep: bool,
    /// Measure nothing: make BENCHMARKS.md and its pictures from the files in benches/results
    #[arg(long, conflicts_with_all = ["only", "keep", "peers", "candle", "markdown"])]
    report: bool,
    /// The libtorch behind .libtorch, in words; `cargo xtask bench` says it
    #[arg(long, value_name = "TEXT", hide = true, default_value = "libtorch of a version that was not said")]
    libtorch: String,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// Opening a checkpoint with mapped weights, over all sizes
    Load,
    /// From f32 to bf16, beside plain copying
    Convert,
    /// A forward within less memory than the weights
    Stream,
    /// The same logits, bit for bit, from every residency and file format
    Same,
    /// A forward of 1 to 1024 tokens in f32 and bf16, beside its products and its peers
    Forward,
    /// Greedy generation of one text with and without a cache, beside reading the weights and its peers
    Generate,
    /// Three activations, stopping at the deepest; observers and captures
    Partial,
    /// Activation patching of every position and every head, beside TransformerLens
    Patch,
    /// Activations of a corpus into files, beside its forwards alone and transformers
    Corpus,
    /// Runs to an eighth, a quarter, a half and all of the blocks, beside those shares of a whole forward
    Depth,
    /// The lens: time, memory, and from start to picture; the tuned lens
    Lens,
    /// GPT-2 XL and a Llama-shaped model as large, in f32 and bf16, beside transformers
    Ratios,
    /// What a run over a mixture of experts reads, beside the experts that it uses
    Experts,
    /// The lens of the bundled model, from process start to picture
    Start,
}

impl Section {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Where checkpoints are made, in the workspace.
const DEFAULT_FOLDER: &str = "target/bench";

/// Bytes of a MiB.
const MIB: f64 = 1_048_576.0;

/// Tokens of the prompt, where a section does not say otherwise.
const TOKENS: usize = 45;

/// The folder of the workspace.
///
/// # Errors
/// If it cannot be found.
pub fn workspace() -> Result<PathBuf> {
    // Cargo sets it when it runs us; the constant serves a program that was started by hand.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Ok(Path::new(&package).parent().context("the bench package has no parent folder")?.to_owned())
}

/// Does what `options` ask for: measures and prints the table, or makes the report.
///
/// # Errors
/// If the programs cannot be built, if nothing can be measured, or if a section failed; the figures of the others are
/// printed and kept all the same.
pub fn run(options: &Options) -> Result<()> {
    let workspace = workspace()?;
    if options.report {
        for path in report::make(&workspace)? {
            println!("{}", path.display());
        }
        return Ok(());
    }
    let folder = match &options.folder {
        Some(folder) => std::path::absolute(folder).with_context(|| folder.display().to_string())?,
        None => workspace.join(DEFAULT_FOLDER),
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
    std::env::set_current_dir(&workspace).context("going to the workspace")?;
    let machine = Machine::look(&workspace, &options.libtorch);
    let mut programs = Programs::build(&workspace)?;
    if options.candle {
        programs.build_candle(&workspace)?;
    }
    let mut checkpoints = Checkpoints::new(&folder)?;
    let mut notes = Vec::new();
    for &size in &options.sizes {
        if checkpoints.provide(&programs, Variant::Whole(size))?.is_none() {
            notes.push(format!("{} was skipped, the disk is full", size.name()));
        }
    }
    let scratch = tempfile::Builder::new().prefix(".bench").tempdir_in(&folder);
    let mut bench = Bench {
        workspace,
        options,
        peers,
        programs,
        checkpoints,
        scratch: scratch.with_context(|| format!("writing in {}", folder.display()))?,
        section: String::new(),
        figures: Vec::new(),
        notes,
    };
    eprintln!("{machine}");
    if bench.peers.is_none() {
        bench.note("Python's packages were not measured: --peers names a Python that has them".into());
    }
    let mut failed = Vec::new();
    for section in Section::value_variants() {
        if !options.only.is_empty() && !options.only.contains(section) {
            continue;
        }
        bench.section = section.name();
        eprintln!("\n{}", bench.section);
        if let Err(error) = sections::run(&mut bench, *section) {
            bench.note(format!("{} failed: {error:#}", section.name()));
            failed.push(section.name());
        }
    }
    ensure!(!bench.figures.is_empty() || !failed.is_empty(), "nothing was measured");
    let results = bench.results(machine);
    let text = results.text();
    println!("\n{text}");
    if let Some(path) = &markdown {
        fs::write(path, format!("# Figures\n\n{text}")).with_context(|| format!("writing {}", path.display()))?;
    }
    if options.keep {
        println!("kept: {}", bench.relative(&results.keep(&bench.workspace)?).display());
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
    workspace: PathBuf,
    options: &'a Options,
    peers: Option<PathBuf>,
    programs: Programs,
    checkpoints: Checkpoints,
    /// For reports and outputs; beside the checkpoints, where there is room.
    scratch: TempDir,
    /// The name of the section that is measured.
    section: String,
    figures: Vec<Figure>,
    notes: Vec<String>,
}

impl Bench<'_> {
    fn results(&self, machine: Machine) -> Results {
        let names = |values: Vec<String>| values.join(",");
        let sizes = names(self.options.sizes.iter().map(|size| size.name().to_owned()).collect());
        let mut command = format!("cargo xtask bench --sizes {sizes} --repeats {}", self.options.repeats);
        if !self.options.only.is_empty() {
            command += &format!(" --only {}", names(self.options.only.iter().map(|section| section.name()).collect()));
        }
        if self.options.only.is_empty() || self.options.only.contains(&Section::Forward) {
            command += &format!(" --lengths {}", names(self.options.lengths.iter().map(u64::to_string).collect()));
        }
        // Where it lies is this machine's affair.
        if self.peers.is_some() {
            command += " --peers path/to/python";
        }
        if self.options.candle {
            command += " --candle";
        }
        Results::new(machine, command, self.options.repeats, self.figures.clone(), self.notes.clone())
    }

    fn add(&mut self, figure: Figure) {
        eprintln!("  {figure}");
        let command = self.as_by_default(&figure.command);
        self.figures.push(Figure { section: self.section.clone(), command, ..figure });
    }

    /// A text with the checkpoints where they are unless somebody says otherwise: where else they were is this machine's
    /// affair, and the commands shall work on others.
    fn as_by_default(&self, text: &str) -> String {
        text.replace(&self.checkpoints.folder().display().to_string(), DEFAULT_FOLDER)
    }

    fn note(&mut self, note: String) {
        let note = self.as_by_default(&note);
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
        let is_gpt2 = |size| matches!(size, Size::Gpt2 | Size::Gpt2Xl);
        let found = self.sizes().into_iter().filter(|(size, _)| is_gpt2(*size)).max_by_key(|(size, _)| *size);
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
        path.strip_prefix(&self.workspace).unwrap_or(path)
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
        let path = self.workspace.join("benches/peers").join(script);
        Some(Call::new(python, &format!("python benches/peers/{script}")).hidden([path]))
    }

    /// candle's program with a model of that size and what it runs, if it was asked for and has such a one.
    fn candle(&self, size: Size) -> Option<(String, Call)> {
        let program = self.programs.get(programs::CANDLE).ok()?;
        let call = Call::new(program, "cargo run --release --manifest-path benches/candle/Cargo.toml --");
        let parameters = size.candle()?;
        Some((format!("candle's Llama of {parameters} parameters"), call.args(&format!("--size {}", size.name()))))
    }

    /// A call of the program `inside` with a model.
    fn inside_call(&self, model: &Path, arguments: &str) -> Result<Call> {
        let call = Call::new(self.programs.get(programs::INSIDE)?, "cargo run --release -p bench --bin inside --");
        Ok(call.arg("--model").arg(self.relative(model)).args(arguments))
    }

    /// Runs sections of `inside` on a prompt of [`TOKENS`].
    fn inside(&self, model: &Path, only: &str, repeats: usize) -> Result<Inside> {
        let arguments = format!("--only {only} --tokens {TOKENS} --repeats {repeats}");
        Inside::run(&self.inside_call(model, &arguments)?)
    }

    /// The checkpoint of a size in a dtype, made if it is missing and the disk has room.
    fn checkpoint(&mut self, size: Size, dtype: Dtype) -> Result<Option<PathBuf>> {
        let folder = match dtype {
            Dtype::F32 => self.checkpoints.get(Variant::Whole(size)),
            Dtype::Bf16 => self.checkpoints.provide(&self.programs, Variant::Bf16(size))?,
        };
        if folder.is_none() {
            self.note(format!("{} in {dtype} was skipped, the disk is full", size.name()));
        }
        Ok(folder)
    }
}

/// What the program `inside` measured.
struct Inside {
    medians: BTreeMap<String, f64>,
    shown: String,
}

impl Inside {
    fn run(call: &Call) -> Result<Self> {
        let json = call.clone().hidden(["--json"]).run()?.json()?;
        let mut medians = BTreeMap::new();
        for figure in json["figures"].as_array().context("the program inside wrote no figures")? {
            let name = figure["name"].as_str().context("a figure of the program inside has no name")?;
            medians.insert(name.to_owned(), number(figure, "median")?);
        }
        Ok(Self { medians, shown: call.shown().to_owned() })
    }

    /// A median; figures that the system cannot give are missing.
    fn get(&self, name: &str) -> Result<f64> {
        self.find(name).with_context(|| format!("the program inside has no {name}"))
    }

    fn find(&self, name: &str) -> Option<f64> {
        self.medians.get(name).copied()
    }
}

/// What was run, for the plots.
fn case(size: Size, dtype: Dtype) -> Case {
    Case { model: size.name().to_owned(), parameters: size.parameters(), dtype: dtype.to_string(), ..Case::default() }
}

/// A number of a report.
fn number(report: &Value, name: &str) -> Result<f64> {
    report[name].as_f64().with_context(|| format!("the report has no number {name}"))
}

/// The times a peer took.
fn seconds(outcome: &Outcome) -> Result<f64> {
    middle_of(&outcome.json()?["seconds"])
}

/// The median of a list of numbers.
fn middle_of(runs: &Value) -> Result<f64> {
    let runs: Vec<f64> = runs.as_array().context("the peer wrote no times")?.iter().filter_map(Value::as_f64).collect();
    ensure!(!runs.is_empty(), "the peer wrote no times");
    Ok(figure::median(&runs))
}

/// A promise about GPT-2 XL says nothing about other sizes.
fn asked_of_xl(size: Size, asked: Asked) -> Asked {
    match asked {
        asked if size == Size::Gpt2Xl => asked,
        Asked::FasterBy(_) => Asked::Faster,
        _ => Asked::Nothing,
    }
}
