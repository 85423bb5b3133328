//! What the terminal can show.

use std::io::IsTerminal;

use supports_color::Stream;
use transformer_utils::lens::{ColorDepth, terminal::TerminalStyle};

/// How to draw on standard output: its width and its colours.
pub fn style() -> TerminalStyle {
    let width = terminal_size::terminal_size().map_or(100, |(width, _)| usize::from(width.0));
    TerminalStyle::default().width(width).color(color_depth(std::io::stdout().is_terminal()))
}

/// The colours of standard output: by NO_COLOR, COLORTERM, TERM and whether it is a terminal; FORCE_COLOR wins.
fn color_depth(is_terminal: bool) -> ColorDepth {
    let forced = std::env::var_os("FORCE_COLOR").is_some();
    match supports_color::on_cached(Stream::Stdout).filter(|_| is_terminal || forced) {
        Some(level) if level.has_16m => ColorDepth::TrueColor,
        Some(level) if level.has_256 => ColorDepth::Ansi256,
        _ => ColorDepth::None,
    }
}
