//! From what a run captured to the tokens of a batch.

use std::sync::Arc;

use models::{Axis, Model, Site};
use tch::{Device, Kind, TchError, Tensor};

use super::{
    error::{Error, Result},
    plan::Row,
    sink::{Batch, Unit},
};

/// What a run captured of a batch of rows.
pub(super) struct Captured {
    pub(super) unit: Arc<Unit>,
    pub(super) rows: Vec<Row>,
    /// `[batch, ...]` or `[1, ...]`, positions where the model has them.
    pub(super) tensors: Vec<(String, Tensor)>,
}

/// How the values of one name lie.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layout {
    /// Which dimension counts positions.
    positions: i64,
    /// Whether the last counts keys.
    has_keys: bool,
    /// What a token has; -1 for keys.
    pub(super) shape: Vec<i64>,
}

impl Layout {
    pub(super) fn of(model: &Model, name: &str, site: Site) -> Result<Self> {
        let sites = model.sites();
        let positions = sites.position_dimension(site);
        let positions = positions.ok_or_else(|| Error::NotPerToken { name: name.to_owned() })?;
        let dimensions = sites.shape(site);
        let has_keys = dimensions.last().is_some_and(|last| last.axis == Axis::Key);
        // Positions change places with what stands after the rows.
        let mut shape: Vec<i64> = dimensions.iter().map(|dimension| dimension.size.unwrap_or(-1)).collect();
        shape.swap(1, positions);
        shape.drain(..2);
        Ok(Self { positions: positions as i64, has_keys, shape })
    }

    /// The kept tokens of all rows, one after the other; keys up to `longest`.
    fn tokens(&self, values: &Tensor, rows: &[Row], longest: i64) -> std::result::Result<Tensor, TchError> {
        let values = values.f_transpose(1, self.positions)?;
        let last = values.size().first().map_or(0, |rows| rows - 1);
        let mut parts = Vec::with_capacity(rows.len());
        for (number, row) in rows.iter().enumerate().filter(|(_, row)| !row.kept.is_empty()) {
            // Position embeddings are the same for all rows.
            let value = values.f_select(0, (number as i64).min(last))?;
            let mut value = value.f_narrow(0, row.kept.start as i64, row.kept.len() as i64)?;
            if self.has_keys {
                let own = row.ids.len() as i64;
                value = value.f_narrow(-1, 0, own)?.f_constant_pad_nd([0, longest - own])?;
            }
            parts.push(value);
        }
        match &parts[..] {
            [] => values.f_select(0, 0)?.f_narrow(0, 0, 0),
            _ => Tensor::f_cat(&parts, 0),
        }
    }
}

impl Captured {
    /// The tokens of the batch: values of `kind` (whole numbers stay such) on `device`.
    pub(super) fn gather(self, layouts: &[Layout], kind: Option<Kind>, device: Device) -> Result<Batch> {
        let Self { unit, rows, tensors } = self;
        let mut values = Vec::with_capacity(tensors.len());
        for ((name, tensor), layout) in tensors.into_iter().zip(layouts) {
            let gather = || {
                let tokens = layout.tokens(&tensor, &rows, unit.longest as i64)?;
                let own = tokens.f_kind()?;
                let is_float = matches!(own, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16);
                let tokens = match kind.filter(|_| is_float) {
                    Some(kind) => tokens.f_to_kind(kind)?,
                    None => tokens,
                };
                tokens.f_to_device(device)
            };
            let tokens = gather().map_err(Error::torch(format!("gathering the values of {name}")))?;
            values.push((name, tokens));
        }
        let (mut ids, mut texts, mut positions, mut next) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for row in &rows {
            ids.extend_from_slice(row.ids.get(row.kept.clone()).unwrap_or_default());
            let all =
                row.runs.iter().flat_map(|run| (0..run.tokens).map(|place| (run.text, run.position + place as i32)));
            for (text, position) in all.take(row.kept.end).skip(row.kept.start) {
                texts.push(text);
                positions.push(position);
            }
            let mut end = 0;
            for run in &row.runs {
                let begin = end;
                end += run.tokens;
                let kept = begin.max(row.kept.start)..end.min(row.kept.end);
                // What stands between texts is no text's, and what follows a text's last token is another's.
                let has_next = |place: usize| run.text >= 0 && place + 1 < end;
                let id = |place: usize| row.ids.get(place + 1).copied().filter(|_| has_next(place));
                next.extend(kept.map(|place| id(place).unwrap_or(-1)));
            }
        }
        Ok(Batch { unit, ids, texts, positions, next, values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::plan::Run;

    #[test]
    fn the_next_token_is_of_the_same_text() {
        let row = |ids: &[i64], runs: Vec<Run>, kept| Row { ids: ids.to_vec(), runs, kept };
        let run = |text, position, tokens| Run { text, position, tokens };
        let packed = row(&[1, 2, 9, 3, 4], vec![run(0, 0, 2), run(-1, 0, 1), run(1, 0, 2)], 0..5);
        // Values of positions 1 and 2 are kept only.
        let cut = row(&[5, 6, 7, 8], vec![run(2, 0, 4)], 1..3);
        let none = row(&[5], vec![run(3, 0, 1)], 0..0);
        let unit = Unit { number: 0, input: None, first: None, lines: 0, texts: vec![], tokens: 7, longest: 5 };
        let captured = Captured { unit: Arc::new(unit), rows: vec![packed, cut, none], tensors: Vec::new() };
        let batch = captured.gather(&[], None, Device::Cpu).unwrap();
        assert_eq!(batch.next_ids(), [2, -1, -1, 4, -1, 7, 8]);
        assert_eq!(batch.ids(), [1, 2, 9, 3, 4, 6, 7]);
    }
}
