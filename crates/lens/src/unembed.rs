//! From normed streams to measures, in bounded memory.
//!
//! Logits of all rows, positions and vocabulary entries never exist together. Streams are stacked, multiplied with one
//! slice of the unembedding at a time, and each slice is folded into running results:
//!
//! - a running maximum `m` and `S = Σ exp(l - m)` give `log Z = m + ln S` (the online softmax of Milakov and
//!   Gimelshein, 2018), and with `Σ exp(l - m) l` the entropy;
//! - with the final distribution `p` known, `KL(p || q) = Σ p ln p - Σ p l + log Z`, so only `Σ p l` is accumulated;
//! - ranks are counts of entries above a score that is known beforehand, because it is one dot product.
//!
//! The products are computed in the dtype of the unembedding, everything after them in f32.

use std::ops::Range;

use models::Factor;
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

/// Results, `[row, position]` unless said otherwise, in f32 on the CPU.
#[derive(Debug)]
pub(crate) struct Measured {
    /// `[position]`, scores of the model's own top-1 tokens.
    pub(crate) final_logit: Vec<f32>,
    /// `[position]`
    pub(crate) final_log_normaliser: Vec<f32>,
    pub(crate) top1: Vec<i64>,
    pub(crate) log_normaliser: Vec<f32>,
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
    /// `[position, vocabulary]`
    logits: Tensor,
    /// `[position, vocabulary]`
    probabilities: Tensor,
    /// `[position]`
    log_normaliser: Tensor,
    /// `[position]`: `Σ p ln p`
    negative_entropy: Tensor,
    /// `[position]`
    top1: Tensor,
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

/// Measures `streams` against the model's own, `[position, d_model]` in f32, through `unembedding`, `[vocabulary, d_model]`.
pub(crate) fn measure(
    streams: &impl Streams,
    reference: &Tensor,
    unembedding: &Tensor,
    wanted: &Wanted,
) -> Result<Measured> {
    let at = |source| Error::Torch { at: "unembedding the rows", source };
    let (rows, positions) = (streams.rows(), streams.positions());
    let vocabulary = unembedding.size2().map_err(at)?.0;
    // A quarter of the memory for the model's own logits and probabilities, the rest for slices.
    let own = (wanted.memory / 4 / (12 * vocabulary.max(1) as u64)).clamp(1, positions.max(1) as u64) as i64;
    let mut groups = Vec::new();
    for start in (0..positions).step_by(own as usize) {
        let count = own.min(positions - start);
        let own = reference.f_narrow(0, start, count).and_then(|own| Final::new(&own, unembedding)).map_err(at)?;
        let rows_at_once = ((STACK / count) as usize).clamp(1, rows.max(1));
        let mut stacks = Vec::new();
        for first in (0..rows).step_by(rows_at_once) {
            let end = (first + rows_at_once).min(rows);
            let normed = streams.normed(first..end, start..start + count)?;
            let stack = Stack {
                streams: normed.f_flatten(0, 1).map_err(at)?,
                rows: (end - first) as i64,
                positions: count,
                unembedding,
                reference: &own,
                wanted,
                offset: start,
            };
            drop(normed);
            stacks.push(stack.measure().map_err(at)?);
        }
        groups.push(own.group(stacks).map_err(at)?);
    }
    gather(groups).map_err(at)
}

impl Final {
    fn new(streams: &Tensor, unembedding: &Tensor) -> Result<Self, TchError> {
        let logits = multiply(streams, unembedding)?;
        let log_probabilities = logits.f_log_softmax(-1, Kind::Float)?;
        let probabilities = log_probabilities.f_exp()?;
        let dot = row_dots(&probabilities, &log_probabilities)?;
        drop(log_probabilities);
        Ok(Self {
            log_normaliser: logits.f_logsumexp([-1].as_slice(), false)?,
            negative_entropy: dot,
            top1: logits.f_argmax(-1, false)?,
            logits,
            probabilities,
        })
    }

