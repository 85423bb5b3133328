//! Pictures for papers and talks: SVG, and PNG made from it.
//!
//! A picture has one cell for each row and position, with the row's top-1 token in it and the measure as its colour.
//! The tokens that were fed stand along the input's edge, the model's predictions along the output's, with a star
//! where they are right. Long prompts are split into pages. Several measures are stacked as panels.

mod canvas;
mod curves;
mod panel;
mod raster;

use std::ops::Range;

use crate::fonts;
use crate::measure::Measure;
use crate::table_error::TableError;
use crate::token_text::display_token;
use crate::view::{View, evenly};

use canvas::Canvas;
pub use curves::{Curves, curves_png, curves_svg};
use panel::Panel;

/// How a picture looks.
#[derive(Clone, Debug)]
pub struct Style {
    /// The title; `None` for the model's name and dtype.
    pub title: Option<String>,
    /// The input on top and the output at the bottom, instead of the other way round.
    pub top_down: bool,
    /// Light on dark.
    pub dark: bool,
    /// The most columns on a page, at least one; what does not fit follows on more pages of even width.
    pub max_columns: usize,
    /// The width of a cell in pixels; `None` to suit the tokens.
    pub cell_width: Option<u32>,
    /// The height of a cell in pixels.
    pub cell_height: u32,
    /// How many pixels of a PNG make one of the SVG's. Taken as less where a page would have more than
    /// [`MAX_PIXELS`].
    pub pixel_ratio: f32,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            title: None,
            top_down: false,
            dark: false,
            max_columns: 64,
            cell_width: None,
            cell_height: 24,
            pixel_ratio: 2.0,
        }
    }
}

/// The most pixels of a PNG page; four bytes each are needed to draw it.
pub const MAX_PIXELS: u64 = 50_000_000;

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

/// Draws pages as SVG, each with the measures stacked as panels.
///
/// Text stays text; its fonts are not embedded, and a viewer without them uses its own.
///
/// # Errors
///
/// [`PictureError::Table`] for a measure that the table does not have, [`PictureError::NoMeasure`].
pub fn svg<'a>(view: impl Into<View<'a>>, measures: &[Measure], style: &Style) -> Result<Vec<String>, PictureError> {
    let view = view.into();
    if measures.is_empty() {
        return Err(PictureError::NoMeasure);
    }
    let panels = measures.iter().map(|measure| Panel::new(view, measure, style)).collect::<Result<Vec<_>, _>>()?;
    let pages = evenly(view.table().positions.len(), style.max_columns);
    let count = pages.len();
    pages.into_iter().enumerate().map(|(index, columns)| page(view, &panels, style, columns, (index, count))).collect()
}

/// Draws the same pages as PNG, with the fonts that ship inside the program.
///
/// # Errors
///
/// As [`svg`], and [`PictureError::TooLarge`].
pub fn png<'a>(view: impl Into<View<'a>>, measures: &[Measure], style: &Style) -> Result<Vec<Vec<u8>>, PictureError> {
    svg(view, measures, style)?.iter().map(|page| raster::png(page, style.pixel_ratio)).collect()
}

const MARGIN: f64 = 20.0;
const TITLE_SIZE: f64 = 19.0;
const NOTE_SIZE: f64 = 11.0;

fn page(
    view: View<'_>,
    panels: &[Panel<'_>],
    style: &Style,
    columns: Range<usize>,
    (index, count): (usize, usize),
) -> Result<String, PictureError> {
    let title = view.title(style.title.as_deref());
    let number = match (columns.is_empty(), count) {
        (true, _) => "the table is empty".into(),
        (false, 1) => String::new(),
        (false, _) => {
            let positions = &view.table().positions;
            let (first, last) = (positions.get(columns.start), positions.get(columns.end - 1));
            let (first, last) = (first.copied().unwrap_or_default(), last.copied().unwrap_or_default());
            format!("positions {first} to {last} · page {} of {count}", index + 1)
        }
    };
    let mut note = "★ right: the prediction is the next token".to_owned();
    if view.comparison_marks() {
        note.push_str(" · framed: the top token changed");
    }

    let widest = panels.iter().map(|panel| panel.width(columns.len())).fold(0.0, f64::max);
    let inner = [fonts::width(&title, TITLE_SIZE), fonts::width(&number, 12.0), fonts::width(&note, NOTE_SIZE), widest]
        .into_iter()
        .fold(0.0, f64::max);
    let number_height = if number.is_empty() { 0.0 } else { 18.0 };
    let heights: f64 = panels.iter().map(|panel| panel.height(inner)).sum();
    let height = 2.0 * MARGIN + TITLE_SIZE + 10.0 + number_height + heights + 16.0 + NOTE_SIZE;

    let mut canvas = Canvas::new(2.0 * MARGIN + inner, height, style.dark);
    canvas.background();
    let mut top = MARGIN;
    canvas.text_from(&title, (MARGIN, top + TITLE_SIZE / 2.0), TITLE_SIZE, canvas.ink());
    top += TITLE_SIZE + 10.0;
    if !number.is_empty() {
        canvas.text_from(&number, (MARGIN, top + 6.0), 12.0, canvas.muted());
        top += number_height;
    }
    for panel in panels {
        panel.draw(&mut canvas, (MARGIN, top), inner, columns.clone());
        top += panel.height(inner);
    }
    canvas.text_from(&note, (MARGIN, top + 16.0), NOTE_SIZE, canvas.muted());

    let headings: Vec<String> = panels.iter().map(Panel::heading).collect();
    let description = format!("Logit lens of {title}: {}", headings.join("; "));
    canvas.finish(&description)
}

/// A cell's width that suits nineteen tokens in twenty; the others shrink.
fn cell_width(view: View<'_>, style: &Style) -> f64 {
    if let Some(width) = style.cell_width {
        return f64::from(width.max(8));
    }
    let columns = view.table().positions.len();
    let cells = (0..view.table().rows.len()).flat_map(|row| (0..columns).map(move |column| view.cell(row, column)));
    let edges = view.table().inputs().into_iter().map(|token| display_token(&token.text));
    let mut widths: Vec<f64> = cells.chain(edges).map(|text| fonts::width(&text, panel::CELL_SIZES[0])).collect();
    widths.sort_by(f64::total_cmp);
    let most = widths.get(widths.len() * 19 / 20).or(widths.last()).copied().unwrap_or_default();
    (most + 2.0 * panel::PADDING + 1.0).clamp(40.0, 104.0).round()
}

#[cfg(test)]
mod tests;
