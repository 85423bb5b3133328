//! One measure's heatmap with everything around it.

use std::ops::Range;

use super::canvas::Canvas;
use super::style::Style;
use crate::color::Rgb;
use crate::fonts;
use crate::scale::Scale;
use crate::token_text::display_token;
use crate::view::{Edge, Layer, View};

/// The font sizes of a cell's token, from the one it should have to the one at which it is cut instead.
pub(super) const CELL_SIZES: [f64; 4] = [12.0, 11.0, 10.0, 9.0];
/// What a token keeps from either side of its cell.
const PADDING: f64 = 4.0;

/// The name of the line of the model's predictions.
const PREDICTS: &str = "predicts";
const NAME_SIZE: f64 = 12.0;
const MAX_NAME_WIDTH: f64 = 220.0;
pub(super) const HEADING_SIZE: f64 = 14.0;
const TICK_SIZE: f64 = 10.0;
pub(super) const BAR: (f64, f64) = (288.0, 11.0);
/// Colour bar, its labels, and the space under them.
pub(super) const BAR_HEIGHT: f64 = BAR.1 + 4.0 + TICK_SIZE + 12.0;
/// Half a label may stick out of the bar on either side.
pub(super) const BAR_OVERHANG: f64 = 20.0;
const HEADING_HEIGHT: f64 = 24.0;
const STAR_HEIGHT: f64 = 13.0;
const TOKEN_HEIGHT: f64 = 21.0;
const NUMBER_HEIGHT: f64 = 14.0;
const SPACE_AFTER: f64 = 16.0;

pub(super) struct Panel<'a> {
    view: View<'a>,
    layer: Layer<'a>,
    edges: Vec<Edge>,
    top_down: bool,
    cell: (f64, f64),
    name_width: f64,
}

impl<'a> Panel<'a> {
    pub(super) fn new(view: View<'a>, layer: Layer<'a>, style: &Style) -> Self {
        let (names, edges) = (view.names(), view.edges());
        let edge_names = edges.iter().map(|edge| edge.name).chain(view.predictions().map(|_| PREDICTS));
        let labels = names.iter().map(String::as_str).chain(edge_names);
        let name_width = labels.map(|name| fonts::width(name, NAME_SIZE)).fold(0.0, f64::max).min(MAX_NAME_WIDTH);
        let cell = (cell_width(view, &layer, style), f64::from(style.cell_height.max(8)));
        Self { view, layer, edges, top_down: style.top_down, cell, name_width: name_width.ceil() + 8.0 }
    }

    pub(super) fn heading(&self) -> &str {
        &self.layer.heading
    }

    /// The width of so many columns with all that belongs to them.
    pub(super) fn width(&self, columns: usize) -> f64 {
        let grid = self.name_width + columns as f64 * self.cell.0;
        grid.max(BAR.0 + 2.0 * BAR_OVERHANG).max(fonts::width(self.heading(), HEADING_SIZE))
    }

    /// The height, which depends on whether the colour bar has room beside the heading.
    pub(super) fn height(&self, width: f64) -> f64 {
        let rows = self.view.row_count() as f64 * self.cell.1;
        self.head_height(width) + self.output_height() + rows + self.input_height() + SPACE_AFTER
    }

    /// The height of the edge where the predictions stand.
    fn output_height(&self) -> f64 {
        if self.view.predictions().is_some() { STAR_HEIGHT + TOKEN_HEIGHT } else { 0.0 }
    }

    /// The height of the edge where the input stands.
    fn input_height(&self) -> f64 {
        self.edges.iter().map(edge_height).sum()
    }

    fn bar_beside(&self, width: f64) -> bool {
        fonts::width(self.heading(), HEADING_SIZE) + 24.0 + BAR.0 + 2.0 * BAR_OVERHANG <= width
    }

    fn head_height(&self, width: f64) -> f64 {
        if self.bar_beside(width) { BAR_HEIGHT } else { HEADING_HEIGHT + BAR_HEIGHT }
    }

    pub(super) fn draw(&self, canvas: &mut Canvas, (left, top): (f64, f64), width: f64, columns: Range<usize>) {
        canvas.text_from(self.heading(), (left, top + HEADING_SIZE / 2.0), HEADING_SIZE, canvas.ink());
        if self.bar_beside(width) {
            draw_bar(canvas, &self.layer.scale, (left + width - BAR.0 - BAR_OVERHANG, top));
        } else {
            draw_bar(canvas, &self.layer.scale, (left + 6.0, top + HEADING_HEIGHT));
        }
        let grid_left = left + self.name_width;
        let mut top = top + self.head_height(width);
        if self.top_down {
            self.draw_inputs(canvas, (grid_left, top), columns.clone());
            top += self.input_height();
        } else {
            self.draw_predictions(canvas, (grid_left, top), columns.clone());
            top += self.output_height();
        }
        let names = self.view.names();
        let is_part = |name: &str| name.matches('.').count() > 1;
        let whole = names.iter().any(|name| !is_part(name));
        for row in self.view.rows(self.top_down) {
            let middle = top + self.cell.1 / 2.0;
            let name = names.get(row).map_or("", String::as_str);
            // Parts of a block step back, so that the blocks can be counted.
            let ink = if whole && is_part(name) { canvas.muted() } else { canvas.ink() };
            self.draw_name(canvas, name, (grid_left, middle), ink);
            for (place, column) in columns.clone().enumerate() {
                self.draw_cell(canvas, (grid_left + place as f64 * self.cell.0, top), row, column);
            }
            top += self.cell.1;
        }
        if self.top_down {
            self.draw_predictions(canvas, (grid_left, top), columns);
        } else {
            self.draw_inputs(canvas, (grid_left, top), columns);
        }
    }

