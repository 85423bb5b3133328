//! On a CPU in another dtype: every processor reads and converts pieces of its own.
//!
//! What is in the page cache is read in stretches that stay in a processor's caches until they are converted: memory gives every
//! number once and takes it once. (A mapping of the file is not faster, and would end the program if somebody cut the file.) What
//! is not cached is read past the page cache, a whole piece at a time. Libtorch converts, on the thread that has read: its own
//! threads would wait busily for the reading.

use std::{
    sync::{
        Mutex, PoisonError,
        mpsc::{self, Sender},
    },
    thread, vec,
};

use tch::{Device, Tensor};

use super::{
    division::Division,
    placer::{Placed, Placer, fill_slot},
    spans::{Chunk, Span, chunks, spans},
};
use crate::{
    Result,
    index::TensorInfo,
    read::{Buffer, bring_pages, is_cached, prefer_huge_pages},
};

/// Elements converted at a time: libtorch gives 32768 and more to other threads of its own, and calls take a while, too.
const STRETCH: i64 = 31 << 10;

/// What one thread does at a time.
struct Job<'a> {
    span: &'a Span<'a>,
    chunk: Chunk,
    parts: Vec<Part<'a>>,
}

/// What a chunk holds of one tensor.
struct Part<'a> {
    slot: usize,
    info: &'a TensorInfo,
    from: u64,
    to: u64,
    /// Its place among the tensor's elements.
    target: Tensor,
}

