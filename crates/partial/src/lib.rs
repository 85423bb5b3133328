//! Take activations from any part of a model without running, or reading, the rest.
//!
//! [`TakeActivations::activations`], a method of the model, or [`partial_forward`], which does the same, is the whole of it for
//! most people: names in, tensors out, and the run ends at the deepest name.
//! [`Run`] adds edits, a start in the middle, a slice of positions and a place to put the captures; [`Generation`] continues texts
//! under the same edits. [`Patching`] puts values of one run into another, place by place, and says what that does to a [`Metric`].
//!
//! ```
//! use models::{Config, Input, Model};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::from_json(r#"{"model_type": "gpt2", "n_layer": 12, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#)?;
//! let model = Model::random(config, 0)?;
//! let output = partial::partial_forward(
//!     &model,
//!     &[
//!         "h.0",             // output of the first block
//!         "h.2.attn.c_attn", // queries, keys and values of the third
//!         "h.5.mlp.c_proj",  // what the sixth block's MLP adds
//!     ],
//!     &Input::from_rows(&[[1, 2, 3]])?,
//! )?;
//! assert_eq!(output.get("h.0")?.size(), [1, 3, 8]); // [batch, position, d_model]
//! assert_eq!(output.get("h.2.attn.c_attn")?.size(), [1, 3, 24]);
//! assert_eq!(output.blocks_run(), 6); // of 12
//! # Ok(())
//! # }
//! ```

mod activations;
mod adamw;
mod apply;
mod attribution;
mod correlation;
mod edit;
mod editor;
mod effects;
mod error;
mod generation;
mod metric;
mod patch;
mod plan;
pub mod probe;
mod reading;
mod run;

pub use activations::Activations;
pub use adamw::{AdamW, AdamWOptions};
pub use attribution::{AttributionPatching, DirectLogitAttribution, Estimated, InputAttribution};
pub use correlation::Correlation;
pub use edit::Edit;
pub use effects::{Columns, Effects};
pub use error::{Error, Result};
pub use generation::{Continuation, Generation};
pub use metric::Metric;
pub use patch::{Direction, Patch, PatchProgress, PatchReport, Patched, Patching};
pub use plan::Plan;
pub use run::{Run, TakeActivations, partial_forward};
