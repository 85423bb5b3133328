//! What all threads that ask for parts share: where the tensors come from, and those that are kept.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tch::Tensor;

use crate::{Dtype, Error, LoadOptions, LoadReport, PackedMatrix, Residency, Result, TensorInfo, files::Files};

/// What the prefetching thread needs too.
pub(super) struct Shared {
    pub(super) labels: Vec<String>,
    pub(super) parts: Vec<Vec<Source>>,
    /// None for tensors that never were in a file.
    pub(super) files: Option<Files>,
    pub(super) options: LoadOptions,
    /// Bytes that streamed parts may hold at once.
    pub(super) budget: u64,
    pub(super) residency: Residency,
    pub(super) dtype: Dtype,
    /// Whether there are matrices in blocks that products can use as they are.
    pub(super) packs: bool,
    pub(super) state: Mutex<State>,
    /// Held while tensors are placed, so that threads that ask for the same part do not place it twice.
    pub(super) placing: Mutex<()>,
}

/// Where a tensor comes from. Tensors that share storage share a key.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) key: usize,
    pub(super) info: TensorInfo,
}

pub(super) struct State {
    pub(super) kept: HashMap<usize, Tensor>,
    /// Keys of kept tensors that are no longer what the file holds, or may not be.
    pub(super) owned: HashSet<usize>,
    /// Matrices that have been asked for as they are stored.
    pub(super) packed: HashMap<usize, Arc<PackedMatrix>>,
    pub(super) report: LoadReport,
}

impl State {
    pub(super) fn new(kept: HashMap<usize, Tensor>, report: LoadReport) -> Self {
        Self { kept, owned: HashSet::new(), packed: HashMap::new(), report }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here is left half-changed by a panic elsewhere.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Where the tensors of a part come from.
    pub(super) fn sources(&self, part: usize) -> Result<&[Source]> {
        self.parts.get(part).map(Vec::as_slice).ok_or(Error::NoSuchPart { part, parts: self.parts.len() })
    }

    /// Where one of them comes from.
    pub(super) fn source(&self, part: usize, tensor: usize) -> Result<&Source> {
        self.sources(part)?.get(tensor).ok_or(Error::NoSuchPart { part, parts: self.parts.len() })
    }

    /// Bytes that a part takes once placed.
    pub(super) fn placed_bytes(&self, part: usize) -> u64 {
        let sources = self.parts.get(part).map(Vec::as_slice).unwrap_or_default();
        sources.iter().map(|source| source.info.elements() * self.dtype.bytes()).sum()
    }
}
