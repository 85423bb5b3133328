//! The Jacobian lens: for each block a linear map in front of the logit lens, the mean Jacobian of the last stream.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use models::{Factor, Model, Point, Site};
use serde_json::{Map, Value, json};
use tch::{Kind, TchError, Tensor};

use crate::{Error, error::Result};

/// What a fit by this crate, and by TransformerLens, calls its way of estimating.
const ESTIMATOR: &str = "jacobian_lens";

/// Linear maps, one for the output of each block but the last: `J x`, then the final norm and the unembedding.
///
/// `J` of a block is the Jacobian of the last block's output by that block's, summed over the positions it reaches, and averaged over
/// positions and texts: to first order, what the model makes of a stream until its end (Gurnee et al., 2026, "Verbalizable
/// Representations Form a Global Workspace in Language Models",
/// <https://transformer-circuits.pub/2026/workspace/index.html>). The identity is the logit lens. [`JacobianFit`] makes one; names and
/// settings are those of the files that TransformerLens 4.3 and the reference implementation write: `J.0` (`[d_model, d_model]`), `J.1`,
/// ..., where `J.i` reads `h.i`.
///
/// ```
/// use lens::{JacobianFit, Lens, LensOptions};
/// # use models::{Config, Model};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = r#"{"model_type": "gpt2", "n_layer": 3, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
/// # let model = Model::random(Config::from_json(config)?, 0)?;
/// let mut fit = JacobianFit::new(&model)?.skip_first(1);
/// fit.add(&[5, 9, 3, 7, 1, 2])?;
/// fit.add(&[2, 8, 8, 1, 4])?;
/// let jacobian = fit.finish()?;
/// let table = Lens::new(&model, LensOptions::default())?.jacobian(&jacobian)?.table("gpt2", &[1, 2, 3], |id| id.to_string())?;
/// assert_eq!(table.lens.as_deref(), Some("jacobian"));
/// assert_eq!(table.rows.len(), 3); // h.0, h.1, h.2
/// # Ok(())
/// # }
/// ```
pub struct JacobianLens {
    d_model: i64,
    texts: i64,
    matrices: BTreeMap<usize, Tensor>,
    metadata: Map<String, Value>,
}

impl fmt::Debug for JacobianLens {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("JacobianLens");
        shown.field("d_model", &self.d_model).field("texts", &self.texts).field("metadata", &self.metadata);
        shown.field("layers", &self.matrices.keys()).finish_non_exhaustive()
    }
}

fn torch(source: TchError) -> Error {
    Error::Torch { at: "the Jacobian lens", source }
}

fn refuse<T>(problem: String) -> Result<T> {
    Err(Error::JacobianLens { problem })
}

impl JacobianLens {
    /// What the matrices' dictionary is called in a file.
    pub const NAME: &'static str = "J";

    /// A lens from the tensors of a file by their names, `J.0`, and the settings beside them. The sums that a fit notes down on its
    /// way (`jacobian_sum.0`, `n_done`) make one, too. Tensors are kept as they are: mapped ones stay mapped.
    ///
    /// # Errors
    ///
    /// [`Error::JacobianLens`] for a tensor that is misshapen or belongs to no layer, and where there is none, or no width.
    pub fn from_tensors(settings: &Map<String, Value>, tensors: HashMap<String, Tensor>) -> Result<Self> {
        models::prepare_libtorch();
        let number = |name: &str| settings.get(name).and_then(Value::as_i64);
        let sums = tensors.keys().any(|name| name.starts_with("jacobian_sum."));
        let texts = number(if sums { "n_done" } else { "n_prompts" }).unwrap_or(0);
        if sums && texts < 1 {
            return refuse(format!("the sums of a fit need the number of their texts, n_done; found {texts}"));
        }
        let mut matrices = BTreeMap::new();
        for (name, tensor) in tensors {
            let layer =
                name.split_once('.').filter(|(list, _)| *list == if sums { "jacobian_sum" } else { Self::NAME });
            let Some(layer) = layer.and_then(|(_, layer)| layer.parse::<usize>().ok()) else {
                return refuse(format!("the tensor {name} belongs to no layer; expected J.0, J.1, ..."));
            };
            let tensor = if sums {
                tensor.f_to_kind(Kind::Float).and_then(|sum| sum.f_div_scalar(texts)).map_err(torch)?
            } else {
                tensor
            };
            matrices.insert(layer, tensor);
        }
        let first = matrices.values().next().and_then(|matrix| matrix.size().first().copied());
        let Some(d_model) = number("d_model").or(first) else {
            return refuse("there is no matrix J.0, J.1, ...".into());
        };
        if let Some((layer, matrix)) = matrices.iter().find(|(_, matrix)| matrix.size() != [d_model, d_model]) {
            return refuse(format!("J.{layer} is {:?}, expected {:?}", matrix.size(), [d_model, d_model]));
        }
        let mut metadata = settings.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
        if let Some(target) = settings.get("target_layer") {
            metadata.entry("target_layer").or_insert_with(|| target.clone());
        }
        Ok(Self { d_model, texts, matrices, metadata })
    }

