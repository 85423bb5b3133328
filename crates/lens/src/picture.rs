//! Pictures for papers and talks: SVG, and PNG made from it.
//!
//! A picture has one cell for each row and position, with the row's top-1 token in it and the measure as its colour; that of a grid
//! has its number in each cell. The tokens that were fed stand along the input's edge, the model's predictions along the output's, with a star
//! where they are right. Long prompts are split into pages. Several measures are stacked as panels.

mod canvas;
mod curves;
mod error;
mod multiples;
mod panel;
mod raster;
mod style;

use std::ops::Range;

use crate::fonts;
use crate::measure::Measure;
use crate::view::{View, evenly};

use canvas::Canvas;
use panel::Panel;

pub use curves::{Curves, curves_png, curves_svg};
pub use error::PictureError;
pub use multiples::{attention_png, attention_svg};
pub use raster::MAX_PIXELS;
pub use style::Style;

/// Draws pages as SVG, each with the measures stacked as panels; a grid has no measures (`&[]`).
///
/// Text stays text; its fonts are not embedded, and a viewer without them uses its own.
///
/// # Errors
///
/// [`PictureError::Table`] for a measure that the table, or a grid, does not have, [`PictureError::NoMeasure`].
pub fn svg<'a>(view: impl Into<View<'a>>, measures: &[Measure], style: &Style) -> Result<Vec<String>, PictureError> {
    let view = view.into();
    let layers = view.layers(measures)?;
    if layers.is_empty() {
        return Err(PictureError::NoMeasure);
    }
    let panels: Vec<Panel<'_>> = layers.into_iter().map(|layer| Panel::new(view, layer, style)).collect();
    let pages = evenly(view.columns(), style.max_columns);
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
        (false, _) => format!("{} · page {} of {count}", view.part(&columns), index + 1),
    };
    let notes = view.notes().unwrap_or_else(|| {
        let changed = view.comparison_marks().then(|| "framed: the top token changed".to_owned());
        ["★ right: the prediction is the next token".to_owned()].into_iter().chain(changed).collect()
    });
    let note = notes.join(" · ");

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

    let headings: Vec<&str> = panels.iter().map(Panel::heading).collect();
    let description = format!("{}{title}: {}", view.subject_of(), headings.join("; "));
    canvas.finish(&description)
}

#[cfg(test)]
mod tests;
