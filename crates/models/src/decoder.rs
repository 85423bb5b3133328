//! The one decoder: embed, layers, final norm, unembed, with every site shown on the way. It runs an
//! [`Architecture`](crate::Architecture) and knows no family.
//!
//! ```text
//! x = tokens + positions                              input
//! for each layer i:
//!     x = x + out(softmax(scale · q kᵀ + bias) v)     h.i.resid_mid,  q, k, v from norm_1(x)
//!     x = x + out(activation(in(norm_2(x))))          h.i
//! logits = unembedding(norm(x))                       lm_head
//! ```

mod attention;
mod embed;
mod experts;
mod head;
mod mlp;
#[cfg(test)]
mod testing;

use lowmem::Held;
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    Action, CacheLayout, Error, Input, KvCache, Model, Observer, Point, Prefix, Result, Site, Stage,
    architecture::{Layer, Residual},
    attend::Masks,
    error::At,
    families::Layout,
    input::{Checked, Limits, Start},
    norm::Normer,
    rotary::{Rotary, Rotations},
    weights::{LayerWeights, Placed},
};

/// How a run ended.
#[derive(Debug)]
#[non_exhaustive]
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
pub(crate) struct Begin {
    block: usize,
    /// Whether its attention half is already behind.
    attended: bool,
}

impl Begin {
    const FIRST: Self = Self { block: 0, attended: false };

    fn of(start: &Start, model: &Model) -> Result<Self> {
        let Start::Stream { site, .. } = start else { return Ok(Self::FIRST) };
        match (site.stage, site.point) {
            _ if !model.order().has(*site) => Err(Error::BadStart { site: site.to_string() }),
            (Stage::Embedding, Point::Input) => Ok(Self::FIRST),
            (Stage::Block(block), Point::ResidMid) => Ok(Self { block, attended: true }),
            (Stage::Block(block), Point::Output) => Ok(Self { block: block + 1, attended: false }),
            _ => Err(Error::BadStart { site: site.to_string() }),
        }
    }
}

/// Positions that were run before, and come first in this run's text.
pub(crate) enum Past<'a> {
    None,
    /// They are added to.
    Cache(&'a mut KvCache),
    /// They are only read.
    Prefix(&'a Prefix),
}

impl Past<'_> {
    fn len(&self) -> i64 {
        match self {
            Self::None => 0,
            Self::Cache(cache) => cache.len(),
            Self::Prefix(prefix) => prefix.len(),
        }
    }
}

struct Run<'a> {
    model: &'a Model,
    observer: &'a mut dyn Observer,
    deepest: Option<Site>,
    past: Past<'a>,
    masks: Masks,
    rotations: Rotations,
    batch: i64,
    length: i64,
    /// Whether it is a single row on the CPU that need not have the bits it has among others.
    single: bool,
    /// Whether matrices are multiplied in the blocks of their file: for a single row that costs less than to make them.
    packed: bool,
    blocks_run: usize,
}

/// Where the run begins, and what it reads, checked against the model.
pub(crate) fn check(model: &Model, input: &Input, cached: i64) -> Result<(Begin, Checked)> {
    let architecture = model.architecture();
    let learned = architecture.embedding.positions.as_ref();
    let limits = Limits {
        vocabulary: architecture.vocabulary,
        positions: learned.map(|_| architecture.context),
        first_position: learned.filter(|learned| learned.count_tokens).map_or(0, |learned| -learned.offset),
        count_tokens: learned.is_some_and(|learned| learned.count_tokens),
        d_model: architecture.d_model,
        cached,
        device: model.parts().device(),
    };
    Ok((Begin::of(&input.start, model)?, input.check(&limits)?))
}

