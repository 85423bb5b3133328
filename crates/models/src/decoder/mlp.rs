//! What a layer computes at each position by itself.

use tch::Tensor;

use super::{Halt, Run};
use crate::{
    Factor, Point, Site,
    architecture::{Gate, Mlp},
    error::At,
    weights::LayerWeights,
};

impl Run<'_> {
    /// What the MLP of a layer says of what it reads, `[batch, position, d_model]`.
    pub(super) fn mlp(
        &mut self,
        block: usize,
        mlp: &Mlp,
        weights: &LayerWeights,
        read: &Tensor,
    ) -> Result<Tensor, Halt> {
        let site = |point| Site::block(block, point);
        let alike = self.model.numerics().alike_rows;
        let neurons = match (mlp.gate, &weights.mlp_gate) {
            (Gate::SideBySide, _) => {
                let at = site(Point::MlpGateInput);
                let joined = weights.mlp_input.apply(read, alike).at(at)?;
                let joined = self.show(at, joined)?;
                let part = |index| joined.f_narrow(-1, index * mlp.d_mlp, mlp.d_mlp).at(at);
                let (gate, input) = (part(0)?, part(1)?);
                self.gated(block, mlp, &gate, &input)?
            }
            (_, Some(gate)) => {
                let at = site(Point::MlpGate);
                let factor = if alike { Factor::alike(read) } else { Factor::new(read) }.at(at)?;
                let gate = gate.times(&factor).at(at)?;
                let gate = self.show(at, gate)?;
                let active = mlp.activation.apply(&gate).at(site(Point::MlpActivation))?;
                let active = self.show(site(Point::MlpActivation), active)?;
                let input = weights.mlp_input.times(&factor).at(site(Point::MlpInput))?;
                let input = self.show(site(Point::MlpInput), input)?;
                let neurons = active.f_mul(&input).at(site(Point::Neurons))?;
                self.show(site(Point::Neurons), neurons)?
            }
            (_, None) => {
                let hidden = weights.mlp_input.apply(read, alike).at(site(Point::MlpInput))?;
                let hidden = self.show(site(Point::MlpInput), hidden)?;
                let active = mlp.activation.apply(&hidden).at(site(Point::MlpActivation))?;
                self.show(site(Point::MlpActivation), active)?
            }
        };
        let added = weights.mlp_output.apply(&neurons, alike).at(site(Point::MlpOutput))?;
        self.show(site(Point::MlpOutput), added)
    }

    /// `activation(gate) · input`.
    fn gated(&mut self, block: usize, mlp: &Mlp, gate: &Tensor, input: &Tensor) -> Result<Tensor, Halt> {
        let site = |point| Site::block(block, point);
        let active = mlp.activation.apply(gate).at(site(Point::MlpActivation))?;
        let active = self.show(site(Point::MlpActivation), active)?;
        let neurons = active.f_mul(input).at(site(Point::Neurons))?;
        self.show(site(Point::Neurons), neurons)
    }
}
