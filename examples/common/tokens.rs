//! Text to token ids and back.

use std::collections::HashMap;

use anyhow::{Result, anyhow};
use tokenizers::{DecoderWrapper, Tokenizer, models::bpe::BPE, pre_tokenizers::byte_level::ByteLevel};
use transformer_utils::{lens::token_text_from_bytes, lowmem::Checkpoint};

/// The tokenizer of a checkpoint.
pub struct Tokens {
    tokenizer: Tokenizer,
    /// GPT-2's alphabet, by character, where the tokenizer spells bytes with it.
    bytes: Option<HashMap<char, u8>>,
}

impl Tokens {
    /// Reads `tokenizer.json`, or the `vocab.json` and `merges.txt` that came before it; `None` where there is neither.
    pub fn of(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        if let Some(path) = checkpoint.file("tokenizer.json") {
            let tokenizer = Tokenizer::from_file(&path).map_err(|error| anyhow!("{}: {error}", path.display()))?;
            return Ok(Some(Self::new(tokenizer)));
        }
        let (Some(vocabulary), Some(merges)) = (checkpoint.file("vocab.json"), checkpoint.file("merges.txt")) else {
            return Ok(None);
        };
        let model = BPE::from_file(&vocabulary.to_string_lossy(), &merges.to_string_lossy()).build();
        let mut tokenizer = Tokenizer::new(model.map_err(|error| anyhow!("{}: {error}", vocabulary.display()))?);
        tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        Ok(Some(Self::new(tokenizer)))
    }

    fn new(tokenizer: Tokenizer) -> Self {
        let byte_level = matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        Self { tokenizer, bytes: byte_level.then(byte_alphabet) }
    }

    /// The ids of a text.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = self.tokenizer.encode_fast(text, true).map_err(|error| anyhow!("cannot tokenize: {error}"))?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// The bytes a token stands for. Pieces of one character can lie in several tokens, so they need not be UTF-8. A row of
    /// the vocabulary that the tokenizer does not use gives `[id]`.
    pub fn bytes(&self, id: i64) -> Vec<u8> {
        let known = u32::try_from(id).ok().and_then(|id| Some((id, self.tokenizer.id_to_token(id)?)));
        let Some((id, token)) = known else { return format!("[{id}]").into_bytes() };
        match &self.bytes {
            // Special tokens stand for their own spelling.
            Some(_) if self.tokenizer.get_added_tokens_decoder().contains_key(&id) => token.into_bytes(),
            Some(alphabet) => {
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
            None => self.tokenizer.decode(&[id], false).map_or_else(|_| token.into_bytes(), String::into_bytes),
        }
    }

    /// The text of a token, bytes that are no UTF-8 written `\xE2`.
    pub fn token_text(&self, id: i64) -> String {
        token_text_from_bytes(&self.bytes(id))
    }

    /// How many ids the tokenizer uses.
    pub fn len(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
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
