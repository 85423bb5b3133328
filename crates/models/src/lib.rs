//! Decoder-only language models of many families as one decoder with named sites and an observer.
//!
//! [`Model::open`] reads a checkpoint's `config.json` and the headers of its weights; [`Model::forward`] runs it and shows
//! every [`Site`] on the way to an [`Observer`], which may let the run continue, stop it or replace the value. The decoder runs
//! an [`Architecture`]: embedding, layers, final norm, head, as data. A [`Family`] is data, too: how its config becomes an
//! architecture, how its tensors are named and which way its matrices lie, which Hugging Face modules a site answers to.
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
mod architecture;
mod as_site;
mod attend;
mod cache;
mod config;
mod decoder;
mod directions;
mod error;
mod factor;
mod families;
mod generate;
mod generate_options;
mod generated;
mod gguf;
mod input;
mod linear;
mod model;
mod names;
mod norm;
mod numerics;
mod observer;
mod prefix;
mod products;
mod prompt;
mod random;
mod resumed;
mod rotary;
mod row;
mod sampling;
mod site;
mod sites_matching;
mod stopping;
mod tokens;
mod unembedding;
mod weights;

pub use activation::Activation;
pub use architecture::{
    Architecture, Attention, Bounds, Embedding, Experts, Gate, Head, Layer, LearnedPositions, Masking, Mlp, Norm,
    NormKind, NormOver, Norms, Projections, QueryKeyNorm, Residual, Routing,
};
pub use as_site::{AsSite, SiteRef};
pub use cache::{CacheLayout, KvCache};
pub use config::{Config, Initial};
pub use decoder::Outcome;
pub use directions::Half;
pub use error::{Error, Result};
pub use factor::Factor;
pub use families::{Family, Layout};
pub use generate::{NewToken, generate, generate_observed};
pub use generate_options::{GenerateOptions, StopWhen};
pub use generated::{Ending, Generated, GeneratedRow};
pub use input::{Input, LogitsAt};
pub use lowmem::{first_line, prepare_libtorch};
pub use model::{Model, Tail};
pub use names::{Axis, Dimension, SiteInfo, Sites, Values};
pub use numerics::Numerics;
pub use observer::{Action, NoObserver, Observer, ObserverError};
pub use prefix::Prefix;
pub use products::{Library, Products};
pub use prompt::Prompt;
pub use random::Random;
pub use rotary::{Rotary, RotaryModule, RotaryPairs, RotaryScaling};
pub use sampling::Sampling;
pub use site::{Point, Site, Stage};
pub use tokens::{Tokens, TokensError};
pub use unembedding::Unembedding;