    /// The matrices in `kind`, by layer: a file's `J`.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`].
    pub fn tensors(&self, kind: Kind) -> Result<Vec<(usize, Tensor)>> {
        let turned = |(layer, matrix): (&usize, &Tensor)| Ok((*layer, matrix.f_to_kind(kind).map_err(torch)?));
        self.matrices.iter().map(turned).collect()
    }

    /// What a file says beside the matrices: `n_prompts`, `source_layers`, `d_model` and `metadata`.
    pub fn settings(&self) -> Map<String, Value> {
        let layers: Vec<usize> = self.layers().collect();
        let mut settings = Map::new();
        settings.insert("n_prompts".into(), json!(self.texts));
        settings.insert("source_layers".into(), json!(layers));
        settings.insert("d_model".into(), json!(self.d_model));
        if !self.metadata.is_empty() {
            settings.insert("metadata".into(), Value::Object(self.metadata.clone()));
        }
        settings
    }

    /// Notes of whoever fitted it, which are written with it: settings of the fit, the model, the text.
    pub fn metadata(&self) -> &Map<String, Value> {
        &self.metadata
    }

    /// The same with a note more, such as the name of the text.
    pub fn with_note(mut self, name: impl Into<String>, note: impl Into<Value>) -> Self {
        self.metadata.insert(name.into(), note.into());
        self
    }

    /// How many texts it was averaged over.
    pub fn texts(&self) -> i64 {
        self.texts
    }

    /// The blocks it has a matrix for.
    pub fn layers(&self) -> impl Iterator<Item = usize> {
        self.matrices.keys().copied()
    }

    /// The matrix of block `layer`, `[d_model, d_model]`: `J x` of a stream `x`.
    pub fn matrix(&self, layer: usize) -> Option<&Tensor> {
        self.matrices.get(&layer)
    }

    /// Where the matrix of `layer` reads: the output of the block.
    pub fn site(layer: usize) -> Site {
        Site::block(layer, Point::Output)
    }

    /// The matrix that reads at `site`.
    pub fn layer(&self, site: Site) -> Option<usize> {
        self.layers().find(|&layer| Self::site(layer) == site)
    }

    /// Whether the lens can belong to `model`, by its sizes and by what it was fitted to.
    ///
    /// # Errors
    ///
    /// [`Error::JacobianLens`] that says what differs.
    pub fn check(&self, model: &Model) -> Result<()> {
        let (layers, d_model) = (model.config().layers(), model.architecture().d_model);
        if self.d_model != d_model {
            return refuse(format!("it was fitted to a model of width {}; this one has {d_model}", self.d_model));
        }
        let last = layers.saturating_sub(1);
        if let Some(beyond) = self.layers().find(|&layer| layer >= last) {
            return refuse(format!(
                "it has a matrix for block {beyond}; this model has blocks 0 to {last}, and the last needs none"
            ));
        }
        match self.metadata.get("target_layer").and_then(Value::as_u64) {
            Some(target) if target != last as u64 => {
                refuse(format!("it leads to the output of block {target}; expected {last}, this model's last"))
            }
            _ => match self.metadata.get("estimator").and_then(Value::as_str) {
                Some(other) if other != ESTIMATOR => {
                    refuse(format!("it was estimated as {other:?}; expected {ESTIMATOR:?}"))
                }
                _ => Ok(()),
            },
        }
    }

    /// `J stream` of block `layer`, in f32 on the stream's device; `[.., d_model]` in and out.
    ///
    /// # Errors
    ///
    /// [`Error::JacobianLens`] where there is no such matrix, [`Error::Torch`].
    pub fn translate(&self, layer: usize, stream: &Tensor) -> Result<Tensor> {
        let Some(matrix) = self.matrix(layer) else { return refuse(format!("there is no matrix for block {layer}")) };
        let translate = || {
            let stream = stream.f_to_kind(Kind::Float)?;
            let matrix = matrix.f_to_device(stream.device())?.f_to_kind(Kind::Float)?;
            Factor::new(&stream)?.times_transposed(&matrix, None)
        };
        translate().map_err(torch)
    }
}

/// A [`JacobianLens`] being fitted, text by text.
///
/// Each text is run forward once, as so many equal rows as there are backward passes at once, and backward until each dimension of the
/// last stream has been asked for. There is no chance in it. The reference implementation finds that about a hundred texts of 128 tokens
/// are enough to be of use, and that little changes after a thousand.
pub struct JacobianFit<'a> {
    model: &'a Model,
    skip_first: i64,
    at_once: i64,
    /// `[d_model, d_model]` in f32 on the CPU, for each block but the last.
    sums: Vec<Tensor>,
    texts: i64,
}

