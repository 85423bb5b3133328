//! A mixture of experts: each token goes to the few that the router chooses for it.

use tch::{Device, Kind, TchError, Tensor};

use super::{Halt, Run, mlp::Unseen};
use crate::{
    Factor, Point, Site, Stage,
    architecture::{Experts, Mlp, Routing},
    error::At,
    families::Layout,
    linear::Linear,
    weights::{MlpWeights, Placed},
};

impl Run<'_> {
    /// The weighted sum of what the chosen experts say, `[batch, position, d_model]`. Only their weights are placed.
    pub(super) fn experts(
        &mut self,
        block: usize,
        mlp: &Mlp,
        experts: Experts,
        router: &Linear,
        read: &Tensor,
    ) -> Result<Tensor, Halt> {
        let site = |point| Site::block(block, point);
        let alike = self.model.numerics().alike_rows;
        let scores = router.apply(read, alike).at(site(Point::Router))?;
        let scores = self.show(site(Point::Router), scores)?;
        let (weights, chosen) = routed(&scores, experts).at(site(Point::ExpertChoice))?;
        let chosen = self.show(site(Point::ExpertChoice), chosen)?;
        let weights = self.show(site(Point::ExpertWeights), weights)?;
        let at = site(Point::ExpertSum);
        let (tokens, weights) = (read.f_flatten(0, 1).at(at)?, weights.f_flatten(0, 1).at(at)?);
        let visits = visits(&chosen, experts).at(site(Point::ExpertChoice))?;
        let visited: Vec<usize> = (0..visits.len()).filter(|&expert| !visits[expert].is_empty()).collect();
        let mut sum = tokens.f_zeros_like().at(at)?;
        for (expert, visits) in visits.iter().enumerate() {
            let here = site(Point::Expert(expert));
            if visits.is_empty() {
                // Nobody went there: the site has no rows, and no weight is read.
                if self.observer.wants(here) || self.is_deep(here) {
                    let none = tokens.f_narrow(0, 0, 0).at(here)?;
                    let _ = self.show(here, none)?;
                }
                continue;
            }
            let next = visited.iter().find(|&&other| other > expert).copied();
            let said = {
                let weights = self.expert(block, mlp, expert, next)?;
                let rows = visits.tokens(tokens.device()).and_then(|rows| tokens.f_index_select(0, &rows)).at(here)?;
                said(mlp, &weights, &rows, alike).at(here)?
            };
            let said = self.show(here, said)?;
            let added = || {
                let (rows, places) = (visits.tokens(tokens.device())?, visits.places(tokens.device())?);
                let shares = weights.f_index_select(0, &rows)?.f_gather(1, &places, false)?;
                sum.f_index_add(0, &rows, &said.f_mul(&shares)?.f_to_kind(sum.f_kind()?)?)
            };
            sum = added().at(at)?;
        }
        let sum = sum.f_view(read.size().as_slice()).at(at)?;
        self.show(at, sum)
    }

    /// The weights of one expert; `next` is the one after it.
    fn expert(&self, block: usize, mlp: &Mlp, expert: usize, next: Option<usize>) -> Result<MlpWeights, Halt> {
        let (model, map) = (self.model, self.model.part_map());
        let after = if self.ends_in(Stage::Block(block)) { None } else { Some(map.layer(block + 1)) };
        let next = next.map(|next| map.expert(block, next)).or(after);
        let turned = model.config().family.expert_layout == Layout::InOut;
        let tensors = self.held(map.expert(block, expert), next, turned)?;
        let mut shelf = Placed::of_expert(model.config().family, tensors);
        Ok(MlpWeights::walk(mlp, model.architecture().d_model, &mut shelf)?)
    }
}

/// What an expert says of its tokens, `[token, d_model]`.
fn said(mlp: &Mlp, weights: &MlpWeights, rows: &Tensor, alike: bool) -> Result<Tensor, TchError> {
    let neurons = weights.neurons(mlp, &Factor::with(rows, alike)?, Unseen::ALL, |_, value| value)?;
    weights.output.apply(&neurons, alike)
}

