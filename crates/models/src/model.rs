//! A model: a config and the parts that hold its weights.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use lowmem::{Checkpoint, ExtraTensors, Index, LoadOptions, LoadReport, PartRequest, Parts};
use tch::{Kind, Tensor};

use crate::{
    Architecture, Config, Error, Factor, Input, KvCache, Numerics, Observer, Outcome, Prefix, Products, Result, Site,
    Sites, Stage, Tokens, Unembedding,
    decoder::{self, Past},
    gguf, random,
    site::Order,
    weights::{self, PartMap, Placed, Spelling, TailWeights},
};

/// What comes between the last block and the unembedding, with its weights, which live as long as this value: the final norm,
/// and where the unembedding is narrower than the stream, a projection.
pub struct Tail {
    pub(crate) weights: TailWeights,
}

impl Tail {
    /// The final norm of `stream`, `[.., d_model]`, computed in `kind`; the same shape. Without a norm, the stream itself.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`].
    pub fn norm(&self, stream: &Tensor, kind: Kind) -> Result<Tensor> {
        let normed = match &self.weights.norm {
            Some(norm) => norm.apply_in(stream, kind),
            None => stream.f_to_kind(kind),
        };
        normed.map_err(Error::torch(Site::FINAL_NORM))
    }

    /// A normed stream projected to the width of the unembedding, `[.., width]`; where they are the same, the stream itself.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`].
    pub fn project(&self, normed: &Tensor) -> Result<Tensor> {
        let Some(projection) = &self.weights.projection else { return Ok(normed.shallow_clone()) };
        let projected = || {
            let kind = normed.f_kind()?;
            let weight = projection.weight.f_to_kind(kind)?;
            Factor::new(normed)?.times_transposed(&weight, None)
        };
        projected().map_err(Error::torch(Site::PROJECTED))
    }

    /// What the unembedding reads of `stream`, `[.., d_model]`: normed and projected, computed in `kind`.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`].
    pub fn apply(&self, stream: &Tensor, kind: Kind) -> Result<Tensor> {
        self.project(&self.norm(stream, kind)?)
    }
}

/// A decoder-only language model of any supported family.
///
/// Runs take `&self` and leave nothing behind. A model is [`Send`] and [`Sync`]: several threads may run it at once, and
/// each gets the bits that it would get alone. Threads wait for each other while a part is placed. With streamed weights
/// every run places its parts for itself: what is read ahead for one is of no use to another, which costs time, and each
/// run holds its own parts, which costs memory.
///
/// [`Model::trainable`] may be called while others run: those runs go on without gradients. Backward passes on several
/// threads add to the same gradients, in no particular order; an optimizer's step changes what runs under way read, so
/// let none be under way. Tensors that the model gives out share its storage: whoever writes into one writes for all.
pub struct Model {
    config: Config,
    order: Order,
    map: PartMap,
    parts: Parts,
    numerics: Numerics,
    pub(crate) tokens: Option<Arc<dyn Tokens>>,
    pub(crate) name: Option<String>,
}

// Runs on several threads are promised, not only possible as it happens.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Model>();
};

