//! A whole checkpoint as one part.

use std::collections::HashMap;

use tch::Tensor;

use super::{PartRequest, Parts, TensorRequest};
use crate::{Checkpoint, LoadOptions, Result, TensorInfo};

impl Checkpoint {
    /// All tensors by name, placed as `options` say: for a file of a few tensors that is no model.
    ///
    /// # Errors
    ///
    /// As [`Parts::new`] and [`Parts::get`].
    pub fn tensors(&self, options: &LoadOptions) -> Result<HashMap<String, Tensor>> {
        let infos: Vec<&TensorInfo> = self.index().tensors.values().collect();
        let request = |info: &&TensorInfo| TensorRequest::new(info.name.as_str(), info.shape.clone());
        let all = PartRequest { label: "all tensors".into(), tensors: infos.iter().map(request).collect() };
        let placed = Parts::new(self, vec![all], options)?.get(0, None)?;
        Ok(infos.iter().map(|info| info.name.clone()).zip(placed).collect())
    }
}
