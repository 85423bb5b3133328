//! What a layer computes at each position by itself.

use tch::Tensor;

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
        let site = Site::block(block, Point::MlpOutput);
        let added = match (weights, mlp.experts) {
            (LayerMlp::Routed(router), Some(experts)) => self.experts(block, mlp, experts, router, read)?,
            (LayerMlp::Dense(weights), _) => {
                let neurons = self.neurons(block, mlp, weights, read)?;
                weights.output.apply(&neurons, self.model.numerics().alike_rows).at(site)?
            }
            // A router is taken where there are experts, and nowhere else.
            (LayerMlp::Routed(_), None) => read.shallow_clone(),
        };
        self.show(site, added)
    }

    /// The neurons of the one MLP of a layer, `[batch, position, d_mlp]`.
    fn neurons(&mut self, block: usize, mlp: &Mlp, weights: &MlpWeights, read: &Tensor) -> Result<Tensor, Halt> {
        let site = |point| Site::block(block, point);
        let alike = self.model.numerics().alike_rows;
        match (mlp.gate, &weights.gate) {
            (Gate::SideBySide, _) => {
                let at = site(Point::MlpGateInput);
                let joined = weights.input.apply(read, alike).at(at)?;
                let joined = self.show(at, joined)?;
                let part = |index| joined.f_narrow(-1, index * mlp.d_mlp, mlp.d_mlp).at(at);
                let (gate, input) = (part(0)?, part(1)?);
                let active = mlp.activation.apply(&gate).at(site(Point::MlpActivation))?;
                let active = self.show(site(Point::MlpActivation), active)?;
                let neurons = active.f_mul(&input).at(site(Point::Neurons))?;
                self.show(site(Point::Neurons), neurons)
            }
            (_, Some(gate)) => {
                let at = site(Point::MlpGate);
                let factor = if alike { Factor::alike(read) } else { Factor::new(read) }.at(at)?;
                let gate = gate.times(&factor).at(at)?;
                let gate = self.show(at, gate)?;
                let active = mlp.activation.apply(&gate).at(site(Point::MlpActivation))?;
                let active = self.show(site(Point::MlpActivation), active)?;
                let input = weights.input.times(&factor).at(site(Point::MlpInput))?;
                let input = self.show(site(Point::MlpInput), input)?;
                let neurons = active.f_mul(&input).at(site(Point::Neurons))?;
                self.show(site(Point::Neurons), neurons)
            }
            (_, None) => {
                let hidden = weights.input.apply(read, alike).at(site(Point::MlpInput))?;
                let hidden = self.show(site(Point::MlpInput), hidden)?;
                let active = mlp.activation.apply(&hidden).at(site(Point::MlpActivation))?;
                self.show(site(Point::MlpActivation), active)
            }
        }
    }
}
