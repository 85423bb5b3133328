//! The logit lens: what every layer already believes, as tensors, tables and pictures.
//!
//! [`Lens`] runs a model once, takes the residual stream at every row, and decodes it as if it were the model's output
//! ("interpreting GPT: the logit lens", nostalgebraist, 2020). Logits of all rows, positions and tokens never exist
//! together: memory stays within a budget, and everything after the matrix products is computed in f32.
//!
//! A [`Table`] is plain data. The renderers see nothing else, and touch no files: they return text or bytes. Each is a
//! module, named after what comes out: [`terminal`], [`csv`](mod@csv), and with the feature `plot` `picture` (SVG and
//! PNG) and `html`. [`compare`] makes of two tables a [`Comparison`], which the same renderers draw, as they do a [`Grid`], the
//! effects of patches and attributions.
//!
//! ```
//! use lens::{Lens, LensOptions, Measure};
//! use models::{Config, Model};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::from_json(r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#)?;
//! let model = Model::random(config, 0)?;
//! let options = LensOptions::default().measures([Measure::Probs, Measure::Kl]);
//! let table = Lens::new(&model, options)?.table("random", &[1, 2, 3], |id| format!("<{id}>"))?;
//! assert_eq!(table.rows.len(), 3); // input, h.0, h.1
//! assert!(table.rows[2].values[&Measure::Kl][0] < 1e-5); // the last row is the model's own output
//! # Ok(())
//! # }
//! ```

mod attention;
mod color;
mod compare;
pub mod csv;
mod decoder;
mod display;
mod error;
#[cfg(feature = "plot")]
mod fonts;
mod grid;
#[cfg(feature = "plot")]
pub mod html;
mod jacobian;
mod lens;
mod measure;
mod measure_name;
mod options;
#[cfg(feature = "plot")]
pub mod picture;
mod readout;
mod rows;
mod scale;
mod schema;
mod streams;
mod table;
mod table_error;
pub mod terminal;
mod token_text;
mod translators;
mod tuned;
mod tuned_training;
mod unembed;
mod unembedding_hash;
mod view;

#[cfg(test)]
mod fixture;

// What a grid's columns are.
pub use partial::Columns;

pub use crate::{
    attention::{ATTENTION_SCHEMA, Attention, HeadPattern},
    color::ColorDepth,
    compare::{Comparison, compare},
    decoder::DEFAULT_DECODER,
    error::{Error, Result},
    grid::{GRID_SCHEMA, Grid, Shading},
    jacobian::{JacobianFit, JacobianLens},
    lens::{Lens, Prompt},
    measure::Measure,
    options::LensOptions,
    readout::{Readout, StreamReadout},
    rows::RowOptions,
    schema::SCHEMA,
    table::{JACOBIAN, Prediction, Row, TUNED, Table, Token, TopK},
    table_error::TableError,
    token_text::{display_token, token_bytes_from_text, token_text_from_bytes},
    translators::FittedLens,
    tuned::{LENS_TYPE, TunedLens, TunedLensConfig},
    tuned_training::{TrainedStep, TunedLensTraining},
    view::View,
};
