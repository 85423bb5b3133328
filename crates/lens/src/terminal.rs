//! The heatmap on a terminal, and text whose tokens are coloured.

mod text;

use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

use crate::color::{ColorDepth, Rgb};
use crate::measure::Measure;
use crate::scale::Scale;
use crate::table_error::TableError;
use crate::token_text::{display_token, right_to_left};
use crate::view::{Edge, Layer, View, evenly};

pub use text::text;

/// How to draw on a terminal.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TerminalStyle {
    /// The title; `None` for the model's name and dtype.
    pub title: Option<String>,
    /// The input on top and the output at the bottom, instead of the other way round.
    pub top_down: bool,
    /// The width to fill, in character cells. Columns that do not fit follow underneath.
    pub width: usize,
    /// The colours the terminal has.
    pub color: ColorDepth,
}

impl Default for TerminalStyle {
    fn default() -> Self {
        Self { title: None, top_down: false, width: 80, color: ColorDepth::None }
    }
}

impl TerminalStyle {
    /// With another choice of [`TerminalStyle::title`].
    pub fn title(mut self, title: impl Into<Option<String>>) -> Self {
        self.title = title.into();
        self
    }

    /// With another choice of [`TerminalStyle::top_down`].
    pub fn top_down(mut self, top_down: bool) -> Self {
        self.top_down = top_down;
        self
    }

    /// With another choice of [`TerminalStyle::width`].
    pub fn width(mut self, width: usize) -> Self {
        self.width = width;
        self
    }

    /// With another choice of [`TerminalStyle::color`].
    pub fn color(mut self, color: ColorDepth) -> Self {
        self.color = color;
        self
    }
}

/// The narrowest and widest a token is shown, in character cells.
const TOKEN_WIDTH: std::ops::RangeInclusive<usize> = 4..=10;
/// Room for a value in short form, where there are no colours.
const VALUE_WIDTH: usize = 7;
/// Marks a right prediction.
const STAR: &str = "★";
/// The name of the line of the model's predictions.
const PREDICTS: &str = "predicts";
/// Marks a cell that a comparison found changed.
const CHANGED: &str = "≠";

/// Draws the heatmap of one measure (`None` for a grid) as text with escape sequences for its colours; without colours, each
/// cell's value stands beside its token.
///
/// Every line fits `width`, except that at least one column is always drawn. The lines end in `\n`.
///
/// # Errors
///
/// [`TableError::MeasureNotInTable`]; [`TableError::NoMeasure`] where a table is to be drawn and none is named,
/// [`TableError::MeasureOfGrid`] where one is named for a grid.
pub fn render<'a, 'm>(
    view: impl Into<View<'a>>,
    measure: impl Into<Option<&'m Measure>>,
    style: &TerminalStyle,
) -> Result<String, TableError> {
    let (view, measure) = (view.into(), measure.into());
    let layer = view.layer(measure)?;
    let columns = view.columns();
    let edges = view.edges();
    let edge_names = edges.iter().map(|edge| edge.name).chain(view.predictions().map(|_| PREDICTS));
    let label_width = view
        .names()
        .iter()
        .map(|name| name.width())
        .chain(edge_names.map(UnicodeWidthStr::width))
        .max()
        .unwrap_or_default()
        .min((style.width / 3).max(8));
    let room = style.width.saturating_sub(label_width + 1);
    let values = style.color == ColorDepth::None && view.tokens_in_cells();
    let mut token_width = token_width(&view, &layer);
    let mut cell_width = token_width + 1 + if values { VALUE_WIDTH + 2 } else { 0 };
    // A head or a neuron needs no more than its number: where the values do not fit, colours do.
    let narrow = edges.iter().map(|edge| edge.widest()).max().unwrap_or(1);
    let bare = style.color != ColorDepth::None
        && edges.iter().all(|edge| edge.number)
        && cell_width * columns > room
        && narrow < token_width;
    if bare {
        (token_width, cell_width) = (narrow, narrow + 1);
    }
    let block = (room / cell_width).max(1);
    let painter = Painter { view, layer, edges, style, label_width, token_width, values, bare };

    let mut text = painter.title();
    for part in evenly(columns, block) {
        painter.block(&mut text, part);
        text.push('\n');
    }
    if columns == 0 || view.row_count() == 0 {
        text.push_str("(nothing to show: the table is empty)\n");
    } else {
        painter.legend(&mut text);
    }
    Ok(text)
}

