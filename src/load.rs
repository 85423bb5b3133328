//! From a name to a model that reads text.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use lowmem::{Checkpoint, DtypeChoice, ExtraTensors, HubOptions, LoadOptions, Progress, Residency, Source};
use models::{Model, Numerics};
use tch::Device;

#[cfg(feature = "text")]
mod tokens;

/// What can go wrong between a name and a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint cannot be found.
    #[error(transparent)]
    Checkpoint(#[from] lowmem::Error),
    /// The model cannot be opened.
    #[error(transparent)]
    Model(#[from] models::Error),
    /// A revision was asked for of a file or folder.
    #[error(
        "{path} is on this machine, where there is no revision {revision:?}; only models on the Hub have revisions"
    )]
    RevisionOfLocal {
        /// The file or folder.
        path: PathBuf,
        /// What was asked for.
        revision: String,
    },
}

/// Opening a model by what people call it.
pub trait LoadModel: Sized {
    /// Opens a model that reads text: a folder, a weight file, a GGUF file, or a repository of the Hugging Face Hub, as
    /// [`Source::parse`] says. Headers are read and checked; weights are read when they are needed.
    ///
    /// With the feature `text`, the tokenizer beside the weights comes with it ([`Model::tokens`]); it is read when it is first
    /// needed, so an error in it is one of whoever gives text.
    ///
    /// # Errors
    ///
    /// As [`Loader::load`].
    fn load(source: impl TryInto<Source, Error: Into<lowmem::Error>>) -> Result<Self, Error>;

    /// As [`LoadModel::load`], with a choice of how.
    ///
    /// ```
    /// use transformer_utils::{lowmem::Dtype, prelude::*};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let loader = Model::loader("assets/tiny-gpt2").dtype(Dtype::Bf16).residency(Residency::Streamed);
    /// let model = loader.load()?;
    /// assert_eq!(model.parts().dtype(), Dtype::Bf16);
    /// # Ok(())
    /// # }
    /// ```
    fn loader(source: impl TryInto<Source, Error: Into<lowmem::Error>>) -> Loader;
}

impl LoadModel for Model {
    fn load(source: impl TryInto<Source, Error: Into<lowmem::Error>>) -> Result<Self, Error> {
        Self::loader(source).load()
    }

    fn loader(source: impl TryInto<Source, Error: Into<lowmem::Error>>) -> Loader {
        Loader {
            source: source.try_into().map_err(Into::into),
            options: LoadOptions::default(),
            hub: HubOptions::default(),
            numerics: Numerics::FAST,
        }
    }
}

/// A model about to be opened; made by [`LoadModel::loader`].
#[must_use = "a loader does nothing until load is called"]
#[derive(Debug)]
pub struct Loader {
    source: Result<Source, lowmem::Error>,
    options: LoadOptions,
    hub: HubOptions,
    numerics: Numerics,
}

impl Loader {
    /// The dtype to compute in; by default the one on disk, but f32 for f16 on a CPU.
    pub fn dtype(mut self, dtype: impl Into<DtypeChoice>) -> Self {
        self.options.dtype = dtype.into();
        self
    }

    /// Where the weights live; by default mapped where that is possible.
    pub fn residency(mut self, residency: Residency) -> Self {
        self.options.residency = residency;
        self
    }

    /// Where to compute; by default on the CPU.
    pub fn device(mut self, device: Device) -> Self {
        self.options.device = device;
        self
    }

    /// What becomes of tensors that the model does not use; by default [`Model::report`] names them.
    pub fn extra_tensors(mut self, extra_tensors: ExtraTensors) -> Self {
        self.options.extra_tensors = extra_tensors;
        self
    }

    /// How to compute where ways differ in the last bits; by default the fastest.
    pub fn numerics(mut self, numerics: Numerics) -> Self {
        self.numerics = numerics;
        self
    }

    /// The branch, tag or commit of a model on the Hub; by default `main`.
    pub fn revision(mut self, revision: impl Into<String>) -> Self {
        self.hub.revision = Some(revision.into());
        self
    }

    /// Whether to fetch nothing from the Hub, and use its cache on this machine alone.
    pub fn offline(mut self, offline: bool) -> Self {
        self.hub.offline = offline;
        self
    }

    /// Who is told of downloads and of placed weights.
    pub fn progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.options.progress = Arc::clone(&progress);
        self.hub.progress = progress;
        self
    }

    /// All options of placing weights, in the place of those chosen so far.
    pub fn options(mut self, options: LoadOptions) -> Self {
        self.options = options;
        self
    }

    /// All options of the Hub, in the place of those chosen so far.
    pub fn hub_options(mut self, hub: HubOptions) -> Self {
        self.hub = hub;
        self
    }

    /// Finds the checkpoint and opens the model.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] for what is not there, as [`Source::parse`] and [`Checkpoint::find`] say; [`Error::Model`] for what
    /// [`Model::open`] refuses; [`Error::RevisionOfLocal`].
    pub fn load(self) -> Result<Model, Error> {
        let source = self.source?;
        if let (Source::Local(path), Some(revision)) = (&source, &self.hub.revision) {
            return Err(Error::RevisionOfLocal { path: path.clone(), revision: revision.clone() });
        }
        let checkpoint = Checkpoint::find(&source, &self.hub)?;
        let model =
            Model::open(&checkpoint, &self.options)?.with_numerics(self.numerics).with_name(model_name(&source));
        #[cfg(feature = "text")]
        if let Some(tokens) = tokens::of(&checkpoint) {
            return Ok(model.with_tokens(tokens));
        }
        Ok(model)
    }
}

/// What a model is called in titles: its folder's name, or the file's where that says more.
pub fn model_name(source: &Source) -> String {
    let Source::Local(path) = source else { return source.to_string() };
    let full = path.canonicalize().unwrap_or_else(|_| path.clone());
    let gguf = full.extension().is_some_and(|extension| extension == "gguf");
    // Other weight files are all called model.safetensors.
    let named = if full.is_dir() || gguf { Some(full.as_path()) } else { full.parent() };
    let name = named.and_then(if gguf { Path::file_stem } else { Path::file_name });
    name.map_or_else(|| source.to_string(), |name| name.to_string_lossy().into_owned())
}
