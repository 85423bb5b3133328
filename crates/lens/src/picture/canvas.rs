//! A page to draw on: plotters' SVG backend, with text that is placed by its middle line.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters_svg::SVGBackend;

use super::error::PictureError;
use crate::color::Rgb;
use crate::fonts;

/// What is drawn, in order; plotters gets it when the page is finished.
pub(super) struct Canvas {
    width: f64,
    height: f64,
    dark: bool,
    shapes: Vec<Shape>,
}

enum Shape {
    Fill { corner: (f64, f64), size: (f64, f64), color: Rgb },
    Frame { corner: (f64, f64), size: (f64, f64), color: Rgb, inset: f64 },
    Text { text: String, families: &'static str, at: (f64, f64), size: f64, color: Rgb, anchor: HPos, up: bool },
}

impl Canvas {
    pub(super) fn new(width: f64, height: f64, dark: bool) -> Self {
        Self { width, height, dark, shapes: Vec::new() }
    }

    /// The colour of text on the page.
    pub(super) fn ink(&self) -> Rgb {
        if self.dark { Rgb(0xec, 0xec, 0xee) } else { Rgb(0x18, 0x18, 0x1b) }
    }

    /// The colour of text that may be overlooked.
    pub(super) fn muted(&self) -> Rgb {
        if self.dark { Rgb(0xa4, 0xa6, 0xad) } else { Rgb(0x60, 0x62, 0x68) }
    }

    /// The colour of stars.
    pub(super) fn star(&self) -> Rgb {
        if self.dark { Rgb(0xff, 0xc8, 0x3d) } else { Rgb(0xb0, 0x6a, 0x00) }
    }

    /// The colour of the outline of a cell without a value.
    pub(super) fn outline(&self) -> Rgb {
        if self.dark { Rgb(0x4a, 0x4d, 0x55) } else { Rgb(0xc4, 0xc5, 0xca) }
    }

    pub(super) fn background(&mut self) {
        let color = if self.dark { Rgb(0x14, 0x16, 0x1a) } else { Rgb(0xff, 0xff, 0xff) };
        self.fill((0.0, 0.0), (self.width.ceil(), self.height.ceil()), color);
    }

    pub(super) fn fill(&mut self, corner: (f64, f64), size: (f64, f64), color: Rgb) {
        self.shapes.push(Shape::Fill { corner, size, color });
    }

    /// A line, one pixel wide, so far inside an area.
    pub(super) fn frame(&mut self, corner: (f64, f64), size: (f64, f64), color: Rgb, inset: f64) {
        self.shapes.push(Shape::Frame { corner, size, color, inset });
    }

    /// Text that begins at a point.
    pub(super) fn text_from(&mut self, text: &str, at: (f64, f64), size: f64, color: Rgb) {
        self.text(text, at, size, color, HPos::Left, false);
    }

    /// Text that ends at a point.
    pub(super) fn text_to(&mut self, text: &str, at: (f64, f64), size: f64, color: Rgb) {
        self.text(text, at, size, color, HPos::Right, false);
    }

    /// Text around a point.
    pub(super) fn text_at(&mut self, text: &str, at: (f64, f64), size: f64, color: Rgb) {
        self.text(text, at, size, color, HPos::Center, false);
    }

    /// Text that runs upwards and ends at a point.
    pub(super) fn text_up_to(&mut self, text: &str, at: (f64, f64), size: f64, color: Rgb) {
        self.text(text, at, size, color, HPos::Right, true);
    }

    fn text(&mut self, text: &str, at: (f64, f64), size: f64, color: Rgb, anchor: HPos, up: bool) {
        let mut pieces = fonts::pieces(text);
        if let (1, Some((text, families))) = (pieces.len(), pieces.pop()) {
            self.shapes.push(Shape::Text { text, families, at, size, color, anchor, up });
            return;
        }
        let width = fonts::width(text, size);
        let mut along = match anchor {
            HPos::Left => 0.0,
            HPos::Center => -width / 2.0,
            HPos::Right => -width,
        };
        for (text, families) in fonts::pieces(text) {
            let after = along + fonts::width(&text, size);
            let at = if up { (at.0, at.1 - along) } else { (at.0 + along, at.1) };
            self.shapes.push(Shape::Text { text, families, at, size, color, anchor: HPos::Left, up });
            along = after;
        }
    }

    /// The SVG.
    pub(super) fn finish(self, description: &str) -> Result<String, PictureError> {
        let mut svg = String::new();
        {
            let size = (self.width.ceil() as u32, self.height.ceil() as u32);
            let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            let failed = |error: &dyn std::fmt::Display| PictureError::Drawing { reason: error.to_string() };
            for shape in &self.shapes {
                shape.draw(&area).map_err(|error| failed(&error))?;
            }
            area.present().map_err(|error| failed(&error))?;
        }
        Ok(describe(&svg, description))
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type AreaError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

impl Shape {
    fn draw<'a>(&self, area: &Area<'a>) -> Result<(), AreaError<'a>> {
        // Whole pixels keep the edges of cells sharp.
        let whole = |(x, y): (f64, f64)| (x.round() as i32, y.round() as i32);
        let color = |Rgb(r, g, b): Rgb| RGBColor(r, g, b);
        match self {
            Self::Fill { corner, size, color: fill } => {
                let end = (corner.0 + size.0, corner.1 + size.1);
                area.draw(&Rectangle::new([whole(*corner), whole(end)], color(*fill).filled()))
            }
            Self::Frame { corner, size, color: line, inset } => {
                let start = (corner.0 + inset, corner.1 + inset);
                let end = (corner.0 + size.0 - inset, corner.1 + size.1 - inset);
                area.draw(&Rectangle::new([whole(start), whole(end)], color(*line).stroke_width(1)))
            }
            Self::Text { text, families, at, size, color: ink, anchor, up } => {
                // Plotters divides every size by 1.24.
                let font = FontDesc::new(FontFamily::Name(families), size * 1.24, FontStyle::Normal);
                let font = if *up { font.transform(FontTransform::Rotate270) } else { font };
                let ink = color(*ink);
                let style = TextStyle::from(font).color(&ink).pos(Pos::new(*anchor, VPos::Center));
                area.draw(&Text::new(text.as_str(), whole(*at), style))
            }
        }
    }
}

/// Gives the picture a name that screen readers say.
pub(super) fn describe(svg: &str, description: &str) -> String {
    let Some((tag, rest)) = svg.split_once('>') else { return svg.into() };
    let mut escaped = String::new();
    for character in description.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            _ => escaped.push(character),
        }
    }
    format!("{tag} role=\"img\">\n<title>{escaped}</title>{rest}")
}
