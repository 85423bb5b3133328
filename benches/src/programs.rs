//! The programs that are measured, built by Cargo.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The program that measures what only one process can.
pub const INSIDE: &str = "inside";

/// The Rust peer's program.
pub const CANDLE: &str = "candle-peer";

const EXAMPLES: [&str; 4] = ["activations", "load", "logit_lens", "synth"];

/// Where the programs are.
#[derive(Debug, Default)]
pub struct Programs(HashMap<String, PathBuf>);

impl Programs {
    /// Builds those of the workspace at `workspace`.
    ///
    /// # Errors
    /// If they do not compile.
    pub fn build(workspace: &Path) -> Result<Self> {
        // All at once: features are then the same for all, and nothing is compiled twice.
        let mut arguments = vec!["build", "--release", "-p", "transformer-utils", "-p", "bench", "--bin", INSIDE];
        arguments.extend(EXAMPLES.iter().flat_map(|name| ["--example", name]));
        let mut programs = Self::default();
        programs.add(workspace, &arguments)?;
        Ok(programs)
    }

    /// Builds candle's, which is no part of the workspace, beside the others' build outputs.
    ///
    /// # Errors
    /// If it does not compile.
    pub fn build_candle(&mut self, workspace: &Path) -> Result<()> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
        let target = target.join("candle").display().to_string();
        let manifest = "benches/candle/Cargo.toml";
        self.add(workspace, &["build", "--release", "--locked", "--manifest-path", manifest, "--target-dir", &target])
    }

    fn add(&mut self, workspace: &Path, arguments: &[&str]) -> Result<()> {
        eprintln!("> cargo {}", arguments.join(" "));
        let mut command = cargo(workspace);
        // Cargo says where the programs are; its own output stays readable.
        command.args(arguments).arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
        let output = command.output().context("starting Cargo")?;
        ensure!(output.status.success(), "`cargo {}` ended with {}", arguments.join(" "), output.status);
        self.0.extend(executables(&String::from_utf8_lossy(&output.stdout)));
        Ok(())
    }

    /// One of them.
    ///
    /// # Errors
    /// If Cargo did not say where it is.
    pub fn get(&self, name: &str) -> Result<&Path> {
        self.0.get(name).map(PathBuf::as_path).with_context(|| format!("Cargo did not say where {name} is"))
    }
}

/// A command of this Cargo, run in the workspace.
fn cargo(workspace: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace);
    // What Cargo has set for us would look like changes to build scripts that watch it (ring's does), and half of the
    // workspace would be compiled again whenever another program starts Cargo.
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    // The value from .cargo/config.toml: handed on, it would look to Cargo like the user's, and a later plain
    // `cargo build`, without it, might build torch-sys again.
    if std::env::var_os("LIBTORCH").is_some_and(|libtorch| Path::new(&libtorch) == workspace.join(".libtorch")) {
        command.env_remove("LIBTORCH");
    }
    command
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
