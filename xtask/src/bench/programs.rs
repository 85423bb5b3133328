//! The programs that are measured, built by Cargo.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{environment::Environment, steps};

/// The name of the bench.
pub const INSIDE: &str = "inside";

const EXAMPLES: [&str; 4] = ["activations", "load", "logit_lens", "synth"];

/// Where the programs are.
#[derive(Debug, Default)]
pub struct Programs(HashMap<String, PathBuf>);

impl Programs {
    /// Builds them.
    ///
    /// # Errors
    /// If they do not compile.
    pub fn build(environment: &Environment) -> Result<Self> {
        let mut examples = vec!["build", "--release"];
        examples.extend(EXAMPLES.iter().flat_map(|name| ["--example", name]));
        let mut programs = HashMap::new();
        for arguments in [&examples[..], &["bench", "--no-run", "--bench", INSIDE]] {
            eprintln!("> cargo {}", arguments.join(" "));
            let mut command = steps::cargo(environment);
            // Cargo says where the programs are; its own output stays readable.
            command.args(arguments).arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
            let output = command.output().context("starting Cargo")?;
            ensure!(output.status.success(), "`cargo {}` ended with {}", arguments.join(" "), output.status);
            programs.extend(executables(&String::from_utf8_lossy(&output.stdout)));
        }
        Ok(Self(programs))
    }

    /// One of them.
    ///
    /// # Errors
    /// If Cargo did not say where it is.
    pub fn get(&self, name: &str) -> Result<&Path> {
        self.0.get(name).map(PathBuf::as_path).with_context(|| format!("Cargo did not say where {name} is"))
    }
}

/// Names and places of the programs in Cargo's messages.
fn executables(messages: &str) -> Vec<(String, PathBuf)> {
    let program = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let name = message["target"]["name"].as_str()?.to_owned();
        Some((name, message["executable"].as_str()?.into()))
    };
    messages.lines().filter_map(program).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"lowmem","kind":["lib"]},"executable":null}
{"reason":"compiler-artifact","target":{"name":"load","kind":["example"]},"executable":"/t/release/examples/load"}
not json
{"reason":"build-finished","success":true}"#;
        assert_eq!(executables(messages), [("load".to_owned(), PathBuf::from("/t/release/examples/load"))]);
    }
}
