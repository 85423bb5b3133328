//! What a layer computes at each position by itself.

use tch::{TchError, Tensor};

use super::{Halt, Run};
use crate::{
    Activation, Factor, Point, Site,
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
                let unseen = [Point::MlpGate, Point::MlpActivation, Point::MlpInput]
                    .map(|point| !self.observer.wants(site(point)));
                let unseen = Unseen { gate: unseen[0], activation: unseen[1], input: unseen[2] };
                let neurons = weights
                    .neurons(mlp, &read, unseen, |point, value| self.show(site(point), value.at(site(point))?))?;
                weights.output.apply(&neurons, alike).at(site(Point::MlpOutput))?
            }
            // A router is taken where there are experts, and nowhere else.
            (LayerMlp::Routed(_), None) => read.shallow_clone(),
        };
        self.show(site(Point::MlpOutput), added)
    }
}

/// Which values on the way to the neurons nobody looks at, so that their memory can be used again.
#[derive(Clone, Copy, Default)]
pub(super) struct Unseen {
    gate: bool,
    activation: bool,
    input: bool,
}

impl Unseen {
    pub(super) const ALL: Self = Self { gate: true, activation: true, input: true };
}

/// `a * b`, in the memory of `a` where that may be written over.
fn product(mut a: Tensor, b: &Tensor, over: bool) -> Result<Tensor, TchError> {
    if over && !a.requires_grad() && !b.requires_grad() { a.f_mul_(b) } else { a.f_mul(b) }
}

impl Mlp {
    fn bounded_gate(&self, gate: Tensor) -> Result<Tensor, TchError> {
        let Some(bounds) = self.bounds else { return Ok(gate) };
        gate.f_clamp_max(bounds.limit)
    }

    fn bounded_input(&self, input: Tensor) -> Result<Tensor, TchError> {
        let Some(bounds) = self.bounds else { return Ok(input) };
        input.f_clamp(-bounds.limit, bounds.limit)?.f_add_scalar(bounds.offset)
    }
}

