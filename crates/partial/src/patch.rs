//! Activation patching: what a value of one run does in another.

mod budget;
mod path;
pub(crate) mod places;
mod plan;
mod sweep;

use std::ops::Range;

use models::{AsSite, Input, Model, Prompt, Site};

use crate::{Columns, Edit, Effects, Error, Metric, Result, apply::Place};

use path::Path;
pub use places::Patch;
use places::{Resolved, Resolver};

/// Which run's values go into which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// The corrupted run is given values of the clean one (denoising): what suffices to bring the behaviour back.
    #[default]
    CleanIntoCorrupted,
    /// The clean run is given values of the corrupted one (noising): what the behaviour cannot do without.
    CorruptedIntoClean,
}

/// How far a sweep is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PatchProgress {
    /// Patches whose effect is known.
    pub done: usize,
    /// All patches.
    pub total: usize,
}

/// What a sweep found, and what it took.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Patched {
    /// The metric of each patched run, averaged over the pairs.
    pub effects: Effects,
    /// What was run.
    pub report: PatchReport,
}

/// What a sweep ran, besides one run of each input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PatchReport {
    /// Patches asked for.
    pub patches: usize,
    /// Those that needed no run: nothing that they put in differs, or nothing of it reaches the metric.
    pub unchanged: usize,
    /// Batches.
    pub batches: usize,
    /// The most patches of one batch.
    pub largest_batch: usize,
    /// Blocks that the patched runs went through, at least in part, added up over patches.
    pub blocks_run: usize,
    /// The same of whole runs: patches times blocks.
    pub blocks_total: usize,
    /// Positions that the patched runs computed, added up over patches and pairs.
    pub positions_run: usize,
    /// The same of whole runs.
    pub positions_total: usize,
    /// Bytes that the sweep was planned to hold at most: captured values, earlier keys and values, and the activations of one batch.
    pub bytes: u64,
}

type Progress<'a> = Box<dyn Fn(PatchProgress) + 'a>;

/// Activation patching (Vig et al., 2020; Meng et al., 2022): two inputs, one of which makes the model do what is studied and one
/// of which, as alike as can be, does not. A run of one is repeated with a value of the other put in at a place, and a
/// [`Metric`] of its logits says how much depends on that place.
///
/// Sites, positions and heads span a grid of places, each patched in a run of its own:
///
/// ```
/// use models::{Config, Model};
/// use partial::{Metric, Patching};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = r#"{"model_type": "gpt2", "n_layer": 3, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
/// # let model = Model::random(Config::from_json(config)?, 0)?;
/// let metric = Metric::logit_difference([7], [8]);
/// let patched = Patching::new(&model, [1, 2, 3, 4], [1, 5, 3, 4])? // clean, corrupted
///     .sites("h.*")?
///     .each_position()
///     .run(&metric)?;
/// let effects = &patched.effects;
/// assert_eq!(effects.rows, ["h.0", "h.1", "h.2"]);
/// assert_eq!(effects.values[0].len(), 4); // positions
/// assert_eq!(effects.values[2][3], effects.clean.unwrap()); // the last stream, at the last position, is all there is
///
/// let heads = Patching::new(&model, [1, 2, 3, 4], [1, 5, 3, 4])?.sites("h.*.attn.z")?.each_head().run(&metric)?;
/// assert_eq!((heads.effects.values.len(), heads.effects.columns.len()), (3, 2));
/// # Ok(())
/// # }
/// ```
///
/// Or a list says which:
///
/// ```
/// # use models::{Config, Model};
/// # use partial::{Metric, Patch, Patching};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = r#"{"model_type": "gpt2", "n_layer": 3, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
/// # let model = Model::random(Config::from_json(config)?, 0)?;
/// let circuit = [
///     Patch::at("h.1.attn.z").heads(0..1),
///     Patch::at("h.1.attn.z").heads(0..1).and_at("h.2.mlp").positions(3..4), // both at once
/// ];
/// let patched = Patching::new(&model, [1, 2, 3, 4], [1, 5, 3, 4])?.run_each(&circuit, &Metric::logit([7]))?;
/// assert_eq!(patched.effects.rows[1], "h.1.attn.z head 0 + h.2.mlp position 3");
/// # Ok(())
/// # }
/// ```
///
/// # What is computed
///
/// Each input is run once. A patched run starts at the residual stream before its first place, as the run without the patch left
/// it, and goes through the rest; it computes only positions from the first patched one on, and reads keys and values of those
/// before. Positions before the first difference of the inputs hold the same in both, and nothing is run for them. Runs
/// that start together are a batch, as large as the memory budget lets it be. No row's bits depend on its neighbours
/// in f32 on a CPU, within what `docs/numerics.md` says: the numbers are those of whole runs with a [`crate::Edit`], one by one.
pub struct Patching<'a> {
    model: &'a Model,
    clean: Input,
    corrupted: Input,
    sites: Vec<Site>,
    positions: Option<Range<i64>>,
    each_position: bool,
    heads: Option<Range<i64>>,
    each_head: bool,
    direction: Direction,
    budget: u64,
    read_at: Option<i64>,
    receiver: Option<Patch>,
    through_mlps: bool,
    edits: Vec<(Place, Edit)>,
    progress: Option<Progress<'a>>,
}

