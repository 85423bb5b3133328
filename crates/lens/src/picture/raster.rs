//! From SVG to PNG, with the fonts that ship inside the program and no others.

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree};

use super::error::PictureError;
use crate::fonts;

/// The most pixels of a PNG page; four bytes each are needed to draw it.
pub const MAX_PIXELS: u64 = 50_000_000;

/// Reads an SVG with our fonts.
pub(super) fn tree(svg: &str) -> Result<Tree, PictureError> {
    let options = Options { fontdb: fonts::database(), ..Options::default() };
    Ok(Tree::from_str(svg, &options)?)
}

pub(super) fn png(svg: &str, pixel_ratio: f32) -> Result<Vec<u8>, PictureError> {
    let tree = tree(svg)?;
    let size = tree.size();
    let most = (MAX_PIXELS as f32 / (size.width() * size.height())).sqrt();
    let ratio = if pixel_ratio.is_finite() { pixel_ratio.clamp(0.1, 16.0).min(most) } else { 1.0 };
    let (width, height) = ((size.width() * ratio).floor() as u32, (size.height() * ratio).floor() as u32);
    let mut pixels = Pixmap::new(width, height).ok_or(PictureError::TooLarge { width, height })?;
    resvg::render(&tree, Transform::from_scale(ratio, ratio), &mut pixels.as_mut());
    pixels.encode_png().map_err(|error| PictureError::Png { reason: error.to_string() })
}
