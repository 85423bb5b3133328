//! Weight files and the page cache: warming it, dropping it, and the plain reading that is every loader's floor.

use std::{
    fs::{self, File},
    io::{self, BufReader},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// The weight files of a checkpoint.
///
/// # Errors
/// If the folder cannot be read or has none.
pub fn weights(folder: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("reading {}", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(context)? {
        let path = entry.with_context(context)?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors" || extension == "bin") {
            files.push(path);
        }
    }
    ensure!(!files.is_empty(), "{} holds no weights", folder.display());
    files.sort();
    Ok(files)
}

/// Bytes of the weight files of a checkpoint.
///
/// # Errors
/// As [`weights`].
pub fn size(folder: &Path) -> Result<u64> {
    let length = |path: PathBuf| fs::metadata(&path).map(|data| data.len()).with_context(|| path.display().to_string());
    weights(folder)?.into_iter().map(length).sum()
}

/// Reads the files once, so that the page cache has what fits.
///
/// # Errors
/// If they cannot be read.
pub fn warm(files: &[PathBuf]) -> Result<()> {
    for path in files {
        let file = File::open(path).map(|file| BufReader::with_capacity(BUFFER, file));
        let copied = file.and_then(|mut file| io::copy(&mut file, &mut io::sink()));
        copied.with_context(|| format!("reading {}", path.display()))?;
    }
    Ok(())
}

/// What a buffered reader takes at a time.
const BUFFER: usize = 1 << 20;

/// A way of reading files from one end to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// One thread, through the page cache.
    Buffered,
    /// So many threads, past the page cache, in big blocks.
    Direct(usize),
}

impl Reading {
    /// Those that are tried: which one is fastest depends on the device.
    pub const ALL: [Self; 4] = [Self::Buffered, Self::Direct(1), Self::Direct(2), Self::Direct(4)];

    /// The arguments of the hidden command that reads this way.
    pub fn arguments(self) -> Vec<String> {
        let words = match self {
            Self::Buffered => "plain-read".to_owned(),
            Self::Direct(threads) => format!("plain-read --direct {threads}"),
        };
        words.split(' ').map(str::to_owned).collect()
    }
}

impl std::fmt::Display for Reading {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Buffered => formatter.write_str("buffered"),
            Self::Direct(1) => formatter.write_str("direct, 1 thread"),
            Self::Direct(threads) => write!(formatter, "direct, {threads} threads"),
        }
    }
}

/// Reads the files to the end and says how long that took: `{"seconds": [..], "bytes": ..}`.
///
/// # Errors
/// If they cannot be read that way.
pub fn plain_read(reading: Reading, files: &[PathBuf]) -> Result<Value> {
    let start = Instant::now();
    match reading {
        Reading::Buffered => warm(files)?,
        Reading::Direct(threads) => system::read_direct(files, threads)?,
    }
    let seconds = start.elapsed().as_secs_f64();
    let bytes: u64 = files.iter().filter_map(|path| fs::metadata(path).ok()).map(|data| data.len()).sum();
    Ok(json!({ "seconds": [seconds], "bytes": bytes }))
}

pub use system::forget;

#[cfg(target_os = "linux")]
mod system {
    use std::{
        fs::{self, File},
        io::{ErrorKind, IoSliceMut},
        os::unix::fs::{FileExt, OpenOptionsExt},
        path::{Path, PathBuf},
        sync::atomic::{AtomicU64, Ordering},
        thread,
        time::Duration,
    };

    use anyhow::{Context, Result, anyhow, ensure};
    use rustix::{
        fs::{Advice, OFlags, fadvise},
        io::{Errno, ReadWriteFlags, preadv2},
    };

    /// What a direct read takes at a time: big enough that a device has something to do in parallel.
    const BLOCK: u64 = 8 << 20;

    /// What direct reads have to be aligned to, on every device in use.
    const ALIGNMENT: usize = 4096;

