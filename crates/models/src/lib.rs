//! GPT-2 and GPT-Neo as one decoder with named sites and an observer.
//!
//! [`Model::open`] reads a checkpoint's `config.json` and the headers of its weights; [`Model::forward`] runs it and shows
//! every [`Site`] on the way to an [`Observer`], which may let the run continue, stop it or replace the value. A family is
//! data ([`Family`]): tensor names, which way matrices lie, which Hugging Face modules a site answers to.
//!
//! ```
//! use models::{Config, Input, Model, NoObserver};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::from_json(r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#)?;
//! let model = Model::random(config, 0)?;
//! let outcome = model.forward(&Input::from_rows(&[[1, 2, 3]])?, &mut NoObserver)?;
//! let logits = outcome.logits.ok_or("the run was stopped")?;
//! assert_eq!(logits.size(), [1, 3, 20]); // [batch, position, vocabulary]
//! # Ok(())
//! # }
//! ```

mod activation;
mod attention;
mod cache;
mod config;
mod decoder;
mod error;
mod factor;
mod family;
mod generate;
mod input;
mod model;
mod numerics;
mod observer;
mod products;
mod random;
mod sampling;
mod site;
mod weights;

pub use activation::Activation;
pub use cache::{CacheLayout, KvCache};
pub use config::{AttentionKind, BlockAttention, Config};
pub use decoder::Outcome;
pub use error::{Error, Result};
pub use factor::Factor;
pub use family::Family;
pub use generate::{Ending, GenerateOptions, Generated, GeneratedRow, NewToken, generate};
pub use input::{Input, LogitsAt};
pub use lowmem::{first_line, prepare_libtorch};
pub use model::{FinalNorm, Model};
pub use numerics::Numerics;
pub use observer::{Action, NoObserver, Observer, ObserverError};
pub use products::{Library, Products};
pub use random::Random;
pub use sampling::Sampling;
pub use site::{Point, Site, SiteInfo, Sites, Stage};
