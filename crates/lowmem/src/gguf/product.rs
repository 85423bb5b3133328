//! Products of a stored matrix with a vector, without making the matrix.

use multiversion::multiversion;

use super::{
    Format, GgufError, block_kernels as blocks,
    groups::{self, Group},
    k_kernels as k_blocks,
    numbers::Single,
};

/// Partial sums of a row that are kept side by side: four vectors of the widest instructions, two of blocks of 32.
const LANES: usize = 32;
/// Elements that are made before they are multiplied: those of the largest block, which stay in the nearest cache.
const STRETCH: usize = 256;

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
    match format {
        Format::Q4_0 => grouped::<_, 1, _, _>(bytes, vector, out, groups::no_scales, groups::q4_0),
        Format::Q4_1 => grouped::<_, 1, _, _>(bytes, vector, out, groups::no_scales, groups::q4_1),
        Format::Q5_0 => grouped::<_, 1, _, _>(bytes, vector, out, groups::no_scales, groups::q5_0),
        Format::Q5_1 => grouped::<_, 1, _, _>(bytes, vector, out, groups::no_scales, groups::q5_1),
        Format::Q8_0 => grouped::<_, 1, _, _>(bytes, vector, out, groups::no_scales, groups::q8_0),
        Format::Q4_K => grouped::<_, 8, _, _>(bytes, vector, out, groups::q4_k_scales, groups::q4_k),
        Format::Q5_K => grouped::<_, 8, _, _>(bytes, vector, out, groups::q5_k_scales, groups::q5_k),
        Format::Q6_K => grouped::<_, 16, _, _>(bytes, vector, out, groups::q6_k_scales, groups::q6_k),
        Format::F32 => made(bytes, vector, out, blocks::f32::<Single>),
        Format::F16 => made(bytes, vector, out, blocks::f16::<Single>),
        Format::BF16 => made(bytes, vector, out, blocks::bf16::<Single>),
        Format::F64 => made(bytes, vector, out, blocks::f64::<Single>),
        Format::I8 => made(bytes, vector, out, blocks::i8::<Single>),
        Format::I16 => made(bytes, vector, out, blocks::i16::<Single>),
        Format::I32 => made(bytes, vector, out, blocks::i32::<Single>),
        Format::I64 => made(bytes, vector, out, blocks::i64::<Single>),
        Format::Q2_K => made(bytes, vector, out, k_blocks::q2_k::<Single>),
        Format::Q3_K => made(bytes, vector, out, k_blocks::q3_k::<Single>),
        Format::IQ4_NL => made(bytes, vector, out, blocks::iq4_nl::<Single>),
        Format::IQ4_XS => made(bytes, vector, out, k_blocks::iq4_xs::<Single>),
        Format::MXFP4 => made(bytes, vector, out, blocks::mxfp4::<Single>),
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
    let (factors, _) = vector.as_chunks::<SIZE>();
    let sums: Vec<f32> = factors.iter().map(|group| group.iter().sum()).collect();
    let (factors, sums) = (factors.as_chunks::<GROUPS>().0, sums.as_chunks::<GROUPS>().0);
    for (row, out) in bytes.as_chunks::<BYTES>().0.chunks_exact(factors.len().max(1)).zip(out) {
        let (mut lanes, mut offset) = ([0.0_f32; 16], 0.0_f32);
        for ((block, factors), sums) in row.iter().zip(factors).zip(sums) {
            let scales = scales(block);
            for i in 0..GROUPS {
                let (group, factors) = (group(block, &scales, i), &factors[i]);
                let mut products = [0.0_f32; 16];
                for half in 0..SIZE / 16 {
                    for lane in 0..16 {
                        let at = half * 16 + lane;
                        products[lane] += f32::from(group.numbers[at]) * factors[at];
                    }
                }
                for lane in 0..16 {
                    lanes[lane] += group.scale * products[lane];
                }
                offset += group.offset * sums[i];
            }
        }
        *out = lanes.iter().sum::<f32>() + offset;
    }
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
        let mut sums = [0.0_f32; LANES];
        let mut numbers = [0.0_f32; STRETCH];
        for (bytes, factors) in row.chunks(STRETCH / ELEMENTS * BYTES).zip(vector.chunks(STRETCH)) {
            // First the numbers, then their products: two simple loops, each of which becomes vector instructions.
            for (bytes, numbers) in bytes.as_chunks().0.iter().zip(numbers.as_chunks_mut().0) {
                block(bytes, numbers);
            }
            let (wide, rest) = factors.as_chunks::<LANES>();
            for (numbers, factors) in numbers.as_chunks::<LANES>().0.iter().zip(wide) {
                for ((sum, number), factor) in sums.iter_mut().zip(numbers).zip(factors) {
                    *sum += number * factor;
                }
            }
            let others = numbers.iter().skip(wide.len() * LANES).zip(rest);
            for (sum, (number, factor)) in sums.iter_mut().zip(others) {
                *sum += number * factor;
            }
        }
        *out = sums.iter().sum();
    }
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
    fn other_lengths_are_refused() {
        let mut out = [0.0; 2];
        assert!(product(Format::Q4_0, &[0; 36], &[0.0; 32], &mut out).is_ok());
        assert!(matches!(product(Format::Q4_0, &[0; 35], &[0.0; 32], &mut out), Err(GgufError::Length { .. })));
        // 64 elements are two whole blocks, but no two rows of whole blocks.
        assert!(matches!(product(Format::Q4_0, &[0; 36], &[0.0; 48], &mut out), Err(GgufError::Length { .. })));
        assert!(product(Format::Q4_0, &[], &[], &mut out).is_ok());
    }
}