impl<'a> Job<'a> {
    fn new(placer: &Placer<'_>, spans: &'a [Span<'a>], chunk: Chunk, slots: &[Option<Tensor>]) -> Result<Option<Self>> {
        let Some(span) = spans.get(chunk.span) else { return Ok(None) };
        let mut parts = Vec::new();
        for &(slot, info) in &span.tensors {
            let (Some((from, to)), Some(Some(whole))) = (chunk.part(info), slots.get(slot)) else { continue };
            let [first, count] = [from - info.offset, to - from].map(|bytes| (bytes / info.dtype.bytes()) as i64);
            let target = whole.f_view([-1]).and_then(|whole| whole.f_narrow(0, first, count));
            parts.push(Part { slot, info, from, to, target: target.map_err(placer.error(info))? });
        }
        Ok(Some(Self { span, chunk, parts }))
    }

    /// Reads and converts all of it.
    fn run(&self, placer: &Placer<'_>, buffer: &mut Buffer) -> Result<()> {
        let (Span { file, aligned, .. }, &Chunk { begin, end, .. }) = (self.span, &self.chunk);
        let cached = is_cached(&file.file, begin, end - begin);
        let lead = if cached { 0 } else { buffer.fill(file, begin, end - begin, *aligned)? };
        for Part { info, from, target, .. } in &self.parts {
            bring_pages(target);
            let fail = placer.error(info);
            let mut at = *from;
            for mut target in target.f_split(STRETCH, 0).map_err(&fail)? {
                let length = target.numel() as u64 * info.dtype.bytes();
                let position = if cached {
                    buffer.fill_cached(file, at, length)?;
                    0
                } else {
                    lead + at - begin
                };
                let piece = buffer.bytes(position, length).and_then(|bytes| bytes.f_view_dtype(info.dtype.kind()));
                piece.and_then(|piece| target.f_copy_(&piece)).map_err(&fail)?;
                at += length;
            }
        }
        Ok(())
    }
}

/// Places `wanted` in pieces that never take more than the staging memory together.
pub(super) fn place_converted(
    placer: &Placer<'_>,
    wanted: &[(usize, &TensorInfo)],
    slots: &mut [Option<Tensor>],
    placed: &mut Placed,
) -> Result<()> {
    let spans = spans(placer.files, wanted)?;
    let Some((span, (_, first))) = spans.iter().find_map(|span| Some((span, span.tensors.first()?))) else {
        return Ok(());
    };
    // Bytes of each tensor that are not converted yet.
    let mut left = vec![0; slots.len()];
    for &(slot, info) in spans.iter().flat_map(|span| &span.tensors) {
        // Not touched yet, so it takes nothing yet.
        let fresh = placer.empty(info)?;
        if placer.passing {
            prefer_huge_pages(&fresh);
        }
        placed.allocated += info.elements() * placer.dtype.bytes();
        fill_slot(slots, slot, fresh);
        if let Some(left) = left.get_mut(slot) {
            *left = info.bytes();
        }
    }
    let Division { largest, buffers } = Division::converting(placer.staging_bytes);
    let mut jobs = Vec::new();
    for chunk in chunks(&spans, largest) {
        jobs.extend(Job::new(placer, &spans, chunk, slots)?);
    }
    let capacity = jobs.iter().map(|job| job.chunk.end - job.chunk.begin).max().unwrap_or(0);
    let mut own = Vec::new();
    for _ in 0..buffers.min(jobs.len() as u64) {
        let buffer = Buffer::new(capacity, Device::Cpu, true).map_err(placer.error(first))?;
        placed.staging += buffer.allocated();
        own.push(buffer);
    }
    let queue = Mutex::new(jobs.into_iter());
    thread::scope(|scope| {
        let (done, answers) = mpsc::channel();
        let work = |buffer| {
            let (queue, done) = (&queue, done.clone());
            scope.spawn(move || work(placer, queue, buffer, &done))
        };
        let threads: Vec<_> = own.into_iter().map(work).collect();
        drop(done);
        // The loop owns the answers, so that an early return ends the threads too.
        for answer in answers {
            for Part { slot, info, from, to, .. } in answer?.parts {
                let Some(left) = left.get_mut(slot) else { continue };
                *left -= to - from;
                if *left == 0 {
                    placer.done(info, placed);
                }
            }
        }
        let ended_early = |_| span.file.io(std::io::Error::other("a converting thread ended early"));
        threads.into_iter().try_for_each(|thread| thread.join().map_err(ended_early))
    })
}

/// Runs jobs until there are no more, or nobody waits for them.
fn work<'a>(
    placer: &Placer<'_>,
    queue: &Mutex<vec::IntoIter<Job<'a>>>,
    mut buffer: Buffer,
    done: &Sender<Result<Job<'a>>>,
) {
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    while let Some(job) = next() {
        let answer = job.run(placer, &mut buffer).map(|()| job);
        let failed = answer.is_err();
        if done.send(answer).is_err() || failed {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::{
        Dtype, NoProgress,
        files::Files,
        index::{Index, WeightFile},
    };

    /// Special numbers among ordinary ones.
    fn numbers(count: i64) -> Tensor {
        let special =
            [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::MAX, 1e-45, -3e-39, 6e-8, 65_520.0];
        let halves = [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x3f80_7fff, 0x7f7f_8000, 0x7f80_0001].map(f32::from_bits);
        let special = Tensor::from_slice(&[&special[..], &halves[..]].concat());
        let ordinary = (Tensor::arange(count, (Kind::Float, Device::Cpu)) * 12.9898).sin() * 43.75;
        // At every distance from the end of a vector register.
        let mask = Tensor::arange(count, (Kind::Int64, Device::Cpu)).remainder(7).eq(3);
        ordinary
            .where_self(&mask.logical_not(), &special.repeat([count / special.numel() as i64 + 1]).narrow(0, 0, count))
    }

    fn bytes_of(tensor: &Tensor) -> Vec<u8> {
        Vec::try_from(tensor.view([-1]).view_dtype(Kind::Uint8)).unwrap()
    }

    /// Equal in every bit, but for those of what is no number, which libtorch itself chooses by where it stands.
    fn assert_same(found: &Tensor, expected: &Tensor) {
        assert_eq!((found.kind(), found.size()), (expected.kind(), expected.size()));
        assert!(found.isnan().equal(&expected.isnan()));
        let bits = |tensor: &Tensor| bytes_of(&tensor.nan_to_num(0.0, f64::INFINITY, f64::NEG_INFINITY));
        assert!(bits(found) == bits(expected), "{found:?}");
    }

    #[test]
    fn cached_or_not_numbers_are_converted_as_libtorch_does() {
        let folder = tempfile::tempdir().unwrap();
        for stored in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F64] {
            let path = folder.path().join(stored.to_string());
            // One that is many stretches long, few and odd numbers, and places that no element size divides, nor a block.
            let (mut tensors, mut infos, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
            for (count, gap) in [(1_i64, 8), (300_001, 0), (33, 5), (5, 0), (70_003, 1), (4096, 4096), (STRETCH, 3)] {
                bytes.resize(bytes.len() + gap, 0);
                let tensor = numbers(count).to_kind(stored.kind());
                let (name, offset) = (format!("{count}"), bytes.len() as u64);
                infos.push(TensorInfo {
                    name,
                    dtype: stored,
                    shape: vec![count],
                    file: 0,
                    offset,
                    strides: None,
                    recipe: None,
                });
                bytes.extend(bytes_of(&tensor));
                tensors.push(tensor);
            }
            std::fs::write(&path, &bytes).unwrap();
            let index = Index {
                files: vec![WeightFile { path: path.clone(), bytes: bytes.len() as u64 }],
                tensors: std::collections::BTreeMap::new(),
            };
            let files = Files::new(&index, None);
            let wanted: Vec<&TensorInfo> = infos.iter().collect();
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().filter(|&dtype| dtype != stored) {
                for (staging_bytes, passing) in [(1, false), (300_000, true), (256 << 20, false)] {
                    let device = Device::Cpu;
                    let placer = Placer { files: &files, dtype, device, staging_bytes, passing, progress: &NoProgress };
                    for cached in [false, true] {
                        if cached {
                            std::fs::read(&path).unwrap();
                        } else {
                            #[cfg(target_os = "linux")]
                            forget(&path);
                        }
                        let placed = placer.place(&wanted).unwrap();
                        assert_eq!(placed.read, infos.iter().map(TensorInfo::bytes).sum::<u64>());
                        for (found, expected) in placed.tensors.iter().zip(&tensors) {
                            assert_same(found, &expected.to_kind(dtype.kind()));
                        }
                    }
                }
            }
        }
    }

    /// Takes a file out of the page cache, where its file system has one.
    #[cfg(target_os = "linux")]
    fn forget(path: &std::path::Path) {
        let file = std::fs::File::open(path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }

    #[test]
    fn a_file_that_was_cut_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![0; 4 << 20]).unwrap();
        let info = |offset| TensorInfo {
            name: "cut".to_owned(),
            dtype: Dtype::F32,
            shape: vec![1 << 18],
            file: 0,
            offset,
            strides: None,
            recipe: None,
        };
        let infos: Vec<TensorInfo> = (0..4).map(|at| info(at << 20)).collect();
        let index = Index {
            files: vec![WeightFile { path: file.path().to_owned(), bytes: 4 << 20 }],
            tensors: std::collections::BTreeMap::new(),
        };
        let files = Files::new(&index, None);
        let (dtype, device) = (Dtype::Bf16, Device::Cpu);
        let placer =
            Placer { files: &files, dtype, device, staging_bytes: 1 << 20, passing: false, progress: &NoProgress };
        // Opened while it was whole.
        files.open(&infos[0]).unwrap();
        file.as_file().set_len((3 << 20) + 5).unwrap();
        let error = placer.place(&infos.iter().collect::<Vec<_>>()).err().unwrap();
        assert!(matches!(error, crate::Error::Shrunk { expected, .. } if expected == 4 << 20), "{error}");
    }
}
