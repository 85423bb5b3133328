//! What may be wrong with a table.

use crate::measure::Measure;
use crate::schema::SCHEMA;

/// What is wrong with a table, or with what was asked of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The text is not JSON, or a field is missing or of the wrong type.
    #[error("not a lens table: {source}")]
    Json {
        /// Where, and what was expected there.
        #[from]
        source: serde_json::Error,
    },
    /// The text is not JSON, or a field of a grid is missing or of the wrong type.
    #[error("not a grid: {source}")]
    GridJson {
        /// Where, and what was expected there.
        source: serde_json::Error,
    },
    /// A grid has too few or too many of something.
    #[error("the grid has {found} {what}, expected {expected}")]
    GridLength {
        /// Of what.
        what: String,
        /// How many there should be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A position of a grid lies outside the input.
    #[error("position {position} of the grid lies outside the input of {tokens} tokens")]
    GridPosition {
        /// The position.
        position: i64,
        /// The number of tokens.
        tokens: usize,
    },
    /// The text is not JSON, or a field of attention patterns is missing or of the wrong type.
    #[error("not attention patterns: {source}")]
    AttentionJson {
        /// Where, and what was expected there.
        source: serde_json::Error,
    },
    /// An attention pattern that is larger or smaller than its input.
    #[error("{head} has {found} queries or keys, expected one for each of {expected} tokens")]
    PatternSize {
        /// The head.
        head: String,
        /// The number of tokens.
        expected: usize,
        /// The number of queries, or of keys of one.
        found: usize,
    },
    /// Coloured text was asked of a grid without tokens.
    #[error("the columns are {columns} and no tokens, so there is no text to colour; measure positions")]
    NoText {
        /// What the columns are.
        columns: &'static str,
    },
    /// A measure was asked of a grid.
    #[error("a grid has one number in each cell and no measures; the measure `{measure}` was asked for")]
    MeasureOfGrid {
        /// The measure asked for.
        measure: Measure,
    },
    /// No measure was named where there are several.
    #[error("no measure was named; the table has {}", available.join(", "))]
    NoMeasure {
        /// The measures in the table.
        available: Vec<String>,
    },
    /// The CSV writer refused.
    #[error("the table cannot be written as CSV: {source}")]
    Csv {
        /// What it said.
        #[from]
        source: ::csv::Error,
    },
    /// A newer (or no) version of the format.
    #[error("the table has schema {found}, this program reads schema {SCHEMA}")]
    Schema {
        /// The number in the file.
        found: u64,
    },
    /// A measure nobody knows.
    #[error("there is no measure `{name}`; there are {}", valid.join(", "))]
    UnknownMeasure {
        /// The name as given.
        name: String,
        /// The names that are known.
        valid: Vec<String>,
    },
    /// A measure was asked for that the table was not computed with.
    #[error("the table has no measure `{measure}`; it has {}", available.join(", "))]
    MeasureNotInTable {
        /// The measure asked for.
        measure: Measure,
        /// The measures in the table.
        available: Vec<String>,
    },
    /// A measure is declared twice.
    #[error("the measure `{measure}` is listed twice")]
    DuplicateMeasure {
        /// The measure.
        measure: Measure,
    },
    /// A row lacks the values of a measure.
    #[error("row {row} (`{name}`) has no values of `{measure}`")]
    MissingValues {
        /// The row's index.
        row: usize,
        /// The row's name.
        name: String,
        /// The measure.
        measure: Measure,
    },
    /// A row has values of a measure that the table does not list.
    #[error("row {row} (`{name}`) has values of `{measure}`, which the table does not list")]
    UnlistedValues {
        /// The row's index.
        row: usize,
        /// The row's name.
        name: String,
        /// The measure.
        measure: Measure,
    },
    /// A row has too few or too many entries.
    #[error("row {row} (`{name}`) has {found} entries in `{field}`, expected one for each of {expected} positions")]
    RowLength {
        /// The row's index.
        row: usize,
        /// The row's name.
        name: String,
        /// `top1`, `top1_text`, `top_k` or a measure.
        field: String,
        /// The number of positions.
        expected: usize,
        /// The number of entries.
        found: usize,
    },
    /// A position lies outside the input.
    #[error("position {position} lies outside the input of {tokens} tokens")]
    PositionOutside {
        /// The position.
        position: usize,
        /// The number of tokens.
        tokens: usize,
    },
    /// The positions do not ascend.
    #[error("position {position} follows position {before}; positions must ascend")]
    PositionOrder {
        /// The position before.
        before: usize,
        /// The position out of order.
        position: usize,
    },
    /// Two tables to compare have different numbers of something.
    #[error("the tables cannot be compared: the first has {before} {what}, the second {after}")]
    DifferentCount {
        /// `rows`, `tokens` or `positions`.
        what: &'static str,
        /// How many the first table has.
        before: usize,
        /// How many the second table has.
        after: usize,
    },
    /// Two tables to compare differ in something that must be the same.
    #[error("the tables cannot be compared: {what} {index} is `{before}` in the first and `{after}` in the second")]
    Different {
        /// `row`, `token` or `position`.
        what: &'static str,
        /// Its index.
        index: usize,
        /// What the first table has.
        before: String,
        /// What the second table has.
        after: String,
    },
    /// Two tables to compare have no measure in common.
    #[error("the tables have no measure in common: the first has {}, the second {}", before.join(", "), after.join(", "))]
    NoCommonMeasure {
        /// The measures of the first table.
        before: Vec<String>,
        /// The measures of the second table.
        after: Vec<String>,
    },
}
