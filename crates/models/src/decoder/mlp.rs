//! What a layer computes at each position by itself.

use tch::{TchError, Tensor};

use super::{Halt, Run};
use crate::{
    Factor, Point, Site,
    architecture::{Gate, Mlp},
    error::At,
    weights::{LayerMlp, MlpWeights},
};

impl Run<'_> {
    /// What the MLP of a layer says of what it reads, `[batch, position, d_model]`.
    pub(super) fn mlp(&mut self, block: usize, mlp: &Mlp, weights: &LayerMlp, read: &Tensor) -> Result<Tensor, Halt> {
        let site = |point| Site::block(block, point);
        let alike = self.model.numerics().alike_rows;
        let added = match (weights, mlp.experts) {
            (LayerMlp::Routed(router), Some(experts)) => self.experts(block, mlp, experts, router, read)?,
            (LayerMlp::Dense(weights), _) => {
                let read = Factor::with(read, alike).at(site(Point::MlpInput))?;
                let neurons =
                    weights.neurons(mlp, &read, |point, value| self.show(site(point), value.at(site(point))?))?;
                weights.output.apply(&neurons, alike).at(site(Point::MlpOutput))?
            }
            // A router is taken where there are experts, and nowhere else.
            (LayerMlp::Routed(_), None) => read.shallow_clone(),
        };
        self.show(site(Point::MlpOutput), added)
    }
}

impl MlpWeights {
    /// The neurons of what the MLP reads, `[.., d_mlp]`. `show` sees each value on the way and gives back the one to go on with.
    pub(super) fn neurons<E>(
        &self,
        mlp: &Mlp,
        read: &Factor,
        mut show: impl FnMut(Point, Result<Tensor, TchError>) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
        let activation = mlp.activation;
        match (mlp.gate, &self.gate) {
            (Gate::SideBySide, _) => {
                let joined = show(Point::MlpGateInput, self.input.times(read))?;
                let half = |index| joined.f_narrow(-1, index * mlp.d_mlp, mlp.d_mlp);
                let active = show(Point::MlpActivation, half(0).and_then(|gate| activation.apply(&gate)))?;
                show(Point::Neurons, half(1).and_then(|input| active.f_mul(&input)))
            }
            (_, Some(gate)) => {
                let gate = show(Point::MlpGate, gate.times(read))?;
                let active = show(Point::MlpActivation, activation.apply(&gate))?;
                let input = show(Point::MlpInput, self.input.times(read))?;
                show(Point::Neurons, active.f_mul(&input))
            }
            (_, None) => {
                let hidden = show(Point::MlpInput, self.input.times(read))?;
                show(Point::MlpActivation, activation.apply(&hidden))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::{Activation, families::Layout, linear::Linear};

    fn linear(weight: &Tensor) -> Linear {
        Linear { weight: weight.shallow_clone(), bias: None, layout: Layout::OutIn }
    }

    #[test]
    fn gates_apart_and_side_by_side_are_the_same_and_show_what_they_compute() {
        tch::manual_seed(0);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let (x, gate, input, output) = (random(&[5, 4]), random(&[6, 4]), random(&[6, 4]), random(&[4, 6]));
        let read = Factor::new(&x).unwrap();
        let mlp = |gate| Mlp { gate, ..Mlp::plain(6, Activation::Silu) };
        let neurons = |gate: Gate, weights: &MlpWeights| {
            let mut points = Vec::new();
            let found = weights.neurons(&mlp(gate), &read, |point, value| {
                points.push(point);
                value
            });
            (found.unwrap(), points)
        };
        let apart = MlpWeights { gate: Some(linear(&gate)), input: linear(&input), output: linear(&output) };
        let joined = Tensor::cat(&[&gate, &input], 0);
        let joined = MlpWeights { gate: None, input: linear(&joined), output: linear(&output) };
        let exact = x.matmul(&gate.tr()).silu() * x.matmul(&input.tr());
        let (found, points) = neurons(Gate::Separate, &apart);
        assert!(found.allclose(&exact, 1e-5, 1e-5, false));
        assert_eq!(points, [Point::MlpGate, Point::MlpActivation, Point::MlpInput, Point::Neurons]);
        let (found, points) = neurons(Gate::SideBySide, &joined);
        assert!(found.allclose(&exact, 1e-5, 1e-5, false));
        assert_eq!(points, [Point::MlpGateInput, Point::MlpActivation, Point::Neurons]);
        let plain = MlpWeights { gate: None, input: linear(&input), output: linear(&output) };
        let (found, points) = neurons(Gate::None, &plain);
        assert!(found.allclose(&x.matmul(&input.tr()).silu(), 1e-5, 1e-5, false));
        assert_eq!(points, [Point::MlpInput, Point::MlpActivation]);
    }
}
