//! Loads the CUDA half of libtorch.
//!
//! Libtorch is several libraries. Nothing refers to a symbol of the CUDA one, which makes itself known when it is loaded, so
//! linkers drop it from programs, and libtorch then says that there is no CUDA. A package cannot set linker flags of the
//! programs that depend on it. So the library is loaded while the program runs, from where its libtorch lies.
//!
//! Libtorch looks once for its CUDA half, when it is first asked for anything of CUDA, and remembers for ever that there was
//! none. So this comes first, in [`prepare_libtorch`].

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use tch::Device;

use crate::prepare_libtorch;

/// What became of libtorch's CUDA library in this process. See [`cuda_library`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CudaLibrary {
    /// There is none beside libtorch, which is one for the CPU, or libtorch is linked statically, or this is not Linux.
    Absent,
    /// It is loaded, from this file. That says nothing about drivers and devices.
    Loaded(PathBuf),
    /// It is there and does not load. Libtorch runs on the CPU.
    Failed {
        /// The library.
        path: PathBuf,
        /// What the system's loader said.
        reason: String,
    },
}

/// Loads libtorch's CUDA library when it is first called, and says what came of it.
///
/// The library is `libtorch_cuda.so` in the folder of the libtorch that this process runs. Nobody has to call this for CUDA to
/// work: [`prepare_libtorch`] does.
pub fn cuda_library() -> &'static CudaLibrary {
    static LIBRARY: OnceLock<CudaLibrary> = OnceLock::new();
    LIBRARY.get_or_init(|| libtorch_folder().map_or(CudaLibrary::Absent, |folder| load_from(&folder)))
}

/// The first CUDA device if there is one, else the CPU.
///
/// This is [`Device::cuda_if_available`] after [`prepare_libtorch`]. Ask this one: whoever asks libtorch for CUDA before its
/// CUDA library is loaded hears that there is none, and so does everybody after that.
pub fn cuda_if_available() -> Device {
    prepare_libtorch();
    Device::cuda_if_available()
}

/// The folder of the libtorch that this process has loaded, on Linux.
pub fn libtorch_folder() -> Option<PathBuf> {
    // Bytes: any process may have a path in here that is no UTF-8.
    #[cfg(target_os = "linux")]
    return linux::folder_in(&std::fs::read("/proc/self/maps").ok()?);
    #[cfg(not(target_os = "linux"))]
    None
}

/// Loads the CUDA library of a folder, if it has one.
fn load_from(folder: &Path) -> CudaLibrary {
    let path = folder.join("libtorch_cuda.so");
    if !path.exists() {
        return CudaLibrary::Absent;
    }
    #[cfg(target_os = "linux")]
    return match linux::load(&path) {
        Ok(()) => CudaLibrary::Loaded(path),
        Err(reason) => CudaLibrary::Failed { path, reason },
    };
    #[cfg(not(target_os = "linux"))]
    CudaLibrary::Absent
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        error::Error,
        ffi::OsStr,
        os::unix::ffi::OsStrExt,
        path::{Path, PathBuf},
    };

    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

    /// The folder of `libtorch_cpu.so` in the text of a `/proc/PID/maps`.
    pub(super) fn folder_in(maps: &[u8]) -> Option<PathBuf> {
        let path = maps
            .split(|byte| *byte == b'\n')
            .filter_map(|line| line.get(line.iter().position(|byte| *byte == b'/')?..))
            .map(|path| Path::new(OsStr::from_bytes(path)))
            // All of the name: a library that was replaced since it was loaded ends in " (deleted)", and what lies beside
            // its successor may not fit it.
            .find(|path| path.file_name() == Some(OsStr::new("libtorch_cpu.so")))?;
        Some(path.parent()?.to_owned())
    }

    /// Loads a library of libtorch for the rest of the process, or says why that is not possible.
    pub(super) fn load(path: &Path) -> Result<(), String> {
        // SAFETY: loading a library runs its initialisers. Callers name the CUDA library in the folder of the libtorch that
        // this process runs, so it is the other half of code that runs already and that libtorch's own programs load in
        // the same way: as a dependency, its initialisers run on one thread, where they enter what they have into
        // libtorch's registers, which are locked. No symbol of it is taken from here, and it is never unloaded, so nothing
        // that it entered dangles.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
        match library {
            Ok(library) => {
                std::mem::forget(library);
                Ok(())
            }
            Err(error) => Err(error.source().map_or_else(|| error.to_string(), ToString::to_string)),
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0a3a00000-55d0a3a21000 r--p 00000000 fe:00 123                        /home/u/bin/libtorch_cpu.so-user
7f10c0000000-7f10c0021000 rw-p 00000000 00:00 0
7f10d0000000-7f10d8000000 r--p 00000000 fe:00 456                        /opt/old/lib/libtorch_cpu.so (deleted)
7f10e0000000-7f10e8000000 r-xp 00100000 fe:00 789                        /opt/my torch/lib/libtorch_cpu.so
7f10f0000000-7f10f0001000 r--p 00000000 fe:00 790                        /opt/my torch/lib/libc10.so
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
";

    #[test]
    fn the_folder_is_that_of_the_library_that_is_mapped() {
        assert_eq!(linux::folder_in(MAPS.as_bytes()).unwrap(), Path::new("/opt/my torch/lib"));
        let without: String =
            MAPS.lines().filter(|line| !line.contains("my torch")).map(|l| format!("{l}\n")).collect();
        assert_eq!(linux::folder_in(without.as_bytes()), None);
        let mut odd = b"7f-8f r--p 0 fe:00 1 /opt/\xff/libc.so\n".to_vec();
        odd.extend(MAPS.as_bytes());
        assert!(linux::folder_in(&odd).is_some(), "one path that is no UTF-8 hides the others");
    }

    #[test]
    fn this_process_runs_the_libtorch_that_is_found() {
        let folder = libtorch_folder().unwrap();
        assert!(folder.join("libtorch_cpu.so").is_file() && folder.join("libc10.so").is_file(), "{}", folder.display());
        let there = folder.join("libtorch_cuda.so").is_file();
        assert_eq!(*cuda_library() != CudaLibrary::Absent, there);
    }

    #[test]
    fn a_libtorch_for_the_cpu_has_no_cuda_library() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(load_from(folder.path()), CudaLibrary::Absent);
    }

    #[test]
    fn a_file_that_is_no_library_is_reported_with_the_loaders_reason() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libtorch_cuda.so");
        std::fs::write(&file, "not a library, but long enough to be read as a header of one, and then some more")
            .unwrap();
        let CudaLibrary::Failed { path, reason } = load_from(folder.path()) else { panic!("it loads") };
        assert_eq!(path, file);
        assert!(reason.contains("libtorch_cuda.so"), "{reason}");
    }

    #[test]
    fn a_library_that_loads_stays() {
        // A copy of the mathematical library, which has no initialisers that mind running twice.
        let maps = || std::fs::read_to_string("/proc/self/maps").unwrap();
        let maps_now = maps();
        let mathematics = maps_now.lines().find(|line| line.ends_with("/libm.so.6")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libtorch_cuda.so");
        std::fs::copy(&mathematics[mathematics.find('/').unwrap()..], &path).unwrap();
        assert_eq!(load_from(folder.path()), CudaLibrary::Loaded(path.clone()));
        assert!(maps().contains(path.to_str().unwrap()), "it was unloaded again");
    }
}
