//! Files from a zip: the official archive and the wheels are both zips.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;
use zip::ZipArchive;

use crate::environment::Platform;

/// An opened zip.
pub type Zip = ZipArchive<BufReader<File>>;

/// Opens a zip and reads its directory.
///
/// # Errors
/// If the file is no zip, or was cut.
pub fn open(path: &Path) -> Result<Zip> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    ZipArchive::new(BufReader::with_capacity(1 << 20, file)).with_context(|| {
        let mut start = [0; 40];
        let n = File::open(path).and_then(|mut file| file.read(&mut start)).unwrap_or(0);
        let start = String::from_utf8_lossy(&start[..n]);
        format!("{} is not a whole zip archive (it starts with {start:?})", path.display())
    })
}

/// The text of one small member, if it is there.
///
/// # Errors
/// If it cannot be read.
pub fn text(zip: &mut Zip, name: &str) -> Result<Option<String>> {
    if zip.index_for_name(name).is_none() {
        return Ok(None);
    }
    let mut text = String::new();
    zip.by_name(name)?.take(1 << 20).read_to_string(&mut text).with_context(|| format!("reading {name}"))?;
    Ok(Some(text))
}

/// Writes the members for which `place` names a path, below `to`; `bar` counts their bytes.
///
/// Each member's checksum is compared on the way. A member whose own name or whose place leads out of `to` is an error.
///
/// # Errors
/// If a member is damaged, misplaced, or cannot be written.
pub fn extract(zip: &mut Zip, to: &Path, bar: &ProgressBar, place: impl Fn(&Path) -> Option<PathBuf>) -> Result<()> {
    for index in 0..zip.len() {
        let member = zip.by_index_raw(index).context("reading the archive")?;
        if member.enclosed_name().is_some_and(|name| place(&name).is_some()) {
            bar.inc_length(member.size());
        }
    }
    for index in 0..zip.len() {
        let mut member = zip.by_index(index).context("reading the archive")?;
        if member.is_dir() {
            continue;
        }
        let Some(name) = member.enclosed_name() else {
            bail!("the archive holds {:?}, which leads out of its folder", member.name());
        };
        let Some(target) = place(&name) else {
            continue;
        };
        ensure!(target.components().all(|part| matches!(part, Component::Normal(_))), "{} leads out", target.display());
        let target = to.join(target);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        }
        if member.is_symlink() {
            let mut points = String::new();
            (&mut member)
                .take(4096)
                .read_to_string(&mut points)
                .with_context(|| format!("unpacking {}", name.display()))?;
            // Only what archives of libraries have: libx.so -> libx.so.1, in one folder.
            ensure!(
                Path::new(&points).components().count() == 1 && points != "..",
                "{} links to {points}",
                name.display()
            );
            symlink_file(Path::new(&points), &target)?;
            continue;
        }
        let mut out = File::create(&target).with_context(|| format!("writing {}", target.display()))?;
        let copied = io::copy(&mut bar.wrap_read(&mut member), &mut out)
            .with_context(|| format!("unpacking {} to {}", name.display(), target.display()))?;
        ensure!(copied == member.size(), "{} has {copied} bytes, not {}", name.display(), member.size());
    }
    Ok(())
}

#[cfg(unix)]
fn symlink_file(points: &Path, at: &Path) -> Result<()> {
    std::os::unix::fs::symlink(points, at).with_context(|| format!("linking {}", at.display()))
}

#[cfg(not(unix))]
fn symlink_file(_: &Path, at: &Path) -> Result<()> {
    bail!("{} is a link, which this platform does not unpack", at.display())
}

/// Where a member of the official archive goes: the archive holds one folder, `libtorch`.
pub fn archive_place(name: &Path) -> Option<PathBuf> {
    let rest = name.strip_prefix("libtorch").ok()?;
    (rest.components().next().is_some()).then(|| rest.to_owned())
}

