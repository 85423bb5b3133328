//! On a CPU in the dtype of the file: bytes are read straight into the memory that the tensors keep.

use tch::{Device, Tensor};

use super::{
    placer::{Placed, Placer, fill_slot},
    spans::spans,
};
use crate::{Result, files::shape_view, index::TensorInfo, read::Buffer};

/// Reads each span into one buffer, of which its tensors are views.
pub(super) fn place_direct(
    placer: &Placer<'_>,
    wanted: &[(usize, &TensorInfo)],
    slots: &mut [Option<Tensor>],
    placed: &mut Placed,
) -> Result<()> {
    for span in spans(placer.files, wanted)? {
        let Some((_, first)) = span.tensors.first() else { continue };
        let length = span.end - span.begin;
        let mut buffer = Buffer::new(length, Device::Cpu, placer.passing).map_err(placer.error(first))?;
        let lead = buffer.fill(&span.file, span.begin, length, span.aligned)?;
        placed.allocated += buffer.allocated();
        for &(slot, info) in &span.tensors {
            let bytes = buffer.bytes(lead + info.offset - span.begin, info.extent());
            let tensor = bytes.and_then(|bytes| shape_view(&bytes, info)).map_err(placer.error(info))?;
            fill_slot(slots, slot, tensor);
            placer.done(info, placed);
        }
    }
    Ok(())
}
