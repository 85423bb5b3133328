//! A grid's rows as text, its tokens coloured.

use unicode_width::UnicodeWidthStr;

use super::{TerminalStyle, bold, color_bar, paint};
use crate::color::ColorDepth;
use crate::grid::Grid;
use crate::table_error::TableError;
use crate::token_text::display_label;
use crate::view::View;

/// Writes the input once for each row of a grid over positions, each token on the colour of the row's number there; without
/// colours the number stands behind it: `When[0.00] Mary[+2.00]`.
///
/// Lines are broken between tokens so that they fit `width`; line ends of the input are shown as `⏎` and end a line.
///
/// # Errors
///
/// [`TableError::NoText`] where the columns are no positions or there are no tokens; what [`Grid::check`] finds.
pub fn text(grid: &Grid, style: &TerminalStyle) -> Result<String, TableError> {
    grid.check()?;
    if grid.token(0).is_none() {
        return Err(TableError::NoText { columns: grid.column_noun().1 });
    }
    let view = View::from(grid);
    let layer = view.layer(None)?;
    let title = bold(&view.title(style.title.as_deref()), style.color);
    let mut text = format!("{title} · {}\n", layer.heading);
    let names = view.names();
    for row in view.rows(style.top_down) {
        let name = names.get(row).map_or("", String::as_str);
        text.push_str(&format!("\n{}\n", bold(name, style.color)));
        let mut used = 0;
        for column in 0..view.columns() {
            let Some(token) = grid.token(column) else { continue };
            let value = layer.value(row, column);
            let mut shown = display_label(&token.text);
            if style.color == ColorDepth::None {
                shown.push_str(&format!("[{}]", layer.short(value)));
            }
            if used > 0 && used + shown.width() > style.width {
                text.push('\n');
                used = 0;
            }
            used += shown.width();
            text.push_str(&paint(&shown, layer.scale.color(value), style.color));
            if token.text.ends_with('\n') {
                text.push('\n');
                used = 0;
            }
        }
        if used > 0 {
            text.push('\n');
        }
    }
    text.push('\n');
    color_bar(&mut text, &layer.scale, style, 0);
    let notes = grid.notes();
    if !notes.is_empty() {
        text.push_str(&format!("{}\n", notes.join("  ")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Columns, fixture};

    #[test]
    fn numbers_stand_behind_the_tokens_where_there_are_no_colors() {
        let text = text(&fixture::grid(), &TerminalStyle::default()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "tiny · patched: logit difference");
        assert_eq!(lines[2..4], ["h.1", "When[–] Mary[+0.50] and[−0.12]"]);
        assert_eq!(lines[8..10], ["input", "When[0.00] Mary[+2.00] and[0.00]"]);
    }

    #[test]
    fn lines_are_broken_between_tokens() {
        let mut grid = fixture::grid();
        grid.tokens[1].text = " Mary\n".into();
        let narrow = text(&grid, &TerminalStyle::default().width(20)).unwrap();
        assert!(narrow.contains("\nWhen[0.00]\n Mary⏎[+2.00]\n and[0.00]\n"), "{narrow}");
        let colored = text(&grid, &TerminalStyle::default().color(ColorDepth::TrueColor)).unwrap();
        assert!(colored.contains(" Mary⏎\x1b[0m\n") && !colored.contains("+2.00"), "{colored}");
        assert_eq!(colored.matches("\x1b[2mWhen").count(), 1, "without a number there is no colour");
    }

    #[test]
    fn heads_are_no_text() {
        let grid = Grid { columns: Columns::Heads(vec![0, 1, 2]), ..fixture::grid() };
        let error = text(&grid, &TerminalStyle::default()).unwrap_err();
        assert!(matches!(error, TableError::NoText { columns: "heads" }));
    }
}
