//! AdamW: Adam with decoupled weight decay.

use std::collections::HashMap;

use tch::{Kind, TchError, Tensor, no_grad};

use crate::{Error, Result};

/// How one group of tensors is changed.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct AdamWOptions {
    /// How far a step goes.
    pub learning_rate: f64,
    /// How much of the running means of gradients and of their squares is kept in a step.
    pub betas: (f64, f64),
    /// Added to the root of the squares' mean, so that nothing is divided by zero.
    pub epsilon: f64,
    /// What part of a tensor is taken away in a step, times the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWOptions {
    /// As PyTorch's: a learning rate of 0.001, betas of 0.9 and 0.999, a weight decay of 0.01.
    fn default() -> Self {
        Self { learning_rate: 1e-3, betas: (0.9, 0.999), epsilon: 1e-8, weight_decay: 0.01 }
    }
}

impl AdamWOptions {
    /// With another choice of [`AdamWOptions::learning_rate`].
    pub fn learning_rate(mut self, learning_rate: f64) -> Self {
        self.learning_rate = learning_rate;
        self
    }

    /// With another choice of [`AdamWOptions::betas`].
    pub fn betas(mut self, first: f64, second: f64) -> Self {
        self.betas = (first, second);
        self
    }

    /// With another choice of [`AdamWOptions::epsilon`].
    pub fn epsilon(mut self, epsilon: f64) -> Self {
        self.epsilon = epsilon;
        self
    }

    /// With another choice of [`AdamWOptions::weight_decay`].
    pub fn weight_decay(mut self, weight_decay: f64) -> Self {
        self.weight_decay = weight_decay;
        self
    }

    fn check(&self) -> Result<()> {
        let refuse =
            |option, found: f64, expected| Err(Error::Optimizer { option, found: found.to_string(), expected });
        if !(self.learning_rate.is_finite() && self.learning_rate >= 0.0) {
            return refuse("learning_rate", self.learning_rate, "a number of at least 0");
        }
        for (option, beta) in [("the first of betas", self.betas.0), ("the second of betas", self.betas.1)] {
            if !(0.0..1.0).contains(&beta) {
                return refuse(option, beta, "at least 0 and below 1");
            }
        }
        if !(self.epsilon.is_finite() && self.epsilon >= 0.0) {
            return refuse("epsilon", self.epsilon, "a number of at least 0");
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return refuse("weight_decay", self.weight_decay, "a number of at least 0");
        }
        Ok(())
    }
}

/// A tensor that is trained, and what is remembered of its gradients.
struct Trained {
    name: String,
    tensor: Tensor,
    /// The running mean of gradients.
    first: Tensor,
    /// The running mean of their squares.
    second: Tensor,
    /// Steps that had a gradient.
    steps: i64,
}

struct Group {
    options: AdamWOptions,
    trained: Vec<Trained>,
}

/// The optimizer AdamW: "Decoupled Weight Decay Regularization", Loshchilov and Hutter (2019),
/// <https://arxiv.org/abs/1711.05101>. Its numbers are those of PyTorch's, and nothing in it panics.
///
/// It takes tensors by name, as [`models::Model::trainable`] gives them, in groups with options of their own. A tensor that got no
/// gradient stays as it is.
///
/// ```
/// use partial::{AdamW, AdamWOptions};
/// # use models::{Config, Model};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
/// # let model = Model::random(Config::from_json(config)?, 0)?;
/// let mut optimizer = AdamW::new(model.trainable([model.block_part(1)])?, AdamWOptions::default())?;
/// let loss = || Ok::<_, Box<dyn std::error::Error>>(model.logits([1, 2, 3])?.f_log_softmax(-1, None)?.f_select(2, 7)?.f_mean(None)?.f_neg()?);
/// let before = loss()?;
/// before.f_backward()?;
/// optimizer.clip(1.0)?;
/// optimizer.step()?;
/// optimizer.zero_grad()?;
/// assert!(loss()?.f_double_value(&[])? < before.f_double_value(&[])?);
/// # Ok(())
/// # }
/// ```
pub struct AdamW {
    groups: Vec<Group>,
}

fn torch(at: &str) -> impl Fn(TchError) -> Error + use<'_> {
    move |source| Error::Torch { at: at.to_owned(), source }
}

