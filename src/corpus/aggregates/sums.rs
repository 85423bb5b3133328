//! The sums of a unit.

use std::cmp::Ordering;

use tch::{Device, Kind, TchError, Tensor};

use crate::corpus::{sink::Batch, tensor_file::Stored};

/// Tokens of a context, the one it is of included.
pub(super) const CONTEXT: usize = 16;
/// Bins of a sign: eight to the octave, from 2^-20 to 2^20.
const BINS: i64 = 320;
/// Bins of one feature: negative ones, that of numbers next to zero, positive ones.
pub(super) const ALL_BINS: usize = 2 * BINS as usize + 1;

/// The sums of one name's values over tokens.
#[derive(Debug)]
pub(super) struct Sums {
    name: String,
    width: usize,
    count: i64,
    norm_sum: f64,
    /// `[d]`, f64; `None` before the first batch.
    parts: Option<Parts>,
    covariance: bool,
    top: usize,
    /// For each feature, the largest first.
    largest: Vec<Vec<Largest>>,
}

/// What needs all tokens of a batch at once.
#[derive(Debug)]
struct Parts {
    /// `[d]`.
    sum: Tensor,
    /// `[d]`.
    squares: Tensor,
    /// `[d, d]`.
    products: Option<Tensor>,
    /// `[d * bins]`, whole numbers.
    histogram: Tensor,
    /// `[bins]`, whole numbers.
    norms: Tensor,
}

/// A large value and where it was.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Largest {
    pub(super) value: f32,
    pub(super) text: i64,
    pub(super) position: i64,
    pub(super) context: Vec<i64>,
}

/// The larger first; NaN last.
pub(super) fn order(one: f32, other: f32) -> Ordering {
    other.partial_cmp(&one).unwrap_or_else(|| one.is_nan().cmp(&other.is_nan()))
}

/// A number that stands for those of a bin.
pub(super) fn middle(bin: usize) -> f64 {
    let signed = bin as i64 - BINS;
    let size = ((signed.abs() - 161) as f64 + 0.5) / 8.0;
    if signed == 0 { 0.0 } else { size.exp2().copysign(signed as f64) }
}

/// Which bin each number is in.
fn bins(values: &Tensor) -> Result<Tensor, TchError> {
    let size = values.f_abs()?.f_log2()?.f_mul_scalar(8.0)?.f_floor()?.f_add_scalar(161.0)?;
    // What is next to zero, or no number, is in the middle.
    let size = size.f_clamp(0.0, BINS as f64)?.f_nan_to_num(0.0, BINS as f64, 0.0)?;
    size.f_mul(&values.f_sign()?.f_nan_to_num(0.0, 1.0, -1.0)?)?.f_add_scalar(BINS as f64)?.f_to_kind(Kind::Int64)
}

