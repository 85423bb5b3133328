//! The fonts that ship inside the program, and how wide text is in them.
//!
//! Pictures must look the same on a machine without any fonts, in every script a tokenizer knows. Where the fonts come
//! from is written in `fonts/README.md`.

use std::sync::{Arc, OnceLock};

use resvg::usvg::fontdb;
use skrifa::instance::{LocationRef, Size};
use skrifa::{FontRef, MetadataProvider};
use unicode_segmentation::UnicodeSegmentation;

use crate::token_text::right_to_left;

macro_rules! fonts {
    ($($file:literal: $family:literal),* $(,)?) => {
        &[$(Font {
            file: include_bytes!(concat!("../fonts/", $file)),
            families: concat!($family, ", Arial, Helvetica, sans-serif"),
        }),*]
    };
}

/// A font and the list of families for text that is drawn with it: itself, then what viewers without it may have.
/// None of those is wider than ours.
struct Font {
    file: &'static [u8],
    families: &'static str,
}

/// In the order in which they are asked for a character. Emoji are last: that font has digits, too.
const FONTS: &[Font] = fonts![
    "NotoSans-Regular.ttf": "Noto Sans",
    "DejaVuSans-Rest.ttf": "DejaVu Sans, Noto Sans",
    "NotoSansDevanagari-Regular.ttf": "Noto Sans Devanagari, Noto Sans",
    "NotoSansBengali-Regular.ttf": "Noto Sans Bengali, Noto Sans",
    "NotoSansGurmukhi-Regular.ttf": "Noto Sans Gurmukhi, Noto Sans",
    "NotoSansGujarati-Regular.ttf": "Noto Sans Gujarati, Noto Sans",
    "NotoSansTamil-Regular.ttf": "Noto Sans Tamil, Noto Sans",
    "NotoSansTelugu-Regular.ttf": "Noto Sans Telugu, Noto Sans",
    "NotoSansKannada-Regular.ttf": "Noto Sans Kannada, Noto Sans",
    "NotoSansMalayalam-Regular.ttf": "Noto Sans Malayalam, Noto Sans",
    "NotoSansSinhala-Regular.ttf": "Noto Sans Sinhala, Noto Sans",
    "NotoSansThai-Regular.ttf": "Noto Sans Thai, Noto Sans",
    "NotoSansLao-Regular.ttf": "Noto Sans Lao, Noto Sans",
    "NotoSansKhmer-Regular.ttf": "Noto Sans Khmer, Noto Sans",
    "NotoSansMyanmar-Regular.ttf": "Noto Sans Myanmar, Noto Sans",
    "NotoSansEthiopic-Regular.ttf": "Noto Sans Ethiopic, Noto Sans",
    "DroidSansFallback.ttf": "Droid Sans Fallback, Noto Sans",
    "NotoEmoji-Regular.ttf": "Noto Emoji, Noto Sans",
];

/// The families of ordinary text.
pub(crate) const FAMILIES: &str = FONTS[0].families;

/// All the fonts, for the rasteriser.
pub(crate) fn database() -> Arc<fontdb::Database> {
    static DATABASE: OnceLock<Arc<fontdb::Database>> = OnceLock::new();
    let load = || {
        let mut database = fontdb::Database::new();
        for font in FONTS {
            database.load_font_source(fontdb::Source::Binary(Arc::new(font.file)));
        }
        database.set_sans_serif_family("Noto Sans");
        Arc::new(database)
    };
    Arc::clone(DATABASE.get_or_init(load))
}

fn faces() -> &'static [FontRef<'static>] {
    static FACES: OnceLock<Vec<FontRef<'static>>> = OnceLock::new();
    FACES.get_or_init(|| FONTS.iter().filter_map(|font| FontRef::new(font.file).ok()).collect())
}

/// A text in the pieces in which it must be drawn, each with its font families: almost always one.
///
/// The rasteriser's own fallback replaces glyphs one by one, and so loses those of characters that were joined by the
/// one font and not by the other: of ` 👩‍🚀` either the space's mark or the astronaut. Where characters join, each piece
/// is in one font. Text that runs from right to left is never cut: its font has all it needs.
pub(crate) fn pieces(text: &str) -> Vec<(String, &'static str)> {
    let font = |character| faces().iter().position(|face| face.charmap().map(character).is_some());
    let lacks = |face: usize, character: char| {
        !hidden(character) && faces().get(face).is_some_and(|face| face.charmap().map(character).is_none())
    };
    let first = text.chars().filter(|character| !hidden(*character)).filter_map(font).find(|font| *font > 0);
    let main = first.unwrap_or_default();
    let joined = text.graphemes(true).any(|cluster| cluster.chars().nth(1).is_some());
    if !joined || text.chars().any(right_to_left) || !text.chars().any(|character| lacks(main, character)) {
        return vec![(text.into(), families(main))];
    }
    let mut pieces: Vec<(String, usize)> = Vec::new();
    for cluster in text.graphemes(true) {
        let font = cluster.chars().filter_map(font).next().unwrap_or_default();
        match pieces.last_mut() {
            Some((piece, last)) if *last == font => piece.push_str(cluster),
            _ => pieces.push((cluster.into(), font)),
        }
    }
    pieces.into_iter().map(|(piece, font)| (piece, families(font))).collect()
}

