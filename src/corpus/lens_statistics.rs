//! The lens over a corpus: what layers believe on average.

mod join;
mod sums;

use std::path::Path;

use lens::{FittedLens, Lens, LensOptions, Readout};
use models::{Model, Site};
use tch::{Device, Kind, TchError, Tensor};

pub use join::{CalibrationBin, LayerStatistics, LensSummary};
pub(super) use join::{FILES, join};

use sums::Sums;

use super::{
    error::{Error, Result},
    folder::Folder,
    identity::{Identity, hash},
    output::Output,
    sink::{Batch, Piece, Sink, Unit},
};

/// The lens over a corpus, logit, tuned or Jacobian: decodes the residual streams of each batch, keeps sums of each unit, and of all units what follows
/// from them. When the job is whole, the folder has `lens.json` ([`LensSummary`] says what is in it) and, in a build with the
/// feature `plot`, two charts of it over the layers, `lens-nats.svg` and `lens-parts.svg`.
///
/// The job captures the streams that are decoded, each `[tokens, d_model]`, and the last one, which they are measured against
/// ([`LensStatistics::names`] adds it), all in the dtype of the run ([`Job::store`](super::Job::store) with `None`). What is decoded is
/// the same as by [`lens::Lens`], and with the same code ([`lens::Readout`]).
///
/// Sums are f64 and put together in the order of units, so the result is the same bit for bit for any number of pieces.
///
/// ```
/// use transformer_utils::{corpus::{Corpus, Job, LensStatistics, LensSummary}, prelude::*};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let out = folder.path().join("lens");
/// let model = Model::load("assets/tiny-gpt2")?;
/// let mut sink = LensStatistics::create(&out, &model)?;
/// let names = sink.names(&["h.1", "h.5"])?; // and h.7, the last
/// let corpus = Corpus::from_texts(["Emma was very", "happy with her friend"]);
/// Job::new(&model, corpus).names(&names)?.store(None).run(&mut sink)?;
///
/// let summary = LensSummary::read(&out)?;
/// let kl = |layer: usize| summary.layers[layer].kl.unwrap_or(f64::NAN);
/// assert!(kl(0) > kl(1) && kl(2) < 1e-6); // the last stream is what the model says
/// # Ok(())
/// # }
/// ```
pub struct LensStatistics<'a> {
    folder: Folder,
    model: &'a Model,
    /// From the first batch on: a job with nothing to do needs no unembedding.
    readout: Option<Readout>,
    /// Until then: what stands between the streams and the final norm.
    fitted: Option<FittedLens>,
    memory: u64,
    names: Vec<String>,
    /// Which of the names is the last stream's.
    last: usize,
    sums: Vec<Sums>,
}

impl<'a> LensStatistics<'a> {
    /// A folder, which is made if it is not there (its parent must be), or an address such as `s3://bucket/path`; and the model whose
    /// streams will come.
    ///
    /// # Errors
    ///
    /// [`Error::Address`], [`Error::NeedsFeature`].
    pub fn create(path: impl AsRef<Path>, model: &'a Model) -> Result<Self> {
        let folder = Folder::new(path.as_ref(), Output::Lens)?;
        let memory = LensOptions::default().memory;
        let (names, sums) = (Vec::new(), Vec::new());
        Ok(Self { folder, model, readout: None, fitted: None, memory, names, last: 0, sums })
    }

    /// Looks through a tuned or a Jacobian lens, as [`Lens::fitted`] does. The job is another one for other maps.
    ///
    /// # Errors
    ///
    /// [`Error::Lens`] where it was made for another model.
    pub fn fitted(mut self, fitted: impl Into<FittedLens>) -> Result<Self> {
        let fitted = fitted.into();
        fitted.check(self.model)?;
        self.fitted = Some(fitted);
        Ok(self)
    }

    /// Bytes that temporary results may take, as [`LensOptions::memory`]; the numbers do not depend on it but for rounding.
    pub fn memory(mut self, memory: u64) -> Self {
        self.memory = memory;
        self
    }

    /// What a job has to capture: the names that are given, or where none is, the rows of a [`Lens`] (`input` and every block); with the
    /// last stream behind, if it is not among them.
    ///
    /// # Errors
    ///
    /// Unknown names; [`Error::Lens`].
    pub fn names(&self, chosen: &[impl AsRef<str>]) -> Result<Vec<String>> {
        let model = self.model;
        let mut names: Vec<String> = chosen.iter().map(|name| name.as_ref().to_owned()).collect();
        if names.is_empty() {
            let mut lens = Lens::new(model, LensOptions::default())?;
            if let Some(fitted) = &self.fitted {
                lens = lens.fitted(fitted)?;
            }
            names.extend(lens.row_names().map(str::to_owned));
        }
        let last = last_stream(model);
        let mut has_last = false;
        for name in &names {
            has_last |= find(model, name)? == last;
        }
        if !has_last {
            names.push(last.to_string());
        }
        Ok(names)
    }

