//! A control group that caps the memory of one program, version 2 or 1.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

const ROOT: &str = "/sys/fs/cgroup";

/// What is needed where no group can be made.
pub const NEEDED: &str = "a memory control group could not be made below this process's own; that takes root (in a \
                          container also a writable /sys/fs/cgroup)";

/// The two interfaces of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy for each controller.
    One,
    /// One hierarchy for all.
    Two,
}

impl Version {
    fn limit(self) -> &'static str {
        match self {
            Self::One => "memory.limit_in_bytes",
            Self::Two => "memory.max",
        }
    }

    /// The file that keeps memory from moving to swap, and what the limit `bytes` is there: version 1 counts memory and
    /// swap together.
    fn swap(self, bytes: u64) -> (&'static str, u64) {
        match self {
            Self::One => ("memory.memsw.limit_in_bytes", bytes),
            Self::Two => ("memory.swap.max", 0),
        }
    }

    fn peak(self) -> &'static str {
        match self {
            Self::One => "memory.max_usage_in_bytes",
            Self::Two => "memory.peak",
        }
    }
}

/// A group with a limit; removed when dropped.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
    version: Version,
}

impl Group {
    /// Makes a group that may hold `bytes`, page cache included.
    ///
    /// # Errors
    /// If the system has no memory control groups, or this user may make none.
    pub fn new(bytes: u64) -> Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").context("reading /proc/self/cgroup")?;
        let mut why = String::new();
        for (version, parent) in parents(&own, Path::new(ROOT)) {
            match Self::make(&parent, version, bytes) {
                Ok(group) => return Ok(group),
                Err(error) => why = format!(" ({error:#})"),
            }
        }
        bail!("{NEEDED}{why}")
    }

    fn make(parent: &Path, version: Version, bytes: u64) -> Result<Self> {
        let path = parent.join(format!("transformer-utils-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        // From here on it is removed again if something fails.
        let group = Self { path, version };
        let limit = group.path.join(version.limit());
        if !limit.exists() {
            bail!("{} has no memory controller", parent.display());
        }
        fs::write(&limit, bytes.to_string()).with_context(|| format!("writing {}", limit.display()))?;
        // Not everywhere, and without swap not needed.
        let (swap, most) = version.swap(bytes);
        let _ = fs::write(group.path.join(swap), most.to_string());
        let found = fs::read_to_string(&limit).with_context(|| format!("reading {}", limit.display()))?;
        // The kernel rounds down to pages.
        match parse_limit(&found) {
            Some(found) if found <= bytes && bytes - found < 1 << 16 => Ok(group),
            _ => bail!("{} says {:?} after {bytes} was written", limit.display(), found.trim()),
        }
    }

    /// The group's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The most it has held, page cache included, in MiB.
    pub fn peak_mib(&self) -> Option<f64> {
        let text = fs::read_to_string(self.path.join(self.version.peak())).ok()?;
        parse_limit(&text).map(|bytes| bytes as f64 / 1_048_576.0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The last process may still be leaving.
        for _ in 0..50 {
            match fs::remove_dir(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => thread::sleep(Duration::from_millis(20)),
                _ => return,
            }
        }
    }
}

/// Puts this process into the group at `path`.
///
/// # Errors
/// If the group does not take it.
pub fn enter(path: &Path) -> Result<()> {
    let file = path.join("cgroup.procs");
    fs::write(&file, std::process::id().to_string()).with_context(|| format!("writing {}", file.display()))
}

/// Where a group might be made, best first: below the process's own group, so that outer limits stay in force, then further
/// up. `own` is the text of `/proc/self/cgroup`.
///
/// In version 2 a group that holds processes lends its children no controllers, which is why further up is worth a try; in a
/// container the path may be the host's, so that only the root exists.
pub fn parents(own: &str, root: &Path) -> Vec<(Version, PathBuf)> {
    let mut parents = Vec::new();
    for line in own.lines() {
        // hierarchy:controllers:path
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (version, roots) = if controllers.is_empty() {
            // Where both versions are mounted, the second one has a folder of its own.
            (Version::Two, vec![root.to_owned(), root.join("unified")])
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (Version::One, vec![root.join("memory")])
        } else {
            continue;
        };
        for root in roots {
            let path = Path::new(path.trim_start_matches('/'));
            parents.extend(path.ancestors().map(|path| (version, root.join(path))));
        }
    }
    parents
}

/// The bytes in a limit file; `None` for no limit, which version 1 writes as a number near 2^63.
pub fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < 1 << 62)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(own: &str) -> Vec<String> {
        let shown = |(version, path): (Version, PathBuf)| {
            // join("") leaves a slash.
            format!("{version:?} {}", path.to_string_lossy().trim_end_matches('/'))
        };
        parents(own, Path::new("/cg")).into_iter().map(shown).collect()
    }

    #[test]
    fn groups_are_made_below_the_own_one_first() {
        let two = ["Two /cg/user.slice/a.scope", "Two /cg/user.slice", "Two /cg"];
        assert_eq!(paths("0::/user.slice/a.scope\n")[..3], two);
        let one = "9:name=systemd:/\n4:cpu,memory:/docker/1\n3:cpuset:/\n";
        assert_eq!(paths(one), ["One /cg/memory/docker/1", "One /cg/memory/docker", "One /cg/memory"]);
    }

    #[test]
    fn both_versions_are_tried_and_nonsense_is_passed_over() {
        assert_eq!(paths("4:memory:/\n0::/\n"), ["One /cg/memory", "Two /cg", "Two /cg/unified"]);
        assert_eq!(paths("garbage\n5:devices:/x\n"), Vec::<String>::new());
        // A path with colons is a path.
        assert_eq!(paths("4:memory:/a:b")[0], "One /cg/memory/a:b");
    }

    #[test]
    fn limits_of_both_versions() {
        assert_eq!(parse_limit("1610612736\n"), Some(1_610_612_736));
        assert_eq!(parse_limit("max\n"), None);
        assert_eq!(parse_limit("9223372036854771712\n"), None);
        assert_eq!(parse_limit(""), None);
    }

    #[test]
    fn a_group_without_the_controller_is_not_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let error = Group::make(folder.path(), Version::Two, 1 << 30).unwrap_err().to_string();
        assert!(error.contains("no memory controller"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
