//! Find a checkpoint, index it without reading the weights, and place its tensors in the memory of the weights.
//!
//! [`Checkpoint::open`] reads headers only. [`Parts`] then hands out tensors group by group, each placed when it is first
//! asked for: as a view of a private mapping of the file ([`Residency::Mapped`]: nothing is copied), converted or moved
//! and then kept ([`Residency::Resident`]), or placed for one use and dropped ([`Residency::Streamed`]). Whatever is never
//! asked for is never read. This crate does not know what a network is.
//!
//! ```
//! use lowmem::{Checkpoint, LoadOptions, PartRequest, Parts, TensorRequest};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("model.safetensors");
//! let weight = tch::Tensor::f_arange(6, (tch::Kind::Float, tch::Device::Cpu))?.f_view([2, 3])?;
//! lowmem::save_safetensors(&path, &[("wte.weight".to_owned(), weight)])?;
//!
//! let checkpoint = Checkpoint::open(&path)?;
//! let part = PartRequest { label: "embedding".into(), tensors: vec![TensorRequest::new("wte.weight", [2, 3])] };
//! let parts = Parts::new(&checkpoint, vec![part], &LoadOptions::default())?;
//! let tensors = parts.get(0, None)?; // the first byte of a weight is touched after this
//! assert_eq!(tensors[0].f_double_value(&[1, 2])?, 5.0);
//! # Ok(())
//! # }
//! ```

mod ahead;
mod bin_file;
mod cache;
mod checkpoint;
mod choose;
mod compare;
mod cuda;
mod dataset;
mod decode;
mod dtype;
mod error;
mod files;
mod find;
pub mod gguf;
#[cfg(feature = "hub")]
mod hub;
mod index;
mod libtorch;
mod memory;
mod options;
mod packed;
mod parts;
mod pickle;
mod place;
mod place_error;
mod prefetch;
mod progress;
mod read;
mod recipe;
mod report;
mod rows;
mod safetensors_file;
mod save;
mod settings;
mod source;
mod team;
mod write;

pub use checkpoint::Checkpoint;
pub use cuda::{CudaLibrary, cuda_if_available, cuda_library, libtorch_folder};
pub use dataset::Dataset;
pub use dtype::Dtype;
pub use error::{Error, Result, first_line, nearest};
pub use index::{Index, TensorInfo, WeightFile};
pub use libtorch::prepare_libtorch;
pub use memory::available_memory;
pub use options::{DtypeChoice, ExtraTensors, LoadOptions, Residency};
pub use packed::PackedMatrix;
pub use parts::{Held, PartRequest, Parts, Slice, TensorRequest};
pub use progress::{NoProgress, Progress};
pub use recipe::{Encoding, Recipe, Spelled, Step};
pub use report::LoadReport;
pub use rows::{matrix_times_vector, numbers_of, rows_times_vectors, sums_of_rows, tensor_of};
pub use save::{save_bin, save_numbered_bin, save_safetensors};
pub use settings::bin_settings;
pub use source::{HubOptions, Source};
pub use write::{write_file, write_whole};
