//! What says which site is meant: a name, or the site itself.

use crate::{Error, Result, Site, Sites, Stage};

/// What somebody said of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteRef<'a> {
    /// Its name, in one of its spellings.
    Name(&'a str),
    /// The site itself.
    Site(Site),
}

/// Whatever says which site is meant: a name in any kind of string, or a [`Site`].
///
/// ```
/// use models::{Config, Model, Point, Site};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
/// # let model = Model::random(Config::from_json(config)?, 0)?;
/// assert_eq!(model.sites().find("transformer.h.1.mlp")?, Site::block(1, Point::MlpOutput));
/// assert!(model.sites().find(Site::block(2, Point::MlpOutput)).is_err()); // there are the blocks 0 and 1
/// # Ok(())
/// # }
/// ```
pub trait AsSite {
    /// What is said.
    fn as_site(&self) -> SiteRef<'_>;

    /// The name as it was spelt, or the site's own.
    fn spelling(&self) -> String {
        match self.as_site() {
            SiteRef::Name(name) => name.to_owned(),
            SiteRef::Site(site) => site.to_string(),
        }
    }
}

impl<S: AsRef<str> + ?Sized> AsSite for S {
    fn as_site(&self) -> SiteRef<'_> {
        SiteRef::Name(self.as_ref())
    }
}

impl AsSite for Site {
    fn as_site(&self) -> SiteRef<'_> {
        SiteRef::Site(*self)
    }
}

impl AsSite for &Site {
    fn as_site(&self) -> SiteRef<'_> {
        SiteRef::Site(**self)
    }
}

impl AsSite for SiteRef<'_> {
    fn as_site(&self) -> SiteRef<'_> {
        *self
    }
}

impl Sites<'_> {
    /// The site that is meant, if the model has it.
    ///
    /// # Errors
    ///
    /// As [`Sites::parse`], for sites as for names.
    pub fn find(&self, asked: impl AsSite) -> Result<Site> {
        let site = match asked.as_site() {
            SiteRef::Name(name) => return self.parse(name),
            SiteRef::Site(site) => self.present(site),
        };
        match site.stage {
            _ if self.has(site) => Ok(site),
            Stage::Block(block) if block >= self.layers() => {
                Err(Error::UnknownSite { name: site.to_string(), blocks: self.layers(), nearest: Vec::new() })
            }
            _ => Err(Error::AbsentSite { name: site.to_string(), reason: self.why_absent(site) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Model, Point};

    #[test]
    fn sites_are_found_as_their_names_are() {
        let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
        let model = Model::random(Config::from_json(config).unwrap(), 0).unwrap();
        let sites = model.sites();
        for info in sites.iter() {
            assert_eq!(sites.find(info.site).unwrap(), info.site);
            assert_eq!(sites.find(info.site).unwrap(), sites.find(info.site.to_string()).unwrap());
        }
        // Without a gate and a softcap, two names mean one value; so do two sites.
        assert_eq!(sites.find(Site::UNCAPPED_LOGITS).unwrap(), Site::LOGITS);
        let neurons = sites.find(Site::block(1, Point::Neurons)).unwrap();
        assert_eq!(neurons, sites.find("h.1.mlp.neurons").unwrap());
    }

    #[test]
    fn sites_that_a_model_lacks_are_refused_with_the_reason() {
        let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
        let model = Model::random(Config::from_json(config).unwrap(), 0).unwrap();
        let refused = |site: Site| model.sites().find(site).unwrap_err().to_string();
        assert_eq!(refused(Site::block(2, Point::Output)), "unknown name \"h.2\"; the model has 2 blocks, h.0 to h.1");
        let gate = refused(Site::block(1, Point::MlpGate));
        assert_eq!(gate, "\"h.1.mlp.gate_proj\" is not in this model: the MLP has no gate");
    }
}
