//! Probes: small classifiers that say what can be read off activations.

use std::collections::HashMap;

use models::Random;
use tch::{Device, Kind, Reduction, TchError, Tensor, no_grad};

use crate::{AdamW, AdamWOptions, Error, Result};

/// How a probe is trained: with all examples in every step, from zeros, so that the same examples give the same probe.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ProbeOptions {
    /// Steps of AdamW.
    pub steps: usize,
    /// The learning rate of the first step; it falls to nothing along a line.
    pub learning_rate: f64,
    /// Half of this times the squared weights is added to the loss (L2), features being scaled to variance 1.
    pub l2: f64,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self { steps: 300, learning_rate: 0.05, l2: 1e-3 }
    }
}

impl ProbeOptions {
    /// With another choice of [`ProbeOptions::steps`].
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// With another choice of [`ProbeOptions::learning_rate`].
    pub fn learning_rate(mut self, learning_rate: f64) -> Self {
        self.learning_rate = learning_rate;
        self
    }

    /// With another choice of [`ProbeOptions::l2`].
    pub fn l2(mut self, l2: f64) -> Self {
        self.l2 = l2;
        self
    }
}

/// The numbers below `count` in two parts, the second of them the fraction `held_out`, drawn by `seed`: indices (Int64) to train
/// with and to judge by.
///
/// # Errors
///
/// [`Error::Probe`] where one of them would be empty; [`Error::Torch`].
pub fn split(count: usize, held_out: f64, seed: u64) -> Result<(Tensor, Tensor)> {
    let random = Random::new(seed);
    let mut order: Vec<i64> = (0..count as i64).collect();
    for (index, end) in (1..count).rev().enumerate() {
        order.swap(end, (random.bits(index as u64) % (end as u64 + 1)) as usize);
    }
    let first = (count as f64 * held_out).round() as usize;
    if !(1..count.max(1)).contains(&first) {
        let problem = format!("{held_out} of {count} examples cannot be held out; both parts need one");
        return Err(Error::Probe { problem });
    }
    let (judged, trained) = order.split_at(first);
    let tensor = |indices: &[i64]| Tensor::f_from_slice(indices).map_err(torch);
    Ok((tensor(trained)?, tensor(judged)?))
}

fn torch(source: TchError) -> Error {
    Error::Torch { at: "the probe".into(), source }
}

fn refuse<T>(problem: String) -> Result<T> {
    Err(Error::Probe { problem })
}

/// Labels on the CPU, checked, and how many classes there are.
fn classes(labels: &Tensor, examples: i64) -> Result<i64> {
    let kind = labels.f_kind().map_err(torch)?;
    if labels.size() != [examples] || kind != Kind::Int64 {
        return refuse(format!("the labels are {kind:?} of shape {:?}, expected Int64 of [{examples}]", labels.size()));
    }
    let bounds = || Ok((labels.f_min()?.f_int64_value(&[])?, labels.f_max()?.f_int64_value(&[])?));
    let (least, most) = bounds().map_err(torch)?;
    if least < 0 || most < 1 {
        return refuse(format!("the labels are {least} to {most}; classes are counted from 0, and there must be two"));
    }
    Ok(most + 1)
}

/// The share of rows of `scores`, `[example, class]`, whose highest is the label's.
fn share(scores: &Tensor, labels: &Tensor) -> Result<f64> {
    let share = || {
        let right = scores.f_argmax(-1, false)?.f_eq_tensor(&labels.f_to_device(scores.device())?)?;
        right.f_to_kind(Kind::Double)?.f_mean(None)?.f_double_value(&[])
    };
    share().map_err(torch)
}

/// Trains the leaves by a loss of their own.
fn train(
    leaves: Vec<(&str, Tensor)>,
    options: &ProbeOptions,
    loss: impl Fn() -> Result<Tensor, TchError>,
) -> Result<()> {
    let rate = options.learning_rate;
    let leaves = leaves.into_iter().map(|(name, leaf)| (name.to_owned(), leaf));
    let adamw = AdamWOptions::default().learning_rate(rate).weight_decay(0.0);
    let mut optimizer = AdamW::new(leaves, adamw)?;
    for step in 0..options.steps {
        optimizer.set_learning_rate(0, rate * (1.0 - step as f64 / options.steps as f64))?;
        optimizer.zero_grad()?;
        loss().and_then(|loss| loss.f_backward()).map_err(torch)?;
        optimizer.step()?;
    }
    Ok(())
}

