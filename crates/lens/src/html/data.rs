//! What the script of a page finds in it.

use std::collections::HashMap;

use serde::Serialize;

use crate::compare::Comparison;
use crate::grid::Grid;
use crate::measure::Measure;
use crate::picture::{PictureError, Style};
use crate::scale::Scale;
use crate::table::{Table, Token};
use crate::table_error::TableError;
use crate::token_text::{display_label, display_token};
use crate::view::{Layer, View};

/// Enough stops that the colours between them differ by less than can be seen.
pub(super) const STOPS: u32 = 33;

/// What the script finds in the page.
#[derive(Serialize)]
pub(super) struct Data {
    top_down: bool,
    comparison: bool,
    max_columns: usize,
    /// Of a grid: what a column is, and what several are.
    #[serde(skip_serializing_if = "Option::is_none")]
    grid: Option<(&'static str, &'static str)>,
    measures: Vec<MeasureData>,
    /// Every text that is shown, once.
    texts: Vec<String>,
    inputs: Vec<Input>,
    predictions: Vec<PredictionData>,
    rows: Vec<RowData>,
}

#[derive(Serialize)]
struct MeasureData {
    name: String,
    heading: String,
    unit: &'static str,
    /// Of a grid: how its numbers are written.
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<FormatData>,
    transform: &'static str,
    low: f64,
    high: f64,
    stops: Vec<String>,
    ticks: Vec<TickData>,
}

#[derive(Serialize)]
struct FormatData {
    decimals: Option<usize>,
    signed: bool,
}

#[derive(Serialize)]
pub(super) struct TickData {
    fraction: f64,
    label: String,
}

#[derive(Serialize)]
struct Input {
    /// The number of the position, head or neuron.
    position: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<usize>,
    /// The other input's token where it differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    corrupted: Option<usize>,
}

#[derive(Serialize)]
struct PredictionData {
    text: usize,
    right: bool,
}

#[derive(Serialize)]
struct RowData {
    name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ids: Vec<i64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top1: Vec<usize>,
    /// Of a comparison: what stood in each cell that changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    before: Vec<Option<usize>>,
    /// For each measure; single precision is more than is shown, and half as long. Not finite is `null`.
    values: Vec<Vec<Option<f32>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<Vec<Best>>,
}

/// The likeliest tokens of a cell: the number of each text, and its probability.
type Best = Vec<(usize, Option<f32>)>;

/// Gives every text that is shown a number.
#[derive(Default)]
struct Texts {
    numbers: HashMap<String, usize>,
    texts: Vec<String>,
}

impl Texts {
    fn number(&mut self, text: &str) -> usize {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = self.texts.len();
        self.numbers.insert(text.to_owned(), number);
        self.texts.push(display_token(text));
        number
    }
}

pub(super) fn table_data(
    view: View<'_>,
    table: &Table,
    comparison: Option<&Comparison>,
    style: &Style,
) -> Result<Data, PictureError> {
    let mut texts = Texts::default();
    let input = |(&position, token): (&usize, &Token)| Input {
        position: position as i64,
        text: Some(texts.number(&token.text)),
        corrupted: None,
    };
    let inputs = table.positions.iter().zip(table.inputs()).map(input).collect();
    let predictions = table
        .predictions()
        .into_iter()
        .map(|prediction| PredictionData {
            text: texts.number(&prediction.text),
            right: prediction.right == Some(true),
        })
        .collect();
    let rows = (0..table.rows.len()).filter_map(|row| row_data(view, table, comparison, row, &mut texts)).collect();
    let measure = |measure: &Measure| {
        let layer = view.layer(Some(measure))?;
        Ok(MeasureData { name: display_label(&measure.to_string()), unit: measure.unit(), ..measure_data(&layer) })
    };
    Ok(Data {
        top_down: style.top_down,
        comparison: comparison.is_some(),
        max_columns: style.max_columns.max(1),
        grid: None,
        measures: table.measures.iter().map(measure).collect::<Result<_, TableError>>()?,
        texts: texts.texts,
        inputs,
        predictions,
        rows,
    })
}

pub(super) fn grid_data(view: View<'_>, grid: &Grid, style: &Style) -> Result<Data, PictureError> {
    let mut texts = Texts::default();
    let input = |column: usize| {
        let (token, corrupted) = (grid.token(column), grid.corrupted_token(column));
        Input {
            position: grid.column_number(column),
            text: token.map(|token| texts.number(&token.text)),
            corrupted: corrupted.filter(|_| corrupted != token).map(|token| texts.number(&token.text)),
        }
    };
    let inputs = (0..view.columns()).map(input).collect();
    let row = |(name, values): (String, &Vec<f64>)| RowData {
        name,
        ids: Vec::new(),
        top1: Vec::new(),
        before: Vec::new(),
        values: vec![values.iter().map(|value| single(*value)).collect()],
        top_k: None,
    };
    let format = grid.number_format();
    let format = Some(FormatData { decimals: format.decimals, signed: format.signed });
    Ok(Data {
        top_down: style.top_down,
        comparison: false,
        max_columns: style.max_columns.max(1),
        grid: Some(grid.column_noun()),
        measures: vec![MeasureData { format, ..measure_data(&view.layer(None)?) }],
        rows: view.names().into_iter().zip(&grid.values).map(row).collect(),
        texts: texts.texts,
        inputs,
        predictions: Vec::new(),
    })
}

/// Single precision is more than is shown.
pub(super) fn single(value: f64) -> Option<f32> {
    value.is_finite().then_some(value as f32)
}

fn row_data(
    view: View<'_>,
    table: &Table,
    comparison: Option<&Comparison>,
    index: usize,
    texts: &mut Texts,
) -> Option<RowData> {
    let row = table.rows.get(index)?;
    let top_k = row.top_k.as_ref().map(|positions| {
        let cell = |best: &Vec<crate::TopK>, texts: &mut Texts| {
            best.iter().map(|one| (texts.number(&one.text), single(one.prob))).collect()
        };
        positions.iter().map(|best| cell(best, texts)).collect()
    });
    let before = comparison.and_then(|comparison| comparison.before().rows.get(index));
    let before = before.into_iter().flat_map(|row| &row.top1_text).enumerate();
    let before: Vec<Option<usize>> =
        before.map(|(column, text)| view.changed(index, column).then(|| texts.number(text))).collect();
    Some(RowData {
        name: display_label(&row.name),
        ids: row.top1.clone(),
        top1: row.top1_text.iter().map(|text| texts.number(text)).collect(),
        before,
        values: table
            .measures
            .iter()
            .map(|measure| row.values.get(measure).into_iter().flatten().map(|value| single(*value)).collect())
            .collect(),
        top_k,
    })
}

/// The colours and the colour bar of a layer, without a name.
fn measure_data(layer: &Layer<'_>) -> MeasureData {
    let (transform, low, high) = layer.scale.range();
    MeasureData {
        name: String::new(),
        heading: layer.heading.clone(),
        unit: "",
        format: None,
        transform: transform.name(),
        low,
        high,
        stops: stops(&layer.scale),
        ticks: ticks(&layer.scale),
    }
}

/// Colours of a scale at even distances.
pub(super) fn stops(scale: &Scale) -> Vec<String> {
    (0..STOPS).map(|index| scale.color_at(f64::from(index) / f64::from(STOPS - 1)).hex()).collect()
}

/// The labels of the colour bar.
pub(super) fn ticks(scale: &Scale) -> Vec<TickData> {
    scale.ticks(0.12).into_iter().map(|tick| TickData { fraction: tick.fraction, label: tick.label }).collect()
}
