//! Bytes of a file straight into memory that a tensor owns.
//!
//! A part that is not in the page cache is read past it (direct I/O), where the file system allows: measured 2.1 GB/s
//! against 0.9-1.3 GB/s through the cache and 1.1 GB/s by page faults on a mapping, and nothing else is pushed out of the
//! cache for bytes that are used once. A part that is cached is copied from there. Where direct I/O is not possible, the
//! pages that were read are given back to the system.
//!
//! Direct I/O wants file offset, length and address to be multiples of a block ([`ALIGNMENT`] suits every device), so a
//! buffer has slack, and what was asked for begins at some byte of its first block: a [`Buffer`] says at which.

use std::{
    fs::File,
    mem::MaybeUninit,
    sync::atomic::{AtomicU64, Ordering},
};

use tch::{Device, Kind, TchError, Tensor};

use crate::{Error, Result, files::OpenFile};

/// Bytes that offsets, lengths and addresses of direct I/O are a multiple of.
pub(crate) const ALIGNMENT: u64 = 4096;
/// Bytes of one read call.
const CALL: usize = 8 << 20;
/// Reads beyond this many bytes go on in a second thread: a disk's queue and the copy from the cache both gain.
const TWO_THREADS: usize = 32 << 20;
/// Bytes from which large pages are worth asking for.
#[cfg(target_os = "linux")]
const HUGE_FROM: usize = 4 << 20;
/// Pages looked at to judge whether one call's bytes are cached.
const PROBES: u64 = 4;

/// Memory that a range of a file is read into.
pub(crate) struct Buffer {
    /// Bytes on the CPU, contiguous. Nobody else writes to them, and nobody reads them while `fill` runs: a view that
    /// [`Buffer::bytes`] gave away must be gone before the buffer is filled again.
    storage: Tensor,
    /// Bytes that can be filled.
    capacity: usize,
}

impl Buffer {
    /// Room for any `bytes` consecutive bytes of a file; page-locked for transfers where `pinned_for` is a GPU. `passing`
    /// memory is given back to the system as soon as it is dropped.
    pub(crate) fn new(bytes: u64, pinned_for: Device, passing: bool) -> Result<Self, TchError> {
        // One block because the first byte may be in the middle of one, one for the last, one to align the address.
        let capacity = bytes + 2 * ALIGNMENT;
        let bytes = capacity + ALIGNMENT;
        let storage = if passing && !pinned_for.is_cuda() {
            passing_bytes(bytes)?
        } else {
            Tensor::f_empty([bytes as i64], (Kind::Uint8, Device::Cpu))?
        };
        // The public `pin_memory` warns on standard error, at every call, when it is told the device, which `tch` always tells.
        let storage = if pinned_for.is_cuda() { storage.f_internal_pin_memory(pinned_for)? } else { storage };
        if passing {
            prefer_huge_pages(&storage);
        }
        Ok(Self { storage, capacity: capacity as usize })
    }

    /// Bytes that it takes.
    pub(crate) fn allocated(&self) -> u64 {
        self.capacity as u64 + ALIGNMENT
    }

    /// Bytes from the start of the storage to the first aligned address.
    fn pad(&self) -> usize {
        (self.storage.data_ptr() as usize).wrapping_neg() % ALIGNMENT as usize
    }

    fn spare(&mut self) -> &mut [MaybeUninit<u8>] {
        let first = self.storage.data_ptr().cast::<MaybeUninit<u8>>().wrapping_add(self.pad());
        // SAFETY: the storage holds at least `capacity + ALIGNMENT` bytes on the CPU and `pad` is less than `ALIGNMENT`, so the
        // range lies inside it; it lives as long as `self.storage`. `Buffer::new` made it and nothing else holds it, save
        // views from `bytes`, which are gone by contract when a buffer is filled again. `MaybeUninit` needs no
        // initialised bytes.
        unsafe { std::slice::from_raw_parts_mut(first, self.capacity) }
    }

