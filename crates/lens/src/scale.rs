//! From a value to a place on a colour bar.

use crate::color::{ColorMap, Rgb};
use crate::measure::Measure;

/// How the values of one measure are coloured.
///
/// One rule holds for every sequential map: the brighter a cell, the nearer it is to the model's final answer (or,
/// for entropies, the surer).
#[derive(Clone, Debug)]
pub(crate) struct Scale {
    map: ColorMap,
    transform: Transform,
    low: f64,
    high: f64,
    /// What stands in the middle of a two-sided map.
    center: f64,
    /// Whether some values lie beyond the ends.
    below: bool,
    above: bool,
}

/// How values are spread over the colour bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transform {
    /// Evenly.
    Linear,
    /// The root, with the sign kept: room for what happens near zero, as KL shrinks to it over the last layers.
    Root,
    /// The logarithm of one more than the size, with the sign kept: for ranks, which span the vocabulary.
    Logarithm,
}

/// A labelled place on the colour bar.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tick {
    /// Where, in 0..=1.
    pub(crate) fraction: f64,
    /// The value there.
    pub(crate) label: String,
}

impl Transform {
    /// The name the HTML page knows it by.
    #[cfg(feature = "plot")]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Root => "root",
            Self::Logarithm => "logarithm",
        }
    }

    fn apply(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Root => value.abs().sqrt().copysign(value),
            Self::Logarithm => value.abs().ln_1p().copysign(value),
        }
    }
}

