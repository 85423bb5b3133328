//! Activation patching over a grid.

use anyhow::Context;
use transformer_utils::{
    models::{NoObserver, Site},
    partial::{AttributionPatching, Metric, Patched, Patching, partial_forward},
    tch::{Tensor, with_grad},
};

use super::{Bench, Figure, Input, Result, peak_private, timed, turns};

impl Bench {
    /// The stream before every block at every position, and every head: two texts that differ from their sixth token on.
    pub(super) fn patch(&self) -> Result<Vec<Figure>> {
        let clean = self.ids(self.tokens);
        let mut corrupted = clean.clone();
        if let Some(sixth) = corrupted.get_mut(5) {
            *sixth = 77 % self.model.architecture().vocabulary;
        }
        let (clean, corrupted) = (Input::from_rows(&[clean])?, Input::from_rows(&[corrupted])?);
        let metric = Metric::logit_difference([100 % self.model.architecture().vocabulary], [0]);
        let patching = || Patching::new(&self.model, &clean, &corrupted);
        let positions =
            || -> Result<Patched> { Ok(patching()?.sites("blocks.*.hook_resid_pre")?.each_position().run(&metric)?) };
        let heads = || -> Result<Patched> { Ok(patching()?.sites("h.*.attn.z")?.each_head().run(&metric)?) };
        let attribution = || -> Result<_> {
            let attribution = AttributionPatching::new(&self.model, &clean, &corrupted)?;
            Ok(attribution.sites("h.*")?.each_position().run(&metric)?)
        };
        // What an attribution cannot do without: one forward whose logits are differentiated by the stream.
        let gradients = || -> Result<Tensor> {
            with_grad(|| {
                let stream = partial_forward(&self.model, &[Site::INPUT], &corrupted)?;
                let stream = stream.get(Site::INPUT)?.detach().set_requires_grad(true);
                let run =
                    self.model.forward(&corrupted.resumed_at(Site::INPUT, stream.shallow_clone()), &mut NoObserver)?;
                let logits = run.logits.context("the run was stopped")?.f_select(1, -1)?;
                metric.of(&logits)?.f_sum(None)?.f_backward()?;
                Ok(stream.f_grad()?)
            })
        };
        let [of_positions, of_heads, attributed, floor] = turns(
            self.repeats,
            [&|| timed(positions), &|| timed(heads), &|| timed(attribution), &|| timed(gradients)],
        )?;
        let mut figures = vec![
            Figure::new("patch_positions", "s", of_positions),
            Figure::new("patch_heads", "s", of_heads),
            Figure::new("patch_attribution", "s", attributed),
            Figure::new("forward_backward", "s", floor),
        ];
        for (name, patched) in [("positions", &positions as &dyn Fn() -> Result<Patched>), ("heads", &heads)] {
            let (before, _) = peak_private(|| Ok(()))?;
            let (peak, patched) = peak_private(patched)?;
            let report = patched.report;
            for (what, unit, value) in [
                ("peak", "MiB", peak - before),
                ("planned", "MiB", report.bytes as f64 / super::system::MIB),
                ("patches", "count", report.patches as f64),
                ("batches", "count", report.batches as f64),
                ("blocks_run", "count", report.blocks_run as f64),
                ("positions_run", "count", report.positions_run as f64),
                ("positions_total", "count", report.positions_total as f64),
            ] {
                figures.push(Figure::one(&format!("patch_{name}_{what}"), unit, value));
            }
        }
        Ok(figures)
    }
}
