//! From places on disk to tensors with memory of their own.
//!
//! On a CPU and in the dtype of the file, bytes are read straight into the memory that the tensors keep. Otherwise they
//! pass through equal buffers: while one is converted or sent to the device, the next is being read. Large tensors pass in
//! pieces, so the buffers never exceed `staging_bytes` together, whatever a tensor's or a file's size.
//!
//! # What overlaps on a GPU
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

use std::{
    sync::{Arc, mpsc},
    thread,
};

use tch::{Device, TchError, Tensor};

use crate::{
    Dtype, Error, Progress, Result,
    files::{Files, OpenFile, shape_view},
    index::TensorInfo,
    place_error::place_error,
    read::{ALIGNMENT, Buffer, passing_bytes, prefer_huge_pages},
};

/// Tensors closer than this in the file, in bytes, are read together.
const GAP: u64 = 64 << 10;
/// Tensors are not joined into reads larger than this, in bytes.
const JOIN_LIMIT: u64 = 64 << 20;
/// Buffers of the staged way: one being read, one read ahead, one being used.
const BUFFERS: u64 = 3;
/// More than this much in one buffer gains nothing, in bytes.
const CHUNK_LIMIT: u64 = 16 << 20;
/// What a buffer takes beyond the bytes that it is for.
const SLACK: u64 = 3 * ALIGNMENT;

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

/// Tensors that lie together in one file.
struct Span<'a> {
    begin: u64,
    end: u64,
    /// Whether every tensor in it begins at a multiple of its element size. One that does not has a span of its own.
    aligned: bool,
    file: Arc<OpenFile>,
    /// Positions in the list of what is wanted.
    tensors: Vec<(usize, &'a TensorInfo)>,
}

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

/// How the staging memory is divided.
#[derive(Debug, PartialEq)]
struct Division {
    /// Bytes of a file that pass through one buffer at once, a multiple of [`ALIGNMENT`].
    largest: u64,
    /// Buffers there may be.
    buffers: u64,
}

impl Division {
    fn new(device: Device, staging_bytes: u64) -> Self {
        let share = (staging_bytes / BUFFERS).min(CHUNK_LIMIT + SLACK);
        let (whole, buffers) = if device.is_cuda() {
            // Libtorch rounds page-locked memory up to a power of two. All that may be taken is used for reading ahead.
            let whole = 1 << share.max(2 * SLACK).ilog2();
            (whole, (staging_bytes / whole).max(BUFFERS))
        } else {
            (share, BUFFERS)
        };
        let largest = whole.saturating_sub(SLACK) / ALIGNMENT * ALIGNMENT;
        Self { largest: largest.max(ALIGNMENT), buffers }
    }
}

