//! The tokenizer of a checkpoint, read when it is first needed.

use std::sync::{Arc, OnceLock};

use lowmem::Checkpoint;
use models::{Tokens, TokensError};

use crate::text::Tokenizer;

/// The tokenizer inside a GGUF file or beside a checkpoint's weights, where there is one.
pub(super) fn of(checkpoint: &Checkpoint) -> Option<Arc<dyn Tokens>> {
    let there = |name: &str| checkpoint.file(name).is_some();
    let inside = checkpoint.gguf().is_some_and(|metadata| metadata.get("tokenizer.ggml.model").is_some());
    let any = inside || there("tokenizer.json") || (there("vocab.json") && there("merges.txt"));
    any.then(|| Arc::new(Lazy { checkpoint: checkpoint.clone(), read: OnceLock::new() }) as Arc<dyn Tokens>)
}

/// A large vocabulary takes longer to read than a model takes to open, and many uses need none.
struct Lazy {
    checkpoint: Checkpoint,
    read: OnceLock<Result<Tokenizer, String>>,
}

impl Lazy {
    fn tokenizer(&self) -> Result<&Tokenizer, TokensError> {
        let read = || match Tokenizer::of(&self.checkpoint) {
            Ok(Some(tokenizer)) => Ok(tokenizer),
            Ok(None) => Err(format!("{}: the tokenizer is gone", self.checkpoint.folder().display())),
            Err(error) => Err(error.to_string()),
        };
        self.read.get_or_init(read).as_ref().map_err(|reason| reason.clone().into())
    }
}

impl Tokens for Lazy {
    fn encode(&self, text: &str) -> Result<Vec<i64>, TokensError> {
        Ok(self.tokenizer()?.encode(text, true)?)
    }

    fn decode(&self, ids: &[i64]) -> Result<String, TokensError> {
        Ok(self.tokenizer()?.decode(ids, true)?)
    }

    fn token_bytes(&self, id: i64) -> Vec<u8> {
        self.tokenizer().map_or_else(|_| format!("[{id}]").into_bytes(), |tokenizer| tokenizer.token_bytes(id))
    }
}

impl Tokens for Tokenizer {
    fn encode(&self, text: &str) -> Result<Vec<i64>, TokensError> {
        Ok(Tokenizer::encode(self, text, true)?)
    }

    fn decode(&self, ids: &[i64]) -> Result<String, TokensError> {
        Ok(Tokenizer::decode(self, ids, true)?)
    }

    fn token_bytes(&self, id: i64) -> Vec<u8> {
        Tokenizer::token_bytes(self, id)
    }
}
