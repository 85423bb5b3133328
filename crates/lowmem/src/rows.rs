//! Rows of matrices in tensors, multiplied and added up without libtorch: for a few thousand numbers its calls, and the threads
//! that it wakes, cost more than the work.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use multiversion::multiversion;
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    ahead::ask_for,
    gguf::{Format, bf16_to_f32, dequantise, f16_to_f32, f32_to_bf16, f32_to_f16, product},
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

/// The numbers of a tensor on the CPU in f32, bf16 or f16; `None` for others. Where it is not contiguous, libtorch puts it in order.
///
/// # Errors
///
/// That memory is full.
pub fn numbers_of(tensor: &Tensor) -> Result<Option<Vec<f32>>, TchError> {
    let format = match tensor.f_kind()? {
        Kind::Float => Format::F32,
        Kind::BFloat16 => Format::BF16,
        Kind::Half => Format::F16,
        _ => return Ok(None),
    };
    let row = tensor.f_contiguous()?.f_view([1, tensor.numel() as i64])?;
    Ok(if format == Format::F32 { as_f32::<f32>(&row, format) } else { as_f32::<u16>(&row, format) })
}

fn as_f32<T: Number + bytemuck::NoUninit>(row: &Tensor, format: Format) -> Option<Vec<f32>> {
    let matrices = matrices::<T>(row)?;
    let stored = matrices.first()?;
    let mut numbers = vec![0.0; stored.len()];
    dequantise(format, bytemuck::cast_slice(stored), &mut numbers).ok()?;
    Some(numbers)
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

/// Threads share products with one vector, and give back a few ranges of numbers each.
type Shared = Option<Vec<Vec<f32>>>;

static TEAM: Team<Shared> = Team::new();

/// The most pieces that the rows of a turned matrix are added in. Each piece is one range of memory, which a thread reads from its
/// beginning to its end: where threads shared the columns, what a processor brings ahead belonged to another, and products took a
/// tenth to a quarter longer (AMD EPYC).
const PIECES: usize = 8;

/// The product of a matrix, `[out, in]` or, with `turned`, `[in, out]`, with a vector of `in` numbers: `out` numbers, computed in f32 by
/// all processors. The bits depend neither on them nor on how many there are.
///
/// `None` where the matrix is not f32, bf16 or f16 on the CPU with its rows in one piece each, or the lengths do not fit.
pub fn matrix_times_vector(matrix: &Tensor, turned: bool, vector: &Arc<[f32]>) -> Option<Vec<f32>> {
    let (n, d) = sizes(matrix).filter(|_| matrix.dim() == 2)?;
    if n == 0 || d == 0 || vector.len() != if turned { n } else { d } {
        return None;
    }
    let worth = (n * d / WORTH_A_THREAD as usize).max(1);
    let threads = worth.min(Team::<Shared>::size());
    if turned { turned_times_vector(matrix, vector, worth, threads) } else { rows_shared(matrix, vector, threads) }
}

/// Each thread multiplies rows of its own.
fn rows_shared(matrix: &Tensor, vector: &Arc<[f32]>, threads: usize) -> Option<Vec<f32>> {
    let (n, _) = sizes(matrix)?;
    let share = n.div_ceil(threads);
    let part = |from: usize| matrix.f_narrow(0, from as i64, share.min(n - from) as i64);
    // A tensor may be sent to a thread, but not shared between them.
    let parts: Vec<_> = (0..n).step_by(share).map(|from| part(from).map(Mutex::new)).collect::<Result<_, _>>().ok()?;
    let (count, vector) = (parts.len(), Arc::clone(vector));
    let work = move |index: usize| {
        let part = parts.get(index)?.lock().unwrap_or_else(PoisonError::into_inner);
        Some(vec![rows_times_vectors(&part, &vector)?])
    };
    Some(shared(count, work)?.concat())
}

/// Each thread adds rows of its own, in pieces that do not depend on how many threads there are.
fn turned_times_vector(matrix: &Tensor, vector: &Arc<[f32]>, worth: usize, threads: usize) -> Option<Vec<f32>> {
    let (n, d) = sizes(matrix)?;
    // Whole groups of rows that are added at once.
    let piece = n.div_ceil(worth.min(PIECES)).next_multiple_of(TOGETHER);
    // Where there are more threads than pieces, they share columns as well, which are sums of their own.
    let width = d.div_ceil(threads.div_ceil(n.div_ceil(piece)));
    let piece =
        |from: usize| (0..n).step_by(piece).map(move |first| (first..n.min(first + piece), from..d.min(from + width)));
    let pieces: Arc<[(Range<usize>, Range<usize>)]> = (0..d).step_by(width).flat_map(piece).collect();
    let share = pieces.len().div_ceil(threads);
    let count = pieces.len().div_ceil(share);
    // A tensor may be sent to a thread, but not shared between them.
    let matrices: Vec<_> = (0..count).map(|_| Mutex::new(matrix.shallow_clone())).collect();
    let (of_all, vector) = (Arc::clone(&pieces), Arc::clone(vector));
    let work = move |index: usize| {
        let matrix = matrices.get(index)?.lock().unwrap_or_else(PoisonError::into_inner);
        sums_of_pieces(&matrix, &vector, of_all.chunks(share).nth(index)?)
    };
    let sums = shared(count, work)?;
    let mut product = vec![0.0; d];
    for ((_, columns), sums) in pieces.iter().zip(sums) {
        product.get_mut(columns.clone())?.iter_mut().zip(sums).for_each(|(all, sum)| *all += sum);
    }
    Some(product)
}

/// What all give back, in the order of the shares.
fn shared(count: usize, work: impl Fn(usize) -> Shared + Send + Sync + 'static) -> Shared {
    let parts = if count == 1 { vec![work(0)] } else { TEAM.share(count, Arc::new(work)) };
    Some(parts.into_iter().collect::<Option<Vec<_>>>()?.into_iter().flatten().collect())
}

/// The sums of some rows of `[n, d]`, which need not follow one another, with their weights, in some columns: for each piece.
fn sums_of_pieces(matrix: &Tensor, weights: &[f32], pieces: &[(Range<usize>, Range<usize>)]) -> Shared {
    match matrix.f_kind().ok()? {
        Kind::Float => sums_of(matrix, weights, pieces, add_f32),
        Kind::BFloat16 => sums_of(matrix, weights, pieces, add_bf16),
        Kind::Half => sums_of(matrix, weights, pieces, add_f16),
        _ => None,
    }
}

fn sums_of<T: Number>(
    matrix: &Tensor,
    weights: &[f32],
    pieces: &[(Range<usize>, Range<usize>)],
    add: fn(&[&[T]], &[f32], &mut [f32]),
) -> Shared {
    let (_, d) = sizes(matrix)?;
    let lie_apart = !matrix.is_contiguous();
    let apart = if lie_apart { Some(matrix.f_unsqueeze(1).ok()?) } else { None };
    let memory = matrices::<T>(apart.as_ref().unwrap_or(matrix))?;
    let sums = pieces.iter().map(|(terms, columns)| {
        let part: Option<Vec<&[T]>> = if lie_apart {
            memory.get(terms.clone())?.iter().map(|row| row.get(columns.clone())).collect()
        } else {
            let rows = memory.first()?.get(terms.start * d..terms.end * d)?;
            rows.chunks_exact(d).map(|row| row.get(columns.clone())).collect()
        };
        let mut sums = vec![0.0; columns.len()];
        add(&part?, weights.get(terms.clone())?, &mut sums);
        Some(sums)
    });
    sums.collect()
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

/// The most sums that stay in a processor's first cache while rows pass through it: 16 KiB, half of the smallest.
const NEAR: usize = 4096;

/// Adds rows with their weights, one after the other in every element. On AMD EPYC, rows of 768 to 3072 numbers in bf16 took a tenth less
/// time one by one than together, longer ones an eighth to a quarter more.
#[inline(always)]
fn add<T: Copy>(rows: &[&[T]], weights: &[f32], out: &mut [f32], number: impl Fn(T) -> f32 + Copy) {
    if out.len() > NEAR { add_together(rows, weights, out, number) } else { add_one_by_one(rows, weights, out, number) }
}

/// Elements of a row that are added before the next are asked for.
const AT_ONCE: usize = 64;

/// Bytes of rows that are asked for before they are needed. Between 256 and 2048 make no difference.
const AHEAD: usize = 1024;

/// A row at a time, as it lies in memory, which is asked for what follows: what a processor brings by itself ends with a page.
#[inline(always)]
fn add_one_by_one<T: Copy>(rows: &[&[T]], weights: &[f32], out: &mut [f32], number: impl Fn(T) -> f32 + Copy) {
    let d = out.len().max(1);
    let (skipped, on) = (AHEAD / size_of::<T>() / d, AHEAD / size_of::<T>() % d);
    for ((index, row), weight) in rows.iter().enumerate().zip(weights) {
        let (this, next) = (rows.get(index + skipped), rows.get(index + skipped + 1));
        for (begin, out) in (0..).step_by(AT_ONCE).zip(out.chunks_mut(AT_ONCE)) {
            let (row_ahead, from) = if begin + on < d { (this, begin + on) } else { (next, begin + on - d) };
            ask_for(row_ahead.and_then(|row| row.get(from..d.min(from + AT_ONCE))));
            add_weighted(out, row.get(begin..).unwrap_or_default(), *weight, number);
        }
    }
}

/// Rows that are added at once.
const TOGETHER: usize = 8;

/// Some rows at a time, whose sums stay in registers meanwhile: all of them at once would push each other out of the first cache.
#[inline(always)]
fn add_together<T: Copy>(rows: &[&[T]], weights: &[f32], out: &mut [f32], number: impl Fn(T) -> f32 + Copy) {
    let ((groups, rest), (group_weights, rest_weights)) =
        (rows.as_chunks::<TOGETHER>(), weights.as_chunks::<TOGETHER>());
    for (rows, weights) in groups.iter().zip(group_weights) {
        let (blocks, last) = out.as_chunks_mut::<AT_ONCE>();
        let begin_of_last = blocks.len() * AT_ONCE;
        for (begin, out) in (0..).step_by(AT_ONCE).zip(blocks) {
            let mut sums = *out;
            for (row, weight) in rows.iter().zip(weights) {
                let Some(part) = row.get(begin..).and_then(|row| row.first_chunk::<AT_ONCE>()) else { continue };
                add_weighted(&mut sums, part, *weight, number);
            }
            *out = sums;
        }
        for (row, weight) in rows.iter().zip(weights) {
            add_weighted(last, row.get(begin_of_last..).unwrap_or_default(), *weight, number);
        }
    }
    for (row, weight) in rest.iter().zip(rest_weights) {
        add_weighted(out, row, *weight, number);
    }
}

#[inline(always)]
fn add_weighted<T: Copy>(out: &mut [f32], row: &[T], weight: f32, number: impl Fn(T) -> f32) {
    for (out, element) in out.iter_mut().zip(row) {
        *out = weight.mul_add(number(*element), *out);
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
        for (out, width) in [(7, 5), (1, 300), (700, 301), (513, 769), (4500, 21)] {
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
    fn the_bits_do_not_depend_on_how_many_threads_there_are() {
        tch::manual_seed(2);
        for (out, width) in [(300, 770), (1030, 130), (5, 9), (1, 1)] {
            let (matrix, x) = (random(&[width, out]), random(&[width]));
            let vector: Arc<[f32]> = numbers(&x).into();
            for matrix in [matrix.shallow_clone(), matrix.narrow(1, 0, out / 2 + 1), matrix.to_kind(Kind::BFloat16)] {
                let worth = (matrix.numel() / WORTH_A_THREAD as usize).max(1);
                let product = |threads: usize| turned_times_vector(&matrix, &vector, worth, threads).unwrap();
                for threads in [2, 3, 8, 9, 40] {
                    assert_eq!(product(threads), product(1), "{threads} threads, {out} x {width}");
                }
            }
        }
    }

    #[test]
    fn numbers_become_a_tensor_of_their_shape() {
        let some = [1.0, -2.125, 3.3, 4.0e-9, 5.0e4, f32::NAN];
        let exact = Tensor::from_slice(&some).view([2, 1, 3]);
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let (found, exact) = (tensor_of(&some, &[2, 1, 3], kind).unwrap(), exact.to_kind(kind));
            assert_eq!((found.kind(), found.size()), (kind, exact.size()));
            assert!(found.allclose(&exact, 0.0, 0.0, true), "{kind:?}");
            for view in [exact.shallow_clone(), exact.transpose(0, 2), exact.narrow(2, 1, 1), exact.narrow(0, 0, 0)] {
                let expected = view.to_kind(Kind::Float).contiguous();
                let back = Tensor::from_slice(&numbers_of(&view).unwrap().unwrap());
                assert!(back.view_as(&expected).allclose(&expected, 0.0, 0.0, true), "{kind:?}");
            }
        }
        assert!(numbers_of(&exact.to_kind(Kind::Double)).unwrap().is_none());
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