    /// Reads the `length` bytes of `file` from `begin` on. They are found by [`Buffer::bytes`] at the answer.
    ///
    /// With `in_place` the position in the buffer is the position in the file modulo [`ALIGNMENT`], so that what is
    /// aligned in the file is aligned in memory, and direct I/O is possible. Otherwise the position is zero.
    pub(crate) fn fill(&mut self, file: &OpenFile, begin: u64, length: u64, in_place: bool) -> Result<u64> {
        let lead = if in_place { begin % ALIGNMENT } else { 0 };
        let begin = begin - lead;
        let wanted = (lead + length) as usize;
        let spare = self.spare();
        let rounded = wanted.next_multiple_of(ALIGNMENT as usize).min(spare.len());
        let Some(target) = spare.get_mut(..rounded) else { return Err(file.shrunk()) };
        let direct = file.direct.as_ref().filter(|_| in_place);
        let half = if rounded > TWO_THREADS { (rounded / 2).next_multiple_of(CALL).min(rounded) } else { rounded };
        let (first, second) = target.split_at_mut(half);
        std::thread::scope(|scope| {
            let rest = wanted.saturating_sub(half);
            let second = (!second.is_empty())
                .then(|| scope.spawn(move || read_range(file, direct, second, begin + half as u64, rest)));
            read_range(file, direct, first, begin, wanted.min(half))?;
            match second.map(std::thread::ScopedJoinHandle::join) {
                None => Ok(()),
                Some(Ok(answer)) => answer,
                Some(Err(_)) => Err(file.io(std::io::Error::other("a reading thread ended early"))),
            }
        })?;
        Ok(lead)
    }

    /// Reads the `length` bytes of `file` from `begin` on, which are cached, to position zero.
    pub(crate) fn fill_cached(&mut self, file: &OpenFile, begin: u64, length: u64) -> Result<()> {
        let Some(target) = self.spare().get_mut(..length as usize) else { return Err(file.shrunk()) };
        read_buffered(file, target, begin)
    }

    /// A view of `length` bytes from `position` on.
    pub(crate) fn bytes(&self, position: u64, length: u64) -> Result<Tensor, TchError> {
        self.storage.f_narrow(0, (self.pad() as u64 + position) as i64, length as i64)
    }
}

/// What the memory of a tensor can be filled with: numbers of which any bits are one.
pub(crate) trait Number: Copy + Send + Sync {}

impl Number for f32 {}

/// The bits of a bf16 or an f16.
impl Number for u16 {}

/// The memory of a fresh tensor on the CPU, of which nobody else holds a view. `None` where it is not contiguous, elsewhere, or
/// of elements of another size.
pub(crate) fn memory<T: Number>(fresh: &mut Tensor) -> Option<&mut [MaybeUninit<T>]> {
    let kind = fresh.f_kind().ok()?;
    let fits = fresh.device() == Device::Cpu && fresh.is_contiguous() && kind.elt_size_in_bytes() == size_of::<T>();
    let (first, elements) = (fresh.data_ptr().cast::<MaybeUninit<T>>(), fresh.numel());
    if !fits || !first.is_aligned() {
        return None;
    }
    if elements == 0 {
        return Some(&mut []);
    }
    // SAFETY: the tensor is contiguous on the CPU and holds `elements` elements of `T`'s size from an aligned address on; it lives
    // as long as the borrow, and by contract nothing else looks at its memory meanwhile. `MaybeUninit` needs no initialised
    // bytes, and any bits are a `T`.
    Some(unsafe { std::slice::from_raw_parts_mut(first, elements) })
}

