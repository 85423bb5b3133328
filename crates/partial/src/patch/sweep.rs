//! Running the patches: each input once, then batch after batch.

use std::collections::HashMap;

use models::{Action, Factor, Input, KvCache, LogitsAt, Model, Observer, ObserverError, Prefix, Site};
use tch::{Kind, TchError, Tensor};

use super::{
    PatchProgress, PatchReport, Patching,
    budget::Costs,
    path::Path,
    places::{Begin, Resolved, Resolver, Spot},
    plan::{Batch, batches},
};
use crate::{
    Edit, Error, Metric, Result,
    apply::{Place, copied, narrow},
    editor::Editor,
    run::unwrap_own,
};

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

pub(super) fn run(
    patching: &Patching,
    resolver: &Resolver,
    patches: &[&Resolved],
    path: Option<&Path>,
    metric: &Metric,
) -> Result<Found> {
    let model = patching.model;
    metric.check(resolver.pairs, model.architecture().vocabulary)?;
    let (base, source) = patching.base_and_source();
    // Positions of one's own may come in any order, and what a rotation does can depend on the largest.
    let splits = !base.has_positions() && !resolver.alone;
    let least_read = resolver.read.iter().copied().min().unwrap_or(0);
    // Two positions at least: a single one is multiplied by other kernels.
    let latest = if splits { least_read.min(resolver.length - 2).max(0) } else { 0 };
    let costs = Costs { model, pairs: resolver.pairs, length: resolver.length };
    let (sites, mut starts) = needed(patches);
    if let Some(path) = path {
        let begin = if let Begin::Stream(site) = path.receiver.begin { Some(site) } else { None };
        let more = path.kept(model, patches).into_iter().chain(begin);
        more.for_each(|site| add(&mut starts, site));
    }
    // What every run changes, and what a patched one does for a path, in two runs.
    let edited = patching.edits.iter().map(|(place, _)| place.site);
    let others: Vec<Site> =
        edited.chain(path.into_iter().flat_map(|path| path.receiver.sites.iter().copied())).collect();
    let after_others = patches.iter().any(|patch| patch.first.is_some_and(|first| first.min(latest) > 0));
    let held = sites.iter().chain(&starts).map(|&site| costs.kept(site)).sum::<u64>()
        + if after_others { costs.cache() } else { 0 };
    // The two runs of the inputs take what a patched run of all positions does.
    let with_others = |sites: &[Site]| costs.run(0, &[sites, &others].concat());
    let whole = sites.iter().map(|&site| with_others(&[site])).max().unwrap_or(with_others(&[]));
    let needed = held + whole;
    if needed > patching.budget {
        return Err(Error::MemoryBudget { needed, budget: patching.budget });
    }
    let batches = batches(patches, &others, &costs, latest, resolver.alone, (held, patching.budget))?;
    let largest = batches.iter().map(|batch| batch.members.len() as u64 * batch.bytes).max();
    let mut report = PatchReport {
        patches: patches.len(),
        unchanged: patches.iter().filter(|patch| patch.first.is_none()).count(),
        blocks_total: patches.len() * model.config().layers(),
        positions_total: patches.len() * (resolver.pairs * resolver.length) as usize,
        bytes: needed.max(held + largest.unwrap_or(0)),
        ..PatchReport::default()
    };
    let reader = Reader::new(patching, resolver, metric);
    tch::no_grad(|| {
        let taken = reader.run_whole(source, &sites, None)?;
        let mut cache = after_others.then(KvCache::new);
        let kept = reader.run_whole(base, &starts, cache.as_mut())?;
        let sweep =
            Sweep { reader: &reader, base, taken: &taken.values, kept: &kept.values, path, cache: cache.as_ref() };
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
    for patch in patches.iter().filter(|patch| patch.first.is_some()) {
        patch.sites.iter().for_each(|&site| add(&mut sites, site));
        if let Begin::Stream(site) = patch.begin {
            add(&mut starts, site);
        }
    }
    (sites, starts)
}

fn add(list: &mut Vec<Site>, site: Site) {
    if !list.contains(&site) {
        list.push(site);
    }
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
    /// What every run changes.
    edits: &'a [(Place, Edit)],
}

/// What a run of one of the inputs left.
struct Whole {
    values: Values,
    metric: f64,
}

impl<'a> Reader<'a> {
    fn new(patching: &'a Patching, resolver: &'a Resolver, metric: &'a Metric) -> Self {
        let model = patching.model;
        let hidden = model.sites().find(Site::PROJECTED).unwrap_or(Site::FINAL_NORM);
        Self { model, metric, pairs: resolver.pairs, read: &resolver.read, hidden, edits: &patching.edits }
    }

    /// Runs an input, keeping `sites`; with a cache, also every block's keys and values.
    fn run_whole(&self, input: &Input, sites: &[Site], cache: Option<&mut KvCache>) -> Result<Whole> {
        let until = if cache.is_some() { None } else { Some(self.hidden) };
        let keep = sites.iter().copied().chain([self.hidden]).collect();
        let mut watch = Watch { keep, until, ..Watch::of(self.edits, false) };
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
    /// Where runs begin, and what stays as it is along a path.
    kept: &'a Values,
    path: Option<&'a Path>,
    cache: Option<&'a KvCache>,
}

impl Sweep<'_> {
    /// The metric of each patched run, and how many blocks they went through.
    fn batch(&self, batch: &Batch, patches: &[&Resolved]) -> Result<(Vec<f64>, usize)> {
        let reader = self.reader;
        let changes = self.changes(batch, patches)?;
        let read = |changes, begin, before| {
            let keep = vec![reader.hidden];
            let watch = Watch { changes, keep, until: Some(reader.hidden), ..Watch::of(reader.edits, batch.first > 0) };
            let (values, blocks) = self.go(batch.first, patches.len(), begin, watch)?;
            Ok((reader.metric_of(reader.value(&values, reader.hidden)?, batch.first)?, before + blocks))
        };
        let Some(path) = self.path else { return read(changes, batch.begin, 0) };
        let kept = path.frozen(reader.model, &batch.sites).into_iter();
        let frozen =
            kept.map(|site| Ok((site, reader.value(self.kept, site)?.shallow_clone()))).collect::<Result<_>>()?;
        let keep = path.receiver.sites.clone();
        let (until, first) = (Some(path.deepest()), batch.first);
        let watch = Watch { changes, frozen, keep, until, first, ..Watch::of(reader.edits, first > 0) };
        let (arrived, blocks) = self.go(batch.first, patches.len(), batch.begin, watch)?;
        read(self.received(batch, path, &arrived, patches.len())?, path.receiver.begin, blocks)
    }

    /// Runs the input without a patch from a place on, once for each of a batch: what the observer kept, and the blocks.
    fn go(&self, first: i64, runs: usize, begin: Begin, mut watch: Watch) -> Result<(Values, usize)> {
        let reader = self.reader;
        let text = match begin {
            Begin::Tokens => self.base.clone(),
            Begin::Stream(site) => {
                watch.edited = Some(site);
                self.base.resumed_at(site, reader.value(self.kept, site)?.shallow_clone())
            }
        };
        let text = text.logits_at(LogitsAt::All).without_first(first)?.repeated(runs as i64)?;
        let outcome = match self.prefix(first)? {
            Some(prefix) => reader.model.forward_after(&text, &prefix, &mut watch),
            None => reader.model.forward(&text, &mut watch),
        }
        .map_err(unwrap_own)?;
        Ok((watch.values, outcome.blocks_run))
    }

    fn prefix(&self, first: i64) -> Result<Option<Prefix>> {
        Ok(self.cache.filter(|_| first > 0).map(|cache| cache.prefix(first)).transpose()?)
    }

    fn changes<'s>(&self, batch: &Batch, patches: &[&'s Resolved]) -> Result<Vec<(Site, Vec<Change<'s>>)>> {
        let at = |&site: &Site| -> Result<_> {
            let source = self.reader.value(self.taken, site)?;
            let mut changes = Vec::new();
            for (index, patch) in patches.iter().enumerate() {
                for spot in patch.at(site, batch.first) {
                    let rows = self.rows(index);
                    changes.push(Change { spot, source: source.shallow_clone(), begins: 0, rows, first: batch.first });
                }
            }
            Ok((site, changes))
        };
        batch.sites.iter().map(at).collect()
    }

    /// What arrived at the end of a path in each run of a batch, as changes to other runs.
    fn received<'s>(
        &self,
        batch: &Batch,
        path: &'s Path,
        arrived: &Values,
        runs: usize,
    ) -> Result<Vec<(Site, Vec<Change<'s>>)>> {
        let at = |&site: &Site| -> Result<_> {
            let all = self.reader.value(arrived, site)?;
            let mut changes = Vec::new();
            for (spot, run) in
                path.receiver.at(site, batch.first).flat_map(|spot| (0..runs).map(move |run| (spot, run)))
            {
                let rows = self.rows(run);
                let source = narrow(site, all, 0, &rows, "rows")?;
                changes.push(Change { spot, source, begins: batch.first, rows, first: batch.first });
            }
            Ok((site, changes))
        };
        path.receiver.sites.iter().map(at).collect()
    }

    /// The rows of a batch that belong to one of its runs.
    fn rows(&self, run: usize) -> std::ops::Range<i64> {
        let pairs = self.reader.pairs;
        run as i64 * pairs..(run as i64 + 1) * pairs
    }
}

