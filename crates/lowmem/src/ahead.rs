//! Memory that is asked for before it is needed.
//!
//! A processor guesses what comes next, but its guesses end with a page, and its window of instructions holds less than it executes
//! while memory answers: without this, products of a matrix with one vector got two thirds of what memory gives.

/// Bytes before they are needed. Between 2 and 8 KiB make no difference.
const AHEAD: usize = 4096;
/// Bytes that come at once.
const LINE: usize = 64;

/// Stored blocks, and those that are worth asking for while they are gone through.
#[inline(always)]
pub(crate) fn ahead<const BYTES: usize>(bytes: &[u8]) -> (&[[u8; BYTES]], std::slice::Iter<'_, [u8; BYTES]>) {
    let blocks = bytes.as_chunks().0;
    (blocks, blocks.get(AHEAD / BYTES..).unwrap_or_default().iter())
}

/// Asks for elements, if there are any.
#[inline(always)]
pub(crate) fn ask_for<T>(elements: Option<&[T]>) {
    #[cfg(target_arch = "x86_64")]
    for line in elements.unwrap_or_default().iter().step_by(const { LINE / size_of::<T>() }) {
        safe_arch::prefetch_t0(line);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = elements;
}
