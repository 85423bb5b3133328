//! A grid of numbers: what patches, attributions and other measurements of many places found, as plain data.

mod document;

use partial::{Columns, Effects};
use serde::{Deserialize, Serialize};

use document::Document;

use crate::{
    scale::Scale,
    table::Token,
    table_error::TableError,
    token_text::{display_label, display_token},
    view::Edge,
};

/// The number in the `schema` field of the grid JSON this version reads and writes.
pub const GRID_SCHEMA: u32 = 1;

/// One number for each site and each position, head or neuron of it: plain data, drawn by the same renderers as a
/// [`Table`](crate::Table).
///
/// # Shapes
///
/// `values` has one vector for each of `rows`, with one number for each of `columns`; NaN where a site has no such place. Where
/// the columns are positions and `tokens` is not empty, they index into it.
///
/// # Display
///
/// A grid displays as its heatmap ([`terminal`](crate::terminal)), without colours, in 80 columns or the width that the format
/// asks for (`{grid:120}`).
///
/// # JSON
///
/// [`to_json`](Self::to_json) writes the grid JSON, `schema` 1, described by `schema/lens-grid-1.schema.json` in this crate.
/// Numbers that are not finite are written as `null` and read back as NaN.
///
/// ```
/// use lens::{Columns, Grid, Shading};
/// let grid = Grid {
///     model: "tiny".into(),
///     method: "patched".into(),
///     metric: "logit difference".into(),
///     rows: vec!["h.0.attn.z".into(), "h.1.attn.z".into()],
///     columns: Columns::Heads(vec![0, 1]),
///     tokens: Vec::new(),
///     corrupted_tokens: None,
///     values: vec![vec![0.0, 0.25], vec![1.5, f64::NAN]],
///     shading: Shading::Around(0.0),
///     clean: Some(2.0),
///     corrupted: Some(-1.0),
/// };
/// println!("{grid}");
/// assert!(grid.to_string().contains("+1.50"));
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Document")]
pub struct Grid {
    /// The model's name, for the title.
    pub model: String,
    /// What was done: `patched`, `attribution patching`, `direct logit attribution`.
    pub method: String,
    /// What the numbers are, with their unit.
    pub metric: String,
    /// The names of the places, in the order of execution.
    pub rows: Vec<String>,
    /// What the columns are.
    pub columns: Columns,
    /// The whole input; empty where there is none to show.
    pub tokens: Vec<Token>,
    /// The other input where there are two, the corrupted one: as many tokens.
    pub corrupted_tokens: Option<Vec<Token>>,
    /// For each row, one number for each column.
    pub values: Vec<Vec<f64>>,
    /// How the numbers are coloured.
    pub shading: Shading,
    /// The metric of the clean run, where there is one.
    pub clean: Option<f64>,
    /// The metric of the corrupted run, where there is one.
    pub corrupted: Option<f64>,
}

/// How numbers become colours.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Shading {
    /// In two colours, one for what lies below this number and one for what lies above: zero for effects, the metric of a run for
    /// metrics.
    Around(f64),
    /// In one direction, from the least (or zero, if none is below) to the most: the brighter, the more.
    Upwards,
}

/// How the numbers of one grid are written: all with the same decimals.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct NumberFormat {
    /// None for powers of ten.
    pub(crate) decimals: Option<usize>,
    /// Whether those that are not negative have a plus.
    pub(crate) signed: bool,
}

impl NumberFormat {
    /// Two or three digits of the largest of the numbers.
    fn of(values: impl Iterator<Item = f64>, signed: bool) -> Self {
        let most = values.filter(|value| value.is_finite()).map(f64::abs).fold(0.0, f64::max);
        let decimals = match most {
            _ if most >= 99.5 => Some(0),
            _ if most >= 9.95 => Some(1),
            _ if most >= 0.0995 || most == 0.0 => Some(2),
            _ if most >= 0.000_95 => Some(4),
            _ => None,
        };
        Self { decimals, signed }
    }

