//! The tuned lens: an affine translator for each layer, in front of the logit lens.

use std::{collections::HashMap, fmt};

use models::{Factor, Model, Site, Tail, Unembedding};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Reduction, TchError, Tensor};

use crate::{
    Error,
    error::Result,
    unembedding_hash::{shown, unembedding_hash},
};

/// Affine translators, one for each stream that enters a block: `x + W x + b`, then the final norm and the unembedding.
///
/// "Eliciting Latent Predictions from Transformers with the Tuned Lens", Belrose et al. (2023),
/// <https://arxiv.org/abs/2303.08112>. Translator 0 reads `input`, translator `i` reads `h.{i - 1}`; the last block's output
/// needs none. Names, shapes and settings are those of the tuned-lens package's `params.pt` and `config.json`: `0.weight`
/// (`[d_model, d_model]`), `0.bias` (`[d_model]`), `1.weight`, ... The translators are added to the stream, so zeros are the
/// logit lens.
///
/// ```
/// use lens::{Lens, LensOptions, TunedLens, TunedLensConfig};
/// # use models::{Config, Model};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
/// # let model = Model::random(Config::from_json(config)?, 0)?;
/// let tuned = TunedLens::identity(TunedLensConfig::of("gpt2", &model)?, tch::Device::Cpu)?;
/// let table = Lens::new(&model, LensOptions::default())?.tuned(&tuned)?.table("gpt2", &[1, 2, 3], |id| id.to_string())?;
/// assert_eq!(table.lens.as_deref(), Some("tuned"));
/// # Ok(())
/// # }
/// ```
pub struct TunedLens {
    config: TunedLensConfig,
    translators: Vec<Translator>,
}

/// One affine map; the weights in f32 or narrower.
struct Translator {
    /// `[d_model, d_model]`
    weight: Tensor,
    /// `[d_model]`
    bias: Option<Tensor>,
}

/// The `config.json` of the tuned-lens package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunedLensConfig {
    /// The model the lens was made for.
    pub base_model_name_or_path: String,
    /// Width of its residual stream.
    pub d_model: i64,
    /// Its blocks, and so the number of translators.
    pub num_hidden_layers: usize,
    /// Whether the translators have a bias.
    #[serde(default = "yes")]
    pub bias: bool,
    /// The model's revision.
    #[serde(default)]
    pub base_model_revision: Option<String>,
    /// A hash of the model's unembedding matrix, as the tuned-lens package computes it.
    #[serde(default)]
    pub unembed_hash: Option<String>,
    /// What kind of lens it is; this crate knows [`LENS_TYPE`].
    #[serde(default = "lens_type")]
    pub lens_type: String,
}

/// The [`TunedLensConfig::lens_type`] of affine translators.
pub const LENS_TYPE: &str = "linear_tuned_lens";

fn yes() -> bool {
    true
}

fn lens_type() -> String {
    LENS_TYPE.to_owned()
}

impl TunedLensConfig {
    /// The settings of a lens for `model`, called `name`.
    ///
    /// # Errors
    ///
    /// Whatever reading the unembedding gives.
    pub fn of(name: &str, model: &Model) -> Result<Self> {
        Ok(Self {
            base_model_name_or_path: name.to_owned(),
            d_model: model.architecture().d_model,
            num_hidden_layers: model.config().layers(),
            bias: true,
            base_model_revision: None,
            unembed_hash: hash(model)?,
            lens_type: lens_type(),
        })
    }

    /// Reads `config.json`.
    ///
    /// # Errors
    ///
    /// [`Error::TunedLens`] where it is not one, or of another kind of lens.
    pub fn from_json(text: &str) -> Result<Self> {
        let config: Self = serde_json::from_str(text).map_err(|error| Error::TunedLens {
            problem: format!("config.json is not that of a tuned lens: {error}"),
        })?;
        if config.lens_type != LENS_TYPE {
            let problem = format!("config.json says lens_type {:?}; expected {LENS_TYPE:?}", config.lens_type);
            return Err(Error::TunedLens { problem });
        }
        Ok(config)
    }

