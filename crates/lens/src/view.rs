//! What a renderer draws: a table, the comparison of two, or a grid of numbers.

use std::ops::Range;

use unicode_width::UnicodeWidthStr;

use crate::compare::Comparison;
use crate::grid::{Grid, NumberFormat};
use crate::measure::Measure;
use crate::scale::Scale;
use crate::table::{Prediction, Table};
use crate::table_error::TableError;
use crate::token_text::{display_label, display_token};

/// What a renderer draws: made from a `&Table`, a `&Comparison` or a `&Grid`.
///
/// A table has several measures, and renderers draw those that they are told to. A grid has one number in each cell; it is drawn
/// with no measure named.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    subject: Subject<'a>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Subject<'a> {
    /// A table, and what it is the difference of.
    Table(&'a Table, Option<&'a Comparison>),
    Grid(&'a Grid),
}

/// The values that colour the cells.
#[derive(Clone, Debug)]
pub(crate) struct Layer<'a> {
    /// What they are, with their unit.
    pub(crate) heading: String,
    pub(crate) scale: Scale,
    format: Format<'a>,
    values: Vec<&'a [f64]>,
}

/// How the values are written in short.
#[derive(Clone, Copy, Debug)]
enum Format<'a> {
    Measure { measure: &'a Measure, signed: bool },
    Number(NumberFormat),
}

/// A line of texts along the input's edge, one for each column.
pub(crate) struct Edge {
    /// What the texts are.
    pub(crate) name: &'static str,
    /// Made safe to show; empty where there is nothing to say.
    pub(crate) texts: Vec<String>,
    /// Whether they are numbers, which step back, rather than tokens.
    pub(crate) number: bool,
}

impl Edge {
    /// The width of the widest, in character cells.
    pub(crate) fn widest(&self) -> usize {
        self.texts.iter().map(|text| text.width()).max().unwrap_or_default()
    }
}

impl<'a> From<&'a Table> for View<'a> {
    fn from(table: &'a Table) -> Self {
        Self { subject: Subject::Table(table, None) }
    }
}

impl<'a> From<&'a Comparison> for View<'a> {
    fn from(comparison: &'a Comparison) -> Self {
        Self { subject: Subject::Table(comparison.difference(), Some(comparison)) }
    }
}

impl<'a> From<&'a Grid> for View<'a> {
    fn from(grid: &'a Grid) -> Self {
        Self { subject: Subject::Grid(grid) }
    }
}

impl Layer<'_> {
    /// The value that colours a cell; NaN where there is none.
    pub(crate) fn value(&self, row: usize, column: usize) -> f64 {
        self.values.get(row).and_then(|values| values.get(column)).copied().unwrap_or(f64::NAN)
    }

    /// A value in short; a difference says its sign.
    pub(crate) fn short(&self, value: f64) -> String {
        match self.format {
            Format::Measure { measure, signed: true } if value.is_finite() && value >= 0.0 => {
                format!("+{}", measure.short(value))
            }
            Format::Measure { measure, .. } => measure.short(value),
            Format::Number(format) => format.short(value),
        }
    }
}

