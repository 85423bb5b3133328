use super::*;
use crate::{Measure, Table, compare, fixture};

/// The text without its escape sequences.
fn bare(text: &str) -> String {
    let mut bare = String::new();
    let mut parts = text.split('\x1b');
    bare.push_str(parts.next().unwrap());
    for part in parts {
        bare.push_str(part.split_once('m').unwrap().1);
    }
    bare
}

fn draw(table: &Table, measure: &Measure, width: usize, color: ColorDepth) -> String {
    render(table, measure, &TerminalStyle { width, color, ..TerminalStyle::default() }).unwrap()
}

#[test]
fn without_colors_every_value_is_printed() {
    let text = draw(&fixture::small(), &Measure::Probs, 80, ColorDepth::None);
    assert_eq!(
        text,
        "\
tiny (f32) · Probability of the final prediction

predicts  ·blue           ·is★            ·blue★
     h.1  ·blue    0.750  ·is      0.875  ·blue    0.500
     h.0  ·blue    0.250  ·is      0.500  ·blue    0.125
   input  The      0.010  ·sky     0.020  ·is      0.030
   token  The             ·sky            ·is
position  0               1               2

values: Probability of the final prediction  ★ right: predicts the next token
"
    );
}

#[test]
fn every_line_fits_and_every_column_is_drawn() {
    let texts: Vec<String> =
        (0..40).map(|index| format!(" word{}", "ABCDEFGHIJ".repeat(index % 3) + &index.to_string())).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let table = fixture::of_tokens(&texts, &["input", "h.0.attn", "h.0"], &[Measure::Kl]);
    for color in [ColorDepth::None, ColorDepth::Ansi256, ColorDepth::TrueColor] {
        for width in [40, 79, 200] {
            let text = bare(&draw(&table, &Measure::Kl, width, color));
            // The heading and the legend's sentence are prose; the picture is what must fit.
            let prose = ["tiny (f32)", "values:", "★ right"];
            for line in text.lines().filter(|line| !prose.iter().any(|start| line.starts_with(start))) {
                assert!(line.width() <= width, "{width}: {line}");
            }
            let lines = text.lines().filter_map(|line| line.strip_prefix("position"));
            let positions: Vec<usize> =
                lines.flat_map(str::split_whitespace).map(|position| position.parse().unwrap()).collect();
            assert_eq!(positions, (0..40).collect::<Vec<_>>(), "{text}");
        }
    }
}

#[test]
fn cells_line_up_in_every_script() {
    let texts = [
        " the",
        "日本語",
        "السلام",
        " שלום",
        "नमस्ते",
        "สวัสดี",
        "한국어",
        "👩\u{200d}🚀",
        "\t\n",
        "\u{301}",
        "\\xE2\\x80",
        "",
    ];
    let table = fixture::of_tokens(&texts, &["input", "h.0"], &[Measure::Probs]);
    for color in [ColorDepth::None, ColorDepth::Ansi256, ColorDepth::TrueColor] {
        let text = draw(&table, &Measure::Probs, 400, color);
        let rows: Vec<&str> = text.lines().filter(|line| line.contains("h.0 ") || line.contains("input ")).collect();
        let widths: Vec<usize> = rows.iter().map(|row| bare(row).width()).collect();
        assert_eq!(widths.len(), 2);
        assert!(color == ColorDepth::None || widths[0] == widths[1], "{widths:?}");
        assert!(!bare(&text).chars().any(|character| character.is_control() && character != '\n'));
    }
}

#[test]
fn top_down_turns_the_picture_over() {
    let table = fixture::small();
    let style = TerminalStyle { top_down: true, ..TerminalStyle::default() };
    let text = render(&table, &Measure::Kl, &style).unwrap();
    let places: Vec<usize> =
        ["position ", "token ", "input ", "h.0 ", "h.1 ", "predicts "].map(|name| text.find(name).unwrap()).to_vec();
    assert!(places.is_sorted(), "{text}");
}

#[test]
fn colors_are_as_deep_as_asked() {
    let table = fixture::small();
    assert!(!draw(&table, &Measure::Kl, 80, ColorDepth::None).contains('\x1b'));
    let text = draw(&table, &Measure::Kl, 80, ColorDepth::Ansi256);
    assert!(text.contains("\x1b[48;5;") && !text.contains("\x1b[48;2;"));
    let text = draw(&table, &Measure::Kl, 80, ColorDepth::TrueColor);
    assert!(text.contains("\x1b[48;2;") && !text.contains("\x1b[48;5;"));
    assert!(bare(&text).contains("9.5"), "the colour bar has labels: {text}");
}

#[test]
fn comparisons_mark_what_changed() {
    let before = fixture::small();
    let mut after = before.clone();
    after.rows[1].top1[0] = 7;
    after.rows[1].top1_text[0] = " grey".into();
    let comparison = compare(&before, &after).unwrap();
    let text = render(&comparison, &Measure::Probs, &TerminalStyle::default()).unwrap();
    assert!(text.contains("≠·grey") && text.contains("+0.000") && text.contains("the top token changed"), "{text}");
    assert_eq!(text.matches('≠').count(), 2);
}

#[test]
fn nothing_is_also_drawn() {
    let empty = Table { tokens: Vec::new(), positions: Vec::new(), rows: Vec::new(), ..fixture::small() };
    assert!(draw(&empty, &Measure::Kl, 80, ColorDepth::TrueColor).contains("the table is empty"));
    assert!(matches!(
        render(&empty, &Measure::Logits, &TerminalStyle::default()),
        Err(TableError::MeasureNotInTable { .. })
    ));
    assert!(draw(&fixture::small(), &Measure::Kl, 0, ColorDepth::TrueColor).contains("blue"));
}

#[test]
fn texts_are_cut_between_characters() {
    assert_eq!(cut("abcdef", 4), "abc…");
    assert_eq!(cut("日本語", 4), "日…");
    assert_eq!(cut("e\u{301}e\u{301}e\u{301}", 2), "e\u{301}…");
    assert_eq!(cut("abc", 0), "");
    assert_eq!(fit_right("ab", 4), "  ab");
    assert_eq!(fit("日本語", 4).width(), 4);
}
