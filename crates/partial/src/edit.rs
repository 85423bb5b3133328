//! Changing a value on its way through the model.

use std::{fmt, ops::Range};

use models::{Input, Model, Site};
use tch::{TchError, Tensor};

use crate::{Error, Result};

type Function = Box<dyn Fn(&Tensor) -> Result<Tensor, TchError>>;

enum Change {
    Replace(Tensor),
    Add(Tensor),
    Scale(f64),
    Zero,
    Mean,
    With(Function),
}

/// A change to the value at a site: at all positions and heads, or at some.
///
/// Edits make a new tensor; nothing is written in place, so captures made earlier stay as they are, and gradients flow
/// through what is left unchanged and through the values put in.
///
/// ```
/// # use partial::Edit;
/// let silence = Edit::zero().heads(3..4).positions(5..9); // on `h.i.attn.z`, `.q`, `.k`, `.v`, `.pattern`, `.result`
/// # let _ = silence;
/// ```
pub struct Edit {
    change: Change,
    positions: Option<Range<i64>>,
    heads: Option<Range<i64>>,
}

impl fmt::Debug for Edit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let change = match &self.change {
            Change::Replace(_) => "replace",
            Change::Add(_) => "add",
            Change::Scale(_) => "scale",
            Change::Zero => "zero",
            Change::Mean => "mean",
            Change::With(_) => "with",
        };
        let mut shown = formatter.debug_struct("Edit");
        shown.field("change", &change).field("positions", &self.positions).field("heads", &self.heads).finish()
    }
}

impl Edit {
    fn new(change: Change) -> Self {
        Self { change, positions: None, heads: None }
    }

    /// Puts `value` in. Its shape must be that of the chosen positions and heads, or broadcast to it; dtype and device
    /// are brought to those of the run.
    pub fn replace(value: &Tensor) -> Self {
        Self::new(Change::Replace(value.shallow_clone()))
    }

    /// Adds `value`, such as a steering vector `[d_model]`.
    pub fn add(value: &Tensor) -> Self {
        Self::new(Change::Add(value.shallow_clone()))
    }

    /// Multiplies by `factor`.
    pub fn scale(factor: f64) -> Self {
        Self::new(Change::Scale(factor))
    }

    /// Puts zeros in (zero ablation).
    pub fn zero() -> Self {
        Self::new(Change::Zero)
    }

    /// Puts in the mean over batch and positions of this very run: over tokens, that is, not over what the attention mask
    /// says is padding, and with a cache over the new positions. Like every edit it acts at padding too, where no token
    /// looks. For the mean over a data set, compute it and use [`Edit::replace`].
    pub fn mean() -> Self {
        Self::new(Change::Mean)
    }

    /// Puts in what `function` makes of the chosen part.
    pub fn with(function: impl Fn(&Tensor) -> Result<Tensor, TchError> + 'static) -> Self {
        Self::new(Change::With(Box::new(function)))
    }

    /// Only at these positions (for attention scores and patterns: queries).
    pub fn positions(mut self, positions: Range<i64>) -> Self {
        self.positions = Some(positions);
        self
    }

    /// Only at these heads; for `attn.q`, `attn.k`, `attn.v`, `attn.scores`, `attn.pattern`, `attn.z` and `attn.result`.
    pub fn heads(mut self, heads: Range<i64>) -> Self {
        self.heads = Some(heads);
        self
    }

    pub(crate) fn check(&self, place: &Place) -> Result<()> {
        if self.heads.is_some() && place.heads.is_none() {
            return Err(Error::NoHeads { site: place.site.to_string() });
        }
        if self.positions.is_some() || matches!(self.change, Change::Mean) {
            place.positions()?;
        }
        Ok(())
    }

