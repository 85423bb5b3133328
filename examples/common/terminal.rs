//! What the terminal can show.

use supports_color::Stream;
use transformer_utils::lens::ColorDepth;

/// The colours of standard output: by NO_COLOR, COLORTERM, TERM and whether it is a terminal; FORCE_COLOR wins.
pub fn color_depth(is_terminal: bool) -> ColorDepth {
    let forced = std::env::var_os("FORCE_COLOR").is_some();
    match supports_color::on_cached(Stream::Stdout).filter(|_| is_terminal || forced) {
        Some(level) if level.has_16m => ColorDepth::TrueColor,
        Some(level) if level.has_256 => ColorDepth::Ansi256,
        _ => ColorDepth::None,
    }
}