    /// Writes `config.json`.
    ///
    /// # Errors
    ///
    /// None in practice.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(|error| Error::TunedLens { problem: error.to_string() })
    }
}

fn torch(source: TchError) -> Error {
    Error::Torch { at: "the tuned lens", source }
}

fn refuse<T>(problem: String) -> Result<T> {
    Err(Error::TunedLens { problem })
}

/// The hash of the model's unembedding, where it can be told: rounded weights hash differently.
fn hash(model: &Model) -> Result<Option<String>> {
    if model.parts().dtype().kind() != Kind::Float {
        return Ok(None);
    }
    let vocabulary = model.architecture().vocabulary;
    let rows = model.unembedding_rows(&Tensor::f_from_slice(&shown(vocabulary)).map_err(torch)?)?;
    unembedding_hash(rows.weight(), vocabulary).map_err(torch)
}

impl fmt::Debug for TunedLens {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TunedLens").field("config", &self.config).finish_non_exhaustive()
    }
}

impl TunedLens {
    /// Translators of zeros, which are the logit lens, in f32 on `device`: where training begins.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`].
    pub fn identity(config: TunedLensConfig, device: Device) -> Result<Self> {
        models::prepare_libtorch();
        let width = config.d_model;
        let zeros = |shape: &[i64]| Tensor::f_zeros(shape, (Kind::Float, device)).map_err(torch);
        let translator = |_| {
            let bias = if config.bias { Some(zeros(&[width])?) } else { None };
            Ok(Translator { weight: zeros(&[width, width])?, bias })
        };
        let translators = (0..config.num_hidden_layers).map(translator).collect::<Result<_>>()?;
        Ok(Self { config, translators })
    }