impl Sums {
    pub(super) fn new(name: &str, width: usize, covariance: bool, top: usize) -> Self {
        let (count, norm_sum, parts, largest) = (0, 0.0, None, vec![Vec::new(); if top > 0 { width } else { 0 }]);
        Self { name: name.to_owned(), width, count, norm_sum, parts, covariance, top, largest }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Adds the tokens of a batch, `[tokens, ...]`.
    pub(super) fn add(&mut self, batch: &Batch, values: &Tensor) -> Result<(), TchError> {
        if batch.tokens() == 0 {
            return Ok(());
        }
        let width = self.width as i64;
        let values = values.f_to_device(Device::Cpu)?.f_reshape([batch.tokens() as i64, width])?;
        let wide = values.f_to_kind(Kind::Double)?;
        let features = Tensor::f_arange(width, (Kind::Int64, Device::Cpu))?.f_mul_scalar(ALL_BINS as i64)?;
        let places = bins(&wide)?.f_add(&features)?.f_flatten(0, -1)?;
        let lengths = wide.f_norm_scalaropt_dim(2.0, [1], false)?;
        let dims = || [0_i64];
        let mut new = Parts {
            sum: wide.f_sum_dim_intlist(&dims()[..], false, Kind::Double)?,
            squares: wide.f_square()?.f_sum_dim_intlist(&dims()[..], false, Kind::Double)?,
            products: None,
            histogram: places.f_bincount::<Tensor>(None, width * ALL_BINS as i64)?,
            norms: bins(&lengths)?.f_bincount::<Tensor>(None, ALL_BINS as i64)?,
        };
        if self.covariance {
            new.products = Some(wide.f_transpose(0, 1)?.f_matmul(&wide)?);
        }
        self.parts = Some(match self.parts.take() {
            None => new,
            Some(old) => Parts {
                sum: old.sum.f_add(&new.sum)?,
                squares: old.squares.f_add(&new.squares)?,
                products: match (old.products, new.products) {
                    (Some(old), Some(new)) => Some(old.f_add(&new)?),
                    _ => None,
                },
                histogram: old.histogram.f_add(&new.histogram)?,
                norms: old.norms.f_add(&new.norms)?,
            },
        });
        self.count += batch.tokens() as i64;
        self.norm_sum += f64::try_from(lengths.f_sum(Kind::Double)?)?;
        if self.top > 0 {
            self.keep_largest(batch, &values.f_to_kind(Kind::Float)?)?;
        }
        Ok(())
    }

    fn keep_largest(&mut self, batch: &Batch, values: &Tensor) -> Result<(), TchError> {
        let some = self.top.min(batch.tokens()) as i64;
        // `[some, d]`, the largest of each feature in this batch.
        let (largest, rows) = values.f_topk(some, 0, true, true)?;
        let largest = Vec::<f32>::try_from(largest.f_transpose(0, 1)?.f_contiguous()?.f_flatten(0, -1)?)?;
        let rows = Vec::<i64>::try_from(rows.f_transpose(0, 1)?.f_contiguous()?.f_flatten(0, -1)?)?;
        let (some, top) = (some as usize, self.top);
        let features = largest.chunks(some).zip(rows.chunks(some));
        for (kept, (values, rows)) in self.largest.iter_mut().zip(features) {
            for (&value, &row) in values.iter().zip(rows) {
                let enters = |last: &Largest| order(value, last.value) == Ordering::Less;
                if kept.len() < top || kept.last().is_some_and(enters) {
                    // Behind those of its size: the first of equal ones stays the first.
                    let place = kept.partition_point(|known| order(known.value, value) != Ordering::Greater);
                    kept.insert(place, largest_at(batch, row as usize, value));
                    kept.truncate(top);
                }
            }
        }
        Ok(())
    }

    /// The tensors of a file.
    pub(super) fn stored(self) -> Result<Vec<Stored>, TchError> {
        let (name, width) = (&self.name, self.width as i64);
        let of = |what: &str| format!("{name}.{what}");
        let floats = |tensor: Option<&Tensor>, length: usize| match tensor {
            Some(tensor) => Vec::<f64>::try_from(tensor.f_flatten(0, -1)?),
            None => Ok(vec![0.0; length]),
        };
        let counts = |tensor: Option<&Tensor>, length: usize| match tensor {
            Some(tensor) => Vec::<i64>::try_from(tensor.f_flatten(0, -1)?),
            None => Ok(vec![0; length]),
        };
        let parts = self.parts.as_ref();
        let bins = ALL_BINS as i64;
        let mut stored = vec![
            Stored::i64(of("count"), [], &[self.count]),
            Stored::f64(of("norm_sum"), [], &[self.norm_sum]),
            Stored::f64(of("sum"), [width], &floats(parts.map(|parts| &parts.sum), self.width)?),
            Stored::f64(of("squares"), [width], &floats(parts.map(|parts| &parts.squares), self.width)?),
            Stored::i64(
                of("histogram"),
                [width, bins],
                &counts(parts.map(|parts| &parts.histogram), self.width * ALL_BINS)?,
            ),
            Stored::i64(of("norms"), [bins], &counts(parts.map(|parts| &parts.norms), ALL_BINS)?),
        ];
        if self.covariance {
            let products = parts.and_then(|parts| parts.products.as_ref());
            let numbers = floats(products, self.width * self.width)?;
            stored.push(Stored::f64(of("products"), [width, width], &numbers));
        }
        if self.top > 0 {
            let kept: Vec<i64> = self.largest.iter().map(|feature| feature.len() as i64).collect();
            let all = || self.largest.iter().flatten();
            let number = [all().count() as i64];
            let texts: Vec<i64> = all().map(|one| one.text).collect();
            let positions: Vec<i64> = all().map(|one| one.position).collect();
            let contexts: Vec<i64> = all().flat_map(|one| one.context.iter().copied()).collect();
            let values: Vec<f32> = all().map(|one| one.value).collect();
            stored.push(Stored::i64(of("top_kept"), [width], &kept));
            stored.push(Stored::i64(of("top_text"), number, &texts));
            stored.push(Stored::i64(of("top_position"), number, &positions));
            stored.push(Stored::i64(of("top_context"), [number[0], CONTEXT as i64], &contexts));
            stored.push(Stored::f32(of("top_values"), number, &values));
        }
        Ok(stored)
    }
}

/// A token of a batch with those before it in its text, as far as the batch has them.
fn largest_at(batch: &Batch, row: usize, value: f32) -> Largest {
    let at = |numbers: &[i32], row: usize| numbers.get(row).copied().unwrap_or(-1);
    let (text, position) = (at(batch.texts(), row), at(batch.positions(), row));
    let context = |back: usize| {
        let before = row.checked_sub(back)?;
        let same = at(batch.texts(), before) == text && at(batch.positions(), before) == position - back as i32;
        same.then(|| batch.ids().get(before).copied()).flatten()
    };
    let context = (0..CONTEXT).rev().map(|back| context(back).unwrap_or(-1)).collect();
    Largest { value, text: text.into(), position: position.into(), context }
}
