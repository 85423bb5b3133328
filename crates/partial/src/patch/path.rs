//! Path patching: which way an effect takes.

use models::{Layer, Model, Point, Residual, Site, Stage};

use super::places::{Resolved, Resolver};
use crate::{Patch, Result};

/// Where a path ends, and what it may pass on the way.
pub(super) struct Path {
    /// The places that receive.
    pub(super) receiver: Resolved,
    /// The last site that receives: so far a run goes to learn what arrives.
    deepest: Site,
    through_mlps: bool,
}

impl Path {
    pub(super) fn new(resolver: &Resolver, receiver: &Patch, through_mlps: bool) -> Result<Self> {
        let receiver = receiver.resolve(resolver)?;
        let deepest = receiver.sites.last().copied().unwrap_or(Site::INPUT);
        Ok(Self { receiver, deepest, through_mlps })
    }

    pub(super) fn deepest(&self) -> Site {
        self.deepest
    }

    /// Whether anything that a patch changes can arrive.
    pub(super) fn reaches(&self, model: &Model, sender: &Resolved) -> bool {
        sender.sites.iter().any(|&site| model.sites().is_after(self.deepest, site))
    }

    /// The sites that keep the values of the run without a patch while these sites are changed: what each half of a block adds to
    /// the residual stream on the way, but not the halves that the changed sites are in.
    pub(super) fn frozen(&self, model: &Model, changed: &[Site]) -> Vec<Site> {
        let sites = model.sites();
        let Some(&first) = changed.first() else { return Vec::new() };
        let layers = model.architecture().layers.iter().enumerate();
        let halves = layers.flat_map(|(block, layer)| {
            let attention = (Half::Attention, Site::block(block, layer.attention_added()));
            let mlp = (Half::Mlp, Site::block(block, layer.mlp_added()));
            [attention, mlp].map(|(half, site)| (layer, half, site))
        });
        halves
            .filter(|(_, half, _)| *half == Half::Attention || !self.through_mlps)
            .filter(|(_, _, site)| sites.is_after(*site, first) && sites.is_after(self.deepest, *site))
            .filter(|(layer, half, site)| changed.iter().all(|of| of.stage != site.stage || !half.has(layer, of.point)))
            .map(|(_, _, site)| site)
            .collect()
    }

    /// All that any of these patches needs of the run without a patch to learn what arrives.
    pub(super) fn kept(&self, model: &Model, patches: &[&Resolved]) -> Vec<Site> {
        let mut first = patches.iter().filter(|patch| patch.first.is_some()).flat_map(|patch| &patch.sites);
        let Some(mut earliest) = first.next().copied() else { return Vec::new() };
        for &site in first {
            if model.sites().is_after(earliest, site) {
                earliest = site;
            }
        }
        // Whatever half a patch is in, another patch may need its value.
        let before = if let Stage::Block(block) = earliest.stage { Site::before_block(block) } else { Site::INPUT };
        self.frozen(model, &[before])
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Attention,
    Mlp,
}

impl Half {
    /// Whether what is at `point` of the block enters what the half adds to the stream by the half itself.
    fn has(self, layer: &Layer, point: Point) -> bool {
        let points = layer.points();
        let rank = |point: Point| points.iter().position(|of| *of == point);
        let (at, attention, mlp) = (rank(point), rank(layer.attention_added()), rank(layer.mlp_added()));
        // A norm on the stream itself is part of the stream.
        let stream = point == Point::ResidMid || at > mlp || (at > attention && point == Point::Norm1);
        let shared = layer.residual == Residual::Parallel && point == Point::Norm1 && layer.mlp_norms.before.is_none();
        match self {
            Self::Attention => at <= attention,
            Self::Mlp => shared || (at > attention && !stream),
        }
    }
}
