//! Rows of matrices in tensors, multiplied and added up without libtorch: for a few thousand numbers its calls, and the threads
//! that it wakes, cost more than the work.

use std::sync::{Arc, Mutex, PoisonError};

use multiversion::multiversion;
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    ahead::ask_for,
    gguf::{Format, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, product},
    read::{Number, matrices, memory},
    team::Team,
};

/// Elements from which a further thread is worth waking.
pub(crate) const WORTH_A_THREAD: i64 = 1 << 15;

/// A tensor of this shape on the CPU, in f32, bf16 or f16 (each number rounded once). What libtorch offers for it wakes all threads
/// where there are many numbers.
///
/// # Errors
///
/// [`TchError::Shape`] where the shape has another number of elements, [`TchError::Kind`] for other dtypes; that memory is full.
pub fn tensor_of(numbers: &[f32], shape: &[i64], kind: Kind) -> Result<Tensor, TchError> {
    let mut fresh = Tensor::f_empty(shape, (kind, Device::Cpu))?;
    if fresh.numel() != numbers.len() {
        return Err(TchError::Shape(format!("{} numbers cannot be a tensor of shape {shape:?}", numbers.len())));
    }
    let written = match kind {
        Kind::Float => written::<f32>(&mut fresh, numbers, |number| number),
        Kind::BFloat16 => written::<u16>(&mut fresh, numbers, f32_to_bf16),
        Kind::Half => written::<u16>(&mut fresh, numbers, f32_to_f16),
        _ => None,
    };
    written.ok_or_else(|| TchError::Kind(format!("numbers cannot be made a tensor of {kind:?}")))?;
    Ok(fresh)
}

fn written<T: Number>(fresh: &mut Tensor, numbers: &[f32], stored: impl Fn(f32) -> T) -> Option<()> {
    for (place, number) in memory::<T>(fresh)?.iter_mut().zip(numbers) {
        place.write(stored(*number));
    }
    Some(())
}

/// The products of all rows of matrices, `[.., n, d]`, with vectors of `d` numbers: `n` for each vector. Each matrix has the same
/// number of vectors, those of the first matrix come first. Computed in f32.
///
/// `None` where the tensor is not f32, bf16 or f16 on the CPU with each matrix in one piece, or the lengths do not fit.
pub fn rows_times_vectors(tensor: &Tensor, vectors: &[f32]) -> Option<Vec<f32>> {
    match tensor.f_kind().ok()? {
        Kind::Float => products::<f32>(tensor, vectors, Format::F32),
        Kind::BFloat16 => products::<u16>(tensor, vectors, Format::BF16),
        Kind::Half => products::<u16>(tensor, vectors, Format::F16),
        _ => None,
    }
}

fn products<T: Number + bytemuck::NoUninit>(tensor: &Tensor, vectors: &[f32], format: Format) -> Option<Vec<f32>> {
    let ((n, d), matrices) = (sizes(tensor)?, matrices::<T>(tensor)?);
    let vectors = whole(vectors, d, matrices.len())?;
    let mut products = vec![0.0_f32; n * vectors.len() / d];
    let each = vectors.chunks_exact(vectors.len() / matrices.len());
    let mut out = products.chunks_exact_mut(n.max(1));
    for (matrix, vectors) in matrices.into_iter().zip(each) {
        for (vector, out) in vectors.chunks_exact(d).zip(&mut out) {
            product(format, bytemuck::cast_slice(matrix), vector, out).ok()?;
        }
    }
    Some(products)
}

/// The threads that share products with one vector.
static TEAM: Team<Option<Vec<f32>>> = Team::new();

/// The product of a matrix, `[out, in]` or, with `turned`, `[in, out]`, with a vector of `in` numbers: `out` numbers, computed in f32 by
/// all processors. The bits depend neither on them nor on how many there are.
///
/// `None` where the matrix is not f32, bf16 or f16 on the CPU with its rows in one piece each, or the lengths do not fit.
pub fn matrix_times_vector(matrix: &Tensor, turned: bool, vector: &Arc<[f32]>) -> Option<Vec<f32>> {
    let (first, second) = matrix.size2().ok()?;
    let (width, out, along) = if turned { (first, second, 1) } else { (second, first, 0) };
    if width != vector.len() as i64 || out == 0 || width == 0 {
        return None;
    }
    let shares = (width * out / WORTH_A_THREAD).clamp(1, Team::<Option<Vec<f32>>>::size() as i64);
    let share = out.div_euclid(shares) + i64::from(out % shares > 0);
    let pieces = (0..out).step_by(share as usize).map(|from| matrix.f_narrow(along, from, share.min(out - from)));
    // A tensor may be sent to a thread, but not shared between them.
    let pieces: Vec<_> = pieces.map(|piece| piece.map(Mutex::new)).collect::<Result<_, _>>().ok()?;
    let (count, vector) = (pieces.len(), Arc::clone(vector));
    let work = move |index: usize| {
        let piece = pieces.get(index)?.lock().unwrap_or_else(PoisonError::into_inner);
        if turned { sum_of_pieces(&piece, &vector) } else { rows_times_vectors(&piece, &vector) }
    };
    if count == 1 {
        return work(0);
    }
    let mut product = Vec::with_capacity(usize::try_from(out).ok()?);
    for part in TEAM.share(count, Arc::new(work)) {
        product.append(&mut part?);
    }
    Some(product)
}