    /// A lens from the tensors of `params.pt`, by name. They are kept as they are: mapped ones stay mapped.
    ///
    /// # Errors
    ///
    /// [`Error::TunedLens`] for a missing, misshapen or unknown tensor.
    pub fn from_tensors(config: TunedLensConfig, mut tensors: HashMap<String, Tensor>) -> Result<Self> {
        models::prepare_libtorch();
        let width = config.d_model;
        let mut take = |name: String, shape: &[i64]| match tensors.remove(&name) {
            Some(tensor) if tensor.size() == shape => Ok(tensor),
            Some(tensor) => refuse(format!("{name} is {:?}, expected {shape:?} by config.json", tensor.size())),
            None => refuse(format!(
                "the tensor {name} is missing, but config.json says {} layers{}",
                config.num_hidden_layers,
                if config.bias { ", with a bias" } else { "" }
            )),
        };
        let mut translators = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let weight = take(format!("{layer}.weight"), &[width, width])?;
            let bias = if config.bias { Some(take(format!("{layer}.bias"), &[width])?) } else { None };
            translators.push(Translator { weight, bias });
        }
        match tensors.keys().min() {
            Some(name) => {
                refuse(format!("the tensor {name} belongs to none of the {} layers", config.num_hidden_layers))
            }
            None => Ok(Self { config, translators }),
        }
    }

    /// The tensors of `params.pt`, in its order.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut tensors = Vec::new();
        for (layer, translator) in self.translators.iter().enumerate() {
            tensors.push((format!("{layer}.weight"), translator.weight.shallow_clone()));
            tensors.extend(translator.bias.iter().map(|bias| (format!("{layer}.bias"), bias.shallow_clone())));
        }
        tensors
    }

    /// What `config.json` says.
    pub fn config(&self) -> &TunedLensConfig {
        &self.config
    }

    /// How many translators there are.
    pub fn layers(&self) -> usize {
        self.translators.len()
    }

    /// Where translator `layer` reads: `input`, then the outputs of all blocks but the last.
    pub fn site(layer: usize) -> Site {
        Site::before_block(layer)
    }

    /// The translator that reads at `site`.
    pub fn layer(&self, site: Site) -> Option<usize> {
        (0..self.layers()).find(|&layer| Self::site(layer) == site)
    }

    /// Whether the lens can belong to `model`: by its sizes, and by the hash of the unembedding where both are known (in
    /// f32; rounded weights hash differently).
    ///
    /// # Errors
    ///
    /// [`Error::TunedLens`] that says what differs.
    pub fn check(&self, model: &Model) -> Result<()> {
        let (layers, d_model) = (model.config().layers(), model.architecture().d_model);
        let mine = &self.config;
        let name = &mine.base_model_name_or_path;
        if (mine.num_hidden_layers, mine.d_model) != (layers, d_model) {
            return refuse(format!(
                "the translators were made for another model ({name}: {} layers of width {}); this one has {layers} of width \
                 {d_model}",
                mine.num_hidden_layers, mine.d_model
            ));
        }
        match (&mine.unembed_hash, hash(model)?) {
            (Some(made_for), Some(found)) if *made_for != found => refuse(format!(
                "the translators were made for another model ({name}): its unembedding has the hash {}, this one's has {}",
                made_for.get(..12).unwrap_or(made_for),
                found.get(..12).unwrap_or(&found)
            )),
            _ => Ok(()),
        }
    }

    /// `stream + W stream + b` of translator `layer`, in f32 on the stream's device; `[.., d_model]` in and out.
    ///
    /// # Errors
    ///
    /// [`Error::TunedLens`] where there is no such layer, [`Error::Torch`].
    pub fn translate(&self, layer: usize, stream: &Tensor) -> Result<Tensor> {
        let Some(translator) = self.translators.get(layer) else {
            return refuse(format!("there is no translator {layer}; there are {}", self.layers()));
        };
        let translate = || {
            let stream = stream.f_to_kind(Kind::Float)?;
            let there = |tensor: &Tensor| tensor.f_to_device(stream.device())?.f_to_kind(Kind::Float);
            let bias = translator.bias.as_ref().map(there).transpose()?;
            let product = Factor::new(&stream)?.times_transposed(&there(&translator.weight)?, bias.as_ref())?;
            product.f_add(&stream)
        };
        translate().map_err(torch)
    }

    /// Makes the translators leaves that gradients are collected for, and returns them layer by layer.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`].
    pub fn trainable(&self) -> Result<Vec<Vec<Tensor>>> {
        let leaf = |tensor: &Tensor| tensor.f_set_requires_grad(true).map_err(torch);
        let layer = |translator: &Translator| {
            [Some(&translator.weight), translator.bias.as_ref()].into_iter().flatten().map(leaf).collect()
        };
        self.translators.iter().map(layer).collect()
    }

    /// KL(final || lens) in nats at each position, `[position]` in f32; gradients flow to the translators.
    ///
    /// `stream` is the value at [`TunedLens::site`] of the layer (`[position, d_model]`), `own` the logarithms of the model's
    /// own probabilities (`[position, vocabulary]`), `tail` what comes between the model's last block and its unembedding,
    /// `unembedding` that in f32: callers use both many times.
    ///
    /// # Errors
    ///
    /// As [`TunedLens::translate`], and whatever the final norm refuses.
    pub fn divergence(
        &self,
        tail: &Tail,
        layer: usize,
        stream: &Tensor,
        own: &Tensor,
        unembedding: &Unembedding,
    ) -> Result<Tensor> {
        let normed = tail.apply(&self.translate(layer, stream)?, Kind::Float)?;
        let divergence = || {
            let logits = unembedding.logits(&Factor::new(&normed)?)?;
            let row = logits.f_log_softmax(-1, Kind::Float)?;
            row.f_kl_div(own, Reduction::None, true)?.f_sum_dim_intlist([-1].as_slice(), false, Kind::Float)
        };
        divergence().map_err(torch)
    }
}
