//! From normed streams to measures, in bounded memory.
//!
//! Logits of all rows, positions and vocabulary entries never exist together. Streams are stacked, multiplied with one
//! slice of the unembedding at a time, and each slice is folded into running results. The products are computed in the
//! dtype of the unembedding and rounded to it, like the model's own logits; everything after them takes these logits as
//! exact.
//!
//! # Numerics
//!
//! GPT-2's logits lie near -100 and its divergences are often below 0.01, so sums over raw logits would cancel. With `l`
//! for a row's logits, `f` for the model's own, `q` and `p` for their distributions, and a slice `s` of the vocabulary in
//! which a row has the maximum `M` and the model has `N`:
//!
//! - every entry is taken relative to its slice's maximum, `t = l - M` and `g = f - N`. The difference of two neighbouring
//!   f32 is exact where they are within a factor of two, so an offset common to all logits costs nothing;
//! - `ln Q_s = M + ln Σ e^t` is the logarithm of what `q` has in the slice, up to the normaliser
//!   `ln Z = ln Σ_s exp(ln Q_s)`; `ln P_s` is the same for `p`, less its normaliser;
//! - by the chain rule `KL(p || q) = Σ_s P_s (ln P_s - ln Q_s + KL_s) + ln Z`, where `KL_s` is the divergence within the
//!   slice. With `x = t - g` and the weights `e^g`, it is `ln (Σ e^t / Σ e^g) - Σ e^g x / Σ e^g`;
//! - `KL(q || p)` has `Q_s` for `P_s`, and within the slice `Σ e^t x / Σ e^t - ln (Σ e^t / Σ e^g)`;
//! - the entropy is `ln Z - Σ_s Q_s (M + Σ e^t t / Σ e^t)`.
//!
//! Sums over the entries of a slice are in f32 and pairwise, what is made of them in f64: there the terms of different
//! slices may be as large as the logits and still cancel without harm. Within a slice,
//! `Σ p |x| <= KL_s + |ln (Σ e^t / Σ e^g)| + 2/e`, so the f32 sum of `x` is as exact as the divergence asks for, and `x` is
//! zero for equal logits. The logarithm of a sum of exponentials has an error of some 1e-7, whatever the divergence: that
//! is what remains. Against f64, each is within 1e-6 nats plus 1e-6 of its value; a divergence below zero is one of zero.
//!
//! The logits themselves are rounded by the product, at -100 in f32 to multiples of 8e-6: as independent errors of size `ε`
//! they add `ε²` to a divergence, less than 1e-10. In bf16 they are multiples of 0.5 there, and the divergence is that of
//! the rounded logits.
//!
//! Ranks are counts of entries above a score that is known beforehand: a product with the few rows of the unembedding that
//! are asked for. On a CPU each entry of a product is the same sum whatever the other rows and columns are, as long as they
//! are not very few. So these scores, those of the slices and the model's own logits are rounded alike, and equal ones are
//! equal. Elsewhere entries that score the same up to rounding may count as higher.

use std::ops::Range;

use models::{Factor, Unembedding};
use tch::{Device, Kind, TchError, Tensor};

use crate::{Error, error::Result};

/// What to compute beside the top-1 tokens and the normaliser.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) ranks: bool,
    pub(crate) kl: bool,
    /// Probabilities are clipped to at least this in `kl`, as in transformer-utils.
    pub(crate) clip: Option<f64>,
    pub(crate) reverse_kl: bool,
    pub(crate) entropy: bool,
    pub(crate) top_k: usize,
    /// Ids whose rank and probability are wanted everywhere.
    pub(crate) tracked: Vec<i64>,
    /// For each position the id that really comes next, or -1.
    pub(crate) next: Option<Vec<i64>>,
    /// Bytes that temporary results may take.
    pub(crate) memory: u64,
}

/// Results, `[row, position]` unless said otherwise, on the CPU.
#[derive(Debug)]
pub(crate) struct Measured {
    /// `[position]`, scores of the model's own top-1 tokens.
    pub(crate) final_logit: Vec<f32>,
    /// `[position]`: how far these scores may move, in units of `δ`, when each of their `d_model` terms is off by a part `δ` of
    /// itself, independently: by the sum of their magnitudes at most, and never by more than six standard deviations.
    pub(crate) final_reach: Vec<f32>,
    /// `[position]`
    pub(crate) final_log_normaliser: Vec<f64>,
    /// `[position]`, the model's own top-1 tokens.
    pub(crate) final_top1: Vec<i64>,
    pub(crate) top1: Vec<i64>,
    /// Score of the row's own top-1 token.
    pub(crate) top1_logit: Vec<f32>,
    pub(crate) log_normaliser: Vec<f64>,
    /// Score of the model's own top-1 token.
    pub(crate) target_logit: Vec<f32>,
    pub(crate) ranks: Vec<i64>,
    pub(crate) kl: Vec<f32>,
    pub(crate) reverse_kl: Vec<f32>,
    pub(crate) entropy: Vec<f32>,
    /// Score of the next token.
    pub(crate) next_logit: Vec<f32>,
    /// `[row, position, tracked]`
    pub(crate) tracked_logit: Vec<f32>,
    /// `[row, position, tracked]`
    pub(crate) tracked_rank: Vec<i64>,
    /// `[row, position, k]`
    pub(crate) top_k_ids: Vec<i64>,
    /// `[row, position, k]`
    pub(crate) top_k_logits: Vec<f32>,
}

