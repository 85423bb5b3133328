//! A model: a config and the parts that hold its weights.

use std::collections::{HashMap, HashSet};

use lowmem::{Checkpoint, LoadOptions, LoadReport, Parts};
use tch::{Kind, Tensor};

use crate::{
    Config, Error, Input, KvCache, Observer, Outcome, Result, Site, Sites, decoder, random,
    weights::{self, Norm, Spelling},
};

/// A model's final norm with its weights, which live as long as this value.
pub struct FinalNorm {
    norm: Norm,
    epsilon: f64,
}

impl FinalNorm {
    /// The norm of `stream`, `[.., d_model]`, computed in `kind`; the same shape.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`].
    pub fn apply(&self, stream: &Tensor, kind: Kind) -> Result<Tensor> {
        self.norm.apply_in(stream, self.epsilon, kind).map_err(Error::torch(Site::FINAL_NORM))
    }
}

/// A GPT-2 or GPT-Neo model.
///
/// Runs take `&self` and leave nothing behind. A model is [`Send`]: it can be built on one thread and used on another,
/// or by several one after the other.
pub struct Model {
    config: Config,
    parts: Parts,
}

impl Model {
    /// Opens a checkpoint: reads `config.json`, compares every tensor's name and shape with what the config implies, and
    /// reads no weight.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedModelType`], [`Error::Config`]; [`lowmem::Error::MissingTensor`],
    /// [`lowmem::Error::Misshapen`] or [`lowmem::Error::ExtraTensors`] naming the tensor.
    pub fn open(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Self> {
        let config = Config::from_json(&checkpoint.read_text("config.json")?)?;
        let spelling = Spelling::of(checkpoint.index(), &config);
        let requests = weights::parts(&config, &spelling);
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
        if !extra.is_empty() {
            let checkpoint = checkpoint.path().to_owned();
            return Err(lowmem::Error::ExtraTensors { checkpoint, tensors: extra }.into());
        }
        parts.report_ignored(ignored);
        Ok(Self { config, parts })
    }

    /// A model over tensors in memory, named as `save_pretrained` names them (`transformer.h.0.ln_1.weight`).
    ///
    /// # Errors
    ///
    /// [`lowmem::Error::MissingTensor`] or [`lowmem::Error::Misshapen`].
    pub fn from_tensors(config: Config, tensors: &HashMap<String, Tensor>) -> Result<Self> {
        let parts = Parts::from_tensors(tensors, weights::parts(&config, &Spelling::standard(&config)))?;
        Ok(Self { config, parts })
    }

    /// A model with random weights in f32 on the CPU, initialised as Radford et al. (2019) describe: normal, biases zero,
    /// norms one, residual projections scaled by `1 / sqrt(2 layers)`. The same seed gives the same weights.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] when memory runs out.
    pub fn random(config: Config, seed: i64) -> Result<Self> {
        let tensors = random::tensors(&config, seed)?;
        Self::from_tensors(config, &tensors)
    }

    /// Names and shapes of all tensors of a model with this config, in the order of its parts, as `save_pretrained` names
    /// them. Tied weights appear once.
    pub fn tensor_shapes(config: &Config) -> Vec<(String, Vec<i64>)> {
        let mut seen = HashSet::new();
        let parts = weights::parts(config, &Spelling::standard(config));
        let tensors = parts.into_iter().flat_map(|part| part.tensors);
        tensors.filter(|tensor| seen.insert(tensor.name.clone())).map(|tensor| (tensor.name, tensor.shape)).collect()
    }

    /// Sizes and settings.
    pub fn config(&self) -> &Config {
        &self.config
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
        Sites::new(&self.config)
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
        decoder::run(self, input, None, observer)
    }

    /// As [`Model::forward`], reading earlier positions from the cache and adding the new ones when the run completes.
    ///
    /// # Errors
    ///
    /// As [`Model::forward`], and [`Error::CacheMismatch`].
    pub fn forward_cached(&self, input: &Input, cache: &mut KvCache, observer: &mut dyn Observer) -> Result<Outcome> {
        decoder::run(self, input, Some(cache), observer)
    }

    /// The parts that a run to `site` places whole; the embedding, which is only gathered from, is not among them.
    pub fn parts_needed(&self, site: Site) -> std::ops::Range<usize> {
        let layers = self.config.layers();
        let end = match site {
            Site::LOGITS => weights::unembedding(layers) + 1,
            Site::FINAL_NORM => weights::final_norm(layers) + 1,
            site => weights::block(site.blocks_needed(layers)),
        };
        weights::block(0)..end
    }

    /// The final norm, for whoever applies it more than once: streamed weights are read for each call.
    ///
    /// # Errors
    ///
    /// [`Error::Weights`].
    pub fn final_norm(&self) -> Result<FinalNorm> {
        self.final_norm_before(None)
    }

    /// As [`Model::final_norm`], with `next` as the part that is asked for after it.
    pub(crate) fn final_norm_before(&self, next: Option<usize>) -> Result<FinalNorm> {
        let tensors = self.parts.get(weights::final_norm(self.config.layers()), next)?;
        let norm = Norm::take(self.config.family, tensors)?;
        Ok(FinalNorm { norm, epsilon: self.config.layer_norm_epsilon })
    }

    /// The unembedding matrix, `[vocabulary, d_model]`, in the dtype of the run.
    ///
    /// # Errors
    ///
    /// [`Error::Weights`].
    pub fn unembedding(&self) -> Result<Tensor> {
        let tensors = self.parts.get(weights::unembedding(self.config.layers()), None)?;
        tensors.into_iter().next().ok_or_else(|| Error::Config { problem: "the model has no unembedding".into() })
    }

    /// Rows of the unembedding matrix, `[ids, d_model]` for `ids` (Int64), in the dtype of the run. Only these rows are read.
    ///
    /// # Errors
    ///
    /// [`Error::Weights`].
    pub fn unembedding_rows(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(self.parts.rows(weights::unembedding(self.config.layers()), 0, ids)?)
    }

    /// Makes every tensor of these parts a leaf that gradients are collected for, and returns them by name. Part 0 is the
    /// embedding, part `i + 1` is block `i`. Weights that share storage appear once.
    ///
    /// With mapped weights the optimizer changes private pages; the file is never written.
    ///
    /// # Errors
    ///
    /// [`Error::Weights`], [`Error::Torch`].
    pub fn trainable(&self, parts: impl IntoIterator<Item = usize>) -> Result<Vec<(String, Tensor)>> {
        let mut seen = HashSet::new();
        let mut tensors = Vec::new();
        for part in parts {
            for name in self.parts.names(part)? {
                if seen.insert(name) {
                    let tensor = self.parts.keep(name)?;
                    let leaf = tensor.f_set_requires_grad(true).map_err(Error::torch(name))?;
                    tensors.push((name.to_owned(), leaf));
                }
            }
        }
        Ok(tensors)
    }
}
