//! What is trained, and how.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, bail, ensure};
use transformer_utils::{
    lowmem,
    models::{Axis, Dimension, Input, Model, Site},
    partial::{AdamW, AdamWOptions, Plan, Run},
    tch::{Device, Kind, Reduction, Tensor, no_grad, no_grad_guard},
};

use super::{
    data::{Batch, Example, shuffled},
    head::Head,
};
use crate::common::{progress, tensors};

/// Something that scores the labels of a batch: `[batch, label]`.
pub trait Scores {
    /// The scores.
    fn scores(&self, batch: &Batch) -> Result<Tensor>;

    /// Where batches are to be.
    fn device(&self) -> Device;
}

/// The first layers of a model, and a head on them.
pub struct Classifier<'a> {
    model: &'a Model,
    run: Run<'a>,
    /// The head.
    pub head: Head,
    /// The base model's tensors that are trained, by their names in the checkpoint; none when they are frozen.
    pub base: Vec<(String, Tensor)>,
}

/// The width of all names together.
///
/// # Errors
///
/// Unknown names; names without one value for each token, such as an attention pattern.
pub fn feature_width(model: &Model, names: &[String]) -> Result<i64> {
    let mut width = 0;
    for name in names {
        let site = model.sites().parse(name)?;
        let shape = model.sites().shape(site);
        width += match shape[..] {
            [
                Dimension { axis: Axis::Batch, .. },
                Dimension { axis: Axis::Position, .. },
                Dimension { size: Some(width), .. },
            ] => width,
            _ => {
                let shape: Vec<String> = shape.iter().map(ToString::to_string).collect();
                bail!("{name} has shape [{}]; features are [batch, position, width]", shape.join(", "))
            }
        };
    }
    Ok(width)
}

impl<'a> Classifier<'a> {
    /// A classifier over frozen layers: it reads the names of the head's shape.
    pub fn new(model: &'a Model, head: Head) -> Result<Self> {
        let plan = Plan::new(model, &head.shape().names)?;
        let found = feature_width(model, &head.shape().names)?;
        let expected = head.shape().features;
        ensure!(
            found == expected,
            "the head reads {expected} features, this model gives {found}; was it another model?"
        );
        Ok(Self { model, run: Run::planned(model, plan), head, base: Vec::new() })
    }

    /// Makes the layers in use trainable: those up to the deepest name, and the embedding. The others stay as they are,
    /// are not even placed, and cost the optimizer nothing.
    pub fn unfreeze(&mut self) -> Result<()> {
        let deepest = Plan::new(self.model, &self.head.shape().names)?.deepest();
        self.base = self.model.trainable(parts_in_use(self.model, deepest))?;
        Ok(())
    }

    /// What the head reads, in f32.
    ///
    /// # Shapes
    ///
    /// `[batch, position, feature]`
    pub fn features(&self, ids: &Tensor) -> Result<Tensor> {
        // No mask: a causal model gives every token what it would without the padding to its right.
        let input = Input::ids(ids.shallow_clone());
        let _frozen = self.base.is_empty().then(no_grad_guard);
        let activations = self.run.run(&input)?;
        let names = self.head.shape().names.iter();
        let captured = names.map(|name| activations.get(name)).collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::f_cat(&captured, -1)?.f_to_kind(Kind::Float)?)
    }

    /// The optimizer over the head (group 0) and, where they are trained, the base model's layers (group 1).
    pub fn optimizer(&self, settings: &Settings) -> Result<AdamW> {
        let options = AdamWOptions::default().weight_decay(settings.weight_decay);
        let mut optimizer = AdamW::new(self.head.tensors(), options.learning_rate(settings.learning_rate))?;
        let base = self.base.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
        optimizer.add_group(base, options.learning_rate(settings.base_learning_rate))?;
        Ok(optimizer)
    }

    /// Trains on `examples`, telling `after_epoch` the mean loss of each epoch.
    pub fn fit(
        &self,
        examples: &[Example],
        settings: &Settings,
        after_epoch: impl FnMut(usize, f64) -> Result<()>,
    ) -> Result<()> {
        let optimizer = self.optimizer(settings)?;
        let rates = [settings.learning_rate, settings.base_learning_rate];
        fit(self, optimizer, &rates, examples, settings, after_epoch)
    }

    /// Writes the trained layers as safetensors, under the names that they have in the checkpoint.
    pub fn save_base(&self, path: &Path) -> Result<()> {
        Ok(lowmem::save_safetensors(path, &self.base)?)
    }

    /// Puts layers that [`Classifier::save_base`] wrote in place of the model's own, in memory.
    pub fn load_base(&self, path: &Path) -> Result<()> {
        let saved: HashMap<String, Tensor> = tensors::read(path)?;
        for (name, tensor) in &saved {
            let mut own = self.model.parts().keep(name).with_context(|| format!("{}", path.display()))?;
            let (expected, found) = (own.size(), tensor.size());
            ensure!(expected == found, "{}: {name} has shape {found:?}, expected {expected:?}", path.display());
            no_grad(|| own.f_copy_(tensor))?;
        }
        Ok(())
    }
}

impl Scores for Classifier<'_> {
    fn scores(&self, batch: &Batch) -> Result<Tensor> {
        let features = self.features(&batch.ids)?;
        self.head.logits(&features, &batch.mask)
    }

    fn device(&self) -> Device {
        self.model.parts().device()
    }
}