    /// A number in short; `–` for one that is not finite.
    pub(crate) fn short(self, value: f64) -> String {
        if !value.is_finite() {
            return "–".into();
        }
        let text = match self.decimals {
            Some(decimals) => format!("{value:.decimals$}"),
            None if value == 0.0 => "0".into(),
            None => format!("{value:.0e}"),
        };
        // What rounds to nothing has no sign.
        let zero = text.trim_start_matches('-').bytes().all(|byte| matches!(byte, b'0' | b'.'));
        match text.strip_prefix('-') {
            Some(size) if zero => size.into(),
            Some(_) => text.replace('-', "−"),
            None if self.signed && !zero => format!("+{}", text.replace('-', "−")),
            None => text.replace('-', "−"),
        }
    }
}

impl Grid {
    /// The effects on a model called `model`, two-sided around zero.
    pub fn new(model: impl Into<String>, effects: &Effects) -> Self {
        Self {
            model: model.into(),
            method: effects.method.clone(),
            metric: effects.metric.clone(),
            rows: effects.rows.clone(),
            columns: effects.columns.clone(),
            tokens: Vec::new(),
            corrupted_tokens: None,
            values: effects.values.clone(),
            shading: Shading::Around(0.0),
            clean: effects.clean,
            corrupted: effects.corrupted,
        }
    }

    /// The same with the input that the positions belong to.
    pub fn tokens(mut self, tokens: Vec<Token>) -> Self {
        self.tokens = tokens;
        self
    }

    /// The same with the other input; its tokens are shown where they differ.
    pub fn corrupted_tokens(mut self, tokens: impl Into<Option<Vec<Token>>>) -> Self {
        self.corrupted_tokens = tokens.into();
        self
    }

    /// The same with other colours.
    pub fn shading(mut self, shading: Shading) -> Self {
        self.shading = shading;
        self
    }

    /// Reads and checks a grid written by [`to_json`](Self::to_json).
    ///
    /// # Errors
    ///
    /// Whatever is wrong with it, by name; see [`check`](Self::check).
    pub fn from_json(json: &str) -> Result<Self, TableError> {
        let not_a_grid = |source| TableError::GridJson { source };
        let value: serde_json::Value = serde_json::from_str(json).map_err(not_a_grid)?;
        if let Some(found) = value.get("schema").and_then(serde_json::Value::as_u64)
            && found != u64::from(GRID_SCHEMA)
        {
            return Err(TableError::Schema { found });
        }
        serde_json::from_value::<Document>(value).map_err(not_a_grid)?.try_into()
    }

    /// Writes the grid JSON, `schema` 1, on one line.
    ///
    /// # Errors
    ///
    /// None in practice: everything in a grid has a form in JSON.
    pub fn to_json(&self) -> Result<String, TableError> {
        Ok(serde_json::to_string(self)?)
    }

    /// Checks that all lengths agree and that the positions lie within the input.
    ///
    /// # Errors
    ///
    /// The first disagreement found.
    pub fn check(&self) -> Result<(), TableError> {
        let length = |what: &str, expected: usize, found: usize| {
            let what = what.to_owned();
            if found == expected { Ok(()) } else { Err(TableError::GridLength { what, expected, found }) }
        };
        length("rows of values", self.rows.len(), self.values.len())?;
        for (name, values) in self.rows.iter().zip(&self.values) {
            length(&format!("values of the row `{name}`"), self.columns.len(), values.len())?;
        }
        if let Some(corrupted) = &self.corrupted_tokens {
            length("tokens of the corrupted input", self.tokens.len(), corrupted.len())?;
        }
        if let (Columns::Positions(positions), false) = (&self.columns, self.tokens.is_empty()) {
            let tokens = self.tokens.len();
            let outside = positions.iter().find(|position| !(0..tokens as i64).contains(position));
            if let Some(&position) = outside {
                return Err(TableError::GridPosition { position, tokens });
            }
        }
        Ok(())
    }

