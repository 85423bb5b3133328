//! Products of a stored matrix with a vector, without making the matrix.
//!
//! Every kernel does the same operations in the same order, whatever the processor, so that a product has the same bits
//! everywhere: [`LANES`] sums of a row side by side, fused multiplications with additions, and one way to add up the sums.

use multiversion::{multiversion, target::match_target};

#[cfg(all(target_arch = "x86_64", not(target_feature = "avx512f")))]
use super::product_avx512;
use super::{
    Format, GgufError, block_kernels as blocks,
    groups::{self, Group},
    k_kernels as k_blocks,
};
use crate::ahead::{ahead, ask_for};

/// Partial sums of a row that are kept side by side: one vector of the widest instructions.
pub(super) const LANES: usize = 16;
/// Elements that are made before they are multiplied: those of the largest block, which stay in the nearest cache.
const STRETCH: usize = 256;

/// What the sums of a row's lanes add up to.
#[inline(always)]
pub(super) fn added_up(mut lanes: [f32; LANES]) -> f32 {
    for lane in 0..8 {
        lanes[lane] += lanes[lane + 8];
    }
    for lane in 0..4 {
        lanes[lane] += lanes[lane + 4];
    }
    (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])
}

/// Multiplies rows of `vector.len()` elements, stored one after the other, with `vector`; one number for each row.
///
/// The elements are those that [`super::dequantise`] gives, but for the last bit of f32 where a scale and an offset are applied to a
/// sum instead of each of them. The order of operations, and so every bit, is the same on every processor.
///
/// # Errors
///
/// [`GgufError::Length`] when `bytes` are not those of `out.len()` rows.
pub(crate) fn product(format: Format, bytes: &[u8], vector: &[f32], out: &mut [f32]) -> Result<(), GgufError> {
    let elements = vector.len().saturating_mul(out.len());
    let whole = format.bytes(vector.len() as u64).is_some();
    let expected = format.bytes(elements as u64).filter(|_| whole);
    if expected != Some(bytes.len() as u64) {
        let blocks = || format!("rows of whole blocks of {} elements, so other", format.elements_per_block());
        return Err(GgufError::Length {
            format,
            elements,
            expected: expected.map_or_else(blocks, |bytes| bytes.to_string()),
            found: bytes.len(),
        });
    }
    if vector.is_empty() {
        out.fill(0.0);
    } else {
        run(format, bytes, vector, out);
    }
    Ok(())
}

// As for `dequantise::run`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx+avx2+f16c+fma"), dispatcher = "direct")]
fn run(format: Format, bytes: &[u8], vector: &[f32], out: &mut [f32]) {
    // Where a whole program is compiled for such a processor (`-C target-cpu=native`), this is the one version of the function, without
    // the attribute that lets it call the kernels without unsafe code.
    #[cfg(target_feature = "avx512f")]
    let done = false;
    #[cfg(not(target_feature = "avx512f"))]
    let done = match_target! {
        "x86_64+avx512f+avx512bw+avx512dq+avx512vl" => product_avx512::run(format, bytes, vector, out),
        _ => false,
    };
    if !done {
        everywhere(format, bytes, vector, out);
    }
}

/// The product for any processor, in the vector instructions of the function that it becomes a part of.
#[inline(always)]
fn everywhere(format: Format, bytes: &[u8], vector: &[f32], out: &mut [f32]) {
    match format {
        Format::Q4_0 => grouped::<_, 1, _, _>(bytes, vector, out, groups::no_scales, groups::q4_0),
        Format::Q4_1 => grouped::<_, 1, _, _>(bytes, vector, out, groups::no_scales, groups::q4_1),
        Format::Q5_0 => grouped::<_, 1, _, _>(bytes, vector, out, groups::no_scales, groups::q5_0),
        Format::Q5_1 => grouped::<_, 1, _, _>(bytes, vector, out, groups::no_scales, groups::q5_1),
        Format::Q8_0 => grouped::<_, 1, _, _>(bytes, vector, out, groups::no_scales, groups::q8_0),
        Format::Q4_K => grouped::<_, 8, _, _>(bytes, vector, out, groups::q4_k_scales, groups::q4_k),
        Format::Q5_K => grouped::<_, 8, _, _>(bytes, vector, out, groups::q5_k_scales, groups::q5_k),
        Format::Q6_K => grouped::<_, 16, _, _>(bytes, vector, out, groups::q6_k_scales, groups::q6_k),
        Format::IQ4_NL => grouped::<_, 1, _, _>(bytes, vector, out, groups::no_scales, groups::iq4_nl),
        Format::MXFP4 => grouped::<_, 1, _, _>(bytes, vector, out, groups::no_scales, groups::mxfp4),
        Format::IQ4_XS => grouped::<_, 8, _, _>(bytes, vector, out, groups::iq4_xs_scales, groups::iq4_xs),
        Format::F32 => made(bytes, vector, out, blocks::f32),
        Format::F16 => made(bytes, vector, out, blocks::f16),
        Format::BF16 => made(bytes, vector, out, blocks::bf16),
        Format::F64 => made(bytes, vector, out, blocks::f64),
        Format::I8 => made(bytes, vector, out, blocks::i8),
        Format::I16 => made(bytes, vector, out, blocks::i16),
        Format::I32 => made(bytes, vector, out, blocks::i32),
        Format::I64 => made(bytes, vector, out, blocks::i64),
        Format::Q2_K => made(bytes, vector, out, k_blocks::q2_k),
        Format::Q3_K => made(bytes, vector, out, k_blocks::q3_k),
    }
}