impl<'a> View<'a> {
    pub(crate) fn subject(&self) -> Subject<'a> {
        self.subject
    }

    /// Checks that all lengths agree.
    pub(crate) fn check(&self) -> Result<(), TableError> {
        match self.subject {
            Subject::Table(table, _) => table.check(),
            Subject::Grid(grid) => grid.check(),
        }
    }

    /// The values of a measure, or those that a grid has.
    pub(crate) fn layer<'m>(self, measure: Option<&'m Measure>) -> Result<Layer<'m>, TableError>
    where
        'a: 'm,
    {
        match (self.subject, measure) {
            (Subject::Table(table, comparison), Some(measure)) => {
                let (signed, values) = (comparison.is_some(), table.values(measure)?);
                let slices = values.iter().copied();
                let (heading, scale) = if signed {
                    (format!("Change: {}", measure.heading()), Scale::difference(measure, slices))
                } else {
                    (measure.heading(), Scale::new(measure, slices))
                };
                Ok(Layer { heading, scale, format: Format::Measure { measure, signed }, values })
            }
            (Subject::Grid(grid), None) => Ok(Layer {
                heading: grid.heading(),
                scale: grid.scale(),
                format: Format::Number(grid.number_format()),
                values: grid.values.iter().map(Vec::as_slice).collect(),
            }),
            (Subject::Table(table, _), None) => {
                Err(TableError::NoMeasure { available: table.measures.iter().map(ToString::to_string).collect() })
            }
            (Subject::Grid(_), Some(measure)) => Err(TableError::MeasureOfGrid { measure: measure.clone() }),
        }
    }

    /// What can be asked of it: each measure of a table, and of a grid that which has no name.
    pub(crate) fn measures(self) -> Vec<Option<&'a Measure>> {
        match self.subject {
            Subject::Table(table, _) => table.measures.iter().map(Some).collect(),
            Subject::Grid(_) => vec![None],
        }
    }

    /// One layer for each measure; of a grid, for which none is named, its own.
    #[cfg(feature = "plot")]
    pub(crate) fn layers<'m>(self, measures: &'m [Measure]) -> Result<Vec<Layer<'m>>, TableError>
    where
        'a: 'm,
    {
        match (self.subject, measures) {
            (Subject::Grid(_), []) => Ok(vec![self.layer(None)?]),
            (_, measures) => measures.iter().map(|measure| self.layer(Some(measure))).collect(),
        }
    }

    /// The number of columns.
    pub(crate) fn columns(&self) -> usize {
        match self.subject {
            Subject::Table(table, _) => table.positions.len(),
            Subject::Grid(grid) => grid.columns.len(),
        }
    }

    /// The number of rows.
    pub(crate) fn row_count(&self) -> usize {
        match self.subject {
            Subject::Table(table, _) => table.rows.len(),
            Subject::Grid(grid) => grid.rows.len(),
        }
    }

    /// Whether a token stands in each cell; otherwise it is the value.
    pub(crate) fn tokens_in_cells(&self) -> bool {
        matches!(self.subject, Subject::Table(..))
    }

    /// What stands in a cell.
    pub(crate) fn cell(&self, layer: &Layer<'_>, row: usize, column: usize) -> String {
        match self.subject {
            Subject::Table(table, _) => {
                let text = table.rows.get(row).and_then(|row| row.top1_text.get(column));
                text.map_or_else(String::new, |text| display_token(text))
            }
            Subject::Grid(_) => {
                let value = layer.value(row, column);
                if value.is_finite() { layer.short(value) } else { String::new() }
            }
        }
    }

    /// Whether the comparison marks a cell as changed.
    pub(crate) fn changed(&self, row: usize, column: usize) -> bool {
        matches!(self.subject, Subject::Table(_, Some(comparison)) if comparison.changed(row, column))
    }

    /// What the model predicts at each column, to stand along the output's edge; a grid has no such edge.
    pub(crate) fn predictions(&self) -> Option<Vec<Prediction>> {
        match self.subject {
            Subject::Table(table, _) => Some(table.predictions()),
            Subject::Grid(_) => None,
        }
    }

    /// The lines along the input's edge, the nearest to the cells first.
    pub(crate) fn edges(&self) -> Vec<Edge> {
        match self.subject {
            Subject::Table(table, _) => {
                let tokens = table.inputs().into_iter().map(|token| display_token(&token.text)).collect();
                let positions = table.positions.iter().map(usize::to_string).collect();
                vec![
                    Edge { name: "token", texts: tokens, number: false },
                    Edge { name: "position", texts: positions, number: true },
                ]
            }
            Subject::Grid(grid) => grid.edges(),
        }
    }

    /// The tokens of cells and edges, which decide how wide a column is.
    pub(crate) fn tokens(&self) -> Vec<String> {
        let rows = match self.subject {
            Subject::Table(table, _) => table.rows.as_slice(),
            Subject::Grid(_) => &[],
        };
        let cells = rows.iter().flat_map(|row| &row.top1_text).map(|text| display_token(text));
        cells.chain(self.edges().into_iter().filter(|edge| !edge.number).flat_map(|edge| edge.texts)).collect()
    }

    /// The numbers in the cells of a grid, which are never cut.
    pub(crate) fn numbers(&self, layer: &Layer<'_>) -> Vec<String> {
        let rows = if self.tokens_in_cells() { 0 } else { self.row_count() };
        let cells = (0..rows).flat_map(|row| (0..self.columns()).map(move |column| self.cell(layer, row, column)));
        cells.collect()
    }

    /// Which columns a part of them is: `positions 60 to 119`.
    #[cfg(feature = "plot")]
    pub(crate) fn part(&self, columns: &Range<usize>) -> String {
        let number = |column: usize| match self.subject {
            Subject::Table(table, _) => table.positions.get(column).map_or(0, |position| *position as i64),
            Subject::Grid(grid) => grid.column_number(column),
        };
        let (first, last) = (number(columns.start), number(columns.end.saturating_sub(1)));
        format!("{} {first} to {last}", self.column_noun().1)
    }

    /// What a column is, and what several are.
    #[cfg(feature = "plot")]
    pub(crate) fn column_noun(&self) -> (&'static str, &'static str) {
        match self.subject {
            Subject::Table(..) => ("position", "positions"),
            Subject::Grid(grid) => grid.column_noun(),
        }
    }

    /// What is to be said of a grid as a whole. What the marks of a table mean is said by those who make them.
    pub(crate) fn notes(&self) -> Option<Vec<String>> {
        match self.subject {
            Subject::Table(..) => None,
            Subject::Grid(grid) => Some(grid.notes()),
        }
    }

    /// Whether this is a comparison, whose changed cells are marked.
    pub(crate) fn comparison_marks(&self) -> bool {
        matches!(self.subject, Subject::Table(_, Some(_)))
    }

    /// What a picture is of, before its title.
    #[cfg(feature = "plot")]
    pub(crate) fn subject_of(&self) -> &'static str {
        match self.subject {
            Subject::Table(..) => "Logit lens of ",
            Subject::Grid(_) => "",
        }
    }

    /// The indices of the rows from the top of the picture down.
    pub(crate) fn rows(&self, top_down: bool) -> Vec<usize> {
        let rows = 0..self.row_count();
        if top_down { rows.collect() } else { rows.rev().collect() }
    }

    /// The row names, made safe to show.
    pub(crate) fn names(&self) -> Vec<String> {
        match self.subject {
            Subject::Table(table, _) => table.rows.iter().map(|row| display_label(&row.name)).collect(),
            Subject::Grid(grid) => grid.rows.iter().map(|name| display_label(name)).collect(),
        }
    }

    /// The title: the caller's, or the model with what is known of it.
    pub(crate) fn title(&self, title: Option<&str>) -> String {
        match (title, self.subject) {
            (Some(title), _) => display_label(title),
            (None, Subject::Table(table, Some(_))) => display_label(&table.model),
            (None, Subject::Table(table, None)) => display_label(&format!("{} ({})", table.model, table.setting())),
            (None, Subject::Grid(grid)) => display_label(&grid.model),
        }
    }
}

/// Splits columns into parts of nearly the same width, none wider than `most`; one empty part if there are none.
pub(crate) fn evenly(columns: usize, most: usize) -> Vec<Range<usize>> {
    let count = columns.div_ceil(most.max(1)).max(1);
    (0..count).map(|part| part * columns / count..(part + 1) * columns / count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_even() {
        let ends = |columns, most| evenly(columns, most).iter().map(|part| part.end).collect::<Vec<_>>();
        assert_eq!(ends(300, 64), [60, 120, 180, 240, 300]);
        assert_eq!(ends(65, 64), [32, 65]);
        assert_eq!(ends(1, 64), [1]);
        assert_eq!(ends(0, 64), [0]);
        assert_eq!(ends(3, 0), [1, 2, 3]);
    }
}