    /// The token at a column, where the columns are positions of an input that is there.
    pub fn token(&self, column: usize) -> Option<&Token> {
        self.token_of(&self.tokens, column)
    }

    fn token_of<'a>(&self, tokens: &'a [Token], column: usize) -> Option<&'a Token> {
        let Columns::Positions(positions) = &self.columns else { return None };
        tokens.get(usize::try_from(*positions.get(column)?).ok()?)
    }

    /// The other input's token at a column.
    pub fn corrupted_token(&self, column: usize) -> Option<&Token> {
        self.token_of(self.corrupted_tokens.as_deref()?, column)
    }

    /// What the numbers are, with their unit: `patched: logit difference`.
    pub(crate) fn heading(&self) -> String {
        display_label(&format!("{}: {}", self.method, self.metric))
    }

    pub(crate) fn scale(&self) -> Scale {
        let values = self.values.iter().map(Vec::as_slice);
        match self.shading {
            Shading::Around(center) => Scale::around(center, values),
            Shading::Upwards => Scale::upwards(values),
        }
    }

    pub(crate) fn number_format(&self) -> NumberFormat {
        NumberFormat::of(self.values.iter().flatten().copied(), self.shading == Shading::Around(0.0))
    }

    /// The number of a column's position, head or neuron.
    pub(crate) fn column_number(&self, column: usize) -> i64 {
        let numbers = column_numbers(&self.columns);
        numbers.and_then(|numbers| numbers.get(column)).copied().unwrap_or(column as i64)
    }

    /// What a column is, and what several are.
    pub(crate) fn column_noun(&self) -> (&'static str, &'static str) {
        match self.columns {
            Columns::Positions(_) => ("position", "positions"),
            Columns::Heads(_) => ("head", "heads"),
            Columns::Neurons(_) => ("neuron", "neurons"),
            _ => ("column", "columns"),
        }
    }

    /// What stands under the columns, the nearest to the cells first.
    pub(crate) fn edges(&self) -> Vec<Edge> {
        let columns = 0..self.columns.len();
        let shown = |token: Option<&Token>| token.map_or_else(String::new, |token| display_token(&token.text));
        let mut edges = Vec::new();
        if matches!(self.columns, Columns::Positions(_)) && !self.tokens.is_empty() {
            let two = self.corrupted_tokens.is_some();
            let texts = columns.clone().map(|column| shown(self.token(column))).collect();
            edges.push(Edge { name: if two { "clean" } else { "token" }, texts, number: false });
            if two {
                // Where it is the same it need not be said again.
                let other =
                    |column: usize| self.corrupted_token(column).filter(|token| Some(*token) != self.token(column));
                let texts = columns.clone().map(|column| shown(other(column))).collect();
                edges.push(Edge { name: "corrupted", texts, number: false });
            }
        }
        if column_numbers(&self.columns).is_some() {
            let texts = columns.map(|column| self.column_number(column).to_string()).collect();
            edges.push(Edge { name: self.column_noun().0, texts, number: true });
        }
        edges
    }

    /// What is to be said of the grid as a whole.
    pub(crate) fn notes(&self) -> Vec<String> {
        let runs = [("clean", self.clean), ("corrupted", self.corrupted)];
        let known: Vec<(&str, f64)> = runs.iter().filter_map(|(name, value)| Some((*name, (*value)?))).collect();
        let format = NumberFormat::of(known.iter().map(|(_, value)| *value), false);
        let mut notes: Vec<String> =
            known.iter().map(|(name, value)| format!("{name} run: {}", format.short(*value))).collect();
        if self.values.iter().flatten().any(|value| !value.is_finite()) {
            notes.push("empty: nothing there".into());
        }
        notes
    }
}

fn column_numbers(columns: &Columns) -> Option<&[i64]> {
    match columns {
        Columns::Positions(numbers) | Columns::Heads(numbers) | Columns::Neurons(numbers) => Some(numbers),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
