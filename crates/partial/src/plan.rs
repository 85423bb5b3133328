//! Names, checked and put in order before anything runs.

use models::{Model, Site};

use crate::{Error, Result};

/// What a run is to capture, and so where it ends and which weights it needs.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) captures: Vec<(String, Site)>,
    deepest: Site,
}

impl Plan {
    /// Parses all names. Nothing runs, and no weight is read.
    ///
    /// # Errors
    ///
    /// [`Error::NoNames`]; [`models::Error::UnknownSite`] with the nearest names, [`models::Error::Container`].
    pub fn new<S: AsRef<str>>(model: &Model, names: &[S]) -> Result<Self> {
        let mut captures: Vec<(String, Site)> = Vec::with_capacity(names.len());
        for name in names {
            let name = name.as_ref();
            if captures.iter().all(|(known, _)| known != name) {
                captures.push((name.to_owned(), model.sites().parse(name)?));
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
