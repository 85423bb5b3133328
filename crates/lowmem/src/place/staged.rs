//! Through buffers: what is converted, or goes to a device with memory of its own.
//!
//! A thread fills buffers while this one empties them, so reading overlaps with converting and sending.

use std::{sync::mpsc, thread};

use tch::{Device, Tensor};

use super::{
    cuda,
    division::Division,
    placer::{Placed, Placer, fill_slot},
    spans::{Span, spans},
};
use crate::{
    Result,
    files::shape_view,
    index::TensorInfo,
    read::{Buffer, prefer_huge_pages},
};

/// A piece of a span that fits one buffer.
struct Chunk {
    span: usize,
    begin: u64,
    end: u64,
}

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

/// Places `wanted` in pieces that never take more than the staging memory together; strided tensors come first, whole.
pub(super) fn place_staged(
    placer: &Placer<'_>,
    wanted: &[(usize, &TensorInfo)],
    slots: &mut [Option<Tensor>],
    placed: &mut Placed,
) -> Result<()> {
    let (strided, plain): (Vec<_>, Vec<_>) = wanted.iter().partition(|(_, info)| info.strides.is_some());
    place_strided(placer, &strided, slots, placed)?;
    let spans = spans(placer.files, &plain)?;
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

/// Elements out of order cannot pass in pieces; only transposed or sliced tensors of a `.bin` are like this.
fn place_strided(
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

/// Copies what `chunk` holds of one tensor to its place.
fn use_chunk(
    placer: &Placer<'_>,
    filled: &Filled<'_>,
    info: &TensorInfo,
    target: &mut Option<Tensor>,
    placed: &mut Placed,
) -> Result<()> {
    let Filled { chunk, buffer, lead } = *filled;
    let info_end = info.offset + info.bytes();
    let (from, to) = (chunk.begin.max(info.offset), chunk.end.min(info_end));
    if from >= to {
        return Ok(());
    }
    if target.is_none() {
        let fresh = placer.empty(info)?;
        if placer.passing {
            prefer_huge_pages(&fresh);
        }
        placed.allocated += info.elements() * placer.dtype.bytes();
        *target = Some(fresh);
    }
    let Some(target) = target else { return Ok(()) };
    let width = info.dtype.bytes();
    let (first, count) = (((from - info.offset) / width) as i64, ((to - from) / width) as i64);
    let copy = || {
        let piece = buffer.bytes(lead + from - chunk.begin, to - from)?.f_view_dtype(info.dtype.kind())?;
        let mut target = target.f_view([-1])?.f_narrow(0, first, count)?;
        match placer.device {
            Device::Cpu => target.f_copy_(&piece),
            _ => cuda::send(placer, info, &piece, &mut target),
        }
    };
    copy().map_err(placer.error(info))?;
    if to == info_end {
        placer.done(info, placed);
    }
    Ok(())
}

/// Cuts spans into pieces of at most `largest` bytes, a multiple of every element size. Where the tensors are aligned in
/// the file the cuts are too, so that no element is cut and direct reads meet no block twice.
fn chunks(spans: &[Span<'_>], largest: u64) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for (number, span) in spans.iter().enumerate() {
        let mut begin = span.begin;
        while begin < span.end {
            let cut = if span.aligned { (begin / largest + 1) * largest } else { begin + largest };
            let end = cut.min(span.end);
            chunks.push(Chunk { span: number, begin, end });
            begin = end;
        }
    }
    chunks
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
            for device in [Device::Cpu, Device::Cuda(0)] {
                let Division { largest, buffers } = division(device, staging_bytes);
                assert!(largest >= ALIGNMENT && largest.is_multiple_of(ALIGNMENT) && buffers >= BUFFERS);
                let taken = if device.is_cuda() { (largest + SLACK).next_power_of_two() } else { largest + SLACK };
                assert!(buffers * taken <= staging_bytes, "{device:?} {staging_bytes}: {buffers} of {taken}");
            }
        }
        let plenty = division(Device::Cuda(0), 256 << 20);
        assert_eq!(plenty, Division { largest: (16 << 20) - SLACK, buffers: 16 });
    }
}
