use resvg::usvg::{Group, Node};

use super::*;
use crate::{Table, TableError, compare, display_token, fixture};

fn texts_of(group: &Group, texts: &mut Vec<(String, [f64; 4])>) {
    for node in group.children() {
        match node {
            Node::Group(group) => texts_of(group, texts),
            Node::Text(text) => {
                let content: String = text.chunks().iter().map(|chunk| chunk.text().trim().to_owned()).collect();
                let area = text.abs_bounding_box();
                let area = [area.left(), area.top(), area.right(), area.bottom()].map(f64::from);
                texts.push((content, area));
            }
            _ => {}
        }
    }
}

/// Every text of a page and where the rasteriser puts it: left, top, right, bottom.
fn texts(svg: &str) -> Vec<(String, [f64; 4])> {
    let mut texts = Vec::new();
    texts_of(raster::tree(svg).unwrap().root(), &mut texts);
    texts
}

fn page_of(table: &Table, measures: &[Measure]) -> String {
    let pages = svg(table, measures, &Style::default()).unwrap();
    assert_eq!(pages.len(), 1);
    pages.into_iter().next().unwrap()
}

const SCRIPTS: [&str; 16] = [
    " the",
    " counterrevolutionaries",
    "日本語",
    " السَّلام لا",
    " עליכם",
    " नमस्ते",
    "สวัสดี",
    "한국어",
    " 👩\u{200d}🚀",
    "❤\u{fe0f}",
    "\t\t\n",
    "\u{301}",
    "\\xE2\\x80",
    "",
    "<&\">",
    "Москва",
];

#[test]
fn a_picture_has_every_token_name_and_number() {
    let table = fixture::small();
    let texts: Vec<String> = texts(&page_of(&table, &table.measures)).into_iter().map(|(text, _)| text).collect();
    let count = |wanted: &str| texts.iter().filter(|text| *text == wanted).count();
    assert_eq!(count("tiny (f32)"), 1);
    for name in ["input", "h.0", "h.1", "predicts", "token", "position"] {
        assert_eq!(count(name), 2, "{name}: once in each panel of {texts:?}");
    }
    // In each panel: as top-1 of three cells, of another and of the predictions.
    assert_eq!(count("·is"), 2 * (3 + 1 + 1), "{texts:?}");
    assert_eq!(count("★"), 2 * 2);
    assert_eq!(count("KL(final ‖ row), nats"), 1);
}

#[test]
fn there_is_a_rectangle_for_each_cell() {
    let table = fixture::of_tokens(&SCRIPTS, &["input", "h.0", "h.1"], &[Measure::Probs]);
    let svg = page_of(&table, &[Measure::Probs]);
    let cells = svg.lines().filter(|line| line.starts_with("<rect") && line.contains("height=\"23\"")).count();
    assert_eq!(cells, 3 * SCRIPTS.len());
}

#[test]
fn no_text_leaves_its_cell_or_covers_another() {
    for measure in [Measure::Probs, Measure::Ranks] {
        let table = fixture::of_tokens(&SCRIPTS, &["input", "h.0.attn", "h.0"], std::slice::from_ref(&measure));
        let page = page_of(&table, &[measure]);
        let texts = texts(&page);
        assert!(texts.len() > 4 * SCRIPTS.len());
        for (index, (text, [left, top, right, bottom])) in texts.iter().enumerate() {
            assert!(right > left, "{text} is drawn");
            for (other, [other_left, other_top, other_right, other_bottom]) in texts.iter().skip(index + 1) {
                // Bounding boxes include the line's full height: only the middles of lines must be apart. Sideways a
                // pixel is lost to rounding.
                let middle = (top + bottom) / 2.0;
                let apart = *right <= other_left + 1.0
                    || *other_right <= left + 1.0
                    || middle <= *other_top
                    || *other_bottom <= middle;
                assert!(apart, "{text:?} covers {other:?}");
            }
        }
    }
}

