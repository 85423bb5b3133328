//! Attention patterns side by side: small heatmaps with one colour bar.

use super::canvas::Canvas;
use super::error::PictureError;
use super::panel::{BAR, BAR_HEIGHT, BAR_OVERHANG, HEADING_SIZE, draw_bar};
use super::style::Style;
use super::{MARGIN, NOTE_SIZE, TITLE_SIZE, raster, svg};
use crate::attention::{Attention, HeadPattern};
use crate::fonts;
use crate::scale::Scale;
use crate::token_text::{display_label, display_token};

/// How wide a heatmap should be, and the cells it may be made of.
const WISHED: f64 = 200.0;
const CELLS: std::ops::RangeInclusive<f64> = 1.0..=18.0;
/// The least cell that has room for the name of its token.
const NAMED_CELL: f64 = 9.0;
const MAX_TOKEN_WIDTH: f64 = 80.0;
const NAME_HEIGHT: f64 = 20.0;
const GAP: f64 = 18.0;
const PAGE_WIDTH: f64 = 1320.0;
const PAGE_ROWS: usize = 6;
const HEADING: &str = "Attention from each token (rows) to itself and those before it (columns)";

/// Draws pages as SVG: a heatmap for each head, the queries downwards and the keys to the right, all in the same colours. A single
/// head of an input that is not longer than [`Style::max_columns`] is drawn large, with its numbers.
///
/// Of the style, `cell_width`, `cell_height` and `top_down` are for a single head.
///
/// # Errors
///
/// [`PictureError::Table`] for patterns that are not as large as the input, [`PictureError::NoMeasure`] where there is no head.
pub fn attention_svg(attention: &Attention, style: &Style) -> Result<Vec<String>, PictureError> {
    attention.check()?;
    if let ([_], Some(grid)) = (&attention.heads[..], attention.grid(0))
        && attention.tokens.len() <= style.max_columns
    {
        // A pattern reads from the top down.
        return svg(&grid, &[], &style.clone().top_down(true));
    }
    let multiples = Multiples::new(attention, style);
    let pages = attention.heads.chunks(multiples.columns * PAGE_ROWS);
    let count = pages.len();
    if count == 0 {
        return Err(PictureError::NoMeasure);
    }
    pages.enumerate().map(|(index, heads)| multiples.page(heads, (index, count))).collect()
}

/// Draws the same pages as PNG, with the fonts that ship inside the program.
///
/// # Errors
///
/// As [`attention_svg`], and [`PictureError::TooLarge`].
pub fn attention_png(attention: &Attention, style: &Style) -> Result<Vec<Vec<u8>>, PictureError> {
    attention_svg(attention, style)?.iter().map(|page| raster::png(page, style.pixel_ratio)).collect()
}

struct Multiples<'a> {
    attention: &'a Attention,
    style: &'a Style,
    scale: Scale,
    tokens: Vec<String>,
    cell: f64,
    /// The room of the tokens' names beside and under the heatmaps; none where cells are too small for them.
    names: f64,
    columns: usize,
}

impl<'a> Multiples<'a> {
    fn new(attention: &'a Attention, style: &'a Style) -> Self {
        let tokens: Vec<String> = attention.tokens.iter().map(|token| display_token(&token.text)).collect();
        let cell = (WISHED / tokens.len().max(1) as f64).floor().clamp(*CELLS.start(), *CELLS.end());
        let widths = tokens.iter().map(|token| fonts::width(token, name_size(cell)));
        let names = if cell < NAMED_CELL { 0.0 } else { widths.fold(0.0, f64::max).min(MAX_TOKEN_WIDTH).ceil() + 5.0 };
        let side = tokens.len() as f64 * cell;
        let columns = ((PAGE_WIDTH - names + GAP) / (side + GAP)).floor().max(1.0) as usize;
        let weights: Vec<f64> = attention
            .heads
            .iter()
            .flat_map(|head| head.pattern.iter().flatten().map(|weight| f64::from(*weight)))
            .collect();
        Self { attention, style, scale: Scale::upwards([&weights[..]]), tokens, cell, names, columns }
    }

    fn side(&self) -> f64 {
        self.tokens.len() as f64 * self.cell
    }

