//! How the staging memory is divided.

use crate::read::ALIGNMENT;

/// Buffers of the staged way: one being read, one read ahead, one being used.
pub(super) const BUFFERS: u64 = 3;
/// More than this much in one buffer gains nothing, in bytes.
const CHUNK_LIMIT: u64 = 16 << 20;
/// What a buffer takes beyond the bytes that it is for.
pub(super) const SLACK: u64 = 3 * ALIGNMENT;

/// Equal buffers that take no more than the staging memory together.
#[derive(Debug, PartialEq)]
pub(super) struct Division {
    /// Bytes of a file that pass through one buffer at once, a multiple of [`ALIGNMENT`].
    pub(super) largest: u64,
    /// Buffers there may be.
    pub(super) buffers: u64,
}

impl Division {
    /// Buffers of ordinary memory, which take what they ask for.
    pub(super) fn ordinary(staging_bytes: u64) -> Self {
        Self::of(share(staging_bytes), BUFFERS)
    }

    /// So many buffers that take `whole` bytes each, slack included.
    pub(super) fn of(whole: u64, buffers: u64) -> Self {
        let largest = whole.saturating_sub(SLACK) / ALIGNMENT * ALIGNMENT;
        Self { largest: largest.max(ALIGNMENT), buffers }
    }
}

/// The most bytes that one buffer may take.
pub(super) fn share(staging_bytes: u64) -> u64 {
    (staging_bytes / BUFFERS).min(CHUNK_LIMIT + SLACK)
}