fn cross_entropy(scores: &Tensor, labels: &Tensor) -> Result<Tensor, TchError> {
    scores.f_cross_entropy_loss(labels, None::<&Tensor>, Reduction::Mean, -100, 0.0)
}

fn leaf(shape: &[i64], device: Device) -> Result<Tensor> {
    Tensor::f_zeros(shape, (Kind::Float, device)).and_then(|zeros| zeros.f_set_requires_grad(true)).map_err(torch)
}

/// Mean and standard deviation of every feature over `[row, feature]`; 1 where a feature never changes.
fn moments(rows: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let mean = rows.f_mean_dim([0].as_slice(), false, Kind::Float)?;
    let deviation = rows.f_sub(&mean)?.f_square()?.f_mean_dim([0].as_slice(), false, Kind::Float)?.f_sqrt()?;
    let deviation = deviation.f_where_self(&deviation.f_gt(0.0)?, &deviation.f_ones_like()?)?;
    Ok((mean, deviation))
}

/// Weights and bias over features as they are, of those over features with mean 0 and deviation 1.
fn unscaled(weight: &Tensor, bias: &Tensor, mean: &Tensor, deviation: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let weight = weight.f_detach()?.f_div(deviation)?;
    let bias = bias.f_detach()?.f_sub(&weight.f_mv(mean)?)?;
    Ok((weight, bias))
}

fn take(tensors: &HashMap<String, Tensor>, name: &str) -> Result<Tensor> {
    match tensors.get(name) {
        Some(tensor) => tensor.f_to_kind(Kind::Float).map_err(torch),
        None => refuse(format!("the tensor {name} is missing")),
    }
}

/// Logistic regression on activations: whether, and how well, a linear map of them tells classes apart.
///
/// ```
/// use partial::probe::{LinearProbe, ProbeOptions, split};
/// use tch::{Kind, Tensor};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Activations of 100 tokens, [example, feature]; the class is in which half of the third feature they are.
/// let activations = Tensor::f_arange(500, (Kind::Float, tch::Device::Cpu))?.f_sin()?.f_view([100, 5])?;
/// let labels = activations.f_select(1, 2)?.f_gt(0.0)?.f_to_kind(Kind::Int64)?;
/// let (train, held_out) = split(100, 0.25, 0)?;
/// let part = |rows: &Tensor| Ok::<_, tch::TchError>((activations.f_index_select(0, rows)?, labels.f_index_select(0, rows)?));
/// let (activations, labels) = part(&train)?;
/// let probe = LinearProbe::fit(&activations, &labels, &ProbeOptions::default())?;
/// let (activations, labels) = part(&held_out)?;
/// assert!(probe.accuracy(&activations, &labels)? > 0.9);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LinearProbe {
    weight: Tensor,
    bias: Tensor,
}

impl LinearProbe {
    /// Trains a probe on `activations`, `[example, feature]`, of the classes `labels`, `[example]` in Int64 counted from 0.
    ///
    /// # Errors
    ///
    /// [`Error::Probe`] for shapes and labels that do not fit; [`Error::Optimizer`], [`Error::Torch`].
    pub fn fit(activations: &Tensor, labels: &Tensor, options: &ProbeOptions) -> Result<Self> {
        let [examples, features] = activations.size()[..] else {
            return refuse(format!("the activations are {:?}, expected [example, feature]", activations.size()));
        };
        let classes = classes(labels, examples)?;
        let rows = activations.f_detach().and_then(|rows| rows.f_to_kind(Kind::Float)).map_err(torch)?;
        let (mean, deviation) = moments(&rows).map_err(torch)?;
        let rows = rows.f_sub(&mean).and_then(|rows| rows.f_div(&deviation)).map_err(torch)?;
        let labels = labels.f_to_device(rows.device()).map_err(torch)?;
        let (weight, bias) = (leaf(&[classes, features], rows.device())?, leaf(&[classes], rows.device())?);
        train(vec![("weight", weight.shallow_clone()), ("bias", bias.shallow_clone())], options, || {
            let penalty = weight.f_square()?.f_sum(Kind::Float)?.f_mul_scalar(options.l2 / 2.0)?;
            cross_entropy(&rows.f_linear(&weight, Some(&bias))?, &labels)?.f_add(&penalty)
        })?;
        let (weight, bias) = unscaled(&weight, &bias, &mean, &deviation).map_err(torch)?;
        Ok(Self { weight, bias })
    }

