//! Running a model as far as the deepest name.

use std::ops::Range;

use models::{Action, AsSite, Input, KvCache, Model, Observer, ObserverError, Prompt, Site};
use tch::{Device, Kind, Tensor};

use crate::{
    Activations, Edit, Error, Plan, Result,
    apply::{Place, copied, narrow},
    editor::Editor,
};

/// Runs `model` over `input` no further than the deepest of `names` and returns the value at each.
///
/// Names are those of Hugging Face's `named_modules()`, with or without `transformer.`; see [`models::Sites`]. A [`Site`] is
/// as good as a name. The input is an [`Input`], or whatever else a [`Prompt`] is made of. Gradients flow to whatever is trainable; without trainable weights nothing is recorded.
///
/// # Errors
///
/// Unknown names, before anything runs; whatever [`Model::forward`] refuses.
pub fn partial_forward<'p, S: AsSite>(model: &Model, names: &[S], input: impl Into<Prompt<'p>>) -> Result<Activations> {
    Run::new(model, names)?.run(input)
}

/// Activations as a method of the model.
pub trait TakeActivations {
    /// Runs the model over a text, or whatever else a [`Prompt`] is made of, no further than the deepest of `names` and returns the value
    /// at each, as [`partial_forward`] does.
    ///
    /// ```
    /// use models::{Config, Model, Point, Site};
    /// use partial::TakeActivations;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
    /// # let model = Model::random(Config::from_json(config)?, 0)?;
    /// let output = model.activations([1, 2, 3], ["h.0", "h.1.attn.pattern"])?;
    /// assert_eq!(output.get("h.1.attn.pattern")?.size(), [1, 2, 3, 3]); // [batch, head, query, key]
    ///
    /// let site = Site::block(0, Point::Output);
    /// assert_eq!(model.activations([1, 2, 3], [site])?.get(site)?, output.get("h.0")?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Unknown names, before anything runs; whatever [`Model::input`] and [`Model::forward`] refuse.
    fn activations<'p>(
        &self,
        prompt: impl Into<Prompt<'p>>,
        names: impl IntoIterator<Item: AsSite>,
    ) -> Result<Activations>;
}

impl TakeActivations for Model {
    fn activations<'p>(
        &self,
        prompt: impl Into<Prompt<'p>>,
        names: impl IntoIterator<Item: AsSite>,
    ) -> Result<Activations> {
        let names: Vec<_> = names.into_iter().collect();
        partial_forward(self, &names, prompt)
    }
}

/// A run being prepared: what to capture, what to change, where to put it.
///
/// ```
/// # use models::{Config, Input, Model};
/// # use partial::{Edit, Run};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
/// # let model = Model::random(Config::from_json(config)?, 0)?;
/// // Activation patching: put the clean run's attention output into the corrupted run.
/// let (clean, corrupted) = (Input::from_rows(&[[1, 2, 3]])?, Input::from_rows(&[[1, 9, 3]])?);
/// let attention = Run::new(&model, &["h.1.attn"])?.run(&clean)?;
/// let patched = Run::new(&model, &["lm_head"])?
///     .edit("h.1.attn", Edit::replace(attention.get("h.1.attn")?))?
///     .run(&corrupted)?;
/// # assert_eq!(patched.get("lm_head")?.size(), [1, 3, 20]);
/// # Ok(())
/// # }
/// ```
pub struct Run<'a> {
    pub(crate) model: &'a Model,
    pub(crate) plan: Plan,
    pub(crate) edits: Vec<(Place, Edit)>,
    positions: Option<Range<i64>>,
    device: Option<Device>,
    kind: Option<Kind>,
}

impl<'a> Run<'a> {
    /// A run that captures `names`, which may be [`Site`]s instead.
    ///
    /// # Errors
    ///
    /// As [`Plan::new`].
    pub fn new<S: AsSite>(model: &'a Model, names: &[S]) -> Result<Self> {
        Ok(Self::planned(model, Plan::new(model, names)?))
    }

    /// A run of a plan made before.
    pub fn planned(model: &'a Model, plan: Plan) -> Self {
        Self { model, plan, edits: Vec::new(), positions: None, device: None, kind: None }
    }

    /// Changes the value at `name`; several edits of one site apply in the order given. A capture of an edited site sees
    /// the value after the edits, as the rest of the model does.
    ///
    /// # Errors
    ///
    /// An unknown name; [`Error::EditAfterStop`] for a site after the deepest capture; [`Error::NoHeads`].
    pub fn edit(mut self, name: impl AsSite, edit: Edit) -> Result<Self> {
        let site = self.model.sites().find(name.as_site())?;
        if self.model.sites().is_after(site, self.plan.deepest()) {
            let deepest = self.plan.deepest().to_string();
            return Err(Error::EditAfterStop { edit: name.spelling(), deepest });
        }
        let place = Place::of(self.model, site);
        edit.check(&place)?;
        self.edits.push((place, edit));
        Ok(self)
    }

    /// Keeps only these positions of every capture (for attention scores and patterns: queries). The model still sees all.
    pub fn positions(mut self, positions: Range<i64>) -> Self {
        self.positions = Some(positions);
        self
    }

