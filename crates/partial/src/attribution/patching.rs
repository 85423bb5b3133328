//! Attribution patching: what activation patching would do, for every site at once.

use models::{AsSite, Input, Model, Point, Prompt, Site, Stage};
use tch::{Kind, Tensor};

use super::gradients::{at_metric, gradients, leaf, mean, metric_of, numbers, refuse_streamed, torch};
use crate::{Columns, Effects, Error, Metric, Plan, Result, Run, edit::Place};

/// What an effect is told apart by, besides the site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum By {
    /// Nothing: one number for each site.
    #[default]
    Site,
    /// Positions of the input; of attention scores and patterns, those that look.
    Positions,
    /// Heads, at all positions together.
    Heads,
}

/// An estimate of what it would do to a metric to put each site's value of a clean run into a corrupted one: to first order,
/// `(clean - corrupted) · gradient of the metric`, summed over the site (Nanda, 2023, "Attribution Patching"; Syed et al., 2023).
///
/// Activation patching runs the model once for each site, position or head. This takes two forward passes, and one backward pass
/// through the corrupted run, for all of them. It is good where the metric is nearly linear between the two values; of whole residual
/// streams of early layers, and where attention saturates, it can be far off.
///
/// ```
/// use models::{Config, Model};
/// use partial::{AttributionPatching, By, Metric};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
/// # let model = Model::random(Config::from_json(config)?, 0)?;
/// let metric = Metric::logit_difference([4], [5]);
/// let patching = AttributionPatching::new(&model, &["h.0.attn.z", "h.1.attn.z"], &metric)?.by(By::Heads)?;
/// let effects = patching.run([1, 2, 3], [1, 9, 3])?; // clean, corrupted
/// assert_eq!((effects.rows.len(), effects.columns.len()), (2, 2)); // a row for each site, a column for each head
/// # Ok(())
/// # }
/// ```
pub struct AttributionPatching<'a> {
    model: &'a Model,
    metric: &'a Metric,
    places: Vec<Place>,
    by: By,
    at: Option<i64>,
}

impl<'a> AttributionPatching<'a> {
    /// Of these sites, by names or as [`Site`]s. Nothing runs.
    ///
    /// # Errors
    ///
    /// As [`Plan::new`]; [`Error::StreamedGradient`]; [`Error::NoEstimate`] for a site whose value two runs do not have in one shape,
    /// is no activation, or comes after the final norm.
    pub fn new<S: AsSite>(model: &'a Model, sites: &[S], metric: &'a Metric) -> Result<Self> {
        refuse_streamed(model)?;
        let plan = Plan::new(model, sites)?;
        let mut places: Vec<Place> = Vec::with_capacity(plan.captures.len());
        for info in model.sites().iter().filter(|info| plan.captures.iter().any(|(_, site)| *site == info.site)) {
            let reason = match info.site {
                Site { point: Point::ExpertChoice, .. } => {
                    "it holds numbers of experts, between which there is nothing"
                }
                Site { point: Point::Expert(_), .. } => "the two runs may send other tokens there; patch mlp.experts",
                Site { point: Point::RotaryCosines, .. } => "it depends on positions alone",
                Site { stage: Stage::Head, point } if point != Point::FinalNorm => {
                    "the metric is made of it; the last block and the final norm come before it"
                }
                site => {
                    places.push(Place::of(model, site));
                    continue;
                }
            };
            return Err(Error::NoEstimate { site: info.site.to_string(), reason });
        }
        Ok(Self { model, metric, places, by: By::Site, at: None })
    }

    /// Tells positions or heads apart.
    ///
    /// # Errors
    ///
    /// [`Error::NoHeads`] for heads of a site that has none.
    pub fn by(mut self, by: By) -> Result<Self> {
        if let Some(place) = self.places.iter().find(|place| by == By::Heads && place.heads.is_none()) {
            return Err(Error::NoHeads { site: place.site.to_string() });
        }
        self.by = by;
        Ok(self)
    }

    /// Takes the metric at this position rather than at each row's last token.
    pub fn at(mut self, position: i64) -> Self {
        self.at = Some(position);
        self
    }

