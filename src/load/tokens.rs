//! The tokenizer of a checkpoint, read when it is first needed.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use lowmem::Checkpoint;
use models::{Tokens, TokensError};
use tokenizers::{DecoderWrapper, Tokenizer, models::bpe::BPE, pre_tokenizers::byte_level::ByteLevel};

/// The tokenizer beside a checkpoint's weights, where there is one.
pub(super) fn of(checkpoint: &Checkpoint) -> Option<Arc<dyn Tokens>> {
    let there = |name: &str| checkpoint.file(name).is_some();
    let any = there("tokenizer.json") || (there("vocab.json") && there("merges.txt"));
    any.then(|| Arc::new(Lazy { checkpoint: checkpoint.clone(), read: OnceLock::new() }) as Arc<dyn Tokens>)
}

/// A large vocabulary takes longer to read than a model takes to open, and many uses need none.
struct Lazy {
    checkpoint: Checkpoint,
    read: OnceLock<Result<Pipeline, String>>,
}

/// A tokenizer that has been read.
struct Pipeline {
    tokenizer: Tokenizer,
    /// GPT-2's alphabet, by character, where the tokenizer spells bytes with it.
    bytes: Option<HashMap<char, u8>>,
}

impl Lazy {
    fn pipeline(&self) -> Result<&Pipeline, TokensError> {
        let read = self.read.get_or_init(|| Pipeline::read(&self.checkpoint));
        read.as_ref().map_err(|reason| reason.clone().into())
    }
}

impl Tokens for Lazy {
    fn encode(&self, text: &str) -> Result<Vec<i64>, TokensError> {
        let encoding = self.pipeline()?.tokenizer.encode_fast(text, true)?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    fn decode(&self, ids: &[i64]) -> Result<String, TokensError> {
        let id = |&id: &i64| u32::try_from(id).map_err(|_| format!("{id} is no token id"));
        let ids = ids.iter().map(id).collect::<Result<Vec<u32>, _>>()?;
        self.pipeline()?.tokenizer.decode(&ids, true)
    }

    fn token_bytes(&self, id: i64) -> Vec<u8> {
        let known = self.pipeline().ok().and_then(|pipeline| pipeline.token_bytes(u32::try_from(id).ok()?));
        known.unwrap_or_else(|| format!("[{id}]").into_bytes())
    }
}

impl Pipeline {
    /// Reads `tokenizer.json`, or the `vocab.json` and `merges.txt` that came before it.
    fn read(checkpoint: &Checkpoint) -> Result<Self, String> {
        let folder = checkpoint.folder();
        let path = folder.join("tokenizer.json");
        let tokenizer = if path.is_file() {
            Tokenizer::from_file(&path).map_err(|error| format!("{}: {error}", path.display()))?
        } else {
            let (vocabulary, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
            let model = BPE::from_file(&vocabulary.to_string_lossy(), &merges.to_string_lossy()).build();
            let mut tokenizer = Tokenizer::new(model.map_err(|error| format!("{}: {error}", vocabulary.display()))?);
            tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
            tokenizer.with_decoder(Some(ByteLevel::default()));
            tokenizer
        };
        let byte_level = matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        Ok(Self { tokenizer, bytes: byte_level.then(byte_alphabet) })
    }

    /// The bytes of a token; `None` where the tokenizer does not use the id.
    fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.tokenizer.id_to_token(id)?;
        let Some(alphabet) = &self.bytes else {
            let decoded = self.tokenizer.decode(&[id], false);
            return Some(decoded.map_or_else(|_| token.into_bytes(), String::into_bytes));
        };
        // Special tokens stand for their own spelling.
        if self.tokenizer.get_added_vocabulary().simple_id_to_token(id).is_some() {
            return Some(token.into_bytes());
        }
        let mut buffer = [0; 4];
        let mut bytes = Vec::with_capacity(token.len());
        for character in token.chars() {
            match alphabet.get(&character) {
                Some(&byte) => bytes.push(byte),
                None => bytes.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes()),
            }
        }
        Some(bytes)
    }
}

/// GPT-2's printable character for each byte: itself where it can be seen, else the next free one from U+0100.
fn byte_alphabet() -> HashMap<char, u8> {
    let mut free = 0x100..;
    let character = |byte: u8| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => Some(char::from(byte)),
        _ => free.next().and_then(char::from_u32),
    };
    (0..=u8::MAX).map(character).zip(0..=u8::MAX).filter_map(|(character, byte)| Some((character?, byte))).collect()
}
