//! The fonts that ship inside the program, and how wide text is in them.
//!
//! Pictures must look the same on a machine without any fonts, in every script a tokenizer knows. Where the fonts come
//! from is written in `fonts/README.md`.

use std::sync::{Arc, OnceLock};

use resvg::usvg::fontdb;
use skrifa::instance::{LocationRef, Size};
use skrifa::{FontRef, MetadataProvider};
use unicode_segmentation::UnicodeSegmentation;

/// The family of all text in a picture; the rest of the list is for viewers that do not have the first. None of them
/// is wider.
pub(crate) const FAMILIES: &str = "Noto Sans, Arial, Helvetica, sans-serif";

macro_rules! fonts {
    ($($file:literal),* $(,)?) => { &[$(include_bytes!(concat!("../fonts/", $file))),*] };
}

/// In the order in which they are asked for a character. Emoji are last: that font has digits, too.
const FILES: &[&[u8]] = fonts![
    "NotoSans-Regular.ttf",
    "DejaVuSans-Rest.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansBengali-Regular.ttf",
    "NotoSansGurmukhi-Regular.ttf",
    "NotoSansGujarati-Regular.ttf",
    "NotoSansTamil-Regular.ttf",
    "NotoSansTelugu-Regular.ttf",
    "NotoSansKannada-Regular.ttf",
    "NotoSansMalayalam-Regular.ttf",
    "NotoSansSinhala-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    "NotoSansLao-Regular.ttf",
    "NotoSansKhmer-Regular.ttf",
    "NotoSansMyanmar-Regular.ttf",
    "NotoSansEthiopic-Regular.ttf",
    "DroidSansFallback.ttf",
    "NotoEmoji-Regular.ttf",
];

/// All the fonts, for the rasteriser.
pub(crate) fn database() -> Arc<fontdb::Database> {
    static DATABASE: OnceLock<Arc<fontdb::Database>> = OnceLock::new();
    let load = || {
        let mut database = fontdb::Database::new();
        for file in FILES {
            database.load_font_source(fontdb::Source::Binary(Arc::new(*file)));
        }
        database.set_sans_serif_family("Noto Sans");
        Arc::new(database)
    };
    Arc::clone(DATABASE.get_or_init(load))
}

fn faces() -> &'static [FontRef<'static>] {
    static FACES: OnceLock<Vec<FontRef<'static>>> = OnceLock::new();
    FACES.get_or_init(|| FILES.iter().filter_map(|file| FontRef::new(file).ok()).collect())
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
    // Joiners and variation selectors are not drawn.
    if matches!(character, '\u{200c}'..='\u{200f}' | '\u{fe00}'..='\u{fe0f}') {
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
        assert_eq!(faces().len(), FILES.len());
        assert_eq!(database().len(), FILES.len());
        assert_eq!(database().faces().next().unwrap().families[0].0, "Noto Sans");
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
