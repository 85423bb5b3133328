//! What says whether two jobs are the same.

use serde_json::{Map, Value};

use super::error::{Error, Result};

/// What a `job.json` has beside the fields.
const FINGERPRINT: &str = "fingerprint";

/// A job as its output knows it: model, corpus, names and options. Outputs of jobs with equal identities are equal byte for byte.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    pub(super) fields: Map<String, Value>,
    pub(super) units: usize,
    pub(super) names: Vec<String>,
    /// `[tokens]` goes before; -1 for keys.
    pub(super) shapes: Vec<Vec<i64>>,
}

impl Identity {
    /// How many units the job has.
    pub fn units(&self) -> usize {
        self.units
    }

    /// The names that are captured.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The fields by their names.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// The same with a field of the sink's own.
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(field.to_owned(), value.into());
        self
    }

    /// Sixteen hexadecimal digits that differ for jobs that differ.
    pub fn fingerprint(&self) -> String {
        hash(Value::Object(self.fields.clone()).to_string().into_bytes())
    }

    /// The text of a `job.json`.
    pub(super) fn to_json(&self) -> String {
        let mut fields = self.fields.clone();
        fields.insert(FINGERPRINT.into(), self.fingerprint().into());
        format!("{:#}\n", Value::Object(fields))
    }

    /// Refuses the `job.json` of another job, naming what differs.
    pub(super) fn compare(&self, place: &str, found: &Value) -> Result<()> {
        // A field may be there in one of the two only.
        let theirs = found.as_object().into_iter().flat_map(Map::keys).filter(|field| *field != FINGERPRINT);
        for field in self.fields.keys().chain(theirs) {
            let [value, other] = [self.fields.get(field), found.get(field)].map(|value| value.unwrap_or(&Value::Null));
            if other != value {
                let place = place.to_owned();
                let (found, expected) = (shortened(other), shortened(value));
                return Err(Error::OtherJob { place, field: field.clone(), found, expected });
            }
        }
        Ok(())
    }
}

/// A value for a message; lists of files can be long.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// FNV-1a: the same in every build, which the standard library's hasher does not promise.
pub(super) fn hash(bytes: impl IntoIterator<Item = u8>) -> String {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, step))
}
