//! What every object says of itself.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::sink::Unit;

/// Under which key it stands in an object's metadata.
pub(super) const KEY: &str = "transformer_utils_corpus";

/// A unit as its object tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct UnitRecord {
    /// The fingerprint of the job.
    pub(super) job: String,
    pub(super) unit: usize,
    pub(super) input: Option<String>,
    pub(super) first: Option<u64>,
    pub(super) lines: u64,
    pub(super) tokens: usize,
    pub(super) texts: Vec<TextRecord>,
}

/// Id, line within the unit, first row, rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct TextRecord(pub(super) Option<Value>, pub(super) u64, pub(super) Option<usize>, pub(super) usize);

impl UnitRecord {
    /// `in_order`: whether the rows stand as the unit had them.
    pub(super) fn of(unit: &Unit, job: String, in_order: bool) -> Self {
        let text = |text: &super::sink::Text| {
            TextRecord(text.id.clone(), text.at, text.start.filter(|_| in_order), text.tokens)
        };
        Self {
            job,
            unit: unit.number,
            input: unit.input.clone(),
            first: unit.first,
            lines: unit.lines,
            tokens: unit.tokens,
            texts: unit.texts.iter().map(text).collect(),
        }
    }
}
