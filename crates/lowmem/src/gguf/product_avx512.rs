//! The products of [`super::product`] with AVX-512: the same operations in the same order, sixteen at once.
//!
//! Written out, because the compiler makes of the loops there between a third and a tenth of this speed.

use std::arch::x86_64::*;

use bytemuck::cast;

use super::{
    Format,
    block_kernels::{E2M1_VALUES, IQ4_VALUES, exponent_to_scale},
    groups::{self, cut},
    product::{LANES, added_up, both_added_up, groups_of, multiplied},
};
use crate::ahead::{ahead, ask_for};

/// Whether there is a kernel for this format, which then has filled `out`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn run(format: Format, bytes: &[u8], vector: &[f32], out: &mut [f32]) -> bool {
    match format {
        Format::Q4_0 => {
            let values = listed(&std::array::from_fn(|i| i as i8 - 8));
            of_blocks::<18, false>(bytes, vector, out, |block| halves(cut(&block[2..]), values));
        }
        Format::Q4_1 => {
            let values = listed(&std::array::from_fn(|i| i as i8));
            of_blocks::<20, true>(bytes, vector, out, |block| halves(cut(&block[4..]), values));
        }
        Format::Q5_0 => of_blocks::<22, false>(bytes, vector, out, |block| {
            let numbers = _mm256_sub_epi8(halves_of_5_bits(cut(&block[6..]), cut(&block[2..])), _mm256_set1_epi8(16));
            two(numbers)
        }),
        Format::Q5_1 => {
            of_blocks::<24, true>(bytes, vector, out, |block| two(halves_of_5_bits(cut(&block[8..]), cut(&block[4..]))))
        }
        Format::Q8_0 => of_blocks::<34, false>(bytes, vector, out, |block| two(cast(*cut::<32>(&block[2..])))),
        Format::IQ4_NL => {
            let values = listed(&IQ4_VALUES);
            of_blocks::<18, false>(bytes, vector, out, |block| halves(cut(&block[2..]), values));
        }
        Format::MXFP4 => {
            let values = listed(&E2M1_VALUES);
            let scales = |block: &[u8; 17]| [(exponent_to_scale(block[0]), 0.0)];
            of_groups::<17, 1, false>(bytes, vector, out, scales, |block, _| halves(cut(&block[1..]), values));
        }
        Format::IQ4_XS => {
            let values = listed(&IQ4_VALUES);
            let scales = |block: &[u8; 136]| groups::iq4_xs_scales(block).map(|scale| (scale, 0.0));
            of_groups::<136, 8, false>(bytes, vector, out, scales, |block, i| {
                halves(cut(&block[8 + 16 * i..]), values)
            });
        }
        Format::Q4_K => of_groups::<144, 8, true>(bytes, vector, out, groups::q4_k_scales, |block, i| {
            two(one_of_eight(cut(&block[16..]), i))
        }),
        Format::Q5_K => of_groups::<176, 8, true>(bytes, vector, out, groups::q5_k_scales, |block, i| {
            let fifth = _mm256_test_epi8_mask(cast(*cut::<32>(&block[16..])), _mm256_set1_epi8(1 << i));
            two(with_fifth(one_of_eight(cut(&block[48..]), i), fifth))
        }),
        Format::Q6_K => q6_k(bytes, vector, out),
        Format::F32 => {
            let number = |bytes: &[u8; 4]| f32::from_le_bytes(*bytes);
            of_numbers::<4, 64>(bytes, vector, out, |bytes| cast(*bytes), number);
        }
        Format::F16 => {
            let number = |bytes: &[u8; 2]| groups::half(bytes[0], bytes[1]);
            of_numbers::<2, 32>(bytes, vector, out, |bytes| _mm512_cvtph_ps(cast(*bytes)), number);
        }
        Format::BF16 => {
            let wide = |bytes: &[u8; 32]| {
                let bits = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(cast(*bytes)));
                _mm512_castsi512_ps(bits)
            };
            let number = |bytes: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            of_numbers::<2, 32>(bytes, vector, out, wide, number);
        }
        _ => return false,
    }
    true
}

/// The values that four bits stand for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn listed(values: &[i8; 16]) -> __m512 {
    cast(values.map(f32::from))
}

