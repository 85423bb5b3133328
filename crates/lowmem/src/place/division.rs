//! How the staging memory is divided.

use std::{num::NonZero, thread};

use crate::read::ALIGNMENT;

/// Buffers of the staged way: one being read, one read ahead, one being used.
pub(super) const BUFFERS: u64 = 3;
/// More than this much in one buffer gains nothing, in bytes.
const CHUNK_LIMIT: u64 = 16 << 20;
/// The same where each thread converts what it has read: less, since the shares of the last ones should end together.
const CONVERTED: u64 = 8 << 20;
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

    /// Buffers of threads that convert on the CPU, one each.
    pub(super) fn converting(staging_bytes: u64) -> Self {
        // One more than there are processors: some wait for the disk.
        let threads = thread::available_parallelism().map_or(1, NonZero::get) as u64 + 1;
        let buffers = (staging_bytes / (CONVERTED + SLACK)).min(threads).max(BUFFERS);
        Self::of((staging_bytes / buffers).min(CONVERTED + SLACK), buffers)
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
