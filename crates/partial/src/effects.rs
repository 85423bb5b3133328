//! What patches or attributions found, as plain data.

/// What the columns of [`Effects`] are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Columns {
    /// One column: the site as a whole, at all positions and heads.
    Whole,
    /// These positions of the input.
    Positions(Vec<i64>),
    /// These heads.
    Heads(Vec<i64>),
    /// These neurons of the MLP.
    Neurons(Vec<i64>),
}

impl Columns {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Whole => 1,
            Self::Positions(which) | Self::Heads(which) | Self::Neurons(which) => which.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What changing, or leaving out, each of many places does to a metric: one row for each site, one column for each position or
/// head.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Effects {
    /// What was done: `patched`, `attribution patching`, `direct logit attribution`.
    pub method: String,
    /// The metric's name, with its unit.
    pub metric: String,
    /// Names of the sites, in the order of execution; of single heads or neurons, with their number: `h.3.attn.z head 2`.
    pub rows: Vec<String>,
    /// What the columns are.
    pub columns: Columns,
    /// For each row, one number for each column, in the unit of the metric; NaN where a site has no such place.
    pub values: Vec<Vec<f64>>,
    /// The metric of the clean run, where there is one.
    pub clean: Option<f64>,
    /// The metric of the corrupted run, where there is one.
    pub corrupted: Option<f64>,
}
