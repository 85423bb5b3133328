//! Which places on disk the requests mean, and which of them are to be one tensor.

use std::collections::HashSet;

use super::{
    request::{PartRequest, TensorRequest},
    shared::Source,
};
use crate::{Checkpoint, Dtype, Error, Result, TensorInfo, compare::same_values, files::Files, nearest};

/// Pairs of names.
type Pairs = Vec<(String, String)>;

/// Requests that have been found in a checkpoint's index.
pub(super) struct Layout {
    labels: Vec<String>,
    parts: Vec<Vec<Source>>,
    /// Each storage once; a source's key is its position in here.
    storages: Vec<TensorInfo>,
    /// Pairs (name, name whose storage it shares).
    tied: Pairs,
    /// Pairs (name, name it is to be tied to where the values are the same).
    to_tie: Pairs,
}

/// The same, once it is known which tensors are one.
pub(super) struct Tied {
    pub(super) labels: Vec<String>,
    pub(super) parts: Vec<Vec<Source>>,
    /// Each storage that the parts use, once.
    pub(super) storages: Vec<TensorInfo>,
    /// Pairs (name, name whose storage it shares).
    pub(super) tied: Pairs,
    /// Pairs (name, name it was to be tied to) whose values differ.
    pub(super) untied: Pairs,
    /// Bytes that were read to compare tensors that lie in two places.
    pub(super) compared: u64,
}

impl Layout {
    /// Finds every requested tensor, reading no weight.
    pub(super) fn new(checkpoint: &Checkpoint, requests: Vec<PartRequest>) -> Result<Self> {
        let mut storages: Vec<TensorInfo> = Vec::new();
        let (mut tied, mut to_tie) = (Vec::new(), Vec::new());
        let mut labels = Vec::with_capacity(requests.len());
        let mut parts = Vec::with_capacity(requests.len());
        for part in requests {
            let mut sources = Vec::with_capacity(part.tensors.len());
            for request in part.tensors {
                let info = find(checkpoint, &request)?;
                to_tie.extend(request.tied_to.map(|other| (request.name, other)));
                let key = storages.iter().position(|other| other.same_storage(&info)).unwrap_or_else(|| {
                    storages.push(info.clone());
                    storages.len() - 1
                });
                if let Some(first) = storages.get(key).filter(|first| first.name != info.name) {
                    tied.push((info.name.clone(), first.name.clone()));
                }
                sources.push(Source { key, info });
            }
            labels.push(part.label);
            parts.push(sources);
        }
        Ok(Self { labels, parts, tied, storages, to_tie })
    }

    /// The dtype on disk of the largest floating-point tensor.
    pub(super) fn stored_dtype(&self) -> Dtype {
        let floats = self.storages.iter().filter(|info| info.dtype.is_float());
        floats.max_by_key(|info| info.bytes()).map_or(Dtype::F32, |info| info.dtype)
    }

    /// Makes one what is to be tied and has the same values in `dtype`.
    pub(super) fn tie(self, files: &Files, dtype: Dtype) -> Result<Tied> {
        let Self { labels, mut parts, storages, mut tied, to_tie } = self;
        let (mut untied, mut compared) = (Vec::new(), 0);
        for (name, other) in to_tie {
            let source = |name: &str| parts.iter().flatten().find(|source| source.info.name == *name);
            let (Some(tensor), Some(first)) = (source(&name), source(&other)) else { continue };
            let (tensor, first) = (tensor.clone(), first.clone());
            if tensor.key != first.key {
                // Nobody stores one matrix twice to save bytes and once more in blocks.
                let plain = tensor.info.recipe.is_none() && first.info.recipe.is_none();
                if !plain {
                    untied.push((name, other));
                    continue;
                }
                let (same, read) = same_values(files, &first.info, &tensor.info, dtype)?;
                compared += read;
                if !same {
                    untied.push((name, other));
                    continue;
                }
                tied.push((name.clone(), other));
            }
            // One tensor under one name, so that whoever trains the model changes it once.
            parts.iter_mut().flatten().filter(|source| source.info.name == name).for_each(|tensor| {
                *tensor = first.clone();
            });
        }
        let used: HashSet<usize> = parts.iter().flatten().map(|source| source.key).collect();
        let storages = (0..).zip(storages).filter(|(key, _)| used.contains(key)).map(|(_, info)| info).collect();
        Ok(Tied { labels, parts, storages, tied, untied, compared })
    }
}

fn find(checkpoint: &Checkpoint, request: &TensorRequest) -> Result<TensorInfo> {
    let index = checkpoint.index();
    let expected = request.stored_shape();
    let Some(info) = index.get(&request.name) else {
        return Err(Error::MissingTensor {
            checkpoint: checkpoint.path().to_owned(),
            tensor: request.name.clone(),
            shape: expected,
            nearest: nearest(&request.name, index.tensors.keys().map(String::as_str)),
        });
    };
    let whole = Some(info).filter(|info| info.shape == expected);
    let found = match request.slice {
        Some(slice) => whole.and_then(|info| info.slice(slice.index, request.label())),
        None => whole.cloned(),
    };
    found.ok_or_else(|| {
        let file = index.files.get(info.file).map_or_else(|| checkpoint.path().to_owned(), |file| file.path.clone());
        Error::Misshapen { file, tensor: request.name.clone(), expected, found: info.shape.clone() }
    })
}
