//! Attribution patching: what activation patching would do, for every site at once.

use models::{AsSite, Input, Model, Point, Prompt, Site, Stage};
use tch::{Kind, Tensor};

use super::gradients::{at_metric, gradients, leaf, mean, metric_of, numbers, refuse_streamed, torch};
use crate::{
    Columns, Correlation, Edit, Effects, Error, Metric, Patching, Result, Run,
    apply::Place,
    patch::places::{check_inputs, check_site},
};

/// An estimate of what it would do to a metric to put each site's value of a clean run into a corrupted one: to first order,
/// `(clean - corrupted) · gradient of the metric`, summed over the site (Nanda, 2023, "Attribution Patching"; Syed et al., 2023).
///
/// Activation patching ([`Patching`]) runs the model for each site, position or head. This takes two forward passes, and one backward
/// pass through the corrupted run, for all of them. It is good where the metric is nearly linear between the two values; for whole
/// residual streams of early layers, and where attention saturates, it can be far off.
/// [`AttributionPatching::beside_patching`] says how far.
///
/// ```
/// use models::{Config, Model};
/// use partial::{AttributionPatching, Metric};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
/// # let model = Model::random(Config::from_json(config)?, 0)?;
/// let metric = Metric::logit_difference([4], [5]);
/// let patching = AttributionPatching::new(&model, [1, 2, 3], [1, 9, 3])?.sites("h.*.attn.z")?.each_head(); // clean, corrupted
/// let effects = patching.run(&metric)?;
/// assert_eq!((effects.rows.len(), effects.columns.len()), (2, 2)); // a row for each site, a column for each head
///
/// let both = patching.beside_patching(&metric)?;
/// assert_eq!(both.estimated, effects);
/// assert!(both.correlation.is_some_and(|found| found.pearson > 0.9));
/// # Ok(())
/// # }
/// ```
pub struct AttributionPatching<'a> {
    model: &'a Model,
    clean: Input,
    corrupted: Input,
    sites: Vec<Site>,
    each_position: bool,
    each_head: bool,
    read_at: Option<i64>,
    edits: Vec<(Site, Edit)>,
}

/// Estimates, and what patching really does.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Estimated {
    /// The estimates.
    pub estimated: Effects,
    /// By how much each patch changes the metric of the corrupted run.
    pub patched: Effects,
    /// How far they agree; `None` where there are too few numbers to say, or all are equal.
    pub correlation: Option<Correlation>,
}

impl<'a> AttributionPatching<'a> {
    /// Of a clean and a corrupted input, or several: row `i` of one goes with row `i` of the other. They have the same shape and the
    /// same padding. Nothing runs.
    ///
    /// # Errors
    ///
    /// [`Error::StreamedGradient`]; [`Error::PatchInputs`] where the inputs do not fit together; whatever [`Model::input`] and
    /// [`Model::check_input`] refuse.
    pub fn new<'p, 'q>(
        model: &'a Model,
        clean: impl Into<Prompt<'p>>,
        corrupted: impl Into<Prompt<'q>>,
    ) -> Result<Self> {
        refuse_streamed(model)?;
        let (clean, corrupted) = (model.input(clean)?, model.input(corrupted)?);
        check_inputs(model, &clean, &corrupted)?;
        Ok(Self {
            model,
            clean,
            corrupted,
            sites: Vec::new(),
            each_position: false,
            each_head: false,
            read_at: None,
            edits: Vec::new(),
        })
    }