/// What the low and the high halves of 16 bytes stand for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn halves(packed: &[u8; 16], values: __m512) -> [__m512; 2] {
    // A permutation looks at the lowest four bits of an index.
    let wide = _mm512_cvtepu8_epi32(cast(*packed));
    [_mm512_permutexvar_ps(wide, values), _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(wide), values)]
}

/// The low and the high halves of 16 bytes, one after the other, with a fifth bit each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn halves_of_5_bits(packed: &[u8; 16], fifth: &[u8; 4]) -> __m256i {
    let packed: __m128i = cast(*packed);
    let four = _mm_set1_epi8(15);
    let (low, high) = (_mm_and_si128(packed, four), _mm_and_si128(_mm_srli_epi16::<4>(packed), four));
    with_fifth(_mm256_set_m128i(high, low), u32::from_le_bytes(*fifth))
}

/// Adds 16 where a bit is set.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn with_fifth(numbers: __m256i, fifth: u32) -> __m256i {
    _mm256_mask_add_epi8(numbers, fifth, numbers, _mm256_set1_epi8(16))
}

/// As in [`groups`]: group `i` of eight of four bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn one_of_eight(packed: &[u8; 128], i: usize) -> __m256i {
    let packed: __m256i = cast(packed.as_chunks::<32>().0[i / 2]);
    let shifted = if i.is_multiple_of(2) { packed } else { _mm256_srli_epi16::<4>(packed) };
    _mm256_and_si256(shifted, _mm256_set1_epi8(15))
}

/// 32 small integers as two vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn two(numbers: __m256i) -> [__m512; 2] {
    [_mm256_castsi256_si128(numbers), _mm256_extracti128_si256::<1>(numbers)].map(|half| one(half))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn one(numbers: __m128i) -> __m512 {
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(numbers))
}

/// The products of 32 numbers with their factors, in 16 sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn products([first, second]: [__m512; 2], factors: &[f32; 32]) -> __m512 {
    let [first_factors, second_factors]: [__m512; 2] = cast(*factors);
    _mm512_fmadd_ps(second, second_factors, _mm512_mul_ps(first, first_factors))
}

/// Rows of blocks of 32 that begin with a scale, and with an offset behind it where `OFFSET` says so, both in f16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn of_blocks<const BYTES: usize, const OFFSET: bool>(
    bytes: &[u8],
    vector: &[f32],
    out: &mut [f32],
    numbers: impl Fn(&[u8; BYTES]) -> [__m512; 2],
) {
    let (factors, sums) = groups_of::<32>(vector);
    let (blocks, mut ahead) = ahead::<BYTES>(bytes);
    for (row, out) in blocks.chunks_exact(factors.len().max(1)).zip(out) {
        let (mut lanes, mut offsets) = (_mm512_setzero_ps(), _mm_setzero_ps());
        for ((block, factors), sum) in row.iter().zip(factors).zip(&sums) {
            ask_for(ahead.next().map(|block| block.as_slice()));
            // The scale, the offset, and two numbers that nobody looks at.
            let scales = _mm_cvtph_ps(_mm_cvtsi32_si128(i32::from_le_bytes(*cut(block))));
            lanes = _mm512_fmadd_ps(_mm512_broadcastss_ps(scales), products(numbers(block), factors), lanes);
            if OFFSET {
                offsets = _mm_fmadd_ps(scales, _mm_set1_ps(*sum), offsets);
            }
        }
        let [_, offset, ..]: [f32; 4] = cast(offsets);
        *out = added_up(cast(lanes)) + offset;
    }
}

/// Rows of blocks of several groups of 32, with `(scale, offset)` for each; offsets are zeros unless `OFFSET` says otherwise.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn of_groups<const BYTES: usize, const GROUPS: usize, const OFFSET: bool>(
    bytes: &[u8],
    vector: &[f32],
    out: &mut [f32],
    scales: impl Fn(&[u8; BYTES]) -> [(f32, f32); GROUPS],
    numbers: impl Fn(&[u8; BYTES], usize) -> [__m512; 2],
) {
    let (factors, sums) = groups_of::<32>(vector);
    let (factors, sums) = (factors.as_chunks::<GROUPS>().0, sums.as_chunks::<GROUPS>().0);
    let (blocks, mut ahead) = ahead::<BYTES>(bytes);
    for (row, out) in blocks.chunks_exact(factors.len().max(1)).zip(out) {
        let (mut lanes, mut added) = (_mm512_setzero_ps(), 0.0_f32);
        for ((block, factors), sums) in row.iter().zip(factors).zip(sums) {
            ask_for(ahead.next().map(|block| block.as_slice()));
            let scales = scales(block);
            for i in 0..GROUPS {
                let (scale, offset) = scales[i];
                lanes = _mm512_fmadd_ps(_mm512_set1_ps(scale), products(numbers(block, i), &factors[i]), lanes);
                if OFFSET {
                    added = offset.mul_add(sums[i], added);
                }
            }
        }
        *out = added_up(cast(lanes)) + added;
    }
}