    /// Drops the files from the page cache and says how.
    ///
    /// Advice on the files alone comes first: it leaves the rest of the machine, and the pages of libtorch, as they are.
    /// Only where much is still cached after it, all of the page cache is dropped.
    ///
    /// # Errors
    /// If the files stay cached.
    pub fn forget(files: &[PathBuf]) -> Result<&'static str> {
        for _ in 0..6 {
            advise(files)?;
            if cached(files)? < CACHED {
                return Ok("posix_fadvise on the files");
            }
            // The kernel may still be taking down the mappings of a process that has just ended.
            thread::sleep(Duration::from_millis(500));
        }
        fs::write("/proc/sys/vm/drop_caches", "1").context("writing /proc/sys/vm/drop_caches")?;
        let left = cached(files)?;
        ensure!(left < CACHED, "{:.0} % of the files stay in the page cache", left * 100.0);
        Ok("/proc/sys/vm/drop_caches")
    }

    fn advise(files: &[PathBuf]) -> Result<()> {
        for path in files {
            let context = || format!("dropping {} from the page cache", path.display());
            let file = File::open(path).with_context(context)?;
            // Pages that are not on disk yet cannot be dropped.
            file.sync_all().with_context(context)?;
            fadvise(&file, 0, None, Advice::DontNeed).with_context(context)?;
        }
        Ok(())
    }

    /// The share that may stay: a probe, or a page that somebody else holds.
    const CACHED: f64 = 0.03;

    /// The share of the files that is in the page cache, from a thousand probes of one page.
    fn cached(files: &[PathBuf]) -> Result<f64> {
        let (mut probes, mut hits) = (0u32, 0u32);
        for path in files {
            let context = || format!("asking what is cached of {}", path.display());
            let file = File::open(path).with_context(context)?;
            let length = file.metadata().with_context(context)?.len();
            let step = (length / (1000 / files.len() as u64).max(1)).max(1);
            let mut page = [0; 1];
            for offset in (0..length).step_by(step as usize) {
                probes += 1;
                match preadv2(&file, &mut [IoSliceMut::new(&mut page)], offset, ReadWriteFlags::NOWAIT) {
                    Ok(_) => hits += 1,
                    Err(Errno::AGAIN) => {}
                    // Not every file system can tell; those that cannot are believed to have taken the advice.
                    Err(Errno::OPNOTSUPP) => return Ok(0.0),
                    Err(error) => return Err(error).with_context(context),
                }
            }
        }
        Ok(f64::from(hits) / f64::from(probes.max(1)))
    }

    /// Reads the files past the page cache, `threads` blocks at a time.
    pub fn read_direct(files: &[PathBuf], threads: usize) -> Result<()> {
        for path in files {
            let flags = OFlags::DIRECT.bits() as i32;
            let open = fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
            let file = open.with_context(|| format!("opening {} past the page cache", path.display()))?;
            let length = file.metadata().with_context(|| path.display().to_string())?.len();
            let next = AtomicU64::new(0);
            let worker = || read_blocks(&file, path, length, &next);
            thread::scope(|scope| {
                let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(worker)).collect();
                workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a reader panicked"))?)
            })?;
        }
        Ok(())
    }

    fn read_blocks(file: &File, path: &Path, length: u64, next: &AtomicU64) -> Result<()> {
        let mut memory = vec![0; BLOCK as usize + ALIGNMENT];
        let skip = memory.as_ptr().align_offset(ALIGNMENT);
        let block = &mut memory[skip..skip + BLOCK as usize];
        loop {
            let begin = next.fetch_add(BLOCK, Ordering::Relaxed);
            let end = length.min(begin + BLOCK);
            let mut at = begin;
            while at < end {
                match file.read_at(&mut block[(at - begin) as usize..], at) {
                    // The file has shrunk.
                    Ok(0) => return Ok(()),
                    Ok(count) => at += count as u64,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
                }
            }
            if begin >= length {
                return Ok(());
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn direct_reads_reach_every_byte() {
            // Beside the sources: a temporary folder in memory has no direct reads.
            let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
            let path = folder.path().join("weights");
            fs::write(&path, vec![7; 3 * ALIGNMENT + 100]).unwrap();
            if let Err(error) = read_direct(&[path], 2) {
                eprintln!("skipped: {error:#}");
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::path::PathBuf;

    use anyhow::{Result, bail};

    const MISSING: &str = "cold files and direct reads are measured on Linux only";

    /// Not here.
    ///
    /// # Errors
    /// Always.
    pub fn forget(_: &[PathBuf]) -> Result<&'static str> {
        bail!(MISSING)
    }

    pub fn read_direct(_: &[PathBuf], _: usize) -> Result<()> {
        bail!(MISSING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_found_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        assert!(weights(folder.path()).unwrap_err().to_string().contains("no weights"));
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        fs::write(folder.path().join("model-2.safetensors"), [0; 5]).unwrap();
        fs::write(folder.path().join("model-1.safetensors"), [0; 7]).unwrap();
        let names: Vec<_> = weights(folder.path()).unwrap();
        assert!(names[0].ends_with("model-1.safetensors") && names.len() == 2, "{names:?}");
        assert_eq!(size(folder.path()).unwrap(), 12);
        let report = plain_read(Reading::Buffered, &names).unwrap();
        assert_eq!(report["bytes"], 12);
    }

    #[test]
    fn every_reading_has_arguments() {
        assert_eq!(Reading::Buffered.arguments(), ["plain-read"]);
        assert_eq!(Reading::Direct(4).arguments(), ["plain-read", "--direct", "4"]);
    }
}
