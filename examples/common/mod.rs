//! What the example programs share: flags, the model behind them, the input, output files, errors.

#![allow(dead_code)] // every program uses its own part

pub mod output;

use std::process::ExitCode;

/// Runs a program: an error becomes one line on standard error and exit code 2.
pub fn main(program: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    match program() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A closed pipe (`| head`) is the reader's choice, not a failure.
            let closed = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
            if closed.into_iter().any(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
                return ExitCode::SUCCESS;
            }
            eprintln!("error: {}", one_line(&error));
            ExitCode::from(2)
        }
    }
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