/// The embedding, and whatever a run to `deepest` places.
fn parts_in_use(model: &Model, deepest: Site) -> impl Iterator<Item = usize> {
    const EMBEDDING: usize = 0;
    std::iter::once(EMBEDDING).chain(model.parts_needed(deepest))
}

/// A score for each label that is the sum of one number for each token: it knows which tokens a text has, and nothing of
/// their order. Whatever beats it has learnt something that a list of words cannot say.
pub struct BagOfTokens {
    /// `[vocabulary, label]`
    table: Tensor,
    /// `[label]`
    bias: Tensor,
}

impl BagOfTokens {
    /// A bag that knows nothing yet.
    pub fn new(vocabulary: i64, labels: usize, device: Device) -> Result<Self> {
        let zeros = |shape: &[i64]| Tensor::f_zeros(shape, (Kind::Float, device))?.f_set_requires_grad(true);
        Ok(Self { table: zeros(&[vocabulary, labels as i64])?, bias: zeros(&[labels as i64])? })
    }

    /// Trains on `examples`.
    pub fn fit(&self, examples: &[Example], settings: &Settings) -> Result<()> {
        // A linear model over counts takes larger steps than a network does.
        let rate = 1e-2;
        let options = AdamWOptions::default().learning_rate(rate).weight_decay(0.0);
        let tensors = [("table", &self.table), ("bias", &self.bias)];
        let tensors = tensors.map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
        let optimizer = AdamW::new(tensors, options)?;
        fit(self, optimizer, &[rate], examples, settings, |_, _| Ok(()))
    }
}

impl Scores for BagOfTokens {
    fn scores(&self, batch: &Batch) -> Result<Tensor> {
        let ids = batch.ids.f_to_device(self.table.device())?;
        let rows = Tensor::f_embedding(&self.table, &ids, -1, false, false)?;
        let present = rows.f_mul(&batch.mask.f_unsqueeze(-1)?)?;
        Ok(present.f_sum_dim_intlist([1].as_slice(), false, Kind::Float)?.f_add(&self.bias)?)
    }

    fn device(&self) -> Device {
        self.table.device()
    }
}

/// How to train.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Times through the examples.
    pub epochs: usize,
    /// Examples in a step.
    pub batch: usize,
    /// Learning rate of the head.
    pub learning_rate: f64,
    /// Learning rate of the base model's layers, where they are trained.
    pub base_learning_rate: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Seed of the order of the examples.
    pub seed: u64,
}

/// Trains; `rates` are the highest learning rates of the optimizer's groups, from which they fall linearly to zero.
fn fit(
    scores: &impl Scores,
    mut optimizer: AdamW,
    rates: &[f64],
    examples: &[Example],
    settings: &Settings,
    mut after_epoch: impl FnMut(usize, f64) -> Result<()>,
) -> Result<()> {
    let steps = settings.epochs * examples.len().div_ceil(settings.batch);
    let bar = progress::steps(steps as u64);
    let mut step = 0;
    for epoch in 0..settings.epochs {
        let order = shuffled(examples.len(), settings.seed, epoch as u64);
        let mut total = 0.0;
        for chosen in order.chunks(settings.batch) {
            let chosen: Vec<&Example> = chosen.iter().filter_map(|&index| examples.get(index)).collect();
            let batch = Batch::new(&chosen, scores.device())?;
            let rest = 1.0 - step as f64 / steps as f64;
            for (group, rate) in rates.iter().enumerate() {
                optimizer.set_learning_rate(group, rate * rest)?;
            }
            let scores = scores.scores(&batch)?;
            let loss = scores.f_cross_entropy_loss(&batch.labels, None::<&Tensor>, Reduction::Mean, -100, 0.0)?;
            let value = loss.f_double_value(&[])?;
            ensure!(value.is_finite(), "the loss is {value} at step {step}; lower the learning rate");
            optimizer.zero_grad()?;
            loss.f_backward()?;
            optimizer.step()?;
            total += value * chosen.len() as f64;
            step += 1;
            bar.set_position(step as u64);
            bar.set_message(format!("epoch {} loss {value:.3}", epoch + 1));
        }
        bar.suspend(|| after_epoch(epoch, total / examples.len() as f64))?;
    }
    bar.finish_and_clear();
    Ok(())
}

/// The label that scores highest, for each example.
pub fn predictions(scores: &impl Scores, examples: &[Example], batch: usize) -> Result<Vec<i64>> {
    let _no_grad = no_grad_guard();
    let mut predictions = Vec::with_capacity(examples.len());
    for chunk in examples.chunks(batch) {
        let batch = Batch::new(&chunk.iter().collect::<Vec<_>>(), scores.device())?;
        let best = scores.scores(&batch)?.f_argmax(-1, false)?;
        predictions.extend(Vec::<i64>::try_from(best.f_to_device(Device::Cpu)?)?);
    }
    Ok(predictions)
}

/// The share of examples whose label is predicted.
pub fn accuracy(scores: &impl Scores, examples: &[Example], batch: usize) -> Result<f64> {
    let predictions = predictions(scores, examples, batch)?;
    let right = predictions.iter().zip(examples).filter(|(found, example)| **found == example.label).count();
    Ok(right as f64 / examples.len() as f64)
}