/// Places as a grid: a row's name, and for each column a patch where the site has such a place.
struct Grid {
    rows: Vec<String>,
    columns: Columns,
    cells: Vec<Vec<Option<Resolved>>>,
}

impl<'a> Patching<'a> {
    /// The budget where none is given: 1 GiB.
    pub const MEMORY: u64 = 1 << 30;

    /// Of a clean and a corrupted input, or several: row `i` of one goes with row `i` of the other. They have the same shape and
    /// the same padding. An input is tokens, or a stream at `input`, such as embeddings to which noise was added.
    ///
    /// # Errors
    ///
    /// [`Error::PatchInputs`] where the inputs do not fit together; whatever [`Model::input`] and [`Model::check_input`] refuse.
    pub fn new<'p, 'q>(
        model: &'a Model,
        clean: impl Into<Prompt<'p>>,
        corrupted: impl Into<Prompt<'q>>,
    ) -> Result<Self> {
        let (clean, corrupted) = (model.input(clean)?, model.input(corrupted)?);
        places::check_inputs(model, &clean, &corrupted)?;
        Ok(Self {
            model,
            clean,
            corrupted,
            sites: Vec::new(),
            positions: None,
            each_position: false,
            heads: None,
            each_head: false,
            direction: Direction::default(),
            budget: Self::MEMORY,
            read_at: None,
            receiver: None,
            through_mlps: false,
            edits: Vec::new(),
            progress: None,
        })
    }

    /// Adds the sites that a name, a [`Site`] or a pattern such as `h.*.mlp` means ([`models::Sites::matching`]).
    ///
    /// # Errors
    ///
    /// As [`models::Sites::matching`]; [`Error::NotPatchable`] for a site whose value is not one for each position of each input.
    pub fn sites(mut self, pattern: impl AsSite) -> Result<Self> {
        for site in self.model.sites().matching(pattern)? {
            places::check_site(self.model, site)?;
            if !self.sites.contains(&site) {
                self.sites.push(site);
            }
        }
        Ok(self)
    }

    /// Patches only these positions, all at once but with [`Patching::each_position`]. They are columns of the input: where rows are
    /// padded on the left, padding counts.
    pub fn positions(mut self, positions: Range<i64>) -> Self {
        self.positions = Some(positions);
        self
    }

    /// Patches each position in a run of its own: a column of the effects.
    pub fn each_position(mut self) -> Self {
        self.each_position = true;
        self
    }

    /// Patches only these heads, all at once but with [`Patching::each_head`].
    pub fn heads(mut self, heads: Range<i64>) -> Self {
        self.heads = Some(heads);
        self
    }

    /// Patches each head in a run of its own: a column of the effects, or with [`Patching::each_position`] as well, a row.
    pub fn each_head(mut self) -> Self {
        self.each_head = true;
        self
    }

    /// Which run's values go into which; by default, the clean one's into the corrupted.
    pub fn direction(mut self, direction: Direction) -> Self {
        self.direction = direction;
        self
    }

    /// The most bytes that a sweep may hold besides the weights: captured values, keys and values, and the activations of a
    /// batch, which is as large as fits.
    pub fn memory_budget(mut self, bytes: u64) -> Self {
        self.budget = bytes;
        self
    }

    /// The position whose logits the metric reads; by default each row's last token.
    pub fn read_at(mut self, position: i64) -> Self {
        self.read_at = Some(position);
        self
    }

