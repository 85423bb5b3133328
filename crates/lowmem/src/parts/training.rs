//! Single tensors that are kept whatever the residency, because training changes them.

use std::path::PathBuf;

use tch::Tensor;

use super::{
    Parts,
    shared::{Source, lock},
};
use crate::{Error, Result, nearest, place_error::place_error};

impl Parts {
    /// One tensor by its name in the checkpoint, placed and kept whatever the residency: training changes it in place.
    ///
    /// # Errors
    ///
    /// As [`Parts::get`]; [`Error::MissingTensor`] when no part has that name.
    pub fn keep(&self, name: &str) -> Result<Tensor> {
        let (source, tensor) = self.placed(name)?;
        // Another thread may have been faster, and its tensor is what everybody has by now.
        let mut state = lock(&self.shared.state);
        state.owned.insert(source.key);
        Ok(state.kept.entry(source.key).or_insert(tensor).shallow_clone())
    }

    /// As [`Parts::keep`], a leaf that gradients are collected for. It takes the place of the tensor that was given out
    /// before and shares its storage, but is another: whoever is computing with the old one goes on without gradients.
    ///
    /// # Errors
    ///
    /// As [`Parts::keep`].
    pub fn leaf(&self, name: &str) -> Result<Tensor> {
        let (source, tensor) = self.placed(name)?;
        let fail = |error| place_error(&source.info, self.shared.dtype, self.shared.options.device, error);
        let mut state = lock(&self.shared.state);
        state.owned.insert(source.key);
        let held = state.kept.entry(source.key).or_insert(tensor);
        if !held.requires_grad() {
            *held = held.f_detach().and_then(|alias| alias.f_set_requires_grad(true)).map_err(fail)?;
        }
        Ok(held.shallow_clone())
    }

    /// Ends what [`Parts::leaf`] began: no gradients are collected for the tensor any more. It keeps what training made of it.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`] when no part has that name; whatever libtorch refuses.
    pub fn freeze(&self, name: &str) -> Result<()> {
        let source = self.source(name)?;
        let fail = |error| place_error(&source.info, self.shared.dtype, self.shared.options.device, error);
        let mut state = lock(&self.shared.state);
        if let Some(held) = state.kept.get_mut(&source.key).filter(|held| held.requires_grad()) {
            *held = held.f_detach().map_err(fail)?;
        }
        Ok(())
    }

    fn source(&self, name: &str) -> Result<&Source> {
        let source = self.shared.parts.iter().flatten().find(|source| source.info.name == name);
        source.ok_or_else(|| {
            let names = self.shared.parts.iter().flatten().map(|source| source.info.name.as_str());
            Error::MissingTensor {
                checkpoint: PathBuf::from("(parts)"),
                tensor: name.to_owned(),
                shape: Vec::new(),
                nearest: nearest(name, names),
            }
        })
    }

    /// One tensor by its name, placed.
    fn placed(&self, name: &str) -> Result<(&Source, Tensor)> {
        let source = self.source(name)?;
        let mut tensors = self.shared.place(&[source])?;
        let tensor = tensors.pop().ok_or(Error::NoSuchPart { part: 0, parts: self.len() })?;
        Ok((source, tensor))
    }
}
