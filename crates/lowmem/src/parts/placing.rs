//! Placing what is asked for and not placed yet, as the residency says.

use std::{collections::HashMap, path::PathBuf, time::Instant};

use tch::Tensor;

use super::shared::{Shared, Source, lock};
use crate::{
    Error, Residency, Result, TensorInfo,
    files::Files,
    place::{Placed, Placer},
};

impl Shared {
    /// The tensors of a part, placing those that are not.
    pub(super) fn place_part(&self, part: usize) -> Result<Vec<Tensor>> {
        self.place(&self.sources(part)?.iter().collect::<Vec<_>>())
    }

    /// The tensor of one source, placing it if it is not.
    pub(super) fn place_one(&self, source: &Source) -> Result<Tensor> {
        let tensor = self.place(&[source])?.pop();
        tensor.ok_or_else(|| Error::NotFound { path: PathBuf::from(&source.info.name) })
    }

    /// The tensors of these sources, placing those that are not.
    pub(super) fn place(&self, sources: &[&Source]) -> Result<Vec<Tensor>> {
        let _placing = lock(&self.placing);
        let mut tensors: HashMap<usize, Tensor> = HashMap::new();
        let mut missing: Vec<&Source> = Vec::new();
        {
            let state = lock(&self.state);
            for &source in sources {
                if let Some(tensor) = state.kept.get(&source.key) {
                    tensors.insert(source.key, tensor.shallow_clone());
                } else if !missing.iter().any(|other| other.key == source.key) {
                    missing.push(source);
                }
            }
        }
        if let Some(files) = self.files.as_ref().filter(|_| !missing.is_empty()) {
            let start = Instant::now();
            let infos: Vec<&TensorInfo> = missing.iter().map(|source| &source.info).collect();
            let placed = self.place_new(files, &infos)?;
            let mut state = lock(&self.state);
            state.report.tensors_placed += placed.tensors.len();
            state.report.bytes_read += placed.read;
            state.report.bytes_allocated += placed.allocated;
            state.report.staging_peak = state.report.staging_peak.max(placed.staging);
            state.report.seconds += start.elapsed().as_secs_f64();
            for (source, tensor) in missing.iter().zip(placed.tensors) {
                if self.residency != Residency::Streamed {
                    state.kept.insert(source.key, tensor.shallow_clone());
                }
                tensors.insert(source.key, tensor);
            }
        }
        let tensor = |source: &&Source| {
            let tensor = tensors.get(&source.key).map(Tensor::shallow_clone);
            tensor.ok_or_else(|| Error::NotFound { path: PathBuf::from(&source.info.name) })
        };
        sources.iter().map(tensor).collect()
    }

    fn place_new(&self, files: &Files, infos: &[&TensorInfo]) -> Result<Placed> {
        let progress = &*self.options.progress;
        let (device, staging_bytes) = (self.options.device, self.options.staging_bytes);
        let passing = self.residency == Residency::Streamed;
        let placer = Placer { files, dtype: self.dtype, device, staging_bytes, passing, progress };
        if self.residency != Residency::Mapped {
            return placer.place(infos);
        }
        let mut placed = Placed::default();
        for info in infos {
            if info.recipe.is_some() {
                // Such as rows in another order: made once, then kept.
                placed.extend(placer.place(&[info])?);
                continue;
            }
            placed.tensors.push(files.view(info)?);
            placed.read += info.bytes();
            placed.allocated += if info.is_aligned() { 0 } else { info.bytes() };
            progress.placed(&info.name, info.bytes());
        }
        Ok(placed)
    }
}