/// Wide enough for most tokens; the few longer ones are cut. Numbers are not.
fn token_width(view: &View<'_>, layer: &Layer<'_>) -> usize {
    let mut widths: Vec<usize> = view.tokens().iter().map(|text| text.width()).collect();
    widths.sort_unstable();
    let of_tokens = |share: usize| widths.get(widths.len().saturating_sub(1) * share / 20).copied().unwrap_or_default();
    if view.tokens_in_cells() {
        // The star of a prediction takes a place of its own.
        return (of_tokens(19) + 1).clamp(*TOKEN_WIDTH.start(), *TOKEN_WIDTH.end());
    }
    let edges = view.edges();
    let numbers = view.numbers(layer).iter().map(|number| number.width()).max().unwrap_or_default();
    let narrow = edges.iter().filter(|edge| edge.number).map(Edge::widest).fold(numbers, usize::max);
    // Of a grid the numbers are what is read.
    narrow.max(of_tokens(14).clamp(*TOKEN_WIDTH.start(), *TOKEN_WIDTH.end()))
}

struct Painter<'a> {
    view: View<'a>,
    layer: Layer<'a>,
    edges: Vec<Edge>,
    style: &'a TerminalStyle,
    label_width: usize,
    token_width: usize,
    /// Whether values stand beside the tokens.
    values: bool,
    /// Whether there is room for nothing but colours.
    bare: bool,
}

impl Painter<'_> {
    fn title(&self) -> String {
        let title = self.view.title(self.style.title.as_deref());
        format!("{} · {}\n\n", self.bold(&title), self.layer.heading)
    }

    fn block(&self, text: &mut String, columns: std::ops::Range<usize>) {
        if self.style.top_down {
            self.input_lines(text, columns.clone());
        } else {
            self.prediction_line(text, columns.clone());
        }
        let names = self.view.names();
        for row in self.view.rows(self.style.top_down) {
            let name = names.get(row).map_or("", String::as_str);
            self.start_line(text, name);
            for column in columns.clone() {
                self.cell(text, row, column);
            }
            end_line(text);
        }
        if self.style.top_down {
            self.prediction_line(text, columns);
        } else {
            self.input_lines(text, columns);
        }
    }

    fn start_line(&self, text: &mut String, name: &str) {
        text.push_str(&fit_right(name, self.label_width));
        text.push(' ');
    }

    fn prediction_line(&self, text: &mut String, columns: std::ops::Range<usize>) {
        let Some(predictions) = self.view.predictions() else { return };
        self.start_line(text, PREDICTS);
        for column in columns {
            let Some(prediction) = predictions.get(column) else { continue };
            let shown = display_token(&prediction.text);
            let star = if prediction.right == Some(true) { STAR } else { "" };
            let room = self.token_width.saturating_sub(star.width());
            let cell = format!("{}{star}", cut(&shown, room));
            self.edge(text, &self.bold(&pad(&cell, self.token_width)));
        }
        end_line(text);
    }

    fn input_lines(&self, text: &mut String, columns: std::ops::Range<usize>) {
        let mut edges: Vec<&Edge> = self.edges.iter().collect();
        if self.style.top_down {
            edges.reverse();
        }
        for edge in edges {
            let texts = || edge.texts.iter().take(columns.end).skip(columns.start);
            // The other input, where it is the same.
            if !columns.is_empty() && texts().all(String::is_empty) {
                continue;
            }
            self.start_line(text, edge.name);
            for shown in texts() {
                let shown = fit(shown, self.token_width);
                self.edge(text, &if edge.number { shown } else { self.bold(&shown) });
            }
            end_line(text);
        }
    }

    /// A cell of the header or footer, whose token is already as wide as it must be.
    fn edge(&self, text: &mut String, token: &str) {
        text.push(' ');
        text.push_str(token);
        if self.values {
            text.extend(std::iter::repeat_n(' ', VALUE_WIDTH + 2));
        }
    }

    fn cell(&self, text: &mut String, row: usize, column: usize) {
        let value = self.layer.value(row, column);
        let mut shown = if self.bare { String::new() } else { self.view.cell(&self.layer, row, column) };
        if self.view.changed(row, column) {
            shown.insert_str(0, CHANGED);
        }
        let mut cell = format!(" {}", fit(&shown, self.token_width));
        if self.values {
            cell.push_str(&format!(" {} ", fit_right(&self.layer.short(value), VALUE_WIDTH)));
        }
        text.push_str(&paint(&cell, self.layer.scale.color(value), self.style.color));
    }

    fn bold(&self, text: &str) -> String {
        bold(text, self.style.color)
    }

    fn legend(&self, text: &mut String) {
        color_bar(text, &self.layer.scale, self.style, self.label_width + 2);
        let unit = if self.values { format!("values: {}  ", self.layer.heading) } else { String::new() };
        let notes = self.view.notes().unwrap_or_else(|| {
            let changed = self.view.comparison_marks().then(|| format!("{CHANGED} the top token changed"));
            [format!("{STAR} right: predicts the next token")].into_iter().chain(changed).collect()
        });
        if !notes.is_empty() {
            text.push_str(&format!("{unit}{}\n", notes.join("  ")));
        }
    }
}

