//! Why a picture could not be drawn.

use crate::table_error::TableError;

/// Why a picture could not be drawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PictureError {
    /// The table does not have what was asked for.
    #[error(transparent)]
    Table(#[from] TableError),
    /// No measure was asked for.
    #[error("no measure to draw")]
    NoMeasure,
    /// The drawing library refused.
    #[error("the picture cannot be drawn: {reason}")]
    Drawing {
        /// What it said.
        reason: String,
    },
    /// The SVG cannot be read back to rasterise it.
    #[error("the picture cannot be rasterised: {source}")]
    Svg {
        /// What is wrong with it.
        #[from]
        source: resvg::usvg::Error,
    },
    /// A page of so many pixels cannot be allocated.
    #[error("a page of {width} x {height} pixels is too large")]
    TooLarge {
        /// The width in pixels.
        width: u32,
        /// The height in pixels.
        height: u32,
    },
    /// The PNG encoder refused.
    #[error("the page cannot be written as PNG: {reason}")]
    Png {
        /// What it said.
        reason: String,
    },
    /// The HTML template is broken.
    #[error("the page cannot be written as HTML: {source}")]
    Template {
        /// What is wrong with it.
        #[from]
        source: minijinja::Error,
    },
}
