//! What loading did.

use crate::{Dtype, Residency};

/// What loading has done so far.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LoadReport {
    /// Weight files of the checkpoint.
    pub files: usize,
    /// Tensors the parts ask for.
    pub tensors: usize,
    /// Where the weights live.
    pub residency: Residency,
    /// Why they live there, in words.
    pub reason: String,
    /// The dtype the run computes in.
    pub dtype: Dtype,
    /// Tensors placed so far.
    pub tensors_placed: usize,
    /// Bytes on disk of what has been placed, gathered or compared so far. A mapped tensor counts once, when first handed
    /// out, though the system reads its pages only as they are touched.
    pub bytes_read: u64,
    /// Bytes allocated for weights so far (a mapping allocates none).
    pub bytes_allocated: u64,
    /// The most bytes that staging buffers have taken at once.
    pub staging_peak: u64,
    /// Seconds spent in placing, reading included.
    pub seconds: f64,
    /// Tensors of the checkpoint that are known not to be weights.
    pub ignored: Vec<String>,
    /// Tensors of the checkpoint that no part of the model uses and that nothing is known about.
    pub extra: Vec<String>,
    /// Pairs (name, name whose storage it shares).
    pub tied: Vec<(String, String)>,
    /// Pairs (name, name it was to be tied to) that the checkpoint holds with different values. Each is used as it is.
    pub untied: Vec<(String, String)>,
}

impl LoadReport {
    /// Reading speed in GB (10^9 bytes) per second.
    pub fn gigabytes_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.bytes_read as f64 / 1e9 / self.seconds } else { 0.0 }
    }
}
