//! Tables and grids as tidy CSV: one line for each cell.

use crate::{
    grid::Grid,
    table::Table,
    table_error::TableError,
    view::{Subject, View},
};

/// Writes a table with the columns `row`, `position`, `token_id`, `token`, `top1_id`, `top1` and one for each
/// measure, one line for each row and position, in the table's order; of a comparison, the differences. A grid has the columns
/// `row`, `position` (or `head` or `neuron`, or neither), where there is an input `token_id` and `token`, where there are two
/// `corrupted_id` and `corrupted`, and `value`.
///
/// Token texts are as they are, not as they are shown. Numbers that are not finite are left empty. Lines end in `\n`;
/// a field with a comma, a quote or a line end in it is quoted.
///
/// # Errors
///
/// What [`Table::check`] and [`Grid::check`] find.
pub fn write<'a>(view: impl Into<View<'a>>) -> Result<String, TableError> {
    let view = view.into();
    view.check()?;
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    match view.subject() {
        Subject::Table(table, _) => write_table(table, &mut writer)?,
        Subject::Grid(grid) => write_grid(grid, &mut writer)?,
    }
    text(writer)
}

type Writer = ::csv::Writer<Vec<u8>>;

/// What was written. What went in was text, so that is what comes out.
pub(crate) fn text(writer: Writer) -> Result<String, TableError> {
    let bytes = writer.into_inner().map_err(|error| ::csv::Error::from(error.into_error()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub(crate) fn number(value: f64) -> String {
    if value.is_finite() { value.to_string() } else { String::new() }
}

fn write_table(table: &Table, writer: &mut Writer) -> Result<(), TableError> {
    let header = ["row", "position", "token_id", "token", "top1_id", "top1"].map(ToOwned::to_owned);
    writer.write_record(header.into_iter().chain(table.measures.iter().map(ToString::to_string)))?;
    for row in &table.rows {
        let cells = table.positions.iter().zip(table.inputs()).zip(row.top1.iter().zip(&row.top1_text));
        for (column, ((position, token), (top1, top1_text))) in cells.enumerate() {
            let cell = [
                row.name.clone(),
                position.to_string(),
                token.id.to_string(),
                token.text.clone(),
                top1.to_string(),
                top1_text.clone(),
            ];
            let values = table.measures.iter().map(|measure| {
                let value = row.values.get(measure).and_then(|values| values.get(column));
                value.map_or_else(String::new, |value| number(*value))
            });
            writer.write_record(cell.into_iter().chain(values))?;
        }
    }
    Ok(())
}

fn write_grid(grid: &Grid, writer: &mut Writer) -> Result<(), TableError> {
    let numbered = grid.edges().iter().any(|edge| edge.number);
    let tokens = grid.token(0).is_some();
    let both = tokens && grid.corrupted_tokens.is_some();
    let mut header = vec!["row"];
    header.extend(numbered.then_some(grid.column_noun().0));
    header.extend(tokens.then_some(["token_id", "token"]).into_iter().flatten());
    header.extend(both.then_some(["corrupted_id", "corrupted"]).into_iter().flatten());
    header.push("value");
    writer.write_record(header)?;
    for (name, values) in grid.rows.iter().zip(&grid.values) {
        for (column, value) in values.iter().enumerate() {
            let mut cell = vec![name.clone()];
            cell.extend(numbered.then(|| grid.column_number(column).to_string()));
            let shown = [tokens.then(|| grid.token(column)), both.then(|| grid.corrupted_token(column))];
            for token in shown.into_iter().flatten() {
                cell.push(token.map_or_else(String::new, |token| token.id.to_string()));
                cell.push(token.map_or_else(String::new, |token| token.text.clone()));
            }
            cell.push(number(*value));
            writer.write_record(cell)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Measure, fixture};

    #[test]
    fn there_is_a_line_for_each_cell() {
        let text = write(&fixture::small()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "row,position,token_id,token,top1_id,top1,probs,kl");
        assert_eq!(lines[1], "input,0,464,The,464,The,0.01,9.5");
        assert_eq!(lines[5], "h.0,1,6766, sky,318, is,0.5,1");
        assert_eq!(lines.len(), 1 + 3 * 3);
    }

    #[test]
    fn texts_with_commas_quotes_and_line_ends_come_back() {
        let texts = [",", "\"", "\n", "\r\n", " a ", ""];
        let mut table = fixture::of_tokens(&texts, &["input"], &[Measure::Kl, Measure::TrackedProb(", \"x\"".into())]);
        table.rows[0].values.get_mut(&Measure::Kl).unwrap()[0] = f64::NAN;
        let text = write(&table).unwrap();
        let mut reader = ::csv::Reader::from_reader(text.as_bytes());
        assert_eq!(&reader.headers().unwrap()[7], "prob: , \"x\"");
        let records: Vec<::csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        let read: Vec<&str> = records.iter().map(|record| &record[3]).collect();
        assert_eq!(read, texts);
        assert_eq!(&records[0][6], "");
    }

    #[test]
    fn a_broken_table_is_refused() {
        let mut table = fixture::small();
        table.rows[0].top1.pop();
        assert!(matches!(write(&table), Err(TableError::RowLength { .. })));
    }
}
