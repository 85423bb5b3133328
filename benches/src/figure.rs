//! One measured number, what it stands beside, and the table of all.

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Time in seconds; shown in the unit that reads best.
    #[serde(rename = "s")]
    Seconds,
    /// Memory in MiB (2^20 bytes).
    #[serde(rename = "MiB")]
    Mebibytes,
    /// Tokens in a second: the more, the better.
    #[serde(rename = "tokens/s")]
    TokensPerSecond,
    /// 10^9 bytes in a second: the more, the better.
    #[serde(rename = "GB/s")]
    GigabytesPerSecond,
    /// A plain number.
    #[serde(rename = "count")]
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
            Self::TokensPerSecond => format!("{value:.1} tokens/s"),
            Self::GigabytesPerSecond => format!("{value:.1} GB/s"),
            Self::Count => format!("{value}"),
        }
    }

    /// Whether the larger number is the better one.
    fn is_rate(self) -> bool {
        matches!(self, Self::TokensPerSecond | Self::GigabytesPerSecond)
    }
}

/// What was promised of a figure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "value", rename_all = "snake_case")]
pub enum Asked {
    /// Nothing: it is there to be seen.
    #[default]
    Nothing,
    /// The value itself is at most this, in the figure's unit.
    AtMost(f64),
    /// The value is at most this many times what it stands beside; of rates, the times count that they come from.
    TimesAtMost(f64),
    /// What it stands beside takes at least this many times as long.
    FasterBy(f64),
    /// Nothing, but it is to be read like [`Asked::FasterBy`].
    Faster,
    /// The value is what it stands beside.
    Same,
}

/// What somebody else's number is to ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// What cannot be undercut: the products alone, reading the weights, plain copying.
    Floor,
    /// Another library doing the same.
    Peer,
    /// Anything else: a limit, another run of ours.
    Other,
}

/// A number that ours stands beside, in the figure's unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beside {
    /// Whose or what it is.
    pub name: String,
    /// The median of its runs.
    pub value: f64,
    /// What it is to ours.
    pub role: Role,
}

/// What was run, where the plots need to know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The checkpoint's size, by name.
    pub model: String,
    /// How many parameters it has.
    pub parameters: u64,
    /// `f32` or `bf16`.
    pub dtype: String,
    /// Tokens of the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Blocks that were run, where not all were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<u64>,
}

/// One number of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// The section that measured it.
    pub section: String,
    /// What was measured, with the state of the page cache where that matters.
    pub what: String,
    /// The median of the runs.
    pub value: f64,
    /// Of the value and of what it stands beside.
    pub unit: Unit,
    /// A floor, a limit or a peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<Beside>,
    /// The same by other libraries, to be seen only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Beside>,
    /// What was promised.
    #[serde(default)]
    pub asked: Asked,
    /// What was run, where the plots need to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub case: Option<Case>,
    /// The command that measures it.
    pub command: String,
}

impl Figure {
    /// A figure that stands alone.
    pub fn new(what: impl Into<String>, value: f64, unit: Unit, command: impl Into<String>) -> Self {
        let (what, command) = (what.into(), command.into());
        let (section, also) = (String::new(), Vec::new());
        Self { section, what, value, unit, against: None, also, asked: Asked::Nothing, case: None, command }
    }

    /// Beside `value` of `name`, which is a limit or another run of ours.
    pub fn against(self, name: impl Into<String>, value: f64) -> Self {
        self.beside(name, value, Role::Other)
    }

    /// Beside another library's `value`.
    pub fn peer(self, name: impl Into<String>, value: f64) -> Self {
        self.beside(name, value, Role::Peer)
    }

    /// Beside what cannot be undercut: the best of several ways to do nothing but that; the others are shown.
    pub fn floor(self, ways: impl IntoIterator<Item = (String, f64)>) -> Self {
        let mut ways: Vec<(String, f64)> = ways.into_iter().collect();
        ways.sort_by(|(_, a), (_, b)| if self.unit.is_rate() { b.total_cmp(a) } else { a.total_cmp(b) });
        let mut ways = ways.into_iter();
        let Some((name, value)) = ways.next() else { return self };
        let also = ways.map(|(name, value)| Beside { name, value, role: Role::Floor }).collect();
        Self { also, ..self.beside(name, value, Role::Floor) }
    }

    /// With what else should be known, in parentheses.
    pub fn also(mut self, name: impl Into<String>, value: f64) -> Self {
        self.also.push(Beside { name: name.into(), value, role: Role::Floor });
        self
    }

    fn beside(mut self, name: impl Into<String>, value: f64, role: Role) -> Self {
        self.against = Some(Beside { name: name.into(), value, role });
        self
    }

    /// With what was run.
    pub fn case(mut self, case: Case) -> Self {
        self.case = Some(case);
        self
    }

    /// With a promise.
    pub fn asked(mut self, asked: Asked) -> Self {
        self.asked = asked;
        self
    }

    /// How many times the other's value this is; where it is to be faster, the other way round. Of rates, the times count
    /// that they come from.
    pub fn ratio(&self) -> Option<f64> {
        let other = self.against.as_ref()?.value;
        Some(if self.is_speed() == self.unit.is_rate() { self.value / other } else { other / self.value })
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
            Asked::Same => self.against.as_ref().map(|other| self.value == other.value),
        }
    }

    /// The cells of the table's row, without the command.
    fn cells(&self) -> [String; 5] {
        let show = |beside: &Beside| format!("{} {}", self.unit.show(beside.value), beside.name);
        let mut against = self.against.as_ref().map_or_else(String::new, show);
        if !self.also.is_empty() {
            against += &format!(" ({})", self.also.iter().map(show).collect::<Vec<_>>().join(", "));
        }
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
        assert_eq!(Unit::TokensPerSecond.show(23.456), "23.5 tokens/s");
    }

    #[test]
    fn rates_are_judged_by_the_times_they_come_from() {
        let figure = Figure::new("tokens", 40.0, Unit::TokensPerSecond, "x");
        let peer = figure.clone().peer("peer", 20.0).asked(Asked::FasterBy(1.5));
        assert_eq!((peer.ratio(), peer.met()), (Some(2.0), Some(true)));
        let floor = figure.floor([("slow".to_owned(), 44.0), ("fast".to_owned(), 50.0)]).asked(Asked::TimesAtMost(1.2));
        assert_eq!((floor.ratio(), floor.met()), (Some(1.25), Some(false)));
        assert_eq!(floor.cells()[2], "50.0 tokens/s fast (44.0 tokens/s slow)");
    }

    #[test]
    fn the_best_of_several_floors_counts_and_all_are_seen() {
        let ways = [("products by oneDNN".to_owned(), 3.0), ("products by BLAS".to_owned(), 2.0)];
        let figure = Figure::new("forward", 2.2, Unit::Seconds, "x").floor(ways).asked(Asked::TimesAtMost(1.15));
        assert_eq!(figure.met(), Some(true));
        assert_eq!(figure.cells()[2], "2.00 s products by BLAS (3.00 s products by oneDNN)");
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