    /// Moves every capture to `device` as soon as it is made, so that a long run does not fill the one that computes.
    pub fn to_device(mut self, device: Device) -> Self {
        self.device = Some(device);
        self
    }

    /// Converts every capture to `kind` as soon as it is made.
    pub fn to_kind(mut self, kind: Kind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Runs the model as far as needed over an [`Input`], or whatever else a [`Prompt`] is made of. The run can be repeated with
    /// other inputs.
    ///
    /// # Errors
    ///
    /// Whatever [`Model::input`] and [`Model::forward`] refuse, and errors that name the site where a capture or an edit failed.
    pub fn run<'p>(&self, input: impl Into<Prompt<'p>>) -> Result<Activations> {
        self.run_with(&self.model.input(input)?, false, |model, input, observer| model.forward(input, observer))
    }

    /// As [`Run::run`] with a cache. The cache gains the new positions only if the run reaches the logits: capture `lm_head`
    /// as well. It must start with tokens or at `input`, as [`Model::forward_cached`] says. Edits choose positions of the whole
    /// text, whatever part of it the cache holds; those of [`Run::positions`] are the new ones.
    ///
    /// # Errors
    ///
    /// As [`Run::run`]; [`models::Error::CachedStart`], [`models::Error::CacheMismatch`].
    pub fn run_cached<'p>(&self, input: impl Into<Prompt<'p>>, cache: &mut KvCache) -> Result<Activations> {
        let input = self.model.input(input)?;
        self.run_with(&input, true, |model, input, observer| model.forward_cached(input, cache, observer))
    }

    fn run_with(
        &self,
        input: &Input,
        is_part: bool,
        forward: impl FnOnce(&Model, &Input, &mut dyn Observer) -> models::Result<models::Outcome>,
    ) -> Result<Activations> {
        if let Some(start) = input.start_site() {
            let edited = self.edits.iter().map(|(place, _)| place.site);
            let mut sites = self.plan.captures.iter().map(|(_, site)| *site).chain(edited);
            if let Some(before) = sites.find(|&site| self.model.sites().is_after(start, site)) {
                return Err(Error::BeforeStart { site: before.to_string(), start: start.to_string() });
            }
        }
        let editor = Editor::new(&self.edits, is_part, None);
        let mut capture = Capture { run: self, editor, values: Vec::new() };
        let outcome = forward(self.model, input, &mut capture).map_err(unwrap_own)?;
        let values = capture.values;
        let mut tensors = Vec::with_capacity(self.plan.captures.len());
        for (name, site) in &self.plan.captures {
            let Some((_, tensor)) = values.iter().find(|(seen, _)| seen == site) else {
                let captured = values.iter().map(|(seen, _)| seen.to_string()).collect();
                return Err(Error::NotCaptured { name: name.clone(), captured });
            };
            tensors.push((name.clone(), *site, tensor.shallow_clone()));
        }
        let blocks_total = self.model.config().layers();
        Ok(Activations { tensors, blocks_run: outcome.blocks_run, blocks_total })
    }

    pub(crate) fn keep(&self, site: Site, value: &Tensor) -> Result<Tensor> {
        let mut kept = value.shallow_clone();
        let torch = |source| Error::Torch { at: format!("capturing {site}"), source };
        if let Some(positions) = &self.positions {
            kept = narrow(site, &kept, Place::of(self.model, site).positions()?, positions, "positions")?;
            // A view would hold on to the whole.
            kept = copied(&kept).map_err(torch)?;
        }
        if let Some(device) = self.device {
            kept = kept.f_to_device(device).map_err(torch)?;
        }
        match self.kind {
            Some(kind) => kept.f_to_kind(kind).map_err(torch),
            None => Ok(kept),
        }
    }
}

/// Our own error in an observer comes back in the model's; people should see ours.
pub(crate) fn unwrap_own(error: models::Error) -> Error {
    match error {
        models::Error::Observer { site, source } => match source.downcast::<Error>() {
            Ok(own) => *own,
            Err(source) => Error::Model(models::Error::Observer { site, source }),
        },
        other => Error::Model(other),
    }
}

struct Capture<'a> {
    run: &'a Run<'a>,
    editor: Editor<'a>,
    values: Vec<(Site, Tensor)>,
}

impl Observer for Capture<'_> {
    fn begin(&mut self, input: &Input, cached: i64) -> Result<(), ObserverError> {
        Ok(self.editor.begin(input, cached)?)
    }

    fn wants(&self, site: Site) -> bool {
        self.run.plan.captures.iter().any(|(_, wanted)| *wanted == site) || self.editor.edits(site)
    }

    fn observe(&mut self, site: Site, value: &Tensor) -> Result<Action, ObserverError> {
        let changed = self.editor.edited(site, value)?;
        if self.run.plan.captures.iter().any(|(_, wanted)| *wanted == site) {
            let kept = self.run.keep(site, changed.as_ref().unwrap_or(value))?;
            self.values.push((site, kept));
        }
        Ok(changed.map_or(Action::Continue, Action::Replace))
    }

    fn deepest(&self) -> Option<Site> {
        Some(self.run.plan.deepest())
    }
}
