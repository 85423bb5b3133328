//! Which of several ways to compute the same thing, where they differ in the last bits.

/// How a model computes where libtorch has several ways that differ in the last bits.
///
/// The default is the fastest, and it is the same for every run of a text: alone, in a batch, padded on either side, in pieces
/// through a cache, a token gets the same bits on one machine's CPU. Two exceptions have a switch each; `docs/numerics.md` in
/// the repository has the measured differences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Numerics {
    /// Attention multiplies values by a pattern that exists as a whole, in every run, instead of going through it tile by tile
    /// (libtorch's fused kernel).
    ///
    /// Off, a run whose scores or pattern are *replaced*, or that records gradients, goes that way, and differs from one without
    /// in the last bits even where it replaces a value by itself. On, all runs are alike, at a cost in time and of `[batch,
    /// head, query, key]` in memory. A run whose scores or pattern are only looked at gives the same numbers either way as one
    /// that nobody looks at.
    pub materialised_attention: bool,
    /// A run over a single token (a step of generation) gives the bits that the token gets among others.
    ///
    /// Off, a single row takes kernels made for one, which read weights faster and add in another order.
    pub alike_rows: bool,
}

impl Numerics {
    /// The default.
    pub const FAST: Self = Self { materialised_attention: false, alike_rows: false };

    /// With another choice of [`Numerics::materialised_attention`].
    pub fn materialised_attention(mut self, always: bool) -> Self {
        self.materialised_attention = always;
        self
    }

    /// With another choice of [`Numerics::alike_rows`].
    pub fn alike_rows(mut self, always: bool) -> Self {
        self.alike_rows = always;
        self
    }
}
