//! The one decoder: embed, blocks, final norm, unembed, with every site shown on the way.
//!
//! ```text
//! x = wte[ids] + wpe[positions]                       input
//! for each block i:
//!     x = x + out(softmax(scale · q kᵀ + bias) v)     h.i.resid_mid,  q, k, v from ln_1(x)
//!     x = x + out(activation(in(ln_2(x))))            h.i
//! logits = unembedding(ln_f(x))                       lm_head
//! ```

use tch::{Kind, TchError, Tensor};

use crate::{
    Action, CacheLayout, Error, Factor, Input, KvCache, LogitsAt, Model, Observer, Point, Result, Site, Stage,
    attention,
    attention::Masks,
    error::At,
    input::{Checked, Limits, Start},
    weights::{self, Block, Projections},
};

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// `[batch, position, vocabulary]` in the dtype of the run; `None` when it was stopped before.
    pub logits: Option<Tensor>,
    /// Where it was stopped.
    pub stopped_at: Option<Site>,
    /// Blocks that ran, the one it was stopped in included.
    pub blocks_run: usize,
}

/// Why the code below is left early. A stop and an error take the same way out.
enum Halt {
    Stop(Site),
    Error(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Which block is the first to run.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Begin {
    block: usize,
    /// Whether its attention half is already behind.
    attended: bool,
}

impl Begin {
    const FIRST: Self = Self { block: 0, attended: false };

    fn of(start: &Start, layers: usize) -> Result<Self> {
        let Start::Stream { site, .. } = start else { return Ok(Self::FIRST) };
        match (site.stage, site.point) {
            (Stage::Embedding, Point::Input) => Ok(Self::FIRST),
            (Stage::Block(block), Point::ResidMid) if block < layers => Ok(Self { block, attended: true }),
            (Stage::Block(block), Point::Output) if block < layers => Ok(Self { block: block + 1, attended: false }),
            _ => Err(Error::BadStart { site: site.to_string() }),
        }
    }
}

struct Run<'a> {
    model: &'a Model,
    observer: &'a mut dyn Observer,
    deepest: Option<Site>,
    cache: Option<&'a mut KvCache>,
    masks: Masks,
    batch: i64,
    length: i64,
    blocks_run: usize,
}

/// Runs `model` over `input`.
pub(crate) fn run(
    model: &Model,
    input: &Input,
    mut cache: Option<&mut KvCache>,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let config = model.config();
    let (kind, device) = (model.parts().dtype().kind(), model.parts().device());
    let cached = cache.as_ref().map_or(0, |cache| cache.len());
    let limits =
        Limits { vocabulary: config.vocabulary, positions: config.positions, d_model: config.d_model, cached, device };
    let begin = Begin::of(&input.start, config.layers())?;
    let checked = input.check(&limits)?;
    if let Some(cache) = &mut cache {
        if let Some(site) = input.start_site().filter(|_| begin != Begin::FIRST) {
            return Err(Error::CachedStart { site: site.to_string() });
        }
        let (heads, d_head) = (config.heads, config.d_head());
        cache.begin(CacheLayout { layers: config.layers(), batch: checked.batch, heads, d_head, kind, device })?;
    }
    let mut run = Run {
        model,
        deepest: observer.deepest(),
        observer,
        cache,
        masks: Masks::new(model, &checked, cached),
        batch: checked.batch,
        length: checked.length,
        blocks_run: 0,
    };
    let ended = run.all(input, &checked, begin);
    let blocks_run = run.blocks_run;
    match ended {
        Ok(logits) => {
            if let Some(cache) = run.cache {
                cache.commit(checked.length);
            }
            Ok(Outcome { logits: Some(logits), stopped_at: None, blocks_run })
        }
        Err(Halt::Stop(site)) => Ok(Outcome { logits: None, stopped_at: Some(site), blocks_run }),
        Err(Halt::Error(error)) => Err(error),
    }
}

impl Run<'_> {
    fn all(&mut self, input: &Input, checked: &Checked, begin: Begin) -> Result<Tensor, Halt> {
        let layers = self.model.config().layers();
        let mut x = match &input.start {
            Start::Tokens(_) => self.embed(checked)?,
            Start::Stream { site, stream } => self.show(*site, self.at_home(stream).at(*site)?)?,
        };
        let mut attended = begin.attended;
        for block in begin.block..layers {
            self.blocks_run += 1;
            let next = if self.ends_in(Stage::Block(block)) { None } else { Some(weights::block(block + 1)) };
            let tensors = self.model.parts().get(weights::block(block), next).map_err(Error::from)?;
            let weights = Block::take(self.model.config().family, self.model.numerics().alike_rows, tensors)?;
            x = self.block(block, &weights, x, attended)?;
            attended = false;
        }
        self.head(x, input.logits_at, checked.attended.as_ref())
    }

    /// Shows a value to the observer; gives back the value to go on with.
    fn show(&mut self, site: Site, value: Tensor) -> Result<Tensor, Halt> {
        Ok(self.show_and_tell(site, value)?.0)
    }

