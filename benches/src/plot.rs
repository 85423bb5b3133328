//! The pictures of the report: cost against tokens, blocks and parameters.
//!
//! Small panels beside each other, one legend under all. The page is white: a reader in the dark sees it, too.

use std::{cmp::Reverse, collections::BTreeMap};

use anyhow::{Result, anyhow};
use plotters::{
    coord::{Shift, ranged1d::AsRangedCoord, ranged1d::ValueFormatter},
    prelude::*,
};
use plotters_svg::SVGBackend;

use super::figure::{Beside, Case, Figure, Role, Unit};

/// A picture that is drawn from the figures that know what was run.
#[derive(Debug)]
pub struct Plot {
    /// What the file is called: `tokens`, `layers`, `parameters`.
    pub name: &'static str,
    /// What it shows, for those who cannot see it.
    pub caption: String,
    panels: Vec<Panel>,
}

#[derive(Debug, PartialEq)]
struct Panel {
    title: String,
    across: &'static str,
    scale: Scale,
    lines: Vec<Line>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    Linear,
    Logarithmic,
}

/// The points of one program, by what is on the horizontal axis.
#[derive(Debug, PartialEq)]
struct Line {
    who: Who,
    points: Vec<(f64, f64)>,
}

/// The name of a dtype; the wide one comes first.
type Dtype = Reverse<String>;

/// Whose line it is. Ours come first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Here(Dtype),
    Peer(String, Dtype),
    Floor(Dtype),
    Share(Dtype),
}

impl Who {
    fn name(&self) -> String {
        match self {
            Self::Here(Reverse(dtype)) => format!("here, {dtype}"),
            Self::Peer(name, Reverse(dtype)) => format!("{name}, {dtype}"),
            Self::Floor(Reverse(dtype)) => format!("floor, {dtype}"),
            Self::Share(Reverse(dtype)) => format!("share of the whole, {dtype}"),
        }
    }

    /// Half as many bits, half as much colour.
    fn color(&self) -> RGBColor {
        let light = match self {
            Self::Here(dtype) | Self::Peer(_, dtype) | Self::Floor(dtype) | Self::Share(dtype) => dtype.0 != "f32",
        };
        let (dark, pale) = match self {
            Self::Here(_) => (RGBColor(0x1d, 0x4e, 0xb8), RGBColor(0x6f, 0xa8, 0xf5)),
            Self::Peer(name, _) if name == "candle" => (RGBColor(0x2e, 0x8b, 0x57), RGBColor(0x8f, 0xcf, 0xa8)),
            Self::Peer(..) => (RGBColor(0xc2, 0x4d, 0x05), RGBColor(0xf2, 0xa2, 0x5c)),
            Self::Floor(_) | Self::Share(_) => (RGBColor(0x70, 0x70, 0x78), RGBColor(0xb4, 0xb4, 0xbc)),
        };
        if light { pale } else { dark }
    }

    /// What nobody ran is drawn as a thin line without dots.
    fn is_measured(&self) -> bool {
        matches!(self, Self::Here(_) | Self::Peer(..))
    }
}

