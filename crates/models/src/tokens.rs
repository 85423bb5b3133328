//! What turns text into token ids and back.

use std::{error::Error as StdError, sync::Arc};

use crate::{Error, Model, Result};

/// Whatever a tokenizer says went wrong.
pub type TokensError = Box<dyn StdError + Send + Sync>;

/// Text to token ids and back: what a model needs of a tokenizer, so that it can be given text.
///
/// ```
/// use std::sync::Arc;
/// use models::{Config, Model, Tokens, TokensError};
///
/// /// One token for each byte.
/// struct Bytes;
///
/// impl Tokens for Bytes {
///     fn encode(&self, text: &str) -> Result<Vec<i64>, TokensError> {
///         Ok(text.bytes().map(i64::from).collect())
///     }
///     fn decode(&self, ids: &[i64]) -> Result<String, TokensError> {
///         let bytes = ids.iter().map(|&id| u8::try_from(id)).collect::<Result<Vec<u8>, _>>()?;
///         Ok(String::from_utf8_lossy(&bytes).into_owned())
///     }
///     fn token_bytes(&self, id: i64) -> Vec<u8> {
///         u8::try_from(id).map_or_else(|_| format!("[{id}]").into_bytes(), |byte| vec![byte])
///     }
/// }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 256}"#;
/// # let config = Config::from_json(config)?;
/// let model = Model::random(config, 0)?.with_tokens(Arc::new(Bytes));
/// assert_eq!(model.logits("three")?.size(), [1, 5, 256]); // [batch, position, vocabulary]
/// # Ok(())
/// # }
/// ```
pub trait Tokens: Send + Sync {
    /// The ids of a text, with what the tokenizer puts around every text, such as a beginning-of-text token.
    ///
    /// # Errors
    ///
    /// Whatever the tokenizer refuses.
    fn encode(&self, text: &str) -> Result<Vec<i64>, TokensError>;

    /// The text of ids, without the special tokens among them.
    ///
    /// # Errors
    ///
    /// Whatever the tokenizer refuses.
    fn decode(&self, ids: &[i64]) -> Result<String, TokensError>;

    /// The bytes a token stands for, which need not be UTF-8: a character can lie in several tokens. An id that is not used
    /// gives something to show in its place, such as `[id]`.
    fn token_bytes(&self, id: i64) -> Vec<u8>;
}

impl Model {
    /// The same model with a tokenizer, so that it can be given text.
    pub fn with_tokens(mut self, tokens: Arc<dyn Tokens>) -> Self {
        self.tokens = Some(tokens);
        self
    }

    /// The tokenizer, where it has one.
    pub fn tokens(&self) -> Option<&dyn Tokens> {
        self.tokens.as_deref()
    }

    /// The same model with a name for titles.
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// What it is called in titles; its family, where nobody gave it a name.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(self.config().family.title)
    }

    pub(crate) fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let tokens = self.tokens().ok_or(Error::NoTokenizer)?;
        tokens.encode(text).map_err(|source| Error::Tokenizer { doing: "encoding a text", source })
    }

    /// The text of ids; `None` without a tokenizer.
    pub(crate) fn decode(&self, ids: &[i64]) -> Result<Option<String>> {
        let Some(tokens) = self.tokens() else { return Ok(None) };
        let text = tokens.decode(ids).map_err(|source| Error::Tokenizer { doing: "decoding token ids", source })?;
        Ok(Some(text))
    }
}