/// Runs `model` over `input`.
pub(crate) fn run(model: &Model, input: &Input, mut past: Past, observer: &mut dyn Observer) -> Result<Outcome> {
    let architecture = model.architecture();
    let (kind, device) = (model.parts().dtype().kind(), model.parts().device());
    let cached = past.len();
    let (begin, checked) = check(model, input, cached)?;
    let rotations = Rotations::new(&checked.position_ids, kind, device).map_err(Error::torch("the positions"))?;
    let (heads, d_head) = architecture.key_heads();
    let layout = CacheLayout { layers: architecture.layers.len(), batch: checked.batch, heads, d_head, kind, device };
    let rotaries = architecture.layers.iter().filter_map(|layer| layer.attention.rotary.as_ref());
    let way = rotaries.map(|rotary| rotations.way(rotary)).max().unwrap_or(0);
    match &mut past {
        Past::None => {}
        Past::Cache(cache) => {
            if let Some(site) = input.start_site().filter(|_| begin != Begin::FIRST) {
                return Err(Error::CachedStart { site: site.to_string() });
            }
            cache.begin(layout)?;
            cache.turn(way, cached + checked.length)?;
        }
        Past::Prefix(prefix) => prefix.check(layout, way, cached + checked.length)?,
    }
    let single = checked.batch * checked.length == 1 && device == Device::Cpu && !model.numerics().alike_rows;
    let packed = single && model.packs();
    let begun = observer.begin(input, cached);
    begun.map_err(|source| Error::Observer { site: "the start of the run".into(), source })?;
    let mut run = Run {
        model,
        deepest: observer.deepest(),
        observer,
        past,
        masks: Masks::new(model, &checked, cached, single),
        rotations,
        batch: checked.batch,
        length: checked.length,
        single,
        packed,
        blocks_run: 0,
    };
    let ended = run.all(input, &checked, begin);
    let blocks_run = run.blocks_run;
    match ended {
        Ok(logits) => {
            if let Past::Cache(cache) = run.past {
                cache.commit(checked.length);
            }
            Ok(Outcome { logits: Some(logits), stopped_at: None, blocks_run })
        }
        Err(Halt::Stop(site)) => Ok(Outcome { logits: None, stopped_at: Some(site), blocks_run }),
        Err(Halt::Error(error)) => Err(error),
    }
}

impl<'a> Run<'a> {
    fn all(&mut self, input: &Input, checked: &Checked, begin: Begin) -> Result<Tensor, Halt> {
        let model = self.model;
        let (architecture, map) = (model.architecture(), model.part_map());
        let mut x = match &input.start {
            Start::Tokens(_) => self.embed(checked)?,
            Start::Stream { site, stream } => self.show(*site, self.at_home(stream).at(*site)?)?,
        };
        let mut attended = begin.attended;
        for (block, layer) in architecture.layers.iter().enumerate().skip(begin.block) {
            self.blocks_run += 1;
            // Which experts come next is known when the router has spoken.
            let next =
                (!self.ends_in(Stage::Block(block)) && layer.mlp.experts.is_none()).then(|| map.layer(block + 1));
            let tensors = self.held(map.layer(block), next, model.config().family.layout == Layout::InOut)?;
            let mut shelf = Placed::new(model.config().family, tensors);
            let weights = LayerWeights::walk(layer, architecture.d_model, &mut shelf)?;
            x = self.layer(block, layer, &weights, x, attended)?;
            attended = false;
        }
        self.head(x, input.logits_at, checked.attended.as_ref())
    }

    /// The tensors of a part; `turned` says that matrices are `[in, out]`, and `next` which part comes after it.
    fn held(&self, part: usize, next: Option<usize>, turned: bool) -> Result<Vec<Held>> {
        let parts = self.model.parts();
        if self.packed {
            return Ok(parts.get_packed(part, turned)?);
        }
        Ok(parts.get(part, next)?.into_iter().map(Held::Tensor).collect())
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
        // A run that reaches the logits is whole, and a cache keeps what it added.
        let ends = site != Site::LOGITS && self.is_deep(site);
        if ends { Err(Halt::Stop(site)) } else { Ok((value, replaced)) }
    }

