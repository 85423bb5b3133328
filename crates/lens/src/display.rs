//! Tables and comparisons as plain text.

use std::fmt;

use crate::{
    compare::Comparison,
    grid::Grid,
    table::Table,
    terminal::{TerminalStyle, render},
    view::View,
};

/// The heatmap of each measure without colours, in 80 columns or the width that the format asks for.
impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        heatmaps(self.into(), formatter)
    }
}

/// The heatmap of each measure's change without colours, in 80 columns or the width that the format asks for.
impl fmt::Display for Comparison {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        heatmaps(self.into(), formatter)
    }
}

/// The heatmap without colours, in 80 columns or the width that the format asks for.
impl fmt::Display for Grid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        heatmaps(self.into(), formatter)
    }
}

fn heatmaps(view: View<'_>, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    let style = TerminalStyle::default();
    let style = style.width(formatter.width().unwrap_or(80));
    for (at, measure) in view.measures().into_iter().enumerate() {
        // The measures are the view's own.
        let heatmap = render(view, measure, &style).map_err(|_| fmt::Error)?;
        let line_ends = if at > 0 { "\n\n" } else { "" };
        write!(formatter, "{line_ends}{}", heatmap.trim_end_matches('\n'))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::{
        Measure, compare, fixture,
        terminal::{TerminalStyle, render},
    };

    #[test]
    fn a_table_displays_every_measure_without_colors() {
        let table = fixture::small();
        let style = TerminalStyle::default();
        let of = |measure| render(&table, &measure, &style).unwrap();
        let expected = format!("{}\n{}", of(Measure::Probs), of(Measure::Kl));
        assert_eq!(format!("{table}\n"), expected);
        assert!(!expected.contains('\x1b'));
    }

    #[test]
    fn the_format_says_the_width() {
        let narrow = format!("{:40}", fixture::small());
        assert_ne!(narrow, fixture::small().to_string());
        assert!(
            narrow.lines().skip(1).filter(|line| !line.starts_with("values")).all(|line| line.chars().count() <= 40)
        );
    }

    #[test]
    fn a_comparison_displays_its_changes() {
        let (before, mut after) = (fixture::small(), fixture::small());
        after.rows[1].top1[0] = 1;
        let shown = compare(&before, &after).unwrap().to_string();
        assert!(shown.contains('≠') && shown.contains("Change: "), "{shown}");
    }
}
