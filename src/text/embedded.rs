//! Tokenizers as GGUF files describe them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, Tokenizer,
    decoders::{byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence, strip::Strip},
    models::bpe::{BPE, BpeBuilder, Merges, Vocab},
    normalizers::{Prepend, Replace, Sequence as Normalizers},
    pre_tokenizers::{
        byte_level::ByteLevel,
        metaspace::{Metaspace, PrependScheme},
    },
};

use super::{
    error::{Error, Result},
    pieces::{SPACE, Spelling, byte_alphabet},
    pre_tokenizers::Splitting,
    tokenizer::{Inner, SpecialTokens},
};

/// The kinds that can be built.
const KINDS: [&str; 3] = ["gpt2", "llama", "gemma4"];

/// What a GGUF file says of its tokenizer: the values under `tokenizer.ggml.` and `tokenizer.chat_template`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EmbeddedTokenizer {
    /// The network's family, `general.architecture`. SentencePiece vocabularies of the Gemma family and of Phi-3 are used in
    /// their own ways, which nothing else in the file says.
    pub architecture: Option<String>,
    /// The kind: `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// How a byte-level tokenizer splits a text first, by name.
    pub pre: Option<String>,
    /// The vocabulary; the index is the id.
    pub tokens: Vec<String>,
    /// SentencePiece's scores: of two merges the one to the token with the higher score comes first.
    pub scores: Vec<f32>,
    /// What each token is; empty means that all are [`TokenType::Normal`].
    pub token_types: Vec<TokenType>,
    /// Merges, the first first: two tokens with a space between them.
    pub merges: Vec<String>,
    /// The id of the token that begins a text.
    pub bos: Option<u32>,
    /// The id of the token that ends a text.
    pub eos: Option<u32>,
    /// The id of the token for what cannot be spelled.
    pub unk: Option<u32>,
    /// The id of the token that fills up rows.
    pub pad: Option<u32>,
    /// Whether a text begins with `bos`; not said means what is usual for the kind.
    pub add_bos: Option<bool>,
    /// Whether a text ends with `eos`; not said means no.
    pub add_eos: Option<bool>,
    /// Whether a space is put before a text (SentencePiece); not said means yes, but for Gemma.
    pub add_space_prefix: Option<bool>,
    /// The chat template.
    pub chat_template: Option<String>,
    /// Further chat templates by name, such as `tool_use`.
    pub more_chat_templates: BTreeMap<String, String>,
}

/// What a token of an embedded vocabulary is, `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenType {
    /// A piece of text.
    #[default]
    Normal,
    /// Stands for what cannot be spelled.
    Unknown,
    /// Marks a place in a text; special.
    Control,
    /// A piece that is never cut.
    UserDefined,
    /// Fills the vocabulary up.
    Unused,
    /// A single byte.
    Byte,
}

