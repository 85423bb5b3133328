//! Applying an edit to a value.

use std::ops::Range;

use models::{Input, Model, Site};
use tch::{Kind, TchError, Tensor};

use crate::{
    Edit, Error, Result,
    edit::{At, Change},
    reading::{Block, Reading},
};

/// A site, and which dimensions of its value count positions and heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) site: Site,
    pub(crate) positions: Option<i64>,
    pub(crate) heads: Option<i64>,
}

impl Place {
    pub(crate) fn of(model: &Model, site: Site) -> Self {
        let sites = model.sites();
        let number = |dimension: Option<usize>| dimension.map(|dimension| dimension as i64);
        Self { site, positions: number(sites.position_dimension(site)), heads: number(sites.head_dimension(site)) }
    }

    /// The dimension that counts positions.
    pub(crate) fn positions(&self) -> Result<i64> {
        self.positions.ok_or_else(|| Error::NoPositions { site: self.site.to_string() })
    }

    fn torch(&self) -> impl Fn(TchError) -> Error {
        let site = self.site;
        move |source| Error::Torch { at: site.to_string(), source }
    }
}

impl Edit {
    pub(crate) fn check(&self, place: &Place) -> Result<()> {
        if self.heads.is_some() && place.heads.is_none() {
            return Err(Error::NoHeads { site: place.site.to_string() });
        }
        if self.at.is_some() || matches!(self.change, Change::Mean) {
            place.positions()?;
        }
        Ok(())
    }

    /// The value after the change, in a run over `input`, of which `reading` says what its columns are; `None` where it reads
    /// nothing that is to change.
    pub(crate) fn apply(
        &self,
        place: &Place,
        value: &Tensor,
        input: &Input,
        reading: &Reading,
    ) -> Result<Option<Tensor>> {
        let torch = place.torch();
        let columns = place.positions.map(|dimension| size(value, dimension));
        let blocks = match (self.at, columns) {
            (Some(at), Some(columns)) => reading.blocks(place.site, at, columns)?,
            _ => vec![Block { row: None, columns: 0..columns.unwrap_or(0), offset: 0 }],
        };
        if blocks.is_empty() {
            return Ok(None);
        }
        let home = |tensor: &Tensor| tensor.f_to_device(value.device())?.f_to_kind(value.f_kind()?);
        let given = match &self.change {
            Change::Replace(given) | Change::Add(given) => Some(home(given).map_err(&torch)?),
            Change::Mean => Some(self.mean_of_tokens(place, value, input, &blocks)?),
            _ => None,
        };
        let heads = self.chosen_heads(place, value)?;
        let new_value = |block: &Block| -> Result<Tensor> {
            let old = take(&part(place, value, block)?, place, heads.as_ref()).map_err(&torch)?;
            let given = given.as_ref().map(|given| self.given_part(place, given, &old, block)).transpose()?;
            let new = match (&self.change, given) {
                (Change::Replace(_) | Change::Mean, Some(given)) => Ok(given),
                (Change::Add(_), Some(given)) => old.f_add(&given),
                (Change::Scale(factor), _) => old.f_mul_scalar(*factor),
                (Change::With(function), _) => function(&old).and_then(|new| home(&new)),
                _ => old.f_zeros_like(),
            };
            let new = new.map_err(&torch)?;
            new.f_expand(old.size(), false).map_err(|_| misfit(place, old.size(), &new))
        };
        if let ([block], None) = (&blocks[..], &heads)
            && block.row.is_none()
            && block.columns == (0..columns.unwrap_or(0))
        {
            return Ok(Some(new_value(block)?.f_contiguous().map_err(&torch)?));
        }
        let changed = copied(value).map_err(&torch)?;
        for block in &blocks {
            let new = new_value(block)?;
            let mut target = part(place, &changed, block)?;
            let written = match (&heads, place.heads) {
                (Some(heads), Some(dimension)) => {
                    new.f_contiguous().and_then(|new| target.f_index_copy_(dimension, heads, &new)).map(drop)
                }
                _ => target.f_copy_(&new),
            };
            written.map_err(&torch)?;
        }
        Ok(Some(changed))
    }

