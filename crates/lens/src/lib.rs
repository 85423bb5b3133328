//! The logit lens: what every layer already believes, as tensors, tables and pictures.
//!
//! A [`Table`] is plain data. The renderers see nothing else, and touch no files: they return text or bytes.

mod color;
mod compare;
pub mod csv;
mod decoder;
mod error;
#[cfg(feature = "plot")]
mod fonts;
mod lens;
mod measure;
#[cfg(feature = "plot")]
pub mod picture;
mod rows;
mod scale;
mod table;
pub mod terminal;
mod token_text;
mod unembed;
mod view;

#[cfg(test)]
mod fixture;

pub use crate::{
    color::ColorDepth,
    compare::{Comparison, compare},
    decoder::DEFAULT_DECODER,
    error::{Error, Result},
    lens::{Lens, LensOptions},
    measure::Measure,
    rows::RowOptions,
    table::{Prediction, Row, SCHEMA, Table, TableError, Token, TopK},
    token_text::{display_token, token_bytes_from_text, token_text_from_bytes},
    view::View,
};