    fn page(&self, heads: &[HeadPattern], (index, count): (usize, usize)) -> Result<String, PictureError> {
        let title = display_label(self.style.title.as_deref().unwrap_or(&self.attention.model));
        let columns = self.columns.min(heads.len());
        let rows = heads.len().div_ceil(columns.max(1));
        let number = if count > 1 { format!("page {} of {count}", index + 1) } else { String::new() };
        let note = if self.names > 0.0 {
            number
        } else {
            let last = self.tokens.len().saturating_sub(1);
            let positions = format!("positions 0 to {last}, from the top and from the left");
            [positions, number].iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(" · ")
        };
        let grid = self.names + columns as f64 * (self.side() + GAP) - GAP;
        let inner =
            [fonts::width(&title, TITLE_SIZE), fonts::width(HEADING, HEADING_SIZE), BAR.0 + 2.0 * BAR_OVERHANG, grid]
                .into_iter()
                .fold(fonts::width(&note, NOTE_SIZE), f64::max);
        let beside = fonts::width(HEADING, HEADING_SIZE) + 24.0 + BAR.0 + 2.0 * BAR_OVERHANG <= inner;
        let head = TITLE_SIZE + 14.0 + if beside { BAR_HEIGHT } else { BAR_HEIGHT + 26.0 };
        let row_height = NAME_HEIGHT + self.side() + GAP;
        let height = 2.0 * MARGIN + head + rows as f64 * row_height + self.names + NOTE_SIZE;

        let mut canvas = Canvas::new(2.0 * MARGIN + inner, height, self.style.dark);
        canvas.background();
        canvas.text_from(&title, (MARGIN, MARGIN + TITLE_SIZE / 2.0), TITLE_SIZE, canvas.ink());
        let top = MARGIN + TITLE_SIZE + 14.0;
        canvas.text_from(HEADING, (MARGIN, top + HEADING_SIZE / 2.0), HEADING_SIZE, canvas.ink());
        let bar = if beside { (MARGIN + inner - BAR.0 - BAR_OVERHANG, top) } else { (MARGIN + 6.0, top + 26.0) };
        draw_bar(&mut canvas, &self.scale, bar);
        for (place, pattern) in heads.iter().enumerate() {
            let (row, column) = (place / columns.max(1), place % columns.max(1));
            let left = MARGIN + self.names + column as f64 * (self.side() + GAP);
            let top = MARGIN + head + row as f64 * row_height;
            canvas.text_from(&pattern.name(), (left, top + NAME_HEIGHT / 2.0 - 2.0), 12.0, canvas.ink());
            self.draw(&mut canvas, pattern, (left, top + NAME_HEIGHT));
            if column == 0 {
                self.draw_queries(&mut canvas, (left, top + NAME_HEIGHT));
            }
            // Nothing follows underneath.
            if place + columns >= heads.len() {
                self.draw_keys(&mut canvas, (left, top + NAME_HEIGHT + self.side()));
            }
        }
        canvas.text_from(&note, (MARGIN, height - MARGIN - NOTE_SIZE / 2.0), NOTE_SIZE, canvas.muted());
        let names: Vec<String> = heads.iter().map(HeadPattern::name).collect();
        canvas.finish(&format!("Attention of {title}: {}", names.join(", ")))
    }

    fn draw(&self, canvas: &mut Canvas, pattern: &HeadPattern, (left, top): (f64, f64)) {
        // Where there is room, a hair of the page between the cells.
        let hair = if self.cell >= NAMED_CELL { 1.0 } else { 0.0 };
        for (query, weights) in pattern.pattern.iter().enumerate() {
            let colors: Vec<_> =
                weights.iter().take(query + 1).map(|weight| self.scale.color(f64::from(*weight))).collect();
            // Neighbours of one colour are one rectangle, where nothing stands between them.
            let mut key = 0;
            for run in colors.chunk_by(|a, b| hair == 0.0 && a == b) {
                if let Some(Some(color)) = run.first() {
                    let corner = (left + key as f64 * self.cell, top + query as f64 * self.cell);
                    canvas.fill(corner, (run.len() as f64 * self.cell - hair, self.cell - hair), *color);
                }
                key += run.len();
            }
        }
    }

    fn draw_queries(&self, canvas: &mut Canvas, (left, top): (f64, f64)) {
        for (at, token) in self.named() {
            let (text, size) = fonts::fit(token, self.names - 5.0, &[name_size(self.cell)]);
            canvas.text_to(&text, (left - 5.0, top + at), size, canvas.muted());
        }
    }

    fn draw_keys(&self, canvas: &mut Canvas, (left, top): (f64, f64)) {
        for (at, token) in self.named() {
            let (text, size) = fonts::fit(token, self.names - 5.0, &[name_size(self.cell)]);
            canvas.text_up_to(&text, (left + at, top + 4.0), size, canvas.muted());
        }
    }

    /// The tokens that are named, each with the middle of its row or column.
    fn named(&self) -> impl Iterator<Item = (f64, &String)> {
        let count = if self.names > 0.0 { self.tokens.len() } else { 0 };
        self.tokens.iter().take(count).enumerate().map(|(index, token)| ((index as f64 + 0.5) * self.cell - 0.5, token))
    }
}

fn name_size(cell: f64) -> f64 {
    (cell - 1.0).clamp(8.0, 11.0)
}
