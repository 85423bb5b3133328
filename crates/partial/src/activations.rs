//! What a run brought back.

use std::ops::Range;

use models::{AsSite, Site, SiteRef};
use tch::Tensor;

use crate::{Error, Result};

/// Captured tensors by the names they were asked for, in the order of asking.
#[derive(Debug)]
pub struct Activations {
    pub(crate) tensors: Vec<(String, Site, Tensor)>,
    pub(crate) blocks_run: usize,
    pub(crate) blocks_total: usize,
}

impl Activations {
    /// The tensor of a name, spelt as it was asked for, or of a [`Site`], whatever name it was asked for by.
    ///
    /// Two names of one site give tensors that share their storage; see [`Activations::shares_storage`].
    ///
    /// # Errors
    ///
    /// [`Error::NotCaptured`].
    pub fn get(&self, name: impl AsSite) -> Result<&Tensor> {
        Ok(self.find(name)?.1)
    }

    /// The name a tensor was asked for by, and the tensor.
    fn find(&self, asked: impl AsSite) -> Result<(&str, &Tensor)> {
        let found = self.position(&asked).and_then(|index| self.tensors.get(index));
        found.map(|(name, _, tensor)| (name.as_str(), tensor)).ok_or_else(|| self.not_captured(&asked))
    }

    /// Which of the tensors is asked for.
    pub(crate) fn index(&self, asked: impl AsSite) -> Result<usize> {
        self.position(&asked).ok_or_else(|| self.not_captured(&asked))
    }

    fn position(&self, asked: &impl AsSite) -> Option<usize> {
        self.tensors.iter().position(|(name, site, _)| match asked.as_site() {
            SiteRef::Name(asked) => asked == name,
            SiteRef::Site(asked) => asked == *site,
        })
    }

    fn not_captured(&self, asked: &impl AsSite) -> Error {
        let captured = self.tensors.iter().map(|(known, _, _)| known.clone()).collect();
        Error::NotCaptured { name: asked.spelling(), captured }
    }

    /// Names and tensors in the order of asking.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, _, tensor)| (name.as_str(), tensor))
    }

    /// The tensors themselves.
    pub fn into_tensors(self) -> Vec<(String, Tensor)> {
        self.tensors.into_iter().map(|(name, _, tensor)| (name, tensor)).collect()
    }

    /// Blocks that ran, the last one perhaps in part.
    pub fn blocks_run(&self) -> usize {
        self.blocks_run
    }

    /// Blocks the model has.
    pub fn blocks_total(&self) -> usize {
        self.blocks_total
    }

    /// The other names whose tensors share storage with this one's, in whole or in part. Writing into one of them changes
    /// what they share.
    ///
    /// # Errors
    ///
    /// [`Error::NotCaptured`].
    pub fn shares_storage(&self, name: impl AsSite) -> Result<Vec<&str>> {
        let (name, tensor) = self.find(name)?;
        let own = addresses(tensor);
        let overlaps = |tensor: &Tensor| {
            let other = addresses(tensor);
            own.start < other.end && other.start < own.end
        };
        let others = self.iter().filter(|(other, tensor)| *other != name && overlaps(tensor));
        Ok(others.map(|(other, _)| other).collect())
    }
}

/// From the first byte of a tensor to behind its last.
fn addresses(tensor: &Tensor) -> Range<usize> {
    let start = tensor.data_ptr() as usize;
    let steps = tensor.size().into_iter().zip(tensor.stride());
    let last: i64 = steps.map(|(size, stride)| (size - 1).max(0) * stride).sum();
    let width = tensor.f_kind().map_or(0, |kind| kind.elt_size_in_bytes());
    start..start + (last as usize + 1) * width
}
