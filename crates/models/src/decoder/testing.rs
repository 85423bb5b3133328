//! What the tests of the decoder share: models with weights that matter, and an observer that keeps and changes values.

use std::collections::HashMap;

use tch::{Kind, Tensor};

use crate::{Action, Config, Input, Model, Observer, ObserverError, Outcome, Point, Random, Site};

/// A model of a `config.json`, changed by `change`, whose weights are all far from neutral: normal with deviation 0.5, norms and
/// biases too. The same on every machine.
pub(super) fn model(json: &str, change: impl Fn(&mut Config)) -> Model {
    model_in(Kind::Float, json, change)
}

/// The same, with weights rounded to another dtype.
pub(super) fn model_in(kind: Kind, json: &str, change: impl Fn(&mut Config)) -> Model {
    let mut config = Config::from_json(json).unwrap();
    change(&mut config);
    let tensors = weights(&config).into_iter().map(|(name, tensor)| (name, tensor.to_kind(kind))).collect();
    Model::from_tensors(config, &tensors).unwrap()
}

/// The weights of [`model`], by name.
pub(super) fn weights(config: &Config) -> HashMap<String, Tensor> {
    let tensor = |(name, shape): (String, Vec<i64>)| {
        let mut values = vec![0.0; shape.iter().product::<i64>() as usize];
        Random::named(7, &name).fill_normal(0.0, 0.5, 0, &mut values);
        (name, Tensor::from_slice(&values).view(shape.as_slice()))
    };
    Model::tensor_shapes(config).unwrap().into_iter().map(tensor).collect()
}

type Change = Box<dyn Fn(&Tensor) -> Tensor>;

/// Keeps the value of every site it wants, in the order in which they come, and changes one.
pub(super) struct Watcher {
    wanted: Option<Vec<Site>>,
    change: Option<(Site, Change)>,
    pub(super) seen: Vec<(Site, Tensor)>,
}

impl Watcher {
    /// Wants everything.
    pub(super) fn of_all() -> Self {
        Self { wanted: None, change: None, seen: Vec::new() }
    }

    /// Wants these.
    pub(super) fn of(wanted: &[Site]) -> Self {
        Self { wanted: Some(wanted.to_vec()), ..Self::of_all() }
    }

    /// Also changes the value at `site`.
    pub(super) fn changing(mut self, site: Site, change: impl Fn(&Tensor) -> Tensor + 'static) -> Self {
        self.change = Some((site, Box::new(change)));
        self
    }

    /// Runs a model over an input.
    pub(super) fn run(mut self, model: &Model, input: &Input) -> Self {
        let Outcome { logits, .. } = model.forward(input, &mut self).unwrap();
        assert!(logits.is_some());
        self
    }

    /// The value at a site; after a change, the one that took its place.
    pub(super) fn at(&self, site: Site) -> &Tensor {
        let mut found = self.seen.iter().filter(|(of, _)| *of == site);
        let (_, value) = found.next().unwrap_or_else(|| panic!("{site} was not shown"));
        assert!(found.next().is_none(), "{site} was shown twice");
        value
    }

    /// The value at a point of a block.
    pub(super) fn of_block(&self, block: usize, point: Point) -> &Tensor {
        self.at(Site::block(block, point))
    }
}

impl Observer for Watcher {
    fn wants(&self, site: Site) -> bool {
        let changes = self.change.as_ref().is_some_and(|(changed, _)| *changed == site);
        changes || self.wanted.as_ref().is_none_or(|wanted| wanted.contains(&site))
    }

    fn observe(&mut self, site: Site, value: &Tensor) -> Result<Action, ObserverError> {
        let (value, action) = match &self.change {
            Some((changed, change)) if *changed == site => {
                let other = change(value);
                (other.shallow_clone(), Action::Replace(other))
            }
            _ => (value.shallow_clone(), Action::Continue),
        };
        self.seen.push((site, value));
        Ok(action)
    }
}

/// Asserts that two tensors are equal up to rounding in f32.
pub(super) fn assert_close(found: &Tensor, expected: &Tensor, what: impl std::fmt::Debug) {
    assert_eq!(found.size(), expected.size(), "{what:?}");
    let difference = (found.to_kind(Kind::Double) - expected.to_kind(Kind::Double)).abs().max().double_value(&[]);
    let largest = expected.to_kind(Kind::Double).abs().max().double_value(&[]);
    assert!(difference <= 1e-5 * largest.max(1.0), "{what:?}: {difference:.1e} of {largest:.1e}");
}
