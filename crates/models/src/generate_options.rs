//! How to continue a text, and when to end it.

use std::{fmt, sync::Arc};

use crate::{Error, Result, Sampling, sampling::positive};

/// How to continue.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// Tokens to add to each row, at most.
    pub max_new_tokens: usize,
    /// How tokens are drawn; `None` takes the likeliest (greedy).
    pub sampling: Option<Sampling>,
    /// Above 1 makes tokens that the row already has less likely; 1 changes nothing. Padding does not count as seen, so a
    /// row is continued in a batch as it is alone (Hugging Face counts it).
    pub repetition_penalty: f64,
    /// Tokens that end a row; `None` takes the config's.
    pub end_tokens: Option<Vec<i64>>,
    /// What short rows are padded with; `None` takes the first end token, or 0.
    pub pad_token: Option<i64>,
    /// Texts that end a row when what was added to it contains one of them, in the bytes of its tokens
    /// ([`crate::Tokens::token_bytes`], special tokens included). The token that completes it is kept whole. The model needs a
    /// tokenizer.
    pub stop_texts: Vec<String>,
    /// Sequences of tokens that end a row when what was added to it ends with one of them.
    pub stop_tokens: Vec<Vec<i64>>,
    /// Ends a row when it says so.
    pub stop_when: Option<StopWhen>,
}

type Condition = dyn Fn(&[i64]) -> bool + Send + Sync;

/// A condition of one's own that ends a row: see [`GenerateOptions::stop_when`].
#[derive(Clone)]
pub struct StopWhen(Arc<Condition>);

impl StopWhen {
    /// Whether a row with these new tokens is to end.
    pub(crate) fn holds(&self, new_tokens: &[i64]) -> bool {
        (self.0)(new_tokens)
    }
}

impl fmt::Debug for StopWhen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("StopWhen(..)")
    }
}

/// The same condition, not only an equal one.
impl PartialEq for StopWhen {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Default for GenerateOptions {
    /// Twenty tokens, greedily.
    fn default() -> Self {
        Self {
            max_new_tokens: 20,
            sampling: None,
            repetition_penalty: 1.0,
            end_tokens: None,
            pad_token: None,
            stop_texts: Vec::new(),
            stop_tokens: Vec::new(),
            stop_when: None,
        }
    }
}

impl GenerateOptions {
    /// With another choice of [`GenerateOptions::max_new_tokens`].
    pub fn max_new_tokens(mut self, max_new_tokens: usize) -> Self {
        self.max_new_tokens = max_new_tokens;
        self
    }

    /// With another choice of [`GenerateOptions::sampling`].
    pub fn sampling(mut self, sampling: impl Into<Option<Sampling>>) -> Self {
        self.sampling = sampling.into();
        self
    }

    /// With another choice of [`GenerateOptions::repetition_penalty`].
    pub fn repetition_penalty(mut self, repetition_penalty: f64) -> Self {
        self.repetition_penalty = repetition_penalty;
        self
    }

    /// With another choice of [`GenerateOptions::end_tokens`].
    pub fn end_tokens(mut self, end_tokens: impl Into<Option<Vec<i64>>>) -> Self {
        self.end_tokens = end_tokens.into();
        self
    }

    /// With another choice of [`GenerateOptions::pad_token`].
    pub fn pad_token(mut self, pad_token: impl Into<Option<i64>>) -> Self {
        self.pad_token = pad_token.into();
        self
    }

    /// With another choice of [`GenerateOptions::stop_texts`].
    pub fn stop_texts(mut self, texts: impl IntoIterator<Item: Into<String>>) -> Self {
        self.stop_texts = texts.into_iter().map(Into::into).collect();
        self
    }

    /// With another choice of [`GenerateOptions::stop_tokens`].
    pub fn stop_tokens(mut self, sequences: impl IntoIterator<Item: Into<Vec<i64>>>) -> Self {
        self.stop_tokens = sequences.into_iter().map(Into::into).collect();
        self
    }

    /// Ends a row when `condition` holds for what was added to it, the newest token last. To end all rows at once, let the
    /// callback of [`crate::generate`] break.
    ///
    /// ```
    /// # use models::GenerateOptions;
    /// let options = GenerateOptions::default().stop_when(|new_tokens| new_tokens.iter().filter(|id| **id == 13).count() == 3);
    /// # let _ = options;
    /// ```
    pub fn stop_when(mut self, condition: impl Fn(&[i64]) -> bool + Send + Sync + 'static) -> Self {
        self.stop_when = Some(StopWhen(Arc::new(condition)));
        self
    }
}

impl GenerateOptions {
    /// Refuses settings out of range, as [`crate::generate`] does, for those who want to know before anything else happens.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`].
    pub fn check(&self) -> Result<()> {
        positive("repetition_penalty", self.repetition_penalty)?;
        let empty = |setting, expected| Err(Error::Setting { setting, found: "empty".into(), expected });
        if self.stop_texts.iter().any(String::is_empty) {
            return empty("one of stop_texts", "a text of at least one character");
        }
        if self.stop_tokens.iter().any(Vec::is_empty) {
            return empty("one of stop_tokens", "at least one token");
        }
        self.sampling.as_ref().map_or(Ok(()), Sampling::check)
    }
}