impl Scale {
    /// A scale for a measure over all the values that will be drawn with it.
    pub(crate) fn new<'a>(measure: &Measure, values: impl IntoIterator<Item = &'a [f64]>) -> Self {
        let sorted = sorted(values);
        let (map, transform, low, high) = match measure {
            Measure::Logits => (ColorMap::VIRIDIS, Transform::Linear, quantile(&sorted, 0.01), quantile(&sorted, 0.99)),
            Measure::Probs | Measure::TrackedProb(_) => (ColorMap::VIRIDIS, Transform::Linear, 0.0, 1.0),
            Measure::Ranks | Measure::TrackedRank(_) => {
                (ColorMap::PLASMA_DOWN, Transform::Logarithm, 1.0, quantile(&sorted, 1.0).max(10.0))
            }
            Measure::Kl | Measure::ReverseKl => {
                (ColorMap::MAGMA_DOWN, Transform::Root, 0.0, round_up(quantile(&sorted, 0.98)).max(0.1))
            }
            Measure::CrossEntropy => {
                (ColorMap::CIVIDIS_DOWN, Transform::Root, 0.0, round_up(quantile(&sorted, 0.98)).max(0.1))
            }
            Measure::Entropy => {
                (ColorMap::CIVIDIS_DOWN, Transform::Linear, 0.0, round_up(quantile(&sorted, 1.0)).max(0.1))
            }
        };
        Self::with_range(map, transform, low, high, &sorted)
    }

    /// A two-sided scale around zero for the differences of a measure.
    pub(crate) fn difference<'a>(measure: &Measure, values: impl IntoIterator<Item = &'a [f64]>) -> Self {
        let sorted = sorted(values);
        let mut sizes: Vec<f64> = sorted.iter().map(|value| value.abs()).collect();
        sizes.sort_by(f64::total_cmp);
        let size = round_up(quantile(&sizes, 0.98));
        let (transform, smallest) = match measure.unit() {
            "probability" => (Transform::Linear, 1e-6),
            "logit" => (Transform::Linear, 1e-3),
            "rank" => (Transform::Logarithm, 10.0),
            _ => (Transform::Root, 1e-6),
        };
        let size = if size > smallest { size } else { quantile(&sizes, 1.0).max(smallest) };
        Self::with_range(ColorMap::DIVERGING, transform, -size, size, &sorted)
    }

    /// A two-sided scale around any number.
    pub(crate) fn around<'a>(center: f64, values: impl IntoIterator<Item = &'a [f64]>) -> Self {
        let sorted = sorted(values);
        // Effects are few and large: the largest must not look like those that follow.
        let size = round_up(sorted.iter().map(|value| (value - center).abs()).fold(0.0, f64::max)).max(1e-6);
        let scale = Self::with_range(ColorMap::DIVERGING, Transform::Linear, center - size, center + size, &sorted);
        Self { center, ..scale }
    }

    /// A scale from zero, or the least if that is less, to the most.
    pub(crate) fn upwards<'a>(values: impl IntoIterator<Item = &'a [f64]>) -> Self {
        let sorted = sorted(values);
        let (low, high) = (quantile(&sorted, 0.0).min(0.0), round_up(quantile(&sorted, 1.0)));
        // Of long inputs most is near zero.
        Self::with_range(ColorMap::VIRIDIS, Transform::Root, low, high, &sorted)
    }

    fn with_range(map: ColorMap, transform: Transform, low: f64, high: f64, sorted: &[f64]) -> Self {
        // A range without width would leave nothing to divide by.
        let (low, high) = if high > low { (low, high) } else { (low - 0.5, low + 0.5) };
        let below = sorted.first().is_some_and(|&least| least < low);
        let above = sorted.last().is_some_and(|&most| most > high);
        Self { map, transform, low, high, center: 0.0, below, above }
    }

    /// Where a value lies between the ends, in 0..=1; nowhere if it is not finite.
    pub(crate) fn fraction(&self, value: f64) -> Option<f64> {
        if !value.is_finite() {
            return None;
        }
        let apply = |value| self.transform.apply(value);
        let fraction = (apply(value) - apply(self.low)) / (apply(self.high) - apply(self.low));
        Some(fraction.clamp(0.0, 1.0))
    }

    /// The colour of a value; none if it is not finite.
    pub(crate) fn color(&self, value: f64) -> Option<Rgb> {
        self.fraction(value).map(|fraction| self.map.at(fraction))
    }

    /// The colour at a fraction of the bar.
    pub(crate) fn color_at(&self, fraction: f64) -> Rgb {
        self.map.at(fraction)
    }

    /// The transform and the two ends.
    #[cfg(feature = "plot")]
    pub(crate) fn range(&self) -> (Transform, f64, f64) {
        (self.transform, self.low, self.high)
    }

    /// Labelled values in ascending order, no two nearer than `gap` (a fraction of the bar). An end that values lie
    /// beyond says so: `≥13`.
    pub(crate) fn ticks(&self, gap: f64) -> Vec<Tick> {
        let mut chosen: Vec<(f64, f64)> = Vec::new();
        let mut take = |value: f64, gap: f64| {
            let Some(fraction) = self.fraction(value) else { return };
            if chosen.iter().all(|(taken, _)| (fraction - taken).abs() >= gap) {
                chosen.push((fraction, value));
            }
        };
        take(self.low, gap);
        take(self.high, gap);
        if self.low < self.center && self.high > self.center {
            take(self.center, gap);
        }
        let mut candidates = self.candidates();
        candidates.retain(|value| *value > self.low && *value < self.high);
        candidates.into_iter().for_each(|value| take(value, gap));
        chosen.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let labelled = |(fraction, value): (f64, f64)| {
            let plain = if self.center == 0.0 { plain(value) } else { self.rounded(value) };
            let label = match fraction {
                0.0 if self.below => format!("≤{plain}"),
                1.0 if self.above => format!("≥{plain}"),
                _ => plain,
            };
            Tick { fraction, label }
        };
        chosen.into_iter().map(labelled).collect()
    }

    /// A tick's value, to what can be told apart on the bar: around a number that is not round, none is.
    fn rounded(&self, value: f64) -> String {
        let decimals = (2.0 - (self.high - self.low).log10().floor()).clamp(0.0, 9.0);
        let unit = 10_f64.powf(decimals);
        plain((value * unit).round() / unit)
    }

    /// Round values that may be ticks, the roundest first.
    fn candidates(&self) -> Vec<f64> {
        let span = (self.high - self.low).abs();
        let size = self.low.abs().max(self.high.abs());
        if self.transform == Transform::Linear {
            let step = round_step(span / 5.0);
            let first = (self.low / step).ceil();
            return (0..12_i32).map(|index| (first + f64::from(index)) * step).collect();
        }
        let top = size.log10().ceil() as i32;
        let mut candidates = Vec::new();
        for factor in [1.0, 5.0, 2.0] {
            for exponent in (top - 8..=top).rev() {
                let value = factor * 10_f64.powi(exponent);
                // There are no ranks between the whole numbers.
                if self.transform == Transform::Root || value >= 1.0 {
                    candidates.extend([value, -value]);
                }
            }
        }
        candidates
    }
}

fn sorted<'a>(values: impl IntoIterator<Item = &'a [f64]>) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.into_iter().flatten().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// A quantile of sorted values, or zero of none. A few outliers, as the first position always is, should not flatten
/// all the other colours into one.
fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    // With few values each of them counts.
    let fraction = if sorted.len() < 50 { fraction.round() } else { fraction };
    sorted.get((last as f64 * fraction).round() as usize).copied().unwrap_or_default()
}

