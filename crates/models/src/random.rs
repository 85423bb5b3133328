//! Random weights.

use std::collections::HashMap;

use tch::{Device, Kind, TchError, Tensor};

use crate::{Config, Error, Model, Result};

/// Weights of a fresh model, by name.
pub(crate) fn tensors(config: &Config, seed: i64) -> Result<HashMap<String, Tensor>> {
    tch::manual_seed(seed);
    let mut tensors = HashMap::new();
    for (name, shape) in Model::tensor_shapes(config)? {
        let tensor = tensor(config, &name, &shape).map_err(Error::torch(&name))?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

fn tensor(config: &Config, name: &str, shape: &[i64]) -> Result<Tensor, TchError> {
    let options = (Kind::Float, Device::Cpu);
    let is_norm = name.split('.').any(|segment| segment.starts_with("ln_"));
    if name.ends_with(".bias") {
        return Tensor::f_zeros(shape, options);
    }
    if is_norm {
        return Tensor::f_ones(shape, options);
    }
    let residual = [config.family.attention_output.name, config.family.mlp_output.name];
    let is_residual = residual.iter().any(|module| name.ends_with(&format!(".{module}.weight")));
    let depth = if is_residual { (2.0 * config.layers() as f64).sqrt() } else { 1.0 };
    Tensor::f_empty(shape, options)?.f_normal_(0.0, config.initializer_range / depth)
}