    /// Path patching (Wang et al., 2022; Goldowsky-Dill et al., 2023): a patch counts only by what of it arrives at `receiver`
    /// directly, along the residual stream. With the patch made, whatever attention and MLPs on the way add to the stream stays what it is
    /// without it; what then stands at the receiver is put into another run without the patch, and the metric is that run's. So a
    /// place after the receiver has no effect, and `h.11`, the last stream of twelve blocks, receives what a place says to the logits itself.
    ///
    /// ```
    /// # use models::{Config, Model};
    /// # use partial::{Metric, Patch, Patching};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let config = r#"{"model_type": "gpt2", "n_layer": 3, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
    /// # let model = Model::random(Config::from_json(config)?, 0)?;
    /// // Which heads speak to the queries of head 1 in the last layer?
    /// let patched = Patching::new(&model, [1, 2, 3, 4], [1, 5, 3, 4])?
    ///     .sites("h.*.attn.z")?
    ///     .each_head()
    ///     .received_at(Patch::at("h.2.attn.q").heads(1..2))
    ///     .run(&Metric::logit_difference([7], [8]))?;
    /// let effects = &patched.effects;
    /// assert_eq!(effects.values[2], [effects.corrupted.unwrap(); 2]); // the heads of the last layer speak to none of its queries
    /// # Ok(())
    /// # }
    /// ```
    pub fn received_at(mut self, receiver: Patch) -> Self {
        self.receiver = Some(receiver);
        self
    }

    /// With [`Patching::received_at`], lets the MLPs on the way answer to the patch, as Wang et al. do: only what attention adds stays.
    pub fn through_mlps(mut self) -> Self {
        self.through_mlps = true;
        self
    }

    /// Changes the value at `name` in every run of the sweep, clean, corrupted and patched: the effects are those of a model that is
    /// changed in this way. Several edits of one site apply in the order given; what a patch puts in, and takes, is the value after
    /// them.
    ///
    /// Edits that do the same at every position and in every row cost next to nothing. For others (a mean, a function, a tensor with a
    /// value for each position or row) every patched run is made alone, and computes all positions.
    ///
    /// ```
    /// # use models::{Config, Model};
    /// # use partial::{Edit, Metric, Patching};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let config = r#"{"model_type": "gpt2", "n_layer": 3, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
    /// # let model = Model::random(Config::from_json(config)?, 0)?;
    /// // Which streams matter while the heads of the first layer are silent?
    /// let patched = Patching::new(&model, [1, 2, 3, 4], [1, 5, 3, 4])?
    ///     .edit("h.0.attn.z", Edit::zero())?
    ///     .sites("h.*")?
    ///     .each_position()
    ///     .run(&Metric::logit([7]))?;
    /// assert_eq!(patched.effects.values[2][3], patched.effects.clean.unwrap());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`models::Sites::find`]; [`Error::NotPatchable`] for the logits, which the metric computes; [`Error::NoHeads`] and
    /// [`Error::NoPositions`]; [`Error::BeforeStart`] for a site before an input's stream. What else does not fit is found by the runs.
    pub fn edit(mut self, name: impl AsSite, edit: Edit) -> Result<Self> {
        let site = self.model.sites().find(name.as_site())?;
        if matches!(site, Site::LOGITS | Site::UNCAPPED_LOGITS) {
            return Err(Error::NotPatchable {
                site: site.to_string(),
                reason: "the metric computes it, without edits",
            });
        }
        for start in [&self.clean, &self.corrupted].into_iter().filter_map(Input::start_site) {
            if self.model.sites().is_after(start, site) {
                return Err(Error::BeforeStart { site: site.to_string(), start: start.to_string() });
            }
        }
        let place = Place::of(self.model, site);
        edit.check(&place)?;
        self.edits.push((place, edit));
        Ok(self)
    }

