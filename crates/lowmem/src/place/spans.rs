//! Which tensors are read together, and in which pieces.

use std::sync::Arc;

use crate::{
    Result,
    files::{Files, OpenFile},
    index::TensorInfo,
};

/// Tensors closer than this in the file, in bytes, are read together.
const GAP: u64 = 64 << 10;
/// Tensors are not joined into reads larger than this, in bytes.
const JOIN_LIMIT: u64 = 64 << 20;

/// Tensors that lie together in one file.
pub(super) struct Span<'a> {
    pub(super) begin: u64,
    pub(super) end: u64,
    /// Whether every tensor in it begins at a multiple of its element size. One that does not has a span of its own.
    pub(super) aligned: bool,
    pub(super) file: Arc<OpenFile>,
    /// Positions in the list of what is wanted.
    pub(super) tensors: Vec<(usize, &'a TensorInfo)>,
}

/// The spans that hold `wanted`, in the order of the files. Tensors without elements are in none.
pub(super) fn spans<'a>(files: &Files, wanted: &[(usize, &'a TensorInfo)]) -> Result<Vec<Span<'a>>> {
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
                file: files.open(info)?,
                tensors: vec![(slot, info)],
            }),
        }
    }
    Ok(spans)
}

/// A piece of a span that fits one buffer.
pub(super) struct Chunk {
    /// The position of the span among all.
    pub(super) span: usize,
    pub(super) begin: u64,
    pub(super) end: u64,
}

impl Chunk {
    /// Where what it holds of one tensor begins and ends; `None` where it holds nothing.
    pub(super) fn part(&self, info: &TensorInfo) -> Option<(u64, u64)> {
        let (from, to) = (self.begin.max(info.offset), self.end.min(info.offset + info.bytes()));
        (from < to).then_some((from, to))
    }
}

/// Cuts spans into pieces of at most `largest` bytes, a multiple of every element size. Where the tensors are aligned in
/// the file the cuts are too, so that no element is cut and direct reads meet no block twice.
pub(super) fn chunks(spans: &[Span<'_>], largest: u64) -> Vec<Chunk> {
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