    /// As [`Run::show`], and whether the value to go on with is another.
    fn show_and_tell(&mut self, site: Site, value: Tensor) -> Result<(Tensor, bool), Halt> {
        let mut value = value;
        let mut replaced = false;
        if self.observer.wants(site) {
            let seen = self.observer.observe(site, &value);
            match seen.map_err(|source| Error::Observer { site: site.to_string(), source })? {
                Action::Continue => {}
                Action::Stop => return Err(Halt::Stop(site)),
                Action::Replace(other) => {
                    check_replacement(site, &value, &other)?;
                    value = other;
                    replaced = true;
                }
            }
        }
        // Not `==`: the deepest site may be one that this run passed before it began. A run that reaches the logits is whole,
        // and a cache keeps what it added.
        let ends = site != Site::LOGITS && self.deepest.is_some_and(|deepest| site >= deepest);
        if ends { Err(Halt::Stop(site)) } else { Ok((value, replaced)) }
    }

    /// Whether nothing after this stage is needed.
    fn ends_in(&self, stage: Stage) -> bool {
        self.deepest.is_some_and(|deepest| deepest.stage <= stage)
    }

    /// A tensor from outside in the dtype and on the device of the run.
    fn at_home(&self, tensor: &Tensor) -> Result<Tensor, TchError> {
        let parts = self.model.parts();
        tensor.f_to_device(parts.device())?.f_to_kind(parts.dtype().kind())
    }

    fn embed(&mut self, checked: &Checked) -> Result<Tensor, Halt> {
        let at = |point| Site { stage: Stage::Embedding, point };
        let (Some(ids), Some(position_ids)) = (&checked.ids, &checked.position_ids) else {
            return Err(Error::EmptyInput.into());
        };
        let parts = self.model.parts();
        let tokens = parts.rows(weights::EMBEDDING, weights::TOKENS, ids).map_err(Error::from)?;
        let tokens = self.show(at(Point::TokenEmbedding), tokens)?;
        let positions = parts.rows(weights::EMBEDDING, weights::POSITIONS, position_ids).map_err(Error::from)?;
        let positions = self.show(at(Point::PositionEmbedding), positions)?;
        let sum = tokens.f_add(&positions).at(Site::INPUT)?;
        self.show(Site::INPUT, sum)
    }

    /// One block; with `attended`, only its MLP half.
    fn block(&mut self, block: usize, weights: &Block, x: Tensor, attended: bool) -> Result<Tensor, Halt> {
        let site = |point| Site::block(block, point);
        let epsilon = self.model.config().layer_norm_epsilon;
        let x = if attended {
            x
        } else {
            let attention = self.attention(block, weights, &x)?;
            let sum = attention.f_add(&x).at(site(Point::ResidMid))?;
            self.show(site(Point::ResidMid), sum)?
        };
        let read = weights.norm_2.apply(&x, epsilon).at(site(Point::Norm2))?;
        let read = self.show(site(Point::Norm2), read)?;
        let hidden = weights.mlp_input.apply(&read).at(site(Point::MlpInput))?;
        let hidden = self.show(site(Point::MlpInput), hidden)?;
        let active = self.model.config().activation.apply(&hidden).at(site(Point::MlpActivation))?;
        let active = self.show(site(Point::MlpActivation), active)?;
        let added = weights.mlp_output.apply(&active).at(site(Point::MlpOutput))?;
        let added = self.show(site(Point::MlpOutput), added)?;
        let sum = x.f_add(&added).at(site(Point::Output))?;
        self.show(site(Point::Output), sum)
    }