/// Rows of blocks of 16 groups of 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn q6_k(bytes: &[u8], vector: &[f32], out: &mut [f32]) {
    let factors = vector.as_chunks::<16>().0.as_chunks::<16>().0;
    let (blocks, mut ahead) = ahead::<210>(bytes);
    for (row, out) in blocks.chunks_exact(factors.len().max(1)).zip(out) {
        let mut lanes = _mm512_setzero_ps();
        for (block, factors) in row.iter().zip(factors) {
            ask_for(ahead.next().map(|block| block.as_slice()));
            let d = groups::q6_k_scales(block);
            for i in 0..16 {
                let (part, quarter, side) = (i / 8, i / 2 % 4, i % 2);
                let low: __m128i = cast(*cut::<16>(&block[(part * 4 + quarter % 2 * 2 + side) * 16..]));
                let high: __m128i = cast(*cut::<16>(&block[128 + (part * 2 + side) * 16..]));
                let low = if quarter < 2 { low } else { _mm_srli_epi16::<4>(low) };
                // Their two bits belong to bits 4 and 5.
                let high = match quarter {
                    0 => _mm_slli_epi16::<4>(high),
                    1 => _mm_slli_epi16::<2>(high),
                    2 => high,
                    _ => _mm_srli_epi16::<2>(high),
                };
                let low = _mm_and_si128(low, _mm_set1_epi8(15));
                let both = _mm_or_si128(low, _mm_and_si128(high, _mm_set1_epi8(48)));
                let numbers = one(_mm_sub_epi8(both, _mm_set1_epi8(32)));
                let scale = _mm512_set1_ps(d * f32::from(block[192 + i] as i8));
                lanes = _mm512_fmadd_ps(scale, _mm512_mul_ps(numbers, cast(factors[i])), lanes);
            }
        }
        *out = added_up(cast(lanes)) + 0.0;
    }
}

/// Rows of numbers without blocks; `wide` makes sixteen of them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn of_numbers<const BYTES: usize, const WIDE: usize>(
    bytes: &[u8],
    vector: &[f32],
    out: &mut [f32],
    wide: impl Fn(&[u8; WIDE]) -> __m512,
    number: impl Fn(&[u8; BYTES]) -> f32,
) {
    let (factors, rest) = vector.as_chunks::<{ 2 * LANES }>();
    let (_, mut ahead) = ahead::<WIDE>(bytes);
    for (row, out) in bytes.chunks_exact((vector.len() * BYTES).max(1)).zip(out) {
        let mut sums = [_mm512_setzero_ps(); 2];
        let (numbers, tail) = row.split_at(factors.len() * 2 * WIDE);
        for (numbers, factors) in numbers.as_chunks::<WIDE>().0.as_chunks::<2>().0.iter().zip(factors) {
            ask_for(ahead.next().map(|block| block.as_slice()));
            ask_for(ahead.next().map(|block| block.as_slice()));
            let factors: [__m512; 2] = cast(*factors);
            sums[0] = _mm512_fmadd_ps(wide(&numbers[0]), factors[0], sums[0]);
            sums[1] = _mm512_fmadd_ps(wide(&numbers[1]), factors[1], sums[1]);
        }
        let mut sums: [[f32; LANES]; 2] = sums.map(cast);
        let mut last = [0.0; 2 * LANES];
        for (last, bytes) in last.iter_mut().zip(tail.as_chunks().0) {
            *last = number(bytes);
        }
        multiplied(&mut sums, &last, rest);
        *out = both_added_up(sums);
    }
}