impl Model {
    /// Opens a checkpoint: reads `config.json`, compares every tensor's name and shape with what the config implies, and
    /// reads no weight. One exception: where the config ties embedding and unembedding and the checkpoint holds both, they
    /// are compared, up to the first difference. Equal ones are one matrix; others stay two, and
    /// [`LoadReport::untied`] says so.
    ///
    /// # Errors
    ///
    /// [`Error::Products`]; whatever [`Config::from_json`] refuses; [`lowmem::Error::MissingTensor`] or [`lowmem::Error::Misshapen`] naming the
    /// tensor; with [`ExtraTensors::Refuse`] also [`lowmem::Error::ExtraTensors`].
    pub fn open(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Self> {
        Products::chosen()?;
        let config = Config::of(checkpoint)?;
        let of_gguf = checkpoint.gguf().map(|_| gguf::spelled(checkpoint, &config)).transpose()?;
        let checkpoint = of_gguf.as_ref().unwrap_or(checkpoint);
        let spelling = Spelling::of(checkpoint.index(), &config);
        let requests = until_missing(checkpoint.index(), weights::parts(&config, &spelling))?;
        let ignored = weights::ignored(checkpoint.index(), &config, &spelling);
        let known: HashSet<&str> = requests
            .iter()
            .flat_map(|part| &part.tensors)
            .map(|tensor| tensor.name.as_str())
            .chain(ignored.iter().map(String::as_str))
            .collect();
        let names = checkpoint.index().tensors.keys();
        let extra: Vec<String> = names.filter(|name| !known.contains(name.as_str())).cloned().collect();
        let parts = Parts::new(checkpoint, requests, options)?;
        if !extra.is_empty() && options.extra_tensors == ExtraTensors::Refuse {
            let checkpoint = checkpoint.path().to_owned();
            return Err(lowmem::Error::ExtraTensors { checkpoint, tensors: extra }.into());
        }
        parts.report_unused(ignored, extra);
        Ok(Self::of(config, parts))
    }

    fn of(config: Config, parts: Parts) -> Self {
        let (order, map) = (Order::of(&config.architecture), PartMap::of(&config.architecture));
        Self { config, order, map, parts, numerics: Numerics::FAST, tokens: None, name: None }
    }

    /// A model over tensors in memory, named as `save_pretrained` names them (`transformer.h.0.ln_1.weight`).
    ///
    /// # Errors
    ///
    /// Those of [`Config::check`]; [`Error::Products`]; [`lowmem::Error::MissingTensor`] or [`lowmem::Error::Misshapen`].
    pub fn from_tensors(config: Config, tensors: &HashMap<String, Tensor>) -> Result<Self> {
        Products::chosen()?;
        config.check()?;
        let requests = weights::parts(&config, &Spelling::standard(&config)).collect::<Result<_>>()?;
        let parts = Parts::from_tensors(tensors, requests)?;
        Ok(Self::of(config, parts))
    }

    /// A model with random weights in f32 on the CPU, initialised as Radford et al. (2019) describe: normal, biases zero,
    /// norms one, residual projections scaled by `1 / sqrt(2 layers)`. The same seed gives the same weights on every machine
    /// and any number of threads ([`crate::Random`]); libtorch's generator is neither used nor changed.
    ///
    /// # Errors
    ///
    /// Those of [`Config::check`]; [`Error::Torch`] when memory runs out.
    pub fn random(config: Config, seed: u64) -> Result<Self> {
        let tensors = random::tensors(&config, seed)?;
        Self::from_tensors(config, &tensors)
    }

    /// Names and shapes of all tensors of a model with this config, in the order of its parts, as `save_pretrained` names
    /// them. Tied weights appear once.
    ///
    /// # Errors
    ///
    /// Those of [`Config::check`].
    pub fn tensor_shapes(config: &Config) -> Result<Vec<(String, Vec<i64>)>> {
        config.check()?;
        let mut seen = HashSet::new();
        let spelling = Spelling::standard(config);
        let parts = weights::parts(config, &spelling).collect::<Result<Vec<_>>>()?;
        let tensors = parts.into_iter().flat_map(|part| part.tensors);
        let distinct = tensors.filter(|tensor| seen.insert(tensor.name.clone()));
        Ok(distinct
            .map(|tensor| {
                let shape = tensor.stored_shape();
                (tensor.name, shape)
            })
            .collect())
    }

    /// The same model computing in another way where there are several.
    pub fn with_numerics(mut self, numerics: Numerics) -> Self {
        self.numerics = numerics;
        self
    }

    /// How it computes where there are several ways.
    pub fn numerics(&self) -> Numerics {
        self.numerics
    }

    /// Sizes and settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The network.
    pub fn architecture(&self) -> &Architecture {
        &self.config.architecture
    }

    pub(crate) fn order(&self) -> &Order {
        &self.order
    }

    pub(crate) fn part_map(&self) -> &PartMap {
        &self.map
    }

    /// The parts that hold the weights.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// What has been loaded so far.
    pub fn report(&self) -> LoadReport {
        self.parts.report()
    }

    /// The names of everything that can be read.
    pub fn sites(&self) -> Sites<'_> {
        Sites::new(&self.config, &self.order)
    }