    /// The numbers of the chosen heads where the value is.
    fn chosen_heads(&self, place: &Place, value: &Tensor) -> Result<Option<Tensor>> {
        let (Some(heads), Some(dimension)) = (&self.heads, place.heads) else { return Ok(None) };
        let there = size(value, dimension);
        let outside = heads.iter().find(|head| !(0..there).contains(*head));
        let refused = |begin, end| {
            Err(Error::OutOfRange { site: place.site.to_string(), what: "heads", begin, end, size: there })
        };
        match (outside, heads.is_empty()) {
            (Some(&head), _) => refused(head, head + 1),
            (None, true) => refused(0, 0),
            (None, false) => {
                let numbers = Tensor::f_from_slice(heads).and_then(|heads| heads.f_to_device(value.device()));
                Ok(Some(numbers.map_err(place.torch())?))
            }
        }
    }

    /// What of a tensor that was given for all rows and chosen positions belongs to a block, whose value is `old` now.
    fn given_part(&self, place: &Place, given: &Tensor, old: &Tensor, block: &Block) -> Result<Tensor> {
        let missing = old.dim() as i64 - given.dim() as i64;
        let mut chosen = given.shallow_clone();
        let own = |dimension: i64| {
            let own = dimension - missing;
            (own >= 0 && size(given, own) > 1).then_some(own)
        };
        if let (Some(at), Some(dimension)) = (self.at, place.positions)
            && let Some(own) = own(dimension)
        {
            let (first, count) = (block.offset, block.columns.end - block.columns.start);
            let there = size(given, own);
            let expected = match at {
                At::Range(begin, Some(end)) => end - begin,
                _ => there.max(first + count),
            };
            if there != expected {
                let mut shape = old.size();
                if let Some(size) = shape.get_mut(dimension as usize) {
                    *size = expected;
                }
                return Err(misfit(place, shape, given));
            }
            chosen = chosen.f_narrow(own, first, count).map_err(place.torch())?;
        }
        if let (Some(row), Some(own)) = (block.row, own(0)) {
            if row >= size(given, own) {
                return Err(misfit(place, old.size(), given));
            }
            chosen = chosen.f_narrow(own, row, 1).map_err(place.torch())?;
        }
        Ok(chosen)
    }

    /// The mean over the tokens of the blocks, for the chosen heads; batch and positions are left with the size 1.
    fn mean_of_tokens(&self, place: &Place, value: &Tensor, input: &Input, blocks: &[Block]) -> Result<Tensor> {
        let (site, dimension, torch) = (place.site, place.positions()?, place.torch());
        let heads = self.chosen_heads(place, value)?;
        let attended = input.attended(site)?;
        if let ([block], None) = (blocks, &attended)
            && block.row.is_none()
        {
            let mean = take(&part(place, value, block)?, place, heads.as_ref())
                .and_then(|chosen| chosen.f_mean_dim([0, dimension].as_slice(), true, None));
            return mean.map_err(torch);
        }
        let columns = size(value, dimension);
        let rows = attended.as_ref().map_or_else(|| size(value, 0), |attended| size(attended, 0));
        let tokens = || {
            let chosen = Tensor::f_zeros([rows, columns], (Kind::Bool, tch::Device::Cpu))?;
            for block in blocks {
                let mut chosen = block_of(&chosen, 0, 1, block)?;
                let _ = chosen.f_fill_(1)?;
            }
            let chosen = match &attended {
                Some(attended) => chosen.f_logical_and(&attended.f_to_device(tch::Device::Cpu)?)?,
                None => chosen,
            };
            chosen.f_flatten(0, 1)?.f_nonzero()?.f_squeeze_dim(1)
        };
        let tokens = tokens().map_err(&torch)?;
        if tokens.numel() == 0 {
            return Err(Error::NothingToAverage { site: site.to_string() });
        }
        let mean = || {
            let lines = take(value, place, heads.as_ref())?.f_transpose(1, dimension)?;
            // The position embedding may be one row for the whole batch.
            let mut shape = lines.size();
            if let Some(batch) = shape.first_mut() {
                *batch = rows;
            }
            let lines = lines.f_expand(shape, false)?.f_flatten(0, 1)?;
            let mean = lines.f_index_select(0, &tokens.f_to_device(lines.device())?)?.f_mean_dim(0, true, None)?;
            mean.f_unsqueeze(0)?.f_transpose(1, dimension)
        };
        mean().map_err(&torch)
    }
}

