//! One measured number, what it stands beside, and the table of all.

use std::fmt::{self, Write};

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Time in seconds; shown in the unit that reads best.
    Seconds,
    /// Memory in MiB (2^20 bytes).
    Mebibytes,
    /// A plain number.
    Count,
}

impl Unit {
    /// The number with its unit.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Seconds if value < 1e-6 => format!("{:.1} ns", value * 1e9),
            Self::Seconds if value < 1e-3 => format!("{:.1} us", value * 1e6),
            Self::Seconds if value < 0.1 => format!("{:.2} ms", value * 1e3),
            Self::Seconds => format!("{value:.2} s"),
            Self::Mebibytes if value < 10.0 => format!("{value:.2} MiB"),
            Self::Mebibytes => format!("{value:.0} MiB"),
            Self::Count => format!("{value}"),
        }
    }
}

/// What was promised of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Asked {
    /// Nothing: it is there to be seen.
    Nothing,
    /// The value itself is at most this, in the figure's unit.
    AtMost(f64),
    /// The value is at most this many times what it stands beside.
    TimesAtMost(f64),
    /// What it stands beside is at least this many times the value.
    FasterBy(f64),
    /// Nothing, but it is to be read like [`Asked::FasterBy`].
    Faster,
    /// The value is what it stands beside.
    Same,
}

/// One number of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What was measured, with the state of the page cache where that matters.
    pub what: String,
    /// The median of the runs.
    pub value: f64,
    /// Of the value and of what it stands beside.
    pub unit: Unit,
    /// A floor, a limit or a peer, by name and value.
    pub against: Option<(String, f64)>,
    /// What was promised.
    pub asked: Asked,
    /// The command that measures it.
    pub command: String,
}

impl Figure {
    /// A figure that stands alone.
    pub fn new(what: impl Into<String>, value: f64, unit: Unit, command: impl Into<String>) -> Self {
        let (what, command) = (what.into(), command.into());
        Self { what, value, unit, against: None, asked: Asked::Nothing, command }
    }

    /// Beside `value` of `name`.
    pub fn against(mut self, name: impl Into<String>, value: f64) -> Self {
        self.against = Some((name.into(), value));
        self
    }

    /// With a promise.
    pub fn asked(mut self, asked: Asked) -> Self {
        self.asked = asked;
        self
    }

    /// How many times the other's value this is; where it is to be faster, the other way round.
    pub fn ratio(&self) -> Option<f64> {
        let (_, other) = self.against.as_ref()?;
        Some(if self.is_speed() { other / self.value } else { self.value / other })
    }

    fn is_speed(&self) -> bool {
        matches!(self.asked, Asked::FasterBy(_) | Asked::Faster)
    }

    /// Whether the promise is kept, where there is one that can be judged.
    pub fn met(&self) -> Option<bool> {
        match self.asked {
            Asked::Nothing | Asked::Faster => None,
            Asked::AtMost(most) => Some(self.value <= most),
            Asked::TimesAtMost(most) => self.ratio().map(|ratio| ratio <= most),
            Asked::FasterBy(least) => self.ratio().map(|ratio| ratio >= least),
            Asked::Same => self.against.as_ref().map(|(_, other)| self.value == *other),
        }
    }

    /// The cells of the table's row, without the command.
    fn cells(&self) -> [String; 5] {
        let against = self.against.as_ref();
        let against = against.map_or_else(String::new, |(name, value)| format!("{} {name}", self.unit.show(*value)));
        let ratio = self.ratio().map_or_else(String::new, |ratio| match ratio {
            _ if ratio >= 100.0 => format!("{ratio:.0}"),
            _ if ratio >= 10.0 => format!("{ratio:.1}"),
            _ if ratio < 0.01 => "below 0.01".into(),
            _ => format!("{ratio:.2}"),
        });
        let ratio = if self.is_speed() && !ratio.is_empty() { format!("{ratio} faster") } else { ratio };
        let asked = match self.asked {
            Asked::Nothing | Asked::Faster => String::new(),
            Asked::AtMost(most) => format!("at most {}", self.unit.show(most)),
            Asked::TimesAtMost(most) => format!("at most {most:.2}"),
            Asked::FasterBy(least) => format!("at least {least} faster"),
            Asked::Same => "all".into(),
        };
        let asked = match self.met() {
            Some(false) => format!("{asked} (missed)"),
            _ => asked,
        };
        [self.what.clone(), self.unit.show(self.value), against, ratio, asked]
    }
}

