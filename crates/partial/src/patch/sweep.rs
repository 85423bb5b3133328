//! Running the patches: each input once, then batch after batch.

use std::collections::HashMap;

use models::{Action, Factor, Input, KvCache, LogitsAt, Model, Observer, ObserverError, Prefix, Site};
use tch::{Kind, TchError, Tensor};

use super::{
    PatchProgress, PatchReport, Patching,
    budget::Costs,
    places::{Begin, Resolved, Resolver, Spot},
    plan::{Batch, batches},
};
use crate::{Error, Metric, Result, apply::narrow, run::unwrap_own};

/// What a sweep found.
pub(super) struct Found {
    /// The metric of the run that is patched, without a patch.
    pub(super) base: f64,
    /// The metric of the run whose values are put in.
    pub(super) source: f64,
    /// The metric of each patched run.
    pub(super) values: Vec<f64>,
    pub(super) report: PatchReport,
}

pub(super) fn run(patching: &Patching, patches: &[&Resolved], metric: &Metric) -> Result<Found> {
    let model = patching.model;
    let resolver = patching.resolver()?;
    metric.check(resolver.pairs, model.architecture().vocabulary)?;
    let (base, source) = patching.base_and_source();
    // Positions of one's own may come in any order, and what a rotation does can depend on the largest.
    let splits = !base.has_positions();
    let least_read = resolver.read.iter().copied().min().unwrap_or(0);
    // Two positions at least: a single one is multiplied by other kernels.
    let latest = if splits { least_read.min(resolver.length - 2).max(0) } else { 0 };
    let costs = Costs { model, pairs: resolver.pairs, length: resolver.length };
    let (sites, starts) = needed(patches);
    let after_others = patches.iter().any(|patch| patch.first.is_some_and(|first| first.min(latest) > 0));
    let held = sites.iter().chain(&starts).map(|&site| costs.kept(site)).sum::<u64>()
        + if after_others { costs.cache() } else { 0 };
    // The two runs of the inputs take what a patched run of all positions does.
    let whole = sites.iter().map(|&site| costs.run(0, &[site])).max().unwrap_or(costs.run(0, &[]));
    let needed = held + whole;
    if needed > patching.budget {
        return Err(Error::MemoryBudget { needed, budget: patching.budget });
    }
    let batches = batches(patches, &costs, latest, (held, patching.budget))?;
    let largest = batches.iter().map(|batch| batch.members.len() as u64 * costs.run(batch.first, &batch.sites)).max();
    let mut report = PatchReport {
        patches: patches.len(),
        unchanged: patches.iter().filter(|patch| patch.first.is_none()).count(),
        blocks_total: patches.len() * model.config().layers(),
        positions_total: patches.len() * (resolver.pairs * resolver.length) as usize,
        bytes: needed.max(held + largest.unwrap_or(0)),
        ..PatchReport::default()
    };
    let reader = Reader::new(model, &resolver, metric);
    tch::no_grad(|| {
        let taken = reader.run_whole(source, &sites, None)?;
        let mut cache = after_others.then(KvCache::new);
        let kept = reader.run_whole(base, &starts, cache.as_mut())?;
        let sweep = Sweep { reader: &reader, base, taken: &taken.values, kept: &kept.values, cache: cache.as_ref() };
        let mut values = vec![kept.metric; patches.len()];
        let mut done = report.unchanged;
        for batch in &batches {
            let members: Vec<&Resolved> =
                batch.members.iter().filter_map(|&member| patches.get(member).copied()).collect();
            let (found, blocks) = sweep.batch(batch, &members)?;
            for (&member, found) in batch.members.iter().zip(found) {
                if let Some(value) = values.get_mut(member) {
                    *value = found;
                }
            }
            let rows = members.len();
            report.batches += 1;
            report.largest_batch = report.largest_batch.max(rows);
            report.blocks_run += rows * blocks;
            report.positions_run += rows * (resolver.pairs * (resolver.length - batch.first)) as usize;
            done += rows;
            if let Some(progress) = &patching.progress {
                progress(PatchProgress { done, total: patches.len() });
            }
        }
        Ok(Found { base: kept.metric, source: taken.metric, values, report })
    })
}

/// The sites whose values are put in, and the streams at which patched runs begin, each once.
fn needed(patches: &[&Resolved]) -> (Vec<Site>, Vec<Site>) {
    let (mut sites, mut starts) = (Vec::new(), Vec::new());
    let add = |list: &mut Vec<Site>, site| {
        if !list.contains(&site) {
            list.push(site);
        }
    };
    for patch in patches.iter().filter(|patch| patch.first.is_some()) {
        patch.sites.iter().for_each(|&site| add(&mut sites, site));
        if let Begin::Stream(site) = patch.begin {
            add(&mut starts, site);
        }
    }
    (sites, starts)
}