/// Weights and numbers of the chosen experts, `[batch, position, chosen]` each, from the router's scores.
fn routed(scores: &Tensor, experts: Experts) -> Result<(Tensor, Tensor), TchError> {
    match experts.routing {
        Routing::BestFirst => {
            let (best, chosen) = scores.f_topk(experts.chosen, -1, true, true)?;
            Ok((best.f_softmax(-1, None)?, chosen))
        }
        Routing::SoftmaxFirst { renormalised, rounded } => {
            let kind = scores.f_kind()?;
            let wide = if matches!(kind, Kind::BFloat16 | Kind::Half) { Kind::Float } else { kind };
            let shares = scores.f_softmax(-1, wide)?;
            let (mut best, chosen) = shares.f_topk(experts.chosen, -1, true, true)?;
            if renormalised {
                best = best.f_div(&best.f_sum_dim_intlist([-1].as_slice(), true, None)?)?;
            }
            Ok((if rounded { best.f_to_kind(kind)? } else { best }, chosen))
        }
    }
}

/// The tokens that go to one expert, by their numbers in the batch, and at which place among their choices it stands.
#[derive(Clone, Debug, Default)]
struct Visits {
    tokens: Vec<i64>,
    places: Vec<i64>,
}

impl Visits {
    fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// `[token]`
    fn tokens(&self, device: Device) -> Result<Tensor, TchError> {
        Tensor::f_from_slice(&self.tokens)?.f_to_device(device)
    }

    /// `[token, 1]`
    fn places(&self, device: Device) -> Result<Tensor, TchError> {
        Tensor::f_from_slice(&self.places)?.f_unsqueeze(1)?.f_to_device(device)
    }
}

/// Who goes where, by the choices `[batch, position, chosen]`. A choice that is no expert's number, which only an edit can
/// make, goes nowhere.
fn visits(chosen: &Tensor, experts: Experts) -> Result<Vec<Visits>, TchError> {
    let chosen = chosen.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?.f_contiguous()?;
    let mut choices = vec![0_i64; chosen.numel()];
    chosen.f_copy_data(&mut choices, chosen.numel())?;
    let mut visits = vec![Visits::default(); experts.count as usize];
    for (token, choices) in choices.chunks(experts.chosen as usize).enumerate() {
        for (place, &expert) in choices.iter().enumerate() {
            if let Some(visits) = usize::try_from(expert).ok().and_then(|expert| visits.get_mut(expert)) {
                visits.tokens.push(token as i64);
                visits.places.push(place as i64);
            }
        }
    }
    Ok(visits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experts(renormalised: bool) -> Experts {
        Experts {
            count: 4,
            chosen: 2,
            routing: Routing::SoftmaxFirst { renormalised, rounded: true },
            router_bias: false,
        }
    }

    #[test]
    fn the_best_are_chosen_and_weighted() {
        let scores = Tensor::from_slice(&[0.0_f32, 2.0, 1.0, -1.0, 3.0, 0.0, 0.0, 2.5]).view([1, 2, 4]);
        let (weights, chosen) = routed(&scores, experts(true)).unwrap();
        assert!(chosen.equal(&Tensor::from_slice(&[1_i64, 2, 0, 3]).view([1, 2, 2])));
        let sums = weights.sum_dim_intlist(-1, false, None);
        assert!(sums.allclose(&Tensor::ones([1, 2], (Kind::Float, Device::Cpu)), 1e-6, 1e-6, false));
        let (shares, _) = routed(&scores, experts(false)).unwrap();
        assert!(shares.allclose(&scores.softmax(-1, Kind::Float).gather(-1, &chosen, false), 1e-6, 1e-6, false));
        let visits = visits(&chosen, experts(true)).unwrap();
        let tokens: Vec<&[i64]> = visits.iter().map(|visits| visits.tokens.as_slice()).collect();
        assert_eq!(tokens, [&[1][..], &[0], &[0], &[1]]);
        assert_eq!(visits[3].places, [1]);
    }

    #[test]
    fn choices_that_are_no_experts_go_nowhere() {
        let chosen = Tensor::from_slice(&[-1_i64, 4]).view([1, 1, 2]);
        assert!(visits(&chosen, experts(true)).unwrap().iter().all(Visits::is_empty));
    }
}