/// Rows of blocks whose numbers are small integers: those are multiplied, and scaled once for each group.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "of iterators the compiler makes no vector instructions here")]
fn grouped<const BYTES: usize, const GROUPS: usize, const SIZE: usize, Scales>(
    bytes: &[u8],
    vector: &[f32],
    out: &mut [f32],
    scales: impl Fn(&[u8; BYTES]) -> Scales,
    group: impl Fn(&[u8; BYTES], &Scales, usize) -> Group<SIZE>,
) {
    let (factors, sums) = groups_of::<SIZE>(vector);
    let (factors, sums) = (factors.as_chunks::<GROUPS>().0, sums.as_chunks::<GROUPS>().0);
    let (blocks, mut ahead) = ahead::<BYTES>(bytes);
    for (row, out) in blocks.chunks_exact(factors.len().max(1)).zip(out) {
        let (mut lanes, mut offset) = ([0.0_f32; LANES], 0.0_f32);
        for ((block, factors), sums) in row.iter().zip(factors).zip(sums) {
            ask_for(ahead.next().map(<[u8; BYTES]>::as_slice));
            let scales = scales(block);
            for i in 0..GROUPS {
                let (group, factors) = (group(block, &scales, i), &factors[i]);
                let mut products = [0.0_f32; LANES];
                for lane in 0..LANES {
                    products[lane] = f32::from(group.numbers[lane]) * factors[lane];
                }
                if SIZE > LANES {
                    for lane in 0..LANES {
                        let at = LANES + lane;
                        products[lane] = f32::from(group.numbers[at]).mul_add(factors[at], products[lane]);
                    }
                }
                for lane in 0..LANES {
                    lanes[lane] = group.scale.mul_add(products[lane], lanes[lane]);
                }
                if let Some(of_group) = group.offset {
                    offset = of_group.mul_add(sums[i], offset);
                }
            }
        }
        *out = added_up(lanes) + offset;
    }
}

/// A vector in groups, and what each adds up to, which is what an offset is multiplied with.
#[inline(always)]
pub(super) fn groups_of<const SIZE: usize>(vector: &[f32]) -> (&[[f32; SIZE]], Vec<f32>) {
    let (groups, _) = vector.as_chunks::<SIZE>();
    (groups, groups.iter().map(|group| group.iter().sum()).collect())
}

/// Rows of any blocks: their numbers are made first.
#[inline(always)]
fn made<const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    vector: &[f32],
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let row_bytes = vector.len() / ELEMENTS * BYTES;
    for (row, out) in bytes.chunks_exact(row_bytes.max(1)).zip(out) {
        let mut sums = [[0.0_f32; LANES]; 2];
        let mut numbers = [0.0_f32; STRETCH];
        for (bytes, factors) in row.chunks(STRETCH / ELEMENTS * BYTES).zip(vector.chunks(STRETCH)) {
            // First the numbers, then their products: two simple loops, each of which becomes vector instructions.
            for (bytes, numbers) in bytes.as_chunks().0.iter().zip(numbers.as_chunks_mut().0) {
                block(bytes, numbers);
            }
            multiplied(&mut sums, &numbers, factors);
        }
        *out = both_added_up(sums);
    }
}

