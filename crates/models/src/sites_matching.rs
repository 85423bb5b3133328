//! Sites by a pattern of names.

use crate::{AsSite, Result, Site, SiteRef, Sites};

impl Sites<'_> {
    /// All sites with a name of this pattern, in the order in which they run: `h.*.mlp` is what each MLP says. A `*` stands for
    /// one segment of a name, such as the number of a block; the other segments, as everywhere, are compared whole. Names are all
    /// that [`Sites::parse`] knows. Without a `*` it is the one site of that name; a [`Site`] is itself.
    ///
    /// ```
    /// use models::{Config, Model, Point, Site};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
    /// # let model = Model::random(Config::from_json(config)?, 0)?;
    /// let sites = model.sites().matching("h.*.mlp")?;
    /// assert_eq!(sites, [Site::block(0, Point::MlpOutput), Site::block(1, Point::MlpOutput)]);
    /// assert_eq!(model.sites().matching("blocks.*.hook_resid_pre")?, [Site::INPUT, Site::block(0, Point::Output)]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Sites::find`], where there is no such site.
    pub fn matching(&self, pattern: impl AsSite) -> Result<Vec<Site>> {
        let asked = match pattern.as_site() {
            SiteRef::Name(name) if name.split('.').any(|segment| segment == "*") => name,
            one => return Ok(vec![self.find(one)?]),
        };
        let short = self.without_prefix(asked);
        let fits = |name: &String| [asked, short].iter().any(|pattern| is_match(pattern, name));
        let matching = self.iter().filter(|info| info.names.iter().chain(&info.lens_names).any(fits));
        let sites: Vec<Site> = matching.map(|info| info.site).collect();
        if sites.is_empty() {
            // What is wrong with the name of one of them is wrong with all.
            let first: Vec<&str> = asked.split('.').map(|segment| if segment == "*" { "0" } else { segment }).collect();
            return Ok(vec![self.parse(&first.join("."))?]);
        }
        Ok(sites)
    }
}

fn is_match(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern.split('.'), name.split('.'));
    loop {
        match (pattern.next(), name.next()) {
            (None, None) => return true,
            (Some(wanted), Some(found)) if wanted == "*" || wanted == found => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Config, Error, Model, Point, Site};

    fn model(config: &str) -> Model {
        Model::random(Config::from_json(config).unwrap(), 0).unwrap()
    }

    #[test]
    fn a_star_is_one_segment() {
        let model = model(r#"{"model_type": "gpt2", "n_layer": 12, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#);
        let blocks = |point| (0..12).map(|block| Site::block(block, point)).collect::<Vec<_>>();
        let matching = |pattern: &str| model.sites().matching(pattern).unwrap();
        assert_eq!(matching("h.*"), blocks(Point::Output));
        assert_eq!(matching("transformer.h.*.attn.z"), blocks(Point::Z));
        assert_eq!(matching("h.*.mlp.c_fc"), blocks(Point::MlpInput));
        assert_eq!(matching("blocks.*.hook_mlp_out"), blocks(Point::MlpOutput));
        assert_eq!(matching("h.1"), [Site::block(1, Point::Output)]);
        assert!(matching("h.1.*").contains(&Site::block(1, Point::MlpOutput)));
        assert!(!matching("h.1.*").contains(&Site::block(1, Point::Z)));
        assert_eq!(model.sites().matching(Site::INPUT).unwrap(), [Site::INPUT]);
    }

    #[test]
    fn a_pattern_of_nothing_is_refused_as_a_name_is() {
        let model = model(r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#);
        let refused = |pattern: &str| model.sites().matching(pattern).unwrap_err();
        assert!(
            matches!(refused("h.*.mpl"), Error::UnknownSite { nearest, .. } if nearest.contains(&"h.0.mlp".to_owned()))
        );
        assert!(matches!(refused("h.*.mlp.gate_proj"), Error::AbsentSite { .. }));
        assert!(matches!(refused("h.2"), Error::UnknownSite { .. }));
    }
}
