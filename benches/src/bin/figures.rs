//! `cargo xtask bench`: measures, and makes the report.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measure every promised figure beside its floor, its limit or a peer
///
/// Makes random checkpoints where they are missing (gpt2 0.5 GB, gpt2-xl 6.2 GB, gpt-neo-2.7B 10.6 GB, and half as much in
/// bf16), runs what is compared in turns, and prints one table of medians with the commands. Figures within a memory limit
/// need a control group (root), cold ones Linux; what cannot be measured is skipped and said. Leave the machine alone
/// meanwhile.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask bench", after_help = MORE, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    hidden: Option<Hidden>,
    #[command(flatten)]
    options: bench::Options,
}

/// What this program starts itself for.
#[derive(Debug, Subcommand)]
enum Hidden {
    /// Run a program in a control group
    #[command(hide = true)]
    Confined {
        group: PathBuf,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Read files from one end to the other
    #[command(hide = true)]
    PlainRead {
        #[arg(long)]
        direct: Option<usize>,
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

const MORE: &str = "\
By themselves, each with --help:
  cargo xtask bench inside       What only one process can measure, for one checkpoint
  cargo xtask bench repeat       The bits of a thousand processes
  cargo xtask bench invariance   A text's numbers, run in every way

Peers: a Python for --peers comes from
  python3 -m venv peers
  peers/bin/pip install torch==2.13.0 transformers==5.23.0 nnsight transformer-lens==4.3.0 tuned-lens matplotlib seaborn colorcet scipy safetensors
  peers/bin/pip install --no-deps transformer-utils==0.1.1";

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
    match cli.hidden {
        // Measured themselves: nothing but their work.
        Some(Hidden::Confined { group, command }) => bench::confined(&group, &command),
        Some(Hidden::PlainRead { direct, files }) => {
            let reading = direct.map_or(bench::files::Reading::Buffered, bench::files::Reading::Direct);
            println!("{}", bench::files::plain_read(reading, &files)?);
            Ok(())
        }
        None => bench::run(&cli.options),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_flags_do_not_contradict_each_other() {
        super::Cli::command().debug_assert();
    }
}
