//! Generation under edits, and what it captures.

use std::ops::ControlFlow;

use models::{
    Action, AsSite, Axis, GenerateOptions, Generated, Input, Model, NewToken, Observer, ObserverError, Point, Prompt,
    Site, generate_observed,
};
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    Activations, Edit, Error, Plan, Result, Run, apply::Place, editor::Editor, reading::Reading, run::unwrap_own,
};

/// Generation being prepared: what to change, what to capture, where to put it. It takes the edits that a [`Run`] takes.
///
/// Each step reads the tokens before it from a cache, and gives what a run over the whole text so far would give under the same
/// edits: their positions are those of each row's text, whichever step reads them and however the batch is padded.
///
/// ```
/// # use models::{Config, GenerateOptions, Model};
/// use partial::{Edit, Generation};
/// # use tch::{Device, Kind, Tensor};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
/// # let model = Model::random(Config::from_json(config)?, 0)?;
/// # let direction = Tensor::ones([8], (Kind::Float, Device::Cpu));
/// // Steering: a direction added to the stream at every new token, and what the last block makes of it.
/// let steered = Generation::new(&model)
///     .edit("h.0", Edit::add(&direction).new_tokens())?
///     .capture(["h.1"])?
///     .run([1, 2, 3], &GenerateOptions::default().max_new_tokens(4))?;
/// println!("{}", steered.generated);
/// assert_eq!(steered.get("h.1")?.size(), [1, 4, 8]); // [batch, position, d_model]
/// assert_eq!(steered.positions("h.1")?, [[Some(2), Some(3), Some(4), Some(5)]]);
/// # Ok(())
/// # }
/// ```
pub struct Generation<'a> {
    run: Run<'a>,
    prompt: bool,
}

impl<'a> Generation<'a> {
    /// Generation as it is without edits.
    pub fn new(model: &'a Model) -> Self {
        let plan = Plan { captures: Vec::new(), deepest: Site::LOGITS };
        Self { run: Run::planned(model, plan), prompt: false }
    }

    /// Changes the value at `name` in every step; several edits of one site apply in the order given. An edit of the logits
    /// (`lm_head`) changes what tokens are chosen by.
    ///
    /// # Errors
    ///
    /// An unknown name; [`Error::NoHeads`], [`Error::NoPositions`].
    pub fn edit(mut self, name: impl AsSite, edit: Edit) -> Result<Self> {
        self.run = self.run.edit(name, edit)?;
        Ok(self)
    }

    /// Captures the values at these names as the model chooses each new token, after the edits: the last token of the prompt, which
    /// chooses the first new one, and every new token but the last, which nothing reads.
    ///
    /// # Errors
    ///
    /// Unknown names; [`Error::NoPositions`] for an expert.
    pub fn capture(mut self, names: impl IntoIterator<Item: AsSite>) -> Result<Self> {
        for name in names {
            let (spelling, site) = (name.spelling(), self.run.model.sites().find(name.as_site())?);
            Place::of(self.run.model, site).positions()?;
            if self.run.plan.captures.iter().all(|(known, _)| *known != spelling) {
                self.run.plan.captures.push((spelling, site));
            }
        }
        Ok(self)
    }

    /// Captures the whole prompt as well. Logits are computed only where a token is chosen, and have no more positions.
    pub fn with_prompt(mut self) -> Self {
        self.prompt = true;
        self
    }

    /// Moves every capture to `device` as soon as it is made.
    pub fn to_device(mut self, device: Device) -> Self {
        self.run = self.run.to_device(device);
        self
    }

    /// Converts every capture to `kind` as soon as it is made.
    pub fn to_kind(mut self, kind: Kind) -> Self {
        self.run = self.run.to_kind(kind);
        self
    }

