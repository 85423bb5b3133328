//! Parts whose matrices stay in the blocks of their file.

use std::sync::Arc;

use tch::{Device, Tensor};

use super::{
    Parts,
    shared::{Source, lock},
};
use crate::{PackedMatrix, Result, packed::is_packable};

/// Tensors that are small beside any matrix: kept once they have been placed, so that a part costs nothing to ask for again.
const SMALL: u64 = 64 << 10;

/// A tensor of a part, as [`Parts::get_packed`] gives it.
pub enum Held {
    /// Placed.
    Tensor(Tensor),
    /// A matrix that stays as its file has it.
    Packed(Arc<PackedMatrix>),
}

impl Parts {
    /// Whether matrices can stay packed: where they lie in the blocks of a GGUF file and the run computes on the CPU.
    pub fn can_pack(&self) -> bool {
        self.shared.options.device == Device::Cpu && self.shared.files.is_some() && self.shared.packs
    }

    /// As [`Parts::get`], but matrices in the blocks of a GGUF file stay there, whatever the residency, for products with one vector:
    /// what generation does, token after token. `turned` says that matrices were asked for as `[in, out]`.
    ///
    /// Training changes tensors: those given out by [`Parts::keep`] and [`Parts::leaf`] are given as they are.
    ///
    /// # Errors
    ///
    /// As [`Parts::get`].
    pub fn get_packed(&self, part: usize, turned: bool) -> Result<Vec<Held>> {
        if !self.can_pack() {
            return Ok(self.get(part, None)?.into_iter().map(Held::Tensor).collect());
        }
        let sources = self.shared.sources(part)?;
        sources.iter().map(|source| self.held(source, turned)).collect()
    }

    /// Tensor number `tensor` of `part` as [`Parts::get_packed`] would give it, if that is packed. Nothing is placed otherwise.
    ///
    /// # Errors
    ///
    /// As [`Parts::get`].
    pub fn packed(&self, part: usize, tensor: usize, turned: bool) -> Result<Option<Arc<PackedMatrix>>> {
        self.packed_of(self.shared.source(part, tensor)?, turned)
    }

    fn packed_of(&self, source: &Source, turned: bool) -> Result<Option<Arc<PackedMatrix>>> {
        let Some(files) = self.shared.files.as_ref().filter(|_| self.can_pack()) else { return Ok(None) };
        let mut state = lock(&self.shared.state);
        if state.owned.contains(&source.key) || !is_packable(&source.info, turned) {
            return Ok(None);
        }
        if let Some(packed) = state.packed.get(&source.key) {
            return Ok(Some(Arc::clone(packed)));
        }
        let packed = PackedMatrix::new(files, &source.info, turned)?.map(Arc::new);
        if let Some(packed) = &packed {
            state.report.bytes_read += source.info.bytes();
            state.packed.insert(source.key, Arc::clone(packed));
        }
        Ok(packed)
    }

    fn held(&self, source: &Source, turned: bool) -> Result<Held> {
        if let Some(packed) = self.packed_of(source, turned)? {
            return Ok(Held::Packed(packed));
        }
        let tensor = self.shared.place_one(source)?;
        if source.info.bytes() <= SMALL {
            lock(&self.shared.state).kept.entry(source.key).or_insert_with(|| tensor.shallow_clone());
        }
        Ok(Held::Tensor(tensor))
    }
}
