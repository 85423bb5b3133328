//! Parts over tensors that never were in a file.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use tch::{Device, Tensor};

use super::{
    PartRequest, Parts, TensorRequest,
    shared::{Shared, Source, State},
};
use crate::{Dtype, Error, LoadOptions, LoadReport, Residency, Result, TensorInfo, nearest, prepare_libtorch};

impl Parts {
    /// Parts over tensors that are in memory already: for models that are made, not loaded. All must have one dtype and
    /// device.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`], [`Error::Misshapen`].
    pub fn from_tensors(tensors: &HashMap<String, Tensor>, parts: Vec<PartRequest>) -> Result<Self> {
        prepare_libtorch();
        let memory = PathBuf::from("(in memory)");
        let mut names: Vec<String> = Vec::new();
        let mut kept = HashMap::new();
        let mut labels = Vec::new();
        let mut sources = Vec::new();
        let (mut device, mut dtype) = (Device::Cpu, Dtype::F32);
        for part in parts {
            let mut list = Vec::new();
            for request in part.tensors {
                let (label, expected) = (request.label(), request.stored_shape());
                let TensorRequest { name, shape, slice, .. } = request;
                let Some(tensor) = tensors.get(&name) else {
                    let nearest = nearest(&name, tensors.keys().map(String::as_str));
                    return Err(Error::MissingTensor { checkpoint: memory, tensor: name, shape: expected, nearest });
                };
                if tensor.size() != expected {
                    return Err(Error::Misshapen { file: memory, tensor: name, expected, found: tensor.size() });
                }
                let tensor = match slice {
                    Some(slice) => tensor.f_select(0, slice.index),
                    None => Ok(tensor.shallow_clone()),
                };
                let place = |source| Error::Place { tensor: label.clone(), bytes: 0, target: "memory".into(), source };
                let (tensor, name) = (tensor.map_err(place)?, label.clone());
                device = tensor.device();
                dtype = tensor.f_kind().ok().and_then(Dtype::from_kind).unwrap_or(dtype);
                let key = names.iter().position(|other| *other == name).unwrap_or_else(|| {
                    names.push(name.clone());
                    names.len() - 1
                });
                kept.insert(key, tensor);
                list.push(Source {
                    key,
                    info: TensorInfo { name, dtype, shape, file: 0, offset: key as u64, strides: None, recipe: None },
                });
            }
            labels.push(part.label);
            sources.push(list);
        }
        let report = LoadReport {
            files: 0,
            tensors: names.len(),
            residency: Residency::Resident,
            reason: "the tensors are in memory already".into(),
            dtype,
            tensors_placed: names.len(),
            bytes_read: 0,
            bytes_allocated: 0,
            staging_peak: 0,
            seconds: 0.0,
            ignored: Vec::new(),
            extra: Vec::new(),
            tied: Vec::new(),
            untied: Vec::new(),
        };
        let shared = Shared {
            labels,
            parts: sources,
            files: None,
            options: LoadOptions::default().device(device),
            budget: u64::MAX,
            residency: Residency::Resident,
            dtype,
            packs: false,
            state: Mutex::new(State::new(kept, report)),
            placing: Mutex::new(()),
        };
        Ok(Self { prefetcher: Mutex::new(None), shared: Arc::new(shared) })
    }
}
