//! Text as it is generated.

use super::{pieces::Spelling, tokenizer::Tokenizer};

/// Turns token ids that come one by one into text, as soon as it is certain.
///
/// A character can lie in several tokens: its bytes are kept until it is whole. Bytes that can no longer become one give
/// U+FFFD. The stream continues a text, so the first token keeps its leading space; [`at_start`](Self::at_start) is for one
/// that begins here.
#[derive(Clone, Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    drop_space: bool,
    pending: Vec<u8>,
}

impl TextStream {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, drop_space: false, pending: Vec::new() }
    }

    /// The same for a text that begins with the first token: the space that SentencePiece puts in front of a text is left out,
    /// as [`Tokenizer::decode`] does.
    pub fn at_start(mut self) -> Self {
        self.drop_space = matches!(self.tokenizer.spelling(), Spelling::Pieces { drops_first_space: true });
        self
    }

    /// Takes the next token and gives the text that has become certain, which may be empty.
    pub fn push(&mut self, id: i64) -> String {
        if self.skip_special && self.tokenizer.is_special(id) {
            return String::new();
        }
        let bytes = self.tokenizer.token_bytes(id);
        let dropped = usize::from(self.drop_space && bytes.first() == Some(&b' '));
        self.drop_space &= bytes.is_empty();
        self.pending.extend(bytes.into_iter().skip(dropped));
        take_text(&mut self.pending, false)
    }

    /// Gives what is left: U+FFFD for a character that never became whole.
    pub fn finish(&mut self) -> String {
        take_text(&mut self.pending, true)
    }
}

/// Takes the text that `bytes` begin with. The bytes of an unfinished character stay, unless this is the end. Bytes that are
/// no character become U+FFFD.
fn take_text(bytes: &mut Vec<u8>, end: bool) -> String {
    let mut text = String::new();
    let mut rest = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        rest += chunk.valid().len();
        let broken = chunk.invalid();
        let unfinished = !end && rest + broken.len() == bytes.len() && is_unfinished(broken);
        if !broken.is_empty() && !unfinished {
            text.push(char::REPLACEMENT_CHARACTER);
            rest += broken.len();
        }
    }
    bytes.drain(..rest);
    text
}

/// Whether more bytes could make a character of these.
fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let mut bytes = "é🚀".as_bytes()[..4].to_vec();
        assert_eq!(take_text(&mut bytes, false), "é");
        bytes.extend_from_slice(&"é🚀".as_bytes()[4..]);
        assert_eq!(take_text(&mut bytes, false), "🚀");
        assert!(bytes.is_empty());
    }

    #[test]
    fn what_cannot_become_a_character_is_replaced() {
        let mut bytes = vec![0xE2, b'a', 0xFF, 0xF0, 0x9F];
        assert_eq!(take_text(&mut bytes, false), "\u{fffd}a\u{fffd}");
        assert_eq!(take_text(&mut bytes, true), "\u{fffd}");
    }
}
