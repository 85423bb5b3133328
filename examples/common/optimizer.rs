//! Tensors from elsewhere for tch's optimizers.

use anyhow::{Context, Result};
use transformer_utils::tch::{Device, Tensor, nn};

/// Tensors that exist already as the variables of a store, so that tch's optimizers take them; one group each.
pub fn store_of(groups: &[Vec<Tensor>], device: Device) -> Result<nn::VarStore> {
    let store = nn::VarStore::new(device);
    for (group, tensors) in groups.iter().enumerate() {
        let path = store.root().set_group(group);
        for (index, tensor) in tensors.iter().enumerate() {
            // tch can make a variable but not take one: an empty one is made and the tensor put in its place.
            drop(path.f_zeros(&format!("{group}-{index}"), &[0])?);
            let mut variables = store.variables_.lock().ok().context("the variables are locked")?;
            let last = variables.trainable_variables.last_mut().context("the variable was not added")?;
            last.tensor = tensor.shallow_clone();
        }
    }
    Ok(store)
}
