//! How a picture looks.

/// How a picture looks.
#[derive(Clone, Debug)]
#[non_exhaustive]
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

impl Style {
    /// With another choice of [`Style::title`].
    pub fn title(mut self, title: impl Into<Option<String>>) -> Self {
        self.title = title.into();
        self
    }

    /// With another choice of [`Style::top_down`].
    pub fn top_down(mut self, top_down: bool) -> Self {
        self.top_down = top_down;
        self
    }

    /// With another choice of [`Style::dark`].
    pub fn dark(mut self, dark: bool) -> Self {
        self.dark = dark;
        self
    }

    /// With another choice of [`Style::max_columns`].
    pub fn max_columns(mut self, max_columns: usize) -> Self {
        self.max_columns = max_columns;
        self
    }

    /// With another choice of [`Style::cell_width`].
    pub fn cell_width(mut self, cell_width: impl Into<Option<u32>>) -> Self {
        self.cell_width = cell_width.into();
        self
    }

    /// With another choice of [`Style::cell_height`].
    pub fn cell_height(mut self, cell_height: u32) -> Self {
        self.cell_height = cell_height;
        self
    }

    /// With another choice of [`Style::pixel_ratio`].
    pub fn pixel_ratio(mut self, pixel_ratio: f32) -> Self {
        self.pixel_ratio = pixel_ratio;
        self
    }
}
