//! What can go wrong between a text and its tokens.

use std::{io, path::PathBuf};

/// What can go wrong with tokenizers and chat templates.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer's keys in a GGUF file are not what they should be.
    #[error(transparent)]
    Gguf(#[from] lowmem::gguf::GgufError),
    /// A folder, or a GGUF file, without a tokenizer.
    #[error(
        "{folder}: no tokenizer there; looked for tokenizer.json, for vocab.json and merges.txt, or for tokenizer.ggml.model in a GGUF file"
    )]
    NoTokenizer {
        /// The folder or file.
        folder: PathBuf,
    },
    /// An embedded vocabulary of a kind that is not known.
    #[error("tokenizers of the kind {model:?} are not known; known: {}", known.join(", "))]
    UnknownModel {
        /// The kind, `tokenizer.ggml.model` of a GGUF file.
        model: String,
        /// The kinds that are.
        known: Vec<&'static str>,
    },
    /// A way of splitting a text before it becomes tokens that is not known.
    #[error("the pre-tokenizer {pre:?} is not known, so ids could be wrong; known: {}", known.join(", "))]
    UnknownPreTokenizer {
        /// Its name, `tokenizer.ggml.pre` of a GGUF file.
        pre: String,
        /// The names that are known.
        known: Vec<&'static str>,
    },
    /// An embedded vocabulary that contradicts itself.
    #[error("the embedded tokenizer's {what}")]
    Embedded {
        /// The field, and what is wrong with it.
        what: String,
    },
    /// A text that the tokenizer cannot encode, or ids that it cannot decode.
    #[error("cannot tokenize: {reason}")]
    Tokenize {
        /// What the tokenizer said.
        reason: String,
    },
    /// A number that cannot be a token id.
    #[error("{id} is no token id; they begin at 0")]
    NotAnId {
        /// The number.
        id: i64,
    },
    /// A chat with a tokenizer that has no template for one.
    #[error("the tokenizer has no chat template{}", template_names(name, known))]
    NoChatTemplate {
        /// The name of the template that was asked for.
        name: String,
        /// The names of those it has.
        known: Vec<String>,
    },
    /// A chat template that cannot be read, or that refuses the messages.
    #[error("chat template {name:?}, line {line}: {reason}")]
    ChatTemplate {
        /// The template's name.
        name: String,
        /// The line in it, the first being 1.
        line: usize,
        /// What is wrong there, or what the template says itself.
        reason: String,
    },
}

/// A result of this module.
pub type Result<T> = std::result::Result<T, Error>;

fn template_names(name: &str, known: &[String]) -> String {
    if known.is_empty() { String::new() } else { format!(" called {name:?}; there are: {}", known.join(", ")) }
}