    fn draw_name(&self, canvas: &mut Canvas, name: &str, (grid_left, middle): (f64, f64), color: Rgb) {
        let (name, size) = fonts::fit(name, self.name_width - 8.0, &[NAME_SIZE, 10.0]);
        canvas.text_to(&name, (grid_left - 7.0, middle), size, color);
    }

    fn draw_cell(&self, canvas: &mut Canvas, (left, top): (f64, f64), row: usize, column: usize) {
        // A hair of the page between the cells.
        let size = (self.cell.0 - 1.0, self.cell.1 - 1.0);
        let color = self.layer.scale.color(self.layer.value(row, column));
        let ink = match color {
            Some(color) => {
                canvas.fill((left, top), size, color);
                color.ink()
            }
            None => {
                canvas.frame((left, top), size, canvas.outline(), 1.0);
                canvas.muted()
            }
        };
        if self.view.changed(row, column) {
            // One line would be overlooked.
            canvas.frame((left, top), size, ink, 1.0);
            canvas.frame((left, top), size, ink, 2.0);
        }
        let (text, font_size) =
            fonts::fit(&self.view.cell(&self.layer, row, column), size.0 - 2.0 * PADDING, &CELL_SIZES);
        canvas.text_at(&text, (left + size.0 / 2.0, top + size.1 / 2.0), font_size, ink);
    }

    fn draw_predictions(&self, canvas: &mut Canvas, (left, top): (f64, f64), columns: Range<usize>) {
        let Some(predictions) = self.view.predictions() else { return };
        // The stars stand away from the grid, on the outer side.
        let (stars, tokens) = if self.top_down {
            (top + TOKEN_HEIGHT + STAR_HEIGHT / 2.0, top + TOKEN_HEIGHT / 2.0)
        } else {
            (top + STAR_HEIGHT / 2.0, top + STAR_HEIGHT + TOKEN_HEIGHT / 2.0)
        };
        self.draw_name(canvas, PREDICTS, (left, tokens), canvas.muted());
        for (place, column) in columns.enumerate() {
            let Some(prediction) = predictions.get(column) else { continue };
            let x = left + (place as f64 + 0.5) * self.cell.0 - 0.5;
            self.draw_edge(canvas, &display_token(&prediction.text), (x, tokens));
            if prediction.right == Some(true) {
                canvas.text_at("★", (x, stars), 12.0, canvas.star());
            }
        }
    }

    fn draw_inputs(&self, canvas: &mut Canvas, (left, mut top): (f64, f64), columns: Range<usize>) {
        let mut edges: Vec<&Edge> = self.edges.iter().collect();
        if self.top_down {
            edges.reverse();
        }
        for edge in edges {
            let middle = top + edge_height(edge) / 2.0;
            self.draw_name(canvas, edge.name, (left, middle), canvas.muted());
            for (place, column) in columns.clone().enumerate() {
                let x = left + (place as f64 + 0.5) * self.cell.0 - 0.5;
                let Some(text) = edge.texts.get(column) else { continue };
                if edge.number {
                    canvas.text_at(text, (x, middle), TICK_SIZE, canvas.muted());
                } else {
                    self.draw_edge(canvas, text, (x, middle));
                }
            }
            top += edge_height(edge);
        }
    }

    fn draw_edge(&self, canvas: &mut Canvas, text: &str, at: (f64, f64)) {
        let (text, size) = fonts::fit(text, self.cell.0 - 1.0 - 2.0 * PADDING, &CELL_SIZES);
        canvas.text_at(&text, at, size, canvas.ink());
    }
}

fn edge_height(edge: &Edge) -> f64 {
    if edge.number { NUMBER_HEIGHT } else { TOKEN_HEIGHT }
}

/// The colour bar with its labels.
pub(super) fn draw_bar(canvas: &mut Canvas, scale: &Scale, (left, top): (f64, f64)) {
    let steps = 144;
    let step = BAR.0 / f64::from(steps);
    for index in 0..steps {
        let color = scale.color_at((f64::from(index) + 0.5) / f64::from(steps));
        canvas.fill((left + f64::from(index) * step, top), (step, BAR.1), color);
    }
    for tick in scale.ticks(0.16) {
        let x = left + tick.fraction * BAR.0;
        canvas.fill((x.min(left + BAR.0 - 1.0), top + BAR.1), (1.0, 3.0), canvas.muted());
        canvas.text_at(&tick.label, (x, top + BAR.1 + 4.0 + TICK_SIZE / 2.0), TICK_SIZE, canvas.muted());
    }
}

/// A cell's width that suits nineteen tokens in twenty; the others shrink; numbers do not.
fn cell_width(view: View<'_>, layer: &Layer<'_>, style: &Style) -> f64 {
    if let Some(width) = style.cell_width {
        return f64::from(width.max(8));
    }
    let width = |text: &String| fonts::width(text, CELL_SIZES[0]);
    let mut widths: Vec<f64> = view.tokens().iter().map(width).collect();
    widths.sort_by(f64::total_cmp);
    let most = widths.get(widths.len() * 19 / 20).or(widths.last()).copied().unwrap_or_default();
    let most = view.numbers(layer).iter().map(width).fold(most, f64::max);
    (most + 2.0 * PADDING + 1.0).clamp(40.0, 104.0).round()
}
