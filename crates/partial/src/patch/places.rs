//! Which places a patch changes, checked against the model and the inputs.

use std::{fmt, ops::Range};

use models::{AsSite, Axis, Input, Model, Point, Site, SiteRef, Stage};
use tch::{Kind, Tensor};

use crate::{Error, Result, apply::Place};

/// One change to a run: what the other run has at a place, or at several places at once, is put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// All but the last place.
    others: Vec<Asked>,
    last: Asked,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    site: Name,
    positions: Option<Range<i64>>,
    heads: Option<Range<i64>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Spelt(String),
    Site(Site),
}

impl Asked {
    fn at(site: impl AsSite) -> Self {
        let site = match site.as_site() {
            SiteRef::Name(name) => Name::Spelt(name.to_owned()),
            SiteRef::Site(site) => Name::Site(site),
        };
        Self { site, positions: None, heads: None }
    }
}

impl Patch {
    /// At a site, at all positions and heads.
    pub fn at(site: impl AsSite) -> Self {
        Self { others: Vec::new(), last: Asked::at(site) }
    }

    /// Only at these positions of the site named last (for attention scores and patterns: queries); columns of the input, padding
    /// included.
    pub fn positions(mut self, positions: Range<i64>) -> Self {
        self.last.positions = Some(positions);
        self
    }

    /// Only at these heads of the site named last.
    pub fn heads(mut self, heads: Range<i64>) -> Self {
        self.last.heads = Some(heads);
        self
    }

    /// At another site as well, in the same run.
    pub fn and_at(mut self, site: impl AsSite) -> Self {
        self.others.push(std::mem::replace(&mut self.last, Asked::at(site)));
        self
    }

    fn places(&self) -> impl Iterator<Item = &Asked> {
        self.others.iter().chain([&self.last])
    }

    pub(super) fn resolve(&self, resolver: &Resolver) -> Result<Resolved> {
        let spot = |asked: &Asked| {
            let site = match &asked.site {
                Name::Spelt(name) => resolver.model.sites().find(name),
                Name::Site(site) => resolver.model.sites().find(site),
            };
            resolver.spot(site?, asked.positions.clone(), asked.heads.clone())
        };
        resolver.resolve(self.places().map(spot).collect::<Result<_>>()?)
    }
}

impl fmt::Display for Patch {
    /// `h.1.attn.z head 0 + h.2.mlp positions 3..5`
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, asked) in self.places().enumerate() {
            formatter.write_str(if index > 0 { " + " } else { "" })?;
            match &asked.site {
                Name::Spelt(name) => formatter.write_str(name)?,
                Name::Site(site) => write!(formatter, "{site}")?,
            }
            for (what, range) in [("head", &asked.heads), ("position", &asked.positions)] {
                match range {
                    Some(range) if range.end - range.start == 1 => write!(formatter, " {what} {}", range.start)?,
                    Some(range) => write!(formatter, " {what}s {}..{}", range.start, range.end)?,
                    None => {}
                }
            }
        }
        Ok(())
    }
}

/// Where a patched run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Begin {
    Tokens,
    /// The residual stream here.
    Stream(Site),
}

/// A place within the inputs.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub(super) place: Place,
    pub(super) positions: Range<i64>,
    pub(super) heads: Option<Range<i64>>,
}

/// A patch that can be made.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    pub(super) spots: Vec<Spot>,
    /// Its sites, each once, in the order in which they run.
    pub(super) sites: Vec<Site>,
    pub(super) begin: Begin,
    /// The first position that it changes; `None` where it changes nothing that the metric can see.
    pub(super) first: Option<i64>,
}

impl Resolved {
    /// Its places at a site, as far as a run from position `first` on computes them: what lies before does not differ.
    pub(super) fn at(&self, site: Site, first: i64) -> impl Iterator<Item = &Spot> {
        self.spots.iter().filter(move |spot| spot.place.site == site && spot.positions.end > first)
    }
}