impl Placer<'_> {
    /// Places all of `wanted`.
    pub(crate) fn place(&self, wanted: &[&TensorInfo]) -> Result<Placed> {
        let in_place = self.device == Device::Cpu;
        let mut slots: Vec<Option<Tensor>> = wanted.iter().map(|_| None).collect();
        let mut placed = Placed::default();
        let (mut direct, mut staged) = (Vec::new(), Vec::new());
        for (slot, &info) in wanted.iter().enumerate() {
            if in_place && info.dtype == self.dtype { direct.push((slot, info)) } else { staged.push((slot, info)) }
        }
        self.place_direct(&direct, &mut slots, &mut placed)?;
        self.place_staged(&staged, &mut slots, &mut placed)?;
        for (slot, info) in slots.into_iter().zip(wanted) {
            // Only tensors without elements are in no span.
            placed.tensors.push(match slot {
                Some(tensor) => tensor,
                None => self.empty(info)?,
            });
        }
        Ok(placed)
    }

    fn error(&self, info: &TensorInfo) -> impl Fn(TchError) -> Error {
        let (info, dtype, device) = (info.clone(), self.dtype, self.device);
        move |source| place_error(&info, dtype, device, source)
    }

    fn empty(&self, info: &TensorInfo) -> Result<Tensor> {
        let fresh = || {
            if !self.passing || self.device != Device::Cpu {
                return Tensor::f_empty(&info.shape[..], (self.dtype.kind(), self.device));
            }
            let bytes = info.elements() * self.dtype.bytes();
            passing_bytes(bytes)?.f_narrow(0, 0, bytes as i64)?.f_view_dtype(self.dtype.kind())?.f_view(&info.shape[..])
        };
        fresh().map_err(self.error(info))
    }

    fn done(&self, info: &TensorInfo, placed: &mut Placed) {
        placed.read += info.bytes();
        self.progress.placed(&info.name, info.bytes());
    }

    fn place_direct(
        &self,
        wanted: &[(usize, &TensorInfo)],
        slots: &mut [Option<Tensor>],
        placed: &mut Placed,
    ) -> Result<()> {
        for span in self.spans(wanted)? {
            let Some((_, first)) = span.tensors.first() else { continue };
            let length = span.end - span.begin;
            let mut buffer = Buffer::new(length, Device::Cpu, self.passing).map_err(self.error(first))?;
            let lead = buffer.fill(&span.file, span.begin, length, span.aligned)?;
            placed.allocated += buffer.allocated();
            for &(slot, info) in &span.tensors {
                let bytes = buffer.bytes(lead + info.offset - span.begin, info.extent());
                let tensor = bytes.and_then(|bytes| shape_view(&bytes, info)).map_err(self.error(info))?;
                fill_slot(slots, slot, tensor);
                self.done(info, placed);
            }
        }
        Ok(())
    }

    fn place_staged(
        &self,
        wanted: &[(usize, &TensorInfo)],
        slots: &mut [Option<Tensor>],
        placed: &mut Placed,
    ) -> Result<()> {
        let (strided, plain): (Vec<_>, Vec<_>) = wanted.iter().partition(|(_, info)| info.strides.is_some());
        for (slot, info) in strided {
            // Elements out of order cannot pass in pieces; only transposed or sliced tensors of a `.bin` are like this.
            let file = self.files.open(info)?;
            let mut buffer = Buffer::new(info.extent(), Device::Cpu, true).map_err(self.error(info))?;
            let lead = buffer.fill(&file, info.offset, info.extent(), info.is_aligned())?;
            placed.staging = placed.staging.max(buffer.allocated());
            let copy = || {
                let view = shape_view(&buffer.bytes(lead, info.extent())?, info)?;
                view.f_to_device_(self.device, self.dtype.kind(), false, true)
            };
            fill_slot(slots, slot, copy().map_err(self.error(info))?);
            placed.allocated += info.elements() * self.dtype.bytes();
            self.done(info, placed);
        }
        let spans = self.spans(&plain)?;
        let Some((_, first)) = spans.iter().flat_map(|span| &span.tensors).next() else { return Ok(()) };
        let Division { largest, buffers } = Division::new(self.device, self.staging_bytes);
        let chunks = chunks(&spans, largest);
        let capacity = chunks.iter().map(|chunk| chunk.end - chunk.begin).max().unwrap_or(0);
        let (free, empty_buffers) = mpsc::channel();
        thread::scope(|scope| {
            let (read, filled) = mpsc::channel();
            let (spans, chunks, error) = (&spans, &chunks, self.error(first));
            let device = self.device;
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
                    self.use_chunk(&filled, info, target, placed)?;
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
        &self,
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
            let fresh = self.empty(info)?;
            if self.passing {
                prefer_huge_pages(&fresh);
            }
            placed.allocated += info.elements() * self.dtype.bytes();
            *target = Some(fresh);
        }
        let Some(target) = target else { return Ok(()) };
        let width = info.dtype.bytes();
        let (first, count) = (((from - info.offset) / width) as i64, ((to - from) / width) as i64);
        let copy = || {
            let source = buffer.bytes(lead + from - chunk.begin, to - from)?.f_view_dtype(info.dtype.kind())?;
            let mut target = target.f_view([-1])?.f_narrow(0, first, count)?;
            if self.device == Device::Cpu || info.dtype == self.dtype {
                return target.f_copy_(&source);
            }
            // Converted there: `f_copy_` alone would convert here, into memory that is not page-locked. The copy blocks.
            let source = source.f_to_device_(self.device, info.dtype.kind(), false, true)?;
            target.f_copy_(&source)
        };
        copy().map_err(self.error(info))?;
        if to == info_end {
            self.done(info, placed);
        }
        Ok(())
    }

    fn spans<'a>(&self, wanted: &[(usize, &'a TensorInfo)]) -> Result<Vec<Span<'a>>> {
        let mut ordered: Vec<_> = wanted.iter().copied().filter(|(_, info)| info.elements() > 0).collect();
        ordered.sort_by_key(|(_, info)| (info.file, info.offset));
        let mut spans: Vec<Span<'a>> = Vec::new();
        for (slot, info) in ordered {
            let end = info.offset + info.extent();
            let joined = spans.last_mut().filter(|span| {
                let same_file = span.tensors.first().is_some_and(|(_, first)| first.file == info.file);
                same_file
                    && span.aligned
                    && info.is_aligned()
                    && info.offset <= span.end + GAP
                    && end.saturating_sub(span.begin) <= JOIN_LIMIT
            });
            match joined {
                Some(span) => {
                    span.end = span.end.max(end);
                    span.tensors.push((slot, info));
                }
                None => spans.push(Span {
                    begin: info.offset,
                    end,
                    aligned: info.is_aligned(),
                    file: self.files.open(info)?,
                    tensors: vec![(slot, info)],
                }),
            }
        }
        Ok(spans)
    }
}

fn fill_slot(slots: &mut [Option<Tensor>], slot: usize, tensor: Tensor) {
    if let Some(slot) = slots.get_mut(slot) {
        *slot = Some(tensor);
    }
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

    #[test]
    fn buffers_stay_within_the_staging_memory() {
        let least = BUFFERS * (ALIGNMENT + SLACK);
        for staging_bytes in (0..40).map(|step| least + step * 9_999_991) {
            for device in [Device::Cpu, Device::Cuda(0)] {
                let Division { largest, buffers } = Division::new(device, staging_bytes);
                assert!(largest >= ALIGNMENT && largest.is_multiple_of(ALIGNMENT) && buffers >= BUFFERS);
                let taken = if device.is_cuda() { (largest + SLACK).next_power_of_two() } else { largest + SLACK };
                assert!(buffers * taken <= staging_bytes, "{device:?} {staging_bytes}: {buffers} of {taken}");
            }
        }
        let plenty = Division::new(Device::Cuda(0), 256 << 20);
        assert_eq!(plenty, Division { largest: (16 << 20) - SLACK, buffers: 16 });
    }
}