/// Where a member of the torch wheel, or of one of its companions, goes to make a libtorch for the CPU.
///
/// Kept are the headers, `version.py` and the libraries without Python and CUDA; `libtorch_cpu` of a CUDA wheel needs
/// the CUDA runtime and the profiler's interface all the same, which come in wheels of their own. Those go beside it,
/// where its run path finds them (`$ORIGIN`).
pub fn wheel_place(name: &Path, platform: &Platform) -> Option<PathBuf> {
    let file = name.file_name()?.to_str()?;
    if let Ok(rest) = name.strip_prefix("torch") {
        if rest.starts_with("include") || rest == Path::new("version.py") {
            return Some(rest.to_owned());
        }
        // Not what lies in a folder below lib.
        let unwanted = ["cuda", "python", "nvrtc", "nvshmem", "shm", "global_deps"];
        let keep = rest.parent() == Some(Path::new("lib"))
            && is_library(file, platform)
            && !unwanted.iter().any(|part| file.contains(part) && !file.starts_with("libcudart"));
        return keep.then(|| rest.to_owned());
    }
    // What auditwheel put beside the package.
    let bundled = name.starts_with("torch.libs") && is_library(file, platform);
    let companion = name.starts_with("nvidia") && (file.starts_with("libcudart.so") || file.starts_with("libcupti.so"));
    (bundled || companion).then(|| Path::new("lib").join(file))
}

fn is_library(file: &str, platform: &Platform) -> bool {
    if platform.os == "macos" { file.ends_with(".dylib") } else { file.ends_with(".so") || file.contains(".so.") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(name: &str) -> Option<String> {
        let linux = Platform { os: "linux".into(), arch: "x86_64".into() };
        wheel_place(Path::new(name), &linux).map(|path| path.display().to_string())
    }

    #[test]
    fn the_cpu_half_of_a_cuda_wheel() {
        let kept = [
            ("torch/lib/libtorch_cpu.so", "lib/libtorch_cpu.so"),
            ("torch/lib/libtorch.so", "lib/libtorch.so"),
            ("torch/lib/libc10.so", "lib/libc10.so"),
            ("torch/lib/libgomp.so.1", "lib/libgomp.so.1"),
            ("torch/include/torch/headeronly/version.h", "include/torch/headeronly/version.h"),
            ("torch/include/c10/cuda/CUDAStream.h", "include/c10/cuda/CUDAStream.h"),
            ("torch/version.py", "version.py"),
            ("nvidia/cu13/lib/libcudart.so.13", "lib/libcudart.so.13"),
            ("nvidia/cuda_cupti/lib/libcupti.so.12", "lib/libcupti.so.12"),
            ("torch.libs/libopenblas-1a2b.so.0", "lib/libopenblas-1a2b.so.0"),
        ];
        for (name, place) in kept {
            assert_eq!(placed(name).as_deref(), Some(place), "{name}");
        }
        let left = [
            "torch/lib/libtorch_cuda.so",
            "torch/lib/libtorch_cuda_linalg.so",
            "torch/lib/libc10_cuda.so",
            "torch/lib/libcaffe2_nvrtc.so",
            "torch/lib/libtorch_nvshmem.so",
            "torch/lib/libtorch_python.so",
            "torch/lib/libshm.so",
            "torch/lib/libshm/libshm.so",
            "torch/__init__.py",
            "torch-2.13.0.dist-info/METADATA",
            "nvidia/cu13/lib/libnvperf_host.so",
            "nvidia/cu13/include/cuda.h",
        ];
        for name in left {
            assert_eq!(placed(name), None, "{name}");
        }
    }

    #[test]
    fn the_official_archive_loses_its_outer_folder() {
        assert_eq!(archive_place(Path::new("libtorch/lib/libc10.so")).unwrap(), Path::new("lib/libc10.so"));
        assert_eq!(archive_place(Path::new("libtorch")), None);
        assert_eq!(archive_place(Path::new("other/lib/libc10.so")), None);
    }
}