    /// Continues a text, or every row of a batch. It can be done again with other prompts.
    ///
    /// # Errors
    ///
    /// As [`models::generate`] and [`Model::token_rows`]; errors that name the site where a capture or an edit failed.
    pub fn run<'p>(&self, prompt: impl Into<Prompt<'p>>, options: &GenerateOptions) -> Result<Continuation> {
        self.stream(prompt, options, |_| ControlFlow::Continue(()))
    }

    /// As [`Generation::run`]; `on_token` sees each new token as it is chosen, and may end the generation.
    ///
    /// # Errors
    ///
    /// As [`Generation::run`].
    pub fn stream<'p>(
        &self,
        prompt: impl Into<Prompt<'p>>,
        options: &GenerateOptions,
        on_token: impl FnMut(NewToken) -> ControlFlow<()>,
    ) -> Result<Continuation> {
        options.check()?;
        let model = self.run.model;
        let rows = model.token_rows(prompt)?;
        let prompts: Vec<i64> = rows.iter().map(|row| row.len() as i64).collect();
        let longest = prompts.iter().copied().max().unwrap_or(0);
        let mut recorder = Recorder {
            run: &self.run,
            editor: Editor::new(&self.run.edits, true, Some(prompts.clone())),
            rows: prompts.len(),
            first: if self.prompt { 0 } else { longest - 1 },
            now: None,
            sites: self.run.plan.captures.iter().map(|(_, site)| Recorded::new(model, *site)).collect(),
        };
        let generated = generate_observed(model, &rows, options, &mut recorder, on_token).map_err(unwrap_own)?;
        let mut tensors = Vec::with_capacity(recorder.sites.len());
        let mut positions = Vec::with_capacity(recorder.sites.len());
        for ((name, site), recorded) in self.run.plan.captures.iter().zip(recorder.sites) {
            if recorded.parts.is_empty() {
                return Err(Error::NotCaptured { name: name.clone(), captured: Vec::new() });
            }
            positions.push(recorded.positions(&generated));
            let joined = recorded.joined();
            tensors.push((name.clone(), *site, joined.map_err(|source| Error::Torch { at: name.clone(), source })?));
        }
        let blocks = model.config().layers();
        let activations = Activations { tensors, blocks_run: blocks, blocks_total: blocks };
        Ok(Continuation { generated, activations, positions })
    }
}

/// What generation gave, and what it captured.
#[derive(Debug)]
#[non_exhaustive]
pub struct Continuation {
    /// The continued rows.
    pub generated: Generated,
    /// The captures, `[batch, position, ..]` as in any run. Attention scores and patterns are
    /// `[batch, head, query position, key column]`: a column for each token read, those of padding included, in front of the text;
    /// where a query came before a key, or a layer's cache had dropped it, they are as where a query may not look.
    pub activations: Activations,
    /// For each capture, what each position of each row is.
    positions: Vec<Vec<Vec<Option<i64>>>>,
}

impl Continuation {
    /// A captured tensor, as [`Activations::get`] gives it.
    ///
    /// # Errors
    ///
    /// [`Error::NotCaptured`].
    pub fn get(&self, name: impl AsSite) -> Result<&Tensor> {
        self.activations.get(name)
    }

    /// For each row, which position of its text each position of the capture is, counted from the row's first token, the prompt
    /// included; `None` where it is padding, or the row had ended.
    ///
    /// # Errors
    ///
    /// [`Error::NotCaptured`].
    pub fn positions(&self, name: impl AsSite) -> Result<&[Vec<Option<i64>>]> {
        let index = self.activations.index(name)?;
        Ok(self.positions.get(index).map_or(&[], Vec::as_slice))
    }
}

/// What was captured of a site, step by step.
struct Recorded {
    site: Site,
    /// The dimension that counts positions.
    dimension: i64,
    /// The dimension that counts keys.
    keys: Option<i64>,
    /// What each step gave.
    parts: Vec<Part>,
}

struct Part {
    value: Tensor,
    /// Keys there were.
    keys: i64,
    /// For each row, the positions.
    positions: Vec<Vec<i64>>,
}

impl Recorded {
    fn new(model: &Model, site: Site) -> Self {
        let keys = model.sites().shape(site).iter().position(|dimension| dimension.axis == Axis::Key);
        let dimension = Place::of(model, site).positions.unwrap_or(1);
        Self { site, dimension, keys: keys.map(|keys| keys as i64), parts: Vec::new() }
    }

    fn positions(&self, generated: &Generated) -> Vec<Vec<Option<i64>>> {
        let of_row = |(index, row): (usize, &models::GeneratedRow)| {
            let is_read = |position: &i64| (0..row.tokens.len() as i64).contains(position);
            let all = self.parts.iter().filter_map(|part| part.positions.get(index)).flatten();
            all.map(|position| Some(*position).filter(is_read)).collect()
        };
        generated.rows.iter().enumerate().map(of_row).collect()
    }

