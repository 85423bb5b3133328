//! Telling somebody what loading does while it does it.

/// Told as files are fetched and tensors placed; may be called from a background thread.
pub trait Progress: Send + Sync {
    /// `file` of `bytes` is about to be fetched; `already` of them are here from an earlier try.
    fn download_begin(&self, file: &str, bytes: u64, already: u64) {
        let _ = (file, bytes, already);
    }

    /// `bytes` more of `file` have come.
    fn downloaded(&self, file: &str, bytes: u64) {
        let _ = (file, bytes);
    }

    /// `file` is here.
    fn download_end(&self, file: &str) {
        let _ = file;
    }

    /// `bytes` on disk are about to be placed.
    fn begin(&self, bytes: u64) {
        let _ = bytes;
    }

    /// The tensor `name`, `bytes` on disk, has been placed.
    fn placed(&self, name: &str, bytes: u64) {
        let _ = (name, bytes);
    }

    /// All is placed.
    fn end(&self) {}
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {}