type Values = HashMap<Site, Tensor>;

/// Reads the metric of runs.
struct Reader<'a> {
    model: &'a Model,
    metric: &'a Metric,
    pairs: i64,
    /// For each row of the input, the position that is read.
    read: &'a [i64],
    /// What the unembedding reads: no more than that is asked of a run.
    hidden: Site,
}

/// What a run of one of the inputs left.
struct Whole {
    values: Values,
    metric: f64,
}

impl<'a> Reader<'a> {
    fn new(model: &'a Model, resolver: &'a Resolver, metric: &'a Metric) -> Self {
        let hidden = model.sites().find(Site::PROJECTED).unwrap_or(Site::FINAL_NORM);
        Self { model, metric, pairs: resolver.pairs, read: &resolver.read, hidden }
    }

    /// Runs an input, keeping `sites`; with a cache, also every block's keys and values.
    fn run_whole(&self, input: &Input, sites: &[Site], cache: Option<&mut KvCache>) -> Result<Whole> {
        let mut watch = Watch {
            changes: Vec::new(),
            keep: sites,
            hidden: self.hidden,
            whole: cache.is_some(),
            values: Values::new(),
        };
        // Logits of all positions are not needed, but where they are narrowed before what is read.
        let at = if self.hidden == Site::PROJECTED { LogitsAt::All } else { LogitsAt::Last };
        let input = input.clone().logits_at(at);
        match cache {
            // A cache keeps what a run that reaches the logits added.
            Some(cache) => self.model.forward_cached(&input, cache, &mut watch),
            None => self.model.forward(&input, &mut watch),
        }
        .map_err(unwrap_own)?;
        let values = watch.values;
        let metric = self.metric_of(self.value(&values, self.hidden)?, 0)?.first().copied().unwrap_or(f64::NAN);
        Ok(Whole { values, metric })
    }

    fn value<'v>(&self, values: &'v Values, site: Site) -> Result<&'v Tensor> {
        let captured = || values.keys().map(ToString::to_string).collect();
        values.get(&site).ok_or_else(|| Error::NotCaptured { name: site.to_string(), captured: captured() })
    }

    /// The metric, averaged over the rows of the input, of each of the runs in a batch. `hidden` is `[run and row, position, width]`
    /// from position `first` on.
    fn metric_of(&self, hidden: &Tensor, first: i64) -> Result<Vec<f64>> {
        let torch = |source| Error::Torch { at: Site::LOGITS.to_string(), source };
        let unembedding = self.model.unembedding()?;
        let logits = || {
            let read = self.at_read(hidden, first)?;
            unembedding.logits(&Factor::alike(&read)?)
        };
        let logits = logits().map_err(torch)?;
        let runs = logits.size().first().copied().unwrap_or(0) / self.pairs.max(1);
        let of_run = |run: i64| {
            let values = self.metric.of(&logits.f_narrow(0, run * self.pairs, self.pairs).map_err(torch)?)?;
            let mean = values.f_to_kind(Kind::Double).and_then(|values| values.f_mean(None)?.f_double_value(&[]));
            mean.map_err(torch)
        };
        (0..runs).map(of_run).collect()
    }

    /// Each row at the position that is read, `[run and row, width]`.
    fn at_read(&self, hidden: &Tensor, first: i64) -> Result<Tensor, TchError> {
        let (rows, _, width) = hidden.size3()?;
        let places: Vec<i64> = self.read.iter().map(|read| read - first).collect();
        if let [place, others @ ..] = &places[..]
            && others.iter().all(|other| other == place)
        {
            return hidden.f_select(1, *place)?.f_contiguous();
        }
        let places = Tensor::f_from_slice(&places)?.f_to_device(hidden.device())?;
        let places = places.f_repeat([rows / self.pairs.max(1)])?.f_view([rows, 1, 1])?;
        hidden.f_gather(1, &places.f_expand([rows, 1, width], false)?, false)?.f_squeeze_dim(1)
    }
}

struct Sweep<'a> {
    reader: &'a Reader<'a>,
    base: &'a Input,
    /// What is put in.
    taken: &'a Values,
    /// Where runs begin.
    kept: &'a Values,
    cache: Option<&'a KvCache>,
}

