//! Files of Jacobian lenses, as TransformerLens 4.3 and the reference implementation read and write them.
//!
//! ```
//! use transformer_utils::{jacobian_lens, lens::JacobianFit, lowmem::Dtype, prelude::*};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let config = Config::from_json(r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#)?;
//! # let model = Model::random(config, 0)?;
//! # let temporary = tempfile::tempdir()?;
//! # let path = temporary.path().join("lens.pt");
//! let mut fit = JacobianFit::new(&model)?.skip_first(2);
//! fit.add(&[5, 9, 3, 7, 1, 2])?;
//! jacobian_lens::save(&path, &fit.finish()?, Dtype::F16)?;
//! let jacobian = jacobian_lens::open(&path)?;
//! assert_eq!((jacobian.texts(), jacobian.layers().collect()), (1, vec![0]));
//! # Ok(())
//! # }
//! ```

use std::path::{Path, PathBuf};

use lens::JacobianLens;
use lowmem::{Checkpoint, Dtype, LoadOptions, bin_settings, save_numbered_bin};

/// What can go wrong between a file and a Jacobian lens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] lowmem::Error),
    /// What is in it makes no Jacobian lens.
    #[error("{path}: {source}")]
    Lens {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: lens::Error,
    },
}

/// Reads a Jacobian lens, or the sums that a fit notes down on its way. The matrices are views of a mapping of their file where their
/// dtype is one that runs on a CPU.
///
/// # Errors
///
/// [`Error::File`] where it cannot be read, [`Error::Lens`] where it is something else.
pub fn open(path: impl AsRef<Path>) -> Result<JacobianLens, Error> {
    let path = path.as_ref();
    let tensors = Checkpoint::open(path)?.tensors(&LoadOptions::default())?;
    let settings = bin_settings(path)?;
    JacobianLens::from_tensors(&settings, tensors).map_err(|source| Error::Lens { path: path.to_owned(), source })
}

/// Writes a Jacobian lens with its matrices in `dtype`; published ones have f16.
///
/// # Errors
///
/// [`Error::File`], and [`Error::Lens`] where memory runs out.
pub fn save(path: impl AsRef<Path>, lens: &JacobianLens, dtype: Dtype) -> Result<(), Error> {
    let path = path.as_ref();
    let tensors = lens.tensors(dtype.kind()).map_err(|source| Error::Lens { path: path.to_owned(), source })?;
    Ok(save_numbered_bin(path, JacobianLens::NAME, &tensors, &lens.settings())?)
}
