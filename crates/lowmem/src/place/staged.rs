//! Through buffers to a device with memory of its own, converted or not.
//!
//! A thread fills buffers while this one empties them, so reading overlaps with sending.

use std::{sync::mpsc, thread};

use tch::{Device, Tensor};

use super::{
    cuda,
    division::Division,
    placer::{Placed, Placer},
    spans::{Chunk, chunks, spans},
};
use crate::{Result, index::TensorInfo, read::Buffer};

/// A chunk that has been read.
struct Filled<'a> {
    chunk: &'a Chunk,
    buffer: &'a Buffer,
    /// Where in the buffer it begins.
    lead: u64,
}

/// How the staging memory is divided for that device.
fn division(device: Device, staging_bytes: u64) -> Division {
    if device.is_cuda() { cuda::page_locked(staging_bytes) } else { Division::ordinary(staging_bytes) }
}

/// Places `wanted` in pieces that never take more than the staging memory together.
pub(super) fn place_staged(
    placer: &Placer<'_>,
    wanted: &[(usize, &TensorInfo)],
    slots: &mut [Option<Tensor>],
    placed: &mut Placed,
) -> Result<()> {
    let spans = spans(placer.files, wanted)?;
    let Some((_, first)) = spans.iter().flat_map(|span| &span.tensors).next() else { return Ok(()) };
    let Division { largest, buffers } = division(placer.device, placer.staging_bytes);
    let chunks = chunks(&spans, largest);
    let capacity = chunks.iter().map(|chunk| chunk.end - chunk.begin).max().unwrap_or(0);
    let (free, empty_buffers) = mpsc::channel();
    thread::scope(|scope| {
        let (read, filled) = mpsc::channel();
        let (spans, chunks, error) = (&spans, &chunks, placer.error(first));
        let device = placer.device;
        let reader = scope.spawn(move || {
            let (mut made, mut staging) = (0, 0);
            let mut fill = |chunk: &Chunk| -> Result<Option<(Buffer, u64)>> {
                let Some(span) = spans.get(chunk.span) else { return Ok(None) };
                let mut buffer = match empty_buffers.try_recv() {
                    Ok(buffer) => buffer,
                    // Only as many as are needed at once: page-locked ones are dear to make.
                    Err(mpsc::TryRecvError::Empty) if made < buffers => {
                        let buffer = Buffer::new(capacity, device, true).map_err(&error)?;
                        made += 1;
                        staging += buffer.allocated();
                        buffer
                    }
                    // Either side ends when the other does.
                    Err(_) => match empty_buffers.recv() {
                        Ok(buffer) => buffer,
                        Err(mpsc::RecvError) => return Ok(None),
                    },
                };
                let lead = buffer.fill(&span.file, chunk.begin, chunk.end - chunk.begin, span.aligned)?;
                Ok(Some((buffer, lead)))
            };
            for chunk in chunks {
                let Some(answer) = fill(chunk).transpose() else { break };
                let failed = answer.is_err();
                if read.send(answer).is_err() || failed {
                    break;
                }
            }
            staging
        });
        // Owned here, so that an early return ends the reader too.
        let (free, filled) = (free, filled);
        for chunk in chunks {
            let Some(span) = spans.get(chunk.span) else { continue };
            let Ok(answer) = filled.recv() else { break };
            let (buffer, lead) = answer?;
            let filled = Filled { chunk, buffer: &buffer, lead };
            for &(slot, info) in &span.tensors {
                let Some(target) = slots.get_mut(slot) else { continue };
                use_chunk(placer, &filled, info, target, placed)?;
            }
            // The reader may have read its last.
            let _ = free.send(buffer);
        }
        drop((free, filled));
        placed.staging += reader.join().unwrap_or(0);
        Ok(())
    })
}

/// Copies what `chunk` holds of one tensor to its place.
fn use_chunk(
    placer: &Placer<'_>,
    filled: &Filled<'_>,
    info: &TensorInfo,
    target: &mut Option<Tensor>,
    placed: &mut Placed,
) -> Result<()> {
    let Filled { chunk, buffer, lead } = *filled;
    let Some((from, to)) = chunk.part(info) else { return Ok(()) };
    if target.is_none() {
        *target = Some(placer.empty(info)?);
        placed.allocated += info.elements() * placer.dtype.bytes();
    }
    let Some(target) = target else { return Ok(()) };
    let width = info.dtype.bytes();
    let (first, count) = (((from - info.offset) / width) as i64, ((to - from) / width) as i64);
    let copy = || {
        let piece = buffer.bytes(lead + from - chunk.begin, to - from)?.f_view_dtype(info.dtype.kind())?;
        let mut target = target.f_view([-1])?.f_narrow(0, first, count)?;
        cuda::send(placer, info, &piece, &mut target)
    };
    copy().map_err(placer.error(info))?;
    if to == info.offset + info.bytes() {
        placer.done(info, placed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        place::division::{BUFFERS, SLACK},
        read::ALIGNMENT,
    };

    #[test]
    fn buffers_stay_within_the_staging_memory() {
        let least = BUFFERS * (ALIGNMENT + SLACK);
        for staging_bytes in (0..40).map(|step| least + step * 9_999_991) {
            for device in [Device::Cpu, Device::Mps, Device::Cuda(0)] {
                let Division { largest, buffers } = match device {
                    Device::Cpu => Division::converting(staging_bytes),
                    _ => division(device, staging_bytes),
                };
                assert!(largest >= ALIGNMENT && largest.is_multiple_of(ALIGNMENT) && buffers >= BUFFERS);
                let taken = if device.is_cuda() { (largest + SLACK).next_power_of_two() } else { largest + SLACK };
                assert!(buffers * taken <= staging_bytes, "{device:?} {staging_bytes}: {buffers} of {taken}");
            }
        }
        let plenty = division(Device::Cuda(0), 256 << 20);
        assert_eq!(plenty, Division { largest: (16 << 20) - SLACK, buffers: 16 });
    }
}
