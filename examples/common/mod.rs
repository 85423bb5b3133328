//! What the example programs share: flags, the model behind them, the input, output files, progress, errors.

#![allow(dead_code)] // every program uses its own part

pub mod edits;
pub mod input;
pub mod lens_choice;
pub mod model;
pub mod output;
pub mod pictures;
pub mod progress;
pub mod system;
pub mod table;
pub mod tensors;
pub mod terminal;
pub mod texts;

use std::{
    io::Write,
    process::{ExitCode, Termination},
};

use clap::{
    Parser,
    error::{ContextKind, ContextValue, ErrorKind},
};

/// Runs a program on its flags: an error, in the flags or later, becomes one line on standard error and exit code 2.
pub fn main<Flags: Parser, T: Termination>(program: impl FnOnce(Flags) -> anyhow::Result<T>) -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // Somebody who closes the pipe has read enough of the help.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&usage_error(&error)),
    };
    match program(flags) {
        Ok(outcome) => outcome.report(),
        Err(error) => {
            // A closed pipe (`| head`) is the reader's choice, not a failure.
            let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
            if causes.any(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
                return ExitCode::SUCCESS;
            }
            fail(&one_line(&error))
        }
    }
}

/// Writes `text` and a line end to standard output. Unlike `println!` it does not panic when the reader has gone.
pub fn print(text: impl std::fmt::Display) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(())
}

fn fail(line: &str) -> ExitCode {
    eprintln!("error: {line}");
    ExitCode::from(2)
}

/// What clap says over several lines, on one: the complaint and the nearest flags.
fn usage_error(error: &clap::Error) -> String {
    let text = error.to_string();
    let complaint = text.split("\n\n").next().unwrap_or_default();
    let complaint = complaint.strip_prefix("error: ").unwrap_or(complaint);
    let mut line = complaint.split_whitespace().collect::<Vec<_>>().join(" ");
    for kind in [ContextKind::SuggestedArg, ContextKind::SuggestedValue] {
        match error.get(kind) {
            Some(ContextValue::String(nearest)) => line.push_str(&format!("; nearest: {nearest}")),
            Some(ContextValue::Strings(nearest)) => line.push_str(&format!("; nearest: {}", nearest.join(", "))),
            _ => {}
        }
    }
    format!("{line}; --help lists the flags")
}

/// The chain of causes on one line, without repeating a cause that its wrapper already spells out.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}