impl TokenType {
    /// The type of this number in a GGUF file; `None` for a number that means nothing.
    pub fn from_number(number: i64) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// Builds the pipeline.
pub(super) fn build(mut embedded: EmbeddedTokenizer) -> Result<Inner> {
    embedded.check()?;
    let (mut pipeline, add_bos) = match embedded.model.as_str() {
        "gpt2" => embedded.byte_level()?,
        "llama" | "gemma4" => (embedded.sentence_piece()?, embedded.model == "llama"),
        _ => return Err(Error::UnknownModel { model: embedded.model, known: KINDS.to_vec() }),
    };
    embedded.add_tokens(&mut pipeline)?;
    let token = |id: Option<u32>| {
        let id = id?;
        Some((i64::from(id), embedded.tokens.get(id as usize)?.clone()))
    };
    let special = SpecialTokens {
        bos: token(embedded.bos),
        eos: token(embedded.eos),
        unk: token(embedded.unk),
        pad: token(embedded.pad),
    };
    let edge = |wanted: Option<bool>, usual: bool, id: Option<u32>, flag: &str| match id {
        Some(id) if wanted.unwrap_or(usual) => Ok(vec![i64::from(id)]),
        None if wanted == Some(true) => Err(wrong(format!("{flag} is true, but it names no such token"))),
        _ => Ok(Vec::new()),
    };
    let before = edge(embedded.add_bos, add_bos, embedded.bos, "add_bos")?;
    let after = edge(embedded.add_eos, false, embedded.eos, "add_eos")?;
    let spelling = Spelling::of(pipeline.get_decoder());
    let mut templates = embedded.more_chat_templates;
    templates.extend(embedded.chat_template.map(|text| ("default".to_owned(), text)));
    Ok(Inner { pipeline, spelling, special, before, after, templates })
}

fn wrong(what: impl Into<String>) -> Error {
    Error::Embedded { what: what.into() }
}

fn refused(error: tokenizers::Error) -> Error {
    wrong(format!("vocabulary cannot be used: {error}"))
}

impl EmbeddedTokenizer {
    fn check(&self) -> Result<()> {
        let count = self.tokens.len();
        if count == 0 {
            return Err(wrong("tokens are missing"));
        }
        let lists = [("scores", self.scores.len()), ("token_types", self.token_types.len())];
        if let Some((name, length)) = lists.into_iter().find(|&(_, length)| length != 0 && length != count) {
            return Err(wrong(format!("{name} have {length} entries, the tokens {count}")));
        }
        let roles = [("bos", self.bos), ("eos", self.eos), ("unk", self.unk), ("pad", self.pad)];
        match roles.into_iter().find(|(_, id)| id.is_some_and(|id| id as usize >= count)) {
            Some((name, id)) => Err(wrong(format!("{name} is {}, but there are {count} tokens", id.unwrap_or(0)))),
            None => Ok(()),
        }
    }

    fn token_type(&self, index: usize) -> TokenType {
        self.token_types.get(index).copied().unwrap_or_default()
    }

    fn is_gemma(&self) -> bool {
        let family = self.architecture.as_deref().is_some_and(|name| name.starts_with("gemma"));
        family || self.model == "gemma4"
    }

    /// Byte-level BPE, and whether `bos` usually stands before a text.
    fn byte_level(&self) -> Result<(Tokenizer, bool)> {
        let splitting = Splitting::named(self.pre.as_deref().unwrap_or("default"))?;
        let alphabet = byte_alphabet();
        let characters: HashMap<u8, char> = alphabet.iter().map(|(&character, &byte)| (byte, character)).collect();
        let spelled = |(index, token): (usize, &String)| {
            let added = matches!(self.token_type(index), TokenType::Control | TokenType::UserDefined);
            if added || token.chars().all(|character| alphabet.contains_key(&character)) {
                return token.clone();
            }
            token.bytes().filter_map(|byte| characters.get(&byte)).collect()
        };
        let tokens: Vec<String> = self.tokens.iter().enumerate().map(spelled).collect();
        let model = BPE::builder().ignore_merges(splitting.ignore_merges);
        let model = self.finish(model, &tokens, self.listed_merges()?)?;
        let mut pipeline = Tokenizer::new(model);
        pipeline.with_pre_tokenizer(Some(splitting.pipeline().map_err(refused)?));
        pipeline.with_decoder(Some(ByteLevel::default()));
        Ok((pipeline, splitting.add_bos))
    }