    /// Runs the model and shows every site to `observer`, until it stops the run or the logits are there.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyInput`], [`Error::InputShape`], [`Error::TokenOutOfRange`], [`Error::TooManyPositions`] and
    /// [`Error::PositionOutOfRange`] before anything is computed; [`Error::Observer`], [`Error::Replacement`];
    /// [`Error::Weights`] where a part cannot be placed; [`Error::Torch`] naming the site. The model can be used again
    /// after any of them.
    pub fn forward(&self, input: &Input, observer: &mut dyn Observer) -> Result<Outcome> {
        decoder::run(self, input, Past::None, observer)
    }

    /// As [`Model::forward`], reading earlier positions from the cache and adding the new ones when the run completes.
    ///
    /// Every block must run, so that every block has keys and values of every position: the input is token ids, or a
    /// stream at `input`.
    ///
    /// # Errors
    ///
    /// As [`Model::forward`]; before anything is computed [`Error::CachedStart`] for a run that starts after `input`, and
    /// [`Error::CacheMismatch`] for a cache that another kind of run, or a model of other sizes, dtype or device, filled.
    pub fn forward_cached(&self, input: &Input, cache: &mut KvCache, observer: &mut dyn Observer) -> Result<Outcome> {
        decoder::run(self, input, Past::Cache(cache), observer)
    }

    /// As [`Model::forward`], for a text that goes on after a prefix, which the run reads and leaves as it is. The run may start
    /// at any block, and stop anywhere. The input has the new positions only, but its mask, if it has one, the prefix's as well,
    /// which come first.
    ///
    /// On a CPU the new positions get the bits that they get in a run of the whole text, within the limits of
    /// `docs/numerics.md` in the repository; a single new position of a single row as with a cache.
    ///
    /// # Errors
    ///
    /// As [`Model::forward`]; before anything is computed [`Error::CacheMismatch`] and [`Error::PrefixRows`] for a prefix that
    /// does not fit, and [`Error::CacheRotation`].
    pub fn forward_after(&self, input: &Input, prefix: &Prefix, observer: &mut dyn Observer) -> Result<Outcome> {
        decoder::run(self, input, Past::Prefix(prefix), observer)
    }

    /// Whether [`Model::forward`] would take this input; nothing is computed.
    ///
    /// # Errors
    ///
    /// Those that [`Model::forward`] has before anything is computed, and [`Error::BadStart`].
    pub fn check_input(&self, input: &Input) -> Result<()> {
        decoder::check(self, input, 0).map(drop)
    }

    /// The parts that a run to `site` places whole; the embedding, which is only gathered from, is not among them.
    pub fn parts_needed(&self, site: Site) -> std::ops::Range<usize> {
        let layers = self.config.layers();
        let end = match (site.stage, site) {
            (_, Site::LOGITS | Site::UNCAPPED_LOGITS) => self.map.count(),
            (Stage::Head, _) => self.map.tail() + 1,
            _ => self.map.layer(site.blocks_needed(layers)),
        };
        PartMap::EMBEDDING + 1..end
    }

    /// The part that holds a block's weights. Part 0 is the embedding.
    pub fn block_part(&self, block: usize) -> usize {
        self.map.layer(block)
    }

    /// Whether every run reads the weights anew and drops them after use. Gradients would need them all at once.
    pub fn is_streamed(&self) -> bool {
        self.parts.residency() == lowmem::Residency::Streamed
    }

    /// The final norm and what comes with it, for whoever applies it more than once: streamed weights are read for each call.
    ///
    /// # Errors
    ///
    /// [`Error::Weights`].
    pub fn tail(&self) -> Result<Tail> {
        self.tail_before(None)
    }