/// The next number of two digits.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return 0.0;
    }
    let unit = 10_f64.powf(value.log10().floor() - 1.0);
    // So that 13 stays 13.
    ((value / unit - 1e-9).ceil()) * unit
}

/// The nearest of 1, 2, 5, 10, ...
fn round_step(value: f64) -> f64 {
    let unit = 10_f64.powf(value.max(f64::MIN_POSITIVE).log10().floor());
    let factor = value / unit;
    unit * if factor < 1.5 {
        1.0
    } else if factor < 3.5 {
        2.0
    } else if factor < 7.5 {
        5.0
    } else {
        10.0
    }
}

/// A tick's value without a tail of noise.
fn plain(value: f64) -> String {
    let size = value.abs();
    let text = if size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 1.0 {
        format!("{value:.1}")
    } else if size >= 0.001 {
        format!("{value:.4}")
    } else if size > 0.0 {
        return format!("{value:.0e}").replace('-', "−");
    } else {
        return "0".into();
    };
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    text.replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: &Scale) -> Vec<String> {
        scale.ticks(0.1).into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn probabilities_always_span_zero_to_one() {
        let scale = Scale::new(&Measure::Probs, [&[0.2, 0.3][..]]);
        assert_eq!(labels(&scale), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(scale.fraction(0.25), Some(0.25));
    }

    #[test]
    fn ranks_are_spread_by_their_logarithm() {
        let scale = Scale::new(&Measure::Ranks, [&[1.0, 50257.0][..]]);
        assert_eq!(scale.fraction(1.0), Some(0.0));
        assert_eq!(scale.fraction(50257.0), Some(1.0));
        assert!(scale.fraction(100.0).unwrap() > 0.3);
        let labels = labels(&scale);
        assert!(labels.starts_with(&["1".into()]) && labels.contains(&"100".into()), "{labels:?}");
        assert!(labels.ends_with(&["50257".into()]), "{labels:?}");
    }

    #[test]
    fn one_outlier_does_not_flatten_the_rest() {
        let mut values: Vec<f64> = (0..99).map(|value| f64::from(value) / 10.0).collect();
        values.push(1e6);
        let scale = Scale::new(&Measure::Kl, [&values[..]]);
        assert!(scale.fraction(5.0).unwrap() > 0.5);
        assert!(labels(&scale).last().unwrap().starts_with('≥'), "{:?}", labels(&scale));
    }

    #[test]
    fn differences_are_centred() {
        for measure in Measure::PLAIN {
            let scale = Scale::difference(&measure, [&[-0.25, 0.1, 0.0][..]]);
            assert!((scale.fraction(0.0).unwrap() - 0.5).abs() < 1e-12, "{measure}");
            assert!(labels(&scale).contains(&"0".to_owned()));
        }
    }

    #[test]
    fn no_values_one_value_and_no_numbers_are_fine() {
        for measure in Measure::PLAIN {
            for values in [&[][..], &[3.0], &[f64::NAN, f64::INFINITY], &[0.0, 0.0]] {
                for scale in [Scale::new(&measure, [values]), Scale::difference(&measure, [values])] {
                    assert!(scale.ticks(0.1).len() >= 2, "{measure} {values:?}");
                    assert!(scale.color(1.0).is_some() && scale.color(f64::NAN).is_none());
                }
            }
        }
    }

    #[test]
    fn ticks_keep_their_distance_and_ascend() {
        let values: Vec<f64> = (0..500).map(|value| f64::from(value).powi(3) / 1e5 - 3.0).collect();
        for measure in Measure::PLAIN {
            for scale in [Scale::new(&measure, [&values[..]]), Scale::difference(&measure, [&values[..]])] {
                let ticks = scale.ticks(0.08);
                assert!(ticks.len() >= 4, "{measure}: {ticks:?}");
                assert!(ticks.windows(2).all(|pair| pair[1].fraction - pair[0].fraction >= 0.08), "{ticks:?}");
            }
        }
    }

    #[test]
    fn numbers_are_rounded_and_plain() {
        let cases = [(12.37, 13.0), (0.0123, 0.013), (13.0, 13.0), (9.95, 10.0), (0.0, 0.0)];
        for (value, rounded) in cases {
            assert!((round_up(value) - rounded).abs() < 1e-12, "{value}");
        }
        let cases = [(0.5, "0.5"), (-2.0, "−2"), (50257.0, "50257"), (0.000_01, "1e−5"), (12.0, "12"), (100.0, "100")];
        for (value, text) in cases {
            assert_eq!(plain(value), text);
        }
    }
}
