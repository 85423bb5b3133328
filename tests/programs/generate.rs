//! `generate`: what stands on standard output.

use transformer_utils::tch::{Kind, Tensor};

use crate::{
    program::{golden, ids, refuse, root, succeed},
    support::cases,
};

fn rows(tensor: &Tensor) -> Vec<Vec<i64>> {
    Vec::<Vec<i64>>::try_from(tensor.to_kind(Kind::Int64)).unwrap()
}

#[test]
fn ids_in_ids_out_as_hugging_face_continues_them() {
    let case = cases().into_iter().find(|case| case.name == "gpt2_plain").unwrap();
    let new = case.json["generate"]["max_new_tokens"].to_string();
    let base = ["--model", &golden("gpt2_plain"), "--dtype", "f32", "--device", "cpu", "--max-tokens", &new];
    let expected = rows(&case.expected["generate/greedy"]);
    for more in [&["--greedy"][..], &["--residency", "streamed"], &["--top-k", "1", "--seed", "9"]] {
        let found =
            succeed("generate", &[&base[..], &["--ignore-end", "--ids", &ids(&case.ids("single"))], more].concat());
        assert_eq!(found, format!("{}\n", ids(&expected)), "{more:?}");
    }
    // Rows of a batch are told apart by their numbers.
    let twice = ids(&[case.ids("single"), case.ids("single")].concat());
    let found = succeed("generate", &[&base[..], &["--ignore-end", "--ids", &twice]].concat());
    assert_eq!(found, format!("0: {0}\n1: {0}\n", ids(&expected)));
}

#[test]
fn rows_of_different_lengths_go_on_as_they_do_alone() {
    for (model, more) in [("gpt2_plain", ["--repetition-penalty", "1.5"]), ("neo_plain", ["--residency", "streamed"])] {
        let model = golden(model);
        let base = ["--model", &model, "--dtype", "f32", "--device", "cpu", "--max-tokens", "6", "--ignore-end"];
        let run = |ids: &str| succeed("generate", &[&base[..], &["--ids", ids], &more].concat());
        let rows = ["3,1,4,1,5,9", "2", "6,5,3"];
        let alone = rows.iter().enumerate().map(|(index, row)| format!("{index}: {}", run(row)));
        assert_eq!(run(&rows.join(";")), alone.collect::<String>(), "{model}");
    }
}

#[test]
fn text_goes_on_where_the_prompt_ends() {
    let greedy = succeed("generate", &["--device", "cpu", "Emma was very", "--max-tokens", "8"]);
    assert!(greedy.starts_with("Emma was very") && greedy.len() > "Emma was very\n".len(), "{greedy}");
    let sampled = |seed| succeed("generate", &["--device", "cpu", "Emma", "--temperature", "0.9", "--seed", seed]);
    assert_eq!(sampled("4"), sampled("4"));
    assert_ne!(sampled("4"), sampled("5"));
}

#[test]
fn single_bytes_never_break_a_character() {
    // So hot that every token is as likely as the others, and a sixteenth of them are single bytes. `succeed` wants UTF-8.
    let flags =
        ["--device", "cpu", "Café", "--temperature", "1000", "--max-tokens", "200", "--ignore-end", "--seed", "1"];
    let text = succeed("generate", &flags);
    assert!(text.starts_with("Café") && text.contains(char::REPLACEMENT_CHARACTER), "{text}");
}

#[test]
fn settings_out_of_range_are_refused_before_anything_is_written() {
    for (flags, says) in [
        (&["--top-p", "1.5"][..], "top_p is 1.5"),
        (&["--top-k", "0"], "top_k is 0"),
        (&["--temperature", "0"], "temperature is 0"),
        (&["--repetition-penalty", "0"], "repetition_penalty is 0"),
        (&["--greedy", "--top-k", "3"], "--greedy"),
    ] {
        let error = refuse("generate", &[&["Emma"], flags].concat());
        assert!(error.contains(says), "{flags:?}: {error}");
    }
}

#[test]
fn training_programs_refuse_what_cannot_be_trained_on() {
    for program in ["features", "finetune"] {
        for (flags, says) in [
            (&["--names", "h.0,h.99"][..], "h.99"),
            (&["--names", "h.0.attn.pattern"], "[batch, position, width]"),
            (&["--data", "nowhere"], "nowhere"),
            (&["--evaluate", "nowhere"], "head.json"),
            (&["--epochs", "0"], "--epochs"),
            (&["--model", &golden("gpt2_plain")], "tokenizer.json"),
        ] {
            let error = refuse(program, flags);
            assert!(error.contains(says), "{program} {flags:?}: {error}");
        }
    }
}

/// The bundled model in a folder of its own, with a chat template.
fn with_template(template: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(root().join("assets/tiny-gpt2").join(name), folder.path().join(name)).unwrap();
    }
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    folder
}

#[test]
fn a_chat_is_written_down_by_its_template() {
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}\
                    {% if add_generation_prompt %}answer:{% endif %}";
    let folder = with_template(template);
    let model = folder.path().display().to_string();
    let flags = ["--device", "cpu", "--model", &model, "--max-tokens", "4", " Who was Emma? ", "--chat"];
    let chat = succeed("generate", &flags);
    let written = "user: Who was Emma?\nanswer:";
    assert!(chat.starts_with(written), "{chat}");
    // The same text without the template gives the same answer: nothing is put in front.
    let plain = succeed("generate", &["--device", "cpu", "--model", &model, "--max-tokens", "4", written]);
    assert_eq!(chat, plain);
    let told = succeed("generate", &[&flags[..], &["--system", "Be brief."]].concat());
    assert!(told.starts_with("system: Be brief.\nuser: Who"), "{told}");
}

#[test]
fn a_chat_needs_a_template_that_takes_it() {
    for program in ["generate", "logit_lens"] {
        let error = refuse(program, &["--chat", "Hi"]);
        assert!(error.contains("no chat template"), "{error}");
        let error = refuse(program, &["--system", "Be brief.", "Hi"]);
        assert!(error.contains("--chat"), "{error}");
    }
    let folder = with_template("\n{{ raise_exception('no users here') }}");
    let error = refuse("generate", &["--chat", "Hi", "--model", &folder.path().display().to_string()]);
    assert!(error.contains("line 2: no users here"), "{error}");
}