    /// What each class gets, `[.., class]`, of activations `[.., feature]`; their softmax are the probabilities.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`], for another number of features, too.
    pub fn scores(&self, activations: &Tensor) -> Result<Tensor> {
        let scores = || {
            let there = |tensor: &Tensor| tensor.f_to_device(activations.device());
            activations.f_to_kind(Kind::Float)?.f_linear(&there(&self.weight)?, Some(&there(&self.bias)?))
        };
        scores().map_err(torch)
    }

    /// The share of examples whose class scores highest; on held-out ones, what the probe has learnt.
    ///
    /// # Errors
    ///
    /// As [`LinearProbe::scores`].
    pub fn accuracy(&self, activations: &Tensor, labels: &Tensor) -> Result<f64> {
        share(&no_grad(|| self.scores(activations))?, labels)
    }

    /// The direction that speaks for a class, `[class, feature]`: how each feature, as it is, changes the scores.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `weight` (`[class, feature]`) and `bias` (`[class]`), to be written to a file.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        vec![("weight".into(), self.weight.shallow_clone()), ("bias".into(), self.bias.shallow_clone())]
    }

    /// A probe from what [`LinearProbe::tensors`] gave.
    ///
    /// # Errors
    ///
    /// [`Error::Probe`] for tensors that are missing or misshapen.
    pub fn from_tensors(tensors: &HashMap<String, Tensor>) -> Result<Self> {
        let probe = Self { weight: take(tensors, "weight")?, bias: take(tensors, "bias")? };
        match (&probe.weight.size()[..], &probe.bias.size()[..]) {
            ([classes, _], [same]) if classes == same => Ok(probe),
            (weight, bias) => {
                refuse(format!("weight is {weight:?} and bias {bias:?}, expected [class, feature], [class]"))
            }
        }
    }
}

/// A probe of whole texts: a learnt query says how much each token counts, and a linear map reads the weighted mean.
///
/// `scores = W (Σ_t a_t x_t) + b`, with `a = softmax(q · x_t)` over a text's tokens.
#[derive(Debug)]
pub struct AttentionProbe {
    query: Tensor,
    linear: LinearProbe,
}

impl AttentionProbe {
    /// Trains a probe on `activations`, `[example, position, feature]`, of the classes `labels`, `[example]` in Int64 counted from
    /// 0. `mask`, `[example, position]`, is zero at padding.
    ///
    /// # Errors
    ///
    /// As [`LinearProbe::fit`].
    pub fn fit(activations: &Tensor, mask: &Tensor, labels: &Tensor, options: &ProbeOptions) -> Result<Self> {
        let [examples, positions, features] = activations.size()[..] else {
            let found = activations.size();
            return refuse(format!("the activations are {found:?}, expected [example, position, feature]"));
        };
        if mask.size() != [examples, positions] {
            return refuse(format!("the mask is {:?}, expected [{examples}, {positions}]", mask.size()));
        }
        let classes = classes(labels, examples)?;
        let texts = activations.f_detach().and_then(|texts| texts.f_to_kind(Kind::Float)).map_err(torch)?;
        let device = texts.device();
        let tokens = || {
            let tokens = mask.f_ne(0)?.f_to_device(device)?.f_flatten(0, 1)?.f_nonzero()?.f_squeeze_dim(1)?;
            texts.f_flatten(0, 1)?.f_index_select(0, &tokens)
        };
        let (mean, deviation) = tokens().and_then(|tokens| moments(&tokens)).map_err(torch)?;
        let texts = texts.f_sub(&mean).and_then(|texts| texts.f_div(&deviation)).map_err(torch)?;
        let labels = labels.f_to_device(device).map_err(torch)?;
        let query = leaf(&[features], device)?;
        let (weight, bias) = (leaf(&[classes, features], device)?, leaf(&[classes], device)?);
        let leaves = [("query", &query), ("weight", &weight), ("bias", &bias)];
        let leaves = leaves.into_iter().map(|(name, leaf)| (name, leaf.shallow_clone())).collect();
        train(leaves, options, || {
            let squares = weight.f_square()?.f_sum(Kind::Float)?.f_add(&query.f_square()?.f_sum(Kind::Float)?)?;
            let scores = pooled(&texts, mask, &query)?.f_linear(&weight, Some(&bias))?;
            cross_entropy(&scores, &labels)?.f_add(&squares.f_mul_scalar(options.l2 / 2.0)?)
        })?;
        // The mean shifts all tokens' scores alike, so the softmax does not see it.
        let query = query.f_detach().and_then(|query| query.f_div(&deviation)).map_err(torch)?;
        let (weight, bias) = unscaled(&weight, &bias, &mean, &deviation).map_err(torch)?;
        Ok(Self { query, linear: LinearProbe { weight, bias } })
    }

