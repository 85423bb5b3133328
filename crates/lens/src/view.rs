//! What a renderer draws: a table, or the comparison of two.

use std::ops::Range;

use crate::compare::Comparison;
use crate::measure::Measure;
use crate::scale::Scale;
use crate::table::Table;
use crate::table_error::TableError;
use crate::token_text::{display_label, display_token};

/// What a renderer draws: made from a `&Table` or a `&Comparison`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    table: &'a Table,
    comparison: Option<&'a Comparison>,
}

impl<'a> From<&'a Table> for View<'a> {
    fn from(table: &'a Table) -> Self {
        Self { table, comparison: None }
    }
}

impl<'a> From<&'a Comparison> for View<'a> {
    fn from(comparison: &'a Comparison) -> Self {
        Self { table: comparison.difference(), comparison: Some(comparison) }
    }
}

impl<'a> View<'a> {
    pub(crate) fn table(&self) -> &'a Table {
        self.table
    }

    #[cfg(feature = "plot")]
    pub(crate) fn comparison(&self) -> Option<&'a Comparison> {
        self.comparison
    }

    /// Whether this is a comparison, whose changed cells are marked.
    pub(crate) fn comparison_marks(&self) -> bool {
        self.comparison.is_some()
    }

    /// The measure as a heading, with its unit.
    pub(crate) fn heading(&self, measure: &Measure) -> String {
        let heading = measure.heading();
        if self.comparison.is_some() { format!("Change: {heading}") } else { heading }
    }

    /// The colours for a measure.
    pub(crate) fn scale(&self, measure: &Measure) -> Result<Scale, TableError> {
        let values = self.table.values(measure)?;
        Ok(match self.comparison {
            Some(_) => Scale::difference(measure, values),
            None => Scale::new(measure, values),
        })
    }

    /// A value in short; a difference says its sign.
    pub(crate) fn short(&self, measure: &Measure, value: f64) -> String {
        let short = measure.short(value);
        if self.comparison.is_some() && value.is_finite() && value >= 0.0 { format!("+{short}") } else { short }
    }

    /// What stands in a cell.
    pub(crate) fn cell(&self, row: usize, column: usize) -> String {
        let text = self.table.rows.get(row).and_then(|row| row.top1_text.get(column));
        text.map_or_else(String::new, |text| display_token(text))
    }

    /// Whether the comparison marks a cell as changed.
    pub(crate) fn changed(&self, row: usize, column: usize) -> bool {
        self.comparison.is_some_and(|comparison| comparison.changed(row, column))
    }

    /// The indices of the rows from the top of the picture down.
    pub(crate) fn rows(&self, top_down: bool) -> Vec<usize> {
        let rows = 0..self.table.rows.len();
        if top_down { rows.collect() } else { rows.rev().collect() }
    }

    /// The row names, made safe to show.
    pub(crate) fn names(&self) -> Vec<String> {
        self.table.rows.iter().map(|row| display_label(&row.name)).collect()
    }

    /// The title: the caller's, or the model with its dtype and lens.
    pub(crate) fn title(&self, title: Option<&str>) -> String {
        match title {
            Some(title) => display_label(title),
            None if self.comparison.is_some() => display_label(&self.table.model),
            None => display_label(&format!("{} ({})", self.table.model, self.table.setting())),
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
