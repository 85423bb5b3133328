use super::*;
use crate::text::{Message, Tokenizer};

/// SentencePiece's way: bytes, single characters, and tokens whose scores say which pair is merged first.
fn pieces() -> EmbeddedTokenizer {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".into(), "</s>".into()];
    let mut token_types = vec![TokenType::Unknown, TokenType::Control, TokenType::Control];
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    token_types.extend([TokenType::Byte; 256]);
    let words = ["▁", "a", "b", "c", "ab", "bc", "▁a", "abc", "<tool>"];
    tokens.extend(words.map(str::to_owned));
    token_types.extend([TokenType::Normal; 8]);
    token_types.push(TokenType::UserDefined);
    // "bc" before "ab".
    let mut scores = vec![0.0; 259];
    scores.extend([-9.0, -9.0, -9.0, -9.0, -3.0, -2.0, -4.0, -5.0, 0.0]);
    EmbeddedTokenizer {
        model: "llama".into(),
        tokens,
        scores,
        token_types,
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..EmbeddedTokenizer::default()
    }
}

/// Byte-level BPE with the bytes and a few merges.
fn bytes(pre: &str) -> EmbeddedTokenizer {
    let mut alphabet: Vec<(u8, char)> =
        byte_alphabet().into_iter().map(|(character, byte)| (byte, character)).collect();
    alphabet.sort_unstable();
    let mut tokens: Vec<String> = alphabet.iter().map(|(_, character)| character.to_string()).collect();
    let added = ["he", "Ġhe", "12", "<|end|>", "<｜bos｜>"];
    tokens.extend(added.map(str::to_owned));
    let mut token_types = vec![TokenType::Normal; 259];
    token_types.extend([TokenType::Control; 2]);
    EmbeddedTokenizer {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens,
        token_types,
        merges: vec!["h e".into(), "Ġ he".into(), "1 2".into()],
        bos: Some(260),
        eos: Some(259),
        chat_template: Some("{{ bos_token }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}".into()),
        ..EmbeddedTokenizer::default()
    }
}

fn spelled(tokenizer: &Tokenizer, ids: &[i64]) -> Vec<String> {
    ids.iter().map(|&id| tokenizer.token_text(id)).collect()
}

#[test]
fn scores_say_what_is_merged_first() {
    let tokenizer = Tokenizer::embedded(pieces()).unwrap();
    let ids = tokenizer.encode("abc", true).unwrap();
    assert_eq!(spelled(&tokenizer, &ids), ["<s>", " a", "bc"]);
    // With the scores the other way round "ab" is merged first, and then all of it.
    let mut other = pieces();
    other.scores[263] = -1.0;
    let other = Tokenizer::embedded(other).unwrap();
    assert_eq!(spelled(&other, &other.encode("abc", false).unwrap()), [" ", "abc"]);
}

#[test]
fn what_the_vocabulary_lacks_becomes_bytes_and_text_again() {
    let tokenizer = Tokenizer::embedded(pieces()).unwrap();
    let text = "a é\n 🚀b";
    let ids = tokenizer.encode(text, true).unwrap();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    let mut stream = tokenizer.stream(true).at_start();
    let parts: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    assert!(parts.contains(&"🚀".to_owned()), "{parts:?}");
    assert_eq!(parts.concat(), text);
    // A stream that goes on keeps the first space.
    let mut stream = tokenizer.stream(true);
    assert_eq!(stream.push(tokenizer.token_id("▁a").unwrap()), " a");
    assert_eq!(tokenizer.token_bytes(3 + 0xE2), [0xE2]);
    assert_eq!(tokenizer.token_text(3 + 0xE2), r"\xE2");
    assert_eq!(tokenizer.token_text(5000), "[5000]");
}

#[test]
fn gemma_puts_no_space_in_front() {
    let gemma = EmbeddedTokenizer { architecture: Some("gemma3".into()), ..pieces() };
    let tokenizer = Tokenizer::embedded(gemma).unwrap();
    // And its vocabulary's order says what is merged first: "ab" stands before "bc".
    assert_eq!(spelled(&tokenizer, &tokenizer.encode("abc", false).unwrap()), ["abc"]);
    assert_eq!(spelled(&tokenizer, &tokenizer.encode(" a", false).unwrap()), [" a"]);
}

#[test]
fn control_and_user_defined_tokens_stay_whole() {
    let tokenizer = Tokenizer::embedded(pieces()).unwrap();
    let ids = tokenizer.encode("a<tool>b</s>", false).unwrap();
    assert_eq!(spelled(&tokenizer, &ids), [" a", "<tool>", "b", "</s>"]);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a<tool>b");
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(ids[1]));
}

#[test]
fn bytes_are_merged_within_what_the_name_splits() {
    let of = |pre: &str, text: &str| {
        let tokenizer = Tokenizer::embedded(bytes(pre)).unwrap();
        spelled(&tokenizer, &tokenizer.encode(text, false).unwrap())
    };
    assert_eq!(of("gpt-2", "he he 12"), ["he", " he", " ", "12"]);
    assert_eq!(of("qwen2", "he he 12"), ["he", " he", " ", "1", "2"]);
    assert_eq!(of("gpt-2", "é<|end|>"), [r"\xC3", r"\xA9", "<|end|>"]);
    assert_eq!(of("gpt-2", "<｜bos｜>he"), ["<｜bos｜>", "he"]);
}

#[test]
fn llama_3_begins_with_bos_and_chats_write_their_own() {
    let tokenizer = Tokenizer::embedded(bytes("llama-bpe")).unwrap();
    assert_eq!(tokenizer.encode("he", true).unwrap(), [260, 256]);
    assert_eq!(Tokenizer::embedded(bytes("qwen2")).unwrap().encode("he", true).unwrap(), [256]);
    assert_eq!(tokenizer.encode_chat(&[Message::user("he")], true).unwrap(), [260, 256, 259]);
}

#[test]
fn what_cannot_be_used_is_refused() {
    let refused = |change: &dyn Fn(&mut EmbeddedTokenizer)| {
        let mut embedded = pieces();
        change(&mut embedded);
        Tokenizer::embedded(embedded).unwrap_err().to_string()
    };
    assert!(refused(&|it| it.model = "rwkv".into()).contains("\"rwkv\""));
    assert!(refused(&|it| it.model = "t5".into()).contains("\"t5\""));
    assert!(refused(&|it| it.bos = Some(9999)).contains("bos is 9999"));
    assert!(refused(&|it| it.scores = vec![0.0]).contains("scores have 1 entries"));
    assert!(refused(&|it| it.scores.clear()).contains("scores and merges are both missing"));
    assert!(refused(&|it| it.merges = vec!["ab".into()]).contains("merge 0 is \"ab\""));
    assert!(refused(&|it| (it.eos, it.add_eos) = (None, Some(true))).contains("add_eos"));
    assert!(refused(&|it| it.tokens.clear()).contains("tokens are missing"));
    let unknown = Tokenizer::embedded(bytes("morse")).unwrap_err().to_string();
    assert!(unknown.contains("\"morse\""), "{unknown}");
}