    /// The estimates: for a batch, means over its rows. Clean and corrupted input have the same shape; row by row they belong
    /// together.
    ///
    /// # Errors
    ///
    /// [`Error::Shapes`], whatever [`Model::input`] and [`Model::forward`] refuse, what [`Metric::of`] does, and [`Error::Torch`].
    pub fn run<'p>(&self, clean: impl Into<Prompt<'p>>, corrupted: impl Into<Prompt<'p>>) -> Result<Effects> {
        let (clean, corrupted) = (self.model.input(clean)?, self.model.input(corrupted)?);
        if clean.shape() != corrupted.shape() || clean.start_site() != corrupted.start_site() {
            return Err(Error::Shapes { clean: clean.shape(), corrupted: corrupted.shape() });
        }
        let sites: Vec<Site> = self.places.iter().map(|place| place.site).collect();
        let captured: Vec<Site> = sites.iter().copied().chain([Site::LOGITS]).collect();
        let run = || Run::new(self.model, &captured);
        let recording = self.recording(run()?, &corrupted, &sites)?;
        let clean_run = tch::no_grad(|| run()?.run(&at_metric(&clean, self.at)?))?;
        let clean_metric = metric_of(self.metric, clean_run.get(Site::LOGITS)?, self.at)?;
        let corrupted_run = tch::with_grad(|| recording.run(&at_metric(&corrupted, self.at)?))?;
        let corrupted_metric = tch::with_grad(|| metric_of(self.metric, corrupted_run.get(Site::LOGITS)?, self.at))?;
        let values = sites.iter().map(|site| corrupted_run.get(site)).collect::<Result<Vec<_>>>()?;
        let gradients = gradients(&corrupted_metric, &values)?;
        let rows = clean_metric.numel() as f64;
        let mut estimates = Vec::with_capacity(sites.len());
        for ((place, old), gradient) in self.places.iter().zip(values).zip(&gradients) {
            let estimate = self.estimate(place, clean_run.get(place.site)?, old, gradient.as_ref())?;
            estimates.push(estimate.into_iter().map(|sum| sum / rows).collect::<Vec<_>>());
        }
        let widest = estimates.iter().map(Vec::len).max().unwrap_or(0);
        estimates.iter_mut().for_each(|row| row.resize(widest, f64::NAN));
        let numbered = (0..widest as i64).collect();
        Ok(Effects {
            method: "attribution patching".into(),
            metric: self.metric.to_string(),
            rows: sites.iter().map(Site::to_string).collect(),
            columns: match self.by {
                By::Site => Columns::Whole,
                By::Positions => Columns::Positions(numbered),
                By::Heads => Columns::Heads(numbered),
            },
            values: estimates,
            clean: Some(mean(&clean_metric)?),
            corrupted: Some(mean(&corrupted_metric.detach())?),
        })
    }

    /// A run that records from its first value on.
    fn recording<'r>(&self, run: Run<'r>, input: &Input, sites: &[Site]) -> Result<Run<'r>> {
        let embedding = |point| Site { stage: Stage::Embedding, point };
        let positions = embedding(Point::PositionEmbedding);
        let first = input.start_site().unwrap_or(embedding(Point::TokenEmbedding));
        let run = run.edit(first, leaf())?;
        if first != positions && sites.contains(&positions) { run.edit(positions, leaf()) } else { Ok(run) }
    }

    /// `(clean - corrupted) · gradient` of one site, summed over all but what the effects are told apart by.
    fn estimate(&self, place: &Place, new: &Tensor, old: &Tensor, gradient: Option<&Tensor>) -> Result<Vec<f64>> {
        let kept = match self.by {
            By::Site => None,
            By::Positions => Some(place.positions()?),
            By::Heads => place.heads,
        };
        let estimate = || {
            let others: Vec<i64> = (0..old.dim() as i64).filter(|dimension| Some(*dimension) != kept).collect();
            let change = new.f_to_kind(Kind::Float)?.f_sub(&old.f_detach()?.f_to_kind(Kind::Float)?)?;
            let product = match gradient {
                Some(gradient) => change.f_mul(&gradient.f_to_kind(Kind::Float)?)?,
                // The metric does not depend on it.
                None => change.f_zeros_like()?,
            };
            product.f_sum_dim_intlist(others.as_slice(), false, Kind::Double)?.f_view([-1])
        };
        numbers(&estimate().map_err(torch(place.site))?)
    }
}