    /// One after the other along the positions.
    fn joined(&self) -> Result<Tensor, TchError> {
        let keys = self.parts.iter().map(|part| part.keys).max().unwrap_or(0);
        let whole = |part: &Part| match self.keys {
            Some(_) => hidden(self.site, &part.value, 0, keys - part.keys),
            None => Ok(part.value.shallow_clone()),
        };
        let parts = self.parts.iter().map(whole).collect::<Result<Vec<_>, _>>()?;
        Tensor::f_cat(&parts, self.dimension)
    }
}

/// Scores or patterns with further keys before and after, which no query sees. Keys are the last dimension.
fn hidden(site: Site, value: &Tensor, before: i64, after: i64) -> Result<Tensor, TchError> {
    let unseen = match (site.point, value.f_kind()?) {
        (Point::Scores, Kind::Float | Kind::BFloat16) => f64::from(f32::MIN),
        (Point::Scores, Kind::Double) => f64::MIN,
        (Point::Scores, _) => -65504.0,
        _ => 0.0,
    };
    if before == 0 && after == 0 { Ok(value.shallow_clone()) } else { value.f_pad([before, after], "constant", unseen) }
}

struct Recorder<'a> {
    run: &'a Run<'a>,
    editor: Editor<'a>,
    rows: usize,
    /// The first column that is kept.
    first: i64,
    /// What the present step reads, how many columns come before, and how many there are with its own.
    now: Option<(Reading, i64, i64)>,
    sites: Vec<Recorded>,
}

impl Recorder<'_> {
    fn record(&mut self, site: Site, value: &Tensor) -> Result<()> {
        let Some((reading, before, total)) = &self.now else { return Ok(()) };
        for recorded in self.sites.iter_mut().filter(|recorded| recorded.site == site) {
            let torch = |source| Error::Torch { at: format!("capturing {site}"), source };
            let size = |dimension: i64| value.size().get(dimension as usize).copied().unwrap_or(0);
            let columns = size(recorded.dimension);
            // Logits are those of one column.
            let skipped = if columns < total - before { 0 } else { (self.first - before).clamp(0, columns) };
            let mut kept = value.shallow_clone();
            if skipped > 0 {
                let narrowed = kept.f_narrow(recorded.dimension, skipped, columns - skipped);
                // A view would hold on to the whole.
                kept = narrowed.and_then(|view| view.f_clone(&view.f_empty_like()?)).map_err(torch)?;
            }
            if let Some(keys) = recorded.keys {
                kept = hidden(site, &kept, total - size(keys), 0).map_err(torch)?;
            }
            let positions =
                (0..self.rows).map(|row| reading.positions(site, row, columns).skip(skipped as usize).collect());
            let part = Part { value: self.run.keep(site, &kept)?, keys: *total, positions: positions.collect() };
            recorded.parts.push(part);
        }
        Ok(())
    }
}

impl Observer for Recorder<'_> {
    fn begin(&mut self, input: &Input, cached: i64) -> Result<(), ObserverError> {
        self.editor.begin(input, cached)?;
        if self.sites.is_empty() {
            return Ok(());
        }
        let total = cached + input.columns();
        if cached == 0 {
            // All columns are read again, and give other values; of logits, only those of the last.
            let again = self.sites.iter_mut().filter(|recorded| !unembeds(recorded.site));
            again.for_each(|recorded| recorded.parts.clear());
        }
        self.now = Some((Reading::of(input, cached, true, None)?, cached, total));
        Ok(())
    }

    fn wants(&self, site: Site) -> bool {
        self.sites.iter().any(|recorded| recorded.site == site) || self.editor.edits(site)
    }

    fn observe(&mut self, site: Site, value: &Tensor) -> Result<Action, ObserverError> {
        let changed = self.editor.edited(site, value)?;
        self.record(site, changed.as_ref().unwrap_or(value))?;
        Ok(changed.map_or(Action::Continue, Action::Replace))
    }
}

/// Whether a site has a value only where logits are computed.
pub(crate) fn unembeds(site: Site) -> bool {
    matches!(site, Site::LOGITS | Site::UNCAPPED_LOGITS | Site::PROJECTED)
}
