//! What a run brought back.

use tch::Tensor;

use crate::{Error, Result};

/// Captured tensors by the names they were asked for, in the order of asking.
#[derive(Debug)]
pub struct Activations {
    pub(crate) tensors: Vec<(String, Tensor)>,
    pub(crate) blocks_run: usize,
    pub(crate) blocks_total: usize,
}

impl Activations {
    /// The tensor of a name, spelt as it was asked for.
    ///
    /// Two names of one site give tensors that share their storage; see [`Activations::shares_storage`].
    ///
    /// # Errors
    ///
    /// [`Error::NotCaptured`].
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        let found = self.tensors.iter().find(|(known, _)| known == name);
        found.map(|(_, tensor)| tensor).ok_or_else(|| Error::NotCaptured {
            name: name.to_owned(),
            captured: self.tensors.iter().map(|(known, _)| known.clone()).collect(),
        })
    }

    /// Names and tensors in the order of asking.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The tensors themselves.
    pub fn into_tensors(self) -> Vec<(String, Tensor)> {
        self.tensors
    }

    /// Blocks that ran, the last one perhaps in part.
    pub fn blocks_run(&self) -> usize {
        self.blocks_run
    }

    /// Blocks the model has.
    pub fn blocks_total(&self) -> usize {
        self.blocks_total
    }

    /// The other names whose tensors share storage with this one's. Writing into one of them changes all.
    ///
    /// # Errors
    ///
    /// [`Error::NotCaptured`].
    pub fn shares_storage(&self, name: &str) -> Result<Vec<&str>> {
        let address = self.get(name)?.data_ptr();
        let others = self.tensors.iter().filter(|(other, tensor)| other != name && tensor.data_ptr() == address);
        Ok(others.map(|(other, _)| other.as_str()).collect())
    }
}
