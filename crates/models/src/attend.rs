//! Scaled dot-product attention with causal, local and padding masks.
//!
//! `z = softmax(cap(scale · q kᵀ) + bias) v`, with `bias` zero where a query may look and the dtype's least value where it may
//! not. GPT-Neo adds that value twice where both its own causal window and the padding forbid a key, as Hugging Face's
//! code does; it matters only in rows that are padding themselves, and there the two families differ.

use std::{cell::RefCell, ops::Range};

use tch::{Device, Kind, TchError, Tensor};

use crate::{Attention, Masking, Model, input::Checked, row};

/// The masks of one run, made when a block first needs them.
pub(crate) struct Masks {
    attended: Option<Tensor>,
    queries: i64,
    keys: i64,
    kind: Kind,
    device: Device,
    /// Whether causal and padding masks are added up.
    added: bool,
    /// Whether queries and keys are filled up to whole vectors, so that a token's bits do not depend on how many there are.
    fill_up: bool,
    /// Whether it is a single row on the CPU that need not have the bits it has among others.
    single: bool,
    /// What has been made so far.
    biases: RefCell<Vec<Bias>>,
}

/// What a window adds to the scores of the last `held` keys.
struct Bias {
    window: Option<i64>,
    held: i64,
    bias: Tensor,
}

impl Masks {
    /// `single` as for the run.
    pub(crate) fn new(model: &Model, checked: &Checked, cached: i64, single: bool) -> Self {
        let (kind, device) = (model.parts().dtype().kind(), model.parts().device());
        let several = checked.length > 1 || model.numerics().alike_rows;
        Self {
            attended: checked.attended.as_ref().map(Tensor::shallow_clone),
            queries: checked.length,
            keys: cached + checked.length,
            kind,
            device,
            added: model.architecture().masks == Masking::Added,
            // A GPU has kernels of its own for every shape anyway.
            fill_up: device == Device::Cpu && several,
            single,
            biases: RefCell::new(Vec::new()),
        }
    }

    /// The window, where it hides anything at this length.
    fn window(&self, attention: &Attention) -> Option<i64> {
        attention.window.filter(|window| *window < self.keys)
    }

    /// Whether plain causality says it all, so that no mask need exist. `held` is how many keys there are: the last ones.
    fn plain(&self, attention: &Attention, held: i64) -> bool {
        let last_sees_all = self.queries == 1 && attention.window.is_none_or(|window| held <= window);
        self.attended.is_none() && (last_sees_all || self.window(attention).is_none() && self.queries == held)
    }

    /// What is added to the scores of the last `held` keys: `[1 or batch, 1, query, key]`.
    ///
    /// Never a view that begins inside another tensor: CUDA's fused attention reads its mask in whole vectors, and a mask that
    /// begins elsewhere is a misaligned address, after which the process can use the device no more.
    fn bias(&self, attention: &Attention, held: i64) -> Result<Tensor, TchError> {
        let window = self.window(attention);
        let mut biases = self.biases.borrow_mut();
        if let Some(known) = biases.iter().find(|known| (known.window, known.held) == (window, held)) {
            return Ok(known.bias.shallow_clone());
        }
        let bias = self.make_bias(window, held)?;
        biases.push(Bias { window, held, bias: bias.shallow_clone() });
        Ok(bias)
    }

    /// The same with `[.., query, key]` filled up: nothing sees the keys of the filling, and its queries see all others.
    fn filled_up_bias(&self, attention: &Attention, held: i64) -> Result<Tensor, TchError> {
        let bias = self.bias(attention, held)?;
        // Infinity, because a row in which everything is hidden by the least number is uniform over the keys that exist.
        let bias = bias.f_pad([0, missing(held, KEYS)], "constant", f64::NEG_INFINITY)?;
        bias.f_constant_pad_nd([0, 0, 0, missing(self.queries, QUERIES)])
    }

    fn make_bias(&self, window: Option<i64>, held: i64) -> Result<Tensor, TchError> {
        let options = (Kind::Int64, self.device);
        let queries = Tensor::f_arange_start(self.keys - self.queries, self.keys, options)?.f_unsqueeze(1)?;
        let keys = Tensor::f_arange_start(self.keys - held, self.keys, options)?.f_unsqueeze(0)?;
        let causal = keys.f_le_tensor(&queries)?;
        let visible = match window {
            Some(window) => causal.f_logical_and(&keys.f_gt_tensor(&queries.f_sub_scalar(window)?)?)?,
            None => causal.shallow_clone(),
        };
        let attended = match &self.attended {
            Some(attended) => {
                let attended = attended.f_narrow(1, self.keys - held, held)?;
                causal.f_logical_and(&attended.f_unsqueeze(1)?.f_unsqueeze(1)?)?
            }
            None => causal.f_unsqueeze(0)?.f_unsqueeze(0)?,
        };
        let hide = |seen: &Tensor| {
            let zero = Tensor::f_zeros([1], (self.kind, self.device))?;
            zero.f_expand(seen.size(), false)?.f_masked_fill(&seen.f_logical_not()?, least(self.kind))
        };
        if self.added { hide(&visible)?.f_add(&hide(&attended)?) } else { hide(&visible.f_logical_and(&attended)?) }
    }
}