fn size(tensor: &Tensor, dimension: i64) -> i64 {
    tensor.size().get(dimension as usize).copied().unwrap_or(0)
}

fn misfit(place: &Place, expected: Vec<i64>, found: &Tensor) -> Error {
    Error::EditShape { site: place.site.to_string(), expected, found: found.size() }
}

/// The chosen heads of a value.
fn take(value: &Tensor, place: &Place, heads: Option<&Tensor>) -> Result<Tensor, TchError> {
    match (heads, place.heads) {
        (Some(heads), Some(dimension)) => value.f_index_select(dimension, heads),
        _ => Ok(value.shallow_clone()),
    }
}

/// A block of a value.
fn part(place: &Place, value: &Tensor, block: &Block) -> Result<Tensor> {
    if block.row.is_some_and(|row| row >= size(value, 0)) {
        return Err(Error::SharedRow { site: place.site.to_string() });
    }
    let Some(dimension) = place.positions else { return Ok(value.shallow_clone()) };
    block_of(value, 0, dimension, block).map_err(place.torch())
}

fn block_of(value: &Tensor, rows: i64, columns: i64, block: &Block) -> Result<Tensor, TchError> {
    let chosen = value.f_narrow(columns, block.columns.start, block.columns.end - block.columns.start)?;
    block.row.map_or_else(|| Ok(chosen.shallow_clone()), |row| chosen.f_narrow(rows, row, 1))
}

/// `tensor` at `range` of a dimension.
pub(crate) fn narrow(
    site: Site,
    tensor: &Tensor,
    dimension: i64,
    range: &Range<i64>,
    what: &'static str,
) -> Result<Tensor> {
    let size = size(tensor, dimension);
    if range.start < 0 || range.end > size || range.start >= range.end {
        let (begin, end) = (range.start, range.end);
        return Err(Error::OutOfRange { site: site.to_string(), what, begin, end, size });
    }
    let narrowed = tensor.f_narrow(dimension, range.start, range.end - range.start);
    narrowed.map_err(|source| Error::Torch { at: site.to_string(), source })
}

/// A tensor of its own with the same numbers. Gradients flow through it, as they do not through libtorch's `clone` into a tensor,
/// the only one that tch has without a panic.
pub(crate) fn copied(tensor: &Tensor) -> Result<Tensor, TchError> {
    let mut fresh = tensor.f_empty_like()?;
    fresh.f_copy_(tensor)?;
    Ok(fresh)
}

#[cfg(test)]
mod tests {
    use models::Config;

    use super::*;
    use crate::Run;

    #[test]
    fn gradients_flow_through_edits_of_a_part_and_captures_of_some_positions() {
        let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
        let model = Model::random(Config::from_json(config).unwrap(), 0).unwrap();
        let weights = model.trainable([model.block_part(0)]).unwrap();
        let run =
            Run::new(&model, &["h.1"]).unwrap().positions(2..3).edit("h.0.attn.z", Edit::zero().heads([1])).unwrap();
        run.run([1, 2, 3]).unwrap().get("h.1").unwrap().square().sum(Kind::Float).backward();
        let gradient = |name: &str| {
            let (_, weight) = weights.iter().find(|(known, _)| known.contains(name)).unwrap();
            weight.grad().abs()
        };
        let of_output = gradient("attn.c_proj.weight");
        // The rows of the head that was silenced got none.
        assert!(of_output.narrow(0, 0, 4).sum(Kind::Float).double_value(&[]) > 0.0);
        assert_eq!(of_output.narrow(0, 4, 4).sum(Kind::Float).double_value(&[]), 0.0);
    }
}