impl AdamW {
    /// An optimizer of one group. Names tell the tensors apart in the state.
    ///
    /// # Errors
    ///
    /// [`Error::Optimizer`] for an option out of range, [`Error::Torch`].
    pub fn new(tensors: impl IntoIterator<Item = (String, Tensor)>, options: AdamWOptions) -> Result<Self> {
        let mut optimizer = Self { groups: Vec::new() };
        optimizer.add_group(tensors, options)?;
        Ok(optimizer)
    }

    /// Adds a group with options of its own, and gives its number; that of [`AdamW::new`] is 0.
    ///
    /// # Errors
    ///
    /// As [`AdamW::new`].
    pub fn add_group(
        &mut self,
        tensors: impl IntoIterator<Item = (String, Tensor)>,
        options: AdamWOptions,
    ) -> Result<usize> {
        options.check()?;
        let trained = |(name, tensor): (String, Tensor)| {
            let zeros = || tensor.f_detach()?.f_zeros_like();
            let (first, second) = zeros().and_then(|first| Ok((first, zeros()?))).map_err(torch(&name))?;
            Ok(Trained { name, tensor, first, second, steps: 0 })
        };
        let trained = tensors.into_iter().map(trained).collect::<Result<_>>()?;
        self.groups.push(Group { options, trained });
        Ok(self.groups.len() - 1)
    }

    /// Names and tensors of all groups.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.groups.iter().flat_map(|group| &group.trained).map(|trained| (trained.name.as_str(), &trained.tensor))
    }

    /// How many groups there are.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Changes how far steps of a group go from here on. A number that there is no group of changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Optimizer`].
    pub fn set_learning_rate(&mut self, group: usize, learning_rate: f64) -> Result<()> {
        if let Some(group) = self.groups.get_mut(group) {
            let options = group.options.learning_rate(learning_rate);
            options.check()?;
            group.options = options;
        }
        Ok(())
    }

    /// Forgets all gradients.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`].
    pub fn zero_grad(&mut self) -> Result<()> {
        for (name, tensor) in self.tensors() {
            let mut gradient = tensor.grad();
            if gradient.defined() {
                let _ = gradient.f_detach_().and_then(|mut gradient| gradient.f_zero_()).map_err(torch(name))?;
            }
        }
        Ok(())
    }

    /// Scales all gradients so that their common norm is at most `most`, as PyTorch's `clip_grad_norm_` does, and gives the norm
    /// that they had.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`].
    pub fn clip(&mut self, most: f64) -> Result<f64> {
        clip(self.groups.iter().flat_map(|group| &group.trained), most)
    }

    /// As [`AdamW::clip`], for the gradients of one group.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`].
    pub fn clip_group(&mut self, group: usize, most: f64) -> Result<f64> {
        clip(self.groups.get(group).into_iter().flat_map(|group| &group.trained), most)
    }

    /// Changes every tensor that has a gradient.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`], naming the tensor.
    pub fn step(&mut self) -> Result<()> {
        for group in &mut self.groups {
            let options = group.options;
            for trained in &mut group.trained {
                let gradient = trained.tensor.grad();
                if gradient.defined() {
                    trained.steps += 1;
                    no_grad(|| trained.step(&gradient, &options)).map_err(torch(&trained.name))?;
                }
            }
        }
        Ok(())
    }

    /// What must be kept to go on later: for each tensor the running means of its gradients and of their squares, `first.NAME` and
    /// `second.NAME`, and `steps.NAME` (Int64). The tensors themselves are not among them.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`].
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut state = Vec::new();
        for trained in self.groups.iter().flat_map(|group| &group.trained) {
            let name = &trained.name;
            let steps = Tensor::f_from_slice(&[trained.steps]).map_err(torch(name))?;
            state.push((format!("first.{name}"), trained.first.shallow_clone()));
            state.push((format!("second.{name}"), trained.second.shallow_clone()));
            state.push((format!("steps.{name}"), steps));
        }
        Ok(state)
    }

    /// Goes on from what [`AdamW::state`] gave. Tensors of other names are left alone, so that the state may lie in one file with
    /// others.
    ///
    /// # Errors
    ///
    /// [`Error::OptimizerState`] for a tensor that is missing or misshapen; nothing is changed then.
    pub fn load_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        let mut found = Vec::new();
        for trained in self.groups.iter().flat_map(|group| &group.trained) {
            let take = |what: &str, shape: Vec<i64>| {
                let key = format!("{what}.{}", trained.name);
                let tensor = state.get(&key);
                match tensor {
                    Some(tensor) if tensor.size() == shape => Ok(tensor),
                    other => {
                        Err(Error::OptimizerState { tensor: key, expected: shape, found: other.map(Tensor::size) })
                    }
                }
            };
            let shape = trained.tensor.size();
            let home = |tensor: &Tensor| {
                let copy = tensor.f_to_device(trained.first.device())?.f_to_kind(trained.first.f_kind()?)?;
                copy.f_clone(&copy.f_empty_like()?)
            };
            let steps = take("steps", vec![1])?.f_int64_value(&[0]);
            let read = (home(take("first", shape.clone())?), home(take("second", shape)?), steps);
            let (Ok(first), Ok(second), Ok(steps)) = read else {
                let error = [read.0.err(), read.1.err(), read.2.err()].into_iter().flatten().next();
                return match error {
                    Some(source) => Err(torch(&trained.name)(source)),
                    None => Ok(()),
                };
            };
            found.push((first, second, steps));
        }
        let all = self.groups.iter_mut().flat_map(|group| &mut group.trained);
        for (trained, (first, second, steps)) in all.zip(found) {
            (trained.first, trained.second, trained.steps) = (first, second, steps);
        }
        Ok(())
    }
}

