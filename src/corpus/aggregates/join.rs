//! From the sums of units to what the corpus has.

use std::collections::HashMap;

use super::sums::{ALL_BINS, CONTEXT, middle, order};
use crate::corpus::{
    error::{Error, Result},
    output::Output,
    place::Place,
    tensor_file::{self, Stored},
};

/// The parts of the tokens below which quantiles lie.
const QUANTILES: [f64; 9] = [0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999];

/// The sums of one name over all units.
#[derive(Default)]
struct Total {
    width: usize,
    count: i64,
    norm_sum: f64,
    sum: Vec<f64>,
    squares: Vec<f64>,
    products: Option<Vec<f64>>,
    histogram: Vec<i64>,
    norms: Vec<i64>,
    /// For each feature, the largest first.
    top: Option<Vec<Vec<Top>>>,
}

/// A large value: value, unit, text, position, context.
type Top = (f32, i64, i64, i64, Vec<i64>);

/// Puts the sums of units together, in their order, and writes `aggregates.safetensors`.
pub(in crate::corpus) fn join(folder: &Place, names: &[String], top: usize, units: &[(usize, u64)]) -> Result<()> {
    let mut totals: Vec<Total> = names.iter().map(|_| Total::default()).collect();
    for &(unit, bytes) in units {
        let object = folder.join(&Output::Aggregates.object_name(unit));
        let mut tensors = tensor_file::decode(&object, bytes)?;
        for (name, total) in names.iter().zip(&mut totals) {
            total.add(name, unit, top, &mut tensors).ok_or_else(|| Error::Object {
                place: object.to_string(),
                problem: format!("lacks the sums of {name}"),
            })?;
        }
    }
    let quantiles = QUANTILES.len() as i64;
    let mut stored = vec![Stored::f64("quantiles", [quantiles], &QUANTILES)];
    for (name, total) in names.iter().zip(totals) {
        stored.extend(total.finish(name, top));
    }
    // Wide numbers first; the narrow ones are the last of each name.
    stored.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bytes()));
    folder.join("aggregates.safetensors").write(tensor_file::encode(stored, None)?)
}

fn add<T: Copy + std::ops::AddAssign>(home: &mut Vec<T>, more: Vec<T>) {
    if home.is_empty() {
        *home = more;
    } else {
        home.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    }
}

impl Total {
    fn add(&mut self, name: &str, unit: usize, top: usize, tensors: &mut HashMap<String, Stored>) -> Option<()> {
        let mut take = |what: &str| tensors.remove(&format!("{name}.{what}"));
        self.count += take("count")?.to_i64().first()?;
        self.norm_sum += take("norm_sum")?.to_f64().first()?;
        let sum = take("sum")?.to_f64();
        self.width = sum.len();
        add(&mut self.sum, sum);
        add(&mut self.squares, take("squares")?.to_f64());
        add(&mut self.histogram, take("histogram")?.to_i64());
        add(&mut self.norms, take("norms")?.to_i64());
        if let Some(products) = take("products") {
            add(self.products.get_or_insert_default(), products.to_f64());
        }
        if top > 0 {
            let kept = take("top_kept")?.to_i64();
            let (texts, positions) = (take("top_text")?.to_i64(), take("top_position")?.to_i64());
            let (contexts, values) = (take("top_context")?.to_i64(), take("top_values")?.to_f32());
            let mut all = values.into_iter().zip(texts).zip(positions).zip(contexts.chunks(CONTEXT));
            let home = self.top.get_or_insert_with(|| vec![Vec::new(); kept.len()]);
            for (feature, kept) in home.iter_mut().zip(kept) {
                for (((value, text), position), context) in all.by_ref().take(kept as usize) {
                    feature.push((value, unit as i64, text, position, context.to_vec()));
                }
                // Stable: of equal ones the first of the corpus stays the first.
                feature.sort_by(|one, other| order(one.0, other.0));
                feature.truncate(top);
            }
        }
        Some(())
    }

    fn finish(self, name: &str, top: usize) -> Vec<Stored> {
        let of = |what: &str| format!("{name}.{what}");
        let (width, count) = (self.width, self.count.max(1) as f64);
        let wide = width as i64;
        let mean: Vec<f64> = self.sum.iter().map(|sum| sum / count).collect();
        let spread = self.squares.iter().zip(&mean).map(|(squares, mean)| (squares / count - mean * mean).max(0.0));
        let each: Vec<[f64; QUANTILES.len()]> = self.histogram.chunks(ALL_BINS).map(quantiles).collect();
        let by_part: Vec<f64> = (0..QUANTILES.len()).flat_map(|part| each.iter().map(move |own| own[part])).collect();
        let parts = QUANTILES.len() as i64;
        let mut stored = vec![
            Stored::i64(of("count"), [], &[self.count]),
            Stored::f64(of("mean"), [wide], &mean),
            Stored::f64(of("variance"), [wide], &spread.collect::<Vec<_>>()),
            Stored::f64(of("quantiles"), [parts, wide], &by_part),
            Stored::f64(of("norm_mean"), [], &[self.norm_sum / count]),
            Stored::f64(of("norm_quantiles"), [parts], &quantiles(&self.norms)),
        ];
        if let Some(products) = self.products {
            let row = |(row, products): (usize, &[f64])| -> Vec<f64> {
                let own = mean.get(row).copied().unwrap_or(0.0);
                products.iter().zip(&mean).map(|(product, mean)| product / count - own * mean).collect()
            };
            let covariance: Vec<f64> = products.chunks(width.max(1)).enumerate().flat_map(row).collect();
            stored.push(Stored::f64(of("covariance"), [wide, wide], &covariance));
        }
        if let Some(features) = self.top {
            let rank = |rank: usize| features.iter().map(move |feature| feature.get(rank));
            let all = || (0..top).flat_map(rank);
            let number = |pick: fn(&Top) -> i64| -> Vec<i64> { all().map(|one| one.map_or(-1, pick)).collect() };
            let shape = [top as i64, wide];
            stored.push(Stored::i64(of("top_unit"), shape, &number(|one| one.1)));
            stored.push(Stored::i64(of("top_text"), shape, &number(|one| one.2)));
            stored.push(Stored::i64(of("top_position"), shape, &number(|one| one.3)));
            let none = [-1; CONTEXT];
            let contexts: Vec<i64> =
                all().flat_map(|one| one.map_or(&none[..], |one| &one.4).iter().copied()).collect();
            stored.push(Stored::i64(of("top_context"), [top as i64, wide, CONTEXT as i64], &contexts));
            let values: Vec<f32> = all().map(|one| one.map_or(f32::NAN, |one| one.0)).collect();
            stored.push(Stored::f32(of("top_values"), shape, &values));
        }
        stored
    }
}

/// The numbers below which these parts of all lie.
fn quantiles(counts: &[i64]) -> [f64; QUANTILES.len()] {
    let all: i64 = counts.iter().sum();
    QUANTILES.map(|part| {
        let wanted = (part * all as f64).ceil().max(1.0) as i64;
        let mut below = 0;
        let reaches = |count: &i64| {
            below += count;
            below >= wanted
        };
        counts.iter().position(reaches).map_or(f64::NAN, middle)
    })
}
