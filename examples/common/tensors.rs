//! All tensors of a safetensors file.

use std::{collections::HashMap, path::Path};

use anyhow::Result;
use transformer_utils::{
    lowmem::{Checkpoint, LoadOptions, PartRequest, Parts, TensorInfo, TensorRequest},
    tch::{Device, Kind, Tensor},
};

/// Copies of all tensors of the file at `path`, in f32 on the CPU, by name. The file may be replaced afterwards.
pub fn read(path: &Path) -> Result<HashMap<String, Tensor>> {
    let checkpoint = Checkpoint::open(path)?;
    let infos: Vec<&TensorInfo> = checkpoint.index().tensors.values().collect();
    let request = |info: &&TensorInfo| TensorRequest::new(info.name.as_str(), info.shape.clone());
    let part = PartRequest { label: "all".into(), tensors: infos.iter().map(request).collect() };
    let placed = Parts::new(&checkpoint, vec![part], &LoadOptions::default())?.get(0, None)?;
    let copy = |tensor: &Tensor| tensor.f_to_device_(Device::Cpu, Kind::Float, false, true);
    infos.iter().zip(&placed).map(|(info, tensor)| Ok((info.name.clone(), copy(tensor)?))).collect()
}
