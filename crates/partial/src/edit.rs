//! Changing a value on its way through the model.

use std::{
    fmt,
    ops::{Bound, RangeBounds},
    rc::Rc,
};

use tch::{TchError, Tensor};

use crate::apply::Place;

pub(crate) type Function = Rc<dyn Fn(&Tensor) -> Result<Tensor, TchError>>;

pub(crate) enum Change {
    Replace(Tensor),
    Add(Tensor),
    Scale(f64),
    Zero,
    Mean,
    With(Function),
}

/// The clone shares the tensors.
impl Clone for Change {
    fn clone(&self) -> Self {
        match self {
            Self::Replace(value) => Self::Replace(value.shallow_clone()),
            Self::Add(value) => Self::Add(value.shallow_clone()),
            Self::Scale(factor) => Self::Scale(*factor),
            Self::Zero => Self::Zero,
            Self::Mean => Self::Mean,
            Self::With(function) => Self::With(Rc::clone(function)),
        }
    }
}

/// Which positions of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// From the first to one before the second; without a second, all from the first on.
    Range(i64, Option<i64>),
    /// Those of the tokens that generation added.
    NewTokens,
}

/// A change to the value at a site: at all positions and heads, or at some.
///
/// Edits make a new tensor; nothing is written in place, so captures made earlier stay as they are, and gradients flow
/// through what is left unchanged and through the values put in.
///
/// Positions are those of each row's own text: 0 is its first token, wherever it stands in a padded batch, and whatever part of the
/// text a cache holds already. In a run with a cache, and in generation, positions that this run does not read change nothing.
///
/// ```
/// # use partial::Edit;
/// let silence = Edit::zero().heads([0, 3]).positions(5..9); // on `h.i.attn.z`, `.q`, `.k`, `.v`, `.pattern`, `.result`
/// let later = Edit::scale(0.5).positions(7..);
/// # let _ = (silence, later);
/// ```
#[derive(Clone)]
pub struct Edit {
    pub(crate) change: Change,
    pub(crate) at: Option<At>,
    pub(crate) heads: Option<Vec<i64>>,
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
        shown.field("change", &change).field("at", &self.at).field("heads", &self.heads).finish()
    }
}

impl Edit {
    fn new(change: Change) -> Self {
        Self { change, at: None, heads: None }
    }

    /// Puts `value` in. Its shape must be that of the chosen positions and heads, or broadcast to it; dtype and device
    /// are brought to those of the run. Where a run reads only some of the chosen positions, it takes the value's entries for
    /// those.
    pub fn replace(value: &Tensor) -> Self {
        Self::new(Change::Replace(value.shallow_clone()))
    }

    /// Adds `value`, such as a steering vector `[d_model]`. Its shape is that of [`Edit::replace`].
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
    /// says is padding, and with a cache (so in each step of generation) over the new positions. Like every edit it acts at
    /// padding too, where no token looks. For the mean over a data set, compute it and use [`Edit::replace`].
    pub fn mean() -> Self {
        Self::new(Change::Mean)
    }

    /// Puts in what `function` makes of the chosen part. Where the rows of a batch begin at different columns and positions are
    /// chosen, it is called once for each row.
    pub fn with(function: impl Fn(&Tensor) -> Result<Tensor, TchError> + 'static) -> Self {
        Self::new(Change::With(Rc::new(function)))
    }

    /// Whether it does the same in every row and at every position it is made at, whatever stands at others. `dimensions` is how many
    /// the value at `place` has.
    pub(crate) fn is_alike(&self, place: &Place, dimensions: usize) -> bool {
        match &self.change {
            Change::Zero | Change::Scale(_) => true,
            Change::Mean | Change::With(_) => false,
            Change::Replace(given) | Change::Add(given) => {
                let missing = dimensions.saturating_sub(given.dim()) as i64;
                let along = |dimension: i64| given.size().get((dimension - missing).max(0) as usize).copied();
                let spread = |dimension: i64| dimension >= missing && along(dimension).is_some_and(|size| size > 1);
                !spread(0) && !place.positions.is_some_and(spread)
            }
        }
    }

    /// Only at these positions (for attention scores and patterns: queries): `5..9`, `5..` or `..9`. The last choice of
    /// positions counts.
    pub fn positions(mut self, positions: impl RangeBounds<i64>) -> Self {
        let begin = match positions.start_bound() {
            Bound::Included(&begin) => begin,
            Bound::Excluded(&before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match positions.end_bound() {
            Bound::Included(&last) => Some(last.saturating_add(1)),
            Bound::Excluded(&end) => Some(end),
            Bound::Unbounded => None,
        };
        self.at = Some(At::Range(begin, end));
        self
    }

    /// Only at tokens that generation added, not at those of the prompt ([`crate::Generation`]; other runs refuse it). The last
    /// choice of positions counts.
    ///
    /// The first new token is chosen by what the model says at the last token of the prompt, where this changes nothing; the
    /// second is the first that it has a say in.
    pub fn new_tokens(mut self) -> Self {
        self.at = Some(At::NewTokens);
        self
    }

    /// Only at these heads, such as `0..2` or `[0, 3]`; for `attn.q`, `attn.k`, `attn.v`, `attn.scores`, `attn.pattern`, `attn.z`
    /// and `attn.result`. A value put in has them in this order.
    pub fn heads(mut self, heads: impl IntoIterator<Item = i64>) -> Self {
        self.heads = Some(heads.into_iter().collect());
        self
    }
}