/// The model's own distribution at some positions.
struct Final {
    /// `[position]`
    top1: Tensor,
    /// `[position]`, their scores.
    logit: Tensor,
    /// `[position]`, see [`Measured::final_reach`].
    reach: Tensor,
    /// `[position]` in f64
    log_normaliser: Tensor,
    /// One for each slice; none where no divergence is wanted.
    slices: Vec<FinalSlice>,
}

/// The model's own distribution over one slice of the vocabulary.
struct FinalSlice {
    /// `[position, slice]`: the logits less the highest of the slice.
    below: Tensor,
    /// `[position, slice]`: their exponentials.
    weights: Tensor,
    /// `[position]` in f64: the sums of these.
    sum: Tensor,
    /// `[position]` in f64: the logarithm of the slice's probability.
    log_mass: Tensor,
}

/// Streams multiplied at once: enough for full speed, few enough for slices of some thousand entries.
const STACK: i64 = 2304;

/// Entries of the vocabulary in a slice, at most. More make the products no faster and the passes over them slower,
/// because the slice leaves the cache.
const SLICE: i64 = 2048;

/// What is decoded: streams that are made when their turn comes.
pub(crate) trait Streams {
    /// How many rows there are.
    fn rows(&self) -> usize;
    /// How many positions each row has.
    fn positions(&self) -> i64;
    /// Some rows at some positions after the final norm, `[row, position, d_model]` in f32.
    fn normed(&self, rows: Range<usize>, positions: Range<i64>) -> Result<Tensor>;
}

/// Measures `streams` against the model's own, `[position, d_model]` in f32, through `unembedding`.
pub(crate) fn measure(
    streams: &impl Streams,
    reference: &Tensor,
    unembedding: &Unembedding,
    wanted: &Wanted,
) -> Result<Measured> {
    let at = |source| Error::Torch { at: "unembedding the rows", source };
    let (rows, positions) = (streams.rows(), streams.positions());
    let vocabulary = unembedding.vocabulary();
    // A quarter of the memory for the model's own distribution, the rest for slices.
    let own = (wanted.memory / 4 / (12 * vocabulary.max(1) as u64)).clamp(1, positions.max(1) as u64) as i64;
    let mut groups = Vec::new();
    for start in (0..positions).step_by(own as usize) {
        let count = own.min(positions - start);
        let rows_at_once = ((STACK / count) as usize).clamp(1, rows.max(1));
        let slices = slices(vocabulary, rows_at_once as i64 * count, wanted.memory);
        let own = reference.f_narrow(0, start, count);
        let mut own = own.and_then(|own| Final::new(&own, unembedding, &slices, wanted)).map_err(at)?;
        let mut stacks = Vec::new();
        for first in (0..rows).step_by(rows_at_once) {
            let end = (first + rows_at_once).min(rows);
            let normed = streams.normed(first..end, start..start + count)?;
            let streams = normed.f_flatten(0, 1).and_then(|streams| rounded(&streams, unembedding)).map_err(at)?;
            let stack = Stack {
                streams,
                rows: (end - first) as i64,
                positions: count,
                unembedding,
                slices: &slices,
                reference: &own,
                wanted,
                offset: start,
            };
            drop(normed);
            stacks.push(stack.measure().map_err(at)?);
        }
        own.slices.clear();
        groups.push(Group { own, stacks });
    }
    gather(groups).map_err(at)
}

/// The vocabulary in slices of nearly one size, for stacks of up to `streams` streams.
///
/// Nearly one, because a last slice of a single entry would be multiplied by another routine, which adds in another order.
fn slices(vocabulary: i64, streams: i64, memory: u64) -> Vec<Range<i64>> {
    // The logits, the products as the library that computes them holds them, and two scratches of the same size.
    let bytes = (memory / 4).saturating_mul(3) / (16 * streams.max(1) as u64);
    let most = (bytes as i64).clamp(64, SLICE);
    let count = (vocabulary + most - 1) / most;
    let width = (vocabulary + count - 1) / count.max(1);
    (0..vocabulary).step_by(width.max(1) as usize).map(|start| start..(start + width).min(vocabulary)).collect()
}

/// Streams in the dtype of the unembedding, as the products take them.
fn rounded(streams: &Tensor, unembedding: &Unembedding) -> Result<Tensor, TchError> {
    streams.f_to_kind(unembedding.kind()?)?.f_contiguous()
}

