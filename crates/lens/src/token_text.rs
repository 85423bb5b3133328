//! Token text: what bytes a token stands for, and how to show them so that they can be read.
//!
//! There are two steps, and they answer different questions. [`token_text_from_bytes`] turns a token's bytes into
//! text without losing anything: it is what a table stores. [`display_token`] turns that text into what fits in a
//! cell: it marks spaces and line ends and disarms whatever would wreck a layout, and does not promise a way back.

use unicode_width::UnicodeWidthChar;

/// Text for the bytes of one token. The valid UTF-8 in it stays as it is; every other byte becomes `\xE2`, with two
/// upper-case digits.
///
/// A byte-level tokenizer may cut a character in two, so a token need not be valid UTF-8 by itself. The result is
/// unambiguous: a backslash that would read as such an escape is itself written `\x5C`, and
/// [`token_bytes_from_text`] gives the bytes back.
///
/// ```
/// # use lens::token_text_from_bytes;
/// assert_eq!(token_text_from_bytes(" café".as_bytes()), " café");
/// assert_eq!(token_text_from_bytes(&[b'a', 0xE2, 0x80]), r"a\xE2\x80");
/// assert_eq!(token_text_from_bytes(br"\xE2"), r"\x5CxE2");
/// ```
pub fn token_text_from_bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        let mut rest = chunk.valid();
        while let Some(at) = rest.find('\\') {
            let (before, from) = rest.split_at(at);
            text.push_str(before);
            text.push_str(if escaped_byte(from).is_some() { r"\x5C" } else { "\\" });
            rest = from.get(1..).unwrap_or_default();
        }
        text.push_str(rest);
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02X}"));
        }
    }
    text
}

/// The bytes that [`token_text_from_bytes`] wrote as `text`.
pub fn token_bytes_from_text(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some(byte) = escaped_byte(rest) {
            bytes.push(byte);
            rest = rest.get(4..).unwrap_or_default();
        } else {
            let length = first.len_utf8();
            bytes.extend_from_slice(rest.as_bytes().get(..length).unwrap_or_default());
            rest = rest.get(length..).unwrap_or_default();
        }
    }
    bytes
}

/// The byte that `text` begins with an escape of, if it does.
fn escaped_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("\\x")?.get(..2)?;
    let upper = digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'A'..=b'F'));
    if upper { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// A token as it is shown in a cell: every space as `·`, a line end as `⏎`, a tab as `⇥`, an empty token as `∅`,
/// and whatever cannot be seen or would disturb its neighbours (control characters, zero-width and bidirectional
/// controls, private use) as an escape. A lone combining mark stands on `◌`.
///
/// Joiners inside a word or an emoji stay: without them the shapes fall apart.
///
/// ```
/// # use lens::display_token;
/// assert_eq!(display_token(" the"), "·the");
/// assert_eq!(display_token("\n\t"), "⏎⇥");
/// assert_eq!(display_token("\u{200b}"), r"\u{200b}");
/// ```
pub fn display_token(text: &str) -> String {
    if text.is_empty() { "∅".into() } else { show(text, '·') }
}

/// A name or title, disarmed like a token but with its spaces.
pub(crate) fn display_label(text: &str) -> String {
    show(text, ' ')
}

fn show(text: &str, space: char) -> String {
    let mut shown = String::with_capacity(text.len() + 4);
    let mut before = None;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let after = characters.peek().copied();
        match character {
            ' ' => shown.push(space),
            '\u{a0}' => shown.push('⍽'),
            '\n' => shown.push('⏎'),
            '\t' => shown.push('⇥'),
            '\r' => shown.push_str("\\r"),
            '\u{200c}' | '\u{200d}' if joins(before) && joins(after) => shown.push(character),
            '\u{fe00}'..='\u{fe0f}' if before.is_some_and(|before: char| !before.is_ascii_control()) => {
                shown.push(character);
            }
            _ if character.is_ascii_control() => shown.push_str(&format!("\\x{:02X}", u32::from(character))),
            _ if disturbs(character) => shown.push_str(&format!("\\u{{{:04x}}}", u32::from(character))),
            _ if before.is_none() && character.width() == Some(0) => {
                shown.push('◌');
                shown.push(character);
            }
            _ => shown.push(character),
        }
        before = Some(character);
    }
    shown
}