/// The sum of the rows of `[n, d]`, which need not follow one another, with weights.
fn sum_of_pieces(matrix: &Tensor, weights: &[f32]) -> Option<Vec<f32>> {
    let rows = matrix.f_unsqueeze(1).ok()?;
    let mut out = vec![0.0; sizes(matrix)?.1];
    match matrix.f_kind().ok()? {
        Kind::Float => add_f32(&matrices(&rows)?, weights, &mut out),
        Kind::BFloat16 => add_bf16(&matrices(&rows)?, weights, &mut out),
        Kind::Half => add_f16(&matrices(&rows)?, weights, &mut out),
        _ => return None,
    }
    Some(out)
}

/// Sums of the rows of matrices, `[.., n, d]`, with weights: `n` of them, and `d` numbers, for each sum. Each matrix has the same
/// number of sums, those of the first matrix come first. Computed in f32.
///
/// `None` as for [`rows_times_vectors`].
pub fn sums_of_rows(tensor: &Tensor, weights: &[f32]) -> Option<Vec<f32>> {
    match tensor.f_kind().ok()? {
        Kind::Float => sums(tensor, weights, add_f32),
        Kind::BFloat16 => sums(tensor, weights, add_bf16),
        Kind::Half => sums(tensor, weights, add_f16),
        _ => None,
    }
}

fn sums<T: Number>(tensor: &Tensor, weights: &[f32], add: fn(&[&[T]], &[f32], &mut [f32])) -> Option<Vec<f32>> {
    let ((n, d), matrices) = (sizes(tensor)?, matrices::<T>(tensor)?);
    let weights = whole(weights, n, matrices.len())?;
    let mut sums = vec![0.0_f32; d * weights.len() / n];
    let each = weights.chunks_exact(weights.len() / matrices.len());
    let mut out = sums.chunks_exact_mut(d.max(1));
    for (matrix, weights) in matrices.into_iter().zip(each) {
        let rows: Vec<&[T]> = matrix.chunks_exact(d.max(1)).collect();
        for (weights, out) in weights.chunks_exact(n).zip(&mut out) {
            add(&rows, weights, out);
        }
    }
    Some(sums)
}

/// `n` and `d` of `[.., n, d]`.
fn sizes(tensor: &Tensor) -> Option<(usize, usize)> {
    let size = tensor.size();
    let [.., n, d] = size.as_slice() else { return None };
    Some((usize::try_from(*n).ok()?, usize::try_from(*d).ok()?))
}

