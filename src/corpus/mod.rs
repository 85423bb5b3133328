//! Activations of whole corpora: texts in, batches of like length, a run, a sink.
//!
//! ```
//! use transformer_utils::{corpus::{Corpus, Job, Safetensors}, prelude::*};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let (texts, out) = (folder.path().join("texts.jsonl"), folder.path().join("activations"));
//! # std::fs::write(&texts, "\"Emma was very\"\n{\"id\": \"second\", \"text\": \"happy\"}\n")?;
//! let model = Model::load("assets/tiny-gpt2")?;
//! let job = Job::new(&model, Corpus::open(&texts)?).names(["h.3", "h.5.attn.z"])?;
//! let report = job.run(&mut Safetensors::create(&out)?)?;
//! println!("{:.0} tokens a second", report.tokens_per_second());
//! # assert_eq!(report.texts, 2);
//! # assert!(out.join("manifest.json").is_file());
//! # Ok(())
//! # }
//! ```
//!
//! A corpus is a list of *units*: some texts that lie together, about as many as make a file of the wanted size. What a unit holds follows
//! from the inputs' sizes alone, and what is written of it from the unit, the model and the options. So the work can be done in any
//! number of pieces ([`Job::piece`]), in any order, on any machines, with the same bytes as a result; a piece that is started again
//! does the units whose files are not there; and [`merge`] sees whether all are.

mod aggregates;
#[allow(clippy::module_inception)]
mod corpus;
mod error;
mod folder;
mod format;
mod gather;
mod hub_input;
mod identity;
mod job;
mod lens_statistics;
mod merge;
mod object;
mod output;
mod parquet_input;
mod parquet_output;
mod place;
mod plan;
mod record;
mod records;
mod safetensors;
mod sink;
mod tensor_file;

pub use aggregates::Aggregates;
pub use corpus::Corpus;
pub use error::{Error, Result};
pub use identity::Identity;
pub use job::{Job, Progress, Report};
pub use lens_statistics::{CalibrationBin, LayerStatistics, LensStatistics, LensSummary};
pub use merge::{Merged, merge};
#[cfg(feature = "parquet")]
pub use parquet_output::Parquet;
pub use safetensors::Safetensors;
pub use sink::{Batch, Piece, Sink, Text, Unit};