impl Final {
    /// For `streams`, `[position, d_model]`.
    fn new(
        streams: &Tensor,
        unembedding: &Unembedding,
        slices: &[Range<i64>],
        wanted: &Wanted,
    ) -> Result<Self, TchError> {
        let streams = rounded(streams, unembedding)?;
        let products = Products::new(&streams, widest(slices))?;
        let count = streams.size2()?.0;
        let mut highest = Highest::new(&[count], streams.device())?;
        let (mut own, mut log_sums) = (Vec::new(), Vec::with_capacity(slices.len()));
        for slice in slices {
            let logits = products.logits(unembedding, slice)?;
            let best = highest.fold(&logits, slice)?;
            let below = logits.f_sub(&best.f_unsqueeze(-1)?)?;
            let weights = below.f_exp()?;
            let sum = total(&weights)?;
            log_sums.push(best.f_to_kind(Kind::Double)?.f_add(&sum.f_log()?)?);
            if wanted.divergence() {
                own.push((below, weights, sum));
            }
        }
        let log_sums = Tensor::f_stack(&log_sums, 0)?;
        let log_normaliser = log_sums.f_logsumexp([0].as_slice(), false)?;
        let log_masses = log_sums.f_sub(&log_normaliser)?.f_unbind(0)?;
        let whole = |((below, weights, sum), log_mass)| FinalSlice { below, weights, sum, log_mass };
        let directions = unembedding.weight().f_index_select(0, &highest.place)?.f_to_kind(Kind::Float)?;
        let terms = directions.f_mul(&streams)?;
        let norm = |power: f64| terms.f_norm_scalaropt_dim(power, [-1].as_slice(), false);
        Ok(Self {
            top1: highest.place,
            logit: highest.value,
            reach: norm(1.0)?.f_minimum(&norm(2.0)?.f_mul_scalar(6.0)?)?,
            log_normaliser,
            slices: own.into_iter().zip(log_masses).map(whole).collect(),
        })
    }
}

impl Wanted {
    fn divergence(&self) -> bool {
        self.kl || self.reverse_kl
    }
}

/// The highest score so far and where it is, each `[..]`.
struct Highest {
    value: Tensor,
    place: Tensor,
}

impl Highest {
    fn new(shape: &[i64], device: Device) -> Result<Self, TchError> {
        let value = Tensor::f_full(shape, f64::NEG_INFINITY, (Kind::Float, device))?;
        Ok(Self { value, place: Tensor::f_zeros(shape, (Kind::Int64, device))? })
    }

    /// Looks through the logits of one slice, `[.., slice]`; gives the highest there.
    fn fold(&mut self, logits: &Tensor, slice: &Range<i64>) -> Result<Tensor, TchError> {
        let (best, place) = logits.f_max_dim(-1, false)?;
        let better = best.f_gt_tensor(&self.value)?;
        self.place = place.f_add_scalar(slice.start)?.f_where_self(&better, &self.place)?;
        self.value = best.f_maximum(&self.value)?;
        Ok(best)
    }
}

fn widest(slices: &[Range<i64>]) -> i64 {
    slices.iter().map(|slice| slice.end - slice.start).max().unwrap_or(0)
}

/// Sums over the last dimension, in f64. Libtorch adds in pairs here. A product of matrices, which could multiply and add at
/// once, adds one by one where a result is a single number: twenty times the error, and slower than two passes.
fn total(terms: &Tensor) -> Result<Tensor, TchError> {
    terms.f_sum_dim_intlist([-1].as_slice(), false, Kind::Float)?.f_to_kind(Kind::Double)
}

/// Some rows at some positions, stacked.
struct Stack<'a> {
    /// `[rows x positions, d_model]` in the dtype of the unembedding.
    streams: Tensor,
    rows: i64,
    positions: i64,
    unembedding: &'a Unembedding,
    slices: &'a [Range<i64>],
    reference: &'a Final,
    wanted: &'a Wanted,
    /// First position, for the tokens that come next.
    offset: i64,
}

/// Running results of a stack, each `[rows, positions]` unless said otherwise.
struct Running {
    highest: Highest,
    /// The logarithm of the sum of exponentials, in f64.
    log_normaliser: Tensor,
    /// `Σ q l`, in f64.
    score: Tensor,
    /// `KL(p || q) - ln Z`, in f64.
    kl: Tensor,
    /// `KL(q || p) + ln Z`, in f64.
    reverse_kl: Tensor,
    /// `1 +` how many score higher than the target
    ranks: Tensor,
    /// `[rows, positions, tracked]`
    tracked_ranks: Tensor,
    /// `[rows, positions, k]`
    top: Option<(Tensor, Tensor)>,
}

impl Running {
    /// Takes in a slice of which `log_sum` is the logarithm of the sum of exponentials. The means under `q` so far and the
    /// slice's own are weighted by what each has of the exponentials.
    fn fold(&mut self, log_sum: &Tensor, score: Option<Tensor>, reverse_kl: Option<Tensor>) -> Result<(), TchError> {
        let log_normaliser = self.log_normaliser.f_logaddexp(log_sum)?;
        let before = self.log_normaliser.f_sub(&log_normaliser)?.f_exp()?;
        let share = log_sum.f_sub(&log_normaliser)?.f_exp()?;
        let mean = |so_far: &Tensor, new: &Tensor| so_far.f_mul(&before)?.f_add(&new.f_mul(&share)?);
        if let Some(score) = score {
            self.score = mean(&self.score, &score)?;
        }
        if let Some(reverse_kl) = reverse_kl {
            self.reverse_kl = mean(&self.reverse_kl, &reverse_kl)?;
        }
        self.log_normaliser = log_normaliser;
        Ok(())
    }
}

struct StackMeasured {
    running: Running,
    target: Tensor,
    tracked: Tensor,
    next: Option<Tensor>,
    kl: Option<Tensor>,
    reverse_kl: Option<Tensor>,
    entropy: Option<Tensor>,
}

