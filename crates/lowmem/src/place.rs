//! From places on disk to tensors with memory of their own.
//!
//! On a CPU and in the dtype of the file, bytes are read straight into the memory that the tensors keep. Otherwise they
//! pass through equal buffers: on a CPU every processor reads and converts pieces of its own, and while one buffer is sent to
//! another device, the next is being read. Large tensors pass in pieces, so the buffers never exceed `staging_bytes` together,
//! whatever a tensor's or a file's size. What is stored in numbers of few bits is decoded from a mapping into the memory that the
//! tensor keeps.

mod converted;
mod cpu;
mod cuda;
mod division;
mod made;
mod placer;
mod spans;
mod staged;
mod strided;

use tch::{Device, Tensor};

use crate::{Result, index::TensorInfo};

pub(crate) use placer::{Placed, Placer};

impl Placer<'_> {
    /// Places all of `wanted`.
    pub(crate) fn place(&self, wanted: &[&TensorInfo]) -> Result<Placed> {
        let in_place = self.device == Device::Cpu;
        let mut slots: Vec<Option<Tensor>> = wanted.iter().map(|_| None).collect();
        let mut placed = Placed::default();
        let (mut direct, mut strided, mut staged, mut made) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (slot, &info) in wanted.iter().enumerate() {
            let list = match (&info.recipe, in_place && info.dtype == self.dtype) {
                (Some(_), _) => &mut made,
                (None, true) => &mut direct,
                (None, false) if info.strides.is_some() => &mut strided,
                (None, false) => &mut staged,
            };
            list.push((slot, info));
        }
        cpu::place_direct(self, &direct, &mut slots, &mut placed)?;
        strided::place_strided(self, &strided, &mut slots, &mut placed)?;
        if in_place {
            converted::place_converted(self, &staged, &mut slots, &mut placed)?;
        } else {
            staged::place_staged(self, &staged, &mut slots, &mut placed)?;
        }
        made::place_made(self, &made, &mut slots, &mut placed)?;
        for (slot, info) in slots.into_iter().zip(wanted) {
            // Only tensors without elements are in no span.
            placed.tensors.push(match slot {
                Some(tensor) => tensor,
                None => self.empty(info)?,
            });
        }
        Ok(placed)
    }
}