/// A part of another run's value that goes into some rows of a batch.
struct Change<'a> {
    spot: &'a Spot,
    source: Tensor,
    /// The position that the source begins at.
    begins: i64,
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
        let part = |tensor: &Tensor, begins: i64| -> Result<Tensor> {
            let within = positions.start - begins..positions.end - begins;
            let chosen = narrow(site, tensor, place.positions()?, &within, "positions")?;
            match (&self.spot.heads, place.heads) {
                (Some(heads), Some(dimension)) => narrow(site, &chosen, dimension, heads, "heads"),
                _ => Ok(chosen),
            }
        };
        let rows = narrow(site, value, 0, &self.rows, "rows")?;
        let mut into = part(&rows, self.first)?;
        let copied = into.f_copy_(&part(&self.source, self.begins)?);
        copied.map(drop).map_err(|source| Error::Torch { at: site.to_string(), source })
    }
}

/// Makes changes and keeps values.
struct Watch<'a> {
    /// Changes that every run makes, before all others.
    editor: Editor<'a>,
    /// The site whose value has been through the edits already: the run begins there.
    edited: Option<Site>,
    changes: Vec<(Site, Vec<Change<'a>>)>,
    /// Values, of all positions, that stay those of one run of the input.
    frozen: Vec<(Site, Tensor)>,
    /// The first position of the run.
    first: i64,
    keep: Vec<Site>,
    /// How far the run goes; without, to the logits.
    until: Option<Site>,
    values: Values,
}