/// Columns of a product from which on no routine for matrix times vector is taken, which would add in another order.
const COLUMNS: usize = 16;

impl Stack<'_> {
    fn shape(&self) -> [i64; 2] {
        [self.rows, self.positions]
    }

    fn device(&self) -> Device {
        self.streams.device()
    }

    /// Scores of some ids everywhere, `[rows, positions, ids]`.
    fn logits_of(&self, products: &Products, ids: &[i64]) -> Result<Tensor, TchError> {
        let mut columns = ids.to_vec();
        columns.resize(columns.len().max(COLUMNS), columns.first().copied().unwrap_or(0));
        let columns = Tensor::f_from_slice(&columns)?.f_to_device(self.device())?;
        let logits = self.unembedding.select(&columns)?.logits(&products.factor)?.f_to_kind(Kind::Float)?;
        logits.f_view([self.rows, self.positions, -1])?.f_narrow(2, 0, ids.len() as i64)
    }

    /// Scores of one id per position, `[rows, positions]`.
    fn logits_at(&self, products: &Products, ids: &[i64]) -> Result<Tensor, TchError> {
        let mut different = ids.to_vec();
        different.sort_unstable();
        different.dedup();
        let places: Vec<i64> = ids.iter().map(|id| different.binary_search(id).unwrap_or(0) as i64).collect();
        let places = Tensor::f_from_slice(&places)?.f_to_device(self.device())?;
        let places = places.f_view([1, -1, 1])?.f_expand([self.rows, self.positions, 1], false)?;
        self.logits_of(products, &different)?.f_gather(-1, &places, false)?.f_squeeze_dim(2)
    }

    fn measure(&self) -> Result<StackMeasured, TchError> {
        let products = Products::new(&self.streams, widest(self.slices))?;
        let target = self.logits_at(&products, &flat(&self.reference.top1)?)?;
        let tracked = self.logits_of(&products, &self.wanted.tracked)?;
        let mut running = self.start()?;
        for (index, slice) in self.slices.iter().enumerate() {
            self.fold(slice, self.reference.slices.get(index), &products, &target, &tracked, &mut running)?;
        }
        let normaliser = &running.log_normaliser;
        // None is below zero; rounding may leave a little less.
        let kl = match (self.wanted.kl, self.wanted.clip) {
            (false, _) => None,
            (true, None) => Some(running.kl.f_add(normaliser)?.f_clamp_min(0.0)?),
            (true, Some(clip)) => Some(self.clipped_kl(&products, normaliser, clip)?),
        };
        let entropy =
            if self.wanted.entropy { Some(normaliser.f_sub(&running.score)?.f_clamp_min(0.0)?) } else { None };
        let reverse_kl =
            if self.wanted.reverse_kl { Some(running.reverse_kl.f_sub(normaliser)?.f_clamp_min(0.0)?) } else { None };
        let next = self.next_logits(&products)?;
        Ok(StackMeasured { running, target, tracked, next, kl, reverse_kl, entropy })
    }

    fn start(&self) -> Result<Running, TchError> {
        let (double, whole) = ((Kind::Double, self.device()), (Kind::Int64, self.device()));
        let zeros = || Tensor::f_zeros(self.shape(), double);
        let tracked = [self.rows, self.positions, self.wanted.tracked.len() as i64];
        Ok(Running {
            highest: Highest::new(&self.shape(), self.device())?,
            log_normaliser: Tensor::f_full(self.shape(), f64::NEG_INFINITY, double)?,
            score: zeros()?,
            kl: zeros()?,
            reverse_kl: zeros()?,
            ranks: Tensor::f_ones(self.shape(), whole)?,
            tracked_ranks: Tensor::f_ones(tracked, whole)?,
            top: None,
        })
    }

    fn next_logits(&self, products: &Products) -> Result<Option<Tensor>, TchError> {
        let Some(next) = &self.wanted.next else { return Ok(None) };
        let here = next.iter().skip(self.offset as usize).take(self.positions as usize);
        let ids: Vec<i64> = here.map(|&id| id.max(0)).collect();
        Ok(Some(self.logits_at(products, &ids)?))
    }

    /// Folds the logits of one slice into the running results. `own` is the model's own distribution there.
    fn fold(
        &self,
        slice: &Range<i64>,
        own: Option<&FinalSlice>,
        products: &Products,
        target: &Tensor,
        tracked: &Tensor,
        running: &mut Running,
    ) -> Result<(), TchError> {
        let width = slice.end - slice.start;
        let shape = [self.rows, self.positions, width];
        let logits = products.logits(self.unembedding, slice)?.f_view(shape)?;
        let [scratch, spare] = products.scratch(width, &shape)?;
        let best = running.highest.fold(&logits, slice)?;
        if self.wanted.ranks {
            running.ranks = running.ranks.f_add(&above(&logits, &scratch, target, &self.reference.top1, slice)?)?;
        }
        for (index, &id) in self.wanted.tracked.iter().enumerate() {
            let ids = Tensor::f_full([self.positions], id, (Kind::Int64, self.device()))?;
            let count = above(&logits, &scratch, &tracked.f_select(-1, index as i64)?, &ids, slice)?;
            let _ = running.tracked_ranks.f_select(-1, index as i64)?.f_add_(&count)?;
        }
        if self.wanted.top_k > 0 {
            running.top = Some(self.merge_top(&logits, slice, running.top.take())?);
        }
        // From here on in the memory of the logits, which are not needed any more.
        let mut below = logits;
        let _ = below.f_sub_(&best.f_unsqueeze(2)?)?;
        let best = best.f_to_kind(Kind::Double)?;
        let exponentials = below.f_exp_out(&scratch)?;
        let sum = total(&exponentials)?;
        let log_sum = best.f_add(&sum.f_log()?)?;
        let score = if self.wanted.entropy {
            Some(total(&exponentials.f_mul_out(&spare, &below)?)?.f_div(&sum)?.f_add(&best)?)
        } else {
            None
        };
        let mut reverse_kl = None;
        if let Some(own) = own {
            let mut ratio = below.f_sub_(&own.below)?;
            let log_ratio = sum.f_log()?.f_sub(&own.sum.f_log()?)?;
            if self.wanted.reverse_kl {
                let mean = total(&exponentials.f_mul_out(&spare, &ratio)?)?.f_div(&sum)?;
                reverse_kl = Some(log_sum.f_sub(&own.log_mass)?.f_add(&mean)?.f_sub(&log_ratio)?);
            }
            if self.wanted.kl && self.wanted.clip.is_none() {
                let within = log_ratio.f_sub(&total(&ratio.f_mul_(&own.weights)?)?.f_div(&own.sum)?)?;
                let part = own.log_mass.f_sub(&log_sum)?.f_add(&within)?.f_mul(&own.log_mass.f_exp()?)?;
                running.kl = running.kl.f_add(&part)?;
            }
        }
        running.fold(&log_sum, score, reverse_kl)
    }

    fn merge_top(
        &self,
        logits: &Tensor,
        slice: &Range<i64>,
        before: Option<(Tensor, Tensor)>,
    ) -> Result<(Tensor, Tensor), TchError> {
        let wanted = self.wanted.top_k as i64;
        let (values, ids) = logits.f_topk(wanted.min(slice.end - slice.start), -1, true, true)?;
        let ids = ids.f_add_scalar(slice.start)?;
        let Some((old_values, old_ids)) = before else { return Ok((values, ids)) };
        let (values, ids) = (Tensor::f_cat(&[old_values, values], -1)?, Tensor::f_cat(&[old_ids, ids], -1)?);
        let available = values.size3()?.2;
        let (best, places) = values.f_topk(wanted.min(available), -1, true, true)?;
        Ok((best, ids.f_gather(-1, &places, false)?))
    }

    /// `Σ max(p, c) ln(max(p, c) / max(q, c))`, as transformer-utils computes it. It needs `q` itself, and so the
    /// products once more, after the normaliser is known.
    fn clipped_kl(&self, products: &Products, normaliser: &Tensor, clip: f64) -> Result<Tensor, TchError> {
        let mut sum = Tensor::f_zeros(self.shape(), (Kind::Double, self.device()))?;
        for (slice, own) in self.slices.iter().zip(&self.reference.slices) {
            let shape = [self.rows, self.positions, slice.end - slice.start];
            let mut logits = products.logits(self.unembedding, slice)?.f_view(shape)?;
            // Relative to the slice's highest first, so that an offset of all logits is gone before anything is rounded.
            let best = logits.f_amax([-1].as_slice(), true)?;
            let height = best.f_to_kind(Kind::Double)?.f_sub(&normaliser.f_unsqueeze(2)?)?.f_to_kind(Kind::Float)?;
            let mut rows = logits.f_sub_(&best)?.f_add_(&height)?.f_clamp_min_(clip.ln())?;
            let height = own.log_mass.f_sub(&own.sum.f_log()?)?.f_unsqueeze(1)?.f_to_kind(Kind::Float)?;
            let own = own.below.f_add(&height)?.f_exp_()?.f_clamp_min_(clip)?;
            let terms = rows.f_neg_()?.f_add_(&own.f_log()?)?.f_mul_(&own)?;
            sum = sum.f_add(&total(&terms)?)?;
        }
        Ok(sum)
    }
}

