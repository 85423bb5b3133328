//! Which tokens of the input a metric hangs on.

use models::{Input, Model, Prompt, Site};
use tch::{Kind, Tensor};

use super::gradients::{
    at_metric, gradients, mean, metric_of, numbers, plain_metric, refuse_middle, refuse_streamed, torch,
};
use crate::{Columns, Edit, Effects, Error, Metric, Result, Run, patch::places::check_inputs};

/// How much of a metric each token of the input answers for, by gradients at the embedding (`input`: tokens and learned positions).
///
/// ```
/// use models::{Config, Model};
/// use partial::{InputAttribution, Metric};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
/// # let model = Model::random(Config::from_json(config)?, 0)?;
/// let metric = Metric::log_probability([4]);
/// let effects = InputAttribution::new(&model, &metric)?.steps(64).integrated_gradients([1, 2, 3])?;
/// let (from, to) = (effects.corrupted.unwrap_or(0.0), effects.clean.unwrap_or(0.0)); // of the baseline, of the input
/// assert!((effects.values[0].iter().sum::<f64>() - (to - from)).abs() < 1e-3);
/// # Ok(())
/// # }
/// ```
pub struct InputAttribution<'a> {
    model: &'a Model,
    metric: &'a Metric,
    baseline: Option<Input>,
    steps: i64,
    at_once: i64,
    read_at: Option<i64>,
}

impl<'a> InputAttribution<'a> {
    /// Nothing runs.
    ///
    /// # Errors
    ///
    /// [`Error::StreamedGradient`].
    pub fn new(model: &'a Model, metric: &'a Metric) -> Result<Self> {
        refuse_streamed(model)?;
        Ok(Self { model, metric, baseline: None, steps: 64, at_once: 8, read_at: None })
    }

