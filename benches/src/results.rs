//! The figures of one run as a file that is kept.
//!
//! The format is described by `benches/results/schema.json` and versioned: [`SCHEMA`] counts up when a reader of the old
//! files would misread the new ones.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{
    figure::{Figure, table},
    machine::Machine,
};

/// The version of the format.
pub const SCHEMA: u32 = 1;

/// Where results are kept, from the workspace.
pub const FOLDER: &str = "benches/results";

/// One run of `cargo xtask bench`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What was measured on.
    pub machine: Machine,
    /// The command of the whole run.
    pub command: String,
    /// Timed runs of everything.
    pub repeats: u16,
    /// In the order in which they were measured.
    pub figures: Vec<Figure>,
    /// What was skipped or failed, and why.
    pub notes: Vec<String>,
}

/// Only this much is read before the version is known to be ours.
#[derive(Deserialize)]
struct Version {
    schema: u32,
}

impl Results {
    /// What a run gave. A figure that is no number, because nothing was measured for it, is left out and noted.
    pub fn new(machine: Machine, command: String, repeats: u16, figures: Vec<Figure>, mut notes: Vec<String>) -> Self {
        let is_number = |figure: &Figure| {
            let mut beside = figure.against.iter().chain(&figure.also);
            figure.value.is_finite() && beside.all(|beside| beside.value.is_finite())
        };
        let (figures, lost): (Vec<_>, Vec<_>) = figures.into_iter().partition(is_number);
        notes.extend(lost.iter().map(|figure| format!("{}: nothing was measured", figure.what)));
        Self { schema: SCHEMA, machine, command, repeats, figures, notes }
    }

    /// Reads a kept file.
    ///
    /// # Errors
    /// If it cannot be read, or is of another version.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let version: Version = serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
        let found = version.schema;
        ensure!(found == SCHEMA, "{}: expected results of schema {SCHEMA}, found {found}", path.display());
        serde_json::from_str(&text).with_context(|| format!("{}", path.display()))
    }

    /// Writes it to the folder of results, as `DATE-PROCESSOR.json` or the first free `DATE-PROCESSOR-N.json`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep(&self, workspace: &Path) -> Result<PathBuf> {
        let folder = workspace.join(FOLDER);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let name = format!("{}-{}", self.machine.date, self.machine.slug());
        for number in 1..1000 {
            let more = if number == 1 { String::new() } else { format!("-{number}") };
            let path = folder.join(format!("{name}{more}.json"));
            if !path.exists() {
                let text = serde_json::to_string_pretty(self).context("the figures as JSON")? + "\n";
                fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
                return Ok(path);
            }
        }
        bail!("{} has a thousand results of today", folder.display())
    }

    /// The machine, the table and the notes, as a terminal and a Markdown page show them.
    pub fn text(&self) -> String {
        let mut text = format!("{}. {}.\n\n{}", self.machine, runs(self.repeats), table(&self.figures));
        if !self.notes.is_empty() {
            text.push_str("\nNotes:\n\n");
            text.extend(self.notes.iter().map(|note| format!("- {note}\n")));
        }
        text
    }
}

/// How often everything was run, in words.
pub fn runs(repeats: u16) -> String {
    match repeats {
        1 => "One run each".to_owned(),
        repeats => format!("Medians of {repeats} runs in turns"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::{Asked, Case, Unit};

    fn schema() -> jsonschema::Validator {
        jsonschema::validator_for(&serde_json::from_str(include_str!("../results/schema.json")).unwrap()).unwrap()
    }

    fn problems(schema: &jsonschema::Validator, json: &serde_json::Value) -> Vec<String> {
        schema.iter_errors(json).map(|error| error.to_string()).collect()
    }

    /// Everything that a figure can have.
    fn results() -> Results {
        let case =
            Case { model: "gpt2".into(), parameters: 124, dtype: "f32".into(), tokens: Some(45), blocks: Some(3) };
        let full = Figure::new("forward", 2.0, Unit::Seconds, "a").asked(Asked::TimesAtMost(1.15)).case(case);
        let full = full.floor([("BLAS".to_owned(), 1.0), ("oneDNN".to_owned(), 1.5)]);
        let lost = Figure::new("lost", f64::NAN, Unit::Count, "b");
        let bare = Figure::new("bare", 1.0, Unit::TokensPerSecond, "b");
        let machine = Machine {
            processor: "AMD EPYC".into(),
            vendor: "AuthenticAMD".into(),
            cores: 2,
            date: "2026-01-31".into(),
            ..Machine::default()
        };
        Results::new(machine, "cargo xtask bench".into(), 5, vec![full, lost, bare], vec!["a note".into()])
    }

    #[test]
    fn what_is_kept_is_what_was_measured_and_fits_the_schema() {
        let folder = tempfile::tempdir().unwrap();
        let results = results();
        let first = results.keep(folder.path()).unwrap();
        assert!(first.ends_with("benches/results/2026-01-31-amd-epyc-2-cores.json"), "{}", first.display());
        let second = results.keep(folder.path()).unwrap();
        assert!(second.ends_with("2026-01-31-amd-epyc-2-cores-2.json"), "{}", second.display());
        assert_eq!(Results::read(&second).unwrap(), results);
        assert_eq!(results.notes, ["a note", "lost: nothing was measured"]);
        let schema = schema();
        assert_eq!(problems(&schema, &serde_json::to_value(&results).unwrap()), Vec::<String>::new());
    }

    #[test]
    fn the_fixture_fits_the_schema_as_it_is_on_disk() {
        let schema = schema();
        for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/results")).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            assert_eq!(problems(&schema, &serde_json::from_str(&text).unwrap()), Vec::<String>::new());
        }
        assert!(!problems(&schema, &serde_json::json!({ "schema": 1 })).is_empty());
    }

    #[test]
    fn another_version_is_refused_by_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new.json");
        fs::write(&path, r#"{"schema": 2, "everything": "else"}"#).unwrap();
        let error = Results::read(&path).unwrap_err().to_string();
        assert!(error.contains("expected results of schema 1, found 2"), "{error}");
    }
}
