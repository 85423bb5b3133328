//! The table: everything the lens found, as plain data.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::measure::Measure;
use crate::schema::SCHEMA;
use crate::table_error::TableError;

/// What [`Table::lens`] says of a tuned lens.
pub const TUNED: &str = "tuned";
/// What [`Table::lens`] says of a Jacobian lens.
pub const JACOBIAN: &str = "jacobian";

/// What each row of the lens believes at each position: plain data, no tensors, nothing left to compute.
///
/// # Shapes
///
/// With `P` = `positions.len()`, every row has `P` entries in `top1`, in `top1_text`, in each vector of `values` and,
/// if it is there, in `top_k`. `tokens` covers the whole input; `positions` index into it.
///
/// # Display
///
/// A table displays as the heatmap of each measure ([`terminal`](crate::terminal)), without colours, in 80 columns or the width
/// that the format asks for (`{table:120}`).
///
/// # JSON
///
/// [`to_json`](Self::to_json) writes the lens JSON, `schema` 1, described by `schema/lens-table-1.schema.json` in this
/// crate. JSON has no numbers that are not finite: they are written as `null` and read back as NaN. Fields this version
/// does not know are ignored on reading.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Document")]
pub struct Table {
    /// The model's name, for the title.
    pub model: String,
    /// The dtype of the weights it ran in: `f32`, `bf16` or `f16`.
    pub dtype: String,
    /// What decoded the rows: `None` for the logit lens, [`TUNED`] for translators, [`JACOBIAN`] for Jacobians.
    pub lens: Option<String>,
    /// The measures that every row has values of, in the order they were asked for.
    pub measures: Vec<Measure>,
    /// The whole input.
    pub tokens: Vec<Token>,
    /// The decoded positions, strictly ascending indices into `tokens`.
    pub positions: Vec<usize>,
    /// The rows in execution order: the input first, the output last.
    pub rows: Vec<Row>,
}

/// One token of the input.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Token {
    /// Its id in the vocabulary.
    pub id: i64,
    /// Its text as it is (see [`token_text_from_bytes`](crate::token_text_from_bytes)), not as it is shown.
    pub text: String,
}

/// What one place in the model believes at each decoded position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The name of the place: `input`, `h.3`, `h.3.attn`, ...
    pub name: String,
    /// The token it thinks likeliest to come next, for each position.
    pub top1: Vec<i64>,
    /// The texts of those tokens.
    pub top1_text: Vec<String>,
    /// For each of the table's measures, one value per position.
    #[serde(with = "values")]
    pub values: BTreeMap<Measure, Vec<f64>>,
    /// The likeliest tokens of each position, best first, if they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<Vec<Vec<TopK>>>,
}

/// One of the likeliest tokens of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopK {
    /// Its id in the vocabulary.
    pub id: i64,
    /// Its text.
    pub text: String,
    /// Its probability, in 0..=1.
    #[serde(with = "number")]
    pub prob: f64,
}

/// What the last row predicts at one position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// The token predicted to come next.
    pub id: i64,
    /// Its text.
    pub text: String,
    /// Whether it is the token that really comes next; `None` at the end of the input.
    pub right: Option<bool>,
}

impl Table {
    /// Reads and checks a table written by [`to_json`](Self::to_json).
    ///
    /// # Errors
    ///
    /// Whatever is wrong with it, by name; see [`check`](Self::check).
    pub fn from_json(json: &str) -> Result<Self, TableError> {
        // The version comes first: a newer file should be told apart from a broken one.
        let value: serde_json::Value = serde_json::from_str(json)?;
        if let Some(found) = value.get("schema").and_then(serde_json::Value::as_u64)
            && found != u64::from(SCHEMA)
        {
            return Err(TableError::Schema { found });
        }
        serde_json::from_value::<Document>(value)?.try_into()
    }

    /// Writes the lens JSON, `schema` 1, on one line.
    ///
    /// # Errors
    ///
    /// None in practice: everything in a table has a form in JSON.
    pub fn to_json(&self) -> Result<String, TableError> {
        Ok(serde_json::to_string(self)?)
    }

    /// Checks that all lengths agree, that the positions ascend within the input, and that each row has values of
    /// exactly the listed measures.
    ///
    /// # Errors
    ///
    /// The first disagreement found.
    pub fn check(&self) -> Result<(), TableError> {
        for (index, measure) in self.measures.iter().enumerate() {
            if self.measures.iter().take(index).any(|earlier| earlier == measure) {
                return Err(TableError::DuplicateMeasure { measure: measure.clone() });
            }
        }
        let mut before = None;
        for &position in &self.positions {
            if position >= self.tokens.len() {
                return Err(TableError::PositionOutside { position, tokens: self.tokens.len() });
            }
            if let Some(before) = before
                && before >= position
            {
                return Err(TableError::PositionOrder { before, position });
            }
            before = Some(position);
        }
        self.rows.iter().enumerate().try_for_each(|(index, row)| self.check_row(index, row))
    }

