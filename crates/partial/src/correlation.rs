//! How far two tables of effects agree.

use crate::{Effects, Error, Result};

/// How far the numbers of two tables of effects agree, such as estimates with what patching really does.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Correlation {
    /// Pearson's: 1 where one is a rising linear function of the other.
    pub pearson: f64,
    /// Spearman's, which is Pearson's of the ranks; equal numbers have the mean of theirs.
    pub spearman: f64,
    /// Numbers that both have.
    pub pairs: usize,
}

impl Effects {
    /// How far these effects agree with others of the same rows and columns. Places where one of them has no number are left out.
    ///
    /// # Errors
    ///
    /// [`Error::NotPaired`] where rows or columns differ, and where fewer than two pairs are left or one side is the same everywhere.
    pub fn correlation(&self, other: &Self) -> Result<Correlation> {
        let refuse = |problem: &str| Err(Error::NotPaired { problem: problem.to_owned() });
        if self.rows != other.rows || self.columns != other.columns {
            return refuse("rows or columns differ");
        }
        let flat = |effects: &Self| effects.values.concat();
        let (mine, theirs) = (flat(self), flat(other));
        let both = mine.into_iter().zip(theirs).filter(|(one, two)| one.is_finite() && two.is_finite());
        let (mine, theirs): (Vec<f64>, Vec<f64>) = both.unzip();
        let spearman = pearson(&ranks(&mine), &ranks(&theirs));
        match (pearson(&mine, &theirs), spearman) {
            (Some(pearson), Some(spearman)) => Ok(Correlation { pearson, spearman, pairs: mine.len() }),
            _ if mine.len() < 2 => refuse("there are fewer than 2"),
            _ => refuse("all of one side are equal"),
        }
    }
}

/// `None` where one of them does not vary.
fn pearson(one: &[f64], two: &[f64]) -> Option<f64> {
    let count = one.len() as f64;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / count;
    let (mean_one, mean_two) = (mean(one), mean(two));
    let (mut product, mut square_one, mut square_two) = (0.0, 0.0, 0.0);
    for (one, two) in one.iter().zip(two) {
        let (one, two) = (one - mean_one, two - mean_two);
        product += one * two;
        square_one += one * one;
        square_two += two * two;
    }
    let scale = square_one.sqrt() * square_two.sqrt();
    (scale > 0.0).then(|| (product / scale).clamp(-1.0, 1.0))
}

/// Ranks from 1 up.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<(usize, f64)> = values.iter().copied().enumerate().collect();
    order.sort_by(|one, two| one.1.total_cmp(&two.1));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for equal in order.chunk_by(|one, two| one.1 == two.1) {
        let rank = before as f64 + (equal.len() as f64 + 1.0) / 2.0;
        for (place, _) in equal {
            if let Some(slot) = ranks.get_mut(*place) {
                *slot = rank;
            }
        }
        before += equal.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Columns;

    fn effects(values: &[f64]) -> Effects {
        Effects {
            method: String::new(),
            metric: String::new(),
            rows: vec!["h.0".into()],
            columns: Columns::Positions((0..values.len() as i64).collect()),
            values: vec![values.to_vec()],
            clean: None,
            corrupted: None,
        }
    }

    #[test]
    fn correlations_are_those_of_the_textbook() {
        // 17 / sqrt(10 * 38), and of the ranks 8.5 / sqrt(10 * 9.5), which happen to be one number.
        let found = effects(&[1.0, 2.0, 3.0, 4.0, 5.0]).correlation(&effects(&[2.0, 1.0, 4.0, 4.0, 9.0])).unwrap();
        assert!((found.pearson - 0.872_081_6).abs() < 1e-6, "{found:?}");
        assert!((found.spearman - 0.872_081_6).abs() < 1e-6, "{found:?}");
        let opposite = effects(&[1.0, 2.0, 8.0]).correlation(&effects(&[0.0, -1.0, -2.0])).unwrap();
        assert!((opposite.spearman + 1.0).abs() < 1e-12 && opposite.pearson > -1.0);
    }

    #[test]
    fn numbers_that_are_missing_are_left_out_and_what_cannot_be_paired_is_refused() {
        let nan = f64::NAN;
        let found = effects(&[1.0, nan, 3.0, 4.0]).correlation(&effects(&[1.0, 7.0, 3.0, nan])).unwrap();
        assert!((found.pearson - 1.0).abs() < 1e-12 && found.pairs == 2, "{found:?}");
        for other in [effects(&[1.0, 2.0]), effects(&[1.0, 1.0, 1.0, 1.0]), effects(&[nan, nan, nan, 1.0])] {
            let refused = effects(&[1.0, 2.0, 3.0, 4.0]).correlation(&other).unwrap_err();
            assert!(matches!(refused, Error::NotPaired { .. }), "{refused}");
        }
    }
}