fn families(font: usize) -> &'static str {
    FONTS.get(font).map_or("sans-serif", |font| font.families)
}

/// How wide a text is at a font size, in the unit of the size.
///
/// This is the sum of its characters' widths, each in the first font that has it. Shaping joins and stacks
/// characters, so the text as drawn is that wide or a little narrower.
pub(crate) fn width(text: &str, size: f64) -> f64 {
    text.chars().map(advance).sum::<f64>() * size
}

/// A character's width at size 1.
fn advance(character: char) -> f64 {
    if hidden(character) {
        return 0.0;
    }
    for face in faces() {
        let Some(glyph) = face.charmap().map(character).filter(|glyph| glyph.to_u32() != 0) else { continue };
        let metrics = face.glyph_metrics(Size::new(1.0), LocationRef::default());
        return metrics.advance_width(glyph).map_or(1.0, f64::from);
    }
    // A box is drawn for what no font has.
    1.0
}

/// Joiners and variation selectors are not drawn.
fn hidden(character: char) -> bool {
    matches!(character, '\u{200c}'..='\u{200f}' | '\u{fe00}'..='\u{fe0f}')
}

/// A text made to fit: at the largest of the sizes at which it does, or cut at the smallest. `…` stands for what was
/// cut; the cut is never inside a character as a reader sees it.
pub(crate) fn fit(text: &str, room: f64, sizes: &[f64]) -> (String, f64) {
    for &size in sizes {
        if width(text, size) <= room {
            return (text.into(), size);
        }
    }
    let size = sizes.last().copied().unwrap_or(1.0);
    let mut used = width("…", size);
    let mut kept = String::new();
    for cluster in text.graphemes(true) {
        used += width(cluster, size);
        if used > room {
            break;
        }
        kept.push_str(cluster);
    }
    kept.push('…');
    (kept, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_font_can_be_read() {
        assert_eq!(faces().len(), FONTS.len());
        assert_eq!(database().len(), FONTS.len());
        assert_eq!(database().faces().next().unwrap().families[0].0, "Noto Sans");
    }

    #[test]
    fn joined_characters_are_drawn_with_their_own_font() {
        let first = |text: &str| {
            let family = |(piece, families): (String, &'static str)| (piece, families.split(',').next().unwrap());
            pieces(text).into_iter().map(family).collect::<Vec<_>>()
        };
        assert_eq!(first("·the"), [("·the".into(), "Noto Sans")]);
        let astronaut = "👩\u{200d}🚀".to_owned();
        assert_eq!(first("·👩\u{200d}🚀"), [("·".into(), "Noto Sans"), (astronaut, "Noto Emoji")]);
        assert_eq!(first("·नमस्ते"), [("·".into(), "Noto Sans"), ("नमस्ते".into(), "Noto Sans Devanagari")]);
        assert_eq!(first("·日本"), [("·日本".into(), "Droid Sans Fallback")]);
        assert_eq!(first("·السَّلام"), [("·السَّلام".into(), "DejaVu Sans")]);
        for (font, face) in FONTS.iter().zip(database().faces()) {
            assert_eq!(font.families.split(',').next().unwrap(), face.families[0].0);
        }
    }

    #[test]
    fn every_script_has_a_font() {
        let samples = [
            "The quick brown fox·⏎⇥∅◌★≠…⍽–−≤≥‖“”�",
            "Ελληνικά Кириллица ქართული Հայերեն",
            "العربية فارسی اردو עברית",
            "हिन्दी বাংলা ਪੰਜਾਬੀ ગુજરાતી தமிழ் తెలుగు ಕನ್ನಡ മലയാളം සිංහල",
            "ไทย ລາວ ខ្មែរ မြန်မာ አማርኛ",
            "漢字 仮名 カタカナ 한국어 。「」",
            "😀🚀👩❤🇩🇪👍🏽",
            "∑∫√≈∞→⇒■●♥♫½²",
        ];
        for sample in samples {
            for character in sample.chars() {
                let found = faces().iter().any(|face| face.charmap().map(character).is_some());
                assert!(found, "{character} U+{:04X}", u32::from(character));
            }
        }
    }

    #[test]
    fn texts_shrink_first_and_are_cut_last() {
        let sizes = [12.0, 10.0, 8.0];
        assert_eq!(fit("the", 50.0, &sizes), ("the".into(), 12.0));
        let full = width("understanding", 12.0);
        assert_eq!(fit("understanding", full - 1.0, &sizes), ("understanding".into(), 10.0));
        let (cut, size) = fit("understanding", full / 2.0, &sizes);
        assert!(cut.ends_with('…') && cut.len() > 6 && size == 8.0, "{cut}");
        assert!(width(&cut, size) <= full / 2.0);
        assert_eq!(fit("日本", 0.0, &sizes).0, "…");
    }
}
