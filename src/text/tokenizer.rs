//! The tokenizer itself.

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc};

use lens::token_text_from_bytes;
use lowmem::{Checkpoint, gguf::GgufHeader};

use super::{
    chat::{ChatTemplate, Message},
    embedded::{self, EmbeddedTokenizer},
    error::{Error, Result},
    folder,
    pieces::Spelling,
    stream::TextStream,
};

/// The name of the template that is used where nothing else is said.
const DEFAULT_TEMPLATE: &str = "default";

/// Turns text into token ids and back. A clone is cheap and shares everything.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

/// What a tokenizer is made of.
pub(super) struct Inner {
    pub(super) pipeline: tokenizers::Tokenizer,
    pub(super) spelling: Spelling,
    pub(super) special: SpecialTokens,
    /// Ids that stand before and after every text, besides what the pipeline itself adds.
    pub(super) before: Vec<i64>,
    pub(super) after: Vec<i64>,
    /// The sources of chat templates by name.
    pub(super) templates: BTreeMap<String, String>,
}

/// The tokens with a role of their own; `None` where the tokenizer has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<(i64, String)>,
    /// Ends a text.
    pub eos: Option<(i64, String)>,
    /// Stands for what the vocabulary cannot spell.
    pub unk: Option<(i64, String)>,
    /// Fills up short rows of a batch.
    pub pad: Option<(i64, String)>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocabulary_size", &self.vocabulary_size())
            .field("special", &self.inner.special)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads the tokenizer of a folder, the `tokenizer.json` of this path and what lies beside it, or the one inside a `.gguf` file.
    ///
    /// `tokenizer.json` says how to tokenize; where it is missing, GPT-2's `vocab.json` and `merges.txt` do.
    /// `tokenizer_config.json` and `special_tokens_map.json` add the special tokens and whether they stand around every text;
    /// they and `chat_template.jinja`, `chat_template.json` and `additional_chat_templates` hold chat templates.
    ///
    /// # Errors
    ///
    /// [`Error::NoTokenizer`]; [`Error::Io`], [`Error::File`] and [`Error::Gguf`] name the file at fault. Those of
    /// [`Tokenizer::embedded`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) && !path.is_dir() {
            let embedded = EmbeddedTokenizer::of_gguf(&GgufHeader::read(path)?.metadata)?;
            return Self::embedded(embedded.ok_or_else(|| Error::NoTokenizer { folder: path.to_owned() })?);
        }
        let found = if path.is_dir() { folder::open(path)? } else { Some(folder::open_file(path)?) };
        found.map(Self::new).ok_or_else(|| Error::NoTokenizer { folder: path.to_owned() })
    }

    /// Reads the tokenizer inside a GGUF file, or beside a checkpoint's weights; `None` where there is none.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::open`] and [`Tokenizer::embedded`].
    pub fn of(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        if let Some(metadata) = checkpoint.gguf()
            && let Some(embedded) = EmbeddedTokenizer::of_gguf(metadata)?
        {
            return Self::embedded(embedded).map(Some);
        }
        Ok(folder::open(checkpoint.folder())?.map(Self::new))
    }

    /// Builds the tokenizer that the metadata of a GGUF file describes.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownModel`] and [`Error::UnknownPreTokenizer`] name what is not known, [`Error::Embedded`] the field that is
    /// missing or wrong.
    pub fn embedded(embedded: EmbeddedTokenizer) -> Result<Self> {
        embedded::build(embedded).map(Self::new)
    }

    pub(super) fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    pub(super) fn spelling(&self) -> &Spelling {
        &self.inner.spelling
    }

    /// The ids of a text. Special tokens that are spelled in the text become their ids; `add_special` also puts those around
    /// it that the tokenizer wants there, such as the beginning-of-text token. A text that a chat template rendered has them
    /// already.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenize`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<i64>> {
        let encoding = self.inner.pipeline.encode_fast(text, add_special);
        let encoding = encoding.map_err(|error| Error::Tokenize { reason: error.to_string() })?;
        let ids = encoding.get_ids().iter().map(|&id| i64::from(id));
        if !add_special {
            return Ok(ids.collect());
        }
        let (before, after) = (self.inner.before.iter().copied(), self.inner.after.iter().copied());
        Ok(before.chain(ids).chain(after).collect())
    }

    /// The ids of a chat, as its template writes it.
    ///
    /// # Errors
    ///
    /// [`Error::NoChatTemplate`], [`Error::ChatTemplate`], [`Error::Tokenize`].
    pub fn encode_chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<i64>> {
        self.encode(&self.chat_template()?.render(messages, add_generation_prompt)?, false)
    }

    /// The text of ids, with or without the special tokens among them. Bytes that are no character become U+FFFD, and ids that
    /// the tokenizer does not use give nothing.
    ///
    /// # Errors
    ///
    /// [`Error::NotAnId`]; [`Error::Tokenize`].
    pub fn decode(&self, ids: &[i64], skip_special: bool) -> Result<String> {
        let id = |&id: &i64| u32::try_from(id).map_err(|_| Error::NotAnId { id });
        let ids = ids.iter().map(id).collect::<Result<Vec<u32>>>()?;
        let text = self.inner.pipeline.decode(&ids, skip_special);
        text.map_err(|error| Error::Tokenize { reason: error.to_string() })
    }

    /// The bytes a token stands for. Pieces of one character can lie in several tokens, so they need not be UTF-8. A row of
    /// the vocabulary that the tokenizer does not use gives `[id]`.
    pub fn token_bytes(&self, id: i64) -> Vec<u8> {
        let pipeline = &self.inner.pipeline;
        let known = u32::try_from(id).ok().and_then(|id| Some((id, pipeline.id_to_token(id)?)));
        let Some((id, token)) = known else { return format!("[{id}]").into_bytes() };
        if pipeline.get_added_vocabulary().simple_id_to_token(id).is_some() {
            return self.inner.spelling.added_bytes(&token);
        }
        let decoded = || pipeline.decode(&[id], false).map_or_else(|_| token.clone().into_bytes(), String::into_bytes);
        self.inner.spelling.bytes(&token).unwrap_or_else(decoded)
    }

    /// The text of a token for a table or a picture: bytes that are no UTF-8 are written `\xE2`
    /// ([`lens::token_text_from_bytes`]).
    pub fn token_text(&self, id: i64) -> String {
        token_text_from_bytes(&self.token_bytes(id))
    }

    /// Turns ids that come one by one into text; `skip_special` leaves special tokens out.
    pub fn stream(&self, skip_special: bool) -> TextStream {
        TextStream::new(self.clone(), skip_special)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<i64> {
        self.inner.pipeline.token_to_id(token).map(i64::from)
    }

    /// Whether a token is special: it marks places of a text rather than being part of it.
    pub fn is_special(&self, id: i64) -> bool {
        let Ok(id) = u32::try_from(id) else { return false };
        let added = self.inner.pipeline.get_added_vocabulary();
        added.simple_id_to_token(id).is_some_and(|token| added.is_special_token(&token))
    }

    /// The tokens with a role of their own.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.inner.special
    }

    /// How many ids the tokenizer uses, added tokens among them. A model's vocabulary may have more rows.
    pub fn vocabulary_size(&self) -> usize {
        self.inner.pipeline.get_vocab_size(true)
    }

    /// The template for chats: the one called `default`, or the only one.
    ///
    /// # Errors
    ///
    /// [`Error::NoChatTemplate`]; [`Error::ChatTemplate`] where it cannot be read.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        let mut names = self.inner.templates.keys();
        match (names.next(), names.next()) {
            (Some(only), None) => self.chat_template_named(only),
            _ => self.chat_template_named(DEFAULT_TEMPLATE),
        }
    }

    /// The template of this name, such as `tool_use`.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::chat_template`].
    pub fn chat_template_named(&self, name: &str) -> Result<ChatTemplate> {
        let missing =
            || Error::NoChatTemplate { name: name.to_owned(), known: self.inner.templates.keys().cloned().collect() };
        let source = self.inner.templates.get(name).ok_or_else(missing)?;
        Ok(ChatTemplate::new(name, source)?.with_special_tokens(&self.inner.special))
    }

    /// The names of the chat templates.
    pub fn chat_template_names(&self) -> impl Iterator<Item = &str> {
        self.inner.templates.keys().map(String::as_str)
    }
}