/// The matrices of a `[.., n, d]` tensor on the CPU, each in one piece of elements of `T`'s size. Nobody may write to the tensor while
/// they are looked at: they must not leave the function that asks. `None` for other tensors.
pub(crate) fn matrices<T: Number>(tensor: &Tensor) -> Option<Vec<&[T]>> {
    let (size, strides) = (tensor.size(), tensor.stride());
    let ([outer @ .., n, d], [outer_strides @ .., row, step]) = (size.as_slice(), strides.as_slice()) else {
        return None;
    };
    let in_one_piece = (*step == 1 || *d <= 1) && (row == d || *n <= 1);
    let fits = tensor.f_kind().ok()?.elt_size_in_bytes() == size_of::<T>();
    if tensor.device() != Device::Cpu || !fits || !in_one_piece {
        return None;
    }
    let elements = usize::try_from(n * d).ok()?;
    let mut offsets = vec![0_i64];
    for (size, stride) in outer.iter().zip(outer_strides) {
        offsets = offsets.iter().flat_map(|offset| (0..*size).map(move |index| offset + index * stride)).collect();
    }
    if elements == 0 {
        return Some(vec![&[]; offsets.len()]);
    }
    let first = tensor.data_ptr().cast::<T>();
    if !first.is_aligned() {
        return None;
    }
    let matrix = |offset: i64| {
        let begin = first.wrapping_offset(offset as isize);
        // SAFETY: sizes and strides are those of a tensor on the CPU, which libtorch keeps inside its storage; by what was checked,
        // its elements have the size of `T`, any bits of which are one, they are aligned, and the `n` times `d` from `begin` on are
        // all of this matrix, and so were written when the tensor was. It lives as long as the borrow, and by contract nobody writes
        // to it meanwhile.
        unsafe { std::slice::from_raw_parts(begin, elements) }
    };
    Some(offsets.into_iter().map(matrix).collect())
}

/// At least `bytes` bytes on the CPU that are given back to the system as soon as they are dropped.
///
/// The C library's allocator keeps smaller blocks for later, for each thread its own, which would make streaming hold
/// several times its budget. Blocks of this size it never keeps; pages that are not touched cost nothing.
pub(crate) fn passing_bytes(bytes: u64) -> Result<Tensor, TchError> {
    const KEPT_BELOW: u64 = 33 << 20;
    let bytes = if bytes >= 1 << 20 { bytes.max(KEPT_BELOW) } else { bytes };
    Tensor::f_empty([bytes as i64], (Kind::Uint8, Device::Cpu))
}

/// Backs a fresh, large tensor on the CPU with few large pages: filling it costs a fault for each.
///
/// For memory that passes, the kernel has the large pages of the last time at hand: measured, streaming is about twice as
/// fast with them. For memory that is kept it must find new ones, which on a virtual machine can mean asking the host for
/// each: measured, two to four times slower than small pages.
pub(crate) fn prefer_huge_pages(fresh: &Tensor) {
    #[cfg(target_os = "linux")]
    advise(fresh, HUGE_FROM, rustix::mm::Advice::LinuxHugepage);
    #[cfg(not(target_os = "linux"))]
    let _ = fresh;
}

/// Backs a fresh, contiguous tensor on the CPU with pages before it is filled: measured, converting with one call for many
/// takes a tenth less time than with a fault for each.
pub(crate) fn bring_pages(fresh: &Tensor) {
    #[cfg(target_os = "linux")]
    advise(fresh, ALIGNMENT as usize, rustix::mm::Advice::LinuxPopulateWrite);
    #[cfg(not(target_os = "linux"))]
    let _ = fresh;
}

/// Advises the kernel about the whole pages of a contiguous tensor on the CPU, where they are at least `least` bytes.
#[cfg(target_os = "linux")]
fn advise(fresh: &Tensor, least: usize, advice: rustix::mm::Advice) {
    if fresh.device() != Device::Cpu {
        return;
    }
    let bytes = fresh.numel() * fresh.kind().elt_size_in_bytes();
    let pad = (fresh.data_ptr() as usize).wrapping_neg() % ALIGNMENT as usize;
    let whole = bytes.saturating_sub(pad) / ALIGNMENT as usize * ALIGNMENT as usize;
    if whole >= least {
        let first = fresh.data_ptr().wrapping_byte_add(pad);
        // SAFETY: the range begins at a page and lies inside the tensor's memory. Both kinds of advice that are given here change
        // how the kernel backs it, never its content.
        let _refused = unsafe { rustix::mm::madvise(first, whole, advice) };
    }
}