    /// What is kept of these positions.
    fn group(self, stacks: Vec<StackMeasured>) -> Result<Group, TchError> {
        let logit = self.logits.f_gather(1, &self.top1.f_unsqueeze(1)?, false)?.f_squeeze_dim(1)?;
        Ok(Group { logit, log_normaliser: self.log_normaliser, stacks })
    }
}

/// `[n, d] x [v, d]ᵀ` in the dtype of the unembedding, as f32.
fn multiply(streams: &Tensor, unembedding: &Tensor) -> Result<Tensor, TchError> {
    let streams = streams.f_to_kind(unembedding.f_kind()?)?;
    Factor::new(&streams)?.times_transposed(unembedding, None)?.f_to_kind(Kind::Float)
}

/// Sums of products along the last dimension of two `[n, v]`.
fn row_dots(a: &Tensor, b: &Tensor) -> Result<Tensor, TchError> {
    a.f_unsqueeze(1)?.f_bmm(&b.f_unsqueeze(2)?)?.f_flatten(0, -1)
}

/// Some rows at some positions, stacked.
struct Stack<'a> {
    /// `[rows x positions, d_model]`
    streams: Tensor,
    rows: i64,
    positions: i64,
    unembedding: &'a Tensor,
    reference: &'a Final,
    wanted: &'a Wanted,
    /// First position, for the tokens that come next.
    offset: i64,
}

/// Running results of a stack, each `[rows, positions]` unless said otherwise.
struct Running {
    maximum: Tensor,
    top1: Tensor,
    sum: Tensor,
    /// `Σ exp(l - maximum) l`
    weighted: Tensor,
    /// `Σ exp(l - maximum) l_final`
    weighted_final: Tensor,
    /// `Σ p l`
    expected: Tensor,
    /// `1 +` how many score higher than the target
    ranks: Tensor,
    /// `[rows, positions, tracked]`
    tracked_ranks: Tensor,
    /// `[rows, positions, k]`
    top: Option<(Tensor, Tensor)>,
}

struct StackMeasured {
    running: Running,
    log_normaliser: Tensor,
    target: Tensor,
    tracked: Tensor,
    next: Option<Tensor>,
    kl: Option<Tensor>,
    reverse_kl: Option<Tensor>,
    entropy: Option<Tensor>,
}

