//! Curves over the layers: how a number changes from the input to the output.

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters_svg::SVGBackend;

use super::{canvas::describe, error::PictureError, raster, style::Style};
use crate::color::Rgb;
use crate::fonts;

/// Some curves over the same rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curves {
    /// What the picture is called, where [`Style::title`] does not say.
    pub title: String,
    /// What the values are, with their unit.
    pub heading: String,
    /// Whether the vertical axis counts powers of ten; values that are not positive then leave a gap.
    pub logarithmic: bool,
    /// The rows along the horizontal axis, the input first.
    pub rows: Vec<String>,
    /// Each curve's name, and its value at each row; values that are not finite leave a gap.
    pub curves: Vec<(String, Vec<f64>)>,
}

const WIDTH: u32 = 760;
const HEIGHT: u32 = 440;
/// Colours that are told apart without red and green (Okabe and Ito, 2008), on light and on dark.
const LINES: [[Rgb; 2]; 4] = [
    [Rgb(0x8a, 0x8d, 0x94), Rgb(0x9c, 0xa0, 0xa8)],
    [Rgb(0x00, 0x72, 0xb2), Rgb(0x56, 0xb4, 0xe9)],
    [Rgb(0xd5, 0x5e, 0x00), Rgb(0xe6, 0x9f, 0x00)],
    [Rgb(0x00, 0x9e, 0x73), Rgb(0x2b, 0xc5, 0x9b)],
];

/// Draws the curves as SVG.
///
/// # Errors
///
/// [`PictureError::NoMeasure`] where there is no curve or no row, [`PictureError::Drawing`].
pub fn curves_svg(curves: &Curves, style: &Style) -> Result<String, PictureError> {
    if curves.rows.is_empty() || curves.curves.is_empty() {
        return Err(PictureError::NoMeasure);
    }
    let mut svg = String::new();
    draw(curves, style, &mut svg).map_err(|error| PictureError::Drawing { reason: error.to_string() })?;
    let names: Vec<&str> = curves.curves.iter().map(|(name, _)| name.as_str()).collect();
    Ok(describe(&svg, &format!("{}: {} of {}", title(curves, style), curves.heading, names.join(", "))))
}

/// Draws the curves as PNG.
///
/// # Errors
///
/// As [`curves_svg`], and [`PictureError::TooLarge`].
pub fn curves_png(curves: &Curves, style: &Style) -> Result<Vec<u8>, PictureError> {
    raster::png(&curves_svg(curves, style)?, style.pixel_ratio)
}

fn title<'a>(curves: &'a Curves, style: &'a Style) -> &'a str {
    style.title.as_deref().unwrap_or(&curves.title)
}

fn draw<'a>(curves: &'a Curves, style: &'a Style, svg: &'a mut String) -> Result<(), Box<dyn std::error::Error + 'a>> {
    let shade = |light: u8, dark: u8| {
        let level = if style.dark { dark } else { light };
        RGBColor(level, level, level)
    };
    let (ink, muted, grid) = (shade(0x18, 0xec), shade(0x60, 0xa8), shade(0xe2, 0x33));
    let area = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    area.fill(&shade(0xff, 0x15))?;
    let heading = TextStyle::from(font(19.0)).color(&ink).pos(Pos::new(HPos::Left, VPos::Top));
    area.draw(&Text::new(title(curves, style).to_owned(), (20, 18), heading))?;
    let note = TextStyle::from(font(12.0)).color(&muted).pos(Pos::new(HPos::Left, VPos::Top));
    area.draw(&Text::new(curves.heading.clone(), (20, 46), note))?;

    let shown = |value: &f64| value.is_finite() && (!curves.logarithmic || *value > 0.0);
    let all = curves.curves.iter().flat_map(|(_, values)| values).copied().filter(shown);
    let (least, most) =
        all.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(value), most.max(value)));
    let look = Look { ink, muted, grid, page: shade(0xff, 0x15), dark: style.dark };
    if curves.logarithmic {
        let (least, most) = if least <= most { (least, most) } else { (0.1, 1.0) };
        plot(&area, curves, (least / 1.5..most * 1.5).log_scale(), shown, &look)?;
    } else {
        let (least, most) = (least.min(0.0), most.max(0.0));
        let most = if most > least { most } else { least + 1.0 };
        plot(&area, curves, least..most * 1.05, shown, &look)?;
    }
    area.present()?;
    Ok(())
}