/// What patches are checked against.
pub(super) struct Resolver<'a> {
    pub(super) model: &'a Model,
    pub(super) pairs: i64,
    pub(super) length: i64,
    /// The position of each row's logits that the metric reads.
    pub(super) read: Vec<i64>,
    /// The first position at which the inputs differ.
    differ: Option<i64>,
    from_tokens: bool,
    /// Whether each run is made alone and of all positions, because edits tell rows or positions apart or mix them.
    pub(super) alone: bool,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(model: &'a Model, base: &Input, source: &Input, read_at: Option<i64>) -> Result<Self> {
        let (pairs, length) = rows_and_positions(base);
        let read = match read_at {
            Some(position) if (0..length).contains(&position) => vec![position; pairs.max(0) as usize],
            Some(position) => {
                let site = Site::LOGITS.to_string();
                let (begin, end) = (position, position.saturating_add(1));
                return Err(Error::OutOfRange { site, what: "positions", begin, end, size: length });
            }
            None => last_tokens(base, pairs, length)?,
        };
        let from_tokens = base.start_site().is_none() && source.start_site().is_none();
        let differ = base.first_difference(source)?;
        Ok(Self { model, pairs, length, read, differ, from_tokens, alone: false })
    }

    /// Sorts sites by the order in which they run.
    pub(super) fn in_order(&self, sites: &mut [Site]) {
        let order = self.model.sites();
        sites.sort_by(|&one, &other| order.is_after(one, other).cmp(&order.is_after(other, one)));
    }

    /// How many heads a site has.
    pub(super) fn heads(&self, site: Site) -> Result<i64> {
        let sites = self.model.sites();
        let heads = sites.shape(site).into_iter().find(|dimension| dimension.axis == Axis::Head);
        heads.and_then(|heads| heads.size).ok_or_else(|| Error::NoHeads { site: site.to_string() })
    }

    pub(super) fn resolve_one(
        &self,
        site: Site,
        positions: Option<Range<i64>>,
        heads: Option<Range<i64>>,
    ) -> Result<Resolved> {
        self.resolve(vec![self.spot(site, positions, heads)?])
    }

    fn spot(&self, site: Site, positions: Option<Range<i64>>, heads: Option<Range<i64>>) -> Result<Spot> {
        check_site(self.model, site)?;
        let within = |what: &'static str, range: &Range<i64>, size: i64| {
            let (begin, end) = (range.start, range.end);
            match 0 <= begin && begin < end && end <= size {
                true => Ok(()),
                false => Err(Error::OutOfRange { site: site.to_string(), what, begin, end, size }),
            }
        };
        let positions = positions.unwrap_or(0..self.length);
        within("positions", &positions, self.length)?;
        if let Some(heads) = &heads {
            within("heads", heads, self.heads(site)?)?;
        }
        Ok(Spot { place: Place::of(self.model, site), positions, heads })
    }

    fn resolve(&self, spots: Vec<Spot>) -> Result<Resolved> {
        let mut sites: Vec<Site> = spots.iter().map(|spot| spot.place.site).collect();
        self.in_order(&mut sites);
        sites.dedup();
        let first_site = sites.first().copied().ok_or(Error::NoPatches)?;
        let begin = self.begin(first_site)?;
        let differ = self.differ.unwrap_or(self.length);
        let changed = |spot: &Spot| Some(spot.positions.start.max(differ)).filter(|first| *first < spot.positions.end);
        let seen = self.read.iter().copied().max().unwrap_or(0);
        let rounds = self.alone || sites.iter().any(|&site| self.replacing_rounds(site));
        let first = spots.iter().filter_map(changed).min().filter(|first| *first <= seen);
        let first = if rounds { Some(0) } else { first };
        Ok(Resolved { spots, sites, begin, first })
    }

    /// Whether replacing a value by itself, and with it every position, changes the last bits of what comes after.
    fn replacing_rounds(&self, site: Site) -> bool {
        match site.point {
            Point::Scores | Point::Pattern => !self.model.numerics().materialised_attention,
            Point::HeadOutput => true,
            _ => false,
        }
    }

    /// The last place from which a run still comes through `site`.
    fn begin(&self, site: Site) -> Result<Begin> {
        let sites = self.model.sites();
        match site.stage {
            Stage::Embedding if site != Site::INPUT => {
                let start = Site::INPUT.to_string();
                let before = Error::BeforeStart { site: site.to_string(), start };
                if self.from_tokens { Ok(Begin::Tokens) } else { Err(before) }
            }
            _ if site.is_residual_stream() => Ok(Begin::Stream(site)),
            Stage::Block(block) => {
                let between = sites.find(Site::block(block, Point::ResidMid)).ok();
                let between = between.filter(|&between| sites.is_after(site, between));
                Ok(Begin::Stream(between.unwrap_or(Site::before_block(block))))
            }
            _ => Ok(Begin::Stream(Site::before_block(self.model.config().layers()))),
        }
    }
}

/// Rows and positions of an input that was checked.
fn rows_and_positions(input: &Input) -> (i64, i64) {
    let shape = input.shape();
    (shape.first().copied().unwrap_or(0), shape.get(1).copied().unwrap_or(0))
}

/// Each row's last position that is no padding; in a row of padding alone, the last.
fn last_tokens(input: &Input, pairs: i64, length: i64) -> Result<Vec<i64>> {
    let Some(attended) = input.attended(Site::INPUT)? else { return Ok(vec![length - 1; pairs.max(0) as usize]) };
    let last = || {
        let places = Tensor::f_arange(length, (Kind::Int64, attended.device()))?;
        let last = attended.f_to_kind(Kind::Int64)?.f_mul(&places)?.f_amax([1].as_slice(), false)?;
        let none = attended.f_any_dim(1, false)?.f_logical_not()?;
        Vec::<i64>::try_from(&last.f_masked_fill(&none, length - 1)?)
    };
    last().map_err(|source| Error::Torch { at: "the attention mask".to_owned(), source })
}

/// Whether the values of a site can be put from one run into another.
pub(crate) fn check_site(model: &Model, site: Site) -> Result<()> {
    let refused = |reason| Err(Error::NotPatchable { site: site.to_string(), reason });
    let shape = model.sites().shape(site);
    if matches!(site, Site::LOGITS | Site::UNCAPPED_LOGITS) {
        return refused("the metric reads it, and nothing comes after");
    }
    match shape.first().map(|dimension| dimension.axis) {
        Some(Axis::Batch) => Place::of(model, site).positions().map(drop),
        Some(Axis::OneOrBatch) => refused("it depends on positions and not on tokens, and is the same in both runs"),
        _ => refused("it has a row for each token that goes there, which are not the same in both runs"),
    }
}

pub(crate) fn check_inputs(model: &Model, clean: &Input, corrupted: &Input) -> Result<()> {
    let refused = |problem: String| Err(Error::PatchInputs { problem });
    for (name, input) in [("clean", clean), ("corrupted", corrupted)] {
        model.check_input(input)?;
        if let Some(site) = input.start_site().filter(|site| *site != Site::INPUT) {
            return refused(format!("the {name} input starts at {site}; it must be tokens, or a stream at input"));
        }
    }
    let (ours, theirs) = (rows_and_positions(clean), rows_and_positions(corrupted));
    if ours != theirs {
        return refused(format!(
            "the clean input has {} rows of {} positions, the corrupted one {} of {}",
            ours.0, ours.1, theirs.0, theirs.1
        ));
    }
    if !clean.same_padding(corrupted)? {
        return refused("they have padding at other places, or other position ids".to_owned());
    }
    Ok(())
}
