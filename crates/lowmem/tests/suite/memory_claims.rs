//! What this crate says about memory, measured in processes of their own.

#![cfg(target_os = "linux")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use lowmem::{Checkpoint, Dtype, DtypeChoice, LoadOptions, Parts, Residency, available_memory, save_safetensors};

use crate::harness::{assert_passed, cannot_run, child, in_child, numbers, requests};

const PARTS: i64 = 16;
/// Bytes of one part.
const PART: u64 = 12 << 20;
const MEBIBYTE: u64 = 1 << 20;

/// 192 MiB of f32: sixteen parts of one tensor.
fn checkpoint() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensor = numbers(&[(PART / 4 / 1024) as i64, 1024], 1);
    let tensors: Vec<_> = (0..PARTS).map(|at| (format!("h.{at:02}"), &tensor + at as f64)).collect();
    save_safetensors(&path, &tensors).unwrap();
    (folder, path)
}

fn parts(path: &Path, options: &LoadOptions) -> Parts {
    let checkpoint = Checkpoint::open(path).unwrap();
    let names: Vec<[&str; 1]> = checkpoint.index().tensors.keys().map(|name| [name.as_str()]).collect();
    let groups: Vec<&[&str]> = names.iter().map(|name| &name[..]).collect();
    Parts::new(&checkpoint, requests(&checkpoint, &groups), options).unwrap()
}