    fn check_row(&self, index: usize, row: &Row) -> Result<(), TableError> {
        let length = |field: &str, found: usize| {
            if found == self.positions.len() {
                return Ok(());
            }
            let (name, field) = (row.name.clone(), field.to_owned());
            Err(TableError::RowLength { row: index, name, field, expected: self.positions.len(), found })
        };
        length("top1", row.top1.len())?;
        length("top1_text", row.top1_text.len())?;
        if let Some(top_k) = &row.top_k {
            length("top_k", top_k.len())?;
        }
        for measure in &self.measures {
            let Some(values) = row.values.get(measure) else {
                return Err(TableError::MissingValues { row: index, name: row.name.clone(), measure: measure.clone() });
            };
            length(&measure.to_string(), values.len())?;
        }
        match row.values.keys().find(|measure| !self.measures.contains(measure)) {
            Some(measure) => {
                Err(TableError::UnlistedValues { row: index, name: row.name.clone(), measure: measure.clone() })
            }
            None => Ok(()),
        }
    }

    /// The values of a measure: one slice per row, one value per position.
    ///
    /// # Errors
    ///
    /// [`TableError::MeasureNotInTable`], naming the measures there are.
    pub fn values(&self, measure: &Measure) -> Result<Vec<&[f64]>, TableError> {
        if !self.measures.contains(measure) {
            let available = self.measures.iter().map(ToString::to_string).collect();
            return Err(TableError::MeasureNotInTable { measure: measure.clone(), available });
        }
        Ok(self.rows.iter().map(|row| row.values.get(measure).map_or(&[][..], Vec::as_slice)).collect())
    }

    /// What the last row predicts at each position, and whether it is right. Empty if there are no rows.
    pub fn predictions(&self) -> Vec<Prediction> {
        let Some(last) = self.rows.last() else { return Vec::new() };
        let predicted = last.top1.iter().zip(&last.top1_text);
        self.positions
            .iter()
            .zip(predicted)
            .map(|(position, (&id, text))| {
                let next = self.tokens.get(position + 1);
                Prediction { id, text: text.clone(), right: next.map(|next| next.id == id) }
            })
            .collect()
    }

    /// The dtype, and the lens where it is not the logit lens, for titles.
    pub(crate) fn setting(&self) -> String {
        match &self.lens {
            Some(lens) => format!("{}, {lens} lens", self.dtype),
            None => self.dtype.clone(),
        }
    }

    /// The token at each decoded position: what was fed to the model there.
    pub fn inputs(&self) -> Vec<&Token> {
        self.positions.iter().filter_map(|&position| self.tokens.get(position)).collect()
    }
}

impl Serialize for Table {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Borrowed<'a> {
            schema: u32,
            model: &'a str,
            dtype: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            lens: Option<&'a str>,
            measures: &'a [Measure],
            tokens: &'a [Token],
            positions: &'a [usize],
            rows: &'a [Row],
        }
        let Self { model, dtype, lens, measures, tokens, positions, rows } = self;
        let lens = lens.as_deref();
        Borrowed { schema: SCHEMA, model, dtype, lens, measures, tokens, positions, rows }.serialize(serializer)
    }
}

/// The JSON before it is checked.
#[derive(Deserialize)]
struct Document {
    schema: u64,
    model: String,
    dtype: String,
    #[serde(default)]
    lens: Option<String>,
    measures: Vec<Measure>,
    tokens: Vec<Token>,
    positions: Vec<usize>,
    rows: Vec<Row>,
}

impl TryFrom<Document> for Table {
    type Error = TableError;

    fn try_from(document: Document) -> Result<Self, TableError> {
        let Document { schema, model, dtype, lens, measures, tokens, positions, rows } = document;
        if schema != u64::from(SCHEMA) {
            return Err(TableError::Schema { found: schema });
        }
        let table = Self { model, dtype, lens, measures, tokens, positions, rows };
        table.check()?;
        Ok(table)
    }
}

/// A number that may not be finite: `null` in JSON.
mod number {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        if value.is_finite() { serializer.serialize_f64(*value) } else { serializer.serialize_none() }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }
}

/// A number that may be absent; one that is not finite is as good as that.
pub(crate) mod optional_number {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[allow(clippy::ref_option)] // serde hands it over like that
    pub(crate) fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        value.filter(|value| value.is_finite()).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        Option::deserialize(deserializer)
    }
}

/// Numbers, with `null` for those that are not finite.
pub(crate) mod numbers {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(values: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(|value| value.is_finite().then_some(*value)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
        let values = Vec::<Option<f64>>::deserialize(deserializer)?;
        Ok(values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect())
    }
}

/// Values by measure, with `null` for numbers that are not finite.
mod values {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    use crate::measure::Measure;

    pub(super) fn serialize<S: Serializer>(
        values: &BTreeMap<Measure, Vec<f64>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(values.iter().map(|(measure, values)| {
            let values: Vec<Option<f64>> = values.iter().map(|value| value.is_finite().then_some(*value)).collect();
            (measure, values)
        }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<Measure, Vec<f64>>, D::Error> {
        let values = BTreeMap::<Measure, Vec<Option<f64>>>::deserialize(deserializer)?;
        let finite = |values: Vec<Option<f64>>| values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect();
        Ok(values.into_iter().map(|(measure, values)| (measure, finite(values))).collect())
    }
}

#[cfg(test)]
mod tests;
