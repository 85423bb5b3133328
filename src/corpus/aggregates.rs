//! What a corpus has on average, rather than all of it.

mod join;
mod sums;

use std::path::Path;

pub(super) use join::join;

use sums::Sums;

use super::{
    error::{Error, Result},
    folder::Folder,
    identity::Identity,
    output::Output,
    sink::{Batch, Piece, Sink, Unit},
    tensor_file::Stored,
};

/// Keeps sums of each unit in the place of its rows, and of all units what follows from them: `aggregates.safetensors`, written when
/// the job is whole, has for a name of `d` values a token
///
/// | tensor | shape | is |
/// |---|---|---|
/// | `NAME.count` | `[]` | tokens |
/// | `NAME.mean`, `NAME.variance` | `[d]`, f64 | of each feature; the variance divides by the count |
/// | `NAME.covariance` | `[d, d]`, f64 | with [`Aggregates::covariance`] |
/// | `NAME.quantiles` | `[q, d]`, f64 | of each feature, at the parts in `quantiles`, `[q]`; to 5 % of the value |
/// | `NAME.norm_mean`, `NAME.norm_quantiles` | `[]`, `[q]`, f64 | of the Euclidean norms of tokens |
/// | `NAME.top_values` | `[k, d]`, f32 | each feature's largest values, with [`Aggregates::top`] |
/// | `NAME.top_unit`, `.top_text`, `.top_position` | `[k, d]`, i64 | whose they are: unit, text in the unit, position in the text |
/// | `NAME.top_context` | `[k, d, 16]`, i64 | the token and those before it in its text; -1 before the first |
///
/// Values of more than one dimension are flattened. Sums are f64 and put together in the order of units, so the result is the same
/// bit for bit for any number of pieces.
#[derive(Debug)]
pub struct Aggregates {
    folder: Folder,
    covariance: bool,
    top: usize,
    widths: Vec<(String, usize)>,
    sums: Vec<Sums>,
}

impl Aggregates {
    /// A folder, which is made if it is not there (its parent must be), or an address such as `s3://bucket/path`.
    ///
    /// # Errors
    ///
    /// [`Error::Address`], [`Error::NeedsFeature`].
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let folder = Folder::new(path.as_ref(), Output::Aggregates)?;
        Ok(Self { folder, covariance: false, top: 0, widths: Vec::new(), sums: Vec::new() })
    }

    /// Whether to keep the covariance of features, whose sums take the square of their number.
    pub fn covariance(mut self, covariance: bool) -> Self {
        self.covariance = covariance;
        self
    }

    /// How many of each feature's largest values to keep with their contexts; 0 by default.
    pub fn top(mut self, top: usize) -> Self {
        self.top = top;
        self
    }

    fn fresh(&self) -> Vec<Sums> {
        self.widths.iter().map(|(name, width)| Sums::new(name, *width, self.covariance, self.top)).collect()
    }
}

impl Sink for Aggregates {
    fn begin(&mut self, job: &Identity, piece: Piece) -> Result<()> {
        self.widths.clear();
        for (name, shape) in job.names.iter().zip(&job.shapes) {
            if shape.iter().any(|&size| size < 0) {
                let problem = format!("{name} has as many values as a text has tokens; there is nothing to sum");
                return Err(Error::Option { option: "names", problem });
            }
            self.widths.push((name.clone(), shape.iter().product::<i64>() as usize));
        }
        let own = self.folder.identity(job).with("covariance", self.covariance).with("top", self.top);
        self.folder.begin(&own, piece)?;
        self.sums = self.fresh();
        Ok(())
    }

    fn is_done(&mut self, unit: usize) -> Result<bool> {
        self.folder.is_done(unit)
    }

    fn take(&mut self, batch: Batch) -> Result<()> {
        for (sums, (name, values)) in self.sums.iter_mut().zip(batch.values()) {
            sums.add(&batch, values).map_err(Error::torch(format!("summing the values of {name}")))?;
        }
        Ok(())
    }

    fn finish(&mut self, unit: &Unit) -> Result<()> {
        let fresh = self.fresh();
        let mut tensors: Vec<Stored> = Vec::new();
        for sums in std::mem::replace(&mut self.sums, fresh) {
            let name = sums.name().to_owned();
            tensors.extend(sums.stored().map_err(Error::torch(format!("summing the values of {name}")))?);
        }
        self.folder.write_tensors(unit, false, tensors)
    }

    fn end(&mut self) -> Result<()> {
        self.folder.end()
    }
}
