//! Blocks as groups of small integers that share a scale and an offset.

use super::{
    block_kernels::{E2M1_VALUES, IQ4_VALUES, exponent_to_scale},
    k_kernels::scales_and_minimums,
    numbers::f16_to_f32,
};

/// Numbers `scale * n + offset`, or `scale * n` in formats without offsets.
pub(super) struct Group<const SIZE: usize> {
    pub(super) numbers: [i8; SIZE],
    pub(super) scale: f32,
    pub(super) offset: Option<f32>,
}

#[inline(always)]
pub(super) fn half(low: u8, high: u8) -> f32 {
    f16_to_f32(u16::from_le_bytes([low, high]))
}

/// The first bytes of what is left of a block.
#[inline(always)]
pub(super) fn cut<const LENGTH: usize>(rest: &[u8]) -> &[u8; LENGTH] {
    // Blocks are arrays, and where their parts begin is known: nothing can be missing.
    rest.first_chunk().unwrap_or(&[0; LENGTH])
}

/// Of blocks that are one group.
#[inline(always)]
pub(super) fn no_scales<const BYTES: usize>(_: &[u8; BYTES]) {}

/// The low and the high halves of 16 bytes, one after the other, less `middle`.
#[inline(always)]
fn halves(packed: &[u8; 16], middle: i8) -> [i8; 32] {
    // Written with indices: of iterators the compiler makes no vector instructions here.
    let mut numbers = [0; 32];
    for i in 0..16 {
        numbers[i] = (packed[i] & 15) as i8 - middle;
        numbers[i + 16] = (packed[i] >> 4) as i8 - middle;
    }
    numbers
}

/// The same with a fifth bit for each number: `fifth` holds them, the lowest first.
#[inline(always)]
fn halves_of_5_bits(packed: &[u8; 16], fifth: [u8; 4], middle: i8) -> [i8; 32] {
    let fifth = u32::from_le_bytes(fifth);
    let mut numbers = [0; 32];
    for i in 0..16 {
        let (low, high) = ((fifth >> i) & 1, (fifth >> (i + 16)) & 1);
        numbers[i] = (packed[i] & 15) as i8 + (low << 4) as i8 - middle;
        numbers[i + 16] = (packed[i] >> 4) as i8 + (high << 4) as i8 - middle;
    }
    numbers
}

/// What the halves stand for in a list of values.
#[inline(always)]
fn listed_halves(packed: &[u8; 16], values: &[i8; 16]) -> [i8; 32] {
    let mut numbers = [0; 32];
    for i in 0..16 {
        numbers[i] = values[usize::from(packed[i] & 15)];
        numbers[i + 16] = values[usize::from(packed[i] >> 4)];
    }
    numbers
}

#[inline(always)]
pub(super) fn iq4_nl(block: &[u8; 18], (): &(), _: usize) -> Group<32> {
    let [d0, d1, packed @ ..] = block;
    Group { numbers: listed_halves(packed, &IQ4_VALUES), scale: half(*d0, *d1), offset: None }
}

#[inline(always)]
pub(super) fn mxfp4(block: &[u8; 17], (): &(), _: usize) -> Group<32> {
    let [exponent, packed @ ..] = block;
    Group { numbers: listed_halves(packed, &E2M1_VALUES), scale: exponent_to_scale(*exponent), offset: None }
}

/// The scales of the eight groups of a block.
#[inline(always)]
pub(super) fn iq4_xs_scales(block: &[u8; 136]) -> [f32; 8] {
    let [d0, d1, h0, h1, low @ ..] = block;
    let (d, high) = (half(*d0, *d1), u16::from_le_bytes([*h0, *h1]));
    std::array::from_fn(|i| {
        let six = (low[i / 2] >> (i % 2 * 4)) & 15 | ((high >> (2 * i)) as u8 & 3) << 4;
        d * (i32::from(six) - 32) as f32
    })
}

#[inline(always)]
pub(super) fn iq4_xs(block: &[u8; 136], scales: &[f32; 8], i: usize) -> Group<32> {
    Group { numbers: listed_halves(cut(&block[8 + 16 * i..]), &IQ4_VALUES), scale: scales[i], offset: None }
}

