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

/// The memory limit of the control group this process is in, in MiB.
pub fn group_limit_mib() -> Option<f64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut least: Option<f64> = None;
    let mut note = |path: &Path| {
        let bytes = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<f64>().ok());
        // Version 1 writes "no limit" as a number beyond any machine.
        if let Some(bytes) = bytes.filter(|&bytes| bytes < 1e18) {
            least = Some(least.map_or(bytes, |least| least.min(bytes)));
        }
    };
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        // A limit of any group above holds too.
        for folder in Path::new(group.trim_start_matches('/')).ancestors() {
            note(&Path::new(root).join(folder).join(file));
        }
    }
    least.map(|bytes| bytes / MIB)
}
