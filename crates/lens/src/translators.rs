//! What stands between a row's stream and the final norm.

use models::Site;
use tch::Tensor;

use crate::{
    JacobianLens, TunedLens,
    error::Result,
    table::{JACOBIAN, TUNED},
};

/// The maps of a lens that was fitted or trained.
#[derive(Clone, Copy)]
pub(crate) enum Translators<'a> {
    Tuned(&'a TunedLens),
    Jacobian(&'a JacobianLens),
}

impl Translators<'_> {
    /// What a table says of it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tuned(_) => TUNED,
            Self::Jacobian(_) => JACOBIAN,
        }
    }

    /// The map that reads at `site`.
    pub(crate) fn layer(self, site: Site) -> Option<usize> {
        match self {
            Self::Tuned(lens) => lens.layer(site),
            Self::Jacobian(lens) => lens.layer(site),
        }
    }

    /// A stream through the map of `layer`, `[.., d_model]` in f32.
    pub(crate) fn translate(self, layer: usize, stream: &Tensor) -> Result<Tensor> {
        match self {
            Self::Tuned(lens) => lens.translate(layer, stream),
            Self::Jacobian(lens) => lens.translate(layer, stream),
        }
    }
}
