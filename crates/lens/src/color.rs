//! Colours: the maps, and which ink can be read on them.

/// A colour of the sRGB space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rgb(pub(crate) u8, pub(crate) u8, pub(crate) u8);

/// How many colours a terminal can show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ColorDepth {
    /// None: the values are printed beside the tokens instead.
    #[default]
    None,
    /// The 256 colours of xterm.
    Ansi256,
    /// All of them, 24 bits.
    TrueColor,
}

impl Rgb {
    /// The relative luminance of WCAG 2, in 0..=1.
    pub(crate) fn luminance(self) -> f64 {
        let linear = |channel: u8| {
            let channel = f64::from(channel) / 255.0;
            if channel <= 0.04045 { channel / 12.92 } else { ((channel + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * linear(self.0) + 0.7152 * linear(self.1) + 0.0722 * linear(self.2)
    }

    /// Black or white, whichever stands out more: never below a contrast of 4.5 to 1.
    pub(crate) fn ink(self) -> Self {
        let luminance = self.luminance();
        if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) { Self(0, 0, 0) } else { Self(255, 255, 255) }
    }

    /// `#rrggbb`.
    #[cfg(feature = "plot")]
    pub(crate) fn hex(self) -> String {
        format!("#{:02x}{:02x}{:02x}", self.0, self.1, self.2)
    }

    /// The index of the nearest of xterm's 256 colours, and that colour. The first sixteen are left out: a terminal's
    /// theme moves them.
    pub(crate) fn xterm(self) -> (u8, Self) {
        let level = |index: u8| if index == 0 { 0 } else { 55 + 40 * index };
        let cube = (0..216_u8).map(|index| {
            let color = Self(level(index / 36), level(index / 6 % 6), level(index % 6));
            (16 + index, color)
        });
        let greys = (0..24_u8).map(|index| (232 + index, Self(8 + 10 * index, 8 + 10 * index, 8 + 10 * index)));
        cube.chain(greys).min_by_key(|(_, color)| self.distance(*color)).unwrap_or((16, Self(0, 0, 0)))
    }

    fn distance(self, other: Self) -> u32 {
        let square = |a: u8, b: u8| u32::from(a.abs_diff(b)).pow(2);
        // Weighted as the eye weighs them.
        2 * square(self.0, other.0) + 4 * square(self.1, other.1) + 3 * square(self.2, other.2)
    }
}

/// A colour map, over fractions in 0..=1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ColorMap {
    gradient: colorous::Gradient,
    /// The fractions of the gradient that 0 and 1 stand for; the first is the larger for a map that runs backwards.
    from: f64,
    to: f64,
}

impl ColorMap {
    /// Perceptually even, and readable with any colour vision; the brighter, the more.
    pub(crate) const VIRIDIS: Self = Self { gradient: colorous::VIRIDIS, from: 0.0, to: 1.0 };
    /// As even; the brighter, the less. Without the black end, where neighbours look alike.
    pub(crate) const MAGMA_DOWN: Self = Self { gradient: colorous::MAGMA, from: 1.0, to: 0.12 };
    /// As even; the brighter, the less.
    pub(crate) const PLASMA_DOWN: Self = Self { gradient: colorous::PLASMA, from: 1.0, to: 0.0 };
    /// As even; the brighter, the less.
    pub(crate) const CIVIDIS_DOWN: Self = Self { gradient: colorous::CIVIDIS, from: 1.0, to: 0.0 };
    /// Two-sided: blue below, white in the middle, red above.
    pub(crate) const DIVERGING: Self = Self { gradient: colorous::RED_BLUE, from: 0.97, to: 0.03 };

    /// The colour at a fraction; those outside 0..=1 are taken as the nearer end.
    pub(crate) fn at(&self, fraction: f64) -> Rgb {
        let fraction = fraction.clamp(0.0, 1.0);
        let colorous::Color { r, g, b } = self.gradient.eval_continuous(self.from + (self.to - self.from) * fraction);
        Rgb(r, g, b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: [ColorMap; 5] =
        [ColorMap::VIRIDIS, ColorMap::MAGMA_DOWN, ColorMap::PLASMA_DOWN, ColorMap::CIVIDIS_DOWN, ColorMap::DIVERGING];

    #[test]
    fn the_ink_can_be_read_on_every_color() {
        for map in MAPS {
            for step in 0..=100 {
                let color = map.at(f64::from(step) / 100.0);
                let (a, b) = (color.luminance() + 0.05, color.ink().luminance() + 0.05);
                assert!(a.max(b) / a.min(b) >= 4.5, "{color:?}");
            }
        }
    }

    #[test]
    fn sequential_maps_go_one_way_in_brightness() {
        for (map, direction) in MAPS.iter().zip([1.0, -1.0, -1.0, -1.0]) {
            for step in 0..20 {
                let luminance = |step: i32| map.at(f64::from(step) / 20.0).luminance();
                assert!(direction * (luminance(step + 1) - luminance(step)) > 0.0, "{map:?} at {step}");
            }
        }
    }

    #[test]
    fn the_diverging_map_is_palest_in_the_middle_and_red_above() {
        let map = ColorMap::DIVERGING;
        assert!(map.at(0.5).luminance() > 0.85);
        let (below, above) = (map.at(0.0), map.at(1.0));
        assert!(below.2 > below.0 && above.0 > above.2);
        assert_eq!(map.at(-3.0), below);
    }

    #[test]
    fn xterm_colors_are_near() {
        assert_eq!(Rgb(0, 0, 0).xterm().0, 16);
        assert_eq!(Rgb(255, 255, 255).xterm().0, 231);
        assert_eq!(Rgb(128, 128, 128).xterm(), (244, Rgb(128, 128, 128)));
        assert_eq!(Rgb(250, 5, 2).xterm(), (196, Rgb(255, 0, 0)));
    }
}
