//! Formats of blocks of 256 with a scale, and scales of that scale for each 16 or 32.
//!
//! As in [`super::block_kernels`], the order of operations is that of gguf-py's `quants.py`.

use super::{block_kernels::IQ4_VALUES, numbers::f16_to_f32};

#[inline(always)]
fn scale(bytes: &[u8; 2]) -> f32 {
    f16_to_f32(u16::from_le_bytes(*bytes))
}

/// The first bytes of a block, and the others.
#[inline(always)]
fn cut<const FRONT: usize>(block: &[u8]) -> (&[u8; FRONT], &[u8]) {
    // Blocks are arrays, and their parts' lengths are constants: nothing can be missing, and the compiler sees it.
    block.split_first_chunk().unwrap_or((&[0; FRONT], &[]))
}

#[inline(always)]
fn last<const FRONT: usize>(rest: &[u8]) -> &[u8; FRONT] {
    cut(rest).0
}

/// Scales and minimums of Q4_K and Q5_K: 8 of 6 bits each.
#[inline(always)]
pub(super) fn scales_and_minimums(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut minimums) = ([0; 8], [0; 8]);
    for i in 0..4 {
        let (d, m, both) = (packed[i], packed[i + 4], packed[i + 8]);
        scales[i] = d & 63;
        minimums[i] = m & 63;
        scales[i + 4] = (both & 15) | ((d >> 2) & 48);
        minimums[i + 4] = (both >> 4) | ((m >> 2) & 48);
    }
    (scales, minimums)
}

#[inline(always)]
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, rest) = cut::<16>(block);
    let (values, rest) = cut::<64>(rest);
    let (d, rest) = cut::<2>(rest);
    let (d, minimum) = (scale(d), scale(last::<2>(rest)));
    for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (d, m) = (d * f32::from(scales[i] & 15), minimum * f32::from(scales[i] >> 4));
        // 32 bytes hold 4 times 32 values, two bits of each.
        let (bytes, shift) = (&values[(i / 8) * 32 + (i % 2) * 16..][..16], (i / 2 % 4) * 2);
        for (out, byte) in out.iter_mut().zip(bytes) {
            *out = d * i32::from((byte >> shift) & 3) as f32 - m;
        }
    }
}

#[inline(always)]
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (third, rest) = cut::<32>(block);
    let (values, rest) = cut::<64>(rest);
    let (packed, rest) = cut::<12>(rest);
    let d = scale(last::<2>(rest));
    for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = if i < 8 { packed[i] & 15 } else { packed[i - 8] >> 4 };
        let high = (packed[8 + i % 4] >> (i / 4 * 2)) & 3;
        let d = d * (i32::from(low | high << 4) - 32) as f32;
        let (bytes, shift) = (&values[(i / 8) * 32 + (i % 2) * 16..][..16], (i / 2 % 4) * 2);
        // A third bit that is not set means 4 less.
        for ((out, byte), third) in out.iter_mut().zip(bytes).zip(&third[(i % 2) * 16..][..16]) {
            let value = i32::from((byte >> shift) & 3 | ((third >> (i / 2)) & 1) << 2) - 4;
            *out = d * value as f32;
        }
    }
}

#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, rest) = cut::<2>(block);
    let (minimum, rest) = cut::<2>(rest);
    let (packed, rest) = cut::<12>(rest);
    let values = last::<128>(rest);
    let (d, minimum) = (scale(d), scale(minimum));
    let (scales, minimums) = scales_and_minimums(packed);
    for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (d, m) = (d * f32::from(scales[i]), minimum * f32::from(minimums[i]));
        let (bytes, shift) = (&values[i / 2 * 32..][..32], i % 2 * 4);
        for (out, byte) in out.iter_mut().zip(bytes) {
            *out = d * i32::from((byte >> shift) & 15) as f32 - m;
        }
    }
}

#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, rest) = cut::<2>(block);
    let (minimum, rest) = cut::<2>(rest);
    let (packed, rest) = cut::<12>(rest);
    let (fifth, rest) = cut::<32>(rest);
    let values = last::<128>(rest);
    let (d, minimum) = (scale(d), scale(minimum));
    let (scales, minimums) = scales_and_minimums(packed);
    for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (d, m) = (d * f32::from(scales[i]), minimum * f32::from(minimums[i]));
        let (bytes, shift) = (&values[i / 2 * 32..][..32], i % 2 * 4);
        for ((out, byte), fifth) in out.iter_mut().zip(bytes).zip(fifth) {
            let value = (byte >> shift) & 15 | ((fifth >> i) & 1) << 4;
            *out = d * i32::from(value) as f32 - m;
        }
    }
}

#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, rest) = cut::<128>(block);
    let (high, rest) = cut::<64>(rest);
    let (scales, rest) = cut::<16>(rest);
    let d = scale(last::<2>(rest));
    for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let d = d * f32::from(scales[i] as i8);
        let half = i / 8;
        // 64 bytes hold 128 values, four bits of each; 32 bytes hold their other two bits.
        let (low, low_shift) = (&low[half * 64 + i % 4 * 16..][..16], i / 4 % 2 * 4);
        let (high, high_shift) = (&high[half * 32 + i % 2 * 16..][..16], i / 2 % 4 * 2);
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            let value = (low >> low_shift) & 15 | ((high >> high_shift) & 3) << 4;
            *out = d * (i32::from(value) - 32) as f32;
        }
    }
}

#[inline(always)]
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let (d, rest) = cut::<2>(block);
    let (high, rest) = cut::<2>(rest);
    let (low, rest) = cut::<4>(rest);
    let values = last::<128>(rest);
    let (d, high) = (scale(d), u16::from_le_bytes(*high));
    for (i, (out, bytes)) in out.as_chunks_mut::<32>().0.iter_mut().zip(values.as_chunks::<16>().0).enumerate() {
        let six = (low[i / 2] >> (i % 2 * 4)) & 15 | ((high >> (2 * i)) as u8 & 3) << 4;
        let d = d * (i32::from(six) - 32) as f32;
        let ([first, second], _) = out.as_chunks_mut::<16>() else { return };
        for ((first, second), &byte) in first.iter_mut().zip(second).zip(bytes) {
            *first = d * f32::from(IQ4_VALUES[usize::from(byte & 15)]);
            *second = d * f32::from(IQ4_VALUES[usize::from(byte >> 4)]);
        }
    }
}