/// Adds products to the sums of a row: pairs of vectors first, then the numbers of what is left, in the lanes from the first on.
#[inline(always)]
pub(super) fn multiplied(sums: &mut [[f32; LANES]; 2], numbers: &[f32], factors: &[f32]) {
    let (wide, rest) = factors.as_chunks::<{ 2 * LANES }>();
    for (numbers, factors) in numbers.as_chunks::<{ 2 * LANES }>().0.iter().zip(wide) {
        let pairs = numbers.as_chunks().0.iter().zip(factors.as_chunks().0);
        for (sums, (numbers, factors)) in sums.iter_mut().zip(pairs) {
            let (numbers, factors): (&[f32; LANES], &[f32; LANES]) = (numbers, factors);
            for lane in 0..LANES {
                sums[lane] = numbers[lane].mul_add(factors[lane], sums[lane]);
            }
        }
    }
    let others = numbers.iter().skip(wide.len() * 2 * LANES).zip(rest);
    for (sum, (number, factor)) in sums.as_flattened_mut().iter_mut().zip(others) {
        *sum = number.mul_add(*factor, *sum);
    }
}

#[inline(always)]
pub(super) fn both_added_up([mut first, second]: [[f32; LANES]; 2]) -> f32 {
    for (first, second) in first.iter_mut().zip(second) {
        *first += second;
    }
    added_up(first)
}

#[cfg(test)]
mod tests {
    use super::{super::dequantise, *};

    #[test]
    fn a_product_is_that_of_the_numbers_themselves() {
        for format in Format::all() {
            let block = format.elements_per_block();
            let (columns, rows) = ((block * 3).max(40) as usize / block as usize * block as usize, 5);
            let length = format.bytes((columns * rows) as u64).unwrap() as usize;
            // Any bytes are numbers, but scales must not be infinite: f16 of 0x3?.. and f32 of 0x3?......
            let bytes: Vec<u8> = (0..length).map(|i| (i * 37 % 61) as u8).collect();
            let vector: Vec<f32> = (0..columns).map(|i| (i * 29 % 17) as f32 / 8.0 - 1.0).collect();
            let mut numbers = vec![0.0; columns * rows];
            dequantise(format, &bytes, &mut numbers).unwrap();
            let mut found = vec![f32::NAN; rows];
            product(format, &bytes, &vector, &mut found).unwrap();
            for (row, found) in numbers.chunks(columns).zip(found) {
                let terms = || row.iter().zip(&vector).map(|(a, b)| f64::from(*a) * f64::from(*b));
                let (exact, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                assert!((f64::from(found) - exact).abs() <= 1e-6 * size, "{format}: {found}, {exact}");
                assert!(size > 0.0 && size.is_finite(), "{format}: {size}");
            }
        }
    }

    #[test]
    fn a_product_has_the_same_bits_on_every_processor() {
        for format in Format::all() {
            let block = format.elements_per_block() as usize;
            for columns in [block, 3 * block, 41 * block, 160_usize.next_multiple_of(block)] {
                let (rows, mut seed) = (7, 1_u32);
                let length = format.bytes((columns * rows) as u64).unwrap() as usize;
                let mut random = || {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    seed >> 16
                };
                // Bytes below 0x47 make no scale, and no number, infinite in f32.
                let bytes: Vec<u8> = (0..length).map(|_| (random() % 0x47) as u8).collect();
                let vector: Vec<f32> = (0..columns).map(|_| random() as f32 / 4096.0 - 8.0).collect();
                let (mut here, mut anywhere) = (vec![f32::NAN; rows], vec![f32::NAN; rows]);
                product(format, &bytes, &vector, &mut here).unwrap();
                everywhere(format, &bytes, &vector, &mut anywhere);
                let bits = |numbers: &[f32]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
                assert!(here.iter().all(|number| number.is_finite()), "{format}: {here:?}");
                assert_eq!(bits(&here), bits(&anywhere), "{format}, {columns} columns");
            }
        }
    }

    #[test]
    fn other_lengths_are_refused() {
        let mut out = [0.0; 2];
        assert!(product(Format::Q4_0, &[0; 36], &[0.0; 32], &mut out).is_ok());
        assert!(matches!(product(Format::Q4_0, &[0; 35], &[0.0; 32], &mut out), Err(GgufError::Length { .. })));
        // 64 elements are two whole blocks, but no two rows of whole blocks.
        assert!(matches!(product(Format::Q4_0, &[0; 36], &[0.0; 48], &mut out), Err(GgufError::Length { .. })));
        assert!(product(Format::Q4_0, &[], &[], &mut out).is_ok());
    }
}
