//! The bytes that one token stands for.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::DecoderWrapper;

/// SentencePiece's visible space.
pub(super) const SPACE: char = '\u{2581}';

/// How a tokenizer spells bytes in its vocabulary.
#[derive(Clone, Debug)]
pub(super) enum Spelling {
    /// GPT-2's: a printable character for each byte.
    Bytes(HashMap<char, u8>),
    /// SentencePiece's: text with `▁` for a space, and `<0x0A>` for a byte.
    Pieces {
        /// Whether decoding drops the space that encoding puts in front.
        drops_first_space: bool,
    },
    /// Another; the decoder knows.
    Other,
}

impl Spelling {
    /// Reads off a pipeline's decoder how its tokens are spelled.
    pub(super) fn of(decoder: Option<&DecoderWrapper>) -> Self {
        let Some(json) = decoder.and_then(|decoder| serde_json::to_value(decoder).ok()) else { return Self::Other };
        let mut steps = Vec::new();
        flatten(&json, &mut steps);
        let has = |kind: &str| steps.iter().any(|step| step["type"] == kind);
        if has("ByteLevel") {
            return Self::Bytes(byte_alphabet());
        }
        let space = SPACE.to_string();
        let replaces = |step: &&Value| step["type"] == "Replace" && step["pattern"]["String"] == space.as_str();
        if has("ByteFallback") || has("Metaspace") || steps.iter().any(replaces) {
            let prepends = |step: &&Value| step["type"] == "Metaspace" && step["prepend_scheme"] != "never";
            let strips = |step: &&Value| step["type"] == "Strip" && step["start"].as_u64().unwrap_or(0) > 0;
            return Self::Pieces { drops_first_space: steps.iter().any(|step| prepends(step) || strips(step)) };
        }
        Self::Other
    }

    /// The bytes of a token of the vocabulary, where its spelling tells.
    pub(super) fn bytes(&self, token: &str) -> Option<Vec<u8>> {
        match self {
            Self::Bytes(alphabet) => Some(from_alphabet(alphabet, token)),
            Self::Pieces { .. } => Some(match byte_token(token) {
                Some(byte) => vec![byte],
                None => spaces(token),
            }),
            Self::Other => None,
        }
    }

    /// The bytes of an added token: its own spelling, but for the spaces in SentencePiece's.
    pub(super) fn added_bytes(&self, token: &str) -> Vec<u8> {
        match self {
            Self::Pieces { .. } => spaces(token),
            _ => token.as_bytes().to_vec(),
        }
    }
}

/// The steps of a decoder, those within sequences too.
fn flatten<'a>(decoder: &'a Value, steps: &mut Vec<&'a Value>) {
    match decoder["decoders"].as_array() {
        Some(inner) => inner.iter().for_each(|step| flatten(step, steps)),
        None => steps.push(decoder),
    }
}

fn spaces(token: &str) -> Vec<u8> {
    token.replace(SPACE, " ").into_bytes()
}

/// The byte that a token such as `<0x0A>` stands for.
pub(super) fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let hexadecimal = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if hexadecimal { u8::from_str_radix(digits, 16).ok() } else { None }
}

fn from_alphabet(alphabet: &HashMap<char, u8>, token: &str) -> Vec<u8> {
    let mut buffer = [0; 4];
    let mut bytes = Vec::with_capacity(token.len());
    for character in token.chars() {
        match alphabet.get(&character) {
            Some(&byte) => bytes.push(byte),
            None => bytes.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes()),
        }
    }
    bytes
}

/// GPT-2's printable character for each byte: itself where it can be seen, else the next free one from U+0100.
pub(super) fn byte_alphabet() -> HashMap<char, u8> {
    let mut free = 0x100..;
    let character = |byte: u8| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => Some(char::from(byte)),
        _ => free.next().and_then(char::from_u32),
    };
    (0..=u8::MAX).map(character).zip(0..=u8::MAX).filter_map(|(character, byte)| Some((character?, byte))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_has_a_character_for_every_byte() {
        let alphabet = byte_alphabet();
        assert_eq!(alphabet.len(), 256);
        assert_eq!((alphabet[&'Ġ'], alphabet[&'Ċ'], alphabet[&'a'], alphabet[&'Ń']), (b' ', b'\n', b'a', 0xAD));
    }

    #[test]
    fn pieces_have_spaces_and_bytes() {
        let pieces = Spelling::Pieces { drops_first_space: true };
        assert_eq!(pieces.bytes("▁▁of▁").unwrap(), b"  of ");
        assert_eq!(pieces.bytes("<0xE2>").unwrap(), [0xE2]);
        assert_eq!(pieces.bytes("<0xE2").unwrap(), b"<0xE2");
        assert_eq!(pieces.bytes("<0x+1>").unwrap(), b"<0x+1>");
    }
}
