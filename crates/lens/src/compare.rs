//! What changed between two tables.

use crate::measure::Measure;
use crate::table::{Row, Table};
use crate::table_error::TableError;

/// Two tables of the same input, cell by cell. Every renderer draws it: the difference of the values in a two-sided
/// colour map around zero, the second table's tokens, and a mark where the top-1 token changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    before: Table,
    difference: Table,
}

impl Comparison {
    /// The first table.
    pub fn before(&self) -> &Table {
        &self.before
    }

    /// The second table's tokens, with the values of the second minus those of the first for every measure that both
    /// have. Units are those of the measures.
    pub fn difference(&self) -> &Table {
        &self.difference
    }

    /// Whether the top-1 token of a cell changed; `column` indexes the positions.
    pub fn changed(&self, row: usize, column: usize) -> bool {
        let top1 = |table: &Table| table.rows.get(row).and_then(|row| row.top1.get(column)).copied();
        top1(&self.before) != top1(&self.difference)
    }

    /// The number of cells whose top-1 token changed.
    pub fn changes(&self) -> usize {
        let columns = self.difference.positions.len();
        (0..self.difference.rows.len())
            .map(|row| (0..columns).filter(|&column| self.changed(row, column)).count())
            .sum()
    }
}

/// Compares two tables of the same rows, tokens and positions; say, of a model before and after an edit, in two
/// dtypes, or through two lenses. Values are those of `after` minus those of `before`.
///
/// # Errors
///
/// The first row, token or position in which they differ, or [`TableError::NoCommonMeasure`].
pub fn compare(before: &Table, after: &Table) -> Result<Comparison, TableError> {
    before.check()?;
    after.check()?;
    let rows = |table: &Table| table.rows.iter().map(|row| row.name.clone()).collect::<Vec<_>>();
    let tokens =
        |table: &Table| table.tokens.iter().map(|token| format!("{} {}", token.id, token.text)).collect::<Vec<_>>();
    let positions = |table: &Table| table.positions.iter().map(usize::to_string).collect::<Vec<_>>();
    same("token", "tokens", &tokens(before), &tokens(after))?;
    same("position", "positions", &positions(before), &positions(after))?;
    same("row", "rows", &rows(before), &rows(after))?;

    let measures: Vec<Measure> =
        after.measures.iter().filter(|measure| before.measures.contains(measure)).cloned().collect();
    if measures.is_empty() {
        let names = |table: &Table| table.measures.iter().map(ToString::to_string).collect();
        return Err(TableError::NoCommonMeasure { before: names(before), after: names(after) });
    }
    let rows =
        before.rows.iter().zip(&after.rows).map(|(before, after)| difference(before, after, &measures)).collect();
    let model = if before.model == after.model {
        format!("{} ({} − {})", after.model, after.setting(), before.setting())
    } else {
        format!("{} − {}", after.model, before.model)
    };
    let difference = Table {
        model,
        dtype: after.dtype.clone(),
        lens: after.lens.clone(),
        measures,
        tokens: after.tokens.clone(),
        positions: after.positions.clone(),
        rows,
    };
    Ok(Comparison { before: before.clone(), difference })
}

fn difference(before: &Row, after: &Row, measures: &[Measure]) -> Row {
    let subtract = |measure: &Measure| {
        let before = before.values.get(measure).into_iter().flatten();
        let after = after.values.get(measure).into_iter().flatten();
        (measure.clone(), after.zip(before).map(|(after, before)| after - before).collect())
    };
    Row { values: measures.iter().map(subtract).collect(), ..after.clone() }
}

fn same(one: &'static str, many: &'static str, before: &[String], after: &[String]) -> Result<(), TableError> {
    let mut pairs = before.iter().zip(after).enumerate();
    if let Some((index, (before, after))) = pairs.find(|(_, (before, after))| before != after) {
        return Err(TableError::Different { what: one, index, before: before.clone(), after: after.clone() });
    }
    if before.len() != after.len() {
        return Err(TableError::DifferentCount { what: many, before: before.len(), after: after.len() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn values_are_subtracted_and_changes_marked() {
        let before = fixture::small();
        let mut after = before.clone();
        after.model = "edited".into();
        after.rows[1].values.get_mut(&Measure::Probs).unwrap()[2] = 0.5;
        after.rows[1].top1[2] = 7;
        after.rows[1].top1_text[2] = " grey".into();
        let comparison = compare(&before, &after).unwrap();
        let difference = comparison.difference();
        assert_eq!(difference.model, "edited − tiny");
        assert_eq!(difference.rows[1].values[&Measure::Probs], [0.0, 0.0, 0.375]);
        assert_eq!(difference.rows[1].top1_text[2], " grey");
        assert_eq!(comparison.before().rows[1].top1_text[2], " blue");
        assert!(comparison.changed(1, 2) && !comparison.changed(1, 1));
        assert_eq!(comparison.changes(), 1);
        difference.check().unwrap();
    }

    #[test]
    fn only_common_measures_are_compared() {
        let before = fixture::of_tokens(&["a"], &["input"], &[Measure::Probs, Measure::Kl]);
        let after = fixture::of_tokens(&["a"], &["input"], &[Measure::Ranks, Measure::Kl]);
        assert_eq!(compare(&before, &after).unwrap().difference().measures, [Measure::Kl]);
        let after = fixture::of_tokens(&["a"], &["input"], &[Measure::Ranks]);
        let error = compare(&before, &after).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the tables have no measure in common: the first has probs, kl, the second ranks"
        );
    }

    #[test]
    fn the_first_difference_is_named() {
        let table = fixture::small();
        let error = |change: fn(&mut Table)| {
            let mut other = table.clone();
            change(&mut other);
            compare(&table, &other).unwrap_err()
        };
        let different = error(|table| table.tokens[1].id = 1);
        assert!(matches!(different, TableError::Different { what: "token", index: 1, .. }), "{different}");
        let different = error(|table| table.rows[2].name = "h.2".into());
        assert!(matches!(different, TableError::Different { what: "row", index: 2, .. }), "{different}");
        let different = error(|table| drop(table.rows.pop()));
        assert!(matches!(different, TableError::DifferentCount { what: "rows", before: 3, after: 2 }), "{different}");
        let different = error(|table| table.positions[2] = 3);
        assert!(matches!(different, TableError::Different { what: "position", index: 2, .. }), "{different}");
    }
}
