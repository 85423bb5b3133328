//! How a picture looks.

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
    /// [`MAX_PIXELS`](super::MAX_PIXELS).
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