    /// Whether a site is the deepest one that matters, or after it: the deepest may be one that this run passed before it
    /// began.
    fn is_deep(&self, site: Site) -> bool {
        let Some(deepest) = self.deepest else { return false };
        match site.stage.cmp(&deepest.stage) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Greater => true,
            std::cmp::Ordering::Equal => {
                let order = self.model.order();
                order.rank(site) >= order.rank(deepest)
            }
        }
    }

    /// Whether nobody looks at a value of a block, by its names.
    fn is_unseen(&self, block: usize, points: &[Point]) -> bool {
        points.iter().all(|point| !self.observer.wants(Site::block(block, *point)))
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

    /// A norm, shown at its site; without one, the value itself.
    fn normed(&mut self, norm: Option<&Normer>, site: Site, x: &Tensor) -> Result<Tensor, Halt> {
        match norm {
            Some(norm) => {
                let normed = self.norm(norm, x).at(site)?;
                self.show(site, normed)
            }
            None => Ok(x.shallow_clone()),
        }
    }

    fn norm(&self, norm: &Normer, x: &Tensor) -> Result<Tensor, TchError> {
        if self.single { norm.apply_to_row(x) } else { norm.apply(x) }
    }

    fn rotated(&self, rotary: &Rotary, heads: &Tensor) -> Result<Tensor, TchError> {
        if self.single { self.rotations.apply_to_row(rotary, heads) } else { self.rotations.apply(rotary, heads) }
    }

    /// One layer; with `attended`, only its MLP half.
    fn layer(
        &mut self,
        block: usize,
        layer: &Layer,
        weights: &LayerWeights,
        x: Tensor,
        attended: bool,
    ) -> Result<Tensor, Halt> {
        let site = |point| Site::block(block, point);
        let (first, second) = (&weights.attention_norms, &weights.mlp_norms);
        if layer.residual == Residual::Parallel {
            let read = self.normed(first.before.as_ref(), site(Point::Norm1), &x)?;
            let attention = self.attention(block, &layer.attention, weights, &read)?;
            let attention = self.normed(first.after.as_ref(), site(Point::AttentionNorm), &attention)?;
            let read = match &second.before {
                Some(norm) => self.normed(Some(norm), site(Point::Norm2), &x)?,
                None => read,
            };
            let mlp = self.mlp(block, &layer.mlp, &weights.mlp, &read)?;
            let mlp = self.normed(second.after.as_ref(), site(Point::MlpNorm), &mlp)?;
            let both = attention.f_add(&mlp).at(site(Point::Output))?;
            let sum = added(both, &x, true).at(site(Point::Output))?;
            return self.show(site(Point::Output), sum);
        }
        let x = if attended {
            x
        } else {
            let read = self.normed(first.before.as_ref(), site(Point::Norm1), &x)?;
            let attention = self.attention(block, &layer.attention, weights, &read)?;
            let attention = self.normed(first.after.as_ref(), site(Point::AttentionNorm), &attention)?;
            let over = self.is_unseen(block, &[Point::AttentionOutput, Point::AttentionNorm]);
            let sum = added(attention, &x, over).at(site(Point::ResidMid))?;
            let sum = self.normed(first.stream.as_ref(), site(Point::Norm1), &sum)?;
            self.show(site(Point::ResidMid), sum)?
        };
        let read = self.normed(second.before.as_ref(), site(Point::Norm2), &x)?;
        let mlp = self.mlp(block, &layer.mlp, &weights.mlp, &read)?;
        let mlp = self.normed(second.after.as_ref(), site(Point::MlpNorm), &mlp)?;
        let over = self.is_unseen(block, &[Point::ExpertSum, Point::MlpOutput, Point::MlpNorm]);
        let sum = added(mlp, &x, over).at(site(Point::Output))?;
        let sum = self.normed(second.stream.as_ref(), site(Point::Norm2), &sum)?;
        self.show(site(Point::Output), sum)
    }
}

/// `value + x`, in the memory of `value` where that may be written over: fresh memory costs page faults.
fn added(mut value: Tensor, x: &Tensor, over: bool) -> Result<Tensor, TchError> {
    if over && !value.requires_grad() && !x.requires_grad() { value.f_add_(x) } else { value.f_add(x) }
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
