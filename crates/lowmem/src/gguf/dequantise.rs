//! From a tensor's bytes to numbers.

use multiversion::multiversion;

use super::{Format, GgufError, block_kernels as blocks, k_kernels as k_blocks};

/// Turns the bytes of whole blocks into f32. Integers and f64 are rounded to the nearest f32; all other values are exactly those of
/// gguf-py's `quants.py`.
///
/// # Errors
///
/// [`GgufError::Length`] when `bytes` are not those of `out.len()` elements.
pub fn dequantise(format: Format, bytes: &[u8], out: &mut [f32]) -> Result<(), GgufError> {
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
    run(format, bytes, out);
    Ok(())
}

// Numbers from blocks of 4 and 8 bits come faster with AVX2 than with the instructions of every x86-64.
#[multiversion(targets("x86_64+avx+avx2+f16c+fma", "x86_64+avx512f+avx512bw+avx512dq+avx512vl"), dispatcher = "direct")]
fn run(format: Format, bytes: &[u8], out: &mut [f32]) {
    match format {
        Format::F32 => each(bytes, out, blocks::f32),
        Format::F16 => each(bytes, out, blocks::f16),
        Format::BF16 => each(bytes, out, blocks::bf16),
        Format::F64 => each(bytes, out, blocks::f64),
        Format::I8 => each(bytes, out, blocks::i8),
        Format::I16 => each(bytes, out, blocks::i16),
        Format::I32 => each(bytes, out, blocks::i32),
        Format::I64 => each(bytes, out, blocks::i64),
        Format::Q4_0 => each(bytes, out, blocks::q4_0),
        Format::Q4_1 => each(bytes, out, blocks::q4_1),
        Format::Q5_0 => each(bytes, out, blocks::q5_0),
        Format::Q5_1 => each(bytes, out, blocks::q5_1),
        Format::Q8_0 => each(bytes, out, blocks::q8_0),
        Format::Q2_K => each(bytes, out, k_blocks::q2_k),
        Format::Q3_K => each(bytes, out, k_blocks::q3_k),
        Format::Q4_K => each(bytes, out, k_blocks::q4_k),
        Format::Q5_K => each(bytes, out, k_blocks::q5_k),
        Format::Q6_K => each(bytes, out, k_blocks::q6_k),
        Format::IQ4_NL => each(bytes, out, blocks::iq4_nl),
        Format::IQ4_XS => each(bytes, out, k_blocks::iq4_xs),
        Format::MXFP4 => each(bytes, out, blocks::mxfp4),
    }
}

#[inline(always)]
fn each<const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    for (bytes, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        block(bytes, out);
    }
}
