//! Whole, through one buffer: what is converted or moved and whose elements are out of order.

use tch::{Device, Tensor};

use super::placer::{Placed, Placer, fill_slot};
use crate::{Result, files::shape_view, index::TensorInfo, read::Buffer};

/// Elements out of order cannot pass in pieces; only transposed or sliced tensors of a `.bin` are like this.
pub(super) fn place_strided(
    placer: &Placer<'_>,
    wanted: &[(usize, &TensorInfo)],
    slots: &mut [Option<Tensor>],
    placed: &mut Placed,
) -> Result<()> {
    for &(slot, info) in wanted {
        let file = placer.files.open(info)?;
        let mut buffer = Buffer::new(info.extent(), Device::Cpu, true).map_err(placer.error(info))?;
        let lead = buffer.fill(&file, info.offset, info.extent(), info.is_aligned())?;
        placed.staging = placed.staging.max(buffer.allocated());
        let copy = || {
            let view = shape_view(&buffer.bytes(lead, info.extent())?, info)?;
            view.f_to_device_(placer.device, placer.dtype.kind(), false, true)
        };
        fill_slot(slots, slot, copy().map_err(placer.error(info))?);
        placed.allocated += info.elements() * placer.dtype.bytes();
        placer.done(info, placed);
    }
    Ok(())
}