    /// SentencePiece's BPE with bytes for what the vocabulary lacks.
    fn sentence_piece(&mut self) -> Result<Tokenizer> {
        let gemma = self.is_gemma();
        // Gemma's files spell runs of spaces as spaces.
        if gemma {
            let spaces = |token: &String| token.len() > 1 && token.bytes().all(|byte| byte == b' ');
            let runs = self.tokens.iter_mut().filter(|token| spaces(token));
            runs.for_each(|token| *token = SPACE.to_string().repeat(token.len()));
        }
        let merges = if self.merges.is_empty() { self.recovered_merges(gemma)? } else { self.listed_merges()? };
        let mut model = BPE::builder().fuse_unk(true).byte_fallback(true);
        if let Some(unknown) = self.unk.and_then(|id| self.tokens.get(id as usize)) {
            model = model.unk_token(unknown.clone());
        }
        let mut pipeline = Tokenizer::new(self.finish(model, &self.tokens, merges)?);
        let space = SPACE.to_string();
        let replace = |from: &str, to: &str| Replace::new(from, to).map_err(refused);
        let prefix = self.add_space_prefix.unwrap_or(!gemma);
        let mut decoder: Vec<DecoderWrapper> =
            vec![replace(&space, " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
        if !prefix {
            pipeline.with_normalizer(Some(replace(" ", &space)?)).map_err(refused)?;
        } else if self.architecture.as_deref() == Some("phi3") {
            // A space before every text, not only before one that begins without.
            let steps: Vec<NormalizerWrapper> = vec![Prepend::new(space.clone()).into(), replace(" ", &space)?.into()];
            pipeline.with_normalizer(Some(Normalizers::new(steps))).map_err(refused)?;
        } else {
            pipeline.with_pre_tokenizer(Some(Metaspace::new(SPACE, PrependScheme::First, false)));
        }
        if prefix {
            decoder.push(Strip::new(' ', 1, 0).into());
        }
        pipeline.with_decoder(Some(Sequence::new(decoder)));
        Ok(pipeline)
    }

    fn finish(&self, model: BpeBuilder, tokens: &[String], merges: Merges) -> Result<BPE> {
        let ids = (0..).zip(tokens).map(|(id, token)| (token.clone(), id));
        model.vocab_and_merges(ids.collect::<Vocab>(), merges).build().map_err(refused)
    }

    fn listed_merges(&self) -> Result<Merges> {
        let pair = |(index, merge): (usize, &String)| {
            // The first character belongs to the first token, even if it is a space.
            let at = merge.char_indices().skip(1).find(|&(_, character)| character == ' ');
            let halves = at.and_then(|(at, _)| Some((merge.get(..at)?, merge.get(at + 1..)?)));
            let halves = halves.filter(|(_, right)| !right.is_empty());
            let malformed = || wrong(format!("merge {index} is {merge:?}; expected two tokens with a space between"));
            halves.map(|(left, right)| (left.to_owned(), right.to_owned())).ok_or_else(malformed)
        };
        self.merges.iter().enumerate().map(pair).collect()
    }

    /// The merges that a vocabulary implies: every way to put a token together from two others, the tokens with the highest
    /// score first. `by_position` takes the order of the vocabulary instead, which is Gemma's.
    fn recovered_merges(&self, by_position: bool) -> Result<Merges> {
        if self.scores.is_empty() && !by_position {
            return Err(wrong("scores and merges are both missing"));
        }
        let ids: HashMap<&str, usize> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
        let mut merges = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
            let score = self.scores.get(id).copied().filter(|score| score.is_finite()).unwrap_or(f32::MIN);
            let mut ways = Vec::new();
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) {
                    let lengths = (left.chars().count(), right.chars().count());
                    ways.push((left_id, right_id, lengths, (left.to_owned(), right.to_owned())));
                }
            }
            ways.sort_by_key(|&(left, right, ..)| (left, right));
            merges.extend(ways.into_iter().map(|(.., lengths, pair)| (id, score, lengths, pair)));
        }
        // Both sorts are stable: what is equal stays in the order of the vocabulary.
        if by_position {
            merges.sort_by_key(|&(id, _, lengths, _)| (id, Reverse(lengths)));
        } else {
            merges.sort_by(|(_, one, one_length, _), (_, other, other_length, _)| {
                other.total_cmp(one).then(other_length.cmp(one_length))
            });
        }
        Ok(merges.into_iter().map(|(.., pair)| pair).collect())
    }

    /// Tokens that are never cut: control tokens and those that users defined.
    fn add_tokens(&self, pipeline: &mut Tokenizer) -> Result<()> {
        let of = |kind: TokenType| {
            let special = kind == TokenType::Control;
            // Runs of spaces are merged from single ones: a text has no visible spaces that could be matched.
            let spaces = |token: &String| token.chars().all(|character| character == SPACE);
            let of_kind = move |&(index, token): &(usize, &String)| self.token_type(index) == kind && !spaces(token);
            let tokens = self.tokens.iter().enumerate().filter(of_kind);
            tokens.map(move |(_, token)| AddedToken::from(token.clone(), special).normalized(false))
        };
        pipeline.add_special_tokens(of(TokenType::Control)).map_err(refused)?;
        pipeline.add_tokens(of(TokenType::UserDefined)).map_err(refused)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