/// Whether a joiner next to this character can change its shape, rather than hide.
fn joins(character: Option<char>) -> bool {
    character.is_some_and(|character| !character.is_ascii() && !character.is_whitespace() && !disturbs(character))
}

/// Whether a character is invisible, moves its neighbours, or means nothing outside one font.
fn disturbs(character: char) -> bool {
    character.is_control()
        || (character.is_whitespace() && character != ' ')
        || matches!(character,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{2800}' | '\u{3164}' | '\u{e000}'..='\u{f8ff}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{10ffff}')
        // Noncharacters.
        || matches!(character, '\u{fdd0}'..='\u{fdef}')
        || u32::from(character) & 0xFFFE == 0xFFFE
}

/// Whether a character runs from right to left: Hebrew, Arabic and their neighbours.
pub(crate) fn right_to_left(character: char) -> bool {
    matches!(character, '\u{590}'..='\u{8ff}' | '\u{fb1d}'..='\u{fdff}' | '\u{fe70}'..='\u{fefc}'
        | '\u{10800}'..='\u{10fff}' | '\u{1e800}'..='\u{1efff}')
        && character.width() != Some(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tokens_are_shown_readably() {
        let cases = [
            ("", "∅"),
            (" the", "·the"),
            ("    ", "····"),
            ("\n\n", "⏎⏎"),
            ("\tif", "⇥if"),
            ("\r\n", "\\r⏎"),
            ("\0", "\\x00"),
            ("\u{1b}[31m", "\\x1B[31m"),
            ("\u{85}", "\\u{0085}"),
            ("\u{a0}", "⍽"),
            ("\u{2003}", "\\u{2003}"),
            ("\u{202e}abc", "\\u{202e}abc"),
            ("\u{200d}", "\\u{200d}"),
            ("a\u{200d}b", "a\\u{200d}b"),
            ("👩\u{200d}🚀", "👩\u{200d}🚀"),
            ("❤\u{fe0f}", "❤\u{fe0f}"),
            ("\u{fe0f}", "\\u{fe0f}"),
            ("\u{301}", "◌\u{301}"),
            ("e\u{301}", "e\u{301}"),
            ("می\u{200c}خواهم", "می\u{200c}خواهم"),
            ("\u{fffd}", "\u{fffd}"),
            ("\u{e000}", "\\u{e000}"),
            ("日本", "日本"),
        ];
        for (text, shown) in cases {
            assert_eq!(display_token(text), shown, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn bytes_round_trip(bytes: Vec<u8>) {
            prop_assert_eq!(token_bytes_from_text(&token_text_from_bytes(&bytes)), bytes);
        }

        #[test]
        fn bytes_that_look_like_escapes_round_trip(text in r"(\\|x|[0-9A-Fa-f]|é){0,12}", tail: Vec<u8>) {
            let mut bytes = text.into_bytes();
            bytes.extend(tail);
            prop_assert_eq!(token_bytes_from_text(&token_text_from_bytes(&bytes)), bytes);
        }

        #[test]
        fn what_is_shown_is_never_empty_nor_dangerous(text: String) {
            let shown = display_token(&text);
            prop_assert!(!shown.is_empty());
            prop_assert!(!shown.chars().any(|character| character.is_control() || character.is_whitespace()));
            let wrecks_a_layout = shown.contains(['\u{202e}', '\u{2066}', '\u{200b}', '\u{feff}']);
            prop_assert!(!wrecks_a_layout);
        }
    }
}