impl<'a> Watch<'a> {
    /// Makes edits, in a run that is a part of its text or not.
    fn of(edits: &'a [(Place, Edit)], is_part: bool) -> Self {
        Self {
            editor: Editor::new(edits, is_part, None),
            edited: None,
            changes: Vec::new(),
            frozen: Vec::new(),
            first: 0,
            keep: Vec::new(),
            until: None,
            values: Values::new(),
        }
    }

    fn frozen(&self, site: Site, value: &Tensor) -> Result<Option<Tensor>, TchError> {
        let Some((_, whole)) = self.frozen.iter().find(|(frozen, _)| *frozen == site) else { return Ok(None) };
        let (rows, positions, _) = value.size3()?;
        let own = whole.f_narrow(1, self.first, positions)?;
        own.f_repeat([rows / own.size().first().copied().unwrap_or(1).max(1), 1, 1]).map(Some)
    }
}

impl Observer for Watch<'_> {
    fn begin(&mut self, input: &Input, cached: i64) -> Result<(), ObserverError> {
        Ok(self.editor.begin(input, cached)?)
    }

    fn wants(&self, site: Site) -> bool {
        let changed = self.changes.iter().map(|(site, _)| site).chain(self.frozen.iter().map(|(site, _)| site));
        self.keep.iter().chain(changed).any(|wanted| *wanted == site) || self.editor.edits(site)
    }

    fn observe(&mut self, site: Site, value: &Tensor) -> Result<Action, ObserverError> {
        let changes = self.changes.iter().find(|(changed, _)| *changed == site).map(|(_, changes)| changes);
        let edited = if self.edited == Some(site) { None } else { self.editor.edited(site, value)? };
        let changed = match changes {
            Some(changes) => {
                // What was put in by an edit may be somebody's tensor.
                let value = edited.as_ref().unwrap_or(value);
                let own = copied(value)?.f_contiguous()?;
                changes.iter().try_for_each(|change| change.apply(&own))?;
                Some(own)
            }
            None => edited,
        };
        if self.keep.contains(&site) {
            self.values.insert(site, changed.as_ref().unwrap_or(value).shallow_clone());
        }
        // What a place receives is kept before it goes no further.
        let next = self.frozen(site, value)?.or(changed);
        Ok(next.map_or(Action::Continue, Action::Replace))
    }

    fn deepest(&self) -> Option<Site> {
        self.until
    }
}
