//! Training a tuned lens.

use std::ops::ControlFlow;

use models::{Input, Model, Random, Site, Tail, Unembedding};
use partial::{AdamW, AdamWOptions, Run};
use tch::{Kind, TchError, Tensor, no_grad};

use crate::{Error, TunedLens, error::Result};

/// How translators are trained.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct TunedLensTraining {
    /// Steps of the optimizer.
    pub steps: u64,
    /// Sequences in a step.
    pub batch: usize,
    /// Tokens in a sequence.
    pub context: usize,
    /// The learning rate of the first step; it falls to nothing along a line.
    pub learning_rate: f64,
    /// Weight decay: it pulls the translators towards the logit lens.
    pub weight_decay: f64,
    /// Tokens that are unembedded at once; fewer take less memory.
    pub tokens_at_once: usize,
    /// Seed of the sequences.
    pub seed: u64,
}

impl Default for TunedLensTraining {
    /// 250 steps of 8 sequences of 256 tokens, with a learning rate of 0.002 and a weight decay of 0.001.
    fn default() -> Self {
        Self {
            steps: 250,
            batch: 8,
            context: 256,
            learning_rate: 2e-3,
            weight_decay: 1e-3,
            tokens_at_once: 1024,
            seed: 0,
        }
    }
}

/// Makes a setter of each field.
macro_rules! setters {
    ($($field:ident: $type:ty),* $(,)?) => {
        impl TunedLensTraining {
            $(
                #[doc = concat!("With another choice of [`TunedLensTraining::", stringify!($field), "`].")]
                pub fn $field(mut self, $field: $type) -> Self {
                    self.$field = $field;
                    self
                }
            )*
        }
    };
}

setters!(
    steps: u64,
    batch: usize,
    context: usize,
    learning_rate: f64,
    weight_decay: f64,
    tokens_at_once: usize,
    seed: u64,
);

/// A step of training that has been made.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct TrainedStep {
    /// Steps that have been made.
    pub steps: u64,
    /// KL(final || lens) of the step's tokens before it, in nats, the mean over tokens and layers.
    pub divergence: f64,
}

fn torch(source: TchError) -> Error {
    Error::Torch { at: "training the tuned lens", source }
}

fn refuse<T>(problem: String) -> Result<T> {
    Err(Error::TunedLens { problem })
}

impl TunedLens {
    /// Trains the translators on a text's tokens: each layer is to say what the model says in the end, by KL(final || lens), as
    /// Belrose et al. (2023) train theirs, with AdamW and gradients clipped to the norm 1, layer by layer. `on_step` is told of
    /// each step, and may end the training.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// use lens::{TunedLens, TunedLensConfig, TunedLensTraining};
    /// # use models::{Config, Model};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
    /// # let model = Model::random(Config::from_json(config)?, 0)?;
    /// let text: Vec<i64> = (0..400).map(|index| index * index % 20).collect();
    /// let (train, held_out) = text.split_at(360);
    /// let tuned = TunedLens::identity(TunedLensConfig::of("gpt2", &model)?, tch::Device::Cpu)?;
    /// let before = tuned.divergences(&model, &[held_out], 1024)?; // of the logit lens, layer by layer
    /// let options = TunedLensTraining::default().steps(10).context(16);
    /// tuned.train(&model, train, &options, |step| {
    ///     println!("{}: {:.3} nats", step.steps, step.divergence);
    ///     ControlFlow::Continue(())
    /// })?;
    /// assert!(tuned.divergences(&model, &[held_out], 1024)? < before);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::TunedLens`] for another model's translators, for options out of range, for fewer tokens than one sequence has, and
    /// where the divergence is no number; whatever the model refuses.
    pub fn train(
        &self,
        model: &Model,
        tokens: &[i64],
        options: &TunedLensTraining,
        mut on_step: impl FnMut(TrainedStep) -> ControlFlow<()>,
    ) -> Result<()> {
        let TunedLensTraining { batch, context, tokens_at_once, .. } = *options;
        if batch == 0 || context == 0 || tokens_at_once == 0 {
            return refuse("batch, context and tokens_at_once must be at least 1".into());
        }
        let Some(places) = (tokens.len() + 1).checked_sub(context).filter(|places| *places > 0) else {
            return refuse(format!("{} tokens to train on, fewer than one sequence of {context}", tokens.len()));
        };
        let teacher = Teacher::new(self, model)?;
        let leaves = self.trainable()?;
        let random = Random::new(options.seed);
        let sequences = |step: u64| {
            let start = |row: u64| (random.bits(step * batch as u64 + row) % places as u64) as usize;
            (0..batch as u64).filter_map(|row| tokens.get(start(row)..)?.get(..context)).collect()
        };
        let trained = self.fit(&teacher, &leaves, options, sequences, &mut on_step);
        for leaf in leaves.iter().flatten() {
            let _ = leaf.f_set_requires_grad(false).map_err(torch)?;
        }
        trained
    }