    /// Starts the path at the embedding of another input of the same shape, such as a corrupted one, rather than at zeros.
    ///
    /// # Errors
    ///
    /// Whatever [`Model::input`] refuses.
    pub fn baseline<'p>(mut self, baseline: impl Into<Prompt<'p>>) -> Result<Self> {
        self.baseline = Some(self.model.input(baseline)?);
        Ok(self)
    }

    /// Points of the path at which the gradient is taken; 64 by default. What the attributions sum up to approaches the difference of
    /// the metric with the square of their number.
    pub fn steps(mut self, steps: i64) -> Self {
        self.steps = steps;
        self
    }

    /// How many of them run as one batch; 8 by default. More take more memory.
    pub fn at_once(mut self, steps: i64) -> Self {
        self.at_once = steps;
        self
    }

    /// The position whose logits the metric reads; by default each row's last token.
    pub fn read_at(mut self, position: i64) -> Self {
        self.read_at = Some(position);
        self
    }

    /// Gradient times input: the embedding times the gradient of the metric there, summed over the width; a column for each position.
    /// Of a batch, means over its rows.
    ///
    /// # Errors
    ///
    /// Whatever [`Model::input`] and [`Model::forward`] refuse, [`Error::BeforeStart`], what [`Metric::of`] does, and
    /// [`Error::Torch`].
    pub fn gradient_times_input<'p>(&self, input: impl Into<Prompt<'p>>) -> Result<Effects> {
        let input = self.model.input(input)?;
        refuse_middle(&input)?;
        let x = self.embedded(&input)?;
        let (metric, gradient) = self.gradient(&at_metric(&input, self.read_at)?, &x, 1)?;
        let values = self.over_width(&x, &gradient, 1.0)?;
        Ok(self.effects("gradient times input", values, mean(&metric)?, None))
    }

    /// Integrated gradients (Sundararajan et al., 2017): the way from the baseline's embedding to the input's, times the mean gradient
    /// of the metric along it, by the midpoint rule; a column for each position. The sum is the metric of the input
    /// ([`Effects::clean`]) less that of the baseline ([`Effects::corrupted`]), up to the error of the rule. Of a batch, means over its
    /// rows.
    ///
    /// # Errors
    ///
    /// As [`InputAttribution::gradient_times_input`]; [`Error::PatchInputs`] for a baseline that does not fit; [`Error::NoSteps`].
    pub fn integrated_gradients<'p>(&self, input: impl Into<Prompt<'p>>) -> Result<Effects> {
        if self.steps < 1 || self.at_once < 1 {
            return Err(Error::NoSteps { steps: self.steps, at_once: self.at_once });
        }
        let input = self.model.input(input)?;
        refuse_middle(&input)?;
        if let Some(baseline) = &self.baseline {
            check_inputs(self.model, &input, baseline)?;
        }
        let there = at_metric(&input, self.read_at)?;
        let to = self.embedded(&input)?;
        let from = match &self.baseline {
            Some(baseline) => self.embedded(baseline)?,
            None => to.f_zeros_like().map_err(torch(Site::INPUT))?,
        };
        let clean = plain_metric(self.model, self.metric, &input, self.read_at, None)?;
        let corrupted = plain_metric(self.model, self.metric, &input, self.read_at, Some(Edit::replace(&from)))?;
        let way = to.f_sub(&from).map_err(torch(Site::INPUT))?;
        let mut sum = way.f_zeros_like().and_then(|sum| sum.f_to_kind(Kind::Float)).map_err(torch(Site::INPUT))?;
        for first in (0..self.steps).step_by(self.at_once as usize) {
            let count = self.at_once.min(self.steps - first);
            let points = (first..first + count).map(|step| {
                let part = (step as f64 + 0.5) / self.steps as f64;
                way.f_mul_scalar(part)?.f_add(&from)
            });
            let points = points.collect::<Result<Vec<_>, _>>().and_then(|points| Tensor::f_cat(&points, 0));
            let points = points.map_err(torch(Site::INPUT))?;
            let (_, gradient) = self.gradient(&there.repeated(count)?, &points, count)?;
            let added = || {
                let of_points = gradient.f_reshape([count, -1])?;
                sum.f_add(&of_points.f_sum_dim_intlist([0].as_slice(), false, Kind::Float)?.f_view_as(&sum)?)
            };
            sum = added().map_err(torch(Site::INPUT))?;
        }
        let values = self.over_width(&way, &sum, 1.0 / self.steps as f64)?;
        Ok(self.effects("integrated gradients", values, mean(&clean)?, Some(mean(&corrupted)?)))
    }

    /// What enters the first block, `[row, position, d_model]`.
    fn embedded(&self, input: &Input) -> Result<Tensor> {
        let output = tch::no_grad(|| Run::new(self.model, &[Site::INPUT])?.run(input))?;
        Ok(output.get(Site::INPUT)?.shallow_clone())
    }

    /// The metric of each row, and its gradient at the embedding, which is `x`; both of as many batches as `times` says.
    fn gradient(&self, input: &Input, x: &Tensor, times: i64) -> Result<(Tensor, Tensor)> {
        tch::with_grad(|| {
            let leaf = x.f_detach().and_then(|x| x.f_set_requires_grad(true)).map_err(torch(Site::INPUT))?;
            let run = Run::new(self.model, &[Site::LOGITS])?.edit(Site::INPUT, Edit::replace(&leaf))?;
            let output = run.run(input)?;
            let batches = output.get(Site::LOGITS)?.f_chunk(times, 0).map_err(torch(Site::LOGITS))?;
            // Tokens of a metric are given for each row of one batch.
            let metrics = batches.iter().map(|logits| metric_of(self.metric, logits, self.read_at));
            let metric = Tensor::f_cat(&metrics.collect::<Result<Vec<_>>>()?, 0).map_err(torch(Site::LOGITS))?;
            let gradient = gradients(&metric, &[&leaf])?.pop().flatten();
            let gradient = gradient.map_or_else(|| leaf.f_zeros_like(), Ok).map_err(torch(Site::INPUT))?;
            Ok((metric.detach(), gradient))
        })
    }

    /// The mean over rows of `change · gradient · factor`, a number for each position.
    fn over_width(&self, change: &Tensor, gradient: &Tensor, factor: f64) -> Result<Vec<f64>> {
        let along = || {
            let product = change.f_to_kind(Kind::Float)?.f_mul(&gradient.f_to_kind(Kind::Float)?)?;
            let each = product.f_sum_dim_intlist([-1].as_slice(), false, Kind::Double)?;
            each.f_mean_dim([0].as_slice(), false, Kind::Double)?.f_mul_scalar(factor)
        };
        numbers(&along().map_err(torch(Site::INPUT))?)
    }

    fn effects(&self, method: &str, values: Vec<f64>, clean: f64, corrupted: Option<f64>) -> Effects {
        Effects {
            method: method.into(),
            metric: self.metric.to_string(),
            rows: vec![Site::INPUT.to_string()],
            columns: Columns::Positions((0..values.len() as i64).collect()),
            values: vec![values],
            clean: Some(clean),
            corrupted,
        }
    }
}
