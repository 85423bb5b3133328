//! From a tensor's bytes to numbers.

use multiversion::multiversion;

use super::{
    Format, GgufError, block_kernels as blocks, k_kernels as k_blocks,
    numbers::{Brain, Half, Number, Single},
};

/// Elements that one thread takes at least: below, starting it costs more than it saves.
const LEAST_PER_THREAD: usize = 1 << 16;
/// Elements of the largest block: parts for threads are multiples of it.
const LARGEST_BLOCK: usize = 256;

/// Where numbers go, and as what.
#[derive(Debug)]
pub enum Target<'a> {
    /// f32.
    F32(&'a mut [f32]),
    /// The bits of bf16: the exact f32 rounded to the nearest, to even where two are.
    Bf16(&'a mut [u16]),
    /// The bits of f16, rounded alike.
    F16(&'a mut [u16]),
}

/// Turns the bytes of whole blocks into f32. Integers and f64 are rounded to the nearest f32; all other values are exactly those of
/// gguf-py's `quants.py`.
///
/// # Errors
///
/// [`GgufError::Length`] when `bytes` are not those of `out.len()` elements.
pub fn dequantise(format: Format, bytes: &[u8], out: &mut [f32]) -> Result<(), GgufError> {
    dequantise_parallel(format, bytes, Target::F32(out), 1)
}

/// Turns the bytes of whole blocks into the bits of bf16.
///
/// # Errors
///
/// As [`dequantise`].
pub fn dequantise_bf16(format: Format, bytes: &[u8], out: &mut [u16]) -> Result<(), GgufError> {
    dequantise_parallel(format, bytes, Target::Bf16(out), 1)
}

/// Turns the bytes of whole blocks into the bits of f16.
///
/// # Errors
///
/// As [`dequantise`].
pub fn dequantise_f16(format: Format, bytes: &[u8], out: &mut [u16]) -> Result<(), GgufError> {
    dequantise_parallel(format, bytes, Target::F16(out), 1)
}

/// Turns the bytes of whole blocks into numbers, in up to `threads` threads. How many there are does not change a bit.
///
/// # Errors
///
/// As [`dequantise`].
pub fn dequantise_parallel(format: Format, bytes: &[u8], out: Target<'_>, threads: usize) -> Result<(), GgufError> {
    match out {
        Target::F32(out) => checked::<Single>(format, bytes, out, threads),
        Target::Bf16(out) => checked::<Brain>(format, bytes, out, threads),
        Target::F16(out) => checked::<Half>(format, bytes, out, threads),
    }
}

fn checked<N: Number>(format: Format, bytes: &[u8], out: &mut [N::Stored], threads: usize) -> Result<(), GgufError> {
    let expected = format.bytes(out.len() as u64);
    if expected != Some(bytes.len() as u64) {
        let blocks = || format!("whole blocks of {} elements, so other", format.elements_per_block());
        return Err(GgufError::Length {
            format,
            elements: out.len(),
            expected: expected.map_or_else(blocks, |bytes| bytes.to_string()),
            found: bytes.len(),
        });
    }
    let threads = threads.min(out.len() / LEAST_PER_THREAD);
    if threads < 2 {
        run::<N>(format, bytes, out);
        return Ok(());
    }
    let elements = out.len().div_ceil(threads).next_multiple_of(LARGEST_BLOCK);
    let part = elements / format.elements_per_block() as usize * format.bytes_per_block() as usize;
    std::thread::scope(|scope| {
        let mut parts = bytes.chunks(part).zip(out.chunks_mut(elements));
        let first = parts.next();
        for (bytes, out) in parts {
            scope.spawn(move || run::<N>(format, bytes, out));
        }
        if let Some((bytes, out)) = first {
            run::<N>(format, bytes, out);
        }
    });
    Ok(())
}

// Half-width numbers from blocks of 4 and 8 bits come twice as fast with AVX2 as with the instructions of every x86-64.
#[multiversion(targets("x86_64+avx+avx2+f16c+fma", "x86_64+avx512f+avx512bw+avx512dq+avx512vl"), dispatcher = "direct")]
fn run<N: Number>(format: Format, bytes: &[u8], out: &mut [N::Stored]) {
    match format {
        Format::F32 => each(bytes, out, blocks::f32::<N>),
        Format::F16 => each(bytes, out, blocks::f16::<N>),
        Format::BF16 => each(bytes, out, blocks::bf16::<N>),
        Format::F64 => each(bytes, out, blocks::f64::<N>),
        Format::I8 => each(bytes, out, blocks::i8::<N>),
        Format::I16 => each(bytes, out, blocks::i16::<N>),
        Format::I32 => each(bytes, out, blocks::i32::<N>),
        Format::I64 => each(bytes, out, blocks::i64::<N>),
        Format::Q4_0 => each(bytes, out, blocks::q4_0::<N>),
        Format::Q4_1 => each(bytes, out, blocks::q4_1::<N>),
        Format::Q5_0 => each(bytes, out, blocks::q5_0::<N>),
        Format::Q5_1 => each(bytes, out, blocks::q5_1::<N>),
        Format::Q8_0 => each(bytes, out, blocks::q8_0::<N>),
        Format::Q2_K => each(bytes, out, k_blocks::q2_k::<N>),
        Format::Q3_K => each(bytes, out, k_blocks::q3_k::<N>),
        Format::Q4_K => each(bytes, out, k_blocks::q4_k::<N>),
        Format::Q5_K => each(bytes, out, k_blocks::q5_k::<N>),
        Format::Q6_K => each(bytes, out, k_blocks::q6_k::<N>),
        Format::IQ4_NL => each(bytes, out, blocks::iq4_nl::<N>),
        Format::IQ4_XS => each(bytes, out, k_blocks::iq4_xs::<N>),
        Format::MXFP4 => each(bytes, out, blocks::mxfp4::<N>),
    }
}

#[inline(always)]
fn each<T, const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    out: &mut [T],
    block: impl Fn(&[u8; BYTES], &mut [T; ELEMENTS]),
) {
    for (bytes, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        block(bytes, out);
    }
}
