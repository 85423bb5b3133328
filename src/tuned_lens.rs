//! Folders of the tuned-lens package: `config.json` and `params.pt`.
//!
//! ```
//! use transformer_utils::{lens::{TunedLens, TunedLensConfig}, prelude::*, tuned_lens};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let config = Config::from_json(r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#)?;
//! # let model = Model::random(config, 0)?;
//! # let temporary = tempfile::tempdir()?;
//! # let folder = temporary.path();
//! let zeros = TunedLens::identity(TunedLensConfig::of("gpt2", &model)?, model.parts().device())?;
//! tuned_lens::save(folder, &zeros)?;
//! let tuned = tuned_lens::open(folder)?;
//! assert_eq!(tuned.layers(), 2);
//! # Ok(())
//! # }
//! ```

use std::{
    io,
    path::{Path, PathBuf},
};

use lens::{TunedLens, TunedLensConfig};
use lowmem::{Checkpoint, LoadOptions};

const CONFIG: &str = "config.json";
const PARAMETERS: &str = "params.pt";

/// What can go wrong between a folder and a tuned lens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The translators' file is at fault.
    #[error(transparent)]
    File(#[from] lowmem::Error),
    /// The files do not make a tuned lens.
    #[error("{folder}: {source}")]
    Lens {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it.
        source: lens::Error,
    },
}

/// Reads a tuned lens. The translators are views of a mapping of their file; nothing is copied.
///
/// # Errors
///
/// [`Error::Io`] where a file is missing, [`Error::File`] where `params.pt` cannot be read, [`Error::Lens`] where the two
/// files disagree.
pub fn open(folder: impl AsRef<Path>) -> Result<TunedLens, Error> {
    let folder = folder.as_ref();
    let refused = |source| Error::Lens { folder: folder.to_owned(), source };
    let path = folder.join(CONFIG);
    let config = std::fs::read_to_string(&path).map_err(|source| Error::Io { path, source })?;
    let config = TunedLensConfig::from_json(&config).map_err(refused)?;
    let tensors = Checkpoint::open(folder.join(PARAMETERS))?.tensors(&LoadOptions::default())?;
    TunedLens::from_tensors(config, tensors).map_err(refused)
}

/// Writes a tuned lens as the tuned-lens package does. The folder is made if it is not there; its parent must be.
///
/// # Errors
///
/// [`Error::Io`], [`Error::File`].
pub fn save(folder: impl AsRef<Path>, lens: &TunedLens) -> Result<(), Error> {
    let folder = folder.as_ref();
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    };
    if !folder.is_dir() {
        std::fs::create_dir(folder).map_err(io(folder))?;
    }
    lowmem::save_bin(&folder.join(PARAMETERS), &lens.tensors())?;
    let config = lens.config().to_json().map_err(|source| Error::Lens { folder: folder.to_owned(), source })?;
    let path = folder.join(CONFIG);
    std::fs::write(&path, config + "\n").map_err(io(&path))
}