/// A line of this process's status, in bytes.
fn status(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// Something like a forward: touches every element of every part, and allocates nothing of its own.
fn forward(parts: &Parts) -> f64 {
    let all = 0..parts.len();
    all.map(|part| {
        let tensors = parts.get(part, Some(part + 1)).unwrap();
        tensors.iter().map(|tensor| tensor.max().double_value(&[])).sum::<f64>()
    })
    .sum()
}

/// Starts libtorch's threads and allocators, so that what follows is what weights cost.
fn warm_up() {
    let _ = (numbers(&[1 << 20], 1).to_kind(tch::Kind::BFloat16)).mean(tch::Kind::Float);
}

fn assert_child(test: &str, variables: &[(&str, &str)]) {
    assert_passed(test, &in_child(test, variables));
}

child!(converting_child, |variable: &dyn Fn(&str) -> String| {
    warm_up();
    let (path, staging_bytes) = (PathBuf::from(variable("TEST_PATH")), 16 * MEBIBYTE);
    let dtype = DtypeChoice::Fixed(Dtype::Bf16);
    let before = status("VmRSS");
    let parts = parts(&path, &LoadOptions::default().dtype(dtype).staging_bytes(staging_bytes));
    assert_eq!(parts.residency(), Residency::Resident);
    parts.preload(0..parts.len()).unwrap();
    let (peak, target) = (status("VmHWM").saturating_sub(before), PARTS as u64 * PART / 2);
    let report = parts.report();
    assert_eq!(report.bytes_allocated, target);
    assert!(report.staging_peak <= staging_bytes, "{report:?}");
    // Threads' stacks and the allocator's own are in the last summand.
    assert!(peak <= target + target / 10 + staging_bytes + 16 * MEBIBYTE, "{peak} bytes for {target} bytes of weights");
});

#[test]
fn conversion_peaks_at_the_target_and_one_staging_buffer() {
    let (_folder, path) = checkpoint();
    assert_child("memory_claims::converting_child", &[("TEST_PATH", path.to_str().unwrap())]);
}

child!(mapping_child, |variable: &dyn Fn(&str) -> String| {
    warm_up();
    let before = status("RssAnon");
    let parts = parts(&PathBuf::from(variable("TEST_PATH")), &LoadOptions::default());
    assert_eq!(parts.residency(), Residency::Mapped);
    assert!(forward(&parts).is_finite());
    let grown = status("RssAnon").saturating_sub(before);
    assert!(grown < 16 * MEBIBYTE, "{grown} bytes");
});

#[test]
fn mapping_copies_nothing() {
    let (_folder, path) = checkpoint();
    assert_child("memory_claims::mapping_child", &[("TEST_PATH", path.to_str().unwrap())]);
}

child!(streaming_child, |variable: &dyn Fn(&str) -> String| {
    warm_up();
    if let Ok(group) = std::env::var("TEST_GROUP") {
        fs::write(Path::new(&group).join("cgroup.procs"), std::process::id().to_string()).unwrap();
    }
    let before = status("RssAnon");
    let path = PathBuf::from(variable("TEST_PATH"));
    let automatic = parts(&path, &LoadOptions::default());
    if std::env::var_os("TEST_GROUP").is_some() {
        assert!(available_memory().unwrap() < PARTS as u64 * PART);
        assert_eq!(automatic.residency(), Residency::Streamed, "{}", automatic.report().reason);
    }
    drop(automatic);
    for dtype in [DtypeChoice::Auto, DtypeChoice::Fixed(Dtype::Bf16)] {
        let options = LoadOptions::default()
            .residency(Residency::Streamed)
            .budget_bytes(2 * PART)
            .staging_bytes(8 * MEBIBYTE)
            .dtype(dtype);
        let parts = parts(&path, &options);
        let first = forward(&parts);
        assert_eq!(forward(&parts), first);
        let now = status("RssAnon").saturating_sub(before);
        assert!(now <= 2 * PART + 32 * MEBIBYTE, "{now} bytes held");
        assert_eq!(parts.report().bytes_read % (PARTS as u64 * PART), 0);
    }
    let peak = status("VmHWM");
    println!("peak {} MiB", peak / MEBIBYTE);
});

/// A control group with a memory limit, version 2 or 1, removed when dropped.
struct Group(PathBuf);

impl Group {
    fn new(limit: u64) -> Option<Self> {
        let roots = [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")];
        roots.into_iter().find_map(|(root, file)| {
            let path = Path::new(root).join(format!("lowmem-test-{}", std::process::id()));
            fs::create_dir(&path).ok()?;
            let group = Self(path);
            // Without the file, this is a hierarchy without the memory controller.
            (group.0.join(file).exists() && fs::write(group.0.join(file), limit.to_string()).is_ok()).then_some(group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn streaming_runs_what_does_not_fit() {
    let (_folder, path) = checkpoint();
    let path = path.to_str().unwrap();
    // What the process was charged before it joined stays charged elsewhere: this is for weights alone.
    match Group::new(112 * MEBIBYTE) {
        Some(group) => {
            let group = group.0.to_str().unwrap();
            assert_child("memory_claims::streaming_child", &[("TEST_PATH", path), ("TEST_GROUP", group)]);
        }
        None => {
            cannot_run("no control group can be made here: the limit is only measured, not enforced");
            assert_child("memory_claims::streaming_child", &[("TEST_PATH", path)]);
        }
    }
}

child!(looping_child, |variable: &dyn Fn(&str) -> String| {
    warm_up();
    let path = PathBuf::from(variable("TEST_PATH"));
    let mut held = Vec::new();
    for round in 0..200 {
        let residency = [Residency::Mapped, Residency::Resident, Residency::Streamed][round % 3];
        let checkpoint = Checkpoint::open(&path).unwrap();
        let parts = Parts::new(
            &checkpoint,
            requests(&checkpoint, &[&["h.00"], &["h.01"]]),
            &LoadOptions::default().residency(residency),
        )
        .unwrap();
        assert!(forward(&parts).is_finite());
        drop(parts);
        held.push(status("RssAnon"));
    }
    // The C library may keep a freed block or not; whoever leaked one each round would be a hundred blocks up.
    let (early, late) = (held[..100].iter().max().unwrap(), held[100..].iter().max().unwrap());
    assert!(*late <= early + PART + 4 * MEBIBYTE, "{early} bytes in the first hundred rounds, {late} in the second");
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(descriptors < 30, "{descriptors} open files");
});

#[test]
fn two_hundred_loads_leave_memory_flat() {
    let (_folder, path) = checkpoint();
    assert_child("memory_claims::looping_child", &[("TEST_PATH", path.to_str().unwrap())]);
}
