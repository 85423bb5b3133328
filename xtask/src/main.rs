//! `cargo xtask`: set-up and checks.

use std::{
    ffi::OsString,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use xtask::{
    build::{Meanwhile, Progress},
    environment::Environment,
    libtorch::{From, Provided, Request},
    routes::Flavour,
    steps,
};

/// Set-up and checks for the workspace. Every command first makes sure that libtorch is there.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", version, propagate_version = false)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Find or install libtorch, and point .libtorch at it
    ///
    /// Used is, first to last: what LIBTORCH or LIBTORCH_USE_PYTORCH names; what .libtorch leads to; the cache of this
    /// user; the official archive, put into the cache; the CPU half of the torch wheel, through pip, put into the cache.
    #[command(after_help = VARIABLES)]
    Libtorch(Libtorch),
    /// Draw the logit lens of the bundled model for a sentence
    Demo {
        /// Look at a published model, SmolLM2-135M-Instruct, which is fetched once (94 MiB) and checked
        #[arg(long)]
        real: bool,
        /// What the model reads
        sentence: Option<OsString>,
        /// After `--`: more arguments for the example `logit_lens`
        #[arg(last = true, value_name = "ARGUMENTS")]
        arguments: Vec<OsString>,
    },
    /// Run all tests, documentation included, then a program that depends on the libraries
    Test {
        /// For `cargo test`, as they are (`-p lens`, `-- --nocapture`)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
        arguments: Vec<OsString>,
    },
    /// Run the tests, then rustfmt, clippy and rustdoc with warnings as errors
    Check {
        /// Only what comes after the tests
        #[arg(long)]
        skip_tests: bool,
    },
    /// Measure every promised figure beside its floor, its limit or a peer, or make the report of what was measured
    ///
    /// The arguments are those of the package `bench`; `cargo xtask bench --help` shows them. `cargo xtask bench repeat`,
    /// `invariance` or `inside` runs one of its other programs, `capacity` what corpora take on clusters, by computing.
    #[command(disable_help_flag = true)]
    Bench {
        /// For the program, as they are
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
        arguments: Vec<OsString>,
    },
    /// Run the recipes of engines/ (Slurm, Ray, Kubernetes) on this machine, killing workers at random moments
    ///
    /// What they need is fetched into the cache (Debian's packages, Python's) and the system is left as it is. The recipes run
    /// on a small corpus with the bundled model, in namespaces of Linux: nothing is reachable from outside, and nothing
    /// outlives the command. What they write has to be, byte for byte, what one run writes that nobody interrupts.
    #[cfg(unix)]
    Engines(xtask::engines::Options),
}

const VARIABLES: &str = "\
Variables:
  LIBTORCH                           Absolute path of a libtorch to use as it is
  LIBTORCH_USE_PYTORCH               If set, use the torch package of python3 (of python in a virtual environment)
  TRANSFORMER_UTILS_CACHE            The folder to install into, in place of this user's cache
  TRANSFORMER_UTILS_LIBTORCH_MIRROR  Address of a copy of https://download.pytorch.org/libtorch";

#[derive(Debug, Args)]
struct Libtorch {
    /// Where from: `auto`, `archive`, `pip`, or a folder to link as it is
    ///
    /// Anything but `auto` passes over the variables and the present link.
    #[arg(long, default_value = "auto", value_name = "auto|archive|pip|DIR")]
    from: From,
    /// Get the build for a CUDA version; `none` goes back to the CPU
    #[arg(long, value_name = "VERSION")]
    cuda: Option<Cuda>,
    /// Install again what is installed
    #[arg(long)]
    force: bool,
    /// Print the folder and nothing else
    #[arg(long)]
    print: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Cuda {
    None,
    Cu126,
    Cu128,
    Cu130,
}

impl Libtorch {
    fn request(&self) -> Request {
        let flavour = self.cuda.map(|cuda| match cuda {
            Cuda::None => Flavour::Cpu,
            Cuda::Cu126 => Flavour::Cu126,
            Cuda::Cu128 => Flavour::Cu128,
            Cuda::Cu130 => Flavour::Cu130,
        });
        Request { from: self.from.clone(), flavour, force: self.force }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let environment = Environment::from_process()?;
    let set_up = || steps::set_up(&environment, &Request::default()).map(|provided| report(&provided));
    // What needs no libtorch beside fetching that. The rest only where somebody watches: what is run next would build it, too.
    let build = |arguments: &[String], command: &mut Command| -> Result<()> {
        let since = Instant::now();
        let compiling = Meanwhile::start(&environment, arguments);
        if compiling.is_running() {
            eprintln!(
                "The first time takes some minutes. What needs no libtorch is compiled while libtorch is fetched."
            );
        }
        set_up()?;
        let mut progress = Progress::new(&environment, arguments, since);
        compiling.finish(progress.as_mut());
        progress.map_or(Ok(()), |progress| progress.build(&environment, command))
    };
    match cli.command {
        Task::Libtorch(options) => {
            let provided = xtask::libtorch::provide(&environment, &options.request())?;
            steps::relink(&environment, &provided.pointed);
            if options.print {
                println!("{}", provided.folder.path.display());
            } else {
                report(&provided);
                if let Err(error) = steps::compiler(&environment) {
                    eprintln!("warning: {error:#}");
                }
            }
            Ok(())
        }
        Task::Demo { real, sentence, arguments } => {
            let chosen = steps::demo_build(real, &arguments);
            build(&chosen, steps::cargo(&environment).arg("build").args(&chosen))?;
            let model = if real { Some(xtask::real::SMOLLM2.provide(&environment)?) } else { None };
            steps::demo(&environment, model.as_deref(), sentence.as_deref(), &arguments)
        }
        Task::Test { .. } => {
            // Not clap's, which has lost a leading `--`.
            let arguments: Vec<_> = std::env::args_os().skip(2).collect();
            if arguments.is_empty() {
                build(&steps::test_build(), steps::test(&environment, &["--no-run".into()]).stdin(Stdio::null()))?;
            } else {
                set_up()?;
            }
            steps::run(&mut steps::test(&environment, &arguments))?;
            // Whoever asks for some tests gets those.
            if arguments.is_empty() { steps::run(&mut steps::downstream(&environment)?) } else { Ok(()) }
        }
        Task::Bench { .. } => {
            let arguments: Vec<_> = std::env::args_os().skip(2).collect();
            let mut command = if steps::measures(&arguments) {
                let provided = steps::set_up(&environment, &Request::default())?;
                steps::bench(&environment, &arguments, Some(&provided))
            } else {
                steps::bench(&environment, &arguments, None)
            };
            steps::run(&mut command)
        }
        #[cfg(unix)]
        Task::Engines(options) if options.inside => xtask::engines::run_inside(&environment, &options),
        #[cfg(unix)]
        Task::Engines(options) => {
            let program = match &options.program {
                Some(program) => program.clone(),
                None => {
                    set_up()?;
                    steps::example(&environment, "activations")?
                }
            };
            xtask::engines::run(&environment, &options, &program)
        }
        Task::Check { skip_tests } => {
            set_up()?;
            let test = steps::Step { name: "test", command: steps::test(&environment, &[]), component: None };
            let downstream =
                steps::Step { name: "downstream", command: steps::downstream(&environment)?, component: None };
            let mut all = if skip_tests { Vec::new() } else { vec![test, downstream] };
            all.extend(steps::lints(&environment));
            steps::check(&environment, all)
        }
    }
}

fn report(provided: &Provided) {
    eprintln!("{} ({})", provided.folder, provided.because);
}
