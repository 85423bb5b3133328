//! Text to token ids and back, and chats to text.
//!
//! A [`Tokenizer`] comes from the files beside a checkpoint or from what a GGUF file says of its vocabulary
//! ([`EmbeddedTokenizer`]); both become a pipeline of the crate `tokenizers`. A [`ChatTemplate`] turns messages into the text
//! that a model was trained on, as Hugging Face's `apply_chat_template` does.
//!
//! ```
//! use transformer_utils::text::{ChatTemplate, Message, Tokenizer};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let tokenizer = Tokenizer::open("assets/tiny-gpt2")?;
//! let ids = tokenizer.encode("Emma was very", true)?;
//! assert_eq!(tokenizer.decode(&ids, true)?, "Emma was very");
//!
//! // Text as it is generated: a character can lie in several tokens.
//! let mut stream = tokenizer.stream(true);
//! let written: String = ids.iter().map(|&id| stream.push(id)).collect();
//! assert_eq!(written + &stream.finish(), "Emma was very");
//!
//! let template = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}";
//! let template = ChatTemplate::new("default", template)?;
//! assert_eq!(template.render(&[Message::user(" Who was Emma?")], false)?, "<user>Who was Emma?\n");
//! # Ok(())
//! # }
//! ```

mod chat;
mod chat_functions;
mod embedded;
mod error;
mod folder;
mod gguf;
mod json;
mod pieces;
mod pre_tokenizers;
mod stream;
mod tokenizer;

pub use chat::{ChatOptions, ChatTemplate, Message};
pub use embedded::{EmbeddedTokenizer, TokenType};
pub use error::{Error, Result};
pub use stream::TextStream;
pub use tokenizer::{SpecialTokens, Tokenizer};
