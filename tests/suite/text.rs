//! Chats as Hugging Face's `apply_chat_template` renders them, and ids as others give them (`tests/golden/text`).

use serde_json::Value;
use transformer_utils::text::{
    ChatOptions, ChatTemplate, EmbeddedTokenizer, Message, SpecialTokens, TokenType, Tokenizer,
};

fn chats() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/text/chats.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn messages(chat: &Value) -> Vec<Message> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    chat.as_array().unwrap().iter().map(|pair| Message::new(text(&pair[0]), text(&pair[1]))).collect()
}

#[test]
fn chats_are_rendered_as_hugging_face_renders_them() {
    let chats = chats();
    let special = SpecialTokens { bos: Some((1, "<s>".into())), eos: Some((2, "</s>".into())), ..Default::default() };
    let (mut rendered, mut refused) = (0, 0);
    for case in chats["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let source = chats["templates"][name].as_str().unwrap();
        let template = ChatTemplate::new(name, source).unwrap().with_special_tokens(&special);
        let options = ChatOptions::default()
            .add_generation_prompt(case["add_generation_prompt"].as_bool().unwrap())
            .values(case["values"].as_object().unwrap().clone());
        let chat = messages(&chats["chats"][case["chat"].as_str().unwrap()]);
        let found = template.render_with(&chat, &options);
        let what = format!("{name}, {}, {}", case["chat"], case["add_generation_prompt"]);
        match case["rendered"].as_str() {
            Some(expected) => {
                assert_eq!(found.unwrap(), expected, "{what}");
                rendered += 1;
            }
            None => {
                let error = found.unwrap_err().to_string();
                assert!(error.ends_with(case["refused"].as_str().unwrap()), "{what}: {error}");
                refused += 1;
            }
        }
    }
    assert!(rendered > 90 && refused > 5, "{rendered} rendered, {refused} refused");
}

/// Lines of many scripts, code and emoji, vocabularies, and ids (`tests/golden/text/tokens.py`).
fn tokens() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/text/tokens.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn embedded(case: &Value) -> EmbeddedTokenizer {
    let numbers = |list: &Value| list.as_array().into_iter().flatten().map(|n| n.as_f64().unwrap()).collect::<Vec<_>>();
    let types = numbers(&case["types"]).into_iter().map(|number| TokenType::from_number(number as i64).unwrap());
    EmbeddedTokenizer {
        model: case["model"].as_str().unwrap().into(),
        pre: case["pre"].as_str().map(str::to_owned),
        tokens: texts(&case["tokens"]),
        scores: numbers(&case["scores"]).into_iter().map(|score| score as f32).collect(),
        token_types: types.collect(),
        merges: texts(&case["merges"]),
        unk: (case["model"] == "llama").then_some(0),
        ..EmbeddedTokenizer::default()
    }
}

fn assert_ids(name: &str, tokenizer: &Tokenizer, lines: &[String], ids: &Value) {
    assert_eq!(ids.as_array().unwrap().len(), lines.len());
    for (line, expected) in lines.iter().zip(ids.as_array().unwrap()) {
        let expected: Vec<i64> = serde_json::from_value(expected.clone()).unwrap();
        assert_eq!(tokenizer.encode(line, false).unwrap(), expected, "{name}: {line:?}");
        assert_eq!(tokenizer.decode(&expected, false).unwrap(), *line, "{name}");
    }
}

#[test]
fn ids_of_many_scripts_code_and_emoji_are_those_of_others() {
    let tokens = tokens();
    let all = texts(&tokens["lines"]);
    assert!(all.len() >= 300);
    for (name, case) in tokens["cases"].as_object().unwrap() {
        let lines = if case["lines"].is_null() { all.clone() } else { texts(&case["lines"]) };
        let tokenizer = Tokenizer::embedded(embedded(case)).unwrap();
        assert_ids(name, &tokenizer, &lines, &case["ids"]);
        if case["tokenizer"].is_null() {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), case["tokenizer"].to_string()).unwrap();
        assert_ids(name, &Tokenizer::open(folder.path()).unwrap(), &lines, &case["ids"]);
    }
}
