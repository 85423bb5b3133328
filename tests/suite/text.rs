//! Chats as Hugging Face's `apply_chat_template` renders them (`tests/golden/text/generate.py`).

use serde_json::Value;
use transformer_utils::text::{ChatOptions, ChatTemplate, Message, SpecialTokens};

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
        let options = ChatOptions {
            add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
            values: case["values"].as_object().unwrap().clone(),
            ..ChatOptions::default()
        };
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
