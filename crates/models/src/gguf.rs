//! Models in GGUF files: their settings are in the metadata, their tensors have names and forms of llama.cpp's.
//!
//! What is read is brought into the form that Hugging Face has, so that families, sites and lenses are the same: the metadata
//! becomes a `config.json` ([`config`]), and each tensor gets its name there, and the steps that make its values those there
//! ([`spelled`]). What llama.cpp's `convert_hf_to_gguf.py` does is undone.

mod settings;
mod tensors;

use lowmem::{Checkpoint, LoadOptions, PartRequest, Parts, TensorRequest, gguf::Metadata};
use tch::Kind;

use crate::{Config, Error, Gate, Result};

pub(crate) use tensors::spelled;

/// The config of a GGUF file.
pub(crate) fn config(checkpoint: &Checkpoint, metadata: &Metadata) -> Result<Config> {
    let value = settings::Settings::new(checkpoint, metadata)?.json()?;
    let mut config = Config::from_value(value)?;
    if config.family.model_types.contains(&"gpt_oss") {
        // Here gate and input of the experts have a matrix each.
        config.architecture.layers.iter_mut().for_each(|layer| layer.mlp.gate = Gate::Separate);
    }
    Ok(config)
}

/// The numbers of a small tensor.
fn numbers(checkpoint: &Checkpoint, name: &str) -> Result<Option<Vec<f64>>> {
    let Some(info) = checkpoint.index().get(name) else { return Ok(None) };
    let request = TensorRequest::new(name, info.shape.clone());
    let part = PartRequest { label: name.to_owned(), tensors: vec![request] };
    let placed = Parts::new(checkpoint, vec![part], &LoadOptions::default())?.get(0, None)?;
    let values = || {
        let tensor = placed.first().map(|tensor| tensor.f_to_kind(Kind::Double)?.f_view([-1])).transpose()?;
        tensor.map(Vec::<f64>::try_from).transpose()
    };
    values().map_err(Error::torch(name))
}
