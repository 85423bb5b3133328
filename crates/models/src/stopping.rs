//! When a row ends.

use crate::{Ending, Error, GenerateOptions, Model, Result, Tokens};

/// The conditions that end rows, and what they must remember.
pub(crate) struct Stopping<'a> {
    options: &'a GenerateOptions,
    end_tokens: &'a [i64],
    /// There where stop texts are.
    tokens: Option<&'a dyn Tokens>,
    /// The bytes of what was added to each row, where stop texts are looked for.
    written: Vec<Vec<u8>>,
}

impl<'a> Stopping<'a> {
    pub(crate) fn new(
        model: &'a Model,
        options: &'a GenerateOptions,
        end_tokens: &'a [i64],
        rows: usize,
    ) -> Result<Self> {
        let tokens = if options.stop_texts.is_empty() { None } else { Some(model.tokens().ok_or(Error::NoTokenizer)?) };
        Ok(Self { options, end_tokens, tokens, written: vec![Vec::new(); rows] })
    }

    /// Whether a row ends with the last of its new tokens, and why. To be asked after each token.
    pub(crate) fn after(&mut self, row: usize, new_tokens: &[i64]) -> Option<Ending> {
        let id = *new_tokens.last()?;
        if self.end_tokens.contains(&id) {
            return Some(Ending::EndToken(id));
        }
        if let Some(which) = self.options.stop_tokens.iter().position(|sequence| new_tokens.ends_with(sequence)) {
            return Some(Ending::StopTokens(which));
        }
        if let (Some(tokens), Some(written)) = (self.tokens, self.written.get_mut(row)) {
            let before = written.len();
            written.extend(tokens.token_bytes(id));
            // Whatever lies before was looked through when it was written.
            let is_new = |text: &str| {
                let start = (before + 1).saturating_sub(text.len());
                let mut places = written.get(start..).unwrap_or_default().windows(text.len());
                places.any(|place| place == text.as_bytes())
            };
            if let Some(which) = self.options.stop_texts.iter().position(|text| is_new(text)) {
                return Some(Ending::StopText(which));
            }
        }
        let ends = self.options.stop_when.as_ref().is_some_and(|condition| condition.holds(new_tokens));
        ends.then_some(Ending::StopCondition)
    }
}