/// The colour bar and its labels, where there are colours.
fn color_bar(text: &mut String, scale: &Scale, style: &TerminalStyle, indent: usize) {
    if style.color == ColorDepth::None {
        return;
    }
    let width = style.width.saturating_sub(indent).clamp(12, 48);
    let fraction = |place: usize| (place as f64 + 0.5) / width as f64;
    text.push_str(&" ".repeat(indent));
    for place in 0..width {
        text.push_str(&paint(" ", Some(scale.color_at(fraction(place))), style.color));
    }
    text.push('\n');
    text.push_str(&" ".repeat(indent));
    text.push_str(&tick_line(scale, width));
    text.push('\n');
}

/// The labels of the colour bar, each under its place.
fn tick_line(scale: &Scale, width: usize) -> String {
    let mut line = String::new();
    for tick in scale.ticks(8.0 / width as f64) {
        let place = (tick.fraction * (width - 1) as f64).round() as usize;
        let label_width = tick.label.width();
        let start = place.saturating_sub(label_width / 2).min(width.saturating_sub(label_width));
        let written = line.width();
        if written > 0 && start <= written {
            continue;
        }
        line.push_str(&" ".repeat(start - written));
        line.push_str(&tick.label);
    }
    line
}

fn bold(text: &str, depth: ColorDepth) -> String {
    if depth == ColorDepth::None { text.into() } else { format!("\x1b[1m{text}\x1b[0m") }
}

/// A text on a colour; where there is no value there is no colour.
fn paint(text: &str, color: Option<Rgb>, depth: ColorDepth) -> String {
    match (depth, color) {
        (ColorDepth::None, _) => text.into(),
        (_, None) => format!("\x1b[2m{text}\x1b[0m"),
        (ColorDepth::TrueColor, Some(color)) => {
            let (Rgb(r, g, b), Rgb(ink_r, ink_g, ink_b)) = (color, color.ink());
            format!("\x1b[48;2;{r};{g};{b}m\x1b[38;2;{ink_r};{ink_g};{ink_b}m{text}\x1b[0m")
        }
        (ColorDepth::Ansi256, Some(color)) => {
            let (index, color) = color.xterm();
            format!("\x1b[48;5;{index}m\x1b[38;5;{}m{text}\x1b[0m", color.ink().xterm().0)
        }
    }
}

fn end_line(text: &mut String) {
    text.truncate(text.trim_end_matches(' ').len());
    text.push('\n');
}

/// Cuts or fills a text to exactly `width` character cells, from the left.
fn fit(text: &str, width: usize) -> String {
    pad(&cut(text, width), width)
}

/// The same, aligned to the right; what is cut is cut at the end.
fn fit_right(text: &str, width: usize) -> String {
    let cut = cut(text, width);
    format!("{}{cut}", " ".repeat(width.saturating_sub(cut.width())))
}

fn pad(text: &str, width: usize) -> String {
    let mut padded = text.to_owned();
    if text.chars().any(right_to_left) {
        // A terminal that reorders right-to-left text would otherwise swap neighbouring cells.
        padded.push('\u{200e}');
    }
    padded.extend(std::iter::repeat_n(' ', width.saturating_sub(text.width())));
    padded
}

/// Cuts a text to at most `width` character cells, never inside a character as a reader sees it; `…` stands for the
/// rest.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.into();
    }
    let mut kept = String::new();
    for cluster in text.graphemes(true) {
        if kept.width() + cluster.width() + 1 > width {
            break;
        }
        kept.push_str(cluster);
    }
    if width > 0 {
        kept.push('…');
    }
    kept
}

#[cfg(test)]
mod tests;