    /// What there is to do as this output knows it.
    fn identity(&self, job: &Identity) -> Result<Identity> {
        let identity = self.folder.identity(job);
        let Some(fitted) = &self.fitted else { return Ok(identity) };
        let numbers = |tensor: &Tensor| {
            let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
            let mut numbers = vec![0.0_f32; tensor.numel()];
            tensor.f_copy_data(&mut numbers, tensor.numel())?;
            Ok(hash(numbers.into_iter().flat_map(f32::to_le_bytes)))
        };
        let mut maps = String::new();
        for (name, tensor) in fitted.tensors() {
            let found: std::result::Result<String, TchError> = numbers(&tensor);
            let found = found.map_err(|source| lens::Error::Torch { at: "reading a lens", source })?;
            maps.extend([name, found]);
        }
        Ok(identity.with(LENS, fitted.name()).with(MAPS, hash(maps.into_bytes())))
    }

    fn readout(&mut self) -> Result<Readout> {
        let readout = Readout::new(self.model)?.memory(self.memory);
        let Some(fitted) = self.fitted.take() else { return Ok(readout) };
        let sites = self.names.iter().map(|name| find(self.model, name)).collect::<Result<Vec<_>>>()?;
        Ok(readout.fitted(self.model, fitted, &sites)?)
    }

    fn fresh(&self) -> Vec<Sums> {
        self.names.iter().map(|_| Sums::default()).collect()
    }
}

/// Fields of `job.json`, where the lens is not the logit lens: which it is, and a hash of its maps.
const LENS: &str = "lens";
const MAPS: &str = "maps";

/// What the final norm reads.
fn last_stream(model: &Model) -> Site {
    Site::before_block(model.config().layers())
}

fn find(model: &Model, name: &str) -> Result<Site> {
    Ok(model.sites().find(name).map_err(partial::Error::from)?)
}

impl Sink for LensStatistics<'_> {
    fn begin(&mut self, job: &Identity, piece: Piece) -> Result<()> {
        let refuse = |option, problem| Err(Error::Option { option, problem });
        let (own, width) = (self.model.parts().dtype().to_string(), self.model.architecture().d_model);
        if job.fields.get("store").and_then(serde_json::Value::as_str).is_some_and(|store| store != own) {
            let problem = format!("the lens reads streams as the run computes them, in {own}; leave it out");
            return refuse("store", problem);
        }
        let mut last = None;
        for (place, (name, shape)) in job.names.iter().zip(&job.shapes).enumerate() {
            if *shape != [width] {
                let problem =
                    format!("{name} is no residual stream: it has {shape:?} values a token, a stream {width}");
                return refuse("names", problem);
            }
            if find(self.model, name)? == last_stream(self.model) {
                last = last.or(Some(place));
            }
        }
        let Some(last) = last else {
            let problem = format!("the lens needs the last stream, {}, to measure against", last_stream(self.model));
            return refuse("names", problem);
        };
        self.folder.begin(&self.identity(job)?, piece)?;
        self.names.clone_from(&job.names);
        self.last = last;
        self.sums = self.fresh();
        Ok(())
    }

    fn is_done(&mut self, unit: usize) -> Result<bool> {
        self.folder.is_done(unit)
    }

    fn take(&mut self, batch: Batch) -> Result<()> {
        let readout = match self.readout.take() {
            Some(readout) => readout,
            None => self.readout()?,
        };
        let streams: Vec<Tensor> = batch.values().map(|(_, values)| values.shallow_clone()).collect();
        if let Some(last) = streams.get(self.last) {
            let found = readout.measure(&streams, last, batch.next_ids())?;
            self.sums.iter_mut().zip(&found).for_each(|(sums, found)| sums.add(found, batch.next_ids()));
        }
        self.readout = Some(readout);
        Ok(())
    }

    fn finish(&mut self, unit: &Unit) -> Result<()> {
        let fresh = self.fresh();
        let sums = std::mem::replace(&mut self.sums, fresh);
        let tensors = self.names.iter().zip(&sums).flat_map(|(name, sums)| sums.stored(name)).collect();
        self.folder.write_tensors(unit, false, tensors)
    }

    fn end(&mut self) -> Result<()> {
        self.folder.end()
    }
}
