//! The heatmap on a terminal.

use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

use crate::color::{ColorDepth, Rgb};
use crate::measure::Measure;
use crate::scale::Scale;
use crate::table_error::TableError;
use crate::token_text::{display_token, right_to_left};
use crate::view::{View, evenly};

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
/// Marks a cell that a comparison found changed.
const CHANGED: &str = "≠";

/// Draws the heatmap of one measure as text with escape sequences for its colours; without colours, each cell's value
/// stands beside its token.
///
/// Every line fits `width`, except that at least one column is always drawn. The lines end in `\n`.
///
/// # Errors
///
/// [`TableError::MeasureNotInTable`].
pub fn render<'a>(view: impl Into<View<'a>>, measure: &Measure, style: &TerminalStyle) -> Result<String, TableError> {
    let view = view.into();
    let scale = view.scale(measure)?;
    let columns = view.table().positions.len();
    let label_width = view
        .names()
        .iter()
        .map(|name| name.width())
        .chain(["predicts".width()])
        .max()
        .unwrap_or_default()
        .min((style.width / 3).max(8));
    let token_width = token_width(&view, columns);
    let values = style.color == ColorDepth::None;
    let cell_width = token_width + 1 + if values { VALUE_WIDTH + 2 } else { 0 };
    let block = (style.width.saturating_sub(label_width + 1) / cell_width).max(1);
    let painter = Painter { view, measure, style, scale, label_width, token_width, values };

    let mut text = painter.title();
    for part in evenly(columns, block) {
        painter.block(&mut text, part);
        text.push('\n');
    }
    if columns == 0 || view.table().rows.is_empty() {
        text.push_str("(nothing to show: the table is empty)\n");
    } else {
        painter.legend(&mut text);
    }
    Ok(text)
}

/// Wide enough for most tokens; the few longer ones are cut.
fn token_width(view: &View<'_>, columns: usize) -> usize {
    let table = view.table();
    let cells = (0..table.rows.len()).flat_map(|row| (0..columns).map(move |column| view.cell(row, column)));
    let edges = view.table().inputs().into_iter().map(|token| display_token(&token.text));
    let mut widths: Vec<usize> = cells.chain(edges).map(|text| text.width()).collect();
    widths.sort_unstable();
    let most = widths.get(widths.len().saturating_sub(1) * 19 / 20).copied().unwrap_or_default();
    // The star of a prediction takes a place of its own.
    (most + 1).clamp(*TOKEN_WIDTH.start(), *TOKEN_WIDTH.end())
}

struct Painter<'a> {
    view: View<'a>,
    measure: &'a Measure,
    style: &'a TerminalStyle,
    scale: Scale,
    label_width: usize,
    token_width: usize,
    values: bool,
}

impl Painter<'_> {
    fn title(&self) -> String {
        let title = self.view.title(self.style.title.as_deref());
        format!("{} · {}\n\n", self.bold(&title), self.view.heading(self.measure))
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
        self.start_line(text, "predicts");
        let predictions = self.view.table().predictions();
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
        let table = self.view.table();
        let tokens = |text: &mut String| {
            self.start_line(text, "token");
            for token in table.inputs().into_iter().take(columns.end).skip(columns.start) {
                self.edge(text, &self.bold(&fit(&display_token(&token.text), self.token_width)));
            }
            end_line(text);
        };
        let numbers = |text: &mut String| {
            self.start_line(text, "position");
            for position in table.positions.iter().take(columns.end).skip(columns.start) {
                self.edge(text, &fit(&position.to_string(), self.token_width));
            }
            end_line(text);
        };
        if self.style.top_down {
            numbers(text);
            tokens(text);
        } else {
            tokens(text);
            numbers(text);
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
        let value = self.view.table().rows.get(row).and_then(|row| row.values.get(self.measure)?.get(column).copied());
        let value = value.unwrap_or(f64::NAN);
        let mut shown = self.view.cell(row, column);
        if self.view.changed(row, column) {
            shown.insert_str(0, CHANGED);
        }
        let mut cell = format!(" {}", fit(&shown, self.token_width));
        if self.values {
            cell.push_str(&format!(" {} ", fit_right(&self.view.short(self.measure, value), VALUE_WIDTH)));
        }
        text.push_str(&self.paint(&cell, self.scale.color(value)));
    }

    fn paint(&self, text: &str, color: Option<Rgb>) -> String {
        match (self.style.color, color) {
            (ColorDepth::None, _) => text.into(),
            // Where there is no value there is no colour.
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

    fn bold(&self, text: &str) -> String {
        if self.style.color == ColorDepth::None { text.into() } else { format!("\x1b[1m{text}\x1b[0m") }
    }

    fn legend(&self, text: &mut String) {
        if !self.values {
            let width = self.style.width.saturating_sub(self.label_width + 2).clamp(12, 48);
            let fraction = |place: usize| (place as f64 + 0.5) / width as f64;
            text.push_str(&" ".repeat(self.label_width + 2));
            for place in 0..width {
                text.push_str(&self.paint(" ", Some(self.scale.color_at(fraction(place)))));
            }
            text.push('\n');
            text.push_str(&" ".repeat(self.label_width + 2));
            text.push_str(&self.tick_line(width));
            text.push('\n');
        }
        let changed =
            if self.view.comparison_marks() { format!("  {CHANGED} the top token changed") } else { String::new() };
        let unit = if self.values { format!("values: {}  ", self.view.heading(self.measure)) } else { String::new() };
        text.push_str(&format!("{unit}{STAR} right: predicts the next token{changed}\n"));
    }

    /// The labels of the colour bar, each under its place.
    fn tick_line(&self, width: usize) -> String {
        let mut line = String::new();
        for tick in self.scale.ticks(8.0 / width as f64) {
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
