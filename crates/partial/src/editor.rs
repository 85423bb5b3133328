//! The edits of a run, applied as it goes.

use models::{Input, Site};
use tch::Tensor;

use crate::{Edit, Result, apply::Place, reading::Reading};

/// Applies edits to the values of one run after another.
pub(crate) struct Editor<'a> {
    edits: &'a [(Place, Edit)],
    /// Whether texts have other positions than those of one run.
    is_part: bool,
    /// How many tokens each row's prompt has, in generation.
    prompts: Option<Vec<i64>>,
    /// What the present run reads.
    now: Option<(Input, Reading)>,
}

impl<'a> Editor<'a> {
    pub(crate) fn new(edits: &'a [(Place, Edit)], is_part: bool, prompts: Option<Vec<i64>>) -> Self {
        Self { edits, is_part, prompts, now: None }
    }

    /// A run over `input` begins after `cached` columns.
    pub(crate) fn begin(&mut self, input: &Input, cached: i64) -> Result<()> {
        self.now = None;
        if !self.edits.is_empty() {
            let reading = Reading::of(input, cached, self.is_part, self.prompts.as_deref())?;
            self.now = Some((input.clone(), reading));
        }
        Ok(())
    }

    /// Whether a site is edited.
    pub(crate) fn edits(&self, site: Site) -> bool {
        self.edits.iter().any(|(place, _)| place.site == site)
    }

    /// The value after the edits of its site; `None` where nothing changes.
    pub(crate) fn edited(&self, site: Site, value: &Tensor) -> Result<Option<Tensor>> {
        let Some((input, reading)) = &self.now else { return Ok(None) };
        let mut changed: Option<Tensor> = None;
        for (place, edit) in self.edits.iter().filter(|(place, _)| place.site == site) {
            if let Some(next) = edit.apply(place, changed.as_ref().unwrap_or(value), input, reading)? {
                changed = Some(next);
            }
        }
        Ok(changed)
    }
}