struct Look {
    ink: RGBColor,
    muted: RGBColor,
    grid: RGBColor,
    page: RGBColor,
    dark: bool,
}

fn font(size: f64) -> FontDesc<'static> {
    // Plotters divides every size by 1.24.
    FontDesc::new(FontFamily::Name(fonts::FAMILIES), size * 1.24, FontStyle::Normal)
}

fn plot<'a, Y>(
    area: &DrawingArea<SVGBackend<'a>, plotters::coord::Shift>,
    curves: &Curves,
    values: Y,
    shown: impl Fn(&f64) -> bool,
    look: &Look,
) -> Result<(), Box<dyn std::error::Error + 'a>>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let last = curves.rows.len() - 1;
    let mut chart = ChartBuilder::on(area)
        .margin_top(72)
        .margin_right(28)
        .margin_bottom(16)
        .margin_left(12)
        .x_label_area_size(34)
        .y_label_area_size(46)
        .build_cartesian_2d(0.0..last.max(1) as f64, values)?;
    // As many labels as fit without touching.
    let widest = curves.rows.iter().map(|row| fonts::width(row, 11.0)).fold(0.0, f64::max) + 12.0;
    let room = ((f64::from(WIDTH) - 100.0) / widest).max(1.0) as usize;
    let step = curves.rows.len().div_ceil(room).max(1);
    let row = |place: &f64| {
        let index = place.round() as usize;
        let on_row = (place - place.round()).abs() < 1e-6 && index.is_multiple_of(step);
        if on_row { curves.rows.get(index).cloned().unwrap_or_default() } else { String::new() }
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(look.grid)
        .light_line_style(TRANSPARENT)
        .axis_style(look.muted)
        .x_labels(curves.rows.len().max(2))
        .x_label_formatter(&row)
        .y_labels(6)
        .y_label_formatter(&|value| format!("{}", (value * 1e6).round() / 1e6))
        .label_style(font(11.0).color(&look.muted))
        .draw()?;
    for ((name, values), colors) in curves.curves.iter().zip(LINES.iter().cycle()) {
        let Rgb(red, green, blue) = colors[usize::from(look.dark)];
        let line = RGBColor(red, green, blue);
        let points: Vec<(f64, f64)> = values.iter().enumerate().map(|(row, &value)| (row as f64, value)).collect();
        for run in points.split(|(_, value)| !shown(value)).filter(|run| !run.is_empty()) {
            chart.draw_series(LineSeries::new(run.iter().copied(), line.stroke_width(2)))?;
        }
        let dots = points.iter().filter(|(_, value)| shown(value)).map(|&point| Circle::new(point, 3, line.filled()));
        chart
            .draw_series(dots)?
            .label(name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], line.stroke_width(3)));
    }
    // The legend stands where the curves are lower: most fall towards the output, some rise to it.
    let highest = |places: std::ops::Range<usize>| {
        let values = curves.curves.iter().filter_map(|(_, values)| values.get(places.clone())).flatten();
        values.copied().filter(|value| shown(value)).fold(f64::NEG_INFINITY, f64::max)
    };
    let third = curves.rows.len().div_ceil(3);
    let rises = highest(0..third) < highest(curves.rows.len() - third..curves.rows.len());
    let position = if rises { SeriesLabelPosition::UpperLeft } else { SeriesLabelPosition::UpperRight };
    chart
        .configure_series_labels()
        .position(position)
        .label_font(font(12.0).color(&look.ink))
        .legend_area_size(26)
        .border_style(TRANSPARENT)
        .background_style(look.page.mix(0.85))
        .draw()?;
    Ok(())
}
