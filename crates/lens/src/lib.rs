//! The logit lens: what every layer already believes, as tensors, tables and pictures.
//!
//! A [`Table`] is plain data. The renderers see nothing else, and touch no files: they return text or bytes. Each is a
//! module, named after what comes out: [`terminal`], [`csv`](mod@csv), and with the feature `plot` `picture` (SVG and
//! PNG) and `html`. [`compare`] makes of two tables a [`Comparison`], which the same renderers draw.
//!
//! ```
//! use lens::{Measure, Row, Table, Token, terminal};
//!
//! # fn main() -> Result<(), lens::TableError> {
//! let table = Table {
//!     model: "tiny".into(),
//!     dtype: "f32".into(),
//!     measures: vec![Measure::Probs],
//!     tokens: vec![Token { id: 464, text: "The".into() }, Token { id: 6766, text: " sky".into() }],
//!     positions: vec![0],
//!     rows: vec![Row {
//!         name: "h.0".into(),
//!         top1: vec![6766],
//!         top1_text: vec![" sky".into()],
//!         values: [(Measure::Probs, vec![0.75])].into(),
//!         top_k: None,
//!     }],
//! };
//! assert_eq!(Table::from_json(&table.to_json()?)?, table);
//! assert_eq!(table.predictions()[0].right, Some(true));
//! let text = terminal::render(&table, &Measure::Probs, &terminal::TerminalStyle::default())?;
//! assert!(text.contains("·sky"));
//! # Ok(())
//! # }
//! ```

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
