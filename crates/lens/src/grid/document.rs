//! The grid JSON.

use partial::Columns;
use serde::{Deserialize, Serialize};

use super::{GRID_SCHEMA, Grid, Shading};
use crate::{
    table::{Token, numbers, optional_number},
    table_error::TableError,
};

/// The JSON.
#[derive(Serialize, Deserialize)]
pub(super) struct Document {
    schema: u64,
    model: String,
    method: String,
    metric: String,
    columns: ColumnsDocument,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tokens: Vec<Token>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    corrupted_tokens: Option<Vec<Token>>,
    rows: Vec<RowDocument>,
    shading: Shading,
    #[serde(default, with = "optional_number", skip_serializing_if = "Option::is_none")]
    clean: Option<f64>,
    #[serde(default, with = "optional_number", skip_serializing_if = "Option::is_none")]
    corrupted: Option<f64>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ColumnsDocument {
    Whole,
    Positions(Vec<i64>),
    Heads(Vec<i64>),
    Neurons(Vec<i64>),
}

#[derive(Serialize, Deserialize)]
struct RowDocument {
    name: String,
    #[serde(with = "numbers")]
    values: Vec<f64>,
}

impl Serialize for Grid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let columns = match &self.columns {
            Columns::Positions(which) => ColumnsDocument::Positions(which.clone()),
            Columns::Heads(which) => ColumnsDocument::Heads(which.clone()),
            Columns::Neurons(which) => ColumnsDocument::Neurons(which.clone()),
            _ => ColumnsDocument::Whole,
        };
        let rows = self.rows.iter().zip(&self.values);
        let document = Document {
            schema: u64::from(GRID_SCHEMA),
            model: self.model.clone(),
            method: self.method.clone(),
            metric: self.metric.clone(),
            columns,
            tokens: self.tokens.clone(),
            corrupted_tokens: self.corrupted_tokens.clone(),
            rows: rows.map(|(name, values)| RowDocument { name: name.clone(), values: values.clone() }).collect(),
            shading: self.shading,
            clean: self.clean,
            corrupted: self.corrupted,
        };
        document.serialize(serializer)
    }
}

impl TryFrom<Document> for Grid {
    type Error = TableError;

    fn try_from(document: Document) -> Result<Self, TableError> {
        if document.schema != u64::from(GRID_SCHEMA) {
            return Err(TableError::Schema { found: document.schema });
        }
        let (rows, values) = document.rows.into_iter().map(|row| (row.name, row.values)).unzip();
        let grid = Self {
            model: document.model,
            method: document.method,
            metric: document.metric,
            rows,
            columns: match document.columns {
                ColumnsDocument::Whole => Columns::Whole,
                ColumnsDocument::Positions(which) => Columns::Positions(which),
                ColumnsDocument::Heads(which) => Columns::Heads(which),
                ColumnsDocument::Neurons(which) => Columns::Neurons(which),
            },
            tokens: document.tokens,
            corrupted_tokens: document.corrupted_tokens,
            values,
            shading: document.shading,
            clean: document.clean,
            corrupted: document.corrupted,
        };
        grid.check()?;
        Ok(grid)
    }
}