    fn fit<'t>(
        &self,
        teacher: &Teacher,
        leaves: &[Vec<Tensor>],
        options: &TunedLensTraining,
        sequences: impl Fn(u64) -> Vec<&'t [i64]>,
        on_step: &mut impl FnMut(TrainedStep) -> ControlFlow<()>,
    ) -> Result<()> {
        let steps = options.steps;
        let adamw = AdamWOptions::default().learning_rate(options.learning_rate).weight_decay(options.weight_decay);
        let named = |layer: usize, leaves: &[Tensor]| {
            let leaves =
                leaves.iter().enumerate().map(|(index, leaf)| (format!("{layer}.{index}"), leaf.shallow_clone()));
            leaves.collect::<Vec<_>>()
        };
        let mut optimizer = AdamW::new([], adamw)?;
        for (layer, leaves) in leaves.iter().enumerate() {
            optimizer.add_group(named(layer, leaves), adamw)?;
        }
        for step in 0..steps {
            let rate = options.learning_rate * (1.0 - step as f64 / steps as f64);
            for group in 0..optimizer.groups() {
                // Like the published lenses: the rate falls to nothing along a line.
                optimizer.set_learning_rate(group, rate)?;
            }
            let rows = sequences(step);
            let count: usize = rows.iter().map(|row| row.len()).sum();
            let mut divergence = 0.0;
            optimizer.zero_grad()?;
            teacher.each(&rows, options.tokens_at_once, |layer, stream, own| {
                let loss = teacher.divergence(self, layer, stream, own)?;
                let loss = loss.f_sum(Kind::Float).and_then(|sum| sum.f_div_scalar(count as f64)).map_err(torch)?;
                // Layer by layer: each layer's logits are dropped before the next one's are made.
                loss.f_backward().map_err(torch)?;
                divergence += loss.f_double_value(&[]).map_err(torch)? / self.layers() as f64;
                Ok(())
            })?;
            if !divergence.is_finite() {
                return refuse(format!("the divergence is {divergence} at step {step}; lower the learning rate"));
            }
            for group in 0..optimizer.groups() {
                // Each layer by itself: one that is far off must not hold the others back.
                optimizer.clip_group(group, 1.0)?;
            }
            optimizer.step()?;
            if on_step(TrainedStep { steps: step + 1, divergence }).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Each layer's mean KL(final || lens) over sequences of tokens, in nats. Translators of zeros give those of the logit lens.
    ///
    /// # Errors
    ///
    /// [`Error::TunedLens`] for another model's translators and where there is no token; whatever the model refuses.
    pub fn divergences(&self, model: &Model, sequences: &[&[i64]], tokens_at_once: usize) -> Result<Vec<f64>> {
        let count: usize = sequences.iter().map(|sequence| sequence.len()).sum();
        if count == 0 || tokens_at_once == 0 {
            return refuse("no tokens to measure the divergence on".into());
        }
        let teacher = Teacher::new(self, model)?;
        let mut sums = vec![0.0; self.layers()];
        for sequence in sequences {
            teacher.each(&[sequence], tokens_at_once, |layer, stream, own| {
                let divergence = no_grad(|| teacher.divergence(self, layer, stream, own))?;
                let sum = divergence.f_sum(Kind::Double).and_then(|sum| sum.f_double_value(&[])).map_err(torch)?;
                if let Some(total) = sums.get_mut(layer) {
                    *total += sum;
                }
                Ok(())
            })?;
        }
        Ok(sums.into_iter().map(|sum| sum / count as f64).collect())
    }
}

/// A model that translators learn from, and what of it does not change meanwhile.
struct Teacher<'a> {
    run: Run<'a>,
    sites: Vec<Site>,
    tail: Tail,
    /// In f32.
    unembedding: Unembedding,
}

impl<'a> Teacher<'a> {
    fn new(lens: &TunedLens, model: &'a Model) -> Result<Self> {
        lens.check(model)?;
        let sites: Vec<Site> = (0..lens.layers()).map(TunedLens::site).collect();
        let names: Vec<Site> = sites.iter().copied().chain([Site::LOGITS]).collect();
        let unembedding = model.unembedding()?.to_kind(Kind::Float).map_err(torch)?;
        Ok(Self { run: Run::new(model, &names)?, sites, tail: model.tail()?, unembedding })
    }

    /// Calls `act` with each layer, its streams (`[position, d_model]`) and the logarithms of the model's own probabilities
    /// there (`[position, vocabulary]`), some tokens of all layers at a time. Rows have one length.
    fn each(
        &self,
        rows: &[&[i64]],
        tokens_at_once: usize,
        mut act: impl FnMut(usize, &Tensor, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let output = no_grad(|| self.run.run(Input::from_rows(rows)?))?;
        let flat = |site: Site| -> Result<Tensor> {
            let value = output.get(site)?;
            value.f_flatten(0, 1).and_then(|flat| flat.f_to_kind(Kind::Float)).map_err(torch)
        };
        let logits = flat(Site::LOGITS)?;
        let streams = self.sites.iter().map(|site| flat(*site)).collect::<Result<Vec<_>>>()?;
        drop(output);
        let count = logits.size2().map_err(torch)?.0;
        for first in (0..count).step_by(tokens_at_once) {
            let length = (tokens_at_once as i64).min(count - first);
            let own = logits.f_narrow(0, first, length).and_then(|own| own.f_log_softmax(-1, Kind::Float));
            let own = own.map_err(torch)?;
            for (layer, stream) in streams.iter().enumerate() {
                act(layer, &stream.f_narrow(0, first, length).map_err(torch)?, &own)?;
            }
        }
        Ok(())
    }

    fn divergence(&self, lens: &TunedLens, layer: usize, stream: &Tensor, own: &Tensor) -> Result<Tensor> {
        lens.divergence(&self.tail, layer, stream, own, &self.unembedding)
    }
}
