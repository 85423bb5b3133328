//! Load a model that barely fits, take activations from any part of it without running the rest, and look through the
//! logit lens: nostalgebraist's transformer-utils, in Rust on libtorch.
//!
//! This crate re-exports four, each usable by itself: [`lowmem`] finds and places weights, [`models`] runs them,
//! [`partial`] reads and changes activations, [`lens`] decodes them.
//!
//! ```
//! use transformer_utils::prelude::*;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let config = Config::from_json(r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#)?;
//! # let model = Model::random(config, 0)?;
//! // let model = Model::open(&Checkpoint::open("gpt2-xl")?, &LoadOptions::default())?;
//! let output = partial_forward(&model, &["h.0", "h.1.attn.c_attn"], &Input::from_rows(&[[1, 2, 3]])?)?;
//! assert_eq!(output.get("h.0")?.size(), [1, 3, 8]); // [batch, position, d_model]
//! # Ok(())
//! # }
//! ```

/// Runs the guide's snippets as tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/activations.md")]
struct ActivationsGuide;

pub use lens;
pub use lowmem;
pub use lowmem::{cuda_if_available, prepare_libtorch};
pub use models;
pub use partial;
pub use tch;

#[cfg(feature = "text")]
pub mod text;
pub mod tuned_lens;

/// The names most programs need.
pub mod prelude {
    pub use lowmem::{Checkpoint, LoadOptions, Residency, cuda_if_available};
    pub use models::{Config, Input, KvCache, Model, Observer, Site};
    pub use partial::{Activations, Edit, Run, partial_forward};
}