    /// What each class gets, `[example, class]`, of activations `[example, position, feature]` with a mask
    /// `[example, position]`.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`], for shapes that do not fit, too.
    pub fn scores(&self, activations: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let pooled = || {
            let query = self.query.f_to_device(activations.device())?;
            pooled(&activations.f_to_kind(Kind::Float)?, mask, &query)
        };
        self.linear.scores(&pooled().map_err(torch)?)
    }

    /// The share of examples whose class scores highest.
    ///
    /// # Errors
    ///
    /// As [`AttentionProbe::scores`].
    pub fn accuracy(&self, activations: &Tensor, mask: &Tensor, labels: &Tensor) -> Result<f64> {
        share(&no_grad(|| self.scores(activations, mask))?, labels)
    }

    /// `query` (`[feature]`), `weight` (`[class, feature]`) and `bias` (`[class]`), to be written to a file.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut tensors = vec![("query".to_owned(), self.query.shallow_clone())];
        tensors.extend(self.linear.tensors());
        tensors
    }

    /// A probe from what [`AttentionProbe::tensors`] gave.
    ///
    /// # Errors
    ///
    /// As [`LinearProbe::from_tensors`].
    pub fn from_tensors(tensors: &HashMap<String, Tensor>) -> Result<Self> {
        let (query, linear) = (take(tensors, "query")?, LinearProbe::from_tensors(tensors)?);
        if query.size() != linear.weight.size().get(1..).unwrap_or_default() {
            return refuse(format!("query is {:?} and weight {:?}", query.size(), linear.weight.size()));
        }
        Ok(Self { query, linear })
    }
}