impl MlpWeights {
    /// The neurons of what the MLP reads, `[.., d_mlp]`. `show` sees each value on the way and gives back the one to go on with.
    pub(super) fn neurons<E>(
        &self,
        mlp: &Mlp,
        read: &Factor,
        unseen: Unseen,
        mut show: impl FnMut(Point, Result<Tensor, TchError>) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
        let activation = mlp.activation;
        let activated = |x: Tensor, over| if over { activation.apply_in_place(x) } else { activation.apply(&x) };
        let gated = |gate: Result<Tensor, TchError>, over| activated(mlp.bounded_gate(gate?)?, over);
        // What the identity gives is the gate itself, which somebody may look at.
        let over = unseen.activation && activation != Activation::Linear;
        match (mlp.gate, &self.gate) {
            (Gate::SideBySide | Gate::Interleaved, _) => {
                let joined = show(Point::MlpGateInput, self.input.times(read))?;
                let half = |index| match mlp.gate {
                    Gate::Interleaved => joined.f_slice(-1, index, None, 2),
                    _ => joined.f_narrow(-1, index * mlp.d_mlp, mlp.d_mlp),
                };
                let active = show(Point::MlpActivation, gated(half(0), false))?;
                let input = half(1).and_then(|input| mlp.bounded_input(input));
                show(Point::Neurons, input.and_then(|input| product(active, &input, over)))
            }
            (_, Some(gate)) => {
                let gate = show(Point::MlpGate, gate.times(read))?;
                let active = show(Point::MlpActivation, gated(Ok(gate), unseen.gate))?;
                let input = show(Point::MlpInput, self.input.times(read))?;
                let input = mlp.bounded_input(input);
                show(Point::Neurons, input.and_then(|input| product(active, &input, over)))
            }
            (_, None) => {
                let hidden = show(Point::MlpInput, self.input.times(read))?;
                show(Point::MlpActivation, activated(hidden, unseen.input))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::{
        Activation, Bounds,
        families::Layout,
        linear::{Linear, Matrix},
    };

    fn linear(weight: &Tensor) -> Linear {
        Linear { weight: Matrix::Placed(weight.shallow_clone()), bias: None, layout: Layout::OutIn }
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
            let found = weights.neurons(&mlp(gate), &read, Unseen::default(), |point, value| {
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
        let in_turn = Tensor::stack(&[&gate, &input], 1).flatten(0, 1);
        let in_turn = MlpWeights { gate: None, input: linear(&in_turn), output: linear(&output) };
        let (found, points) = neurons(Gate::Interleaved, &in_turn);
        assert!(found.allclose(&exact, 1e-5, 1e-5, false));
        assert_eq!(points, [Point::MlpGateInput, Point::MlpActivation, Point::Neurons]);
        let plain = MlpWeights { gate: None, input: linear(&input), output: linear(&output) };
        let (found, points) = neurons(Gate::None, &plain);
        assert!(found.allclose(&x.matmul(&input.tr()).silu(), 1e-5, 1e-5, false));
        assert_eq!(points, [Point::MlpInput, Point::MlpActivation]);
    }

    #[test]
    fn what_is_seen_is_not_written_over() {
        tch::manual_seed(1);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let (x, gate, input, output) = (random(&[5, 4]), random(&[6, 4]), random(&[6, 4]), random(&[4, 6]));
        let read = Factor::new(&x).unwrap();
        let apart = MlpWeights { gate: Some(linear(&gate)), input: linear(&input), output: linear(&output) };
        let joined =
            MlpWeights { gate: None, input: linear(&Tensor::cat(&[&gate, &input], 0)), output: linear(&output) };
        for activation in [Activation::Linear, Activation::Silu, Activation::GeluTanh] {
            for (gate, weights) in [(Gate::Separate, &apart), (Gate::SideBySide, &joined), (Gate::None, &joined)] {
                let mlp = Mlp { gate, ..Mlp::plain(6, activation) };
                let seen = |unseen: Unseen, points: &[Point]| {
                    let mut kept = Vec::new();
                    let found = weights.neurons(&mlp, &read, unseen, |point, value| {
                        let value = value?;
                        if points.contains(&point) {
                            kept.push((value.shallow_clone(), value.copy()));
                        }
                        Ok::<_, TchError>(value)
                    });
                    assert!(kept.iter().all(|(now, then)| now.equal(then)), "{gate:?}, {activation:?}");
                    found.unwrap()
                };
                let all = seen(Unseen::default(), &[Point::MlpGate, Point::MlpActivation, Point::MlpInput]);
                let gates = [Point::MlpGate, Point::MlpGateInput];
                assert!(all.equal(&seen(Unseen { gate: false, ..Unseen::ALL }, &gates)));
                assert!(all.equal(&seen(Unseen { input: false, ..Unseen::ALL }, &[Point::MlpInput])));
                assert!(all.equal(&seen(Unseen { activation: false, ..Unseen::ALL }, &[Point::MlpActivation])));
            }
        }
    }

    #[test]
    fn bounds_hold_for_gate_and_input_whichever_way_they_lie() {
        let x = Tensor::from_slice(&[1.0_f32, 0.5]).view([2, 1]);
        let (gate, input) = (Tensor::from_slice(&[3.0_f32, -9.0]), Tensor::from_slice(&[-8.0_f32, 1.0]));
        let column = |values: &Tensor| linear(&values.view([2, 1]));
        let output = || column(&gate);
        let apart = MlpWeights { gate: Some(column(&gate)), input: column(&input), output: output() };
        let joined = Tensor::stack(&[&gate, &input], 1).view([4, 1]);
        let in_turn = MlpWeights { gate: None, input: linear(&joined), output: output() };
        let bounds = Some(Bounds { limit: 2.0, offset: 1.0 });
        let read = Factor::new(&x).unwrap();
        let neurons = |gate: Gate, weights: &MlpWeights| {
            let mlp = Mlp { gate, bounds, ..Mlp::plain(2, Activation::Linear) };
            let [kept, over] = [Unseen::default(), Unseen::ALL]
                .map(|unseen| weights.neurons::<TchError>(&mlp, &read, unseen, |_, value| value).unwrap());
            assert!(kept.equal(&over));
            over
        };
        // Gates 3, -9, 1.5, -4.5 and inputs -8, 1, -4, 0.5: the gate has no least value.
        let expected = Tensor::from_slice(&[-2.0_f32, -18.0, -1.5, -6.75]).view([2, 2]);
        assert!(neurons(Gate::Separate, &apart).equal(&expected));
        assert!(neurons(Gate::Interleaved, &in_turn).equal(&expected));
    }
}
