//! What a GGUF file says of its tokenizer.

use std::collections::BTreeMap;

use lowmem::gguf::Metadata;

use super::{EmbeddedTokenizer, Error, Result, TokenType};

/// Chat templates: the one for all chats, and before the names of others.
const TEMPLATE: &str = "tokenizer.chat_template";

impl EmbeddedTokenizer {
    /// Reads the keys `tokenizer.*`. `None` where the file says nothing of a tokenizer.
    ///
    /// # Errors
    ///
    /// [`Error::Gguf`] names a key of the wrong type, [`Error::Embedded`] a token's type that means nothing.
    pub fn of_gguf(metadata: &Metadata) -> Result<Option<Self>> {
        let Some(model) = text(metadata, "tokenizer.ggml.model")?.filter(|model| model != "none") else {
            return Ok(None);
        };
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let id = |name: &str| -> Result<Option<u32>> {
            let id = metadata.get_u64(&key(&format!("{name}_token_id")))?;
            // What fits no id is no token.
            Ok(id.and_then(|id| u32::try_from(id).ok()))
        };
        let flag = |name: &str| metadata.get_bool(&key(name));
        Ok(Some(Self {
            architecture: text(metadata, "general.architecture")?,
            model,
            pre: text(metadata, &key("pre"))?,
            tokens: texts(metadata, &key("tokens"))?,
            scores: numbers(metadata, &key("scores"))?,
            token_types: types(metadata, &key("token_type"))?,
            merges: texts(metadata, &key("merges"))?,
            bos: id("bos")?,
            eos: id("eos")?,
            unk: id("unknown")?,
            pad: id("padding")?,
            add_bos: flag("add_bos_token")?,
            add_eos: flag("add_eos_token")?,
            add_space_prefix: flag("add_space_prefix")?,
            chat_template: text(metadata, TEMPLATE)?,
            more_chat_templates: templates(metadata)?,
        }))
    }
}

fn text(metadata: &Metadata, key: &str) -> Result<Option<String>> {
    Ok(metadata.get_str(key)?.map(str::to_owned))
}

fn texts(metadata: &Metadata, key: &str) -> Result<Vec<String>> {
    let strings = metadata.get_strings(key)?;
    Ok(strings.map_or(Vec::new(), |strings| {
        strings.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }))
}

fn numbers(metadata: &Metadata, key: &str) -> Result<Vec<f32>> {
    let numbers = metadata.get_f64s(key)?.unwrap_or_default();
    Ok(numbers.into_iter().map(|number| number as f32).collect())
}

fn types(metadata: &Metadata, key: &str) -> Result<Vec<TokenType>> {
    let Some(types) = metadata.get_array(key)? else { return Ok(Vec::new()) };
    let wrong = || Error::Embedded { what: format!("{key} holds no numbers") };
    let kind = |(token, number): (usize, i64)| {
        let what = || format!("token {token} is of type {number}, which means nothing");
        TokenType::from_number(number).ok_or_else(|| Error::Embedded { what: what() })
    };
    types.to_i64s().ok_or_else(wrong)?.into_iter().enumerate().map(kind).collect()
}

/// The templates that have names.
fn templates(metadata: &Metadata) -> Result<BTreeMap<String, String>> {
    let keys = metadata.iter().filter_map(|(key, _)| key.strip_prefix(TEMPLATE)?.strip_prefix('.'));
    let found = |name: &str| Some((name.to_owned(), metadata.get(&format!("{TEMPLATE}.{name}"))?.as_str()?.to_owned()));
    Ok(keys.filter_map(found).collect())
}