/// All pictures that these figures are enough for.
pub fn plots(figures: &[&Figure]) -> Vec<Plot> {
    let of = |section: &'static str| figures.iter().copied().filter(move |figure| figure.section == section);
    let models = |figures: &mut dyn Iterator<Item = &Figure>| {
        let cases = figures.filter_map(|figure| figure.case.as_ref());
        let found: BTreeMap<u64, String> = cases.map(|case| (case.parameters, case.model.clone())).collect();
        found.into_values().collect::<Vec<_>>()
    };
    let mut tokens = Vec::new();
    for model in models(&mut of("forward")) {
        let lines = lines(of("forward"), |case| case.tokens.filter(|_| case.model == model));
        tokens.push(Panel { title: format!("{model}: a forward"), across: "tokens", scale: Scale::Logarithmic, lines });
    }
    let mut layers = Vec::new();
    for model in models(&mut of("depth")) {
        let lines = lines(of("depth"), |case| case.blocks.filter(|_| case.model == model));
        let title = format!("{model}: a run that stops early");
        layers.push(Panel { title, across: "blocks", scale: Scale::Linear, lines });
    }
    let mut parameters = Vec::new();
    for (length, title) in [(45, "a forward of 45 tokens"), (512, "a forward of 512 tokens")] {
        let lines = lines(of("forward"), |case| (case.tokens == Some(length)).then_some(case.parameters));
        parameters.push(Panel { title: title.into(), across: "parameters", scale: Scale::Logarithmic, lines });
    }
    let lines = lines(of("generate"), |case| Some(case.parameters));
    let title = "a new token, cached".to_owned();
    parameters.push(Panel { title, across: "parameters", scale: Scale::Logarithmic, lines });
    let all = [
        ("tokens", "Seconds of a forward against the tokens of the prompt", tokens),
        ("layers", "Seconds of a run against the blocks it runs", layers),
        ("parameters", "Seconds against the parameters of the model", parameters),
    ];
    let drawn = |(name, caption, mut panels): (&'static str, &str, Vec<Panel>)| {
        // One point is no line.
        panels.retain(|panel| panel.lines.iter().any(|line| line.points.len() > 1));
        (!panels.is_empty()).then(|| Plot { name, caption: caption.to_owned(), panels })
    };
    all.into_iter().filter_map(drawn).collect()
}

/// Everybody's points, where `across` has a place for the case.
fn lines<'a>(figures: impl Iterator<Item = &'a Figure>, across: impl Fn(&Case) -> Option<u64>) -> Vec<Line> {
    let mut lines: BTreeMap<Who, BTreeMap<u64, f64>> = BTreeMap::new();
    for figure in figures {
        let Some((case, place)) = figure.case.as_ref().and_then(|case| Some((case, across(case)?))) else { continue };
        let dtype = || Reverse(case.dtype.clone());
        let mut add = |who, value| {
            if let Some(seconds) = seconds(figure.unit, value) {
                lines.entry(who).or_default().insert(place, seconds);
            }
        };
        add(Who::Here(dtype()), figure.value);
        if let Some(Beside { name, value, role }) = &figure.against {
            match role {
                // What of it ran is said in the table.
                Role::Peer => add(Who::Peer(name.split('\'').next().unwrap_or(name).to_owned(), dtype()), *value),
                Role::Floor => add(Who::Floor(dtype()), *value),
                Role::Other if case.blocks.is_some() => add(Who::Share(dtype()), *value),
                Role::Other => {}
            }
        }
    }
    let points = |points: BTreeMap<u64, f64>| points.into_iter().map(|(place, value)| (place as f64, value)).collect();
    lines.into_iter().map(|(who, found)| Line { who, points: points(found) }).collect()
}

/// The time that a number stands for.
fn seconds(unit: Unit, value: f64) -> Option<f64> {
    let seconds = match unit {
        Unit::Seconds => value,
        Unit::TokensPerSecond => 1.0 / value,
        _ => return None,
    };
    (seconds.is_finite() && seconds > 0.0).then_some(seconds)
}

const PANEL: (u32, u32) = (340, 300);
const LEGEND: (u32, u32) = (170, 20);
const INK: RGBColor = RGBColor(0x22, 0x22, 0x26);
const GRID: RGBColor = RGBColor(0xe4, 0xe4, 0xe8);

impl Plot {
    /// The picture as SVG.
    ///
    /// # Errors
    /// If plotters cannot draw it.
    pub fn svg(&self) -> Result<String> {
        let mut who: Vec<&Who> = self.panels.iter().flat_map(|panel| &panel.lines).map(|line| &line.who).collect();
        who.sort();
        who.dedup();
        // A single panel has room beside it for its legend's columns.
        let width = (PANEL.0 * self.panels.len() as u32).max(2 * PANEL.0);
        let columns = (width / LEGEND.0).max(1) as usize;
        let height = PANEL.1 + LEGEND.1 * who.len().div_ceil(columns) as u32 + 12;
        let mut text = String::new();
        self.draw(&mut text, &who, (width, height), columns)
            .map_err(|error| anyhow!("drawing {}: {error}", self.name))?;
        Ok(text)
    }

