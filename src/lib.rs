//! Load a model that barely fits, take activations from any part of it without running the rest, and look through the
//! logit lens: nostalgebraist's transformer-utils, in Rust on libtorch.
//!
//! A model by its name: a folder, a weight file, a GGUF file, or a repository of the Hugging Face Hub such as `gpt2`. Nothing is
//! read of the weights until something needs them.
//!
//! ```
//! use transformer_utils::prelude::*;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::load("assets/tiny-gpt2")?;
//! assert_eq!(model.config().layers(), 8);
//! # Ok(())
//! # }
//! ```
//!
//! What it says of the next token, at every position of a text:
//!
//! ```
//! # use transformer_utils::prelude::*;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let model = Model::load("assets/tiny-gpt2")?;
//! let logits = model.logits("Emma was very")?; // or token ids: [1, 2, 3], a vector, rows of them
//! assert_eq!(logits.size(), [1, 3, 4096]); // [batch, position, vocabulary]
//! # Ok(())
//! # }
//! ```
//!
//! How it goes on:
//!
//! ```
//! # use transformer_utils::prelude::*;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let model = Model::load("assets/tiny-gpt2")?;
//! let generated = model.generate("Emma was very", &GenerateOptions::default().max_new_tokens(8))?;
//! println!("{generated}");
//! # assert!(generated.to_string().starts_with("Emma was very "));
//! # Ok(())
//! # }
//! ```
//!
//! What every layer already believes, drawn as text:
//!
//! ```
//! # use transformer_utils::prelude::*;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let model = Model::load("assets/tiny-gpt2")?;
//! let table = Lens::new(&model, LensOptions::default())?.of("Emma was very")?;
//! println!("{table}");
//! # assert!(table.to_string().contains("Emma"));
//! # Ok(())
//! # }
//! ```
//!
//! Activations from any part, without running the rest:
//!
//! ```
//! # use transformer_utils::prelude::*;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let model = Model::load("assets/tiny-gpt2")?;
//! let output = model.activations("Emma was very", ["h.3", "h.2.attn.pattern"])?;
//! assert_eq!(output.get("h.3")?.size(), [1, 3, 160]); // [batch, position, d_model]
//! assert_eq!(output.blocks_run(), 4); // of 8
//! # Ok(())
//! # }
//! ```
//!
//! This crate re-exports four, each usable by itself: [`lowmem`] finds and places weights, [`models`] runs them,
//! [`partial`] reads and changes activations, [`lens`] decodes them. What needs several of them is here: [`load`], `corpus` for the
//! activations of many texts, [`edits`] for those that people type, [`tuned_lens`] for folders of the tuned-lens package, [`jacobian_lens`] for files that TransformerLens
//! reads, too.

/// Runs the tutorial's snippet as a test.
#[cfg(all(doctest, feature = "text"))]
#[doc = include_str!("../docs/tutorial.md")]
struct Tutorial;

/// Runs the guide's snippets as tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/activations.md")]
struct ActivationsGuide;

/// Runs the snippet of the page about corpora as a test.
#[cfg(all(doctest, feature = "corpus", feature = "text"))]
#[doc = include_str!("../docs/corpora.md")]
struct CorporaGuide;

/// Runs the snippet of the page about patching as a test.
#[cfg(all(doctest, feature = "text"))]
#[doc = include_str!("../docs/patching.md")]
struct PatchingGuide;

/// Runs the snippets of the front page as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct FrontPage;

pub use lens;
pub use lowmem;
pub use lowmem::{cuda_if_available, prepare_libtorch};
pub use models;
pub use partial;
pub use tch;

#[cfg(feature = "corpus")]
pub mod corpus;
pub mod edits;
pub mod jacobian_lens;
pub mod load;
#[cfg(feature = "text")]
pub mod text;
pub mod tuned_lens;

/// The names most programs need.
pub mod prelude {
    pub use crate::load::{LoadModel, Loader};
    pub use lens::{Lens, LensOptions, Measure};
    pub use lowmem::{Checkpoint, LoadOptions, Residency, cuda_if_available};
    pub use models::{Config, GenerateOptions, Input, KvCache, Model, Observer, Point, Site};
    pub use partial::{Activations, Edit, Generation, Metric, Patch, Patching, Run, TakeActivations, partial_forward};
}
