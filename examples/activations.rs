//! Writes activations by name, running no further than the deepest.

mod common;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    model: common::model::ModelFlags,
    #[command(flatten)]
    input: common::input::InputFlags,
}

fn main() -> ExitCode {
    common::main(run)
}

fn run(flags: Flags) -> Result<()> {
    let opened = flags.model.open()?;
    let rows = flags.input.read(&opened)?;
    common::print(format!("{} {:?}", opened.placement(), rows))
}
