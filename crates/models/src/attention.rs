//! Scaled dot-product attention with causal, local and padding masks.
//!
//! `z = softmax(scale · q kᵀ + bias) v`, with `bias` zero where a query may look and the dtype's least value where it may
//! not. GPT-Neo adds that value twice where both its own causal window and the padding forbid a key, as Hugging Face's
//! code does; it matters only in rows that are padding themselves, and there the two families differ.

use std::cell::OnceCell;

use tch::{Device, Kind, TchError, Tensor};

use crate::{AttentionKind, Config, config::BlockAttention, input::Checked};

/// The masks of one run, made when a block first needs them.
pub(crate) struct Masks {
    attended: Option<Tensor>,
    queries: i64,
    keys: i64,
    kind: Kind,
    device: Device,
    /// Whether causal and padding masks are added up.
    added: bool,
    global: OnceCell<Tensor>,
    local: OnceCell<Tensor>,
}

impl Masks {
    pub(crate) fn new(config: &Config, checked: &Checked, cached: i64, kind: Kind, device: Device) -> Self {
        Self {
            attended: checked.attended.as_ref().map(Tensor::shallow_clone),
            queries: checked.length,
            keys: cached + checked.length,
            kind,
            device,
            added: config.family.adds_masks,
            global: OnceCell::new(),
            local: OnceCell::new(),
        }
    }

    /// The window, where it hides anything at this length.
    fn window(&self, kind: AttentionKind) -> Option<i64> {
        match kind {
            AttentionKind::Local { window } if window < self.keys => Some(window),
            _ => None,
        }
    }

    /// Whether plain causality says it all, so that no mask need exist.
    fn plain(&self, kind: AttentionKind) -> bool {
        self.attended.is_none() && self.window(kind).is_none() && (self.queries == self.keys || self.queries == 1)
    }

    /// What is added to the scores: `[1 or batch, 1, query, key]`.
    fn bias(&self, kind: AttentionKind) -> Result<Tensor, TchError> {
        let window = self.window(kind);
        let cell = if window.is_some() { &self.local } else { &self.global };
        if let Some(bias) = cell.get() {
            return Ok(bias.shallow_clone());
        }
        let bias = self.make_bias(window)?;
        Ok(cell.get_or_init(|| bias).shallow_clone())
    }

    fn make_bias(&self, window: Option<i64>) -> Result<Tensor, TchError> {
        let options = (Kind::Int64, self.device);
        let queries = Tensor::f_arange_start(self.keys - self.queries, self.keys, options)?.f_unsqueeze(1)?;
        let keys = Tensor::f_arange(self.keys, options)?.f_unsqueeze(0)?;
        let causal = keys.f_le_tensor(&queries)?;
        let visible = match window {
            Some(window) => causal.f_logical_and(&keys.f_gt_tensor(&queries.f_sub_scalar(window)?)?)?,
            None => causal.shallow_clone(),
        };
        let attended = match &self.attended {
            Some(attended) => causal.f_logical_and(&attended.f_unsqueeze(1)?.f_unsqueeze(1)?)?,
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

/// What the softmax reads, `[batch, head, query, key]`, from queries and keys `[batch, head, position, d_head]`.
pub(crate) fn scores(
    queries: &Tensor,
    keys: &Tensor,
    block: BlockAttention,
    in_f32: bool,
    masks: &Masks,
) -> Result<Tensor, TchError> {
    let upcast = in_f32 && matches!(queries.f_kind()?, Kind::Half | Kind::BFloat16);
    let (queries, keys) = if upcast {
        (queries.f_to_kind(Kind::Float)?, keys.f_to_kind(Kind::Float)?)
    } else {
        (queries.shallow_clone(), keys.shallow_clone())
    };
    // In place, because nobody has seen the tensor yet, and it is the largest of the run.
    let mut scores = queries.f_matmul(&keys.f_transpose(-2, -1)?)?;
    if block.scale != 1.0 {
        scores = scores.f_mul_scalar_(block.scale)?;
    }
    // A single query that nothing is hidden from needs no bias.
    if !(masks.queries == 1 && masks.plain(block.kind)) {
        scores = scores.f_add_(&masks.bias(block.kind)?)?;
    }
    Ok(scores)
}

/// The attention pattern in the dtype of the run. Takes the scores, which are as large, so that they go first.
pub(crate) fn pattern(scores: Tensor, kind: Kind) -> Result<Tensor, TchError> {
    let pattern = scores.f_softmax(-1, None)?;
    drop(scores);
    pattern.f_to_kind(kind)
}

/// `z` without a pattern that anybody sees, `[batch, head, position, d_head]`; the scores never exist as a whole.
pub(crate) fn attend(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    block: BlockAttention,
    masks: &Masks,
) -> Result<Tensor, TchError> {
    let plain = masks.plain(block.kind);
    let causal = plain && masks.queries > 1;
    let bias = if plain { None } else { Some(masks.bias(block.kind)?) };
    Tensor::f_scaled_dot_product_attention(queries, keys, values, bias, 0.0, causal, block.scale, false)
}