    /// Adds the sites that a name, a [`Site`] or a pattern such as `h.*.mlp` means ([`models::Sites::matching`]).
    ///
    /// # Errors
    ///
    /// As [`models::Sites::matching`]; [`Error::NotPatchable`] for a site whose value is not one for each position of each input, or has
    /// no gradient; [`Error::BeforeStart`] for one before the input's stream.
    pub fn sites(mut self, pattern: impl AsSite) -> Result<Self> {
        for site in self.model.sites().matching(pattern)? {
            check_site(self.model, site)?;
            let refused = match (site.stage, site.point) {
                (_, Point::ExpertChoice) => Some("it holds the numbers of experts, which have no gradient"),
                (Stage::Head, Point::OutputProjection) => Some("the metric reads it; ln_f comes before it"),
                _ => None,
            };
            if let Some(reason) = refused {
                return Err(Error::NotPatchable { site: site.to_string(), reason });
            }
            if let Some(start) = self.corrupted.start_site().filter(|start| self.model.sites().is_after(*start, site)) {
                return Err(Error::BeforeStart { site: site.to_string(), start: start.to_string() });
            }
            if !self.sites.contains(&site) {
                self.sites.push(site);
            }
        }
        Ok(self)
    }

    /// Tells positions apart: a column for each.
    pub fn each_position(mut self) -> Self {
        self.each_position = true;
        self
    }

    /// Tells heads apart: a column for each, or with [`AttributionPatching::each_position`] as well, a row.
    pub fn each_head(mut self) -> Self {
        self.each_head = true;
        self
    }

    /// The position whose logits the metric reads; by default each row's last token.
    pub fn read_at(mut self, position: i64) -> Self {
        self.read_at = Some(position);
        self
    }

    /// Changes the value at `name` in both runs, and in those of [`AttributionPatching::beside_patching`], as [`Patching::edit`] does.
    ///
    /// # Errors
    ///
    /// As [`Patching::edit`].
    pub fn edit(mut self, name: impl AsSite, edit: Edit) -> Result<Self> {
        let site = self.model.sites().find(name.as_site())?;
        Patching::new(self.model, &self.clean, &self.corrupted)?.edit(site, edit.clone())?;
        self.edits.push((site, edit));
        Ok(self)
    }

    /// The estimates: for a batch, means over its rows.
    ///
    /// # Errors
    ///
    /// Before anything runs: [`Error::NoPatches`] without a site, [`Error::NoHeads`], [`Error::OutOfRange`], [`Error::MetricToken`] and
    /// [`Error::MetricRows`]. Then whatever [`Model::forward`] finds, and [`Error::Torch`].
    pub fn run(&self, metric: &Metric) -> Result<Effects> {
        let places = self.places()?;
        let rows = self.clean.shape().first().copied().unwrap_or(0);
        metric.check(rows, self.model.architecture().vocabulary)?;
        let (clean, corrupted) = (at_metric(&self.clean, self.read_at)?, at_metric(&self.corrupted, self.read_at)?);
        let captured: Vec<Site> = places.iter().map(|place| place.site).chain([Site::LOGITS]).collect();
        let edited = |run: Run<'a>| self.edits.iter().try_fold(run, |run, (site, edit)| run.edit(site, edit.clone()));
        let run = || Run::new(self.model, &captured);
        // Everything after its first value is recorded.
        let embedding = Site { stage: Stage::Embedding, point: Point::TokenEmbedding };
        let recording = edited(run()?.edit(corrupted.start_site().unwrap_or(embedding), leaf())?)?;
        let clean_run = tch::no_grad(|| edited(run()?)?.run(&clean))?;
        let clean_metric = metric_of(metric, clean_run.get(Site::LOGITS)?, self.read_at)?;
        let corrupted_run = tch::with_grad(|| recording.run(&corrupted))?;
        let corrupted_metric = tch::with_grad(|| metric_of(metric, corrupted_run.get(Site::LOGITS)?, self.read_at))?;
        let values = places.iter().map(|place| corrupted_run.get(place.site)).collect::<Result<Vec<_>>>()?;
        let gradients = gradients(&corrupted_metric, &values)?;
        let mut effects = Effects {
            method: "attribution patching".into(),
            metric: metric.to_string(),
            rows: Vec::new(),
            columns: Columns::Whole,
            values: Vec::new(),
            clean: Some(mean(&clean_metric)?),
            corrupted: Some(mean(&corrupted_metric.detach())?),
        };
        for ((place, old), gradient) in places.iter().zip(values).zip(&gradients) {
            let estimates = self.estimates(place, clean_run.get(place.site)?, old, gradient.as_ref(), rows)?;
            if self.each_position && self.each_head {
                effects.rows.extend((0..estimates.len()).map(|head| format!("{} head {head}", place.site)));
                effects.values.extend(estimates);
            } else {
                effects.rows.push(place.site.to_string());
                effects.values.push(estimates.concat());
            }
        }
        // A site may have fewer heads than another.
        let widest = effects.values.iter().map(Vec::len).max().unwrap_or(0);
        effects.values.iter_mut().for_each(|row| row.resize(widest, f64::NAN));
        let numbered = (0..widest as i64).collect();
        effects.columns = match (self.each_position, self.each_head) {
            (true, _) => Columns::Positions(numbered),
            (false, true) => Columns::Heads(numbered),
            (false, false) => Columns::Whole,
        };
        Ok(effects)
    }