    /// Is called after each batch.
    pub fn on_progress(mut self, progress: impl Fn(PatchProgress) + 'a) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }

    /// Patches every place of the grid in a run of its own.
    ///
    /// # Errors
    ///
    /// Before anything runs: [`Error::NoPatches`] without a site; [`Error::OutOfRange`] for positions or heads that there are
    /// not; [`Error::NoHeads`]; [`Error::MetricToken`] and [`Error::MetricRows`] for a metric that does not fit the inputs;
    /// [`Error::MemoryBudget`] where not even one patched run fits. Then whatever [`Model::forward`] finds.
    pub fn run(&self, metric: &Metric) -> Result<Patched> {
        let grid = self.grid()?;
        self.effects(grid, metric)
    }

    /// Makes each of these patches in a run of its own, whatever [`Patching::sites`], positions and heads were chosen. The
    /// effects have a row for each patch, and one column.
    ///
    /// # Errors
    ///
    /// As [`Patching::run`].
    pub fn run_each(&self, patches: &[Patch], metric: &Metric) -> Result<Patched> {
        let resolver = self.resolver()?;
        let cells = patches.iter().map(|patch| Ok(vec![Some(patch.resolve(&resolver)?)])).collect::<Result<_>>()?;
        let rows = patches.iter().map(ToString::to_string).collect();
        self.effects(Grid { rows, columns: Columns::Whole, cells }, metric)
    }

    fn effects(&self, mut grid: Grid, metric: &Metric) -> Result<Patched> {
        let resolver = self.resolver()?;
        let path =
            self.receiver.as_ref().map(|receiver| Path::new(&resolver, receiver, self.through_mlps)).transpose()?;
        if let Some(path) = &path {
            let out_of_reach = |patch: &&mut Resolved| !path.reaches(self.model, patch);
            grid.cells.iter_mut().flatten().flatten().filter(out_of_reach).for_each(|patch| patch.first = None);
        }
        let patches: Vec<&Resolved> = grid.cells.iter().flatten().flatten().collect();
        if patches.is_empty() {
            return Err(Error::NoPatches);
        }
        let found = sweep::run(self, &resolver, &patches, path.as_ref(), metric)?;
        let (clean, corrupted) = match self.direction {
            Direction::CleanIntoCorrupted => (found.source, found.base),
            Direction::CorruptedIntoClean => (found.base, found.source),
        };
        let mut values = found.values.into_iter();
        let mut value = |cell: &Option<Resolved>| cell.as_ref().and_then(|_| values.next()).unwrap_or(f64::NAN);
        let values = grid.cells.iter().map(|row| row.iter().map(&mut value).collect()).collect();
        let effects = Effects {
            method: if path.is_some() { "path patched" } else { "patched" }.to_owned(),
            metric: metric.to_string(),
            rows: grid.rows,
            columns: grid.columns,
            values,
            clean: Some(clean),
            corrupted: Some(corrupted),
        };
        Ok(Patched { effects, report: found.report })
    }

    /// The run that is patched, and the one whose values are put in.
    fn base_and_source(&self) -> (&Input, &Input) {
        match self.direction {
            Direction::CleanIntoCorrupted => (&self.corrupted, &self.clean),
            Direction::CorruptedIntoClean => (&self.clean, &self.corrupted),
        }
    }

    fn resolver(&self) -> Result<Resolver<'a>> {
        let (base, source) = self.base_and_source();
        let mut resolver = Resolver::new(self.model, base, source, self.read_at)?;
        let alike = |(place, edit): &(Place, Edit)| edit.is_alike(place, self.model.sites().shape(place.site).len());
        resolver.alone = !self.edits.iter().all(alike);
        Ok(resolver)
    }

    fn grid(&self) -> Result<Grid> {
        let resolver = self.resolver()?;
        let mut sites = self.sites.clone();
        resolver.in_order(&mut sites);
        let positions = self.positions.clone().unwrap_or(0..resolver.length);
        let each_position: Vec<i64> = if self.each_position { positions.clone().collect() } else { Vec::new() };
        let heads = match (self.each_head, &self.heads) {
            (false, _) => Vec::new(),
            (true, Some(heads)) => heads.clone().collect(),
            (true, None) => {
                let most = sites.iter().map(|&site| resolver.heads(site)).collect::<Result<Vec<_>>>()?;
                (0..most.into_iter().max().unwrap_or(0)).collect()
            }
        };
        let columns = match (self.each_position, self.each_head) {
            (true, _) => Columns::Positions(each_position.clone()),
            (false, true) => Columns::Heads(heads.clone()),
            (false, false) => Columns::Whole,
        };
        let one = |at: i64| at..at + 1;
        let (mut rows, mut cells) = (Vec::new(), Vec::new());
        for site in sites {
            let patch = |positions: Range<i64>, heads: Option<Range<i64>>| -> Result<Option<Resolved>> {
                // A site may have fewer heads than another; those asked for by number must be there.
                let lacking = match &heads {
                    Some(heads) if self.each_head && self.heads.is_none() => heads.end > resolver.heads(site)?,
                    _ => false,
                };
                if lacking { Ok(None) } else { resolver.resolve_one(site, Some(positions), heads).map(Some) }
            };
            let over_positions = |heads: Option<Range<i64>>| -> Result<Vec<_>> {
                match self.each_position {
                    true => each_position.iter().map(|&position| patch(one(position), heads.clone())).collect(),
                    false => Ok(vec![patch(positions.clone(), heads)?]),
                }
            };
            match (self.each_position, self.each_head) {
                (_, false) => {
                    rows.push(site.to_string());
                    cells.push(over_positions(self.heads.clone())?);
                }
                (false, true) => {
                    rows.push(site.to_string());
                    let each = heads.iter().map(|&head| patch(positions.clone(), Some(one(head))));
                    cells.push(each.collect::<Result<_>>()?);
                }
                (true, true) => {
                    for &head in heads
                        .iter()
                        .filter(|&&head| self.heads.is_some() || resolver.heads(site).is_ok_and(|of| head < of))
                    {
                        rows.push(format!("{site} head {head}"));
                        cells.push(over_positions(Some(one(head)))?);
                    }
                }
            }
        }
        Ok(Grid { rows, columns, cells })
    }
}

#[cfg(test)]
mod tests;
