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

use std::io::{ErrorKind, Write};

use clap::{
    Parser,
    error::{ContextKind, ContextValue, ErrorKind as Complaint},
};

/// The exit code of a program that ran.
pub struct Status(pub u8);

impl From<()> for Status {
    fn from((): ()) -> Self {
        Self(0)
    }
}

/// Runs a program on its flags, and ends the process: an error, in the flags or later, becomes one line on standard error and
/// exit code 2.
///
/// Nothing runs after the program: libtorch would take down its thousands of operators one by one, which takes a tenth of a
/// second, to give back memory that the system takes back anyway.
pub fn main<Flags: Parser, S: Into<Status>>(program: impl FnOnce(Flags) -> anyhow::Result<S>) -> ! {
    let Status(mut code) = run(program);
    if let Err(error) = std::io::stdout().flush()
        && error.kind() != ErrorKind::BrokenPipe
    {
        code = fail(&format!("standard output: {error}")).0;
    }
    signal_hook::low_level::exit(code.into())
}

fn run<Flags: Parser, S: Into<Status>>(program: impl FnOnce(Flags) -> anyhow::Result<S>) -> Status {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) if matches!(error.kind(), Complaint::DisplayHelp | Complaint::DisplayVersion) => {
            // Somebody who closes the pipe has read enough of the help.
            let _ = error.print();
            return Status(0);
        }
        Err(error) => return fail(&usage_error(&error)),
    };
    match program(flags) {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            // A closed pipe (`| head`) is the reader's choice, not a failure.
            let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
            if causes.any(|error| error.kind() == ErrorKind::BrokenPipe) {
                return Status(0);
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

fn fail(line: &str) -> Status {
    eprintln!("error: {line}");
    Status(2)
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