/// The streams as a left factor, and memory for one slice that is used again for the next: fresh memory would cost a page
/// fault for every 4 KiB.
struct Products<'a> {
    factor: Factor<'a>,
    /// `[n]`, the number of streams.
    count: i64,
    /// Logits in f32, where the products are not.
    logits: Option<Tensor>,
    scratch: [Tensor; 2],
}

impl<'a> Products<'a> {
    /// For `streams`, `[n, d_model]`, and slices of up to `slice` entries.
    fn new(streams: &'a Tensor, slice: i64) -> Result<Self, TchError> {
        let (count, kind, device) = (streams.size2()?.0, streams.f_kind()?, streams.device());
        let buffer = || Tensor::f_empty([count * slice], (Kind::Float, device));
        let logits = if kind == Kind::Float { None } else { Some(buffer()?) };
        Ok(Self { factor: Factor::new(streams)?, count, logits, scratch: [buffer()?, buffer()?] })
    }

    /// `[n, slice]` of a buffer.
    fn part(&self, buffer: &Tensor, width: i64) -> Result<Tensor, TchError> {
        buffer.f_narrow(0, 0, self.count * width)?.f_view([self.count, width])
    }

    /// Memory for what is made of the logits of one slice, in their shape.
    fn scratch(&self, width: i64, shape: &[i64]) -> Result<[Tensor; 2], TchError> {
        let [first, second] = &self.scratch;
        Ok([self.part(first, width)?.f_view(shape)?, self.part(second, width)?.f_view(shape)?])
    }