    /// The estimates beside what patching does in a run for each of the places, and how far they agree.
    ///
    /// # Errors
    ///
    /// As [`AttributionPatching::run`] and [`Patching::run`].
    pub fn beside_patching(&self, metric: &Metric) -> Result<Estimated> {
        let estimated = self.run(metric)?;
        let mut patching = Patching::new(self.model, &self.clean, &self.corrupted)?;
        for (site, edit) in &self.edits {
            patching = patching.edit(site, edit.clone())?;
        }
        for site in &self.sites {
            patching = patching.sites(site)?;
        }
        if self.each_position {
            patching = patching.each_position();
        }
        if self.each_head {
            patching = patching.each_head();
        }
        if let Some(position) = self.read_at {
            patching = patching.read_at(position);
        }
        let mut patched = tch::no_grad(|| patching.run(metric))?.effects;
        let unpatched = patched.corrupted.unwrap_or(0.0);
        patched.values.iter_mut().flatten().for_each(|value| *value -= unpatched);
        patched.method = "patched, less the corrupted run".into();
        let correlation = estimated.correlation(&patched).ok();
        Ok(Estimated { estimated, patched, correlation })
    }

    /// The sites in the order in which they run.
    fn places(&self) -> Result<Vec<Place>> {
        let chosen = self.model.sites().iter().filter(|info| self.sites.contains(&info.site));
        let places: Vec<Place> = chosen.map(|info| Place::of(self.model, info.site)).collect();
        match places.iter().find(|place| self.each_head && place.heads.is_none()) {
            _ if places.is_empty() => Err(Error::NoPatches),
            Some(place) => Err(Error::NoHeads { site: place.site.to_string() }),
            None => Ok(places),
        }
    }

    /// `(clean - corrupted) · gradient` of one site, summed over all but what is told apart, and divided by the rows of the batch: for each
    /// head a number for each position.
    fn estimates(
        &self,
        place: &Place,
        new: &Tensor,
        old: &Tensor,
        gradient: Option<&Tensor>,
        rows: i64,
    ) -> Result<Vec<Vec<f64>>> {
        let positions = self.each_position.then(|| place.positions()).transpose()?;
        let heads = place.heads.filter(|_| self.each_head);
        let estimate = || {
            let others = (0..old.dim() as i64).filter(|dimension| ![positions, heads].contains(&Some(*dimension)));
            let change = new.f_to_kind(Kind::Float)?.f_sub(&old.f_detach()?.f_to_kind(Kind::Float)?)?;
            let product = match gradient {
                Some(gradient) => change.f_mul(&gradient.f_to_kind(Kind::Float)?)?,
                // The metric does not depend on it.
                None => change.f_zeros_like()?,
            };
            let sums = product.f_sum_dim_intlist(others.collect::<Vec<_>>().as_slice(), false, Kind::Double)?;
            let sums = sums.f_div_scalar(rows)?;
            match (positions, heads) {
                (Some(positions), Some(heads)) if positions < heads => sums.f_transpose(0, 1)?.f_unbind(0),
                (_, Some(_)) => sums.f_unbind(0),
                (_, None) => Ok(vec![sums]),
            }
        };
        let estimates = estimate().map_err(torch(place.site))?;
        estimates.iter().map(numbers).collect()
    }
}
