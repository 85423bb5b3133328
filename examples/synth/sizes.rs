//! The sizes that are known by name: published `config.json`s, as data.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

/// What the published configs say, without what changes neither weights nor numbers (dropout in training and the like).
const SIZES: &str = include_str!("sizes.json");

/// A family's sizes, smallest first.
#[derive(Deserialize)]
pub struct Sizes {
    /// What people call the family.
    pub family: String,
    /// The fields that all its configs share.
    shared: Map<String, Value>,
    /// The sizes.
    pub sizes: Vec<Size>,
}

/// One published size.
#[derive(Deserialize)]
pub struct Size {
    /// What `--config` takes.
    pub name: String,
    /// The repository on the Hub whose config it is; none for a size that nobody has published.
    pub hub: Option<String>,
    /// The fields of its own.
    config: Map<String, Value>,
}

/// All families.
pub fn all() -> Result<Vec<Sizes>> {
    serde_json::from_str(SIZES).context("sizes.json")
}

/// The `config.json` of a size, by its name in whatever case.
pub fn config(name: &str) -> Result<Option<Value>> {
    let found = all()?.into_iter().find_map(|family| {
        let own = family.sizes.iter().find(|size| size.name.eq_ignore_ascii_case(name))?;
        Some(family.config(own))
    });
    Ok(found)
}

impl Sizes {
    /// The `config.json` of one of its sizes.
    pub fn config(&self, size: &Size) -> Value {
        let mut fields = self.shared.clone();
        fields.extend(size.config.clone());
        Value::Object(fields)
    }
}

/// All names, a line for each family.
pub fn names() -> String {
    let mut text = String::from("Sizes that --config knows by name:\n");
    for family in all().unwrap_or_default() {
        let names: Vec<&str> = family.sizes.iter().map(|size| size.name.as_str()).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {:12} {}", family.family, names.join(", "));
    }
    text + "llama-xl is nobody's: a Llama of 1.5 billion parameters, to compare with gpt2-xl."
}