    fn draw<'a>(
        &self,
        text: &'a mut String,
        who: &[&Who],
        size: (u32, u32),
        columns: usize,
    ) -> Result<(), Box<dyn std::error::Error + 'a>> {
        let root = SVGBackend::with_string(text, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (panels, legend) = root.split_vertically(PANEL.1);
        for (panel, area) in self.panels.iter().zip(panels.split_evenly((1, self.panels.len()))) {
            panel.draw(&area)?;
        }
        for (index, who) in who.iter().enumerate() {
            let (column, row) = (index % columns, index / columns);
            let (x, y) = (16 + (column as u32 * LEGEND.0) as i32, 8 + (row as u32 * LEGEND.1) as i32);
            let color = who.color();
            let stroke = if who.is_measured() { 3 } else { 1 };
            legend.draw(&PathElement::new([(x, y + 6), (x + 20, y + 6)], color.stroke_width(stroke)))?;
            legend.draw(&Text::new(who.name(), (x + 26, y), font(12.0).color(&INK)))?;
        }
        root.present()?;
        Ok(())
    }
}

fn font(size: f64) -> FontDesc<'static> {
    // Plotters divides every size by 1.24.
    FontDesc::new(FontFamily::SansSerif, size * 1.24, FontStyle::Normal)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

impl Panel {
    fn draw<'a>(&self, area: &Area<'a>) -> Result<(), Box<dyn std::error::Error + 'a>> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let range = |of: fn(&(f64, f64)) -> f64| {
            points().map(of).fold((f64::INFINITY, 0.0_f64), |(least, most), value| (least.min(value), most.max(value)))
        };
        let (x, y) = (range(|point| point.0), range(|point| point.1));
        match self.scale {
            Scale::Linear => self.chart(area, 0.0..x.1 * 1.04, 0.0..y.1 * 1.08),
            Scale::Logarithmic => {
                // Where something was measured; of two whose numbers would touch, the larger.
                let apart = (x.1 / x.0).ln() / 8.0;
                let mut places: Vec<f64> = points().map(|point| point.0).collect();
                places.sort_by(|one, other| other.total_cmp(one));
                places.dedup_by(|smaller, larger| (*larger / *smaller).ln() <= apart);
                let (x, y) = (x.0 / 1.3..x.1 * 1.3, y.0 / 1.5..y.1 * 1.5);
                let round = round(&y);
                self.chart(area, x.log_scale().with_key_points(places), y.log_scale().with_key_points(round))
            }
        }
    }

    fn chart<'a, X, Y>(&self, area: &Area<'a>, x: X, y: Y) -> Result<(), Box<dyn std::error::Error + 'a>>
    where
        X: AsRangedCoord<Value = f64>,
        Y: AsRangedCoord<Value = f64>,
        X::CoordDescType: ValueFormatter<f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        let mut chart = ChartBuilder::on(area)
            .margin_top(8)
            .margin_right(16)
            .caption(&self.title, font(14.0).color(&INK))
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .x_labels(8)
            .y_labels(10)
            .x_desc(self.across)
            .x_label_formatter(&|value| short(*value))
            .y_label_formatter(&|value| Unit::Seconds.short(*value))
            .axis_desc_style(font(12.0).color(&INK))
            .label_style(font(11.0).color(&INK))
            .draw()?;
        // Ours on top of the others.
        for line in self.lines.iter().rev() {
            let (color, measured) = (line.who.color(), line.who.is_measured());
            let stroke = if measured { 2 } else { 1 };
            chart.draw_series(LineSeries::new(line.points.iter().copied(), color.stroke_width(stroke)))?;
            if measured {
                chart.draw_series(line.points.iter().map(|&point| Circle::new(point, 3, color.filled())))?;
            }
        }
        Ok(())
    }
}

