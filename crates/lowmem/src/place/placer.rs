//! What is to be placed where, and what came of it.

use tch::{Device, TchError, Tensor};

use crate::{
    Dtype, Error, Progress, Result, files::Files, index::TensorInfo, place_error::place_error, read::passing_bytes,
};

/// Places tensors in one dtype on one device.
pub(crate) struct Placer<'a> {
    pub(crate) files: &'a Files,
    pub(crate) dtype: Dtype,
    pub(crate) device: Device,
    pub(crate) staging_bytes: u64,
    /// Whether the tensors are dropped soon, and their memory is to be free then.
    pub(crate) passing: bool,
    pub(crate) progress: &'a dyn Progress,
}

/// Tensors in the order they were asked for, and what that took, in bytes.
#[derive(Default)]
pub(crate) struct Placed {
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) read: u64,
    pub(crate) allocated: u64,
    pub(crate) staging: u64,
}

impl Placed {
    /// More tensors, placed after these.
    pub(crate) fn extend(&mut self, more: Self) {
        self.tensors.extend(more.tensors);
        self.read += more.read;
        self.allocated += more.allocated;
        self.staging = self.staging.max(more.staging);
    }
}

impl Placer<'_> {
    /// Makes the error of a tensor that could not be placed.
    pub(super) fn error(&self, info: &TensorInfo) -> impl Fn(TchError) -> Error {
        let (info, dtype, device) = (info.clone(), self.dtype, self.device);
        move |source| place_error(&info, dtype, device, source)
    }

    /// The tensor's place, not filled yet.
    pub(super) fn empty(&self, info: &TensorInfo) -> Result<Tensor> {
        let fresh = || {
            if !self.passing || self.device != Device::Cpu {
                return Tensor::f_empty(&info.shape[..], (self.dtype.kind(), self.device));
            }
            let bytes = info.elements() * self.dtype.bytes();
            passing_bytes(bytes)?.f_narrow(0, 0, bytes as i64)?.f_view_dtype(self.dtype.kind())?.f_view(&info.shape[..])
        };
        fresh().map_err(self.error(info))
    }

    /// Counts a tensor that is whole, and says so.
    pub(super) fn done(&self, info: &TensorInfo, placed: &mut Placed) {
        placed.read += info.bytes();
        self.progress.placed(&info.name, info.bytes());
    }
}

pub(super) fn fill_slot(slots: &mut [Option<Tensor>], slot: usize, tensor: Tensor) {
    if let Some(slot) = slots.get_mut(slot) {
        *slot = Some(tensor);
    }
}