impl Trained {
    fn step(&mut self, gradient: &Tensor, options: &AdamWOptions) -> Result<(), TchError> {
        let (beta_1, beta_2) = options.betas;
        let rate = options.learning_rate;
        let _ = self.first.f_lerp_(gradient, 1.0 - beta_1)?;
        let _ = self.second.f_mul_scalar_(beta_2)?.f_add_(&gradient.f_square()?.f_mul_scalar(1.0 - beta_2)?)?;
        // Both means began at zero, and are that much too small.
        let correction = |beta: f64| 1.0 - beta.powi(self.steps.min(i64::from(i32::MAX)) as i32);
        let (correction_1, correction_2) = (correction(beta_1), correction(beta_2));
        let scale = self.second.f_sqrt()?.f_div_scalar(correction_2.sqrt())?.f_add_scalar(options.epsilon)?;
        let update = self.first.f_div(&scale)?.f_mul_scalar(rate / correction_1)?;
        let mut data = self.tensor.f_detach()?;
        let _ = data.f_mul_scalar_(1.0 - rate * options.weight_decay)?;
        let _ = data.f_sub_(&update)?;
        Ok(())
    }
}

fn clip<'a>(trained: impl Iterator<Item = &'a Trained>, most: f64) -> Result<f64> {
    let all: Vec<(&Trained, Tensor)> =
        trained.map(|trained| (trained, trained.tensor.grad())).filter(|(_, gradient)| gradient.defined()).collect();
    no_grad(|| {
        let mut squares = 0.0;
        for (trained, gradient) in &all {
            let sum = gradient.f_square().and_then(|squares| squares.f_sum(Kind::Double)?.f_double_value(&[]));
            squares += sum.map_err(torch(&trained.name))?;
        }
        let norm = squares.sqrt();
        let scale = most / (norm + 1e-6);
        if scale < 1.0 {
            for (trained, mut gradient) in all {
                let _ = gradient.f_mul_scalar_(scale).map_err(torch(&trained.name))?;
            }
        }
        Ok(norm)
    })
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// Two tensors, a loss of both, and PyTorch 2.13's numbers after each step of its AdamW in f64, with
    /// `clip_grad_norm_([a, b], 4)` before it: `a`, `b`, the norm. `a` has lr 0.1, betas 0.9 and 0.95, decay 0.2; `b` lr 0.02,
    /// betas 0.8 and 0.999, eps 0.001, no decay; the loss is
    /// `((a * [1, 2, 3] - 1) ** 2).sum() + sin(b.sum() * a[0]) * (step + 1)`.
    const STEPS: [([f64; 3], [f64; 2], f64); 5] = [
        ([0.880000009368, -1.860000000253, 0.390000001687], [0.280185613672, 0.680185613672], 20.245389098),
        ([0.766825810860, -1.722793014432, 0.292986847064], [0.260870281138, 0.660870281138], 19.007730046),
        ([0.658485395453, -1.588342509382, 0.235789512074], [0.241288624252, 0.641288624252], 18.042660409),
        ([0.553358341628, -1.456625451078, 0.226966783200], [0.221217186436, 0.621217186436], 17.234664919),
        ([0.450518620597, -1.327608643422, 0.247968996030], [0.200612496158, 0.600612496158], 16.405278699),
    ];

    fn leaf(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    fn optimizer(a: &Tensor, b: &Tensor) -> AdamW {
        let options = AdamWOptions::default();
        let first = options.learning_rate(0.1).betas(0.9, 0.95).weight_decay(0.2);
        let second = options.learning_rate(0.02).betas(0.8, 0.999).epsilon(1e-3).weight_decay(0.0);
        let mut optimizer = AdamW::new([("a".to_owned(), a.shallow_clone())], first).unwrap();
        assert_eq!(optimizer.add_group([("b".to_owned(), b.shallow_clone())], second).unwrap(), 1);
        optimizer
    }

    fn backward(a: &Tensor, b: &Tensor, step: usize) {
        let loss = (a * Tensor::from_slice(&[1.0, 2.0, 3.0]) - 1.0).square().sum(None);
        let loss = loss + (b.sum(None) * a.select(0, 0)).sin() * (step + 1) as f64;
        loss.backward();
    }

    fn close(found: &Tensor, expected: &[f64]) {
        assert!(found.allclose(&Tensor::from_slice(expected), 0.0, 1e-11, false), "{found} {expected:?}");
    }

    #[test]
    fn numbers_are_pytorch_s_also_after_a_pause() {
        let (mut a, mut b) = (leaf(&[1.0, -2.0, 0.5]), leaf(&[0.3, 0.7]));
        let mut adamw = optimizer(&a, &b);
        for (step, (of_a, of_b, norm)) in STEPS.iter().enumerate() {
            adamw.zero_grad().unwrap();
            backward(&a, &b, step);
            assert!((adamw.clip(4.0).unwrap() - norm).abs() < 1e-8);
            adamw.step().unwrap();
            close(&a.detach(), of_a);
            close(&b.detach(), of_b);
            // Another optimizer goes on where this one was, over other tensors.
            let state = adamw.state().unwrap().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect();
            (a, b) = (a.detach().copy().set_requires_grad(true), b.detach().copy().set_requires_grad(true));
            adamw = optimizer(&a, &b);
            adamw.load_state(&state).unwrap();
        }
    }

    #[test]
    fn a_tensor_without_a_gradient_stays_and_a_group_is_clipped_by_itself() {
        let (a, b) = (leaf(&[1.0, 2.0, 3.0]), leaf(&[4.0, 5.0]));
        let mut adamw = optimizer(&a, &b);
        (a.sum(None) * 100.0).backward();
        adamw.clip_group(1, 1.0).unwrap();
        close(&a.grad(), &[100.0; 3]);
        adamw.clip_group(0, 1.0).unwrap();
        close(&(a.grad() * 3.0f64.sqrt()).detach(), &[1.0 / (1.0 + 1e-6 / 30000f64.sqrt()); 3]);
        adamw.set_learning_rate(0, 0.0).unwrap();
        adamw.step().unwrap();
        close(&a.detach(), &[1.0, 2.0, 3.0]);
        close(&b.detach(), &[4.0, 5.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let a = leaf(&[1.0]);
        let of = |options| AdamW::new([("a".to_owned(), a.shallow_clone())], options);
        let options = AdamWOptions::default();
        for wrong in [
            options.learning_rate(-1.0),
            options.learning_rate(f64::NAN),
            options.betas(1.0, 0.9),
            options.betas(0.9, -0.1),
            options.epsilon(f64::INFINITY),
            options.weight_decay(-0.1),
        ] {
            assert!(matches!(of(wrong), Err(Error::Optimizer { .. })), "{wrong:?}");
        }
        let mut adamw = of(options).unwrap();
        let mut state: HashMap<String, Tensor> = adamw.state().unwrap().into_iter().collect();
        let _ = state.insert("first.a".into(), Tensor::zeros([2], (Kind::Double, Device::Cpu)));
        let wrong = adamw.load_state(&state).unwrap_err();
        assert!(matches!(&wrong, Error::OptimizerState { tensor, .. } if tensor == "first.a"), "{wrong}");
        let _ = state.remove("first.a");
        assert!(matches!(adamw.load_state(&state), Err(Error::OptimizerState { found: None, .. })));
    }
}
