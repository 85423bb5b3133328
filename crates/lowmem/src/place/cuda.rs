//! What the staged way does for a GPU: page-locked buffers, and copies that cross to the device.
//!
//! # What overlaps
//!
//! Each copy to the device is a blocking one from page-locked memory. It ends when the device has read the buffer, which
//! may then be filled again, and an error of CUDA's, whoever caused it, is that copy's `Err`. (`Cuda::synchronize` panics
//! instead, and waits for every stream there is.)
//!
//! Libtorch puts all work of all threads on one stream, and `tch` binds neither streams nor events. So a copy waits for
//! the kernels that were asked for before it, and kernels asked for later wait for it: the device never copies and computes
//! at once. What does go on while it computes is the reading, which takes several times as long as the copy (about 2 GB/s
//! from a disk, 10 to 25 over PCIe from page-locked memory): up to `staging_bytes` are read ahead, and cross in one go as
//! soon as the kernels are done. Copies that do not block would gain only the microseconds between two buffers, and would
//! need a wait for the stream all the same before a buffer is used again.

use tch::{TchError, Tensor};

use super::{
    division::{BUFFERS, Division, SLACK, share},
    placer::Placer,
};
use crate::index::TensorInfo;

/// Buffers of page-locked memory.
pub(super) fn page_locked(staging_bytes: u64) -> Division {
    // Libtorch rounds page-locked memory up to a power of two. All that may be taken is used for reading ahead.
    let whole = 1 << share(staging_bytes).max(2 * SLACK).ilog2();
    Division::of(whole, (staging_bytes / whole).max(BUFFERS))
}

/// Copies a piece of the tensor, as it is on disk, to its place on the device.
pub(super) fn send(
    placer: &Placer<'_>,
    info: &TensorInfo,
    piece: &Tensor,
    target: &mut Tensor,
) -> Result<(), TchError> {
    if info.dtype == placer.dtype {
        return target.f_copy_(piece);
    }
    // Converted there: `f_copy_` alone would convert here, into memory that is not page-locked. The copy blocks.
    let piece = piece.f_to_device_(placer.device, info.dtype.kind(), false, true)?;
    target.f_copy_(&piece)
}