    /// Logits of one slice, `[n, slice]`, in f32.
    fn logits(&self, unembedding: &Unembedding, slice: &Range<i64>) -> Result<Tensor, TchError> {
        let width = slice.end - slice.start;
        let products = unembedding.slice(slice)?.logits(&self.factor)?;
        let Some(buffer) = &self.logits else { return Ok(products) };
        let mut logits = self.part(buffer, width)?;
        logits.f_copy_(&products)?;
        Ok(logits)
    }
}

/// How many entries of a slice score strictly higher than `target` (`[row, position]`); the entry of `ids`
/// (`[position]`) itself is not counted, however its score was rounded.
fn above(
    logits: &Tensor,
    scratch: &Tensor,
    target: &Tensor,
    ids: &Tensor,
    slice: &Range<i64>,
) -> Result<Tensor, TchError> {
    // Ones and zeros in f32: their sum is exact up to 2^24, and an order of magnitude faster than one of booleans.
    let higher = logits.f_gt_tensor_out(scratch, &target.f_unsqueeze(2)?)?;
    let inside = ids.f_ge(slice.start)?.f_logical_and(&ids.f_lt(slice.end)?)?;
    let (rows, positions, width) = logits.size3()?;
    let places = ids.f_sub_scalar(slice.start)?.f_clamp(0, width - 1)?;
    let places = places.f_view([1, positions, 1])?.f_expand([rows, positions, 1], false)?;
    let own = higher.f_gather(-1, &places, false)?.f_squeeze_dim(2)?.f_mul(&inside)?;
    let count = higher.f_sum_dim_intlist([-1].as_slice(), false, Kind::Float)?;
    count.f_sub(&own)?.f_to_kind(Kind::Int64)
}

/// A group of positions: the model's own results there, and the rows'.
struct Group {
    own: Final,
    stacks: Vec<StackMeasured>,
}

/// Puts the groups of positions and the stacks of rows together again.
fn gather(groups: Vec<Group>) -> Result<Measured, TchError> {
    // Stacks lie one under another, groups of positions side by side.
    let whole = |pick: &dyn Fn(&StackMeasured) -> Option<Tensor>| -> Result<Option<Tensor>, TchError> {
        let mut columns = Vec::new();
        for group in &groups {
            let parts: Vec<Tensor> = group.stacks.iter().filter_map(pick).collect();
            if parts.is_empty() {
                return Ok(None);
            }
            columns.push(Tensor::f_cat(&parts, 0)?);
        }
        Ok(Some(Tensor::f_cat(&columns, 1)?))
    };
    let floats = |pick: &dyn Fn(&StackMeasured) -> Option<Tensor>| -> Result<Vec<f32>, TchError> {
        whole(pick)?.map_or(Ok(Vec::new()), |tensor| flat(&tensor.f_to_kind(Kind::Float)?))
    };
    let integers = |pick: &dyn Fn(&StackMeasured) -> Option<Tensor>| -> Result<Vec<i64>, TchError> {
        whole(pick)?.map_or(Ok(Vec::new()), |tensor| flat(&tensor))
    };
    let own = |pick: fn(&Group) -> &Tensor| Tensor::f_cat(&groups.iter().map(pick).collect::<Vec<_>>(), 0);
    Ok(Measured {
        final_logit: flat(&own(|group| &group.own.logit)?)?,
        final_reach: flat(&own(|group| &group.own.reach)?)?,
        final_log_normaliser: flat(&own(|group| &group.own.log_normaliser)?)?,
        final_top1: flat(&own(|group| &group.own.top1)?)?,
        top1: integers(&|stack| Some(stack.running.highest.place.shallow_clone()))?,
        top1_logit: floats(&|stack| Some(stack.running.highest.value.shallow_clone()))?,
        log_normaliser: match whole(&|stack| Some(stack.running.log_normaliser.shallow_clone()))? {
            Some(normalisers) => flat(&normalisers)?,
            None => Vec::new(),
        },
        target_logit: floats(&|stack| Some(stack.target.shallow_clone()))?,
        ranks: integers(&|stack| Some(stack.running.ranks.shallow_clone()))?,
        kl: floats(&|stack| stack.kl.as_ref().map(Tensor::shallow_clone))?,
        reverse_kl: floats(&|stack| stack.reverse_kl.as_ref().map(Tensor::shallow_clone))?,
        entropy: floats(&|stack| stack.entropy.as_ref().map(Tensor::shallow_clone))?,
        next_logit: floats(&|stack| stack.next.as_ref().map(Tensor::shallow_clone))?,
        tracked_logit: floats(&|stack| Some(stack.tracked.shallow_clone()))?,
        tracked_rank: integers(&|stack| Some(stack.running.tracked_ranks.shallow_clone()))?,
        top_k_ids: integers(&|stack| stack.running.top.as_ref().map(|(_, ids)| ids.shallow_clone()))?,
        top_k_logits: floats(&|stack| stack.running.top.as_ref().map(|(values, _)| values.shallow_clone()))?,
    })
}

