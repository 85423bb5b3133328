//! Which tensors are read together.

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
