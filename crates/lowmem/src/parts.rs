//! A checkpoint as an ordered list of parts, each placed when it is asked for.

mod layout;
mod memory;
mod packed;
mod placing;
mod request;
mod rows;
mod shared;
mod training;
mod whole;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
};

use tch::{Device, Tensor};

use crate::{
    Checkpoint, Dtype, Error, LoadOptions, LoadReport, Residency, Result, available_memory, choose::Situation,
    files::Files, packed::is_packable, prefetch::Prefetcher, prepare_libtorch,
};
use layout::{Layout, Tied};
use shared::{Shared, Source, State, lock};

pub use packed::Held;
pub use request::{PartRequest, Slice, TensorRequest};

/// Tensors in the order of the parts that need them, placed as the [`Residency`] says.
///
/// `Parts` is [`Send`] and [`Sync`]; threads that ask at the same time wait for each other.
pub struct Parts {
    // Dropped first: its thread works on what is shared.
    prefetcher: Mutex<Option<Prefetcher>>,
    shared: Arc<Shared>,
}

impl Parts {
    /// Checks every requested tensor against the checkpoint's index and prepares to place them. It reads no weight, except
    /// to compare tensors that are to be tied and lie in two places: up to the first difference, piece by piece.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`], [`Error::Misshapen`]; [`Error::Residency`] or [`Error::DtypeOnDevice`] where the options
    /// contradict each other; as [`Parts::get`] where weights are compared.
    pub fn new(checkpoint: &Checkpoint, parts: Vec<PartRequest>, options: &LoadOptions) -> Result<Self> {
        prepare_libtorch();
        let index = checkpoint.index();
        let layout = Layout::new(checkpoint, parts)?;
        let dtype = options.dtype.resolve(layout.stored_dtype(), options.device);
        check_dtype(dtype, options.device)?;
        let files = Files::new(index, checkpoint.fetch());
        let Tied { labels, parts, storages, tied, untied, compared } = layout.tie(&files, dtype)?;
        let available = available_memory();
        let situation = Situation {
            tensors: &storages,
            dtype,
            device: options.device,
            staging_bytes: options.staging_bytes,
            available,
        };
        let (residency, reason) = situation.choose(options.residency)?;
        let packs = storages.iter().any(|info| is_packable(info, false) || is_packable(info, true));
        let budget = options.budget_bytes.or(available.map(|available| available / 2)).unwrap_or(u64::MAX);
        let report = LoadReport {
            files: index.files.len(),
            tensors: storages.len(),
            residency,
            reason,
            dtype,
            tensors_placed: 0,
            bytes_read: compared,
            bytes_allocated: 0,
            staging_peak: 0,
            seconds: 0.0,
            ignored: Vec::new(),
            extra: Vec::new(),
            tied,
            untied,
        };
        let shared = Shared {
            labels,
            parts,
            files: Some(files),
            options: options.clone(),
            budget,
            residency,
            dtype,
            packs,
            state: Mutex::new(State::new(HashMap::new(), report)),
            placing: Mutex::new(()),
        };
        Ok(Self { prefetcher: Mutex::new(None), shared: Arc::new(shared) })
    }

    /// How many parts there are.
    pub fn len(&self) -> usize {
        self.shared.parts.len()
    }

    /// Whether there is no part.
    pub fn is_empty(&self) -> bool {
        self.shared.parts.is_empty()
    }

    /// The labels of the parts.
    pub fn labels(&self) -> &[String] {
        &self.shared.labels
    }

    /// The device that tensors are placed on.
    pub fn device(&self) -> Device {
        self.shared.options.device
    }

    /// The dtype that tensors are placed in.
    pub fn dtype(&self) -> Dtype {
        self.shared.dtype
    }

    /// Where the weights live.
    pub fn residency(&self) -> Residency {
        self.shared.residency
    }

    /// What has been placed so far.
    pub fn report(&self) -> LoadReport {
        lock(&self.shared.state).report.clone()
    }

    /// Says in the report which tensors of the checkpoint are not used: `ignored` are known to be no weights, `extra` are not
    /// known.
    pub fn report_unused(&self, ignored: Vec<String>, extra: Vec<String>) {
        let mut state = lock(&self.shared.state);
        (state.report.ignored, state.report.extra) = (ignored, extra);
    }

    /// The tensors of `part` in the order in which they were requested, placing them if they are not.
    ///
    /// With [`Residency::Streamed`] the tensors live as long as the answer does, and `next`, the part that will be asked
    /// for after this one, is placed on a background thread meanwhile, provided that both fit the budget.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchPart`], [`Error::Shrunk`], [`Error::Io`], [`Error::Place`].
    pub fn get(&self, part: usize, next: Option<usize>) -> Result<Vec<Tensor>> {
        if self.shared.residency != Residency::Streamed {
            return self.shared.place_part(part);
        }
        let mut prefetcher = lock(&self.prefetcher);
        // A part nobody asked for after all is dropped here: its memory must be free before more is taken.
        let ready = prefetcher.as_mut().and_then(Prefetcher::take).filter(|(ready, _)| *ready == part);
        let tensors = match ready {
            Some((_, tensors)) => tensors?,
            None => self.shared.place_part(part)?,
        };
        if let Some(next) = next.filter(|&next| next != part && next < self.len())
            && self.shared.placed_bytes(part).saturating_add(self.shared.placed_bytes(next)) <= self.shared.budget
        {
            let prefetcher = prefetcher.get_or_insert_with(|| {
                let shared = Arc::clone(&self.shared);
                Prefetcher::new(move |part| shared.place_part(part))
            });
            prefetcher.begin(next);
        }
        Ok(tensors)
    }

    /// The names of the tensors of `part`. One that is tied has the name of the other.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchPart`].
    pub fn names(&self, part: usize) -> Result<Vec<&str>> {
        Ok(self.shared.sources(part)?.iter().map(|source| source.info.name.as_str()).collect())
    }

    /// Places these parts now, telling the progress of the options, instead of when they are first asked for. Does nothing
    /// for mapped and streamed weights, which have nothing to wait for.
    ///
    /// # Errors
    ///
    /// As [`Parts::get`].
    pub fn preload(&self, parts: impl IntoIterator<Item = usize>) -> Result<()> {
        if self.shared.residency != Residency::Resident {
            return Ok(());
        }
        let mut sources: Vec<&Source> = Vec::new();
        for part in parts {
            sources.extend(self.shared.sources(part)?);
        }
        let mut seen = HashSet::new();
        let kept: HashSet<usize> = lock(&self.shared.state).kept.keys().copied().collect();
        let new = sources.iter().filter(|source| !kept.contains(&source.key) && seen.insert(source.key));
        let bytes = new.map(|source| source.info.bytes()).sum();
        let progress = &self.shared.options.progress;
        progress.begin(bytes);
        self.shared.place(&sources)?;
        progress.end();
        Ok(())
    }
}

fn check_dtype(dtype: Dtype, device: Device) -> Result<()> {
    let problem = match (dtype, device) {
        (Dtype::F16, Device::Cpu) => "half precision runs at a hundredth of the speed of f32 on a CPU; use f32 or bf16",
        (dtype, _) if !dtype.is_float() => "weights are floating-point; use f32, bf16 or f16",
        _ => return Ok(()),
    };
    Err(Error::DtypeOnDevice { dtype, device: format!("{device:?}"), problem })
}
