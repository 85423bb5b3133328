//! Formats of single numbers, and of blocks of 32 with one scale.
//!
//! Each function turns one block into numbers, in the order of operations of gguf-py's `quants.py`, so in its bits.

use super::numbers::{bf16_to_f32, f16_to_f32};

/// Values of a 4-bit index in IQ4_NL and IQ4_XS.
pub(super) const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Twice the values of a 4-bit float, E2M1, with its sign in the high bit.
pub(super) const E2M1_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// A scale at the front of a block.
#[inline(always)]
fn scale(bytes: [u8; 2]) -> f32 {
    f16_to_f32(u16::from_le_bytes(bytes))
}

/// Writes what the low and the high halves of 16 bytes mean, one after the other.
#[inline(always)]
fn halves(packed: &[u8; 16], out: &mut [f32; 32], value: impl Fn(u8) -> f32) {
    let ([low, high], _) = out.as_chunks_mut::<16>() else { return };
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(packed) {
        *low = value(byte & 15);
        *high = value(byte >> 4);
    }
}

/// The same with a fifth bit for each value: `fifth` holds them, the lowest first.
#[inline(always)]
fn halves_of_5_bits(packed: &[u8; 16], fifth: [u8; 4], out: &mut [f32; 32], value: impl Fn(u32) -> f32) {
    let fifth = u32::from_le_bytes(fifth);
    let ([low, high], _) = out.as_chunks_mut::<16>() else { return };
    for (i, ((low, high), &byte)) in low.iter_mut().zip(high).zip(packed).enumerate() {
        *low = value(u32::from(byte & 15) | ((fifth >> i) & 1) << 4);
        *high = value(u32::from(byte >> 4) | ((fifth >> (i + 16)) & 1) << 4);
    }
}

#[inline(always)]
pub(super) fn f32(block: &[u8; 4], [out]: &mut [f32; 1]) {
    *out = f32::from_le_bytes(*block);
}

#[inline(always)]
pub(super) fn f16(block: &[u8; 2], [out]: &mut [f32; 1]) {
    *out = f16_to_f32(u16::from_le_bytes(*block));
}

#[inline(always)]
pub(super) fn bf16(block: &[u8; 2], [out]: &mut [f32; 1]) {
    *out = bf16_to_f32(u16::from_le_bytes(*block));
}

#[inline(always)]
pub(super) fn f64(block: &[u8; 8], [out]: &mut [f32; 1]) {
    *out = f64::from_le_bytes(*block) as f32;
}

#[inline(always)]
pub(super) fn i8(block: &[u8; 1], [out]: &mut [f32; 1]) {
    *out = f32::from(i8::from_le_bytes(*block));
}

#[inline(always)]
pub(super) fn i16(block: &[u8; 2], [out]: &mut [f32; 1]) {
    *out = f32::from(i16::from_le_bytes(*block));
}

#[inline(always)]
pub(super) fn i32(block: &[u8; 4], [out]: &mut [f32; 1]) {
    *out = i32::from_le_bytes(*block) as f32;
}

#[inline(always)]
pub(super) fn i64(block: &[u8; 8], [out]: &mut [f32; 1]) {
    *out = i64::from_le_bytes(*block) as f32;
}

#[inline(always)]
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let [d0, d1, packed @ ..] = block;
    let d = scale([*d0, *d1]);
    halves(packed, out, |value| d * (i32::from(value) - 8) as f32);
}

#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let [d0, d1, m0, m1, packed @ ..] = block;
    let (d, m) = (scale([*d0, *d1]), scale([*m0, *m1]));
    halves(packed, out, |value| d * i32::from(value) as f32 + m);
}

#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let [d0, d1, h0, h1, h2, h3, packed @ ..] = block;
    let d = scale([*d0, *d1]);
    halves_of_5_bits(packed, [*h0, *h1, *h2, *h3], out, |value| d * (value as i32 - 16) as f32);
}

#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let [d0, d1, m0, m1, h0, h1, h2, h3, packed @ ..] = block;
    let (d, m) = (scale([*d0, *d1]), scale([*m0, *m1]));
    halves_of_5_bits(packed, [*h0, *h1, *h2, *h3], out, |value| d * value as i32 as f32 + m);
}

#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let [d0, d1, values @ ..] = block;
    let d = scale([*d0, *d1]);
    for (out, &value) in out.iter_mut().zip(values) {
        *out = d * i32::from(value as i8) as f32;
    }
}

#[inline(always)]
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let [d0, d1, packed @ ..] = block;
    let d = scale([*d0, *d1]);
    halves(packed, out, |value| d * f32::from(IQ4_VALUES[usize::from(value & 15)]));
}

/// 2 to the power of the byte less 128: half of what the byte means, for values that are doubled.
#[inline(always)]
pub(super) fn exponent_to_scale(exponent: u8) -> f32 {
    let exponent = u32::from(exponent);
    f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { (exponent - 1) << 23 })
}

#[inline(always)]
pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let [exponent, packed @ ..] = block;
    let d = exponent_to_scale(*exponent);
    halves(packed, out, |value| d * f32::from(E2M1_VALUES[usize::from(value & 15)]));
}