/// Texts, `[example, position, feature]`, as means of their tokens weighted by the query, `[example, feature]`.
fn pooled(texts: &Tensor, mask: &Tensor, query: &Tensor) -> Result<Tensor, TchError> {
    let padding = mask.f_eq(0)?.f_to_device(texts.device())?;
    let weights = texts.f_matmul(query)?.f_masked_fill(&padding, f64::NEG_INFINITY)?.f_softmax(-1, Kind::Float)?;
    texts.f_mul(&weights.f_unsqueeze(-1)?)?.f_sum_dim_intlist([1].as_slice(), false, Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(shape: &[i64], seed: u64) -> Tensor {
        let random = Random::new(seed);
        let count = shape.iter().product::<i64>() as u64;
        let values: Vec<f32> = (0..count).map(|index| random.uniform(index) as f32 - 0.5).collect();
        Tensor::from_slice(&values).view(shape)
    }

    #[test]
    fn a_linear_probe_finds_directions_and_nothing_in_noise() {
        let examples = 400;
        let activations = noise(&[examples, 6], 1) * Tensor::from_slice(&[1e3f32, 1.0, 1.0, 1.0, 1e-3, 0.0]) + 7.0;
        // Three classes, by the small fifth feature.
        let labels = ((activations.select(1, 4) - 7.0) * 3e3 + 1.5).floor().clamp(0.0, 2.0).to_kind(Kind::Int64);
        let (train, held_out) = split(examples as usize, 0.25, 3).unwrap();
        let part = |rows: &Tensor, labels: &Tensor| (activations.index_select(0, rows), labels.index_select(0, rows));
        let held_out_accuracy = |labels: &Tensor| {
            let (activations, train_labels) = part(&train, labels);
            let probe = LinearProbe::fit(&activations, &train_labels, &ProbeOptions::default().l2(1e-4)).unwrap();
            let saved: HashMap<String, Tensor> = probe.tensors().into_iter().collect();
            let (activations, labels) = part(&held_out, labels);
            let accuracy = probe.accuracy(&activations, &labels).unwrap();
            assert_eq!(LinearProbe::from_tensors(&saved).unwrap().accuracy(&activations, &labels).unwrap(), accuracy);
            accuracy
        };
        assert!(held_out_accuracy(&labels) > 0.9);
        let chance = held_out_accuracy(&(noise(&[examples], 9) + 1.0).floor().to_kind(Kind::Int64));
        assert!((0.3..0.7).contains(&chance), "{chance}");
    }

    #[test]
    fn an_attention_probe_finds_the_token_that_tells() {
        let (examples, positions) = (200, 7);
        // One token of each text, marked by the first feature, tells the class by the second; in all others it is noise.
        let texts = noise(&[examples, positions, 4], 2);
        let mask = Tensor::ones([examples, positions], (Kind::Int64, Device::Cpu));
        let labels: Vec<i64> = (0..examples).map(|example| example * 7 % 3 % 2).collect();
        for (example, label) in labels.iter().enumerate() {
            let text = texts.select(0, example as i64);
            let telling = text.select(0, example as i64 % 5);
            let _ = telling.narrow(0, 0, 1).fill_(3.0);
            let _ = telling.narrow(0, 1, 1).fill_(*label as f64 - 0.5);
            let _ = text.narrow(0, 6, 1).fill_(50.0);
        }
        let _ = mask.narrow(1, 6, 1).fill_(0);
        let labels = Tensor::from_slice(&labels);
        let (train, held_out) = split(examples as usize, 0.3, 0).unwrap();
        let part = |rows: &Tensor| {
            let of = |tensor: &Tensor| tensor.index_select(0, rows);
            (of(&texts), of(&mask), of(&labels))
        };
        let (texts, mask, labels) = part(&train);
        let probe = AttentionProbe::fit(&texts, &mask, &labels, &ProbeOptions::default()).unwrap();
        let (texts, mask, labels) = part(&held_out);
        assert!(probe.accuracy(&texts, &mask, &labels).unwrap() > 0.95);
        let saved = AttentionProbe::from_tensors(&probe.tensors().into_iter().collect()).unwrap();
        assert!(saved.scores(&texts, &mask).unwrap().equal(&probe.scores(&texts, &mask).unwrap()));
        // Without the query, the mean hides it.
        let means = texts.narrow(1, 0, 6).mean_dim([1].as_slice(), false, Kind::Float);
        assert!(probe.linear.accuracy(&means, &labels).unwrap() < 0.95);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (activations, options) = (noise(&[4, 2], 0), ProbeOptions::default());
        let labels = |labels: &[i64]| Tensor::from_slice(labels);
        let refused = |activations: &Tensor, labels: &Tensor| {
            matches!(LinearProbe::fit(activations, labels, &options), Err(Error::Probe { .. }))
        };
        assert!(refused(&activations, &labels(&[0, 1, 0])));
        assert!(refused(&activations, &labels(&[0, 0, 0, 0])));
        assert!(refused(&activations, &labels(&[0, 1, -1, 0])));
        assert!(refused(&activations, &Tensor::from_slice(&[0.0f32, 1.0, 0.0, 1.0])));
        assert!(refused(&activations.unsqueeze(0), &labels(&[0, 1, 0, 1])));
        assert!(split(3, 0.0, 0).is_err() && split(3, 1.0, 0).is_err() && split(0, 0.5, 0).is_err());
        assert!(LinearProbe::from_tensors(&HashMap::new()).is_err());
    }
}
