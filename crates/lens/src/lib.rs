//! The logit lens: what every layer already believes, as tensors, tables and pictures.
//!
//! A [`Table`] is plain data. The renderers see nothing else, and touch no files: they return text or bytes.

mod color;
mod compare;
pub mod csv;
#[cfg(feature = "plot")]
mod fonts;
#[cfg(feature = "plot")]
pub mod html;
mod measure;
#[cfg(feature = "plot")]
pub mod picture;
mod scale;
mod table;
pub mod terminal;
mod token_text;
mod view;

#[cfg(test)]
mod fixture;

pub use crate::{
    color::ColorDepth,
    compare::{Comparison, compare},
    measure::Measure,
    table::{Prediction, Row, SCHEMA, Table, TableError, Token, TopK},
    token_text::{display_token, token_bytes_from_text, token_text_from_bytes},
    view::View,
};
