//! What generation gives back.

use std::fmt;

use crate::{Model, Result};

/// Why a row is no longer than it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// Its last token is this end token.
    EndToken(i64),
    /// It has as many new tokens as were asked for.
    MaxNewTokens,
    /// The model has no position left to read another token at.
    ContextFull,
    /// The callback said so.
    Stopped,
    /// It contains this one of [`GenerateOptions::stop_texts`](crate::GenerateOptions::stop_texts), counted from 0.
    StopText(usize),
    /// It ends with this one of [`GenerateOptions::stop_tokens`](crate::GenerateOptions::stop_tokens), counted from 0.
    StopTokens(usize),
    /// [`GenerateOptions::stop_when`](crate::GenerateOptions::stop_when) said so.
    StopCondition,
}

/// One continued row.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GeneratedRow {
    /// The prompt and the new tokens, an end token included, without padding.
    pub tokens: Vec<i64>,
    /// How many of them are the prompt.
    pub prompt: usize,
    /// Why it ended.
    pub ending: Ending,
    /// The text of all its tokens, special ones left out, where the model has a tokenizer.
    pub text: Option<String>,
    /// Where what was added begins in the text.
    new_text: usize,
}

impl GeneratedRow {
    /// What was added.
    pub fn new_tokens(&self) -> &[i64] {
        self.tokens.get(self.prompt..).unwrap_or_default()
    }

    /// The text of what was added, where the model has a tokenizer. A character that the prompt only began is part of it.
    pub fn new_text(&self) -> Option<&str> {
        self.text.as_deref().map(|text| text.get(self.new_text..).unwrap_or_default())
    }

    pub(crate) fn new(model: &Model, tokens: Vec<i64>, prompt: usize, ending: Ending) -> Result<Self> {
        let text = model.decode(&tokens)?;
        let before = model.decode(tokens.get(..prompt).unwrap_or_default())?;
        let new_text = text.iter().zip(&before).map(|(text, before)| common_prefix(text, before)).sum();
        Ok(Self { tokens, prompt, ending, text, new_text })
    }
}

/// The text, or without a tokenizer the ids.
impl fmt::Display for GeneratedRow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = &self.text {
            return formatter.write_str(text);
        }
        for (at, id) in self.tokens.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(formatter, "{comma}{id}")?;
        }
        Ok(())
    }
}

/// How many bytes of two texts are the same characters from the start.
fn common_prefix(text: &str, other: &str) -> usize {
    let same = text.chars().zip(other.chars()).take_while(|(one, other)| one == other);
    same.map(|(character, _)| character.len_utf8()).sum()
}

/// All rows of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Generated {
    /// In the order of the prompts.
    pub rows: Vec<GeneratedRow>,
    /// What [`Generated::padded`] pads with.
    pub pad_token: i64,
}

impl Generated {
    /// Rows of one length, as Hugging Face's `generate` returns them: prompts padded on the left, rows that ended early on
    /// the right.
    pub fn padded(&self) -> Vec<Vec<i64>> {
        let prompt = self.rows.iter().map(|row| row.prompt).max().unwrap_or(0);
        let new = self.rows.iter().map(|row| row.new_tokens().len()).max().unwrap_or(0);
        let pad = |row: &GeneratedRow| {
            let mut padded = vec![self.pad_token; prompt - row.prompt];
            padded.extend(&row.tokens);
            padded.resize(prompt + new, self.pad_token);
            padded
        };
        self.rows.iter().map(pad).collect()
    }
}

/// The rows, one on each line.
impl fmt::Display for Generated {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, row) in self.rows.iter().enumerate() {
            let line_end = if at > 0 { "\n" } else { "" };
            write!(formatter, "{line_end}{row}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str, before: &str) -> GeneratedRow {
        let new_text = common_prefix(text, before);
        GeneratedRow { tokens: vec![1, 2], prompt: 1, ending: Ending::Stopped, text: Some(text.into()), new_text }
    }

    #[test]
    fn new_text_begins_where_the_prompt_was_complete() {
        assert_eq!(row("The sky is blue", "The sky").new_text(), Some(" is blue"));
        // The prompt ended within the é.
        assert_eq!(row("café au lait", "caf\u{fffd}").new_text(), Some("é au lait"));
        assert_eq!(row("", "").new_text(), Some(""));
    }

    #[test]
    fn rows_are_shown_as_text_or_as_ids() {
        let text = row("one two", "one");
        let ids = GeneratedRow { text: None, ..text.clone() };
        assert_eq!(ids.new_text(), None);
        assert_eq!(Generated { rows: vec![text, ids], pad_token: 0 }.to_string(), "one two\n1,2");
    }
}