#[test]
fn measured_widths_are_those_of_the_rasteriser_or_a_little_more() {
    for script in SCRIPTS {
        let table = fixture::of_tokens(&[script], &["input"], &[Measure::Probs]);
        let style = Style { cell_width: Some(400), ..Style::default() };
        let page = svg(&table, &[Measure::Probs], &style).unwrap().remove(0);
        let shown = fonts::pieces(&display_token(script)).pop().unwrap().0;
        let (_, [left, _, right, _]) = texts(&page).into_iter().find(|(text, _)| *text == shown).unwrap();
        let measured = fonts::width(&shown, panel::CELL_SIZES[0]);
        assert!(right - left <= measured + 2.0, "{shown}: measured {measured}, drawn {}", right - left);
    }
}

#[test]
fn every_character_is_drawn_with_a_glyph() {
    fn glyphs(group: &Group, found: &mut String) {
        for node in group.children() {
            match node {
                Node::Group(group) => glyphs(group, found),
                Node::Text(text) => {
                    for glyph in text.layouted().iter().flat_map(|span| &span.positioned_glyphs) {
                        assert_ne!(glyph.id.0, 0, "no font has {:?}", glyph.text);
                        found.push_str(&glyph.text);
                    }
                }
                _ => {}
            }
        }
    }
    for script in SCRIPTS.into_iter().chain([" 🇩🇪 👍🏽", " हिन्दी", " ਪੰਜਾਬੀ", " ខ្មែរ", " မြန်မာ", " த\u{bcd}", " 日本、"])
    {
        let table = fixture::of_tokens(&[script], &["input"], &[Measure::Probs]);
        let style = Style { cell_width: Some(400), ..Style::default() };
        let page = svg(&table, &[Measure::Probs], &style).unwrap().remove(0);
        let mut found = String::new();
        glyphs(raster::tree(&page).unwrap().root(), &mut found);
        for character in display_token(script).chars() {
            assert!(found.contains(character), "{character:?} of {script:?} is lost");
        }
    }
}

#[test]
fn long_prompts_are_split_evenly() {
    let tokens: Vec<String> = (0..130).map(|index| format!("t{index}")).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let table = fixture::of_tokens(&tokens, &["input"], &[Measure::Kl]);
    let pages = svg(&table, &[Measure::Kl], &Style::default()).unwrap();
    assert_eq!(pages.len(), 3);
    assert!(pages[1].contains("page 2 of 3") && pages[1].contains("positions 43 to 85"), "{}", &pages[1][..2000]);
    for (index, token) in tokens.iter().enumerate() {
        assert!(pages.iter().any(|page| page.contains(&format!("\n{token}\n"))), "{index}");
    }
}

#[test]
fn the_output_is_on_top_unless_asked_otherwise() {
    let table = fixture::small();
    let top_of = |style: &Style, name: &str| {
        let page = svg(&table, &[Measure::Kl], style).unwrap().remove(0);
        texts(&page).into_iter().find(|(text, _)| text == name).unwrap().1[1]
    };
    let order =
        |style: &Style| ["predicts", "h.1", "h.0", "input", "token", "position"].map(|name| top_of(style, name));
    assert!(order(&Style::default()).is_sorted());
    let down = order(&Style { top_down: true, ..Style::default() });
    assert!(down.iter().rev().is_sorted(), "{down:?}");
}

#[test]
fn a_png_has_the_pixels_asked_for() {
    let table = fixture::small();
    let size = |ratio: f32| {
        let style = Style { pixel_ratio: ratio, ..Style::default() };
        let page = png(&table, &[Measure::Probs], &style).unwrap().remove(0);
        assert!(page.starts_with(b"\x89PNG\r\n\x1a\n"));
        let number = |at: usize| u32::from_be_bytes(page[at..at + 4].try_into().unwrap());
        (number(16), number(20))
    };
    let (width, height) = size(1.0);
    assert_eq!(size(2.0), (width * 2, height * 2));
    assert_eq!(size(f32::NAN), (width, height));
}

#[test]
fn dark_pictures_differ_only_in_color() {
    let table = fixture::small();
    let draw = |dark: bool| svg(&table, &[Measure::Probs], &Style { dark, ..Style::default() }).unwrap().remove(0);
    let (light, dark) = (draw(false), draw(true));
    assert_ne!(light, dark);
    assert_eq!(texts(&light), texts(&dark));
}