/// Fills the first `wanted` bytes of `target`, whose length is a multiple of a block, from `begin` on.
fn read_range(
    file: &OpenFile,
    direct: Option<&File>,
    target: &mut [MaybeUninit<u8>],
    begin: u64,
    wanted: usize,
) -> Result<()> {
    let mut at = begin;
    let mut left = wanted;
    for call in target.chunks_mut(CALL) {
        let needed = call.len().min(left);
        let cached = is_cached(&file.file, at, needed as u64);
        let direct = direct.filter(|_| !cached);
        if !direct.is_some_and(|direct| read_direct(direct, call, at, needed)) {
            let Some(call) = call.get_mut(..needed) else { return Err(file.shrunk()) };
            read_buffered(file, call, at)?;
            if !cached {
                give_back(&file.file, at, needed as u64);
            }
        }
        at += needed as u64;
        left -= needed;
    }
    Ok(())
}

/// Whether direct I/O brought all `needed` bytes. If not, the caller reads them through the cache: the file system may
/// refuse, the last block of a file may, and a file that ends too early is told from those there.
fn read_direct(file: &File, target: &mut [MaybeUninit<u8>], begin: u64, needed: usize) -> bool {
    let mut done = 0;
    while done < needed {
        // A read that ended in the middle of a block reached the end of the file; going on from there cannot be direct.
        if !done.is_multiple_of(ALIGNMENT as usize) {
            return false;
        }
        let Some(rest) = target.get_mut(done..) else { return false };
        match read_at(file, rest, begin + done as u64) {
            Ok(0) => return false,
            Ok(bytes) => done += bytes,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}

fn read_buffered(file: &OpenFile, target: &mut [MaybeUninit<u8>], begin: u64) -> Result<()> {
    let mut done = 0;
    while let Some(rest) = target.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match read_at(&file.file, rest, begin + done as u64) {
            Ok(0) => return Err(file.shrunk()),
            Ok(bytes) => done += bytes,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => return Err(Error::Io { path: file.path.clone(), source }),
        }
    }
    Ok(())
}

fn read_at(file: &File, target: &mut [MaybeUninit<u8>], offset: u64) -> std::io::Result<usize> {
    let (filled, _rest) = rustix::io::pread(file, target, offset)?;
    Ok(filled.len())
}

/// Whether a few pages of the range, chosen at random, are all in the page cache. Always the same pages would deceive:
/// looking at one can bring it in.
#[cfg(target_os = "linux")]
pub(crate) fn is_cached(file: &File, begin: u64, length: u64) -> bool {
    static SEED: AtomicU64 = AtomicU64::new(0x9e37_79b9_7f4a_7c15);
    length > 0
        && (0..PROBES).all(|_| {
            // SplitMix64, which is random enough to pick a page.
            let mut random = SEED.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            random = (random ^ (random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            random = (random ^ (random >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let mut byte = [0];
            let mut byte = [std::io::IoSliceMut::new(&mut byte)];
            let flags = rustix::io::ReadWriteFlags::NOWAIT;
            matches!(rustix::io::preadv2(file, &mut byte, begin + random % length, flags), Ok(1))
        })
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn is_cached(_file: &File, _begin: u64, _length: u64) -> bool {
    // Unknown, so nothing is given back that somebody else may want.
    true
}

#[cfg(target_os = "linux")]
fn give_back(file: &File, begin: u64, length: u64) {
    // Advice; a file system that cannot take it keeps the pages until it needs them.
    let _ = rustix::fs::fadvise(file, begin, std::num::NonZeroU64::new(length), rustix::fs::Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
fn give_back(_file: &File, _begin: u64, _length: u64) {}

/// Rows of a table that lies row by row from `begin` on, each `row` bytes long, one after the other in memory of their
/// own. Neighbours that follow each other are one read.
pub(crate) fn read_rows(file: &OpenFile, begin: u64, row: u64, rows: &[u64]) -> Result<Result<Buffer, TchError>> {
    let mut buffer = match Buffer::new(row * rows.len() as u64, Device::Cpu, false) {
        Ok(buffer) => buffer,
        Err(error) => return Ok(Err(error)),
    };
    let mut target = buffer.spare();
    for run in rows.chunk_by(|one, next| one + 1 == *next) {
        let (Some(first), bytes) = (run.first(), run.len() * row as usize) else { continue };
        let Some((head, tail)) = target.split_at_mut_checked(bytes) else { return Err(file.shrunk()) };
        read_buffered(file, head, begin + first * row)?;
        target = tail;
    }
    Ok(Ok(buffer))
}