    /// What attention adds to the residual stream.
    fn attention(&mut self, block: usize, weights: &Block, x: &Tensor) -> Result<Tensor, Halt> {
        let config = self.model.config();
        let site = |point| Site::block(block, point);
        let read = weights.norm_1.apply(x, config.layer_norm_epsilon).at(site(Point::Norm1))?;
        let read = self.show(site(Point::Norm1), read)?;
        let [queries, keys, values] = match &weights.query_key_value {
            Projections::Fused(linear) => {
                let at = site(Point::QueryKeyValue);
                let joined = self.show(at, linear.apply(&read).at(at)?)?;
                let width = config.d_model;
                let part = |index: i64| joined.f_narrow(-1, index * width, width).at(at);
                [part(0)?, part(1)?, part(2)?]
            }
            Projections::Separate([query, key, value]) => {
                let mut project = |linear: &weights::Linear, point| {
                    let projected = linear.apply(&read).at(site(point))?;
                    self.show(site(point), projected)
                };
                [project(query, Point::Query)?, project(key, Point::Key)?, project(value, Point::Value)?]
            }
        };
        let (heads, d_head) = (config.heads, config.d_head());
        let (batch, length) = (self.batch, self.length);
        // [batch, position, d_model] to [batch, head, position, d_head]
        let mut split = |tensor: Tensor, point| {
            let at = site(point);
            let mut split = tensor.f_reshape([batch, length, heads, d_head]).at(at)?;
            if self.observer.wants(at) {
                // A part of a joint projection: whoever keeps it should not keep the whole with it.
                split = split.f_contiguous().at(at)?;
            }
            self.show(at, split)?.f_transpose(1, 2).at(at).map_err(Halt::Error)
        };
        let queries = split(queries, Point::HeadQuery)?;
        let (mut keys, mut values) = (split(keys, Point::HeadKey)?, split(values, Point::HeadValue)?);
        if let Some(cache) = &mut self.cache {
            (keys, values) = cache.extend(block, &keys, &values)?;
        }
        let at = site(Point::Pattern);
        let settings = config.blocks.get(block).copied().ok_or_else(|| Error::BadStart { site: at.to_string() })?;
        let seen = self.observer.wants(site(Point::Scores)) || self.observer.wants(at);
        // Gradients reach a pattern only if the values are multiplied by that very one.
        let materialised = self.model.numerics().materialised_attention || seen && queries.requires_grad();
        let mut pattern = None;
        if seen || materialised {
            let scores = attention::scores(&queries, &keys, settings, config.attention_in_f32, &self.masks);
            let scores = scores.at(site(Point::Scores))?;
            let (scores, scores_replaced) = self.show_and_tell(site(Point::Scores), scores)?;
            let made = queries.f_kind().and_then(|kind| attention::pattern(scores, kind)).at(at)?;
            let (made, replaced) = self.show_and_tell(at, made)?;
            // Otherwise the run goes on as if nobody had looked.
            pattern = Some(made).filter(|_| materialised || replaced || scores_replaced);
        }
        let z = match pattern {
            Some(pattern) => attention::apply(&pattern, &values, &self.masks),
            None => attention::attend(&queries, &keys, &values, settings, &self.masks),
        };
        let at = site(Point::Z);
        let z = z.and_then(|z| z.f_transpose(1, 2)).at(at)?;
        let z = self.show(at, z)?;
        let at = site(Point::AttentionOutput);
        let each = site(Point::HeadOutput);
        let mut outputs = None;
        if self.observer.wants(each) {
            let made = weights.attention_output.each_head(&z).at(each)?;
            let recorded = made.requires_grad();
            let (made, replaced) = self.show_and_tell(each, made)?;
            // As with the pattern: who only looks changes nothing, and gradients reach what was seen.
            outputs = Some(made).filter(|_| replaced || recorded);
        }
        let added = match outputs {
            Some(outputs) => weights.attention_output.sum_heads(&outputs),
            None => {
                let joined = z.f_reshape([batch, length, heads * d_head]).at(at)?;
                weights.attention_output.apply(&joined)
            }
        };
        self.show(at, added.at(at)?)
    }

    fn head(&mut self, x: Tensor, logits_at: LogitsAt, attended: Option<&Tensor>) -> Result<Tensor, Halt> {
        let ends = self.deepest.is_some_and(|deepest| deepest <= Site::FINAL_NORM);
        let next = if ends { None } else { Some(weights::unembedding(self.model.config().layers())) };
        let norm = self.model.final_norm_before(next)?;
        let normed = norm.apply(&x, self.model.parts().dtype().kind())?;
        let mut normed = self.show(Site::FINAL_NORM, normed)?;
        if logits_at == LogitsAt::Last {
            normed = last_tokens(&normed, attended).at(Site::LOGITS)?;
        }
        let unembedding = self.model.unembedding()?;
        let factor = if self.model.numerics().alike_rows { Factor::alike(&normed) } else { Factor::new(&normed) };
        let logits = factor.and_then(|x| x.times_transposed(&unembedding, None)).at(Site::LOGITS)?;
        self.show(Site::LOGITS, logits)
    }
}

/// Each row's last position that is not padding, `[batch, 1, d_model]` of `[batch, position, d_model]`. `attended` is
/// `[batch, cached and new positions]`.
fn last_tokens(stream: &Tensor, attended: Option<&Tensor>) -> Result<Tensor, TchError> {
    let (batch, length, width) = stream.size3()?;
    let Some(attended) = attended else { return stream.f_narrow(1, length - 1, 1) };
    let new = attended.f_narrow(1, attended.size2()?.1 - length, length)?;
    let columns = Tensor::f_arange(length, (Kind::Int64, stream.device()))?;
    // Every token counts for more than any padding, and the later of two for more than the earlier.
    let weights = new.f_to_kind(Kind::Int64)?.f_mul_scalar(length)?.f_add(&columns)?;
    let last = weights.f_argmax(1, true)?.f_unsqueeze(2)?;
    stream.f_gather(1, &last.f_expand([batch, 1, width], false)?, false)
}

fn check_replacement(site: Site, value: &Tensor, other: &Tensor) -> Result<()> {
    let kind = |tensor: &Tensor| tensor.f_kind().at(site);
    let (expected_kind, found_kind): (Kind, Kind) = (kind(value)?, kind(other)?);
    if value.size() == other.size() && expected_kind == found_kind && value.device() == other.device() {
        return Ok(());
    }
    Err(Error::Replacement {
        site: site.to_string(),
        expected: value.size(),
        found: other.size(),
        expected_kind,
        found_kind,
        expected_device: value.device(),
        found_device: other.device(),
    })
}