impl Stack<'_> {
    fn shape(&self) -> [i64; 2] {
        [self.rows, self.positions]
    }

    fn device(&self) -> Device {
        self.streams.device()
    }

    /// Scores of one given id per position.
    fn logits_of(&self, ids: &Tensor) -> Result<Tensor, TchError> {
        let kind = self.unembedding.f_kind()?;
        let directions = self.unembedding.f_index_select(0, ids)?.f_to_kind(Kind::Float)?;
        let streams = self.streams.f_to_kind(kind)?.f_to_kind(Kind::Float)?;
        let streams = streams.f_view([self.rows, self.positions, -1])?;
        let logits = streams.f_mul(&directions)?.f_sum_dim_intlist([-1].as_slice(), false, Kind::Float)?;
        // Rounded as the scores they are compared with are.
        logits.f_to_kind(kind)?.f_to_kind(Kind::Float)
    }

    /// Entries of the vocabulary in one slice.
    fn slice(&self) -> i64 {
        let vocabulary = self.unembedding.size().first().copied().unwrap_or(1);
        let streams = self.streams.size().first().map_or(1, |&n| n.max(1) as u64);
        // The logits, one scratch of the same size, and the products where they are not f32 already.
        let bytes = (self.wanted.memory * 3 / 4) / (12 * streams);
        (bytes as i64).clamp(64, SLICE).min(vocabulary)
    }

    /// Whether logits are still needed after their exponentials exist.
    fn exponentials_apart(&self) -> bool {
        self.wanted.entropy || self.wanted.reverse_kl
    }

    fn slices(&self) -> Result<Vec<Range<i64>>, TchError> {
        let (vocabulary, slice) = (self.unembedding.size2()?.0, self.slice());
        Ok((0..vocabulary).step_by(slice as usize).map(|start| start..(start + slice).min(vocabulary)).collect())
    }

    fn measure(&self) -> Result<StackMeasured, TchError> {
        let kind = self.unembedding.f_kind()?;
        let streams = self.streams.f_to_kind(kind)?.f_contiguous()?;
        let products = Products::new(&streams, self.slice())?;
        let target = self.logits_of(&self.reference.top1)?;
        let tracked = self.tracked_logits()?;
        let mut running = self.start()?;
        for slice in self.slices()? {
            self.fold(&slice, &products, &target, &tracked, &mut running)?;
        }
        let log_normaliser = running.maximum.f_add(&running.sum.f_log()?)?;
        let kl = match (self.wanted.kl, self.wanted.clip) {
            (false, _) => None,
            (true, None) => {
                let kl = self.reference.negative_entropy.f_sub(&running.expected)?.f_add(&log_normaliser)?;
                // Rounding may leave a little less than nothing.
                Some(kl.f_clamp_min(0.0)?)
            }
            (true, Some(clip)) => Some(self.clipped_kl(&products, &log_normaliser, clip)?),
        };
        let expectation = |weighted: &Tensor| weighted.f_div(&running.sum);
        let entropy = if self.wanted.entropy {
            Some(log_normaliser.f_sub(&expectation(&running.weighted)?)?.f_clamp_min(0.0)?)
        } else {
            None
        };
        let reverse_kl = if self.wanted.reverse_kl {
            let own = expectation(&running.weighted)?.f_sub(&log_normaliser)?;
            let other = expectation(&running.weighted_final)?.f_sub(&self.reference.log_normaliser)?;
            Some(own.f_sub(&other)?.f_clamp_min(0.0)?)
        } else {
            None
        };
        let next = self.next_logits()?;
        Ok(StackMeasured { running, log_normaliser, target, tracked, next, kl, reverse_kl, entropy })
    }

    fn start(&self) -> Result<Running, TchError> {
        let (options, whole) = ((Kind::Float, self.device()), (Kind::Int64, self.device()));
        let zeros = || Tensor::f_zeros(self.shape(), options);
        let tracked = [self.rows, self.positions, self.wanted.tracked.len() as i64];
        Ok(Running {
            maximum: Tensor::f_full(self.shape(), f64::NEG_INFINITY, options)?,
            top1: Tensor::f_zeros(self.shape(), whole)?,
            sum: zeros()?,
            weighted: zeros()?,
            weighted_final: zeros()?,
            expected: zeros()?,
            ranks: Tensor::f_ones(self.shape(), whole)?,
            tracked_ranks: Tensor::f_ones(tracked, whole)?,
            top: None,
        })
    }

    fn tracked_logits(&self) -> Result<Tensor, TchError> {
        if self.wanted.tracked.is_empty() {
            return Tensor::f_zeros([self.rows, self.positions, 0], (Kind::Float, self.device()));
        }
        let of = |&id: &i64| self.logits_of(&Tensor::f_full([self.positions], id, (Kind::Int64, self.device()))?);
        let logits = self.wanted.tracked.iter().map(of).collect::<Result<Vec<_>, _>>()?;
        Tensor::f_stack(&logits, -1)
    }

    fn next_logits(&self) -> Result<Option<Tensor>, TchError> {
        let Some(next) = &self.wanted.next else { return Ok(None) };
        let here = next.iter().skip(self.offset as usize).take(self.positions as usize);
        let ids: Vec<i64> = here.map(|&id| id.max(0)).collect();
        Ok(Some(self.logits_of(&Tensor::f_from_slice(&ids)?.f_to_device(self.device())?)?))
    }

    /// Folds the logits of one slice into the running results.
    fn fold(
        &self,
        slice: &Range<i64>,
        products: &Products,
        target: &Tensor,
        tracked: &Tensor,
        running: &mut Running,
    ) -> Result<(), TchError> {
        let width = slice.end - slice.start;
        let shape = [self.rows, self.positions, width];
        let logits = products.logits(self.unembedding, slice)?.f_view(shape)?;
        let scratch = products.scratch(width)?.f_view(shape)?;
        let (best, place) = logits.f_max_dim(-1, false)?;
        let better = best.f_gt_tensor(&running.maximum)?;
        running.top1 = place.f_add_scalar(slice.start)?.f_where_self(&better, &running.top1)?;
        let maximum = best.f_maximum(&running.maximum)?;
        // exp(-inf - m) = 0 for the first slice.
        let decay = running.maximum.f_sub(&maximum)?.f_exp()?;
        running.maximum = maximum;
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
        if self.wanted.kl && self.wanted.clip.is_none() {
            let probabilities = self.reference.probabilities.f_narrow(1, slice.start, width)?;
            // [position, row, slice] x [position, slice, 1]
            let part = logits.f_transpose(0, 1)?.f_bmm(&probabilities.f_unsqueeze(2)?)?;
            running.expected = running.expected.f_add(&part.f_squeeze_dim(2)?.f_transpose(0, 1)?)?;
        }
        let shift = running.maximum.f_unsqueeze(2)?;
        let exponentials = if self.exponentials_apart() {
            logits.f_sub_out(&scratch, &shift)?.f_exp_()?
        } else {
            // The logits are not needed any more.
            let mut logits = logits.shallow_clone();
            logits.f_sub_(&shift)?.f_exp_()?
        };
        let sum = exponentials.f_sum_dim_intlist([-1].as_slice(), false, Kind::Float)?;
        running.sum = running.sum.f_mul(&decay)?.f_add(&sum)?;
        if self.exponentials_apart() {
            let flat = |tensor: &Tensor| tensor.f_reshape([-1, width]);
            let part = row_dots(&flat(&exponentials)?, &flat(&logits)?)?.f_view(self.shape())?;
            running.weighted = running.weighted.f_mul(&decay)?.f_add(&part)?;
        }
        if self.wanted.reverse_kl {
            let other = self.reference.logits.f_narrow(1, slice.start, width)?;
            let part = exponentials.f_transpose(0, 1)?.f_bmm(&other.f_unsqueeze(2)?)?;
            let part = part.f_squeeze_dim(2)?.f_transpose(0, 1)?;
            running.weighted_final = running.weighted_final.f_mul(&decay)?.f_add(&part)?;
        }
        Ok(())
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
        let mut total = Tensor::f_zeros(self.shape(), (Kind::Float, self.device()))?;
        for slice in self.slices()? {
            let width = slice.end - slice.start;
            let logits = products.logits(self.unembedding, &slice)?.f_view([self.rows, self.positions, width])?;
            let rows = logits.f_sub(&normaliser.f_unsqueeze(2)?)?.f_clamp_min_(clip.ln())?;
            let own = self.reference.probabilities.f_narrow(1, slice.start, width)?.f_clamp_min(clip)?;
            let ratio = own.f_log()?.f_sub(&rows)?;
            let part = ratio.f_transpose(0, 1)?.f_bmm(&own.f_unsqueeze(2)?)?;
            total = total.f_add(&part.f_squeeze_dim(2)?.f_transpose(0, 1)?)?;
        }
        Ok(total)
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
    scratch: Tensor,
}

