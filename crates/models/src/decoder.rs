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
    Action, Error, Factor, Input, KvCache, LogitsAt, Model, Observer, Point, Result, Site, Stage, attention,
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
    let (device, kind) = (model.parts().device(), model.parts().dtype().kind());
    let cached = cache.as_ref().map_or(0, |cache| cache.len());
    let limits =
        Limits { vocabulary: config.vocabulary, positions: config.positions, d_model: config.d_model, cached, device };
    let checked = input.check(&limits)?;
    if let Some(cache) = &mut cache {
        cache.begin(config.layers(), checked.batch)?;
    }
    let mut run = Run {
        model,
        deepest: observer.deepest(),
        observer,
        cache,
        masks: Masks::new(config, &checked, cached, kind, device),
        batch: checked.batch,
        length: checked.length,
        blocks_run: 0,
    };
    let ended = run.all(input, &checked);
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
    fn all(&mut self, input: &Input, checked: &Checked) -> Result<Tensor, Halt> {
        let layers = self.model.config().layers();
        // The first block to run, and whether its attention half is already behind.
        let (mut x, first, mut attended) = match &input.start {
            Start::Tokens(_) => (self.embed(checked)?, 0, false),
            Start::Stream { site, stream } => {
                let stream = self.show(*site, self.at_home(stream).at(*site)?)?;
                match (site.stage, site.point) {
                    (Stage::Embedding, Point::Input) => (stream, 0, false),
                    (Stage::Block(block), Point::ResidMid) if block < layers => (stream, block, true),
                    (Stage::Block(block), Point::Output) if block < layers => (stream, block + 1, false),
                    _ => return Err(Error::BadStart { site: site.to_string() }.into()),
                }
            }
        };
        for block in first..layers {
            self.blocks_run += 1;
            let next = if self.ends_in(Stage::Block(block)) { None } else { Some(weights::block(block + 1)) };
            let tensors = self.model.parts().get(weights::block(block), next).map_err(Error::from)?;
            let weights = Block::take(self.model.config().family, tensors)?;
            x = self.block(block, &weights, x, attended)?;
            attended = false;
        }
        self.head(x, input.logits_at)
    }

    /// Shows a value to the observer; gives back the value to go on with.
    fn show(&mut self, site: Site, value: Tensor) -> Result<Tensor, Halt> {
        let mut value = value;
        if self.observer.wants(site) {
            let seen = self.observer.observe(site, &value);
            match seen.map_err(|source| Error::Observer { site: site.to_string(), source })? {
                Action::Continue => {}
                Action::Stop => return Err(Halt::Stop(site)),
                Action::Replace(other) => {
                    check_replacement(site, &value, &other)?;
                    value = other;
                }
            }
        }
        // Not `==`: the deepest site may be one that this run passed before it began. A run that reaches the logits is whole,
        // and a cache keeps what it added.
        let ends = site != Site::LOGITS && self.deepest.is_some_and(|deepest| site >= deepest);
        if ends { Err(Halt::Stop(site)) } else { Ok(value) }
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
        let at = site(Point::Pattern);
        if let Some(cache) = &mut self.cache {
            (keys, values) = cache.extend(block, &keys, &values).at(at)?;
        }
        let settings = config.blocks.get(block).copied().ok_or_else(|| Error::BadStart { site: at.to_string() })?;
        let z = if self.observer.wants(site(Point::Scores)) || self.observer.wants(at) {
            let scores = attention::scores(&queries, &keys, settings, config.attention_in_f32, &self.masks);
            let scores = self.show(site(Point::Scores), scores.at(site(Point::Scores))?)?;
            let pattern = queries.f_kind().and_then(|kind| attention::pattern(scores, kind)).at(at)?;
            self.show(at, pattern)?.f_matmul(&values)
        } else {
            attention::attend(&queries, &keys, &values, settings, &self.masks)
        };
        let at = site(Point::Z);
        let z = z.and_then(|z| z.f_transpose(1, 2)).at(at)?;
        let z = self.show(at, z)?;
        let at = site(Point::AttentionOutput);
        let each = site(Point::HeadOutput);
        let added = if self.observer.wants(each) {
            let outputs = self.show(each, weights.attention_output.each_head(&z).at(each)?)?;
            weights.attention_output.sum_heads(&outputs)
        } else {
            let joined = z.f_reshape([batch, length, heads * d_head]).at(at)?;
            weights.attention_output.apply(&joined)
        };
        self.show(at, added.at(at)?)
    }

    fn head(&mut self, x: Tensor, logits_at: LogitsAt) -> Result<Tensor, Halt> {
        let ends = self.deepest.is_some_and(|deepest| deepest <= Site::FINAL_NORM);
        let next = if ends { None } else { Some(weights::unembedding(self.model.config().layers())) };
        let norm = self.model.final_norm_before(next)?;
        let normed = norm.apply(&x, self.model.parts().dtype().kind())?;
        let mut normed = self.show(Site::FINAL_NORM, normed)?;
        if logits_at == LogitsAt::Last {
            normed = normed.f_narrow(1, self.length - 1, 1).at(Site::LOGITS)?;
        }
        let unembedding = self.model.unembedding()?;
        let logits = Factor::new(&normed).and_then(|x| x.times_transposed(&unembedding, None)).at(Site::LOGITS)?;
        self.show(Site::LOGITS, logits)
    }
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