fn flat<T: tch::kind::Element + Default + Clone>(tensor: &Tensor) -> Result<Vec<T>, TchError> {
    let tensor = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut values = vec![T::default(); tensor.numel()];
    tensor.f_copy_data(&mut values, tensor.numel())?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Streams that are given, `[position, d_model]` for each row.
    struct Given(Vec<Tensor>);

    impl Streams for Given {
        fn rows(&self) -> usize {
            self.0.len()
        }

        fn positions(&self) -> i64 {
            self.0[0].size()[0]
        }

        fn normed(&self, rows: Range<usize>, positions: Range<i64>) -> Result<Tensor> {
            Ok(Tensor::stack(&self.0[rows], 0).narrow(1, positions.start, positions.end - positions.start))
        }
    }

    /// Logits that are given, `[row, position, vocabulary]`, those of row 0 the model's own, as streams and an unembedding whose
    /// products they are, bit for bit: each is a column of the unembedding, and each stream chooses one.
    fn streams_of(logits: &Tensor) -> (Given, Tensor) {
        let (rows, positions, vocabulary) = logits.size3().unwrap();
        let unembedding = logits.view([rows * positions, vocabulary]).tr().contiguous();
        let streams = Tensor::eye(rows * positions, (Kind::Float, Device::Cpu)).view([rows, positions, -1]);
        (Given(streams.unbind(0)), unembedding)
    }

    /// Numbers of mean zero and variance one that look random, the same ones each time.
    fn noise(shape: &[i64], seed: f64) -> Tensor {
        let count = shape.iter().product::<i64>();
        let large = (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + seed).sin() * 43758.5453;
        ((large.frac().abs() - 0.5) * 12f64.sqrt()).view(shape).to_kind(Kind::Float)
    }

    fn everything(memory: u64) -> Wanted {
        Wanted { ranks: true, kl: true, reverse_kl: true, entropy: true, memory, ..Wanted::default() }
    }

    /// KL(own || row), KL(row || own) and the entropy in f64, `[row x position]` each.
    fn exact(logits: &Tensor) -> [Vec<f64>; 3] {
        let rows = logits.to_kind(Kind::Double).log_softmax(-1, Kind::Double);
        let own = rows.narrow(0, 0, 1);
        let mean = |of: &Tensor, values: &Tensor| -> Vec<f64> {
            let terms = of.exp() * values;
            Vec::try_from(terms.sum_dim_intlist([-1].as_slice(), false, Kind::Double).flatten(0, -1)).unwrap()
        };
        [mean(&own, &(&own - &rows)), mean(&rows, &(&rows - &own)), mean(&rows, &-&rows)]
    }

    /// The largest error, in parts of what is allowed.
    fn worst(name: &str, found: &[f32], expected: &[f64]) -> f64 {
        assert_eq!(found.len(), expected.len());
        let error = |(found, expected): (&f32, &f64)| {
            let error = (f64::from(*found) - expected).abs() / (1e-6 + 1e-6 * expected);
            assert!(error <= 1.0, "{name}: {found} instead of {expected}");
            error
        };
        found.iter().zip(expected).map(error).fold(0.0, f64::max)
    }

    /// Model outputs and rows of them from equal to far away, `[row, position, vocabulary]`; row 0 is the model's own.
    fn rows_near_and_far(positions: i64, vocabulary: i64) -> Tensor {
        // Flat, spread out like a language model's, and almost sure of one token.
        let spread = Tensor::arange(positions, (Kind::Float, Device::Cpu)).remainder(4.0) * 1.5 + 0.5;
        let own = noise(&[positions, vocabulary], 0.5) * spread.unsqueeze(1);
        let sure = Tensor::arange(positions, (Kind::Int64, Device::Cpu)).remainder(3).eq(0).to_kind(Kind::Float) * 14.0;
        let ids = (Tensor::arange(positions, (Kind::Int64, Device::Cpu)) * 31 + 7).remainder(vocabulary).unsqueeze(1);
        let peak =
            Tensor::zeros([positions, vocabulary], (Kind::Float, Device::Cpu)).scatter(1, &ids, &(sure.unsqueeze(1)));
        let own = own + &peak;
        let mut rows = vec![own.shallow_clone(), own.shallow_clone(), &own + 40.0];
        for (index, size) in [4e-4, 1e-3, 1e-2, 0.1, 0.5, 1.5, 4.0].into_iter().enumerate() {
            rows.push(&own + noise(&[positions, vocabulary], index as f64) * size);
        }
        // The token that is almost sure becomes unlikely; one that is unlikely, sure.
        rows.push(&own - &peak * 2.5);
        let least = own.argmin(1, true);
        let gain = Tensor::full([positions, 1], 45.0, (Kind::Float, Device::Cpu));
        rows.push(own.scatter_add(1, &least, &gain));
        rows.push(-&own);
        Tensor::stack(&rows, 0)
    }

    fn check(logits: &Tensor, memory: u64) -> [f64; 3] {
        let (streams, unembedding) = streams_of(logits);
        let unembedding = Unembedding::new(unembedding, None, None);
        let found = measure(&streams, &streams.0[0], &unembedding, &everything(memory)).unwrap();
        let [kl, reverse, entropy] = exact(logits);
        let positions = streams.positions() as usize;
        // The model's own row, and another with the same logits.
        assert!(found.kl[..2 * positions].iter().chain(&found.reverse_kl[..2 * positions]).all(|&kl| kl < 1e-9));
        assert!(kl.iter().any(|&kl| kl > 15.0) && kl.iter().any(|kl| (5e-8..5e-7).contains(kl)), "{kl:?}");
        [
            worst("kl", &found.kl, &kl),
            worst("reverse_kl", &found.reverse_kl, &reverse),
            worst("entropy", &found.entropy, &entropy),
        ]
    }

    #[test]
    fn divergences_and_entropies_are_exact_wherever_the_logits_lie() {
        for offset in [0.0, -100.0, 300.0] {
            let logits = rows_near_and_far(3, 50257) + offset;
            // In one group of positions, and in three.
            for memory in [256 << 20, 12 * 50257 * 4] {
                let errors = check(&logits, memory);
                println!("offset {offset}: of what is allowed {errors:.2?}");
            }
        }
    }

    #[test]
    fn several_stacks_give_the_same() {
        for offset in [0.0, -100.0, 300.0] {
            let errors = check(&(rows_near_and_far(200, 199) + offset), 1 << 22);
            println!("offset {offset}: of what is allowed {errors:.2?}");
        }
    }

    #[test]
    fn ranks_and_scores_come_from_products_rounded_like_the_models() {
        for kind in [Kind::Float, Kind::BFloat16] {
            // Every entry twice: their scores are equal, so a score that is rounded in another way counts one too many.
            let half = noise(&[1500, 96], 0.25);
            let unembedding = Tensor::cat(&[&half, &half], 0).to_kind(kind);
            let rows = noise(&[4, 20, 96], 0.75).to_kind(kind);
            let streams = Given(rows.to_kind(Kind::Float).unbind(0));
            let next: Vec<i64> = (0..20).map(|position| position * 97).collect();
            let wanted = Wanted { next: Some(next.clone()), tracked: vec![3, 2999], ..everything(1 << 20) };
            let head = Unembedding::new(unembedding.shallow_clone(), None, None);
            let found = measure(&streams, &streams.0[0], &head, &wanted).unwrap();
            // As a forward does it: one product with the whole of the unembedding.
            let logits = Factor::new(&rows).unwrap().times_transposed(&unembedding, None).unwrap().to_kind(Kind::Float);
            let of = |ids: &Tensor| logits.gather(2, &ids.view([1, -1, 1]).expand([4, 20, 1], false), false);
            let rank = |of: &Tensor| logits.gt_tensor(of).sum_dim_intlist([-1].as_slice(), false, Kind::Int64) + 1;
            let floats = |tensor: &Tensor| Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap();
            let integers = |tensor: &Tensor| Vec::<i64>::try_from(tensor.flatten(0, -1)).unwrap();
            let target = of(&logits.select(0, 0).argmax(-1, false));
            assert_eq!(found.target_logit, floats(&target), "{kind:?}");
            assert_eq!(found.ranks, integers(&rank(&target)), "{kind:?}");
            assert_eq!(found.next_logit, floats(&of(&Tensor::from_slice(&next))), "{kind:?}");
            let tracked = logits.index_select(2, &Tensor::from_slice(&[3i64, 2999]));
            assert_eq!(found.tracked_logit, floats(&tracked), "{kind:?}");
            let ranks: Vec<Tensor> = (0..2).map(|at| rank(&tracked.narrow(2, at, 1))).collect();
            assert_eq!(found.tracked_rank, integers(&Tensor::stack(&ranks, -1)), "{kind:?}");
            let best = logits.gather(2, &Tensor::from_slice(&found.top1).view([4, 20, 1]), false).squeeze_dim(2);
            assert_eq!(floats(&best), floats(&logits.amax([-1].as_slice(), false)), "{kind:?}");
            let [kl, reverse, entropy] = exact(&logits);
            worst("kl", &found.kl, &kl);
            worst("reverse_kl", &found.reverse_kl, &reverse);
            worst("entropy", &found.entropy, &entropy);
        }
    }

    #[test]
    fn slices_are_of_nearly_one_size() {
        for (vocabulary, streams, memory) in
            [(50257, 48, 256 << 20), (2049, 1, 256 << 20), (65, 1, 1), (1, 1, 1), (199, 10, 1)]
        {
            let slices = slices(vocabulary, streams, memory);
            assert!(slices.iter().map(|slice| slice.end - slice.start).all(|width| width <= SLICE));
            assert_eq!((slices[0].start, slices[slices.len() - 1].end), (0, vocabulary));
            assert!(slices.windows(2).all(|pair| pair[0].end == pair[1].start));
            let last = &slices[slices.len() - 1];
            assert!(last.end - last.start + slices.len() as i64 > slices[0].end - slices[0].start, "{slices:?}");
        }
    }
}