impl Sweep<'_> {
    /// The metric of each patched run, and how many blocks they went through.
    fn batch(&self, batch: &Batch, patches: &[&Resolved]) -> Result<(Vec<f64>, usize)> {
        let reader = self.reader;
        let text = match batch.begin {
            Begin::Tokens => self.base.clone(),
            Begin::Stream(site) => self.base.resumed_at(site, reader.value(self.kept, site)?.shallow_clone()),
        };
        let text = text.logits_at(LogitsAt::All).without_first(batch.first)?.repeated(patches.len() as i64)?;
        let mut watch = Watch {
            changes: self.changes(batch, patches)?,
            keep: &[],
            hidden: reader.hidden,
            whole: false,
            values: Values::new(),
        };
        let outcome = match self.prefix(batch.first)? {
            Some(prefix) => reader.model.forward_after(&text, &prefix, &mut watch),
            None => reader.model.forward(&text, &mut watch),
        }
        .map_err(unwrap_own)?;
        let values = reader.metric_of(reader.value(&watch.values, reader.hidden)?, batch.first)?;
        Ok((values, outcome.blocks_run))
    }

    fn prefix(&self, first: i64) -> Result<Option<Prefix>> {
        Ok(self.cache.filter(|_| first > 0).map(|cache| cache.prefix(first)).transpose()?)
    }

    fn changes<'s>(&'s self, batch: &Batch, patches: &[&'s Resolved]) -> Result<Vec<(Site, Vec<Change<'s>>)>> {
        let pairs = self.reader.pairs;
        let at = |site: Site| -> Result<_> {
            let source = self.reader.value(self.taken, site)?;
            let mut changes = Vec::new();
            for (index, patch) in patches.iter().enumerate() {
                let rows = index as i64 * pairs..(index as i64 + 1) * pairs;
                let here = patch.spots.iter().filter(|spot| spot.place.site == site);
                // What lies before the first computed position does not differ.
                let here = here.filter(|spot| spot.positions.end > batch.first);
                changes.extend(here.map(|spot| Change { spot, source, rows: rows.clone(), first: batch.first }));
            }
            Ok((site, changes))
        };
        batch.sites.iter().map(|&site| at(site)).collect()
    }
}

/// A part of the source's value that goes into some rows of a batch.
struct Change<'a> {
    spot: &'a Spot,
    source: &'a Tensor,
    rows: std::ops::Range<i64>,
    /// The first position of the batch.
    first: i64,
}

impl Change<'_> {
    /// Writes into the value of the batch, which nobody else has.
    fn apply(&self, value: &Tensor) -> Result<()> {
        let place = &self.spot.place;
        let site = place.site;
        let positions = self.spot.positions.start.max(self.first)..self.spot.positions.end;
        let of_batch = positions.start - self.first..positions.end - self.first;
        let part = |tensor: &Tensor, positions| -> Result<Tensor> {
            let chosen = narrow(site, tensor, place.positions()?, positions, "positions")?;
            match (&self.spot.heads, place.heads) {
                (Some(heads), Some(dimension)) => narrow(site, &chosen, dimension, heads, "heads"),
                _ => Ok(chosen),
            }
        };
        let rows = narrow(site, value, 0, &self.rows, "rows")?;
        let mut into = part(&rows, &of_batch)?;
        let copied = into.f_copy_(&part(self.source, &positions)?);
        copied.map(drop).map_err(|source| Error::Torch { at: site.to_string(), source })
    }
}

/// Makes changes and keeps values.
struct Watch<'a> {
    changes: Vec<(Site, Vec<Change<'a>>)>,
    keep: &'a [Site],
    hidden: Site,
    /// Whether the run goes on to the logits.
    whole: bool,
    values: Values,
}

impl Observer for Watch<'_> {
    fn wants(&self, site: Site) -> bool {
        site == self.hidden || self.keep.contains(&site) || self.changes.iter().any(|(changed, _)| *changed == site)
    }

    fn observe(&mut self, site: Site, value: &Tensor) -> Result<Action, ObserverError> {
        let changes = self.changes.iter().find(|(changed, _)| *changed == site).map(|(_, changes)| changes);
        let changed = match changes {
            Some(changes) => {
                let own = value.f_clone(&value.f_empty_like()?)?.f_contiguous()?;
                changes.iter().try_for_each(|change| change.apply(&own))?;
                Some(own)
            }
            None => None,
        };
        if site == self.hidden || self.keep.contains(&site) {
            self.values.insert(site, changed.as_ref().unwrap_or(value).shallow_clone());
        }
        Ok(changed.map_or(Action::Continue, Action::Replace))
    }

    fn deepest(&self) -> Option<Site> {
        (!self.whole).then_some(self.hidden)
    }
}