impl<'a> JacobianFit<'a> {
    /// Nothing runs.
    ///
    /// # Errors
    ///
    /// [`partial::Error::StreamedGradient`]; [`Error::JacobianLens`] for a model of one block.
    pub fn new(model: &'a Model) -> Result<Self> {
        if model.is_streamed() {
            return Err(partial::Error::StreamedGradient.into());
        }
        let (layers, d_model) = (model.config().layers(), model.architecture().d_model);
        if layers < 2 {
            return refuse("the model has one block, and the last needs no matrix".into());
        }
        let zeros = |_| Tensor::f_zeros([d_model, d_model], (Kind::Float, tch::Device::Cpu)).map_err(torch);
        let sums = (1..layers).map(zeros).collect::<Result<_>>()?;
        Ok(Self { model, skip_first: 16, at_once: 8, sums, texts: 0 })
    }

    /// Leaves out these first positions of each text, which attention uses as a sink; 16 by default. The last position, after which
    /// nothing is predicted, is always left out.
    pub fn skip_first(mut self, positions: usize) -> Self {
        self.skip_first = positions as i64;
        self
    }

    /// How many dimensions of the last stream a backward pass takes, and so how many rows a run has; 8 by default, at least 1. More take
    /// less time and more memory.
    pub fn at_once(mut self, dimensions: usize) -> Self {
        self.at_once = dimensions.max(1) as i64;
        self
    }

    /// Adds a text, and says whether it counts: one must have at least two positions more than are left out at its beginning.
    ///
    /// # Errors
    ///
    /// Whatever the model refuses, [`Error::Torch`].
    pub fn add(&mut self, ids: &[i64]) -> Result<bool> {
        let counted = ids.len() as i64 - 1 - self.skip_first;
        if counted < 1 {
            return Ok(false);
        }
        let (first, last) = (JacobianLens::site(0), JacobianLens::site(self.sums.len()));
        let sites: Vec<Site> = (0..=self.sums.len()).map(JacobianLens::site).collect();
        let d_model = self.model.architecture().d_model;
        let at_once = self.at_once.min(d_model);
        let rows: Vec<&[i64]> = vec![ids; at_once as usize];
        let input = models::Input::from_rows(&rows)?;
        tch::with_grad(|| {
            let leaf = partial::Edit::with(|stream| stream.f_detach()?.f_set_requires_grad(true));
            let output = partial::Run::new(self.model, &sites)?.edit(first, leaf)?.run(&input)?;
            let sources = sites.iter().filter(|site| **site != last).map(|site| output.get(site));
            let sources = sources.collect::<partial::Result<Vec<_>>>()?;
            let target = output.get(last)?;
            let add = || {
                // [row, d_model]
                let reached = target.f_narrow(1, self.skip_first, counted)?;
                let reached = reached.f_sum_dim_intlist([1].as_slice(), false, None)?;
                for begin in (0..d_model).step_by(at_once as usize) {
                    let count = at_once.min(d_model - begin);
                    // Dimension `begin + i` of row `i`.
                    let asked = reached.f_narrow(0, 0, count)?.f_narrow(1, begin, count)?.f_trace()?;
                    let more = begin + count < d_model;
                    let gradients = Tensor::f_run_backward(&[asked], &sources, more, false)?;
                    for (sum, gradient) in self.sums.iter().zip(gradients) {
                        let of_dimensions = gradient.f_narrow(0, 0, count)?.f_narrow(1, self.skip_first, counted)?;
                        let mean = of_dimensions.f_mean_dim([1].as_slice(), false, Kind::Float)?;
                        let _ = sum.f_narrow(0, begin, count)?.f_add_(&mean.f_to_device(sum.device())?)?;
                    }
                }
                Ok(())
            };
            add().map_err(torch)
        })?;
        self.texts += 1;
        Ok(true)
    }

    /// How many texts have counted.
    pub fn texts(&self) -> i64 {
        self.texts
    }

    /// The means over the texts.
    ///
    /// # Errors
    ///
    /// [`Error::JacobianLens`] where no text counted, [`Error::Torch`].
    pub fn finish(self) -> Result<JacobianLens> {
        if self.texts == 0 {
            return refuse(format!(
                "no text has been fitted on: one needs at least {} tokens, two more than are left out at its beginning",
                self.skip_first + 2
            ));
        }
        let mean = |(layer, sum): (usize, &Tensor)| Ok((layer, sum.f_div_scalar(self.texts).map_err(torch)?));
        let matrices = self.sums.iter().enumerate().map(mean).collect::<Result<_>>()?;
        let notes = json!({
            "estimator": ESTIMATOR,
            "hook_convention": "blocks.{layer}.hook_out",
            "target_layer": self.sums.len(),
            "skip_first_positions": self.skip_first,
            "fit_dtype": match self.model.parts().dtype().kind() {
                Kind::BFloat16 => "bfloat16",
                Kind::Half => "float16",
                Kind::Double => "float64",
                _ => "float32",
            },
            "fitted_by": concat!("transformer-utils ", env!("CARGO_PKG_VERSION")),
        });
        let metadata = notes.as_object().cloned().unwrap_or_default();
        Ok(JacobianLens { d_model: self.model.architecture().d_model, texts: self.texts, matrices, metadata })
    }
}