impl<'a> Products<'a> {
    /// For `streams`, `[n, d_model]`, and slices of up to `slice` entries.
    fn new(streams: &'a Tensor, slice: i64) -> Result<Self, TchError> {
        let (count, kind, device) = (streams.size2()?.0, streams.f_kind()?, streams.device());
        let buffer = || Tensor::f_empty([count * slice], (Kind::Float, device));
        let logits = if kind == Kind::Float { None } else { Some(buffer()?) };
        Ok(Self { factor: Factor::new(streams)?, count, logits, scratch: buffer()? })
    }

    /// `[n, slice]` of a buffer.
    fn part(&self, buffer: &Tensor, width: i64) -> Result<Tensor, TchError> {
        buffer.f_narrow(0, 0, self.count * width)?.f_view([self.count, width])
    }

    fn scratch(&self, width: i64) -> Result<Tensor, TchError> {
        self.part(&self.scratch, width)
    }

    /// Logits of one slice, `[n, slice]`, in f32.
    fn logits(&self, unembedding: &Tensor, slice: &Range<i64>) -> Result<Tensor, TchError> {
        let width = slice.end - slice.start;
        let products = self.factor.times_transposed(&unembedding.f_narrow(0, slice.start, width)?, None)?;
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

/// A group of positions: the model's own results there, `[position]`, and the rows'.
struct Group {
    logit: Tensor,
    log_normaliser: Tensor,
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
        final_logit: flat(&own(|group| &group.logit)?)?,
        final_log_normaliser: flat(&own(|group| &group.log_normaliser)?)?,
        top1: integers(&|stack| Some(stack.running.top1.shallow_clone()))?,
        log_normaliser: floats(&|stack| Some(stack.log_normaliser.shallow_clone()))?,
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