/// The least finite value of a dtype.
fn least(kind: Kind) -> f64 {
    match kind {
        Kind::Double => f64::MIN,
        // bfloat16 has the exponent of f32 and seven bits of fraction.
        Kind::BFloat16 => -3.389_531_389_251_535_5e38,
        Kind::Half => -65504.0,
        _ => f64::from(f32::MIN),
    }
}

/// Queries are computed in multiples of this many, where there are several.
///
/// Libtorch's products take other kernels for fewer rows, and those add in another order: measured, from five rows on a row's
/// bits do not depend on how many there are.
const QUERIES: i64 = 8;

/// Keys are read in multiples of this many: one vector of f32. The sum of a softmax's last, shorter vector is made in another
/// order.
const KEYS: i64 = 16;

/// How many a length lacks to a multiple of `unit`.
fn missing(length: i64, unit: i64) -> i64 {
    (-length).rem_euclid(unit)
}

/// `[batch, head, position, width]` with positions of zeros at the end, up to a multiple of `unit`.
fn filled_up(tensor: &Tensor, unit: i64) -> Result<Tensor, TchError> {
    match missing(tensor.size4()?.2, unit) {
        0 => Ok(tensor.shallow_clone()),
        missing => tensor.f_constant_pad_nd([0, 0, 0, missing]),
    }
}

/// `[batch, head, query, d]` as `[batch, kv_head, queries of its heads, d]`, so that keys are multiplied without being
/// repeated.
fn grouped(tensor: &Tensor, kv_heads: i64) -> Result<Tensor, TchError> {
    let (batch, heads, length, width) = tensor.size4()?;
    if heads == kv_heads {
        return Ok(tensor.shallow_clone());
    }
    tensor.f_reshape([batch, kv_heads, heads / kv_heads * length, width])
}

/// The opposite: one row of queries for each head.
fn ungrouped(tensor: Tensor, attention: &Attention) -> Result<Tensor, TchError> {
    let (batch, kv_heads, rows, width) = tensor.size4()?;
    if attention.heads == kv_heads {
        return Ok(tensor);
    }
    tensor.f_view([batch, attention.heads, rows * kv_heads / attention.heads, width])
}

/// What the softmax reads, `[batch, head, query, key]`, from queries and keys `[batch, head, position, d_head]`.
pub(crate) fn scores(
    queries: &Tensor,
    keys: &Tensor,
    attention: &Attention,
    masks: &Masks,
) -> Result<Tensor, TchError> {
    scores_of(queries, keys, attention, masks, 0..masks.queries)
}

/// The scores of the queries `rows`, which `queries` is.
fn scores_of(
    queries: &Tensor,
    keys: &Tensor,
    attention: &Attention,
    masks: &Masks,
    rows: Range<i64>,
) -> Result<Tensor, TchError> {
    let upcast = attention.in_f32 && matches!(queries.f_kind()?, Kind::Half | Kind::BFloat16);
    let queries = if masks.fill_up { filled_up(queries, QUERIES)? } else { queries.shallow_clone() };
    let (queries, keys) = if upcast {
        (queries.f_to_kind(Kind::Float)?, keys.f_to_kind(Kind::Float)?)
    } else {
        (queries, keys.shallow_clone())
    };
    // In place, because nobody has seen the tensor yet, and it is the largest of the run.
    let scores = grouped(&queries, attention.kv_heads)?.f_matmul(&keys.f_transpose(-2, -1)?)?;
    let mut scores = ungrouped(scores, attention)?.f_narrow(2, 0, rows.end - rows.start)?;
    if attention.scale != 1.0 {
        scores = scores.f_mul_scalar_(attention.scale)?;
    }
    if let Some(cap) = attention.softcap {
        scores = scores.f_div_scalar_(cap)?.f_tanh()?.f_mul_scalar(cap)?;
    }
    // A single query that nothing is hidden from needs no bias.
    let held = keys.size4()?.2;
    if !(masks.queries == 1 && masks.plain(attention, held)) {
        scores = scores.f_add_(&masks.bias(attention, held)?.f_narrow(2, rows.start, rows.end - rows.start)?)?;
    }
    scores.f_contiguous()
}