    /// The value after the change, in a run over `input`.
    pub(crate) fn apply(&self, place: &Place, value: &Tensor, input: &Input) -> Result<Tensor> {
        let site = place.site;
        let torch = |source| Error::Torch { at: site.to_string(), source };
        let choose = |tensor: &Tensor| -> Result<Tensor> {
            let mut chosen = tensor.shallow_clone();
            if let Some(positions) = &self.positions {
                chosen = narrow(site, &chosen, place.positions()?, positions, "positions")?;
            }
            if let (Some(heads), Some(dimension)) = (&self.heads, place.heads) {
                chosen = narrow(site, &chosen, dimension, heads, "heads")?;
            }
            Ok(chosen)
        };
        let old = choose(value)?;
        let home = |tensor: &Tensor| tensor.f_to_device(value.device())?.f_to_kind(value.f_kind()?);
        let new = match &self.change {
            Change::Replace(new) => home(new),
            Change::Add(term) => home(term).and_then(|term| old.f_add(&term)),
            Change::Scale(factor) => old.f_mul_scalar(*factor),
            Change::Zero => old.f_zeros_like(),
            Change::Mean => Ok(self.mean_of_tokens(place, &old, input)?),
            Change::With(function) => function(&old).and_then(|new| home(&new)),
        };
        let new = new.map_err(torch)?;
        let misfit = || Error::EditShape { site: site.to_string(), expected: old.size(), found: new.size() };
        let new = new.f_expand(old.size(), false).map_err(|_| misfit())?;
        if self.positions.is_none() && self.heads.is_none() {
            return new.f_contiguous().map_err(torch);
        }
        let changed = value.f_clone(&value.f_empty_like().map_err(torch)?).map_err(torch)?;
        choose(&changed)?.f_copy_(&new).map_err(torch)?;
        Ok(changed)
    }

    /// The mean of the chosen part over batch and positions, each of which is left with the size 1.
    fn mean_of_tokens(&self, place: &Place, chosen: &Tensor, input: &Input) -> Result<Tensor> {
        let (site, dimension) = (place.site, place.positions()?);
        let torch = |source| Error::Torch { at: site.to_string(), source };
        let Some(mut attended) = input.attended(site)? else {
            return chosen.f_mean_dim([0, dimension].as_slice(), true, None).map_err(torch);
        };
        if let Some(positions) = &self.positions {
            attended = narrow(site, &attended, 1, positions, "positions")?;
        }
        let tokens = attended.f_flatten(0, 1).and_then(|flat| flat.f_nonzero()?.f_squeeze_dim(1)).map_err(torch)?;
        if tokens.numel() == 0 {
            return Err(Error::NothingToAverage { site: site.to_string() });
        }
        let mean = || {
            let lines = chosen.f_transpose(1, dimension)?;
            // The position embedding may be one row for the whole batch.
            let mut shape = lines.size();
            if let (Some(batch), Some(&rows)) = (shape.first_mut(), attended.size().first()) {
                *batch = rows;
            }
            let lines = lines.f_expand(shape, false)?.f_flatten(0, 1)?;
            let mean = lines.f_index_select(0, &tokens.f_to_device(lines.device())?)?.f_mean_dim(0, true, None)?;
            mean.f_unsqueeze(0)?.f_transpose(1, dimension)
        };
        mean().map_err(torch)
    }
}

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
}

/// `tensor` at `range` of a dimension.
pub(crate) fn narrow(
    site: Site,
    tensor: &Tensor,
    dimension: i64,
    range: &Range<i64>,
    what: &'static str,
) -> Result<Tensor> {
    let size = tensor.size().get(dimension as usize).copied().unwrap_or(0);
    if range.start < 0 || range.end > size || range.start >= range.end {
        let (begin, end) = (range.start, range.end);
        return Err(Error::OutOfRange { site: site.to_string(), what, begin, end, size });
    }
    let narrowed = tensor.f_narrow(dimension, range.start, range.end - range.start);
    narrowed.map_err(|source| Error::Torch { at: site.to_string(), source })
}
