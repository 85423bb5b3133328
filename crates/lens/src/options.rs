//! What a lens shows and how.

use std::ops::Range;

use crate::{Measure, RowOptions, decoder::DEFAULT_DECODER};

/// What a lens shows and how.
///
/// ```
/// use lens::{LensOptions, Measure};
///
/// let options = LensOptions::default().measures([Measure::Kl]).positions(3..8).top_k(5);
/// assert_eq!(options.positions, Some(3..8));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LensOptions {
    /// What is measured; for tracked tokens see [`LensOptions::tracked`].
    pub measures: Vec<Measure>,
    /// The positions that are decoded; all of them by default. The model always sees the whole prompt.
    pub positions: Option<Range<usize>>,
    /// Which places become rows.
    pub rows: RowOptions,
    /// What turns a stream into logits: blocks or halves of blocks, then `final_layernorm` and `lm_head`.
    pub decoder: Vec<String>,
    /// How many of the likeliest tokens are kept for each cell.
    pub top_k: usize,
    /// Tokens by text and id whose probability and rank are measured in every cell.
    pub tracked: Vec<(String, i64)>,
    /// Probabilities below this count as this in `kl`, as in transformer-utils, which takes 1 / (10 x vocabulary). By
    /// default the divergence is exact.
    pub kl_clip: Option<f64>,
    /// Bytes that temporary results may take.
    pub memory: u64,
}

impl Default for LensOptions {
    fn default() -> Self {
        Self {
            measures: vec![Measure::Probs],
            positions: None,
            rows: RowOptions::default(),
            decoder: DEFAULT_DECODER.map(str::to_owned).into(),
            top_k: 0,
            tracked: Vec::new(),
            kl_clip: None,
            memory: 256 << 20,
        }
    }
}

impl LensOptions {
    /// With another choice of [`LensOptions::measures`].
    pub fn measures(mut self, measures: impl IntoIterator<Item = Measure>) -> Self {
        self.measures = measures.into_iter().collect();
        self
    }

    /// With another choice of [`LensOptions::positions`].
    pub fn positions(mut self, positions: impl Into<Option<Range<usize>>>) -> Self {
        self.positions = positions.into();
        self
    }

    /// With another choice of [`LensOptions::rows`].
    pub fn rows(mut self, rows: RowOptions) -> Self {
        self.rows = rows;
        self
    }

    /// With another choice of [`LensOptions::decoder`].
    pub fn decoder(mut self, decoder: impl IntoIterator<Item: Into<String>>) -> Self {
        self.decoder = decoder.into_iter().map(Into::into).collect();
        self
    }

    /// With another choice of [`LensOptions::top_k`].
    pub fn top_k(mut self, top_k: usize) -> Self {
        self.top_k = top_k;
        self
    }

    /// With another choice of [`LensOptions::tracked`].
    pub fn tracked(mut self, tracked: impl IntoIterator<Item = (String, i64)>) -> Self {
        self.tracked = tracked.into_iter().collect();
        self
    }

    /// With another choice of [`LensOptions::kl_clip`].
    pub fn kl_clip(mut self, kl_clip: impl Into<Option<f64>>) -> Self {
        self.kl_clip = kl_clip.into();
        self
    }

    /// With another choice of [`LensOptions::memory`].
    pub fn memory(mut self, memory: u64) -> Self {
        self.memory = memory;
        self
    }
}
