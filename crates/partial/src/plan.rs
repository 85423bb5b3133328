//! Names, checked and put in order before anything runs.

use models::{AsSite, Model, Site};

use crate::{Error, Result};

/// What a run is to capture, and so where it ends and which weights it needs.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) captures: Vec<(String, Site)>,
    pub(crate) deepest: Site,
}

impl Plan {
    /// Finds the sites of all names, which may be [`Site`]s instead. Nothing runs, and no weight is read.
    ///
    /// ```
    /// use models::{Config, Model, Point, Site};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
    /// # let model = Model::random(Config::from_json(config)?, 0)?;
    /// let plan = partial::Plan::new(&model, &[Site::block(0, Point::MlpOutput), Site::INPUT])?;
    /// assert_eq!(plan.deepest(), model.sites().parse("h.0.mlp")?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoNames`]; [`models::Error::UnknownSite`] with the nearest names, [`models::Error::AbsentSite`],
    /// [`models::Error::Container`].
    pub fn new<S: AsSite>(model: &Model, names: &[S]) -> Result<Self> {
        let mut captures: Vec<(String, Site)> = Vec::with_capacity(names.len());
        for name in names {
            let spelling = name.spelling();
            if captures.iter().all(|(known, _)| *known != spelling) {
                captures.push((spelling, model.sites().find(name.as_site())?));
            }
        }
        let deepest = model.sites().deepest(captures.iter().map(|(_, site)| *site)).ok_or(Error::NoNames)?;
        Ok(Self { captures, deepest })
    }

    /// The last site that is needed; the run ends there.
    pub fn deepest(&self) -> Site {
        self.deepest
    }

    /// Places the weights the plan needs, and only those, telling the loading progress. Runs do it by themselves, part
    /// after part; this is for those who want to see it happen first.
    ///
    /// # Errors
    ///
    /// [`models::Error::Weights`].
    pub fn preload(&self, model: &Model) -> Result<()> {
        let parts = model.parts_needed(self.deepest);
        Ok(model.parts().preload(parts).map_err(models::Error::from)?)
    }
}
