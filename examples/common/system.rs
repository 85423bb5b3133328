//! What the system says about this process and this machine. Numbers it does not say are `None`.

use std::{fs, path::Path};

/// Bytes in a MiB.
pub const MIB: f64 = 1_048_576.0;

/// The most memory this process has held, mapped file pages included, in MiB.
pub fn peak_resident_mib() -> Option<f64> {
    status("VmHWM")
}

/// The memory this process holds now, mapped file pages included, in MiB.
pub fn resident_mib() -> Option<f64> {
    status("VmRSS")
}

/// The part of it that is no file's: what the process would need without any page cache, in MiB.
pub fn private_mib() -> Option<f64> {
    status("RssAnon")
}

fn status(field: &str) -> Option<f64> {
    kilobytes(Path::new("/proc/self/status"), field)
}

/// Memory that can be had without swapping, in MiB.
pub fn available_mib() -> Option<f64> {
    kilobytes(Path::new("/proc/meminfo"), "MemAvailable")
}

/// All memory of the machine, in MiB.
pub fn total_mib() -> Option<f64> {
    kilobytes(Path::new("/proc/meminfo"), "MemTotal")
}

fn kilobytes(path: &Path, field: &str) -> Option<f64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes / 1024.0)
}