impl fmt::Display for Figure {
    /// One line, for those who watch.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [what, value, against, ratio, asked] = self.cells();
        write!(formatter, "{what}: {value}")?;
        if !against.is_empty() {
            write!(formatter, ", {against}, ratio {ratio}")?;
        }
        if asked.is_empty() { Ok(()) } else { write!(formatter, ", asked {asked}") }
    }
}

/// All figures as an aligned Markdown table, which a terminal shows as well, and under it the commands.
pub fn table(figures: &[Figure]) -> String {
    let mut commands: Vec<&str> = Vec::new();
    let mut rows = vec![["what", "measured", "floor or peer", "ratio", "asked", "command"].map(str::to_owned)];
    for figure in figures {
        let known = commands.iter().position(|command| *command == figure.command);
        let number = known.unwrap_or_else(|| {
            commands.push(&figure.command);
            commands.len() - 1
        });
        let [what, value, against, ratio, asked] = figure.cells();
        rows.push([what, value, against, ratio, asked, format!("[{}]", number + 1)]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        line(&mut text, row, &widths);
        if index == 0 {
            line(&mut text, &widths.map(|width| "-".repeat(width)), &widths);
        }
    }
    text.push('\n');
    for (index, command) in commands.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "[{}] `{command}`  ", index + 1);
    }
    text
}

fn line(text: &mut String, row: &[String; 6], widths: &[usize; 6]) {
    text.push('|');
    for (cell, &width) in row.iter().zip(widths) {
        let _ = write!(text, " {cell:width$} |");
    }
    text.push('\n');
}

/// The middle one, or the mean of the middle two; not a number where there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.get(sorted.len().wrapping_sub(1) / 2), sorted.get(sorted.len() / 2)) {
        (Some(low), Some(high)) => (low + high) / 2.0,
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_odd_and_even_counts() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn promises_are_judged_in_their_own_direction() {
        let figure = |asked| Figure::new("load", 2.0, Unit::Seconds, "x").against("peer", 5.0).asked(asked);
        assert_eq!(figure(Asked::FasterBy(2.0)).ratio(), Some(2.5));
        assert_eq!(figure(Asked::FasterBy(2.0)).met(), Some(true));
        assert_eq!(figure(Asked::FasterBy(3.0)).met(), Some(false));
        assert_eq!(figure(Asked::TimesAtMost(0.5)).ratio(), Some(0.4));
        assert_eq!(figure(Asked::TimesAtMost(0.3)).met(), Some(false));
        assert_eq!(figure(Asked::AtMost(2.0)).met(), Some(true));
        assert_eq!(figure(Asked::Same).met(), Some(false));
        assert_eq!(figure(Asked::Nothing).met(), None);
        assert_eq!((figure(Asked::Faster).ratio(), figure(Asked::Faster).met()), (Some(2.5), None));
        // Without a peer there is nothing to judge.
        assert_eq!(Figure::new("load", 2.0, Unit::Seconds, "x").asked(Asked::FasterBy(2.0)).met(), None);
        // A failed measurement keeps no promise.
        assert_eq!(Figure::new("load", f64::NAN, Unit::Seconds, "x").asked(Asked::AtMost(1.0)).met(), Some(false));
    }

    #[test]
    fn numbers_in_the_unit_that_reads_best() {
        let seconds =
            [(1.4e-9, "1.4 ns"), (2e-4, "200.0 us"), (0.0013, "1.30 ms"), (0.34, "0.34 s"), (12.0, "12.00 s")];
        for (value, text) in seconds {
            assert_eq!(Unit::Seconds.show(value), text);
        }
        assert_eq!(Unit::Mebibytes.show(0.452), "0.45 MiB");
        assert_eq!(Unit::Mebibytes.show(861.2), "861 MiB");
        assert_eq!(Unit::Count.show(12.0), "12");
    }

    #[test]
    fn the_table_is_aligned_and_numbers_each_command_once() {
        let figures = [
            Figure::new("load", 0.001, Unit::Seconds, "a").against("peer", 2.0).asked(Asked::FasterBy(100.0)),
            Figure::new("memory", 3.0, Unit::Mebibytes, "a"),
            Figure::new("lens", 4.0, Unit::Seconds, "b").asked(Asked::AtMost(3.0)),
        ];
        let text = table(&figures);
        let expected = "\
| what   | measured | floor or peer | ratio       | asked                   | command |
| ------ | -------- | ------------- | ----------- | ----------------------- | ------- |
| load   | 1.00 ms  | 2.00 s peer   | 2000 faster | at least 100 faster     | [1]     |
| memory | 3.00 MiB |               |             |                         | [1]     |
| lens   | 4.00 s   |               |             | at most 3.00 s (missed) | [2]     |

[1] `a`  
[2] `b`  
";
        assert_eq!(text, expected);
    }
}
