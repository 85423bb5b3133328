//! How much memory this process may still take.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Bytes this process can still take without swapping or being killed: what the system has, or what is left of the
/// tightest limit on its control group (version 1 or 2). Page cache that can be dropped counts as free. `None` where the
/// system does not say.
pub fn available_memory() -> Option<u64> {
    let groups = control_groups();
    system().into_iter().chain(groups).min()
}

fn system() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
}

/// What is left of every limit from this process's groups up to the root.
fn control_groups() -> Vec<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut left = Vec::new();
    for group in groups.lines() {
        // hierarchy:controllers:path
        let mut fields = group.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, limit, usage, cache) = if controllers.is_empty() {
            (PathBuf::from("/sys/fs/cgroup"), "memory.max", "memory.current", ["inactive_file", "active_file"])
        } else if controllers.split(',').any(|controller| controller == "memory") {
            let root = Path::new("/sys/fs/cgroup").join(controllers);
            (root, "memory.limit_in_bytes", "memory.usage_in_bytes", ["total_inactive_file", "total_active_file"])
        } else {
            continue;
        };
        // In a container the path may be the host's, so that only the root exists here.
        for path in Path::new(path.trim_start_matches('/')).ancestors() {
            let folder = root.join(path);
            let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
            let (Some(limit), Some(usage)) = (number(limit), number(usage)) else { continue };
            let statistics = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
            let cached = statistics.lines().filter_map(|line| line.split_once(' '));
            let cached = cached.filter(|(name, _)| cache.contains(name));
            let cached: u64 = cached.filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok()).sum();
            left.push(limit.saturating_sub(usage.saturating_sub(cached)));
        }
    }
    left
}
