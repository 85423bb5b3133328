//! What stands between a row's stream and the final norm.

use std::fmt::Display;

use models::{Model, Site};
use tch::{Kind, Tensor};

use crate::{
    Error, JacobianLens, TunedLens,
    error::Result,
    table::{JACOBIAN, TUNED},
};

/// A lens whose maps were trained or fitted, whichever.
#[derive(Debug)]
#[non_exhaustive]
pub enum FittedLens {
    /// A tuned lens.
    Tuned(TunedLens),
    /// A Jacobian lens.
    Jacobian(JacobianLens),
}

impl From<TunedLens> for FittedLens {
    fn from(lens: TunedLens) -> Self {
        Self::Tuned(lens)
    }
}

impl From<JacobianLens> for FittedLens {
    fn from(lens: JacobianLens) -> Self {
        Self::Jacobian(lens)
    }
}

impl FittedLens {
    /// What tables say of it: `tuned`, or `jacobian`.
    pub fn name(&self) -> &'static str {
        self.translators().name()
    }

    /// Whether it can belong to `model`.
    ///
    /// # Errors
    ///
    /// As [`TunedLens::check`] and [`JacobianLens::check`].
    pub fn check(&self, model: &Model) -> Result<()> {
        match self {
            Self::Tuned(lens) => lens.check(model),
            Self::Jacobian(lens) => lens.check(model),
        }
    }

    /// Its maps by their names in its file, as they are kept.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        match self {
            Self::Tuned(lens) => lens.tensors(),
            Self::Jacobian(lens) => {
                let named = |layer: usize| {
                    let matrix = lens.matrix(layer)?.shallow_clone();
                    Some((format!("{}.{layer}", JacobianLens::NAME), matrix))
                };
                lens.layers().filter_map(named).collect()
            }
        }
    }

    pub(crate) fn translators(&self) -> Translators<'_> {
        match self {
            Self::Tuned(lens) => Translators::Tuned(lens),
            Self::Jacobian(lens) => Translators::Jacobian(lens),
        }
    }
}

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

    /// An error of this kind of lens.
    pub(crate) fn refuse(self, problem: String) -> Error {
        match self {
            Self::Tuned(_) => Error::TunedLens { problem },
            Self::Jacobian(_) => Error::JacobianLens { problem },
        }
    }

    /// Refuses rows, by their sites and names, without a map but the last, which needs none.
    pub(crate) fn cover<N: Display>(self, model: &Model, rows: impl IntoIterator<Item = (Site, N)>) -> Result<()> {
        let last = Site::before_block(model.config().layers());
        match rows.into_iter().find(|(site, _)| *site != last && self.layer(*site).is_none()) {
            Some((_, name)) => {
                let problem = format!("there is no translator for the row {name}; there are those of whole blocks");
                Err(self.refuse(problem))
            }
            None => Ok(()),
        }
    }

    /// A stream through the map of `layer`, or as it is where there is none: `[.., d_model]` in f32.
    pub(crate) fn translate(self, layer: Option<usize>, stream: &Tensor) -> Result<Tensor> {
        match (self, layer) {
            (Self::Tuned(lens), Some(layer)) => lens.translate(layer, stream),
            (Self::Jacobian(lens), Some(layer)) => lens.translate(layer, stream),
            (_, None) => stream.f_to_kind(Kind::Float).map_err(|source| Error::Torch { at: "the rows", source }),
        }
    }
}
