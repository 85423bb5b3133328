//! All tensors of a safetensors file.

use std::{collections::HashMap, path::Path};

use anyhow::Result;
use transformer_utils::{
    lowmem::{Checkpoint, LoadOptions},
    tch::{Device, Kind, Tensor},
};

/// Copies of all tensors of the file at `path`, in f32 on the CPU, by name. The file may be replaced afterwards.
pub fn read(path: &Path) -> Result<HashMap<String, Tensor>> {
    let checkpoint = Checkpoint::open(path)?;
    let copy = |tensor: Tensor| tensor.f_to_device_(Device::Cpu, Kind::Float, false, true);
    let tensors = checkpoint.tensors(&LoadOptions::default())?;
    tensors.into_iter().map(|(name, tensor)| Ok((name, copy(tensor)?))).collect()
}