/// A count that fits under an axis: `45`, `300M`, `2B`.
fn short(value: f64) -> String {
    match value {
        _ if value >= 1e9 => format!("{}B", trimmed(value / 1e9)),
        _ if value >= 1e6 => format!("{}M", trimmed(value / 1e6)),
        _ => trimmed(value),
    }
}

/// Three digits, as far as they are behind the point, and no zeros at the end.
fn trimmed(value: f64) -> String {
    let tenths = match value {
        _ if value >= 100.0 => 1.0,
        _ if value >= 10.0 => 10.0,
        _ => 100.0,
    };
    format!("{}", (value * tenths).round() / tenths)
}

/// Round numbers in a range, powers of ten where those are enough.
fn round(range: &std::ops::Range<f64>) -> Vec<f64> {
    let powers = range.start.log10().floor() as i32..=range.end.log10().ceil() as i32;
    let steps: &[f64] = if powers.clone().count() > 4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let all = powers.flat_map(|power| steps.iter().map(move |step| step * 10.0_f64.powi(power)));
    all.filter(|value| range.contains(value)).collect()
}

impl Unit {
    /// A time that fits beside an axis.
    fn short(self, value: f64) -> String {
        match self {
            Self::Seconds if value == 0.0 => "0".into(),
            Self::Seconds if value < 0.9995 => format!("{} ms", trimmed(value * 1e3)),
            Self::Seconds => format!("{} s", trimmed(value)),
            _ => trimmed(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(section: &str, dtype: &str, tokens: u64, value: f64, unit: Unit) -> Figure {
        let case = Case {
            model: "gpt2".into(),
            parameters: 124_000_000,
            dtype: dtype.into(),
            tokens: Some(tokens),
            blocks: None,
        };
        Figure { section: section.into(), ..Figure::new("forward", value, unit, "x").case(case) }
    }

    #[test]
    fn everybody_has_a_line_and_ours_is_drawn_once() {
        let ours = |tokens, value| figure("forward", "f32", tokens, value, Unit::Seconds);
        let figures = [
            ours(1, 0.1).floor([("a".to_owned(), 0.08), ("b".to_owned(), 0.09)]),
            ours(1, 0.1).peer("transformers", 0.2),
            ours(512, 1.0).peer("transformers", 1.5),
            figure("forward", "bf16", 1, 0.05, Unit::Seconds).against("the same in f32", 0.1),
        ];
        let lines = lines(figures.iter(), |case| case.tokens);
        let found: Vec<_> = lines.iter().map(|line| (line.who.name(), line.points.clone())).collect();
        let expected = [
            ("here, f32", vec![(1.0, 0.1), (512.0, 1.0)]),
            ("here, bf16", vec![(1.0, 0.05)]),
            ("transformers, f32", vec![(1.0, 0.2), (512.0, 1.5)]),
            ("floor, f32", vec![(1.0, 0.08)]),
        ];
        assert_eq!(found, expected.map(|(name, points)| (name.to_owned(), points)));
    }

    #[test]
    fn rates_are_drawn_as_times_and_a_single_point_is_no_plot() {
        let figures = [figure("generate", "f32", 45, 40.0, Unit::TokensPerSecond)];
        assert_eq!(lines(figures.iter(), |case| case.tokens)[0].points, [(45.0, 0.025)]);
        assert!(plots(&figures.iter().collect::<Vec<_>>()).is_empty());
    }

    #[test]
    fn numbers_beside_an_axis_are_short() {
        assert_eq!([45.0, 124_439_808.0, 1.6e9].map(short), ["45", "124M", "1.6B"]);
        assert_eq!(round(&(0.15..3.0)), [0.2, 0.5, 1.0, 2.0]);
        assert_eq!(round(&(0.5e-3..30.0)), [1e-3, 1e-2, 0.1, 1.0, 10.0]);
        assert_eq!([0.0, 0.0125, 1.0].map(|value| Unit::Seconds.short(value)), ["0", "12.5 ms", "1 s"]);
    }
}
