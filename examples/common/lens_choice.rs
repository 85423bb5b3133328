//! What stands between streams and the final norm: `--lens`.

use std::{path::PathBuf, str::FromStr};

use anyhow::Result;
use serde::Serialize;
use transformer_utils::{jacobian_lens, lens::FittedLens, tuned_lens};

/// The value of `--lens`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub enum LensChoice {
    /// Nothing.
    #[default]
    Logit,
    /// Translators in a folder.
    Tuned(PathBuf),
    /// Matrices in a file.
    Jacobian(PathBuf),
}

impl FromStr for LensChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "logit" => Ok(Self::Logit),
            Some(("tuned", folder)) if !folder.is_empty() => Ok(Self::Tuned(folder.into())),
            Some(("jacobian", file)) if !file.is_empty() => Ok(Self::Jacobian(file.into())),
            _ => Err("expected logit, tuned:DIR or jacobian:FILE".into()),
        }
    }
}

impl LensChoice {
    /// Reads the maps; none for the logit lens.
    pub fn open(&self) -> Result<Option<FittedLens>> {
        Ok(match self {
            Self::Logit => None,
            Self::Tuned(folder) => Some(tuned_lens::open(folder)?.into()),
            Self::Jacobian(file) => Some(jacobian_lens::open(file)?.into()),
        })
    }
}