/// The attention pattern in the dtype of the run. Takes the scores, which are as large, so that they go first.
///
/// Sinks, `[head]`, take their share and are left out, so that a row adds up to less than one.
pub(crate) fn pattern(scores: Tensor, kind: Kind, sinks: Option<&Tensor>) -> Result<Tensor, TchError> {
    let Some(sinks) = sinks else {
        let pattern = scores.f_softmax(-1, None)?;
        drop(scores);
        return pattern.f_to_kind(kind);
    };
    let (batch, heads, queries, keys) = scores.size4()?;
    let sinks =
        sinks.f_to_kind(scores.f_kind()?)?.f_view([1, heads, 1, 1])?.f_expand([batch, heads, queries, 1], false)?;
    let joined = Tensor::f_cat(&[&scores, &sinks], -1)?;
    drop(scores);
    joined.f_softmax(-1, None)?.f_narrow(-1, 0, keys)?.f_to_kind(kind)?.f_contiguous()
}

/// `z` from a pattern, `[batch, head, query, d_head]`.
pub(crate) fn apply(
    pattern: &Tensor,
    values: &Tensor,
    attention: &Attention,
    masks: &Masks,
) -> Result<Tensor, TchError> {
    let rows = pattern.size4()?.2;
    let pattern = if masks.fill_up { filled_up(pattern, QUERIES)? } else { pattern.shallow_clone() };
    let z = ungrouped(grouped(&pattern, attention.kv_heads)?.f_matmul(values)?, attention)?;
    if z.size4()?.2 == rows { Ok(z) } else { z.f_narrow(2, 0, rows) }
}

/// `z` without a pattern that anybody sees, `[batch, head, query, d_head]`; the scores never exist as a whole.
pub(crate) fn attend(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    attention: &Attention,
    masks: &Masks,
    sinks: Option<&Tensor>,
) -> Result<Tensor, TchError> {
    if attention.softcap.is_some() || sinks.is_some() {
        return attend_in_tiles(queries, keys, values, attention, masks, sinks);
    }
    let held = keys.size4()?.2;
    let plain = masks.plain(attention, held);
    let shared = attention.kv_heads != attention.heads;
    let fused = |queries: &Tensor, keys: &Tensor, values: &Tensor, bias: Option<Tensor>, causal: bool| {
        Tensor::f_scaled_dot_product_attention(queries, keys, values, bias, 0.0, causal, attention.scale, shared)
    };
    if !masks.fill_up {
        let bias = if plain { None } else { Some(masks.bias(attention, held)?) };
        let causal = plain && masks.queries > 1;
        if masks.single
            && plain
            && let Some(z) = of_one_query(queries, keys, values, attention)?
        {
            return Ok(z);
        }
        return fused(queries, keys, values, bias, causal);
    }
    // Causality hides the keys of the filling from all queries but those that see all keys.
    let causal = plain && masks.queries == held;
    let bias = if causal { None } else { Some(masks.filled_up_bias(attention, held)?) };
    let (queries, keys, values) = (filled_up(queries, QUERIES)?, filled_up(keys, KEYS)?, filled_up(values, KEYS)?);
    fused(&queries, &keys, &values, bias, causal)?.f_narrow(2, 0, masks.queries)
}

/// The attention of a single query that sees all keys, on this thread: the fused kernel wakes further ones as soon as there are two
/// heads, for work that takes one thread less time, and those wait busily for more when others have something to do. `None`
/// where gradients are recorded, and in f64.
fn of_one_query(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    attention: &Attention,
) -> Result<Option<Tensor>, TchError> {
    if keys.requires_grad() || values.requires_grad() {
        return Ok(None);
    }
    // Heads that share keys follow one another.
    let Some(mut numbers) = row::numbers(queries)? else { return Ok(None) };
    numbers.iter_mut().for_each(|number| *number *= attention.scale as f32);
    let Some(mut pattern) = lowmem::rows_times_vectors(keys, &numbers) else { return Ok(None) };
    pattern.chunks_exact_mut(keys.size4()?.2.max(1) as usize).for_each(row::softmax);
    let Some(z) = lowmem::sums_of_rows(values, &pattern) else { return Ok(None) };
    row::like(queries, &z).map(Some)
}

/// Bytes of the scores that exist at once where the fused kernel cannot compute them.
const TILE: i64 = 32 << 20;

/// The same by scores of some queries at a time.
fn attend_in_tiles(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    attention: &Attention,
    masks: &Masks,
    sinks: Option<&Tensor>,
) -> Result<Tensor, TchError> {
    let (batch, heads, length, _) = queries.size4()?;
    let row = 4 * (batch * heads * keys.size4()?.2).max(1);
    let step = (TILE / row / QUERIES * QUERIES).max(QUERIES);
    let kind = queries.f_kind()?;
    let tile = |start: i64| {
        let rows = start..(start + step).min(length);
        let queries = queries.f_narrow(2, start, rows.end - rows.start)?;
        let scores = scores_of(&queries, keys, attention, masks, rows)?;
        apply(&pattern(scores, kind, sinks)?, values, attention, masks)
    };
    if length <= step {
        return tile(0);
    }
    let tiles = (0..length).step_by(step as usize).map(tile).collect::<Result<Vec<_>, _>>()?;
    Tensor::f_cat(&tiles, 2)
}