#[inline(always)]
pub(super) fn q4_0(block: &[u8; 18], (): &(), _: usize) -> Group<32> {
    let [d0, d1, packed @ ..] = block;
    Group { numbers: halves(packed, 8), scale: half(*d0, *d1), offset: None }
}

#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], (): &(), _: usize) -> Group<32> {
    let [d0, d1, m0, m1, packed @ ..] = block;
    Group { numbers: halves(packed, 0), scale: half(*d0, *d1), offset: Some(half(*m0, *m1)) }
}

#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22], (): &(), _: usize) -> Group<32> {
    let [d0, d1, h0, h1, h2, h3, packed @ ..] = block;
    let numbers = halves_of_5_bits(packed, [*h0, *h1, *h2, *h3], 16);
    Group { numbers, scale: half(*d0, *d1), offset: None }
}

#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], (): &(), _: usize) -> Group<32> {
    let [d0, d1, m0, m1, h0, h1, h2, h3, packed @ ..] = block;
    Group {
        numbers: halves_of_5_bits(packed, [*h0, *h1, *h2, *h3], 0),
        scale: half(*d0, *d1),
        offset: Some(half(*m0, *m1)),
    }
}

#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], (): &(), _: usize) -> Group<32> {
    let [d0, d1, values @ ..] = block;
    let mut numbers = [0; 32];
    for i in 0..32 {
        numbers[i] = values[i] as i8;
    }
    Group { numbers, scale: half(*d0, *d1), offset: None }
}

/// Scales and offsets of the eight groups of a block.
pub(super) type Eight = [(f32, f32); 8];

#[inline(always)]
fn eight(block: &[u8; 16]) -> Eight {
    let [d0, d1, m0, m1, scales @ ..] = block;
    let (d, minimum) = (half(*d0, *d1), half(*m0, *m1));
    let (scales, minimums) = scales_and_minimums(scales);
    std::array::from_fn(|i| (d * f32::from(scales[i]), -minimum * f32::from(minimums[i])))
}

/// Group `i` of eight of 4 bits, or 5: the halves of 32 bytes are two groups, and the fifth bits of all groups share 32 bytes.
#[inline(always)]
fn one_of_eight(scales: &Eight, fifth: Option<&[u8; 32]>, packed: &[u8; 128], i: usize) -> Group<32> {
    let (mut numbers, packed) = ([0; 32], &packed.as_chunks::<32>().0[i / 2]);
    for at in 0..32 {
        let high = fifth.map_or(0, |fifth| ((fifth[at] >> i) & 1) << 4);
        numbers[at] = ((packed[at] >> (i % 2 * 4)) & 15 | high) as i8;
    }
    let (scale, offset) = scales[i];
    Group { numbers, scale, offset: Some(offset) }
}

#[inline(always)]
pub(super) fn q4_k_scales(block: &[u8; 144]) -> Eight {
    eight(cut(block))
}

#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], scales: &Eight, i: usize) -> Group<32> {
    one_of_eight(scales, None, cut(&block[16..]), i)
}

#[inline(always)]
pub(super) fn q5_k_scales(block: &[u8; 176]) -> Eight {
    eight(cut(block))
}

#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176], scales: &Eight, i: usize) -> Group<32> {
    one_of_eight(scales, Some(cut(&block[16..])), cut(&block[48..]), i)
}

#[inline(always)]
pub(super) fn q6_k_scales(block: &[u8; 210]) -> f32 {
    half(block[208], block[209])
}

#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], d: &f32, i: usize) -> Group<16> {
    // Half of the block, quarter of the half, and half of the quarter.
    let (part, quarter, side) = (i / 8, i / 2 % 4, i % 2);
    let low: &[u8; 16] = cut(&block[(part * 4 + quarter % 2 * 2 + side) * 16..]);
    let high: &[u8; 16] = cut(&block[128 + (part * 2 + side) * 16..]);
    let mut numbers = [0; 16];
    for at in 0..16 {
        let (low, high) = ((low[at] >> (quarter / 2 * 4)) & 15, (high[at] >> (quarter * 2)) & 3);
        numbers[at] = (low | high << 4) as i8 - 32;
    }
    Group { numbers, scale: d * f32::from(block[192 + i] as i8), offset: None }
}