/// The same numbers, if they are as many whole groups of `size` for each of `count`.
fn whole(numbers: &[f32], size: usize, count: usize) -> Option<&[f32]> {
    let unit = size.checked_mul(count).filter(|unit| *unit > 0)?;
    Some(numbers).filter(|numbers| !numbers.is_empty() && numbers.len().is_multiple_of(unit))
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx+avx2+f16c+fma"), dispatcher = "direct")]
fn add_f32(rows: &[&[f32]], weights: &[f32], out: &mut [f32]) {
    add(rows, weights, out, |number| number);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx+avx2+f16c+fma"), dispatcher = "direct")]
fn add_bf16(rows: &[&[u16]], weights: &[f32], out: &mut [f32]) {
    add(rows, weights, out, bf16_to_f32);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx+avx2+f16c+fma"), dispatcher = "direct")]
fn add_f16(rows: &[&[u16]], weights: &[f32], out: &mut [f32]) {
    add(rows, weights, out, f16_to_f32);
}

/// Elements of a row that are added before the next are asked for.
const AT_ONCE: usize = 64;

/// Adds rows with their weights, one after the other; four at a time, so that `out` is read and written less often.
#[inline(always)]
fn add<T: Copy>(rows: &[&[T]], weights: &[f32], out: &mut [f32], number: impl Fn(T) -> f32 + Copy) {
    let ((fours, rest), (four_weights, rest_weights)) = (rows.as_chunks::<4>(), weights.as_chunks::<4>());
    for (index, (four, weights)) in fours.iter().zip(four_weights).enumerate() {
        // Rows in f32 come as fast as memory gives them anyway: there it cost a twentieth, of half the width it saved as much.
        let next = fours.get(index + 1).filter(|_| size_of::<T>() < 4).map_or(&[] as &[&[T]], |next| next);
        for (begin, out) in (0..).step_by(AT_ONCE).zip(out.chunks_mut(AT_ONCE)) {
            next.iter().for_each(|row| ask_for(row.get(begin..begin + out.len())));
            add_four(four.map(|row| row.get(begin..).unwrap_or_default()), weights, out, number);
        }
    }
    for (row, weight) in rest.iter().zip(rest_weights) {
        for (out, element) in out.iter_mut().zip(*row) {
            *out = weight.mul_add(number(*element), *out);
        }
    }
}

#[inline(always)]
fn add_four<T: Copy>([a, b, c, d]: [&[T]; 4], weights: &[f32; 4], out: &mut [f32], number: impl Fn(T) -> f32) {
    for ((((out, a), b), c), d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        let two = weights[1].mul_add(number(*b), weights[0].mul_add(number(*a), *out));
        *out = weights[3].mul_add(number(*d), weights[2].mul_add(number(*c), two));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    #[test]
    fn they_are_libtorch_s_products_also_of_views() {
        tch::manual_seed(0);
        let whole = random(&[3, 50, 36]);
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let whole = whole.to_kind(kind);
            for (matrices, vectors) in [(whole.narrow(1, 4, 21), 2), (whole.shallow_clone(), 1)] {
                let wide = matrices.to_kind(Kind::Float);
                let factors = random(&[3, vectors, 36]);
                let exact = factors.matmul(&wide.transpose(1, 2));
                let found = Tensor::from_slice(&rows_times_vectors(&matrices, &numbers(&factors)).unwrap());
                assert!(found.view_as(&exact).allclose(&exact, 1e-5, 1e-5, false), "{kind:?}");
                let weights = random(&[3, vectors, matrices.size()[1]]);
                let exact = weights.matmul(&wide);
                let found = Tensor::from_slice(&sums_of_rows(&matrices, &numbers(&weights)).unwrap());
                assert!(found.view_as(&exact).allclose(&exact, 1e-5, 1e-5, false), "{kind:?}");
            }
        }
    }

    #[test]
    fn a_matrix_is_multiplied_whichever_way_it_lies_and_however_large() {
        tch::manual_seed(1);
        for (out, width) in [(7, 5), (1, 300), (700, 301), (513, 769)] {
            for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
                let (matrix, x) = (random(&[out, width]).to_kind(kind), random(&[width]));
                let exact = matrix.to_kind(Kind::Double).matmul(&x.to_kind(Kind::Double)).to_kind(Kind::Float);
                let vector: Arc<[f32]> = numbers(&x).into();
                let turned = matrix.tr().contiguous();
                for (matrix, turned) in [(&matrix, false), (&turned, true)] {
                    let found = Tensor::from_slice(&matrix_times_vector(matrix, turned, &vector).unwrap());
                    assert!(found.allclose(&exact, 1e-4, 1e-4, false), "{out} x {width}, {kind:?}, {turned}");
                }
                assert!(matrix_times_vector(&matrix, true, &vector).is_none() || out == width);
            }
        }
        let (matrix, vector): (_, Arc<[f32]>) = (random(&[3, 4]), vec![0.0; 4].into());
        assert!(matrix_times_vector(&matrix.to_kind(Kind::Double), false, &vector).is_none());
        assert!(matrix_times_vector(&random(&[4, 3]).tr(), false, &vector).is_none());
    }

    #[test]
    fn numbers_become_a_tensor_of_their_shape() {
        let some = [1.0, -2.125, 3.3, 4.0e-9, 5.0e4, f32::NAN];
        let exact = Tensor::from_slice(&some).view([2, 1, 3]);
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let (found, exact) = (tensor_of(&some, &[2, 1, 3], kind).unwrap(), exact.to_kind(kind));
            assert_eq!((found.kind(), found.size()), (kind, exact.size()));
            assert!(found.allclose(&exact, 0.0, 0.0, true), "{kind:?}");
        }
        assert!(tensor_of(&[1.0, 2.0], &[3], Kind::Float).is_err());
        assert!(tensor_of(&[1.0, 2.0], &[2], Kind::Double).is_err());
        assert_eq!(tensor_of(&[], &[0, 3], Kind::Float).unwrap().size(), [0, 3]);
    }

    #[test]
    fn what_does_not_fit_is_left_to_libtorch() {
        let matrices = random(&[2, 5, 4]);
        assert!(rows_times_vectors(&matrices, &[0.0; 8]).is_some());
        for length in [0, 4, 7] {
            assert!(rows_times_vectors(&matrices, &vec![0.0; length]).is_none());
        }
        assert!(sums_of_rows(&matrices, &[0.0; 8]).is_none());
        assert!(rows_times_vectors(&matrices.transpose(1, 2), &[0.0; 10]).is_none());
        assert!(rows_times_vectors(&matrices.to_kind(Kind::Double), &[0.0; 8]).is_none());
        assert!(rows_times_vectors(&matrices.narrow(1, 0, 0), &[0.0; 8]).is_some_and(|products| products.is_empty()));
        assert!(sums_of_rows(&matrices.narrow(1, 0, 0), &[]).is_none());
    }
}