#[test]
fn comparisons_are_framed_where_they_changed() {
    let before = fixture::small();
    let mut after = before.clone();
    after.rows[1].top1[0] = 7;
    let comparison = compare(&before, &after).unwrap();
    let page = svg(&comparison, &[Measure::Probs], &Style::default()).unwrap().remove(0);
    assert_eq!(page.lines().filter(|line| line.contains("fill=\"none\"")).count(), 2, "one frame of two lines");
    assert!(page.contains("Change: Probability"));
}

#[test]
fn what_cannot_be_drawn_is_refused() {
    let table = fixture::small();
    assert!(matches!(svg(&table, &[], &Style::default()), Err(PictureError::NoMeasure)));
    let error = svg(&table, &[Measure::Ranks], &Style::default()).unwrap_err();
    assert!(matches!(error, PictureError::Table(TableError::MeasureNotInTable { .. })));
}

#[test]
fn nothing_one_cell_and_no_numbers_are_drawn() {
    let empty = Table { tokens: Vec::new(), positions: Vec::new(), rows: Vec::new(), ..fixture::small() };
    let one = fixture::of_tokens(&["x"], &["input"], &[Measure::Kl]);
    let mut nan = one.clone();
    nan.rows[0].values.get_mut(&Measure::Kl).unwrap()[0] = f64::NAN;
    for table in [empty, one, nan] {
        assert_eq!(png(&table, &[Measure::Kl], &Style::default()).unwrap().len(), 1);
    }
}

#[test]
fn the_picture_is_well_formed_whatever_the_names_are() {
    let mut table = fixture::of_tokens(&["]]>", "&amp;", "\u{0}\u{1b}", "\u{fffe}"], &["a<b"], &[Measure::Kl]);
    table.model = "<script>\u{202e}&".into();
    let page = page_of(&table, &[Measure::Kl]);
    raster::tree(&page).unwrap();
    assert!(!page.contains("<script>"));
}

fn two_curves(logarithmic: bool) -> Curves {
    Curves {
        title: "tiny: logit lens and tuned lens".into(),
        heading: "KL(final ‖ row), nats".into(),
        logarithmic,
        rows: std::iter::once("input".to_owned()).chain((0..47).map(|block| format!("h.{block}"))).collect(),
        curves: vec![
            ("logit lens".into(), (0..48).map(|row| 12.0 * 0.9_f64.powi(row)).collect()),
            ("tuned lens".into(), (0..48).map(|row| if row == 5 { f64::NAN } else { 0.9_f64.powi(row) }).collect()),
        ],
    }
}

#[test]
fn curves_have_a_legend_and_row_names_that_do_not_touch() {
    for logarithmic in [false, true] {
        let svg = curves_svg(&two_curves(logarithmic), &Style::default()).unwrap();
        let texts = texts(&svg);
        let find = |wanted: &str| texts.iter().find(|(text, _)| text == wanted);
        for wanted in ["logit lens", "tuned lens", "input", "KL(final ‖ row), nats"] {
            assert!(find(wanted).is_some(), "{wanted}");
        }
        let mut rows: Vec<&[f64; 4]> =
            texts.iter().filter(|(text, _)| text == "input" || text.starts_with("h.")).map(|(_, area)| area).collect();
        rows.sort_by(|a, b| a[0].total_cmp(&b[0]));
        assert!(rows.len() > 5 && rows.windows(2).all(|pair| pair[0][2] < pair[1][0]), "{rows:?}");
        assert!(texts.iter().all(|(_, [left, top, right, bottom])| {
            *left >= 0.0 && *top >= 0.0 && *right <= 760.0 && *bottom <= 440.0
        }));
        assert!(curves_png(&two_curves(logarithmic), &Style { dark: true, ..Style::default() }).unwrap().len() > 1000);
    }
}

#[test]
fn curves_of_nothing_and_of_odd_values() {
    assert!(matches!(curves_svg(&Curves::default(), &Style::default()), Err(PictureError::NoMeasure)));
    for logarithmic in [false, true] {
        for values in [vec![f64::NAN], vec![0.0], vec![-1.0], vec![f64::INFINITY]] {
            let curves = Curves {
                rows: vec!["input".into()],
                curves: vec![("one".into(), values)],
                logarithmic,
                ..Curves::default()
            };
            assert!(curves_svg(&curves, &Style::default()).is_ok(), "{curves:?}");
        }
    }
}