    /// As [`Model::tail`], with `next` as the part that is asked for after it.
    pub(crate) fn tail_before(&self, next: Option<usize>) -> Result<Tail> {
        let tensors = self.parts.get(self.map.tail(), next)?;
        let weights = TailWeights::walk(self.architecture(), &mut Placed::new(self.config.family, tensors))?;
        Ok(Tail { weights })
    }

    /// The unembedding, in the dtype of the run.
    ///
    /// # Errors
    ///
    /// [`Error::Weights`].
    pub fn unembedding(&self) -> Result<Unembedding> {
        let bias = self.unembedding_bias()?;
        let tensors = self.parts.get(self.map.head(), None)?;
        let missing = || Error::Config { problem: "the model has no unembedding".into() };
        let weight = tensors.into_iter().next().ok_or_else(missing)?;
        Ok(Unembedding::new(weight, bias, self.architecture().head.softcap))
    }

    fn unembedding_bias(&self) -> Result<Option<Tensor>> {
        let Some(part) = self.map.bias() else { return Ok(None) };
        Ok(self.parts.get(part, None)?.into_iter().next())
    }

    /// The rows of the unembedding that belong to `ids` (Int64, `[n]`), in the dtype of the run. Only these rows of the matrix
    /// are read.
    ///
    /// # Errors
    ///
    /// [`Error::Weights`]; [`Error::Torch`].
    pub fn unembedding_rows(&self, ids: &Tensor) -> Result<Unembedding> {
        let weight = self.parts.rows(self.map.head(), 0, ids)?;
        let bias = self.unembedding_bias()?;
        let bias = bias.map(|bias| bias.f_index_select(0, &ids.f_to_device(bias.device())?)).transpose();
        let bias = bias.map_err(Error::torch(Site::LOGITS))?;
        Ok(Unembedding::new(weight, bias, self.architecture().head.softcap))
    }

    /// Gives every tensor of these parts a leaf that gradients are collected for, and returns the leaves by name. Part 0 is the
    /// embedding, [`Model::block_part`] says which part is a block's. Weights that share storage appear once.
    ///
    /// With mapped weights the optimizer changes private pages; the file is never written.
    ///
    /// # Errors
    ///
    /// [`Error::Weights`].
    pub fn trainable(&self, parts: impl IntoIterator<Item = usize>) -> Result<Vec<(String, Tensor)>> {
        let mut seen = HashSet::new();
        let mut tensors = Vec::new();
        for part in parts {
            for name in self.parts.names(part)? {
                if seen.insert(name) {
                    tensors.push((name.to_owned(), self.parts.leaf(name)?));
                }
            }
        }
        Ok(tensors)
    }
}

/// The parts up to the first that lacks a tensor, that one included: what is missing is known then, and a config may claim
/// many more layers than the checkpoint has.
fn until_missing(index: &Index, parts: impl Iterator<Item = Result<PartRequest>>) -> Result<Vec<PartRequest>> {
    let mut requests = Vec::new();
    for part in parts {
        let part = part?;
        let whole = part.tensors.iter().all(|tensor| index.get(&tensor.name).is_some());
        requests.push(part);
        if !whole {
            break;
        }
    }
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use lowmem::TensorRequest;
    use tch::Device;

    use super::*;

    #[test]
    fn layers_that_the_checkpoint_lacks_are_not_even_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let tensor = |block: usize| (format!("h.{block}.weight"), Tensor::zeros([1], (Kind::Float, Device::Cpu)));
        lowmem::save_safetensors(&path, &[tensor(0), tensor(1), tensor(2)]).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let endless = (0..).map(|block: usize| {
            let label = format!("h.{block}");
            Ok(PartRequest { tensors: vec![TensorRequest::new(format!("{label}.weight"), [1])], label })
        });
        let requests = until_missing(checkpoint.index(), endless).unwrap();
        assert_eq!(requests.last().map(|part| part.label.as_str()), Some("h.3"));
        let missing = Parts::new(&checkpoint, requests, &LoadOptions::default()).err();
        assert!(matches!(missing, Some(lowmem::Error::MissingTensor { tensor, .. }) if tensor == "h.3.weight"));
    }
}
