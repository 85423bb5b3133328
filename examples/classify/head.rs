//! The network on top: two linear layers at every position, then pooling.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use transformer_utils::{
    lowmem,
    models::Random,
    tch::{Device, Kind, Tensor, nn, no_grad},
};

use crate::common::tensors;

/// How positions become one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Every token counts alike.
    Mean,
    /// A third linear layer says how much each token counts.
    Attention,
}

/// Everything needed to build a head again, but its weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadShape {
    /// What it reads.
    pub names: Vec<String>,
    /// The widths of all names together.
    pub features: i64,
    /// Width of the hidden layer.
    pub hidden: i64,
    /// How positions become one answer.
    pub pooling: Pooling,
    /// What the answers mean.
    pub labels: Vec<String>,
}

/// `Linear -> ReLU -> Linear` at every position, then a weighted mean over the positions.
pub struct Head {
    store: nn::VarStore,
    shape: HeadShape,
    hidden: nn::Linear,
    output: nn::Linear,
    attention: Option<nn::Linear>,
}

impl Head {
    /// A head with random weights. The same seed gives the same weights.
    pub fn new(shape: HeadShape, seed: u64, device: Device) -> Result<Self> {
        let store = nn::VarStore::new(device);
        let root = store.root();
        let random = Random::new(seed);
        let mut drawn = 0..;
        let mut linear = |name: &str, from, to| -> Result<nn::Linear> {
            let mut layer = nn::linear(&root / name, from, to, nn::LinearConfig::default());
            // The distribution is PyTorch's for linear layers; the numbers are ours, so that nothing else that draws from
            // libtorch's one generator changes them.
            let bound = 1.0 / (from as f64).sqrt();
            no_grad(|| -> Result<()> {
                for tensor in std::iter::once(&mut layer.ws).chain(&mut layer.bs) {
                    let indices = drawn.by_ref().take(tensor.numel());
                    let values: Vec<f32> =
                        indices.map(|index| (bound * (2.0 * random.uniform(index) - 1.0)) as f32).collect();
                    tensor.f_copy_(&Tensor::f_from_slice(&values)?.f_view(&tensor.size()[..])?)?;
                }
                Ok(())
            })?;
            Ok(layer)
        };
        let hidden = linear("hidden", shape.features, shape.hidden)?;
        let output = linear("output", shape.hidden, shape.labels.len() as i64)?;
        let attention = match shape.pooling {
            Pooling::Mean => None,
            Pooling::Attention => Some(linear("attention", shape.features, 1)?),
        };
        Ok(Self { hidden, output, attention, store, shape })
    }

    /// What it was built from.
    pub fn shape(&self) -> &HeadShape {
        &self.shape
    }

    /// One score for each label.
    ///
    /// # Shapes
    ///
    /// `features` `[batch, position, feature]`, `mask` `[batch, position]`, zero at padding; the scores are
    /// `[batch, label]`.
    pub fn logits(&self, features: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let apply = |layer: &nn::Linear, x: &Tensor| x.f_linear(&layer.ws, layer.bs.as_ref());
        let scores = apply(&self.output, &apply(&self.hidden, features)?.f_relu()?)?;
        let weights = match &self.attention {
            None => mask.f_div(&mask.f_sum_dim_intlist([-1].as_slice(), true, Kind::Float)?)?,
            Some(layer) => {
                let weights = apply(layer, features)?.f_squeeze_dim(-1)?;
                weights.f_masked_fill(&mask.f_eq(0.0)?, f64::NEG_INFINITY)?.f_softmax(-1, Kind::Float)?
            }
        };
        Ok(scores.f_mul(&weights.f_unsqueeze(-1)?)?.f_sum_dim_intlist([1].as_slice(), false, Kind::Float)?)
    }

    /// The trainable tensors by name.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut tensors: Vec<(String, Tensor)> = self.store.variables().into_iter().collect();
        tensors.sort_by(|(left, _), (right, _)| left.cmp(right));
        tensors
    }

    /// Writes the weights as safetensors.
    pub fn save(&self, path: &Path) -> Result<()> {
        Ok(lowmem::save_safetensors(path, &self.tensors())?)
    }

    /// A head with the weights that [`Head::save`] wrote.
    pub fn load(shape: HeadShape, path: &Path, device: Device) -> Result<Self> {
        let head = Self::new(shape, 0, device)?;
        let saved = tensors::read(path)?;
        no_grad(|| -> Result<()> {
            for (name, mut weight) in head.store.variables() {
                let found = saved.get(&name).with_context(|| format!("{}: {name} is missing", path.display()))?;
                let (expected, found_shape) = (weight.size(), found.size());
                ensure!(
                    expected == found_shape,
                    "{}: {name} has shape {found_shape:?}, expected {expected:?}",
                    path.display()
                );
                weight.f_copy_(found)?;
            }
            Ok(())
        })?;
        Ok(head)
    }
}
